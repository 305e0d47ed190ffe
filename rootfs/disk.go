package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A writable layer may be bounded (SnapshotOptions.DiskBytes). Where the store's file system keeps project quotas (XFS or
// ext4 mounted with prjquota), the layer is a project of its own: nothing has to be made or mounted. Elsewhere the layer lies
// in a sparse ext4 image. It is a copy of one that was formatted when its size was first asked for, and is mounted through
// a loop device which nobody but the environment's mount holds on to: both go with it, whatever is killed.

// Bounds of a disk limit, in bytes. Less is no file system; more is no file on ext4.
const (
	MinDisk = 16 << 20
	MaxDisk = 16<<40 - 4096
)

// bytesPerInode bounds the number of files too: as many as mkfs.ext4 would give a disk of that size.
const bytesPerInode = 16384

const (
	diskImage   = "disk.img"
	templateAge = 7 * 24 * time.Hour // after which an image nobody has copied is deleted
)

func (o SnapshotOptions) checkDisk() error {
	if o.DiskBytes != 0 && (o.DiskBytes < MinDisk || o.DiskBytes > MaxDisk) {
		return fmt.Errorf("a disk limit of %d bytes: want %d (16 MiB) to %d, or 0 for none", o.DiskBytes, MinDisk, int64(MaxDisk))
	}
	return nil
}

// bound makes dir, where sn's writable layer will be, one that can't outgrow sn.DiskBytes.
func (s *Store) bound(ctx context.Context, dir string, sn *Snapshot) error {
	if sn.DiskBytes == 0 {
		return nil
	}
	// Root of the host's own user namespace may move its files to another project, out of the quota.
	if sn.HostUID > 0 {
		quotas, err := projectQuotas(dir)
		if err != nil {
			return err
		}
		if quotas {
			sn.Project = uint32(sn.HostUID) // the range is this environment's alone, so the number is
			return setProject(dir, sn.Project, sn.DiskBytes)
		}
	}
	sn.OnImage = true
	return s.copyTemplate(ctx, sn.DiskBytes, filepath.Join(dir, diskImage))
}

// copyTemplate puts a formatted image of that size at path: a few hundred kilobytes are written.
func (s *Store) copyTemplate(ctx context.Context, size int64, path string) error {
	template, err := s.template(ctx, size)
	if err != nil {
		return fmt.Errorf("make a disk of %d bytes: %w", size, err)
	}
	defer template.Close()
	out, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = copySparse(out, template, size)
	if err := errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("make a disk of %d bytes: %w", size, err)
	}
	return nil
}

// template opens the formatted image of that size, and makes it if it is the first to be asked for.
func (s *Store) template(ctx context.Context, size int64) (*os.File, error) {
	name := strconv.FormatInt(size, 10)
	path := s.path("disks", name)
	open := func() (*os.File, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		if info, err := f.Stat(); err == nil && time.Since(info.ModTime()) > templateAge/2 {
			_ = os.Chtimes(path, time.Time{}, time.Now()) // it is wanted still
		}
		return f, nil
	}
	if f, err := open(); !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	l, err := s.lock(ctx, "disk/"+name, true)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	if f, err := open(); !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	t, err := s.temp("disk")
	if err != nil {
		return nil, err
	}
	defer t.remove()
	img := filepath.Join(t.path, "img")
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(img, size); err != nil {
		return nil, err
	}
	if err := format(ctx, img); err != nil {
		return nil, err
	}
	if err := os.Rename(img, path); err != nil {
		return nil, err
	}
	return open()
}

// DiskLimits says how disk limits are kept in a store at root, which need not be there yet, or why they can't be.
func DiskLimits(root string) (how string, err error) {
	for root != "/" && root != "." {
		if _, err := os.Stat(root); err == nil {
			break
		}
		root = filepath.Dir(root)
	}
	if quotas, err := projectQuotas(root); err == nil && quotas {
		return "project quotas (images for environments with the host's user ids)", nil
	}
	if _, err := findMkfs(); err != nil {
		return "", err
	}
	control, err := openLoopControl()
	if err != nil {
		return "", fmt.Errorf("loop devices: %w", err)
	}
	return "sparse images on loop devices (mount the file system with prjquota for something quicker)", control.Close()
}

func findMkfs() (string, error) {
	const name = "mkfs.ext4"
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} { // not in everybody's PATH
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("a disk limit needs %s here (apt-get install e2fsprogs), or a root on a file system with project quotas", name)
}

// format makes an ext4 in the file. It has no journal: it lives as long as its environment, and that ends with the machine
// at the latest. Tables of inodes are left to be zero, which the file is.
func format(ctx context.Context, path string) error {
	mkfs, err := findMkfs()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, mkfs, "-q", "-F", "-b", "4096", "-m", "0", "-i", strconv.Itoa(bytesPerInode),
		"-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", path)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", mkfs, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// copySparse copies what in is allocated to out, which becomes size bytes long.
func copySparse(out, in *os.File, size int64) error {
	if err := unix.IoctlFileClone(int(out.Fd()), int(in.Fd())); err == nil {
		return nil
	}
	if err := out.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		from, err := in.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return err
		}
		to, err := in.Seek(from, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for from < to {
			buf := make([]byte, min(to-from, 1<<20))
			if _, err := in.ReadAt(buf, from); err != nil {
				return err
			}
			if _, err := out.WriteAt(buf, from); err != nil {
				return err
			}
			from += int64(len(buf))
		}
		at = to
	}
	return nil
}

// sweepDisks deletes formatted images that nobody has copied for days.
func (s *Store) sweepDisks() (removed []string, err error) {
	names, err := listDir(s.path("disks"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, name := range names {
		path := s.path("disks", name)
		if info, err := os.Stat(path); err != nil || time.Since(info.ModTime()) < templateAge {
			continue
		}
		if err := os.Remove(path); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, "disks/"+name)
	}
	return removed, errors.Join(errs...)
}

// openTop returns the directory that holds upper and work: the snapshot's own, or the root of its image's file system, as a
// detached mount.
func (sn *Snapshot) openTop(ctx context.Context, dir string) (*os.File, error) {
	if !sn.OnImage {
		return os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	}
	top, err := mountImage(ctx, filepath.Join(dir, diskImage))
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(filepath.Join(procPath(top), "upper")); errors.Is(err, os.ErrNotExist) {
		if err := sn.store.makeUpper(procPath(top), sn); err != nil {
			top.Close()
			return nil, err
		}
	}
	return top, nil
}
