package term

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// RingSize is how much output a session keeps, in bytes.
	RingSize = 512 << 10
	// Patience is how long Ring.WriteHeld waits for a reader that acknowledges nothing.
	Patience = 10 * time.Second
	// FromStart as a cursor's offset asks for everything that the ring still holds.
	FromStart = ^uint64(0)

	ringHeader  = 4096 // one page, so that the data is page-aligned
	ringMagic   = "LRNSRING"
	ringVersion = 1
	ringMin     = 4 << 10
	ringMax     = 64 << 20
)

// ErrRing is wrapped by errors about a ring file that can't be one. Remove the file and start anew.
var ErrRing = errors.New("not a usable ring file")

// ErrRingEnded: a write after Finish or Close.
var ErrRingEnded = errors.New("ring has ended")

// Ring keeps the last bytes of a session's output and their offsets.
//
// In a file (OpenRing) it survives a kill -9 of its process: the file is mapped, so whatever was stored is in the
// page cache. A write first raises `reserved`, then copies, then raises `total`; after a crash in between, the
// bytes [total, reserved) are not there and the oldest reserved-total ones may be overwritten, so the ring holds
// exactly [reserved-capacity, total). A crash of the machine may lose or tear it: scrollback is not worth an fsync.
//
//	0  magic "LRNSRING"   8  u32 version 1   16  u64 capacity   24  u64 total   32  u64 reserved   4096  data
//
// Numbers are in the machine's own byte order: the file never leaves its machine. One process uses a file at a
// time. A Ring is safe for concurrent use, but has one writer.
type Ring struct {
	mu       sync.Mutex
	mem      []byte // header and data; nil after Close
	mapped   bool
	total    uint64 // offset of the next byte to be written
	reserved uint64 // ≥ total
	ended    bool
	cursors  map[*Cursor]struct{}
	room     chan struct{} // wakes the writer
	patience time.Duration
}

// NewRing makes a ring in memory. Size is rounded up to a whole number of pages.
func NewRing(size int) *Ring {
	mem := make([]byte, ringHeader+roundRing(size))
	initRingHeader(mem)
	return newRing(mem, false)
}

// OpenRing opens the ring file at path, or makes one with that capacity in bytes. A file that is there keeps its
// own capacity. An error that wraps ErrRing means the file is none of ours or torn.
func OpenRing(path string, size int) (*Ring, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		f, err = createRing(path, roundRing(size))
	}
	if err != nil {
		return nil, fmt.Errorf("open ring: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open ring: %w", err)
	}
	if !st.Mode().IsRegular() || st.Size() < ringHeader+ringMin || st.Size() > ringHeader+ringMax {
		return nil, fmt.Errorf("open ring %s: %w: a %v of %d bytes", path, ErrRing, st.Mode().Type(), st.Size())
	}
	var header [ringHeader]byte
	if _, err := f.ReadAt(header[:], 0); err != nil {
		return nil, fmt.Errorf("open ring: %w", err)
	}
	if _, _, err := parseRingHeader(header[:], uint64(st.Size())-ringHeader); err != nil {
		return nil, fmt.Errorf("open ring %s: %w", path, err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map ring %s: %w", path, err)
	}
	return newRing(mem, true), nil
}

// createRing makes the file whole under another name first: a crash leaves no half-made ring.
func createRing(path string, capacity int) (_ *os.File, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".ring-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	// All blocks now: a store into a hole of a full disk would be a SIGBUS.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(ringHeader+capacity)); err != nil {
		if _, err := f.WriteAt(make([]byte, ringHeader+capacity), 0); err != nil {
			return nil, err
		}
	}
	header := make([]byte, ringHeader+capacity)
	initRingHeader(header)
	if _, err := f.WriteAt(header[:ringHeader], 0); err != nil {
		return nil, err
	}
	return f, os.Rename(f.Name(), path)
}

func roundRing(size int) int {
	size = min(max(size, ringMin), ringMax)
	return (size + 4095) &^ 4095
}

func newRing(mem []byte, mapped bool) *Ring {
	return &Ring{mem: mem, mapped: mapped, total: *field(mem, 24), reserved: *field(mem, 32),
		cursors: map[*Cursor]struct{}{}, room: make(chan struct{}, 1), patience: Patience}
}

func initRingHeader(mem []byte) {
	copy(mem, ringMagic)
	*(*uint32)(unsafe.Pointer(&mem[8])) = ringVersion
	*field(mem, 16) = uint64(len(mem) - ringHeader)
}

// parseRingHeader checks a header against the room for data behind it.
func parseRingHeader(h []byte, room uint64) (total, reserved uint64, err error) {
	if len(h) < ringHeader || string(h[:8]) != ringMagic {
		return 0, 0, fmt.Errorf("%w: no magic", ErrRing)
	}
	if v := *(*uint32)(unsafe.Pointer(&h[8])); v != ringVersion {
		return 0, 0, fmt.Errorf("%w: version %d, known is %d", ErrRing, v, ringVersion)
	}
	capacity, total, reserved := *field(h, 16), *field(h, 24), *field(h, 32)
	if capacity != room || capacity < ringMin || capacity > ringMax || capacity%4096 != 0 {
		return 0, 0, fmt.Errorf("%w: capacity %d with room for %d", ErrRing, capacity, room)
	}
	if total > reserved || reserved-total > capacity || reserved > 1<<62 {
		return 0, 0, fmt.Errorf("%w: %d bytes written, %d reserved", ErrRing, total, reserved)
	}
	return total, reserved, nil
}

// field is a number in the header. Its stores must not be reordered with those of the data: use set.
func field(mem []byte, at int) *uint64 { return (*uint64)(unsafe.Pointer(&mem[at])) }

func set(mem []byte, at int, v uint64) { atomic.StoreUint64(field(mem, at), v) }

func (r *Ring) capacity() uint64 { return uint64(len(r.mem) - ringHeader) }

func (r *Ring) start() uint64 {
	if r.mem == nil || r.reserved <= r.capacity() {
		return 0
	}
	return min(r.reserved-r.capacity(), r.total)
}

// Start is the offset of the oldest byte that the ring holds.
func (r *Ring) Start() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.start()
}

// End is the offset of the next byte to be written.
func (r *Ring) End() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.total
}

// Write stores p over the oldest bytes and never waits: readers that are too slow lose output.
func (r *Ring) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.write(p)
}

func (r *Ring) write(p []byte) (int, error) {
	if r.ended || r.mem == nil {
		return 0, ErrRingEnded
	}
	data := r.mem[ringHeader:]
	for rest := p; len(rest) > 0; {
		piece := rest[:min(len(rest), len(data)/2)]
		r.reserved = max(r.reserved, r.total+uint64(len(piece)))
		set(r.mem, 32, r.reserved)
		at := int(r.total % uint64(len(data)))
		n := copy(data[at:], piece)
		copy(data, piece[n:])
		r.total += uint64(len(piece))
		set(r.mem, 24, r.total)
		rest = rest[len(piece):]
	}
	r.wakeCursors()
	return len(p), nil
}

// WriteHeld stores p, but waits first while that would overwrite what an open cursor has not acknowledged: so a
// slow client slows the program down instead of losing output. A cursor that acknowledges nothing for Patience
// is no longer waited for until its next Ack. With no cursor it never waits.
func (r *Ring) WriteHeld(ctx context.Context, p []byte) error {
	var timer *time.Timer
	for len(p) > 0 {
		r.mu.Lock()
		n := min(len(p), r.free())
		if n > 0 || r.ended || r.mem == nil {
			_, err := r.write(p[:n])
			r.mu.Unlock()
			if err != nil {
				return err
			}
			p = p[n:]
			continue
		}
		mark := r.heldAt()
		r.mu.Unlock()

		if timer == nil {
			timer = time.NewTimer(r.patience)
			defer timer.Stop()
		} else {
			timer.Reset(r.patience)
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-r.room:
				r.mu.Lock()
				waiting = r.free() == 0 && r.heldAt() == mark && !r.ended && r.mem != nil
				r.mu.Unlock()
			case <-timer.C:
				r.mu.Lock()
				for c := range r.cursors {
					if c.acked <= mark {
						c.holds = false
					}
				}
				r.mu.Unlock()
				waiting = false
			}
		}
	}
	return nil
}

// heldAt is the lowest acknowledged offset of the cursors that hold the writer back.
func (r *Ring) heldAt() uint64 {
	lowest := r.total
	for c := range r.cursors {
		if c.holds {
			lowest = min(lowest, c.acked)
		}
	}
	return lowest
}

// free is how many bytes may be written before a held one is overwritten.
func (r *Ring) free() int {
	if r.mem == nil {
		return 0
	}
	if used := r.total - r.heldAt(); used < r.capacity() {
		return int(r.capacity() - used)
	}
	return 0
}

func (r *Ring) wakeCursors() {
	for c := range r.cursors {
		wake(c.wake)
	}
}

func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// ReadAt copies held bytes from offset off into p without waiting. When off is no longer held it reads from the
// oldest byte instead: at says where the n bytes begin. n is 0 at or beyond the end.
func (r *Ring) ReadAt(p []byte, off uint64) (n int, at uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.readAt(p, off)
}

func (r *Ring) readAt(p []byte, off uint64) (n int, at uint64) {
	off = max(off, r.start())
	if r.mem == nil || off >= r.total {
		return 0, off
	}
	p = p[:min(uint64(len(p)), r.total-off)]
	data := r.mem[ringHeader:]
	n = copy(p, data[off%uint64(len(data)):])
	n += copy(p[n:], data)
	return n, off
}

// Finish says that no more output will come: cursors get io.EOF when they have read the rest.
func (r *Ring) Finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	r.wakeCursors()
	wake(r.room)
}

// Close finishes the ring and unmaps its file, which stays. Cursors get io.EOF at once.
func (r *Ring) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	mem := r.mem
	r.ended, r.mem = true, nil
	r.wakeCursors()
	wake(r.room)
	if mem == nil || !r.mapped {
		return nil
	}
	return unix.Munmap(mem)
}

// ErrAck: a client acknowledged what it was never sent.
var ErrAck = errors.New("acknowledged beyond what was sent")

// Cursor is one attached client's place in a ring, with the window that its acks open. Read is for one goroutine,
// Ack and Close for any.
type Cursor struct {
	r     *Ring
	pos   uint64 // next byte to send
	acked uint64
	holds bool // the writer waits for us
	lost  bool // output before pos was lost; not yet told
	wake  chan struct{}
}

// Cursor makes a reader from offset from, or from the oldest byte when from is FromStart, no longer held, or
// beyond the end (the client speaks of another ring then).
func (r *Ring) Cursor(from uint64) *Cursor {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &Cursor{r: r, pos: from, holds: true, wake: make(chan struct{}, 1)}
	if start := r.start(); from < start || from > r.total {
		c.pos, c.lost = start, start > 0 || from != FromStart
	}
	c.acked = c.pos
	r.cursors[c] = struct{}{}
	return c
}

// Start is where the cursor stands, and whether output before it was lost.
func (c *Cursor) Start() (offset uint64, lost bool) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	return c.pos, c.lost
}

// Read waits for output that the window has room for and copies it to p: n bytes from offset at. lost says that
// output between the last Read's end and at is gone. The error is io.EOF after Finish, or the context's.
func (c *Cursor) Read(ctx context.Context, p []byte) (n int, at uint64, lost bool, err error) {
	for {
		c.r.mu.Lock()
		if start := c.r.start(); c.pos < start {
			c.pos, c.acked, c.lost = start, max(c.acked, start), true
		}
		// Lost output never comes: the client starts a new count, and so does the window.
		if limit := c.acked + WindowSize; c.pos < limit {
			n, at = c.r.readAt(p[:min(uint64(len(p)), limit-c.pos)], c.pos)
		}
		if n > 0 {
			c.pos = at + uint64(n)
			lost, c.lost = c.lost, false
			c.r.mu.Unlock()
			return n, at, lost, nil
		}
		done := c.r.mem == nil || c.r.ended && c.pos == c.r.total
		c.r.mu.Unlock()
		if done {
			return 0, c.pos, false, io.EOF
		}
		select {
		case <-ctx.Done():
			return 0, c.pos, false, ctx.Err()
		case <-c.wake:
		}
	}
}

// Ack tells that the client has consumed everything before offset. Old ones are ignored.
func (c *Cursor) Ack(offset uint64) error {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	if offset > c.pos {
		return fmt.Errorf("%w: offset %d of %d", ErrAck, offset, c.pos)
	}
	c.acked = max(c.acked, offset)
	c.holds = true
	wake(c.wake)
	wake(c.r.room)
	return nil
}

// Close lets the writer go on without this reader.
func (c *Cursor) Close() {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	delete(c.r.cursors, c)
	wake(c.r.room)
}
