package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/runtime"
)

// running loads a container whose process lives, and looks at the machine's cgroups.
func (a *app) running(id string) (*record, *runtime.OCI, error) {
	r, err := a.load(id)
	if err != nil {
		return nil, nil, err
	}
	if !r.alive() {
		return nil, nil, fmt.Errorf("container %q is stopped", id)
	}
	m, err := a.machine()
	return r, m, err
}

func pause(a *app, args []string) error { return a.freeze("pause", args, true) }

func resume(a *app, args []string) error { return a.freeze("resume", args, false) }

func (a *app) freeze(command string, args []string, frozen bool) error {
	id, err := newFlags(command, "ID").id(args)
	if err != nil {
		return err
	}
	r, m, err := a.running(id)
	if err != nil {
		return err
	}
	if m.Frozen(r.Group) == frozen {
		return fmt.Errorf("container %q can't be %sd: it is %s", id, strings.TrimSuffix(command, "e")+"e", a.status(r))
	}
	return m.Freeze(r.Group, frozen)
}

func ps(a *app, args []string) error {
	f := newFlags("ps", "[--format table|json] ID [ps options]")
	format := "table"
	f.text(&format, "format", "table or json")
	f.alias("f", "format")
	rest, err := f.parse(args)
	if err != nil {
		return err
	}
	if len(rest) == 0 {
		return errors.New("ps: no container id given (lrun ps [--format table|json] ID [ps options])")
	}
	r, m, err := a.running(rest[0])
	if err != nil {
		return err
	}
	pids := m.PIDs(r.Group)
	slices.Sort(pids)
	switch format {
	case "json":
		return printJSON(pids)
	case "table":
	default:
		return fmt.Errorf("ps: --format %q is not table or json", format)
	}
	options := rest[1:]
	if len(options) == 0 {
		options = []string{"-ef"}
	}
	out, err := exec.Command("ps", options...).Output()
	if err != nil {
		return fmt.Errorf("ps %s: %w", strings.Join(options, " "), err)
	}
	header, lines, _ := strings.Cut(string(out), "\n")
	column := slices.Index(strings.Fields(header), "PID")
	if column < 0 {
		return errors.New("ps: its output has no column PID")
	}
	fmt.Println(header)
	for line := range strings.Lines(lines) {
		fields := strings.Fields(line)
		if len(fields) > column {
			if pid, err := strconv.Atoi(fields[column]); err == nil && slices.Contains(pids, pid) {
				fmt.Print(line)
			}
		}
	}
	return nil
}

// bytesOf reads a size such as 512, 64k, 10M or 2GiB; -1 means no limit.
func bytesOf(s string) (int64, error) {
	text := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(s), "b"), "i")
	factor := int64(1)
	for i, unit := range "kmgt" {
		if rest, ok := strings.CutSuffix(text, string(unit)); ok {
			text, factor = rest, 1<<(10*(i+1))
			break
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < -1 || n > 1<<62/factor {
		return 0, fmt.Errorf("%q is not a size such as 64M", s)
	}
	return n * factor, nil
}

func update(a *app, args []string) error {
	f := newFlags("update", "[flags] ID")
	var file string
	r := &specs.LinuxResources{}
	f.text(&file, "resources", "a file with linux.resources as JSON, - for standard input, instead of other flags")
	f.alias("r", "resources")
	memory := func() *specs.LinuxMemory {
		if r.Memory == nil {
			r.Memory = &specs.LinuxMemory{}
		}
		return r.Memory
	}
	cpu := func() *specs.LinuxCPU {
		if r.CPU == nil {
			r.CPU = &specs.LinuxCPU{}
		}
		return r.CPU
	}
	size := func(name, help string, to func() **int64) {
		f.all = append(f.all, &flag{name: name, help: help, set: func(s string) error {
			n, err := bytesOf(s)
			*to() = &n
			return err
		}})
	}
	size("memory", "memory limit", func() **int64 { return &memory().Limit })
	size("memory-reservation", "memory below which it is spared", func() **int64 { return &memory().Reservation })
	size("memory-swap", "memory and swap together", func() **int64 { return &memory().Swap })
	signed := func(name, help string, to func() **int64) {
		f.all = append(f.all, &flag{name: name, help: help, set: func(s string) error {
			n, err := strconv.ParseInt(s, 10, 64)
			*to() = &n
			return err
		}})
	}
	unsigned := func(name, help string, to func() **uint64) {
		f.all = append(f.all, &flag{name: name, help: help, set: func(s string) error {
			n, err := strconv.ParseUint(s, 10, 64)
			*to() = &n
			return err
		}})
	}
	unsigned("cpu-period", "microseconds", func() **uint64 { return &cpu().Period })
	signed("cpu-quota", "microseconds of each period", func() **int64 { return &cpu().Quota })
	unsigned("cpu-burst", "microseconds", func() **uint64 { return &cpu().Burst })
	unsigned("cpu-share", "relative weight", func() **uint64 { return &cpu().Shares })
	unsigned("cpu-rt-period", "microseconds", func() **uint64 { return &cpu().RealtimePeriod })
	signed("cpu-rt-runtime", "microseconds", func() **int64 { return &cpu().RealtimeRuntime })
	signed("cpu-idle", "0 or 1", func() **int64 { return &cpu().Idle })
	signed("pids-limit", "processes and threads", func() **int64 {
		if r.Pids == nil {
			r.Pids = &specs.LinuxPids{}
		}
		return &r.Pids.Limit
	})
	for _, x := range []struct {
		name string
		set  func(string)
	}{{"cpuset-cpus", func(s string) { cpu().Cpus = s }}, {"cpuset-mems", func(s string) { cpu().Mems = s }}} {
		f.all = append(f.all, &flag{name: x.name, help: "list such as 0-3,8", set: func(s string) error { x.set(s); return nil }})
	}
	f.all = append(f.all, &flag{name: "blkio-weight", help: "10 to 1000", set: func(s string) error {
		n, err := strconv.ParseUint(s, 10, 16)
		w := uint16(n)
		r.BlockIO = &specs.LinuxBlockIO{Weight: &w}
		return err
	}})
	for name, why := range map[string]string{
		"l3-cache-schema": "Intel RDT is not supported", "mem-bw-schema": "Intel RDT is not supported",
		"kernel-memory":     "Linux has no limit of kernel memory any more",
		"kernel-memory-tcp": "a limit of TCP's memory apart is not supported",
	} {
		f.all = append(f.all, &flag{name: name, help: "refused: " + why, set: func(string) error { return errors.New(why) }})
	}
	id, err := f.id(args)
	if err != nil {
		return err
	}
	if file != "" {
		if len(f.given) > 1 {
			return errors.New("update: --resources and other flags can't be had together")
		}
		b, err := readFileOrStdin(file)
		if err != nil {
			return err
		}
		r = &specs.LinuxResources{}
		if err := json.Unmarshal(b, r); err != nil {
			return fmt.Errorf("update: %s: %w", file, err)
		}
	}
	c, m, err := a.running(id)
	if err != nil {
		return err
	}
	if mem := r.Memory; mem != nil && mem.CheckBeforeUpdate != nil && *mem.CheckBeforeUpdate && mem.Limit != nil && *mem.Limit >= 0 {
		s, err := m.Stats(c.Group)
		if err != nil {
			return err
		}
		if s.MemoryBytes > uint64(*mem.Limit) {
			return fmt.Errorf("update: the memory limit %d is below the %d bytes in use", *mem.Limit, s.MemoryBytes)
		}
	}
	return m.Update(c.Group, r)
}

func readFileOrStdin(path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(os.Stdin)
	}
	return os.ReadFile(path)
}

// event is what containerd and others read of runc's events.
type event struct {
	Type string `json:"type"`
	ID   string `json:"id"`
	Data any    `json:"data,omitempty"`
}

type eventStats struct {
	CPU struct {
		Usage struct {
			Total uint64 `json:"total"`
		} `json:"usage"`
		Throttling struct {
			ThrottledTime uint64 `json:"throttledTime,omitempty"`
		} `json:"throttling"`
	} `json:"cpu"`
	Memory struct {
		Usage struct {
			Limit uint64 `json:"limit"`
			Usage uint64 `json:"usage,omitempty"`
			Max   uint64 `json:"max,omitempty"`
		} `json:"usage"`
		Raw map[string]uint64 `json:"raw,omitempty"`
	} `json:"memory"`
	Pids struct {
		Current uint64 `json:"current,omitempty"`
		Limit   uint64 `json:"limit,omitempty"`
	} `json:"pids"`
	Blkio struct {
		Bytes []blkioEntry `json:"ioServiceBytesRecursive,omitempty"`
	} `json:"blkio"`
}

type blkioEntry struct {
	Op    string `json:"op,omitempty"`
	Value uint64 `json:"value,omitempty"`
}

func events(a *app, args []string) error {
	f := newFlags("events", "[--stats] [--interval 5s] ID")
	once, interval := false, "5s"
	f.bool(&once, "stats", "print once")
	f.text(&interval, "interval", "time between two")
	id, err := f.id(args)
	if err != nil {
		return err
	}
	every, err := time.ParseDuration(interval)
	if err != nil || every <= 0 {
		return fmt.Errorf("events: --interval %q is not a time such as 5s", interval)
	}
	r, m, err := a.running(id)
	if err != nil {
		return err
	}
	fd := r.pidfd()
	defer unix.Close(fd)
	kills := uint64(0)
	for first := true; ; first = false {
		s, err := m.Stats(r.Group)
		if errors.Is(err, runtime.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if s.OOMKills > kills && !first {
			if err := printLine(event{Type: "oom", ID: id}); err != nil {
				return err
			}
		}
		kills = s.OOMKills
		var e eventStats
		e.CPU.Usage.Total, e.CPU.Throttling.ThrottledTime = s.CPUNanos, s.CPUThrottledNanos
		e.Memory.Usage.Limit, e.Memory.Usage.Usage, e.Memory.Usage.Max = s.MemoryLimit, s.MemoryBytes, s.MemoryPeak
		e.Memory.Raw = map[string]uint64{"inactive_file": s.MemoryInactiveFile, "total_inactive_file": s.MemoryInactiveFile}
		e.Pids.Current, e.Pids.Limit = s.PIDs, s.PIDsLimit
		e.Blkio.Bytes = []blkioEntry{{"Read", s.BlockRead}, {"Write", s.BlockWrite}}
		if err := printLine(event{Type: "stats", ID: id, Data: e}); err != nil || once {
			return err
		}
		if fd < 0 || awaitEnd(fd, every) {
			return nil
		}
	}
}

func printLine(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Println(string(b))
	return err
}

func features(a *app, args []string) error {
	if rest, err := newFlags("features", "").parse(args); err != nil {
		return err
	} else if len(rest) > 0 {
		return fmt.Errorf("features: %q is one argument too many", rest[0])
	}
	return printJSON(runtime.OCIFeatures())
}

func spec(a *app, args []string) error {
	f := newFlags("spec", "[--bundle DIR]")
	bundle, rootless := ".", false
	f.text(&bundle, "bundle", "directory to write config.json to")
	f.bool(&rootless, "rootless", "not supported")
	f.alias("b", "bundle")
	if rest, err := f.parse(args); err != nil {
		return err
	} else if len(rest) > 0 {
		return fmt.Errorf("spec: %q is one argument too many", rest[0])
	}
	if rootless {
		return errors.New("spec: --rootless is not supported")
	}
	s := runtime.OCISpec()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "\t")
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return err
	}
	path := filepath.Join(bundle, configName)
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if _, err := file.Write(b.Bytes()); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}
