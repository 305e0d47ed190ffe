package events

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/learnos/learnos/gateway/store"
	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/tunnel"
)

// Opener reaches nodes; *tunnel.Hub is one.
type Opener interface {
	Open(ctx context.Context, node string, req tunnel.Request) (*tunnel.Conn, error)
}

// collector keeps one stats stream to each node that runs an environment somebody looks at, and none to the others.
type collector struct {
	hub     *Hub
	nodes   Opener
	mu      sync.Mutex
	owners  map[string]int64 // running environment → user who listens
	streams map[string]context.CancelFunc
	wg      sync.WaitGroup
}

// RunStats tells clients how their running environments are doing until ctx ends.
func (h *Hub) RunStats(ctx context.Context, nodes Opener) {
	c := &collector{hub: h, nodes: nodes, owners: map[string]int64{}, streams: map[string]context.CancelFunc{}}
	defer c.wg.Wait()
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.audience:
		case <-tick.C:
		}
		c.reconcile(ctx)
		select { // many changes at once are one
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// reconcile opens the streams that are wanted now and ends the others.
func (c *collector) reconcile(ctx context.Context) {
	owners, wanted := map[string]int64{}, map[string]bool{}
	for _, user := range c.hub.users() {
		rows, err := c.hub.store.Environments(ctx, store.Filter{User: user, States: []string{queue.StateRunning}})
		if err != nil {
			c.hub.log.Warn("look for environments to watch", "error", err)
			return
		}
		for _, e := range rows {
			if e.Node != "" {
				owners[e.ID], wanted[e.Node] = user, true
			}
		}
	}
	c.mu.Lock()
	c.owners = owners
	c.mu.Unlock()
	for node, stop := range c.streams {
		if !wanted[node] {
			stop()
			delete(c.streams, node)
		}
	}
	for node := range wanted {
		if _, ok := c.streams[node]; !ok {
			streamCtx, stop := context.WithCancel(ctx)
			c.streams[node] = stop
			c.wg.Go(func() { c.follow(streamCtx, node) })
		}
	}
}

// follow reads a node's stats, again whenever the stream breaks.
func (c *collector) follow(ctx context.Context, node string) {
	for ctx.Err() == nil {
		if err := c.stream(ctx, node); err != nil && ctx.Err() == nil && !errors.Is(err, tunnel.ErrNodeOffline) {
			c.hub.log.Debug("stats stream", "node", node, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
	}
}

func (c *collector) stream(ctx context.Context, node string) error {
	openCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
	conn, err := c.nodes.Open(openCtx, node, tunnel.Request{Op: tunnel.OpStats})
	cancel()
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 4096), tunnel.MaxLine)
	for {
		if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil { // an idle node may be silent for a while
			return err
		}
		if !lines.Scan() {
			return lines.Err()
		}
		var s tunnel.Stats
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			return err
		}
		c.pass(s)
	}
}

// pass hands one line to the owner's clients. Stats that don't fit are dropped: the next ones come in a second.
func (c *collector) pass(s tunnel.Stats) {
	c.mu.Lock()
	user, ok := c.owners[s.Env]
	c.mu.Unlock()
	if !ok {
		return
	}
	data, err := json.Marshal(Message{Type: "stats", Environment: s.Env, Stats: &Stats{CPUPercent: s.CPUPercent, MemoryBytes: s.MemoryBytes,
		MemoryLimit: s.MemoryLimit, RxBytes: s.RxBytes, TxBytes: s.TxBytes, PIDs: s.PIDs}})
	if err != nil {
		c.hub.log.Error("encode stats", "error", err) // NaN, say
		return
	}
	c.hub.everyone(user, func(client *Client) {
		if len(client.C) < backlog/2 {
			client.tell(data)
		}
	})
}
