package main

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
)

// What init keeps in its permitted and effective sets whatever the plan says, to start sessions as another user, hand them
// their terminal and signal them. A session gets exactly the plan's sets.
const initCaps = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_CHOWN | 1<<unix.CAP_KILL

// confine gives up, on every thread, what sessions must not have, so that they inherit nothing. The bounding set and
// no_new_privs have been seen to before our exec, when there was one thread; that left us with all capabilities, by way of
// an inheritable set that goes now.
func (s *server) confine(p *initproto.Plan) *fault {
	s.log.limit(p.LogMax)
	if !p.NoNewPrivs {
		if f := s.filters(p); f != nil { // needs the CAP_SYS_ADMIN that goes below
			return f
		}
	}
	keep := p.Caps.Permitted | initCaps
	if len(p.Seccomp) > 0 && !p.SeccompOnInit && !p.NoNewPrivs {
		keep |= 1 << unix.CAP_SYS_ADMIN // each session installs its filter itself
	}
	// A session's inheritable set must be within ours; with a plan that has none, it is empty.
	header, data := capData(keep, keep, p.Caps.Inheritable)
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(data)), 0); errno != 0 {
		return failed("capabilities", errno)
	}
	if p.NoNewPrivs {
		return s.filters(p)
	}
	return nil
}

// filters installs the profile, where init can live under it, on every thread, and then the one on netlink sockets on ours alone.
func (s *server) filters(p *initproto.Plan) *fault {
	if p.SeccompOnInit {
		if f := installSeccomp(p); f != nil {
			return f
		}
	}
	return s.superviseSockets(p)
}

// installSeccomp puts the filter on every thread at once, for now and for all that they start.
func installSeccomp(p *initproto.Plan) *fault {
	if len(p.Seccomp) == 0 {
		return nil
	}
	prog := sockFprog(p.Seccomp)
	tid, _, errno := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		uintptr(p.SeccompFlags|unix.SECCOMP_FILTER_FLAG_TSYNC), uintptr(unsafe.Pointer(prog)))
	if errno != 0 {
		return failed("seccomp filter", errno)
	}
	if tid != 0 {
		return invalid("seccomp filter: a thread of init could not be brought under it")
	}
	return nil
}

func (l *logger) limit(bytes int64) {
	if l != nil {
		l.max = max(bytes, 4096)
	}
}

func capData(effective, permitted, inheritable uint64) (*unix.CapUserHeader, *[2]unix.CapUserData) {
	data := &[2]unix.CapUserData{}
	for i := range data {
		data[i] = unix.CapUserData{
			Effective: uint32(effective >> (32 * i)), Permitted: uint32(permitted >> (32 * i)), Inheritable: uint32(inheritable >> (32 * i)),
		}
	}
	return &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, data
}

// rlimitName says which limit a number is, for errors.
func rlimitName(resource uint32) string {
	names := [...]string{"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS",
		"SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"}
	if int(resource) < len(names) {
		return "RLIMIT_" + names[resource]
	}
	return "of an unknown kind"
}
