// Package events tells connected clients what happens to their environments, and how those are doing. A client that
// is too slow for every change gets a fresh snapshot instead; it never holds up another one, and nothing here grows
// with what it did not read.
//
// The package sends nothing itself: it hands each client's messages to whoever owns the connection.
package events

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/learnos/learnos/gateway/store"
)

// Message is one text message of the websocket; see Event in the OpenAPI document.
type Message struct {
	Type         string   `json:"type"` // hello, environment or stats
	Environments []string `json:"environments,omitempty"`
	Resync       bool     `json:"resync,omitempty"`
	Environment  any      `json:"environment,omitempty"`
	Stats        *Stats   `json:"stats,omitempty"`
}

// Stats is how one environment is doing.
type Stats struct {
	CPUPercent  float64 `json:"cpuPercent"`
	MemoryBytes int64   `json:"memoryBytes"`
	MemoryLimit int64   `json:"memoryLimit"`
	RxBytes     int64   `json:"rxBytes"`
	TxBytes     int64   `json:"txBytes"`
	PIDs        int64   `json:"pids"`
}

// backlog is how many messages may wait for one client.
const backlog = 64

// Client is one subscription. Its owner reads C and, whenever Lost receives, drops what waits in C and sends
// Hub.Snapshot.
type Client struct {
	C    chan []byte
	Lost chan struct{}
	user int64
}

// tell queues a message, or notes that it could not be.
func (c *Client) tell(message []byte) {
	select {
	case c.C <- message:
	default:
		c.lose()
	}
}

func (c *Client) lose() {
	select {
	case c.Lost <- struct{}{}:
	default:
	}
}

// Hub knows who listens. It is safe for concurrent use.
type Hub struct {
	store  *store.Store
	render func(context.Context, store.Environment) any
	log    *slog.Logger

	mu      sync.Mutex
	clients map[int64]map[*Client]bool
	dirty   map[string]int64 // environment → user, to be told
	wake    chan struct{}
	// Changes of who listens, or to what, for the stats streams.
	audience chan struct{}
}

// NewHub makes a hub; render is how an environment looks to its owner.
func NewHub(s *store.Store, render func(context.Context, store.Environment) any, log *slog.Logger) *Hub {
	return &Hub{store: s, render: render, log: log, clients: map[int64]map[*Client]bool{}, dirty: map[string]int64{},
		wake: make(chan struct{}, 1), audience: make(chan struct{}, 1)}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Subscribe starts telling a client. The caller must Unsubscribe.
func (h *Hub) Subscribe(user int64) *Client {
	c := &Client{C: make(chan []byte, backlog), Lost: make(chan struct{}, 1), user: user}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.clients[user] == nil {
		h.clients[user] = map[*Client]bool{}
	}
	h.clients[user][c] = true
	poke(h.audience)
	return c
}

// Unsubscribe stops telling a client.
func (h *Hub) Unsubscribe(c *Client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.clients[c.user], c)
	if len(h.clients[c.user]) == 0 {
		delete(h.clients, c.user)
	}
	poke(h.audience)
}

// Watched tells whether a user listens.
func (h *Hub) Watched(user int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.clients[user]) > 0
}

// Changed notes that an environment looks different now. It never blocks.
func (h *Hub) Changed(user int64, env string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.clients[user]) == 0 {
		return
	}
	h.dirty[env] = user
	poke(h.wake)
	poke(h.audience)
}

// Snapshot is a hello and all that a user has, as messages.
func (h *Hub) Snapshot(ctx context.Context, user int64, resync bool) ([][]byte, error) {
	rows, err := h.store.Environments(ctx, store.Filter{User: user})
	if err != nil {
		return nil, fmt.Errorf("list environments for a snapshot: %w", err)
	}
	hello := struct {
		Message
		Environments []string `json:"environments"` // also when there are none
	}{Message{Type: "hello", Resync: resync}, []string{}}
	for _, e := range rows {
		hello.Environments = append(hello.Environments, e.ID)
	}
	messages := make([][]byte, 0, len(rows)+1)
	for i := -1; i < len(rows); i++ {
		var m any = hello
		if i >= 0 {
			m = Message{Type: "environment", Environment: h.render(ctx, rows[i])}
		}
		data, err := json.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("encode a snapshot: %w", err)
		}
		messages = append(messages, data)
	}
	return messages, nil
}

// Run tells clients until ctx ends. One goroutine does it, so a client never hears an older state after a newer one.
func (h *Hub) Run(ctx context.Context) {
	told := map[string]store.Time{}
	since := store.At(time.Now())
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		case <-tick.C:
			// What another gateway on the same database changed comes this way.
			from := since
			since = store.At(time.Now().Add(-2 * time.Second))
			if !h.anybody() {
				clear(told)
				continue
			}
			rows, err := h.store.Environments(ctx, store.Filter{Deleted: true, ChangedSince: from})
			if err != nil {
				h.log.Warn("look for changed environments", "error", err)
				since = from
				continue
			}
			for _, e := range rows {
				if told[e.ID] != e.UpdatedAt {
					h.Changed(e.UserID, e.ID)
				}
			}
			if len(told) > 10_000 {
				clear(told)
			}
		}
		h.mu.Lock()
		dirty := h.dirty
		h.dirty = map[string]int64{}
		h.mu.Unlock()
		if len(dirty) == 0 {
			continue
		}
		rows, err := h.store.Environments(ctx, store.Filter{IDs: slices.Collect(maps.Keys(dirty))})
		if err != nil {
			h.log.Warn("read changed environments", "error", err)
			for _, user := range dirty {
				h.everyone(user, (*Client).lose)
			}
			continue
		}
		for _, e := range rows {
			id, user := e.ID, dirty[e.ID]
			data, err := json.Marshal(Message{Type: "environment", Environment: h.render(ctx, e)})
			if err != nil {
				h.log.Error("encode an environment", "environment", id, "error", err)
				continue
			}
			told[id] = e.UpdatedAt
			h.everyone(user, func(c *Client) { c.tell(data) })
		}
	}
}

func (h *Hub) anybody() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.clients) > 0
}

func (h *Hub) everyone(user int64, do func(*Client)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.clients[user] {
		do(c)
	}
}

func (h *Hub) users() []int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	users := make([]int64, 0, len(h.clients))
	for u := range h.clients {
		users = append(users, u)
	}
	return users
}
