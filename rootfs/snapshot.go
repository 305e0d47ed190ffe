package rootfs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/rootfs/internal/rmtree"
)

// A Snapshot is the writable layer of one environment and the stack of layers it stands on. What it records is
// its own: a later pull or removal under the image's name changes nothing here.
type Snapshot struct {
	ID          string   `json:"id"`
	Image       string   `json:"image"`       // the catalogue name at the time
	ImageDigest string   `json:"imageDigest"` // the content it stood for
	Layers      []string `json:"layers"`      // lowest first
	HostUID     int      `json:"hostUID"`     // owner on the host of what root writes inside
	HostGID     int      `json:"hostGID"`
	Volatile    bool     `json:"volatile,omitempty"`
	// DiskBytes bounds the writable layer, by the quota of that Project or, with OnImage, by a file system of its own.
	DiskBytes int64     `json:"diskBytes,omitempty"`
	Project   uint32    `json:"project,omitempty"`
	OnImage   bool      `json:"onImage,omitempty"`
	Created   time.Time `json:"created"`

	store *Store
}

var snapshotID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

func (s *Store) snapshotDir(id string) (string, error) {
	if !snapshotID.MatchString(id) {
		return "", fmt.Errorf("snapshot id %q does not match %s", id, snapshotID)
	}
	return s.path("snapshots", id), nil
}

// Prepare makes the writable layer with the given id over img. It takes about a millisecond and mounts
// nothing. An id that exists is an error that wraps fs.ErrExist.
func (s *Store) Prepare(ctx context.Context, id string, img *Image, o SnapshotOptions) (*Snapshot, error) {
	sn, err := s.prepare(ctx, id, img, o)
	if err != nil {
		return nil, fmt.Errorf("prepare root file system %q: %w", id, err)
	}
	return sn, nil
}

func (s *Store) prepare(ctx context.Context, id string, img *Image, o SnapshotOptions) (*Snapshot, error) {
	dir, err := s.snapshotDir(id)
	if err != nil {
		return nil, err
	}
	if img == nil || len(img.Layers) == 0 {
		return nil, errors.New("the image has no layers")
	}
	if o.HostUID < 0 || o.HostGID < 0 {
		return nil, fmt.Errorf("root's ids on the host cannot be %d:%d", o.HostUID, o.HostGID)
	}
	if err := o.checkDisk(); err != nil {
		return nil, err
	}
	t, err := s.temp("snapshot")
	if err != nil {
		return nil, err
	}
	defer t.remove()
	sn := &Snapshot{
		ID: id, Image: img.Name, ImageDigest: img.Digest, Layers: img.Layers,
		HostUID: o.HostUID, HostGID: o.HostGID, Volatile: o.Volatile, DiskBytes: o.DiskBytes, Created: time.Now().UTC(), store: s,
	}
	if err := s.bound(ctx, t.path, sn); err != nil {
		return nil, err
	}
	data, err := json.Marshal(sn)
	if err == nil {
		err = os.WriteFile(filepath.Join(t.path, "snapshot.json"), data, 0o600)
	}
	if err != nil {
		return nil, err
	}
	// Shared with other creates; what drops layers has to wait.
	l, err := s.lock(ctx, "catalogue", false)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	for _, d := range img.Layers {
		info, err := s.haveLayer(d)
		if err != nil {
			return nil, err
		}
		if info == nil {
			return nil, fmt.Errorf("layer %s of image %q is gone: pull the image again", d, img.Name)
		}
	}
	if !sn.OnImage { // else Mount does, inside
		if err := s.makeUpper(t.path, sn); err != nil {
			return nil, err
		}
	}
	// RENAME_NOREPLACE: an empty directory would give way to a plain rename.
	if err := unix.Renameat2(unix.AT_FDCWD, t.path, unix.AT_FDCWD, dir, unix.RENAME_NOREPLACE); err != nil {
		return nil, err
	}
	return sn, nil
}

// makeUpper makes the directories overlayfs writes to. In the merged tree the root's attributes are those of
// the upper directory, so it takes over the image's.
func (s *Store) makeUpper(dir string, sn *Snapshot) error {
	var st unix.Stat_t
	if err := unix.Stat(s.layerFS(sn.Layers[len(sn.Layers)-1]), &st); err != nil {
		return err
	}
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{upper, work} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	if err := os.Lchown(upper, sn.HostUID+int(st.Uid), sn.HostGID+int(st.Gid)); err != nil {
		return err
	}
	if err := os.Lchown(work, sn.HostUID, sn.HostGID); err != nil {
		return err
	}
	return unix.Chmod(upper, st.Mode&0o7777)
}

// Snapshot returns the snapshot with the given id. The error wraps ErrNotFound if there is none.
func (s *Store) Snapshot(ctx context.Context, id string) (*Snapshot, error) {
	dir, err := s.snapshotDir(id)
	if err != nil {
		return nil, err
	}
	sn := &Snapshot{store: s}
	err = readJSON(filepath.Join(dir, "snapshot.json"), sn)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("snapshot %q: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot %q: %w", id, err)
	}
	return sn, nil
}

// Snapshots returns all snapshots, sorted by id.
func (s *Store) Snapshots(ctx context.Context) ([]*Snapshot, error) {
	ids, err := listDir(s.path("snapshots"))
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	sort.Strings(ids)
	snapshots := make([]*Snapshot, 0, len(ids))
	for _, id := range ids {
		sn, err := s.Snapshot(ctx, id)
		if errors.Is(err, ErrNotFound) {
			continue // released meanwhile
		}
		if err != nil {
			return nil, err
		}
		snapshots = append(snapshots, sn)
	}
	return snapshots, nil
}

// Release deletes a snapshot. It may be called again, and for what never was. A mount of it that is still in
// use loses its files, so everything inside must have ended before.
func (s *Store) Release(ctx context.Context, id string) error {
	dir, err := s.snapshotDir(id)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var sn Snapshot
	_ = readJSON(filepath.Join(dir, "snapshot.json"), &sn) // one that a crash has torn had no quota yet
	err = s.discard(dir)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = rmtree.Remove(dir) // where it is: a full disk has no room for the directory it would be moved to
	}
	if err != nil {
		return fmt.Errorf("release snapshot %q: %w", id, err)
	}
	if sn.Project != 0 {
		if err := s.dropProject(sn.Project); err != nil {
			return fmt.Errorf("release snapshot %q: %w", id, err)
		}
	}
	return nil
}

// Usage returns how many bytes of disk the writable layer takes, hard links counted once. It walks the whole
// layer, and what changes meanwhile may or may not be counted. Of an image it is what the image takes.
func (sn *Snapshot) Usage(ctx context.Context) (int64, error) {
	if sn.OnImage {
		var st unix.Stat_t
		path := sn.store.path("snapshots", sn.ID, diskImage)
		if err := unix.Stat(path, &st); err != nil {
			return 0, fmt.Errorf("usage of snapshot %q: %w", sn.ID, &fs.PathError{Op: "stat", Path: path, Err: err})
		}
		return st.Blocks * 512, nil
	}
	root, err := os.OpenRoot(sn.store.path("snapshots", sn.ID, "upper"))
	if err != nil {
		return 0, fmt.Errorf("usage of snapshot %q: %w", sn.ID, err)
	}
	defer root.Close()
	var blocks int64
	seen := map[uint64]bool{}
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil // gone meanwhile
		}
		st, ok := sysStat(info)
		if !ok || st.Nlink > 1 && !d.IsDir() && seen[st.Ino] {
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			seen[st.Ino] = true
		}
		blocks += st.Blocks
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("usage of snapshot %q: %w", sn.ID, err)
	}
	return blocks * 512, nil
}
