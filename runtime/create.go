package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto/rawfork"
)

// MainSession is the id of the session that CreateOptions.Main becomes.
const MainSession = "main"

// namespaceKind is clone(2)'s flag for a kind of namespace and its name below /proc/PID/ns.
type namespaceKind struct {
	flag uintptr
	file string
}

// timeNamespace is the kind that environments have no use for.
var timeNamespace = namespaceKind{unix.CLONE_NEWTIME, "time"}

// namespaceKinds are the namespaces we make or join (namespaces(7)).
var namespaceKinds = map[specs.LinuxNamespaceType]namespaceKind{
	specs.UserNamespace:    {unix.CLONE_NEWUSER, "user"},
	specs.PIDNamespace:     {unix.CLONE_NEWPID, "pid"},
	specs.MountNamespace:   {unix.CLONE_NEWNS, "mnt"},
	specs.UTSNamespace:     {unix.CLONE_NEWUTS, "uts"},
	specs.IPCNamespace:     {unix.CLONE_NEWIPC, "ipc"},
	specs.NetworkNamespace: {unix.CLONE_NEWNET, "net"},
	specs.CgroupNamespace:  {unix.CLONE_NEWCGROUP, "cgroup"},
}

// namespaces is what a Spec says about them.
type namespaces struct {
	flags uintptr // to be made
	time  bool    // make a time namespace, too: clone(2) has no room for its flag
	join  []join  // by path; the user namespace last, for with it goes the right to join the host's others
}

type join struct {
	flag uintptr
	path string
}

func (n *namespaces) makes(flag uintptr) bool { return n.flags&flag != 0 }

func parseNamespaces(linux *specs.Linux) (*namespaces, error) {
	n := &namespaces{}
	seen := map[specs.LinuxNamespaceType]bool{}
	var user []join
	for _, ns := range linux.Namespaces {
		kind, ok := namespaceKinds[ns.Type]
		if ns.Type == specs.TimeNamespace {
			kind, ok = timeNamespace, true
		}
		if !ok {
			return nil, fmt.Errorf("namespace %q is not supported", ns.Type)
		}
		if seen[ns.Type] {
			return nil, fmt.Errorf("namespace %q is listed twice", ns.Type)
		}
		seen[ns.Type] = true
		switch {
		case ns.Path == "" && ns.Type == specs.TimeNamespace:
			n.time = true
		case ns.Path == "":
			n.flags |= kind.flag
		case ns.Type == specs.UserNamespace:
			user = append(user, join{kind.flag, ns.Path})
		default:
			n.join = append(n.join, join{kind.flag, ns.Path})
		}
	}
	n.join = append(n.join, user...)
	if n.makes(unix.CLONE_NEWUSER) && (len(linux.UIDMappings) == 0 || len(linux.GIDMappings) == 0) {
		return nil, errors.New("a user namespace needs uidMappings and gidMappings")
	}
	if !n.makes(unix.CLONE_NEWUSER) && len(user) == 0 && len(linux.UIDMappings)+len(linux.GIDMappings) > 0 {
		return nil, errors.New("uidMappings and gidMappings need a user namespace")
	}
	return n, nil
}

// Create makes a container: its cgroups with their limits, its namespaces, and its init, which then waits for Start.
// Between the two the caller may work in the namespaces (NamespaceFD). On an error nothing is left.
func (r *Runtime) Create(ctx context.Context, o CreateOptions) (c *Container, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("create container %s: %w", o.ID, err)
		}
	}()
	if err := checkID(o.ID); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ns, p, err := r.checkSpec(&o)
	if err != nil {
		return nil, err
	}
	image, err := initImage()
	if err != nil {
		return nil, err
	}
	dir := r.stateDir(o.ID)
	err = os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrNotExist) { // the state directory has gone since Open
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil, ErrExists
		}
		return nil, err
	}
	group := &cgroup{hs: r.hierarchies, path: r.cgroupPath(o.ID)}
	if p := o.Spec.Linux.CgroupsPath; p != "" {
		group.path = strings.Trim(filepath.Clean("/"+p), "/")
	}
	var undo []func()
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				undo[i]()
			}
		}
	}()
	undo = append(undo, func() { os.RemoveAll(dir) })
	lock, err := lockDir(dir, true)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	undo = append(undo, func() { group.kill(); group.remove() })
	// What is on v2 a process is born into; the rest is made beside its namespaces (birth.groups).
	if err := group.create(optionalControllers(o.Spec.Linux.Resources), true); err != nil {
		return nil, err
	}
	b := &birth{r: r, o: &o, ns: ns, plan: p, group: group, dir: lock, image: image}
	defer b.close()
	if err := b.open(); err != nil {
		return nil, err
	}
	run := func(f func() error) error {
		// A parent-death signal is tied to the creating thread, so that must not end (or be Go's to end) meanwhile.
		goruntime.LockOSThread()
		defer goruntime.UnlockOSThread()
		return f()
	}
	if o.DieWithParent {
		run = r.mortal.run
	}
	c = &Container{id: o.ID, dir: dir, r: r, group: group, options: &o, plan: p, left: make(chan struct{}), gone: make(chan struct{})}
	if err := run(func() error { return b.bear(c) }); err != nil {
		r.restoreDumpable()
		return nil, err
	}
	go c.watch()
	return c, nil
}

// checkSpec refuses what can't be honoured before anything is made.
func (r *Runtime) checkSpec(o *CreateOptions) (*namespaces, *plan, error) {
	switch {
	case o.Spec == nil || o.Spec.Linux == nil:
		return nil, nil, errors.New("no Linux configuration given")
	case o.Spec.Process == nil:
		spec := *o.Spec // the caller's own stays as it is
		spec.Process = &specs.Process{}
		o.Spec = &spec
	}
	l := o.Spec.Linux
	if o.Log != nil && (o.Main == nil || o.Main.TTY) {
		return nil, nil, errors.New("a log needs a Main without a TTY")
	}
	if ns, err := parseNamespaces(l); err == nil && ns.time {
		return nil, nil, errors.New("a time namespace is not supported")
	}
	if len(l.TimeOffsets) > 0 || l.IntelRdt != nil || l.MemoryPolicy != nil || l.Personality != nil || len(l.NetDevices) > 0 {
		return nil, nil, errors.New("timeOffsets, intelRdt, memoryPolicy, personality and netDevices are not supported")
	}
	p := o.Spec.Process
	if p.Scheduler != nil || p.IOPriority != nil || p.ExecCPUAffinity != nil {
		return nil, nil, errors.New("scheduler, ioPriority and execCPUAffinity are not supported")
	}
	ns, err := parseNamespaces(l)
	if err != nil {
		return nil, nil, err
	}
	if !ns.makes(unix.CLONE_NEWNS) {
		return nil, nil, errors.New("a mount namespace is required: without one the host's own mounts would be changed")
	}
	// The rest is checked where it is translated; doing that now means that Start has nothing left to refuse.
	plan, err := buildPlan(o, ns, r.hierarchies)
	if err != nil {
		return nil, nil, err
	}
	if plan.Seccomp, plan.SeccompFlags, plan.SeccompOnInit, err = r.filters.compile(l.Seccomp); err != nil {
		return nil, nil, err
	}
	if err := plan.superviseSockets(o.Spec); err != nil {
		return nil, nil, err
	}
	return ns, plan, nil
}

// birth is what it takes to bring an init into being.
type birth struct {
	r     *Runtime
	o     *CreateOptions
	ns    *namespaces
	plan  *plan
	group *cgroup
	dir   *os.File
	image *os.File

	files   []*os.File // closed at the end, whatever happens
	keep    []*os.File // those init inherits
	tasks   []*os.File // entered at once
	later   *taskFiles // entered at the go-ahead; nil when init does that itself
	v2      *os.File
	null    *os.File
	joins   []*os.File
	sync    [2]*os.File // parent, child
	program rawfork.Program

	// For an init that becomes the user's process: it keeps our standard descriptors and this many after them.
	becomes  bool
	preserve int
	enters   bool // it joins a container, whose v1 cgroups it enters by itself, before anything else
}

func (b *birth) close() { closeFiles(b.files) }

func (b *birth) own(f *os.File, err error) (*os.File, error) {
	if f != nil {
		b.files = append(b.files, f)
	}
	return f, err
}

// open makes every descriptor that init or its making needs.
func (b *birth) open() (err error) {
	listener, err := b.own(listenControl(b.dir))
	if err != nil {
		return err
	}
	path := filepath.Join(b.r.stateDir(b.o.ID), statusName)
	status, err := b.own(os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600))
	if err != nil {
		return err
	}
	b.keep = []*os.File{listener, status}
	if b.o.Log != nil {
		for _, path := range b.o.Log.paths() {
			f, err := b.own(os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_NOFOLLOW, 0o600))
			if err != nil {
				return fmt.Errorf("log file: %w", err)
			}
			b.keep = append(b.keep, f)
		}
	}
	if b.null, err = b.own(os.OpenFile("/dev/null", os.O_RDWR, 0)); err != nil {
		return err
	}
	if b.v2, err = b.own(b.group.birthplace()); err != nil {
		return err
	}
	b.later = newTaskFiles(b.group, optionalControllers(b.o.Spec.Linux.Resources))
	for _, j := range b.ns.join {
		f, err := b.own(os.Open(j.path))
		if err != nil {
			return fmt.Errorf("join a namespace: %w", err)
		}
		b.joins = append(b.joins, f)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket pair: %w", err)
	}
	for i, fd := range pair {
		b.sync[i], _ = b.own(os.NewFile(uintptr(fd), "sync"), nil)
	}
	return nil
}

// steps writes down what happens between the fork and init's exec.
func (b *birth) steps() *rawfork.Program {
	p := &b.program
	one := p.Bytes(make([]byte, 1))
	zero := p.Bytes([]byte{'0'})
	userNS := false
	// While we are being made, our maker's death is ours.
	p.Add("parent death signal", rawfork.Must, unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	p.Add("close", rawfork.Must, unix.SYS_CLOSE, fdOf(b.sync[0]))
	for _, f := range b.tasks {
		p.Add("enter cgroup "+filepath.Dir(f.Name()), rawfork.Must, unix.SYS_WRITE, fdOf(f), zero, 1)
	}
	if len(b.ns.join) > 0 {
		// Whoever is in the namespaces already sees what joins them. Until its exec that has our memory, executable and
		// descriptors, and the host's ids: nobody without CAP_SYS_PTRACE on the host may look (CVE-2016-9962, CVE-2019-5736).
		// The mark is copied with the memory at the fork below, and wiped by the exec.
		p.Add("undumpable", rawfork.Must, unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	}
	if flags := b.ownFlags(); flags != 0 {
		p.Add("namespaces", rawfork.Must, unix.SYS_UNSHARE, flags)
		if !b.becomes {
			p.Add("report the namespaces", rawfork.Must, unix.SYS_WRITE, fdOf(b.sync[1]), zero, 1)
		}
	}
	var clocks []int // a time namespace is joined by a process that shares its memory with none, as this one does with us
	for i, j := range b.ns.join {
		if j.flag == unix.CLONE_NEWTIME {
			clocks = append(clocks, i)
			continue
		}
		p.Add("join namespace "+j.path, rawfork.Must, unix.SYS_SETNS, fdOf(b.joins[i]), j.flag)
		userNS = userNS || j.flag == unix.CLONE_NEWUSER
	}
	if len(b.ns.join) > 0 {
		// A process can neither move itself into a process namespace nor join some and make others in one go.
		p.Add("fork", rawfork.Fork, unix.SYS_CLONE, b.cloneFlags()|b.sharing()|unix.CLONE_PARENT|uintptr(unix.SIGCHLD), 0, 0, 0, 0)
		p.Add("parent death signal", rawfork.Must, unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
		for _, i := range clocks {
			p.Add("join namespace "+b.ns.join[i].path, rawfork.Must, unix.SYS_SETNS, fdOf(b.joins[i]), unix.CLONE_NEWTIME)
		}
	}
	if b.ns.time {
		// It is entered at the exec below (Linux 6.1); until a process is in it, its clocks can be set from outside.
		p.Add("time namespace", rawfork.Must, unix.SYS_UNSHARE, unix.CLONE_NEWTIME)
		p.Add("report the time namespace", rawfork.Must, unix.SYS_WRITE, fdOf(b.sync[1]), zero, 1)
	}
	switch {
	case b.later != nil:
		b.later.enter(p, fdOf(b.sync[1]))
	case b.waits():
		p.Add("go-ahead", rawfork.Byte, unix.SYS_READ, fdOf(b.sync[1]), one, 1)
	}
	if userNS || b.ns.makes(unix.CLONE_NEWUSER) {
		p.Add("setgid", rawfork.Must, unix.SYS_SETRESGID, 0, 0, 0)
		p.Add("setuid", rawfork.Must, unix.SYS_SETRESUID, 0, 0, 0)
	}
	p.Add("clear groups", rawfork.Must, unix.SYS_SETGROUPS, 0, 0)
	if !b.becomes { // which runs hooks first, and is one thread that matters when it drops them
		b.dropBounding(p)
	}
	p.Add("new session", rawfork.Must, unix.SYS_SETSID)
	death := uintptr(0)
	if b.o.DieWithParent {
		death = uintptr(unix.SIGKILL)
	}
	p.Add("parent death signal", rawfork.Must, unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, death, 0, 0, 0)
	if b.o.DieWithParent { // it may have died before that
		p.Add("parent", rawfork.Alive, unix.SYS_RECVFROM, fdOf(b.sync[1]), one, 1, unix.MSG_DONTWAIT, 0, 0)
	}
	p.Add("signals", rawfork.Must, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, p.Bytes(make([]byte, 8)), 0, 8)
	if b.waitsForMore() { // what follows is known only later
		p.Add("go-ahead", rawfork.More, unix.SYS_READ, fdOf(b.sync[1]), one, 1)
		return p
	}
	b.executeInit(p)
	return p
}

// sharing is CLONE_VM when the child's child may stay in our memory, which spares a copy of our page tables. A time namespace
// is only joined by who shares its memory with none. And the mark above would be our own as well: that only lasts, until the
// exec, where nobody wipes it for the sake of us (restoreDumpable).
func (b *birth) sharing() uintptr {
	if !b.becomes || slices.ContainsFunc(b.ns.join, func(j join) bool { return j.flag == unix.CLONE_NEWTIME }) {
		return 0
	}
	return unix.CLONE_VM
}

// waitsForMore says that a process which joins a container is told later what to do there: see goOn.
func (b *birth) waitsForMore() bool { return b.enters && (len(b.ns.join) == 0 || b.sharing() != 0) }

// executeInit adds the last steps, whose result is init.
func (b *birth) executeInit(p *rawfork.Program) {
	for fd := range uintptr(3) {
		if b.becomes {
			break
		}
		p.Add("standard descriptors", rawfork.Must, unix.SYS_DUP3, fdOf(b.null), fd, 0)
	}
	p.Add("close descriptors", rawfork.Must, unix.SYS_CLOSE_RANGE, 3, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC)
	list := ""
	for fd := range uintptr(b.preserve) {
		p.Add("keep descriptor", rawfork.Must, unix.SYS_FCNTL, 3+fd, unix.F_SETFD, 0)
	}
	for _, f := range b.keep {
		p.Add("keep descriptor", rawfork.Must, unix.SYS_FCNTL, fdOf(f), unix.F_SETFD, 0)
		list += "," + strconv.Itoa(fileFD(f))
	}
	p.Add("chdir", rawfork.Must, unix.SYS_CHDIR, p.String("/"))
	p.Add("umask", rawfork.Must, unix.SYS_UMASK, 0o022)
	env := []string{
		"INIT_FDS=" + list[1:],
		// One loop and a small heap: no signals to preempt it with, no look at its own cgroups to find out how many
		// processors it has. Two of Go's processors, not one, as otherwise its monitor takes away the only one during
		// every system call longer than 20 µs, and giving it back costs two context switches.
		"GOMAXPROCS=2", "GOGC=50", "GOMEMLIMIT=8MiB", "GODEBUG=asyncpreemptoff=1,containermaxprocs=0,updatemaxprocs=0",
	}
	if b.becomes {
		env = append(env, "INIT_PROCESS=1")
	}
	// Go's monitor thread wakes up every 20 µs at first. The kernel may take this much longer for all threads that come with
	// the start; init's own undoes it for itself, and so for what it starts or becomes.
	p.Add("timer slack", rawfork.Try, unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, uintptr(time.Millisecond), 0, 0, 0)
	p.Add("exec", rawfork.Must, unix.SYS_EXECVEAT, fdOf(b.image), p.String(""), p.Strings([]string{"init"}), p.Strings(env), unix.AT_EMPTY_PATH)
}

// dropBounding takes from the bounding set what sessions must not have, and promises no new privileges. Here it costs a
// system call each; in init, with its threads, each would have to be brought about on all of them.
//
// An exec by root gives it what is in the bounding or in the inheritable set (capabilities(7)): filling the latter is what
// leaves init its capabilities until it has built everything. It then empties it.
func (b *birth) dropBounding(p *rawfork.Program) {
	all := uint64(1)<<len(capNames) - 1
	userNS := b.plan.UserNS
	if !userNS { // the host's root may lack some itself
		all = permittedCaps()
	}
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := &[2]unix.CapUserData{}
	for i := range data {
		part := uint32(all >> (32 * i))
		data[i] = unix.CapUserData{Effective: part, Permitted: part, Inheritable: part}
	}
	p.Keep(header)
	p.Keep(data)
	p.Add("capabilities", rawfork.Must, unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(data)))
	for bit := range capNames {
		if b.plan.Caps.Bounding&(1<<bit) == 0 {
			// Try: an older kernel does not know the newest. What must not be missing is checked by the capset of a session.
			p.Add("bounding set", rawfork.Try, unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(bit), 0, 0, 0)
		}
	}
	if b.plan.NoNewPrivs {
		p.Add("no_new_privs", rawfork.Must, unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
}

// cloneFlags are the namespaces that come with the clone. The cgroup namespace is init's own to make, once it is in its
// cgroups: what it sees as their root is where it is then.
func (b *birth) cloneFlags() uintptr { return b.ns.flags &^ unix.CLONE_NEWCGROUP &^ b.ownFlags() }

// ownFlags are the namespaces that the child makes itself, since that takes the kernel a while, in which we go on. Not where
// it joins others: then it forks once more, and all come with that.
func (b *birth) ownFlags() uintptr {
	if len(b.ns.join) > 0 {
		return 0
	}
	return b.ns.flags & (unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET)
}

// waits says that the child may not go on to its exec before we have prepared it.
func (b *birth) waits() bool {
	return !b.becomes || b.ns.time || b.plan.UserNS
}

// bear forks, prepares the child from outside, records it, and lets it go on.
func (b *birth) bear(c *Container) (err error) {
	flags, cgroup := b.cloneFlags(), -1
	if len(b.joins) > 0 {
		flags = 0
	}
	if b.v2 != nil {
		cgroup = int(b.v2.Fd())
	}
	start := rawfork.Start
	if flags&unix.CLONE_NEWUSER != 0 {
		start = func(p *rawfork.Program, flags uintptr, cgroup int) (*rawfork.Process, error) {
			return startOwned(p, flags, cgroup, firstID(b.o.Spec.Linux.UIDMappings))
		}
	}
	p, err := start(b.steps(), flags, cgroup)
	if err != nil {
		return err
	}
	goruntime.KeepAlive(b)
	b.sync[1].Close()
	if len(b.joins) > 0 {
		if err := p.Forked(); err != nil {
			return err
		}
	}
	waited := false
	defer func() {
		if err != nil && !waited {
			p.Abort()
		}
	}()
	if err := b.groups(); err != nil {
		return err
	}
	if err := prepare(p.PID, b.o.Spec, b.ns); err != nil {
		return err
	}
	began, err := startTime(p.PID)
	if err != nil {
		return err
	}
	c.state = &state{ID: b.o.ID, PID: p.PID, Start: began, Boot: bootID(), Created: time.Now().UTC(), Cgroup: b.group.path,
		Main: b.o.Main != nil}
	if res := b.o.Spec.Linux.Resources; res != nil && res.Memory != nil && res.Memory.Limit != nil {
		c.state.Memory = *res.Memory.Limit
	}
	if err := writeState(c.dir, c.state); err != nil {
		return err
	}
	if b.ownFlags() != 0 { // somebody may ask for its namespaces as soon as we return
		if n, _ := b.sync[0].Read(make([]byte, 1)); n != 1 {
			waited = true
			if err = p.Wait(); err == nil {
				err = errors.New("init ended before it began")
			}
			unix.Wait4(p.PID, nil, 0, nil)
			unix.Close(p.PIDFD)
			return err
		}
	}
	if err := b.later.goAhead(b.sync[0]); err != nil {
		return fmt.Errorf("init ended before it began: %w", err)
	}
	if b.o.DieWithParent {
		// It looks whether our end of the pair is still open, so that must stay until its exec.
		waited = true
		if err := p.Wait(); err != nil {
			unix.Wait4(p.PID, nil, 0, nil)
			unix.Close(p.PIDFD)
			return err
		}
	}
	unix.SetNonblock(p.PIDFD, true)
	if !waited {
		c.process = p
	}
	c.pidfd = os.NewFile(uintptr(p.PIDFD), "pidfd")
	return nil
}

// prepare does for the child what only the outside may do: id mappings, limits beyond its own.
func prepare(pid int, spec *specs.Spec, ns *namespaces) error {
	proc := "/proc/" + strconv.Itoa(pid) + "/"
	l := spec.Linux
	if ns.makes(unix.CLONE_NEWUSER) {
		if err := writeFile(proc+"uid_map", idMap(l.UIDMappings)); err != nil {
			return fmt.Errorf("uidMappings: %w", err)
		}
		if err := writeFile(proc+"gid_map", idMap(l.GIDMappings)); err != nil {
			return fmt.Errorf("gidMappings: %w", err)
		}
	}
	for _, limit := range spec.Process.Rlimits {
		if err := raiseHard(pid, limit); err != nil {
			return err
		}
	}
	return nil
}

// setOOMScore gives a process its place in line for the OOM killer. It must have left our memory by then: the kernel gives
// all who share one the same (__set_oom_adj, fs/proc/base.c), and it would be ours, too.
func setOOMScore(pid int, spec *specs.Spec) error {
	adj := spec.Process.OOMScoreAdj
	if adj == nil {
		return nil
	}
	if err := writeFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", strconv.Itoa(*adj)); err != nil {
		return fmt.Errorf("oomScoreAdj %d (below the present value it needs CAP_SYS_RESOURCE): %w", *adj, err)
	}
	return nil
}

// raiseHard gives init the room to set a hard limit above the one it has inherited.
func raiseHard(pid int, limit specs.POSIXRlimit) error {
	resource, ok := rlimits[limit.Type]
	if !ok {
		return fmt.Errorf("rlimit %q is unknown", limit.Type)
	}
	var now unix.Rlimit // init's are copies of ours; to ask it takes CAP_SYS_RESOURCE, as it is under another user
	if err := unix.Getrlimit(resource, &now); err != nil {
		return fmt.Errorf("rlimit %s: %w", limit.Type, err)
	}
	if limit.Hard <= now.Max {
		return nil
	}
	if err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: now.Cur, Max: limit.Hard}, nil); err != nil {
		return fmt.Errorf("rlimit %s: the hard limit %d is above the %d that this program was given, and raising it takes "+
			"CAP_SYS_RESOURCE: start the program with a higher limit, or ask for less: %w", limit.Type, limit.Hard, now.Max, err)
	}
	return nil
}

// idMap writes mappings as /proc/PID/uid_map reads them (user_namespaces(7)).
func idMap(mappings []specs.LinuxIDMapping) string {
	var s strings.Builder
	for _, m := range mappings {
		fmt.Fprintf(&s, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
	}
	return s.String()
}

// mortal is a thread that lives as long as the process does, started when first needed. The kernel sends a parent-death
// signal when the thread that forked ends, and Go ends threads as it pleases.
type mortal struct {
	once sync.Once
	work chan func()
}

func (m *mortal) run(f func() error) error {
	m.once.Do(func() {
		m.work = make(chan func())
		go func() {
			goruntime.LockOSThread() // never unlocked: the thread stays this goroutine's
			for f := range m.work {
				f()
			}
		}()
	})
	done := make(chan error)
	m.work <- func() { done <- f() }
	return <-done
}
