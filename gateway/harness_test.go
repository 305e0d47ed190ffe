package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/gorilla/websocket"

	"github.com/learnos/learnos/gateway"
	"github.com/learnos/learnos/gateway/openapi"
	"github.com/learnos/learnos/internal/config"
	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/queue/queuetest"
	"github.com/learnos/learnos/internal/term"
	"github.com/learnos/learnos/internal/tunnel"
)

// TestMain lets the test binary be a gateway of its own process, for tests that kill one.
func TestMain(m *testing.M) {
	if path := os.Getenv("LEARNOS_TEST_GATEWAY_CONFIG"); path != "" {
		if err := runGateway(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runGateway(path string) error {
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	s, err := gateway.New(context.Background(), cfg, gateway.Deps{})
	if err != nil {
		return err
	}
	return s.Run(context.Background())
}

// waitFor polls until ok; the bound is only there so that a broken test ends.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// box is a mailbox for codes.
type box struct {
	mu    sync.Mutex
	codes map[string]string
	fail  bool
}

func (b *box) SendCode(_ context.Context, email, code string, _ time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail {
		return errors.New("no mail today")
	}
	b.codes[email] = code
	return nil
}

func (b *box) code(email string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.codes[email]
}

// world is one gateway on one etcd.
type world struct {
	t    *testing.T
	etcd *queuetest.Etcd
	cfg  *config.Config
	base string
	door string // hex
	mail *box
	stop func() // stops the gateway and waits
	q    *queue.Queue
}

func testConfig(t *testing.T, etcd *queuetest.Etcd, set ...func(*config.Config)) *config.Config {
	t.Helper()
	cfg, err := config.Load("", append([]func(*config.Config){func(c *config.Config) {
		c.Common.DataDir = t.TempDir()
		c.Etcd.Addresses = []string{etcd.Endpoint}
		c.Gateway.LoginPerMinute, c.Gateway.RegisterPerHour = 1000, 1000
	}}, set...)...)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func newWorld(t *testing.T, set ...func(*config.Config)) *world {
	t.Helper()
	etcd := queuetest.Start(t)
	w := &world{t: t, etcd: etcd, cfg: testConfig(t, etcd, set...), mail: &box{codes: map[string]string{}}}
	w.q = queue.New(etcd.Client(), w.cfg.Etcd.Prefix)
	w.start()
	return w
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func (w *world) start() {
	w.t.Helper()
	log := slog.New(slog.NewTextHandler(testLog{w.t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
	s, err := gateway.New(context.Background(), w.cfg, gateway.Deps{Log: log, Listener: listen(w.t), TunnelListener: listen(w.t), Sender: w.mail, Version: "test"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.base = "http://" + s.Addr().String()
	secret, err := config.Secret(w.cfg.Common.DataDir, "door", 32)
	if err != nil {
		w.t.Fatal(err)
	}
	w.door = fmt.Sprintf("%x", secret)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			w.t.Error("the gateway ended with", err)
		}
	}()
	w.stop = sync.OnceFunc(func() { cancel(); <-done })
	w.t.Cleanup(func() { w.stop() })
	anybody := w.client()
	waitFor(w.t, "the gateway to be ready", func() bool { return anybody.get("/healthz").str("status") == "ok" })
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// document holds every answer to the OpenAPI document.
var document = sync.OnceValues(func() (routers.Router, error) {
	doc, err := openapi.Load()
	if err != nil {
		return nil, err
	}
	return gorillamux.NewRouter(doc)
})

// checked is a transport under which no answer may be other than documented, and no request may succeed that the
// document forbids.
type checked struct{ t *testing.T }

func (c checked) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
		r.Body.Close()
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	res.Body.Close()
	res.Body = io.NopCloser(bytes.NewReader(data))
	verify(c.t, r, body, true, res, data)
	return res, nil
}

// verify holds an answer to the document; strictly, the request too.
func verify(t *testing.T, r *http.Request, body []byte, strictly bool, res *http.Response, data []byte) {
	t.Helper()
	router, err := document()
	if err != nil {
		t.Error(err)
		return
	}
	asked := r.Clone(context.Background())
	asked.Body = io.NopCloser(bytes.NewReader(body))
	asked.ContentLength = int64(len(body))
	asked.URL.Scheme, asked.URL.Host, asked.Host = "", "", ""
	route, params, err := router.FindRoute(asked)
	if err != nil {
		if res.StatusCode != http.StatusNotFound && res.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s %s is not in the document, but was answered with %d", r.Method, r.URL.Path, res.StatusCode)
		}
		return
	}
	in := &openapi3filter.RequestValidationInput{Request: asked, PathParams: params, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true}}
	if err := openapi3filter.ValidateRequest(context.Background(), in); strictly && err != nil && res.StatusCode < 400 {
		t.Errorf("%s %s: the document forbids %s, the server answered %d: %v", r.Method, r.URL.Path, body, res.StatusCode, err)
	}
	err = openapi3filter.ValidateResponse(context.Background(), &openapi3filter.ResponseValidationInput{RequestValidationInput: in,
		Status: res.StatusCode, Header: res.Header, Body: io.NopCloser(bytes.NewReader(data)), Options: in.Options})
	if err != nil {
		t.Errorf("%s %s answered %d %s, which the document does not allow: %v", r.Method, r.URL.Path, res.StatusCode, data, err)
	}
}

// client is somebody with a token, or nobody.
type client struct {
	w       *world
	http    *http.Client
	token   string
	refresh string
	header  http.Header
}

func (w *world) client() *client {
	return &client{w: w, http: &http.Client{Transport: checked{w.t}}, header: http.Header{}}
}

// answer is a response.
type answer struct {
	t      *testing.T
	status int
	header http.Header
	body   []byte
}

func (c *client) do(method, path string, body any) *answer {
	c.w.t.Helper()
	var in io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		in = strings.NewReader(b)
	default:
		data, err := json.Marshal(b)
		if err != nil {
			c.w.t.Fatal(err)
		}
		in = bytes.NewReader(data)
	}
	r, err := http.NewRequest(method, c.w.base+path, in)
	if err != nil {
		c.w.t.Fatal(err)
	}
	for k, v := range c.header {
		r.Header[k] = v
	}
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(r)
	if err != nil {
		c.w.t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		c.w.t.Fatal(err)
	}
	return &answer{c.w.t, res.StatusCode, res.Header, data}
}

func (c *client) get(path string) *answer            { c.w.t.Helper(); return c.do("GET", path, nil) }
func (c *client) post(path string, body any) *answer { c.w.t.Helper(); return c.do("POST", path, body) }
func (c *client) patch(path string, body any) *answer {
	c.w.t.Helper()
	return c.do("PATCH", path, body)
}
func (c *client) delete(path string) *answer { c.w.t.Helper(); return c.do("DELETE", path, nil) }

type obj = map[string]any

// want checks the status, and for a problem its code.
func (a *answer) want(status int, code ...string) *answer {
	a.t.Helper()
	if a.status != status || (len(code) > 0 && a.problem("code") != code[0]) {
		a.t.Fatalf("got %d %s, want %d %v", a.status, a.body, status, code)
	}
	return a
}

func (a *answer) json() obj {
	a.t.Helper()
	var o obj
	if err := json.Unmarshal(a.body, &o); err != nil {
		a.t.Fatalf("%v: %s", err, a.body)
	}
	return o
}

func (a *answer) list() []obj {
	a.t.Helper()
	var o []obj
	if err := json.Unmarshal(a.body, &o); err != nil {
		a.t.Fatalf("%v: %s", err, a.body)
	}
	return o
}

func (a *answer) str(field string) string { s, _ := a.json()[field].(string); return s }

func (a *answer) problem(field string) string {
	var p struct {
		Error map[string]any `json:"error"`
	}
	_ = json.Unmarshal(a.body, &p)
	s, _ := p.Error[field].(string)
	return s
}

func (c *client) keep(a *answer) *client {
	c.token, c.refresh = a.str("accessToken"), a.str("refreshToken")
	return c
}

// user registers somebody.
func (w *world) user(name string) *client {
	w.t.Helper()
	c := w.client()
	return c.keep(c.post("/api/v1/auth/register", obj{"username": name, "password": "password of " + name}).want(201))
}

// admin logs in as the first admin.
func (w *world) admin() *client { w.t.Helper(); return w.adminFrom(http.Header{}) }

func (w *world) adminFrom(header http.Header) *client {
	w.t.Helper()
	data, err := os.ReadFile(gateway.AdminPasswordFile(w.cfg))
	if err != nil {
		w.t.Fatal(err)
	}
	c := w.client()
	c.header = header
	return c.keep(c.post("/api/v1/auth/login", obj{"username": "admin", "password": strings.TrimSpace(string(data))}).want(200))
}

// create asks for a busybox and returns its id.
func (c *client) create() string {
	c.w.t.Helper()
	return c.post("/api/v1/environments", obj{"image": "busybox"}).want(202).str("id")
}

func (c *client) env(id string) obj {
	c.w.t.Helper()
	return c.get("/api/v1/environments/" + id).want(200).json()
}

func (c *client) waitState(id, state string) obj {
	c.w.t.Helper()
	var e obj
	waitFor(c.w.t, "environment to be "+state, func() bool { e = c.env(id); return e["state"] == state })
	return e
}

// dial opens a websocket; on a refusal res holds the answer.
func (c *client) dial(path, protocol string, header http.Header) (*websocket.Conn, *http.Response, error) {
	d := websocket.Dialer{Subprotocols: []string{protocol}, HandshakeTimeout: 20 * time.Second}
	h := header.Clone()
	if h == nil {
		h = http.Header{}
	}
	if c.token != "" {
		h.Set("Authorization", "Bearer "+c.token)
	}
	ws, res, err := d.Dial("ws"+strings.TrimPrefix(c.w.base, "http")+path, h)
	if res != nil && res.StatusCode != 101 {
		data, _ := io.ReadAll(res.Body)
		res.Body = io.NopCloser(bytes.NewReader(data))
		r, _ := http.NewRequest("GET", c.w.base+path, nil)
		verify(c.w.t, r, nil, true, res, data)
	}
	return ws, res, err
}

func (c *client) ws(path, protocol string) *websocket.Conn {
	c.w.t.Helper()
	ws, res, err := c.dial(path, protocol, nil)
	if err != nil {
		c.w.t.Fatal(err, res)
	}
	if ws.Subprotocol() != protocol {
		c.w.t.Fatalf("subprotocol %q", ws.Subprotocol())
	}
	c.w.t.Cleanup(func() { ws.Close() })
	_ = ws.SetReadDeadline(time.Now().Add(60 * time.Second))
	return ws
}

// event is one message of the events websocket.
type event struct {
	Type         string          `json:"type"`
	Environments []string        `json:"environments"`
	Resync       bool            `json:"resync"`
	Environment  json.RawMessage `json:"environment"`
	Stats        obj             `json:"stats"`
}

func (e event) env() obj {
	var o obj
	_ = json.Unmarshal(e.Environment, &o)
	return o
}

// next reads events until one that ok likes.
func next(t *testing.T, ws *websocket.Conn, ok func(event) bool) event {
	t.Helper()
	for {
		_, data, err := ws.ReadMessage()
		if err != nil {
			t.Fatal("waiting for an event: ", err)
		}
		schema(t, "Event", data)
		var e event
		if err := json.Unmarshal(data, &e); err != nil {
			t.Fatal(err)
		}
		if ok(e) {
			return e
		}
	}
}

// schema holds a value to a schema of the document.
func schema(t *testing.T, name string, data []byte) {
	t.Helper()
	doc, err := openapi.Load()
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	if err := doc.Components.Schemas[name].Value.VisitJSON(v); err != nil {
		t.Errorf("%s is no %s: %v", data, name, err)
	}
}

// closed reads until the websocket is closed and returns how.
func closed(t *testing.T, ws *websocket.Conn) *websocket.CloseError {
	t.Helper()
	for {
		if _, _, err := ws.ReadMessage(); err != nil {
			var ce *websocket.CloseError
			if !errors.As(err, &ce) {
				t.Fatal("not a close: ", err)
			}
			return ce
		}
	}
}

// fakeNode speaks the real queue and the real tunnel, and pretends the rest.
type fakeNode struct {
	w      *world
	name   string
	info   queue.NodeInfo
	lease  *queue.Lease
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	creates map[string]int // environment → create jobs taken
	deletes map[string]int
	fail    string // reason to fail creates with
	hold    bool   // finish nothing
	ops     []tunnel.Request
	streams int // open stats streams
}

func (w *world) node(name string, memory int64) *fakeNode {
	w.t.Helper()
	n := &fakeNode{w: w, name: name, creates: map[string]int{}, deletes: map[string]int{},
		info: queue.NodeInfo{Name: name, Version: "fake", Instance: name, FreeMemory: memory, TotalMemory: memory, CPUs: 2}}
	n.start()
	w.t.Cleanup(func() { n.stop() })
	return n
}

func (n *fakeNode) start() {
	n.w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	lease, err := n.w.q.RegisterNode(ctx, n.info, 5*time.Second)
	if err != nil {
		n.w.t.Fatal(err)
	}
	n.lease, n.cancel = lease, cancel
	n.wg.Go(func() { n.work(ctx) })
	n.wg.Go(func() { n.dial(ctx) })
}

// stop is an orderly end of the agent; its environments stay.
func (n *fakeNode) stop() {
	if n.cancel == nil {
		return
	}
	n.cancel()
	n.wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = n.lease.Close(ctx)
	n.cancel = nil
}

func (n *fakeNode) set(fn func()) { n.mu.Lock(); defer n.mu.Unlock(); fn() }

func (n *fakeNode) work(ctx context.Context) {
	wake := n.w.q.Watch(ctx)
	for {
		claim, err := n.w.q.Claim(ctx, n.name, n.lease, func(j queue.Job) bool {
			return j.Kind == queue.KindDelete || j.Spec.Limits.MemoryBytes <= n.info.FreeMemory
		})
		if err == nil && claim != nil {
			n.serve(ctx, claim)
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (n *fakeNode) serve(ctx context.Context, c *queue.Claim) {
	n.mu.Lock()
	fail, hold := n.fail, n.hold
	if c.Job.Kind == queue.KindDelete {
		n.deletes[c.Job.EnvID]++
	} else {
		n.creates[c.Job.EnvID]++
	}
	n.mu.Unlock()
	if c.Job.Kind == queue.KindDelete {
		_ = c.Status(ctx, queue.EnvStatus{State: queue.StateStopping})
		if hold {
			return
		}
		_ = c.Finish(ctx, queue.EnvStatus{State: queue.StateDeleted, Reason: c.Job.Reason})
		return
	}
	_ = c.Status(ctx, queue.EnvStatus{State: queue.StatePulling, Stage: "downloading", Percent: 40})
	if hold {
		return
	}
	_ = c.Status(ctx, queue.EnvStatus{State: queue.StateCreating})
	if fail != "" {
		_ = c.Finish(ctx, queue.EnvStatus{State: queue.StateFailed, Reason: fail})
		return
	}
	_ = c.Finish(ctx, queue.EnvStatus{State: queue.StateRunning, Address: "10.64.0.2", Deadline: c.Job.Spec.Deadline, Timings: map[string]int64{"start": 4321}})
}

func (n *fakeNode) dial(ctx context.Context) {
	var dials sync.WaitGroup
	defer dials.Wait()
	known := map[string]bool{}
	for list := range n.w.q.WatchGateways(ctx) {
		for _, g := range list {
			if known[g.ID] {
				continue
			}
			known[g.ID] = true
			dials.Go(func() {
				token, err := n.w.q.TunnelToken(ctx)
				if err == nil {
					_ = tunnel.DialGateway(ctx, g.TunnelAddr, g.CertSHA256, token, n.name, n.answer)
				}
			})
		}
	}
}

func (n *fakeNode) answer(ctx context.Context, req tunnel.Request, conn net.Conn) {
	n.set(func() { n.ops = append(n.ops, req) })
	switch req.Op {
	case tunnel.OpSessionCreate:
		_ = tunnel.WriteReply(conn, tunnel.Reply{Session: "t1"})
	case tunnel.OpSessionList:
		_ = tunnel.WriteReply(conn, tunnel.Reply{Sessions: []tunnel.SessionInfo{{ID: "t1", Args: []string{"sh"}, TTY: true, CreatedAt: time.Now()}}})
	case tunnel.OpSessionClose:
		if req.Session != "t1" {
			_ = tunnel.Fail(conn, tunnel.CodeNotFound, "no such session")
			return
		}
		_ = tunnel.WriteReply(conn, tunnel.Reply{})
	case tunnel.OpExtend:
		_ = tunnel.WriteReply(conn, tunnel.Reply{Deadline: req.Deadline})
	case tunnel.OpStats:
		n.set(func() { n.streams++ })
		defer n.set(func() { n.streams-- })
		_ = tunnel.WriteReply(conn, tunnel.Reply{})
		n.mu.Lock()
		envs := make([]string, 0, len(n.creates))
		for id := range n.creates {
			envs = append(envs, id)
		}
		n.mu.Unlock()
		for {
			for _, id := range envs {
				line, _ := json.Marshal(tunnel.Stats{Env: id, CPUPercent: 12.5, MemoryBytes: 1 << 20, MemoryLimit: 64 << 20, RxBytes: 7, TxBytes: 8, PIDs: 3})
				if _, err := conn.Write(append(line, '\n')); err != nil {
					return
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	case tunnel.OpSessionAttach:
		if req.Session != "t1" {
			_ = tunnel.Fail(conn, tunnel.CodeNotFound, "no such session")
			return
		}
		_ = tunnel.WriteReply(conn, tunnel.Reply{})
		echo(req, conn)
	default:
		_ = tunnel.Fail(conn, tunnel.CodeBadRequest, "unknown operation")
	}
}

// echo is a terminal that says what it is told; eof ends it with 7.
func echo(req tunnel.Request, conn net.Conn) {
	in, out := term.NewReader(conn), term.NewWriter(conn)
	offset := uint64(0)
	if req.Offset != tunnel.FromStart {
		offset = req.Offset
	}
	_ = out.WriteFrame(term.Frame{Op: term.OpHello, Offset: offset})
	for {
		f, err := in.ReadFrame()
		if err != nil {
			return
		}
		switch f.Op {
		case term.OpInput:
			_ = out.WriteFrame(term.Frame{Op: term.OpOutput, Offset: offset, Data: f.Data})
			offset += uint64(len(f.Data))
		case term.OpPing:
			_ = out.WriteFrame(term.Frame{Op: term.OpPong})
		case term.OpEOF:
			_ = out.WriteFrame(term.Frame{Op: term.OpExit, Code: 7, Data: []byte("bye")})
			return
		}
	}
}

func send(t *testing.T, ws *websocket.Conn, f term.Frame) {
	t.Helper()
	if err := ws.WriteMessage(websocket.BinaryMessage, f.Append(nil)); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, ws *websocket.Conn) term.Frame {
	t.Helper()
	kind, data, err := ws.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	f, err := term.Parse(data)
	if err != nil || kind != websocket.BinaryMessage {
		t.Fatal(kind, err)
	}
	return f
}
