package main

import (
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
)

// serveSetup does what Start asks, once.
func (s *server) serveSetup(c *conn, plan *initproto.Plan) {
	if s.phase != initproto.Waiting || s.plan != nil {
		s.refuse(c, initproto.WrongPhase, "the environment has been started already")
		return
	}
	if plan == nil || int(plan.FDs) != len(c.fds) || len(c.fds) == 0 {
		s.refuse(c, initproto.Invalid, "the plan and its descriptors don't match")
		return
	}
	s.plan = plan
	f := s.build(plan, c)
	if f == nil && plan.Main != nil {
		f = s.start(plan.Main, true, c)
	}
	if f != nil {
		// Half a machine is none: say why, leave the reason for Wait, and end.
		s.refuse(c, f.code, f.text)
		s.end(initproto.Status{Code: 125, Reason: f.text})
	}
	plan.Main, plan.Mounts, plan.Masked, plan.Readonly = nil, nil, nil, nil
	if plan.SeccompOnInit {
		plan.Seccomp = nil // inherited
	}
	if s.find("main") == nil {
		s.phase = initproto.Running
		s.answer(c, &initproto.Reply{})
	}
}

// build makes the environment around us.
func (s *server) build(p *initproto.Plan, c *conn) *fault {
	root := c.fds[0]
	// A keyring of our own: the creator's would otherwise be shared by everybody inside. No keys, nothing to hide.
	unix.Syscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0)
	if p.CgroupNS {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return failed("cgroup namespace", err)
		}
	}
	if f := s.attachRoot(root, p); f != nil {
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
	if f := s.kernelSettings(p); f != nil {
		return f
	}
	for _, path := range p.Readonly {
		if f := s.readonly(root, path); f != nil {
			return f
		}
	}
	if f := s.mask(root, p.Masked); f != nil {
		return f
	}
	at, path := s.place(root, "/dev/pts")
	if pts, err := openInside(at, path, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS); err == nil {
		if isOn(pts, unix.DEVPTS_SUPER_MAGIC) {
			s.pts = pts
		} else {
			unix.Close(pts)
		}
	}
	if f := s.pivot(root, p); f != nil {
		return f
	}
	if f := s.standardDescriptors(); f != nil {
		return f
	}
	s.closeStrays(c)
	return s.confine(p)
}

// attachRoot hangs the detached root over our copy of the host's, which the pivot then takes away.
func (s *server) attachRoot(root int, p *initproto.Plan) *fault {
	if !isType(root, unix.S_IFDIR) {
		return invalid("the root is not a directory")
	}
	// Nothing mounted here may reach the host; what the host mounts may come in only if asked for.
	propagation := uint64(unix.MS_PRIVATE)
	if p.RootPropagation&(unix.MS_SLAVE|unix.MS_SHARED) != 0 {
		propagation = unix.MS_SLAVE
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Propagation: propagation}); err != nil {
		return failed("make the host's mounts private", err)
	}
	if err := moveMount(root, unix.AT_FDCWD, "/"); err != nil {
		return failed("attach the root file system", err)
	}
	return nil
}

func moveMount(from, dirfd int, path string) error {
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH
	if path == "" {
		flags |= unix.MOVE_MOUNT_T_EMPTY_PATH
	}
	return unix.MoveMount(from, "", dirfd, path, flags)
}

// mount makes one mount. Its target is opened inside the root, checked, and mounted upon by descriptor, so that no
// symlink can be put in its way between the check and the deed.
func (s *server) mount(root int, m *initproto.Mount, fds []int) *fault {
	what := "mount " + m.Dest
	if len(m.Dest) == 0 || m.Dest[0] != '/' {
		return invalid(what + ": the target must be an absolute path")
	}
	source := -1
	if m.FD == initproto.Remount {
		return s.remount(root, m, what)
	}
	if m.FD >= 0 {
		if int(m.FD) >= len(fds) {
			return invalid(what + ": there is no such descriptor")
		}
		source = fds[m.FD]
	} else if m.FD == initproto.FromPath {
		fd, err := bindSource(m)
		if err != nil {
			return failed(what+": "+m.Source, err)
		}
		source = fd
	} else {
		if m.LikeTarget {
			likeTarget(root, m)
		}
		fd, f := newFS(m, what)
		if f != nil {
			if m.Optional {
				return nil
			}
			return f
		}
		source = fd
	}
	target, f := s.target(root, m, what)
	if f != nil {
		return f
	}
	defer unix.Close(target)
	if m.CopyUp {
		if f := copyUp(target, source, what); f != nil {
			return f
		}
	}
	// A tree that stays detached takes this only before, a mount from another namespace only afterwards.
	shared := propagate(source, m.Propagation) == nil
	if err := moveMount(source, target, ""); err != nil {
		return failed(what, err)
	}
	if !shared {
		if err := propagate(source, m.Propagation); err != nil {
			return failed(what+": propagation", err)
		}
	}
	isProc := m.FD < 0 && m.FSType == "proc" && s.proc < 0
	if isProc {
		s.proc = source // a handle to procfs that nobody inside can put something over
	}
	switch {
	case m.Dest == "/proc" || m.Dest == "/sys" || m.Dest == "/dev":
		s.held = append(s.held, held{m.Dest, source, m.FD < 0 && !isProc})
	case m.FD < 0 && !isProc:
		unix.Close(source)
	}
	return nil
}

// held is a mount of ours that we keep hold of while setting up.
type held struct {
	dest string
	fd   int
	own  bool // ours to close
}

// place says by what to reach a path: below /proc, /sys and /dev by the mount that we have put there, not by its name in
// the root. A root that somebody else writes to meanwhile may lead that name elsewhere, and back again, and what was to be
// masked would then be missed (CVE-2025-31133 and others).
func (s *server) place(root int, path string) (int, string) {
	for i := len(s.held) - 1; i >= 0; i-- {
		dest := s.held[i].dest
		if path == dest {
			return s.held[i].fd, "/"
		}
		if len(path) > len(dest) && path[:len(dest)] == dest && path[len(dest)] == '/' {
			return s.held[i].fd, path[len(dest):]
		}
	}
	return root, path
}

// letGo closes what was held.
func (s *server) letGo() {
	for _, h := range s.held {
		if h.own {
			unix.Close(h.fd)
		}
	}
	s.held = nil
}

// propagate says what a mount shares with others (MS_PRIVATE and so on, 0 for no change).
func propagate(fd int, propagation uint64) error {
	if propagation == 0 {
		return nil
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if propagation&unix.MS_REC != 0 {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(fd, "", flags, &unix.MountAttr{Propagation: propagation &^ unix.MS_REC})
}

// bindSource makes the detached mount of a host's path.
func bindSource(m *initproto.Mount) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if len(m.Options) > 0 {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, flags)
	if err != nil {
		return -1, err
	}
	if m.AttrSet|m.AttrClear != 0 {
		attr := &unix.MountAttr{Attr_set: m.AttrSet, Attr_clr: m.AttrClear}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// remount changes the attributes of an earlier mount, once what lies below it has been put there.
func (s *server) remount(root int, m *initproto.Mount, what string) *fault {
	root, dest := s.place(root, m.Dest)
	fd, err := openInside(root, dest, unix.O_PATH, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return failed(what, err)
	}
	defer unix.Close(fd)
	attr := &unix.MountAttr{Attr_set: m.AttrSet}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr)
	if err == unix.EINVAL {
		// In a detached tree only the root can be changed: put a changed copy over it.
		tree, err2 := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
		if err2 == nil {
			defer unix.Close(tree)
			if err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err == nil {
				err = moveMount(tree, fd, "")
			}
		}
	}
	if err != nil {
		return failed(what, err)
	}
	return nil
}

// target opens, or makes, the place for a mount.
func (s *server) target(root int, m *initproto.Mount, what string) (fd int, f *fault) {
	var more uint64
	if m.Strict {
		more = unix.RESOLVE_NO_SYMLINKS
	}
	root, dest := s.place(root, m.Dest)
	fd, err := openInside(root, dest, unix.O_PATH, more)
	if err == unix.ENOENT {
		fd, err = makeMissing(root, dest, m.File)
	}
	switch {
	case err == unix.ELOOP && m.Strict:
		return -1, invalid(what + ": the image has a symlink there; refused")
	case err != nil:
		return -1, failed(what+": open the target", err)
	case m.File && !isType(fd, unix.S_IFREG, unix.S_IFCHR), !m.File && !isType(fd, unix.S_IFDIR):
		unix.Close(fd)
		want := "directory"
		if m.File {
			want = "file"
		}
		return -1, invalid(what + ": the target in the image is not a " + want)
	}
	return fd, nil
}

// newFS returns a detached mount of a new file system.
func newFS(m *initproto.Mount, what string) (int, *fault) {
	fs, err := unix.Fsopen(m.FSType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, failed(what+": file system "+m.FSType, err)
	}
	defer unix.Close(fs)
	if m.Source != "" {
		err = unix.FsconfigSetString(fs, "source", m.Source)
	}
	for _, option := range m.Options {
		if err != nil {
			break
		}
		key, value, hasValue := cut(option)
		if hasValue {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			what += ": option " + option
		}
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	fd := -1
	if err == nil {
		fd, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(m.AttrSet))
	}
	if err != nil {
		f := failed(what, err)
		var log [256]byte
		for range 4 {
			n, err := unix.Read(fs, log[:])
			if n <= 0 || err != nil {
				break
			}
			f.text += "; " + string(log[:n])
		}
		return -1, f
	}
	return fd, nil
}

func cut(option string) (key, value string, hasValue bool) {
	for i := range len(option) {
		if option[i] == '=' {
			return option[:i], option[i+1:], true
		}
	}
	return option, "", false
}

// devices fills /dev.
func (s *server) devices(root int, p *initproto.Plan) *fault {
	for i := range p.Devices {
		if f := s.device(root, &p.Devices[i], p.UserNS); f != nil {
			return f
		}
	}
	if !p.OwnDev {
		return nil
	}
	root, path := s.place(root, "/dev")
	dev, err := openInside(root, path, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return failed("open /dev", err)
	}
	defer unix.Close(dev)
	for _, link := range [][2]string{
		{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"},
		{"pts/ptmx", "ptmx"},
	} {
		if err := unix.Symlinkat(link[0], dev, link[1]); err != nil && err != unix.EEXIST {
			return failed("make /dev/"+link[1], err)
		}
	}
	return nil
}

// device makes a node, or binds the host's where making one is refused (always in a user namespace).
func (s *server) device(root int, d *initproto.Device, userNS bool) *fault {
	what := "device " + d.Path
	number := unix.Mkdev(d.Major, d.Minor)
	if d.Mode&unix.S_IFMT == unix.S_IFIFO {
		number = 0
	}
	if !userNS || d.Mode&unix.S_IFMT == unix.S_IFIFO {
		at, path := s.place(root, d.Path)
		dir, name := parent(path)
		above, err := makeDirectory(at, dir)
		if err != nil {
			return failed(what, err)
		}
		defer unix.Close(above)
		err = unix.Mknodat(above, name, d.Mode, int(number))
		if err == nil {
			if err := unix.Fchownat(above, name, int(d.UID), int(d.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return failed(what+": owner", err)
			}
			node, err := unix.Openat(above, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				return failed(what, err)
			}
			defer unix.Close(node)
			if !isDevice(node, d.Mode, number) {
				return invalid(what + ": something else is there")
			}
			if err := chmodPath(node, d.Mode&0o7777); err != nil {
				return failed(what+": mode", err)
			}
			return nil
		}
		if err == unix.EEXIST {
			node, err := unix.Openat(above, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err == nil {
				defer unix.Close(node)
				if isDevice(node, d.Mode, number) {
					return nil
				}
			}
			return invalid(what + ": something else is there")
		}
		if err != unix.EPERM {
			return failed(what, err)
		}
	}
	if d.Host == "" {
		return invalid(what + ": the host has no such node to lend")
	}
	host, err := unix.Open(d.Host, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed(what+": the host's "+d.Host, err)
	}
	defer unix.Close(host)
	if !isDevice(host, d.Mode, number) {
		return invalid(what + ": the host's " + d.Host + " is another device")
	}
	return s.bind(root, host, &initproto.Mount{Dest: d.Path, File: true, Strict: true, AttrSet: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC})
}

// chmodPath changes the mode of what an O_PATH descriptor refers to.
func chmodPath(fd int, mode uint32) error {
	_, _, errno := unix.Syscall6(unix.SYS_FCHMODAT2, uintptr(fd), uintptr(unsafe.Pointer(&[1]byte{})), uintptr(mode), unix.AT_EMPTY_PATH, 0, 0)
	if errno == unix.ENOSYS { // before Linux 6.6; the host's procfs is still there
		return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), mode)
	}
	if errno != 0 {
		return errno
	}
	return nil
}

func isDevice(fd int, mode uint32, number uint64) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == mode&unix.S_IFMT && st.Rdev == number
}

// bind mounts what an O_PATH descriptor refers to at a place inside.
func (s *server) bind(root, from int, m *initproto.Mount) *fault {
	what := "bind " + m.Dest
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	set := uint(unix.AT_EMPTY_PATH)
	if m.Recursive {
		flags |= unix.AT_RECURSIVE
		set |= unix.AT_RECURSIVE
	}
	tree, err := unix.OpenTree(from, "", flags)
	if err != nil {
		return failed(what, err)
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", set, &unix.MountAttr{Attr_set: m.AttrSet}); err != nil {
		return failed(what, err)
	}
	target, f := s.target(root, m, what)
	if f != nil {
		return f
	}
	defer unix.Close(target)
	if err := moveMount(tree, target, ""); err != nil {
		return failed(what, err)
	}
	return nil
}

// openNamed opens what is to be masked or made read-only.
func (s *server) openNamed(root int, path string) (int, error) {
	at, rest := s.place(root, path)
	fd, err := openInside(at, rest, unix.O_PATH, 0)
	if err == unix.ENOENT && at != root { // by a link that leads out of the mount, perhaps
		fd, err = openInside(root, path, unix.O_PATH, 0)
	}
	return fd, err
}

// readonly makes a path, and what is mounted below it, unwritable.
func (s *server) readonly(root int, path string) *fault {
	fd, err := s.openNamed(root, path)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil
	}
	if err != nil {
		return failed("make "+path+" read-only", err)
	}
	defer unix.Close(fd)
	tree, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err == nil {
		defer unix.Close(tree)
		err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	if err == nil {
		err = moveMount(tree, fd, "")
	}
	if err != nil {
		return failed("make "+path+" read-only", err)
	}
	return nil
}

// mask hides paths: a file behind /dev/null, a directory behind an empty read-only tmpfs.
func (s *server) mask(root int, paths []string) *fault {
	null := -1
	defer func() { closeAll([]int{null}) }()
	for _, path := range paths {
		fd, err := s.openNamed(root, path)
		if err == unix.ENOENT || err == unix.ENOTDIR {
			continue
		}
		if err != nil {
			return failed("mask "+path, err)
		}
		f := s.cover(fd, path, &null)
		unix.Close(fd)
		if f != nil {
			return f
		}
	}
	return nil
}

func (s *server) cover(fd int, path string, null *int) *fault {
	var tree int
	if isType(fd, unix.S_IFDIR) {
		m := &initproto.Mount{FSType: "tmpfs", Source: "tmpfs", Options: []string{"size=0", "nr_inodes=1", "mode=555"},
			AttrSet: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
		var f *fault
		if tree, f = newFS(m, "mask "+path); f != nil {
			return f
		}
	} else {
		if *null < 0 {
			// The host's, by way of our own copy of its mounts, and only if it is the real one.
			host, err := unix.Open("/dev/null", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				return failed("open /dev/null", err)
			}
			*null = host
			if !isDevice(host, unix.S_IFCHR, unix.Mkdev(1, 3)) {
				return invalid("the host's /dev/null is another device")
			}
		}
		var err error
		tree, err = unix.OpenTree(*null, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
		if err != nil {
			return failed("mask "+path, err)
		}
	}
	defer unix.Close(tree)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return failed("mask "+path, err)
	}
	if err := moveMount(tree, fd, ""); err != nil {
		return failed("mask "+path, err)
	}
	return nil
}

// kernelSettings sets names and sysctls, by a procfs that nobody inside has touched.
func (s *server) kernelSettings(p *initproto.Plan) *fault {
	if p.Hostname != "" {
		if err := unix.Sethostname([]byte(p.Hostname)); err != nil {
			return failed("hostname "+strconvQuote(p.Hostname), err)
		}
	}
	if p.Domainname != "" {
		if err := unix.Setdomainname([]byte(p.Domainname)); err != nil {
			return failed("domain name "+strconvQuote(p.Domainname), err)
		}
	}
	if len(p.Sysctl) == 0 && p.ExecLabel == "" {
		return nil
	}
	if s.proc < 0 {
		fd, f := newFS(&initproto.Mount{FSType: "proc", Source: "proc",
			AttrSet: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}, "procfs")
		if f != nil {
			return f
		}
		s.proc = fd
	}
	for i := range p.Sysctl {
		if err := s.writeProc("sys/"+p.Sysctl[i].Key, p.Sysctl[i].Value); err != nil {
			return failed("sysctl "+p.Sysctl[i].Key+" = "+strconvQuote(p.Sysctl[i].Value), err)
		}
	}
	if p.ExecLabel != "" {
		if err := s.writeProc("thread-self/attr/"+p.ExecLabelFile, p.ExecLabel); err != nil {
			return failed("security label "+strconvQuote(p.ExecLabel), err)
		}
	}
	return nil
}

// writeProc writes to a file of our own procfs and of no other file system.
func (s *server) writeProc(path, value string) error {
	more := uint64(unix.RESOLVE_NO_XDEV)
	if path[0] == 's' { // thread-self is a symlink by nature
		more |= unix.RESOLVE_NO_SYMLINKS
	}
	fd, err := resolve(s.proc, path, unix.O_WRONLY, unix.RESOLVE_BENEATH|more)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !isOn(fd, unix.PROC_SUPER_MAGIC) {
		return unix.EXDEV
	}
	_, err = unix.Write(fd, []byte(value))
	return err
}

// pivot makes the root ours and lets go of the host's tree.
func (s *server) pivot(root int, p *initproto.Plan) *fault {
	if err := unix.Fchdir(root); err != nil {
		return failed("enter the root", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return failed("pivot_root", err)
	}
	// The old root lies over the new one now, and we stand in it.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return failed("let go of the host's file systems", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return failed("enter the new root", err)
	}
	var ours, now unix.Stat_t
	if unix.Fstat(root, &ours) != nil || unix.Stat("/", &now) != nil || ours.Dev != now.Dev || ours.Ino != now.Ino {
		return invalid("the root is not the one that was prepared")
	}
	return rootAttributes(root, p)
}

// rootAttributes makes the root read-only and what it is to share with other mounts, if so asked.
func rootAttributes(root int, p *initproto.Plan) *fault {
	attr := &unix.MountAttr{Propagation: p.RootPropagation &^ unix.MS_REC}
	flags := uint(unix.AT_EMPTY_PATH)
	if p.RootReadonly {
		if err := unix.MountSetattr(root, "", flags, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return failed("make the root read-only", err)
		}
	}
	if attr.Propagation != 0 {
		if p.RootPropagation&unix.MS_REC != 0 {
			flags |= unix.AT_RECURSIVE
		}
		if err := unix.MountSetattr(root, "", flags, attr); err != nil {
			return failed("root propagation", err)
		}
	}
	return nil
}

// standardDescriptors swaps the host's /dev/null for the environment's on 0, 1 and 2, when it has one.
func (s *server) standardDescriptors() *fault {
	null, err := openInside(unix.AT_FDCWD, "/dev/null", unix.O_RDWR, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return nil
	}
	defer unix.Close(null)
	if !isDevice(null, unix.S_IFCHR, unix.Mkdev(1, 3)) {
		return nil
	}
	for fd := range 3 {
		if err := unix.Dup3(null, fd, 0); err != nil {
			return failed("standard descriptors", err)
		}
	}
	return nil
}

// closeStrays closes every descriptor that is not one we know, whoever left it open.
func (s *server) closeStrays(c *conn) {
	s.letGo()
	closeAll(c.fds)
	c.fds = nil
	if s.proc >= 0 {
		unix.Close(s.proc)
		s.proc = -1
	}
	known := map[int]bool{s.epoll: true, s.listen: true, s.status: true, s.signals: true, int(signalPipe): true}
	if s.pts >= 0 {
		known[s.pts] = true
	}
	if s.log != nil {
		known[s.log.files[0]], known[s.log.files[1]] = true, true
	}
	for _, c := range s.conns {
		known[c.fd] = true
	}
	last := 2
	for range known {
		next := -1
		for fd := range known {
			if fd > last && (next < 0 || fd < next) {
				next = fd
			}
		}
		if next < 0 {
			break
		}
		if next > last+1 {
			unix.CloseRange(uint(last+1), uint(next-1), 0)
		}
		last = next
	}
	unix.CloseRange(uint(last+1), ^uint(0)>>1&0x7fffffff, 0)
}
