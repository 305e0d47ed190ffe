package runtime

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The ids of test environments on the host: root inside is testUID outside.
const testUID, testIDs = 1_700_000_000, 65536

// testParent is this run's own cgroup subtree.
var testParent = fmt.Sprintf("learnos-rt-%d", os.Getpid())

// newRuntime opens a Runtime that leaves nothing behind.
func newRuntime(t testing.TB) *Runtime {
	t.Helper()
	r, err := Open(Options{StateDir: filepath.Join(t.TempDir(), "state"), CgroupParent: testParent})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := r.Sweep(context.Background(), func(string) bool { return false }); err != nil {
			t.Errorf("sweep: %v", err)
		}
	})
	return r
}

// busyboxRoot makes a root file system of one busybox, owned by root.
func busyboxRoot(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"bin", "sbin", "etc", "proc", "sys", "dev", "tmp", "root", "usr/bin", "home/user", "var"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o1777); err != nil {
		t.Fatal(err)
	}
	src, err := os.Open("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.OpenFile(filepath.Join(root, "bin/busybox"), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{"sh", "true", "false", "cat", "echo", "sleep", "id", "ls", "mount", "mknod", "hostname", "stty",
		"kill", "ps", "head", "dd", "readlink", "mkdir", "touch", "chown", "chmod", "ping", "tr", "grep", "seq", "stat", "env", "printf", "wc", "ln", "rm", "umount", "cut", "nproc", "yes", "tail", "chroot", "su", "tty"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:User:/home/user:/bin/sh\ndaemon:x:1:1::/:/bin/false\n")
	write("etc/group", "root:x:0:\nuser:x:1000:\nstaff:x:50:user\nwheel:x:10:user,root\n")
	return root
}

// mountRoot returns a detached, id-mapped mount of a root file system, as package rootfs would.
func mountRoot(t testing.TB, c *Container, root string) *os.File {
	t.Helper()
	fd, err := unix.OpenTree(unix.AT_FDCWD, root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), root)
	t.Cleanup(func() { f.Close() })
	ns, err := c.NamespaceFD(specs.UserNamespace)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}); err != nil {
		t.Fatal(err)
	}
	return f
}

// testSpec is DefaultSpec with the test ids.
func testSpec() *specs.Spec {
	s := DefaultSpec()
	s.Hostname = "box"
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: testUID, Size: testIDs}}
	s.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: testUID, Size: testIDs}}
	return s
}

// ctx is a context that ends with the test, or when something hangs.
func testContext(t testing.TB) context.Context {
	t.Helper()
	patience := 20 * time.Second
	if os.Getenv("LEARNOS_VM") != "" { // the guest's processor is emulated
		patience *= 5
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// create makes a container that is deleted at the end.
func create(t testing.TB, r *Runtime, o CreateOptions) *Container {
	t.Helper()
	if o.Spec == nil {
		o.Spec = testSpec()
	}
	if o.ID == "" {
		o.ID = "c1"
	}
	c, err := r.Create(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Delete(context.Background()); err != nil {
			t.Errorf("delete: %v", err)
		}
	})
	return c
}

// start creates and starts a container over a busybox root.
func start(t testing.TB, r *Runtime, o CreateOptions) *Container {
	t.Helper()
	c := create(t, r, o)
	if err := c.Start(testContext(t), StartOptions{Root: mountRoot(t, c, busyboxRoot(t))}); err != nil {
		t.Fatal(err)
	}
	return c
}

// run runs a command in a container and returns what it wrote and its status.
func run(t testing.TB, c *Container, spec SessionSpec) (stdout, stderr string, status ExitStatus) {
	t.Helper()
	ctx := testContext(t)
	s, err := c.StartSession(ctx, spec)
	if err != nil {
		t.Fatalf("%v: %v", spec.Args, err)
	}
	defer s.Close()
	errc := make(chan string)
	go func() {
		b, _ := io.ReadAll(s.Stderr())
		errc <- string(b)
	}()
	out, _ := io.ReadAll(s.Stdout())
	stderr = <-errc
	status, err = s.Wait(ctx)
	if err != nil {
		t.Fatalf("%v: wait: %v", spec.Args, err)
	}
	return string(out), stderr, status
}

// sh runs a shell script that must succeed, and returns what it wrote.
func sh(t testing.TB, c *Container, script string) string {
	t.Helper()
	out, stderr, status := run(t, c, SessionSpec{Args: []string{"sh", "-c", script}})
	if status.Code != 0 {
		t.Fatalf("%s: status %d: %s%s", script, status.Code, out, stderr)
	}
	return out
}

func TestMainStatus(t *testing.T) {
	r := newRuntime(t)
	for _, tc := range []struct {
		script string
		want   ExitStatus
	}{
		{"exit 0", ExitStatus{}},
		{"exit 42", ExitStatus{Code: 42}},
		{"kill -9 $$", ExitStatus{Code: 137, Signal: 9}},
		{"kill -TERM $$", ExitStatus{Code: 143, Signal: 15}},
	} {
		c := start(t, r, CreateOptions{Main: &SessionSpec{Args: []string{"sh", "-c", tc.script}}})
		got, err := c.Wait(testContext(t))
		if err != nil || got != tc.want {
			t.Errorf("%s: %+v %v, want %+v", tc.script, got, err, tc.want)
		}
		if err := c.Delete(testContext(t)); err != nil {
			t.Error(err)
		}
	}
}

// inCgroup runs a shell script of the host in a cgroup2 directory.
func inCgroup(t *testing.T, dir, script string) string {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("/bin/busybox", "sh", "-c", script)
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd.Stdin, cmd.Stderr = null, null
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestProbe(t *testing.T) {
	for _, c := range Probe(testContext(t)) {
		t.Logf("%-28s %-5v %s %s", c.Name, c.OK, c.Detail, c.Consequence)
		if c.OK != (c.Consequence == "") || c.Detail == "" {
			t.Errorf("%+v", c)
		}
		switch c.Name {
		case "CAP_SYS_RESOURCE", "AppArmor or SELinux", "soft memory limits", "pressure stall information", "huge pages", "swap accounting", "process numbers", "open files":
		default:
			if !c.OK {
				t.Errorf("%s: %s", c.Name, c.Detail)
			}
		}
	}
}
