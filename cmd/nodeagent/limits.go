package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/learnos/learnos/nodeagent"
	"github.com/learnos/learnos/rootfs"
)

// limitFlags are an environment's rations as they were typed.
type limitFlags struct {
	memory, memoryHigh, cpus, cpuset, disk, netUp, netDown, readBytes, writeBytes string
	pids, reads, writes                                                           int64
}

// defaultPIDs keeps a fork bomb inside its environment when nobody has said how many processes it may have.
const defaultPIDs = 4096

// minMemory is what init itself needs to begin, with a little room.
const minMemory = 6 << 20

// minPIDs leaves room for init's own threads beside the command; maxPIDs is as many as a kernel can count.
const (
	minPIDs = 16
	maxPIDs = 1 << 22
)

// maxRate is a bound for what can be counted in a second, of anything.
const maxRate = 1 << 50

func (l *limitFlags) define(f *pflag.FlagSet) {
	f.StringVar(&l.memory, "memory", "", "memory limit, a `SIZE` as in 512m")
	f.StringVar(&l.memoryHigh, "memory-high", "", "`SIZE` above which memory is reclaimed and its users slowed down (cgroup v2)")
	f.StringVar(&l.cpus, "cpus", "", "processor time limit, `N` processors' worth as in 1.5")
	f.StringVar(&l.cpuset, "cpuset", "", "`LIST` of processors to run on, as in 0-2,5")
	f.Int64Var(&l.pids, "pids", defaultPIDs, "limit of processes and threads; `N`, 0 for none")
	f.StringVar(&l.disk, "disk", "", "limit of what the environment writes to its disk, a `SIZE` as in 2g")
	f.StringVar(&l.netUp, "net-up", "", "bandwidth out of the environment, a `RATE` in bits per second as in 10m (needs --net bridge)")
	f.StringVar(&l.netDown, "net-down", "", "bandwidth into the environment, a `RATE` in bits per second as in 10m")
	f.StringVar(&l.readBytes, "io-read-bps", "", "bytes read from the node's disk per second, a `SIZE` as in 10m")
	f.StringVar(&l.writeBytes, "io-write-bps", "", "bytes written per second, a `SIZE` (cgroup v1: of direct and synced writes only)")
	f.Int64Var(&l.reads, "io-read-iops", 0, "`N` reads from the node's disk per second")
	f.Int64Var(&l.writes, "io-write-iops", 0, "`N` writes per second (cgroup v1: direct and synced ones only)")
}

// parse turns what was typed into limits; every complaint names its flag.
func (l *limitFlags) parse(f *pflag.FlagSet) (nodeagent.Limits, error) {
	var out nodeagent.Limits
	var errs []error
	bytes := func(flag, typed string, least int64, into *int64) {
		if typed == "" && !f.Changed(flag) {
			return
		}
		n, err := parseSize(typed)
		if err == nil && n < least {
			err = fmt.Errorf("size %q: too small, want at least %s", typed, sizeText(least))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("--%s: %w", flag, err))
		}
		*into = n
	}
	bits := func(flag, typed string, into *int64) {
		if typed == "" && !f.Changed(flag) {
			return
		}
		n, err := parseRate(typed)
		if err != nil {
			errs = append(errs, fmt.Errorf("--%s: %w", flag, err))
		}
		*into = n
	}
	count := func(flag string, n int64, into *int64) {
		if f.Changed(flag) && (n < 1 || n > maxRate) {
			errs = append(errs, fmt.Errorf("--%s %d: want at least 1", flag, n))
		}
		*into = n
	}
	bytes("memory", l.memory, minMemory, &out.MemoryBytes)
	bytes("memory-high", l.memoryHigh, minMemory, &out.MemoryHighBytes)
	bytes("disk", l.disk, rootfs.MinDisk, &out.DiskBytes)
	if out.DiskBytes > rootfs.MaxDisk {
		errs = append(errs, fmt.Errorf("--disk %s: want at most %s", l.disk, sizeText(rootfs.MaxDisk)))
	}
	bits("net-up", l.netUp, &out.NetUpBits)
	bits("net-down", l.netDown, &out.NetDownBits)
	bytes("io-read-bps", l.readBytes, minIOBytes, &out.IO.ReadBytes)
	bytes("io-write-bps", l.writeBytes, minIOBytes, &out.IO.WriteBytes)
	count("io-read-iops", l.reads, &out.IO.Reads)
	count("io-write-iops", l.writes, &out.IO.Writes)
	if f.Changed("cpus") {
		n, err := strconv.ParseFloat(l.cpus, 64)
		switch {
		case err != nil && !errors.Is(err, strconv.ErrRange):
			errs = append(errs, fmt.Errorf("--cpus %q: want a number of processors, as in 1.5", l.cpus))
		case !(n >= 0.01 && n <= 4096): // so put, it catches NaN too
			errs = append(errs, fmt.Errorf("--cpus %s: want 0.01 to 4096", l.cpus))
		}
		out.CPUs = n
	}
	var err error
	if out.Cpuset, err = parseCpuset(l.cpuset); err != nil {
		errs = append(errs, err)
	}
	if l.pids != 0 && (l.pids < minPIDs || l.pids > maxPIDs) {
		errs = append(errs, fmt.Errorf("--pids %d: want %d to %d, or 0 for no limit", l.pids, minPIDs, maxPIDs))
	}
	out.PIDs = l.pids
	if len(errs) > 0 {
		return nodeagent.Limits{}, errs[0]
	}
	return out, nil
}

// minIOBytes lets one page through each second.
const minIOBytes = 4096

// parseSize reads "64m", "512KiB", "1.5g", "1048576": powers of 1024, as docker has it.
func parseSize(s string) (int64, error) {
	bad := fmt.Errorf("size %q: want a number and k, m, g or t, as in 512m", s)
	low := strings.ToLower(strings.TrimSpace(s))
	n, ok := parseNumber(strings.TrimSuffix(strings.TrimSuffix(low, "b"), "i"), 1024)
	if !ok || n > math.MaxInt64/2 {
		return 0, bad
	}
	return int64(n), nil
}

// parseNumber reads a decimal number and perhaps k, m, g or t: that power of the thousand given.
func parseNumber(s string, thousand float64) (n float64, ok bool) {
	unit := 1.0
	if s == "" {
		return 0, false
	}
	if at := strings.IndexByte("kmgt", s[len(s)-1]); at >= 0 {
		unit = math.Pow(thousand, float64(at+1))
		s = strings.TrimSpace(s[:len(s)-1])
	}
	// ParseFloat alone would take "inf", "0x1p4" and "1_000".
	if s == "" || strings.Trim(s, "0123456789.") != "" {
		return 0, false
	}
	n, err := strconv.ParseFloat(s, 64)
	return n * unit, err == nil
}

// minRate lets a full packet through every two seconds (netbridge has the same bound).
const minRate = 8_000

// parseRate reads "10m", "1.5gbit", "500kbit/s": bits per second, in powers of 1000 as networks have it.
func parseRate(s string) (int64, error) {
	bad := fmt.Errorf("rate %q: want bits per second as a number and k, m, g or t, as in 10m", s)
	n, ok := parseNumber(strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(strings.TrimSpace(s)), "/s"), "bit"), 1000)
	switch {
	case !ok:
		return 0, bad
	case n < minRate || n > maxRate:
		return 0, fmt.Errorf("rate %q: want 8k to 1000t bits per second", s)
	}
	return int64(n), nil
}

// parseCpuset checks a list like 0-2,5 (cpuset(7), list format) before a kernel says only "invalid argument".
func parseCpuset(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	for part := range strings.SplitSeq(s, ",") {
		low, high, ranged := strings.Cut(part, "-")
		a, err := strconv.ParseUint(low, 10, 16)
		b := a
		if err == nil && ranged {
			b, err = strconv.ParseUint(high, 10, 16)
		}
		if err != nil || b < a {
			return "", fmt.Errorf("--cpuset %q: want processors as in 0-2,5", s)
		}
	}
	return s, nil
}
