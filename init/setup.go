package main

import (
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
	plan.SocketFilter = nil // the same
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
	if f := s.closeOff(root, p); f != nil {
		return f
	}
	if len(p.SocketFilter) > 0 {
		if f := s.procfs(); f != nil { // now: one may be had only while a whole one is in sight
			return f
		}
		s.maker = newSocketMaker(s.proc, p)
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
	if len(p.Sysctl) > 0 {
		if f := s.procfs(); f != nil {
			return f
		}
	}
	for i := range p.Sysctl {
		if err := s.writeProc("sys/"+p.Sysctl[i].Key, p.Sysctl[i].Value); err != nil {
			return failed("sysctl "+p.Sysctl[i].Key+" = "+strconvQuote(p.Sysctl[i].Value), err)
		}
	}
	return s.label(p)
}

// label has the next exec of this thread, and of what it forks, take an AppArmor profile or an SELinux context.
func (s *server) label(p *initproto.Plan) *fault {
	if p.ExecLabel == "" {
		return nil
	}
	if f := s.procfs(); f != nil {
		return f
	}
	err := s.writeProc("thread-self/attr/"+p.ExecLabelFile, p.ExecLabel)
	if err == unix.ENOENT && len(p.ExecLabel) > 5 && p.ExecLabel[:5] == "exec " {
		return invalid("AppArmor profile " + strconvQuote(p.ExecLabel[5:]) + " is not loaded (apparmor_parser -r loads one)")
	}
	if err != nil {
		return failed("security label "+strconvQuote(p.ExecLabel), err)
	}
	return nil
}

// procfs gets us one where no mount of the plan's is one.
func (s *server) procfs() (f *fault) {
	if s.proc < 0 {
		s.proc, f = newFS(&initproto.Mount{FSType: "proc", Source: "proc",
			AttrSet: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}, "procfs")
	}
	return f
}

// closeOff sets what the kernel is to keep to, and hides and locks what a container may not see or write.
func (s *server) closeOff(root int, p *initproto.Plan) *fault {
	if f := s.kernelSettings(p); f != nil {
		return f
	}
	for _, path := range p.Readonly {
		if f := s.readonly(root, path); f != nil {
			return f
		}
	}
	return s.mask(root, p.Masked)
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
	if s.proc >= 0 && s.maker == nil {
		unix.Close(s.proc)
		s.proc = -1
	}
	known := map[int]bool{s.epoll: true, s.listen: true, s.status: true, s.signals: true, int(signalPipe): true}
	if s.pts >= 0 {
		known[s.pts] = true
	}
	if s.proc >= 0 {
		known[s.proc] = true
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
