package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestEveryNamespaceIsItsOwn(t *testing.T) {
	c := start(t, newRuntime(t), CreateOptions{})
	for kind, ns := range namespaceKinds {
		ours, err := os.Readlink("/proc/self/ns/" + ns.file)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", c.PID(), ns.file))
		if err != nil {
			t.Fatal(err)
		}
		inside := strings.TrimSpace(sh(t, c, "readlink /proc/self/ns/"+ns.file))
		if ours == theirs || theirs != inside {
			t.Errorf("%s: host %s, init %s, session %s", kind, ours, theirs, inside)
		}
		f, err := c.NamespaceFD(kind)
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		if link, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); link != theirs {
			t.Errorf("%s: NamespaceFD gives %s, want %s", kind, link, theirs)
		}
		f.Close()
	}
	// A session sees its cgroups as roots.
	for line := range strings.Lines(sh(t, c, "cat /proc/self/cgroup")) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, used := range []string{"memory", "cpu", "pids", "freezer", "devices", "blkio", ""} {
			if f[1] == used && f[2] != "/" {
				t.Errorf("cgroup %s", line)
			}
		}
	}
	if out := sh(t, c, "hostname; ls /proc | grep -c '^[0-9]'; ls /sys/class/net; cat /proc/self/uid_map"); !strings.Contains(out, "box\n") ||
		!strings.Contains(out, "lo\n") || strings.Contains(out, "eth") ||
		!strings.Contains(strings.Join(strings.Fields(out), " "), fmt.Sprintf("0 %d %d", testUID, testIDs)) {
		t.Errorf("%s", out)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID()))
	if err != nil || !strings.Contains(string(b), fmt.Sprintf("Uid:\t%d\t%d", testUID, testUID)) {
		t.Errorf("init on the host: %s %v", b, err)
	}
}

// threadStatus reads a field of every thread of init.
func threadStatus(t *testing.T, pid int, field string) (values []string) {
	t.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // a thread that has ended
		}
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, field+":"); ok {
				values = append(values, strings.TrimSpace(v))
			}
		}
	}
	if len(values) == 0 {
		t.Fatalf("no %s in /proc/%d/task", field, pid)
	}
	return values
}

func TestPrivilegesAreGone(t *testing.T) {
	c := start(t, newRuntime(t), CreateOptions{})
	want, err := parseCaps(testSpec().Process.Capabilities)
	if err != nil {
		t.Fatal(err)
	}
	status, _, _ := run(t, c, SessionSpec{Args: []string{"cat", "/proc/self/status"}})
	for field, value := range map[string]string{
		"CapInh": fmt.Sprintf("%016x", 0), "CapPrm": fmt.Sprintf("%016x", want.Permitted), "CapEff": fmt.Sprintf("%016x", want.Effective),
		"CapBnd": fmt.Sprintf("%016x", want.Bounding), "CapAmb": fmt.Sprintf("%016x", 0), "NoNewPrivs": "1", "Seccomp": "2",
		"Groups": "10", "SigIgn": "0000000000000000", "SigBlk": "0000000000000000",
	} {
		if !strings.Contains(status, field+":\t"+value) {
			t.Errorf("session lacks %s %s", field, value)
		}
	}
	for field, value := range map[string]string{"CapBnd": fmt.Sprintf("%016x", want.Bounding), "CapInh": fmt.Sprintf("%016x", 0),
		"CapEff":     fmt.Sprintf("%016x", want.Permitted|1<<unix.CAP_SETUID|1<<unix.CAP_SETGID|1<<unix.CAP_CHOWN|1<<unix.CAP_KILL),
		"NoNewPrivs": "1", "Seccomp": "2", "Groups": ""} {
		for _, got := range threadStatus(t, c.PID(), field) {
			if got != value {
				t.Errorf("a thread of init has %s %s, want %s", field, got, value)
			}
		}
	}
	// The profile is on all threads; the filter by which netlink sockets are asked for on the first, from which sessions come.
	if got := threadStatus(t, c.PID(), "Seccomp_filters"); got[0] != "2" || slices.ContainsFunc(got[1:], func(n string) bool { return n != "1" }) {
		t.Errorf("init's threads have %v filters", got)
	}
	// What a filter and missing capabilities refuse.
	for _, script := range []string{
		"mount -t tmpfs none /tmp", "mknod /tmp/sda b 8 0", "umount /proc", "hostname other", "chroot /proc/1/root true",
		"echo 1 > /proc/sys/net/ipv4/ip_forward", "echo b > /proc/sysrq-trigger", "echo x > /sys/kernel/uevent_helper",
		"mkdir /sys/fs/cgroup/pids/x", "touch /sys/fs/cgroup/x", "echo max > /sys/fs/cgroup/pids/pids.max",
		"cat /proc/1/environ", "readlink /proc/1/exe", "readlink /proc/1/root", "ls /proc/1/fd", "cat /proc/1/maps", "cat /proc/1/mem",
		"readlink /proc/1/ns/mnt", "readlink /proc/1/cwd", "ls /proc/1/map_files", "kill -0 0 && cat /proc/kcore > /tmp/x && test -s /tmp/x",
	} {
		if out, _, st := run(t, c, SessionSpec{Args: []string{"sh", "-c", script}}); st.Code == 0 {
			t.Errorf("%s succeeded: %s", script, out)
		}
	}
	sh(t, c, "echo 1000 > /proc/self/oom_score_adj") // what is anybody's own stays so
	for _, path := range []string{"/proc/keys", "/proc/timer_list", "/proc/interrupts"} {
		if out := sh(t, c, "cat "+path); out != "" {
			t.Errorf("%s shows %q", path, out)
		}
	}
	if out := sh(t, c, "ls -A /proc/acpi /sys/firmware | grep -v : | tr -d '\\n'"); out != "" {
		t.Errorf("masked directories show %q", out)
	}
	// Signals from inside do not hurt init.
	sh(t, c, "for s in HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM STOP TSTP SYS XCPU; do kill -$s 1; done; true")
	if sh(t, c, "echo alive") != "alive\n" {
		t.Error("init is gone")
	}
	if !c.alive() {
		t.Error("init has ended")
	}
}

// The kernel charges some of what is inside to the user who made the namespace: that must be nobody else.
func TestUserNamespaceHasAnOwnerOfItsOwn(t *testing.T) {
	c := create(t, newRuntime(t), CreateOptions{})
	ns, err := c.NamespaceFD(specs.UserNamespace)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	owner, err := ownerOf(ns.Fd())
	if want := testSpec().Linux.UIDMappings[0].HostID; err != nil || owner != want {
		t.Errorf("it belongs to user %d (%v), want %d", owner, err, want)
	}
}

func TestAsUserLeavesNoTrace(t *testing.T) {
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGURG), 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0)
	dumpable, _ := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	defer unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(dumpable), 0, 0, 0)
	look := func() string {
		b, err := os.ReadFile("/proc/thread-self/status")
		if err != nil {
			t.Fatal(err)
		}
		text := ""
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "Uid") || strings.HasPrefix(line, "Cap") {
				text += line
			}
		}
		var death uint32
		unix.Prctl(unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&death)), 0, 0, 0)
		return fmt.Sprint(text, death)
	}
	before := look()
	if err := asUser(123456, func() error {
		if unix.Geteuid() != 123456 || !hasCap(unix.CAP_SYS_ADMIN) {
			t.Error("not that user, or without capabilities")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if after := look(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestInitImageIsSealed(t *testing.T) {
	image, err := initImage()
	if err != nil {
		t.Fatal(err)
	}
	seals, err := unix.FcntlInt(image.Fd(), unix.F_GET_SEALS, 0)
	want := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if err != nil || seals&want != want {
		t.Errorf("seals %#x %v", seals, err)
	}
	if _, err := image.WriteAt([]byte("x"), 0); err == nil {
		t.Error("init can be written to")
	}
	if _, new := kernelAtLeast(6, 3); new && image.Chmod(0) == nil {
		t.Error("init can be made unexecutable")
	}
	// The process is undumpable as of its exec, and the host's user namespace decides who may look.
	c := create(t, newRuntime(t), CreateOptions{})
	waitRunning(t, c)
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/environ", c.PID()), &st); err != nil || st.Uid != 0 {
		t.Errorf("files of init's /proc belong to uid %d (%v), want 0", st.Uid, err)
	}
}

// waitRunning returns when init answers.
func waitRunning(t *testing.T, c *Container) {
	t.Helper()
	if state, err := c.State(testContext(t)); err != nil || state != StateCreated {
		t.Fatalf("state %s %v", state, err)
	}
}

func TestNoStrayDescriptors(t *testing.T) {
	// A descriptor that some library of the agent's left inheritable.
	leak, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak)
	c := start(t, newRuntime(t), CreateOptions{})
	if out := sh(t, c, "ls -l /proc/self/fd | wc -l; readlink /proc/self/fd/0"); strings.Fields(out)[0] != "5" { // total, 0, 1, 2, ls' own
		t.Errorf("a session has other descriptors than its three: %s", sh(t, c, "ls -l /proc/self/fd"))
	}
	// What init itself holds: nothing of the host's but socket and status file.
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", c.PID(), e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed meanwhile, such as the connection that asked for the session before
		}
		ok := strings.HasPrefix(link, "socket:") || strings.HasPrefix(link, "anon_inode:") || strings.HasPrefix(link, "pipe:") ||
			link == "/dev/null" || link == "/proc" || strings.HasSuffix(link, "/"+statusName) || strings.HasSuffix(link, "pts")
		if n, _ := strconv.Atoi(e.Name()); !ok && n >= 0 {
			t.Errorf("init holds %s -> %s", e.Name(), link)
		}
	}
}

func TestHostileRoots(t *testing.T) {
	r := newRuntime(t)
	for name, prepare := range map[string]func(t *testing.T, root string){
		"proc is a symlink": func(t *testing.T, root string) { relink(t, root, "proc", "tmp") },
		"dev is a symlink":  func(t *testing.T, root string) { relink(t, root, "dev", "/tmp") },
		"sys is a symlink":  func(t *testing.T, root string) { relink(t, root, "sys", "../../../../tmp") },
		"proc is a file": func(t *testing.T, root string) {
			os.Remove(filepath.Join(root, "proc"))
			os.WriteFile(filepath.Join(root, "proc"), nil, 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := busyboxRoot(t)
			prepare(t, root)
			c := create(t, r, CreateOptions{ID: "hostile"})
			err := c.Start(testContext(t), StartOptions{Root: mountRoot(t, c, root)})
			if err == nil || !strings.Contains(err.Error(), "mount /") {
				t.Fatalf("started: %v", err)
			}
			st, err := c.Wait(testContext(t))
			if err != nil || st.Code != 125 || st.Reason == "" {
				t.Errorf("%+v %v", st, err)
			}
			if err := c.Delete(testContext(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

func relink(t *testing.T, root, name, target string) {
	t.Helper()
	if err := os.Remove(filepath.Join(root, name)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
		t.Fatal(err)
	}
}

func TestMountTargetStaysInside(t *testing.T) {
	r := newRuntime(t)
	root, volume, outside := busyboxRoot(t), t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "here"), []byte("volume"), 0o644); err != nil {
		t.Fatal(err)
	}
	// Absolute, and climbing: both lead somewhere else on the host.
	for name, target := range map[string]string{"abs": outside, "climb": "../../../../../../.." + outside} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, outside), 0o755); err != nil {
		t.Fatal(err)
	}
	spec := testSpec()
	spec.Mounts = append(spec.Mounts,
		specs.Mount{Destination: "/abs", Type: "bind", Source: volume, Options: []string{"rbind", "ro", "nosuid"}},
		specs.Mount{Destination: "/new/deep", Type: "bind", Source: volume, Options: []string{"bind", "idmap"}},
		specs.Mount{Destination: "/etc/made", Type: "bind", Source: filepath.Join(volume, "here"), Options: []string{"bind", "ro"}},
		specs.Mount{Destination: "/scratch", Type: "tmpfs", Options: []string{"size=1m", "mode=700", "noexec"}},
	)
	c := create(t, r, CreateOptions{Spec: spec})
	if err := c.Start(testContext(t), StartOptions{Root: mountRoot(t, c, root)}); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 0 {
		t.Error("something appeared outside")
	}
	if out := sh(t, c, "cat /abs/here "+outside+"/here /new/deep/here /etc/made; touch /abs/x 2>&1 | grep -c Read-only; stat -c %u /new/deep/here; stat -c %a /scratch"); out != "volumevolumevolumevolume1\n0\n700\n" {
		t.Errorf("%q", out)
	}
}

func TestReadonlyRoot(t *testing.T) {
	r := newRuntime(t)
	spec := testSpec()
	spec.Root.Readonly = true
	c := start(t, r, CreateOptions{Spec: spec})
	if _, stderr, st := run(t, c, SessionSpec{Args: []string{"touch", "/x"}}); st.Code == 0 || !strings.Contains(stderr, "Read-only") {
		t.Errorf("%+v %s", st, stderr)
	}
	sh(t, c, "echo x > /dev/null; echo y > /dev/shm/y")
}

func TestSpecErrors(t *testing.T) {
	r := newRuntime(t)
	number := func(n int64) *int64 { return &n }
	for want, change := range map[string]func(s *specs.Spec){
		"a mount namespace is required": func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[:2] },
		"needs uidMappings":             func(s *specs.Spec) { s.Linux.UIDMappings = nil },
		"CAP_FLY":                       func(s *specs.Spec) { s.Process.Capabilities.Bounding = []string{"CAP_FLY"} },
		"permitted lacks":               func(s *specs.Spec) { s.Process.Capabilities.Permitted = nil },
		"whole machine":                 func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"vm.swappiness": "1"} },
		"RLIMIT_FUN":                    func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_FUN"}} },
		"above the hard limit": func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 2, Hard: 1}}
		},
		"no AppArmor":            func(s *specs.Spec) { s.Process.ApparmorProfile = "docker-default" },
		"SELinux is not enabled": func(s *specs.Spec) { s.Process.SelinuxLabel = "a:b:c:d" },
		"not supported":          func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {}} },
		"belong there":           func(s *specs.Spec) { s.Mounts = []specs.Mount{{Destination: "/proc", Type: "tmpfs"}} },
		"over /proc":             func(s *specs.Spec) { s.Mounts = []specs.Mount{{Destination: "/proc/", Type: "bind", Source: "/tmp"}} },
		"process limit": func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: number(1 << 62)}}
		},
		"memory limit": func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Unified: map[string]string{"memory.limit": "1"}}
		},
		"leaf weight": func(s *specs.Spec) {
			w := uint16(10)
			s.Linux.Resources = &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{LeafWeight: &w}}
		},
		"CPU set": func(s *specs.Spec) { s.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "999"}} },
	} {
		if want == "no AppArmor" && hasAppArmor() {
			continue
		}
		if want == "memory limit" {
			want = "unified limit memory.limit"
		}
		spec := testSpec()
		change(spec)
		c, err := r.Create(testContext(t), CreateOptions{ID: "bad", Spec: spec})
		if err == nil {
			c.Delete(testContext(t))
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if ids, _ := r.stateNames(); len(ids) != 0 {
			t.Errorf("%s left state", want)
		}
		if left := r.hierarchies.siblings(testParent); len(left) != 0 {
			t.Errorf("%s left cgroups %v", want, left)
		}
	}
}

func TestRaisingHardLimitIsExplained(t *testing.T) {
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		t.Fatal(err)
	}
	spec := testSpec()
	spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: now.Max + 1000}}
	r := newRuntime(t)
	c, err := r.Create(testContext(t), CreateOptions{ID: "limits", Spec: spec})
	if hasCap(unix.CAP_SYS_RESOURCE) {
		if err != nil {
			t.Fatal(err)
		}
		c.Delete(testContext(t))
	} else if err == nil || !strings.Contains(err.Error(), "CAP_SYS_RESOURCE") {
		t.Fatalf("%v", err)
	}
	spec.Process.Rlimits[0].Hard = 200
	spec.Process.Rlimits = append(spec.Process.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_CORE"})
	c = start(t, r, CreateOptions{Spec: spec})
	if out := sh(t, c, "ulimit -n; ulimit -Hn; ulimit -c"); out != "100\n200\n0\n" {
		t.Errorf("%q", out)
	}
}
