package runtime

import (
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// DefaultCapabilities are what root inside has: docker's list, which is what images are made for, without CAP_NET_RAW. In a
// user namespace they reach no further than the container; but the rings of packet sockets, which that one opens, are
// memory that the kernel charges to nobody. ping needs it no more (see DefaultSpec's sysctls).
func DefaultCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

// DefaultSeccomp resolves moby's profile for a Spec: its capabilities, this kernel, this architecture; and closes what that
// leaves open (see tighten). Call it again after changing capabilities.
func DefaultSeccomp(s *specs.Spec) (*specs.LinuxSeccomp, error) {
	if s.Process == nil || s.Process.Capabilities == nil {
		s = &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}}
	}
	p, err := seccomp.GetDefaultProfile(s)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	tighten(p, slices.Contains(s.Process.Capabilities.Bounding, "CAP_NET_RAW"))
	return p, nil
}

// socketFamilies are those that programs inside have a use for: local, IPv4, IPv6, netlink.
var socketFamilies = []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// tighten takes from moby's profile five things that let one tenant reach what is everybody's. Rules that come first win.
//
// The family of a socket is an int to the kernel, while a profile compares 64 bits: AF_VSOCK with a bit set above the 32nd
// is greater than every family it refuses. No program has reason to set one.
//
// Of the families that remain, making one socket of most has the kernel load a module that hardly anybody has tried: it
// gives what a kernel without them gives, EAFNOSUPPORT. Netlink's protocol for programs among themselves goes, too: what
// lies in its queues is charged to nobody.
//
// Packet sockets are for who has CAP_NET_RAW. The kernel asks for it, too, but relative to the network namespace: who may
// make namespaces would have it there. Others get EPERM as from the kernel, which is what tcpdump and nmap explain best.
//
// i386's socketcall(2) keeps the family behind a pointer, where no filter can read it, and what another thread may change
// before the kernel does. The glibc of most distributions and Go for 386 know no other call. So init reads it, and makes the
// socket under this same profile; where there is no init (lrun), socketcall makes none, and such programs have no network.
// What else it does to sockets stays.
//
// io_setup(2) draws on one number for the whole machine (fs.aio-max-nr), whatever it is raised to. MySQL, MariaDB and nginx
// take ENOSYS for a kernel without it and go on with threads or plain reads; what insists on it (fio's libaio, ScyllaDB)
// needs a profile of its own.
func tighten(p *specs.LinuxSeccomp, packets bool) {
	refused := func(name string) bool { return name == "socketcall" || name == "io_setup" }
	for i, call := range p.Syscalls {
		if slices.ContainsFunc(call.Names, refused) {
			p.Syscalls[i].Names = slices.DeleteFunc(slices.Clone(call.Names), refused)
		}
	}
	invalid, missing, noFamily, noProtocol := uint(unix.EINVAL), uint(unix.ENOSYS), uint(unix.EAFNOSUPPORT), uint(unix.EPROTONOSUPPORT)
	sockets := []string{"socket", "socketpair"}
	first := []specs.LinuxSyscall{
		{Names: sockets, Action: specs.ActErrno, ErrnoRet: &invalid,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: math.MaxUint32, Op: specs.OpGreaterThan}}},
		{Names: sockets, Action: specs.ActErrno, ErrnoRet: &noProtocol, Args: []specs.LinuxSeccompArg{
			{Index: 0, Value: unix.AF_NETLINK, Op: specs.OpEqualTo},
			{Index: 2, Value: math.MaxUint32, ValueTwo: unix.NETLINK_USERSOCK, Op: specs.OpMaskedEqual}}},
	}
	family := func(n uint64, action specs.LinuxSeccompAction, errno *uint) {
		first = append(first, specs.LinuxSyscall{Names: sockets, Action: action, ErrnoRet: errno,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: n, Op: specs.OpEqualTo}}})
	}
	for _, n := range socketFamilies {
		family(n, specs.ActAllow, nil)
	}
	if packets {
		family(unix.AF_PACKET, specs.ActAllow, nil)
	} else {
		denied := uint(unix.EPERM)
		family(unix.AF_PACKET, specs.ActErrno, &denied)
	}
	p.Syscalls = slices.Insert(p.Syscalls, 0, append(first,
		specs.LinuxSyscall{Names: sockets, Action: specs.ActErrno, ErrnoRet: &noFamily},
		specs.LinuxSyscall{Names: []string{"socketcall"}, Action: actInit,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: socketcallSocket, Op: specs.OpEqualTo}}},
		specs.LinuxSyscall{Names: []string{"socketcall"}, Action: specs.ActAllow},
		specs.LinuxSyscall{Names: []string{"io_setup"}, Action: specs.ActErrno, ErrnoRet: &missing},
	)...)
}

// defaultProfile is DefaultSeccomp for DefaultCapabilities. Specs share its lists, which nobody writes to.
var defaultProfile = sync.OnceValue(func() *specs.LinuxSeccomp {
	p, err := DefaultSeccomp(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: DefaultCapabilities()}}})
	if err != nil {
		// It fails only when the kernel's version can't be read; refusing everything is then the safe answer.
		return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	}
	return p
})

// DefaultSpec is the locked-down configuration to start from: every namespace of its own, the user namespace included;
// docker's capabilities but CAP_NET_RAW, and its seccomp profile, no new privileges, masked and read-only kernel files, a
// private /dev.
//
// The caller fills Linux.UIDMappings and GIDMappings (65,536 ids, say), the hostname and the limits. Who removes the network
// namespace must remove the net.* sysctls, too. The mappings must cover gid 5 (tty), and gids 0 to 65535 for the sysctl that
// lets everybody ping. Of the machine's terminals (kernel.pty.max, 4,096) it takes 256 at the most; of its devices it opens
// six, /dev/ptmx and terminals: not the system console, which would be the host's where there is no user namespace.
func DefaultSpec() *specs.Spec {
	caps := func() []string { return DefaultCapabilities() }
	profile := *defaultProfile()
	number := func(n int64) *int64 { return &n }
	allow := func(kind string, major, minor int64) specs.LinuxDeviceCgroup {
		d := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: "rwm", Major: number(major)}
		if minor >= 0 {
			d.Minor = number(minor)
		}
		return d
	}
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			Cwd:             "/",
			NoNewPrivileges: true,
			Capabilities:    &specs.LinuxCapabilities{Bounding: caps(), Effective: caps(), Permitted: caps()},
		},
		Root: &specs.Root{},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "ptmxmode=0666", "mode=0620", "gid=5", "max=256"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=64m"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.UserNamespace}, {Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.IPCNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.CgroupNamespace},
			},
			Sysctl: map[string]string{"net.ipv4.ping_group_range": "0 65535", "net.ipv4.ip_unprivileged_port_start": "0"},
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
				"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap",
				"/sys/firmware",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			Seccomp:       &profile,
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
				{Allow: false, Access: "rwm"},
				{Allow: true, Type: "c", Access: "m"}, {Allow: true, Type: "b", Access: "m"},
				allow("c", 1, 3), allow("c", 1, 5), allow("c", 1, 7), allow("c", 1, 8), allow("c", 1, 9),
				allow("c", 5, 0), allow("c", 5, 2), allow("c", 136, -1),
			}},
		},
	}
}
