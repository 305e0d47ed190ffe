package nodeagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/term"
	"github.com/learnos/learnos/runtime"
)

// readSize is how much output is taken at once: what a pipe holds, and as much as one frame carries.
const readSize = 32 << 10

// session is one terminal or command of an environment that the daemon keeps for people who come and go.
//
// One goroutine reads its output into a ring; each attached client has its own place in the ring. Where the reader
// waits for clients is decided here (see room), because only a terminal may lose output: a person who looks away
// must not stop a program, while a command's output is data.
type session struct {
	id      string
	meta    sessionMeta
	s       *runtime.Session // nil when it had ended before this agent began
	ring    *term.Ring
	paths   []string // its files
	exited  chan struct{}
	drained chan struct{} // closed when all output is in the ring and all of stderr was sent

	mu      sync.Mutex
	status  ExitStatus // once exited is closed
	clients map[*client]struct{}
	stalled bool          // no client has acknowledged anything for term.Patience
	change  chan struct{} // closed and renewed when clients, acks or stalled change
}

// sessionMeta is what the agent must still know about a session after a restart.
type sessionMeta struct {
	Args      []string  `json:"args"`
	TTY       bool      `json:"tty"`
	CreatedAt time.Time `json:"createdAt"`
}

// client is one attachment.
type client struct {
	session *session
	w       term.FrameWriter
	ready   bool   // its hello was sent
	acked   uint64 // output consumed, as far as it told
}

func (n *Node) sessionsDir(env string) string { return filepath.Join(n.envDir(env), "sessions") }

func (n *Node) sessionPaths(env, id string) (meta, ring string) {
	base := filepath.Join(n.sessionsDir(env), id)
	return base + ".json", base + ".ring"
}

// newSession keeps a session that was just started.
func (n *Node) newSession(ctx context.Context, e *Environment, s *runtime.Session, meta sessionMeta) (*session, error) {
	metaPath, ringPath := n.sessionPaths(e.ID(), s.ID())
	if err := os.MkdirAll(n.sessionsDir(e.ID()), 0o700); err != nil {
		return nil, fmt.Errorf("keep session: %w", err)
	}
	ring, err := term.OpenRing(ringPath, term.RingSize)
	if err != nil {
		return nil, fmt.Errorf("keep session: %w", err)
	}
	body, err := json.Marshal(meta)
	if err == nil {
		err = os.WriteFile(metaPath, body, 0o600)
	}
	if err != nil {
		_ = ring.Close()
		return nil, fmt.Errorf("keep session: %w", err)
	}
	se := makeSession(s.ID(), meta, s, ring, metaPath, ringPath)
	se.serve(ctx, e)
	return se, nil
}

func makeSession(id string, meta sessionMeta, s *runtime.Session, ring *term.Ring, paths ...string) *session {
	return &session{
		id: id, meta: meta, s: s, ring: ring, paths: paths,
		exited: make(chan struct{}), drained: make(chan struct{}),
		clients: map[*client]struct{}{}, change: make(chan struct{}),
	}
}

// restoreSessions takes up every session that the daemon had kept for an environment before it was restarted. What
// can't be taken up is reported and left out; a ring that is torn begins anew.
func (n *Node) restoreSessions(ctx context.Context, e *Environment) (map[string]*session, error) {
	entries, err := os.ReadDir(n.sessionsDir(e.ID()))
	if errors.Is(err, os.ErrNotExist) {
		return map[string]*session{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sessions of environment %s: %w", e.ID(), err)
	}
	infos, err := e.c.Sessions(ctx)
	if err != nil {
		return nil, fmt.Errorf("sessions of environment %s: %w", e.ID(), err)
	}
	known := map[string]runtime.SessionInfo{}
	for _, info := range infos {
		known[info.ID] = info
	}
	found := map[string]*session{}
	var errs []error
	for _, entry := range entries {
		id, ok := strings.CutSuffix(entry.Name(), ".json")
		if !ok {
			continue
		}
		se, err := n.restoreSession(ctx, e, id, known)
		if err != nil {
			errs = append(errs, fmt.Errorf("session %s of environment %s: %w", id, e.ID(), err))
			continue
		}
		found[id] = se
	}
	return found, errors.Join(errs...)
}

func (n *Node) restoreSession(ctx context.Context, e *Environment, id string, known map[string]runtime.SessionInfo) (*session, error) {
	metaPath, ringPath := n.sessionPaths(e.ID(), id)
	var meta sessionMeta
	body, err := os.ReadFile(metaPath)
	if err == nil {
		err = json.Unmarshal(body, &meta)
	}
	if err != nil {
		return nil, err
	}
	ring, err := term.OpenRing(ringPath, term.RingSize)
	if errors.Is(err, term.ErrRing) {
		_ = os.Remove(ringPath)
		ring, err = term.OpenRing(ringPath, term.RingSize)
	}
	if err != nil {
		return nil, err
	}
	info, there := known[id]
	s, err := e.c.Attach(ctx, id)
	if err != nil && there && !info.Exited {
		_ = ring.Close()
		return nil, err
	}
	if err != nil { // it ended while no agent was there, and init has let go of it
		se := makeSession(id, meta, nil, ring, metaPath, ringPath)
		se.status = ExitStatus{Code: info.Status.Code, OOMKilled: info.Status.OOMKilled, Reason: info.Status.Reason}
		if !there {
			se.status = ExitStatus{Code: ownFailure, Reason: "it ended while the node's agent was away"}
		}
		ring.Finish()
		close(se.exited)
		close(se.drained)
		return se, nil
	}
	se := makeSession(id, meta, s, ring, metaPath, ringPath)
	se.serve(ctx, e)
	return se, nil
}

// ownFailure is the status of a command whose own is not known.
const ownFailure = 125

// serve starts the goroutines that a session lives by; they end with ctx or with the session.
func (se *session) serve(ctx context.Context, e *Environment) {
	go func() {
		st, err := e.WaitSession(ctx, se.s)
		if ctx.Err() != nil {
			return
		}
		se.mu.Lock()
		se.status = st
		if err != nil {
			se.status = ExitStatus{Code: ownFailure, Reason: err.Error()}
		}
		se.mu.Unlock()
		close(se.exited)
	}()
	var readers sync.WaitGroup
	if se.meta.TTY {
		readers.Go(func() { _ = copyOut(ctx, se.s.PTY(), se.exited, se.room, se.keep) })
	} else {
		readers.Go(func() { _ = copyOut(ctx, se.s.Stdout(), se.exited, se.room, se.keep) })
		readers.Go(func() { _ = copyOut(ctx, se.s.Stderr(), se.exited, se.someone, se.tellStderr) })
	}
	go func() {
		readers.Wait()
		if ctx.Err() != nil {
			return
		}
		<-se.exited
		se.ring.Finish()
		close(se.drained)
	}()
}

// keep stores output for whoever is and will be attached.
func (se *session) keep(_ context.Context, p []byte) error {
	_, err := se.ring.Write(p)
	return err
}

// notify tells waiters that something changed. The caller holds mu.
func (se *session) notify() {
	close(se.change)
	se.change = make(chan struct{})
}

// room waits until output may be read without a client losing any. A terminal waits for its quickest client, and
// not for one that acknowledges nothing; with nobody attached it goes on. A command waits for every client, and
// for one to come: nothing of its output may be lost.
func (se *session) room(ctx context.Context) error {
	patience := time.NewTimer(term.Patience)
	defer patience.Stop()
	for {
		se.mu.Lock()
		end := se.ring.End()
		lowest, highest := end, uint64(0)
		for c := range se.clients {
			lowest, highest = min(lowest, c.acked), max(highest, c.acked)
		}
		var ok bool
		switch {
		case se.meta.TTY:
			ok = len(se.clients) == 0 || se.stalled || end+readSize <= highest+term.RingSize
		default:
			ok = len(se.clients) > 0 && end+readSize <= lowest+term.RingSize
		}
		change := se.change
		se.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-change:
			patience.Reset(term.Patience)
		case <-patience.C:
			se.mu.Lock()
			se.stalled = true
			se.mu.Unlock()
		}
	}
}

// someone waits until a client is attached that has had its hello.
func (se *session) someone(ctx context.Context) error {
	for {
		se.mu.Lock()
		ready := false
		for c := range se.clients {
			ready = ready || c.ready
		}
		change := se.change
		se.mu.Unlock()
		if ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-change:
		}
	}
}

// tellStderr sends standard error to whoever is attached, and waits for the next one if that broke.
func (se *session) tellStderr(ctx context.Context, p []byte) error {
	for {
		if err := se.someone(ctx); err != nil {
			return err
		}
		se.mu.Lock()
		var to []*client
		for c := range se.clients {
			if c.ready {
				to = append(to, c)
			}
		}
		se.mu.Unlock()
		told := false
		for _, c := range to {
			if err := c.w.WriteFrame(term.Frame{Op: term.OpStderr, Data: p}); err == nil {
				told = true
			} else {
				se.leave(c)
			}
		}
		if told {
			return nil
		}
	}
}

// attach serves one client over r and w until it goes or the session has ended and told it all. from is the
// offset it wants next.
func (se *session) attach(ctx context.Context, r term.FrameReader, w term.FrameWriter, from uint64, readOnly bool) error {
	cursor := se.ring.Cursor(from)
	c := &client{session: se, w: w}
	c.acked, _ = cursor.Start()
	se.mu.Lock()
	se.clients[c] = struct{}{}
	se.stalled = false
	se.notify()
	se.mu.Unlock()
	defer se.leave(c)
	return term.Serve(ctx, ackReader{r, c}, helloWriter{w, c}, cursor, sessionTarget{se}, term.ServeOptions{
		ReadOnly: readOnly,
		Exit: func(ctx context.Context) (int32, string, error) {
			select {
			case <-se.drained:
			case <-ctx.Done():
				return 0, "", ctx.Err()
			}
			se.mu.Lock()
			defer se.mu.Unlock()
			return int32(se.status.Code), se.status.Reason, nil
		},
	})
}

func (se *session) leave(c *client) {
	se.mu.Lock()
	defer se.mu.Unlock()
	if _, there := se.clients[c]; there {
		delete(se.clients, c)
		se.notify()
	}
}

// ended tells whether the session's process has.
func (se *session) ended() bool {
	select {
	case <-se.exited:
		return true
	default:
		return false
	}
}

// connected is the number of attached clients.
func (se *session) connected() int {
	se.mu.Lock()
	defer se.mu.Unlock()
	return len(se.clients)
}

// close lets go of the session: its descriptors, its ring, and, if it is not to come back, its files.
func (se *session) close(forget bool) {
	if se.s != nil {
		_ = se.s.Close()
	}
	_ = se.ring.Close()
	if forget {
		for _, path := range se.paths {
			_ = os.Remove(path)
		}
	}
}

// ackReader notes what the client acknowledges on its way to the cursor.
type ackReader struct {
	term.FrameReader
	c *client
}

func (r ackReader) ReadFrame() (term.Frame, error) {
	f, err := r.FrameReader.ReadFrame()
	if err == nil && f.Op == term.OpAck {
		se := r.c.session
		se.mu.Lock()
		// A false one is the cursor's to refuse; here it must only not open the window.
		if f.Offset > r.c.acked && f.Offset <= se.ring.End() {
			r.c.acked = f.Offset
			se.stalled = false
			se.notify()
		}
		se.mu.Unlock()
	}
	return f, err
}

// helloWriter notes when the client has had its first frame, before which no other may be sent. A later hello
// means that the client skipped: what it missed it can't acknowledge.
type helloWriter struct {
	term.FrameWriter
	c *client
}

func (w helloWriter) WriteFrame(f term.Frame) error {
	err := w.FrameWriter.WriteFrame(f)
	if err == nil && f.Op == term.OpHello {
		se := w.c.session
		se.mu.Lock()
		w.c.ready = true
		w.c.acked = max(w.c.acked, f.Offset)
		se.notify()
		se.mu.Unlock()
	}
	return err
}

// sessionTarget is where a client's input goes.
type sessionTarget struct{ se *session }

func (t sessionTarget) Input(ctx context.Context, p []byte) error {
	if t.se.s == nil || t.se.ended() {
		return errors.New("the session has ended")
	}
	f := t.se.s.Stdin()
	if t.se.meta.TTY {
		f = t.se.s.PTY()
	}
	// A program that does not read must not keep this goroutine when the client goes.
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Now()) })
	defer func() {
		if !stop() {
			_ = f.SetWriteDeadline(time.Time{})
		}
	}()
	_, err := f.Write(p)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, unix.EPIPE) || errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EIO) {
		return nil // it reads no more: as a pipe in a shell would have it
	}
	return err
}

func (t sessionTarget) EOF(ctx context.Context) error {
	if t.se.s == nil || t.se.ended() {
		return nil
	}
	if t.se.meta.TTY {
		return t.Input(ctx, []byte{4}) // what a terminal sends for ^D
	}
	return t.se.s.CloseStdin(ctx)
}

func (t sessionTarget) Resize(cols, rows uint16) error {
	if t.se.s == nil || !t.se.meta.TTY || t.se.ended() {
		return nil
	}
	return t.se.s.Resize(cols, rows)
}

func (t sessionTarget) Signal(number uint8) error {
	if t.se.s == nil || t.se.ended() {
		return nil
	}
	return t.se.s.Signal(context.Background(), unix.Signal(number))
}

// After a process ended, its output is read on for lingerTime or until the far end is closed, whichever comes first
// (a terminal's last bytes reach its master through a kernel worker, so they may come a moment after the exit);
// then what is there is taken, at most lingerBytes, which is more than a pipe can hold.
const (
	lingerTime  = 100 * time.Millisecond
	lingerBytes = 2 << 20
)

// CopyOutput writes what comes out of src, a session's pipe or terminal, to dst. When exited closes, what is in
// src by then is still written, and then it returns without waiting for others that may hold the far end open: so
// all output of the process that exited arrives, and a daemon it left behind keeps nobody waiting.
func CopyOutput(ctx context.Context, dst io.Writer, src *os.File, exited <-chan struct{}) error {
	always := func(context.Context) error { return nil }
	return copyOut(ctx, src, exited, always, func(_ context.Context, p []byte) error {
		_, err := dst.Write(p)
		return err
	})
}

// copyOut reads src into sink; before each read it asks ready.
func copyOut(ctx context.Context, src *os.File, exited <-chan struct{}, ready func(context.Context) error, sink func(context.Context, []byte) error) error {
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-exited:
			_ = src.SetReadDeadline(time.Now().Add(lingerTime))
		case <-ctx.Done():
			_ = src.SetReadDeadline(time.Now())
		case <-done:
		}
	}()
	buf := make([]byte, readSize)
	for last := 0; last < lingerBytes; {
		if err := ready(ctx); err != nil {
			return err
		}
		n, err := runtime.ReadTerminal(src, buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			n, err = readNow(src, buf)
			last += n
		}
		if n > 0 {
			if err := sink(ctx, buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == nil && n > 0:
		case err == nil, errors.Is(err, io.EOF), errors.Is(err, unix.EAGAIN), errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.EIO): // a terminal whose other side is closed
			return nil
		default:
			return err
		}
	}
	return nil
}

// readNow reads what is there without waiting, whatever deadline f has.
func readNow(f *os.File, buf []byte) (n int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		for {
			n, err = unix.Read(int(fd), buf)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
	})
	if ctlErr != nil {
		return 0, ctlErr
	}
	return max(n, 0), err
}
