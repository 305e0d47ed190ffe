package nodeagent

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/reason"
)

// publisher tells etcd how environments are, in the background and for as long as it takes. Only an environment's
// newest state matters, so it keeps one each. That one ended is kept in a file until it was told: the environment's
// own record is gone by then, and a restart must not swallow the reason.
type publisher struct {
	queue *queue.Queue
	node  string
	dir   string
	log   *slog.Logger

	mu      sync.Mutex
	pending map[string]queue.EnvStatus
	wake    chan struct{}
}

func newPublisher(q *queue.Queue, node, dir string, log *slog.Logger) *publisher {
	p := &publisher{queue: q, node: node, dir: dir, log: log,
		pending: map[string]queue.EnvStatus{}, wake: make(chan struct{}, 1)}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return p
	}
	for _, e := range entries {
		var s queue.EnvStatus
		body, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil || json.Unmarshal(body, &s) != nil || s.ID != e.Name() {
			continue
		}
		p.put(s)
	}
	return p
}

// put tells s soon, in place of what was not told yet.
func (p *publisher) put(s queue.EnvStatus) {
	s.Node = p.node
	if s.UpdatedAt.IsZero() {
		s.UpdatedAt = time.Now().UTC()
	}
	p.mu.Lock()
	p.pending[s.ID] = s
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// keep writes down how an environment is going to end, before it is taken down: should this daemon be killed in
// between, the next one finishes it and tells.
func (p *publisher) keep(s queue.EnvStatus) {
	s.Node, s.UpdatedAt = p.node, time.Now().UTC()
	body, err := json.Marshal(s)
	if err == nil {
		err = os.MkdirAll(p.dir, 0o700)
	}
	if err == nil {
		tmp := filepath.Join(p.dir, s.ID+".tmp")
		if err = os.WriteFile(tmp, body, 0o600); err == nil {
			err = os.Rename(tmp, filepath.Join(p.dir, s.ID))
		}
	}
	if err != nil {
		p.log.Error("keep an environment's end", "env", s.ID, "err", err)
	}
}

// kept tells whether an environment's end was written down and not told yet.
func (p *publisher) kept(id string) bool {
	_, err := os.Stat(filepath.Join(p.dir, id))
	return err == nil
}

// ended is keep and put.
func (p *publisher) ended(s queue.EnvStatus) {
	p.keep(s)
	p.put(s)
}

// forget drops what was to be told of an environment: somebody else has told it.
func (p *publisher) forget(id string) {
	p.mu.Lock()
	delete(p.pending, id)
	p.mu.Unlock()
	_ = os.Remove(filepath.Join(p.dir, id))
}

func (p *publisher) run(ctx context.Context) error {
	wait := newBackoff()
	for {
		p.mu.Lock()
		batch := maps.Clone(p.pending)
		p.mu.Unlock()
		failed := false
		for id, s := range batch {
			err := p.tell(ctx, s)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				failed = true
				p.log.Warn("tell etcd of an environment: trying again", "env", id, "err", err)
				break // the next one would wait for the same etcd
			}
		}
		if failed {
			if !wait.sleep(ctx) {
				return nil
			}
			continue
		}
		wait.reset()
		p.mu.Lock()
		more := len(p.pending) > 0
		p.mu.Unlock()
		if more {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		}
	}
}

// tell writes one status. Its error means: try again.
func (p *publisher) tell(ctx context.Context, s queue.EnvStatus) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err := p.queue.PutStatus(ctx, p.node, s)
	if errors.Is(err, queue.ErrFenced) || errors.Is(err, queue.ErrNotFound) {
		// Nobody wants to know: etcd has forgotten it, or an operator gave it to another node. That alone is no
		// reason to take down what a person may be using.
		p.log.Warn("etcd does not know this environment as ours", "env", s.ID, "state", s.State, "err", err)
	} else if err != nil {
		return err
	}
	p.mu.Lock()
	// A newer one may have come meanwhile.
	done := p.pending[s.ID].UpdatedAt.Equal(s.UpdatedAt) && p.pending[s.ID].State == s.State
	if done || err != nil {
		delete(p.pending, s.ID)
	}
	p.mu.Unlock()
	if done && queue.Terminal(s.State) || err != nil {
		_ = os.Remove(filepath.Join(p.dir, s.ID))
	}
	return nil
}

// endReason says in a sentence why an environment that ended by itself did.
func endReason(st ExitStatus, l Limits) string {
	switch {
	case st.OOMKilled && l.MemoryBytes > 0:
		return reason.Say(reason.MemoryLimit, sizeText(l.MemoryBytes))
	case st.OOMKilled:
		return reason.Say(reason.OutOfMemory)
	case strings.TrimSpace(st.Reason) != "":
		return st.Reason
	}
	return reason.Say(reason.FirstProcess)
}
