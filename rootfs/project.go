package rootfs

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Project quotas (quotactl_fd(2), linux/quota.h, linux/dqblk_xfs.h; project ids: ioctl_xfs_fsgetxattr(2)). XFS and ext4 take
// the same calls.
const (
	prjQuota    = 2
	qSetQuota   = 0x800008
	qXGetQStatV = 'X'<<8 + 8

	qifBLimits = 1
	qifILimits = 4

	qstatVersion1 = 1
	pdqEnforced   = 1 << 5 // FS_QUOTA_PDQ_ENFD

	fsIocGetXattr    = 0x801c581f
	fsIocSetXattr    = 0x401c5820
	xflagProjInherit = 0x200
)

// ifDqblk is struct if_dqblk: blocks of 1 KiB.
type ifDqblk struct {
	bhard, bsoft, curspace, ihard, isoft, curinodes, btime, itime uint64
	valid                                                         uint32
	_                                                             uint32
}

// fsxattr is struct fsxattr.
type fsxattr struct {
	xflags, extsize, nextents, projid, cowextsize uint32
	_                                             [8]byte
}

func quotactl(fd uintptr, command, id uint32, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, fd, uintptr(command<<8|prjQuota), uintptr(id), uintptr(arg), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// projectQuotas tells whether the file system of a directory enforces them.
func projectQuotas(dir string) (bool, error) {
	d, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer d.Close()
	stat := struct { // the beginning of struct fs_quota_statv
		version, _ uint8
		flags      uint16
		_          [252]byte
	}{version: qstatVersion1}
	if err := quotactl(d.Fd(), qXGetQStatV, 0, unsafe.Pointer(&stat)); err != nil {
		return false, nil // in one of many ways: no quotas on this file system, in this kernel, or not on
	}
	return stat.flags&pdqEnforced != 0, nil
}

// setProject makes dir, and all that will be made in it, a project that may have so many bytes, and as many files as an
// image of that size.
func setProject(dir string, project uint32, bytes int64) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := limitProject(d, project, bytes); err != nil {
		return err
	}
	var x fsxattr
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), fsIocGetXattr, uintptr(unsafe.Pointer(&x))); errno != 0 {
		return fmt.Errorf("read the project of %s: %w", dir, errno)
	}
	x.projid, x.xflags = project, x.xflags|xflagProjInherit
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), fsIocSetXattr, uintptr(unsafe.Pointer(&x))); errno != 0 {
		return fmt.Errorf("make %s project %d: %w", dir, project, errno)
	}
	return nil
}

// limitProject sets a project's quota in the file system of d; 0 takes it away.
func limitProject(d *os.File, project uint32, bytes int64) error {
	q := ifDqblk{bhard: uint64(bytes) / 1024, ihard: uint64(bytes) / bytesPerInode, valid: qifBLimits | qifILimits}
	q.bsoft, q.isoft = q.bhard, q.ihard
	if err := quotactl(d.Fd(), qSetQuota, project, unsafe.Pointer(&q)); err != nil {
		return fmt.Errorf("set the quota of project %d on the file system of %s: %w", project, d.Name(), err)
	}
	return nil
}

// dropProject forgets a project's quota, once its files are deleted.
func (s *Store) dropProject(project uint32) error {
	d, err := os.Open(s.root)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := limitProject(d, project, 0); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}
