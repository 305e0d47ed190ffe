package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func ptr(s string) uintptr { return uintptr(unsafe.Pointer(unsafe.StringData(s + "\x00"))) }

// mounts: a mount namespace whose owner one is not allowed to be.
func (p *prober) mounts() {
	_ = os.Mkdir("/tmp/probe-mnt", 0o755)
	p.try("mount tmpfs", denied, unix.Mount("none", "/tmp/probe-mnt", "tmpfs", 0, ""))
	p.try("mount proc", denied, unix.Mount("proc", "/tmp/probe-mnt", "proc", 0, ""))
	p.try("mount cgroup", denied, unix.Mount("cgroup", "/tmp/probe-mnt", "cgroup", 0, "memory"))
	p.try("bind mount", denied, unix.Mount("/", "/tmp/probe-mnt", "", unix.MS_BIND, ""))
	p.try("mount overlay", denied, unix.Mount("overlay", "/tmp/probe-mnt", "overlay", 0, "lowerdir=/etc:/tmp"))
	for _, path := range []string{"/proc/sys", "/proc/sysrq-trigger", "/sys", "/sys/fs/cgroup", "/proc/irq"} {
		p.try("remount "+path+" rw", denied, unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	}
	for _, path := range []string{"/proc/keys", "/proc/timer_list", "/proc/kcore", "/sys/firmware", "/proc/acpi"} {
		p.try("umount mask "+path, errnos{unix.EPERM}, unix.Unmount(path, unix.MNT_DETACH))
	}
	p.try("umount /proc", denied, unix.Unmount("/proc", unix.MNT_DETACH))
	p.try("pivot_root", denied, unix.PivotRoot("/", "/"))
	_, err := unix.Fsopen("tmpfs", 0)
	p.try("fsopen", denied, err)
	_, err = unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE)
	p.try("open_tree clone", denied, err)
	p.try("move_mount", denied, unix.MoveMount(unix.AT_FDCWD, "/proc", unix.AT_FDCWD, "/tmp/probe-mnt", 0))
	p.try("mount_setattr", denied, unix.MountSetattr(unix.AT_FDCWD, "/sys", 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}))
	const openTreeAttr = 467 // Linux 6.15, younger than most profiles
	p.try("open_tree_attr", errnos{unix.EPERM, unix.ENOSYS}, call(openTreeAttr, atFdcwd, ptr("/"), unix.OPEN_TREE_CLONE, 0, 0))
}

const atFdcwd = ^uintptr(99) // AT_FDCWD, -100

// writables are files whose writing reaches the kernel or the host.
var writables = []string{
	"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug", "/proc/sys/kernel/sysrq",
	"/proc/sys/kernel/panic", "/proc/sys/kernel/hostname", "/proc/sys/kernel/randomize_va_space", "/proc/sys/vm/overcommit_memory",
	"/proc/sys/vm/drop_caches", "/proc/sys/vm/panic_on_oom", "/proc/sys/fs/binfmt_misc/register", "/proc/sys/fs/suid_dumpable",
	"/proc/sys/fs/file-max", "/proc/sys/kernel/pid_max", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/conf/all/accept_local",
	"/proc/sys/user/max_user_namespaces", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/bus/pci/devices",
	"/sys/kernel/uevent_helper", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/power/state", "/sys/kernel/profiling",
	"/sys/module/kernel/parameters/panic", "/sys/devices/system/cpu/online", "/sys/kernel/uevent_seqnum", "/sys/bus/pci/rescan",
	"/sys/class/net/lo/mtu", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/devices/devices.allow",
	"/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/pids/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs",
	"/sys/fs/cgroup/unified/cgroup.kill", "/sys/fs/cgroup/freezer/freezer.state", "/sys/fs/cgroup/memory/release_agent",
	"/sys/fs/cgroup/memory/notify_on_release", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cgroup.procs", "/proc/mtrr",
	"/proc/sys/kernel/ns_last_pid", "/proc/fs/xfs/stat",
}

func (p *prober) files() {
	for _, path := range writables {
		p.tryOr("write "+path, readOnly, errnos{unix.ENOENT, unix.ENOTDIR}, "there is no such file on this kernel", open(path, unix.O_WRONLY))
	}
	if f, err := os.Open("/sys/fs/cgroup"); err == nil { // every hierarchy that is shown
		names, _ := f.Readdirnames(-1)
		f.Close()
		for _, name := range append(names, ".") { // which is the one hierarchy of v2
			dir := "/sys/fs/cgroup/" + name
			if st, err := os.Lstat(dir); err != nil || !st.IsDir() {
				continue
			}
			p.try("make a cgroup in "+name, readOnly, unix.Mkdir(dir+"/probe", 0o755))
			p.tryOr("release_agent of "+name, readOnly, errnos{unix.ENOENT}, "only the root of a hierarchy has one, and it is not shown",
				open(dir+"/release_agent", unix.O_WRONLY))
		}
	}
	p.try("make a file in /sys/fs/cgroup", readOnly, unix.Mknod("/sys/fs/cgroup/probe", unix.S_IFREG|0o644, 0))
	p.try("chmod /proc/sys", readOnly, unix.Chmod("/proc/sys/kernel/core_pattern", 0o666))
	// Masked files must be empty, masked directories too.
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/timer_stats", "/proc/interrupts",
		"/proc/sched_debug", "/proc/latency_stats"} {
		b, err := readSome(path)
		switch {
		case os.IsNotExist(err):
			p.say("read "+path, Absent, "ENOENT", "nothing to read", "this kernel has no such file")
		default:
			p.check("read "+path, len(b) == 0, fmt.Sprintf("%d bytes", len(b)), "nothing to read")
		}
	}
	for _, path := range []string{"/proc/acpi", "/proc/scsi", "/proc/asound", "/sys/firmware", "/sys/devices/virtual/powercap"} {
		names, err := os.ReadDir(path)
		if os.IsNotExist(err) {
			p.say("list "+path, Absent, "ENOENT", "an empty directory", "this kernel has no such directory")
			continue
		}
		p.check("list "+path, len(names) == 0, fmt.Sprintf("%d names", len(names)), "an empty directory")
	}
	for _, path := range []string{"/proc/kmsg", "/proc/kpagecount", "/proc/kpageflags", "/proc/vmallocinfo", "/proc/slabinfo",
		"/proc/iomem", "/proc/kallsyms"} {
		b, err := readSome(path)
		p.revealing(path, b, err)
	}
	p.secret("/proc/1", "/etc", "/run", "/proc/self")
}

// revealing judges a file that may be read as long as it gives no addresses away.
func (p *prober) revealing(path string, b []byte, err error) {
	name := "addresses in " + path
	switch {
	case os.IsNotExist(err):
		p.say(name, Absent, "ENOENT", "refused or no addresses", "this kernel has no such file")
	case err != nil:
		p.say(name, Refused, err.Error(), "refused or no addresses", "")
	case path == "/proc/kallsyms" || path == "/proc/iomem":
		bare := true
		for line := range strings.Lines(string(b)) {
			address, _, _ := strings.Cut(strings.TrimSpace(line), " ")
			if strings.Trim(address, "0-") != "" {
				bare = false
			}
		}
		p.check(name, bare, fmt.Sprintf("%d bytes, addresses hidden: %v", len(b), bare), "refused or no addresses")
	case p.to.hostRoot && (path == "/proc/kpagecount" || path == "/proc/kpageflags"):
		p.say(name, Absent, fmt.Sprintf("%d bytes", len(b)), "refused or no addresses",
			"with --userns host these files are root's; they give counts by page frame, no content and no addresses")
	case p.to.hostRoot && (path == "/proc/slabinfo" || path == "/proc/vmallocinfo"):
		p.say(name, Absent, fmt.Sprintf("%d bytes", len(b)), "refused or no addresses", "with --userns host these files are root's; addresses are hashed")
	default:
		p.check(name, len(b) == 0, fmt.Sprintf("%d bytes", len(b)), "refused or no addresses")
	}
}

func readSome(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, 64<<10)
	n, err := f.Read(b)
	if n == 0 && err != nil && err.Error() != "EOF" {
		return nil, err
	}
	return b[:n], nil
}

// secret looks for what only the host knows in the files below some directories, not following links.
func (p *prober) secret(roots ...string) {
	if p.to.machine == "" {
		return
	}
	found := ""
	for _, root := range roots {
		_ = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() && strings.Count(path, "/") > 5 {
				return filepath.SkipDir
			}
			if d.Type().IsRegular() && filepath.Base(path) != "cmdline" && filepath.Base(path) != "mem" {
				if b, err := readSome(path); err == nil && bytes.Contains(b, []byte(p.to.machine)) {
					found = path
				}
			}
			return nil
		})
	}
	p.check("the agent's environment in any file", found == "", "seen in: "+found, "nowhere")
}

// devices: nodes of one's own making, and those that are there.
func (p *prober) devices() {
	for _, d := range []struct {
		name         string
		mode         uint32
		major, minor uint32
	}{
		{"sda", unix.S_IFBLK, 8, 0}, {"vda", unix.S_IFBLK, 254, 0}, {"vdb", unix.S_IFBLK, 253, 0}, {"nvme", unix.S_IFBLK, 259, 0},
		{"loop0", unix.S_IFBLK, 7, 0}, {"mem", unix.S_IFCHR, 1, 1}, {"kmem", unix.S_IFCHR, 1, 2}, {"port", unix.S_IFCHR, 1, 4},
		{"kmsg", unix.S_IFCHR, 1, 11}, {"tty0", unix.S_IFCHR, 4, 0}, {"tty1", unix.S_IFCHR, 4, 1}, {"ttyS0", unix.S_IFCHR, 4, 64},
		{"console", unix.S_IFCHR, 5, 1}, {"fuse", unix.S_IFCHR, 10, 229}, {"tun", unix.S_IFCHR, 10, 200},
		{"watchdog", unix.S_IFCHR, 10, 130}, {"kvm", unix.S_IFCHR, 10, 232}, {"loop-control", unix.S_IFCHR, 10, 237},
		{"uinput", unix.S_IFCHR, 10, 223}, {"vhost-vsock", unix.S_IFCHR, 10, 241}, {"mapper", unix.S_IFCHR, 10, 236},
	} {
		for _, dir := range []string{"/tmp", "/dev"} {
			path := dir + "/probe-" + d.name
			err := unix.Mknod(path, d.mode|0o666, int(unix.Mkdev(d.major, d.minor)))
			if err == nil {
				// A node is only a name; opening it is the attack. Never the watchdog, whose opening alone starts it.
				if d.name != "watchdog" {
					err = open(path, unix.O_RDONLY)
				} else {
					err = unix.Access(path, 0)
					unix.Unlink(path)
					if err == nil {
						p.say("open a node of "+d.name+" in "+dir, Absent, "the node is there", "EPERM", "opening it would start the watchdog")
						continue
					}
				}
				unix.Unlink(path)
			}
			p.try("open a node of "+d.name+" in "+dir, append(denied, unix.EROFS), err)
		}
	}
	// What is in /dev is what should be, and nothing of it is the host's to change.
	want := map[string]bool{"null": true, "zero": true, "full": true, "random": true, "urandom": true, "tty": true, "ptmx": true, "fd": true,
		"stdin": true, "stdout": true, "stderr": true, "pts": true, "shm": true, "mqueue": true, "console": true}
	names, _ := os.ReadDir("/dev")
	more := ""
	for _, n := range names {
		if !want[n.Name()] {
			more += " " + n.Name()
		}
	}
	p.check("what /dev holds", more == "", "more than the usual:"+more, "the usual")
	for _, path := range []string{"/proc/keys", "/proc/timer_list"} {
		if _, err := os.Stat(path); err == nil {
			p.try("chmod the mask "+path, readOnly, unix.Chmod(path, 0o600))
		}
	}
	if !p.to.hostRoot {
		// These are the host's own inodes, lent.
		p.try("chmod the host's /dev/null", denied, unix.Chmod("/dev/null", 0o600))
		p.try("chown the host's /dev/null", denied, unix.Chown("/dev/null", 0, 0))
	}
	p.tryOr("truncate /dev/mem", append(denied, unix.EROFS), errnos{unix.ENOENT}, "there is no /dev/mem inside", open("/dev/mem", unix.O_RDWR))
}

// kernel: what is the whole machine's.
func (p *prober) kernel() {
	p.try("init_module", denied, call(unix.SYS_INIT_MODULE, ptr("probe"), 5, ptr("")))
	p.try("finit_module", denied, call(unix.SYS_FINIT_MODULE, 0, ptr(""), 0))
	p.try("delete_module", denied, call(unix.SYS_DELETE_MODULE, ptr("no_such_module_probe"), 0))
	p.tryOr("kexec_load", denied, errnos{unix.ENOSYS}, "this kernel has no kexec", call(unix.SYS_KEXEC_LOAD, 0, 0, 0, 0))
	p.tryOr("kexec_file_load", denied, errnos{unix.ENOSYS}, "this kernel has no kexec", call(unix.SYS_KEXEC_FILE_LOAD, atFdcwd, atFdcwd, 0, 0, 0))
	p.try("reboot", denied, unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF))
	now := unix.Timeval{}
	_ = unix.Gettimeofday(&now)
	p.try("settimeofday", denied, unix.Settimeofday(&now))
	ts := unix.Timespec{}
	_ = unix.ClockGettime(unix.CLOCK_REALTIME, &ts)
	p.try("clock_settime", denied, unix.ClockSettime(unix.CLOCK_REALTIME, &ts))
	_, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_TICK, Tick: 10000})
	p.try("adjtimex", denied, err)
	p.try("swapon", denied, call(unix.SYS_SWAPON, ptr("/tmp/no-such-swap"), 0))
	p.try("swapoff", denied, call(unix.SYS_SWAPOFF, ptr("/tmp/no-such-swap")))
	p.tryOr("acct", denied, errnos{unix.ENOSYS}, "this kernel has no accounting", call(unix.SYS_ACCT, 0))
	buf := make([]byte, 1024)
	_, err = unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf)
	p.try("syslog", denied, err)
	p.try("sethostname", denied, unix.Sethostname([]byte("probe")))
	p.try("quotactl", errnos{unix.EPERM, unix.EACCES, unix.ENOSYS}, call(unix.SYS_QUOTACTL, 0x800002<<8, 0, 0, 0))
	p.try("bpf map", denied, call(unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&[16]uint32{2, 4, 4, 1})), 64))
	p.try("bpf program", denied, call(unix.SYS_BPF, 5, uintptr(unsafe.Pointer(&[16]uint64{1})), 128))
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}
	_, err = unix.PerfEventOpen(&attr, 0, -1, -1, 0)
	p.tryOr("perf_event_open", denied, errnos{unix.ENOSYS}, "this kernel has no perf events", err)
	p.tryOr("userfaultfd", denied, errnos{unix.ENOSYS}, "this kernel has no userfaultfd", call(unix.SYS_USERFAULTFD, 0))
	p.tryOr("io_uring_setup", denied, errnos{unix.ENOSYS}, "the profile or the kernel knows no io_uring", call(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&[120]byte{}))))
	_, err = unix.AddKey("user", "probe", []byte("x"), unix.KEY_SPEC_USER_KEYRING)
	p.try("add_key", denied, err)
	_, err = unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	p.try("keyctl", denied, err)
	_, err = unix.RequestKey("user", "probe", "x", unix.KEY_SPEC_THREAD_KEYRING)
	p.try("request_key", denied, err)
	p.try("ioperm", errnos{unix.EPERM, unix.EACCES, unix.ENOSYS}, ioperm())
	p.try("lookup_dcookie", errnos{unix.EPERM, unix.ENOSYS}, lookupDcookie())
	p.try("set_mempolicy", denied, call(unix.SYS_SET_MEMPOLICY, 0, 0, 0))
	p.try("move_pages of init", denied, call(unix.SYS_MOVE_PAGES, 1, 0, 0, 0, 0, 0))
	p.try("fanotify_init", denied, call(unix.SYS_FANOTIFY_INIT, 0, 0))
	p.try("vhangup", denied, call(unix.SYS_VHANGUP))
	p.try("raise the priority", denied, func() error {
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -20); err != nil {
			return err
		}
		return unix.Setpriority(unix.PRIO_PROCESS, 0, 0)
	}())
	p.try("a real-time scheduler", denied, call(unix.SYS_SCHED_SETSCHEDULER, 0, 1, uintptr(unsafe.Pointer(&[1]int32{1}))))
	limit := unix.Rlimit{}
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	p.try("raise a hard limit", denied, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit.Cur, Max: limit.Max + 1}))
	for _, bad := range []uintptr{0x0040000, 0x0400000, 0x0100000} { // ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC, MMAP_PAGE_ZERO
		p.try(fmt.Sprintf("personality %#x", bad), denied, call(unix.SYS_PERSONALITY, bad))
	}
}
