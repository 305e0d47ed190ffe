package web

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/gorilla/websocket"
)

// built is what a panel's build leaves behind.
var built = fstest.MapFS{
	".gitkeep":             {},
	"index.html":           {Data: []byte("<!doctype html><title>panel</title>")},
	"favicon.svg":          {Data: []byte("<svg/>")},
	"assets/app-abc123.js": {Data: []byte(strings.Repeat("console.log('hello');\n", 200))},
	"assets/a-1.css":       {Data: []byte("a{}")},
	"assets/a-1.css.br":    {Data: []byte("brotli bytes")},
}

type seen struct {
	sync.Mutex
	requests []*http.Request
}

// front is the whole handler before a gateway that writes down what reaches it.
func front(t *testing.T, gateway http.HandlerFunc) (*httptest.Server, *seen) {
	t.Helper()
	s := &seen{}
	gw := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.Lock()
		s.requests = append(s.requests, r)
		s.Unlock()
		gateway(w, r)
	}))
	t.Cleanup(gw.Close)
	u, _ := url.Parse(gw.URL)
	h, err := newHandler(built, u, "d00f", "v1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv, s
}

func get(t *testing.T, u string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, u, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept-Encoding", "identity")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	return res, string(body)
}

func refuseAll(w http.ResponseWriter, r *http.Request) {
	http.Error(w, "unexpected", http.StatusTeapot)
}

func TestPanelFilesAndTheirCaching(t *testing.T) {
	srv, s := front(t, refuseAll)
	for _, c := range []struct {
		path, cache, kind string
		status            int
	}{
		{"/", "no-cache", "text/html", 200},
		{"/environments/e1", "no-cache", "text/html", 200}, // the panel's own route
		{"/index.html", "no-cache", "text/html", 200},
		{"/favicon.svg", "no-cache", "image/svg+xml", 200},
		{"/assets/app-abc123.js", "public, max-age=31536000, immutable", "text/javascript", 200},
		{"/assets/gone-000.js", "", "text/plain", 404},
		{"/robots.txt", "", "text/plain", 404},
		{"/.gitkeep", "", "text/plain", 404},
	} {
		res, body := get(t, srv.URL+c.path)
		if res.StatusCode != c.status || res.Header.Get("Cache-Control") != c.cache || !strings.HasPrefix(res.Header.Get("Content-Type"), c.kind) {
			t.Errorf("%s: %d %q %q", c.path, res.StatusCode, res.Header.Get("Cache-Control"), res.Header.Get("Content-Type"))
		}
		if c.kind == "text/html" && !strings.Contains(body, "<title>panel") {
			t.Errorf("%s: %q", c.path, body)
		}
	}
	if len(s.requests) != 0 {
		t.Errorf("the gateway got %d requests", len(s.requests))
	}
	res, err := http.Post(srv.URL+"/", "text/plain", nil)
	if err != nil || res.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST /: %v %v", res, err)
	}
}

func TestIndexIsNotSentTwice(t *testing.T) {
	srv, _ := front(t, refuseAll)
	res, _ := get(t, srv.URL+"/")
	tag := res.Header.Get("ETag")
	if tag == "" {
		t.Fatal("no ETag")
	}
	if res, body := get(t, srv.URL+"/", "If-None-Match", `"x", W/`+tag); res.StatusCode != http.StatusNotModified || body != "" {
		t.Errorf("%d %q", res.StatusCode, body)
	}
	if res, _ := get(t, srv.URL+"/", "If-None-Match", `"x"`); res.StatusCode != http.StatusOK {
		t.Errorf("%d", res.StatusCode)
	}
}

func TestCompression(t *testing.T) {
	srv, _ := front(t, refuseAll)
	res, body := get(t, srv.URL+"/assets/app-abc123.js", "Accept-Encoding", "gzip, br;q=0")
	zr, err := gzip.NewReader(strings.NewReader(body))
	if err != nil || res.Header.Get("Content-Encoding") != "gzip" || res.Header.Get("Vary") != "Accept-Encoding" {
		t.Fatalf("%v %v", err, res.Header)
	}
	if plain, _ := io.ReadAll(zr); !bytes.Equal(plain, built["assets/app-abc123.js"].Data) {
		t.Error("not the same after unpacking")
	}
	if res, body := get(t, srv.URL+"/assets/a-1.css", "Accept-Encoding", "gzip, br"); res.Header.Get("Content-Encoding") != "br" || body != "brotli bytes" {
		t.Errorf("%v %q", res.Header, body)
	}
	if res, body := get(t, srv.URL+"/assets/a-1.css", "Accept-Encoding", "br;q=0.0"); res.Header.Get("Content-Encoding") != "" || body != "a{}" {
		t.Errorf("%v %q", res.Header, body)
	}
}

func TestPanelThatWasNotBuilt(t *testing.T) {
	p, err := newPanel(fstest.MapFS{".gitkeep": {}})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if w.Code != 200 || !strings.Contains(w.Body.String(), "make panel") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestSecurityHeaders(t *testing.T) {
	srv, _ := front(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Content-Security-Policy", "default-src *")
		w.Header().Set("X-Own", "kept")
	})
	host := strings.TrimPrefix(srv.URL, "http://")
	for _, p := range []string{"/", "/api/v1/config", "/internal/v1/door/key", "/healthz", "/assets/none.js"} {
		res, _ := get(t, srv.URL+p)
		for h, want := range map[string]string{
			"X-Content-Type-Options": "nosniff",
			"Referrer-Policy":        "no-referrer",
			"Content-Security-Policy": "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; " +
				"connect-src 'self' ws://" + host + " wss://" + host + "; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
		} {
			if got := res.Header.Values(h); len(got) != 1 || got[0] != want {
				t.Errorf("%s %s: %q", p, h, got)
			}
		}
		if p == "/api/v1/config" && res.Header.Get("X-Own") != "kept" {
			t.Error("the gateway's own header was lost")
		}
	}
}

// A Host header is a stranger's text: it must not be able to add to the policy.
func TestHostCannotChangeThePolicy(t *testing.T) {
	h := secured(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for _, host := range []string{"a; script-src *", "a b", "a,b", "a'b", "*", "evil/"} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if csp := w.Header().Get("Content-Security-Policy"); !strings.Contains(csp, "connect-src 'self';") {
			t.Errorf("%q: %s", host, csp)
		}
	}
}

func TestOnlyOurWordOnWhoAsks(t *testing.T) {
	srv, s := front(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") })
	res, body := get(t, srv.URL+"/api/v1/images?x=1&y=%2F", "X-Forwarded-For", "6.6.6.6", "X-Forwarded-Proto", "https", "X-Forwarded-Host", "evil",
		"Forwarded", "for=6.6.6.6", "X-Real-Ip", "6.6.6.6", "X-Learnos-Door", "guess", "Origin", "http://elsewhere", "Authorization", "Bearer t", "Cookie", "learnos_access=1")
	if res.StatusCode != 200 || body != "ok" {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	got := s.requests[0]
	for h, want := range map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": strings.TrimPrefix(srv.URL, "http://"),
		"Forwarded": "", "X-Real-Ip": "", "X-Learnos-Door": "d00f", "Origin": "http://elsewhere", "Authorization": "Bearer t", "Cookie": "learnos_access=1"} {
		if v := strings.Join(got.Header.Values(h), "|"); v != want {
			t.Errorf("%s: %q, want %q", h, v, want)
		}
	}
	if got.Host != strings.TrimPrefix(srv.URL, "http://") || got.URL.RequestURI() != "/api/v1/images?x=1&y=%2F" {
		t.Errorf("host %q, %q", got.Host, got.URL.RequestURI())
	}
	if res.Header.Get("X-Learnos-Door") != "" {
		t.Error("the door key came back")
	}
}

func TestInternalIsClosedHoweverItIsSpelt(t *testing.T) {
	srv, s := front(t, refuseAll)
	addr := strings.TrimPrefix(srv.URL, "http://")
	for _, target := range []string{"/internal/v1/door/password", "/INTERNAL/v1/door/password", "//internal/v1/door/password", "/./internal/v1",
		"/api/v1/../../internal/v1/door/password", "/api/v1/%2e%2e/%2e%2e/internal/v1/door/password", "/api/v1/..%2f..%2finternal/v1",
		"/api/v1//internal", "/api/v1/a/../../../internal", "/api/v1/\\..\\internal", "/api/v1/%5c..%5cinternal", "/api/v1/./x", "/api/v2/x", "/api",
		"http://x/internal/v1/door/password", "/api/v1/%00", "/api/v1/"} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", target)
		answer, _ := io.ReadAll(conn)
		conn.Close()
		first, _, _ := strings.Cut(string(answer), "\r\n")
		if target == "/api/v1/" {
			continue // goes to the gateway, and is nothing there
		}
		if !strings.HasPrefix(first, "HTTP/1.1 4") || strings.Contains(first, "418") {
			t.Errorf("%s: %s", target, first)
		}
	}
	for _, r := range s.requests {
		if r.URL.Path != "/api/v1/" {
			t.Errorf("reached the gateway: %s", r.URL.Path)
		}
	}
}

func TestGatewayAway(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	u, _ := url.Parse("http://" + addr)
	h, err := newHandler(built, u, "", "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	defer srv.Close()
	res, body := get(t, srv.URL+"/api/v1/me")
	var e errorBody
	if err := json.Unmarshal([]byte(body), &e); err != nil || res.StatusCode != 502 || e.Error.Code != "gateway_away" || e.Error.Hint == "" || res.Header.Get("Retry-After") == "" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	_, res, err = websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(srv.URL, "http")+"/api/v1/events", nil)
	if err == nil || res == nil || res.StatusCode != 502 {
		t.Errorf("websocket: %v %v", res, err)
	}
	if res, _ := get(t, srv.URL+"/healthz"); res.StatusCode != 200 {
		t.Errorf("healthz %d", res.StatusCode)
	}
}

func TestWebsocketIsRelayed(t *testing.T) {
	up := websocket.Upgrader{Subprotocols: []string{"learnos.term.v1"}} // checks Origin against Host
	srv, _ := front(t, func(w http.ResponseWriter, r *http.Request) {
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		for {
			kind, data, err := ws.ReadMessage()
			if err != nil {
				return
			}
			if string(data) == "bye" {
				_ = ws.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(4404, "gone"))
				return
			}
			_ = ws.WriteMessage(kind, data)
		}
	})
	d := websocket.Dialer{Subprotocols: []string{"learnos.term.v1"}}
	ws, _, err := d.Dial("ws"+strings.TrimPrefix(srv.URL, "http")+"/api/v1/environments/e1/sessions/s1/attach?offset=0", http.Header{"Origin": {srv.URL}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if ws.Subprotocol() != "learnos.term.v1" {
		t.Errorf("subprotocol %q", ws.Subprotocol())
	}
	for _, n := range []int{1, 1000, 65536, 1 << 20} {
		data := bytes.Repeat([]byte{0xff, 0, '\n'}, n/3+1)
		if err := ws.WriteMessage(websocket.BinaryMessage, data); err != nil {
			t.Fatal(err)
		}
		kind, back, err := ws.ReadMessage()
		if err != nil || kind != websocket.BinaryMessage || !bytes.Equal(back, data) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
	_ = ws.WriteMessage(websocket.TextMessage, []byte("bye"))
	if _, _, err := ws.ReadMessage(); !websocket.IsCloseError(err, 4404) {
		t.Errorf("the close code was lost: %v", err)
	}
	if _, res, err := d.Dial("ws"+strings.TrimPrefix(srv.URL, "http")+"/api/v1/events", http.Header{"Origin": {"http://evil.example"}}); err == nil || res.StatusCode != http.StatusForbidden {
		t.Errorf("a foreign origin got in: %v", err)
	}
}

func TestStreamsAreNotHeldBack(t *testing.T) {
	more := make(chan struct{})
	srv, _ := front(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "first")
		w.(http.Flusher).Flush()
		<-more
		fmt.Fprint(w, "second")
	})
	res, err := http.Get(srv.URL + "/api/v1/stream")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	buf := make([]byte, 5)
	if _, err := io.ReadFull(res.Body, buf); err != nil || string(buf) != "first" {
		t.Fatalf("%q %v", buf, err)
	}
	close(more)
	if rest, _ := io.ReadAll(res.Body); string(rest) != "second" {
		t.Errorf("%q", rest)
	}
}

func TestPanicIsAnAnswer(t *testing.T) {
	var log bytes.Buffer
	h := recovered(slog.New(slog.NewTextHandler(&log, nil)), http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("oops") }))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if w.Code != 500 || !strings.Contains(w.Body.String(), `"code":"internal"`) || strings.Contains(w.Body.String(), "oops") || !strings.Contains(log.String(), "oops") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func FuzzProxyable(f *testing.F) {
	for _, s := range []string{"/api/v1/images", "/api/v1/../internal", "/internal", "/api/v1//x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if !proxyable(p) {
			return
		}
		u := &url.URL{Path: p}
		if clean := u.JoinPath().Path; !strings.HasPrefix(clean, "/api/v1/") && clean != "/api/v1" {
			t.Errorf("%q becomes %q", p, clean)
		}
	})
}
