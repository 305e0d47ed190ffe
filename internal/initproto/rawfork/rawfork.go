// Package rawfork starts a process whose steps between fork and exec are a list of system calls prepared beforehand.
//
// The child of a fork in a Go program is single-threaded, which is what joining a user namespace, writing itself into a
// cgroup or installing a seccomp filter for itself alone asks for, but it cannot run ordinary Go: no allocation, no
// growing stack, no scheduler. So it does not run any: it walks the list. What a step needs (paths, buffers, descriptors)
// is made by the parent, and an error comes back as the number of the step and its errno.
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
	// process goes on with the next step.
	Fork
	// inside is a getcwd(2) whose buffer must then start with "/".
	inside
)

// A Step is one system call.
type Step struct {
	Op   Op
	Trap uintptr
	Args [6]uintptr
}

// Program is a list of steps under construction, with everything they point to.
type Program struct {
	steps []Step
	names []string
	keep  []any
	cwd   [unix.PathMax]byte // what an inside step reads
}

// Add appends a step; name is what an error will call it.
func (p *Program) Add(name string, op Op, trap uintptr, args ...uintptr) {
	s := Step{Op: op, Trap: trap}
	copy(s.Args[:], args)
	p.steps = append(p.steps, s)
	p.names = append(p.names, name)
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

	pidfd int32 // where the kernel puts it
	names []string
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

// Start forks. flags are clone(2) namespace flags; cgroup, if not negative, is a cgroup2 directory to be born into
// (clone3(2); without one the older clone(2) is called, which seccomp profiles let through).
// The caller must call Wait.
func Start(p *Program, flags uintptr, cgroup int) (*Process, error) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	proc := &Process{Errors: pipe[0], names: p.names}
	args := &cloneArgs{
		flags:      uint64(flags) | unix.CLONE_PIDFD,
		pidfd:      uint64(uintptr(unsafe.Pointer(&proc.pidfd))),
		exitSignal: uint64(unix.SIGCHLD),
	}
	call := uintptr(unix.SYS_CLONE)
	if cgroup >= 0 {
		call = unix.SYS_CLONE3
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(cgroup)
	}
	syscall.ForkLock.Lock()
	pid, errno := forkAndRun(call, args, p.steps, pipe[1], &p.cwd)
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(p)
	unix.Close(pipe[1])
	if errno != 0 {
		unix.Close(pipe[0])
		return nil, &Error{"clone", errno}
	}
	proc.PID, proc.PIDFD = int(pid), int(proc.pidfd)
	return proc, nil
}

// Forked returns the process that the Fork step made, which is the one PID and PIDFD speak of from here on; the one in
// between is reaped. It must be called, before Wait, exactly when the program has a Fork step.
func (p *Process) Forked() error {
	r, ok := p.read()
	if !ok {
		r = report{int32(len(p.names)), int32(unix.ESRCH)}
	}
	var status unix.WaitStatus
	for {
		if _, err := unix.Wait4(p.PID, &status, 0, nil); err != unix.EINTR {
			break
		}
	}
	unix.Close(p.PIDFD)
	p.PIDFD = -1
	if r.step >= 0 {
		unix.Close(p.Errors)
		return p.failure(r)
	}
	// It is our child (CLONE_PARENT), so its number is not given to another before we reap it.
	fd, err := unix.PidfdOpen(int(r.n), 0)
	if err != nil {
		return err
	}
	p.PID, p.PIDFD = int(r.n), fd
	return nil
}

// Wait returns when the program's exec has succeeded, or with an *Error when a step failed; a process that failed has
// exited and is left to be reaped by the caller, like any other.
// A second call returns nil at once: the descriptor's number may be somebody else's by then.
func (p *Process) Wait() error {
	if p.Errors < 0 {
		return nil
	}
	r, failed := p.read()
	unix.Close(p.Errors)
	p.Errors = -1
	if !failed {
		return nil
	}
	return p.failure(r)
}

func (p *Process) failure(r report) error {
	name := "a step before exec"
	if int(r.step) < len(p.names) {
		name = p.names[r.step]
	}
	return &Error{name, syscall.Errno(r.n)}
}

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

//go:linkname runtimeAfterForkInChild syscall.runtime_AfterForkInChild
func runtimeAfterForkInChild()

// forkAndRun returns in the parent only. In the child everything below the clone must neither allocate nor grow the
// stack: the runtime throws if it does.
//
//go:norace
//go:noinline
//go:nocheckptr
func forkAndRun(call uintptr, args *cloneArgs, steps []Step, errors int, cwd *[unix.PathMax]byte) (pid uintptr, errno syscall.Errno) {
	var (
		r       report
		res     uintptr
		missing syscall.Errno
	)
	runtimeBeforeFork()
	if call == unix.SYS_CLONE3 {
		pid, _, errno = syscall.RawSyscall(call, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	} else {
		pid, _, errno = syscall.RawSyscall6(call, uintptr(args.flags|args.exitSignal), 0, uintptr(args.pidfd), 0, 0, 0)
	}
	if errno != 0 || pid != 0 {
		runtimeAfterFork()
		return pid, errno
	}
	runtimeAfterForkInChild()
	for i := range steps {
		s := &steps[i]
		for {
			res, _, errno = syscall.RawSyscall6(s.Trap, s.Args[0], s.Args[1], s.Args[2], s.Args[3], s.Args[4], s.Args[5])
			if errno != unix.EINTR || s.Op == Exec {
				break
			}
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
		case Alive:
			if errno == unix.EAGAIN {
				errno = 0
			} else {
				errno = unix.ECANCELED
			}
		case inside:
			if errno == 0 && cwd[0] != '/' {
				errno = unix.EXDEV
			}
		case Fork:
			if errno == 0 && res != 0 {
				r.step, r.n = -1, int32(res)
				syscall.RawSyscall(unix.SYS_WRITE, uintptr(errors), uintptr(unsafe.Pointer(&r)), 8)
				for {
					syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
				}
			}
		}
		if errno != 0 {
			r.step, r.n = int32(i), int32(errno)
			break
		}
	}
	if errno == 0 { // every Exec was tried in vain, or there was none
		if missing == 0 {
			missing = unix.ENOEXEC
		}
		r.step, r.n = int32(len(steps)-1), int32(missing)
	}
	syscall.RawSyscall(unix.SYS_WRITE, uintptr(errors), uintptr(unsafe.Pointer(&r)), 8)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
	}
}
