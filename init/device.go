package main

import (
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
)

// devices fills /dev.
func (s *server) devices(root int, p *initproto.Plan) *fault {
	for i := range p.Devices {
		if f := s.device(root, &p.Devices[i], p.UserNS); f != nil {
			return f
		}
	}
	if !p.OwnDev {
		return nil
	}
	root, path := s.place(root, "/dev")
	dev, err := openInside(root, path, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return failed("open /dev", err)
	}
	defer unix.Close(dev)
	for _, link := range [][2]string{
		{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"},
		{"pts/ptmx", "ptmx"},
	} {
		if err := unix.Symlinkat(link[0], dev, link[1]); err != nil && err != unix.EEXIST {
			return failed("make /dev/"+link[1], err)
		}
	}
	return nil
}

// device makes a node, or binds the host's where making one is refused (always in a user namespace).
func (s *server) device(root int, d *initproto.Device, userNS bool) *fault {
	what := "device " + d.Path
	number := unix.Mkdev(d.Major, d.Minor)
	if d.Mode&unix.S_IFMT == unix.S_IFIFO {
		number = 0
	}
	if !userNS || d.Mode&unix.S_IFMT == unix.S_IFIFO {
		at, path := s.place(root, d.Path)
		dir, name := parent(path)
		above, err := makeDirectory(at, dir)
		if err != nil {
			return failed(what, err)
		}
		defer unix.Close(above)
		err = unix.Mknodat(above, name, d.Mode, int(number))
		if err == nil {
			if err := unix.Fchownat(above, name, int(d.UID), int(d.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return failed(what+": owner", err)
			}
			node, err := unix.Openat(above, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				return failed(what, err)
			}
			defer unix.Close(node)
			if !isDevice(node, d.Mode, number) {
				return invalid(what + ": something else is there")
			}
			if err := chmodPath(node, d.Mode&0o7777); err != nil {
				return failed(what+": mode", err)
			}
			return nil
		}
		if err == unix.EEXIST {
			node, err := unix.Openat(above, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err == nil {
				defer unix.Close(node)
				if isDevice(node, d.Mode, number) {
					return nil
				}
			}
			return invalid(what + ": something else is there")
		}
		if err != unix.EPERM {
			return failed(what, err)
		}
	}
	if d.Host == "" {
		return invalid(what + ": the host has no such node to lend")
	}
	host, err := unix.Open(d.Host, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed(what+": the host's "+d.Host, err)
	}
	defer unix.Close(host)
	if !isDevice(host, d.Mode, number) {
		return invalid(what + ": the host's " + d.Host + " is another device")
	}
	return s.bind(root, host, &initproto.Mount{Dest: d.Path, File: true, Strict: true, AttrSet: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC})
}

// chmodPath changes the mode of what an O_PATH descriptor refers to.
func chmodPath(fd int, mode uint32) error {
	_, _, errno := unix.Syscall6(unix.SYS_FCHMODAT2, uintptr(fd), uintptr(unsafe.Pointer(&[1]byte{})), uintptr(mode), unix.AT_EMPTY_PATH, 0, 0)
	if errno == unix.ENOSYS { // before Linux 6.6; the host's procfs is still there
		return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), mode)
	}
	if errno != 0 {
		return errno
	}
	return nil
}

func isDevice(fd int, mode uint32, number uint64) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == mode&unix.S_IFMT && st.Rdev == number
}

// bind mounts what an O_PATH descriptor refers to at a place inside.
func (s *server) bind(root, from int, m *initproto.Mount) *fault {
	what := "bind " + m.Dest
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	set := uint(unix.AT_EMPTY_PATH)
	if m.Recursive {
		flags |= unix.AT_RECURSIVE
		set |= unix.AT_RECURSIVE
	}
	tree, err := unix.OpenTree(from, "", flags)
	if err != nil {
		return failed(what, err)
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", set, &unix.MountAttr{Attr_set: m.AttrSet}); err != nil {
		return failed(what, err)
	}
	target, f := s.target(root, m, what)
	if f != nil {
		return f
	}
	defer unix.Close(target)
	if err := moveMount(tree, target, ""); err != nil {
		return failed(what, err)
	}
	return nil
}

// openNamed opens what is to be masked or made read-only.
func (s *server) openNamed(root int, path string) (int, error) {
	at, rest := s.place(root, path)
	fd, err := openInside(at, rest, unix.O_PATH, 0)
	if err == unix.ENOENT && at != root { // by a link that leads out of the mount, perhaps
		fd, err = openInside(root, path, unix.O_PATH, 0)
	}
	return fd, err
}
