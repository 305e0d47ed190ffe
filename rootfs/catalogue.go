package rootfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sort"
	"strings"
	"time"
)

// checkName says what is wrong with a catalogue name.
func checkName(name string) error {
	if name == "" {
		return errors.New("the image's name is empty")
	}
	if len(name) > 4096 {
		return fmt.Errorf("the image's name has %d bytes; 4096 are the limit", len(name))
	}
	for _, r := range name {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return fmt.Errorf("the image's name %q holds characters that cannot be shown", name)
		}
	}
	return nil
}

func (s *Store) imagePath(name string) string {
	file := url.PathEscape(name)
	if len(file) > 200 || strings.HasPrefix(file, ".") {
		sum := sha256.Sum256([]byte(name))
		file = "sha256-" + hex.EncodeToString(sum[:])
	}
	return s.path("images", file+".json")
}

// Image returns the image that the catalogue knows by name. A registry reference is found in any of its
// spellings: "alpine" is "docker.io/library/alpine:latest". The error wraps ErrNotFound if there is none.
func (s *Store) Image(ctx context.Context, name string) (*Image, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	names := []string{name}
	if src, err := parseSource(name); err == nil && src.name() != name {
		names = append(names, src.name())
	}
	for _, n := range names {
		var img Image
		err := readJSON(s.imagePath(n), &img)
		if err == nil {
			return &img, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("image %q: %w", name, err)
		}
	}
	return nil, fmt.Errorf("image %q: %w", name, ErrNotFound)
}

// Images returns the whole catalogue, sorted by name.
func (s *Store) Images(ctx context.Context) ([]*Image, error) {
	files, err := listDir(s.path("images"))
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	images := make([]*Image, 0, len(files))
	for _, file := range files {
		var img Image
		err := readJSON(s.path("images", file), &img)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list images: %w", err)
		}
		images = append(images, &img)
	}
	sort.Slice(images, func(i, j int) bool { return images[i].Name < images[j].Name })
	return images, nil
}

// record puts an image into the catalogue, in place of what has its name. The caller holds its layers.
func (s *Store) record(ctx context.Context, img *Image) error {
	if err := s.markSynced(img.Layers); err != nil {
		return err
	}
	// Shared: dropLayers must see either the entry or the caller's hold on the layers.
	l, err := s.lock(ctx, "catalogue", false)
	if err != nil {
		return err
	}
	defer l.unlock()
	img.Created = time.Now().UTC()
	if err := s.writeJSON(s.imagePath(img.Name), img); err != nil {
		return fmt.Errorf("write image %q to the catalogue: %w", img.Name, err)
	}
	return nil
}

// Remove takes an image out of the catalogue and deletes the layers that no other image and no snapshot
// stands on. While snapshots stand on the image itself it refuses with an error that wraps ErrInUse and lists
// them; snapshots of what the name stood for earlier do not count.
func (s *Store) Remove(ctx context.Context, name string) error {
	if err := s.removeEntry(ctx, name); err != nil {
		return fmt.Errorf("remove image %q: %w", name, err)
	}
	if _, err := s.dropLayers(ctx); err != nil {
		return fmt.Errorf("remove image %q: %w", name, err)
	}
	return nil
}

func (s *Store) removeEntry(ctx context.Context, name string) error {
	l, err := s.lock(ctx, "catalogue", true)
	if err != nil {
		return err
	}
	defer l.unlock()
	img, err := s.Image(ctx, name)
	if err != nil {
		return err
	}
	snapshots, err := s.Snapshots(ctx)
	if err != nil {
		return err
	}
	var users []string
	for _, sn := range snapshots {
		if sn.Image == img.Name && sn.ImageDigest == img.Digest {
			users = append(users, sn.ID)
		}
	}
	if len(users) > 0 {
		return fmt.Errorf("%w by %s: delete these first", ErrInUse, strings.Join(users, ", "))
	}
	if err := os.Remove(s.imagePath(img.Name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
