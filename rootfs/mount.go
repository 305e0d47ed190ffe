package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/rootfs/internal/rmtree"
)

// Mount returns the snapshot's root file system as a detached mount (mount_setattr(2), fsmount(2)): the caller
// moves it to its place with move_mount in whatever mount namespace it likes, and closing the file before that
// undoes everything. It never appears in the host's mount table.
//
// The layers are seen through userns' id mapping, which should map id 0 to the snapshot's HostUID and HostGID;
// nil means no mapping. readOnly leaves the writable layer out.
func (sn *Snapshot) Mount(ctx context.Context, userns *os.File, readOnly bool) (*os.File, error) {
	f, err := sn.mount(ctx, userns, readOnly)
	if err != nil {
		return nil, fmt.Errorf("mount root file system %q: %w", sn.ID, err)
	}
	return f, nil
}

func (sn *Snapshot) mount(ctx context.Context, userns *os.File, readOnly bool) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	dir := sn.store.path("snapshots", sn.ID)
	var top *os.File // stays nil for a mount that is not to be written to
	if !readOnly {
		var err error
		if top, err = sn.openTop(ctx, dir); err != nil {
			return nil, err
		}
		defer top.Close()
	}
	var first error
	if !sn.store.attach.Load() {
		f, err := sn.mountDetached(top, userns)
		if err == nil {
			return f, nil
		}
		first = err
	}
	var f *os.File
	err := onThrowawayThread(func() (err error) {
		f, err = sn.mountAttached(top, userns)
		return err
	})
	if err != nil {
		return nil, errors.Join(first, err)
	}
	sn.store.attach.Store(true)
	return f, nil
}

// layersMount returns a detached, id-mapped clone of the mount that the store's layers lie on: one for all of
// them.
func (s *Store) layersMount(userns *os.File) (*os.File, error) {
	return cloneMount(s.path("layers"), userns, unix.MOUNT_ATTR_RDONLY)
}

// cloneMount clones the mount that path lies on, with path as its root, and sets attributes and id mapping.
func cloneMount(path string, userns *os.File, attrs uint64) (*os.File, error) {
	return cloneMountAt(unix.AT_FDCWD, path, path, 0, userns, attrs)
}

// cloneMountAt is cloneMount with open_tree's own arguments; errors call the place path.
func cloneMountAt(dir int, name, path string, flags uint, userns *os.File, attrs uint64) (*os.File, error) {
	fd, err := unix.OpenTree(dir, name, flags|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, &fs.PathError{Op: "open_tree", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	attr := unix.MountAttr{Attr_set: attrs}
	if userns != nil {
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(userns.Fd())
	}
	if attr.Attr_set == 0 {
		return f, nil
	}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr)
	runtime.KeepAlive(userns)
	if err != nil {
		f.Close()
		if userns != nil && errors.Is(err, unix.EINVAL) {
			return nil, fmt.Errorf("%s cannot be mounted with shifted ids: its file system does not support id-mapped mounts or it is id-mapped already: %w", path, err)
		}
		return nil, &fs.PathError{Op: "mount_setattr", Path: path, Err: err}
	}
	return f, nil
}

// lowers opens the snapshot's layers beneath the mount of all layers, topmost first. Without a writable layer
// overlayfs insists on two, so an empty directory comes last then.
func (sn *Snapshot) lowers(layers *os.File, readOnly bool) ([]*os.File, error) {
	var files []*os.File
	open := func(dirfd int, path string) error {
		fd, err := unix.Openat(dirfd, path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return &fs.PathError{Op: "open layer", Path: path, Err: err}
		}
		files = append(files, os.NewFile(uintptr(fd), path))
		return nil
	}
	for i := len(sn.Layers) - 1; i >= 0; i-- {
		if err := open(int(layers.Fd()), layerKey(sn.Layers[i])+"/fs"); err != nil {
			closeAll(files)
			return nil, err
		}
	}
	if readOnly && len(files) < 2 {
		if err := open(unix.AT_FDCWD, sn.store.path("empty")); err != nil {
			closeAll(files)
			return nil, err
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// mountAttrs are the mount's flags. There are no devices in a layer; nodev keeps it so, except for an
// environment without a user namespace, whose root may be allowed to make some.
func mountAttrs(userns *os.File, readOnly bool) (attrs int) {
	if userns != nil {
		attrs |= unix.MOUNT_ATTR_NODEV
	}
	if readOnly {
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	return attrs
}

// mountDetached builds the overlay from descriptors alone (Linux 6.15: overlayfs takes O_PATH descriptors of
// detached mounts).
func (sn *Snapshot) mountDetached(top, userns *os.File) (*os.File, error) {
	readOnly := top == nil
	layers, err := sn.store.layersMount(userns)
	if err != nil {
		return nil, err
	}
	defer layers.Close()
	lowers, err := sn.lowers(layers, readOnly)
	if err != nil {
		return nil, err
	}
	defer closeAll(lowers)
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fd)
	set := func(key string, f *os.File) error {
		if err := unix.FsconfigSetFd(fd, key, int(f.Fd())); err != nil {
			return fsError(fd, fmt.Sprintf("overlay: set %s to %s", key, f.Name()), err)
		}
		return nil
	}
	for _, f := range lowers {
		if err := set("lowerdir+", f); err != nil {
			return nil, err
		}
	}
	if !readOnly {
		for _, part := range []string{"upper", "work"} {
			f, err := sn.openPart(top, part)
			if err != nil {
				return nil, err
			}
			err = set(part+"dir", f)
			f.Close()
			if err != nil {
				return nil, err
			}
		}
		for _, opt := range sn.options() {
			key, value, hasValue := strings.Cut(opt, "=")
			var err error
			if hasValue {
				err = unix.FsconfigSetString(fd, key, value)
			} else {
				err = unix.FsconfigSetFlag(fd, key)
			}
			if err != nil {
				return nil, fsError(fd, "overlay: set "+opt, err)
			}
		}
	}
	if err := unix.FsconfigSetString(fd, "source", "learnos"); err != nil {
		return nil, fsError(fd, "overlay: set source", err)
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, fsError(fd, "overlay: create", err)
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, mountAttrs(userns, readOnly))
	if err != nil {
		return nil, fsError(fd, "overlay: fsmount", err)
	}
	return os.NewFile(uintptr(m), "overlay "+sn.ID), nil
}

// openPart opens upper or work below top (see openTop).
func (sn *Snapshot) openPart(top *os.File, part string) (*os.File, error) {
	if sn.Volatile && part == "work" {
		// Overlayfs leaves this to refuse a layer that a crash may have torn; what it guards against here is a
		// crash of the machine, which ends every environment anyway.
		if err := rmtree.Remove(filepath.Join(procPath(top), "work/work/incompat")); err != nil {
			return nil, err
		}
	}
	fd, err := unix.Openat(int(top.Fd()), part, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: filepath.Join(top.Name(), part), Err: err}
	}
	return os.NewFile(uintptr(fd), filepath.Join(top.Name(), part)), nil
}

// options are overlayfs' options for a writable mount. redirect_dir lets directories of the image be renamed as
// on any machine, not EXDEV; the marks it needs are trusted.*, which nobody inside can write.
func (sn *Snapshot) options() []string {
	opts := []string{"redirect_dir=on"}
	if sn.Volatile {
		opts = append(opts, "volatile")
	}
	return opts
}

// fsError adds what the kernel logged about a file system context (fsopen(2) descriptors give it out line by
// line).
func fsError(fd int, doing string, err error) error {
	buf := make([]byte, 1024)
	var said []string
	for {
		n, rerr := unix.Read(fd, buf)
		if rerr != nil || n <= 2 {
			break
		}
		said = append(said, strings.TrimSpace(string(buf[2:n])))
	}
	if len(said) == 0 {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return fmt.Errorf("%s: %w (%s)", doing, err, strings.Join(said, "; "))
}

// mountAttached does what older kernels need: the id-mapped layers attached somewhere. That is a private mount
// namespace that only this thread is in and that ends with it.
func (sn *Snapshot) mountAttached(top, userns *os.File) (*os.File, error) {
	readOnly := top == nil
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("unshare mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	layers, err := sn.store.layersMount(userns)
	if err != nil {
		return nil, err
	}
	defer layers.Close()
	stage := sn.store.path("tmp") // covered up in this namespace only
	if err := unix.Mount("learnos", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
		return nil, fmt.Errorf("mount tmpfs: %w", err)
	}
	at, target, disk := filepath.Join(stage, "layers"), filepath.Join(stage, "root"), filepath.Join(stage, "disk")
	for _, d := range []string{at, target, disk} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, err
		}
	}
	opts := sn.options()
	if readOnly {
		opts = nil
	} else {
		// Overlayfs wants mounts of the namespace it is mounted in, and a descriptor from before is not of this one.
		path := sn.store.path("snapshots", sn.ID)
		if sn.OnImage {
			if err := unix.MoveMount(int(top.Fd()), "", unix.AT_FDCWD, disk, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				return nil, fmt.Errorf("attach the disk: %w", err)
			}
			path = disk
		}
		top, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return nil, err
		}
		defer top.Close()
		for _, part := range []string{"upper", "work"} {
			f, err := sn.openPart(top, part)
			if err != nil {
				return nil, err
			}
			defer f.Close()
			opts = append(opts, part+"dir="+procPath(f))
		}
	}
	if err := unix.MoveMount(int(layers.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("attach layers: %w", err)
	}
	lowers, err := sn.lowers(layers, readOnly)
	if err != nil {
		return nil, err
	}
	defer closeAll(lowers)
	paths := make([]string, len(lowers))
	for i, f := range lowers {
		paths[i] = procPath(f)
	}
	opts = append(opts, "lowerdir="+strings.Join(paths, ":"))
	data := strings.Join(opts, ",")
	if len(data) >= os.Getpagesize() {
		return nil, fmt.Errorf("%d layers are more than this kernel can mount together; Linux 6.15 can", len(lowers))
	}
	if err := unix.Mount("learnos", target, "overlay", 0, data); err != nil {
		return nil, fmt.Errorf("mount overlay with %s: %w", data, err)
	}
	return cloneMount(target, nil, uint64(mountAttrs(userns, readOnly)))
}

func procPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// onThrowawayThread runs f on a thread that ends with it, so that f may change what belongs to a thread. It is
// never the main thread: that does not end, and /proc/self shows its namespaces.
func onThrowawayThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if unix.Gettid() == unix.Getpid() {
			done <- onThrowawayThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// Volume returns the directory or file src of the host as a detached mount, with nosuid and nodev, without
// what is mounted below it, and with its owners shifted through userns' id mapping (nil: none): what root owns
// on the host is root's inside, and what root writes inside is root's on the host.
//
// Symbolic links on the way are followed only where no one but root can have put them: links of root's in
// directories of root's that others can't write to (see openTrusted).
func Volume(ctx context.Context, src string, userns *os.File, readOnly bool) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	attrs := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
	if readOnly {
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	at, err := openTrusted(src)
	if errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("volume: %s does not exist on the host: create it first: %w", src, err)
	}
	if err != nil {
		return nil, fmt.Errorf("volume: %w", err)
	}
	defer at.Close()
	f, err := cloneMountAt(int(at.Fd()), "", src, unix.AT_EMPTY_PATH, userns, attrs)
	if err != nil {
		return nil, fmt.Errorf("volume: %w", err)
	}
	return f, nil
}

func sysStat(info fs.FileInfo) (*syscall.Stat_t, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	return st, ok
}
