package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// native runs the programs on this machine, where what they leave stays unless it is removed: a program that fails removes
// neither its bundle nor its container.
func native(ctx context.Context, work string, runtimes []runtime, only string) (t table, err error) {
	programs, err := list(work, only)
	if err != nil {
		return nil, err
	}
	// Whoever is root in a user namespace has to come through it, hence the mode: below a directory of 0700 crun and runc fail
	// what they otherwise pass.
	bundles, err := os.MkdirTemp("", "learnos-bundles-")
	if err == nil {
		err = os.Chmod(bundles, 0o755)
	}
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(bundles)
	r := &runner{work: work, env: []string{"TMPDIR=" + bundles}, limit: time.Minute, lanes: 8}
	if _, err := os.Stat("/sys/fs/cgroup/unified"); err == nil {
		r.hide = true
	}
	for i, x := range runtimes {
		k, err := keep(work, x)
		if err != nil {
			return nil, err
		}
		r.runtimes = append(r.runtimes, k.runtime)
		defer func() { err = errors.Join(err, k.clear(r.hide && i > 0)) }()
	}
	defer removeCgroups()
	return r.run(ctx, programs), ctx.Err()
}

// kept is a runtime whose containers' state lies in a directory of ours.
type kept struct {
	runtime
	state string
}

// keep writes a script that runs a runtime with --root, which the suite has no way of asking for.
func keep(work string, r runtime) (kept, error) {
	k := kept{runtime{r.name, filepath.Join(work, "keep-"+r.name)}, filepath.Join(work, "state-"+r.name)}
	script := fmt.Sprintf("#!/bin/sh\nexec '%s' --root '%s' \"$@\"\n", r.path, k.state)
	return k, os.WriteFile(k.path, []byte(script), 0o755)
}

// clear deletes what containers there are still, running or not.
func (k kept) clear(hide bool) error {
	left, err := os.ReadDir(k.state)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, c := range left {
		if !c.IsDir() {
			continue
		}
		args := hidden(hide, k.path, "delete", "--force", c.Name())
		// Some of what is left the runtime can't read itself: its create ended half-way.
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "conformance: %s can't delete what it left, %s: %v: %s\n", k.name, c.Name(), err, out)
		}
	}
	return nil
}

// suiteCgroups are those that the suite names (runtime-tools/cgroups), the innermost first.
var suiteCgroups = []string{"testdir/cgrouptest/container", "testdir/cgrouptest", "testdir", "cgrouptest"}

// removeCgroups removes, from each hierarchy, the directories that runtimes made on the way to the suite's cgroups and leave.
// One that is in use, or has another below it, stays.
func removeCgroups() {
	hierarchies, _ := filepath.Glob("/sys/fs/cgroup/*")
	for _, h := range slices.Compact(append(hierarchies, "/sys/fs/cgroup")) {
		for _, c := range suiteCgroups {
			syscall.Rmdir(filepath.Join(h, c))
		}
	}
}
