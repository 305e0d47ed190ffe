package main

import (
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/hook"
	"github.com/learnos/learnos/internal/initproto"
	"github.com/learnos/learnos/internal/initproto/lookup"
	"github.com/learnos/learnos/internal/initproto/rawfork"
)

// What follows is init's other life: instead of staying, it makes the container and then becomes the user's process by
// exec, as the OCI runtime specification has it. It runs straight through, without the loop.

// prepareProcess makes or enters the container, waits to be told to begin, and becomes the process. fds are the creator's
// connection and, perhaps, the socket on which a later "start" will come.
func prepareProcess(fds []int) {
	if len(fds) < 1 || len(fds) > 2 {
		exit(125)
	}
	rawfork.RestoreFileLimit()
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	s := &server{listen: -1, status: -1, pts: -1, proc: -1}
	if len(fds) == 2 {
		s.listen = fds[1]
	}
	c := &conn{fd: fds[0]}
	request := await(c)
	if request != nil && request.Kind == initproto.Enter {
		s.enter(c)
		request = await(c)
	}
	if request == nil || request.Kind != initproto.Setup || request.Plan == nil || request.Plan.Process == nil ||
		int(request.Plan.FDs) != len(c.fds) {
		s.giveUp(c, invalid("the plan and its descriptors don't match"))
	}
	p := request.Plan
	x := p.Process
	var f *fault
	if x.Join {
		f = s.labelJoined(p)
	} else {
		f = s.container(p, c)
	}
	if f != nil {
		s.giveUp(c, f)
	}
	s.letGo()
	closeAll(c.fds)
	if s.proc >= 0 {
		unix.Close(s.proc)
	}
	paths, f := executable(x)
	if f != nil {
		s.giveUp(c, f)
	}
	master, slave := -1, -1
	if x.Terminal {
		if master, slave, f = terminal(unix.AT_FDCWD, x); f != nil {
			s.giveUp(c, f)
		}
		if !x.Join {
			if f := bindConsole(slave); f != nil {
				s.giveUp(c, f)
			}
		}
		// Now, not at the end: who created us may be reading what it gave us as 0, 1 and 2 until nobody holds it.
		for fd := range 3 {
			if err := unix.Dup3(slave, fd, 0); err != nil {
				s.giveUp(c, failed("standard descriptors", err))
			}
		}
	}
	if !x.Now {
		var oob []byte
		if master >= 0 {
			oob = unix.UnixRights(master)
		}
		b, err := (&initproto.Reply{Phase: initproto.Waiting}).Encode()
		if err == nil {
			_, err = unix.SendmsgN(c.fd, b, oob, nil, unix.MSG_NOSIGNAL)
		}
		if err != nil {
			exit(125)
		}
	}
	if master >= 0 {
		unix.Close(master)
	}
	if !x.Now {
		c = s.awaitBegin(c)
	}
	s.giveUp(c, s.become(p, paths, slave))
}

// enter moves us into the cgroups whose tasks files have come. Only this thread goes, the one that the kernel keeps at the
// exec: what moves itself alone spares the kernel the lock under which it would wait out every fork and exit of the machine.
func (s *server) enter(c *conn) {
	for _, fd := range c.fds {
		if _, err := unix.Write(fd, []byte{'0'}); err != nil {
			s.giveUp(c, failed("enter the cgroups", err))
		}
	}
	closeAll(c.fds)
	c.fds = nil
	b, err := (&initproto.Reply{Phase: initproto.Waiting}).Encode()
	if err == nil {
		err = unix.Send(c.fd, b, unix.MSG_NOSIGNAL)
	}
	if err != nil {
		exit(125)
	}
}

// giveUp reports a fault to whoever waits for us, and ends.
func (s *server) giveUp(c *conn, f *fault) {
	if len(f.text) > 4096 {
		f.text = f.text[:4096]
	}
	if b, err := (&initproto.Reply{Code: f.code, Message: f.text, Phase: initproto.Ending}).Encode(); err == nil {
		unix.SendmsgN(c.fd, b, nil, nil, unix.MSG_NOSIGNAL)
	}
	code := 125
	switch f.code {
	case initproto.ExecNotFound:
		code = 127
	case initproto.ExecFailed:
		code = 126
	}
	exit(code)
}

// await waits for a request; nil when the other side is gone or talks nonsense.
func await(c *conn) *initproto.Request {
	for {
		request, err := receive(c)
		if err == nil {
			return request
		}
		if err != unix.EAGAIN && err != unix.EINTR {
			return nil
		}
		unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, -1)
	}
}

// awaitBegin waits for Begin, from our creator or, when that is gone, from whoever connects.
func (s *server) awaitBegin(creator *conn) *conn {
	for creator != nil {
		poll := []unix.PollFd{{Fd: int32(creator.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err != nil {
			continue
		}
		request := await(creator)
		if request != nil && request.Kind == initproto.Begin {
			return creator
		}
		unix.Close(creator.fd)
		creator = nil
		if s.listen < 0 {
			exit(125)
		}
	}
	for {
		unix.Poll([]unix.PollFd{{Fd: int32(s.listen), Events: unix.POLLIN}}, -1)
		fd, _, err := unix.Accept4(s.listen, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err != nil {
			continue
		}
		c := &conn{fd: fd}
		peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil && !s.isInside(peer) {
			if request := await(c); request != nil && request.Kind == initproto.Begin {
				return c
			}
		}
		closeAll(c.fds)
		unix.Close(fd)
	}
}

// container makes the container around us.
func (s *server) container(p *initproto.Plan, c *conn) *fault {
	x := p.Process
	if len(c.fds) == 0 {
		return invalid("no root given")
	}
	root := c.fds[0]
	if !x.NoKeyring {
		unix.Syscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0)
	}
	if p.CgroupNS {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return failed("cgroup namespace", err)
		}
	}
	if p.Loopback {
		if err := loopback(); err != nil {
			return failed("bring the loopback device up", err)
		}
	}
	home := -1 // the mount namespace that is not ours, while we build elsewhere
	if x.Detached && mountsUponTrees() {
		// A tree can only be mounted upon in the namespace that it was taken from.
		if tree, err := unix.OpenTree(unix.AT_FDCWD, x.RootPath, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE); err == nil {
			root = tree
			defer unix.Close(tree)
		}
	} else if x.Detached {
		var err error
		if home, err = unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return failed("the mount namespace", err)
		}
		defer unix.Close(home)
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return failed("a mount namespace to build in", err)
		}
		if f := attachBundle(root, p); f != nil {
			return f
		}
	} else if f := attachBundle(root, p); f != nil {
		return f
	}
	for i := range p.Mounts {
		if f := s.mount(root, &p.Mounts[i], c.fds); f != nil {
			return f
		}
	}
	if f := s.devices(root, p); f != nil {
		return f
	}
	if x.Terminal { // made here, because the root may be read-only later
		at, path := s.place(root, "/dev/console")
		fd, err := openInside(at, path, unix.O_PATH, 0)
		if err == unix.ENOENT {
			fd, err = makeMissing(at, path, true)
		}
		if err != nil {
			return failed("/dev/console", err)
		}
		unix.Close(fd)
	}
	if x.Cwd != "" { // the same
		if fd, err := makeDirectory(root, x.Cwd); err == nil {
			unix.Close(fd)
		}
	}
	if f := runHooks(x.CreateContainer, x.Creating); f != nil {
		return f
	}
	if f := s.closeOff(root, p); f != nil {
		return f
	}
	switch {
	case x.Detached:
		// The mount namespace is somebody else's: the root stays a tree of its own, which nobody there sees, and ends
		// with the last process in it.
		if home >= 0 {
			tree, err := unix.OpenTree(root, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
			if err != nil {
				return failed("take the root along", err)
			}
			defer unix.Close(tree)
			if err := unix.Setns(home, unix.CLONE_NEWNS); err != nil {
				return failed("go back to the mount namespace", err)
			}
			root = tree
		}
		if err := unix.Fchdir(root); err != nil {
			return failed("enter the root", err)
		}
		if f := rootAttributes(root, p); f != nil {
			return f
		}
		if err := unix.Chroot("."); err != nil {
			return failed("chroot", err)
		}
		return nil
	case x.NoPivot:
		return moveRoot(root, p)
	}
	return s.pivot(root, p)
}

// labelJoined is label for who has joined a container. In a user namespace whose /proc is masked in part nobody may mount
// another (kernel: mount_too_revealing), so that one has to do: writeProc stays off what is mounted over it.
func (s *server) labelJoined(p *initproto.Plan) *fault {
	f := s.label(p)
	if f == nil || s.proc >= 0 {
		return f
	}
	theirs, err := openInside(unix.AT_FDCWD, "/proc", unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return f
	}
	if !isOn(theirs, unix.PROC_SUPER_MAGIC) {
		unix.Close(theirs)
		return f
	}
	s.proc = theirs
	return s.label(p)
}

// loopback brings the loopback device of our network namespace up.
func loopback() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) // any family serves a device's ioctls
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// mountsUponTrees says whether the kernel lets one mount upon a tree that is attached nowhere: Linux 6.15.
func mountsUponTrees() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var version [2]int
	for i, part := 0, 0; i < len(u.Release) && part < 2; i++ {
		switch c := u.Release[i]; {
		case c >= '0' && c <= '9':
			version[part] = version[part]*10 + int(c-'0')
		default:
			part++
		}
	}
	return version[0] > 6 || version[0] == 6 && version[1] >= 15
}

// attachBundle hangs the detached root where the host knows it, in our copy of the host's mounts, so that hooks find there
// what has been mounted; where it can't be reached, over "/".
func attachBundle(root int, p *initproto.Plan) *fault {
	if !isType(root, unix.S_IFDIR) {
		return invalid("the root is not a directory")
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_SLAVE}); err != nil {
		return failed("keep our mounts from the host", err)
	}
	at, err := unix.Open(p.Process.RootPath, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = moveMount(root, at, "")
		unix.Close(at)
	}
	if err != nil {
		if err = moveMount(root, unix.AT_FDCWD, "/"); err != nil {
			return failed("attach the root file system", err)
		}
	}
	if p.RootPropagation&unix.MS_SHARED == 0 { // what is asked to be shared keeps what it shares with the host
		if err := unix.MountSetattr(root, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_SLAVE}); err != nil {
			return failed("keep the root's mounts from the host", err)
		}
	}
	return nil
}

// moveRoot is the way without pivot_root, for a host whose root is an initramfs: less tight, since the host's tree stays
// below.
func moveRoot(root int, p *initproto.Plan) *fault {
	if err := unix.Fchdir(root); err != nil {
		return failed("enter the root", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return failed("move the root", err)
	}
	if err := unix.Chroot("."); err != nil {
		return failed("chroot", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return failed("enter the new root", err)
	}
	return rootAttributes(root, p)
}

func runHooks(hooks []initproto.Hook, state string) *fault {
	for i := range hooks {
		if err := hook.Run(&hooks[i], withPID(state), "/"); err != nil {
			return &fault{initproto.Failed, err.Error()}
		}
	}
	return nil
}

// withPID puts our process id, as we see it, into a state.
func withPID(state string) string {
	for i := range len(state) {
		if state[i] == initproto.HookPID[0] {
			return state[:i] + strconv.Itoa(unix.Getpid()) + state[i+1:]
		}
	}
	return state
}

// executable lists where to look for the command, and refuses one that is nowhere.
func executable(x *initproto.Process) ([]string, *fault) {
	if len(x.Args) == 0 || x.Args[0] == "" {
		return nil, invalid("no command given")
	}
	if x.Args[0] == "/" { // none: this container will never begin
		return x.Args, nil
	}
	env := x.Env
	if _, there := lookup.Variable(env, "PATH"); !there {
		env = append([]string{"PATH=" + lookup.UsualPath}, env...)
	}
	paths := lookup.Candidates(x.Args[0], env)
	found := error(unix.ENOENT)
	for _, path := range paths {
		full := path
		if path[0] != '/' {
			full = x.Cwd + "/" + path
		}
		var st unix.Stat_t
		err := unix.Stat(full, &st)
		if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0) {
			err = unix.EACCES
		}
		if err == nil {
			return paths, nil
		}
		if err != unix.ENOENT && err != unix.ENOTDIR {
			found = err
		}
	}
	code := initproto.Code(initproto.ExecFailed)
	if found == unix.ENOENT {
		code = initproto.ExecNotFound
	}
	return nil, &fault{code, "exec " + strconvQuote(x.Args[0]) + ": " + found.Error()}
}

// become gives up what the process must not have and executes it. It returns only when that fails.
//
// All of it is done on the main thread alone: that is the one the kernel keeps at the exec.
func (s *server) become(p *initproto.Plan, paths []string, slave int) *fault {
	x := p.Process
	raw := func(trap uintptr, args ...uintptr) syscall.Errno {
		var a [6]uintptr
		copy(a[:], args)
		_, _, errno := syscall.RawSyscall6(trap, a[0], a[1], a[2], a[3], a[4], a[5])
		return errno
	}
	if slave >= 0 {
		if err := unix.IoctlSetInt(slave, unix.TIOCSCTTY, 0); err != nil {
			return failed("controlling terminal", err)
		}
	} else {
		ownNull()
		ownStdio(x)
	}
	if f := scheduling(x); f != nil {
		return f
	}
	for _, r := range p.Rlimits {
		limit := &unix.Rlimit{Cur: r.Cur, Max: r.Max}
		if errno := raw(unix.SYS_PRLIMIT64, 0, uintptr(r.Resource), uintptr(unsafe.Pointer(limit))); errno != 0 {
			return failed("resource limit "+rlimitName(r.Resource), errno)
		}
	}
	unix.Umask(int(p.Umask))
	cwd, err := openInside(unix.AT_FDCWD, cwdOf(x), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return failed("working directory "+strconvQuote(cwdOf(x)), err)
	}
	if err := unix.Fchdir(cwd); err != nil {
		return failed("working directory "+strconvQuote(cwdOf(x)), err)
	}
	var buf [unix.PathMax]byte
	if n, err := unix.Getcwd(buf[:]); err != nil || n == 0 || buf[0] != '/' {
		return invalid("working directory " + strconvQuote(cwdOf(x)) + " is outside of the container")
	}
	unix.Close(cwd)
	// From here on descriptors that we know nothing of close at exec; those to be handed on were put first by our creator.
	if errno := raw(unix.SYS_CLOSE_RANGE, 3+uintptr(x.Preserve), 1<<32-1, unix.CLOSE_RANGE_CLOEXEC); errno != 0 {
		return failed("close descriptors", errno)
	}
	for bit := range unix.CAP_LAST_CAP + 1 {
		if p.Caps.Bounding&(1<<bit) == 0 {
			if errno := raw(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(bit)); errno != 0 && errno != unix.EINVAL {
				return failed("drop a capability from the bounding set", errno)
			}
		}
	}
	if p.NoNewPrivs {
		if errno := raw(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1); errno != 0 {
			return failed("no_new_privs", errno)
		}
	}
	env := append([]string(nil), x.Env...)
	if _, there := lookup.Variable(env, "HOME"); !there {
		env = append(env, "HOME="+lookup.Home(readInside("/etc/passwd"), x.UID))
	}
	if x.ListenPID {
		env = append(env, "LISTEN_PID="+strconv.Itoa(unix.Getpid()))
	}
	filter := func() *fault {
		if len(p.Seccomp) == 0 {
			return nil
		}
		if errno := raw(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(p.SeccompFlags), uintptr(unsafe.Pointer(sockFprog(p.Seccomp)))); errno != 0 {
			return failed("seccomp filter", errno)
		}
		return nil
	}
	if !p.NoNewPrivs && len(x.StartContainer) == 0 {
		if f := filter(); f != nil { // needs the CAP_SYS_ADMIN that goes below
			return f
		}
	}
	if f := identify(p, raw); f != nil {
		return f
	}
	if f := runHooks(x.StartContainer, x.Created); f != nil {
		return f
	}
	var argv, envp []*byte
	for _, list := range []struct {
		from []string
		to   *[]*byte
	}{{x.Args, &argv}, {env, &envp}} {
		if *list.to, err = syscall.SlicePtrFromStrings(list.from); err != nil {
			return invalid("the command or its environment holds a NUL byte")
		}
	}
	names, err := syscall.SlicePtrFromStrings(paths)
	if err != nil {
		return invalid("the command holds a NUL byte")
	}
	var none uint64
	raw(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, 8)
	if len(x.FinalAffinity) > 0 {
		if errno := raw(unix.SYS_SCHED_SETAFFINITY, 0, uintptr(len(x.FinalAffinity)), uintptr(unsafe.Pointer(&x.FinalAffinity[0]))); errno != 0 {
			return failed("CPU affinity", errno)
		}
	}
	if p.NoNewPrivs || len(x.StartContainer) > 0 {
		if f := filter(); f != nil {
			return f
		}
	}
	found := syscall.Errno(unix.ENOENT)
	for _, name := range names[:len(names)-1] {
		errno := raw(unix.SYS_EXECVE, uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envp[0])))
		if errno != unix.ENOENT && errno != unix.ENOTDIR {
			found = errno
			if errno != unix.EACCES {
				break
			}
		}
	}
	code := initproto.Code(initproto.ExecFailed)
	if found == unix.ENOENT {
		code = initproto.ExecNotFound
	}
	return &fault{code, "exec " + strconvQuote(x.Args[0]) + ": " + found.Error()}
}
