package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// vmexec is built once, without cgo whatever these tests are built with: it has to run where there is no library.
var vmexec string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "vmexec-test-")
	if err == nil {
		vmexec = filepath.Join(dir, "vmexec")
		cmd := exec.Command("go", "build", "-o", vmexec, "./vmexec")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		var out []byte
		if out, err = cmd.CombinedOutput(); err != nil {
			err = fmt.Errorf("build vmexec: %w: %s", err, out)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// guestRun runs a shell script in a guest.
func guestRun(t *testing.T, script string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.Command(vmexec, "/bin/sh", "-c", script)
	cmd.Env = append(os.Environ(), "SAMPLE=a b")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestGuest(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	home := filepath.Join(mustGetwd(t), "written-by-guest")
	out, errs, status := guestRun(t, `
		cat /proc/self/cgroup; cat /sys/fs/cgroup/cgroup.subtree_control; stat -fc %T /sys/fs/cgroup
		echo "dir $(pwd)"; echo "env $SAMPLE"; blockdev --getsize64 $LEARNOS_VM_DISK
		echo to-stderr >&2
		mkdir -p `+filepath.Dir(mark)+`; touch `+mark+` `+home+` && echo wrote
		mkdir -p /tmp/l /tmp/u /tmp/w /tmp/m && mount -t overlay overlay -o lowerdir=/tmp/l,upperdir=/tmp/u,workdir=/tmp/w /tmp/m && echo overlaid
		ip link add probe0 type bridge && echo loaded a module by itself
		unshare -m sh -c 'mkdir -p /tmp/r && mount -t tmpfs t /tmp/r && mkdir /tmp/r/old && cd /tmp/r && pivot_root . old' && echo pivoted
		seq 100000
		exit 7`)
	for _, want := range []string{
		"0::/guest\n", "memory", "cgroup2fs", "dir " + mustGetwd(t) + "\n", "env a b\n", fmt.Sprint(scratchBytes), "wrote\n", "overlaid\n",
		"loaded a module by itself\n", "pivoted\n", "99999\n100000\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the guest did not say %q", want)
		}
	}
	if !strings.Contains(errs, "to-stderr\n") || strings.Contains(out, "to-stderr") {
		t.Errorf("stderr: %q", errs)
	}
	if status != 7 {
		t.Errorf("status %d, want 7\n%.2000s\n%s", status, out, errs)
	}
	for _, path := range []string{mark, home} {
		if fileExists(path) {
			t.Errorf("what the guest wrote to %s is outside", path)
		}
	}
}

func mustGetwd(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestSignalledCommand(t *testing.T) {
	if out, errs, status := guestRun(t, "kill -9 $$"); status != 137 {
		t.Errorf("status %d, want 137: %s%s", status, out, errs)
	}
}

// What a command leaves running keeps neither its status nor the machine from ending.
func TestCommandLeavesChildren(t *testing.T) {
	for _, want := range []int{0, 3} {
		out, errs, status := guestRun(t, fmt.Sprintf("setsid sh -c 'echo from a child; sleep 600' & sleep 1; exit %d", want))
		if status != want || !strings.Contains(out, "from a child\n") {
			t.Errorf("status %d, want %d: %s%s", status, want, out, errs)
		}
		if told := strings.Contains(errs, "hold its output open"); told != (want == 0) {
			t.Errorf("status %d: %q", want, errs)
		}
	}
}

// A guest that goes away says nothing about the command: that is not the command's failure.
func TestLostGuestIsInfrastructure(t *testing.T) {
	_, errs, status := guestRun(t, "echo 1 > /proc/sys/kernel/sysrq; echo b > /proc/sysrq-trigger; sleep 60")
	if status != 125 || !strings.Contains(errs, "infrastructure failure") || !strings.Contains(errs, "gone before its status") {
		t.Errorf("status %d, want 125: %s", status, errs)
	}
	if strings.Contains(errs, "trying again") {
		t.Error("a command that had begun was run twice")
	}
}

// A kernel that never gets anywhere is tried three times and then reported as the machine's failure.
func TestDeadBootIsTriedAgain(t *testing.T) {
	cache := t.TempDir()
	good, err := CacheDir(mustGetwd(t))
	if err != nil {
		t.Fatal(err)
	}
	k, err := getKernel(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(cache, "kernel")
	if err := os.MkdirAll(filepath.Join(broken, "lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(k.modules), filepath.Join(broken, "lib", "modules")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(broken, "vmlinuz"), []byte("no kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	module := t.TempDir()
	writeFile(t, filepath.Join(module, "go.mod"), "module none\n")
	if err := os.MkdirAll(filepath.Join(module, "tests", ".cache"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(cache, filepath.Join(module, "tests", ".cache", "vm")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(vmexec, "/bin/true")
	cmd.Dir = module
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 125 || strings.Count(string(out), "trying again") != attempts-1 {
		t.Errorf("status %d after %s", cmd.ProcessState.ExitCode(), out)
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestGoTestExec(t *testing.T) {
	for _, fails := range []string{"", "1"} {
		cmd := exec.Command("go", "test", "-count=1", "-v", "-exec", vmexec, "./testdata/sample")
		cmd.Env = append(os.Environ(), "SAMPLE_FAILS="+fails, "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		for _, want := range []string{"--- PASS: TestPass", "--- SKIP: TestSkip", map[string]string{"": "--- PASS: TestMayFail", "1": "--- FAIL: TestMayFail"}[fails]} {
			if !strings.Contains(string(out), want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
		if (err != nil) != (fails != "") {
			t.Errorf("go test: %v\n%s", err, out)
		}
	}
}

// Stopping vmexec stops the machine and leaves nothing.
func TestInterrupt(t *testing.T) {
	tmp := t.TempDir()
	cmd := exec.Command(vmexec, "/bin/sh", "-c", "echo begun; sleep 600")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Signal(os.Interrupt)
	done := make(chan error)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		cmd.Process.Kill()
		t.Fatal("it did not stop")
	}
	if status := cmd.ProcessState.ExitCode(); status != 125 {
		t.Errorf("status %d, want 125", status)
	}
	if left, _ := filepath.Glob(filepath.Join(tmp, "*")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	if out, err := exec.Command("pgrep", "-f", tmp).Output(); err == nil {
		t.Errorf("processes left: %s", out)
	}
}

func TestCpioIsReadByAnother(t *testing.T) {
	var b bytes.Buffer
	c := &cpioWriter{w: &b}
	c.dir("d")
	c.file("d/three", 0o644, []byte("abc"))
	c.file("d/empty", 0o600, nil)
	c.file("d/eight", 0o755, []byte("12345678"))
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("busybox", "cpio", "-i", "-v")
	cmd.Dir, cmd.Stdin = t.TempDir(), &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, want := range map[string]string{"three": "abc", "empty": "", "eight": "12345678"} {
		if got, err := os.ReadFile(filepath.Join(cmd.Dir, "d", name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestNoCommand(t *testing.T) {
	for _, args := range [][]string{nil, {"/no/such/command"}} {
		if err := exec.CommandContext(context.Background(), vmexec, args...).Run(); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}
