package term

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// session is a program of the test's: what it is told is seen, and it may echo.
type session struct {
	ring *Ring

	mu     sync.Mutex
	input  bytes.Buffer
	events []string
	echo   bool
	exited chan struct{}
}

func newSession(ring *Ring) *session { return &session{ring: ring, exited: make(chan struct{})} }

func (s *session) Input(ctx context.Context, p []byte) error {
	s.mu.Lock()
	s.input.Write(p)
	s.mu.Unlock()
	if s.echo {
		return s.ring.WriteHeld(ctx, p) // like cat: it reads on when its output was taken
	}
	return nil
}

func (s *session) event(e string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
}

func (s *session) EOF(context.Context) error      { s.event("eof"); s.exit(); return nil }
func (s *session) Resize(cols, rows uint16) error { s.event(fmt.Sprint(cols, "x", rows)); return nil }
func (s *session) Signal(number uint8) error      { s.event(fmt.Sprint("signal ", number)); return nil }
func (s *session) exit()                          { s.ring.Finish(); close(s.exited) }
func (s *session) status(ctx context.Context) (int32, string, error) {
	select {
	case <-s.exited:
		return 3, "done", nil
	case <-ctx.Done():
		return 0, "", ctx.Err()
	}
}

// attach connects a client to the session, and returns the client's end and Serve's result.
func (s *session) attach(ctx context.Context, from uint64, readOnly bool) (net.Conn, <-chan error) {
	a, b := net.Pipe()
	served := make(chan error, 1)
	cursor := s.ring.Cursor(from)
	go func() {
		served <- Serve(ctx, NewReader(b), NewWriter(b), cursor, s, ServeOptions{ReadOnly: readOnly, Exit: s.status})
		b.Close()
	}()
	return a, served
}

func TestAttachment(t *testing.T) {
	ctx := ctxOf(t)
	s := newSession(NewRing(RingSize))
	_, _ = s.ring.Write([]byte("welcome\r\n"))
	conn, served := s.attach(ctx, FromStart, false)
	var out, errOut bytes.Buffer
	c := NewClient(&out, &errOut)
	c.OnHello = func(offset uint64, lost, readOnly bool) {
		if offset != 0 || lost || readOnly {
			t.Error(offset, lost, readOnly)
		}
	}
	if c.Offset() != FromStart {
		t.Fatal(c.Offset())
	}
	go func() {
		must(t, c.Resize(80, 24))
		must(t, c.Resize(0, 24)) // nothing
		must(t, c.Signal(2))
		_, err := c.Write([]byte("exit\r"))
		must(t, err)
		must(t, c.EOF())
	}()
	exit, err := c.Run(NewReader(conn), NewWriter(conn))
	must(t, err)
	if exit != (Exit{3, "done"}) || out.String() != "welcome\r\n" || c.Offset() != 9 {
		t.Fatal(exit, out.String(), c.Offset())
	}
	must(t, <-served)
	if s.input.String() != "exit\r" || fmt.Sprint(s.events) != "[80x24 signal 2 eof]" {
		t.Fatal(s.input.String(), s.events)
	}
	if err := c.Signal(0); err == nil {
		t.Fatal("signal 0")
	}
	c.Close()
	if _, err := c.Write([]byte("x")); err != ErrClosed {
		t.Fatal(err)
	}
}

// The connection breaks again and again while much output comes: the client has all of it, once.
func TestReconnect(t *testing.T) {
	ctx := ctxOf(t)
	const total = 8 << 20
	s := newSession(NewRing(RingSize))
	var got counter
	c := NewClient(&got, nil)
	go func() {
		for off := uint64(0); off < total; off += 1000 {
			n := min(1000, total-off)
			// With nobody attached a terminal's output goes on; this one waits, so that nothing is lost meanwhile. The
			// client may leave between this look and the write: so the ring keeps room for that one write.
			for {
				s.ring.mu.Lock()
				attached := len(s.ring.cursors) > 0
				s.ring.mu.Unlock()
				if at := c.Offset(); attached && (at == FromStart || off+n <= at+RingSize-1000) {
					break
				}
				time.Sleep(time.Millisecond)
			}
			if err := s.ring.WriteHeld(ctx, streamBytes(off, int(n))); err != nil {
				t.Error(err)
			}
		}
		s.exit()
	}()
	c.OnHello = func(offset uint64, lost, _ bool) {
		if lost || offset != got.n {
			t.Errorf("hello at %d (lost %v), have %d", offset, lost, got.n)
		}
	}
	for round := 1; ; round++ {
		conn, served := s.attach(ctx, c.Offset(), false)
		limited := &breaking{Conn: conn, left: round * 40_000}
		exit, err := c.Run(NewReader(limited), NewWriter(conn))
		if err == nil {
			if exit.Code != 3 {
				t.Fatal(exit)
			}
			must(t, <-served)
			break
		}
		conn.Close()
		<-served
	}
	if got.n != total || got.bad {
		t.Fatal(got)
	}
}

// counter checks the test's stream.
type counter struct {
	n   uint64
	bad bool
}

func (c *counter) Write(p []byte) (int, error) {
	for i := range p {
		c.bad = c.bad || p[i] != streamByte(c.n+uint64(i))
	}
	c.n += uint64(len(p))
	return len(p), nil
}

// breaking breaks after some bytes, in the middle of a frame most likely.
type breaking struct {
	net.Conn
	left int
}

func (b *breaking) Read(p []byte) (int, error) {
	if b.left <= 0 {
		b.Conn.Close()
		return 0, errors.New("cable cut")
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// Much more input than any buffer goes through a program that echoes all of it: acks must get past the waiting input.
func TestMuchInputThroughEcho(t *testing.T) {
	ctx := ctxOf(t)
	s := newSession(NewRing(RingSize))
	s.echo = true
	s.ring.patience = time.Hour // no help from there
	conn, served := s.attach(ctx, FromStart, false)
	var got counter
	c := NewClient(&got, nil)
	const total = 8 << 20
	go func() {
		for off := uint64(0); off < total; off += 1 << 16 {
			_, err := c.Write(streamBytes(off, 1<<16))
			must(t, err)
		}
		must(t, c.EOF())
	}()
	exit, err := c.Run(NewReader(conn), NewWriter(conn))
	must(t, err)
	must(t, <-served)
	if got.n != total || got.bad || exit.Code != 3 {
		t.Fatal(got, exit)
	}
}

// A client that reads nothing costs the window, not more.
func TestSilentClientBoundsOutput(t *testing.T) {
	ctx := ctxOf(t)
	s := newSession(NewRing(RingSize))
	conn, served := s.attach(ctx, FromStart, false)
	r := NewReader(conn)
	got := 0
	go func() {
		for off := uint64(0); ; off += 4096 {
			if s.ring.WriteHeld(ctx, streamBytes(off, 4096)) != nil {
				return
			}
		}
	}()
	for got < WindowSize {
		f, err := r.ReadFrame()
		must(t, err)
		got += len(f.Data)
	}
	if got != WindowSize {
		t.Fatal(got)
	}
	// The next thing it hears is what it asks for, not more output.
	go func() { must(t, NewWriter(conn).WriteFrame(Frame{Op: OpPing})) }()
	if f, err := r.ReadFrame(); err != nil || f.Op != OpPong {
		t.Fatal(f, err)
	}
	conn.Close()
	if err := <-served; err == nil {
		t.Fatal("no reason")
	}
	s.ring.Close()
}

// Any number of keystrokes that the session does not read must not dam up the acks behind them.
func TestKeystrokesDoNotBlockAcks(t *testing.T) {
	ctx := ctxOf(t)
	s := newSession(NewRing(RingSize))
	s.ring.patience = time.Hour
	deaf := &deafSession{session: s, listen: make(chan struct{})}
	a, b := net.Pipe()
	served := make(chan error, 1)
	go func() {
		served <- Serve(ctx, NewReader(b), NewWriter(b), s.ring.Cursor(FromStart), deaf, ServeOptions{Exit: s.status})
		b.Close()
	}()
	var got counter
	c := NewClient(&got, nil)
	const total, keys = 4 << 20, 5000
	go func() {
		for range keys {
			_, err := c.Write([]byte("k"))
			must(t, err)
		}
		for off := uint64(0); off < total; off += 4096 { // needs acks to get on
			must(t, s.ring.WriteHeld(ctx, streamBytes(off, 4096)))
		}
		close(deaf.listen)
		must(t, c.EOF())
	}()
	exit, err := c.Run(NewReader(a), NewWriter(a))
	must(t, err)
	must(t, <-served)
	if got.n != total || got.bad || exit.Code != 3 || s.input.Len() != keys {
		t.Fatal(got, exit, s.input.Len())
	}
}

// deafSession reads no input until it listens.
type deafSession struct {
	*session
	listen chan struct{}
}

func (d *deafSession) Input(ctx context.Context, p []byte) error {
	select {
	case <-d.listen:
		return d.session.Input(ctx, p)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestBadClients(t *testing.T) {
	for what, raw := range map[string]string{
		"server's frame": "\x00\x00\x00\x01\x16",
		"unknown frame":  "\x00\x00\x00\x01\x7f",
		"huge frame":     "\x7f\xff\xff\xff",
		"early ack":      "\x00\x00\x00\x09\x03\x00\x00\x00\x00\x00\x00\x00\x01",
	} {
		s := newSession(NewRing(RingSize))
		conn, served := s.attach(ctxOf(t), FromStart, false)
		go func() { _, _ = io.Copy(io.Discard, conn) }()
		_, err := conn.Write([]byte(raw))
		must(t, err)
		if err := <-served; !errors.Is(err, ErrFrame) && !errors.Is(err, ErrAck) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestReadOnly(t *testing.T) {
	s := newSession(NewRing(RingSize))
	conn, served := s.attach(ctxOf(t), FromStart, true)
	c := NewClient(nil, nil)
	readOnly := false
	c.OnHello = func(_ uint64, _, ro bool) { readOnly = ro }
	go func() {
		_, _ = c.Write([]byte("rm -rf /\r"))
		_ = c.Signal(9)
		_ = c.Resize(1, 1)
		_ = c.EOF()
		s.exit()
	}()
	if exit, err := c.Run(NewReader(conn), NewWriter(conn)); err != nil || exit.Code != 3 || !readOnly {
		t.Fatal(exit, err, readOnly)
	}
	must(t, <-served)
	if s.input.Len() != 0 || len(s.events) != 0 {
		t.Fatal(s.input.String(), s.events)
	}
}

func TestClientAndBadServers(t *testing.T) {
	for what, frames := range map[string][]Frame{
		"gap":            {{Op: OpHello}, {Op: OpOutput, Offset: 5, Data: []byte("x")}},
		"client's frame": {{Op: OpInput}},
		"error":          {{Op: OpHello}, {Op: OpError, Data: []byte("node is going")}},
		"end":            {{Op: OpHello}},
	} {
		var b bytes.Buffer
		for _, f := range frames {
			must(t, NewWriter(&b).WriteFrame(f))
		}
		_, err := NewClient(nil, nil).Run(NewReader(&b), NewWriter(io.Discard))
		var remote *RemoteError
		if err == nil || what == "error" && (!errors.As(err, &remote) || remote.Message != "node is going") {
			t.Errorf("%s: %v", what, err)
		}
	}
	// What comes twice is taken once; stderr is apart.
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, f := range []Frame{{Op: OpHello}, {Op: OpOutput, Data: []byte("abc")}, {Op: OpOutput, Offset: 1, Data: []byte("bcd")},
		{Op: OpOutput, Data: []byte("a")}, {Op: OpStderr, Data: []byte("oops")}, {Op: OpExit, Code: 130}} {
		must(t, w.WriteFrame(f))
	}
	var out, errOut bytes.Buffer
	exit, err := NewClient(&out, &errOut).Run(NewReader(&b), NewWriter(io.Discard))
	if err != nil || exit.Code != 130 || out.String() != "abcd" || errOut.String() != "oops" {
		t.Fatal(exit, err, out.String(), errOut.String())
	}
}
