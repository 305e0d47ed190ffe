// Command init is PID 1 of an environment.
//
// One thread does everything, woken by epoll: it builds the root file system and the confinement as package runtime tells
// it to, starts sessions, keeps their terminals and pipes (so that the agent outside may be killed and come back), reaps,
// forwards signals, and writes down how it all ended. It never calls out, resolves no host path after the pivot, and
// believes nothing: what it reads comes from a socket that only the host can reach, and it checks all the same.
//
// One more thread makes sockets for those inside (socketMaker).
//
// It is small on purpose: two goroutines, and none of the packages that would double its size.
package main

import (
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
)

// Attributes such as the cgroup namespace, the session keyring and the capability sets belong to a thread: what happens on
// the main one is what children inherit and what /proc/1 shows.
func init() { runtime.LockOSThread() }

// server is init's whole state.
type server struct {
	epoll, listen, status, signals int

	phase    initproto.Phase
	plan     *initproto.Plan
	pts      int // O_PATH of our devpts, or -1
	proc     int // procfs as we have mounted it, whatever is put over it; or -1
	held     []held
	sessions []*session
	handlers map[int32]func()
	conns    []*conn
	setup    *conn // waits for Main's exec
	log      *logger
	maker    *socketMaker // nil where nobody has to ask for sockets
	nextID   uint64
	deadline int64 // monotonic milliseconds after which a graceful end stops being graceful; 0: none
}

func main() {
	fds := inherited()
	unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // as our creator has it
	if _, becoming := syscall.Getenv("INIT_PROCESS"); becoming {
		prepareProcess(fds)
	}
	if len(fds) != 2 && len(fds) != 4 {
		exit(125) // not started by package runtime
	}
	// Nothing inside may look at us, not even root: ptrace(2), PR_SET_DUMPABLE.
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	name := []byte("init\x00")
	unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	s := &server{
		listen: fds[0], status: fds[1], pts: -1, proc: -1,
		phase: initproto.Waiting, handlers: map[int32]func(){},
	}
	if len(fds) == 4 {
		s.log = &logger{files: [2]int{fds[2], fds[3]}}
	}
	var err error
	if s.signals, err = arrangeSignals(); err != nil {
		exit(125)
	}
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		exit(125)
	}
	s.watch(s.signals, s.readSignals)
	s.watch(s.listen, s.accept)
	s.loop()
}

// inherited reads the numbers of the descriptors we were given.
func inherited() (fds []int) {
	text, _ := syscall.Getenv("INIT_FDS")
	for len(text) > 0 {
		n := 0
		for n < len(text) && text[n] != ',' {
			n++
		}
		fd, err := strconv.Atoi(text[:n])
		if err != nil || fd < 3 {
			return nil
		}
		fds = append(fds, fd)
		if n == len(text) {
			break
		}
		text = text[n+1:]
	}
	return fds
}

func exit(code int) {
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(code), 0, 0)
	}
}

// watch calls ready whenever fd is readable (or its other side is gone).
func (s *server) watch(fd int, ready func()) {
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	if unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &event) == nil {
		s.handlers[int32(fd)] = ready
	}
}

// drop closes a watched descriptor.
func (s *server) drop(fd int) {
	if _, watched := s.handlers[int32(fd)]; watched {
		unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, fd, nil)
		delete(s.handlers, int32(fd))
	}
	unix.Close(fd)
}

func (s *server) loop() {
	var events [16]unix.EpollEvent
	for {
		timeout := -1
		if s.deadline > 0 {
			timeout = int(max(0, s.deadline-milliseconds()))
		}
		n, err := unix.EpollWait(s.epoll, events[:], timeout)
		if err != nil && err != unix.EINTR {
			exit(125)
		}
		for _, event := range events[:max(n, 0)] {
			if ready := s.handlers[event.Fd]; ready != nil {
				ready()
			}
		}
		if s.deadline > 0 && milliseconds() >= s.deadline {
			s.end(initproto.Status{Code: 128 + int32(unix.SIGTERM), Signal: int32(unix.SIGTERM), Reason: "ended on request"})
		}
	}
}

func milliseconds() int64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano() / 1e6
}

// reap collects every child that has ended.
func (s *server) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err == unix.ECHILD && s.phase == initproto.Ending {
			s.end(initproto.Status{Code: 128 + int32(unix.SIGTERM), Signal: int32(unix.SIGTERM), Reason: "ended on request"})
		}
		if err != nil || pid <= 0 {
			return
		}
		for _, session := range s.sessions {
			if session.pid == pid && !session.exited {
				s.exited(session, status)
				break
			}
		}
	}
}

// end writes the environment's status where the host finds it, and ends the environment: the kernel kills what is left.
func (s *server) end(status initproto.Status) {
	if s.log != nil {
		s.log.drain()
	}
	if b, err := status.Encode(); err == nil {
		unix.Pwrite(s.status, b, 0)
	}
	exit(int(status.Code & 0xff))
}
