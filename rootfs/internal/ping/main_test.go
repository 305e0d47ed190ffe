package main

import (
	"bytes"
	"errors"
	"os"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The words are busybox' own: scripts read them.
func TestScore(t *testing.T) {
	s, begin := &score{}, time.Now()
	s.ask(begin)
	s.ask(begin)
	for _, c := range []struct {
		a    answer
		want string
	}{
		{answer{seq: 0, ttl: 64, at: begin.Add(1500 * time.Microsecond)}, "seq=0 ttl=64 time=1.500 ms"},
		{answer{seq: 0, ttl: 64, at: begin.Add(time.Second)}, "seq=0 ttl=64 (DUP!)"},
		{answer{seq: 9, ttl: -1, at: begin}, "seq=9 (DUP!)"},
	} {
		if got := s.note(c.a); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	want := "2 packets transmitted, 1 packets received, 2 duplicates, 50% packet loss\nround-trip min/avg/max = 1.500/1.500/1.500 ms"
	if s.String() != want {
		t.Errorf("%q, want %q", s, want)
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"/bin/ping6", "-qc3", "-i", "0.1", "-W1", "-s", "0", "-w", "2.5", "-t9", "host"})
	if err != nil || o.count != 3 || o.interval != 0.1 || o.linger != 1 || o.size != 0 || o.deadline != 2.5 || o.ttl != 9 || !o.quiet || !o.v6 || o.host != "host" {
		t.Errorf("%+v, %v", o, err)
	}
	for _, bad := range []string{"", "a b", "-s -1 a", "-s 65508 a", "-t 256 a", "-i 0 a", "-i NaN a", "-W -1 a", "-c x a", "-z a"} {
		if _, err := parse(append([]string{"ping"}, strings.Fields(bad)...)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// It answers as its statuses say: somebody did, nobody did.
func TestPingLoopback(t *testing.T) {
	// In a network of its own, where this is as in an environment. The thread ends with the test.
	runtime.LockOSThread()
	lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}}
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWNET), netlink.LinkSetUp(lo),
		os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 65535"), 0)); err != nil {
		t.Fatal(err, "(these tests need root)")
	}
	var out, errs bytes.Buffer
	if code := run([]string{"ping", "-c2", "-i", "0.01", "-W1", "127.0.0.1"}, &out, &errs); code != 0 {
		t.Fatalf("status %d: %s%s", code, &out, &errs)
	}
	if !regexp.MustCompile(`(?s)^PING 127.0.0.1 \(127.0.0.1\): 56 data bytes\n64 bytes from 127.0.0.1: seq=0 ttl=\d+ time=.*2 packets received, 0% packet loss`).Match(out.Bytes()) {
		t.Error(&out)
	}
	if code := run([]string{"ping", "-c1", "nowhere.invalid"}, &out, &errs); code != 1 || !strings.Contains(errs.String(), "bad address 'nowhere.invalid'") {
		t.Errorf("status %d: %s", code, &errs)
	}
}
