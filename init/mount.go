package main

import (
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
)

// mount makes one mount. Its target is opened inside the root, checked, and mounted upon by descriptor, so that no
// symlink can be put in its way between the check and the deed.
func (s *server) mount(root int, m *initproto.Mount, fds []int) *fault {
	what := "mount " + m.Dest
	if len(m.Dest) == 0 || m.Dest[0] != '/' {
		return invalid(what + ": the target must be an absolute path")
	}
	source := -1
	if m.FD == initproto.Remount {
		return s.remount(root, m, what)
	}
	if m.FD >= 0 {
		if int(m.FD) >= len(fds) {
			return invalid(what + ": there is no such descriptor")
		}
		source = fds[m.FD]
	} else if m.FD == initproto.FromPath {
		fd, err := bindSource(m)
		if err != nil {
			return failed(what+": "+m.Source, err)
		}
		source = fd
	} else {
		if m.LikeTarget {
			likeTarget(root, m)
		}
		fd, f := newFS(m, what)
		if f != nil {
			if m.Optional {
				return nil
			}
			return f
		}
		source = fd
	}
	target, f := s.target(root, m, what)
	if f != nil {
		return f
	}
	defer unix.Close(target)
	if m.CopyUp {
		if f := copyUp(target, source, what); f != nil {
			return f
		}
	}
	// A tree that stays detached takes this only before, a mount from another namespace only afterwards.
	shared := propagate(source, m.Propagation) == nil
	if err := moveMount(source, target, ""); err != nil {
		return failed(what, err)
	}
	if !shared {
		if err := propagate(source, m.Propagation); err != nil {
			return failed(what+": propagation", err)
		}
	}
	isProc := m.FD < 0 && m.FSType == "proc" && s.proc < 0
	if isProc {
		s.proc = source // a handle to procfs that nobody inside can put something over
	}
	switch {
	case m.Dest == "/proc" || m.Dest == "/sys" || m.Dest == "/dev":
		s.held = append(s.held, held{m.Dest, source, m.FD < 0 && !isProc})
	case m.FD < 0 && !isProc:
		unix.Close(source)
	}
	return nil
}

// held is a mount of ours that we keep hold of while setting up.
type held struct {
	dest string
	fd   int
	own  bool // ours to close
}

// place says by what to reach a path: below /proc, /sys and /dev by the mount that we have put there, not by its name in
// the root. A root that somebody else writes to meanwhile may lead that name elsewhere, and back again, and what was to be
// masked would then be missed (CVE-2025-31133 and others).
func (s *server) place(root int, path string) (int, string) {
	for i := len(s.held) - 1; i >= 0; i-- {
		dest := s.held[i].dest
		if path == dest {
			return s.held[i].fd, "/"
		}
		if len(path) > len(dest) && path[:len(dest)] == dest && path[len(dest)] == '/' {
			return s.held[i].fd, path[len(dest):]
		}
	}
	return root, path
}

// letGo closes what was held.
func (s *server) letGo() {
	for _, h := range s.held {
		if h.own {
			unix.Close(h.fd)
		}
	}
	s.held = nil
}

// propagate says what a mount shares with others (MS_PRIVATE and so on, 0 for no change).
func propagate(fd int, propagation uint64) error {
	if propagation == 0 {
		return nil
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if propagation&unix.MS_REC != 0 {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(fd, "", flags, &unix.MountAttr{Propagation: propagation &^ unix.MS_REC})
}

// bindSource makes the detached mount of a host's path.
func bindSource(m *initproto.Mount) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if len(m.Options) > 0 {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, flags)
	if err != nil {
		return -1, err
	}
	if m.AttrSet|m.AttrClear != 0 {
		attr := &unix.MountAttr{Attr_set: m.AttrSet, Attr_clr: m.AttrClear}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// remount changes the attributes of an earlier mount, once what lies below it has been put there.
func (s *server) remount(root int, m *initproto.Mount, what string) *fault {
	root, dest := s.place(root, m.Dest)
	fd, err := openInside(root, dest, unix.O_PATH, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return failed(what, err)
	}
	defer unix.Close(fd)
	attr := &unix.MountAttr{Attr_set: m.AttrSet}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr)
	if err == unix.EINVAL {
		// In a detached tree only the root can be changed: put a changed copy over it.
		tree, err2 := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
		if err2 == nil {
			defer unix.Close(tree)
			if err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err == nil {
				err = moveMount(tree, fd, "")
			}
		}
	}
	if err != nil {
		return failed(what, err)
	}
	return nil
}

// target opens, or makes, the place for a mount.
func (s *server) target(root int, m *initproto.Mount, what string) (fd int, f *fault) {
	var more uint64
	if m.Strict {
		more = unix.RESOLVE_NO_SYMLINKS
	}
	root, dest := s.place(root, m.Dest)
	fd, err := openInside(root, dest, unix.O_PATH, more)
	if err == unix.ENOENT {
		fd, err = makeMissing(root, dest, m.File)
	}
	switch {
	case err == unix.ELOOP && m.Strict:
		return -1, invalid(what + ": the image has a symlink there; refused")
	case err != nil:
		return -1, failed(what+": open the target", err)
	case m.File && !isType(fd, unix.S_IFREG, unix.S_IFCHR), !m.File && !isType(fd, unix.S_IFDIR):
		unix.Close(fd)
		want := "directory"
		if m.File {
			want = "file"
		}
		return -1, invalid(what + ": the target in the image is not a " + want)
	}
	return fd, nil
}

// newFS returns a detached mount of a new file system.
func newFS(m *initproto.Mount, what string) (int, *fault) {
	fs, err := unix.Fsopen(m.FSType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, failed(what+": file system "+m.FSType, err)
	}
	defer unix.Close(fs)
	if m.Source != "" {
		err = unix.FsconfigSetString(fs, "source", m.Source)
	}
	for _, option := range m.Options {
		if err != nil {
			break
		}
		key, value, hasValue := cut(option)
		if hasValue {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			what += ": option " + option
		}
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	fd := -1
	if err == nil {
		fd, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(m.AttrSet))
	}
	if err != nil {
		f := failed(what, err)
		var log [256]byte
		for range 4 {
			n, err := unix.Read(fs, log[:])
			if n <= 0 || err != nil {
				break
			}
			f.text += "; " + string(log[:n])
		}
		return -1, f
	}
	return fd, nil
}

func cut(option string) (key, value string, hasValue bool) {
	for i := range len(option) {
		if option[i] == '=' {
			return option[:i], option[i+1:], true
		}
	}
	return option, "", false
}
