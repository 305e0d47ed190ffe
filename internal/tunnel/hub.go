package tunnel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sort"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// ErrNodeOffline: the node has no living tunnel to this gateway.
var ErrNodeOffline = errors.New("node is offline")

// handshakes bounds how many strangers may be at the door at once.
const handshakes = 64

// HubOptions of ServeGateway.
type HubOptions struct {
	Log *slog.Logger // slog.Default()
	// OnChange is told when a node comes or goes, in order, one call at a time. It must not call the hub.
	OnChange func(node string, online bool)
}

// Hub holds the tunnels of the nodes that dialled this gateway. It is safe for concurrent use.
type Hub struct {
	token  []byte
	id     *Identity
	o      HubOptions
	ln     net.Listener
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	nodes  map[string]*yamux.Session
	closed bool
}

// ServeGateway accepts tunnels on ln (plain TCP: TLS is put on here) until ctx ends or Close is called, which
// closes ln and all tunnels.
func ServeGateway(ctx context.Context, ln net.Listener, token []byte, id *Identity, o HubOptions) *Hub {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	ctx, cancel := context.WithCancel(ctx)
	h := &Hub{token: token, id: id, o: o, ln: ln, cancel: cancel, nodes: map[string]*yamux.Session{}}
	h.wg.Add(1)
	go h.accept(ctx)
	context.AfterFunc(ctx, h.shut)
	return h
}

func (h *Hub) accept(ctx context.Context) {
	defer h.wg.Done()
	door := make(chan struct{}, handshakes)
	for {
		select {
		case door <- struct{}{}:
		case <-ctx.Done():
			return
		}
		raw, err := h.ln.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			h.o.Log.Warn("accept tunnel", "error", err) // out of descriptors, say: it may pass
			time.Sleep(100 * time.Millisecond)
			<-door
			continue
		}
		h.wg.Add(1)
		go func() {
			defer h.wg.Done()
			defer raw.Close()
			if len(h.token) < minToken {
				h.o.Log.Error("tunnels are refused: the token is too short", "bytes", len(h.token))
				<-door
				return
			}
			stop := context.AfterFunc(ctx, func() { raw.Close() })
			conn, node, err := acceptNode(ctx, raw, h.token, h.id)
			stop()
			<-door
			if err != nil {
				h.o.Log.Warn("tunnel refused", "from", raw.RemoteAddr().String(), "error", err)
				return
			}
			s, err := mux(conn, false, h.o.Log)
			if err != nil {
				h.o.Log.Error("start tunnel", "node", node, "error", err)
				return
			}
			h.serve(node, s)
		}()
	}
}

// serve keeps the node's tunnel in the list while it lives.
func (h *Hub) serve(node string, s *yamux.Session) {
	defer s.Close()
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return
	}
	older := h.nodes[node]
	h.nodes[node] = s
	if older == nil && h.o.OnChange != nil {
		h.o.OnChange(node, true)
	}
	h.mu.Unlock()
	if older != nil {
		h.o.Log.Info("node dialled again; its older tunnel is closed", "node", node, "from", s.RemoteAddr().String())
		older.Close()
	} else {
		h.o.Log.Info("node is online", "node", node, "from", s.RemoteAddr().String())
	}

	<-s.CloseChan()

	h.mu.Lock()
	defer h.mu.Unlock()
	if h.nodes[node] == s {
		delete(h.nodes, node)
		h.o.Log.Info("node is offline", "node", node)
		if h.o.OnChange != nil {
			h.o.OnChange(node, false)
		}
	}
}

// Nodes lists the nodes with a tunnel, by name.
func (h *Hub) Nodes() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	names := make([]string, 0, len(h.nodes))
	for n := range h.nodes {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Open sends a request to a node, waits for its reply line and returns the stream behind it. A refusal is an
// *Error, a missing node ErrNodeOffline. ctx bounds the wait for the reply only.
func (h *Hub) Open(ctx context.Context, node string, req Request) (*Conn, error) {
	h.mu.Lock()
	s := h.nodes[node]
	h.mu.Unlock()
	if s == nil || s.IsClosed() {
		return nil, fmt.Errorf("%s: %w", node, ErrNodeOffline)
	}
	c, err := open(ctx, s, req)
	var refused *Error
	switch {
	case err == nil:
		return c, nil
	case errors.As(err, &refused) || ctx.Err() != nil:
		return nil, err
	case s.IsClosed():
		return nil, fmt.Errorf("%s: %w: %w", node, ErrNodeOffline, err)
	}
	return nil, fmt.Errorf("ask node %s for %s: %w", node, req.Op, err)
}

func open(ctx context.Context, s *yamux.Session, req Request) (_ *Conn, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	stream, err := s.OpenStream()
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { stream.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if err != nil {
			stop()
			stream.Close()
		}
	}()
	fail := func(err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	if err := writeLine(stream, req, MaxLine); err != nil {
		return nil, fail(fmt.Errorf("send request: %w", err))
	}
	line, err := readLine(stream, MaxLine)
	if err != nil {
		return nil, fail(fmt.Errorf("read reply: %w", err))
	}
	c := &Conn{Conn: stream}
	if err := json.Unmarshal(line, &c.Reply); err != nil {
		return nil, fmt.Errorf("read reply: %w", err)
	}
	if !c.Reply.OK {
		return nil, &Error{Code: c.Reply.Code, Message: c.Reply.Error}
	}
	if !stop() {
		return nil, ctx.Err()
	}
	return c, nil
}

// shut ends everything without waiting.
func (h *Hub) shut() {
	h.cancel()
	h.ln.Close()
	h.mu.Lock()
	h.closed = true
	var open []*yamux.Session
	for _, s := range h.nodes {
		open = append(open, s)
	}
	h.mu.Unlock()
	for _, s := range open {
		s.Close()
	}
}

// Close ends all tunnels and waits until their goroutines have ended.
func (h *Hub) Close() error {
	h.shut()
	h.wg.Wait()
	return nil
}
