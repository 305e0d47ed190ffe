package probe

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/runtime"
)

// cage is a place to run lrun in: its state, its cgroups, one bundle.
type cage struct {
	t             *testing.T
	bundle, state string
	rootfs        string
	group         string
	spec          *specs.Spec
	serial        int
}

// newCage makes a bundle of the specification that lrun itself proposes, with the seccomp profile that engines add, and of
// a root with busybox and the hostile program. userns gives it a user namespace.
func newCage(t *testing.T, userns bool) *cage {
	t.Helper()
	dir := t.TempDir()
	k := &cage{t: t, bundle: dir, state: filepath.Join(dir, "state"), rootfs: filepath.Join(dir, "rootfs"),
		group: fmt.Sprintf("probe-lrun-%d-%s-%s", os.Getpid(), filepath.Base(filepath.Dir(dir)), filepath.Base(dir))}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tree(t, func(string) {}), k.rootfs); err != nil {
		t.Fatal(err)
	}
	body, err := os.ReadFile(inside)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(k.rootfs, "inside"), body, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(filepath.Join(k.rootfs, "tmp"), 0o1777), os.WriteFile(filepath.Join(k.rootfs, "etc/hostname"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	s := runtime.OCISpec()
	s.Root.Readonly = false
	s.Process.Terminal = false
	if s.Linux.Seccomp, err = runtime.DefaultSeccomp(s); err != nil {
		t.Fatal(err)
	}
	s.Linux.Resources.Pids = &specs.LinuxPids{Limit: new(int64)}
	*s.Linux.Resources.Pids.Limit = 256
	if userns {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 700_000_000, Size: 65536}}
		s.Linux.GIDMappings = s.Linux.UIDMappings
		if err := filepath.WalkDir(k.rootfs, func(path string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, 700_000_000, 700_000_000))
		}); err != nil {
			t.Fatal(err)
		}
	}
	k.spec = s
	t.Cleanup(func() {
		entries, _ := os.ReadDir(k.state)
		for _, e := range entries {
			_ = k.command("delete", "--force", e.Name()).Run()
		}
		for _, pattern := range []string{"/sys/fs/cgroup/*/" + k.group, "/sys/fs/cgroup/" + k.group} {
			dirs, _ := filepath.Glob(pattern)
			for _, d := range dirs {
				if err := os.Remove(d); err != nil {
					t.Errorf("a cgroup is left: %v", err)
				}
			}
		}
	})
	return k
}

func (k *cage) command(args ...string) *exec.Cmd {
	c := exec.Command(lrun, append([]string{"--root", k.state}, args...)...)
	c.Env = append(os.Environ(), "PROBE_SECRET="+secret)
	return c
}

// write puts the specification, with a command, into the bundle, and returns a name for the container.
func (k *cage) write(args ...string) (id string) {
	k.t.Helper()
	k.serial++
	id = fmt.Sprintf("c%d", k.serial)
	k.spec.Process.Args = args
	k.spec.Linux.CgroupsPath = "/" + k.group + "/" + id
	b, err := json.Marshal(k.spec)
	if err == nil {
		err = os.WriteFile(filepath.Join(k.bundle, "config.json"), b, 0o644)
	}
	if err != nil {
		k.t.Fatal(err)
	}
	return id
}

func (k *cage) end(c *exec.Cmd) result {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return finish(k.t, ctx, c)
}

// run runs a command in a container of its own.
func (k *cage) run(args ...string) result {
	k.t.Helper()
	id := k.write(args...)
	return k.end(k.command("run", "--bundle", k.bundle, id))
}

// machine starts a container that lives until the test ends.
func (k *cage) machine(args ...string) (id string) {
	k.t.Helper()
	id = k.write(args...)
	// With no pipe of ours, which the container would keep open.
	log := filepath.Join(k.bundle, "log")
	if err := k.command("--log", log, "run", "--detach", "--bundle", k.bundle, id).Run(); err != nil {
		why, _ := os.ReadFile(log)
		k.t.Fatalf("run: %v: %s", err, why)
	}
	return id
}

// ownInits are attempts that mean something else where PID 1 is a program of the container's own, as OCI has it: what is
// one's own one may look at. Those that would only do harm to it are not even made (see -own-init).
func ownInits(name string) bool {
	return strings.Contains(name, "/proc/1/") || strings.Contains(name, "init")
}

// TestProbeLrun makes every attempt in containers of lrun's.
func TestProbeLrun(t *testing.T) {
	to := host(t)
	for _, way := range []struct {
		name   string
		userns bool
		uid    uint32
	}{{"root", false, 0}, {"user", false, 1000}, {"userns", true, 0}} {
		k := newCage(t, way.userns)
		k.spec.Process.User.UID, k.spec.Process.User.GID = way.uid, way.uid
		args := append([]string{"/inside", "attempts", "-own-init"}, to...)
		if !way.userns {
			args = append(args, "-host-root")
		}
		r := k.run(append([]string{"/bin/sh", "-c", `"$@"; exit $?`, "sh"}, args...)...)
		if r.code != 0 {
			t.Fatalf("%s: status %d: %s", way.name, r.code, r.err)
		}
		totals, own := map[string]int{}, 0
		for text := range strings.Lines(r.out) {
			var l line
			if err := json.Unmarshal([]byte(text), &l); err != nil {
				t.Fatalf("%s: %q: %v", way.name, text, err)
			}
			totals[l.Result]++
			if l.Result == "refused" || l.Result == "absent" {
				continue
			}
			if ownInits(l.Name) {
				own++
				continue
			}
			t.Errorf("as %s: %s: %s (%s), want %s", way.name, l.Name, l.Result, l.Got, l.Want)
		}
		if totals["refused"] < 200 {
			t.Errorf("as %s: %v attempts were refused, fewer than there are", way.name, totals)
		}
		t.Logf("as %s: %v, of which %d concern a PID 1 that is the program's own", way.name, totals, own)
	}
}

// TestProbeLrunJoining: a process that lrun exec brings into a container, or that starts one in another's process
// namespace, gives nobody inside a hold on it before it is the container's own: neither lrun's executable (CVE-2019-5736),
// nor its descriptors (CVE-2016-9962, CVE-2024-21626), nor its memory.
func TestProbeLrunJoining(t *testing.T) {
	before, err := os.ReadFile(lrun)
	if err != nil {
		t.Fatal(err)
	}
	for _, way := range []struct {
		name   string
		userns bool
		cap    string
	}{{"root", false, ""}, {"user namespace", true, ""}, {"user namespace and CAP_SYS_PTRACE", true, "CAP_SYS_PTRACE"}} {
		t.Run(way.name, func(t *testing.T) {
			k := newCage(t, way.userns)
			if way.cap != "" {
				c := k.spec.Process.Capabilities
				c.Bounding, c.Effective, c.Permitted = append(c.Bounding, way.cap), append(c.Effective, way.cap), append(c.Permitted, way.cap)
				k.spec.Linux.Seccomp, _ = runtime.DefaultSeccomp(k.spec)
			}
			id := k.machine("/bin/sh", "-c", "/inside stalk 5s > /tmp/caught; sleep 600")
			time.Sleep(100 * time.Millisecond)
			joined := 0
			for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
				_ = k.command("exec", id, "/bin/true").Run()
				joined++
			}
			time.Sleep(1500 * time.Millisecond)
			out, err := os.ReadFile(filepath.Join(k.rootfs, "tmp/caught"))
			if err != nil || !strings.Contains(string(out), "met") {
				t.Fatalf("the stalker said %q: %v", out, err)
			}
			t.Logf("%d joined; %s", joined, strings.TrimSpace(string(out)))
			hole(t, way.name, strings.Contains(string(out), "caught:"), "somebody inside got hold of a process that was joining: "+string(out))
		})
	}
	// What it is told to run is what it runs from: a sealed copy of init in memory, with the container's powers by then.
	k := newCage(t, false)
	id := k.machine("/bin/sleep", "600")
	for _, command := range [][]string{{"/proc/self/exe"}, {"/bin/sh", "-c", "printf '#!/proc/self/exe\n' > /evil; chmod 755 /evil; exec /evil"}} {
		if r := k.end(k.command(append([]string{"exec", id}, command...)...)); r.code == 0 {
			t.Errorf("%q ran: %s", command, r.out)
		}
	}
	if after, err := os.ReadFile(lrun); err != nil || sha256.Sum256(after) != sha256.Sum256(before) {
		t.Errorf("the runtime was overwritten: %v", err)
	}
}

// TestProbeLrunDescriptors: what lrun's caller left open stays outside, directories and O_PATH ones too (CVE-2024-21626).
func TestProbeLrunDescriptors(t *testing.T) {
	for _, userns := range []bool{false, true} {
		k := newCage(t, userns)
		id := k.machine("/bin/sleep", "600")
		for name, args := range map[string][]string{
			"run":  {"run", "--bundle", k.bundle, k.write("/inside", "descriptors")},
			"exec": {"exec", id, "/inside", "descriptors"},
		} {
			c := k.command(args...)
			for _, how := range []int{unix.O_RDONLY | unix.O_DIRECTORY, unix.O_PATH, unix.O_PATH | unix.O_DIRECTORY} {
				fd, err := unix.Open("/", how, 0)
				if err != nil {
					t.Fatal(err)
				}
				f := os.NewFile(uintptr(fd), "/")
				defer f.Close()
				c.ExtraFiles = append(c.ExtraFiles, f)
			}
			r := k.end(c)
			if lines := strings.Split(strings.TrimSpace(r.out), "\n"); r.code != 0 || len(lines) != 3 || strings.Contains(r.out, " / ") {
				t.Errorf("%s: status %d, descriptors\n%s%s", name, r.code, r.out, r.err)
			}
		}
	}
}

// TestProbeLrunDirectories: a working directory, or a root, that is somebody's descriptor (CVE-2024-21626).
func TestProbeLrunDirectories(t *testing.T) {
	k := newCage(t, false)
	cwd := "/bin/pwd; /bin/readlink /proc/self/cwd; /bin/ls ../../../.. | /bin/grep -x -e inside -e lost+found -e boot"
	id := k.machine("/bin/sleep", "600")
	for n := range 24 {
		if err := os.Remove(filepath.Join(k.rootfs, "link")); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		fd := fmt.Sprintf("/proc/self/fd/%d", n)
		if err := os.Symlink(fd, filepath.Join(k.rootfs, "link")); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{fd, fd + "/../..", "/link", "/link/.."} {
			k.spec.Process.Cwd = dir
			for what, r := range map[string]result{
				"run":  k.run("/bin/sh", "-c", cwd),
				"exec": k.end(k.command("exec", "--cwd", dir, id, "/bin/sh", "-c", cwd)),
			} {
				if strings.Contains(r.out, "boot") || strings.Contains(r.out, "unreachable") || r.code == 0 && !strings.Contains(r.out, "inside") {
					t.Errorf("%s in %s: status %d, it is outside: %s", what, dir, r.code, r.out)
				}
			}
		}
		k.spec.Process.Cwd = "/"
	}
	// The root: leaked descriptors of the host's directories are there to be named.
	held, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	real := k.rootfs
	for _, path := range []string{"/proc/self/fd/3", "/proc/self/cwd", "/proc/self/root", "link", "link/.."} {
		_ = os.Remove(filepath.Join(k.bundle, "link"))
		if err := os.Symlink("/proc/self/fd/3", filepath.Join(k.bundle, "link")); err != nil {
			t.Fatal(err)
		}
		k.spec.Root.Path = path
		id := k.write("/bin/sh", "-c", "echo ran")
		c := k.command("run", "--bundle", k.bundle, id)
		c.ExtraFiles = []*os.File{held}
		if r := k.end(c); r.code == 0 || strings.Contains(r.out, "ran") {
			t.Errorf("a root that is %s, a magic link, is taken", path)
		}
	}
	k.spec.Root.Path = real
}

// TestProbeLrunUsers: odd users are refused, not guessed (CVE-2026-30892), and whoever runs has nothing to inherit
// (CVE-2022-29162, CVE-2022-27650).
func TestProbeLrunUsers(t *testing.T) {
	k := newCage(t, true)
	id := k.machine("/bin/sleep", "600")
	for _, user := range []string{"-1", "4294967295", "4294967296", "18446744073709551616", "1000:", ":", ":0", "0x0", "00:-1", "+0", " 0", "0 ",
		"root ", "1000:4294967295", "nobody", "root", "root:x", "", "٣", "1e3", "70000", "0:70000", "1000:1000:0", "0\n", "-"} {
		r := k.end(k.command("exec", "--user", user, id, "/bin/id"))
		if user == "" { // as if it was not given
			continue
		}
		if r.code == 0 {
			t.Errorf("%q: %s", user, r.out)
		}
	}
	for _, args := range [][]string{{"exec", id}, {"exec", "--user", "1000:1000", id}, {"exec", "--cap", "net_admin", id}, {"exec", "--cap", "CAP_NET_ADMIN", "--user", "1000", id}} {
		r := k.end(k.command(append(args, "/bin/grep", "-E", "^Cap(Inh|Amb|Eff)", "/proc/self/status")...))
		if r.code != 0 || !strings.Contains(r.out, "CapInh:\t0000000000000000") || !strings.Contains(r.out, "CapAmb:\t0000000000000000") {
			t.Errorf("%v: status %d, %s%s", args, r.code, r.out, r.err)
		}
		if strings.Contains(strings.Join(args, " "), "1000") && !strings.Contains(r.out, "CapEff:\t0000000000000000") {
			t.Errorf("%v: an unprivileged user has capabilities: %s", args, r.out)
		}
	}
}

// TestProbeLrunRaces: while a container is made, somebody who shares its root or a volume swaps what it is made of for
// symlinks, on and on: the places that are masked, mounted upon, or become the console (CVE-2019-16884, 2019-18837,
// 2021-30465, 2023-27561, 2023-28642, 2024-45310, 2025-31133, 2025-52565, 2025-52881, 2026-41579, 2026-47766).
func TestProbeLrunRaces(t *testing.T) {
	bait := t.TempDir()
	for _, name := range []string{"null", "console", "kcore", "core_pattern"} {
		if err := os.WriteFile(filepath.Join(bait, name), []byte("bait\n"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"dir", "dir/sys", "dir/pts", "dir/shm", "dir/kernel", "target"} {
		if err := os.Mkdir(filepath.Join(bait, name), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	before := fingerprint(t, bait)
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, name, to string
		change         func(*cage)
	}{
		{"/proc, a link to the host's", "rootfs/proc", "/proc", nil},
		{"/proc, a link to a directory of the host", "rootfs/proc", bait + "/dir", nil},
		{"/proc, an empty directory", "rootfs/proc", "", nil},
		{"/dev, an empty directory", "rootfs/dev", "", nil},
		{"/sys", "rootfs/sys", bait + "/dir", nil},
		{"/dev", "rootfs/dev", bait + "/dir", nil},
		{"/dev, by many ..", "rootfs/dev", strings.Repeat("../", 30) + bait[1:] + "/dir", nil},
		{"/dev/null under a mask", "rootfs/dev/null", bait + "/null", ownDev},
		{"/dev/null, a link to a kernel file", "rootfs/dev/null", "/proc/sysrq-trigger", ownDev},
		{"/dev/pts", "rootfs/dev/pts", bait + "/dir", ownDev},
		{"/dev/console", "rootfs/dev/console", bait + "/console", withTerminal},
		{"/dev/console, a kernel file", "rootfs/dev/console", "/proc/sys/kernel/core_pattern", withTerminal},
		{"the place of a masked file", "rootfs/secret", bait + "/kcore", func(k *cage) {
			k.spec.Linux.MaskedPaths = append(k.spec.Linux.MaskedPaths, "/secret")
			k.spec.Linux.ReadonlyPaths = append(k.spec.Linux.ReadonlyPaths, "/secret/x")
		}},
		{"a mount's target in a volume", "shared/a", bait, func(k *cage) {
			bind := []string{"rbind"}
			k.spec.Mounts = append(k.spec.Mounts, specs.Mount{Destination: "/shared", Type: "bind", Source: filepath.Join(k.bundle, "shared"), Options: bind},
				specs.Mount{Destination: "/shared/a/target", Type: "bind", Source: filepath.Join(k.bundle, "source"), Options: bind},
				specs.Mount{Destination: "/shared/a/made/deep", Type: "tmpfs", Source: "tmpfs"})
		}},
		{"where a sysctl is written", "rootfs/proc", "/proc/sys/kernel", func(k *cage) {
			k.spec.Linux.Sysctl = map[string]string{"kernel.domainname": "x", "net.ipv4.ip_forward": "1"}
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			k := newCage(t, false)
			for _, d := range []string{"shared", "source"} {
				if err := os.MkdirAll(filepath.Join(k.bundle, d), 0o777); err != nil {
					t.Fatal(err)
				}
			}
			if c.change != nil {
				c.change(k)
			}
			place := filepath.Join(k.bundle, c.name)
			if _, err := os.Lstat(place); err != nil {
				if strings.HasSuffix(c.name, "null") {
					err = unix.Mknod(place, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))
				} else if strings.HasSuffix(c.name, "console") || strings.HasSuffix(c.name, "secret") {
					err = os.WriteFile(place, nil, 0o666)
				} else {
					err = os.MkdirAll(place, 0o777)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			// What only shows that somebody moved its own places about while it ran is no hole: those are the swapper's to
			// move. What counts is what can be written, or read, of the host's.
			script := `if test -e /proc/version; then
					(echo x > /proc/sys/kernel/core_pattern) 2>/dev/null && echo core_pattern
					test -s /proc/version && (: >> /proc/sysrq-trigger) 2>/dev/null && test -s /proc/version && echo sysrq-trigger
				fi
				cat /proc/keys /proc/timer_list 2>/dev/null
				for f in /secret /dev/console /shared/a/core_pattern; do test -f $f && /bin/busybox timeout 1 grep bait $f; done 2>/dev/null
				ls /../../..` + bait + ` 2>/dev/null
				exit 0`
			if r := k.run("/bin/sh", "-c", script); r.code != 0 || strings.TrimSpace(r.out) != "" {
				t.Fatalf("nobody swaps, and it ends with %d: %s%s", r.code, r.out, r.err)
			}
			link := place + "-link"
			err := os.Symlink(c.to, link)
			if c.to == "" {
				err = os.Mkdir(link, 0o777)
			}
			if err != nil {
				t.Fatal(err)
			}
			var stop atomic.Bool
			done := make(chan int)
			go func() {
				swaps := 0
				for ; !stop.Load(); swaps++ {
					_ = unix.Renameat2(unix.AT_FDCWD, place, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
					time.Sleep(time.Duration(rand.IntN(4000)) * time.Microsecond)
				}
				done <- swaps
			}()
			made := 0
			for range 25 {
				id := k.write("/bin/sh", "-c", script)
				cmd := k.command("run", "--bundle", k.bundle, id)
				cmd.Stdin = nil
				r := k.end(cmd)
				if r.code == 0 {
					made++
				}
				if strings.TrimSpace(r.out) != "" {
					t.Errorf("it runs with a hole: %s%s", r.out, r.err)
				}
				if now := fingerprint(t, bait); now != before {
					t.Fatal("the host's files were changed")
				}
				if now, err := os.ReadFile("/proc/sys/kernel/core_pattern"); err != nil || !bytes.Equal(now, pattern) {
					t.Fatalf("the host's core_pattern was changed to %q: %v", now, err)
				}
			}
			stop.Store(true)
			t.Logf("%d of 25 were made, the others refused, while it was swapped %d times", made, <-done)
		})
	}
	for _, table := range []string{"/proc/self/mountinfo"} {
		if b, err := os.ReadFile(table); err != nil || strings.Contains(string(b), bait) {
			t.Errorf("the host has a mount on the bait: %v", err)
		}
	}
}

// ownDev leaves /dev to the image: no tmpfs there.
func ownDev(k *cage) {
	var kept []specs.Mount
	for _, m := range k.spec.Mounts {
		if m.Destination != "/dev" {
			kept = append(kept, m)
		}
	}
	k.spec.Mounts = kept
}

// withTerminal is ownDev with a terminal on the console.
func withTerminal(k *cage) {
	ownDev(k)
	k.spec.Process.Terminal = true
}

// TestProbeLrunMounts: what may not be where procfs, sysfs and /dev belong is refused (CVE-2019-16884, 2023-27561).
func TestProbeLrunMounts(t *testing.T) {
	fake := t.TempDir()
	for _, dest := range []string{"/proc", "/proc/self/attr", "/proc/sys/kernel", "/proc/1/attr"} {
		k := newCage(t, false)
		for i, m := range k.spec.Mounts {
			if m.Destination == dest {
				k.spec.Mounts[i] = specs.Mount{Destination: dest, Type: "bind", Source: fake, Options: []string{"bind"}}
				dest = ""
				break
			}
		}
		if dest != "" {
			k.spec.Mounts = append(k.spec.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: fake, Options: []string{"bind"}})
		}
		if r := k.run("/bin/true"); r.code == 0 {
			t.Errorf("a volume over %q is taken", dest)
		}
	}
}
