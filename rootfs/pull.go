package rootfs

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sort"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/learnos/learnos/rootfs/internal/layertar"
	"github.com/learnos/learnos/rootfs/internal/rmtree"
)

// An origin is where the parts of one image come from. Its methods are called in this order, open from several
// goroutines.
type origin interface {
	// head returns the digest that names the image's content.
	head(ctx context.Context) (string, error)
	// describe returns the image's configuration and layers, lowest first.
	describe(ctx context.Context) (*v1.ConfigFile, []layerRef, error)
	// open starts the stream of a layer's blob and reports how many bytes have come.
	open(ctx context.Context, ref layerRef, progress func(done int64)) (blob, error)
	close()
}

// A blob is a stream that ends with io.EOF only if it was exactly what its digest and size promise, and with an
// error wrapping errBlob if it was something else.
type blob interface {
	io.ReadCloser
	// resumed says whether a part came from an earlier try.
	resumed() bool
	// discard forgets what an earlier or this try has put aside.
	discard()
}

var (
	// errBlob marks a blob that is not what was promised.
	errBlob = errors.New("bad blob")
	// errNetwork marks what trying again later may cure.
	errNetwork = errors.New("network")
)

// Pull fetches an image and puts it into the catalogue:
//
//	REGISTRY/NAME[:TAG|@DIGEST]   from a registry (OCI distribution-spec), with the credentials of docker login
//	oci:DIR[:TAG]                 from an OCI image layout
//	docker-archive:FILE           from what docker save or podman save wrote
//	dir:PATH                      from a plain root file system
//
// It always looks at the source anew, but fetches only layers the store has not. Everything is verified by
// digest. An error leaves nothing behind except, after a broken connection, the beginnings of blobs for the next
// try to continue. Any number of askers for the same thing share one pull.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (*Image, error) {
	img, err := s.pull(ctx, ref, o)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", ref, err)
	}
	return img, nil
}

func (s *Store) pull(ctx context.Context, ref string, o PullOptions) (*Image, error) {
	src, err := parseSource(ref)
	if err != nil {
		return nil, err
	}
	if src.kind == kindBuild {
		return nil, fmt.Errorf("%s is built on this machine, not pulled; a registry's image of that name is docker.io/library/%s", src.name(), src.path)
	}
	name := o.Name
	if name == "" {
		name = src.name()
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	key := fmt.Sprintf("pull %s insecure=%v absolute=%v max=%d,%d", src.name(), o.Insecure, o.AbsoluteNames, o.MaxBytes, o.MaxEntries)
	return s.obtain(ctx, key, name, ref, o.Progress, func(ctx context.Context, report func(Progress)) (*content, error) {
		return s.fetch(ctx, src, o, report)
	})
}

// Ensure returns the image called nameOrSource, making it if need be: from the catalogue, else by Build, else by
// Pull. Local sources (oci:, docker-archive:, dir:) may have changed, so they are read again, unless o.Name is
// given and the catalogue has an image of that name and source.
func (s *Store) Ensure(ctx context.Context, nameOrSource string, o PullOptions) (*Image, error) {
	if o.Name != "" {
		if img, err := s.usable(ctx, o.Name); err == nil && img.Source == nameOrSource {
			return img, nil
		} else if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
	}
	src, srcErr := parseSource(nameOrSource)
	local := srcErr == nil && (src.kind == kindLayout || src.kind == kindArchive || src.kind == kindDir)
	if !local {
		img, err := s.usable(ctx, nameOrSource)
		if err == nil || !errors.Is(err, ErrNotFound) {
			return img, err
		}
	}
	if srcErr != nil {
		return nil, srcErr
	}
	if src.kind == kindBuild {
		return s.Build(ctx, nameOrSource, BuildOptions{Progress: o.Progress})
	}
	return s.Pull(ctx, nameOrSource, o)
}

// fetch brings the content of a source into the store.
func (s *Store) fetch(ctx context.Context, src source, o PullOptions, report func(Progress)) (*content, error) {
	report(Progress{Phase: PhaseResolving, Message: "looking at " + src.name()})
	var org origin
	var err error
	switch src.kind {
	case kindDir:
		report(Progress{Phase: PhaseUnpacking, Message: "copying " + src.path})
		c, err := s.packed(ctx, src.path, ImageConfig{})
		if err == nil {
			report(Progress{Phase: PhaseDone, Message: src.name()})
		}
		return c, err
	case kindLayout:
		org, err = openLayout(src.path, src.tag)
	case kindArchive:
		org, err = s.openArchive(ctx, src.path)
	default:
		org, err = s.openRegistry(ctx, src.ref, o.Insecure)
	}
	if err != nil {
		return nil, err
	}
	defer org.close()
	digest, err := org.head(ctx)
	if err != nil {
		return nil, err
	}
	if c, err := s.known(ctx, digest); c != nil || err != nil {
		report(Progress{Phase: PhaseDone, Message: "up to date: " + digest})
		return c, err
	}
	config, refs, err := org.describe(ctx)
	if err != nil {
		return nil, err
	}
	c, err := s.layers(ctx, org, refs, o, report)
	if err != nil {
		return nil, err
	}
	c.digest, c.config = digest, imageConfig(config)
	report(Progress{Phase: PhaseDone, Message: digest})
	return c, nil
}

// known returns the content of an image with the given digest that the catalogue has under some name, or nil.
func (s *Store) known(ctx context.Context, digest string) (*content, error) {
	images, err := s.Images(ctx)
	if err != nil {
		return nil, err
	}
	for _, img := range images {
		if img.Digest != digest {
			continue
		}
		if c, err := s.holdImage(ctx, img); c != nil || err != nil {
			return c, err
		}
	}
	return nil, nil
}

// layers brings an image's layers into the store, several side by side, the largest first.
func (s *Store) layers(ctx context.Context, org origin, refs []layerRef, o PullOptions, report func(Progress)) (*content, error) {
	c := &content{}
	infos := make([]*layerInfo, len(refs))
	locks := make([]*lock, len(refs))
	order := make([]int, len(refs))
	for i := range order {
		order[i] = i
		report(Progress{Layer: refs[i].String(), Phase: PhaseDownloading, Total: max(0, refs[i].size)})
	}
	sort.SliceStable(order, func(a, b int) bool { return refs[order[a]].size > refs[order[b]].size })
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cap(s.slots))
	for _, i := range order {
		ref := refs[i]
		g.Go(func() (err error) {
			infos[i], locks[i], err = s.holdLayer(gctx, ref.diffID, func(ctx context.Context, dir string) (*layerInfo, error) {
				return s.unpackBlob(ctx, dir, org, ref, layertar.Options{MaxBytes: o.MaxBytes, MaxEntries: o.MaxEntries, AbsoluteNames: o.AbsoluteNames}, report)
			})
			if err != nil {
				return fmt.Errorf("layer %s: %w", ref, err)
			}
			report(Progress{Layer: ref.String(), Phase: PhaseDone, Done: max(0, ref.size), Total: max(0, ref.size)})
			return nil
		})
	}
	err := g.Wait()
	for _, l := range locks {
		if l != nil {
			c.holds = append(c.holds, l)
		}
	}
	if err == nil {
		err = s.stack(ctx, c, infos)
	}
	if err != nil {
		c.release()
		return nil, err
	}
	return c, nil
}

// unpackBlob streams one layer from its origin through decompression into dir.
func (s *Store) unpackBlob(ctx context.Context, dir string, org origin, ref layerRef, o layertar.Options, report func(Progress)) (*layerInfo, error) {
	for {
		info, again, err := s.tryBlob(ctx, dir, org, ref, o, report)
		if err == nil || !again {
			return info, err
		}
		// What an earlier try had put aside was spoilt. Without it the second round is the last.
		if err := rmtree.Remove(filepath.Join(dir, "fs")); err != nil {
			return nil, err
		}
	}
}

func (s *Store) tryBlob(pull context.Context, dir string, org origin, ref layerRef, o layertar.Options, report func(Progress)) (info *layerInfo, again bool, err error) {
	ctx, cancel := context.WithCancel(pull)
	defer cancel()
	var shown time.Time
	b, err := org.open(ctx, ref, func(done int64) {
		if now := time.Now(); done == ref.size || now.Sub(shown) > 100*time.Millisecond {
			shown = now
			p := Progress{Layer: ref.String(), Phase: PhaseDownloading, Done: done, Total: max(0, ref.size)}
			if done == ref.size {
				p.Phase = PhaseUnpacking
			}
			report(p)
		}
	})
	if err != nil {
		return nil, false, err
	}
	defer b.Close()
	raw := readAhead(b)
	defer func() {
		cancel()
		raw.Close()
	}()
	plain, end, err := decompress(raw)
	if err == nil {
		ahead := readAhead(plain)
		info, err = s.unpack(ctx, dir, ahead, o)
		ahead.Close()
		end()
	}
	if cerr := pull.Err(); err != nil && cerr != nil {
		// Worth continuing later, unless another layer has spoilt the image for good.
		if cause := context.Cause(pull); !errors.Is(cause, errNetwork) && !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
			b.discard()
		}
		return nil, false, cerr
	}
	// The rest, for the digest's sake. A layer that cannot be read may not be the one that was asked for, and
	// that is the better answer then; one that may not be written is refused whatever its digest.
	if errors.Is(err, errNetwork) {
		return nil, false, err
	}
	if !errors.Is(err, layertar.ErrLayer) || errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		if _, rerr := io.Copy(io.Discard, raw); rerr != nil && (err == nil || errors.Is(rerr, errBlob) || errors.Is(rerr, errNetwork)) {
			err = rerr
		}
	}
	if err == nil && info.Digest != ref.diffID {
		err = fmt.Errorf("%w: its uncompressed digest is %s, not %s as the image's configuration says", errBlob, info.Digest, ref.diffID)
	}
	if err != nil {
		if errors.Is(err, errNetwork) || pull.Err() != nil {
			return nil, false, err
		}
		b.discard()
		return nil, b.resumed(), err
	}
	b.discard()
	return info, false, nil
}

// decompress tells compression by its first bytes, which are harder to get wrong than media types.
func decompress(r io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(6)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, fmt.Errorf("decompress: %w", err)
		}
		return named{z}, func() { z.Close() }, nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(magic) >= 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:4], []byte{0x2a, 0x4d, 0x18}):
		// One goroutine and at most the window that zstd's own tools accept, times the layers at once.
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, nil, fmt.Errorf("decompress: %w", err)
		}
		return named{z}, z.Close, nil
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")), bytes.HasPrefix(magic, []byte("BZh")):
		return nil, nil, fmt.Errorf("%w: compressed with xz or bzip2; image layers are gzip, zstd or plain", layertar.ErrLayer)
	}
	return br, func() {}, nil
}

// named says what failed when decompression does.
type named struct{ io.Reader }

func (n named) Read(p []byte) (int, error) {
	k, err := n.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("decompress: %w", err)
	}
	return k, err
}
