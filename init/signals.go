package main

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Signals reach init in two ways. Those that are wishes (SIGTERM and so on) are blocked since before our exec and read from
// a signalfd. SIGCHLD can't be: Go's runtime unblocks it on every thread it makes. So it gets a handler of our own, in
// assembly, that makes an eventfd readable; going by Go's os/signal would put its scheduler, and up to ten milliseconds,
// between a child's end and our hearing of it.

var (
	childWake                         int32      // the eventfd, for the handler
	childOne                          uint64 = 1 // what the handler writes to it
	childHandlerAddr, childReturnAddr uintptr
)

// sigaction is struct sigaction as rt_sigaction(2) takes it.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

const (
	saRestorer = 0x04000000
	saOnStack  = 0x08000000
	saRestart  = 0x10000000
)

func setAction(sig unix.Signal, act *sigaction) {
	syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(act)), 0, 8, 0, 0)
}

// arrangeSignals gives every signal that Go's runtime does not need its default action back: those our creator ignored, and
// the faults, for the kernel shields PID 1 from a signal sent inside unless a handler is installed, and Go's would crash on
// a mere kill -SEGV 1. It returns a signalfd and an eventfd.
func arrangeSignals() (signals, children int, err error) {
	// Two real-time signals are the runtime's own (of which one makes AllThreadsSyscall work), SIGURG its preemption.
	for sig := unix.Signal(1); sig < 32; sig++ {
		if sig != unix.SIGCHLD && sig != unix.SIGURG {
			setAction(sig, &sigaction{})
		}
	}
	children, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, -1, err
	}
	childWake = int32(children)
	setAction(unix.SIGCHLD, &sigaction{handler: childHandlerAddr, restorer: childReturnAddr,
		flags: saRestorer | saOnStack | saRestart, mask: ^uint64(0)})
	every := &unix.Sigset_t{}
	for i := range every.Val {
		every.Val[i] = ^every.Val[i]
	}
	signals, err = unix.Signalfd(-1, every, unix.SFD_CLOEXEC|unix.SFD_NONBLOCK)
	return signals, children, err
}

// readChildren takes note of ended children.
func (s *server) readChildren() {
	var b [8]byte
	unix.Read(s.children, b[:])
	s.reap()
}
