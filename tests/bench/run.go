package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/learnos/learnos/nodeagent"
)

// node is the root directory of a node of our own, for the nodeagent command and for its package.
func (b *bench) node() (string, error) {
	if b.nodeRoot != "" {
		return b.nodeRoot, nil
	}
	root := filepath.Join(b.work, "node")
	n, err := nodeagent.Open(root, nodeagent.Options{})
	if err != nil {
		return "", err
	}
	if err := b.ownGroup(n.CgroupParent()); err != nil {
		return "", err
	}
	b.nodeRoot = root
	return root, nil
}

func (b *bench) nodeagent(args ...string) []string {
	return append([]string{filepath.Join(b.bin, "nodeagent"), "--root", b.nodeRoot}, args...)
}

const (
	ourRun    = "nodeagent run, bridge and NAT"
	dockerRun = "docker run, bridge"
	podmanRun = "podman run, bridge"
)

// runners run `true` in a fresh environment of the busybox image, by everybody's command.
func (b *bench) runners(ctx context.Context, bridgeOnly bool) ([]contender, error) {
	ref, err := b.busyboxImage(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := b.node(); err != nil {
		return nil, err
	}
	if _, err := output(ctx, b.nodeagent("image", "pull", "--insecure", ref)...); err != nil {
		return nil, err
	}
	var all []contender
	add := func(who string, argv []string) {
		all = append(all, contender{who: who, ours: strings.HasPrefix(who, "nodeagent"), once: func(ctx context.Context, _ int) (sample, error) { return command(ctx, argv...) }})
	}
	add(ourRun, b.nodeagent("run", "--rm", ref, "true"))
	if !bridgeOnly {
		add("nodeagent run, no network", b.nodeagent("run", "--rm", "--net", "none", ref, "true"))
	}
	d, err := b.docker(ctx)
	if err == nil {
		_, err = output(ctx, d.argv("pull", "--quiet", ref)...)
	}
	if err != nil {
		all = append(all, absent(dockerRun, err))
	} else {
		add(dockerRun, d.argv("run", "--rm", ref, "true"))
		if !bridgeOnly {
			add("docker run, no network", d.argv("run", "--rm", "--network", "none", ref, "true"))
		}
	}
	p, err := b.podman()
	if err == nil {
		err = p.pull(ctx, ref)
	}
	if err != nil {
		return append(all, absent(podmanRun, err)), nil
	}
	add(podmanRun, p.run("--network", "bridge", ref, "true"))
	if !bridgeOnly {
		add("podman run, no network", p.run("--network", "none", ref, "true"))
	}
	return all, nil
}

// runRemove is the command that people type.
func runRemove(ctx context.Context, b *bench) ([]*Measure, error) {
	contenders, err := b.runners(ctx, false)
	if err != nil {
		return nil, err
	}
	m := &Measure{Name: "run", Title: "`run --rm busybox true`, the command that people type", Unit: "ms",
		About: "Image present, until the command has ended and everything is removed. Docker's daemon is running; podman and " +
			"nodeagent have none.",
		Rows:    b.race(ctx, "run", b.runs(30, 5), contenders),
		Targets: []Target{{Of: ourRun, Over: dockerRun, Stat: "median", Bound: 0.1}}}
	return []*Measure{m}, nil
}

// bursts are creates and deletes, several at once.
func bursts(ctx context.Context, b *bench) ([]*Measure, error) {
	const atOnce = 8
	n := b.runs(50, 16)
	contenders, err := b.runners(ctx, true)
	if err != nil {
		return nil, err
	}
	inside, err := b.residentNode(ctx)
	if err != nil {
		return nil, err
	}
	contenders = append([]contender{{who: "agent, resident", ours: true, once: inside}}, contenders...)
	m := &Measure{Name: "burst", Title: fmt.Sprintf("%d creates and deletes, %d at once", n, atOnce), Unit: "containers/s",
		About: "`run --rm busybox true` with a bridge network by everybody's command, and the same asked of a running agent's Go API.",
		Rows:  rates(b.race(ctx, "burst", b.runs(3, 1), crowds(contenders, n, atOnce)), n)}
	root, err := b.rootfs()
	if err != nil {
		return nil, err
	}
	base, err := spec(root, false, "/bin/true")
	if err != nil {
		return nil, err
	}
	var cycles []contender
	for _, r := range b.ociRuntimes() {
		if r.missing != nil {
			cycles = append(cycles, absent(r.name, r.missing))
			continue
		}
		bundles := make([]string, n) // each has its own cgroup
		for i := range bundles {
			if bundles[i], err = b.give(r, fmt.Sprintf("burst-%d", i), base); err != nil {
				return nil, err
			}
		}
		cycles = append(cycles, contender{who: r.name, ours: r.name == lrun, once: func(ctx context.Context, i int) (sample, error) {
			return command(ctx, r.argv("run", "--bundle", bundles[i], fmt.Sprintf("%s-burst-%d", b.tag, i))...)
		}})
	}
	o := &Measure{Name: "burst-oci", Title: fmt.Sprintf("%d OCI cycles, %d at once", n, atOnce), Unit: "containers/s",
		About: "`lrun run` of `true`, and the others.", Rows: rates(b.race(ctx, "burst-oci", b.runs(5, 1), crowds(cycles, n, atOnce)), n)}
	return []*Measure{m, o}, nil
}

// crowds makes each run of a contender n runs, so many at once.
func crowds(contenders []contender, n, atOnce int) []contender {
	var all []contender
	for _, c := range contenders {
		one := c.once
		c.once = func(ctx context.Context, _ int) (sum sample, err error) {
			var mu sync.Mutex
			start := time.Now()
			err = crowd(ctx, n, atOnce, func(ctx context.Context, i int) error {
				s, err := one(ctx, i)
				mu.Lock()
				defer mu.Unlock()
				sum.user, sum.system = sum.user+s.user, sum.system+s.system
				return err
			})
			sum.wall = time.Since(start)
			return sum, err
		}
		all = append(all, c)
	}
	return all
}

// rates makes of the time for n things how many there were in a second, and of the processor's what each cost.
func rates(all []Row, n int) []Row {
	for i := range all {
		r := &all[i]
		if r.Missing != "" {
			continue
		}
		perSecond := func(ms float64) float64 { return float64(n) * 1000 / ms }
		r.Min, r.Median, r.P99 = perSecond(r.P99), perSecond(r.Median), perSecond(r.Min)
		r.User, r.System = r.User/float64(n), r.System/float64(n)
	}
	return all
}
