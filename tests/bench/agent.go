package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/learnos/learnos/nodeagent"
	"github.com/learnos/learnos/tests/platform"
)

const (
	cold = "cold"
	warm = "from the warm pool"
)

// agent is what a create takes inside a running agent.
func agent(ctx context.Context, b *bench) ([]*Measure, error) {
	m := &Measure{Name: "agent", Title: "Inside the agent: request to running, with its network", Unit: "ms",
		About: "By the node's own clock, from the job it has claimed to an environment that runs, image cached, bridge and NAT. Asked for " +
			"one at a time through the whole platform. Indented rows are the stages, some of which go side by side.",
		Targets: []Target{
			{Of: cold, Stat: "median", Bound: 6}, {Of: cold, Stat: "p99", Bound: 20},
			{Of: warm, Stat: "median", Bound: 2},
		}}
	n := b.runs(200, 30)
	for _, kind := range []struct{ who, spares string }{{cold, "0"}, {warm, "8"}} {
		rows, err := b.agentSeries(ctx, kind.who, kind.spares, n)
		m.Rows = append(m.Rows, rows...)
		if err != nil {
			return []*Measure{m}, err
		}
	}
	return []*Measure{m}, nil
}

// agentSeries creates n environments on a node that keeps so many spares.
func (b *bench) agentSeries(ctx context.Context, who, spares string, n int) (all []Row, err error) {
	p, c, err := b.platform(ctx, "agent-"+spares, map[string]string{"LEARNOS_NODE_SPARES": spares})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	w, err := c.Watch(ctx)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	var samples []sample
	told, end := time.Now(), time.Now().Add(b.patience())
	for i := range n + 5 {
		if i > 5+fewest && time.Now().After(end) {
			break
		}
		s, fromPool, err := agentCreate(ctx, c, w)
		if err != nil {
			return nil, fmt.Errorf("create: %w\n%s", err, p.Logs())
		}
		// The first ones build the image, make the bridge, and tell the pool what is wanted.
		if i >= 5 && fromPool == (who == warm) {
			samples = append(samples, s)
		}
		if time.Since(told) > 2*time.Second {
			say("agent, %s: create %d of %d", who, i, n)
			told = time.Now()
		}
		if who != warm {
			continue
		}
		select { // the pool fills up between requests, not while one is served
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	if len(samples) == 0 {
		return []Row{{Who: who, Missing: "no environment came that way"}}, nil
	}
	all = rows(who, samples)
	all[0].Ours = true
	return all, nil
}

// agentCreate creates an environment and deletes it.
func agentCreate(ctx context.Context, c *platform.Client, w *platform.Watch) (s sample, fromPool bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	start := time.Now()
	env, err := c.Create(ctx, "busybox")
	if err != nil {
		return s, false, err
	}
	env, err = w.Until(ctx, env.ID, "running")
	if err != nil {
		return s, false, err
	}
	seen := time.Since(start)
	for _, stage := range slices.Sorted(maps.Keys(env.Timings)) {
		took := time.Duration(env.Timings[stage]) * time.Microsecond
		switch stage {
		case "total":
			s.wall = took
		case "spare":
			fromPool = true
		default:
			s.detail(stage, sample{wall: took})
		}
	}
	s.detail("HTTP request → running, seen by the client", sample{wall: seen})
	if err := c.Do(ctx, "DELETE", "/environments/"+env.ID, nil, nil); err != nil {
		return s, fromPool, err
	}
	_, err = w.Until(ctx, env.ID, "deleted")
	return s, fromPool, err
}

// residentNode creates and deletes an environment with its network in this process, as a daemon does.
func (b *bench) residentNode(ctx context.Context) (func(context.Context, int) (sample, error), error) {
	root, err := b.node()
	if err != nil {
		return nil, err
	}
	ref, err := b.busyboxImage(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := output(ctx, b.nodeagent("image", "pull", "--insecure", ref)...); err != nil {
		return nil, err
	}
	n, err := nodeagent.Open(root, nodeagent.Options{})
	if err != nil {
		return nil, err
	}
	img, err := n.Images().Image(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return func(ctx context.Context, _ int) (s sample, err error) {
		start := time.Now()
		e, err := n.Create(ctx, nodeagent.CreateOptions{Image: img, NoMain: true, Owner: nodeagent.OwnerPlatform, Net: nodeagent.NetBridge,
			Platform: &nodeagent.PlatformRecord{}})
		if err != nil {
			return s, err
		}
		err = e.Delete(ctx)
		s.wall = time.Since(start)
		return s, err
	}, nil
}
