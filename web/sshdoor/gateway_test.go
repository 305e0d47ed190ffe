package sshdoor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/gorilla/websocket"

	"github.com/learnos/learnos/internal/term"
)

const testDoorKey = "00ff00ff"

// testGateway speaks the gateway's protocol; its machines are processes of this one's, in a directory of their own.
type testGateway struct {
	t    *testing.T
	home string
	addr string
	path string // PATH inside the machines

	mu       sync.Mutex
	srv      *http.Server
	conns    map[*websocket.Conn]struct{}
	users    map[string]string // password
	keys     map[string]string // authorized key → user
	access   map[string]string // token → user
	refresh  map[string]string
	images   []image
	envs     map[string]*environment
	order    []string
	sessions map[string]*testSession // env/session
	watchers map[chan environment]struct{}
	deleted  []string
	serial   int
	refuse   string        // the code with which creates are refused; "" lets them through
	stages   []environment // what a create goes through before running
	remotes  []string      // remoteAddr of every login
	cond     *sync.Cond
}

func newTestGateway(t *testing.T) *testGateway {
	t.Helper()
	g := &testGateway{t: t, home: t.TempDir(), path: os.Getenv("PATH"), conns: map[*websocket.Conn]struct{}{},
		users: map[string]string{"alice": "correct horse", "bob": "battery staple"}, keys: map[string]string{},
		access: map[string]string{}, refresh: map[string]string{}, envs: map[string]*environment{},
		sessions: map[string]*testSession{}, watchers: map[chan environment]struct{}{},
		images: []image{{Name: "busybox", Title: "BusyBox", TitleZh: "BusyBox 小系统", Description: "tiny", Enabled: true},
			{Name: "debian-12", Title: "Debian", TitleZh: "Debian 系统", Enabled: true}, {Name: "debian-13", Title: "Debian", Enabled: true}, {Name: "off", Title: "Off"}}}
	g.cond = sync.NewCond(&g.mu)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr = ln.Addr().String()
	g.start(ln)
	t.Cleanup(func() {
		g.stop()
		g.mu.Lock()
		all := g.sessions
		g.mu.Unlock()
		for _, s := range all {
			s.kill()
		}
	})
	return g
}

func (g *testGateway) start(ln net.Listener) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.srv = &http.Server{Handler: g}
	go g.srv.Serve(ln)
}

// stop ends the HTTP server and every websocket, as a crash of the gateway does; machines and sessions go on.
func (g *testGateway) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	_ = g.srv.Close()
	for ws := range g.conns {
		_ = ws.NetConn().Close()
	}
}

func (g *testGateway) restart() {
	g.t.Helper()
	ln, err := net.Listen("tcp", g.addr)
	if err != nil {
		g.t.Fatal(err)
	}
	g.start(ln)
}

// waitFor blocks until cond holds, for a minute at most.
func (g *testGateway) waitFor(cond func() bool) {
	g.t.Helper()
	for range 6000 {
		g.mu.Lock()
		held := cond()
		g.mu.Unlock()
		if held {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	g.t.Fatal("what was waited for did not come within a minute")
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if v != nil {
		_ = json.NewEncoder(w).Encode(v)
	}
}

func refuse(w http.ResponseWriter, status int, code, message, hint string) {
	answer(w, status, map[string]any{"error": map[string]string{"code": code, "message": message, "hint": hint}})
}

func (g *testGateway) token(user string) tokens {
	g.serial++
	var t tokens
	t.AccessToken, t.RefreshToken, t.ExpiresIn = fmt.Sprintf("a%d", g.serial), fmt.Sprintf("r%d", g.serial), 600
	t.User.Username = user
	g.access[t.AccessToken], g.refresh[t.RefreshToken] = user, user
	return t
}

func (g *testGateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in map[string]any
	if r.Method == http.MethodPost && r.ContentLength > 0 {
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			refuse(w, 400, "bad_json", err.Error(), "")
			return
		}
	}
	str := func(k string) string { s, _ := in[k].(string); return s }
	if r.Header.Get("X-Learnos-Door") != testDoorKey {
		refuse(w, 404, "not_found", "door key missing", "")
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	defer g.cond.Broadcast()
	switch r.URL.Path {
	case "/internal/v1/door/password":
		g.remotes = append(g.remotes, str("remoteAddr"))
		if p, ok := g.users[str("username")]; !ok || p != str("password") {
			refuse(w, 401, "bad_credentials", "no", "")
			return
		}
		answer(w, 200, g.token(str("username")))
		return
	case "/internal/v1/door/key":
		if g.keys[str("publicKey")] != str("username") || str("username") == "" {
			refuse(w, 401, "bad_credentials", "no", "")
			return
		}
		answer(w, 200, g.token(str("username")))
		return
	case "/api/v1/auth/refresh":
		user, ok := g.refresh[str("refreshToken")]
		if !ok {
			refuse(w, 401, "bad_token", "no", "")
			return
		}
		delete(g.refresh, str("refreshToken"))
		answer(w, 200, g.token(user))
		return
	}
	tok, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	user := g.access[tok]
	if user == "" {
		refuse(w, 401, "unauthorized", "no", "")
		return
	}
	p := strings.Split(strings.Trim(strings.TrimPrefix(r.URL.Path, "/api/v1"), "/"), "/")
	switch {
	case r.URL.Path == "/api/v1/auth/logout":
		delete(g.access, tok)
		w.WriteHeader(204)
	case r.URL.Path == "/api/v1/images":
		answer(w, 200, g.images)
	case r.URL.Path == "/api/v1/environments" && r.Method == http.MethodGet:
		list := []environment{}
		for _, id := range g.order {
			if e := g.envs[id]; e.State != "deleted" {
				list = append(list, *e)
			}
		}
		answer(w, 200, list)
	case r.URL.Path == "/api/v1/environments" && g.refuse != "":
		refuse(w, 409, g.refuse, "It was refused.", "Do something.")
	case r.URL.Path == "/api/v1/environments":
		g.serial++
		id := fmt.Sprintf("e%d", g.serial)
		e := &environment{ID: id, Name: str("image") + "-" + strconv.Itoa(g.serial), Image: str("image"), State: "queued", IdleTimeoutSeconds: 1800, Deadline: new(time.Now().Add(4 * time.Hour))}
		g.envs[id] = e
		g.order = append(g.order, id)
		answer(w, 202, *e)
		go g.bringUp(id)
	case r.URL.Path == "/api/v1/events":
		g.events(w, r)
	case len(p) >= 2 && p[0] == "environments":
		g.environment(w, r, p, in)
	default:
		refuse(w, 404, "not_found", "nothing here", "")
	}
}

// lastMade is the name of the newest machine.
func (g *testGateway) lastMade() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.envs[g.order[len(g.order)-1]].Name
}

func (g *testGateway) set(id string, change func(*environment)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.envs[id]
	change(e)
	for ch := range g.watchers {
		ch <- *e
	}
	g.cond.Broadcast()
}

func (g *testGateway) bringUp(id string) {
	g.mu.Lock()
	stages := g.stages
	g.mu.Unlock()
	for _, s := range append(stages, environment{State: "creating"}, environment{State: "running"}) {
		g.set(id, func(e *environment) {
			if e.State != "deleted" {
				e.State, e.Stage, e.Percent, e.Reason, e.Hint, e.QueuePosition = s.State, s.Stage, s.Percent, s.Reason, s.Hint, s.QueuePosition
				e.ReasonCode, e.ReasonValues = s.ReasonCode, s.ReasonValues
			}
		})
		if s.State == "failed" {
			return
		}
		if s.Stage != "" {
			time.Sleep(300 * time.Millisecond) // so that a person can see it
		}
	}
}

// upgrade is called with g.mu held and gives it up while it writes.
func (g *testGateway) upgrade(w http.ResponseWriter, r *http.Request, sub string) *websocket.Conn {
	up := websocket.Upgrader{Subprotocols: []string{sub}}
	ws, err := up.Upgrade(w, r, nil)
	if err != nil {
		return nil
	}
	if ws.Subprotocol() != sub {
		_ = ws.Close()
		return nil
	}
	g.conns[ws] = struct{}{}
	return ws
}

func (g *testGateway) events(w http.ResponseWriter, r *http.Request) {
	ws := g.upgrade(w, r, "learnos.events.v1")
	if ws == nil {
		return
	}
	ch := make(chan environment, 1000)
	ch0 := []environment{}
	for _, id := range g.order {
		ch0 = append(ch0, *g.envs[id])
	}
	g.watchers[ch] = struct{}{}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			if _, _, err := ws.ReadMessage(); err != nil {
				return
			}
		}
	}()
	go func() {
		defer func() {
			g.mu.Lock()
			delete(g.watchers, ch)
			delete(g.conns, ws)
			g.mu.Unlock()
			_ = ws.Close()
		}()
		_ = ws.WriteJSON(map[string]any{"type": "hello"})
		_ = ws.WriteJSON(map[string]any{"type": "stats", "environment": "e1", "stats": map[string]int{"pids": 1}})
		for _, e := range ch0 {
			_ = ws.WriteJSON(map[string]any{"type": "environment", "environment": e})
		}
		for {
			select {
			case <-gone:
				return
			case e := <-ch:
				if ws.WriteJSON(map[string]any{"type": "environment", "environment": e}) != nil {
					return
				}
			}
		}
	}()
}

func (g *testGateway) environment(w http.ResponseWriter, r *http.Request, p []string, in map[string]any) {
	e := g.envs[p[1]]
	if e == nil {
		refuse(w, 404, "not_found", "There is no such environment.", "")
		return
	}
	switch {
	case len(p) == 2 && r.Method == http.MethodGet:
		answer(w, 200, *e)
	case len(p) == 2 && r.Method == http.MethodDelete:
		g.deleted = append(g.deleted, p[1])
		for key, s := range g.sessions {
			if strings.HasPrefix(key, p[1]+"/") {
				go s.kill()
				delete(g.sessions, key) // a machine's sessions go with it, whichever request comes first
			}
		}
		answer(w, 202, *e)
		go g.set(p[1], func(e *environment) { e.State = "deleted" })
	case e.State != "running":
		refuse(w, 409, "not_running", "The environment is "+e.State+".", "Start another one.")
	case len(p) == 3 && r.Method == http.MethodGet:
		list := []map[string]any{}
		for key, s := range g.sessions {
			if strings.HasPrefix(key, p[1]+"/") {
				list = append(list, map[string]any{"id": s.id, "tty": s.tty, "exited": s.exited(), "createdAt": s.created})
			}
		}
		answer(w, 200, list)
	case len(p) == 3:
		g.serial++
		s, err := g.startSession(fmt.Sprintf("s%d", g.serial), in)
		if err != nil {
			refuse(w, 422, "bad_session", err.Error(), "")
			return
		}
		g.sessions[p[1]+"/"+s.id] = s
		answer(w, 201, map[string]string{"id": s.id})
		g.cond.Broadcast()
	case len(p) == 4 && r.Method == http.MethodDelete:
		if s := g.sessions[p[1]+"/"+p[3]]; s != nil {
			go s.kill()
		}
		delete(g.sessions, p[1]+"/"+p[3])
		g.cond.Broadcast()
		w.WriteHeader(204)
	case len(p) == 5 && p[4] == "attach":
		s := g.sessions[p[1]+"/"+p[3]]
		if s == nil {
			refuse(w, 404, "not_found", "There is no such session.", "")
			return
		}
		ws := g.upgrade(w, r, term.Subprotocol)
		if ws == nil {
			return
		}
		go func() {
			s.serve(ws, r.URL.Query())
			g.mu.Lock()
			delete(g.conns, ws)
			g.mu.Unlock()
		}()
	default:
		refuse(w, 404, "not_found", "nothing here", "")
	}
}

// testSession is a process with a terminal or pipes.
type testSession struct {
	id      string
	tty     bool
	created time.Time
	cmd     *exec.Cmd
	master  *os.File
	stdin   io.WriteCloser
	ring    *term.Ring
	done    chan struct{}
	code    int32

	mu       sync.Mutex
	cond     *sync.Cond
	attached map[*wsFrames]struct{}
	ever     bool
}

func (g *testGateway) startSession(id string, in map[string]any) (*testSession, error) {
	var args []string
	for _, a := range asList(in["args"]) {
		args = append(args, a.(string))
	}
	tty, given := in["tty"].(bool)
	if !given {
		tty = true
	}
	if len(args) == 0 {
		args = []string{"/bin/sh"}
	}
	s := &testSession{id: id, tty: tty, created: time.Now(), ring: term.NewRing(term.RingSize), done: make(chan struct{}), attached: map[*wsFrames]struct{}{}}
	s.cond = sync.NewCond(&s.mu)
	s.cmd = exec.Command(args[0], args[1:]...)
	s.cmd.Dir = g.home
	s.cmd.Env = []string{"PATH=" + g.path, "HOME=" + g.home, "PS1=machine$ "}
	for _, v := range asList(in["env"]) {
		s.cmd.Env = append(s.cmd.Env, v.(string))
	}
	num := func(k string) uint16 { f, _ := in[k].(float64); return uint16(f) }
	var pumps sync.WaitGroup
	if tty {
		master, err := pty.StartWithSize(s.cmd, &pty.Winsize{Cols: num("cols"), Rows: num("rows")})
		if err != nil {
			return nil, err
		}
		s.master, s.stdin = master, master
		pumps.Go(func() { s.pump(master) })
	} else {
		s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		s.stdin, _ = s.cmd.StdinPipe()
		out, _ := s.cmd.StdoutPipe()
		errOut, _ := s.cmd.StderrPipe()
		if err := s.cmd.Start(); err != nil {
			return nil, err
		}
		pumps.Go(func() { s.pump(out) })
		pumps.Go(func() {
			buf := make([]byte, 16<<10)
			for {
				n, err := errOut.Read(buf)
				if n > 0 {
					s.mu.Lock()
					for len(s.attached) == 0 {
						s.cond.Wait()
					}
					for w := range s.attached {
						_ = w.WriteFrame(term.Frame{Op: term.OpStderr, Data: buf[:n]})
					}
					s.mu.Unlock()
				}
				if err != nil {
					return
				}
			}
		})
	}
	go func() {
		pumps.Wait()
		err := s.cmd.Wait()
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			s.code = int32(ee.ExitCode())
			if ws := ee.Sys().(syscall.WaitStatus); ws.Signaled() {
				s.code = 128 + int32(ws.Signal())
			}
		}
		s.ring.Finish()
		close(s.done)
	}()
	return s, nil
}

func asList(v any) []any { l, _ := v.([]any); return l }

func (s *testSession) pump(r io.Reader) {
	buf := make([]byte, 16<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			s.mu.Lock()
			for !s.ever && !s.tty {
				s.cond.Wait()
			}
			s.mu.Unlock()
			_ = s.ring.WriteHeld(context.Background(), buf[:n])
		}
		if err != nil {
			return
		}
	}
}

func (s *testSession) exited() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *testSession) kill() {
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	s.mu.Lock()
	s.ever = true
	s.cond.Broadcast()
	s.mu.Unlock()
	_ = s.stdin.Close()
}

func (s *testSession) serve(ws *websocket.Conn, q map[string][]string) {
	defer ws.Close()
	offset := term.FromStart
	if v := q["offset"]; len(v) > 0 {
		offset, _ = strconv.ParseUint(v[0], 10, 64)
	}
	w := &wsFrames{ws: ws}
	s.mu.Lock()
	s.ever = true
	s.attached[w] = struct{}{}
	cursor := s.ring.Cursor(offset)
	s.cond.Broadcast()
	s.mu.Unlock()
	_ = term.Serve(context.Background(), w, w, cursor, s, term.ServeOptions{Exit: func(ctx context.Context) (int32, string, error) {
		select {
		case <-s.done:
			return s.code, "", nil
		case <-ctx.Done():
			return 0, "", ctx.Err()
		}
	}})
	s.mu.Lock()
	delete(s.attached, w)
	s.mu.Unlock()
	_ = ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(time.Second))
}

func (s *testSession) Input(_ context.Context, p []byte) error {
	_, err := s.stdin.Write(p)
	return err
}

func (s *testSession) EOF(context.Context) error {
	if s.tty {
		_, err := s.master.Write([]byte{4})
		return err
	}
	return s.stdin.Close()
}

func (s *testSession) Resize(cols, rows uint16) error {
	if s.master == nil {
		return nil
	}
	return pty.Setsize(s.master, &pty.Winsize{Cols: cols, Rows: rows})
}

func (s *testSession) Signal(n uint8) error {
	return syscall.Kill(-s.cmd.Process.Pid, syscall.Signal(n))
}

// wsFrames carries frames over a websocket, one per binary message.
type wsFrames struct {
	ws *websocket.Conn
	mu sync.Mutex
}

func (w *wsFrames) ReadFrame() (term.Frame, error) {
	_, b, err := w.ws.ReadMessage()
	if err != nil {
		return term.Frame{}, err
	}
	return term.Parse(b)
}

func (w *wsFrames) WriteFrame(f term.Frame) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ws.WriteMessage(websocket.BinaryMessage, f.Append(nil))
}

var _ http.Handler = (*testGateway)(nil)
