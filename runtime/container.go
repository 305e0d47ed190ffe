package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
	"github.com/learnos/learnos/internal/initproto/rawfork"
)

// Container is one environment. Its methods may be called from several goroutines.
type Container struct {
	id    string
	dir   string
	r     *Runtime
	state *state
	group *cgroup
	pidfd *os.File // non-blocking; nil when init had ended before Load

	// What only the creator has:
	options *CreateOptions // until Start
	plan    *plan
	process *rawfork.Process // until its exec
	left    chan struct{}    // closed when init has executed its image, and so has left our memory, or has failed to
	gone    chan struct{}    // closed when init has ended and has been reaped; nil for a loaded one
	execErr error            // why init could not be executed; set before gone is closed

	mu sync.Mutex // Start, Delete
}

// ID is the id given to Create.
func (c *Container) ID() string { return c.id }

// PID is init's process id on the host.
func (c *Container) PID() int { return c.state.PID }

// CreatedAt is when Create made the container.
func (c *Container) CreatedAt() time.Time { return c.state.Created }

// alive says whether init still runs.
func (c *Container) alive() bool {
	if c.pidfd == nil {
		return false
	}
	if c.gone != nil {
		select {
		case <-c.gone:
			return false
		default:
		}
	}
	fds := []unix.PollFd{{Fd: int32(c.fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	for err == unix.EINTR {
		n, err = unix.Poll(fds, 0)
	}
	return err == nil && n == 0
}

func (c *Container) fd() int { return fileFD(c.pidfd) }

// fileFD is f's number without the side effect of Fd, which would take it out of Go's poller.
func fileFD(f *os.File) (fd int) {
	fd = -1
	raw, err := f.SyscallConn()
	if err == nil {
		raw.Control(func(n uintptr) { fd = int(n) })
	}
	return fd
}

// fdOf is fileFD for a system call's argument.
func fdOf(f *os.File) uintptr { return uintptr(fileFD(f)) }

// awaitExit returns when init has ended, however it is related to us.
func (c *Container) awaitExit(ctx context.Context) error {
	if c.pidfd == nil {
		return nil
	}
	if c.gone != nil {
		select {
		case <-c.gone:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	// A loaded container: a duplicate of our own, so that waiters don't share one deadline.
	fd, err := unix.FcntlInt(uintptr(c.fd()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("pidfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := awaitPidfd(f); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	return nil
}

// awaitPidfd parks the goroutine, not a thread, until the process has ended (pidfd_open(2): it then polls readable).
func awaitPidfd(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}

// watch reaps init when it ends. It runs for as long as the container does, in the process that created it.
func (c *Container) watch() {
	if c.process != nil {
		c.execErr = c.process.Wait()
		c.process = nil
	}
	close(c.left)
	c.r.restoreDumpable()
	awaitPidfd(c.pidfd)
	var status unix.WaitStatus
	for {
		if _, err := unix.Wait4(c.state.PID, &status, 0, nil); err != unix.EINTR {
			break
		}
	}
	close(c.gone)
}

// Wait returns when the container has ended, with its status: Main's, or, without one, how init was ended. It does not
// depend on this process being the creator. The status is kept until Delete.
func (c *Container) Wait(ctx context.Context) (ExitStatus, error) {
	if err := c.awaitExit(ctx); err != nil {
		return ExitStatus{}, fmt.Errorf("wait for container %s: %w", c.id, err)
	}
	return c.exitStatus(), nil
}

// exitStatus reads how it ended: what init wrote, if it had the time, else what the cgroup tells.
func (c *Container) exitStatus() ExitStatus {
	if c.gone != nil {
		<-c.gone
	}
	if f, err := os.Open(filepath.Join(c.dir, statusName)); err == nil {
		buf := make([]byte, 8192)
		n, _ := f.Read(buf)
		f.Close()
		if s, err := initproto.DecodeStatus(buf[:n]); err == nil {
			status := checkedStatus(s)
			if status.Signal == int(unix.SIGKILL) && c.group.oomKills() > 0 {
				status.OOMKilled, status.Reason = true, c.oomReason()
			}
			return status
		}
	}
	status := ExitStatus{Code: 128 + int(unix.SIGKILL), Signal: int(unix.SIGKILL)}
	_, err := os.Stat(filepath.Join(c.dir, killedName))
	switch {
	case err == nil:
		status.Reason = "killed on request"
	case c.group.oomKills() > 0:
		status.OOMKilled, status.Reason = true, c.oomReason()
	case c.execErr != nil:
		status = ExitStatus{Code: 125, Reason: "init did not start: " + c.execErr.Error()}
	case c.state.Boot != bootID():
		status.Reason = "the machine was restarted"
	default:
		status.Reason = "killed"
	}
	return status
}

func (c *Container) oomReason() string {
	if c.state.Memory > 0 {
		return "out of memory: it needed more than its limit of " + strconv.FormatInt(c.state.Memory>>20, 10) + " MiB"
	}
	return "out of memory"
}

// checkedStatus takes a status from inside, where nobody is to be believed, into bounds.
func checkedStatus(s *initproto.Status) ExitStatus {
	out := ExitStatus{Code: int(s.Code), Signal: int(s.Signal), Reason: s.Reason}
	if out.Signal < 0 || out.Signal > 64 {
		out.Signal = 0
	}
	if out.Code < 0 || out.Code > 255 {
		out.Code = 255
	}
	return out
}

// State says where the container stands.
func (c *Container) State(ctx context.Context) (State, error) {
	if !c.alive() {
		return StateStopped, nil
	}
	if c.group.frozen() {
		return StatePaused, nil
	}
	reply, files, err := c.call(ctx, &initproto.Request{Kind: initproto.Ping}, nil, answerTimeout)
	closeFiles(files)
	switch {
	case errors.Is(err, ErrNotRunning):
		return StateStopped, nil
	case err != nil:
		return "", err
	case reply.Phase == initproto.Waiting:
		return StateCreated, nil
	}
	return StateRunning, nil
}

// NamespaceFD opens one of the container's namespaces (user, network, …), which the descriptor keeps in being.
func (c *Container) NamespaceFD(kind specs.LinuxNamespaceType) (*os.File, error) {
	ns, ok := namespaceKinds[kind]
	if !ok {
		return nil, fmt.Errorf("container %s: no such kind of namespace: %q", c.id, kind)
	}
	f, err := os.Open("/proc/" + strconv.Itoa(c.state.PID) + "/ns/" + ns.file)
	// While init is alive after the open, the number was its own at the time of the open.
	if !c.alive() {
		if err == nil {
			f.Close()
		}
		return nil, fmt.Errorf("container %s: %w", c.id, ErrNotRunning)
	}
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	return f, nil
}

// Signal sends a signal to Main, or to init when there is none; to init, SIGTERM means "end everything, gracefully".
func (c *Container) Signal(ctx context.Context, sig unix.Signal) error {
	if sig == unix.SIGKILL && !c.state.Main {
		return c.Kill(ctx)
	}
	if c.state.Main {
		_, files, err := c.call(ctx, &initproto.Request{Kind: initproto.Signal, ID: MainSession, Signal: int32(sig)}, nil, answerTimeout)
		closeFiles(files)
		return err
	}
	if c.pidfd == nil {
		return fmt.Errorf("signal container %s: %w", c.id, ErrNotRunning)
	}
	if err := unix.PidfdSendSignal(c.fd(), sig, nil, 0); err != nil {
		if err == unix.ESRCH {
			err = ErrNotRunning
		}
		return fmt.Errorf("signal container %s: %w", c.id, err)
	}
	return nil
}

// Kill ends the whole container at once and returns when init is gone. Killing what has ended is no error.
func (c *Container) Kill(ctx context.Context) error {
	if !c.alive() {
		return c.group.kill() // what outlived init: nothing, with a process namespace of its own
	}
	if f, err := os.OpenFile(filepath.Join(c.dir, killedName), os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
		f.Close()
	}
	// init first: with it the kernel ends its whole process namespace, and nothing can be started any more.
	unix.PidfdSendSignal(c.fd(), unix.SIGKILL, nil, 0)
	if err := c.group.kill(); err != nil {
		return fmt.Errorf("kill container %s: %w", c.id, err)
	}
	if err := c.awaitExit(ctx); err != nil {
		return fmt.Errorf("kill container %s: %w", c.id, err)
	}
	return nil
}

// Pause freezes every process of the container; it returns when all stand still.
func (c *Container) Pause(ctx context.Context) error {
	if !c.alive() {
		return fmt.Errorf("pause container %s: %w", c.id, ErrNotRunning)
	}
	if err := c.group.freeze(true); err != nil {
		return fmt.Errorf("pause container %s: %w", c.id, err)
	}
	return nil
}

// Resume undoes Pause.
func (c *Container) Resume(ctx context.Context) error {
	if !c.alive() {
		return fmt.Errorf("resume container %s: %w", c.id, ErrNotRunning)
	}
	if err := c.group.freeze(false); err != nil {
		return fmt.Errorf("resume container %s: %w", c.id, err)
	}
	return nil
}

// Delete kills the container and removes its cgroups and state: nothing of it is left. It may be called again, also by
// another process; the status is lost with it.
func (c *Container) Delete(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	lock, err := lockDir(c.dir, true)
	if errors.Is(err, os.ErrNotExist) {
		return c.group.remove()
	}
	if err != nil {
		return fmt.Errorf("delete container %s: %w", c.id, err)
	}
	defer lock.Close()
	if c.alive() || !c.group.removeEmpty() {
		if err := c.Kill(ctx); err != nil {
			return err
		}
		if err := c.group.remove(); err != nil {
			return fmt.Errorf("delete container %s: %w", c.id, err)
		}
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("delete container %s: %w", c.id, err)
	}
	return nil
}
