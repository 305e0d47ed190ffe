package main

import (
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
	"github.com/learnos/learnos/internal/initproto/lookup"
	"github.com/learnos/learnos/internal/initproto/rawfork"
)

// session is one command, running or ended.
type session struct {
	id     string
	args   []string
	tty    bool
	main   bool
	pid    int
	pidfd  int
	fds    []int // the host's ends: the terminal's master, or stdin, stdout and stderr; -1 where there is none (any more)
	exited bool
	asked  bool // somebody has been told its status
	status initproto.Status

	starting *rawfork.Process // until its exec
	asker    *conn            // who wants to know whether that succeeds
	waiters  []*conn
}

// fault is an error with the code that goes into a Reply.
type fault struct {
	code initproto.Code
	text string
}

func invalid(text string) *fault { return &fault{initproto.Invalid, text} }
func failed(what string, err error) *fault {
	return &fault{initproto.Failed, what + ": " + err.Error()}
}

func (s *server) find(id string) *session {
	for _, session := range s.sessions {
		if session.id == id {
			return session
		}
	}
	return nil
}

// forget drops a connection that is gone from whatever it waited for.
func (x *session) forget(c *conn) {
	if x.asker == c {
		x.asker = nil
	}
	for i := range x.waiters {
		if x.waiters[i] == c {
			x.waiters = append(x.waiters[:i], x.waiters[i+1:]...)
			return
		}
	}
}

// handles describes the session and lists what an agent needs of it: its pidfd, then its terminal or pipes.
func (x *session) handles() (initproto.Info, []int) {
	info := initproto.Info{ID: x.id, PID: int32(x.pid), TTY: x.tty, Exited: x.exited, Status: x.status, Args: shorten(x.args)}
	var fds []int
	if !x.exited {
		info.HasPIDFD = true
		fds = append(fds, x.pidfd)
	}
	for i, fd := range x.fds {
		if fd >= 0 {
			info.FDs |= 1 << i
			fds = append(fds, fd)
		}
	}
	return info, fds
}

// shorten keeps a list of sessions within one message.
func shorten(args []string) []string {
	left := 150
	var out []string
	for _, arg := range args {
		if len(arg) > left {
			return append(out, arg[:left]+"…")
		}
		left -= len(arg)
		out = append(out, arg)
		if len(out) == 16 {
			break
		}
	}
	return out
}

func (x *session) closeStdin() {
	if !x.tty && len(x.fds) > 0 && x.fds[0] >= 0 {
		unix.Close(x.fds[0])
		x.fds[0] = -1
	}
}

func (x *session) close() {
	closeAll(x.fds)
	x.fds = nil
	if x.pidfd >= 0 {
		unix.Close(x.pidfd)
		x.pidfd = -1
	}
}

// keepEnded is how many sessions whose end has been told are remembered, with what is unread of their output.
const keepEnded = 16

// makeRoom forgets the oldest ended sessions: those told of beyond keepEnded, and, when full, those not told of, too.
func (s *server) makeRoom() bool {
	told := 0
	for _, x := range s.sessions {
		if x.exited && x.asked {
			told++
		}
	}
	for i := 0; i < len(s.sessions); {
		x := s.sessions[i]
		old := x.exited && x.asked && told > keepEnded
		if old || x.exited && !x.main && len(s.sessions) >= initproto.MaxSessions {
			if x.asked {
				told--
			}
			x.close()
			s.sessions = append(s.sessions[:i], s.sessions[i+1:]...)
			continue
		}
		i++
	}
	return len(s.sessions) < initproto.MaxSessions
}

func (s *server) serveExec(c *conn, spec *initproto.Session) {
	if spec == nil {
		s.refuse(c, initproto.Invalid, "no command")
		return
	}
	if s.phase != initproto.Running {
		s.refuse(c, initproto.WrongPhase, "the environment is ending")
		return
	}
	if f := s.start(spec, false, c); f != nil {
		s.refuse(c, f.code, f.text)
	}
}

// start forks a session; the answer to asker waits for its exec.
func (s *server) start(spec *initproto.Session, main bool, asker *conn) *fault {
	if spec.ID == "" {
		for spec.ID == "" || s.find(spec.ID) != nil {
			s.nextID++
			spec.ID = "s" + strconv.FormatUint(s.nextID, 10)
		}
	}
	if !validID(spec.ID) {
		return invalid("session id " + strconvQuote(spec.ID) + " must be letters, digits, '_', '.' or '-', 64 at most")
	}
	if old := s.find(spec.ID); old != nil {
		return &fault{initproto.Exists, "session " + strconvQuote(spec.ID) + " already exists"}
	}
	if !s.makeRoom() {
		return &fault{initproto.Busy, "there are " + strconv.Itoa(len(s.sessions)) + " sessions already: end one first"}
	}
	if len(spec.Args) == 0 || spec.Args[0] == "" {
		return invalid("no command given")
	}
	id, err := lookupUser(spec.User)
	if err != nil {
		return invalid(err.Error())
	}
	if spec.User == "" {
		id.groups = append(id.groups, s.plan.Groups...)
	}
	cwd, f := s.workingDirectory(spec)
	if f != nil {
		return f
	}
	defer unix.Close(cwd)

	x := &session{id: spec.ID, args: spec.Args, tty: spec.TTY, main: main, pidfd: -1, asker: asker}
	theirs, f := s.stdio(x, spec, id)
	defer closeAll(theirs)
	if f != nil {
		x.close()
		return f
	}
	process, err := rawfork.Start(s.program(spec, id, theirs, cwd), 0, -1)
	if err != nil {
		x.close()
		return failed("fork", err)
	}
	x.pid, x.pidfd, x.starting = process.PID, process.PIDFD, process
	s.sessions = append(s.sessions, x)
	// An exec may take as long as a tenant's file system likes: go on with other work meanwhile.
	s.watch(process.Errors, func() { s.started(x) })
	return nil
}

// stdio makes a session's terminal or pipes: the host's ends go to x, the session's own three are returned.
func (s *server) stdio(x *session, spec *initproto.Session, id identity) (theirs []int, f *fault) {
	if spec.TTY {
		if s.pts < 0 {
			return nil, invalid("this environment has no /dev/pts, so no terminals")
		}
		master, err := unix.Openat(s.pts, "ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, failed("open a terminal", err)
		}
		x.fds = []int{master}
		if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
			return nil, failed("unlock the terminal", err)
		}
		if spec.Cols > 0 && spec.Rows > 0 {
			unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: spec.Rows, Col: spec.Cols})
		}
		// By descriptor, not by name: what /dev/pts/N leads to is the tenant's business.
		slave, err := ioctlInt(master, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if err != nil {
			return nil, failed("open the terminal's other side", err)
		}
		unix.Fchown(slave, int(id.uid), -1)
		return []int{slave, slave, slave}, nil
	}
	x.fds = []int{-1, -1, -1}
	theirs = []int{-1, -1, -1}
	for i := range 3 {
		if i == 0 && x.main && s.log != nil && !s.plan.KeepStdin {
			null, err := openInside(unix.AT_FDCWD, "/dev/null", unix.O_RDONLY, 0)
			if err != nil {
				return theirs, failed("open /dev/null", err)
			}
			theirs[0] = null
			continue
		}
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return theirs, failed("make a pipe", err)
		}
		ours := p[0]
		theirs[i] = p[1]
		if i == 0 {
			ours, theirs[i] = p[1], p[0]
		}
		unix.SetNonblock(ours, true)
		// So that a session that is not root may open /dev/stdout.
		unix.Fchown(theirs[i], int(id.uid), int(id.gid))
		if i > 0 && x.main && s.log != nil {
			s.log.sources = append(s.log.sources, ours)
			s.watch(ours, func() { s.log.copy(s, ours) })
		} else {
			x.fds[i] = ours
		}
	}
	return theirs, nil
}

// workingDirectory opens Cwd. No magic link leads there: a descriptor that was left open must not become a way out.
func (s *server) workingDirectory(spec *initproto.Session) (int, *fault) {
	path := spec.Cwd
	if path == "" {
		path = "/"
	}
	if path[0] != '/' {
		return -1, invalid("working directory " + strconvQuote(path) + " is not absolute")
	}
	fd, err := openInside(unix.AT_FDCWD, path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == unix.ENOENT && spec.MakeCwd {
		fd, err = makeDirectory(unix.AT_FDCWD, path)
	}
	if err != nil {
		return -1, invalid("working directory " + strconvQuote(path) + ": " + err.Error())
	}
	return fd, nil
}

// program lists what the child does between fork and exec.
func (s *server) program(spec *initproto.Session, id identity, stdio []int, cwd int) *rawfork.Program {
	p := &rawfork.Program{}
	p.Add("new session", rawfork.Must, unix.SYS_SETSID)
	if spec.TTY {
		p.Add("controlling terminal", rawfork.Must, unix.SYS_IOCTL, uintptr(stdio[0]), unix.TIOCSCTTY, 0)
	}
	for i, fd := range stdio {
		p.Add("standard descriptors", rawfork.Must, unix.SYS_DUP3, uintptr(fd), uintptr(i), 0)
	}
	p.Add("close descriptors", rawfork.Must, unix.SYS_CLOSE_RANGE, 3, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC)
	for i := range s.plan.Rlimits {
		r := &s.plan.Rlimits[i]
		limit := &unix.Rlimit{Cur: r.Cur, Max: r.Max}
		p.Keep(limit)
		p.Add("resource limit "+rlimitName(r.Resource), rawfork.Must, unix.SYS_PRLIMIT64, 0, uintptr(r.Resource),
			uintptr(unsafe.Pointer(limit)), 0)
	}
	p.Add("umask", rawfork.Must, unix.SYS_UMASK, uintptr(s.plan.Umask))
	own := len(s.plan.Seccomp) > 0 && !s.plan.SeccompOnInit
	if own && !s.plan.NoNewPrivs { // needs CAP_SYS_ADMIN, which the steps below give up
		s.addSeccomp(p)
	}
	p.Add("keep capabilities", rawfork.Must, unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	groups := append([]uint32{0}, id.groups...)[1:] // not nil: the address must be one
	p.Keep(groups)
	p.Add("groups (are they mapped in the environment's user namespace?)", rawfork.Must, unix.SYS_SETGROUPS,
		uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))))
	g, u := uintptr(id.gid), uintptr(id.uid)
	p.Add("gid "+strconv.FormatUint(uint64(g), 10)+" (is it mapped in the environment's user namespace?)", rawfork.Must, unix.SYS_SETRESGID, g, g, g)
	p.Add("uid "+strconv.FormatUint(uint64(u), 10)+" (is it mapped in the environment's user namespace?)", rawfork.Must, unix.SYS_SETRESUID, u, u, u)
	caps := s.plan.Caps
	header, data := capData(caps.Effective, caps.Permitted, caps.Inheritable)
	p.Keep(header)
	p.Keep(data)
	p.Add("capabilities", rawfork.Must, unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(data)))
	for bit := range 64 {
		if caps.Ambient&(1<<bit) != 0 {
			p.Add("ambient capabilities", rawfork.Must, unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(bit), 0, 0)
		}
	}
	p.Add("working directory", rawfork.Must, unix.SYS_FCHDIR, uintptr(cwd))
	p.Inside("working directory (it is outside of the environment)")
	p.Add("signals", rawfork.Must, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, p.Bytes(make([]byte, 8)), 0, 8)
	if own && s.plan.NoNewPrivs {
		s.addSeccomp(p)
	}
	env := s.environment(spec, id)
	argv, envp := p.Strings(spec.Args), p.Strings(env)
	for _, path := range lookup.Candidates(spec.Args[0], env) {
		p.Add("exec", rawfork.Exec, unix.SYS_EXECVE, p.String(path), argv, envp)
	}
	return p
}

func (s *server) addSeccomp(p *rawfork.Program) {
	prog := sockFprog(s.plan.Seccomp)
	p.Keep(prog)
	p.Add("seccomp filter", rawfork.Must, unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		uintptr(s.plan.SeccompFlags), uintptr(unsafe.Pointer(prog)))
}

// environment adds what a program may expect to the variables it was given.
func (s *server) environment(spec *initproto.Session, id identity) []string {
	env := append([]string(nil), spec.Env...)
	if _, there := lookup.Variable(env, "PATH"); !there {
		env = append(env, "PATH="+lookup.UsualPath)
	}
	if _, there := lookup.Variable(env, "HOME"); !there {
		env = append(env, "HOME="+id.home)
	}
	if _, there := lookup.Variable(env, "TERM"); !there && spec.TTY {
		env = append(env, "TERM=xterm-256color")
	}
	return env
}

func validID(id string) bool {
	if id == "" || len(id) > 64 {
		return false
	}
	for i := range len(id) {
		c := id[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return true
}

// started is called when a session's exec has succeeded or failed.
func (s *server) started(x *session) {
	process := x.starting
	x.starting = nil
	unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, process.Errors, nil)
	delete(s.handlers, int32(process.Errors))
	err := process.Wait()
	asker := x.asker
	x.asker = nil
	if err == nil {
		if x.main {
			s.phase = initproto.Running
		}
		if asker != nil {
			info, fds := x.handles()
			s.answer(asker, &initproto.Reply{Infos: []initproto.Info{info}}, fds...)
		}
		return
	}
	f := execFault(x.args[0], err)
	if asker != nil {
		s.refuse(asker, f.code, f.text)
	}
	if x.main {
		code := int32(126)
		if f.code == initproto.ExecNotFound {
			code = 127
		}
		s.end(initproto.Status{Code: code, Reason: f.text})
	}
	x.close()
	for i := range s.sessions {
		if s.sessions[i] == x {
			s.sessions = append(s.sessions[:i], s.sessions[i+1:]...)
			break
		}
	}
}

// execFault says in words why a command did not start.
func execFault(command string, err error) *fault {
	e, ok := err.(*rawfork.Error)
	if !ok || e.Step != "exec" {
		return &fault{initproto.ExecFailed, "start " + strconvQuote(command) + ": " + err.Error()}
	}
	switch e.Errno {
	case unix.ENOENT:
		return &fault{initproto.ExecNotFound, strconvQuote(command) + ": command not found in the environment"}
	case unix.EACCES:
		return &fault{initproto.ExecFailed, strconvQuote(command) + ": permission denied (is it an executable file?)"}
	case unix.ENOEXEC:
		return &fault{initproto.ExecFailed, strconvQuote(command) + ": not a program this machine can run (a script needs a #! line)"}
	}
	return &fault{initproto.ExecFailed, strconvQuote(command) + ": " + e.Errno.Error()}
}

// exited notes how a session's process ended, and tells whoever waits.
func (s *server) exited(x *session, status unix.WaitStatus) {
	x.exited = true
	if status.Signaled() {
		x.status.Signal = int32(status.Signal())
		x.status.Code = 128 + x.status.Signal
	} else {
		x.status.Code = int32(status.ExitStatus())
	}
	if x.starting != nil {
		s.started(x)
	}
	for len(x.waiters) > 0 {
		x.asked = true
		s.answer(x.waiters[0], &initproto.Reply{Status: &x.status})
	}
	if x.main {
		s.end(x.status)
	}
	if x.pidfd >= 0 {
		unix.Close(x.pidfd)
		x.pidfd = -1
	}
}
