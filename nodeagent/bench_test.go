package nodeagent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkCreate is what an environment of a cached image costs inside the agent: from the request to running with its
// network. It reports the median and the 99th percentile, and the median of each stage, in microseconds.
func BenchmarkCreate(b *testing.B) {
	for _, atOnce := range []int{1, 8} {
		b.Run(fmt.Sprintf("at-once=%d", atOnce), func(b *testing.B) {
			n, err := Open(newRoot(b), Options{})
			check(b, err)
			benchmarkCreate(b, n, atOnce, func() {})
		})
	}
	b.Run("spare", func(b *testing.B) {
		n, err := Open(newRoot(b), Options{})
		check(b, err)
		p := startPool(b, n, 4)
		benchmarkCreate(b, n, 1, func() {
			for ready, _ := p.state(); ready == 0; ready, _ = p.state() {
				time.Sleep(time.Millisecond)
			}
		})
	})
}

// benchmarkCreate calls before ahead of each create but the first.
func benchmarkCreate(b *testing.B, n *Node, atOnce int, before func()) {
	ctx := context.Background()
	img, err := n.Images().Image(ctx, "busybox")
	check(b, err)
	options := CreateOptions{Image: img, NoMain: true, Owner: OwnerPlatform, Platform: &PlatformRecord{},
		Limits: Limits{MemoryBytes: 256 << 20, PIDs: 512, CPUs: 1}}
	one := func() (time.Duration, map[string]int64) {
		begin := time.Now()
		e, err := n.Create(ctx, options)
		took := time.Since(begin)
		if err != nil {
			b.Error(err)
			return took, nil
		}
		if err := e.Delete(ctx); err != nil {
			b.Error(err)
		}
		return took, e.Record().Timings
	}
	one() // the bridge, the seccomp program, init's memory
	var mu sync.Mutex
	var all []time.Duration
	stages := map[string][]int64{}
	work := make(chan struct{})
	var workers sync.WaitGroup
	b.ResetTimer()
	for range atOnce {
		workers.Go(func() {
			for range work {
				before()
				took, timings := one()
				mu.Lock()
				all = append(all, took)
				for stage, us := range timings {
					stages[stage] = append(stages[stage], us)
				}
				mu.Unlock()
			}
		})
	}
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	workers.Wait()
	b.StopTimer()
	slices.Sort(all)
	b.ReportMetric(float64(all[0].Microseconds()), "min-us")
	b.ReportMetric(float64(all[0].Microseconds()), "min-us")
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-us")
	b.ReportMetric(float64(len(all))/b.Elapsed().Seconds(), "cycles/s")
	b.Logf("stages, medians in us:%s", stageText(stages))
}

// stageText writes the median of each stage.
func stageText(stages map[string][]int64) string {
	var text strings.Builder
	for _, stage := range slices.Sorted(maps.Keys(stages)) {
		s := stages[stage]
		slices.Sort(s)
		fmt.Fprintf(&text, " %s %d", stage, s[len(s)/2])
	}
	return text.String()
}

// processorTime is what this process has used, in itself and in the kernel.
func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	check(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkCrowd is what a create costs beside many idle environments, next to what the first ones cost: medians of fifty
// each, in microseconds. Processor time says more than the clock where others are at work, too.
func BenchmarkCrowd(b *testing.B) {
	const crowd, sample = 1000, 50
	ctx := context.Background()
	n, err := Open(newRoot(b), Options{})
	check(b, err)
	img, err := n.Images().Image(ctx, "busybox")
	check(b, err)
	options := CreateOptions{Image: img, NoMain: true, Owner: OwnerPlatform, Platform: &PlatformRecord{},
		Limits: Limits{MemoryBytes: 256 << 20, PIDs: 512, CPUs: 1}}
	var all []*Environment
	stages := map[string][]int64{}
	tell := func(what string) {
		for stage, us := range stages {
			slices.Sort(us)
			if stage == "total" {
				b.ReportMetric(float64(us[len(us)/2]), what+"-us")
			}
		}
		b.Logf("%s:%s", what, stageText(stages))
	}
	for i := range crowd + 1 {
		if i%sample == 1 {
			stages = map[string][]int64{}
		}
		before := processorTime(b)
		e, err := n.Create(ctx, options)
		check(b, err)
		all = append(all, e)
		stages["cpu-agent"] = append(stages["cpu-agent"], (processorTime(b) - before).Microseconds())
		st, err := e.Stats(ctx)
		check(b, err)
		stages["cpu-init"] = append(stages["cpu-init"], int64(st.CPUNanos/1000))
		for stage, us := range e.Record().Timings {
			stages[stage] = append(stages[stage], us)
		}
		switch i {
		case sample:
			tell("first")
		case crowd:
			tell("last")
		}
	}
	begin := time.Now()
	for _, e := range all {
		check(b, e.Delete(ctx))
	}
	b.ReportMetric(float64(time.Since(begin).Microseconds())/float64(len(all)), "delete-us")
}
