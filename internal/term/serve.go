package term

import (
	"context"
	"fmt"
	"io"
	"strings"
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

// inputFrames bounds what is read from a client before the session takes it: 32 frames of at most 64 KiB.
const inputFrames = 32

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

	queue := make(chan Frame, inputFrames)
	go func() { cancel(readClient(ctx, r, c, t, queue, o)) }()
	go func() {
		if err := feed(ctx, w, t, queue); err != nil {
			cancel(err)
		}
	}()
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
func readClient(ctx context.Context, r FrameReader, c *Cursor, t Target, queue chan<- Frame, o ServeOptions) error {
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
		f.Data = append([]byte(nil), f.Data...)
		select {
		case queue <- f:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// feed hands input to the session in order.
func feed(ctx context.Context, w FrameWriter, t Target, queue <-chan Frame) error {
	for {
		var f Frame
		select {
		case f = <-queue:
		case <-ctx.Done():
			return nil
		}
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

// clip makes text fit a frame; half a character at the cut is dropped.
func clip(s string) []byte {
	const limit = 4 << 10
	if len(s) > limit {
		s = s[:limit]
	}
	return []byte(strings.ToValidUTF8(s, ""))
}
