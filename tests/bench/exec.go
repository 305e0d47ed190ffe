package main

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/learnos/learnos/runtime"
)

// execTrue is one more process in a container that runs.
func execTrue(ctx context.Context, b *bench) (all []*Measure, err error) {
	root, err := b.rootfs()
	if err != nil {
		return nil, err
	}
	base, err := spec(root, false, "/bin/sleep", "3600")
	if err != nil {
		return nil, err
	}
	m := &Measure{Name: "exec", Title: "`exec` of `true` in a running container", Unit: "ms",
		About: "`lrun exec ID true`, likewise the others, until the command has exited; and a session that the environment's init " +
			"starts for the agent, until its exit status is known."}
	id := b.tag + "-exec"
	var contenders []contender
	for _, r := range b.ociRuntimes() {
		if r.missing != nil {
			contenders = append(contenders, absent(r.name, r.missing))
			continue
		}
		s := *base
		linux := *base.Linux
		s.Linux = &linux
		s.Linux.CgroupsPath = "/" + b.tag + "/exec-" + r.name
		dir, err := b.bundle("exec-"+r.name, &s)
		if err != nil {
			return nil, err
		}
		if _, err := command(ctx, r.argv("run", "--detach", "--bundle", dir, id)...); err != nil {
			contenders = append(contenders, absent(r.name, err))
			continue
		}
		defer func() {
			// Not with ctx, which may be what ended.
			if _, derr := command(context.Background(), r.argv("delete", "--force", id)...); derr != nil {
				err = errors.Join(err, derr)
			}
		}()
		contenders = append(contenders, contender{who: r.name, ours: r.name == lrun, once: func(ctx context.Context, i int) (sample, error) {
			return command(ctx, r.argv("exec", id, "/bin/true")...)
		}})
	}
	parent := b.tag + "-exec"
	if err := b.ownGroup(parent); err != nil {
		return nil, err
	}
	rt, err := runtime.Open(runtime.Options{StateDir: filepath.Join("/run", parent), CgroupParent: parent})
	if err != nil {
		return nil, err
	}
	c, err := rt.Create(ctx, runtime.CreateOptions{ID: "c", Spec: base})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Delete(context.Background()), rt.Retire()) }()
	if err := c.Start(ctx, runtime.StartOptions{}); err != nil {
		return nil, err
	}
	const session = "session started by init"
	contenders = append(contenders, contender{who: session, ours: true, once: func(ctx context.Context, i int) (sample, error) {
		start := time.Now()
		s, err := c.StartSession(ctx, runtime.SessionSpec{Args: []string{"/bin/true"}})
		if err != nil {
			return sample{}, err
		}
		_, err = s.Wait(ctx)
		took := time.Since(start)
		return sample{wall: took}, errors.Join(err, s.Close())
	}}, contender{who: "fork + exec alone", once: func(ctx context.Context, i int) (sample, error) {
		return command(ctx, filepath.Join(root, "bin/true"))
	}})
	m.Rows = b.race(ctx, m.Name, b.runs(300, 50), contenders)
	m.Targets = []Target{
		{Of: "lrun", Over: "crun", Stat: "median", Bound: 1},
		{Of: session, Stat: "median", Bound: 1},
	}
	return []*Measure{m}, nil
}
