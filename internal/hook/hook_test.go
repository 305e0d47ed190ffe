package hook

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/learnos/learnos/internal/initproto"
)

func shell(script string) *initproto.Hook {
	return &initproto.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}}
}

// A hook gets the state, its own arguments and environment and no other, and the working directory.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("OURS", "must not be seen")
	state := `{"id":"x","annotations":{"long":"` + strings.Repeat("y", 1<<20) + `"}}`
	h := shell(`cat >state; echo "$0 $1 [$THEIRS] [$OURS]" >said; pwd >>said`)
	h.Args = append(h.Args, "zero", "one")
	h.Env = []string{"THEIRS=a b", "PATH=/usr/bin:/bin"}
	if err := Run(h, state, dir); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "state")); err != nil || string(got) != state {
		t.Errorf("it read %d bytes of state, not %d: %v", len(got), len(state), err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "said"))
	if want := "zero one [a b] []\n" + dir + "\n"; err != nil || string(got) != want {
		t.Errorf("%q, want %q: %v", got, want, err)
	}
}

func TestNoArguments(t *testing.T) {
	if err := Run(&initproto.Hook{Path: "/bin/true"}, "{}", "/"); err != nil {
		t.Error(err)
	}
}

func TestFailures(t *testing.T) {
	for _, c := range []struct {
		hook *initproto.Hook
		want string
	}{
		{shell("exit 3"), "hook /bin/sh: exit status 3"},
		{shell("echo out; echo no luck >&2; echo >&2; exit 4"), "hook /bin/sh: exit status 4: no luck"},
		{shell("kill -9 $$"), "hook /bin/sh: killed by signal 9"},
		{&initproto.Hook{Path: "/no/such/hook"}, "hook /no/such/hook: start: no such file or directory"},
		{&initproto.Hook{Path: "/etc/passwd"}, "hook /etc/passwd: start: permission denied"},
	} {
		err := Run(c.hook, "{}", "/")
		var failed *Error
		if !errors.As(err, &failed) || failed.Path != c.hook.Path || err.Error() != c.want {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}

// However much it complains, it doesn't hang for want of a reader, and only the start is kept.
func TestEndlessComplaint(t *testing.T) {
	err := Run(shell("head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 1"), "{}", "/")
	if err == nil || len(err.Error()) > maxComplaint+100 || !strings.Contains(err.Error(), "exit status 1: xxx") {
		t.Errorf("%.100v", err)
	}
}

// One that takes too long is killed with everything it started, and what it had said is told.
func TestTimeout(t *testing.T) {
	dir := t.TempDir()
	h := shell("echo waiting >&2; sleep 1000 & echo $! >child; wait")
	h.Seconds = 1
	began := time.Now()
	err := Run(h, "{}", dir)
	if err == nil || err.Error() != "hook /bin/sh: not done within 1 s, killed: waiting" {
		t.Errorf("%v", err)
	}
	if d := time.Since(began); d < time.Second {
		t.Errorf("given up after %s", d)
	}
	text, err := os.ReadFile(filepath.Join(dir, "child"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	syscall.Kill(pid, syscall.SIGKILL)
	t.Error("what it started lives on")
}

// What a hook leaves in the background, its standard error still open, is not waited for.
func TestBackground(t *testing.T) {
	dir := t.TempDir()
	done := make(chan error, 1)
	go func() { done <- Run(shell("sleep 1000 & echo $! >child"), "{}", dir) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it waits for a process in the background")
	}
	if text, err := os.ReadFile(filepath.Join(dir, "child")); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
