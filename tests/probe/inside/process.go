package main

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fork is clone(2) with flags in a child that ends at once.
func fork(flags uintptr) error {
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, flags|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	if pid == 0 {
		for {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
	_, _ = unix.Wait4(int(pid), nil, 0, nil)
	return nil
}

func (p *prober) namespaces() {
	for _, ns := range []struct {
		name string
		flag uintptr
	}{{"user", unix.CLONE_NEWUSER}, {"mount", unix.CLONE_NEWNS}, {"pid", unix.CLONE_NEWPID}, {"network", unix.CLONE_NEWNET},
		{"ipc", unix.CLONE_NEWIPC}, {"uts", unix.CLONE_NEWUTS}, {"cgroup", unix.CLONE_NEWCGROUP}, {"user and mount", unix.CLONE_NEWUSER | unix.CLONE_NEWNS}} {
		p.try("clone a "+ns.name+" namespace", denied, fork(ns.flag))
		p.try("unshare a "+ns.name+" namespace", denied, onThread(func() error { return unix.Unshare(int(ns.flag)) }))
	}
	p.try("unshare a time namespace", denied, onThread(func() error { return unix.Unshare(unix.CLONE_NEWTIME) }))
	// Its flags lie in memory, where a filter can't look; so libraries must be told to fall back to clone.
	args := [11]uint64{unix.CLONE_NEWUSER, 0, 0, 0, uint64(unix.SIGCHLD)}
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if errno == 0 && pid == 0 {
		for {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
	var err error
	if errno != 0 {
		err = errno
	}
	p.try("clone3 a user namespace", errnos{unix.ENOSYS}, err)
	for _, kind := range []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		fd, err := unix.Open("/proc/self/ns/"+kind, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			p.say("setns "+kind, Strange, err.Error(), denied.String(), "")
			continue
		}
		p.try("setns "+kind, denied, onThread(func() error { return unix.Setns(fd, 0) }))
		const nsGetParent = 0xb702
		if kind == "pid" || kind == "user" {
			_, err = unix.IoctlRetInt(fd, nsGetParent)
			p.try("the parent of the "+kind+" namespace", denied, err)
		}
		unix.Close(fd)
		p.try("open init's "+kind+" namespace", denied, open("/proc/1/ns/"+kind, unix.O_RDONLY))
	}
}

// onThread runs f on a thread that ends, so that what it changes by success does not last.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		done <- f()
	}()
	return <-done
}

func (p *prober) processes() {
	for _, link := range []string{"root", "cwd", "exe"} {
		_, err := os.Readlink("/proc/1/" + link)
		p.try("readlink /proc/1/"+link, denied, err)
	}
	for _, file := range []string{"exe", "environ", "maps", "smaps", "mem", "auxv", "pagemap", "stack", "syscall", "fd/3", "fd/5", "fdinfo/3", "map_files",
		"root/etc/passwd", "cwd/etc", "task/1/mem", "task/1/environ"} {
		fd, err := unix.Open("/proc/1/"+file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			// Some of these open for everybody and refuse at the first read.
			var n int
			buf := make([]byte, 4096)
			if file == "map_files" { // the directory itself opens for root; what counts is a name besides "." and ".."
				n, err = unix.Getdents(fd, buf)
				n -= 48
			} else {
				n, err = unix.Read(fd, buf)
			}
			if n <= 0 && err == nil {
				err = unix.EACCES
			}
			unix.Close(fd)
		}
		if file == "syscall" || file == "stack" {
			p.tryOr("read /proc/1/"+file, denied, errnos{unix.ENOENT}, "this kernel has no such file", err)
			continue
		}
		p.try("read /proc/1/"+file, denied, err)
	}
	for _, file := range []string{"mem", "exe", "oom_score_adj", "attr/current", "clear_refs", "timerslack_ns", "comm"} {
		err := open("/proc/1/"+file, unix.O_WRONLY)
		if err == nil && file == "oom_score_adj" {
			// It may be opened by root inside, whose init it is; what must not be is protection from the OOM killer.
			err = os.WriteFile("/proc/1/oom_score_adj", []byte("-1000"), 0)
			if pe, ok := err.(*os.PathError); ok {
				err = pe.Err
			}
		}
		if err == nil && (file == "clear_refs" || file == "timerslack_ns" || file == "comm" || file == "attr/current") {
			p.say("write /proc/1/"+file, Absent, "opens", denied.String(), "root inside may open it; what it changes is its own init's alone")
			continue
		}
		p.tryOr("write /proc/1/"+file, readOnly, errnos{unix.ENOENT, unix.ETXTBSY, unix.EINVAL}, "this kernel has no such file", err)
	}
	p.try("ptrace init", denied, onThread(func() error { return unix.PtraceAttach(1) }))
	p.try("ptrace seize init", denied, onThread(func() error { return unix.PtraceSeize(1) }))
	local, remote := make([]byte, 8), []unix.RemoteIovec{{Base: 0x400000, Len: 8}}
	_, err := unix.ProcessVMReadv(1, []unix.Iovec{{Base: &local[0], Len: 8}}, remote, 0)
	p.try("process_vm_readv of init", denied, err)
	_, err = unix.ProcessVMWritev(1, []unix.Iovec{{Base: &local[0], Len: 8}}, remote, 0)
	p.try("process_vm_writev of init", denied, err)
	p.tryOr("kcmp with init", denied, errnos{unix.ENOSYS}, "this kernel has no kcmp", call(unix.SYS_KCMP, 1, uintptr(os.Getpid()), 0, 0, 0))
	if fd, err := unix.PidfdOpen(1, 0); err == nil {
		for _, n := range []int{0, 3, 4, 5, 6} {
			_, err := unix.PidfdGetfd(fd, n, 0)
			p.try(fmt.Sprintf("pidfd_getfd %d of init", n), denied, err)
		}
		const pidfdGetMntNamespace = 0xff03
		_, err = unix.IoctlRetInt(fd, pidfdGetMntNamespace)
		p.tryOr("init's namespace by its pidfd", denied, errnos{unix.ENOTTY, unix.EINVAL}, "this kernel's pidfds have no such ioctl", err)
		p.try("setns by init's pidfd", denied, onThread(func() error { return unix.Setns(fd, unix.CLONE_NEWNS) }))
		p.try("process_madvise on init", errnos{unix.EPERM, unix.EACCES, unix.EINVAL}, call(unix.SYS_PROCESS_MADVISE, uintptr(fd),
			uintptr(unsafe.Pointer(&[2]uint64{0x400000, 4096})), 1, unix.MADV_COLD, 0))
		unix.Close(fd)
	} else {
		p.say("pidfd_open of init", Refused, err.Error(), "anything", "")
	}
	if p.to.pid > 0 {
		// Our numbers and the host's are different ones: unless we happen to have one of that number, it does not exist.
		if _, err := os.Stat("/proc/" + strconv.Itoa(p.to.pid)); os.IsNotExist(err) {
			p.try("signal a process of the host", errnos{unix.ESRCH}, unix.Kill(p.to.pid, 0))
			p.try("pidfd of a process of the host", errnos{unix.ESRCH, unix.EINVAL}, func() error { _, err := unix.PidfdOpen(p.to.pid, 0); return err }())
		} else {
			p.say("signal a process of the host", Absent, "", "ESRCH", "a process inside happens to have its number")
		}
	}
	own, strangers := 0, ""
	names, _ := os.ReadDir("/proc")
	for _, n := range names {
		if _, err := strconv.Atoi(n.Name()); err != nil {
			continue
		}
		own++
		comm, _ := os.ReadFile("/proc/" + n.Name() + "/comm")
		if c := strings.TrimSpace(string(comm)); c != "init" && c != "inside" && c != "sh" && c != "sleep" {
			strangers += " " + c
		}
	}
	p.check("processes in /proc", strangers == "", fmt.Sprintf("%d, strangers:%s", own, strangers), "init and our own")
}

// handles: files by number, and descriptors that were left open.
func (p *prober) handles() {
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, "/", 0)
	if err != nil {
		p.tryOr("name_to_handle_at /", errnos{unix.EPERM, unix.EOPNOTSUPP}, nil, "", err)
		handle = unix.NewFileHandle(1, make([]byte, 8))
	} else {
		p.say("name_to_handle_at /", Refused, "a number", "harmless: numbers open nothing", "")
	}
	_, err = unix.OpenByHandleAt(unix.AT_FDCWD, handle, unix.O_RDONLY)
	p.try("open_by_handle_at /", denied, err)
	// The "shocker": the host's root directory is inode 2 of its file system.
	root := unix.NewFileHandle(1, []byte{2, 0, 0, 0, 0, 0, 0, 0})
	fd, err := unix.Open("/etc/hostname", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.OpenByHandleAt(fd, root, unix.O_RDONLY)
		unix.Close(fd)
	}
	p.try("open_by_handle_at inode 2", denied, err)
	for name, at := range map[string]int{"pidfs": -10002, "nsfs": -10003} { // FD_PIDFS_ROOT, FD_NSFS_ROOT
		_, err = unix.OpenByHandleAt(at, root, unix.O_RDONLY)
		p.try("open_by_handle_at of "+name, denied, err)
	}
	p.try("overwrite /proc/self/exe", append(readOnly, unix.ETXTBSY), open("/proc/self/exe", unix.O_WRONLY))
	p.try("overwrite /proc/1/exe", denied, open("/proc/1/exe", unix.O_WRONLY))
	p.try("init's memfd by O_PATH", denied, open("/proc/1/exe", unix.O_PATH))
	// Magic links of the three we have: pipes and terminals of our own, never a file or directory of the host's.
	for fd := range 3 {
		path := fmt.Sprintf("/proc/self/fd/%d", fd)
		var st unix.Stat_t
		_ = unix.Fstat(fd, &st)
		kind := st.Mode & unix.S_IFMT
		link, _ := os.Readlink(path)
		p.check("descriptor "+strconv.Itoa(fd), kind == unix.S_IFIFO || kind == unix.S_IFCHR, link, "a pipe, a terminal or /dev/null")
		for _, dir := range []string{"/..", "/../../etc/shadow"} {
			if err := open(path+dir, unix.O_RDONLY); err == nil {
				p.say("descend from descriptor "+strconv.Itoa(fd), Open, path+dir, "ENOTDIR", "")
			}
		}
	}
}

// descriptors lists what a fresh session finds open: number, link, flags.
func descriptors([]string) error {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, n := range names {
		fd, _ := strconv.Atoi(n.Name())
		link, err := os.Readlink("/proc/self/fd/" + n.Name())
		flags, ferr := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		// Go's own: its poller, and the directory being read.
		if err != nil || ferr != nil || strings.HasPrefix(link, "anon_inode:[event") || link == fmt.Sprintf("/proc/%d/fd", os.Getpid()) {
			continue
		}
		fmt.Printf("%d %s %#x\n", fd, link, flags)
	}
	return nil
}

// terminal: what a terminal's ioctls reach.
func (p *prober) terminal() {
	const tioclinux, tiocsti, tioccons = 0x541C, 0x5412, 0x541D
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		p.say("a terminal of one's own", Strange, err.Error(), "it opens", "")
		return
	}
	defer unix.Close(master)
	_ = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0)
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY)
	if errno != 0 {
		p.say("a terminal's other side", Strange, errno.Error(), "it opens", "")
		return
	}
	slave := int(n)
	defer unix.Close(slave)
	sub := byte(6)
	p.try("TIOCLINUX", errnos{unix.EPERM, unix.EACCES, unix.EINVAL, unix.ENOTTY}, call(unix.SYS_IOCTL, uintptr(slave), tioclinux, uintptr(unsafe.Pointer(&sub))))
	p.try("TIOCCONS", denied, call(unix.SYS_IOCTL, uintptr(slave), tioccons))
	// Only one's own controlling terminal takes TIOCSTI, and only that of the host would be an escape: a session's is in
	// its own devpts. A session without one has none to push into.
	c := byte('#')
	if tty, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0); err == nil {
		unix.Close(tty)
		p.say("TIOCSTI", Absent, "", "EPERM", "this session has a terminal of its own; see the test of terminals")
	} else {
		p.try("TIOCSTI into another's terminal", append(denied, unix.EIO), call(unix.SYS_IOCTL, uintptr(slave), tiocsti, uintptr(unsafe.Pointer(&c))))
		for fd := range 3 {
			p.try(fmt.Sprintf("TIOCSTI into descriptor %d", fd), append(denied, unix.ENOTTY, unix.EIO, unix.EINVAL), call(unix.SYS_IOCTL, uintptr(fd), tiocsti, uintptr(unsafe.Pointer(&c))))
		}
	}
	for name, ldisc := range map[string]int{"n_gsm": 21, "n_hdlc": 13, "slip": 1, "ppp": 3, "can": 17} {
		err := unix.IoctlSetPointerInt(slave, unix.TIOCSETD, ldisc)
		p.tryOr("line discipline "+name, denied, errnos{unix.EINVAL, unix.ENODEV, unix.EOPNOTSUPP}, "the kernel has no such discipline built in or loaded", err)
	}
	names, _ := os.ReadDir("/dev/pts")
	p.check("others' terminals in /dev/pts", len(names) <= 3, fmt.Sprintf("%d names", len(names)), "ours alone")
}

// ipc: what only the host has.
func (p *prober) ipc() {
	if p.to.abstract != "" {
		c, err := net.Dial("unix", "@"+p.to.abstract)
		if err == nil {
			c.Close()
		}
		p.try("the host's abstract socket", errnos{unix.ECONNREFUSED}, err)
	}
	if p.to.shm != 0 {
		_, err := unix.SysvShmGet(p.to.shm, 0, 0)
		p.try("the host's shared memory", errnos{unix.ENOENT}, err)
	}
	if p.to.mqueue != "" {
		p.try("the host's message queue", errnos{unix.ENOENT}, call(unix.SYS_MQ_OPEN, ptr(p.to.mqueue), unix.O_RDWR, 0, 0))
	}
	// A family's first socket loads its module, which hardly anybody has tried. A kernel without it gives the same answer.
	for name, family := range map[string]int{"TIPC": unix.AF_TIPC, "RDS": unix.AF_RDS, "CAN": unix.AF_CAN, "Bluetooth": unix.AF_BLUETOOTH,
		"X.25": unix.AF_X25, "RxRPC": unix.AF_RXRPC, "QRTR": unix.AF_QIPCRTR, "SMC": unix.AF_SMC, "XDP": unix.AF_XDP, "PPPoX": unix.AF_PPPOX,
		"KCM": unix.AF_KCM, "LLC": unix.AF_LLC, "PF_KEY": unix.AF_KEY, "ATM": unix.AF_ATMPVC, "NFC": unix.AF_NFC, "Phonet": unix.AF_PHONET} {
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_RAW, unix.SOCK_SEQPACKET} {
			fd, err := unix.Socket(family, kind, 0)
			if err == nil {
				unix.Close(fd)
			}
			p.try(fmt.Sprintf("socket of %s, kind %d", name, kind), errnos{unix.EAFNOSUPPORT}, err)
		}
	}
	_, err := unix.Socketpair(unix.AF_TIPC, unix.SOCK_STREAM, 0)
	p.try("socketpair of TIPC", errnos{unix.EAFNOSUPPORT}, err)
	_, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_USERSOCK)
	p.try("netlink among programs", errnos{unix.EPROTONOSUPPORT}, err)
	p.try("netlink among programs, with bits above the 32nd", errnos{unix.EPROTONOSUPPORT}, call(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, 1<<32|unix.NETLINK_USERSOCK))
	for name, family := range map[string]int{"AF_VSOCK": unix.AF_VSOCK, "AF_ALG": unix.AF_ALG} {
		fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
		if err == nil {
			unix.Close(fd)
		}
		p.try(name, errnos{unix.EAFNOSUPPORT}, err)
		// The kernel takes 32 bits of the family, a filter sees 64: those above must not make another number of it.
		kind := uintptr(unix.SOCK_STREAM)
		if family == unix.AF_ALG {
			kind = unix.SOCK_SEQPACKET
		}
		p.tryOr(name+" with bits above the 32nd", errnos{unix.EPERM, unix.EACCES, unix.EINVAL}, errnos{unix.EAFNOSUPPORT, unix.ESOCKTNOSUPPORT},
			"this kernel has no such family", call(unix.SYS_SOCKET, 1<<32|uintptr(family), kind, 0))
	}
	for _, n := range []struct {
		name  string
		proto int
	}{{"audit", unix.NETLINK_AUDIT}, {"netfilter", unix.NETLINK_NETFILTER}, {"kobject", unix.NETLINK_KOBJECT_UEVENT}} {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, n.proto)
		if err != nil {
			p.tryOr("netlink "+n.name, denied, errnos{unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT}, "this kernel has no such netlink family", err)
			continue
		}
		// The sockets open for everybody; the rights are asked for at the message.
		switch n.proto {
		case unix.NETLINK_NETFILTER:
			p.try("netlink netfilter: delete a table", denied, netlinkRequest(fd, 0x0a<<8|2, nil))
		case unix.NETLINK_AUDIT:
			p.try("netlink audit: set", append(denied, unix.ECONNREFUSED), netlinkRequest(fd, 1001, make([]byte, 40)))
		default:
			p.try("netlink kobject: send an event", append(denied, unix.ECONNREFUSED, unix.EINVAL), unix.Sendto(fd, []byte("add@/probe\x00"), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}))
		}
		unix.Close(fd)
	}
	p.try("change the own address", denied, func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return netlinkRequest(fd, unix.RTM_NEWLINK, make([]byte, 16))
	}())
}

// netlinkRequest sends a message and returns the error that answers it.
func netlinkRequest(fd int, kind uint16, body []byte) error {
	if len(body) == 0 {
		body = make([]byte, 4)
	}
	b := make([]byte, 16+len(body))
	*(*uint32)(unsafe.Pointer(&b[0])) = uint32(len(b))
	*(*uint16)(unsafe.Pointer(&b[4])) = kind
	*(*uint16)(unsafe.Pointer(&b[6])) = unix.NLM_F_REQUEST | unix.NLM_F_ACK
	copy(b[16:], body)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2})
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if n >= 20 && *(*uint16)(unsafe.Pointer(&answer[4])) == unix.NLMSG_ERROR {
		if e := *(*int32)(unsafe.Pointer(&answer[16])); e != 0 {
			return unix.Errno(-e)
		}
	}
	return nil
}

// abi: system calls by other gates than the one that the filter was perhaps written for.
func (p *prober) abi() {
	if x32 != 0 {
		for name, nr := range map[string]uintptr{"unshare": unix.SYS_UNSHARE, "mount": unix.SYS_MOUNT, "bpf": unix.SYS_BPF, "setns": unix.SYS_SETNS, "ptrace": 521, "getpid": unix.SYS_GETPID} {
			p.try("x32 "+name, errnos{unix.ENOSYS, unix.EPERM}, call(x32|nr, 0x10000000))
		}
	} else {
		p.say("x32", Absent, "", "ENOSYS", "another architecture than x86-64")
	}
	if !has32 {
		p.say("int 0x80", Absent, "", "EPERM", "another architecture than x86-64")
		return
	}
	if emulated := func() (ok bool) { defer func() { ok = recover() == nil && ok }(); return int80(20, 0, 0, 0, 0, 0) > 0 }(); !emulated {
		p.say("int 0x80", Absent, "", "EPERM", "this kernel runs no 32-bit programs")
		return
	}
	low, err := unix.MmapPtr(-1, 0, nil, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_32BIT)
	if err != nil {
		p.say("int 0x80", Strange, err.Error(), "memory below 4 GiB", "")
		return
	}
	at := uint32(uintptr(low))
	page := unsafe.Slice((*byte)(low), 4096)
	copy(page, "/tmp/probe-mnt\x00tmpfs\x00")
	asError := func(r int32) error {
		if r < 0 {
			return unix.Errno(-r)
		}
		return nil
	}
	for _, c := range []struct {
		name          string
		nr            uint32
		a, b, c, d, e uint32
	}{
		{"mount", 21, at + 15, at, at + 15, 0, 0}, {"umount2", 52, at, 0, 0, 0, 0}, {"unshare", 310, unix.CLONE_NEWUSER, 0, 0, 0, 0},
		{"setns", 346, 0, 0, 0, 0, 0}, {"init_module", 128, at, 5, at, 0, 0}, {"reboot", 88, 0xfee1dead, 672274793, 0, 0, 0},
		{"bpf", 357, 0, at, 64, 0, 0}, {"perf_event_open", 336, at, 0, ^uint32(0), ^uint32(0), 0}, {"keyctl", 288, 0, ^uint32(2), 0, 0, 0},
		{"pivot_root", 217, at, at, 0, 0, 0}, {"open_by_handle_at", 342, ^uint32(99), at, 0, 0, 0}, {"swapon", 87, at, 0, 0, 0, 0},
		{"stime", 25, at, 0, 0, 0, 0}, {"iopl", 110, 3, 0, 0, 0, 0}, {"modify_ldt", 123, 1, 0, 0, 0, 0}, {"vm86", 166, 1, 0, 0, 0, 0},
	} {
		want := errnos{unix.EPERM, unix.EACCES, unix.ENOSYS}
		if c.name == "modify_ldt" {
			want = append(want, unix.EINVAL) // allowed to programs that need segments; this call of it is malformed
		}
		p.try("32-bit "+c.name, want, asError(int80(c.nr, c.a, c.b, c.c, c.d, c.e)))
	}
	// socketcall hides its arguments in memory, where a filter can't look; init does, and lrun has none.
	for name, family := range map[string]uint32{"AF_VSOCK": unix.AF_VSOCK, "AF_ALG": unix.AF_ALG} {
		kind := uint32(unix.SOCK_STREAM)
		if family == unix.AF_ALG {
			kind = unix.SOCK_SEQPACKET
		}
		*(*[3]uint32)(unsafe.Pointer(&page[64])) = [3]uint32{family, kind, 0}
		err := asError(int80(102, 1, at+64, 0, 0, 0))
		p.try("32-bit socketcall "+name, errnos{unix.EAFNOSUPPORT, unix.ENOSYS}, err)
		p.try("32-bit socket "+name, errnos{unix.EAFNOSUPPORT}, asError(int80(359, family, kind, 0, 0, 0)))
	}
	p.packets32(at, page)
}

// privileges: what a program could gain by being executed.
func (p *prober) privileges() {
	n, _, _ := unix.Syscall6(unix.SYS_PRCTL, unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0, 0)
	p.check("no_new_privs", n == 1, strconv.Itoa(int(n)), "1")
	status, _ := os.ReadFile("/proc/self/status")
	caps := map[string]string{}
	for line := range strings.Lines(string(status)) {
		k, v, _ := strings.Cut(line, ":")
		caps[k] = strings.TrimSpace(v)
	}
	for _, set := range []string{"CapInh", "CapAmb"} {
		p.check(set, strings.Trim(caps[set], "0") == "", caps[set], "none")
	}
	// CAP_SYS_ADMIN and what else reaches the kernel, in the bounding set: nothing executed can ever get it.
	bounding, _ := strconv.ParseUint(caps["CapBnd"], 16, 64)
	const never = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_SYS_MODULE | 1<<unix.CAP_SYS_RAWIO | 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_SYS_BOOT |
		1<<unix.CAP_SYS_TIME | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON |
		1<<unix.CAP_SYS_RESOURCE | 1<<unix.CAP_SYSLOG | 1<<unix.CAP_MAC_ADMIN | 1<<unix.CAP_LINUX_IMMUTABLE | 1<<unix.CAP_CHECKPOINT_RESTORE
	p.check("bounding set", bounding&never == 0, caps["CapBnd"], "nothing that reaches the kernel")
	p.check("seccomp", caps["Seccomp"] == "2", caps["Seccomp"], "2")
	p.check("groups", caps["Groups"] == "" || caps["Groups"] == "10", caps["Groups"], "none of the host's")
	if os.Getuid() != 0 {
		effective, _ := strconv.ParseUint(caps["CapEff"], 16, 64)
		p.check("capabilities of an unprivileged user", effective == 0, caps["CapEff"], "none")
		p.try("setuid root", denied, onThread(func() error { return call(unix.SYS_SETUID, 0) }))
	}
	_, _, errno := unix.Syscall(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, 0, 0)
	p.check("turn seccomp off", errno != 0, errno.Error(), "refused")
}

// chroots: the old way out by a directory left open.
func (p *prober) chroots() {
	before, _ := os.Stat("/")
	err := onProcessRoot()
	if err != nil {
		p.try("chroot and climb", denied, err)
		return
	}
	after, _ := os.Stat("/")
	p.check("chroot and climb", os.SameFile(before, after), "the root is another", "back at our own root")
}

func onProcessRoot() error {
	root, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	_ = os.Mkdir("/tmp/probe-jail", 0o755)
	if err := unix.Chroot("/tmp/probe-jail"); err != nil {
		return err
	}
	if err := unix.Fchdir(root); err != nil {
		return err
	}
	for range 64 {
		_ = unix.Chdir("..")
	}
	return unix.Chroot(".")
}
