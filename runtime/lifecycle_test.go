package runtime

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
	"github.com/learnos/learnos/runtime/internal/insider"
)

// TestMain lets the test binary be an agent of its own, to be killed.
func TestMain(m *testing.M) {
	if args := os.Getenv("RUNTIME_TEST_AGENT"); args != "" {
		agent(args)
		return
	}
	if os.Getenv("RUNTIME_TEST_INSIDE") != "" {
		insider.Run(os.Args[1:])
		return
	}
	code := m.Run()
	if insideDir != "" {
		os.RemoveAll(insideDir)
	}
	// This run's cgroup parents are empty now.
	if hs, err := findHierarchies(); err == nil {
		for _, h := range hs.all {
			os.Remove(filepath.Join(h.dir, testParent))
		}
	}
	os.Exit(code)
}

// agentArgs tell a helper process what to make.
type agentArgs struct {
	StateDir, Parent, Root string
	Mortal                 bool
	StopAfterCreate        bool
}

// agent creates a container with a terminal and a piped session, says so, and waits to be killed.
func agent(text string) {
	var a agentArgs
	fail := func(err error) {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		fail(err)
	}
	ctx := context.Background()
	r, err := Open(Options{StateDir: a.StateDir, CgroupParent: a.Parent})
	if err != nil {
		fail(err)
	}
	c, err := r.Create(ctx, CreateOptions{ID: "orphan", Spec: testSpec(), DieWithParent: a.Mortal})
	if err != nil {
		fail(err)
	}
	if !a.StopAfterCreate {
		fd, err := unix.OpenTree(unix.AT_FDCWD, a.Root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			fail(err)
		}
		ns, err := c.NamespaceFD(specs.UserNamespace)
		if err != nil {
			fail(err)
		}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}); err != nil {
			fail(err)
		}
		if err := c.Start(ctx, StartOptions{Root: os.NewFile(uintptr(fd), "root")}); err != nil {
			fail(err)
		}
		if _, err := c.StartSession(ctx, SessionSpec{ID: "term", Args: []string{"sh"}, TTY: true, Env: []string{"PS1="}}); err != nil {
			fail(err)
		}
		if _, err := c.StartSession(ctx, SessionSpec{ID: "pipe", Args: []string{"cat"}}); err != nil {
			fail(err)
		}
	}
	if _, err := c.State(ctx); err != nil { // an answer: init is past its exec
		fail(err)
	}
	fmt.Println("ready", c.PID())
	select {}
}

// startAgent runs the helper and returns when it is ready.
func startAgent(t *testing.T, a agentArgs) (*exec.Cmd, int) {
	t.Helper()
	text, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "RUNTIME_TEST_AGENT="+string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	var pid int
	if _, scanErr := fmt.Sscanf(line, "ready %d", &pid); err != nil || scanErr != nil {
		t.Fatalf("the helper says %q, %v", line, err)
	}
	return cmd, pid
}

func TestAgentKilledAndBack(t *testing.T) {
	r := newRuntime(t)
	cmd, pid := startAgent(t, agentArgs{StateDir: r.opts.StateDir, Parent: testParent, Root: busyboxRoot(t)})
	cmd.Process.Kill()
	cmd.Wait()
	ctx := testContext(t)
	c, err := r.Load(ctx, "orphan")
	if err != nil {
		t.Fatal(err)
	}
	if c.PID() != pid || !c.alive() {
		t.Fatalf("pid %d, alive %v", c.PID(), c.alive())
	}
	list, err := c.Sessions(ctx)
	if err != nil || len(list) != 2 || list[0].ID != "term" || !list[0].TTY || list[1].ID != "pipe" || list[1].Exited {
		t.Fatalf("%+v %v", list, err)
	}
	term, err := c.Attach(ctx, "term")
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	io.WriteString(term.PTY(), "echo survived-$((1+1))\n")
	readUntil(t, term.PTY(), "survived-2")
	pipe, err := c.Attach(ctx, "pipe")
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	io.WriteString(pipe.Stdin(), "through")
	if err := pipe.CloseStdin(ctx); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(pipe.Stdout()); err != nil || string(b) != "through" {
		t.Fatalf("%q %v", b, err)
	}
	if st, err := pipe.Wait(ctx); err != nil || st.Code != 0 {
		t.Fatalf("%+v %v", st, err)
	}
	// A stranger to the process can wait for it, too.
	done := make(chan ExitStatus)
	go func() {
		st, _ := c.Wait(ctx)
		done <- st
	}()
	if err := c.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if st := <-done; st.Code != 137 || st.Reason != "killed on request" {
		t.Errorf("%+v", st)
	}
	if err := c.Start(ctx, StartOptions{}); err == nil {
		t.Error("a container of another process was started")
	}
	if err := c.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(ctx); err != nil {
		t.Errorf("second delete: %v", err)
	}
	if _, err := r.Load(ctx, "orphan"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after delete: %v", err)
	}
}

func TestDieWithParent(t *testing.T) {
	r := newRuntime(t)
	cmd, pid := startAgent(t, agentArgs{StateDir: r.opts.StateDir, Parent: testParent, Root: busyboxRoot(t), Mortal: true})
	c, err := r.Load(testContext(t), "orphan")
	if err != nil || !c.alive() || c.PID() != pid {
		t.Fatalf("%v", err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if _, err := c.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

// mountLines and cgroupDirs are what a container could leave on the host.
func mountLines(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// makeGroup makes a cgroup on every hierarchy that a container uses.
func makeGroup(t *testing.T, g *cgroup) {
	t.Helper()
	if err := errors.Join(g.create(nil, true), g.create(nil, false)); err != nil {
		t.Fatal(err)
	}
}

func TestSweepLeavesNothing(t *testing.T) {
	r := newRuntime(t)
	before := mountLines(t)
	cmd, pid := startAgent(t, agentArgs{StateDir: r.opts.StateDir, Parent: testParent, Root: busyboxRoot(t)})
	cmd.Process.Kill()
	cmd.Wait()
	half := filepath.Join(r.opts.StateDir, "half") // a creation cut short right after its first step
	if err := os.Mkdir(half, 0o700); err != nil {
		t.Fatal(err)
	}
	g := &cgroup{hs: r.hierarchies, path: testParent + "/nostate"} // a deletion cut short before its last
	makeGroup(t, g)
	keep := start(t, r, CreateOptions{ID: "keep"})
	removed, err := r.Sweep(testContext(t), func(id string) bool { return id == "keep" })
	if err != nil || strings.Join(removed, " ") != "half orphan nostate" {
		t.Fatalf("removed %v, %v", removed, err)
	}
	// Whoever adopted it may not have reaped it yet, but a zombie is all that can be left.
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(b), ") Z ") {
		t.Errorf("init is still there: %s", b)
	}
	if left := r.hierarchies.siblings(testParent); len(left) != 1 || left[0] != "keep" {
		t.Errorf("cgroups left: %v", left)
	}
	if sh(t, keep, "echo ok") != "ok\n" {
		t.Error("the live one was hurt")
	}
	if ids, err := r.List(testContext(t)); err != nil || len(ids) != 1 || ids[0] != "keep" {
		t.Errorf("%v %v", ids, err)
	}
	if mountLines(t) != before {
		t.Error("the host's mounts have changed")
	}
}

func TestCreatedButNotStarted(t *testing.T) {
	r := newRuntime(t)
	cmd, _ := startAgent(t, agentArgs{StateDir: r.opts.StateDir, Parent: testParent, StopAfterCreate: true})
	cmd.Process.Kill()
	cmd.Wait()
	ctx := testContext(t)
	c, err := r.Load(ctx, "orphan")
	if err != nil {
		t.Fatal(err)
	}
	if st, err := c.State(ctx); err != nil || st != StateCreated {
		t.Errorf("%s %v", st, err)
	}
	if _, err := c.StartSession(ctx, SessionSpec{Args: []string{"true"}}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("%v", err)
	}
	if err := c.Delete(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestMainExecErrors(t *testing.T) {
	r := newRuntime(t)
	root := busyboxRoot(t)
	if err := os.WriteFile(filepath.Join(root, "plain"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for command, code := range map[string]int{"/missing": 127, "missing": 127, "/plain": 126} {
		c := create(t, r, CreateOptions{Main: &SessionSpec{Args: []string{command}}})
		err := c.Start(testContext(t), StartOptions{Root: mountRoot(t, c, root)})
		var e *ExecError
		if !errors.As(err, &e) || e.Code != code {
			t.Errorf("%s: %v", command, err)
		}
		st, err := c.Wait(testContext(t))
		if err != nil || st.Code != code || st.Reason == "" {
			t.Errorf("%s: %+v %v", command, st, err)
		}
		if err := c.Delete(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMainMakesItsWorkingDirectory(t *testing.T) {
	c := start(t, newRuntime(t), CreateOptions{Main: &SessionSpec{Args: []string{"sh", "-c", "pwd; test $(pwd) = /srv/app/new"}, Cwd: "/srv/app/new"}})
	if st, err := c.Wait(testContext(t)); err != nil || st.Code != 0 {
		t.Errorf("%+v %v", st, err)
	}
}

func TestMainWithPipesAndSignal(t *testing.T) {
	r := newRuntime(t)
	c := start(t, r, CreateOptions{Main: &SessionSpec{Args: []string{"sh", "-c", "trap 'echo caught; exit 5' TERM; echo up; while :; do sleep 0.05; done"}}})
	ctx := testContext(t)
	s, err := c.Attach(ctx, MainSession)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	out := bufio.NewReader(s.Stdout())
	if line, _ := out.ReadString('\n'); line != "up\n" {
		t.Fatalf("%q", line)
	}
	waited := make(chan ExitStatus, 1)
	go func() {
		st, _ := s.Wait(ctx)
		waited <- st
	}()
	if err := c.Signal(ctx, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if line, _ := out.ReadString('\n'); line != "caught\n" {
		t.Fatalf("%q", line)
	}
	st, err := c.Wait(ctx)
	if err != nil || st.Code != 5 || st != <-waited {
		t.Fatalf("%+v %v", st, err)
	}
	if _, err := c.StartSession(ctx, SessionSpec{Args: []string{"true"}}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
	if state, err := c.State(ctx); err != nil || state != StateStopped {
		t.Errorf("%s %v", state, err)
	}
}

func TestGracefulEndWithoutMain(t *testing.T) {
	c := start(t, newRuntime(t), CreateOptions{})
	ctx := testContext(t)
	s, err := c.StartSession(ctx, SessionSpec{Args: []string{"sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	out := bufio.NewReader(s.Stdout())
	out.ReadString('\n')
	if err := c.Signal(ctx, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if line, _ := out.ReadString('\n'); line != "bye\n" {
		t.Errorf("%q", line)
	}
	if st, err := c.Wait(ctx); err != nil || st.Code != 143 || st.Reason != "ended on request" {
		t.Errorf("%+v %v", st, err)
	}
}

func TestLog(t *testing.T) {
	r := newRuntime(t)
	log := LogFiles{Path: filepath.Join(t.TempDir(), "log"), MaxBytes: 64 << 10}
	read := func() string {
		f, err := ReadLog(log)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if _, err := ReadLog(log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("before: %v", err)
	}
	c := start(t, r, CreateOptions{Log: &log, Main: &SessionSpec{Args: []string{"sh", "-c", "echo one; echo two >&2; cat; exit 4"}}})
	if st, err := c.Wait(testContext(t)); err != nil || st.Code != 4 {
		t.Fatalf("%+v %v", st, err)
	}
	if got := read(); !strings.Contains(got, "one\n") || !strings.Contains(got, "two\n") {
		t.Errorf("%q", got)
	}
	c.Delete(testContext(t))
	c = start(t, r, CreateOptions{Log: &log, Main: &SessionSpec{Args: []string{"seq", "1", "100000"}}})
	if st, err := c.Wait(testContext(t)); err != nil || st.Code != 0 {
		t.Fatalf("%+v %v", st, err)
	}
	got := read()
	if !strings.HasSuffix(got, "99999\n100000\n") || len(got) < 64<<10 || len(got) > 128<<10 {
		t.Errorf("%d bytes, end %q", len(got), got[max(0, len(got)-20):])
	}
	for _, path := range log.paths() {
		if info, err := os.Stat(path); err != nil || info.Size() > log.MaxBytes || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", path, info, err)
		}
	}
}

func TestPauseResume(t *testing.T) {
	c := start(t, newRuntime(t), CreateOptions{})
	ctx := testContext(t)
	if err := c.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if st, err := c.State(ctx); err != nil || st != StatePaused {
		t.Errorf("%s %v", st, err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := c.Sessions(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a paused container answers: %v", err)
	}
	if err := c.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	if st, err := c.State(ctx); err != nil || st != StateRunning {
		t.Errorf("%s %v", st, err)
	}
	if sh(t, c, "echo on") != "on\n" {
		t.Error("not resumed")
	}
	if err := c.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Kill(ctx); err != nil { // also while paused
		t.Fatal(err)
	}
}

func TestMemoryLimit(t *testing.T) {
	r := newRuntime(t)
	limit := int64(64 << 20)
	spec := testSpec()
	spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
	hog := []string{"sh", "-c", "echo up; tail -c 200000000 /dev/zero > /dev/null"}
	c := start(t, r, CreateOptions{Spec: spec, Main: &SessionSpec{Args: []string{"tail", "-c", "200000000", "/dev/zero"}}})
	st, err := c.Wait(testContext(t))
	if err != nil || st.Code != 137 || !st.OOMKilled || !strings.Contains(st.Reason, "64 MiB") {
		t.Errorf("%+v %v", st, err)
	}
	if stats, err := c.Stats(testContext(t)); err != nil || stats.OOMKills == 0 || stats.MemoryLimit != uint64(limit) || stats.MemoryPeak < uint64(limit)/2 {
		t.Errorf("%+v %v", stats, err)
	}
	if err := c.Delete(testContext(t)); err != nil {
		t.Fatal(err)
	}
	// Without a Main the hog dies and the machine lives.
	c = start(t, r, CreateOptions{Spec: spec})
	ctx := testContext(t)
	s, err := c.StartSession(ctx, SessionSpec{Args: hog[2:3:3]})
	if err == nil {
		s.Close()
	}
	s, err = c.StartSession(ctx, SessionSpec{Args: []string{"tail", "-c", "200000000", "/dev/zero"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if st, err := s.Wait(ctx); err != nil || st.Signal != 9 || !st.OOMKilled {
		t.Errorf("%+v %v", st, err)
	}
	if sh(t, c, "echo alive") != "alive\n" {
		t.Error("the machine died with the hog")
	}
}

func TestForkBomb(t *testing.T) {
	limit := int64(50)
	spec := testSpec()
	spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &limit}
	c := start(t, newRuntime(t), CreateOptions{Spec: spec})
	ctx := testContext(t)
	s, err := c.StartSession(ctx, SessionSpec{Args: []string{"sh", "-c", "b() { b | b & }; b; sleep 0.3; echo over"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	go io.Copy(io.Discard, s.Stderr())
	go io.Copy(io.Discard, s.Stdout())
	for range 20 {
		stats, err := c.Stats(ctx)
		if err != nil || stats.PIDs > uint64(limit) || stats.PIDsLimit != uint64(limit) {
			t.Fatalf("%+v %v", stats, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := c.Sessions(ctx); err != nil { // init answers under it
		t.Errorf("%v", err)
	}
	if err := c.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if pids := c.group.pids(); len(pids) != 0 {
		t.Errorf("left: %v", pids)
	}
}

func TestCPULimits(t *testing.T) {
	quota, period, shares := int64(20_000), uint64(100_000), uint64(512)
	spec := testSpec()
	spec.Linux.Resources.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares, Cpus: "0"}
	c := start(t, newRuntime(t), CreateOptions{Spec: spec})
	g := c.group
	if got := g.read("cpu", "cpu.cfs_quota_us", "cpu.max"); got != "20000" && got != "20000 100000" {
		t.Errorf("quota %q", got)
	}
	if got := g.read("cpu", "cpu.shares", "cpu.weight"); got != "512" && got != "20" {
		t.Errorf("shares %q", got)
	}
	if out := sh(t, c, "nproc; grep Cpus_allowed_list /proc/self/status"); out != "1\nCpus_allowed_list:\t0\n" {
		t.Errorf("%q", out)
	}
	if stats, err := c.Stats(testContext(t)); err != nil || stats.CPUNanos == 0 || stats.MemoryBytes == 0 || stats.PIDs == 0 {
		t.Errorf("%+v %v", stats, err)
	}
}

func TestNames(t *testing.T) {
	r := newRuntime(t)
	for _, id := range []string{"", "A", "-a", "a/b", "../a", ".seccomp", strings.Repeat("a", 64), "a\n"} {
		if _, err := r.Create(testContext(t), CreateOptions{ID: id, Spec: testSpec()}); err == nil {
			t.Errorf("id %q was taken", id)
		}
		if _, err := r.Load(testContext(t), id); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("load %q: %v", id, err)
		}
	}
	create(t, r, CreateOptions{ID: "twice"})
	if _, err := r.Create(testContext(t), CreateOptions{ID: "twice", Spec: testSpec()}); !errors.Is(err, ErrExists) {
		t.Errorf("%v", err)
	}
	if _, err := r.Load(testContext(t), "none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// TestControlFlood has a client that sends garbage, asks for nothing, and never reads; init must take no harm.
func TestControlFlood(t *testing.T) {
	c := start(t, newRuntime(t), CreateOptions{})
	ctx := testContext(t)
	dial := func() *net.UnixConn {
		dir, err := os.Open(c.dir)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		conn, err := dialControl(ctx, dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fds := make([]int, 200)
	for i := range fds {
		fds[i] = int(null.Fd())
	}
	for i := range 1200 {
		conn := dial()
		switch i % 6 {
		case 0: // silence
		case 1:
			conn.Write([]byte("garbage"))
		case 2:
			conn.Write(append([]byte{initproto.Version, byte(initproto.Exec)}, make([]byte, 40<<10)...))
		case 3:
			conn.WriteMsgUnix([]byte{initproto.Version, byte(initproto.Setup)}, unix.UnixRights(fds...), nil)
		case 4:
			conn.WriteMsgUnix([]byte{0}, unix.UnixRights(int(null.Fd())), nil)
		case 5:
			b, _ := (&initproto.Request{Kind: initproto.Setup, Plan: &initproto.Plan{FDs: 1}}).Encode()
			conn.WriteMsgUnix(b, unix.UnixRights(int(null.Fd())), nil)
		}
	}
	if sh(t, c, "echo alive") != "alive\n" {
		t.Fatal("init took harm")
	}
	// No descriptor of the flood is kept.
	for range 100 {
		if _, err := c.Sessions(ctx); err != nil {
			t.Fatal(err)
		}
	}
	links := 0
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.PID()))
	for _, e := range entries {
		if link, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", c.PID(), e.Name())); link == "/dev/null" {
			links++
		}
	}
	if links > 3 {
		t.Errorf("init keeps %d descriptors that were sent to it", links)
	}
}

func TestManySessions(t *testing.T) {
	c := start(t, newRuntime(t), CreateOptions{})
	ctx := testContext(t)
	for i := range 300 {
		s, err := c.StartSession(ctx, SessionSpec{Args: []string{"true"}})
		if err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		if st, err := s.Wait(ctx); err != nil || st.Code != 0 {
			t.Fatalf("%d: %+v %v", i, st, err)
		}
		s.Close()
	}
	list, err := c.Sessions(ctx)
	if err != nil || len(list) > initproto.MaxSessions {
		t.Errorf("%d sessions, %v", len(list), err)
	}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.PID()))
	if err != nil || len(entries) > 120 {
		t.Errorf("init holds %d descriptors, %v", len(entries), err)
	}
	// A command line longer than one message.
	long := strings.Repeat("x", 100_000)
	if out, _, st := run(t, c, SessionSpec{Args: []string{"sh", "-c", "echo ${#LONG}"}, Env: []string{"LONG=" + long}}); st.Code != 0 || out != "100000\n" {
		t.Errorf("%q %+v", out, st)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	c := start(t, newRuntime(t), CreateOptions{})
	sh(t, c, "for i in $(seq 50); do (sleep 0.1 &) ; done; sleep 0.4")
	out := sh(t, c, "ps | grep -c '[s]leep' || true")
	if strings.TrimSpace(out) != "0" {
		t.Errorf("%s zombies", out)
	}
}

func TestParallel(t *testing.T) {
	r, root := newRuntime(t), busyboxRoot(t)
	ctx := testContext(t)
	errs := make(chan error)
	for i := range 8 {
		go func() {
			for j := range 5 {
				id := fmt.Sprintf("p%d-%d", i, j)
				c, err := r.Create(ctx, CreateOptions{ID: id, Spec: testSpec(), DieWithParent: j%2 == 1, Main: &SessionSpec{Args: []string{"sh", "-c", fmt.Sprintf("exit %d", 10*i+j)}}})
				if err == nil {
					err = c.Start(ctx, StartOptions{Root: mountRoot(t, c, root)})
				}
				if err == nil {
					var st ExitStatus
					if st, err = c.Wait(ctx); err == nil && st != (ExitStatus{Code: 10*i + j}) {
						err = fmt.Errorf("%s: %+v", id, st)
					}
				}
				if err == nil {
					err = c.Delete(ctx)
				}
				errs <- err
			}
		}()
	}
	for range 40 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if left := r.hierarchies.siblings(testParent); len(left) != 0 {
		t.Errorf("cgroups left: %v", left)
	}
	if dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || dumpable != 1 {
		t.Errorf("this process is no longer dumpable: %d %v", dumpable, err)
	}
}

func TestHugetlbIsPassedOn(t *testing.T) {
	r := newRuntime(t)
	if r.hierarchies.control["hugetlb"] == nil {
		t.Fatal("these tests need a hugetlb controller")
	}
	spec := testSpec()
	spec.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}
	start(t, r, CreateOptions{ID: "first"}) // the parent is there, without it
	c := start(t, r, CreateOptions{ID: "second", Spec: spec})
	if got := c.group.read("hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"); got != "4194304" {
		t.Errorf("%q", got)
	}
}

// Its place in line for the OOM killer is a container's own: who made it keeps the one it had.
func TestOOMScoreIsTheContainersAlone(t *testing.T) {
	own, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	s, adj := testSpec(), 700
	s.Process.OOMScoreAdj = &adj
	c := start(t, newRuntime(t), CreateOptions{Spec: s})
	if got := sh(t, c, "cat /proc/self/oom_score_adj"); strings.TrimSpace(got) != "700" {
		t.Errorf("inside: %q", got)
	}
	now, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil || string(now) != string(own) {
		t.Errorf("ours was %q, and is %q now (%v)", own, now, err)
	}
}
