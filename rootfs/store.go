package rootfs

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/rootfs/internal/rmtree"
)

// A Store is a directory of images, layers and snapshots:
//
//	images/NAME.json             the catalogue
//	layers/sha256-HEX/fs         an unpacked layer, with layer.json beside it
//	snapshots/ID/upper, work     an environment's writable layer, with snapshot.json beside them
//	disks/BYTES                  an empty, formatted disk of that size, to be copied
//	partial/sha256-HEX           a blob whose download was cut off
//	tmp/                         what is being made, and what is being deleted
//	lock                         locks between processes
//
// Things appear in their place by rename only, when they are whole, and leave it by rename into tmp/. So a
// process may be killed at any point, and any number of processes may use one store.
type Store struct {
	root    string
	flights flights
	// slots bounds how many layers are fetched and unpacked side by side.
	slots chan struct{}
	// attach is set once the kernel has refused to build an overlay from detached mounts (before Linux 6.15).
	attach atomic.Bool
	boot   string
}

// partialAge is how long the beginning of a blob is kept for a pull that might continue it.
const partialAge = 3 * 24 * time.Hour

// Open opens the store at root, creating it if needed. The file system must take trusted.* attributes and
// id-mapped mounts: ext4, xfs, btrfs and tmpfs do. Only root can use a store.
func Open(root string) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s := &Store{root: root, slots: make(chan struct{}, min(8, max(4, runtime.NumCPU())))}
	for _, dir := range []string{"", "images", "layers", "snapshots", "partial", "tmp", "empty", "disks"} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}
	// Set-id programs of strangers lie below: nobody else may come near them.
	if err := os.Chmod(root, 0o700); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s.boot = strings.TrimSpace(string(boot))
	return s, nil
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.root}, parts...)...)
}

// A temp is a directory below tmp/ that Sweep leaves alone while this process lives.
type temp struct {
	path string
	lock *lock
}

func (s *Store) temp(kind string) (*temp, error) {
	name := kind + "-" + strings.ToLower(rand.Text())
	l, ok, err := s.tryLock("tmp/"+name, true)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("temporary name %s is taken", name)
	}
	t := &temp{s.path("tmp", name), l}
	if err := os.Mkdir(t.path, 0o700); err != nil {
		l.unlock()
		return nil, err
	}
	return t, nil
}

// remove deletes what is left of the directory.
func (t *temp) remove() error {
	err := rmtree.Remove(t.path)
	t.lock.unlock()
	return err
}

// discard takes path out of its place at once and then deletes it. A path that does not exist is no error.
func (s *Store) discard(path string) error {
	t, err := s.temp("trash")
	if err != nil {
		return err
	}
	err = os.Rename(path, filepath.Join(t.path, "x"))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, t.remove())
}

// writeJSON puts v at path, whole or not at all, even if the machine crashes.
func (s *Store) writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	t, err := s.temp("json")
	if err != nil {
		return err
	}
	defer t.remove()
	f, err := os.OpenFile(filepath.Join(t.path, "x"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// syncStore writes everything in the store's file system to disk (syncfs(2)).
func (s *Store) syncStore() error {
	d, err := os.Open(s.root)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", s.root, err)
	}
	return nil
}

// Sweep removes what nobody needs any more: snapshots that live does not claim, leftovers of processes that
// died, layers that no image or snapshot stands on, and the beginnings of blobs that nobody has continued for
// days. It is safe beside running pulls and creates of this or any other process, as long as live knows the
// environments those are about. It returns what it removed, as paths relative to the store, and goes on after
// an error.
func (s *Store) Sweep(ctx context.Context, live func(id string) bool) ([]string, error) {
	var removed []string
	var errs []error
	note := func(path string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep %s: %w", path, err))
			return
		}
		removed = append(removed, path)
	}
	ids, err := listDir(s.path("snapshots"))
	errs = append(errs, err)
	for _, id := range ids {
		if ctx.Err() != nil {
			break
		}
		if !live(id) {
			note("snapshots/"+id, s.Release(ctx, id))
		}
	}
	temps, err := listDir(s.path("tmp"))
	errs = append(errs, err)
	for _, name := range temps {
		if ctx.Err() != nil {
			break
		}
		l, free, err := s.tryLock("tmp/"+name, true)
		if err != nil {
			errs = append(errs, err)
		}
		if !free {
			continue
		}
		err = rmtree.Remove(s.path("tmp", name))
		l.unlock()
		note("tmp/"+name, err)
	}
	blobs, err := listDir(s.path("partial"))
	errs = append(errs, err)
	for _, name := range blobs {
		if ctx.Err() != nil {
			break
		}
		info, err := os.Stat(s.path("partial", name))
		if err != nil || time.Since(info.ModTime()) < partialAge {
			continue
		}
		l, free, err := s.tryLock("blob/"+name, true)
		if err != nil {
			errs = append(errs, err)
		}
		if !free {
			continue
		}
		err = os.Remove(s.path("partial", name))
		l.unlock()
		note("partial/"+name, err)
	}
	disks, err := s.sweepDisks()
	errs = append(errs, err)
	removed = append(removed, disks...)
	layers, err := s.dropLayers(ctx)
	errs = append(errs, err, ctx.Err())
	for _, key := range layers {
		removed = append(removed, "layers/"+key)
	}
	return removed, errors.Join(errs...)
}

func listDir(path string) ([]string, error) {
	d, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}
