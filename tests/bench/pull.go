package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	pullLayers = 8
	pullBytes  = 300 << 20

	ourPull    = "nodeagent image pull"
	podmanPull = "podman pull"
	dockerPull = "docker pull"
)

// pulls fetch and unpack a large image.
func pulls(ctx context.Context, b *bench) ([]*Measure, error) {
	size := pullBytes
	if b.quick {
		size /= 3
	}
	layers := make([]string, pullLayers)
	err := crowd(ctx, pullLayers, 2, func(_ context.Context, i int) error {
		layers[i] = filepath.Join(b.work, fmt.Sprintf("layer%d.tar.gz", i))
		return bigLayer(layers[i], uint64(i+1), size/pullLayers)
	})
	if err != nil {
		return nil, fmt.Errorf("make layers: %w", err)
	}
	ref, err := b.push(ctx, "big", layers)
	if err != nil {
		return nil, err
	}
	var packed int64
	for _, path := range layers {
		st, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		packed += st.Size()
		os.Remove(path)
	}
	if _, err := b.node(); err != nil {
		return nil, err
	}
	memory := map[string][]float64{}
	var said string // by nodeagent
	puller := func(who string, pull []string, watched int, remove ...[]string) contender {
		return contender{who: who, ours: who == ourPull, once: func(ctx context.Context, _ int) (sample, error) {
			unix.Sync()
			s, peak, text, err := watch(ctx, watched, pull...)
			if err != nil {
				return s, err
			}
			if watched != 0 {
				s.user, s.system = 0, 0 // the client's, who does nothing
			}
			memory[who] = append(memory[who], peak)
			if who == ourPull {
				said = text
			}
			for _, argv := range remove {
				if _, err := output(ctx, argv...); err != nil {
					return s, err
				}
			}
			return s, nil
		}}
	}
	contenders := []contender{puller(ourPull, b.nodeagent("image", "pull", "--insecure", ref), 0, b.nodeagent("image", "rm", ref), b.nodeagent("gc"))}
	if p, err := b.podman(); err != nil {
		contenders = append(contenders, absent(podmanPull, err))
	} else {
		contenders = append(contenders, puller(podmanPull, p.argv("pull", "--tls-verify=false", ref), 0, p.argv("rmi", "--force", ref)))
	}
	if d, err := b.docker(ctx); err != nil {
		contenders = append(contenders, absent(dockerPull, err))
	} else {
		contenders = append(contenders, puller(dockerPull, d.argv("pull", ref), d.daemon.Process.Pid, d.argv("rmi", "--force", ref)))
	}
	m := &Measure{Name: "pull", Title: fmt.Sprintf("Pull and unpack an image of %d MB in %d layers", size>>20, pullLayers), Unit: "ms",
		About: fmt.Sprintf("From a registry on loopback, %d MB compressed, nothing of it present, file system synced before.", packed>>20),
		Rows:  b.race(ctx, "pull", b.runs(3, 1), contenders),
		Targets: []Target{
			{Of: podmanPull, Over: ourPull, Stat: "median", Bound: 2, AtLeast: true},
			{Of: dockerPull, Over: ourPull, Stat: "median", Bound: 2, AtLeast: true},
		}}
	peaks := &Measure{Name: "pull-memory", Title: "Peak memory of that pull", Unit: "MiB resident",
		About: fmt.Sprintf("Of all processes that pull, at the moment when it was most; for docker those of the daemon. On a standard error "+
			"that is no terminal, nodeagent told of its progress in %d lines.", strings.Count(said, "\n"))}
	for _, r := range m.Rows {
		if r.Missing != "" {
			peaks.Rows = append(peaks.Rows, Row{Who: r.Who, Missing: r.Missing})
			continue
		}
		peak := rowOf(r.Who, memory[r.Who][1:]) // the first didn't count
		peak.Ours = r.Ours
		peaks.Rows = append(peaks.Rows, peak)
	}
	return []*Measure{m, peaks}, nil
}

// watch runs a command and says what it printed, and how much memory, in MiB, a process (0: the command) and all below it
// had resident at most, looking every 10 ms. (ru_maxrss won't do: it begins with what a child shared with us before its exec.)
func watch(ctx context.Context, pid int, argv ...string) (s sample, peak float64, said string, err error) {
	var text bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &text, &text
	cmd.WaitDelay = time.Second
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return s, 0, "", err
	}
	if pid == 0 {
		pid = cmd.Process.Pid
	}
	done, most := make(chan struct{}), make(chan float64)
	go func() {
		peak := 0.0
		for {
			peak = max(peak, memoryOf(pid))
			select {
			case <-done:
				most <- peak
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	err = cmd.Wait()
	s.wall = time.Since(start)
	close(done)
	peak = <-most
	if err != nil {
		return s, 0, "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(text.String()))
	}
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	s.user, s.system = time.Duration(usage.Utime.Nano()), time.Duration(usage.Stime.Nano())
	return s, peak, text.String(), nil
}

// memoryOf is how much memory, in MiB, a process and all below it have.
func memoryOf(pid int) float64 {
	kb, _, _ := strings.Cut(field(fmt.Sprintf("/proc/%d/status", pid), "VmRSS", ":"), " ")
	sum, _ := strconv.ParseFloat(kb, 64)
	sum /= 1024
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		children, _ := os.ReadFile(task)
		for _, word := range strings.Fields(string(children)) {
			if child, err := strconv.Atoi(word); err == nil {
				sum += memoryOf(child)
			}
		}
	}
	return sum
}
