package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// tries is how often a program runs with a runtime where the first fails what another passes.
const tries = 3

// runner runs programs with every runtime.
type runner struct {
	work     string
	env      []string // of programs, besides this one's
	runtimes []runtime
	limit    time.Duration // for one run of one program
	lanes    int           // programs at a time
	version2 bool          // the machine has the unified hierarchy alone
	hide     bool          // take the unified hierarchy of a hybrid machine away from all but the first
}

// outcome is how a program ended with a runtime.
type outcome struct {
	Why    string // it failed; "" where it passed
	Output string
}

// table holds outcomes by program and runtime.
type table map[string]map[string]outcome

type task struct {
	program string
	runtime int
}

// run runs them all, and those again that the verdict hangs on.
func (r *runner) run(ctx context.Context, programs []string) table {
	t := table{}
	var all []task
	for _, p := range programs {
		t[p] = map[string]outcome{}
		for i := range r.runtimes {
			if r.version2 && onlyVersion1(p) {
				t[p][r.runtimes[i].name] = outcome{Why: "not run: the suite reads cgroup v1 only"}
				continue
			}
			all = append(all, task{p, i})
		}
	}
	of := func(x task) outcome { return t[x.program][r.runtimes[x.runtime].name] }
	r.round(ctx, all, func(x task, o outcome) { t[x.program][r.runtimes[x.runtime].name] = o })
	for range tries - 1 {
		var again []task
		for _, x := range all {
			behind := false
			for i := range r.runtimes[1:] {
				behind = behind || of(task{x.program, i + 1}).Why == "" && of(task{x.program, 0}).Why != ""
			}
			if behind && (x.runtime == 0 || of(x).Why == "") {
				again = append(again, x)
			}
		}
		r.round(ctx, again, func(x task, o outcome) {
			if x.runtime > 0 && o.Why != "" {
				o.Why = "not every time: " + o.Why
			}
			t[x.program][r.runtimes[x.runtime].name] = o
		})
	}
	return t
}

// onlyVersion1 says that a program looks for the limits that it has set where cgroup v1 has them: its library
// (runtime-tools/cgroups/cgroups_v2.go) answers "unimplemented yet" to all that v2 is asked.
func onlyVersion1(program string) bool {
	return strings.HasPrefix(program, "linux_cgroups_") || program == "delete_resources"
}

// round runs each task once, several at a time, and hands on the outcomes one by one.
func (r *runner) round(ctx context.Context, tasks []task, done func(task, outcome)) {
	var apart []task // one after the other: programs about cgroups all use the same one
	together := make(chan task, len(tasks))
	for _, x := range tasks {
		if strings.Contains(x.program, "cgroups") || strings.Contains(x.program, "resources") {
			apart = append(apart, x)
		} else {
			together <- x
		}
	}
	close(together)
	var mu sync.Mutex
	run := func(x task) {
		o := r.one(ctx, x)
		mu.Lock()
		defer mu.Unlock()
		done(x, o)
	}
	var lanes sync.WaitGroup
	lanes.Go(func() {
		for _, x := range apart {
			run(x)
		}
	})
	for range r.lanes {
		lanes.Go(func() {
			for x := range together {
				run(x)
			}
		})
	}
	lanes.Wait()
}

// hideHybrid runs what follows without the unified hierarchy of a hybrid machine, with which crun and runc can't deal.
const hideHybrid = `if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec "$@"`

// hidden is the command that hides the hierarchy from another, if it is to.
func hidden(hide bool, args ...string) []string {
	if !hide {
		return args
	}
	return append([]string{"unshare", "-m", "--propagation", "private", "sh", "-c", hideHybrid, "sh"}, args...)
}

// one runs one program with one runtime.
func (r *runner) one(ctx context.Context, x task) outcome {
	ctx, cancel := context.WithTimeout(ctx, r.limit)
	defer cancel()
	args := hidden(r.hide && x.runtime > 0, filepath.Join(r.work, "bin", x.program))
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = r.work
	cmd.Env = append(append(os.Environ(), r.env...), "RUNTIME="+r.runtimes[x.runtime].path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	o := outcome{Output: stdout.String() + stderr.String()}
	switch {
	case ctx.Err() != nil:
		o.Why = fmt.Sprintf("not done within %s", r.limit)
	case err != nil && stdout.Len() == 0:
		o.Why = err.Error()
	default:
		if o.Why = judge(x.program, stdout.String()); o.Why == "" && err != nil {
			o.Why = err.Error()
		}
	}
	return o
}
