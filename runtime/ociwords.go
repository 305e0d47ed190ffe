package runtime

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/learnos/learnos/internal/initproto"
)

// HookWords puts hooks into internal/hook's words.
func HookWords(hooks []specs.Hook) (out []initproto.Hook) {
	for _, h := range hooks {
		w := initproto.Hook{Path: h.Path, Args: h.Args, Env: h.Env}
		if h.Timeout != nil && *h.Timeout > 0 {
			w.Seconds = uint32(*h.Timeout)
		}
		out = append(out, w)
	}
	return out
}

var (
	ioClasses  = map[specs.IOPriorityClass]uint32{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}
	schedulers = map[specs.LinuxSchedulerPolicy]uint32{specs.SchedOther: 0, specs.SchedFIFO: 1, specs.SchedRR: 2, specs.SchedBatch: 3,
		specs.SchedISO: 4, specs.SchedIdle: 5, specs.SchedDeadline: 6}
	schedulerFlags = map[specs.LinuxSchedulerFlag]uint64{specs.SchedFlagResetOnFork: 1, specs.SchedFlagReclaim: 2,
		specs.SchedFlagDLOverrun: 4, specs.SchedFlagKeepPolicy: 8, specs.SchedFlagKeepParams: 0x10,
		specs.SchedFlagUtilClampMin: 0x20, specs.SchedFlagUtilClampMax: 0x40}
	memoryModes = map[specs.MemoryPolicyModeType]uint32{"MPOL_DEFAULT": 0, "MPOL_PREFERRED": 1, "MPOL_BIND": 2,
		"MPOL_INTERLEAVE": 3, "MPOL_LOCAL": 4, "MPOL_PREFERRED_MANY": 5, "MPOL_WEIGHTED_INTERLEAVE": 6}
	memoryFlags = map[specs.MemoryPolicyFlagType]uint32{"MPOL_F_STATIC_NODES": 1 << 15, "MPOL_F_RELATIVE_NODES": 1 << 14,
		"MPOL_F_NUMA_BALANCING": 1 << 13}
)

// noProcess stands for a command that is not there, and can't be one.
const noProcess = "/"

// processWords translates a process but for what confines it, which is the plan's.
func processWords(p *specs.Process, l *specs.Linux) (*initproto.Process, error) {
	args := p.Args
	if len(args) == 0 { // the specification lets one be created, but not started
		args = []string{noProcess}
	}
	s, err := sessionWords(SessionSpec{Args: args, Env: p.Env, Cwd: p.Cwd})
	if err != nil {
		return nil, fmt.Errorf("process: %w", err)
	}
	if p.Cwd == "" {
		return nil, errors.New("process: no working directory (cwd) given")
	}
	x := &initproto.Process{Args: s.Args, Env: s.Env, Cwd: s.Cwd, UID: p.User.UID, GID: p.User.GID, Terminal: p.Terminal}
	if p.ConsoleSize != nil {
		x.Cols, x.Rows = uint16(p.ConsoleSize.Width), uint16(p.ConsoleSize.Height)
	}
	if io := p.IOPriority; io != nil {
		class, ok := ioClasses[io.Class]
		if !ok || io.Priority < 0 || io.Priority > 7 {
			return nil, fmt.Errorf("ioPriority: class %q, priority %d: want IOPRIO_CLASS_RT, _BE or _IDLE, and 0 to 7", io.Class, io.Priority)
		}
		x.SetIOPriority, x.IOPriority = true, class<<13|uint32(io.Priority)
	}
	if sc := p.Scheduler; sc != nil {
		policy, ok := schedulers[sc.Policy]
		if !ok {
			return nil, fmt.Errorf("scheduler: policy %q is unknown", sc.Policy)
		}
		var flags uint64
		for _, f := range sc.Flags {
			bit, ok := schedulerFlags[f]
			if !ok {
				return nil, fmt.Errorf("scheduler: flag %q is unknown", f)
			}
			flags |= bit
		}
		x.Scheduler = schedAttr(policy, flags, sc)
	}
	if per := l.Personality; per != nil {
		if len(per.Flags) > 0 {
			return nil, fmt.Errorf("personality: flag %q is not supported", per.Flags[0])
		}
		switch per.Domain {
		case specs.PerLinux:
		case specs.PerLinux32:
			x.Personality = 8
		default:
			return nil, fmt.Errorf("personality: domain %q is not LINUX or LINUX32", per.Domain)
		}
		x.SetPersonality = true
	}
	if mp := l.MemoryPolicy; mp != nil {
		mode, ok := memoryModes[mp.Mode]
		if !ok {
			return nil, fmt.Errorf("memoryPolicy: mode %q is unknown", mp.Mode)
		}
		for _, f := range mp.Flags {
			bit, ok := memoryFlags[f]
			if !ok {
				return nil, fmt.Errorf("memoryPolicy: flag %q is unknown", f)
			}
			mode |= bit
		}
		if x.MemoryPolicy, err = bitmap(mp.Nodes); err != nil {
			return nil, fmt.Errorf("memoryPolicy: nodes: %w", err)
		}
		x.SetMemoryPolicy, x.MemoryPolicyMode = true, mode
	}
	return x, nil
}

// schedAttr is struct sched_attr in its first version (sched_setattr(2)).
func schedAttr(policy uint32, flags uint64, s *specs.Scheduler) []byte {
	b := make([]byte, 48)
	le := func(at, n int, v uint64) {
		for i := range n {
			b[at+i] = byte(v >> (8 * i))
		}
	}
	le(0, 4, 48)
	le(4, 4, uint64(policy))
	le(8, 8, flags)
	le(16, 4, uint64(uint32(s.Nice)))
	le(20, 4, uint64(uint32(s.Priority)))
	le(24, 8, s.Runtime)
	le(32, 8, s.Deadline)
	le(40, 8, s.Period)
	return b
}

// bitmap reads a list such as "0-3,8" into a mask of whole machine words; nil for an empty list.
func bitmap(list string) ([]byte, error) {
	if list == "" {
		return nil, nil
	}
	var mask []byte
	for _, part := range strings.Split(list, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		a, err1 := strconv.ParseUint(from, 10, 12)
		z, err2 := strconv.ParseUint(to, 10, 12)
		if err1 != nil || err2 != nil || a > z {
			return nil, fmt.Errorf("%q is not a list such as 0-3,8", list)
		}
		for ; a <= z; a++ {
			for int(a/64*8+8) > len(mask) {
				mask = append(mask, make([]byte, 8)...)
			}
			mask[a/8] |= 1 << (a % 8)
		}
	}
	return mask, nil
}
