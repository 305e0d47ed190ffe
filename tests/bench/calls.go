package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// calls profiles what the medians can't: how much each command asks of the kernel.
func calls(ctx context.Context, b *bench) ([]*Measure, error) {
	m := &Measure{Name: "calls", Title: "System calls of one `run` of `true`", Unit: "system calls",
		About: "As `strace -f -c` counts them, the container's own process included, in the same configuration as the cycles. Indented: " +
			"the calls that the kernel spent most time in, waiting left out. strace slows a program down, so there are more of Go's " +
			"own naps among them than usual."}
	root, err := b.rootfs()
	if err != nil {
		return nil, err
	}
	base, err := spec(root, false, "/bin/true")
	if err != nil {
		return nil, err
	}
	strace, err := program("strace")
	if err != nil {
		m.Rows = []Row{{Who: "strace", Missing: oneLine(err)}}
		return []*Measure{m}, nil
	}
	count := func(who string, mine bool, argv []string) {
		rows, err := b.count(ctx, strace, who, argv)
		if err != nil {
			rows = []Row{{Who: who, Missing: oneLine(err)}}
		}
		rows[0].Ours = mine
		m.Rows = append(m.Rows, rows...)
	}
	for _, r := range b.ociRuntimes() {
		if r.missing != nil {
			m.Rows = append(m.Rows, Row{Who: r.name, Missing: oneLine(r.missing)})
			continue
		}
		dir, err := b.give(r, "calls", base)
		if err != nil {
			return nil, err
		}
		count(r.name, r.name == lrun, r.argv("run", "--bundle", dir, b.tag+"-calls"))
	}
	ref, err := b.busyboxImage(ctx)
	if err != nil {
		return []*Measure{m}, err
	}
	if _, err := b.node(); err != nil {
		return []*Measure{m}, err
	}
	if _, err := output(ctx, b.nodeagent("image", "pull", "--insecure", ref)...); err != nil {
		return []*Measure{m}, err
	}
	count(ourRun, true, b.nodeagent("run", "--rm", ref, "true"))
	return []*Measure{m}, nil
}

// count runs a command under strace: a row of all calls, and of those that took longest.
func (b *bench) count(ctx context.Context, strace, who string, argv []string) ([]Row, error) {
	file := filepath.Join(b.work, "strace")
	if _, err := output(ctx, append([]string{strace, "-f", "-c", "-o", file}, argv...)...); err != nil {
		return nil, err
	}
	table, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	kinds, total := parseStrace(string(table))
	kinds = slices.DeleteFunc(kinds, func(k callCount) bool { return slices.Contains(waits, k.name) })
	if total == 0 {
		return nil, fmt.Errorf("strace counted nothing: %q", table)
	}
	row := func(who string, n int, detail bool) Row {
		v := float64(n)
		return Row{Who: who, Runs: 1, Min: v, Median: v, P99: v, Detail: detail}
	}
	all := []Row{row(who, total, false)}
	for _, k := range kinds[:min(6, len(kinds))] {
		all = append(all, row(fmt.Sprintf("%s: %s", who, k.name), k.calls, true))
	}
	return all, nil
}

// waits are calls whose time is somebody else's.
var waits = []string{"futex", "nanosleep", "clock_nanosleep", "wait4", "waitid", "epoll_wait", "epoll_pwait", "poll", "ppoll", "pselect6",
	"select", "sched_yield", "rt_sigreturn", "restart_syscall", "rt_sigsuspend"}

type callCount struct {
	name    string
	seconds float64
	calls   int
}

// parseStrace reads the table that `strace -c` writes: "% time, seconds, usecs/call, calls, [errors,] syscall", the
// longest first.
func parseStrace(table string) (all []callCount, total int) {
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 5 || f[len(f)-1] == "total" || f[len(f)-1] == "syscall" {
			continue
		}
		seconds, err1 := strconv.ParseFloat(f[1], 64)
		calls, err2 := strconv.Atoi(f[3])
		if err1 != nil || err2 != nil {
			continue
		}
		all = append(all, callCount{f[len(f)-1], seconds, calls})
		total += calls
	}
	slices.SortStableFunc(all, func(a, b callCount) int { return cmp.Compare(b.seconds, a.seconds) })
	return all, total
}
