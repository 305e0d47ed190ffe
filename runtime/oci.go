package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
	spec     *specs.Spec      // whose OOM score it gets after that
	entering bool             // init has been sent to its cgroups, and has not answered
	joining  *birth           // of a process that joins, until it has been told what to go on with
	root     *os.File         // of the container that it joins
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
		err := one.create(optional, v2)
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
