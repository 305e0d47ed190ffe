package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"github.com/learnos/learnos/rootfs/internal/layertar"
)

// defaultSuite is what "debootstrap" alone builds: Debian's release that this was made for.
const defaultSuite = "bookworm"

var suiteName = regexp.MustCompile(`^[a-z][a-z0-9-]{1,30}$`)

// Build makes an image out of what the host has: "busybox" from its static busybox, in well under a second, and
// "debootstrap[:SUITE]", a small Debian, from a Debian mirror in about a minute. The images are named "busybox"
// and "debootstrap:SUITE". One that the catalogue has already is returned as it is, unless o.Force is set.
func (s *Store) Build(ctx context.Context, kind string, o BuildOptions) (*Image, error) {
	img, err := s.build(ctx, kind, o)
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", kind, err)
	}
	return img, nil
}

func (s *Store) build(ctx context.Context, kind string, o BuildOptions) (*Image, error) {
	src, err := parseSource(kind)
	if err != nil {
		return nil, err
	}
	if src.kind != kindBuild {
		return nil, errors.New("nothing is known to build under this name; there are busybox and debootstrap[:SUITE]")
	}
	if !o.Force {
		if img, err := s.usable(ctx, src.name()); err == nil {
			return img, nil
		} else if !errors.Is(err, ErrNotFound) {
			return nil, err
		}
	}
	key := fmt.Sprintf("build %s mirror=%s force=%v", src.name(), o.Mirror, o.Force)
	return s.obtain(ctx, key, src.name(), src.name(), o.Progress, func(ctx context.Context, report func(Progress)) (*content, error) {
		if !o.Force { // another process may have built it meanwhile
			if c, err := s.reuse(ctx, src.name()); c != nil || err != nil {
				return c, err
			}
		}
		report(Progress{Phase: PhaseBuilding, Total: 100, Message: "building " + src.name()})
		var c *content
		var err error
		if src.path == "busybox" {
			c, err = s.buildBusybox(ctx)
		} else {
			c, err = s.buildDebian(ctx, src.tag, o.Mirror, report)
		}
		if err != nil {
			return nil, err
		}
		report(Progress{Phase: PhaseDone, Done: 100, Total: 100, Message: src.name() + " is built"})
		return c, nil
	})
}

// obtain shares the making of some content under key between all who ask for it at once, in this process and
// others, and records it as an image.
func (s *Store) obtain(ctx context.Context, key, name, from string, progress func(Progress),
	fetch func(ctx context.Context, report func(Progress)) (*content, error)) (*Image, error) {
	var img *Image
	err := s.flights.share(ctx, key, progress, func(ctx context.Context, report func(Progress)) (*content, error) {
		l, err := s.lock(ctx, "obtain/"+key, true)
		if err != nil {
			return nil, err
		}
		c, err := fetch(ctx, report)
		if err != nil {
			l.unlock()
			return nil, err
		}
		// Held until the image is recorded, so that the next one finds it.
		c.holds = append(c.holds, l)
		return c, nil
	}, func(c *content) error {
		img = &Image{Name: name, Source: from, Digest: c.digest, Layers: c.layers, Size: c.size, Config: c.config}
		return s.record(ctx, img)
	})
	if err != nil {
		return nil, err
	}
	return img, nil
}

// usable returns a catalogue entry whose layers are all there; an entry that a crash has robbed of one counts
// as not found.
func (s *Store) usable(ctx context.Context, name string) (*Image, error) {
	img, err := s.Image(ctx, name)
	if err != nil {
		return nil, err
	}
	for _, d := range img.Layers {
		info, err := s.haveLayer(d)
		if err != nil {
			return nil, err
		}
		if info == nil {
			return nil, fmt.Errorf("layer %s of image %q: %w", d, name, ErrNotFound)
		}
	}
	return img, nil
}

// reuse returns a usable image as content with its layers held, or nil.
func (s *Store) reuse(ctx context.Context, name string) (*content, error) {
	img, err := s.usable(ctx, name)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return s.holdImage(ctx, img)
}

// holdImage returns a catalogue entry as content with its layers held, or nil if one is missing.
func (s *Store) holdImage(ctx context.Context, img *Image) (*content, error) {
	c := &content{digest: img.Digest, layers: img.Layers, size: img.Size, config: img.Config}
	missing := errors.New("missing")
	for _, d := range img.Layers {
		_, l, err := s.holdLayer(ctx, d, func(context.Context, string) (*layerInfo, error) { return nil, missing })
		if err != nil {
			c.release()
			if errors.Is(err, missing) {
				return nil, nil
			}
			return nil, err
		}
		c.holds = append(c.holds, l)
	}
	return c, nil
}

func (s *Store) buildBusybox(ctx context.Context) (*content, error) {
	program, err := findBusybox(busyboxPaths)
	if err != nil {
		return nil, err
	}
	r, err := busyboxTar(ctx, program)
	if err != nil {
		return nil, err
	}
	return s.single(ctx, r, busyboxConfig())
}

// single turns one uncompressed layer into an image's content.
func (s *Store) single(ctx context.Context, r io.Reader, config ImageConfig) (*content, error) {
	info, l, err := s.addLayer(ctx, r, layertar.Options{})
	if err != nil {
		return nil, err
	}
	return &content{
		digest: info.Digest, layers: []string{info.Digest}, size: info.Bytes, config: config, holds: []*lock{l},
	}, nil
}

// packed turns a directory into an image's content, by way of the same tar that a registry would have sent.
func (s *Store) packed(ctx context.Context, dir string, config ImageConfig) (*content, error) {
	root, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if info, err := root.Stat(); err != nil || !info.IsDir() {
		return nil, errors.Join(err, fmt.Errorf("%s is not a directory", dir))
	}
	// A store inside the tree would take itself in, and again each time.
	if rel, err := filepath.Rel(dir, s.root); err == nil && filepath.IsLocal(rel) {
		return nil, fmt.Errorf("%s holds the image store itself (%s)", dir, s.root)
	}
	pr, pw := io.Pipe()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(layertar.Pack(ctx, root, pw))
	}()
	buffered := readAhead(pr)
	c, err := s.single(ctx, buffered, config)
	cancel()
	pr.CloseWithError(context.Canceled)
	buffered.Close()
	<-done
	return c, err
}
