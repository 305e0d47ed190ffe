package runtime

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
)

// mountFlags is what options say that isn't the file system's own business.
type mountFlags struct {
	set, clear       uint64 // MOUNT_ATTR_
	recSet, recClear uint64 // the same, for everything below, too
	propagation      uint64 // MS_
	bind, rbind      bool
	idMap, ridMap    bool
	copyUp           bool
	data             []string
}

type attrOption struct{ set, clear uint64 }

// attrOptions are mount(8)'s file-system-independent options as mount_setattr(2) takes them.
var attrOptions = map[string]attrOption{
	"ro": {set: unix.MOUNT_ATTR_RDONLY}, "rw": {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid": {set: unix.MOUNT_ATTR_NOSUID}, "suid": {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev": {set: unix.MOUNT_ATTR_NODEV}, "dev": {clear: unix.MOUNT_ATTR_NODEV},
	"noexec": {set: unix.MOUNT_ATTR_NOEXEC}, "exec": {clear: unix.MOUNT_ATTR_NOEXEC},
	"nodiratime": {set: unix.MOUNT_ATTR_NODIRATIME}, "diratime": {clear: unix.MOUNT_ATTR_NODIRATIME},
	"relatime":   {clear: unix.MOUNT_ATTR__ATIME, set: unix.MOUNT_ATTR_RELATIME},
	"norelatime": {clear: unix.MOUNT_ATTR__ATIME, set: unix.MOUNT_ATTR_RELATIME},
	"noatime":    {clear: unix.MOUNT_ATTR__ATIME, set: unix.MOUNT_ATTR_NOATIME}, "atime": {clear: unix.MOUNT_ATTR__ATIME, set: unix.MOUNT_ATTR_RELATIME},
	"strictatime": {clear: unix.MOUNT_ATTR__ATIME, set: unix.MOUNT_ATTR_STRICTATIME}, "nostrictatime": {clear: unix.MOUNT_ATTR__ATIME, set: unix.MOUNT_ATTR_RELATIME},
	"nosymfollow": {set: unix.MOUNT_ATTR_NOSYMFOLLOW}, "symfollow": {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
}

var propagations = map[string]uint64{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
	"unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

func parsePropagation(s string) (uint64, error) {
	p, ok := propagations[s]
	if !ok && s != "" {
		return 0, fmt.Errorf("rootfsPropagation %q is unknown", s)
	}
	return p, nil
}

func parseOptions(options []string) (f mountFlags, err error) {
	for _, o := range options {
		attr, isAttr := attrOptions[o]
		rattr, isRecursive := attrOptions[strings.TrimPrefix(o, "r")]
		isRecursive = isRecursive && strings.HasPrefix(o, "r") && !isAttr
		propagation, isPropagation := propagations[o]
		switch {
		case isAttr:
			f.set, f.clear = f.set&^attr.clear|attr.set, f.clear&^attr.set|attr.clear
		case isRecursive:
			f.recSet, f.recClear = f.recSet&^rattr.clear|rattr.set, f.recClear&^rattr.set|rattr.clear
		case isPropagation:
			f.propagation = propagation
		case o == "defaults", o == "":
		case o == "bind":
			f.bind = true
		case o == "rbind":
			f.bind, f.rbind = true, true
		case o == "idmap":
			f.idMap = true
		case o == "ridmap":
			f.idMap, f.ridMap = true, true
		case o == "tmpcopyup":
			f.copyUp = true
		case o == "remount", o == "iversion", o == "noiversion":
			return f, fmt.Errorf("option %q is not supported", o)
		case o == "silent", o == "loud": // whether the kernel logs a failure, which we report
		default:
			if strings.ContainsRune(o, 0) {
				return f, errors.New("an option holds a NUL byte")
			}
			f.data = append(f.data, o)
		}
	}
	return f, nil
}

// mounts translates the Spec's mounts.
func (p *plan) mounts(s *specs.Spec, ns *namespaces, o *CreateOptions, hs *hierarchies) error {
	for _, m := range s.Mounts {
		what := fmt.Sprintf("mount %s", m.Destination)
		dest := path.Clean(m.Destination)
		if !path.IsAbs(dest) || dest == "/" {
			return fmt.Errorf("%s: the destination must be an absolute path other than /", what)
		}
		f, err := parseOptions(m.Options)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if m.Type == "bind" {
			f.bind = true
		}
		if f.copyUp && m.Type != "tmpfs" {
			return fmt.Errorf("%s: only a tmpfs can have the option tmpcopyup", what)
		}
		if f.bind || m.Type == "none" {
			if err := p.bindMount(dest, m, f); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			continue
		}
		if len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0 || f.idMap {
			return fmt.Errorf("%s: only a bind mount can be id-mapped", what)
		}
		switch m.Type {
		case "":
			return fmt.Errorf("%s: no file system type", what)
		case "cgroup", "cgroup2":
			if o.group != nil && !p.CgroupNS {
				p.groupBinds(dest, f, o.group)
				continue
			}
			p.cgroupMounts(dest, f, o, hs)
			continue
		case "sysfs":
			// A new sysfs shows the network namespace's devices and takes rights over it; with one that isn't ours,
			// show the host's, read-only and without what is mounted below.
			if p.UserNS && !ns.makes(unix.CLONE_NEWNET) {
				f.set |= unix.MOUNT_ATTR_RDONLY
				if err := p.bindMount(dest, specs.Mount{Source: "/sys"}, f); err != nil {
					return fmt.Errorf("%s: %w", what, err)
				}
				continue
			}
		case "mqueue":
			if p.UserNS && !ns.makes(unix.CLONE_NEWIPC) {
				return fmt.Errorf("%s: needs an IPC namespace of the container's own", what)
			}
		}
		if dest == "/proc" && m.Type != "proc" || dest == "/sys" && m.Type != "sysfs" && m.Type != "tmpfs" {
			return fmt.Errorf("%s: a %s does not belong there", what, m.Type)
		}
		source := m.Source
		if source == "" {
			source = m.Type
		}
		if dest == "/dev" {
			p.OwnDev = true
		}
		if label := s.Linux.MountLabel; label != "" && selinuxEnabled() && (m.Type == "tmpfs" || m.Type == "mqueue") {
			f.data = append(f.data, "context="+label)
		}
		fresh := initproto.Mount{
			Dest: dest, FD: initproto.NewFS, FSType: m.Type, Source: source, Options: f.data, AttrSet: f.set | f.recSet,
			Propagation: f.propagation, Strict: o.group == nil || strict(dest), CopyUp: f.copyUp,
			LikeTarget: o.group != nil && m.Type == "tmpfs" && !slices.ContainsFunc(f.data, isMode),
		}
		writable := fresh.AttrSet &^ unix.MOUNT_ATTR_RDONLY
		if f.copyUp && writable != fresh.AttrSet { // read-only once the content is there
			fresh.AttrSet = writable
			p.Mounts = append(p.Mounts, fresh, initproto.Mount{Dest: dest, FD: initproto.Remount, AttrSet: unix.MOUNT_ATTR_RDONLY})
			continue
		}
		p.Mounts = append(p.Mounts, fresh)
	}
	return nil
}

func isMode(option string) bool { return strings.HasPrefix(option, "mode=") }

// groupBinds shows a container without a cgroup namespace its own groups and no others: each bound to its usual place.
func (p *plan) groupBinds(dest string, f mountFlags, g *cgroup) {
	f.set, f.recSet = f.set|f.recSet, 0
	own := func(h *hierarchy, dest string) {
		p.binds = append(p.binds, bind{mount: len(p.Mounts), source: g.dir(h), flags: f})
		p.Mounts = append(p.Mounts, initproto.Mount{Dest: dest, Propagation: unix.MS_PRIVATE, Strict: true})
	}
	if len(g.hs.all) == 1 && g.hs.unified != nil {
		own(g.hs.unified, dest)
		return
	}
	p.Mounts = append(p.Mounts, initproto.Mount{Dest: dest, FD: initproto.NewFS, FSType: "tmpfs", Source: "cgroup",
		Options: []string{"mode=755", "size=64k"}, AttrSet: f.set &^ unix.MOUNT_ATTR_RDONLY, Strict: true})
	for _, h := range g.hs.all {
		own(h, dest+"/"+h.name())
	}
	if f.set&unix.MOUNT_ATTR_RDONLY != 0 {
		p.Mounts = append(p.Mounts, initproto.Mount{Dest: dest, FD: initproto.Remount, AttrSet: unix.MOUNT_ATTR_RDONLY})
	}
}

// procFiles are those below /proc that may be bound over one by one, as lxcfs does to show a container its own limits.
var procFiles = []string{"/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime",
	"/proc/loadavg", "/proc/slabinfo", "/proc/net/dev", "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled"}

func (p *plan) bindMount(dest string, m specs.Mount, f mountFlags) error {
	if dest == "/proc" || strings.HasPrefix(dest, "/proc/") && strings.Count(dest, "/") > 2 && !slices.Contains(procFiles, dest) {
		return errors.New("nothing may be bound over /proc")
	}
	if !filepath.IsAbs(m.Source) {
		return fmt.Errorf("the source %q is not an absolute path of the host", m.Source)
	}
	if len(f.data) > 0 && p.lenient {
		p.warnings = append(p.warnings, fmt.Sprintf("mount %s: option %q means nothing to a bind mount", dest, f.data[0]))
	} else if len(f.data) > 0 {
		return fmt.Errorf("option %q means nothing to a bind mount", f.data[0])
	}
	info, err := os.Stat(m.Source)
	if err != nil {
		return err
	}
	b := bind{mount: len(p.Mounts), source: m.Source, recursive: f.rbind, flags: f,
		idMapped: f.idMap || len(m.UIDMappings)+len(m.GIDMappings) > 0, uids: m.UIDMappings, gids: m.GIDMappings}
	if b.idMapped && !p.UserNS && len(m.UIDMappings) == 0 {
		return errors.New("an id-mapped mount needs mappings, its own or those of a user namespace")
	}
	p.binds = append(p.binds, b)
	p.Mounts = append(p.Mounts, initproto.Mount{Dest: dest, Propagation: f.propagation, File: !info.IsDir(), Strict: strict(dest)})
	return nil
}

// strict says that a destination is of those that an image has no business redirecting.
func strict(dest string) bool {
	for _, top := range []string{"/proc", "/sys", "/dev"} {
		if dest == top || strings.HasPrefix(dest, top+"/") {
			return true
		}
	}
	return false
}

// cgroupMounts shows the container its own cgroups: on a pure v2 machine the one tree, otherwise a directory for each.
func (p *plan) cgroupMounts(dest string, f mountFlags, o *CreateOptions, hs *hierarchies) {
	optional := optionalControllers(o.Spec.Linux.Resources)
	attr := f.set | f.recSet
	if len(hs.all) == 1 && hs.unified != nil {
		p.Mounts = append(p.Mounts, initproto.Mount{Dest: dest, FD: initproto.NewFS, FSType: "cgroup2", Source: "cgroup", AttrSet: attr, Strict: true})
		return
	}
	p.Mounts = append(p.Mounts, initproto.Mount{Dest: dest, FD: initproto.NewFS, FSType: "tmpfs", Source: "cgroup",
		Options: []string{"mode=755", "size=64k"}, AttrSet: attr &^ unix.MOUNT_ATTR_RDONLY, Strict: true})
	g := &cgroup{hs: hs}
	for _, h := range hs.all {
		// freezer, devices and blkio have nothing to say to a program that wants to know its limits.
		if !g.uses(h, optional) || !h.v2 && !slices.ContainsFunc(h.options, func(c string) bool {
			return slices.Contains([]string{"memory", "cpu", "cpuacct", "cpuset", "pids", "hugetlb"}, c)
		}) {
			continue
		}
		m := initproto.Mount{Dest: dest + "/" + h.name(), FD: initproto.NewFS, FSType: "cgroup", Source: "cgroup", Options: h.options,
			AttrSet: attr, Strict: true, Optional: true}
		if h.v2 {
			m.FSType, m.Options = "cgroup2", nil
		}
		p.Mounts = append(p.Mounts, m)
	}
	if attr&unix.MOUNT_ATTR_RDONLY != 0 {
		p.Mounts = append(p.Mounts, initproto.Mount{Dest: dest, FD: initproto.Remount, AttrSet: unix.MOUNT_ATTR_RDONLY})
	}
}

// attach returns the detached mount of a bind's source.
func (c *Container) attach(b *bind) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if b.recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, b.source, flags)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: b.source, Err: err}
	}
	f := os.NewFile(uintptr(fd), b.source)
	if err := c.shape(f, b); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", b.source, err)
	}
	return f, nil
}

// shape gives a detached mount its attributes.
func (c *Container) shape(f *os.File, b *bind) error {
	attr := &unix.MountAttr{Attr_set: b.flags.set, Attr_clr: b.flags.clear}
	how := uint(unix.AT_EMPTY_PATH)
	if b.idMapped {
		ns, err := c.mappingNamespace(b)
		if err != nil {
			return err
		}
		defer ns.Close()
		idMap := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
		rec := how
		if b.flags.ridMap {
			rec |= unix.AT_RECURSIVE
		}
		if err := unix.MountSetattr(int(f.Fd()), "", rec, idMap); err != nil {
			return fmt.Errorf("id-map the mount (can its file system do that?): %w", err)
		}
	}
	if attr.Attr_set|attr.Attr_clr != 0 {
		if err := unix.MountSetattr(int(f.Fd()), "", how, attr); err != nil {
			return fmt.Errorf("mount options: %w", err)
		}
	}
	if b.flags.recSet|b.flags.recClear != 0 {
		attr := &unix.MountAttr{Attr_set: b.flags.recSet, Attr_clr: b.flags.recClear}
		if err := unix.MountSetattr(int(f.Fd()), "", how|unix.AT_RECURSIVE, attr); err != nil {
			return fmt.Errorf("recursive mount options: %w", err)
		}
	}
	return nil
}
