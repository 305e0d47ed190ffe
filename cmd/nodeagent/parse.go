package main

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/netbridge"
	"github.com/learnos/learnos/nodeagent"
)

// parseSize reads "64m", "512KiB", "1.5g", "1048576": powers of 1024, as docker has it.
func parseSize(s string) (int64, error) {
	bad := fmt.Errorf("size %q: want a number and k, m, g or t, as in 512m", s)
	low := strings.ToLower(strings.TrimSpace(s))
	low = strings.TrimSuffix(strings.TrimSuffix(low, "b"), "i")
	unit := 1.0
	if low == "" {
		return 0, bad
	}
	if at := strings.IndexByte("kmgt", low[len(low)-1]); at >= 0 {
		unit = math.Pow(1024, float64(at+1))
		low = strings.TrimSpace(low[:len(low)-1])
	}
	// ParseFloat alone would take "inf", "0x1p4" and "1_000".
	if low == "" || strings.Trim(low, "0123456789.") != "" {
		return 0, bad
	}
	n, err := strconv.ParseFloat(low, 64)
	if err != nil || n*unit > math.MaxInt64/2 {
		return 0, bad
	}
	return int64(n * unit), nil
}

// minMemory is what init itself needs to begin, with a little room.
const minMemory = 6 << 20

// minPIDs leaves room for init's own threads beside the command; maxPIDs is as many as a kernel can count.
const (
	minPIDs = 16
	maxPIDs = 1 << 22
)

func parseMemory(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := parseSize(s)
	if err != nil {
		return 0, fmt.Errorf("--memory: %w", err)
	}
	if n < minMemory {
		return 0, fmt.Errorf("--memory %s: too small, an environment needs at least 6m", s)
	}
	return n, nil
}

// parsePort reads [IP:]HOSTPORT:PORT[/udp|/tcp].
func parsePort(s string) (netbridge.Port, error) {
	bad := fmt.Errorf("-p %q: want [IP:]HOSTPORT:PORT[/udp], as in 8080:80", s)
	var p netbridge.Port
	rest, proto, given := strings.Cut(s, "/")
	p.Proto = "tcp"
	if given {
		if proto != "tcp" && proto != "udp" {
			return p, bad
		}
		p.Proto = proto
	}
	parts := strings.Split(rest, ":")
	if len(parts) == 3 {
		ip, err := netip.ParseAddr(parts[0])
		if err != nil || !ip.Is4() {
			return p, bad
		}
		p.HostIP = ip
		parts = parts[1:]
	}
	if len(parts) != 2 {
		return p, bad
	}
	for i, into := range []*uint16{&p.HostPort, &p.Port} {
		n, err := strconv.ParseUint(parts[i], 10, 16)
		if err != nil || n == 0 {
			return p, fmt.Errorf("-p %q: %q is not a port (1 to 65535)", s, parts[i])
		}
		*into = uint16(n)
	}
	return p, nil
}

// parseVolume reads SRC:DST[:ro|:rw]; SRC may be relative to the working directory if it begins with a dot.
func parseVolume(s string) (nodeagent.Volume, error) {
	var v nodeagent.Volume
	bad := fmt.Errorf("-v %q: want SRC:DST[:ro] with absolute paths", s)
	parts := strings.Split(s, ":")
	switch {
	case len(parts) == 3 && parts[2] == "ro":
		v.ReadOnly = true
	case len(parts) == 3 && parts[2] == "rw", len(parts) == 2:
	default:
		return v, bad
	}
	v.Source, v.Destination = parts[0], parts[1]
	if strings.HasPrefix(v.Source, ".") {
		abs, err := filepath.Abs(v.Source)
		if err != nil {
			return v, err
		}
		v.Source = abs
	}
	if !filepath.IsAbs(v.Source) || !filepath.IsAbs(v.Destination) {
		return v, bad
	}
	return v, nil
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

// parseSignal reads "TERM", "SIGTERM" or "15".
func parseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > 64 {
			return 0, fmt.Errorf("signal %d: want 1 to 64", n)
		}
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("signal %q: want a name such as TERM or a number", s)
}

var errNoEnv = errors.New("say which environment (see `nodeagent ps`)")
