package rations

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/learnos/learnos/nodeagent"
)

func TestProcesses(t *testing.T) {
	e := create(t, nodeagent.Limits{PIDs: 64, CPUs: 0.5})
	// Each of its processes makes two more and stays: one that made itself small at the limit would be missed between two looks.
	wait := begin(t, e, `bomb() { bomb & bomb & exec sleep 3; }; bomb`)
	var most uint64
	slowest := time.Duration(0)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		most = max(most, stats(t, e).PIDs)
		start := time.Now()
		if err := exec.Command("/bin/true").Run(); err != nil {
			t.Fatalf("the host can't start a process while a bomb is in its environment: %v", err)
		}
		slowest = max(slowest, time.Since(start))
	}
	if most > 64 || most < 32 {
		t.Errorf("a fork bomb came to %d processes, 64 were allowed", most)
	}
	found("processes (--pids)", "64", "%d under a fork bomb; the host's slowest fork+exec meanwhile %v", most, slowest.Round(time.Millisecond))

	// cgroup.kill, or every process in turn on v1: a bomb in full bloom ends.
	start := time.Now()
	if err := e.Kill(context.Background()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the killed environment is empty", func() bool { return procs(t, e) == "" })
	found("kill", "all of it", "%d processes gone after %v", most, time.Since(start).Round(time.Millisecond))
	wait()
}

func procs(t *testing.T, e *nodeagent.Environment) string {
	return file(t, e, "pids", "cgroup.procs", "cgroup.procs")
}

func TestProcessorTime(t *testing.T) {
	const want = 0.2
	var e *nodeagent.Environment
	var wait func() (string, int)
	share := 0.0
	for n := range 3 * attempts { // what else runs here may take the processors for seconds
		if n%attempts == 0 {
			if e != nil {
				if err := e.Kill(context.Background()); err != nil {
					t.Fatal(err)
				}
				wait()
			}
			e = create(t, nodeagent.Limits{CPUs: want})
			wait = begin(t, e, `for n in 1 2 3; do timeout 60 sh -c 'while :; do :; done' & done; wait`)
		}
		before, start := stats(t, e).CPUNanos, time.Now()
		time.Sleep(2 * time.Second)
		share = float64(stats(t, e).CPUNanos-before) / float64(time.Since(start))
		if within(share, want, 0.15) {
			break
		}
		t.Logf("three loops had %.3f processors' time in two seconds", share)
	}
	if !within(share, want, 0.15) {
		t.Errorf("three loops had %.3f processors' time, %v were allowed", share, want)
	}
	s := stats(t, e)
	if s.CPUThrottledNanos == 0 {
		t.Error("the kernel never held it back")
	}
	found("processor time (--cpus)", "0.2", "%.3f (three busy loops)", share)
	if s.PSI == nil {
		found("pressure (stats)", "", "this kernel keeps none")
	} else {
		eventually(t, "processor pressure shows", func() bool { return stats(t, e).PSI.CPU.Some10 > 10 })
		p := stats(t, e).PSI
		found("pressure (stats)", "", "processor %.0f%%, memory %.0f%%, disk %.0f%% of the last 10 s", p.CPU.Some10, p.Memory.Some10, p.IO.Some10)
	}
	if inVM && s.PSI == nil {
		t.Error("no pressure information in stats")
	}
	if err := e.Kill(context.Background()); err != nil {
		t.Error(err)
	}
	wait()
}

func TestProcessors(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("one processor can't be told from all")
	}
	e := create(t, nodeagent.Limits{Cpuset: "1"})
	out, _ := inside(t, e, `grep Cpus_allowed_list /proc/self/status; for n in 1 2; do timeout 2 sh -c 'while :; do :; done' & done; sleep 1; for p in $(pidof sh); do cut -d' ' -f39 /proc/$p/stat; done; wait`)
	lines := strings.Fields(out)
	if len(lines) < 3 || lines[1] != "1" {
		t.Fatalf("inside: %q", out)
	}
	for _, cpu := range lines[2:] {
		if cpu != "1" {
			t.Errorf("a process ran on processor %s", cpu)
		}
	}
	found("processors (--cpuset)", "1", "%d processes, all on processor 1", len(lines)-2)

	if _, err := node.Create(context.Background(), options(nodeagent.Limits{Cpuset: "0-4000"})); err == nil || !strings.Contains(err.Error(), "not among those here") {
		t.Errorf("processors that are not there: %v", err)
	}
}

func TestFreeze(t *testing.T) {
	e := create(t, nodeagent.Limits{PIDs: 64})
	wait := begin(t, e, `while :; do :; done`)
	used := func(d time.Duration) time.Duration {
		before := stats(t, e).CPUNanos
		time.Sleep(d)
		return time.Duration(stats(t, e).CPUNanos - before)
	}
	if err := e.Container().Pause(context.Background()); err != nil {
		t.Fatal(err)
	}
	frozen := used(time.Second)
	if err := e.Container().Resume(context.Background()); err != nil {
		t.Fatal(err)
	}
	thawed := used(time.Second)
	if frozen > 10*time.Millisecond || thawed < 20*time.Millisecond {
		t.Errorf("a busy loop had %v of a second while frozen and %v after", frozen, thawed)
	}
	found("freeze and thaw", "0, then all", "a busy loop ran %v of 1 s frozen, %v thawed", frozen.Round(time.Millisecond), thawed.Round(time.Millisecond))
	if err := e.Container().Pause(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := e.Kill(context.Background()); err != nil {
		t.Errorf("kill a frozen environment: %v", err)
	}
	wait()
}

// endless takes memory until there is none.
const endless = `tail /dev/zero`

func TestMemory(t *testing.T) {
	const limit = 64 << 20
	swapBefore := swapUsed(t)
	// On v2 all of it is killed; v1 kills the hog, and with it here the main command.
	e := create(t, nodeagent.Limits{MemoryBytes: limit}, "sh", "-c", `sleep 1000 & exec `+endless)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	st, err := e.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !st.OOMKilled || st.Code != 137 || !strings.Contains(st.Reason, "out of memory: it needed more than its limit of 64 MiB") {
		t.Errorf("status %+v", st)
	}
	s := stats(t, e)
	if s.MemoryLimit != limit || s.MemoryPeak > limit+4<<20 || s.MemoryPeak < limit/2 {
		t.Errorf("limit %d, peak %d; %d were asked", s.MemoryLimit, s.MemoryPeak, limit)
	}
	if v2("memory") {
		if group := file(t, e, "memory", "", "memory.oom.group"); group != "1" {
			t.Errorf("memory.oom.group %q", group)
		}
		found("memory (--memory)", "64 MiB", "peak %s, then all of it killed: %d, %q", mib(s.MemoryPeak), st.Code, st.Reason)
	} else {
		found("memory (--memory)", "64 MiB", "peak %s, then the hog killed: %d, %q", mib(s.MemoryPeak), st.Code, st.Reason)
	}
	if s.OOMKills == 0 {
		t.Error("no kill was counted")
	}
	// Its memory may not go elsewhere.
	if swapped := swapUsed(t) - swapBefore; swapped > 4<<20 {
		t.Errorf("%d bytes were swapped out", swapped)
	} else if v2("memory") {
		found("swap", "none", "memory.swap.max 0; %d bytes of 64 MiB of the machine's swap used", max(0, swapped))
	} else {
		found("swap", "none", "memory and swap together %s", mib(limit))
	}
}

// swapUsed is how much of the machine's swap is taken.
func swapUsed(t *testing.T) int64 {
	t.Helper()
	body, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	kb := map[string]int64{}
	for line := range strings.Lines(string(body)) {
		if f := strings.Fields(line); len(f) >= 2 {
			kb[f[0]], _ = strconv.ParseInt(f[1], 10, 64)
		}
	}
	return (kb["SwapTotal:"] - kb["SwapFree:"]) << 10
}

func TestMemoryHigh(t *testing.T) {
	limits := nodeagent.Limits{MemoryBytes: 128 << 20, MemoryHighBytes: 32 << 20}
	if !v2("memory") {
		if _, err := node.Create(context.Background(), options(limits)); err == nil || !strings.Contains(err.Error(), "memory.high") {
			t.Errorf("cgroup v1 has no memory.high, and said %v", err)
		}
		found("memory.high (--memory-high)", "32 MiB", "refused: cgroup v1 has none")
		return
	}
	e := create(t, limits)
	wait := begin(t, e, `dd if=/dev/zero of=/big bs=64k count=1024`)
	var most uint64
	done := make(chan struct{})
	go func() { defer close(done); wait() }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(10 * time.Millisecond):
			most = max(most, stats(t, e).MemoryBytes)
		}
	}
	if most > 36<<20 || most < 16<<20 {
		t.Errorf("it had %s, and above 32 MiB it should have been slowed down", mib(most))
	}
	events := file(t, e, "memory", "", "memory.events")
	if !strings.Contains(events, "high ") || strings.Contains(events, "high 0") {
		t.Errorf("memory.events: %q", events)
	}
	found("memory.high (--memory-high)", "32 MiB", "at most %s while 64 MiB of files were written", mib(most))
}
