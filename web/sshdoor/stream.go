package sshdoor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/learnos/learnos/internal/term"
)

const (
	// reconnectFor is how long a session is waited for while the gateway or its node is away.
	reconnectFor = 5 * time.Minute
	// inputWindow is how many blocks of input may be under way: sent, and not yet known to have arrived. A block is at
	// most 32 KiB, and the session's side queues 32 frames, so acks never wait behind input that nobody reads.
	inputWindow = 8
	// ackEvery is how many bytes are written to the person before the session is told so.
	ackEvery = term.WindowSize / 8
	// ackAgain is how often the last ack is repeated while the person's side takes nothing, as with a pager: it says
	// that they are slow and not gone.
	ackAgain = 3 * time.Second
)

// exit is how a session ended.
type exit struct {
	code   int
	reason string
}

// errInputLost ends a pipe whose connection broke while bytes were under way: nobody can know how many arrived, so
// going on could silently lose or double some.
var errInputLost = errors.New("the connection to the machine broke while input was being sent, and how much of it arrived is not known; run the command again")

// ends are the person's side of a session.
type ends struct {
	in       *input
	out      io.Writer
	errOut   io.Writer
	terminal *channel // whose size and signals count; nil for a plain pipe
}

func (e ends) tty() bool { return e.terminal != nil && e.terminal.tty }

// stream carries one session between its person's side and the gateway, over as many websockets as it takes.
type stream struct {
	p       *person
	env     string
	session string
	c       ends

	next    uint64 // first output byte not yet written to the channel
	fresh   bool   // output from before the attachment is wanted, from the ring's start
	pending []byte // input taken from the channel and not yet sent
	eof     bool   // the channel's input has ended
	mute    bool   // the session has ended: it takes no more input

	mu      sync.Mutex
	sent    int64         // input bytes sent over this websocket
	arrived int64         // of those, known to have arrived
	pings   []int64       // value of sent at each unanswered ping
	acked   uint64        // offset that may be acknowledged
	wake    chan struct{} // holds one token when acked or arrived has moved
}

// attach carries the session until it ends and returns how. The session outlives ctx and every error.
func attach(ctx context.Context, p *person, env, session string, c ends) (exit, error) {
	s := &stream{p: p, env: env, session: session, c: c, fresh: true, wake: make(chan struct{}, 1)}
	lost := time.Time{}
	wait := 50 * time.Millisecond
	for {
		done, progressed, err := s.once(ctx)
		if done != nil {
			return *done, nil
		}
		if ctx.Err() != nil {
			return exit{}, ctx.Err()
		}
		if errors.Is(err, errInputLost) {
			// Input arrives in order or not at all, so a command that has ended by itself has ended rightly, and only
			// the rest of its output is missing. One that still runs would wait for bytes that are gone.
			if !s.hasExited(ctx) {
				return exit{}, err
			}
			s.pending, s.mute = nil, true
		} else if !retryable(err) {
			return exit{}, err
		}
		if progressed || lost.IsZero() {
			lost, wait = time.Now(), 50*time.Millisecond
		}
		if time.Since(lost) > reconnectFor {
			return exit{}, fmt.Errorf("the machine could not be reached for %v: %w", reconnectFor, err)
		}
		select {
		case <-ctx.Done():
			return exit{}, ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, 2*time.Second)
	}
}

// retryable reports whether a broken attachment is worth another try.
func retryable(err error) bool {
	var ce *websocket.CloseError
	if errors.As(err, &ce) {
		return ce.Code != 4401 && ce.Code != 4404 && ce.Code != websocket.ClosePolicyViolation
	}
	return transient(err)
}

// hasExited asks whether the session has ended, for as long as the gateway may take to come back.
func (s *stream) hasExited(ctx context.Context) bool {
	for began, wait := time.Now(), 50*time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		list, err := s.p.sessions(ctx, s.env)
		for _, other := range list {
			if other.ID == s.session {
				return other.Exited
			}
		}
		if err == nil || !transient(err) || time.Since(began) > reconnectFor {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
}

// once runs one websocket. done is set when the session has ended; progressed when it was attached at all.
func (s *stream) once(ctx context.Context) (done *exit, progressed bool, err error) {
	q := url.Values{}
	if !s.fresh {
		q.Set("offset", strconv.FormatUint(s.next, 10))
	}
	if s.c.tty() {
		cols, rows := s.c.terminal.size()
		q.Set("cols", strconv.Itoa(cols))
		q.Set("rows", strconv.Itoa(rows))
	}
	path := "/api/v1/environments/" + url.PathEscape(s.env) + "/sessions/" + url.PathEscape(s.session) + "/attach"
	ws, err := s.p.dial(ctx, path, q.Encode(), term.Subprotocol)
	if err != nil {
		return nil, false, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ws.SetReadLimit(term.MaxFrame)
	stop := context.AfterFunc(ctx, func() { ws.Close() })
	s.sent, s.arrived, s.pings = 0, 0, nil
	var writer sync.WaitGroup
	hello := make(chan struct{})
	writer.Go(func() { s.write(ctx, ws, hello) })
	done, progressed, err = s.read(ws, hello)
	cancel()
	stop()
	_ = ws.Close()
	writer.Wait()
	if done == nil && !s.c.tty() && s.sent > s.arrived && !errors.Is(err, errInputLost) {
		err = errInputLost
	}
	return done, progressed, err
}

// read takes the server's frames until the session or the websocket ends.
func (s *stream) read(ws *websocket.Conn, hello chan struct{}) (done *exit, progressed bool, err error) {
	var said string // the server's own word on what went wrong
	for {
		kind, data, err := ws.ReadMessage()
		if err != nil {
			if said != "" {
				err = fmt.Errorf("%s: %w", said, err)
			}
			return nil, progressed, err
		}
		if kind != websocket.BinaryMessage {
			continue
		}
		f, err := term.Parse(data)
		if err != nil {
			return nil, progressed, fmt.Errorf("reading the session: %w", err)
		}
		switch f.Op {
		case term.OpHello:
			if f.Flags&term.FlagLost != 0 && !s.c.tty() {
				return nil, progressed, &apiError{Status: http.StatusGone, Message: "Some of the command's output was lost while the machine was away.", Hint: "Run it again."}
			}
			s.next, s.fresh = f.Offset, false
			if !progressed {
				progressed = true
				close(hello)
			}
			s.mu.Lock()
			s.acked = s.next
			s.mu.Unlock()
		case term.OpOutput:
			if f.Offset > s.next {
				return nil, progressed, fmt.Errorf("reading the session: output at offset %d, wanted %d", f.Offset, s.next)
			}
			b := f.Data[min(uint64(len(f.Data)), s.next-f.Offset):]
			if _, err := s.c.out.Write(b); err != nil {
				return nil, progressed, context.Canceled
			}
			s.next += uint64(len(b))
			s.ack()
		case term.OpStderr:
			if _, err := s.c.errOut.Write(f.Data); err != nil {
				return nil, progressed, context.Canceled
			}
		case term.OpExit:
			return &exit{int(f.Code), string(f.Data)}, progressed, nil
		case term.OpError:
			said = string(f.Data)
		case term.OpPong:
			s.mu.Lock()
			if len(s.pings) > 0 {
				s.arrived, s.pings = s.pings[0], s.pings[1:]
			}
			s.mu.Unlock()
			s.poke()
		}
	}
}

// ack lets the writer acknowledge everything up to s.next, when it is enough to be worth a message. The reader itself never writes: two ends that both
// wait for the other to read would wait for ever.
func (s *stream) ack() {
	s.mu.Lock()
	enough := s.next-s.acked >= ackEvery
	if enough {
		s.acked = s.next
	}
	s.mu.Unlock()
	if enough {
		s.poke()
	}
}

func (s *stream) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// write sends acks, input, sizes and signals until ctx ends or the websocket breaks. It leaves closing to the reader,
// for which the last output and the exit may still be on their way.
func (s *stream) write(ctx context.Context, ws *websocket.Conn, hello <-chan struct{}) {
	var buf []byte
	send := func(f term.Frame) bool {
		buf = f.Append(buf[:0])
		return ws.WriteMessage(websocket.BinaryMessage, buf) == nil
	}
	select {
	case <-hello:
	case <-ctx.Done():
		return
	}
	if len(s.c.in.rest) > 0 {
		s.pending, s.c.in.rest = append(s.pending, s.c.in.rest...), nil
	}
	again := time.NewTicker(ackAgain)
	defer again.Stop()
	s.mu.Lock()
	acked := s.acked
	s.mu.Unlock()
	eofSent := false
	var resized <-chan struct{}
	var signals <-chan uint8
	if t := s.c.terminal; t != nil {
		signals = t.signals
		if t.tty {
			resized = t.resized
		}
	}
	for {
		s.mu.Lock()
		ack, room := s.acked, len(s.pings) < inputWindow
		s.mu.Unlock()
		if ack != acked {
			if !send(term.Frame{Op: term.OpAck, Offset: ack}) {
				return
			}
			acked = ack
		}
		if len(s.pending) > 0 && room {
			n := min(len(s.pending), 32<<10)
			// Counted before it is sent: once a write has begun, bytes may have arrived.
			s.mu.Lock()
			s.sent += int64(n)
			s.pings = append(s.pings, s.sent)
			s.mu.Unlock()
			if !send(term.Frame{Op: term.OpInput, Data: s.pending[:n]}) || !send(term.Frame{Op: term.OpPing}) {
				return
			}
			s.pending = s.pending[n:]
			continue
		}
		// On a terminal the end of input means nothing, as with sshd: a client that is cut off sends one, too, and
		// the shell must still be there when its person comes back.
		if s.eof && len(s.pending) == 0 && !eofSent && !s.mute && !s.c.tty() {
			if !send(term.Frame{Op: term.OpEOF}) {
				return
			}
			eofSent = true
		}
		var blocks <-chan []byte
		if room && !s.eof && !s.mute && len(s.pending) == 0 {
			blocks = s.c.in.blocks
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-again.C:
			if acked > 0 && !send(term.Frame{Op: term.OpAck, Offset: acked}) {
				return
			}
		case b, ok := <-blocks:
			if !ok {
				s.eof = true
				break
			}
			s.pending = b
		case <-resized:
			cols, rows := s.c.terminal.size()
			if !send(term.Frame{Op: term.OpResize, Cols: uint16(cols), Rows: uint16(rows)}) {
				return
			}
		case n := <-signals:
			if !send(term.Frame{Op: term.OpSignal, Signal: n}) {
				return
			}
		}
	}
}
