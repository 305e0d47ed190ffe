package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// initFile is initImage for a program that lives for one container: it keeps init in a file of dir, which only root may
// write to, instead of copying 1.7 MB into a memfd each time. Where that can't be had, a memfd does.
//
// What is executed is a mount of that file alone, read-only and detached: it is in no mount namespace, so nobody who gets
// hold of it inside (/proc/self/exe) finds a way to write through it or a mount to change, whatever rights they have there.
// As with the memfd, it may be executed but not read.
func initFile(dir string) (*os.File, error) {
	f, err := openInitFile(dir)
	if err != nil {
		return initImage()
	}
	return f, nil
}

const initFilePrefix = ".init-"

func openInitFile(dir string) (*os.File, error) {
	src, err := embedded.Open("embedded/init")
	if err != nil {
		return nil, errNoInit
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return nil, err
	}
	name, err := initFileName(dir)
	if err != nil {
		return nil, err
	}
	f, err := detachInit(name, info.Size())
	if err == nil {
		return f, nil
	}
	if err := writeInitFile(name); err != nil {
		return nil, err
	}
	return detachInit(name, info.Size())
}

// initFileName is another one for every build, going by the file we were started from, and for every start of the machine,
// since nothing here is synced to disk.
func initFileName(dir string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/exe", &st); err != nil {
		return "", err
	}
	return filepath.Join(dir, fmt.Sprintf("%s%s-%x-%x-%x", initFilePrefix, bootID(), st.Dev, st.Ino, unix.TimespecToNsec(st.Ctim))), nil
}

// detachInit makes the detached mount, if the file is there, whole and nobody else's.
func detachInit(name string, size int64) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: name, Err: err}
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Attr_clr: unix.MOUNT_ATTR_NOEXEC}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr)
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	if err == nil && (st.Mode != unix.S_IFREG|0o111 || st.Uid != 0 || st.Size != size || st.Nlink != 1) {
		err = fmt.Errorf("%s is not what was written there", name)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "init"), nil
}

// writeInitFile puts the file in place in one step, and removes those of other builds and earlier days.
func writeInitFile(name string) error {
	image, err := embedded.ReadFile("embedded/init")
	if err != nil {
		return errNoInit
	}
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	if entries, err := os.ReadDir(dir); err == nil {
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), initFilePrefix) {
				os.Remove(filepath.Join(dir, e.Name())) // who runs from it keeps it
			}
		}
	}
	f, err := os.CreateTemp(dir, ".new-init-")
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(image)
	if err == nil {
		err = f.Chmod(0o111)
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
