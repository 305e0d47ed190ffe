package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/gorilla/websocket"

	"github.com/learnos/learnos/gateway/problem"
	"github.com/learnos/learnos/gateway/store"
	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/term"
	"github.com/learnos/learnos/internal/tunnel"
)

const (
	eventsProtocol = "learnos.events.v1"
	pingEvery      = 20 * time.Second
	silentFor      = 65 * time.Second // three pings without an answer: the peer is gone
	writeIn        = 30 * time.Second // a peer that takes nothing for so long is gone
	lingerFor      = 2 * time.Second  // for the peer's close, so that what was sent before it arrives
)

var writeBuffers = &sync.Pool{}

func (a *API) upgrader(protocol string) *websocket.Upgrader {
	return &websocket.Upgrader{
		HandshakeTimeout: 10 * time.Second,
		Subprotocols:     []string{protocol},
		WriteBufferPool:  writeBuffers,
		WriteBufferSize:  32 << 10,
		CheckOrigin:      func(*http.Request) bool { return true }, // authenticate did, with our own allowed origins
		Error: func(w http.ResponseWriter, r *http.Request, status int, reason error) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(map[string]any{"error": problem.New(status, "no_websocket", "This wants to be a websocket: "+reason.Error()+".",
				"Connect with a websocket client, subprotocol "+protocol+".")})
		},
	}
}

// upgrade counts a websocket in and switches protocols. Afterwards ctx ends, with a *goodbye as its cause, when the
// login session ends or the server shuts down; done must be called.
func (a *API) upgrade(c *gin.Context, protocol string) (ctx context.Context, ws *websocket.Conn, done func(), err error) {
	me := who(c)
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(c.Request.Context()))
	k := &socket{session: me.session, user: me.ID, close: cancel}
	if !a.sockets.add(k) {
		cancel(nil)
		return nil, nil, nil, problem.New(http.StatusTooManyRequests, "too_many_connections", "Too many connections of this account are open.",
			"Close a tab, then try again.").After(5 * time.Second)
	}
	ws, err = a.upgrader(protocol).Upgrade(c.Writer, c.Request, nil)
	if err != nil { // answered already
		a.sockets.remove(k)
		cancel(nil)
		c.Abort()
		return nil, nil, nil, nil
	}
	done = func() {
		ws.Close()
		a.sockets.remove(k)
		cancel(nil)
	}
	// A session that ended between its check and being counted in was not there to be closed.
	if _, _, err := a.Store.LiveSession(ctx, me.session, a.now()); errors.Is(err, store.ErrRevoked) || errors.Is(err, store.ErrNotFound) {
		a.sockets.end(me.session)
	}
	return ctx, ws, done, nil
}

// alive keeps read deadlines and pings going.
func alive(ctx context.Context, ws *websocket.Conn) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(writeIn)) != nil {
				return
			}
		}
	}
}

func heard(ws *websocket.Conn) { _ = ws.SetReadDeadline(time.Now().Add(silentFor)) }

// part says goodbye and gives the peer a moment to answer, while reader (closed when reading has ended) still drains;
// closing at once would make TCP throw away what the peer has not read yet.
func part(ws *websocket.Conn, g *goodbye, reader <-chan struct{}) {
	_ = ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(g.code, g.reason), time.Now().Add(time.Second))
	_ = ws.SetReadDeadline(time.Now().Add(lingerFor))
	select {
	case <-reader:
	case <-time.After(lingerFor):
	}
	ws.Close()
	<-reader
}

// cause is the goodbye behind a context's end.
func cause(ctx context.Context) *goodbye {
	var g *goodbye
	if errors.As(context.Cause(ctx), &g) {
		return g
	}
	return &goodbye{websocket.CloseNormalClosure, ""}
}

// attach relays the frames of one session between a websocket and the node's stream.
func (a *API) attach(c *gin.Context) error {
	e, err := a.environment(c, false)
	if err != nil {
		return err
	}
	sid := c.Param("sid")
	if !sessionForm.MatchString(sid) {
		return problem.NotFound("session")
	}
	offset := uint64(tunnel.FromStart)
	if text, ok := c.GetQuery("offset"); ok {
		if offset, err = strconv.ParseUint(text, 10, 63); err != nil {
			return problem.Field("offset", "must be a number of bytes")
		}
	}
	cols, err := queryInt(c, "cols", 0, 1000, 0)
	if err != nil {
		return err
	}
	rows, err := queryInt(c, "rows", 0, 1000, 0)
	if err != nil {
		return err
	}
	ctx, ws, done, err := a.upgrade(c, term.Subprotocol)
	if ws == nil {
		return err
	}
	defer done()
	conn, err := a.Fleet.Attach(ctx, e, sid, offset, uint16(cols), uint16(rows))
	if err != nil {
		reader := make(chan struct{})
		go func() { drain(ws); close(reader) }()
		part(ws, a.refusal(c, e, err), reader)
		return nil
	}
	defer conn.Close()
	a.relay(ctx, ws, conn)
	return nil
}

// refusal is how a websocket is closed when the node could not be asked.
func (a *API) refusal(c *gin.Context, e store.Environment, err error) *goodbye {
	p := a.problem(c, err)
	code := websocket.CloseInternalServerErr
	switch {
	case p.Code == "node_offline":
		code = websocket.CloseTryAgainLater
	case p.Code == "not_running" && (queue.Terminal(e.State) || e.State == queue.StateStopping), p.Status == http.StatusNotFound:
		code = 4404
	case p.Code == "not_running":
		code = websocket.CloseTryAgainLater
	case p.Status == http.StatusConflict, p.Status == http.StatusUnprocessableEntity:
		code = websocket.ClosePolicyViolation
	}
	return closing(code, p.Code, p.Hint)
}

// closing makes a close reason, which has room for 123 bytes.
func closing(code int, name, hint string) *goodbye {
	for {
		data, err := json.Marshal(struct {
			Code string `json:"code"`
			Hint string `json:"hint"`
		}{name, hint})
		if err != nil || len(hint) == 0 || len(data) <= 123 {
			return &goodbye{code, string(data)}
		}
		hint = clip(hint, len(hint)-1)
	}
}

// drain reads and drops until the peer is gone.
func drain(ws *websocket.Conn) {
	for {
		if _, r, err := ws.NextReader(); err != nil {
			return
		} else if _, err := io.Copy(io.Discard, r); err != nil {
			return
		}
	}
}

// relay moves frames, one goroutine each way, each with one buffer: what a peer does not take, the other is not asked
// for. It returns when either side, or the login, has ended.
func (a *API) relay(ctx context.Context, ws *websocket.Conn, conn *tunnel.Conn) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ws.SetReadLimit(term.MaxFrame)
	heard(ws)
	ws.SetPongHandler(func(string) error { heard(ws); return nil })
	go alive(ctx, ws)

	reader, writer := make(chan struct{}), make(chan struct{})
	go func() { // client → node
		defer close(reader)
		out := term.NewWriter(conn)
		var frame bytes.Buffer
		for {
			kind, r, err := ws.NextReader()
			if err != nil {
				cancel(&goodbye{websocket.CloseNormalClosure, ""})
				return
			}
			frame.Reset()
			if _, err := frame.ReadFrom(r); err != nil {
				cancel(&goodbye{websocket.CloseNormalClosure, ""})
				return
			}
			if ctx.Err() != nil {
				continue // parting
			}
			heard(ws)
			if f, err := term.Parse(frame.Bytes()); kind != websocket.BinaryMessage || err != nil || !f.Op.FromClient() {
				cancel(closing(websocket.ClosePolicyViolation, "bad_frame", "Send one client frame of "+term.Subprotocol+" per binary message."))
				continue
			}
			_ = conn.SetWriteDeadline(time.Now().Add(writeIn))
			if err := out.WriteRaw(frame.Bytes()); err != nil {
				cancel(closing(websocket.CloseTryAgainLater, "node_offline", "The node is away; connect again."))
			}
		}
	}()
	go func() { // node → client
		defer close(writer)
		in := term.NewReader(conn)
		exited := false
		for {
			frame, err := in.ReadRaw()
			if err != nil {
				if exited {
					cancel(&goodbye{websocket.CloseNormalClosure, `{"code":"exited","hint":""}`})
				} else {
					cancel(closing(websocket.CloseTryAgainLater, "node_offline", "The node is away; connect again."))
				}
				return
			}
			exited = exited || term.Op(frame[0]) == term.OpExit
			_ = ws.SetWriteDeadline(time.Now().Add(writeIn))
			if err := ws.WriteMessage(websocket.BinaryMessage, frame); err != nil {
				cancel(&goodbye{websocket.CloseNormalClosure, ""})
				return
			}
		}
	}()
	<-ctx.Done()
	conn.Close()
	part(ws, cause(ctx), reader)
	<-writer
}

// events tells a client what happens to its environments.
func (a *API) events(c *gin.Context) error {
	me := who(c)
	ctx, ws, done, err := a.upgrade(c, eventsProtocol)
	if ws == nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ws.SetReadLimit(4 << 10)
	heard(ws)
	ws.SetPongHandler(func(string) error { heard(ws); return nil })
	go alive(ctx, ws)
	reader := make(chan struct{})
	go func() {
		defer close(reader)
		drain(ws)
		cancel(&goodbye{websocket.CloseNormalClosure, ""})
	}()

	client := a.Events.Subscribe(me.ID)
	defer a.Events.Unsubscribe(client)
	send := func(messages ...[]byte) bool {
		for _, m := range messages {
			_ = ws.SetWriteDeadline(time.Now().Add(writeIn))
			if ws.WriteMessage(websocket.TextMessage, m) != nil {
				cancel(&goodbye{websocket.CloseNormalClosure, ""})
				return false
			}
		}
		return true
	}
	snapshot := func(resync bool) bool {
		messages, err := a.Events.Snapshot(ctx, me.ID, resync)
		if err != nil {
			if ctx.Err() == nil {
				a.Log.Warn("make a snapshot", "user", me.Username, "error", err)
			}
			cancel(closing(websocket.CloseTryAgainLater, "store_unavailable", "Connect again in a few seconds."))
			return false
		}
		return send(messages...)
	}
	for ok := snapshot(false); ok; {
		select {
		case <-ctx.Done():
			ok = false
		case <-client.Lost:
			for len(client.C) > 0 {
				<-client.C
			}
			ok = snapshot(true)
		case m := <-client.C:
			ok = send(m)
		}
	}
	part(ws, cause(ctx), reader)
	return nil
}
