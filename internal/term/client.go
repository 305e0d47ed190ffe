package term

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

// Exit is how a session ended.
type Exit struct {
	Code   int // 128 + signal for a killed process
	Reason string
}

// ErrClosed: the client was closed.
var ErrClosed = errors.New("terminal client is closed")

// RemoteError is an error frame of the server.
type RemoteError struct{ Message string }

func (e *RemoteError) Error() string { return e.Message }

const (
	// ackEvery is how much a client consumes before it acknowledges: an eighth of the window.
	ackEvery = WindowSize / 8
	// inputWindow is how much input may be under way beyond the last pong.
	inputWindow = 256 << 10
)

// Client is the client's side of a session, over any number of connections one after the other: it remembers what
// it has received, so that each new attachment goes on where the last one broke.
//
// Write, Resize, Signal and EOF may be called from any goroutine at any time; without a connection they wait for the
// next one. Input that was being sent when a connection broke is not sent again: it may have arrived.
type Client struct {
	// OnHello is told at each attachment, and whenever output was lost, where output goes on.
	OnHello func(offset uint64, lost, readOnly bool)
	// OnError is told of error frames; the session goes on. nil: Run returns a *RemoteError.
	OnError func(message string)

	stdout, stderr io.Writer

	mu      sync.Mutex
	cond    sync.Cond
	w       FrameWriter // nil while not attached
	closed  bool
	offset  uint64 // next output byte wanted
	started bool
	sent    int // input bytes beyond the last pinged place
	waiting bool
}

// NewClient writes the session's output to stdout and stderr (nil: discarded), as fast as these take it.
func NewClient(stdout, stderr io.Writer) *Client {
	if stdout == nil {
		stdout = io.Discard
	}
	if stderr == nil {
		stderr = io.Discard
	}
	c := &Client{stdout: stdout, stderr: stderr}
	c.cond.L = &c.mu
	return c
}

// Offset is what to ask for in the next attachment: FromStart before the first one.
func (c *Client) Offset() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.started {
		return FromStart
	}
	return c.offset
}

// Run serves one connection until the session's exit (nil error) or until the connection breaks; then attach again
// at Offset and call Run again. To stop it, close the connection.
func (c *Client) Run(r FrameReader, w FrameWriter) (Exit, error) {
	c.mu.Lock()
	c.w, c.sent, c.waiting = w, 0, false
	acked := c.offset
	c.cond.Broadcast()
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		if c.w == w {
			c.w = nil
		}
		c.cond.Broadcast()
		c.mu.Unlock()
	}()

	for {
		f, err := r.ReadFrame()
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return Exit{}, err
		}
		switch f.Op {
		case OpHello:
			c.mu.Lock()
			c.offset, c.started = f.Offset, true
			c.mu.Unlock()
			acked = f.Offset
			if c.OnHello != nil {
				c.OnHello(f.Offset, f.Flags&FlagLost != 0, f.Flags&FlagReadOnly != 0)
			}
		case OpOutput:
			c.mu.Lock()
			want := c.offset
			c.mu.Unlock()
			if f.Offset > want {
				return Exit{}, fmt.Errorf("%w: output at offset %d, wanted %d", ErrFrame, f.Offset, want)
			}
			if skip := want - f.Offset; skip < uint64(len(f.Data)) {
				if _, err := c.stdout.Write(f.Data[skip:]); err != nil {
					return Exit{}, fmt.Errorf("write output: %w", err)
				}
				c.mu.Lock()
				c.offset = f.Offset + uint64(len(f.Data))
				want = c.offset
				c.mu.Unlock()
			}
			if want-acked >= ackEvery {
				if err := w.WriteFrame(Frame{Op: OpAck, Offset: want}); err != nil {
					return Exit{}, err
				}
				acked = want
			}
		case OpStderr:
			if _, err := c.stderr.Write(f.Data); err != nil {
				return Exit{}, fmt.Errorf("write output: %w", err)
			}
		case OpExit:
			return Exit{Code: int(f.Code), Reason: string(f.Data)}, nil
		case OpError:
			if c.OnError == nil {
				return Exit{}, &RemoteError{Message: string(f.Data)}
			}
			c.OnError(string(f.Data))
		case OpPong:
			c.mu.Lock()
			if c.waiting {
				c.sent, c.waiting = 0, false
				c.cond.Broadcast()
			}
			c.mu.Unlock()
		default:
			return Exit{}, fmt.Errorf("%w: a server sent %v", ErrFrame, f.Op)
		}
	}
}

// attached waits for a connection with room for input.
func (c *Client) attached(input bool) (FrameWriter, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.closed && (c.w == nil || input && c.sent >= inputWindow) {
		if w := c.w; w != nil && !c.waiting {
			c.waiting = true
			c.mu.Unlock()
			err := w.WriteFrame(Frame{Op: OpPing})
			c.mu.Lock()
			if err != nil && c.w == w {
				c.w = nil
			}
			continue
		}
		c.cond.Wait()
	}
	if c.closed {
		return nil, ErrClosed
	}
	return c.w, nil
}

func (c *Client) send(f Frame) error {
	w, err := c.attached(f.Op == OpInput)
	if err != nil {
		return err
	}
	if err := w.WriteFrame(f); err != nil {
		c.mu.Lock()
		if c.w == w {
			c.w = nil // until the next Run
		}
		c.mu.Unlock()
		return nil
	}
	if f.Op == OpInput {
		c.mu.Lock()
		c.sent += len(f.Data)
		c.mu.Unlock()
	}
	return nil
}

// Write sends input. It waits for a connection and, with much to send, for the session to take it.
func (c *Client) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		piece := p[n:min(len(p), n+32<<10)]
		if err := c.send(Frame{Op: OpInput, Data: piece}); err != nil {
			return n, err
		}
		n += len(piece)
	}
	return len(p), nil
}

// Resize tells the terminal's new size; zeros are ignored.
func (c *Client) Resize(cols, rows uint16) error {
	if cols == 0 || rows == 0 {
		return nil
	}
	return c.send(Frame{Op: OpResize, Cols: cols, Rows: rows})
}

// Signal sends a signal by its Linux number, 1 to 64.
func (c *Client) Signal(number uint8) error {
	if number < 1 || number > 64 {
		return fmt.Errorf("signal %d: allowed are 1 to 64", number)
	}
	return c.send(Frame{Op: OpSignal, Signal: number})
}

// EOF ends the session's input.
func (c *Client) EOF() error { return c.send(Frame{Op: OpEOF}) }

// Close makes waiting and later calls of Write and its like return ErrClosed. It does not end a Run.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.cond.Broadcast()
}
