package main

import (
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
)

// terminal makes a pseudo terminal of the container's own devpts.
func terminal(root int, x *initproto.Process) (master, slave int, f *fault) {
	master, err := openInside(root, "/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return -1, -1, failed("open a terminal (is a devpts mounted on /dev/pts?)", err)
	}
	if !isOn(master, unix.DEVPTS_SUPER_MAGIC) {
		unix.Close(master)
		return -1, -1, invalid("/dev/pts/ptmx is not on a devpts")
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return -1, -1, failed("unlock the terminal", err)
	}
	if x.Cols > 0 && x.Rows > 0 {
		unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: x.Rows, Col: x.Cols})
	}
	slave, err = ioctlInt(master, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if err != nil {
		return -1, -1, failed("open the terminal's other side", err)
	}
	unix.Fchown(slave, int(x.UID), -1)
	return master, slave, nil
}

// bindConsole puts the terminal on /dev/console, by descriptor on both sides.
func bindConsole(slave int) *fault {
	target, err := openInside(unix.AT_FDCWD, "/dev/console", unix.O_PATH, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return failed("/dev/console", err)
	}
	defer unix.Close(target)
	tree, err := unix.OpenTree(slave, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return failed("/dev/console", err)
	}
	defer unix.Close(tree)
	if err := moveMount(tree, target, ""); err != nil {
		return failed("/dev/console", err)
	}
	return nil
}
