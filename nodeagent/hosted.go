package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/learnos/learnos/internal/queue"
)

// maxSessions bounds the sessions of one environment that run at a time, and those that ended and are still kept.
const maxSessions = 32

// errEnding refuses what comes too late.
var errEnding = errors.New("the environment is being taken down")

// hosted is an environment under the daemon: made or being made for a job.
type hosted struct {
	d        *daemon
	id       string
	promised Limits        // memory and disk of it are kept free for the environment
	queued   time.Duration // from when it was asked for, by the gateway's clock, until this node claimed it
	made     chan struct{} // closed when its create has ended, well or not
	gone     chan struct{} // closed when the daemon has forgotten it

	mu        sync.Mutex
	cancel    context.CancelFunc // stops its create, and later what follows it
	env       *Environment       // nil while it is being made, and if that failed
	ending    bool               // nobody may come in any more
	connected int
	lastSeen  time.Time // when the last client left, or the environment or this daemon began
	sessions  map[string]*session
	creating  int // sessions being started
	last      sample
}

// host adds a running environment to the daemon's.
func (d *daemon) host(env *Environment) *hosted {
	r := env.Record()
	h := &hosted{d: d, id: r.ID, env: env, promised: r.Limits, lastSeen: time.Now(),
		sessions: map[string]*session{}, made: make(chan struct{}), gone: make(chan struct{}), cancel: func() {}}
	close(h.made)
	d.mu.Lock()
	d.envs[r.ID] = h
	d.mu.Unlock()
	d.wake()
	return h
}

// drop forgets an environment that is gone.
func (d *daemon) drop(h *hosted) {
	d.mu.Lock()
	if d.envs[h.id] == h {
		delete(d.envs, h.id)
		close(h.gone)
	}
	d.mu.Unlock()
	h.letGo()
	if d.refused.Load() {
		d.wake()
	} else {
		d.announce()
	}
}

// letGo closes the sessions' descriptors; the sessions themselves go on with the environment.
func (h *hosted) letGo() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, se := range h.sessions {
		se.close(false)
	}
	h.sessions = map[string]*session{}
}

// status is how the environment is, for etcd.
func (h *hosted) status() queue.EnvStatus {
	h.mu.Lock()
	env := h.env
	h.mu.Unlock()
	if env == nil {
		return queue.EnvStatus{ID: h.id, State: queue.StateCreating}
	}
	r := env.Record()
	s := queue.EnvStatus{ID: h.id, Node: h.d.name, State: queue.StateRunning, Address: r.Address, Timings: r.Timings}
	if r.Platform != nil {
		s.Deadline = r.Platform.Deadline
	}
	return s
}

// running is the environment if somebody may come in.
func (h *hosted) running() (*Environment, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ending {
		return nil, errEnding
	}
	if h.env == nil {
		return nil, fmt.Errorf("%w: it is still being made", ErrNotRunning)
	}
	return h.env, nil
}

// begin marks it as ending; false when somebody else has. From here on nobody gets in, so that an idle
// environment never goes under a person who has just arrived.
func (h *hosted) begin(onlyIf func() bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ending || (onlyIf != nil && !onlyIf()) {
		return false
	}
	h.ending = true
	return true
}

// come and go count attached clients.
func (h *hosted) come() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ending {
		return errEnding
	}
	h.connected++
	return nil
}

func (h *hosted) goAway() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.connected--
	h.lastSeen = time.Now()
}

// follow waits for the environment's own end.
func (d *daemon) follow(ctx context.Context, h *hosted) {
	ctx, cancel := context.WithCancel(ctx)
	h.mu.Lock()
	env := h.env
	h.cancel = cancel
	if h.ending {
		cancel()
	}
	h.mu.Unlock()
	go func() {
		defer cancel()
		st, err := env.Wait(ctx)
		if ctx.Err() != nil {
			return
		}
		reason := endReason(st, env.Record().Limits)
		if err != nil {
			reason = err.Error()
		}
		d.end(h, nil, queue.EnvStatus{State: queue.StateFailed, Reason: reason})
	}()
}

// end takes an environment down and tells why, unless somebody is at it already or onlyIf, asked when nobody can
// come in any more, says no.
func (d *daemon) end(h *hosted, onlyIf func() bool, final queue.EnvStatus) {
	if !h.begin(onlyIf) {
		return
	}
	d.work.Add(1)
	defer d.work.Done()
	final.ID = h.id
	d.log.Info("ending", "env", h.id, "state", final.State, "reason", final.Reason)
	stopping := h.status()
	stopping.State, stopping.Reason = queue.StateStopping, final.Reason
	d.pub.put(stopping)
	d.pub.keep(final)
	if err := d.remove(h); err != nil {
		d.log.Error("take down", "env", h.id, "err", err)
	}
	d.pub.put(final)
}

// remove deletes the environment and forgets it. What fails is tried again by the next start's sweep.
func (d *daemon) remove(h *hosted) error {
	h.mu.Lock()
	cancel := h.cancel
	h.mu.Unlock()
	cancel()
	<-h.made
	// The end of the process must not have to wait for the deletion of a hundred environments, nor leave one half
	// deleted; so this has a bound of its own.
	ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	defer stop()
	err := d.node.Delete(ctx, h.id)
	d.drop(h)
	return err
}

// accepted tells whether etcd has taken the environment as made here.
func (h *hosted) accepted() bool {
	h.mu.Lock()
	env := h.env
	h.mu.Unlock()
	if env == nil {
		return false
	}
	p := env.Record().Platform
	return p != nil && p.Accepted
}

// accept notes that etcd has.
func (h *hosted) accept() {
	h.mu.Lock()
	env := h.env
	h.mu.Unlock()
	if env == nil {
		return
	}
	if err := env.updatePlatform(func(p *PlatformRecord) { p.Accepted = true }); err != nil {
		h.d.log.Error("record that an environment was accepted", "env", h.id, "err", err)
	}
}

// updatePlatform changes the daemon's part of the record. Copies of the record that others hold stay as they are.
func (e *Environment) updatePlatform(change func(p *PlatformRecord)) error {
	return e.update(func(r *Record) {
		var p PlatformRecord
		if r.Platform != nil {
			p = *r.Platform
		}
		change(&p)
		r.Platform = &p
	})
}

// extend moves the environment's deadline, on disk first.
func (h *hosted) extend(deadline time.Time) error {
	env, err := h.running()
	if err != nil {
		return err
	}
	if err := env.updatePlatform(func(p *PlatformRecord) { p.Deadline = deadline.UTC() }); err != nil {
		return err
	}
	h.d.pub.put(h.status())
	return nil
}
