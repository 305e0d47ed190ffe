package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// OCIJoin says where one more process is to be.
type OCIJoin struct {
	// PID and Start are the container's first process.
	PID   int
	Start uint64
	Group OCIGroup
	// Sub is a group below the container's to put the process in, or "".
	Sub string
	// Preserve is how many descriptors from 3 on are inherited.
	Preserve int
}

// OCICommand says what it is to be.
type OCICommand struct {
	Process *specs.Process
	// Spec is the container's own, of which counts what holds for all its processes: the version, the seccomp profile,
	// personality and memory policy.
	Spec      *specs.Spec
	NoKeyring bool
	ListenPID bool
}

// Join makes a process that joins a container's namespaces and cgroup. It needs a while for that, in which the caller may
// find out what it is to be; Command, Setup (which without a terminal also lets it begin) and Begin follow. They or Abort
// must be called by the same goroutine, which stays on its thread until then.
func (m *OCI) Join(o OCIJoin) (p *OCIProcess, err error) {
	group := m.group(o.Group)
	if sub := strings.Trim(filepath.Clean("/"+o.Sub), "/"); sub != "" {
		group.path += "/" + sub
	}
	image, err := initFile(m.dir)
	if err != nil {
		return nil, err
	}
	ns, err := namespacesOf(o.PID)
	if err != nil {
		return nil, err
	}
	plan := &plan{}
	plan.UserNS = slices.ContainsFunc(ns.join, func(j join) bool { return j.flag == unix.CLONE_NEWUSER })
	spec := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}
	b := &birth{o: &CreateOptions{Spec: spec, group: group}, ns: ns, plan: plan, group: group, image: image, becomes: true,
		preserve: o.Preserve, enters: true}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	conn, err := b.connect()
	if err != nil {
		return nil, err
	}
	root, err := b.own(openRoot(o.PID))
	if err != nil {
		conn.Close()
		return nil, err
	}
	b.null = b.ownNull(root)
	// Its namespaces are open now; were the number another's by then, its start time would tell.
	if start, err := startTime(o.PID); err != nil || start != o.Start {
		conn.Close()
		return nil, ErrNotRunning
	}
	p = &OCIProcess{conn: conn, plan: plan, group: group, Group: o.Group, machine: m, ns: ns, preserve: o.Preserve,
		joining: b, root: root}
	if err := b.beget(p); err != nil {
		conn.Close()
		return nil, err
	}
	if !b.waitsForMore() {
		p.joining = nil
		b.close()
	}
	return p, nil
}

// Command says what a process that has joined is to execute.
func (p *OCIProcess) Command(c OCICommand) (err error) {
	l := c.Spec.Linux
	spec := &specs.Spec{Version: c.Spec.Version, Process: c.Process,
		Linux: &specs.Linux{Personality: l.Personality, MemoryPolicy: l.MemoryPolicy}}
	co := &CreateOptions{Spec: spec, group: p.group}
	if p.plan, err = buildPlan(co, p.ns, p.machine.hierarchies); err != nil {
		return err
	}
	p.Warnings = p.plan.warnings
	if p.plan.Process, err = processWords(c.Process, spec.Linux); err != nil {
		return err
	}
	x := p.plan.Process
	x.Join, x.Now, x.Preserve, x.NoKeyring, x.ListenPID = true, !x.Terminal, uint16(p.preserve), c.NoKeyring, c.ListenPID
	if a := c.Process.ExecCPUAffinity; a != nil {
		if x.Affinity, err = bitmap(a.Initial); err == nil {
			x.FinalAffinity, err = bitmap(a.Final)
		}
		if err != nil {
			return fmt.Errorf("execCPUAffinity: %w", err)
		}
	}
	if p.plan.Seccomp, p.plan.SeccompFlags, _, err = p.machine.filters.compile(l.Seccomp); err != nil {
		return err
	}
	p.spec = spec
	return prepare(p.PID, spec, p.ns)
}

// namespacesOf lists a process's namespaces as far as they are not our own.
func namespacesOf(pid int) (*namespaces, error) {
	n := &namespaces{}
	kinds := []namespaceKind{timeNamespace}
	for _, kind := range []specs.LinuxNamespaceType{specs.IPCNamespace, specs.UTSNamespace, specs.NetworkNamespace, specs.PIDNamespace,
		specs.CgroupNamespace, specs.MountNamespace, specs.UserNamespace} {
		kinds = append(kinds, namespaceKinds[kind])
	}
	for _, k := range kinds {
		path := "/proc/" + strconv.Itoa(pid) + "/ns/" + k.file
		var theirs, ours unix.Stat_t
		if err := unix.Stat(path, &theirs); err != nil {
			if err == unix.ENOENT && k == timeNamespace {
				continue // a kernel without them
			}
			return nil, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		if unix.Stat("/proc/self/ns/"+k.file, &ours) == nil && ours.Ino == theirs.Ino && ours.Dev == theirs.Dev {
			continue
		}
		n.join = append(n.join, join{k.flag, path})
	}
	return n, nil
}
