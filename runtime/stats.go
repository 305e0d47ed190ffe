package runtime

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Stats reads what the container uses, from whichever version of cgroups serves each controller. It also works after the
// container's end, until Delete.
func (c *Container) Stats(ctx context.Context) (Stats, error) {
	if err := ctx.Err(); err != nil {
		return Stats{}, err
	}
	s, err := c.group.stats()
	if err != nil {
		return s, fmt.Errorf("stats of container %s: %w", c.id, err)
	}
	return s, nil
}

// stats reads what the group's processes use.
func (g *cgroup) stats() (Stats, error) {
	if dir, _, ok := g.controller("pids"); ok {
		if _, err := os.Stat(dir); err != nil {
			return Stats{}, ErrNotFound
		}
	}
	s := Stats{At: time.Now()}
	if _, v2, ok := g.controller("cpu"); ok && v2 {
		stat := g.read("cpu", "", "cpu.stat")
		s.CPUNanos = keyed(stat, "usage_usec") * 1000
		s.CPUThrottledNanos = keyed(stat, "throttled_usec") * 1000
	} else {
		s.CPUNanos = number(g.read("cpuacct", "cpuacct.usage", ""))
		s.CPUThrottledNanos = keyed(g.read("cpu", "cpu.stat", ""), "throttled_time")
	}
	s.MemoryBytes = number(g.read("memory", "memory.usage_in_bytes", "memory.current"))
	s.MemoryPeak = number(g.read("memory", "memory.max_usage_in_bytes", "memory.peak"))
	s.MemoryLimit = number(g.read("memory", "memory.limit_in_bytes", "memory.max"))
	if s.MemoryLimit > 1<<62 { // v1's way of saying that there is none
		s.MemoryLimit = 0
	}
	stat := g.read("memory", "memory.stat", "memory.stat")
	if s.MemoryInactiveFile = keyed(stat, "total_inactive_file"); s.MemoryInactiveFile == 0 {
		s.MemoryInactiveFile = keyed(stat, "inactive_file")
	}
	s.OOMKills = g.oomKills()
	s.PIDs = number(g.read("pids", "pids.current", "pids.current"))
	s.PIDsLimit = number(g.read("pids", "pids.max", "pids.max"))
	s.BlockRead, s.BlockWrite = g.blockIO()
	s.PSI = g.psi()
	return s, nil
}

// oomKills counts the processes the kernel has killed for the group's lack of memory.
func (g *cgroup) oomKills() uint64 {
	if _, v2, _ := g.controller("memory"); v2 {
		return keyed(g.read("memory", "", "memory.events"), "oom_kill")
	}
	return keyed(g.read("memory", "memory.oom_control", ""), "oom_kill")
}

// psi reads pressure stall information; nil where the kernel keeps none (it may be off: psi=1).
func (g *cgroup) psi() *PSI {
	if g.hs.unified == nil {
		return nil
	}
	p := &PSI{}
	for file, out := range map[string]*Pressure{"cpu.pressure": &p.CPU, "memory.pressure": &p.Memory, "io.pressure": &p.IO} {
		b, err := os.ReadFile(filepath.Join(g.dir(g.hs.unified), file))
		if err != nil {
			return nil
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 2 {
				continue
			}
			v, _ := strconv.ParseFloat(strings.TrimPrefix(f[1], "avg10="), 64)
			if f[0] == "some" {
				out.Some10 = v
			} else {
				out.Full10 = v
			}
		}
	}
	return p
}

// number reads a count; "max" and what is missing read as 0.
func number(s string) uint64 {
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}
