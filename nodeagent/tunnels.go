package nodeagent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/term"
	"github.com/learnos/learnos/internal/tunnel"
	"github.com/learnos/learnos/runtime"
)

// keepTunnels keeps one connection to each gateway that etcd knows. A gateway that etcd forgets keeps the
// connection it has: etcd may be the one in trouble.
func (d *daemon) keepTunnels(ctx context.Context) error {
	var token []byte
	wait := newBackoff()
	for {
		var err error
		if token, err = d.queue.TunnelToken(ctx); err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		d.log.Warn("get the tunnels' token from etcd: trying again", "err", err)
		if !wait.sleep(ctx) {
			return nil
		}
	}
	type dial struct {
		info   queue.GatewayInfo
		listed chan bool
	}
	dials := map[string]dial{}
	for list := range d.queue.WatchGateways(ctx) {
		seen := map[string]bool{}
		for _, g := range list {
			key := g.ID + " " + g.TunnelAddr + " " + g.CertSHA256
			seen[key] = true
			if _, there := dials[key]; !there {
				dl := dial{info: g, listed: make(chan bool, 1)}
				dials[key] = dl
				go d.dialGateway(ctx, g, token, dl.listed)
			}
		}
		for key, dl := range dials {
			if !seen[key] {
				close(dl.listed)
				delete(dials, key)
			}
		}
	}
	return nil
}

// dialGateway keeps the tunnel to one gateway up until the gateway is no longer listed and the tunnel breaks.
func (d *daemon) dialGateway(ctx context.Context, g queue.GatewayInfo, token []byte, listed <-chan bool) {
	wait := newBackoff()
	for ctx.Err() == nil {
		began := time.Now()
		err := tunnel.DialGateway(ctx, g.TunnelAddr, g.CertSHA256, token, d.name, d.serveStream)
		if ctx.Err() != nil {
			return
		}
		d.log.Warn("tunnel to gateway broke", "gateway", g.ID, "addr", g.TunnelAddr, "err", err)
		if time.Since(began) > time.Minute {
			wait.reset()
		}
		select {
		case <-listed:
			return
		default:
		}
		if !wait.sleep(ctx) {
			return
		}
	}
}

// serveStream answers one request of a gateway.
func (d *daemon) serveStream(ctx context.Context, req tunnel.Request, conn net.Conn) {
	err := d.answer(ctx, req, conn)
	if err == nil {
		return
	}
	var refused *tunnel.Error
	if errors.As(err, &refused) {
		_ = tunnel.Fail(conn, refused.Code, refused.Message)
		return
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && ctx.Err() == nil {
		d.log.Debug("stream", "op", req.Op, "env", req.Env, "err", err)
	}
}

// refuse makes the error that answers a request which can't be served.
func refuse(err error) error {
	code := tunnel.CodeInternal
	var exec *runtime.ExecError
	var refused *tunnel.Error
	switch {
	case errors.As(err, &refused):
		return refused
	case errors.Is(err, ErrNotFound), errors.Is(err, runtime.ErrNotFound):
		code = tunnel.CodeNotFound
	case errors.Is(err, errEnding), errors.Is(err, ErrNotRunning), errors.Is(err, runtime.ErrNotRunning):
		code = tunnel.CodeConflict
	case errors.As(err, &exec):
		code = tunnel.CodeBadRequest
	}
	return &tunnel.Error{Code: code, Message: err.Error()}
}

// answer serves one request. A *tunnel.Error is what to refuse it with; nothing was written then.
func (d *daemon) answer(ctx context.Context, req tunnel.Request, conn net.Conn) error {
	switch req.Op {
	case tunnel.OpPing:
		return tunnel.WriteReply(conn, tunnel.Reply{})
	case tunnel.OpStats:
		if req.Env != "" && d.lookup(req.Env) == nil {
			return refuse(fmt.Errorf("%w: %q", ErrNotFound, req.Env))
		}
		return d.streamStats(ctx, req.Env, conn)
	}
	h := d.lookup(req.Env)
	if h == nil {
		return refuse(fmt.Errorf("%w on this node: %q", ErrNotFound, req.Env))
	}
	switch req.Op {
	case tunnel.OpSessionCreate:
		se, err := h.createSession(ctx, req)
		if err != nil {
			return refuse(err)
		}
		return tunnel.WriteReply(conn, tunnel.Reply{Session: se.id})
	case tunnel.OpSessionAttach:
		return h.attach(ctx, req, conn)
	case tunnel.OpSessionList:
		return tunnel.WriteReply(conn, tunnel.Reply{Sessions: h.listSessions()})
	case tunnel.OpSessionClose:
		if err := h.closeSession(ctx, req.Session); err != nil {
			return refuse(err)
		}
		return tunnel.WriteReply(conn, tunnel.Reply{})
	case tunnel.OpExtend:
		if !req.Deadline.After(time.Now()) {
			return &tunnel.Error{Code: tunnel.CodeBadRequest, Message: "the new deadline is in the past"}
		}
		if err := h.extend(req.Deadline); err != nil {
			return refuse(err)
		}
		return tunnel.WriteReply(conn, tunnel.Reply{Deadline: req.Deadline.UTC()})
	case tunnel.OpLogs:
		return d.streamLogs(ctx, req, conn)
	}
	return &tunnel.Error{Code: tunnel.CodeBadRequest, Message: fmt.Sprintf("unknown operation %q", req.Op)}
}

// untilClosed ends ctx when the other side closes a stream on which it has nothing to say.
func untilClosed(ctx context.Context, conn net.Conn) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, conn)
		cancel()
	}()
	return ctx, cancel
}

// streamStats writes a line of figures per environment and second.
func (d *daemon) streamStats(ctx context.Context, only string, conn net.Conn) error {
	if err := tunnel.WriteReply(conn, tunnel.Reply{}); err != nil {
		return err
	}
	ctx, cancel := untilClosed(ctx, conn)
	defer cancel()
	out := json.NewEncoder(conn)
	for {
		next := d.sampled()
		for _, h := range d.all() {
			if only != "" && h.id != only {
				continue
			}
			if err := out.Encode(h.figures()); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-next:
		}
		if only != "" && d.lookup(only) == nil {
			return nil
		}
	}
}

// streamLogs writes what the environment's main command printed. Environments made for jobs have none as yet, so
// for most this is an empty stream.
func (d *daemon) streamLogs(ctx context.Context, req tunnel.Request, conn net.Conn) error {
	if err := tunnel.WriteReply(conn, tunnel.Reply{}); err != nil {
		return err
	}
	ctx, cancel := untilClosed(ctx, conn)
	defer cancel()
	err := d.node.Logs(ctx, req.Env, conn, LogOptions{Follow: req.Follow, Tail: req.Tail})
	if errors.Is(err, ErrNoLog) {
		return nil
	}
	return err
}

// createSession starts a command, or the environment's shell.
func (h *hosted) createSession(ctx context.Context, req tunnel.Request) (*session, error) {
	env, err := h.running()
	if err != nil {
		return nil, err
	}
	if err := h.reserveSession(); err != nil {
		return nil, err
	}
	defer func() {
		h.mu.Lock()
		h.creating--
		h.mu.Unlock()
	}()
	var id [10]byte
	_, _ = rand.Read(id[:])
	spec, err := env.sessionSpec(req)
	if err != nil {
		return nil, &tunnel.Error{Code: tunnel.CodeBadRequest, Message: err.Error()}
	}
	spec.ID = hex.EncodeToString(id[:])
	s, err := env.c.StartSession(ctx, *spec)
	if err != nil {
		return nil, err
	}
	// The session outlives this stream and this tunnel.
	se, err := h.d.node.newSession(h.d.life, env, s, sessionMeta{Args: spec.Args, TTY: spec.TTY, CreatedAt: time.Now().UTC()})
	if err != nil {
		_ = s.Signal(context.WithoutCancel(ctx), unix.SIGKILL)
		_ = s.Close()
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ending {
		se.close(false)
		return nil, errEnding
	}
	h.sessions[se.id] = se
	return se, nil
}

// reserveSession makes sure there is place for one more, letting go of the oldest that ended.
func (h *hosted) reserveSession() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var over []*session
	running := h.creating
	for _, se := range h.sessions {
		switch {
		case !se.ended():
			running++
		case se.connected() == 0:
			over = append(over, se)
		}
	}
	if running >= maxSessions {
		return &tunnel.Error{Code: tunnel.CodeLimit, Message: fmt.Sprintf("the environment has %d sessions already: close one", maxSessions)}
	}
	slices.SortFunc(over, func(a, b *session) int { return a.meta.CreatedAt.Compare(b.meta.CreatedAt) })
	for len(over) > maxSessions/2 {
		delete(h.sessions, over[0].id)
		over[0].close(true)
		over = over[1:]
	}
	h.creating++
	return nil
}

func (h *hosted) session(id string) (*session, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	se := h.sessions[id]
	if se == nil {
		return nil, &tunnel.Error{Code: tunnel.CodeNotFound, Message: fmt.Sprintf("no such session: %q", id)}
	}
	return se, nil
}

// attach serves one client of a session until it goes.
func (h *hosted) attach(ctx context.Context, req tunnel.Request, conn net.Conn) error {
	se, err := h.session(req.Session)
	if err != nil {
		return err
	}
	if err := h.come(); err != nil {
		return refuse(err)
	}
	defer h.goAway()
	if !req.ReadOnly && req.Cols > 0 && req.Rows > 0 {
		_ = sessionTarget{se}.Resize(req.Cols, req.Rows) // a session that has just ended needs no size
	}
	if err := tunnel.WriteReply(conn, tunnel.Reply{Session: se.id}); err != nil {
		return err
	}
	// conn is closed when this returns, which ends the goroutine that reads from it.
	return se.attach(ctx, term.NewReader(conn), term.NewWriter(conn), req.Offset, req.ReadOnly)
}

func (h *hosted) listSessions() []tunnel.SessionInfo {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]tunnel.SessionInfo, 0, len(h.sessions))
	for _, se := range h.sessions {
		info := tunnel.SessionInfo{ID: se.id, Args: se.meta.Args, TTY: se.meta.TTY, CreatedAt: se.meta.CreatedAt, Exited: se.ended()}
		if info.Exited {
			se.mu.Lock()
			info.ExitCode = se.status.Code
			se.mu.Unlock()
		}
		list = append(list, info)
	}
	slices.SortFunc(list, func(a, b tunnel.SessionInfo) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return list
}

// closeSession ends a session's process, politely and then not, and forgets the session.
func (h *hosted) closeSession(ctx context.Context, id string) error {
	se, err := h.session(id)
	if err != nil {
		return err
	}
	if se.s != nil && !se.ended() {
		for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGKILL} {
			if err := se.s.Signal(ctx, sig); err != nil && !se.ended() {
				return fmt.Errorf("end session %s: %w", id, err)
			}
			grace := time.NewTimer(2 * time.Second)
			select {
			case <-se.exited:
			case <-ctx.Done():
			case <-grace.C:
			}
			grace.Stop()
			if se.ended() {
				break
			}
		}
	}
	h.mu.Lock()
	delete(h.sessions, id)
	h.mu.Unlock()
	se.close(true)
	return nil
}

// sessionSpec is what a session.create asks for, with the environment's own defaults where it asks for nothing.
func (e *Environment) sessionSpec(req tunnel.Request) (*runtime.SessionSpec, error) {
	r := e.Record()
	s := &runtime.SessionSpec{
		Args: req.Args, Cwd: req.Cwd, User: req.User, TTY: req.TTY, Cols: req.Cols, Rows: req.Rows,
	}
	if s.User == "" {
		s.User = r.User
	}
	if s.Cwd != "" && !path.IsAbs(s.Cwd) {
		return nil, fmt.Errorf("working directory %q: want an absolute path", s.Cwd)
	}
	for _, kv := range req.Vars {
		if key, _, ok := strings.Cut(kv, "="); !ok || key == "" || strings.ContainsRune(kv, 0) {
			return nil, fmt.Errorf("environment variable %q: want NAME=VALUE", kv)
		}
	}
	root, err := os.OpenFile("/proc/"+strconv.Itoa(e.c.PID())+"/root", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", ErrNotRunning, e.ID())
	}
	defer root.Close()
	who := lookupAccount(root, s.User)
	if len(s.Args) == 0 && r.Platform != nil {
		s.Args = r.Platform.Shell
	}
	if len(s.Args) == 0 {
		s.Args = loginShell(root)
		if s.Cwd == "" && (r.Cwd == "" || r.Cwd == "/") {
			s.Cwd = who.home // where a login begins, if the image has no opinion; init falls back to "/"
		}
	}
	if s.Cwd == "" {
		s.Cwd = r.Cwd
	}
	if s.Cwd == who.home && !directoryInside(root, s.Cwd) {
		s.Cwd = "/"
	}
	own := []string{"HOME=" + who.home, "USER=" + who.name, "LOGNAME=" + who.name, "LANG=C.UTF-8"}
	if s.TTY {
		own = append(own, "TERM=xterm-256color")
	}
	s.Env = mergeEnv(own, r.Env, req.Vars) // the image may know better, and the asker best
	return s, nil
}

// loginShell is bash if the environment has it, else sh; both read the profile with -l.
func loginShell(root *os.File) []string {
	for _, sh := range []string{"/bin/bash", "/usr/bin/bash"} {
		if existsInside(root, sh) {
			return []string{sh, "-l"}
		}
	}
	return []string{"/bin/sh", "-l"}
}
