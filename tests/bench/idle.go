package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/learnos/learnos/tests/platform"
)

// idle is what many environments that do nothing cost.
func idle(ctx context.Context, b *bench) ([]*Measure, error) {
	n := b.runs(1000, 100)
	memory := &Measure{Name: "idle-memory", Unit: "MiB",
		About: "All processes of the product: every environment's own and the whole of `learnos up` (gateway, etcd, SQLite and node), as " +
			"proportional set size, divided by the environments. The kernel's own (slab, stacks, page tables, per-cpu) is the whole " +
			"machine's growth, so other work shows in it. For docker and podman: of 20 containers that sleep, what all " +
			"processes grew by: daemons, shims and monitors."}
	latency := &Measure{Name: "idle-latency", Unit: "ms",
		About: "From the HTTP request to running, seen by the client, one at a time. Indented: by the node's own clock."}
	err := b.manyIdle(ctx, n, memory, latency)
	if err != nil {
		return nil, err
	}
	memory.Rows = append(memory.Rows, b.idlePeers(ctx)...)
	return []*Measure{memory, latency}, nil
}

// longestIdle is how long creating them all may take; a quiet machine needs a minute.
const longestIdle = 4 * time.Minute

const ours = "Learnos: all processes"

func (b *bench) manyIdle(ctx context.Context, n int, memory, latency *Measure) (err error) {
	before := footprint()
	p, c, err := b.platform(ctx, "idle", map[string]string{
		"LEARNOS_NODE_SPARES": "0", "LEARNOS_NODE_DISKOVERCOMMIT": "1000", // a thousand limits of 2 GiB, of which next to nothing is used
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	if err := smallImage(ctx, p); err != nil {
		return err
	}
	w, err := c.Watch(ctx)
	if err != nil {
		return err
	}
	defer w.Close()
	for range 5 { // what is made once
		if _, _, err := agentCreate(ctx, c, w); err != nil {
			return fmt.Errorf("warm up: %w\n%s", err, p.Logs())
		}
	}
	time.Sleep(time.Second)
	block := max(1, n/20)
	var seen, node []sample
	growth := Series{Name: "all processes"}
	kernel := Series{Name: "with the kernel's"}
	var curve Series
	curve.Name = "HTTP request → running"
	look := func(x int) {
		now := footprint()
		p := now.processes - before.processes
		growth.Points = append(growth.Points, [2]float64{float64(x), p})
		kernel.Points = append(kernel.Points, [2]float64{float64(x), p + now.kernel - before.kernel})
	}
	look(0)
	told := time.Now()
	wanted, begun := n, time.Now()
	for i := range wanted {
		start := time.Now()
		if start.Sub(begun) > longestIdle {
			n = i
			memory.Rows = append(memory.Rows, Row{Who: fmt.Sprintf("%d environments", wanted),
				Missing: fmt.Sprintf("only %d could be created in %v: something else keeps this machine busy", n, longestIdle)})
			break
		}
		env, err := c.Create(ctx, "busybox")
		if err != nil {
			return fmt.Errorf("create %d: %w", i+1, err)
		}
		cctx, cancel := context.WithTimeout(ctx, time.Minute)
		env, err = w.Until(cctx, env.ID, "running")
		cancel()
		if err != nil {
			return fmt.Errorf("create %d: %w\n%s", i+1, err, p.Logs())
		}
		seen = append(seen, sample{wall: time.Since(start)})
		node = append(node, sample{wall: time.Duration(env.Timings["total"]) * time.Microsecond})
		if (i+1)%block == 0 {
			look(i + 1)
			curve.Points = append(curve.Points, [2]float64{float64(i + 1), row("", seen[len(seen)-block:]).Median})
		}
		if time.Since(told) > 2*time.Second {
			say("idle: environment %d of %d", i+1, n)
			told = time.Now()
		}
	}
	time.Sleep(2 * time.Second) // what is only late goes
	after := footprint()
	each := func(f func(footprints) float64) float64 { return (f(after) - f(before)) / float64(n) }
	one := func(who string, v float64, detail bool) Row {
		return Row{Who: who, Runs: 1, Min: v, Median: v, P99: v, Detail: detail, Ours: true}
	}
	memory.Title = fmt.Sprintf("Memory of an idle environment, of %d on one machine", n)
	latency.Title = fmt.Sprintf("Creating the %s environment beside those that idle", ordinal(n))
	memory.Rows = append(memory.Rows,
		one(ours, each(func(f footprints) float64 { return f.processes }), false),
		one("of it: processes inside", each(func(f footprints) float64 { return f.processes - f.learnos }), true),
		one("of it: the whole of learnos up", each(func(f footprints) float64 { return f.learnos }), true),
		one("besides: the kernel's own", each(func(f footprints) float64 { return f.kernel }), true),
		one("fall of the machine's MemAvailable", -each(func(f footprints) float64 { return f.available }), true))
	if n >= 1000 { // with less, the platform itself is what is measured
		memory.Targets = []Target{{Of: ours, Stat: "median", Bound: 1.5}}
	}
	memory.Curve = &Curve{X: "environments", Y: "MiB", Lines: []Series{growth, kernel}}

	last := min(50, n/4)
	first := fmt.Sprintf("the first %d", last)
	end := fmt.Sprintf("the last %d of %d", last, n)
	for _, part := range []struct {
		who      string
		from, to int
	}{{first, 0, last}, {end, n - last, n}} {
		r := row("node: "+part.who, node[part.from:part.to])
		r.Detail = true
		shown := row(part.who, seen[part.from:part.to])
		shown.Ours = true
		latency.Rows = append(latency.Rows, shown, r)
	}
	latency.Targets = []Target{{Of: end, Over: first, Stat: "median", Bound: 2}}
	latency.Curve = &Curve{X: "environments", Y: "ms, median of the " + strconv.Itoa(block) + " before", Lines: []Series{curve}}

	start := time.Now()
	if err := deleteAll(ctx, c); err != nil {
		return err
	}
	latency.About += fmt.Sprintf(" Deleting all %d took %.1f s.", n, time.Since(start).Seconds())
	return nil
}

// smallImage lets busybox promise so little memory that many fit.
func smallImage(ctx context.Context, p *platform.Platform) error {
	password, err := os.ReadFile(filepath.Join(p.Dir, "secrets", "admin-password"))
	if err != nil {
		return err
	}
	admin, err := p.Login(ctx, "admin", strings.TrimSpace(string(password)))
	if err != nil {
		return err
	}
	var images []struct {
		ID   int64
		Name string
	}
	if err := admin.Do(ctx, "GET", "/images", nil, &images); err != nil {
		return err
	}
	for _, i := range images {
		if i.Name == "busybox" {
			return admin.Do(ctx, "PATCH", fmt.Sprintf("/images/%d", i.ID), map[string]any{"memoryBytes": 8 << 20}, nil)
		}
	}
	return errors.New("the catalogue has no busybox")
}

// deleteAll returns when a person's environments are gone.
func deleteAll(ctx context.Context, c *platform.Client) error {
	var left []platform.Environment
	if err := c.Do(ctx, "GET", "/environments", nil, &left); err != nil {
		return err
	}
	err := crowd(ctx, len(left), 8, func(ctx context.Context, i int) error {
		return c.Do(ctx, "DELETE", "/environments/"+left[i].ID, nil, nil)
	})
	if err != nil {
		return err
	}
	told := time.Now()
	for len(left) > 0 {
		if time.Since(told) > 2*time.Second {
			say("idle: %d environments left to delete", len(left))
			told = time.Now()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
		left = nil
		if err := c.Do(ctx, "GET", "/environments", nil, &left); err != nil {
			return err
		}
	}
	return nil
}

// footprints is memory in use, in MiB.
type footprints struct{ processes, learnos, kernel, available float64 }

// footprint looks at every process of our namespace but ourselves and our parent, and at the kernel's own count.
func footprint() (f footprints) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return f
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		mib := float64(kilobytes(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss")) / 1024
		f.processes += mib
		if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); strings.TrimSpace(string(name)) == "learnos" {
			f.learnos += mib
		}
	}
	for _, name := range []string{"Slab", "KernelStack", "PageTables", "Percpu"} {
		f.kernel += float64(kilobytes("/proc/meminfo", name)) / 1024
	}
	f.available = float64(kilobytes("/proc/meminfo", "MemAvailable")) / 1024
	return f
}

// kilobytes reads a line "Name:   123 kB".
func kilobytes(path, name string) int64 {
	text, _, _ := strings.Cut(field(path, name, ":"), " ")
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}

// idlePeers are containers that sleep, of the others.
func (b *bench) idlePeers(ctx context.Context) (all []Row) {
	n := b.runs(20, 4)
	ref, err := b.busyboxImage(ctx)
	if err != nil {
		return []Row{{Who: "docker", Missing: oneLine(err)}, {Who: "podman", Missing: oneLine(err)}}
	}
	measure := func(who string, run func(name string) []string, remove []string) {
		var names []string
		r := Row{Who: who}
		before := footprint()
		for i := range n {
			name := fmt.Sprintf("%s-idle-%d", b.tag, i)
			if _, err := output(ctx, run(name)...); err != nil {
				r.Missing = oneLine(err)
				break
			}
			names = append(names, name)
		}
		if r.Missing == "" {
			time.Sleep(time.Second)
			v := (footprint().processes - before.processes) / float64(n)
			r.Runs, r.Min, r.Median, r.P99 = 1, v, v, v
		}
		if len(names) > 0 {
			if _, err := output(context.WithoutCancel(ctx), slices.Concat(remove, names)...); err != nil {
				say("%s: %v", who, err)
			}
		}
		all = append(all, r)
		say("idle: %s done", who)
	}
	if d, err := b.docker(ctx); err != nil {
		all = append(all, Row{Who: "docker", Missing: oneLine(err)})
	} else if _, err := output(ctx, d.argv("pull", "--quiet", ref)...); err != nil {
		all = append(all, Row{Who: "docker", Missing: oneLine(err)})
	} else {
		measure("docker", func(name string) []string { return d.argv("run", "-d", "--name", name, ref, "sleep", "3600") }, d.argv("rm", "--force"))
	}
	if p, err := b.podman(); err != nil {
		all = append(all, Row{Who: "podman", Missing: oneLine(err)})
	} else if err := p.pull(ctx, ref); err != nil {
		all = append(all, Row{Who: "podman", Missing: oneLine(err)})
	} else {
		measure("podman", func(name string) []string {
			return p.run("--network", "bridge", "--detach", "--name", name, ref, "sleep", "3600")
		}, p.argv("rm", "--force", "--time", "0"))
	}
	return all
}

func ordinal(n int) string {
	if n == 1000 {
		return "thousandth"
	}
	return strconv.Itoa(n) + "th"
}
