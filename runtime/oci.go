package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
	"github.com/learnos/learnos/internal/initproto/rawfork"
)

// OCI makes containers as the OCI runtime specification has them: PID 1 is the caller's process itself, which our init
// becomes by exec once it has made the container, and nothing of ours stays. It keeps no list of containers: what must
// outlast the caller (the process, the cgroup) it returns for the caller to write down.
type OCI struct {
	dir         string
	hierarchies *hierarchies
	filters     *filterCache
}

// OpenOCI looks at the machine's cgroups. Compiled seccomp profiles, and init, are kept in cacheDir, which must be root's.
func OpenOCI(cacheDir string) (*OCI, error) {
	hs, err := findHierarchies()
	if err != nil {
		return nil, err
	}
	return &OCI{dir: cacheDir, hierarchies: hs, filters: newFilterCache(filepath.Join(cacheDir, filterDir))}, nil
}

// OCIGroup names a container's cgroup for later.
type OCIGroup struct {
	// Path is the same on every hierarchy; Below says, by the hierarchy's mount point, what it is relative to (nothing
	// for an absolute cgroupsPath).
	Path  string            `json:"path"`
	Below map[string]string `json:"below,omitempty"`
}

// OCIOptions say what to create.
type OCIOptions struct {
	ID string
	// Dir is the container's state directory, locked by the caller.
	Dir string
	// Spec has an absolute Root.Path and absolute sources of bind mounts.
	Spec *specs.Spec
	// Listen has the process wait for OCIBegin, from whichever process; otherwise the creator calls Begin.
	Listen bool
	// Preserve is how many descriptors from 3 on are inherited.
	Preserve           int
	NoPivot, NoKeyring bool
	// ListenPID adds LISTEN_PID to the environment (sd_listen_fds(3)).
	ListenPID bool
	// Creating and Created are the container's state in JSON, for hooks inside, with HookPID in place of the pid.
	Creating, Created string
}

// HookPID stands in a hook's state for the process id that only the process itself knows.
const HookPID = initproto.HookPID

// OCIProcess is a process that is being brought into being.
type OCIProcess struct {
	PID int
	// Start is field 22 of /proc/PID/stat, by which the process is told from a later one of the same PID.
	Start uint64
	Group OCIGroup
	// Warnings say what was left out of the configuration because the specification wants it so.
	Warnings []string

	pidfd    int
	conn     *os.File
	owner    *Container // for the mounts' id mappings
	plan     *plan
	group    *cgroup
	pids     *specs.LinuxPids
	machine  *OCI
	ns       *namespaces // joined
	preserve int
	process  *rawfork.Process // until we know of init's exec
	entering bool             // init has been sent to its cgroups, and has not answered
}

// allowedDevices may always be used: config-linux, "Default Devices", and making any node at all.
func allowedDevices() (rules []specs.LinuxDeviceCgroup) {
	add := func(kind string, major, minor int64, access string) {
		rule := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access}
		if major >= 0 {
			rule.Major = &major
		}
		if minor >= 0 {
			rule.Minor = &minor
		}
		rules = append(rules, rule)
	}
	add("c", -1, -1, "m")
	add("b", -1, -1, "m")
	for _, d := range defaultDevices {
		add("c", int64(d.Major), int64(d.Minor), "rwm")
	}
	add("c", 5, 2, "rwm")    // /dev/ptmx
	add("c", 136, -1, "rwm") // /dev/pts/*
	return rules
}

// Create makes the cgroup with its limits and a process in the namespaces asked for, which then waits for Setup.
// On an error nothing is left. Setup or Abort must be called by the same goroutine, which stays on its thread until then.
func (m *OCI) Create(o OCIOptions) (p *OCIProcess, err error) {
	group, err := m.place(o.Spec, o.ID)
	if err != nil {
		return nil, err
	}
	co := &CreateOptions{ID: o.ID, Spec: o.Spec, group: group}
	ns, plan, err := m.check(co, &o)
	if err != nil {
		return nil, err
	}
	image, err := initFile(m.dir)
	if err != nil {
		return nil, err
	}
	b := &birth{o: co, ns: ns, plan: plan, group: group, image: image, becomes: true, preserve: o.Preserve}
	defer b.close()
	defer func() {
		if err != nil {
			if p != nil {
				if why := p.reap(); why != nil {
					err = why
				}
				p.Close()
				p = nil
			}
			if group.made {
				group.kill()
				group.remove()
			}
		}
	}()
	// init takes its time to come up, of which we make use: it is born into its cgroup2, and enters the others, of which
	// each costs a while to make, before it does anything else.
	optional := optionalControllers(o.Spec.Linux.Resources)
	if err := group.createFresh(optional, true); err != nil {
		return nil, err
	}
	conn, err := b.connect()
	if err != nil {
		return nil, err
	}
	if o.Listen {
		dir, err := b.own(os.Open(o.Dir))
		if err != nil {
			return nil, err
		}
		listener, err := b.own(listenControl(dir))
		if err != nil {
			return nil, err
		}
		b.keep = append(b.keep, listener)
	}
	resources := specs.LinuxResources{}
	if r := o.Spec.Linux.Resources; r != nil {
		resources = *r
	}
	x := &OCIProcess{conn: conn, plan: plan, group: group, pids: resources.Pids,
		Group: OCIGroup{group.path, group.below}, Warnings: plan.warnings}
	if err := b.beget(x); err != nil {
		conn.Close()
		return nil, err
	}
	p = x
	p.owner = &Container{id: o.ID, options: co, state: &state{PID: p.PID}, pidfd: os.NewFile(uintptr(p.pidfd), "pidfd")}
	if err := group.createFresh(optional, false); err != nil {
		return p, err
	}
	resources.Pids = nil // init has more threads than the process may be allowed
	resources.Devices = append(append([]specs.LinuxDeviceCgroup{{Type: "a", Access: "rwm"}}, resources.Devices...), allowedDevices()...)
	if err := group.apply(&resources, false); err != nil {
		return p, err
	}
	tasks, err := group.tasks()
	if err != nil {
		return p, err
	}
	defer closeFiles(tasks)
	if len(tasks) == 0 {
		return p, nil
	}
	var fds []int
	for _, f := range tasks {
		fds = append(fds, int(f.Fd()))
	}
	p.entering = true
	return p, p.tell(&initproto.Request{Kind: initproto.Enter}, fds)
}

// place says where the container's cgroup is to be: an absolute cgroupsPath counts from the hierarchy's root, a relative
// or missing one from our own group, or, on v2, where a group with processes can't have others below it, from its parent.
func (m *OCI) place(spec *specs.Spec, id string) (*cgroup, error) {
	g := &cgroup{hs: m.hierarchies, every: true}
	if spec == nil || spec.Linux == nil {
		return nil, errors.New("the configuration has no linux section")
	}
	path := spec.Linux.CgroupsPath
	if strings.Count(path, ":") == 2 && !strings.Contains(path, "/") {
		return nil, fmt.Errorf("cgroupsPath %q is one for systemd, which is not supported: give a path", path)
	}
	g.path = strings.Trim(filepath.Clean("/"+path), "/")
	if filepath.IsAbs(path) {
		if g.path == "" {
			return nil, errors.New("cgroupsPath / would be the whole machine's")
		}
		return g, nil
	}
	if g.path == "" {
		g.path = id
	}
	own, err := readFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	g.below = map[string]string{}
	for line := range strings.Lines(string(own)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || f[2] == "/" || strings.Contains(f[2], "..") {
			continue
		}
		for _, h := range m.hierarchies.all {
			switch {
			case h.v2 && f[0] == "0":
				if above := filepath.Dir(f[2]); above != "/" {
					g.below[h.dir] = above
				}
			case !h.v2 && f[0] != "0" && slices.Contains(strings.Split(f[1], ","), h.options[0]):
				g.below[h.dir] = f[2]
			}
		}
	}
	return g, nil
}

// createFresh makes the group's directories on cgroup v2 or on v1, or takes those that are there if nobody is in them.
func (g *cgroup) createFresh(optional map[string]bool, v2 bool) error {
	for _, h := range g.hs.all {
		if h.v2 != v2 {
			continue
		}
		one := &cgroup{hs: &hierarchies{all: []*hierarchy{h}, control: g.hs.control, unified: g.hs.unified}, path: g.path, below: g.below, every: true}
		err := one.create(optional)
		if errors.Is(err, os.ErrExist) {
			dir := g.dir(h)
			procs, err := readFile(filepath.Join(dir, "cgroup.procs"))
			if err != nil {
				return err
			}
			if len(procs) > 0 {
				return fmt.Errorf("cgroup %s has processes in it already", dir)
			}
			continue
		}
		if err != nil {
			return err
		}
		g.made = true
	}
	return nil
}

// check refuses what can't be done and translates the rest.
func (m *OCI) check(co *CreateOptions, o *OCIOptions) (*namespaces, *plan, error) {
	s := o.Spec
	l, proc := s.Linux, s.Process
	if proc == nil {
		proc = &specs.Process{Cwd: "/"}
		s.Process = proc
	}
	switch {
	case s.Root == nil || !filepath.IsAbs(s.Root.Path):
		return nil, nil, errors.New("the configuration has no root path")
	case l.IntelRdt != nil:
		return nil, nil, errors.New("linux.intelRdt is not supported")
	case len(l.NetDevices) > 0:
		return nil, nil, errors.New("linux.netDevices is not supported: move the device into the network namespace by a hook")
	}
	ns, err := parseNamespaces(l)
	if err != nil {
		return nil, nil, err
	}
	if len(l.TimeOffsets) > 0 && !ns.time {
		return nil, nil, errors.New("timeOffsets need a time namespace of the container's own")
	}
	if _, ok := kernelAtLeast(6, 1); ns.time && !ok {
		return nil, nil, errors.New("a time namespace needs Linux 6.1")
	}
	p, err := buildPlan(co, ns, m.hierarchies)
	if err != nil {
		return nil, nil, err
	}
	if p.Process, err = processWords(proc, l); err != nil {
		return nil, nil, err
	}
	p.Loopback = ns.makes(unix.CLONE_NEWNET) // as everybody's runtime does
	x := p.Process
	x.Detached = !ns.makes(unix.CLONE_NEWNS)
	x.Preserve, x.NoPivot, x.NoKeyring, x.ListenPID = uint16(o.Preserve), o.NoPivot, o.NoKeyring, o.ListenPID
	x.RootPath, x.Creating, x.Created = s.Root.Path, o.Creating, o.Created
	if h := s.Hooks; h != nil {
		x.CreateContainer, x.StartContainer = HookWords(h.CreateContainer), HookWords(h.StartContainer)
	}
	p.bindsInTurn()
	if p.Seccomp, p.SeccompFlags, _, err = m.filters.compile(l.Seccomp); err != nil {
		return nil, nil, err
	}
	return ns, p, nil
}

// bindsInTurn leaves binds to init where that has the rights and where what they share with the host would be lost anyway,
// and sees to it that the others share nothing by accident.
func (p *plan) bindsInTurn() {
	kept := p.binds[:0]
	for _, b := range p.binds {
		m := &p.Mounts[b.mount]
		if m.Propagation == 0 {
			m.Propagation = unix.MS_SLAVE | unix.MS_REC // else what is mounted below would show up on the host
		}
		if p.UserNS || b.idMapped || b.flags.recSet|b.flags.recClear != 0 || p.RootPropagation&unix.MS_SHARED != 0 {
			kept = append(kept, b)
			continue
		}
		m.FD, m.Source, m.AttrSet, m.AttrClear = initproto.FromPath, b.source, b.flags.set, b.flags.clear
		if b.recursive {
			m.Options = []string{"rbind"}
		}
	}
	p.binds = kept
}

// HookWords puts hooks into internal/hook's words.
func HookWords(hooks []specs.Hook) (out []initproto.Hook) {
	for _, h := range hooks {
		w := initproto.Hook{Path: h.Path, Args: h.Args, Env: h.Env}
		if h.Timeout != nil && *h.Timeout > 0 {
			w.Seconds = uint32(*h.Timeout)
		}
		out = append(out, w)
	}
	return out
}

var (
	ioClasses  = map[specs.IOPriorityClass]uint32{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}
	schedulers = map[specs.LinuxSchedulerPolicy]uint32{specs.SchedOther: 0, specs.SchedFIFO: 1, specs.SchedRR: 2, specs.SchedBatch: 3,
		specs.SchedISO: 4, specs.SchedIdle: 5, specs.SchedDeadline: 6}
	schedulerFlags = map[specs.LinuxSchedulerFlag]uint64{specs.SchedFlagResetOnFork: 1, specs.SchedFlagReclaim: 2,
		specs.SchedFlagDLOverrun: 4, specs.SchedFlagKeepPolicy: 8, specs.SchedFlagKeepParams: 0x10,
		specs.SchedFlagUtilClampMin: 0x20, specs.SchedFlagUtilClampMax: 0x40}
	memoryModes = map[specs.MemoryPolicyModeType]uint32{"MPOL_DEFAULT": 0, "MPOL_PREFERRED": 1, "MPOL_BIND": 2,
		"MPOL_INTERLEAVE": 3, "MPOL_LOCAL": 4, "MPOL_PREFERRED_MANY": 5, "MPOL_WEIGHTED_INTERLEAVE": 6}
	memoryFlags = map[specs.MemoryPolicyFlagType]uint32{"MPOL_F_STATIC_NODES": 1 << 15, "MPOL_F_RELATIVE_NODES": 1 << 14,
		"MPOL_F_NUMA_BALANCING": 1 << 13}
)

// noProcess stands for a command that is not there, and can't be one.
const noProcess = "/"

// processWords translates a process but for what confines it, which is the plan's.
func processWords(p *specs.Process, l *specs.Linux) (*initproto.Process, error) {
	args := p.Args
	if len(args) == 0 { // the specification lets one be created, but not started
		args = []string{noProcess}
	}
	s, err := sessionWords(SessionSpec{Args: args, Env: p.Env, Cwd: p.Cwd})
	if err != nil {
		return nil, fmt.Errorf("process: %w", err)
	}
	if p.Cwd == "" {
		return nil, errors.New("process: no working directory (cwd) given")
	}
	x := &initproto.Process{Args: s.Args, Env: s.Env, Cwd: s.Cwd, UID: p.User.UID, GID: p.User.GID, Terminal: p.Terminal}
	if p.ConsoleSize != nil {
		x.Cols, x.Rows = uint16(p.ConsoleSize.Width), uint16(p.ConsoleSize.Height)
	}
	if io := p.IOPriority; io != nil {
		class, ok := ioClasses[io.Class]
		if !ok || io.Priority < 0 || io.Priority > 7 {
			return nil, fmt.Errorf("ioPriority: class %q, priority %d: want IOPRIO_CLASS_RT, _BE or _IDLE, and 0 to 7", io.Class, io.Priority)
		}
		x.SetIOPriority, x.IOPriority = true, class<<13|uint32(io.Priority)
	}
	if sc := p.Scheduler; sc != nil {
		policy, ok := schedulers[sc.Policy]
		if !ok {
			return nil, fmt.Errorf("scheduler: policy %q is unknown", sc.Policy)
		}
		var flags uint64
		for _, f := range sc.Flags {
			bit, ok := schedulerFlags[f]
			if !ok {
				return nil, fmt.Errorf("scheduler: flag %q is unknown", f)
			}
			flags |= bit
		}
		x.Scheduler = schedAttr(policy, flags, sc)
	}
	if per := l.Personality; per != nil {
		if len(per.Flags) > 0 {
			return nil, fmt.Errorf("personality: flag %q is not supported", per.Flags[0])
		}
		switch per.Domain {
		case specs.PerLinux:
		case specs.PerLinux32:
			x.Personality = 8
		default:
			return nil, fmt.Errorf("personality: domain %q is not LINUX or LINUX32", per.Domain)
		}
		x.SetPersonality = true
	}
	if mp := l.MemoryPolicy; mp != nil {
		mode, ok := memoryModes[mp.Mode]
		if !ok {
			return nil, fmt.Errorf("memoryPolicy: mode %q is unknown", mp.Mode)
		}
		for _, f := range mp.Flags {
			bit, ok := memoryFlags[f]
			if !ok {
				return nil, fmt.Errorf("memoryPolicy: flag %q is unknown", f)
			}
			mode |= bit
		}
		if x.MemoryPolicy, err = bitmap(mp.Nodes); err != nil {
			return nil, fmt.Errorf("memoryPolicy: nodes: %w", err)
		}
		x.SetMemoryPolicy, x.MemoryPolicyMode = true, mode
	}
	return x, nil
}

// schedAttr is struct sched_attr in its first version (sched_setattr(2)).
func schedAttr(policy uint32, flags uint64, s *specs.Scheduler) []byte {
	b := make([]byte, 48)
	le := func(at, n int, v uint64) {
		for i := range n {
			b[at+i] = byte(v >> (8 * i))
		}
	}
	le(0, 4, 48)
	le(4, 4, uint64(policy))
	le(8, 8, flags)
	le(16, 4, uint64(uint32(s.Nice)))
	le(20, 4, uint64(uint32(s.Priority)))
	le(24, 8, s.Runtime)
	le(32, 8, s.Deadline)
	le(40, 8, s.Period)
	return b
}

// bitmap reads a list such as "0-3,8" into a mask of whole machine words; nil for an empty list.
func bitmap(list string) ([]byte, error) {
	if list == "" {
		return nil, nil
	}
	var mask []byte
	for _, part := range strings.Split(list, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		a, err1 := strconv.ParseUint(from, 10, 12)
		z, err2 := strconv.ParseUint(to, 10, 12)
		if err1 != nil || err2 != nil || a > z {
			return nil, fmt.Errorf("%q is not a list such as 0-3,8", list)
		}
		for ; a <= z; a++ {
			for int(a/64*8+8) > len(mask) {
				mask = append(mask, make([]byte, 8)...)
			}
			mask[a/8] |= 1 << (a % 8)
		}
	}
	return mask, nil
}

// connect makes the connection by which init is told what to do.
func (b *birth) connect() (ours *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket pair: %w", err)
	}
	theirs, _ := b.own(os.NewFile(uintptr(pair[1]), "init"), nil)
	b.keep = []*os.File{theirs}
	ours = os.NewFile(uintptr(pair[0]), "init")
	if b.v2, err = b.own(b.group.birthplace()); err == nil && b.enters {
		b.tasks, err = b.group.tasks()
		b.files = append(b.files, b.tasks...)
	}
	if err == nil {
		for _, j := range b.ns.join {
			var f *os.File
			if f, err = b.own(os.Open(j.path)); err != nil {
				err = fmt.Errorf("join a namespace: %w", err)
				break
			}
			if err = isNamespace(f, j.flag); err != nil {
				break
			}
			b.joins = append(b.joins, f)
		}
	}
	var sync [2]int
	if err == nil {
		sync, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		ours.Close()
		return nil, err
	}
	for i, fd := range sync {
		b.sync[i], _ = b.own(os.NewFile(uintptr(fd), "sync"), nil)
	}
	return ours, nil
}

// isNamespace says whether a file is a namespace of the kind that a flag stands for (ioctl_ns(2)).
func isNamespace(f *os.File, flag uintptr) error {
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || uintptr(kind) != flag {
		return fmt.Errorf("join a namespace: %s is not one of the kind asked for", f.Name())
	}
	return nil
}

// beget forks and prepares the process from outside.
func (b *birth) beget(x *OCIProcess) (err error) {
	flags, cgroup := b.cloneFlags(), -1
	if len(b.joins) > 0 {
		flags = 0
	}
	if b.v2 != nil {
		cgroup = int(b.v2.Fd())
	}
	goruntime.LockOSThread() // until its exec: the thread's death would be the child's
	p, err := rawfork.Start(b.steps(), flags, cgroup)
	if err != nil {
		goruntime.UnlockOSThread()
		return err
	}
	goruntime.KeepAlive(b)
	b.sync[1].Close()
	if len(b.joins) > 0 {
		if err := p.Forked(); err != nil {
			goruntime.UnlockOSThread()
			return err
		}
	}
	x.PID, x.pidfd, x.process = p.PID, p.PIDFD, p
	defer func() {
		if err != nil {
			if why := x.reap(); why != nil {
				err = why
			}
			unix.Close(x.pidfd)
		}
	}()
	if err := prepare(p.PID, b.o.Spec, b.ns); err != nil {
		return err
	}
	if b.ns.time {
		if _, err := b.sync[0].Read(make([]byte, 1)); err != nil {
			return fmt.Errorf("time namespace: %w", err)
		}
		for clock, o := range b.o.Spec.Linux.TimeOffsets {
			line := fmt.Sprintf("%s %d %d\n", clock, o.Secs, o.Nanosecs)
			if err := writeFile("/proc/"+strconv.Itoa(p.PID)+"/timens_offsets", line); err != nil {
				return fmt.Errorf("timeOffsets: %w", err)
			}
		}
	}
	if x.Start, err = startTime(p.PID); err != nil {
		return err
	}
	if b.waits() {
		if _, err := b.sync[0].Write([]byte{1}); err != nil {
			return fmt.Errorf("the container's init ended before it began: %w", err)
		}
	}
	return nil
}

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

func (m *OCI) group(g OCIGroup) *cgroup {
	return &cgroup{hs: m.hierarchies, path: g.Path, below: g.Below, every: true}
}

// Freeze stops every process of a container's cgroup, or lets them go on.
func (m *OCI) Freeze(g OCIGroup, frozen bool) error { return m.group(g).freeze(frozen) }

// Frozen says whether Freeze has stopped them.
func (m *OCI) Frozen(g OCIGroup) bool { return m.group(g).frozen() }

// PIDs lists the processes of a container's cgroup and those below.
func (m *OCI) PIDs(g OCIGroup) []int { return m.group(g).pids() }

// Remove kills what is left in a container's cgroup and deletes it.
func (m *OCI) Remove(g OCIGroup) error {
	c := m.group(g)
	if c.removeEmpty() { // as it should be by now
		return nil
	}
	if err := c.kill(); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return c.remove()
}

// Kill kills every process of a container's cgroup.
func (m *OCI) Kill(g OCIGroup) error { return m.group(g).kill() }

// Update sets limits of a running container; what r does not mention stays.
func (m *OCI) Update(g OCIGroup, r *specs.LinuxResources) error { return m.group(g).apply(r, false) }

// Stats reads what a container uses.
func (m *OCI) Stats(g OCIGroup) (Stats, error) { return m.group(g).stats() }
