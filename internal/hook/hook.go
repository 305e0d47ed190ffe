// Package hook runs the programs that an OCI configuration ties to points of a container's life, with the container's state
// on their standard input (runtime-spec, "POSIX-platform Hooks").
//
// It imports little, because init carries it. It does not decide what a failure means: that differs from hook to hook.
package hook

import (
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
)

// Error says which hook failed and how.
type Error struct {
	Path string
	What string
}

func (e *Error) Error() string { return "hook " + e.Path + ": " + e.What }

// maxComplaint bounds what is kept of a hook's standard error.
const maxComplaint = 4096

// Run runs one hook in the working directory dir and returns when it has ended. Its output is dropped, but the start of
// what it wrote to standard error becomes part of the error.
func Run(h *initproto.Hook, state, dir string) error {
	fail := func(what string, err error) error { return &Error{h.Path, what + ": " + err.Error()} }
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail("/dev/null", err)
	}
	defer unix.Close(null)
	// A state is short, but nothing bounds its annotations: a memfd holds it all without anybody to feed a pipe.
	in, err := unix.MemfdCreate("state", unix.MFD_CLOEXEC)
	if err != nil {
		return fail("its input", err)
	}
	defer unix.Close(in)
	for at := 0; at < len(state); {
		n, err := unix.Pwrite(in, []byte(state[at:]), int64(at))
		if err != nil {
			return fail("its input", err)
		}
		at += n
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return fail("a pipe", err)
	}
	defer unix.Close(pipe[0])
	args := h.Args
	if len(args) == 0 {
		args = []string{h.Path}
	}
	pidfd := -1
	pid, err := syscall.ForkExec(h.Path, args, &syscall.ProcAttr{Dir: dir, Env: h.Env, Files: []uintptr{uintptr(in), uintptr(null), uintptr(pipe[1])},
		Sys: &syscall.SysProcAttr{PidFD: &pidfd, Setpgid: true}})
	unix.Close(pipe[1])
	if err != nil {
		return fail("start", err)
	}
	defer unix.Close(pidfd)
	deadline := time.Time{}
	if h.Seconds > 0 {
		deadline = time.Now().Add(time.Duration(h.Seconds) * time.Second)
	}
	complaint := make([]byte, 0, 256)
	late, open := false, true
	for {
		timeout := -1
		if !deadline.IsZero() {
			timeout = max(0, int(time.Until(deadline)/time.Millisecond)+1)
		}
		poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}, {Fd: int32(pipe[0]), Events: unix.POLLIN}}
		if !open {
			poll = poll[:1]
		}
		n, err := unix.Poll(poll, timeout)
		if err == unix.EINTR {
			continue
		}
		if n == 0 || err != nil {
			late = true
			unix.Kill(-pid, unix.SIGKILL)
			unix.Kill(pid, unix.SIGKILL)
			break
		}
		if open && poll[1].Revents != 0 {
			complaint, open = listen(pipe[0], complaint)
		}
		if poll[0].Revents != 0 {
			if open {
				complaint, _ = listen(pipe[0], complaint)
			}
			break
		}
	}
	var status unix.WaitStatus
	for {
		if _, err = unix.Wait4(pid, &status, 0, nil); err != unix.EINTR {
			break
		}
	}
	for len(complaint) > 0 && complaint[len(complaint)-1] == '\n' {
		complaint = complaint[:len(complaint)-1]
	}
	said := ""
	if len(complaint) > 0 {
		said = ": " + string(complaint)
	}
	switch {
	case late:
		return &Error{h.Path, "not done within " + strconv.Itoa(int(h.Seconds)) + " s, killed" + said}
	case err != nil:
		return fail("wait", err)
	case status.Signaled():
		return &Error{h.Path, "killed by signal " + strconv.Itoa(int(status.Signal())) + said}
	case status.ExitStatus() != 0:
		return &Error{h.Path, "exit status " + strconv.Itoa(status.ExitStatus()) + said}
	}
	return nil
}

// listen reads what there is and keeps the start of it; false when nobody will write any more.
func listen(fd int, complaint []byte) ([]byte, bool) {
	var buf [1024]byte
	for {
		n, err := unix.Read(fd, buf[:])
		if n <= 0 {
			return complaint, err == unix.EAGAIN || err == unix.EINTR
		}
		complaint = append(complaint, buf[:min(n, maxComplaint-len(complaint))]...)
	}
}
