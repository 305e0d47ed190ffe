package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
)

// Session is one command running inside, as seen by this process. The session itself belongs to init: it outlives this
// process and any number of Sessions attached to it.
type Session struct {
	c    *Container
	info SessionInfo
	ooms uint64 // kills by the OOM killer before it began, as far as we know

	pty, stdin, stdout, stderr *os.File
	pidfd                      *os.File
	close                      sync.Once
}

// StartSession starts a command inside and returns when it runs. A command that can't be executed gives an *ExecError.
func (c *Container) StartSession(ctx context.Context, s SessionSpec) (*Session, error) {
	words, err := sessionWords(s)
	if err != nil {
		return nil, fmt.Errorf("container %s: session: %w", c.id, err)
	}
	if s.ID == MainSession {
		return nil, fmt.Errorf("container %s: session id %q is Main's", c.id, s.ID)
	}
	ooms := c.group.oomKills()
	session, err := c.askSession(ctx, &initproto.Request{Kind: initproto.Exec, Session: words})
	if err != nil {
		return nil, err
	}
	session.ooms = ooms
	session.info.Args = s.Args
	return session, nil
}

// Attach returns a session by its id, with fresh duplicates of its terminal or pipes: for a successor of the process that
// started it, or a second reader. Main's id is MainSession. A session that has ended can be attached to as long as it is
// listed, for what is unread of its output.
func (c *Container) Attach(ctx context.Context, sessionID string) (*Session, error) {
	return c.askSession(ctx, &initproto.Request{Kind: initproto.Attach, ID: sessionID})
}

func (c *Container) askSession(ctx context.Context, request *initproto.Request) (*Session, error) {
	reply, files, err := c.call(ctx, request, nil, startTimeout)
	if err != nil {
		return nil, err
	}
	s, err := c.newSession(reply, files)
	if err != nil {
		closeFiles(files)
		return nil, fmt.Errorf("container %s: init's answer: %w", c.id, err)
	}
	return s, nil
}

// newSession takes what init sent apart, and believes none of it: descriptors must be what they are said to be.
func (c *Container) newSession(reply *initproto.Reply, files []*os.File) (*Session, error) {
	if len(reply.Infos) != 1 {
		return nil, errors.New("no session in it")
	}
	info := &reply.Infos[0]
	s := &Session{c: c, info: SessionInfo{ID: info.ID, TTY: info.TTY, Args: info.Args, Exited: info.Exited}}
	if info.Exited {
		s.info.Status = checkedStatus(&info.Status)
	}
	want := 0
	if info.HasPIDFD {
		want++
	}
	slots := []**os.File{&s.stdin, &s.stdout, &s.stderr}
	if info.TTY {
		slots = []**os.File{&s.pty}
	}
	for i := range 8 {
		if info.FDs&(1<<i) != 0 {
			if i >= len(slots) {
				return nil, errors.New("too many descriptors announced")
			}
			want++
		}
	}
	if len(files) != want {
		return nil, errors.New("other descriptors than announced")
	}
	if info.HasPIDFD {
		pid, err := pidOf(files[0])
		if err != nil {
			return nil, err
		}
		s.pidfd, s.info.PID, files = files[0], pid, files[1:]
	}
	for i, slot := range slots {
		if info.FDs&(1<<i) == 0 {
			continue
		}
		f, err := checkedStream(files[0], info.TTY, i)
		if err != nil {
			return nil, err
		}
		*slot, files = f, files[1:]
	}
	return s, nil
}

// checkedStream makes sure that a descriptor from inside is a terminal's master, or the right end of a pipe, and returns it
// ready for Go's poller.
func checkedStream(f *os.File, tty bool, i int) (*os.File, error) {
	fd := fileFD(f)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if tty {
		// The multiplexer is 5:2 on every devpts; TIOCGPTN is answered by masters alone.
		if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(5, 2) {
			return nil, errors.New("its terminal is none")
		}
		if _, err := unix.IoctlGetInt(fd, unix.TIOCGPTN); err != nil {
			return nil, fmt.Errorf("its terminal is none: %w", err)
		}
	} else {
		if st.Mode&unix.S_IFMT != unix.S_IFIFO {
			return nil, errors.New("its pipe is none")
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil {
			return nil, err
		}
		mode := unix.O_RDONLY
		if i == 0 {
			mode = unix.O_WRONLY
		}
		if flags&unix.O_ACCMODE != mode {
			return nil, errors.New("its pipe is turned round")
		}
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	// f was wrapped before it was known to be non-blocking: wrap a duplicate, which then is polled.
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f.Close()
	return os.NewFile(uintptr(dup), "session"), nil
}

// pidOf reads which process, by the host's count, a pidfd refers to (pidfd_open(2), fdinfo); 0 once it has been reaped.
func pidOf(f *os.File) (int, error) {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fileFD(f)))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, err := strconv.Atoi(strings.TrimSpace(v))
			return max(pid, 0), err
		}
	}
	return 0, errors.New("its pidfd is none")
}

// Sessions lists the container's sessions, those that have ended included as long as init remembers them.
func (c *Container) Sessions(ctx context.Context) ([]SessionInfo, error) {
	reply, files, err := c.call(ctx, &initproto.Request{Kind: initproto.List}, nil, answerTimeout)
	if err != nil {
		return nil, err
	}
	defer closeFiles(files)
	if len(reply.Infos) > initproto.MaxSessions {
		return nil, fmt.Errorf("container %s: init's answer lists too many sessions", c.id)
	}
	var list []SessionInfo
	next := 0
	for i := range reply.Infos {
		info := &reply.Infos[i]
		out := SessionInfo{ID: info.ID, TTY: info.TTY, Args: info.Args, Exited: info.Exited}
		if info.Exited {
			out.Status = checkedStatus(&info.Status)
		}
		if info.HasPIDFD {
			if next == len(files) {
				return nil, fmt.Errorf("container %s: init's answer lacks descriptors", c.id)
			}
			if out.PID, err = pidOf(files[next]); err != nil {
				return nil, fmt.Errorf("container %s: init's answer: %w", c.id, err)
			}
			next++
		}
		list = append(list, out)
	}
	return list, nil
}

// ID is the session's id.
func (s *Session) ID() string { return s.info.ID }

// PID is its process id on the host, or 0 when it has ended.
func (s *Session) PID() int { return s.info.PID }

// Info is what init said when the session was started or attached to.
func (s *Session) Info() SessionInfo { return s.info }

// PTY is the master side of its terminal, in non-blocking mode (deadlines work); nil without one. Read it by ReadTerminal,
// which gives EIO once the session and all its children have gone.
func (s *Session) PTY() *os.File { return s.pty }

// ReadTerminal reads from a terminal's master. The kernel looks for output and then whether the other side is closed: when
// the last is written and the terminal closed in between, it says EIO before it gives that out (Linux, n_tty_read; seen in
// one of fifty sessions on a busy machine, which lost their last lines so). Only a second EIO is the end.
func ReadTerminal(master *os.File, b []byte) (int, error) {
	n, err := master.Read(b)
	if errors.Is(err, unix.EIO) {
		n, err = master.Read(b)
	}
	return n, err
}

// Stdin is our end of its standard input; nil with a TTY. Closing it does not give the session end of file: CloseStdin does.
func (s *Session) Stdin() *os.File { return s.stdin }

// Stdout is our end of its standard output; nil with a TTY, or when Main writes to a log.
func (s *Session) Stdout() *os.File { return s.stdout }

// Stderr is our end of its standard error; nil with a TTY, or when Main writes to a log.
func (s *Session) Stderr() *os.File { return s.stderr }

// CloseStdin gives the session end of file on its standard input: init closes its duplicate, we close ours. Other
// processes' duplicates, if there are any, keep it open.
func (s *Session) CloseStdin(ctx context.Context) error {
	if s.stdin != nil {
		s.stdin.Close()
	}
	_, files, err := s.c.call(ctx, &initproto.Request{Kind: initproto.CloseStdin, ID: s.info.ID}, nil, answerTimeout)
	closeFiles(files)
	return err
}

// Resize sets the terminal's size in characters; the session gets a SIGWINCH.
func (s *Session) Resize(cols, rows uint16) error {
	if s.pty == nil {
		return fmt.Errorf("session %s has no terminal", s.info.ID)
	}
	raw, err := s.pty.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := raw.Control(func(fd uintptr) {
		set = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	}); err != nil {
		return err
	}
	if set != nil {
		return fmt.Errorf("resize session %s: %w", s.info.ID, set)
	}
	return nil
}

// Signal sends a signal to the session's process; ErrNotFound when it has ended.
func (s *Session) Signal(ctx context.Context, sig unix.Signal) error {
	_, files, err := s.c.call(ctx, &initproto.Request{Kind: initproto.Signal, ID: s.info.ID, Signal: int32(sig)}, nil, answerTimeout)
	closeFiles(files)
	return err
}

// Wait returns when the session's process has ended, with its status; when the whole container ends first, with that one's.
func (s *Session) Wait(ctx context.Context) (ExitStatus, error) {
	if s.info.Exited {
		return s.info.Status, nil
	}
	reply, files, err := s.c.call(ctx, &initproto.Request{Kind: initproto.Wait, ID: s.info.ID}, nil, -1)
	closeFiles(files)
	if err != nil {
		if ctx.Err() == nil && errors.Is(err, ErrNotRunning) {
			status, err := s.c.Wait(ctx)
			if err == nil && s.info.ID != MainSession && status.Reason == "" {
				status.Reason = "the environment has ended"
			}
			return status, err
		}
		return ExitStatus{}, err
	}
	if reply.Status == nil {
		return ExitStatus{}, fmt.Errorf("container %s: init's answer holds no status", s.c.id)
	}
	status := checkedStatus(reply.Status)
	if status.Signal == int(unix.SIGKILL) && s.c.group.oomKills() > s.ooms {
		status.OOMKilled, status.Reason = true, s.c.oomReason()
	}
	return status, nil
}

// Close closes our descriptors; the session goes on.
func (s *Session) Close() error {
	s.close.Do(func() { closeFiles([]*os.File{s.pty, s.stdin, s.stdout, s.stderr, s.pidfd}) })
	return nil
}
