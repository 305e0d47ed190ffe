package rootfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/learnos/learnos/rootfs/internal/layertar"
)

// layerInfo is a layer's layer.json.
type layerInfo struct {
	Digest string `json:"digest"` // of the uncompressed tar: image-spec's DiffID
	layertar.Result
	// Boot is the boot during which the layer was unpacked. After another boot it is trusted only if the file
	// "synced" lies beside it, for it may never have reached the disk.
	Boot string `json:"boot"`
}

// layerKey is the name of a layer's directory.
func layerKey(digest string) string { return strings.Replace(digest, ":", "-", 1) }

func (s *Store) layerFS(digest string) string { return s.path("layers", layerKey(digest), "fs") }

// haveLayer reads what the store knows about a layer; nil if it does not have it whole.
func (s *Store) haveLayer(digest string) (*layerInfo, error) {
	dir := s.path("layers", layerKey(digest))
	var info layerInfo
	err := readJSON(filepath.Join(dir, "layer.json"), &info)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err == nil && info.Digest != digest {
		err = fmt.Errorf("%s speaks of another layer", dir)
	}
	if err == nil && info.Boot != s.boot {
		_, err = os.Stat(filepath.Join(dir, "synced"))
	}
	if err != nil {
		return nil, nil // damaged by a crash: as good as missing
	}
	return &info, nil
}

// holdLayer returns the layer with the given digest and a shared lock that keeps it in the store, having it
// unpacked by make if need be. However many ask at once, one makes it.
func (s *Store) holdLayer(ctx context.Context, digest string, make func(ctx context.Context, dir string) (*layerInfo, error)) (*layerInfo, *lock, error) {
	name := "layer/" + digest
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		l, ok, err := s.tryLock(name, false)
		if err != nil {
			return nil, nil, err
		}
		if ok {
			info, err := s.haveLayer(digest)
			if info != nil {
				return info, l, nil
			}
			l.unlock()
			if err != nil {
				return nil, nil, err
			}
		}
		if l, ok, err = s.tryLock(name, true); err != nil {
			return nil, nil, err
		}
		if ok {
			info, err := s.makeLayer(ctx, digest, make)
			if err == nil {
				err = l.share()
			}
			if err != nil {
				l.unlock()
				return nil, nil, err
			}
			return info, l, nil
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, nil, err
		}
	}
}

// makeLayer runs under the layer's exclusive lock.
func (s *Store) makeLayer(ctx context.Context, digest string, make func(ctx context.Context, dir string) (*layerInfo, error)) (*layerInfo, error) {
	if info, err := s.haveLayer(digest); info != nil || err != nil {
		return info, err
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	t, err := s.temp("layer")
	if err != nil {
		return nil, err
	}
	defer t.remove()
	info, err := make(ctx, t.path)
	if err != nil {
		return nil, err
	}
	if info.Digest != digest {
		return nil, fmt.Errorf("unpacked layer is %s, not %s as the image's configuration says", info.Digest, digest)
	}
	return info, s.placeLayer(t.path, digest)
}

func (s *Store) placeLayer(dir, digest string) error {
	place := s.path("layers", layerKey(digest))
	if err := s.discard(place); err != nil { // a layer damaged by a crash
		return err
	}
	if err := os.Rename(dir, place); err != nil {
		return fmt.Errorf("put layer in place: %w", err)
	}
	return nil
}

// addLayer unpacks an uncompressed tar whose digest is not known before its end, and holds the layer as
// holdLayer does.
func (s *Store) addLayer(ctx context.Context, r io.Reader, o layertar.Options) (*layerInfo, *lock, error) {
	t, err := s.temp("layer")
	if err != nil {
		return nil, nil, err
	}
	defer t.remove()
	info, err := s.unpack(ctx, t.path, r, o)
	if err != nil {
		return nil, nil, err
	}
	l, err := s.lock(ctx, "layer/"+info.Digest, true)
	if err != nil {
		return nil, nil, err
	}
	have, err := s.haveLayer(info.Digest)
	if err == nil && have == nil {
		err = s.placeLayer(t.path, info.Digest)
	}
	if err == nil {
		err = l.share()
	}
	if err != nil {
		l.unlock()
		return nil, nil, err
	}
	return info, l, nil
}

// unpack writes the uncompressed layer r into dir/fs and its description beside it.
func (s *Store) unpack(ctx context.Context, dir string, r io.Reader, o layertar.Options) (*layerInfo, error) {
	fs := filepath.Join(dir, "fs")
	if err := os.Mkdir(fs, 0o755); err != nil {
		return nil, err
	}
	root, err := os.Open(fs)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	sum := sha256.New()
	res, err := layertar.Unpack(ctx, root, &hashReader{r: r, h: sum}, o)
	if err != nil {
		return nil, err
	}
	info := &layerInfo{Digest: digestOf(sum), Result: res, Boot: s.boot}
	data, err := json.Marshal(info)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "layer.json"), data, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("describe layer: %w", err)
	}
	return info, nil
}

func digestOf(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

type hashReader struct {
	r io.Reader
	h hash.Hash
}

func (h *hashReader) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.h.Write(p[:n])
	return n, err
}

// markSynced writes the given layers to disk and notes that they got there.
func (s *Store) markSynced(digests []string) error {
	var fresh []string
	for _, d := range digests {
		mark := s.path("layers", layerKey(d), "synced")
		if _, err := os.Stat(mark); errors.Is(err, os.ErrNotExist) {
			fresh = append(fresh, mark)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	if err := s.syncStore(); err != nil {
		return err
	}
	for _, mark := range fresh {
		f, err := os.OpenFile(mark, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("mark layer as synced: %w", err)
		}
		f.Close()
	}
	return nil
}

// dropLayers removes the layers that no image, snapshot or running pull needs, and returns their keys.
func (s *Store) dropLayers(ctx context.Context) ([]string, error) {
	keep, err := s.lock(ctx, "catalogue", true)
	if err != nil {
		return nil, err
	}
	trash, err := s.temp("trash")
	if err != nil {
		keep.unlock()
		return nil, err
	}
	dropped, err := s.moveUnused(ctx, trash.path)
	keep.unlock()
	return dropped, errors.Join(err, trash.remove())
}

// moveUnused runs under the exclusive catalogue lock, which keeps new snapshots out; pulls hold the locks of
// their layers until their image is in the catalogue.
func (s *Store) moveUnused(ctx context.Context, trash string) ([]string, error) {
	used := map[string]bool{}
	images, err := s.Images(ctx)
	if err != nil {
		return nil, err
	}
	for _, img := range images {
		for _, d := range img.Layers {
			used[layerKey(d)] = true
		}
	}
	snapshots, err := s.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	for _, sn := range snapshots {
		for _, d := range sn.Layers {
			used[layerKey(d)] = true
		}
	}
	keys, err := listDir(s.path("layers"))
	if err != nil {
		return nil, err
	}
	var dropped []string
	for _, key := range keys {
		if used[key] {
			continue
		}
		l, free, err := s.tryLock("layer/"+strings.Replace(key, "-", ":", 1), true)
		if err != nil {
			return dropped, err
		}
		if !free {
			continue
		}
		err = os.Rename(s.path("layers", key), filepath.Join(trash, key))
		l.unlock()
		if err != nil {
			return dropped, fmt.Errorf("drop layer %s: %w", key, err)
		}
		dropped = append(dropped, key)
	}
	return dropped, nil
}
