package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// contender does one thing again and again.
type contender struct {
	who string
	// once is one run; i differs for each.
	once func(ctx context.Context, i int) (sample, error)
	// missing says why it can't take part.
	missing error
	ours    bool
	detail  bool // it explains another's figure
}

// absent stands for a contender that isn't there.
func absent(who string, err error) contender { return contender{who: who, missing: err} }

// fewest is how many runs a figure has at least, however long they take.
const fewest = 2

// race lets contenders take turns, runs times each, after one turn that doesn't count; fewer when the patience for one
// measure is at its end. Each round begins with another contender, so that nobody always follows the same. Who fails has no
// figure.
func (b *bench) race(ctx context.Context, name string, runs int, contenders []contender) []Row {
	samples := make([][]sample, len(contenders))
	failed := make([]error, len(contenders))
	for i, c := range contenders {
		failed[i] = c.missing
	}
	told, end := time.Now(), time.Now().Add(b.patience())
	for round := range runs + 1 {
		if round > fewest && time.Now().After(end) {
			say("%s: %d rounds instead of %d: they take longer here", name, round-1, runs)
			break
		}
		for turn := range contenders {
			i := (turn + round) % len(contenders)
			if failed[i] != nil || ctx.Err() != nil {
				continue
			}
			s, err := contenders[i].once(ctx, round)
			if err != nil {
				failed[i] = fmt.Errorf("run %d: %w", round, err)
				say("%s: %s: %v", name, contenders[i].who, failed[i])
				continue
			}
			if round > 0 {
				samples[i] = append(samples[i], s)
			}
		}
		if time.Since(told) > 2*time.Second {
			say("%s: round %d of %d", name, round, runs)
			told = time.Now()
		}
	}
	var all []Row
	for i, c := range contenders {
		if err := ctx.Err(); err != nil {
			failed[i] = err
		}
		if failed[i] != nil {
			all = append(all, Row{Who: c.who, Ours: c.ours, Missing: oneLine(failed[i])})
			continue
		}
		mine := rows(c.who, samples[i])
		mine[0].Detail, mine[0].Ours = c.detail, c.ours
		all = append(all, mine...)
	}
	return all
}

// oneLine is an error for a table.
func oneLine(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	if len(text) > 400 {
		text = text[:400] + "…"
	}
	return text
}

// program finds a command.
func program(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is not installed (scripts/setup bench): %w", name, err)
	}
	return path, nil
}

// command runs a command to its end and says how long that took.
func command(ctx context.Context, argv ...string) (sample, error) {
	return timed(exec.CommandContext(ctx, argv[0], argv[1:]...))
}

// timed is command for one that is prepared.
func timed(cmd *exec.Cmd) (sample, error) {
	// A file descriptor of our own, not a pipe with a goroutine: the clock must not wait for who keeps standard error open.
	out, err := newOutput()
	if err != nil {
		return sample{}, err
	}
	defer out.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = out
	}
	cmd.Stderr = out
	start := time.Now()
	err = cmd.Run()
	s := sample{wall: time.Since(start)}
	if err != nil {
		return s, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, tail(out))
	}
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	s.user, s.system = time.Duration(usage.Utime.Nano()), time.Duration(usage.Stime.Nano())
	return s, nil
}

// output runs a command for what it prints.
func output(ctx context.Context, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	// Daemons that it leaves behind may keep the pipes.
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
