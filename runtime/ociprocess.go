package runtime

import (
	"errors"
	"fmt"
	"os"
	goruntime "runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
	"github.com/learnos/learnos/internal/initproto/rawfork"
)

// executed returns how init's exec went, once.
func (p *OCIProcess) executed() error {
	if p.process == nil {
		return nil
	}
	err := p.process.Wait()
	p.process = nil
	goruntime.UnlockOSThread()
	return err
}

// Await returns when the process is in its namespaces and cgroups, which is what hooks of the runtime's own namespaces
// expect. Setup does without.
func (p *OCIProcess) Await() error {
	if !p.entering {
		return p.executed()
	}
	p.entering = false
	files, err := p.answer(false)
	closeFiles(files)
	return err
}

// Setup builds the container. With a terminal its master is returned, the caller's to close.
func (p *OCIProcess) Setup() (terminal *os.File, err error) {
	var fds []int
	if !p.plan.Process.Join {
		var opened []*os.File
		fds, opened, err = p.owner.mountFDs(p.plan, StartOptions{})
		defer closeFiles(opened)
		if err != nil {
			return nil, err
		}
	}
	p.plan.FDs = uint16(len(fds))
	if p.joining != nil {
		if p.straight() {
			return nil, p.goStraight()
		}
		if err := p.goOn(func(b *birth, more *rawfork.Program) { b.executeInit(more) }); err != nil {
			return nil, err
		}
	}
	if p.spec.Process.OOMScoreAdj != nil {
		if err := p.executed(); err != nil {
			return nil, err
		}
		if err := setOOMScore(p.PID, p.spec); err != nil {
			return nil, err
		}
	}
	told := p.tell(&initproto.Request{Kind: initproto.Setup, Plan: &p.plan.Plan}, fds)
	if p.entering {
		if err := p.Await(); err != nil {
			return nil, err
		}
	}
	if told != nil {
		if err := p.executed(); err != nil {
			return nil, err
		}
		return nil, told
	}
	if p.plan.Process.Now {
		return nil, p.begun()
	}
	files, err := p.answer(false)
	if err != nil {
		closeFiles(files)
		return nil, err
	}
	if len(files) > 0 {
		terminal = files[0]
		closeFiles(files[1:])
	}
	if p.pids != nil {
		l := &limits{g: p.group}
		l.pids(p.pids)
		if err := errors.Join(l.errs...); err != nil {
			if terminal != nil {
				terminal.Close()
			}
			return nil, err
		}
	}
	return terminal, nil
}

// Begin lets the process go on to its exec, and returns when that has succeeded.
func (p *OCIProcess) Begin() error {
	if err := p.tell(&initproto.Request{Kind: initproto.Begin}, nil); err != nil {
		return err
	}
	return p.begun()
}

// begun waits for the exec, which closes the connection, or for an error.
func (p *OCIProcess) begun() error {
	files, err := p.answer(true)
	closeFiles(files)
	return err
}

// tell sends a request, a long one by way of a memfd.
func (p *OCIProcess) tell(r *initproto.Request, fds []int) error {
	body, err := r.Encode()
	if err != nil {
		return fmt.Errorf("the configuration is too large: %w", err)
	}
	if len(body) > initproto.MaxInline {
		f, err := bodyFile(body)
		if err != nil {
			return err
		}
		defer f.Close()
		body, fds = []byte{0}, append(slices.Clone(fds), int(f.Fd()))
	}
	if len(fds) > initproto.MaxFDs {
		return fmt.Errorf("%d mounts of the host's are more than one message carries (%d)", len(fds), initproto.MaxFDs)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, err := unix.SendmsgN(int(p.conn.Fd()), body, oob, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("tell the container's init: %w", err)
	}
	return nil
}

// answer receives one; end says that none, with the connection closed, is the good one.
func (p *OCIProcess) answer(end bool) ([]*os.File, error) {
	files, err := receiveAnswer(int(p.conn.Fd()), end)
	if failed := p.executed(); failed != nil {
		err = failed
	}
	return files, err
}

// receiveAnswer reads a Reply from a blocking socket.
func receiveAnswer(fd int, end bool) ([]*os.File, error) {
	buf, oob := make([]byte, 16<<10), make([]byte, unix.CmsgSpace(4*8))
	n, oobn, err := 0, 0, error(nil)
	for {
		n, oobn, _, _, err = unix.Recvmsg(fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil && err != unix.ECONNRESET {
		return nil, fmt.Errorf("the container's init: %w", err)
	}
	if n <= 0 {
		if end {
			return nil, nil
		}
		return nil, errors.New("the container's init ended without a word")
	}
	files := receivedFiles(oob[:oobn])
	reply, err := initproto.DecodeReply(buf[:n])
	if err != nil {
		return files, fmt.Errorf("the container's init: %w", err)
	}
	switch reply.Code {
	case initproto.OK:
		return files, nil
	case initproto.ExecNotFound:
		return files, &ExecError{127, reply.Message}
	case initproto.ExecFailed:
		return files, &ExecError{126, reply.Message}
	}
	return files, errors.New(reply.Message)
}

// Abort kills the process and reaps it.
func (p *OCIProcess) Abort() {
	p.reap()
	p.Close()
}

// reap ends the process. An error is why it had ended by itself, before its exec.
func (p *OCIProcess) reap() error {
	unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0)
	err := p.executed()
	unix.Wait4(p.PID, nil, 0, nil)
	return err
}

// Close lets go of the process, which stays.
func (p *OCIProcess) Close() {
	if p.joining != nil {
		p.joining.close()
	}
	p.conn.Close()
}

// OCIBegin lets the process of a container that was created with Listen go on, and returns when its exec has succeeded.
// ErrNotRunning says that nobody waits: it has begun already, or ended.
func OCIBegin(dir string) error {
	fd, err := dialOCI(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	body, err := (&initproto.Request{Kind: initproto.Begin}).Encode()
	if err != nil {
		return err
	}
	if _, err := unix.SendmsgN(fd, body, nil, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("tell the container's init: %w", err)
	}
	files, err := receiveAnswer(fd, true)
	closeFiles(files)
	return err
}

// OCIWaiting says whether the process of a container that was created with Listen still waits for OCIBegin.
func OCIWaiting(dir string) bool {
	fd, err := dialOCI(dir)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

func dialOCI(dir string) (int, error) {
	d, err := os.Open(dir)
	if err != nil {
		return -1, err
	}
	defer d.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socketPath(d)}); err != nil {
		unix.Close(fd)
		if err == unix.ECONNREFUSED || err == unix.ENOENT {
			err = ErrNotRunning
		}
		return -1, err
	}
	return fd, nil
}
