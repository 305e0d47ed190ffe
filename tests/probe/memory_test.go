package probe

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"testing"
)

// socketMemory is how many MiB lie in the buffers of TCP and UDP on the whole machine.
func socketMemory(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/net/sockstat")
	if err != nil {
		t.Fatal(err)
	}
	pages := 0
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		for i := range f {
			if (f[0] == "TCP:" || f[0] == "UDP:") && f[i] == "mem" && i+1 < len(f) {
				n, _ := strconv.Atoi(f[i+1])
				pages += n
			}
		}
	}
	return pages * os.Getpagesize() >> 20
}

// TestProbeNetworkMemory: memory that the kernel takes for somebody's sockets counts as theirs. The limit is 48 MiB; each
// way asks for ten times as much, which the machine can spare for the second that it lasts.
func TestProbeNetworkMemory(t *testing.T) {
	const limit, ask = 48, 480
	for _, way := range []string{"tcp", "udp", "unix", "netlink", "netlink-unread", "netlink-threads", "ring", "send-ring"} {
		t.Run(way, func(t *testing.T) {
			before := socketMemory(t)
			c := command(append(append([]string{"run", "--rm", "--memory", strconv.Itoa(limit) + "m"}, volume()...), "busybox", "/inside", "swell", way, strconv.Itoa(ask), "5s")...)
			out, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
			said := ""
			if lines := bufio.NewScanner(out); lines.Scan() { // it has what it gets, or was killed for it
				said = lines.Text()
			}
			got, _ := strconv.Atoi(strings.Fields(said + " 0")[0])
			held := socketMemory(t) - before
			t.Logf("%q, %d MiB in buffers of TCP and UDP", said, held)
			switch way {
			case "tcp", "udp": // what was sent need not be kept: what counts is what the machine holds
				hole(t, way, held > 3*limit, "an environment of 48 MiB holds "+strconv.Itoa(held)+" MiB of network buffers")
			default:
				hole(t, way, got > 2*limit, "an environment of 48 MiB gets "+said+" MiB of the kernel's memory for sockets")
			}
		})
	}
}
