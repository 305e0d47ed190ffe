package rootfs

import (
	"io"
	"sync"
)

const (
	aheadChunk  = 256 << 10
	aheadChunks = 4
)

// readAhead reads r in a goroutine of its own, at most a megabyte ahead, so that fetching, decompressing and
// writing go on side by side. Close returns once the goroutine has ended, which it does when the running Read of
// r returns: close what r reads from first.
func readAhead(r io.Reader) io.ReadCloser {
	a := &ahead{full: make(chan chunk, aheadChunks), free: make(chan []byte, aheadChunks), stop: make(chan struct{})}
	for range aheadChunks {
		a.free <- make([]byte, aheadChunk)
	}
	go a.fill(r)
	return a
}

type chunk struct {
	data []byte
	err  error
}

type ahead struct {
	full chan chunk
	free chan []byte
	stop chan struct{}
	once sync.Once
	now  chunk // being read
	rest []byte
}

func (a *ahead) fill(r io.Reader) {
	defer close(a.full)
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.stop:
			return
		}
		n := 0
		var err error
		for n < len(buf) && err == nil {
			var k int
			k, err = r.Read(buf[n:])
			n += k
		}
		select {
		case a.full <- chunk{buf[:n], err}:
		case <-a.stop:
			return
		}
		if err != nil {
			return
		}
	}
}

func (a *ahead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.now.err != nil {
			return 0, a.now.err
		}
		if a.now.data != nil {
			a.free <- a.now.data[:cap(a.now.data)]
		}
		c, ok := <-a.full
		if !ok {
			return 0, io.ErrClosedPipe
		}
		a.now, a.rest = c, c.data
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

func (a *ahead) Close() error {
	a.once.Do(func() { close(a.stop) })
	for range a.full {
	}
	return nil
}
