package main

import (
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
)

// identify takes on the process's ids and capabilities.
func identify(p *initproto.Plan, raw func(uintptr, ...uintptr) syscall.Errno) *fault {
	x := p.Process
	raw(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1)
	groups := append([]uint32{0}, p.Groups...)[1:] // not nil: the address must be one
	if errno := raw(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups)))); errno != 0 {
		if errno != unix.EPERM || len(groups) > 0 || !p.UserNS { // a user namespace may deny it, with nothing to be cleared
			return failed("groups (are they mapped in the user namespace?)", errno)
		}
	}
	g, u := uintptr(x.GID), uintptr(x.UID)
	if errno := raw(unix.SYS_SETRESGID, g, g, g); errno != 0 {
		return failed("gid "+strconv.FormatUint(uint64(g), 10)+" (is it mapped in the user namespace?)", errno)
	}
	if errno := raw(unix.SYS_SETRESUID, u, u, u); errno != 0 {
		return failed("uid "+strconv.FormatUint(uint64(u), 10)+" (is it mapped in the user namespace?)", errno)
	}
	raw(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0)
	header, data := capData(p.Caps.Effective, p.Caps.Permitted, p.Caps.Inheritable)
	if errno := raw(unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(data))); errno != 0 {
		return failed("capabilities", errno)
	}
	raw(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL)
	for bit := range 64 {
		if p.Caps.Ambient&(1<<bit) != 0 {
			if errno := raw(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(bit)); errno != 0 {
				return failed("ambient capabilities", errno)
			}
		}
	}
	return nil
}

// ownNull opens anew, inside, what is /dev/null among 0, 1 and 2: the host's node has no business here, and containerd hands
// out one for reading only, to which a program that writes could not.
func ownNull() {
	for fd := range 3 {
		if !isDevice(fd, unix.S_IFCHR, unix.Mkdev(1, 3)) {
			continue
		}
		null, err := openInside(unix.AT_FDCWD, "/dev/null", unix.O_RDWR|unix.O_NONBLOCK, unix.RESOLVE_NO_SYMLINKS)
		if err != nil {
			return // a container without one keeps what it was given
		}
		if isDevice(null, unix.S_IFCHR, unix.Mkdev(1, 3)) {
			unix.Dup3(null, fd, 0)
		}
		unix.Close(null)
	}
}

// ownStdio gives pipes and files on 0, 1 and 2 to a process that is not root, so that it may open /dev/stdout.
func ownStdio(x *initproto.Process) {
	if x.UID == 0 {
		return
	}
	for fd := range 3 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFCHR && st.Uid != x.UID {
			unix.Fchown(fd, int(x.UID), -1) // a file system may refuse; then it was not to be
		}
	}
}

// scheduling sets what the kernel's schedulers go by.
func scheduling(x *initproto.Process) *fault {
	if len(x.Scheduler) > 0 {
		if _, _, errno := syscall.RawSyscall(unix.SYS_SCHED_SETATTR, 0, uintptr(unsafe.Pointer(&x.Scheduler[0])), 0); errno != 0 {
			return failed("scheduler", errno)
		}
	}
	if x.SetIOPriority {
		if _, _, errno := syscall.RawSyscall(unix.SYS_IOPRIO_SET, 1, 0, uintptr(x.IOPriority)); errno != 0 {
			return failed("ioPriority", errno)
		}
	}
	if len(x.Affinity) > 0 {
		if _, _, errno := syscall.RawSyscall(unix.SYS_SCHED_SETAFFINITY, 0, uintptr(len(x.Affinity)), uintptr(unsafe.Pointer(&x.Affinity[0]))); errno != 0 {
			return failed("CPU affinity", errno)
		}
	}
	if x.SetMemoryPolicy {
		mask, bits := uintptr(0), uintptr(0)
		if len(x.MemoryPolicy) > 0 {
			mask, bits = uintptr(unsafe.Pointer(&x.MemoryPolicy[0])), uintptr(len(x.MemoryPolicy)*8+1)
		}
		if _, _, errno := syscall.RawSyscall(unix.SYS_SET_MEMPOLICY, uintptr(x.MemoryPolicyMode), mask, bits); errno != 0 {
			return failed("memoryPolicy", errno)
		}
	}
	if x.SetPersonality {
		if _, _, errno := syscall.RawSyscall(unix.SYS_PERSONALITY, uintptr(x.Personality), 0, 0); errno != 0 {
			return failed("personality", errno)
		}
	}
	return nil
}

func cwdOf(x *initproto.Process) string {
	if x.Cwd == "" {
		return "/"
	}
	return x.Cwd
}
