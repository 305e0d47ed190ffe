package rootfs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// verifier checks a stream against its promised size and digest.
type verifier struct {
	ref  layerRef
	sum  hash.Hash
	seen int64
}

func newVerifier(ref layerRef) *verifier { return &verifier{ref: ref, sum: sha256.New()} }

func (v *verifier) add(p []byte) error {
	v.sum.Write(p)
	v.seen += int64(len(p))
	if v.ref.size >= 0 && v.seen > v.ref.size {
		return fmt.Errorf("%w: it is larger than the %d bytes promised", errBlob, v.ref.size)
	}
	return nil
}

// end returns io.EOF if all is well.
func (v *verifier) end() error {
	if v.ref.size >= 0 && v.seen < v.ref.size {
		return fmt.Errorf("%w: it is truncated: %d of %d bytes", errBlob, v.seen, v.ref.size)
	}
	if got := digestOf(v.sum); v.ref.digest != "" && got != v.ref.digest {
		return fmt.Errorf("%w: its digest is %s, not %s", errBlob, got, v.ref.digest)
	}
	return io.EOF
}

// A fileBlob is a blob of a layout or archive.
type fileBlob struct {
	io.ReadCloser
	v        *verifier
	progress func(int64)
}

func (b *fileBlob) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if verr := b.v.add(p[:n]); verr != nil {
		return 0, verr
	}
	b.progress(b.v.seen)
	if err == io.EOF {
		err = b.v.end()
	}
	return n, err
}

func (b *fileBlob) resumed() bool { return false }
func (b *fileBlob) discard()      {}

const (
	// netTries is how often a blob is tried without a byte of progress.
	netTries = 6
	// netStall is how long a connection may be silent before it counts as broken.
	netStall = time.Minute
)

// A netBlob is a blob of a registry. What arrives is also put aside in the store, under the blob's digest and
// its lock, so that this try or a later one continues where the connection broke (HTTP Range, RFC 9110
// section 14).
type netBlob struct {
	ctx      context.Context
	client   *http.Client
	url      string
	v        *verifier
	progress func(int64)

	part *os.File
	lock *lock
	have int64 // bytes in part
	old  int64 // of these, bytes from an earlier try

	whole bool // the registry refused a range

	body   io.ReadCloser
	cancel context.CancelFunc
	stall  *time.Timer
	fails  int
	err    error
}

func (s *Store) openBlob(ctx context.Context, client *http.Client, url string, ref layerRef, progress func(int64)) (blob, error) {
	key := layerKey(ref.digest)
	l, err := s.lock(ctx, "blob/"+key, true)
	if err != nil {
		return nil, err
	}
	b := &netBlob{ctx: ctx, client: client, url: url, v: newVerifier(ref), progress: progress, lock: l}
	b.part, err = os.OpenFile(s.path("partial", key), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		l.unlock()
		return nil, err
	}
	info, err := b.part.Stat()
	if err == nil && info.Size() > ref.size {
		err = b.part.Truncate(0)
	} else if err == nil {
		b.have, b.old = info.Size(), info.Size()
	}
	if err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

func (b *netBlob) resumed() bool { return b.old > 0 }

func (b *netBlob) discard() { os.Remove(b.part.Name()) }

func (b *netBlob) Close() error {
	b.disconnect()
	// A beginning of nothing is worth nothing.
	if info, err := b.part.Stat(); err == nil && info.Size() == 0 {
		b.discard()
	}
	err := b.part.Close()
	b.lock.unlock()
	return err
}

func (b *netBlob) Read(p []byte) (int, error) {
	for b.err == nil {
		if b.v.seen < b.have {
			n, err := b.part.ReadAt(p[:min(int64(len(p)), b.have-b.v.seen)], b.v.seen)
			if n == 0 {
				b.err = fmt.Errorf("read what an earlier try put aside: %w", err)
				break
			}
			b.err = b.v.add(p[:n])
			b.progress(b.v.seen)
			return n, nil
		}
		if b.v.seen == b.v.ref.size {
			b.disconnect()
			b.err = b.v.end()
			break
		}
		if b.body == nil {
			if err := b.connect(); err != nil {
				b.failed(err)
			}
			continue
		}
		// One byte more than promised may come, and is noticed.
		n, err := b.body.Read(p[:min(int64(len(p)), b.v.ref.size-b.v.seen+1)])
		b.stall.Reset(netStall)
		if n > 0 {
			b.fails = 0
			if b.err = b.v.add(p[:n]); b.err != nil {
				break
			}
			if _, werr := b.part.WriteAt(p[:n], b.have); werr != nil {
				b.err = fmt.Errorf("put blob aside: %w", werr)
				break
			}
			b.have += int64(n)
			b.progress(b.v.seen)
		}
		if err != nil && b.v.seen < b.v.ref.size {
			b.disconnect()
			b.failed(fmt.Errorf("%w: connection broke after %d of %d bytes: %w", errNetwork, b.v.seen, b.v.ref.size, err))
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, b.err
}

// failed decides whether an error is the end, and waits a little if not.
func (b *netBlob) failed(err error) {
	b.fails++
	if cerr := b.ctx.Err(); cerr != nil {
		b.err = cerr
		return
	}
	if !errors.Is(err, errNetwork) || b.fails >= netTries {
		b.err = err
		return
	}
	pause := 100 * time.Millisecond << (b.fails - 1)
	var after retryAfter
	if errors.As(err, &after) {
		pause = max(pause, after.pause)
	}
	if err := sleep(b.ctx, pause+rand.N(pause/4+1)); err != nil {
		b.err = err
	}
}

// retryAfter carries a server's wish (RFC 9110, 10.2.3).
type retryAfter struct {
	pause  time.Duration
	status string
}

func (r retryAfter) Error() string { return r.status }

func (b *netBlob) disconnect() {
	if b.body != nil {
		b.stall.Stop()
		b.cancel()
		b.body.Close()
		b.body = nil
	}
}

func (b *netBlob) connect() error {
	ctx, cancel := context.WithCancel(b.ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url, nil)
	if err != nil {
		cancel()
		return err
	}
	if b.have > 0 && !b.whole {
		// With an end, for there are registries that know no other ranges.
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.have, b.v.ref.size-1))
	}
	stall := time.AfterFunc(netStall, cancel)
	resp, err := b.client.Do(req)
	if err != nil {
		stall.Stop()
		cancel()
		return netError(err)
	}
	if err := b.accept(resp); err != nil {
		resp.Body.Close()
		stall.Stop()
		cancel()
		return err
	}
	b.body, b.cancel, b.stall = resp.Body, cancel, stall
	return nil
}

// accept checks that a response continues the blob where it has to.
func (b *netBlob) accept(resp *http.Response) error {
	size := b.v.ref.size
	switch resp.StatusCode {
	case http.StatusOK:
		if resp.ContentLength >= 0 && resp.ContentLength != size {
			return fmt.Errorf("%w: the registry has %d bytes of it, the image's manifest says %d", errBlob, resp.ContentLength, size)
		}
		// The server knows no ranges: skip what is here already.
		if _, err := io.CopyN(io.Discard, resp.Body, b.have); err != nil {
			return fmt.Errorf("%w: %w", errNetwork, err)
		}
		return nil
	case http.StatusPartialContent:
		start, total, ok := parseContentRange(resp.Header.Get("Content-Range"))
		if !ok || start != b.have {
			return fmt.Errorf("%w: asked for bytes from %d on, the registry sent %q", errBlob, b.have, resp.Header.Get("Content-Range"))
		}
		if total >= 0 && total != size {
			return fmt.Errorf("%w: the registry has %d bytes of it, the image's manifest says %d", errBlob, total, size)
		}
		return nil
	case http.StatusRequestedRangeNotSatisfiable:
		if b.whole {
			return fmt.Errorf("the registry answered: %s", resp.Status)
		}
		// It has less than promised, or does not like ranges: a whole answer tells.
		b.whole = true
		return fmt.Errorf("%w: the registry answered: %s", errNetwork, resp.Status)
	case http.StatusRequestTimeout, http.StatusTooManyRequests,
		http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		return fmt.Errorf("%w: the registry answered: %w", errNetwork,
			retryAfter{time.Duration(min(max(seconds, 0), 30)) * time.Second, resp.Status})
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("the registry answered: %s: log in with docker login, or check the name", resp.Status)
	}
	return fmt.Errorf("the registry answered: %s", resp.Status)
}

// parseContentRange reads "bytes START-END/TOTAL"; total is -1 for "*".
func parseContentRange(s string) (start, total int64, ok bool) {
	rest, ok := strings.CutPrefix(s, "bytes ")
	if !ok {
		return 0, 0, false
	}
	span, size, ok := strings.Cut(rest, "/")
	if !ok {
		return 0, 0, false
	}
	first, _, ok := strings.Cut(span, "-")
	if !ok {
		return 0, 0, false
	}
	start, err := strconv.ParseInt(first, 10, 64)
	if err != nil || start < 0 {
		return 0, 0, false
	}
	if size == "*" {
		return start, -1, true
	}
	total, err = strconv.ParseInt(size, 10, 64)
	return start, total, err == nil && total >= 0
}
