// Package rmtree deletes directory trees that strangers have written.
//
// A tenant can nest directories as deep as it likes, far beyond PATH_MAX and the number of descriptors a
// process may hold. So nothing here builds a path, follows a symbolic link, or recurses without bound:
// everything is relative to a directory descriptor, and whatever lies too deep is moved up first. It is not for
// trees that somebody else is still changing.
package rmtree

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxDepth is how many directories are held open at once.
const maxDepth = 48

// Remove deletes path, whatever it is. A path that does not exist is no error.
func Remove(path string) error {
	return RemoveAt(unix.AT_FDCWD, path)
}

// RemoveAt deletes name, whatever it is, in the directory that dirfd refers to (openat(2) semantics).
// A name that does not exist is no error.
func RemoveAt(dirfd int, name string) error {
	err := unix.Unlinkat(dirfd, name, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.EPERM):
	default:
		return fmt.Errorf("remove %q: %w", name, err)
	}
	top, err := openDir(dirfd, name)
	if err != nil {
		return fmt.Errorf("remove %q: %w", name, err)
	}
	defer top.Close()
	r := remover{top: int(top.Fd())}
	// What was moved up lands in top, where a single pass may not see it.
	for {
		r.moved = false
		if err := r.empty(top, 0); err != nil {
			return fmt.Errorf("remove %q: %w", name, err)
		}
		if !r.moved {
			break
		}
	}
	if err := unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove directory %q: %w", name, err)
	}
	return nil
}

type remover struct {
	top   int
	next  int
	moved bool
}

// empty deletes all that is in dir. It reads the directory anew after each batch of deletions: file systems
// promise little about a listing that goes on while entries disappear.
func (r *remover) empty(dir *os.File, depth int) error {
	fd := int(dir.Fd())
	for {
		names, err := dir.Readdirnames(512)
		if len(names) == 0 {
			if err != nil && err != io.EOF {
				return err
			}
			return nil
		}
		for _, name := range names {
			if err := r.one(fd, name, depth); err != nil {
				return err
			}
		}
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
}

func (r *remover) one(dirfd int, name string, depth int) error {
	err := unix.Unlinkat(dirfd, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("unlink %q: %w", name, err)
	}
	if depth >= maxDepth {
		return r.moveUp(dirfd, name)
	}
	sub, err := openDir(dirfd, name)
	if err != nil {
		return fmt.Errorf("open %q: %w", name, err)
	}
	err = r.empty(sub, depth+1)
	sub.Close()
	if err != nil {
		return err
	}
	if err := unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove directory %q: %w", name, err)
	}
	return nil
}

// moveUp brings a deep directory to the top of the tree under a name nothing else there has.
func (r *remover) moveUp(dirfd int, name string) error {
	for {
		r.next++
		to := ".deep-" + strconv.Itoa(r.next)
		err := unix.Renameat2(dirfd, name, r.top, to, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return fmt.Errorf("move %q up: %w", name, err)
		}
		r.moved = true
		return nil
	}
}

func openDir(dirfd int, name string) (*os.File, error) {
	for {
		fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}
