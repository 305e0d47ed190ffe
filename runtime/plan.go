package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
)

var rlimits = map[string]int{
	"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_STACK": unix.RLIMIT_STACK, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
}

// plan is a Spec in init's words, with what is to be opened on the host for it.
type plan struct {
	initproto.Plan
	lenient  bool     // warn where everybody else lets pass
	warnings []string // what the specification wants said rather than refused
	binds    []bind   // in the order of their Mounts, whose FD is filled at Start
}

// bind is a mount whose source is a path of the host (or, for an id-mapped one, needs the host's rights).
type bind struct {
	mount     int // index into Plan.Mounts
	source    string
	recursive bool
	flags     mountFlags
	idMapped  bool
	uids      []specs.LinuxIDMapping
	gids      []specs.LinuxIDMapping
}

// buildPlan translates everything but the root, the seccomp program and what needs the container to exist.
func buildPlan(o *CreateOptions, ns *namespaces, hs *hierarchies) (*plan, error) {
	s, l, proc := o.Spec, o.Spec.Linux, o.Spec.Process
	p := &plan{Plan: initproto.Plan{
		Hostname: s.Hostname, Domainname: s.Domainname,
		CgroupNS:   ns.makes(unix.CLONE_NEWCGROUP),
		UserNS:     ns.makes(unix.CLONE_NEWUSER) || slices.ContainsFunc(ns.join, func(j join) bool { return j.flag == unix.CLONE_NEWUSER }),
		NoNewPrivs: proc.NoNewPrivileges, Umask: 0o022,
		Masked: l.MaskedPaths, Readonly: l.ReadonlyPaths,
		Groups: proc.User.AdditionalGids,
	}}
	p.lenient = o.group != nil
	joined := func(flag uintptr) bool {
		return slices.ContainsFunc(ns.join, func(j join) bool { return j.flag == flag })
	}
	if (s.Hostname != "" || s.Domainname != "") && !ns.makes(unix.CLONE_NEWUTS) && !joined(unix.CLONE_NEWUTS) {
		return nil, errors.New("hostname and domainname need a UTS namespace: the host's name would be changed")
	}
	if len(s.Hostname) > 64 || len(s.Domainname) > 64 {
		return nil, errors.New("hostname and domainname may have 64 characters at most")
	}
	if proc.User.Umask != nil {
		p.Umask = *proc.User.Umask & 0o777
	}
	if s.Root != nil {
		p.RootReadonly = s.Root.Readonly
	}
	var err error
	if p.RootPropagation, err = parsePropagation(l.RootfsPropagation); err != nil {
		return nil, err
	}
	if o.group != nil {
		if p.Caps, p.warnings, err = grantableCaps(proc.Capabilities, s.Version, p.UserNS); err != nil {
			return nil, err
		}
	} else if p.Caps, err = parseCaps(proc.Capabilities); err != nil {
		return nil, err
	}
	for _, r := range proc.Rlimits {
		n, ok := rlimits[r.Type]
		if !ok {
			return nil, fmt.Errorf("rlimit %q is unknown", r.Type)
		}
		if r.Soft > r.Hard {
			return nil, fmt.Errorf("rlimit %s: the soft limit %d is above the hard limit %d", r.Type, r.Soft, r.Hard)
		}
		p.Rlimits = append(p.Rlimits, initproto.Rlimit{Resource: uint32(n), Cur: r.Soft, Max: r.Hard})
	}
	for _, path := range append(append([]string(nil), p.Masked...), p.Readonly...) {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("masked or read-only path %q is not absolute", path)
		}
	}
	if err := p.sysctls(l.Sysctl, ns, joined); err != nil {
		return nil, err
	}
	if err := p.label(proc, l.MountLabel); err != nil {
		return nil, err
	}
	if err := p.mounts(s, ns, o, hs); err != nil {
		return nil, err
	}
	if o.group != nil && !slices.ContainsFunc(p.binds, func(b bind) bool { return p.Mounts[b.mount].Dest == "/dev" }) {
		p.OwnDev = true // the specification wants the default devices in every container
	}
	if err := p.devices(l.Devices); err != nil {
		return nil, err
	}
	if m := o.Main; m != nil {
		if p.Main, err = sessionWords(*m); err != nil {
			return nil, err
		}
		p.Main.ID, p.Main.MakeCwd = MainSession, true
	}
	if o.Log != nil {
		p.LogMax, p.KeepStdin = o.Log.max(), o.KeepStdin
	}
	return p, nil
}

// sessionWords checks a SessionSpec and puts it into init's words.
func sessionWords(s SessionSpec) (*initproto.Session, error) {
	if len(s.Args) == 0 || s.Args[0] == "" {
		return nil, errors.New("no command given")
	}
	for _, list := range [][]string{s.Args, s.Env, {s.Cwd, s.User, s.ID}} {
		for _, text := range list {
			if strings.ContainsRune(text, 0) {
				return nil, fmt.Errorf("%q holds a NUL byte", text)
			}
		}
	}
	for _, v := range s.Env {
		if i := strings.IndexByte(v, '='); i <= 0 {
			return nil, fmt.Errorf("environment variable %q is not of the form NAME=VALUE", v)
		}
	}
	if s.Cwd != "" && !filepath.IsAbs(s.Cwd) {
		return nil, fmt.Errorf("working directory %q is not absolute", s.Cwd)
	}
	return &initproto.Session{ID: s.ID, Args: s.Args, Env: s.Env, Cwd: s.Cwd, User: s.User, TTY: s.TTY, Cols: s.Cols, Rows: s.Rows}, nil
}

// sysctls accepts what a namespace of the container's own holds, and nothing that is the whole machine's.
func (p *plan) sysctls(list map[string]string, ns *namespaces, joined func(uintptr) bool) error {
	own := func(flag uintptr) bool { return ns.makes(flag) || joined(flag) }
	for key, value := range list {
		path := sysctlPath(key)
		needs, kind := uintptr(0), ""
		switch {
		case strings.HasPrefix(path, "net/"):
			needs, kind = unix.CLONE_NEWNET, "network"
		case strings.HasPrefix(path, "fs/mqueue/"), slices.Contains([]string{"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni",
			"kernel/sem", "kernel/shmall", "kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced"}, path):
			needs, kind = unix.CLONE_NEWIPC, "IPC"
		case path == "kernel/domainname":
			needs, kind = unix.CLONE_NEWUTS, "UTS"
		case path == "kernel/hostname":
			return errors.New("sysctl kernel.hostname: set the hostname instead")
		default:
			return fmt.Errorf("sysctl %s is not in a namespace: it would change the whole machine", key)
		}
		if !own(needs) {
			return fmt.Errorf("sysctl %s needs a %s namespace of the container's own", key, kind)
		}
		if strings.Contains("/"+path+"/", "/../") || strings.ContainsAny(path+value, "\x00\n") {
			return fmt.Errorf("sysctl %q = %q is malformed", key, value)
		}
		p.Sysctl = append(p.Sysctl, initproto.Pair{Key: path, Value: value})
	}
	sort.Slice(p.Sysctl, func(i, j int) bool { return p.Sysctl[i].Key < p.Sysctl[j].Key })
	return nil
}

// sysctlPath turns "net.ipv4.conf.eth0/1.x" into a path: '.' separates and '/' stands for '.', unless '/' comes first
// (sysctl(8)).
func sysctlPath(key string) string {
	dot, slash := strings.IndexByte(key, '.'), strings.IndexByte(key, '/')
	if slash >= 0 && (dot < 0 || slash < dot) {
		return key
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, key)
}

// label takes the AppArmor profile or SELinux context that sessions are to run under, and refuses what the kernel can't
// hold to.
//
// An SELinux label of mounts is for SELinux alone: it names what a policy may then let some processes at, and where the kernel
// has no SELinux there is neither policy nor label, and nothing that it would have kept anybody from. A configuration may
// be made for machines with and without, so the OCI side says that it means nothing here and goes on. A process's label does
// confine, and is refused.
func (p *plan) label(proc *specs.Process, mountLabel string) error {
	if mountLabel != "" && !selinuxEnabled() {
		if !p.lenient || selinuxInKernel() {
			return fmt.Errorf("mountLabel %q: SELinux is not enabled", mountLabel)
		}
		p.warnings = append(p.warnings, fmt.Sprintf("mountLabel %q means nothing: this kernel has no SELinux", mountLabel))
	}
	if proc.ApparmorProfile != "" {
		if b, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); len(b) == 0 || b[0] != 'Y' {
			return fmt.Errorf("AppArmor profile %q: this kernel has no AppArmor", proc.ApparmorProfile)
		}
		p.ExecLabelFile, p.ExecLabel = "exec", "exec "+proc.ApparmorProfile
		if _, err := os.Stat("/proc/self/attr/apparmor/exec"); err == nil {
			p.ExecLabelFile = "apparmor/exec"
		}
	}
	if proc.SelinuxLabel != "" {
		if !selinuxEnabled() {
			return fmt.Errorf("SELinux label %q: SELinux is not enabled", proc.SelinuxLabel)
		}
		if p.ExecLabel != "" {
			return errors.New("an AppArmor profile and an SELinux label can't be had together")
		}
		p.ExecLabelFile, p.ExecLabel = "exec", proc.SelinuxLabel
	}
	return nil
}

// selinuxInKernel says that SELinux is on in the kernel, whether or not its file system is where we would look for it.
func selinuxInKernel() bool {
	b, err := os.ReadFile("/proc/filesystems")
	return err != nil || strings.Contains(string(b), "\tselinuxfs\n")
}

func selinuxEnabled() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
}

// defaultDevices are the nodes every container has (OCI config-linux, "Default Devices").
var defaultDevices = []initproto.Device{
	{Path: "/dev/null", Major: 1, Minor: 3}, {Path: "/dev/zero", Major: 1, Minor: 5}, {Path: "/dev/full", Major: 1, Minor: 7},
	{Path: "/dev/random", Major: 1, Minor: 8}, {Path: "/dev/urandom", Major: 1, Minor: 9}, {Path: "/dev/tty", Major: 5, Minor: 0},
}

func (p *plan) devices(extra []specs.LinuxDevice) error {
	if p.OwnDev {
		for _, d := range defaultDevices {
			d.Host, d.Mode = d.Path, unix.S_IFCHR|0o666
			p.Devices = append(p.Devices, d)
		}
	}
	for _, d := range extra {
		out := initproto.Device{Path: filepath.Clean(d.Path), Major: uint32(d.Major), Minor: uint32(d.Minor), Mode: 0o666}
		if !filepath.IsAbs(d.Path) {
			return fmt.Errorf("device %q: the path is not absolute", d.Path)
		}
		if d.FileMode != nil {
			out.Mode = uint32(d.FileMode.Perm())
		}
		switch d.Type {
		case "c", "u":
			out.Mode |= unix.S_IFCHR
		case "b":
			out.Mode |= unix.S_IFBLK
		case "p":
			out.Mode |= unix.S_IFIFO
		default:
			return fmt.Errorf("device %s: type %q is not c, b or u", d.Path, d.Type)
		}
		if d.UID != nil {
			out.UID = *d.UID
		}
		if d.GID != nil {
			out.GID = *d.GID
		}
		out.Host = hostDevice(out)
		if p.UserNS && out.Host == "" && d.Type != "p" {
			return fmt.Errorf("device %s: the host has no node for %s %d:%d to lend", d.Path, d.Type, d.Major, d.Minor)
		}
		if i := slices.IndexFunc(p.Devices, func(x initproto.Device) bool { return x.Path == out.Path }); i >= 0 {
			p.Devices[i] = out
			continue
		}
		p.Devices = append(p.Devices, out)
	}
	return nil
}

// hostDevice finds the host's node of the same number: at the same path, or where the kernel names it.
func hostDevice(d initproto.Device) string {
	kind := "char"
	if d.Mode&unix.S_IFMT == unix.S_IFBLK {
		kind = "block"
	}
	paths := []string{d.Path}
	uevent, _ := os.ReadFile(fmt.Sprintf("/sys/dev/%s/%d:%d/uevent", kind, d.Major, d.Minor))
	for line := range strings.Lines(string(uevent)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
			paths = append(paths, "/dev/"+name)
		}
	}
	for _, path := range paths {
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == d.Mode&unix.S_IFMT && st.Rdev == unix.Mkdev(d.Major, d.Minor) {
			return path
		}
	}
	return ""
}
