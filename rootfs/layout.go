package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// files are the named files of a layout: a directory's or an archive's.
type files interface {
	open(name string) (io.ReadCloser, int64, error)
	close()
}

// dirFiles opens files of a directory without ever leaving it.
type dirFiles struct{ root *os.Root }

func (d dirFiles) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", name)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

func (d dirFiles) close() { d.root.Close() }

// tarFiles opens files of a tar archive where they lie.
type tarFiles struct {
	f     *os.File
	temp  *temp // holds f if the archive was compressed
	files map[string]section
	links map[string]string
}

type section struct{ off, size int64 }

// maxArchiveEntries bounds the directory of an archive kept in memory: a save holds a few entries per layer.
const maxArchiveEntries = 100_000

func indexTar(ctx context.Context, f *os.File) (*tarFiles, error) {
	t := &tarFiles{f: f, files: map[string]section{}, links: map[string]string{}}
	tr := tar.NewReader(f) // reads headers as they come and seeks over contents
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := tr.Next()
		if err == io.EOF {
			return t, nil
		}
		if err != nil {
			return nil, fmt.Errorf("the archive is damaged or truncated: %w", err)
		}
		if n > maxArchiveEntries {
			return nil, fmt.Errorf("the archive has more than %d entries: this is no saved image", maxArchiveEntries)
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "/"))
		switch h.Typeflag {
		case tar.TypeReg:
			off, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			t.files[name] = section{off, h.Size}
		case tar.TypeSymlink:
			t.links[name] = path.Join(path.Dir(name), h.Linkname)
		case tar.TypeLink:
			t.links[name] = path.Clean(h.Linkname)
		}
	}
}

func (t *tarFiles) open(name string) (io.ReadCloser, int64, error) {
	name = path.Clean(name)
	for range 8 {
		if s, ok := t.files[name]; ok {
			return io.NopCloser(io.NewSectionReader(t.f, s.off, s.size)), s.size, nil
		}
		target, ok := t.links[name]
		if !ok {
			break
		}
		name = target
	}
	return nil, 0, fmt.Errorf("the archive has no file %q: %w", name, os.ErrNotExist)
}

func (t *tarFiles) close() {
	t.f.Close()
	if t.temp != nil {
		t.temp.remove()
	}
}

// readFile reads a small file and verifies it against size (-1: unknown) and digest ("": unknown).
func readFile(fs files, name string, ref layerRef, limit int64) ([]byte, error) {
	r, size, err := fs.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > limit {
		return nil, fmt.Errorf("%s has %d bytes; %d are the limit", name, size, limit)
	}
	var buf bytes.Buffer
	if _, err := io.Copy(&buf, &fileBlob{io.NopCloser(io.LimitReader(r, limit)), newVerifier(ref), func(int64) {}}); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return buf.Bytes(), nil
}

func blobPath(digest v1.Hash) string { return path.Join("blobs", digest.Algorithm, digest.Hex) }

func descriptorRef(d v1.Descriptor) layerRef {
	return layerRef{digest: d.Digest.String(), size: d.Size}
}

// A layout is an image in an OCI image layout (image-spec image-layout.md).
type layout struct {
	files    files
	tag      string
	manifest *v1.Manifest
}

func openLayout(dir, tag string) (origin, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open OCI layout: %w", err)
	}
	return &layout{files: dirFiles{root}, tag: tag}, nil
}

func (l *layout) close() { l.files.close() }

func (l *layout) head(ctx context.Context) (string, error) {
	raw, err := readFile(l.files, "index.json", layerRef{size: -1}, maxManifest)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("this is no OCI image layout: %w", err)
	}
	if err != nil {
		return "", err
	}
	for depth := range maxNesting + 1 {
		idx, err := parseIndex(raw)
		if err != nil {
			return "", err
		}
		var choice v1.Descriptor
		if depth == 0 {
			choice, err = pickTag(idx, l.tag)
		} else {
			choice, err = pickPlatform(idx)
		}
		if err != nil {
			return "", err
		}
		if raw, err = readFile(l.files, blobPath(choice.Digest), descriptorRef(choice), maxManifest); err != nil {
			return "", fmt.Errorf("manifest: %w", err)
		}
		if !isIndex(choice.MediaType, raw) {
			if l.manifest, err = parseManifest(raw); err != nil {
				return "", err
			}
			return choice.Digest.String(), nil
		}
	}
	return "", fmt.Errorf("indexes are nested more than %d deep", maxNesting)
}

func (l *layout) describe(ctx context.Context) (*v1.ConfigFile, []layerRef, error) {
	d := l.manifest.Config
	raw, err := readFile(l.files, blobPath(d.Digest), descriptorRef(d), maxConfig)
	if err != nil {
		return nil, nil, fmt.Errorf("image configuration: %w", err)
	}
	config, err := parseConfig(raw, len(l.manifest.Layers))
	if err != nil {
		return nil, nil, err
	}
	return config, layerRefs(l.manifest, config), nil
}

func (l *layout) open(ctx context.Context, ref layerRef, progress func(int64)) (blob, error) {
	return openFileBlob(l.files, blobPath(v1.Hash{Algorithm: "sha256", Hex: strings.TrimPrefix(ref.digest, "sha256:")}), ref, progress)
}

func openFileBlob(fs files, name string, ref layerRef, progress func(int64)) (blob, error) {
	r, size, err := fs.open(name)
	if err != nil {
		return nil, err
	}
	if ref.size >= 0 && size != ref.size {
		r.Close()
		what := "truncated"
		if size > ref.size {
			what = "too large"
		}
		return nil, fmt.Errorf("%w: it is %s: %d bytes instead of %d", errBlob, what, size, ref.size)
	}
	return &fileBlob{r, newVerifier(ref), progress}, nil
}

// An archive is an image as docker save wrote it.
type archive struct {
	files  *tarFiles
	image  *dockerArchive
	config []byte
}

// openArchive opens an archive of docker save, or an OCI layout in a tar; gzip or zstd around it are unpacked
// first.
func (s *Store) openArchive(ctx context.Context, file string) (origin, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	t, err := s.plainTar(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	if t != nil {
		f.Close()
		if f, err = os.Open(filepath.Join(t.path, "x")); err != nil {
			t.remove()
			return nil, err
		}
	}
	tf, err := indexTar(ctx, f)
	if err != nil {
		f.Close()
		if t != nil {
			t.remove()
		}
		return nil, err
	}
	tf.temp = t
	raw, err := readFile(tf, "manifest.json", layerRef{size: -1}, maxManifest)
	if errors.Is(err, os.ErrNotExist) {
		if _, ok := tf.files["index.json"]; ok {
			return &layout{files: tf}, nil
		}
		err = fmt.Errorf("this is no archive of docker save: %w", err)
	}
	var img *dockerArchive
	if err == nil {
		img, err = parseDockerArchive(raw)
	}
	if err != nil {
		tf.close()
		return nil, err
	}
	return &archive{files: tf, image: img}, nil
}

// maxArchive bounds what a compressed archive may unpack to.
const maxArchive = 64 << 30

// plainTar writes f uncompressed into a temporary directory if it is compressed, else it returns nil.
func (s *Store) plainTar(f *os.File) (*temp, error) {
	plain, end, err := decompress(f)
	if err != nil {
		return nil, err
	}
	defer end()
	if _, ok := plain.(named); !ok {
		_, err := f.Seek(0, io.SeekStart)
		return nil, err
	}
	t, err := s.temp("archive")
	if err != nil {
		return nil, err
	}
	out, err := os.Create(filepath.Join(t.path, "x"))
	if err == nil {
		var n int64
		n, err = io.Copy(out, io.LimitReader(plain, maxArchive))
		if err == nil && n == maxArchive {
			err = fmt.Errorf("the archive unpacks to more than %d bytes", int64(maxArchive))
		}
		err = errors.Join(err, out.Close())
	}
	if err != nil {
		t.remove()
		return nil, err
	}
	return t, nil
}

func (a *archive) close() { a.files.close() }

// digestInName finds the digest that an archive's file is named after: blobs/sha256/HEX or HEX.json.
func digestInName(name string) string {
	hex := strings.TrimSuffix(path.Base(name), ".json")
	if h, err := v1.NewHash("sha256:" + hex); err == nil {
		return h.String()
	}
	return ""
}

func (a *archive) head(ctx context.Context) (string, error) {
	var err error
	ref := layerRef{digest: digestInName(a.image.Config), size: -1}
	if a.config, err = readFile(a.files, a.image.Config, ref, maxConfig); err != nil {
		return "", fmt.Errorf("image configuration: %w", err)
	}
	v := newVerifier(ref)
	v.add(a.config)
	return digestOf(v.sum), nil
}

func (a *archive) describe(ctx context.Context) (*v1.ConfigFile, []layerRef, error) {
	config, err := parseConfig(a.config, len(a.image.Layers))
	if err != nil {
		return nil, nil, err
	}
	refs := make([]layerRef, len(a.image.Layers))
	for i, name := range a.image.Layers {
		refs[i] = layerRef{size: -1, diffID: config.RootFS.DiffIDs[i].String(), path: name}
		if strings.HasPrefix(path.Clean(name), "blobs/") {
			refs[i].digest = digestInName(name)
		}
	}
	return config, refs, nil
}

func (a *archive) open(ctx context.Context, ref layerRef, progress func(int64)) (blob, error) {
	return openFileBlob(a.files, ref.path, ref, progress)
}
