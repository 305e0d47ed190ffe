package main

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/netbridge"
	"github.com/learnos/learnos/nodeagent"
)

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
