package probe

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/learnos/learnos/runtime"
)

// TestProbeSocketMemory: what hangs on sockets and is charged to no cgroup still ends with who takes it. Each way asks for
// ten times the limit, which the machine can spare for some seconds, and then holds on for fifteen.
func TestProbeSocketMemory(t *testing.T) {
	const limit, ask = 48, 480
	for _, c := range []struct{ way, hold, what string }{
		{"errors", "15s", "errors that are kept (IP_RECVERR)"},
		{"stamps", "15s", "datagrams kept with the time of their leaving (SO_TIMESTAMPING)"},
		{"echo", "15s", "answers to pings"},
		{"raw", "15s", "what comes in on raw sockets"},
		{"routing", "15s", "options of IPv6 sockets (IPV6_2292PKTOPTIONS)"},
		{"md5", "15s", "keys of TCP sockets (TCP_MD5SIG)"},
		{"backlog", "15s", "connections that nobody accepted and whose other end is closed"},
		{"unaccepted", "15s", "data on connections that nobody accepted"},
		{"disconnected", "15s", "errors on sockets that have given up their port"},
		{"flight", "15s", "sockets on their way to nowhere"},
		{"disguised", "15s", "sockets on their way to nowhere among others with misleading names"},
		{"crowd", "15s", "answers to pings, beside millions of descriptors"},
		// These are counted, and go no further than the limit: nothing to wait for.
		{"small", "0s", "datagrams of one byte"},
		{"filter", "0s", "filters of packets"},
		{"jail", "0s", "filters of system calls"},
		{"pty", "0s", "what nobody reads from terminals"},
	} {
		t.Run(c.way, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			args := append([]string{"run", "--rm", "--memory", strconv.Itoa(limit) + "m", "--cap-add", "NET_RAW"}, volume()...)
			r := finish(t, ctx, command(append(args, "busybox", "/inside", "swell", c.way, strconv.Itoa(ask), c.hold)...))
			got, _ := strconv.Atoi(strings.Fields(r.out + " 0")[0])
			t.Logf("%s: status %d, %q %s", c.what, r.code, strings.TrimSpace(r.out), strings.TrimSpace(r.err))
			if r.code != 0 && r.code != 137 {
				t.Fatal("it was not tried")
			}
			hole(t, c.way, r.code == 0 && got > 2*limit, "an environment of 48 MiB keeps "+strconv.Itoa(got)+" MiB of the kernel's memory: "+c.what)
		})
	}
}

// TestProbeHugePages: what the operator has reserved is out of reach, used or only mapped.
func TestProbeHugePages(t *testing.T) {
	const pool = "/proc/sys/vm/nr_hugepages"
	before := sysctl(t, "vm/nr_hugepages")
	if before == 0 {
		if os.Getenv("PROBE_BIN") == "" {
			t.Skip("no huge pages are reserved on this machine, which is not ours to change; the guest of tests/vm has some for this")
		}
		if err := os.WriteFile(pool, []byte("8"), 0); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.WriteFile(pool, []byte("0"), 0) }()
		if sysctl(t, "vm/nr_hugepages") == 0 {
			t.Skip("the machine has no memory in one piece")
		}
	}
	if _, unlimited := runtime.HugePages(); unlimited != nil {
		t.Skipf("meaningless here, and doctor says so: %v", unlimited)
	}
	if out, err := exec.Command(inside, "swell", "huge", "2", "0s").CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "2 <nil>" {
		t.Fatalf("the host itself can't have one: %s %v", out, err)
	}
	for _, way := range []string{"huge", "huge-mapped"} {
		r := try(t, append(append([]string{"run", "--rm"}, volume()...), "busybox", "/inside", "swell", way, "16", "0s")...)
		t.Logf("%s: status %d, %q", way, r.code, strings.TrimSpace(r.out))
		if got := strings.Fields(r.out + " ?")[0]; got != "0" && (r.code == 0 || got != "?") {
			t.Errorf("%s: it has %s MiB of them", way, got)
		}
	}
}
