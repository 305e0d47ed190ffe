package main

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
)

// Signals come through a handler of our own, in assembly, that writes their numbers to a pipe. A signalfd is not to be had:
// Go's runtime unblocks SIGCHLD, SIGTERM and others on every thread it makes. And its own way, os/signal, would put a second
// thread and up to ten milliseconds of its scheduler between a child's end and our hearing of it.

var (
	signalPipe                          int32 // for the handler
	signalBytes                         [65]byte
	signalHandlerAddr, signalReturnAddr uintptr
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

// arrangeSignals returns the pipe that signals arrive in. Those that mean nothing to us get their default action back: some
// our creator may have ignored, and for some Go's runtime has installed handlers. The kernel shields PID 1 from a signal
// sent inside unless a handler is installed, and Go's would crash on a mere kill -SEGV 1.
func arrangeSignals() (int, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return -1, err
	}
	signalPipe = int32(p[1])
	for i := range signalBytes {
		signalBytes[i] = byte(i)
	}
	ours := sigaction{handler: signalHandlerAddr, restorer: signalReturnAddr, flags: saRestorer | saOnStack | saRestart, mask: ^uint64(0)}
	// Above 31 there are the runtime's own, of which one makes AllThreadsSyscall work; SIGURG is its preemption.
	for sig := unix.Signal(1); sig < 32; sig++ {
		switch sig {
		case unix.SIGURG:
		case unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2:
			setAction(sig, &ours)
		default:
			setAction(sig, &sigaction{})
		}
	}
	return p[0], nil
}

// readSignals takes what has been sent to us: ends of children, and wishes, which are Main's to grant.
func (s *server) readSignals() {
	var buf [64]byte
	for {
		n, err := unix.Read(s.signals, buf[:])
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			break
		}
		for _, b := range buf[:n] {
			sig := unix.Signal(b)
			if sig == unix.SIGCHLD {
				continue
			}
			if main := s.find("main"); main != nil && !main.exited {
				unix.Kill(main.pid, sig)
			} else if sig == unix.SIGTERM {
				s.terminate()
			}
		}
	}
	s.reap()
}

// graceMillis is how long processes have to end after a request to.
const graceMillis = 10_000

// terminate asks everything to end, and ends when it has or when the time is over.
func (s *server) terminate() {
	if s.phase == initproto.Ending {
		return
	}
	s.phase = initproto.Ending
	s.deadline = milliseconds() + graceMillis
	unix.Kill(-1, unix.SIGTERM)
	unix.Kill(-1, unix.SIGCONT)
	for _, session := range s.sessions {
		if session.tty && !session.exited {
			unix.Kill(session.pid, unix.SIGHUP) // an interactive shell ignores SIGTERM, but heeds the loss of its terminal
		}
	}
}
