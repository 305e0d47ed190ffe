package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links one path may lead through: the kernel's figure (path_resolution(7)).
const maxLinks = 40

// openTrusted opens (O_PATH) what a path of the host leads to, and follows only those symbolic links that nobody but
// the host's root can have made or put there: links of root's, in a directory of root's that others can't write to.
// A directory that environments share is neither. It is what fs.protected_symlinks does for sticky directories
// (proc(5)), for all of them. Every name is opened once and looked at by descriptor, so nobody can swap it in between.
func openTrusted(name string) (*os.File, error) {
	if name == "" {
		return nil, &os.PathError{Op: "open", Path: name, Err: unix.ENOENT}
	}
	abs, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	at, err := openPath(unix.AT_FDCWD, "/", "/")
	if err != nil {
		return nil, err
	}
	seen := "/" // where at is
	rest := abs
	for links := 0; ; {
		var next string
		next, rest, _ = strings.Cut(strings.TrimLeft(rest, "/"), "/")
		if next == "" {
			return at, nil
		}
		child, err := openPath(int(at.Fd()), next, path.Join(seen, next))
		if err != nil {
			at.Close()
			return nil, err
		}
		target, err := trustedLink(at, child)
		if err == nil && target != "" {
			if links++; links > maxLinks {
				err = &os.PathError{Op: "open", Path: name, Err: unix.ELOOP}
			}
		}
		switch {
		case err != nil:
			at.Close()
			child.Close()
			return nil, err
		case target == "":
			at.Close()
			at, seen = child, child.Name()
		default:
			child.Close()
			rest = target + "/" + rest
			if !path.IsAbs(target) {
				continue
			}
			at.Close()
			if at, err = openPath(unix.AT_FDCWD, "/", "/"); err != nil {
				return nil, err
			}
			seen = "/"
		}
	}
}

func openPath(dir int, name, shown string) (*os.File, error) {
	for {
		fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: shown, Err: err}
		}
		return os.NewFile(uintptr(fd), shown), nil
	}
}

// trustedLink returns where a symbolic link leads, "" for what is none, and an error for one that is not to be
// followed.
func trustedLink(dir, child *os.File) (string, error) {
	var st, parent unix.Stat_t
	if err := unix.Fstat(int(child.Fd()), &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: child.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", nil
	}
	if err := unix.Fstat(int(dir.Fd()), &parent); err != nil {
		return "", &os.PathError{Op: "stat", Path: dir.Name(), Err: err}
	}
	var on unix.Statfs_t
	if err := unix.Fstatfs(int(child.Fd()), &on); err != nil {
		return "", &os.PathError{Op: "statfs", Path: child.Name(), Err: err}
	}
	var why string
	switch {
	case on.Type == unix.PROC_SUPER_MAGIC:
		why = "what procfs calls by a name may be somewhere else" // /proc/PID/root reads as "/"
	case st.Uid != 0:
		why = fmt.Sprintf("the link is user %d's", st.Uid)
	case parent.Uid != 0:
		why = fmt.Sprintf("the directory is user %d's", parent.Uid)
	case parent.Mode&0o022 != 0:
		why = fmt.Sprintf("others than root may write to the directory (mode %o)", parent.Mode&0o7777)
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(child.Fd()), "", buf)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: child.Name(), Err: err}
	}
	target := string(buf[:n])
	if why != "" {
		return "", fmt.Errorf("%s is a symbolic link to %s, which is not followed: %s; name the place that is meant", child.Name(), target, why)
	}
	if target == "" {
		return "", &os.PathError{Op: "readlink", Path: child.Name(), Err: unix.ENOENT}
	}
	return target, nil
}
