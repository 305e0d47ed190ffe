package runtime

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto/lookup"
	"github.com/learnos/learnos/internal/initproto/rawfork"
)

// Most of what joins a container needs nothing but system calls that are known beforehand. The child makes them itself, in our
// memory, where otherwise init would have to come up first, with Go's runtime, and be told. In between it still executes init's
// image, so that what /proc/self/exe leads to is never ours (CVE-2019-5736), but as "last" (init/last.go), which only installs
// the seccomp filter and executes the command.

// straight says whether that is so. Whatever is unusual is left to init.
func (p *OCIProcess) straight() bool {
	x, l := p.plan.Process, &p.plan.Plan
	switch {
	case x.Terminal, x.ListenPID, p.spec.Process.OOMScoreAdj != nil, len(l.Sysctl) > 0, l.ExecLabel != "":
		return false
	case x.SetIOPriority, x.SetMemoryPolicy, x.SetPersonality, len(x.Scheduler)+len(x.Affinity)+len(x.FinalAffinity) > 0:
		return false
	case len(l.Seccomp) > 0 && !l.NoNewPrivs: // then it takes CAP_SYS_ADMIN, which is gone by the time of "last"
		return false
	case x.Args[0] == "", x.Args[0] == noProcess:
		return false
	}
	return true
}

// openRoot opens the root directory of a container by its first process.
func openRoot(pid int) (*os.File, error) {
	path := "/proc/" + strconv.Itoa(pid) + "/root"
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openIn opens a file of a container from outside; nil when it is not of the kind wanted, or not there. What lies there is
// looked at before it is opened, as opening a device or a pipe may do something or take for ever.
func openIn(root *os.File, path string, flags int, wanted func(*unix.Stat_t) bool) *os.File {
	fd, err := unix.Openat2(int(root.Fd()), path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || !wanted(&st) {
		return nil
	}
	if fd, err = unix.Open("/proc/self/fd/"+strconv.Itoa(fd), flags|unix.O_CLOEXEC, 0); err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), path)
}

func isNull(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
}

// ownNull opens the container's /dev/null if ours is among 0, 1 and 2, which is no business of what runs inside.
func (b *birth) ownNull(root *os.File) *os.File {
	for fd := range 3 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && isNull(&st) {
			f, _ := b.own(openIn(root, "/dev/null", unix.O_RDWR|unix.O_NONBLOCK, isNull), nil)
			return f
		}
	}
	return nil
}

// home is the user's home directory, as init would find it.
func (p *OCIProcess) home() string {
	f := openIn(p.root, "/etc/passwd", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, func(st *unix.Stat_t) bool {
		return st.Mode&unix.S_IFMT == unix.S_IFREG
	})
	if f == nil {
		return "/"
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, maxPasswd))
	return lookup.Home(b, p.plan.Process.UID)
}

// maxPasswd is how much of a passwd file is read: as much as init reads.
const maxPasswd = 4 << 20

// goOn lets a process that has joined pass, with the steps that rest adds.
func (p *OCIProcess) goOn(rest func(*birth, *rawfork.Program)) error {
	b := p.joining
	more := &rawfork.Program{}
	rest(b, more)
	p.process.More(more)
	_, err := b.sync[0].Write([]byte{1})
	b.close() // its end of the connection, too: that it is closed there says that the exec has succeeded
	p.joining = nil
	if err != nil {
		if failed := p.executed(); failed != nil {
			return failed
		}
		return fmt.Errorf("the process ended before it began: %w", err)
	}
	return nil
}

// goStraight does init's work, and returns when the command has been executed, or with the reason why not.
func (p *OCIProcess) goStraight() error {
	if filter := p.plan.Seccomp; len(filter) > 0 {
		if err := unix.Sendmsg(int(p.conn.Fd()), filter, nil, nil, unix.MSG_NOSIGNAL); err != nil {
			return fmt.Errorf("hand over the seccomp filter: %w", err)
		}
	}
	if err := p.goOn(p.lastSteps); err != nil {
		return err
	}
	var report [64]byte
	n, err := 0, error(nil)
	for {
		if n, err = unix.Read(int(p.conn.Fd()), report[:]); err != unix.EINTR {
			break
		}
	}
	if failed := p.executed(); failed != nil {
		return failed
	}
	// A connection that was closed with our filter still unread says that "last" did not get to it.
	if err != nil {
		return fmt.Errorf("the process ended before it began: %w", err)
	}
	if n == 0 {
		return nil
	}
	if n != 4 {
		return errors.New("the process said something strange before it began")
	}
	errno := syscall.Errno(binary.NativeEndian.Uint32(report[:]))
	code := 126
	if errno == unix.ENOENT {
		code = 127
	}
	return &ExecError{code, "exec " + strconv.Quote(p.plan.Process.Args[0]) + ": " + errno.Error()}
}

// lastSteps are what init's become does, in its order.
func (p *OCIProcess) lastSteps(b *birth, more *rawfork.Program) {
	x, plan := p.plan.Process, &p.plan.Plan
	add := more.Add
	for fd := range uintptr(3) {
		var st unix.Stat_t
		if unix.Fstat(int(fd), &st) != nil {
			continue
		}
		switch {
		case isNull(&st) && b.null != nil:
			add("standard descriptors", rawfork.Try, unix.SYS_DUP3, fdOf(b.null), fd, 0)
		case x.UID != 0 && st.Mode&unix.S_IFMT != unix.S_IFCHR && st.Uid != x.UID: // so that it may open /dev/stdout
			add("own standard descriptors", rawfork.Try, unix.SYS_FCHOWN, fd, uintptr(x.UID), ^uintptr(0))
		}
	}
	for _, r := range plan.Rlimits {
		limit := &unix.Rlimit{Cur: r.Cur, Max: r.Max}
		more.Keep(limit)
		add("resource limit "+limitName(int(r.Resource)), rawfork.Must, unix.SYS_PRLIMIT64, 0, uintptr(r.Resource), uintptr(unsafe.Pointer(limit)), 0)
	}
	add("umask", rawfork.Must, unix.SYS_UMASK, uintptr(plan.Umask))
	cwd := x.Cwd
	if cwd == "" {
		cwd = "/"
	}
	where := "working directory " + strconv.Quote(cwd)
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	more.Keep(how)
	at, dir := unix.AT_FDCWD, more.Number()
	add("chdir", rawfork.Must, unix.SYS_CHDIR, more.String("/"))
	add(where, rawfork.Must, unix.SYS_OPENAT2, uintptr(at), more.String(cwd), uintptr(unsafe.Pointer(how)), unsafe.Sizeof(*how)).Into(dir)
	add(where, rawfork.Must, unix.SYS_FCHDIR, uintptr(dir)).Load(0)
	more.Inside(where + " is outside of the container")
	add("close descriptors", rawfork.Must, unix.SYS_CLOSE_RANGE, 3+uintptr(p.preserve), 1<<32-1, unix.CLOSE_RANGE_CLOEXEC)
	for fd := range uintptr(p.preserve) {
		add("keep descriptor", rawfork.Must, unix.SYS_FCNTL, 3+fd, unix.F_SETFD, 0)
	}
	add("keep descriptor", rawfork.Must, unix.SYS_FCNTL, fdOf(b.keep[0]), unix.F_SETFD, 0)
	last := unix.CAP_LAST_CAP
	for last > 0 && !knownCap(last) {
		last--
	}
	for bit := range last + 1 {
		if plan.Caps.Bounding&(1<<bit) == 0 {
			add("drop a capability from the bounding set", rawfork.Must, unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(bit), 0, 0, 0)
		}
	}
	if plan.NoNewPrivs {
		add("no_new_privs", rawfork.Must, unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	p.identitySteps(more)
	env := append([]string(nil), x.Env...)
	if _, there := lookup.Variable(env, "HOME"); !there {
		env = append(env, "HOME="+p.home())
	}
	search := env
	if _, there := lookup.Variable(env, "PATH"); !there {
		search = append([]string{"PATH=" + lookup.UsualPath}, env...)
	}
	flags := ""
	if len(plan.Seccomp) > 0 {
		flags = strconv.Itoa(int(plan.SeccompFlags))
	}
	argv := append([]string{"last", strconv.Itoa(fileFD(b.keep[0])), flags}, lookup.Candidates(x.Args[0], search)...)
	argv = append(append(argv, ""), x.Args...)
	add("exec", rawfork.Must, unix.SYS_EXECVEAT, fdOf(b.image), more.String(""), more.Strings(argv), more.Strings(env), unix.AT_EMPTY_PATH)
}

func knownCap(bit int) bool {
	_, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(bit), 0, 0, 0)
	return err == nil
}

// limitName is a resource limit's name, for errors.
func limitName(resource int) string {
	for name, n := range rlimits {
		if n == resource {
			return name
		}
	}
	return strconv.Itoa(resource)
}

// identitySteps take on the process's ids and capabilities.
func (p *OCIProcess) identitySteps(more *rawfork.Program) {
	x, plan := p.plan.Process, &p.plan.Plan
	add := more.Add
	add("keep capabilities", rawfork.Must, unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	if n := len(plan.Groups); n > 0 { // none is what it has
		more.Keep(plan.Groups)
		add("groups (are they mapped in the user namespace?)", rawfork.Must, unix.SYS_SETGROUPS, uintptr(n), uintptr(unsafe.Pointer(&plan.Groups[0])))
	}
	g, u := uintptr(x.GID), uintptr(x.UID)
	add("gid "+strconv.Itoa(int(g))+" (is it mapped in the user namespace?)", rawfork.Must, unix.SYS_SETRESGID, g, g, g)
	add("uid "+strconv.Itoa(int(u))+" (is it mapped in the user namespace?)", rawfork.Must, unix.SYS_SETRESUID, u, u, u)
	add("keep capabilities", rawfork.Must, unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0, 0, 0, 0)
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := &[2]unix.CapUserData{}
	// Nobody inside may look at "last" either, or stop it before its filter is there. An image that it can't read makes the
	// kernel mark it undumpable from its first instruction on (execve(2), "dumpable"), so these two must not be in effect at
	// that exec, which computes the effective set anew, as the next one does.
	effective := plan.Caps.Effective &^ (1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH)
	for i := range data {
		s := 32 * i
		data[i] = unix.CapUserData{Effective: uint32(effective >> s), Permitted: uint32(plan.Caps.Permitted >> s),
			Inheritable: uint32(plan.Caps.Inheritable >> s)}
	}
	more.Keep(header)
	more.Keep(data)
	add("capabilities", rawfork.Must, unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(data)))
	add("ambient capabilities", rawfork.Try, unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	for bit := range 64 {
		if plan.Caps.Ambient&(1<<bit) != 0 {
			add("ambient capabilities", rawfork.Must, unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(bit), 0, 0)
		}
	}
}
