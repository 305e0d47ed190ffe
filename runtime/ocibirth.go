package runtime

import (
	"fmt"
	"os"
	goruntime "runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto/rawfork"
)

// connect makes the connection by which init is told what to do.
func (b *birth) connect() (ours *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket pair: %w", err)
	}
	theirs, _ := b.own(os.NewFile(uintptr(pair[1]), "init"), nil)
	b.keep = []*os.File{theirs}
	ours = os.NewFile(uintptr(pair[0]), "init")
	if b.v2, err = b.own(b.group.birthplace()); err == nil && b.enters {
		b.tasks, err = b.group.tasks()
		b.files = append(b.files, b.tasks...)
	}
	if err == nil {
		for _, j := range b.ns.join {
			var f *os.File
			if f, err = b.own(os.Open(j.path)); err != nil {
				err = fmt.Errorf("join a namespace: %w", err)
				break
			}
			if err = isNamespace(f, j.flag); err != nil {
				break
			}
			b.joins = append(b.joins, f)
		}
	}
	var sync [2]int
	if err == nil {
		sync, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		ours.Close()
		return nil, err
	}
	for i, fd := range sync {
		b.sync[i], _ = b.own(os.NewFile(uintptr(fd), "sync"), nil)
	}
	return ours, nil
}

// isNamespace says whether a file is a namespace of the kind that a flag stands for (ioctl_ns(2)).
func isNamespace(f *os.File, flag uintptr) error {
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || uintptr(kind) != flag {
		return fmt.Errorf("join a namespace: %s is not one of the kind asked for", f.Name())
	}
	return nil
}

// beget forks and prepares the process from outside.
func (b *birth) beget(x *OCIProcess) (err error) {
	flags, cgroup := b.cloneFlags(), -1
	if len(b.joins) > 0 {
		flags = 0
	}
	if b.v2 != nil {
		cgroup = int(b.v2.Fd())
	}
	goruntime.LockOSThread() // until its exec: the thread's death would be the child's
	p, err := rawfork.Start(b.steps(), flags, cgroup)
	if err != nil {
		goruntime.UnlockOSThread()
		return err
	}
	goruntime.KeepAlive(b)
	b.sync[1].Close()
	if len(b.joins) > 0 {
		if err := p.Forked(); err != nil {
			goruntime.UnlockOSThread()
			return err
		}
	}
	x.PID, x.pidfd, x.process, x.spec = p.PID, p.PIDFD, p, b.o.Spec
	defer func() {
		if err != nil {
			if why := x.reap(); why != nil {
				err = why
			}
			unix.Close(x.pidfd)
		}
	}()
	if err := prepare(p.PID, b.o.Spec, b.ns); err != nil {
		return err
	}
	if b.ns.time {
		if _, err := b.sync[0].Read(make([]byte, 1)); err != nil {
			return fmt.Errorf("time namespace: %w", err)
		}
		for clock, o := range b.o.Spec.Linux.TimeOffsets {
			line := fmt.Sprintf("%s %d %d\n", clock, o.Secs, o.Nanosecs)
			if err := writeFile("/proc/"+strconv.Itoa(p.PID)+"/timens_offsets", line); err != nil {
				return fmt.Errorf("timeOffsets: %w", err)
			}
		}
	}
	if x.Start, err = startTime(p.PID); err != nil {
		return err
	}
	if b.waits() {
		if _, err := b.sync[0].Write([]byte{1}); err != nil {
			return fmt.Errorf("the container's init ended before it began: %w", err)
		}
	}
	return nil
}
