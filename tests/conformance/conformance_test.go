package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// No program that crun or runc passes does lrun fail, neither on this machine nor in the cgroup v2 guest.
func TestConformance(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "conformance") // static, whatever this test is: it is the guest's PID 1, too
	if err := goBuild(t.Context(), ".", []string{"CGO_ENABLED=0"}, "-o", binary, "."); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary)
	cmd.Dir = "../.."
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		program, tap string
		pass         bool
	}{
		{"x", "TAP version 13\nok 1 - a\n  ---\n  {\n    \"error\": \"as expected\"\n  }\n  ...\n1..1\n", true},
		{"x", "TAP version 13\n1..0\nok 1\n1..1\n", true},
		{"x", "TAP version 13\n1..0\n", true},
		{"x", "TAP version 13\nnot ok 1 - a\n1..1\n", false},
		{"x", "TAP version 13\nok 1\n", false},
		{"x", "TAP version 13\nok 1\n1..2\n", false},
		{"x", "TAP version 13\nBail out! no\n1..0\n", false},
		{"x", "TAP version 13\n  ---\n  {\n    \"error\": \"of nothing\"\n  }\n  ...\n1..0\n", false},
		{"x", "", false},
		{"process_rlimits_fail", "", true},
		{"process_rlimits_fail", "TAP version 13\nok 1\n", false},
	} {
		if why := judge(c.program, c.tap); (why == "") != c.pass {
			t.Errorf("%s, %q: %q", c.program, c.tap, why)
		}
	}
}

// Only a difference that can be repeated counts against the first runtime.
func TestVerdict(t *testing.T) {
	work := t.TempDir()
	if err := os.Mkdir(filepath.Join(work, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	const pass, fail = "echo ok 1; echo 1..1\n", "echo not ok 1; echo 1..1\n"
	once := `if mkdir $0.$RUNTIME 2>/dev/null; then first=1; else first=; fi` + "\n"
	for name, script := range map[string]string{
		"all_pass":         pass,
		"all_fail":         fail,
		"ours_fails":       `if [ $RUNTIME = ours ]; then ` + "\n" + fail + "else\n" + pass + "fi\n",
		"theirs_fails":     `if [ $RUNTIME != ours ]; then ` + "\n" + fail + "else\n" + pass + "fi\n",
		"ours_races":       once + `if [ $RUNTIME = ours -a "$first" ]; then` + "\n" + fail + "else\n" + pass + "fi\n",
		"theirs_was_lucky": once + `if [ $RUNTIME = ours -o ! "$first" ]; then` + "\n" + fail + "else\n" + pass + "fi\n",
		"exits_badly":      pass + "test $RUNTIME != ours\n",
	} {
		if err := os.WriteFile(filepath.Join(work, "bin", name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	programs, err := list(work, "")
	if err != nil {
		t.Fatal(err)
	}
	runtimes := []runtime{{"ours", "ours"}, {"a", "a"}, {"b", "b"}}
	r := &runner{work: work, runtimes: runtimes, limit: time.Minute, lanes: 2}
	var out bytes.Buffer
	behind := r.run(t.Context(), programs).print(&out, runtimes, false)
	if want := []string{"exits_badly", "ours_fails"}; !slices.Equal(behind, want) {
		t.Errorf("behind in %v, want %v\n%s", behind, want, &out)
	}
}
