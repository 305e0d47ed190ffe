package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/learnos/learnos/nodeagent"
	"github.com/learnos/learnos/tests/platform"
)

// creates is the way of a create, from the HTTP request to the first byte of the shell's prompt on a websocket, through
// the whole platform as it is shipped: `learnos up` with everything inside.
func creates(ctx context.Context, b *bench) (all []*Measure, err error) {
	p, c, err := b.platform(ctx, "platform", nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	if err := once(ctx, c, func(string, time.Duration) {}); err != nil { // the image is built here
		return nil, fmt.Errorf("warm up: %w\n%s", err, p.Logs())
	}
	n := b.runs(200, 40)
	for _, workers := range []int{1, 8} {
		m, err := createSeries(ctx, c, n, workers, b.patience())
		if err != nil {
			return all, fmt.Errorf("%w\n%s", err, p.Logs())
		}
		all = append(all, m)
	}
	return all, nil
}

// platform starts `learnos up` in a directory of that name, with more of its configuration as LEARNOS_ variables.
func (b *bench) platform(ctx context.Context, name string, config map[string]string) (*platform.Platform, *platform.Client, error) {
	dir := filepath.Join(b.work, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, err
	}
	n, err := nodeagent.Open(dir, nodeagent.Options{})
	if err != nil {
		return nil, nil, err
	}
	if err := b.ownGroup(n.CgroupParent()); err != nil {
		return nil, nil, err
	}
	env := map[string]string{"LEARNOS_GATEWAY_MAXENVIRONMENTS": "2000", "LEARNOS_GATEWAY_ACCESSTTL": "12h", "LEARNOS_COMMON_LOGLEVEL": "warn"}
	maps.Copy(env, config)
	p, err := platform.Start(ctx, dir, platform.Options{Bin: b.bin, Embedded: true, Env: env})
	if err != nil {
		return nil, nil, err
	}
	c, err := p.Register(ctx, "bench", rand.Text())
	if err != nil {
		return nil, nil, errors.Join(err, p.Close())
	}
	return p, c, nil
}

const promptStage = "→ first prompt byte"

// createSeries creates and deletes n environments, so many at once, or as many as there is time for.
func createSeries(ctx context.Context, c *platform.Client, n, workers int, limit time.Duration) (*Measure, error) {
	stages := map[string][]float64{}
	var mu sync.Mutex
	start := time.Now()
	err := crowd(ctx, n, workers, func(ctx context.Context, _ int) error {
		if time.Since(start) > limit {
			return nil
		}
		return once(ctx, c, func(stage string, d time.Duration) {
			mu.Lock()
			stages[stage] = append(stages[stage], ms(d))
			mu.Unlock()
		})
	})
	wall := time.Since(start)
	m := &Measure{Name: fmt.Sprintf("prompt-%d", workers), Title: fmt.Sprintf("The way of a create, %d at once", workers), Unit: "ms",
		About: fmt.Sprintf("Through the whole platform (`learnos up`): from the HTTP request to the first byte of the shell's prompt "+
			"on a websocket, image cached, and the stages on that way; %.1f creates and deletes a second. `node:` is the node's own clock.",
			float64(len(stages[promptStage]))/wall.Seconds())}
	names := make([]string, 0, len(stages))
	for name := range stages {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if na, nb := strings.HasPrefix(a, "node:"), strings.HasPrefix(b, "node:"); na != nb {
			if na {
				return 1
			}
			return -1
		}
		if quantile(stages[a], 0.5) < quantile(stages[b], 0.5) {
			return -1
		}
		return 1
	})
	for _, name := range names {
		r := rowOf(name, stages[name])
		r.Detail, r.Ours = name != promptStage, true
		m.Rows = append(m.Rows, r)
	}
	return m, err
}

// crowd does n things, so many at once, until one fails.
func crowd(ctx context.Context, n, workers int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	todo := make(chan int, n)
	for i := range n {
		todo <- i
	}
	close(todo)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range todo {
				if ctx.Err() != nil {
					return
				}
				if err := do(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// once creates an environment, waits for its prompt, and deletes it.
func once(ctx context.Context, c *platform.Client, took func(stage string, d time.Duration)) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	start := time.Now()
	env, err := c.Create(ctx, "busybox")
	if err != nil {
		return err
	}
	took("http create", time.Since(start))
	ready, err := c.WaitState(ctx, env.ID, "running")
	if err != nil {
		return err
	}
	took("→ running (seen by the client)", time.Since(start))
	session, err := c.Session(ctx, env.ID, true)
	if err != nil {
		return err
	}
	took("→ session started", time.Since(start))
	term, err := c.Attach(ctx, env.ID, session, -1)
	if err != nil {
		return err
	}
	defer term.Close()
	if _, err := term.Expect(ctx, "#"); err != nil {
		return err
	}
	took("→ first prompt byte", time.Since(start))
	for stage, micros := range ready.Timings {
		took("node: "+stage, time.Duration(micros)*time.Microsecond)
	}
	start = time.Now()
	if err := c.Delete(ctx, env.ID); err != nil {
		return err
	}
	took("delete, until it is gone", time.Since(start))
	return nil
}
