package main

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/learnos/learnos/runtime"
)

const session = "session started by init"

// execTrue is one more process in a container that runs.
func execTrue(ctx context.Context, b *bench) ([]*Measure, error) {
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
			"starts for the agent, until its exit status is known. The container has moby's seccomp profile.",
		Targets: []Target{
			{Of: lrun, Over: "crun", Stat: "median", Bound: 1},
			{Of: session, Stat: "median", Bound: 1},
		}}
	if err := b.execIn(ctx, m, root, base); err != nil {
		return nil, err
	}
	base.Linux.Seccomp = nil
	plain := &Measure{Name: "exec-plain", Title: "The same without seccomp", Unit: "ms",
		About:   "Nobody has to compile or load a seccomp filter for the new process.",
		Targets: slices.Clone(m.Targets[:1])}
	if err := b.execIn(ctx, plain, root, base); err != nil {
		return []*Measure{m}, err
	}
	return []*Measure{m, plain}, nil
}

// execIn fills in a measure's rows.
func (b *bench) execIn(ctx context.Context, m *Measure, root string, base *specs.Spec) (err error) {
	id := b.tag + "-" + m.Name
	var contenders []contender
	for _, r := range b.ociRuntimes() {
		if r.missing != nil {
			contenders = append(contenders, absent(r.name, r.missing))
			continue
		}
		dir, err := b.give(r, m.Name, base)
		if err != nil {
			return err
		}
		if _, err := command(ctx, r.argv("run", "--detach", "--bundle", dir, id)...); err != nil {
			contenders = append(contenders, absent(r.name, err))
			continue
		}
		defer func() {
			// Not with ctx, which may be what ended.
			if _, derr := command(context.WithoutCancel(ctx), r.argv("delete", "--force", id)...); derr != nil {
				say("%s: %v", m.Name, derr) // it goes with our namespaces
			}
		}()
		contenders = append(contenders, contender{who: r.name, ours: r.name == lrun, once: func(ctx context.Context, i int) (sample, error) {
			return command(ctx, r.argv("exec", id, "/bin/true")...)
		}})
	}
	if err := b.ownGroup(id); err != nil {
		return err
	}
	rt, err := runtime.Open(runtime.Options{StateDir: filepath.Join("/run", id), CgroupParent: id})
	if err != nil {
		return err
	}
	c, err := rt.Create(ctx, runtime.CreateOptions{ID: "c", Spec: base})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Delete(context.WithoutCancel(ctx)), rt.Retire()) }()
	if err := c.Start(ctx, runtime.StartOptions{}); err != nil {
		return err
	}
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
	m.Rows = b.race(ctx, m.Name, b.runs(200, 40), contenders)
	return nil
}
