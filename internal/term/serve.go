package term

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
)

// Target is the session as Serve sees it. Its errors end nothing: a session that is over takes no input, and its
// last output and its exit must still be sent.
type Target interface {
	// Input hands bytes to the session; it may wait while the session does not read, until ctx ends.
	Input(ctx context.Context, p []byte) error
	// EOF ends the session's input.
	EOF(ctx context.Context) error
	Resize(cols, rows uint16) error
	Signal(number uint8) error
}

// ServeOptions of Serve.
type ServeOptions struct {
	ReadOnly bool // ignore input, eof, resize and signal
	// Exit is asked, after all output was sent, how the session ended. nil: no exit frame is sent.
	Exit func(ctx context.Context) (code int32, reason string, err error)
}

// inputLimit bounds what is read from a client before the session takes it, in bytes.
const inputLimit = 1 << 20

// inbox is the queue between a client and a session that may be slow to read: input, eof and ping, in order.
// Neighbouring input becomes one frame, so that a limit in bytes is one of memory, too.
type inbox struct {
	mu     sync.Mutex
	frames []Frame
	bytes  int
	came   chan struct{} // capacity 1: there is something
	went   chan struct{} // capacity 1: there is room
}

func (b *inbox) put(ctx context.Context, f Frame) error {
	for {
		b.mu.Lock()
		if b.bytes < inputLimit {
			// Each frame counts for one byte at least: empty ones are no way around the limit.
			b.bytes += len(f.Data) + 1
			if last := len(b.frames) - 1; last >= 0 && f.Op == OpInput && b.frames[last].Op == OpInput && len(b.frames[last].Data) < 32<<10 {
				b.frames[last].Data = append(b.frames[last].Data, f.Data...)
			} else {
				f.Data = append([]byte(nil), f.Data...)
				b.frames = append(b.frames, f)
			}
			b.mu.Unlock()
			wake(b.came)
			return nil
		}
		b.mu.Unlock()
		select {
		case <-b.went:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take returns all there is, or waits for more. It is for one goroutine.
func (b *inbox) take(ctx context.Context) ([]Frame, error) {
	for {
		b.mu.Lock()
		frames := b.frames
		b.frames, b.bytes = nil, 0
		b.mu.Unlock()
		wake(b.went)
		if len(frames) > 0 {
			return frames, nil
		}
		select {
		case <-b.came:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Serve runs one attachment at the session's side: a hello, output as the cursor's window lets it, the client's
// frames to the target. It returns nil after the exit frame, and otherwise what broke; it closes the cursor, and
// leaves the transport to its caller, who must make ReadFrame return (by closing) to end the reading goroutine.
//
// Input waits in a queue of its own, so that a session which does not read cannot stop the acks behind it. A pong
// is sent when all input before its ping was taken by the session: clients with much to send bound what is under
// way by that.
func Serve(ctx context.Context, r FrameReader, w FrameWriter, c *Cursor, t Target, o ServeOptions) error {
	defer c.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	in := &inbox{came: make(chan struct{}, 1), went: make(chan struct{}, 1)}
	go func() { cancel(readClient(ctx, r, c, t, in, o)) }()
	go func() { cancel(feed(ctx, w, t, in)) }()
	err := sendOutput(ctx, c, w, o)
	if err != nil && context.Cause(ctx) != nil {
		return context.Cause(ctx)
	}
	return err
}

func sendOutput(ctx context.Context, c *Cursor, w FrameWriter, o ServeOptions) error {
	hello := func(at uint64, lost bool) error {
		f := Frame{Op: OpHello, Offset: at}
		if lost {
			f.Flags |= FlagLost
		}
		if o.ReadOnly {
			f.Flags |= FlagReadOnly
		}
		return w.WriteFrame(f)
	}
	c.r.mu.Lock()
	start, lost := c.pos, c.lost
	c.lost = false
	c.r.mu.Unlock()
	if err := hello(start, lost); err != nil {
		return err
	}
	buf := make([]byte, 32<<10)
	for {
		n, at, lost, err := c.Read(ctx, buf)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if lost {
			if err := hello(at, true); err != nil {
				return err
			}
		}
		if err := w.WriteFrame(Frame{Op: OpOutput, Offset: at, Data: buf[:n]}); err != nil {
			return err
		}
	}
	if o.Exit == nil {
		return nil
	}
	code, reason, err := o.Exit(ctx)
	if err != nil {
		return err
	}
	return w.WriteFrame(Frame{Op: OpExit, Code: code, Data: clip(reason)})
}

// readClient takes frames until the transport ends. What must not wait (acks, signals, sizes) is done here.
func readClient(ctx context.Context, r FrameReader, c *Cursor, t Target, in *inbox, o ServeOptions) error {
	for {
		f, err := r.ReadFrame()
		if err != nil {
			return err
		}
		switch {
		case !f.Op.FromClient():
			return fmt.Errorf("%w: a client sent %v", ErrFrame, f.Op)
		case f.Op == OpAck:
			if err := c.Ack(f.Offset); err != nil {
				return err
			}
			continue
		case f.Op == OpPing:
		case o.ReadOnly:
			continue
		case f.Op == OpResize:
			_ = t.Resize(f.Cols, f.Rows)
			continue
		case f.Op == OpSignal:
			_ = t.Signal(f.Signal)
			continue
		}
		if err := in.put(ctx, f); err != nil {
			return err
		}
	}
}

// feed hands input to the session in order.
func feed(ctx context.Context, w FrameWriter, t Target, in *inbox) error {
	for {
		frames, err := in.take(ctx)
		if err != nil {
			return err
		}
		for _, f := range frames {
			switch f.Op {
			case OpInput:
				_ = t.Input(ctx, f.Data)
			case OpEOF:
				_ = t.EOF(ctx)
			case OpPing:
				if err := w.WriteFrame(Frame{Op: OpPong}); err != nil {
					return err
				}
			}
		}
	}
}

// clip makes text fit a frame; half a character at the cut is dropped.
func clip(s string) []byte {
	const limit = 4 << 10
	if len(s) > limit {
		s = s[:limit]
	}
	return []byte(strings.ToValidUTF8(s, ""))
}
