package runtime

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto/rawfork"
)

// What a user namespace holds of some kinds (inotify instances, bytes of message queues, queued signals, locked memory, more
// namespaces) the kernel charges to whoever made it, too, by effective user id (kernel/ucount.c). Made by root, all
// containers and the host's root would share one allowance. So each namespace is made by the first id that it maps, which
// is nobody else's.

// startOwned is rawfork.Start, with a user namespace that belongs to owner. Where the machine does not let us become owner
// for that moment the namespace is ours, as Probe says. The caller has locked its thread.
func startOwned(p *rawfork.Program, flags uintptr, cgroup int, owner uint32) (proc *rawfork.Process, err error) {
	err = asUser(owner, func() (err error) {
		proc, err = rawfork.Start(p, flags, cgroup)
		return err
	})
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return rawfork.Start(p, flags, cgroup)
	}
	return proc, err
}

// asUser calls f with another effective user id and the same capabilities. Both belong to the thread: the caller has locked
// it, and f must not leave it.
func asUser(uid uint32, f func() error) error {
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(header, &caps[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	// The kernel forgets it with every change of user. It may be on this very thread that somebody's death is to end us.
	var death uint32
	if err := unix.Prctl(unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&death)), 0, 0, 0); err != nil {
		return fmt.Errorf("parent death signal: %w", err)
	}
	before := uint32(unix.Geteuid())
	if err := setEUID(uid); err != nil {
		return fmt.Errorf("become user %d: %w", uid, err)
	}
	defer func() {
		// The real and saved ids have stayed, so nothing but a kernel out of memory refuses these. A thread of Go's
		// under a strange user must not be given back.
		err := setEUID(before)
		if err == nil {
			err = unix.Capset(header, &caps[0])
		}
		if err != nil {
			panic(fmt.Sprintf("runtime: become user %d again: %v", before, err))
		}
		if death != 0 {
			unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(death), 0, 0, 0)
		}
	}()
	if err := unix.Capset(header, &caps[0]); err != nil {
		return fmt.Errorf("keep capabilities as user %d: %w", uid, err)
	}
	return f()
}

// setEUID changes the calling thread's effective user id, and no other thread's as Go's own would.
func setEUID(uid uint32) error {
	const same = ^uintptr(0)
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, same, uintptr(uid), same); errno != 0 {
		return errno
	}
	return nil
}

// restoreDumpable undoes what the kernel does to a process one of whose threads, or a child in its memory (rawfork), takes
// other ids: it marks it as not to be dumped.
func (r *Runtime) restoreDumpable() {
	if r.dumpable == 1 {
		unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	}
}

// firstID is the id outside that a mapping begins with: what the owner of the namespace is to be.
func firstID(mappings []specs.LinuxIDMapping) uint32 {
	for _, m := range mappings {
		if m.ContainerID == 0 {
			return m.HostID
		}
	}
	return mappings[0].HostID
}

// ownerOf asks a user namespace who made it (ioctl_ns(2)).
func ownerOf(ns uintptr) (uid uint32, err error) {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, ns, unix.NS_GET_OWNER_UID, uintptr(unsafe.Pointer(&uid)))
	if errno != 0 {
		return 0, errno
	}
	return uid, nil
}
