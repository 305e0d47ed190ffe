package term

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// FrameReader yields frames; Frame.Data is valid until the next call.
type FrameReader interface{ ReadFrame() (Frame, error) }

// FrameWriter sends frames; it keeps nothing of Frame.Data and may be called from several goroutines.
type FrameWriter interface{ WriteFrame(Frame) error }

// Reader reads length-prefixed frames from a byte stream, with one buffer for all of them. It is for one goroutine.
type Reader struct {
	r   io.Reader
	buf []byte // read but not yet returned: buf[pos:end]
	pos int
	end int
}

// NewReader reads frames from r. It reads ahead: nothing else may read from r afterwards.
func NewReader(r io.Reader) *Reader { return &Reader{r: r, buf: make([]byte, 4+MaxFrame)} }

// ReadRaw returns the next frame's bytes without its length, valid until the next call. The error is io.EOF only
// between frames.
func (r *Reader) ReadRaw() ([]byte, error) {
	if err := r.fill(4); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(r.buf[r.pos:])
	if n == 0 || n > MaxFrame {
		return nil, fmt.Errorf("%w: length %d, allowed are 1 to %d", ErrFrame, n, MaxFrame)
	}
	if err := r.fill(4 + int(n)); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	b := r.buf[r.pos+4 : r.pos+4+int(n)]
	r.pos += 4 + int(n)
	return b, nil
}

// ReadFrame reads and parses the next frame.
func (r *Reader) ReadFrame() (Frame, error) {
	b, err := r.ReadRaw()
	if err != nil {
		return Frame{}, err
	}
	return Parse(b)
}

// fill makes sure that n bytes are buffered.
func (r *Reader) fill(n int) error {
	if r.end-r.pos >= n {
		return nil
	}
	if r.pos+n > len(r.buf) || r.pos == r.end {
		copy(r.buf, r.buf[r.pos:r.end])
		r.pos, r.end = 0, r.end-r.pos
	}
	for r.end-r.pos < n {
		m, err := r.r.Read(r.buf[r.end:])
		r.end += m
		if err != nil && r.end-r.pos < n {
			if err == io.EOF && r.end > r.pos {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// Writer writes length-prefixed frames to a byte stream, each with one Write, from any number of goroutines.
type Writer struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

// NewWriter writes frames to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// WriteFrame encodes and writes a frame.
func (w *Writer) WriteFrame(f Frame) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.write(f.Append(append(w.buf[:0], 0, 0, 0, 0)))
}

// WriteRaw writes a frame that is encoded already, without its length.
func (w *Writer) WriteRaw(frame []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.write(append(append(w.buf[:0], 0, 0, 0, 0), frame...))
}

// write sends b, a frame behind four bytes of room for its length.
func (w *Writer) write(b []byte) error {
	w.buf = b[:0]
	n := len(b) - 4
	if n < 1 || n > MaxFrame {
		return fmt.Errorf("%w: length %d, allowed are 1 to %d", ErrFrame, n, MaxFrame)
	}
	binary.BigEndian.PutUint32(b, uint32(n))
	_, err := w.w.Write(b)
	return err
}
