package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// resolve opens path inside the tree that root refers to: no symlink, "..", or magic link leads out of it.
func resolve(root int, path string, flags, resolve uint64) (int, error) {
	how := &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve | unix.RESOLVE_NO_MAGICLINKS}
	for range 64 {
		fd, err := unix.Openat2(root, path, how)
		if err == unix.EAGAIN || err == unix.EINTR { // somebody renamed something meanwhile
			continue
		}
		return fd, err
	}
	return -1, unix.EAGAIN
}

// openInside opens a path of the environment; root is AT_FDCWD once the pivot is done, as the working directory is "/".
func openInside(root int, path string, flags int, more uint64) (int, error) {
	return resolve(root, path, uint64(flags), unix.RESOLVE_IN_ROOT|more)
}

// parent splits an absolute path into its directory and last element.
func parent(path string) (dir, name string) {
	for len(path) > 1 && path[len(path)-1] == '/' {
		path = path[:len(path)-1]
	}
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[:max(i, 1)], path[i+1:]
		}
	}
	return "/", path
}

// makeDirectory opens a directory inside as O_PATH, making what is missing of it.
func makeDirectory(root int, path string) (int, error) {
	fd, err := openInside(root, path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != unix.ENOENT {
		return fd, err
	}
	return makeMissing(root, path, false)
}

// makeMissing makes a directory, or an empty file, that has just been found missing, and opens it as O_PATH.
func makeMissing(root int, path string, file bool) (int, error) {
	dir, name := parent(path)
	if name == "" || name == "." || name == ".." {
		return -1, unix.ENOENT
	}
	above, err := makeDirectory(root, dir)
	if err != nil {
		return -1, err
	}
	defer unix.Close(above)
	if file {
		fd, err := unix.Openat(above, name, unix.O_RDONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
		if err == nil {
			unix.Close(fd)
		} else if err != unix.EEXIST {
			return -1, err
		}
		return resolve(above, name, unix.O_PATH, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	}
	if err := unix.Mkdirat(above, name, 0o755); err != nil && err != unix.EEXIST {
		return -1, err
	}
	return resolve(above, name, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
}

// isType says what kind of file a descriptor refers to (S_IFDIR and so on).
func isType(fd int, kinds ...uint32) bool {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return false
	}
	for _, kind := range kinds {
		if st.Mode&unix.S_IFMT == kind {
			return true
		}
	}
	return false
}

// isOn says whether a descriptor is on a file system of that magic number.
func isOn(fd int, magic int64) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && int64(st.Type) == magic
}

func ioctlInt(fd int, request uintptr, arg int) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

func sockFprog(program []byte) *unix.SockFprog {
	return &unix.SockFprog{
		Len:    uint16(len(program) / int(unsafe.Sizeof(unix.SockFilter{}))),
		Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(program))),
	}
}
