package main

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseSize(t *testing.T) {
	good := map[string]int64{"1": 1, "64k": 64 << 10, "64K": 64 << 10, "64m": 64 << 20, "64MiB": 64 << 20, "64mb": 64 << 20, "1.5g": 3 << 29, "2t": 2 << 40, " 7 m ": 7 << 20}
	for in, want := range good {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "m", "-1m", "1x", "0x10", "inf", "nan", "1e9", "1_0", "99999999t", "1.2.3m", "mm"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q) = %d; want an error", in, got)
		}
	}
}

func TestParsePort(t *testing.T) {
	p, err := parsePort("127.0.0.1:8080:80/udp")
	if err != nil || p.HostIP != netip.MustParseAddr("127.0.0.1") || p.HostPort != 8080 || p.Port != 80 || p.Proto != "udp" {
		t.Errorf("got %+v, %v", p, err)
	}
	for _, in := range []string{"", "80", "a:80", "80:0", "0:80", "80:70000", "1:2:3:4", "80:80/sctp", "::1:80:80", "80:80/", "300.0.0.1:1:2"} {
		if p, err := parsePort(in); err == nil {
			t.Errorf("parsePort(%q) = %+v; want an error", in, p)
		}
	}
}

func TestParseVolume(t *testing.T) {
	v, err := parseVolume("/a:/b:ro")
	if err != nil || v.Source != "/a" || v.Destination != "/b" || !v.ReadOnly {
		t.Errorf("got %+v, %v", v, err)
	}
	for _, in := range []string{"", "/a", "a:/b", "/a:b", "/a:/b:rx", "/a:/b:ro:x"} {
		if v, err := parseVolume(in); err == nil {
			t.Errorf("parseVolume(%q) = %+v; want an error", in, v)
		}
	}
}

func TestParseCpuset(t *testing.T) {
	for _, in := range []string{"", "0", "0-2", "0-2,5,7-7"} {
		if got, err := parseCpuset(in); err != nil || got != in {
			t.Errorf("parseCpuset(%q) = %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"-", "a", "2-1", "0,", ",0", "0-", "0 1", "-1"} {
		if _, err := parseCpuset(in); err == nil {
			t.Errorf("parseCpuset(%q): want an error", in)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for _, in := range []string{"TERM", "term", "SIGTERM", "15"} {
		if got, err := parseSignal(in); err != nil || got != unix.SIGTERM {
			t.Errorf("parseSignal(%q) = %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "NOPE", "0", "65", "-1"} {
		if got, err := parseSignal(in); err == nil {
			t.Errorf("parseSignal(%q) = %v; want an error", in, got)
		}
	}
}

func TestPlainKeepsTenantsFromSteeringTerminals(t *testing.T) {
	if got := plain("a\x1b[2Jb\u009bc\n"); strings.ContainsAny(got, "\x1b\u009b\n") {
		t.Errorf("got %q", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"64m", "1.5gbit/s", "127.0.0.1:80:80/udp", "/a:/b:ro", "0-2,5", "SIGTERM"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseSize(s); err == nil && n < 0 {
			t.Errorf("size %q is %d", s, n)
		}
		if n, err := parseRate(s); err == nil && (n < minRate || n > maxRate) {
			t.Errorf("rate %q is %d", s, n)
		}
		if p, err := parsePort(s); err == nil && (p.HostPort == 0 || p.Port == 0) {
			t.Errorf("port %q is %+v", s, p)
		}
		if v, err := parseVolume(s); err == nil && (v.Source == "" || v.Destination[0] != '/') {
			t.Errorf("volume %q is %+v", s, v)
		}
		if _, err := parseCpuset(s); err == nil && strings.Trim(s, "0123456789-,") != "" {
			t.Errorf("cpuset %q passed", s)
		}
		_, _ = parseSignal(s)
	})
}
