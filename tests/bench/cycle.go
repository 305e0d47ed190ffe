package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/runtime"
)

const (
	lrun     = "lrun"
	resident = "package runtime, resident"
)

// ociRuntime is a command with the surface of runc.
type ociRuntime struct {
	name, path string
	missing    error
	root       string // --root
}

func (b *bench) ociRuntimes() []ociRuntime {
	var all []ociRuntime
	for _, name := range []string{lrun, "crun", "runc"} {
		r := ociRuntime{name: name, root: "/run/" + b.tag + "-" + name}
		if name == lrun {
			r.path = filepath.Join(b.bin, name)
		} else {
			r.path, r.missing = program(name)
		}
		all = append(all, r)
	}
	return all
}

func (r *ociRuntime) argv(args ...string) []string {
	return append([]string{r.path, "--root", r.root}, args...)
}

// cycle is the OCI life cycle of `true`.
func cycle(ctx context.Context, b *bench) ([]*Measure, error) {
	root, err := b.rootfs()
	if err != nil {
		return nil, err
	}
	var all []*Measure
	for _, v := range []struct {
		name, title, about string
		users, seccomp     bool
	}{
		{"cycle", "One OCI cycle of `true`", "All namespaces but the user namespace, as engines ask for by default; moby's seccomp " +
			"profile and capabilities, a cgroup with limits, masked paths.", false, true},
		{"cycle-userns", "One OCI cycle of `true` in a user namespace", "The same with a user namespace besides.", true, true},
		{"cycle-plain", "One OCI cycle of `true` without seccomp", "The same as the first without a seccomp profile, which costs some " +
			"runtimes more than all else.", false, false},
	} {
		base, err := spec(root, v.users, "/bin/true")
		if err != nil {
			return all, err
		}
		if !v.seccomp {
			base.Linux.Seccomp = nil
		}
		m, err := b.wholeCycle(ctx, v.name, root, base, v.name == "cycle")
		if err != nil {
			return all, err
		}
		m.Title, m.About = v.title, "`run`, until the command has ended: create, start, wait, delete. "+v.about
		all = append(all, m)
		if v.name != "cycle" {
			continue
		}
		if m, err = b.stepCycle(ctx, v.name+"-steps", base); err != nil {
			return all, err
		}
		all = append(all, m)
	}
	return all, nil
}

// give writes a bundle for one runtime, with a cgroup of its own.
func (b *bench) give(r ociRuntime, name string, base *specs.Spec) (string, error) {
	s, linux := *base, *base.Linux
	s.Linux = &linux
	s.Linux.CgroupsPath = "/" + b.tag + "/" + name + "-" + r.name
	return b.bundle(name+"-"+r.name, &s)
}

// wholeCycle is `run`; floors says whether to show what it can't be below.
func (b *bench) wholeCycle(ctx context.Context, name, root string, base *specs.Spec, floors bool) (*Measure, error) {
	var contenders []contender
	for _, r := range b.ociRuntimes() {
		if r.missing != nil {
			contenders = append(contenders, absent(r.name, r.missing))
			continue
		}
		dir, err := b.give(r, name, base)
		if err != nil {
			return nil, err
		}
		contenders = append(contenders, contender{who: r.name, ours: r.name == lrun, once: func(ctx context.Context, i int) (sample, error) {
			return command(ctx, r.argv("run", "--bundle", dir, fmt.Sprintf("%s-%s-%d", b.tag, name, i))...)
		}})
	}
	once, done, err := b.residentCycle(base, name)
	if err != nil {
		return nil, err
	}
	defer done()
	contenders = append(contenders, contender{who: resident, ours: true, once: once})
	if floors {
		contenders = append(contenders, bubblewrap(root),
			contender{who: "fork + exec alone", once: func(ctx context.Context, i int) (sample, error) {
				return command(ctx, filepath.Join(root, "bin/true"))
			}},
			contender{who: "lrun --version: what starting the program costs", detail: true, once: func(ctx context.Context, i int) (sample, error) {
				return command(ctx, filepath.Join(b.bin, "lrun"), "--version")
			}})
	}
	return &Measure{Name: name, Unit: "ms", Rows: b.race(ctx, name, b.runs(200, 25), contenders), Targets: []Target{
		{Of: "lrun", Over: "crun", Stat: "median", Bound: 0.6},
		{Of: "lrun", Over: "runc", Stat: "median", Bound: 0.25},
		{Of: resident, Over: "lrun", Stat: "median", Bound: 0.5},
	}}, nil
}

// bubblewrap makes the namespaces, but neither a cgroup nor a seccomp filter.
func bubblewrap(root string) contender {
	path, err := program("bwrap")
	if err != nil {
		return absent("bubblewrap", err)
	}
	return contender{who: "bubblewrap", once: func(ctx context.Context, i int) (sample, error) {
		return command(ctx, path, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup",
			"--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev", "/bin/true")
	}}
}

// stepCycle is what an engine does.
func (b *bench) stepCycle(ctx context.Context, name string, base *specs.Spec) (*Measure, error) {
	var contenders []contender
	for _, r := range b.ociRuntimes() {
		if r.missing != nil {
			contenders = append(contenders, absent(r.name, r.missing))
			continue
		}
		dir, err := b.give(r, name, base)
		if err != nil {
			return nil, err
		}
		contenders = append(contenders, r.stepByStep(b, name, dir))
	}
	return &Measure{Name: name, Title: "The same cycle in steps, as an engine takes them", Unit: "ms",
		About: "`create`, `start`, waiting for the process, `delete`: three commands. Indented rows are its steps.",
		Rows:  b.race(ctx, name, b.runs(200, 25), contenders), Targets: []Target{
			{Of: "lrun", Over: "crun", Stat: "median", Bound: 0.6},
			{Of: "lrun", Over: "runc", Stat: "median", Bound: 0.25},
		}}, nil
}

// stepByStep is create, start and delete as commands.
func (r ociRuntime) stepByStep(b *bench, name, bundle string) contender {
	pidFile := filepath.Join(b.work, r.name+".pid")
	once := func(ctx context.Context, i int) (sum sample, err error) {
		id := fmt.Sprintf("%s-%s-%d", b.tag, name, i)
		var steps [3]sample
		if steps[0], err = command(ctx, r.argv("create", "--bundle", bundle, "--pid-file", pidFile, id)...); err != nil {
			return sum, err
		}
		body, err := os.ReadFile(pidFile)
		if err != nil {
			return sum, err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(body)))
		if err != nil {
			return sum, fmt.Errorf("%s: %w", pidFile, err)
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return sum, fmt.Errorf("pidfd_open: %w", err)
		}
		defer unix.Close(fd)
		if steps[1], err = command(ctx, r.argv("start", id)...); err != nil {
			return sum, err
		}
		began := time.Now()
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); err != nil && err != unix.EINTR {
			return sum, fmt.Errorf("wait for the process: %w", err)
		}
		sum.wall = time.Since(began)
		if steps[2], err = command(ctx, r.argv("delete", "--force", id)...); err != nil {
			return sum, err
		}
		for i, step := range []string{"create", "start", "delete"} {
			s := steps[i]
			sum.detail(step, s)
			sum.wall, sum.user, sum.system = sum.wall+s.wall, sum.user+s.user, sum.system+s.system
		}
		return sum, nil
	}
	return contender{who: r.name, ours: r.name == lrun, once: once}
}

// residentCycle is the same in a process that is there already.
func (b *bench) residentCycle(base *specs.Spec, name string) (once func(context.Context, int) (sample, error), done func(), err error) {
	parent := b.tag + "-" + name
	if err := b.ownGroup(parent); err != nil {
		return nil, nil, err
	}
	rt, err := runtime.Open(runtime.Options{StateDir: filepath.Join("/run", parent), CgroupParent: parent})
	if err != nil {
		return nil, nil, err
	}
	once = func(ctx context.Context, i int) (s sample, err error) {
		start := time.Now()
		c, err := rt.Create(ctx, runtime.CreateOptions{ID: fmt.Sprintf("c%d", i), Spec: base, Main: &runtime.SessionSpec{Args: []string{"/bin/true"}}})
		if err != nil {
			return s, err
		}
		err = c.Start(ctx, runtime.StartOptions{})
		if err == nil {
			_, err = c.Wait(ctx)
		}
		if derr := c.Delete(ctx); err == nil {
			err = derr
		}
		return sample{wall: time.Since(start)}, err
	}
	return once, func() { _ = rt.Retire() }, nil
}
