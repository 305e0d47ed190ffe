package tunnel

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var token = bytes.Repeat([]byte{7}, 32)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ctxOf(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx := ctxOf(t)
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatal("never: " + what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

type gateway struct {
	*Hub
	addr string
	id   *Identity

	mu      sync.Mutex
	changes []string
}

func startGateway(t testing.TB) *gateway {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	id, err := NewIdentity()
	must(t, err)
	g := &gateway{addr: ln.Addr().String(), id: id}
	g.Hub = ServeGateway(context.Background(), ln, token, id, HubOptions{
		Log: slog.New(slog.DiscardHandler),
		OnChange: func(node string, online bool) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.changes = append(g.changes, fmt.Sprint(node, " ", online))
		},
	})
	t.Cleanup(func() { g.Close() })
	return g
}

// dial runs a node until the test ends; stop ends it before.
func (g *gateway) dial(t testing.TB, node string, h Handler) (stop func(), ended <-chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ch := make(chan error, 1)
	go func() { ch <- DialGateway(ctx, g.addr, g.id.SHA256, token, node, h) }()
	t.Cleanup(cancel)
	return cancel, ch
}

func (g *gateway) online(t testing.TB, nodes ...string) {
	t.Helper()
	eventually(t, fmt.Sprint("online are ", nodes), func() bool { return slices.Equal(g.Nodes(), nodes) })
}

// echo answers with the session it was asked for, and then repeats what it hears.
func echo(_ context.Context, req Request, conn net.Conn) {
	if req.Env == "" {
		_ = Fail(conn, CodeNotFound, "no environment was named")
		return
	}
	_ = WriteReply(conn, Reply{Session: req.Session, Data: json.RawMessage(`{"args":` + fmt.Sprint(len(req.Args)) + `}`)})
	_, _ = io.Copy(conn, conn)
}

func TestRequestsAndStreams(t *testing.T) {
	g := startGateway(t)
	stop, ended := g.dial(t, "n1", echo)
	g.online(t, "n1")
	ctx := ctxOf(t)

	c, err := g.Open(ctx, "n1", Request{Op: OpSessionAttach, Env: "e1", Session: "s1", Offset: FromStart, Args: []string{"a", "b"}})
	must(t, err)
	if c.Reply.Session != "s1" || string(c.Reply.Data) != `{"args":2}` {
		t.Fatalf("%+v", c.Reply)
	}
	// Much data both ways at once, then half a close: all of it comes back, then the end.
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	go func() {
		_, err := c.Write(sent)
		if err != nil {
			t.Error(err)
		}
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	must(t, err)
	if !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes came back of %d", len(got), len(sent))
	}
	must(t, c.Close())

	_, err = g.Open(ctx, "n1", Request{Op: OpStats})
	var refused *Error
	if !errors.As(err, &refused) || refused.Code != CodeNotFound || refused.Message != "no environment was named" {
		t.Fatal(err)
	}
	_, err = g.Open(ctx, "n1", Request{Op: "DROP TABLE"})
	if !errors.As(err, &refused) || refused.Code != CodeBadRequest {
		t.Fatal(err)
	}
	_, err = g.Open(ctx, "n1", Request{Op: OpStats, Env: "../e1"})
	if !errors.As(err, &refused) || refused.Code != CodeBadRequest {
		t.Fatal(err)
	}
	if _, err = g.Open(ctx, "n1", Request{Op: OpStats, Env: strings.Repeat("x", MaxLine)}); err == nil {
		t.Fatal("a line that is too long was sent")
	}
	p, err := g.Open(ctx, "n1", Request{Op: OpPing})
	must(t, err)
	must(t, p.Close())
	if _, err := g.Open(ctx, "n2", Request{Op: OpPing}); !errors.Is(err, ErrNodeOffline) {
		t.Fatal(err)
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := g.Open(done, "n1", Request{Op: OpPing}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}

	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	g.online(t)
	if _, err := g.Open(ctx, "n1", Request{Op: OpPing}); !errors.Is(err, ErrNodeOffline) {
		t.Fatal(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !slices.Equal(g.changes, []string{"n1 true", "n1 false"}) {
		t.Fatal(g.changes)
	}
}

// A node that never answers costs its caller no more than the context, and the tunnel nothing.
func TestOpenObeysItsContext(t *testing.T) {
	g := startGateway(t)
	g.dial(t, "n1", func(ctx context.Context, req Request, conn net.Conn) {
		if req.Op == OpLogs {
			<-ctx.Done()
			return
		}
		echo(ctx, req, conn)
	})
	g.online(t, "n1")
	ctx, cancel := context.WithTimeout(ctxOf(t), 50*time.Millisecond)
	defer cancel()
	if _, err := g.Open(ctx, "n1", Request{Op: OpLogs, Env: "e1"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	// The context of Open is not the stream's.
	short, cancel := context.WithCancel(ctxOf(t))
	c, err := g.Open(short, "n1", Request{Op: OpSessionAttach, Env: "e1"})
	must(t, err)
	cancel()
	_, err = c.Write([]byte("still here"))
	must(t, err)
	_, err = io.ReadFull(c, make([]byte, 10))
	must(t, err)
	must(t, c.Close())
}

// After Close the peer reads all that was written and the end, and its own writes fail in the end.
func TestClose(t *testing.T) {
	g := startGateway(t)
	heard := make(chan string, 1)
	failed := make(chan error, 1)
	g.dial(t, "n1", func(_ context.Context, _ Request, conn net.Conn) {
		_ = WriteReply(conn, Reply{})
		b, _ := io.ReadAll(conn)
		heard <- string(b)
		for {
			if _, err := conn.Write(make([]byte, 64<<10)); err != nil {
				failed <- err
				return
			}
		}
	})
	g.online(t, "n1")
	c, err := g.Open(ctxOf(t), "n1", Request{Op: OpSessionAttach, Env: "e1"})
	must(t, err)
	_, err = c.Write([]byte("last words"))
	must(t, err)
	must(t, c.Close())
	if s := <-heard; s != "last words" {
		t.Fatal(s)
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Fatal("wrote to a closed stream")
	}
	<-failed
	// The tunnel lives on.
	p, err := g.Open(ctxOf(t), "n1", Request{Op: OpPing})
	must(t, err)
	p.Close()
}

func TestNewerTunnelReplacesOlder(t *testing.T) {
	g := startGateway(t)
	answer := func(who string) Handler {
		return func(_ context.Context, _ Request, conn net.Conn) { _ = WriteReply(conn, Reply{Session: who}) }
	}
	_, ended := g.dial(t, "n1", answer("older"))
	g.online(t, "n1")
	g.dial(t, "n1", answer("newer"))
	if err := <-ended; err == nil {
		t.Fatal("no reason")
	}
	c, err := g.Open(ctxOf(t), "n1", Request{Op: OpStats})
	must(t, err)
	if c.Reply.Session != "newer" {
		t.Fatal(c.Reply.Session)
	}
	c.Close()
	g.dial(t, "n0", answer("other"))
	g.online(t, "n0", "n1")
}

// Whoever does not know the token or shows another certificate is refused, both ways, and the token does not travel.
func TestStrangersAreRefused(t *testing.T) {
	g := startGateway(t)
	ctx := ctxOf(t)
	other := bytes.Repeat([]byte{8}, 32)
	for what, dial := range map[string]func() error{
		"node without the token": func() error { return DialGateway(ctx, g.addr, g.id.SHA256, other, "n1", echo) },
		"other certificate": func() error {
			id, err := NewIdentity()
			must(t, err)
			return DialGateway(ctx, g.addr, id.SHA256, token, "n1", echo)
		},
		"no hash":     func() error { return DialGateway(ctx, g.addr, "", token, "n1", echo) },
		"bad name":    func() error { return DialGateway(ctx, g.addr, g.id.SHA256, token, "n1/..", echo) },
		"short token": func() error { return DialGateway(ctx, g.addr, g.id.SHA256, nil, "n1", echo) },
		"gateway without the token": func() error {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			h := ServeGateway(ctx, ln, other, g.id, HubOptions{Log: slog.New(slog.DiscardHandler)})
			defer h.Close()
			return DialGateway(ctx, ln.Addr().String(), g.id.SHA256, token, "n1", echo)
		},
		"gateway that says yes to all": func() error {
			ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{g.id.Certificate}, NextProtos: []string{alpn}})
			must(t, err)
			defer ln.Close()
			go func() {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				line, _ := bufio.NewReader(c).ReadBytes('\n')
				if bytes.Contains(line, token) {
					t.Error("the token travelled")
				}
				_, _ = c.Write(line) // the node's own proof, back to it
				_, _ = io.Copy(io.Discard, c)
			}()
			return DialGateway(ctx, ln.Addr().String(), g.id.SHA256, token, "n1", echo)
		},
		"proof of another connection": func() error {
			// Somebody in the middle, with a certificate the node was made to pin, relays the node's proof.
			mid, err := NewIdentity()
			must(t, err)
			ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{mid.Certificate}, NextProtos: []string{alpn}})
			must(t, err)
			defer ln.Close()
			go func() {
				node, err := ln.Accept()
				if err != nil {
					return
				}
				defer node.Close()
				up, err := tls.Dial("tcp", g.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}})
				if err != nil {
					return
				}
				defer up.Close()
				go func() { _, _ = io.Copy(up, node) }()
				_, _ = io.Copy(node, up)
			}()
			return DialGateway(ctx, ln.Addr().String(), mid.SHA256, token, "n1", echo)
		},
	} {
		if err := dial(); err == nil || ctx.Err() != nil {
			t.Errorf("%s: %v", what, err)
		} else {
			t.Logf("%s: %v", what, err)
		}
	}
	if n := g.Nodes(); len(n) != 0 {
		t.Fatal(n)
	}
	// Noise at the door stops nobody.
	for range 2 * handshakes {
		c, err := net.Dial("tcp", g.addr)
		must(t, err)
		_, _ = c.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
		defer c.Close()
	}
	g.dial(t, "n1", echo)
	g.online(t, "n1")
}

// A peer whose cable is cut says nothing: both sides notice by their own keepalives.
func TestDeadPeerIsNoticed(t *testing.T) {
	g := startGateway(t)
	cable, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer cable.Close()
	cut := make(chan struct{})
	go func() {
		a, err := cable.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("tcp", g.addr)
		if err != nil {
			return
		}
		pipe := func(dst, src net.Conn) {
			buf := make([]byte, 32<<10)
			for {
				n, err := src.Read(buf)
				select {
				case <-cut:
					<-t.Context().Done() // says nothing and closes nothing
					dst.Close()
					return
				default:
				}
				if _, werr := dst.Write(buf[:n]); werr != nil || err != nil {
					return
				}
			}
		}
		go pipe(a, b)
		pipe(b, a)
	}()
	ended := make(chan error, 1)
	go func() { ended <- DialGateway(ctxOf(t), cable.Addr().String(), g.id.SHA256, token, "n1", echo) }()
	g.online(t, "n1")
	c, err := g.Open(ctxOf(t), "n1", Request{Op: OpSessionAttach, Env: "e1"})
	must(t, err)
	close(cut)
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Fatal("read from a dead peer")
	}
	g.online(t)
	if err := <-ended; err == nil {
		t.Fatal("no reason")
	}
}

// Many streams at once, and nothing is left of them.
func TestManyStreams(t *testing.T) {
	g := startGateway(t)
	g.dial(t, "n1", echo)
	g.online(t, "n1")
	before := runtime.NumGoroutine()
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c, err := g.Open(ctxOf(t), "n1", Request{Op: OpSessionAttach, Env: "e1", Session: fmt.Sprint("s", i)})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			msg := bytes.Repeat([]byte{byte(i)}, 10_000)
			go func() { _, _ = c.Write(msg) }()
			got := make([]byte, len(msg))
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, msg) || c.Reply.Session != fmt.Sprint("s", i) {
				t.Error("stream", i, err)
			}
		}()
	}
	wg.Wait()
	eventually(t, "the goroutines are gone", func() bool { return runtime.NumGoroutine() <= before+5 })
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"op":"session.attach","env":"e1","session":"s","offset":18446744073709551615,"deadline":"2026-11-22T00:00:00Z"}`))
	f.Add([]byte(`{"op":"stats"}{}`))
	f.Add([]byte(`{"op":"ping","env":"a/b"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		req, err := parseRequest(line)
		if err != nil {
			return
		}
		if !opName.MatchString(req.Op) || strings.Contains(req.Env, "/") {
			t.Fatalf("%+v", req)
		}
		b, err := json.Marshal(req)
		must(t, err)
		if again, err := parseRequest(b); err != nil || again.Op != req.Op || again.Offset != req.Offset {
			t.Fatalf("%+v → %s → %+v, %v", req, b, again, err)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add([]byte(`{"node":"n1","proof":"00"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		if h, err := parseHello(line); err == nil && !nameForm.MatchString(h.Node) {
			t.Fatal(h)
		}
	})
}

func FuzzReadLine(f *testing.F) {
	f.Add([]byte("one\ntwo"), 10)
	f.Fuzz(func(t *testing.T, in []byte, limit int) {
		if limit < 0 || limit > 1<<16 {
			return
		}
		r := bytes.NewReader(in)
		line, err := readLine(r, limit)
		end := bytes.IndexByte(in, '\n')
		if err == nil && (!bytes.Equal(line, in[:end]) || r.Len() != len(in)-end-1) {
			t.Fatalf("%q of %q", line, in)
		}
		if err != nil && end >= 0 && end <= limit {
			t.Fatal(err)
		}
	})
}
