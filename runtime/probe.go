package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto/rawfork"
)

// Probe tries out what the runtime wants of the machine and says what this kernel gives and lacks. It changes nothing: what
// it makes to find out is gone when it returns.
func Probe(ctx context.Context) []Check {
	checks := []Check{probeKernel(), probeRoot(), probeInit()}
	checks = append(checks, probeNamespaces()...)
	checks = append(checks, probeCalls()...)
	checks = append(checks, probeSeccomp())
	checks = append(checks, probeCgroups()...)
	checks = append(checks, probeRlimits(), probePTYs(), probePIDs(), probeFiles(), probeLSM(), probePSI())
	return checks
}

func check(name string, ok bool, detail, consequence string) Check {
	if ok {
		consequence = ""
	}
	return Check{Name: name, OK: ok, Detail: detail, Consequence: consequence}
}

// kernelAtLeast compares the running kernel's version.
func kernelAtLeast(major, minor int) (release string, ok bool) {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "", false
	}
	release = unix.ByteSliceToString(u.Release[:])
	var a, b int
	if n, _ := fmt.Sscanf(release, "%d.%d", &a, &b); n != 2 {
		return release, false
	}
	return release, a > major || a == major && b >= minor
}

func probeKernel() Check {
	release, ok := kernelAtLeast(5, 19)
	return check("kernel", ok, release, "overlay file systems over id-mapped layers need Linux 5.19: images would have to be copied for every "+
		"environment; use a newer kernel")
}

func probeRoot() Check {
	missing := ""
	for _, bit := range []int{unix.CAP_SYS_ADMIN, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_KILL,
		unix.CAP_SYS_PTRACE, unix.CAP_NET_ADMIN, unix.CAP_MKNOD} {
		if !hasCap(bit) {
			missing += " " + capNames[bit]
		}
	}
	detail := fmt.Sprintf("uid %d", os.Geteuid())
	if missing != "" {
		detail += ", without" + missing
	}
	return check("privileges", os.Geteuid() == 0 && missing == "", detail, "environments can't be created; run as root with these capabilities")
}

func probeInit() Check {
	f, err := initImage()
	if err != nil {
		return check("embedded init", false, err.Error(), "nothing can be started")
	}
	size := int64(0)
	if info, err := f.Stat(); err == nil {
		size = info.Size()
	}
	return check("embedded init", true, fmt.Sprintf("%d KiB, in a sealed memfd", size>>10), "")
}

// probeNamespaces makes a process in each kind of namespace.
func probeNamespaces() (checks []Check) {
	consequences := map[specs.LinuxNamespaceType]string{
		specs.UserNamespace: "root inside would be root outside; enable CONFIG_USER_NS and raise user.max_user_namespaces",
	}
	for _, kind := range []specs.LinuxNamespaceType{specs.UserNamespace, specs.PIDNamespace, specs.MountNamespace, specs.UTSNamespace,
		specs.IPCNamespace, specs.NetworkNamespace, specs.CgroupNamespace} {
		err := tryNamespace(namespaceKinds[kind].flag)
		detail := "can be made"
		if err != nil {
			detail = err.Error()
		}
		consequence := consequences[kind]
		if consequence == "" {
			consequence = "environments can't be isolated; the kernel needs it built in, and /proc/sys/user must allow it"
		}
		checks = append(checks, check(string(kind)+" namespace", err == nil, detail, consequence))
	}
	ns, err := newUserNamespace([]specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}, []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}})
	detail := "65,536 ids of their own for each environment"
	if err != nil {
		detail = err.Error()
	} else {
		defer ns.Close()
	}
	checks = append(checks, check("id mappings", err == nil, detail, "environments can't have ids of their own"))
	checks = append(checks, probeIDMappedMount(ns), probeOwner())
	return checks
}

// probeOwner makes a user namespace as another user.
func probeOwner() Check {
	const uid = 100000
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	dumpable, _ := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	defer unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(dumpable), 0, 0, 0)
	var program rawfork.Program
	program.Add("wait", rawfork.Must, unix.SYS_PAUSE)
	p, err := startOwned(&program, unix.CLONE_NEWUSER, -1, uid)
	owner := uint32(0)
	if err == nil {
		defer p.Abort()
		var ns *os.File
		if ns, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", p.PID)); err == nil {
			defer ns.Close()
			owner, err = ownerOf(ns.Fd())
		}
	}
	detail := "inotify, message queues and the like are counted for each environment"
	switch {
	case err != nil:
		detail = err.Error()
	case owner != uid:
		detail = fmt.Sprintf("user namespaces are made by user %d", owner)
	}
	return check("allowances", err == nil && owner == uid, detail, "environments share one allowance of inotify instances and message queues with "+
		"root, and one of them can use it up; let root make user namespaces under other user ids (a security module forbids it)")
}

func tryNamespace(flag uintptr) error {
	var p rawfork.Program
	p.Add("exit", rawfork.Must, unix.SYS_EXIT_GROUP, 0)
	proc, err := rawfork.Start(&p, flag, -1)
	if err != nil {
		return err
	}
	defer unix.Close(proc.PIDFD)
	err = proc.Wait()
	unix.Wait4(proc.PID, nil, 0, nil)
	return err
}

func probeIDMappedMount(ns *os.File) Check {
	const name = "id-mapped mounts"
	const consequence = "host directories and image layers would belong to nobody inside; use Linux 5.19 and ext4, xfs, btrfs or (6.3) tmpfs"
	if ns == nil {
		return check(name, false, "needs a user namespace", consequence)
	}
	dir := os.TempDir()
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err == nil {
		defer unix.Close(fd)
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())})
	}
	if err != nil {
		return check(name, false, fmt.Sprintf("of %s: %v", dir, err), consequence)
	}
	return check(name, true, "the file system of "+dir+" has them", "")
}

// probeCalls looks for system calls by calling them in ways that do nothing.
func probeCalls() (checks []Check) {
	call := func(name, consequence string, errno error) {
		there := !errors.Is(errno, unix.ENOSYS)
		detail := "there"
		if !there {
			detail = "missing"
		}
		checks = append(checks, check(name, there, detail, consequence))
	}
	_, _, errno := unix.Syscall(unix.SYS_CLONE3, 0, 0, 0)
	call("clone3", "a process can't be born into its cgroup; Linux 5.7", errno)
	_, err := unix.Openat2(-1, "x", &unix.OpenHow{})
	call("openat2", "paths can't be resolved safely, environments don't start; Linux 5.6", err)
	_, err = unix.PidfdOpen(-1, 0)
	call("pidfd", "processes can't be waited for or signalled without a race, environments don't start; Linux 5.3", err)
	call("close_range", "environments don't start; Linux 5.11", unix.CloseRange(^uint(0)>>1&0x7fffffff, ^uint(0)>>1&0x7fffffff, 0))
	err = unix.MountSetattr(-1, "x", 0, &unix.MountAttr{})
	call("mount_setattr", "mounts can't be made by descriptor, environments don't start; Linux 5.12", err)
	_, err = unix.Fsopen("", 0)
	call("fsopen", "mounts can't be made by descriptor, environments don't start; Linux 5.2", err)
	fd, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err == nil {
		unix.Close(fd)
	}
	call("sealed memfd", "init can't be protected from inside, environments don't start; Linux 3.17", err)
	return checks
}

func probeSeccomp() Check {
	action := uint32(unix.SECCOMP_RET_KILL_PROCESS)
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	f, err := compileSeccomp(defaultProfile())
	detail := ""
	switch {
	case errno != 0:
		detail = errno.Error()
	case err != nil:
		detail = err.Error()
	default:
		detail = fmt.Sprintf("the default profile is %d instructions", len(f.program)/8)
	}
	return check("seccomp", errno == 0 && err == nil, detail, "the kernel's rarely used system calls stay open to attack; it needs CONFIG_SECCOMP_FILTER")
}

// probeCgroups says which version serves each controller.
func probeCgroups() (checks []Check) {
	hs, err := findHierarchies()
	if err != nil {
		return []Check{check("cgroups", false, err.Error(), "no limit can be set and nothing is accounted")}
	}
	detail := "v2"
	switch {
	case hs.unified == nil:
		detail = "v1"
	case len(hs.all) > 1:
		detail = "hybrid: each controller where it is bound, cgroup.kill from v2"
	}
	checks = append(checks, check("cgroups", true, detail, ""))
	for _, c := range []struct{ name, consequence string }{
		{"memory", "no memory limit can be set; boot with cgroup_enable=memory"},
		{"cpu", "no CPU limit can be set"},
		{"pids", "a fork bomb can't be stopped"},
		{"blkio", "disk traffic is neither limited nor counted"},
		{"cpuset", "environments can't be tied to processors"},
		{"freezer", "environments can't be paused"},
		{"devices", "device nodes are guarded by the user namespace alone"},
	} {
		h := hs.control[c.name]
		ok, detail := h != nil, "not there"
		if h != nil {
			detail = "v1 at " + h.dir
			if h.v2 {
				detail = "v2 at " + h.dir
			}
		} else if hs.unified != nil && (c.name == "freezer" || c.name == "devices") {
			ok, detail = true, "v2 (part of the kernel's core)"
		}
		checks = append(checks, check("cgroup "+c.name, ok, detail, c.consequence))
	}
	sizes, unlimited := HugePages()
	detail = "none are reserved"
	switch {
	case unlimited != nil:
		detail = unlimited.Error()
	case len(sizes) > 0:
		detail = strings.Join(sizes, ", ") + ": kept from environments"
	}
	checks = append(checks, check("huge pages", unlimited == nil, detail, "environments can take those that are reserved on this machine"))
	for _, c := range []struct {
		name, consequence string
		err               error
	}{
		{"soft memory limits", "environments that ask for one (--memory-high, memoryHighBytes) fail, or go to another node", MemoryHigh()},
		{"disk rates", "environments that ask for one (--io-read-bps and the like) fail, or go to another node", DiskRates()},
	} {
		detail := "there"
		if c.err != nil {
			detail = c.err.Error()
		}
		checks = append(checks, check(c.name, c.err == nil, detail, c.consequence))
	}
	if h := hs.control["memory"]; h != nil && !h.v2 {
		_, err := os.Stat(filepath.Join(h.dir, "memory.memsw.limit_in_bytes"))
		checks = append(checks, check("swap accounting", err == nil, map[bool]string{true: "there", false: "off"}[err == nil],
			"an environment at its memory limit may swap; boot with swapaccount=1, or without swap"))
	}
	return checks
}

func probeRlimits() Check {
	var now unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &now)
	return check("CAP_SYS_RESOURCE", hasCap(unix.CAP_SYS_RESOURCE), fmt.Sprintf("hard limit of open files: %d", now.Max),
		"hard resource limits can't be raised above this program's own: start it with higher ones")
}

func probePTYs() Check {
	b, _ := os.ReadFile("/proc/sys/kernel/pty/max")
	used, _ := os.ReadFile("/proc/sys/kernel/pty/nr")
	limit, now := number(strings.TrimSpace(string(b))), number(strings.TrimSpace(string(used)))
	return check("terminals", limit > now+64, fmt.Sprintf("%d of %d in use", now, limit), "sessions will fail for want of terminals; raise kernel.pty.max")
}

// probePIDs wants numbers for sixteen environments of 4,096 processes each.
func probePIDs() Check {
	b, _ := os.ReadFile("/proc/sys/kernel/pid_max")
	limit := number(strings.TrimSpace(string(b)))
	return check("process numbers", limit >= 16*4096, fmt.Sprintf("%d", limit), "a few environments can use them up, and then the host can't start "+
		"a process; raise kernel.pid_max (to 4194304, as the node's daemon does when it starts)")
}

// probeFiles wants so many open files that memory, which is limited, is used up first: each takes some 256 bytes.
func probeFiles() Check {
	b, _ := os.ReadFile("/proc/sys/fs/file-max")
	limit := number(strings.TrimSpace(string(b)))
	var memory unix.Sysinfo_t
	_ = unix.Sysinfo(&memory)
	return check("open files", limit >= memory.Totalram*uint64(memory.Unit)/256, fmt.Sprintf("%d", limit), "an environment with much memory can use them up, "+
		"and then others can't open a file; raise fs.file-max (to 9223372036854775807, as the node's daemon does when it starts)")
}

func probeLSM() Check {
	b, err := os.ReadFile("/sys/kernel/security/lsm")
	var found []string
	if err == nil {
		found = strings.Split(strings.TrimSpace(string(b)), ",")
	}
	apparmor, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if strings.HasPrefix(string(apparmor), "Y") && !slices.Contains(found, "apparmor") {
		found = append(found, "apparmor")
	}
	if selinuxEnabled() && !slices.Contains(found, "selinux") {
		found = append(found, "selinux")
	}
	mac := slices.Contains(found, "apparmor") || slices.Contains(found, "selinux")
	detail := strings.Join(found, ", ")
	if detail == "" {
		detail = "none to be seen"
	}
	return check("AppArmor or SELinux", mac, detail, "one wall fewer: isolation rests on namespaces, capabilities and seccomp (an AppArmor "+
		"profile or SELinux label in a Spec is refused)")
}

func probePSI() Check {
	_, err := os.ReadFile("/proc/pressure/cpu")
	detail := "kept"
	if err != nil {
		detail = "off"
	}
	return check("pressure stall information", err == nil, detail, "stats lack it; boot with psi=1")
}
