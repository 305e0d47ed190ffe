package main

import (
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
)

// maxDepth bounds how deep copyUp follows directories: each level holds two descriptors.
const maxDepth = 100

// likeTarget gives a tmpfs the mode of the directory that it is going to cover, as the other runtimes do, unless its options
// say otherwise: a /tmp stays writable for all, and a directory that was private stays so.
func likeTarget(root int, m *initproto.Mount) {
	fd, err := openInside(root, m.Dest, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil {
		m.Options = append(m.Options, "mode="+strconv.FormatUint(uint64(st.Mode&0o7777), 8))
	}
}

// copyUp fills a new file system with what it is about to cover: runc's and crun's mount option tmpcopyup, which podman
// gives to every tmpfs. Below its root, which stays ours, directories, files and symlinks are copied with owner and mode; like there, devices, sockets,
// FIFOs and extended attributes are not.
func copyUp(from, to int, what string) *fault {
	what += ": copy up"
	source, err := unix.Openat(from, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed(what, err)
	}
	defer unix.Close(source)
	if err := copyDirectory(source, to, 0); err != nil {
		return failed(what, err)
	}
	return nil
}

func copyDirectory(from, to, depth int) error {
	if depth > maxDepth {
		return unix.ENAMETOOLONG
	}
	var buf [4096]byte
	var names []string
	for {
		n, err := unix.ReadDirent(from, buf[:])
		if err != nil {
			return err
		}
		if n <= 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names[:0])
		for _, name := range names {
			if err := copyEntry(from, to, name, depth); err != nil {
				return err
			}
		}
	}
	return nil
}

func copyEntry(from, to int, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		var target [unix.PathMax]byte
		n, err := unix.Readlinkat(from, name, target[:])
		if err == nil {
			err = unix.Symlinkat(string(target[:n]), to, name)
		}
		if err != nil {
			return err
		}
		return own(to, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	case unix.S_IFDIR:
		if err := unix.Mkdirat(to, name, 0o700); err != nil {
			return err
		}
		return copyOpened(from, to, name, unix.O_DIRECTORY, unix.O_DIRECTORY, func(source, copied int) error {
			return copyDirectory(source, copied, depth+1)
		})
	case unix.S_IFREG:
		return copyOpened(from, to, name, unix.O_NONBLOCK, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, func(source, copied int) error {
			for {
				n, err := unix.Sendfile(copied, source, nil, 1<<20)
				if err != nil && err != unix.EINTR || n == 0 {
					return err
				}
			}
		})
	}
	return nil
}

// copyOpened opens a file or a directory and its copy, has the content copied, and gives the copy owner and mode.
func copyOpened(from, to int, name string, readFlags, writeFlags int, content func(source, copied int) error) error {
	source, err := unix.Openat(from, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|readFlags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(source)
	copied, err := unix.Openat(to, name, unix.O_NOFOLLOW|unix.O_CLOEXEC|writeFlags, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(copied)
	if err := content(source, copied); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(source, &st); err != nil {
		return err
	}
	if err := own(copied, "", &st, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	return unix.Fchmod(copied, st.Mode&0o7777)
}

// own gives a copy its original's owner. One who does not exist in our user namespace can't have it: then it stays root's.
func own(dir int, name string, st *unix.Stat_t, flags int) error {
	if err := unix.Fchownat(dir, name, int(st.Uid), int(st.Gid), flags); err != unix.EINVAL {
		return err
	}
	return nil
}
