package sshdoor

import (
	"io"
	"sync"
)

// input hands out what a client sends, block by block, to one consumer at a time: the picker, then whoever waits
// for an environment to start, then the session. It reads the channel only as fast as it is asked, so a client that
// sends more than anybody wants is held back by SSH's own flow control.
type input struct {
	blocks chan []byte   // closed at the client's end of input; a block is valid until the next is received
	gone   chan struct{} // closed when nobody will ask again
	once   sync.Once
	rest   []byte // what a consumer gave back
}

func newInput(r io.Reader) *input {
	in := &input{blocks: make(chan []byte), gone: make(chan struct{})}
	go func() {
		defer close(in.blocks)
		var bufs [2][32 << 10]byte // one is being read into while the other is in use
		for i := 0; ; i ^= 1 {
			n, err := r.Read(bufs[i][:])
			if n > 0 {
				select {
				case in.blocks <- bufs[i][:n]:
				case <-in.gone:
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	return in
}

// close lets the reading goroutine go.
func (in *input) close() { in.once.Do(func() { close(in.gone) }) }

// unread puts b in front of what comes next.
func (in *input) unread(b []byte) { in.rest = append(append([]byte(nil), b...), in.rest...) }

// reader returns the input as a Reader that ends, for its user, when stop is closed; what it has not returned by then
// stays for the next consumer.
func (in *input) reader(stop <-chan struct{}) io.Reader { return &inputReader{in, stop} }

type inputReader struct {
	in   *input
	stop <-chan struct{}
}

func (r *inputReader) Read(p []byte) (int, error) {
	select {
	case <-r.stop:
		return 0, io.EOF
	default:
	}
	if len(r.in.rest) == 0 {
		select {
		case b, ok := <-r.in.blocks:
			if !ok {
				return 0, io.EOF
			}
			r.in.rest = append(r.in.rest[:0], b...)
		case <-r.stop:
			return 0, io.EOF
		}
	}
	n := copy(p, r.in.rest)
	r.in.rest = r.in.rest[n:]
	return n, nil
}
