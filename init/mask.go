package main

import (
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
)

// readonly makes a path, and what is mounted below it, unwritable.
func (s *server) readonly(root int, path string) *fault {
	fd, err := s.openNamed(root, path)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil
	}
	if err != nil {
		return failed("make "+path+" read-only", err)
	}
	defer unix.Close(fd)
	tree, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err == nil {
		defer unix.Close(tree)
		err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	if err == nil {
		err = moveMount(tree, fd, "")
	}
	if err != nil {
		return failed("make "+path+" read-only", err)
	}
	return nil
}

// mask hides paths: a file behind /dev/null, a directory behind an empty read-only tmpfs.
func (s *server) mask(root int, paths []string) *fault {
	null := -1
	defer func() { closeAll([]int{null}) }()
	for _, path := range paths {
		fd, err := s.openNamed(root, path)
		if err == unix.ENOENT || err == unix.ENOTDIR {
			continue
		}
		if err != nil {
			return failed("mask "+path, err)
		}
		f := s.cover(fd, path, &null)
		unix.Close(fd)
		if f != nil {
			return f
		}
	}
	return nil
}

func (s *server) cover(fd int, path string, null *int) *fault {
	var tree int
	if isType(fd, unix.S_IFDIR) {
		m := &initproto.Mount{FSType: "tmpfs", Source: "tmpfs", Options: []string{"size=0", "nr_inodes=1", "mode=555"},
			AttrSet: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
		var f *fault
		if tree, f = newFS(m, "mask "+path); f != nil {
			return f
		}
	} else {
		if *null < 0 {
			// The host's, by way of our own copy of its mounts, and only if it is the real one.
			host, err := unix.Open("/dev/null", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				return failed("open /dev/null", err)
			}
			*null = host
			if !isDevice(host, unix.S_IFCHR, unix.Mkdev(1, 3)) {
				return invalid("the host's /dev/null is another device")
			}
		}
		var err error
		tree, err = unix.OpenTree(*null, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
		if err != nil {
			return failed("mask "+path, err)
		}
	}
	defer unix.Close(tree)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return failed("mask "+path, err)
	}
	if err := moveMount(tree, fd, ""); err != nil {
		return failed("mask "+path, err)
	}
	return nil
}
