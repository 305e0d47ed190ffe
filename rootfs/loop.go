package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// loopTries bounds how often another process may snatch the free loop device we were told of.
const loopTries = 64

// mountImage mounts the ext4 in a file and returns its root as a detached mount. The loop device under it is let go by the
// kernel when the last mount of it is (LO_FLAGS_AUTOCLEAR, loop(4)).
func mountImage(ctx context.Context, path string) (*os.File, error) {
	dev, err := attachLoop(ctx, path)
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	fd, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen ext4: %w", err)
	}
	defer unix.Close(fd)
	// What is deleted inside is given back outside; the inode tables, which mkfs left alone, stay holes.
	for _, flag := range []string{"discard", "noinit_itable"} {
		if err := unix.FsconfigSetFlag(fd, flag); err != nil {
			return nil, fsError(fd, "ext4: set "+flag, err)
		}
	}
	for key, value := range map[string]string{"source": dev.Name(), "errors": "remount-ro"} {
		if err := unix.FsconfigSetString(fd, key, value); err != nil {
			return nil, fsError(fd, "ext4: set "+key, err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, fsError(fd, "ext4: mount "+path, err)
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOATIME)
	if err != nil {
		return nil, fsError(fd, "ext4: fsmount", err)
	}
	return os.NewFile(uintptr(m), path), nil
}

// attachLoop gives a file a loop device, which lasts as long as it is open or mounted.
func attachLoop(ctx context.Context, path string) (*os.File, error) {
	back, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer back.Close()
	if err := lockImage(ctx, back); err != nil {
		return nil, err
	}
	control, err := openLoopControl()
	if err != nil {
		return nil, fmt.Errorf("a disk limit needs loop devices here (modprobe loop), or a root on a file system with project quotas: %w", err)
	}
	defer control.Close()
	for range loopTries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		dev, err := openLoop(n)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(back.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO}}
		copy(config.Info.File_name[:len(config.Info.File_name)-1], path)
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("put %s on %s: %w", path, dev.Name(), err)
		}
	}
	return nil, errors.New("every free loop device was taken by somebody else first")
}

// lockImage waits until no loop device has the file: two mounts of one image would ruin it, and the kernel takes its time to
// let go of one that was closed. The lock is the open file's, which the device keeps.
func lockImage(ctx context.Context, back *os.File) error {
	for range 5000 {
		err := unix.Flock(int(back.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %s: %w", back.Name(), err)
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s is mounted already", back.Name())
}

// Device numbers of Documentation/admin-guide/devices.txt.
var (
	loopControl = int(unix.Mkdev(10, 237))
	loopMajor   = uint32(7)
)

// openLoopControl opens the device that gives out loop devices. Opening its node is also what makes the kernel load the
// module, so where there is none it is made.
func openLoopControl() (*os.File, error) {
	f, made, err := openNode("/dev/loop-control", unix.S_IFCHR, loopControl)
	if err != nil && made {
		_ = os.Remove("/dev/loop-control")
	}
	return f, err
}

func openLoop(n int) (*os.File, error) {
	f, _, err := openNode("/dev/loop"+strconv.Itoa(n), unix.S_IFBLK, int(unix.Mkdev(loopMajor, uint32(n))))
	return f, err
}

// openNode opens a device, and makes its node first where no devtmpfs has.
func openNode(path string, kind uint32, device int) (f *os.File, made bool, err error) {
	f, err = os.OpenFile(path, os.O_RDWR, 0)
	if !errors.Is(err, os.ErrNotExist) {
		return f, false, err
	}
	if err := unix.Mknod(path, kind|0o600, device); err == nil {
		made = true
	} else if !errors.Is(err, unix.EEXIST) {
		return nil, false, &os.PathError{Op: "mknod", Path: path, Err: err}
	}
	f, err = os.OpenFile(path, os.O_RDWR, 0)
	return f, made, err
}
