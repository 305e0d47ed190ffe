package engines

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary runs three times over: as the process that go test started, which makes the directory and the cgroups; as
// PID 1 of the new namespaces, which reaps, because conmon and the shims leave orphans; and as the tests.
const (
	roleEnv  = "LEARNOS_ENGINES_ROLE" // of the second and the third
	dirEnv   = "LEARNOS_ENGINES_DIR"  // where all files of the house are
	lrunEnv  = "LEARNOS_ENGINES_LRUN" // lrun, already built
	groupEnv = "LEARNOS_ENGINES_GROUP"
)

// tools are what the tests call, by package.
var tools = map[string]string{
	"podman": "podman", "conmon": "conmon", "containerd": "containerd", "ctr": "containerd", "containerd-shim-runc-v2": "containerd",
	"busybox": "busybox-static", "iptables": "iptables", "mkfs.ext4": "e2fsprogs", "tini-static": "tini",
}

func TestMain(m *testing.M) {
	flag.Parse()
	var code int
	var err error
	switch {
	case flag.Lookup("test.list").Value.String() != "":
		code = m.Run()
	case os.Getenv(roleEnv) == "init":
		code, err = first()
	case os.Getenv(roleEnv) == "tests":
		if err = furnish(); err == nil {
			code = m.Run()
		}
	default:
		code, err = build()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests/engines:", err)
		code = 1
	}
	os.Exit(code)
}

// build makes the house and everything of it that outlives its namespaces, and takes that away again.
func build() (code int, err error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("these tests make containers: run them as root")
	}
	for tool, pkg := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			return 1, fmt.Errorf("%s is missing: run scripts/setup test, which installs the package %s", tool, pkg)
		}
	}
	dir, err := os.MkdirTemp("", "learnos-engines-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	lrun := os.Getenv(lrunEnv)
	if lrun == "" {
		if lrun, err = buildLrun(dir); err != nil {
			return 1, err
		}
	}
	group := filepath.Base(dir)
	groups, err := makeGroups(group)
	defer func() { err = errors.Join(err, removeGroups(groups)) }()
	if err != nil {
		return 1, err
	}
	runtime.LockOSThread() // the parent that Pdeathsig speaks of is a thread
	cmd := again("init", dirEnv+"="+dir, lrunEnv+"="+lrun, groupEnv+"="+strings.Join(groups, ":"))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  unix.SIGKILL,
	}
	return status(cmd.Run())
}

// buildLrun builds the command under test, as it is released.
func buildLrun(dir string) (string, error) {
	lrun := filepath.Join(dir, "lrun")
	cmd := exec.Command("go", "build", "-trimpath", "-o", lrun, "github.com/learnos/learnos/cmd/lrun")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build lrun: %w: %s", err, out)
	}
	return lrun, nil
}

// again is this program in another role.
func again(role string, env ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(append(os.Environ(), roleEnv+"="+role), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd
}

func status(err error) (int, error) {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

// first is PID 1: it takes /proc over, moves to the house's cgroups, starts the tests, and reaps until they end.
func first() (int, error) {
	for _, m := range []struct {
		source, at, kind string
		flags            uintptr
		data             string
	}{{"", "/", "", unix.MS_REC | unix.MS_PRIVATE, ""}, {"proc", "/proc", "proc", 0, ""}} {
		if err := unix.Mount(m.source, m.at, m.kind, m.flags, m.data); err != nil {
			return 1, fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	for _, dir := range strings.Split(os.Getenv(groupEnv), ":") {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return 1, fmt.Errorf("move to the cgroup: %w", err)
		}
	}
	cmd := again("tests")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWCGROUP}
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	for {
		var s unix.WaitStatus
		pid, err := unix.Wait4(-1, &s, 0, nil)
		switch {
		case err == unix.EINTR || err == nil && pid != cmd.Process.Pid:
		case err != nil:
			return 1, fmt.Errorf("wait for the tests: %w", err)
		case s.Signaled():
			return 128 + int(s.Signal()), nil
		default:
			return s.ExitStatus(), nil
		}
	}
}

// furnish makes what the tests find: private places where the engines leave things, cgroups seen from the house's own, a
// file system that overlays can lie on, subordinate ids for --userns=auto, the engines' configuration, and an image.
func furnish() error {
	dir := os.Getenv(dirEnv)
	for _, at := range []string{"/run", "/dev/shm"} {
		if err := unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
			return fmt.Errorf("mount %s: %w", at, err)
		}
	}
	if err := os.MkdirAll("/var/lib/cni", 0o755); err != nil { // where its plugins remember addresses, whatever they are told
		return err
	}
	if err := unix.Mount("tmpfs", "/var/lib/cni", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /var/lib/cni: %w", err)
	}
	if err := mountGroups(); err != nil {
		return err
	}
	if disk := os.Getenv("LEARNOS_VM_DISK"); disk != "" { // in the guest everything else is memory, or an overlay itself
		if out, err := exec.Command("mkfs.ext4", "-q", disk).CombinedOutput(); err != nil {
			return fmt.Errorf("mkfs.ext4 %s: %w: %s", disk, err, out)
		}
		if err := unix.Mount(disk, dir, "ext4", 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", disk, err)
		}
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		own := filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(own, []byte("containers:1000000:10000000\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(own, file, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("put our own over %s (does it exist?): %w", file, err)
		}
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("lo: %w: %s", err, out)
	}
	if err := configure(dir); err != nil {
		return err
	}
	return makeImage(dir)
}

// hierarchy is a mounted cgroup tree: where, and with which options; v2 has none.
type hierarchy struct{ dir, options string }

// hierarchies are this machine's: all of v1, or the one of v2. A v2 tree beside v1 has no controllers, and podman and crun
// take such a mixture for an error: it is left out.
func hierarchies() (v1, v2 []hierarchy, err error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, nil, err
	}
	for line := range bytes.Lines(b) {
		before, after, ok := bytes.Cut(line, []byte(" - "))
		f, g := strings.Fields(string(before)), strings.Fields(string(after))
		if !ok || len(f) < 5 || len(g) < 3 {
			continue
		}
		switch g[0] {
		case "cgroup":
			options := slices.DeleteFunc(strings.Split(g[2], ","), func(o string) bool {
				return slices.Contains([]string{"rw", "ro", "xattr", "clone_children"}, o) || strings.HasPrefix(o, "release_agent=")
			})
			v1 = append(v1, hierarchy{f[4], strings.Join(options, ",")})
		case "cgroup2":
			v2 = append(v2, hierarchy{dir: f[4]})
		}
	}
	return v1, v2, nil
}

// makeGroups makes a cgroup of the house's own in every hierarchy.
func makeGroups(name string) (dirs []string, err error) {
	v1, v2, err := hierarchies()
	if err != nil {
		return nil, err
	}
	if len(v1) == 0 {
		v1 = v2
	}
	for _, h := range v1 {
		dir := filepath.Join(h.dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return dirs, err
		}
		dirs = append(dirs, dir)
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} { // empty at first on v1, and then nobody may enter
			b, err := os.ReadFile(filepath.Join(h.dir, file))
			if err != nil || h.options == "" {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, file), bytes.TrimSpace(b), 0); err != nil {
				return dirs, err
			}
		}
	}
	if len(dirs) == 0 {
		return nil, errors.New("this machine has no cgroups mounted")
	}
	return dirs, nil
}

// removeGroups removes the house's cgroups and those left below them.
func removeGroups(groups []string) (err error) {
	for _, group := range groups {
		for range 100 { // a process that has just died leaves its cgroup in its own time
			var below []string
			filepath.WalkDir(group, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					below = append(below, path)
				}
				return nil
			})
			err = nil
			for _, dir := range slices.Backward(below) {
				err = errors.Join(err, os.Remove(dir))
			}
			if err == nil {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return err
}

// mountGroups shows the cgroups as seen from the house's own, which for the engines is the whole tree.
func mountGroups() error {
	const root = "/sys/fs/cgroup"
	v1, _, err := hierarchies()
	if err != nil {
		return err
	}
	if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s in our mount namespace: %w", root, err)
	}
	if len(v1) == 0 {
		if err := unix.Mount("cgroup", root, "cgroup2", 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", root, err)
		}
		// A group with processes in it can't give controllers to others.
		if err := os.Mkdir(root+"/house", 0o755); err != nil {
			return err
		}
		for _, pid := range []string{"1", "0"} {
			if err := os.WriteFile(root+"/house/cgroup.procs", []byte(pid), 0); err != nil {
				return fmt.Errorf("move to a cgroup of the house's own: %w", err)
			}
		}
		return nil
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", root, err)
	}
	for _, h := range v1 {
		if err := os.MkdirAll(h.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("cgroup", h.dir, "cgroup", 0, h.options); err != nil {
			return fmt.Errorf("mount %s: %w", h.dir, err)
		}
	}
	return nil
}
