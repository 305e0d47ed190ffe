package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/learnos/learnos/nodeagent"
)

// template is a root with the busybox image, made once and copied for each script.
var template string

type suite struct{ m *testing.M }

// Run is called in the test process only, not in the processes that scripts start as `nodeagent`.
func (s suite) Run() int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make environments: run them as root")
		return 1
	}
	dir, err := os.MkdirTemp("", "nodeagent-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	template = filepath.Join(dir, "root")
	a := &app{stdin: os.Stdin, stdout: os.Stderr, stderr: os.Stderr}
	if code := a.main([]string{"--root", template, "image", "build", "busybox"}); code != 0 {
		fmt.Fprintln(os.Stderr, "build the busybox image: exit status", code)
		return 1
	}
	defer func() {
		if err := mustOpen(template).Destroy(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "take the node away:", err)
		}
	}()
	return s.m.Run()
}

func TestMain(m *testing.M) {
	testscript.Main(suite{m}, map[string]func(){"nodeagent": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		WorkdirRoot:         t.TempDir(), // which goes with the test, also where it ends early
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			root := filepath.Join(e.WorkDir, "root")
			if out, err := exec.Command("cp", "-a", template, root).CombinedOutput(); err != nil {
				return fmt.Errorf("copy the template: %w: %s", err, out)
			}
			e.Setenv("LEARNOS_ROOT", root)
			e.Setenv("PARENT", mustOpen(root).CgroupParent())
			e.Defer(func() { destroy(t, root) })
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": cmdStatus, "eventually": cmdEventually, "nothingleft": cmdNothingLeft, "freeport": cmdFreePort,
		},
	})
}

func mustOpen(root string) *nodeagent.Node {
	n, err := nodeagent.Open(root, nodeagent.Options{})
	if err != nil {
		panic(err)
	}
	return n
}

func destroy(t *testing.T, root string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := mustOpen(root).Destroy(ctx); err != nil {
		t.Errorf("destroy %s: %v", root, err)
	}
}

// cmdStatus runs a program and wants an exit status: status N program args…
func cmdStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N program [arg…]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// cmdEventually repeats a program until it succeeds: eventually program args…
func cmdEventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: eventually program [arg…]")
	}
	var err error
	for range 300 {
		if err = ts.Exec(args[0], args[1:]...); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	ts.Fatalf("never succeeded: %v", err)
}

// cmdNothingLeft wants that no environment, process, cgroup, veth, disk or id range of this root is there.
func cmdNothingLeft(ts *testscript.TestScript, neg bool, args []string) {
	root, parent := ts.Getenv("LEARNOS_ROOT"), ts.Getenv("PARENT")
	var found []string
	look := func(pattern string) {
		matches, err := filepath.Glob(pattern)
		ts.Check(err)
		found = append(found, matches...)
	}
	for range 50 { // links go with their namespace, which the kernel clears in its own time
		found = nil
		look(filepath.Join(root, "envs", "*"))
		look(filepath.Join("/run/learnos", parent, "[a-z0-9]*"))
		look(filepath.Join(root, "names", "*"))
		look(filepath.Join(root, "snapshots", "*"))
		look("/sys/fs/cgroup/*/" + parent + "/*/cgroup.procs")
		look("/sys/fs/cgroup/" + parent + "/*/cgroup.procs")
		look("/sys/class/net/" + parent + "/brif/*")
		ranges, _ := filepath.Glob("/run/learnos/ids/*")
		for _, r := range ranges {
			if body, err := os.ReadFile(r); err == nil && strings.Contains(string(body), strconv.Quote(root)) {
				found = append(found, r)
			}
		}
		loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
		for _, l := range loops {
			if body, err := os.ReadFile(l); err == nil && strings.HasPrefix(string(body), root+"/") {
				found = append(found, l)
			}
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		ts.Check(err)
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, root) {
				found = append(found, line)
			}
		}
		if len(found) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	ts.Fatalf("left over:\n%s", strings.Join(found, "\n"))
}

// cmdFreePort puts a TCP port that nobody listens on into a variable: freeport NAME
func cmdFreePort(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: freeport NAME")
	}
	port, err := freePort()
	ts.Check(err)
	ts.Setenv(args[0], strconv.Itoa(port))
}
