// Package rawfork starts a process whose steps between fork and exec are a list of system calls prepared beforehand.
//
// The child of a fork in a Go program is single-threaded, which is what joining a user namespace, writing itself into a
// cgroup or installing a seccomp filter for itself alone asks for, but it cannot run ordinary Go: no allocation, no
// growing stack, no scheduler. So it does not run any: it walks the list. What a step needs (paths, buffers, descriptors)
// is made by the parent, and an error comes back as the number of the step and its errno.
//
// The child shares the parent's memory until its exec, on a small stack of its own, and the parent goes on meanwhile. So
// starting a process costs the same however big the parent is, no page is copied, and nobody waits for a slow exec. (It also
// means that a step that changes the user ids makes the kernel mark the shared memory as not to be dumped: PR_SET_DUMPABLE.)
//
// It does not wait for the process, and it does not resolve anything: numbers in, numbers out.
package rawfork

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Op says what the child does with the result of a step's system call.
type Op uint8

const (
	// Must ends the child when the call fails.
	Must Op = iota
	// Try goes on whatever the call returns.
	Try
	// Exec is a execve or execveat that may fail with "not here": the next step is tried, and when the list is over the
	// most telling errno is reported (EACCES before ENOENT).
	Exec
	// Byte is a read that must return exactly one byte: a go-ahead from the parent, whose death reads as end of file.
	Byte
	// Alive is a read from a non-blocking pipe that must find it empty but open: its writer, the parent, still lives.
	Alive
	// Fork is a clone(2) with CLONE_PARENT: the caller reports the new process's id to the parent and ends, the new
	// process goes on with the next step, in memory of its own or, with CLONE_VM, still in the parent's. There is one at most.
	Fork
	// More is a Byte after which the child goes on with the program given to Process.More, which must not be missing then.
	More
	// inside is a getcwd(2) whose buffer must then start with "/".
	inside
)

// A Step is one system call.
type Step struct {
	Op   Op
	Trap uintptr
	Args [6]uintptr
	load uint8   // a bit for each of Args that is the address of a Number
	into uintptr // of the Number that takes the result, or 0
}

// Number is the address of a 32-bit number that only the child comes to know: a descriptor that it opens or is sent.
type Number uintptr

// Into keeps the result of a step.
func (s *Step) Into(n Number) { s.into = uintptr(n) }

// Load has an argument of a step, which Add was given as the address of a Number, be what that is by then.
func (s *Step) Load(arg int) *Step {
	s.load |= 1 << arg
	return s
}

// Program is a list of steps under construction, with everything they point to.
type Program struct {
	steps []Step
	names []string
	keep  []any
	cwd   [unix.PathMax]byte // what an inside step reads
}

// Add appends a step; name is what an error will call it. What it returns is good until the next Add.
func (p *Program) Add(name string, op Op, trap uintptr, args ...uintptr) *Step {
	s := Step{Op: op, Trap: trap}
	copy(s.Args[:], args)
	p.steps = append(p.steps, s)
	p.names = append(p.names, name)
	return &p.steps[len(p.steps)-1]
}

// Number makes room for one, which is -1 (no descriptor) until a step has given it a value.
func (p *Program) Number() Number {
	n := new(int32)
	*n = -1
	p.keep = append(p.keep, n)
	return Number(unsafe.Pointer(n))
}

// String returns the address of a NUL-terminated copy of s that lives as long as the program.
func (p *Program) String(s string) uintptr {
	b := make([]byte, len(s)+1)
	copy(b, s)
	return p.Bytes(b)
}

// Strings returns the address of a NULL-terminated array of C strings, as execve wants it.
func (p *Program) Strings(list []string) uintptr {
	n := 0
	for _, s := range list {
		n += len(s) + 1
	}
	text := make([]byte, 0, n) // one block, never grown: the addresses taken stay good
	array := make([]uintptr, len(list)+1)
	p.keep = append(p.keep, text, array)
	for i, s := range list {
		at := len(text)
		text = append(append(text, s...), 0)
		array[i] = uintptr(unsafe.Pointer(&text[at]))
	}
	return uintptr(unsafe.Pointer(&array[0]))
}

// Bytes returns the address of b, which must not be empty and is kept alive.
func (p *Program) Bytes(b []byte) uintptr {
	p.keep = append(p.keep, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

// Keep holds on to whatever a raw address in a step points to.
func (p *Program) Keep(x any) { p.keep = append(p.keep, x) }

// Inside appends a check that the working directory is inside the root: getcwd(2) says "(unreachable)" where it is not.
func (p *Program) Inside(name string) {
	p.Add(name, inside, unix.SYS_GETCWD, uintptr(unsafe.Pointer(&p.cwd[0])), unix.PathMax)
}

// cloneArgs is struct clone_args of clone3(2), up to the field cgroup.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// Process is a child on its way to exec.
type Process struct {
	PID int
	// PIDFD refers to the process; close-on-exec.
	PIDFD int
	// Errors becomes readable when the exec has succeeded or a step has failed: Wait then returns at once.
	Errors int

	program *Program
	more    *Program
	child   *child
	stack   []byte
}

// child is what the child works on. It is kept by Process until the child has left our memory.
type child struct {
	steps  []Step
	more   []Step // what follows a More step; written before the byte it waits for
	errors int
	pidfd  int32
	first  int     // step to begin with: what a Fork with CLONE_VM goes on with
	stack  uintptr // top of what that then runs on
	clone  cloneArgs
	action [4]uint64 // struct sigaction: SIG_DFL
	report report
}

// Error is a failed step.
type Error struct {
	Step  string
	Errno syscall.Errno
}

func (e *Error) Error() string { return e.Step + ": " + e.Errno.Error() }
func (e *Error) Unwrap() error { return e.Errno }

// report is what the child writes: which step, which errno. A negative step announces the pid of a Fork.
type report struct {
	step int32
	n    int32
}

// stackSize is ample for run, whose frames the linker holds to less than a kilobyte.
const stackSize = 16 << 10

// Start forks. flags are clone(2) namespace flags; cgroup, if not negative, is a cgroup2 directory to be born into
// (clone3(2); without one the older clone(2) is called, which seccomp profiles let through).
// The caller must call Wait or Abort.
func Start(p *Program, flags uintptr, cgroup int) (*Process, error) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	stack, err := unix.Mmap(-1, 0, 2*stackSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		unix.Close(pipe[0])
		unix.Close(pipe[1])
		return nil, err
	}
	const room = 256 // above a child's first frame
	c := &child{steps: p.steps, errors: pipe[1], stack: uintptr(unsafe.Pointer(&stack[0])) + 2*stackSize - room}
	proc := &Process{Errors: pipe[0], program: p, child: c, stack: stack}
	flags |= unix.CLONE_VM | unix.CLONE_PIDFD
	top := uintptr(unsafe.Pointer(&stack[0])) + stackSize - room
	trap, a1, a2, a3 := uintptr(unix.SYS_CLONE), flags|uintptr(unix.SIGCHLD), top, uintptr(unsafe.Pointer(&c.pidfd))
	if cgroup >= 0 {
		c.clone = cloneArgs{
			flags:      uint64(flags) | unix.CLONE_INTO_CGROUP,
			pidfd:      uint64(uintptr(unsafe.Pointer(&c.pidfd))),
			exitSignal: uint64(unix.SIGCHLD),
			stack:      uint64(uintptr(unsafe.Pointer(&stack[0]))),
			stackSize:  stackSize - room,
			cgroup:     uint64(cgroup),
		}
		trap, a1, a2, a3 = unix.SYS_CLONE3, uintptr(unsafe.Pointer(&c.clone)), unsafe.Sizeof(c.clone), 0
	}
	syscall.ForkLock.Lock()
	pid, errno := fork(trap, a1, a2, a3, c)
	syscall.ForkLock.Unlock()
	unix.Close(pipe[1])
	if errno != 0 {
		unix.Close(pipe[0])
		unix.Munmap(stack)
		return nil, &Error{"clone", syscall.Errno(errno)}
	}
	proc.PID, proc.PIDFD = int(pid), int(c.pidfd)
	return proc, nil
}

// Forked makes PID and PIDFD speak of the process that the Fork step made, which is our child; the one in between is reaped.
// It must be called, before Wait, exactly when the program has a Fork step; when it fails nothing is left, and neither Wait
// nor Abort may be called.
func (p *Process) Forked() error {
	r, ok := p.read()
	if !ok {
		r = report{0, int32(unix.ESRCH)} // it was killed
	}
	reap(p.PID)
	unix.Close(p.PIDFD)
	if r.step >= 0 {
		p.release()
		return p.failure(r)
	}
	// It is our child (CLONE_PARENT), so its number is not given to another before we reap it.
	fd, err := unix.PidfdOpen(int(r.n), 0)
	if err != nil {
		unix.Kill(int(r.n), unix.SIGKILL)
		p.release()
		reap(int(r.n))
		return err
	}
	p.PID, p.PIDFD = int(r.n), fd
	return nil
}

// Wait returns when the program's exec has succeeded, or with an *Error when a step failed; a process that failed has
// exited and is left to be reaped by the caller, like any other.
func (p *Process) Wait() error {
	r, failed := p.read()
	p.release()
	if !failed {
		return nil
	}
	return p.failure(r)
}

// Abort kills and reaps the process, wherever it is, and closes its descriptors.
func (p *Process) Abort() {
	unix.PidfdSendSignal(p.PIDFD, unix.SIGKILL, nil, 0)
	p.release()
	reap(p.PID)
	unix.Close(p.PIDFD)
}

func reap(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
			return
		}
	}
}

// release waits until the child has left our memory, by exec or exit, which is when the kernel closes its end of the pipe,
// and then takes its stack away.
func (p *Process) release() {
	for {
		if _, again := p.read(); !again {
			break
		}
	}
	unix.Close(p.Errors)
	unix.Munmap(p.stack)
	runtime.KeepAlive(p.child)
	runtime.KeepAlive(p.program)
	runtime.KeepAlive(p.more)
	p.child, p.stack = nil, nil
}

// More says what the child goes on with at its More step, which its caller then lets it pass.
func (p *Process) More(more *Program) {
	p.more, p.child.more = more, more.steps
}

func (p *Process) failure(r report) error {
	names := p.program.names
	if p.more != nil {
		names = append(names[:len(names):len(names)], p.more.names...)
	}
	name := "a step before exec"
	if int(r.step) < len(names) {
		name = names[r.step]
	}
	return &Error{name, syscall.Errno(r.n)}
}

// read returns the next report; false at the end.
func (p *Process) read() (report, bool) {
	var b [8]byte
	for {
		n, err := unix.Read(p.Errors, b[:])
		if err == unix.EINTR {
			continue
		}
		if n != len(b) {
			return report{}, false
		}
		return *(*report)(unsafe.Pointer(&b)), true
	}
}

//go:linkname runtimeBeforeFork syscall.runtime_BeforeFork
func runtimeBeforeFork()

//go:linkname runtimeAfterFork syscall.runtime_AfterFork
func runtimeAfterFork()

// cloneVM makes the system call trap, a clone(2) or clone3(2) with CLONE_VM and a stack; the child calls the
// function at address run with c.
//
//go:noescape
func cloneVM(trap, a1, a2, a3, run uintptr, c *child) (pid, errno uintptr)

// fork keeps signals blocked around the clone, so that the child begins with all of them blocked.
//
//go:norace
//go:noinline
func fork(trap, a1, a2, a3 uintptr, c *child) (pid, errno uintptr) {
	f := run
	entry := **(**uintptr)(unsafe.Pointer(&f)) // a func value points to its code's address
	runtimeBeforeFork()
	pid, errno = cloneVM(trap, a1, a2, a3, entry, c)
	runtimeAfterFork()
	return pid, errno
}

// run is the child. It runs beside its parent, in its memory, on a stack that Go knows nothing of: it must not allocate, not
// grow the stack, not write a pointer, and not return.
//
//go:nosplit
//go:norace
//go:nocheckptr
func run(c *child) {
	// The handlers are copies of our parent's; none may run here once signals are let through.
	for sig := uintptr(1); sig <= 64; sig++ {
		syscall.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&c.action)), 0, 8, 0, 0)
	}
	var errno, missing syscall.Errno
	steps, passed, i := c.steps, 0, c.first
	for ; i < len(steps); i++ {
		s := &steps[i]
		a := s.Args
		for j := range a {
			if s.load&(1<<j) != 0 {
				a[j] = uintptr(**(**int32)(unsafe.Pointer(&a[j])))
			}
		}
		var res uintptr
		for tries := 0; ; tries++ {
			if s.Op == Fork && a[0]&unix.CLONE_VM != 0 { // the child begins anew, on the other half of the stack
				c.first = i + 1
				f := run
				pid, e := cloneVM(unix.SYS_CLONE, a[0], c.stack, 0, **(**uintptr)(unsafe.Pointer(&f)), c)
				res, errno = pid, syscall.Errno(e)
				break
			}
			res, _, errno = syscall.RawSyscall6(s.Trap, a[0], a[1], a[2], a[3], a[4], a[5])
			if errno == unix.EAGAIN && s.Trap == unix.SYS_OPENAT2 && tries < 64 { // somebody renamed something meanwhile
				continue
			}
			if errno != unix.EINTR || s.Op == Exec {
				break
			}
		}
		if errno == 0 && s.into != 0 {
			into := s.into
			**(**int32)(unsafe.Pointer(&into)) = int32(res)
		}
		switch s.Op {
		case Try:
			errno = 0
		case Exec:
			switch errno {
			case unix.EACCES:
				missing = errno
				errno = 0
			case unix.ENOENT, unix.ENOTDIR:
				if missing == 0 {
					missing = unix.ENOENT
				}
				errno = 0
			}
		case Byte:
			if errno == 0 && res != 1 {
				errno = unix.ECANCELED
			}
		case More:
			switch {
			case errno == 0 && res != 1:
				errno = unix.ECANCELED
			case errno == 0:
				passed += len(steps)
				steps, i = c.more, -1
			}
		case Alive:
			if errno == unix.EAGAIN {
				errno = 0
			} else {
				errno = unix.ECANCELED
			}
		case inside:
			if errno == 0 && **(**byte)(unsafe.Pointer(&a[0])) != '/' {
				errno = unix.EXDEV
			}
		case Fork:
			if errno == 0 && res != 0 {
				c.report.step, c.report.n = -1, int32(res)
				syscall.RawSyscall(unix.SYS_WRITE, uintptr(c.errors), uintptr(unsafe.Pointer(&c.report)), 8)
				for {
					syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
				}
			}
		}
		if errno != 0 {
			break
		}
	}
	if errno == 0 { // every Exec was tried in vain, or there was none
		i = len(steps) - 1
		errno = missing
		if errno == 0 {
			errno = unix.ENOEXEC
		}
	}
	c.report.step, c.report.n = int32(passed+i), int32(errno)
	syscall.RawSyscall(unix.SYS_WRITE, uintptr(c.errors), uintptr(unsafe.Pointer(&c.report)), 8)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
	}
}
