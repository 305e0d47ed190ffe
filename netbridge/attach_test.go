package netbridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestAttachReachesOutside(t *testing.T) {
	b := openBridge(t, testConfig(t))
	a, ns := attach(t, b, "env-a", AttachOptions{Hostname: "box"})
	serve(t, outside, "tcp4", publicAddress+":80", "web")
	serve(t, outside, "udp4", publicAddress+":123", "time")
	mustAnswer(t, ns, "tcp4", publicAddress+":80", "web")
	mustAnswer(t, ns, "udp4", publicAddress+":123", "time")
	mustPing(t, ns, publicAddress)
	mustPing(t, ns, a.Gateway.String())

	eth0 := linkIn(t, ns, "eth0").Attrs()
	if eth0.MTU != uplinkMTU || eth0.HardwareAddr.String() != a.MAC.String() {
		t.Errorf("eth0 has MTU %d and MAC %s, want the uplink's %d and %s", eth0.MTU, eth0.HardwareAddr, uplinkMTU, a.MAC)
	}
	if !b.subnet.Contains(a.Gateway) || a.Prefix != netip.PrefixFrom(a.IP, 32) || !pool.Contains(a.IP) {
		t.Errorf("odd attachment %+v", a)
	}
	again, err := b.Attachment("env-a")
	if err != nil || again.IP != a.IP || again.Hostname != "box" {
		t.Errorf("Attachment: %+v, %v; want %+v", again, err, a)
	}
}

// The neighbour table is one for the machine: whatever is sent from inside, and by whatever means, asks for nobody.
func TestNobodyIsAskedFor(t *testing.T) {
	b := openBridge(t, testConfig(t))
	a, ns := attach(t, b, "env-a", AttachOptions{})
	serve(t, outside, "udp4", publicAddress+":123", "time")
	err := in(ns, func() error {
		routes := output(t, "ip", "route")
		if want := fmt.Sprintf("default via %s dev eth0 \n%s dev eth0 scope link \n", a.Gateway, a.Gateway); routes != want {
			t.Errorf("routes inside:\n%swant\n%s", routes, want)
		}
		for _, way := range []struct {
			bound bool
			flags int
		}{{false, 0}, {true, 0}, {false, unix.MSG_DONTROUTE}, {true, unix.MSG_DONTROUTE}} {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return err
			}
			if way.bound {
				if err := unix.BindToDevice(fd, "eth0"); err != nil {
					return err
				}
			}
			to := b.subnet.Addr()
			for range 50 {
				if to = to.Next(); to == a.IP || to == a.Gateway {
					continue
				}
				_ = unix.Sendto(fd, []byte{0}, way.flags, &unix.SockaddrInet4{Port: 9, Addr: to.As4()})
				_ = unix.Sendto(fd, []byte{0}, way.flags, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{192, 0, 2, to.As4()[3]}})
			}
			unix.Close(fd)
		}
		known := output(t, "ip", "neigh", "show", "nud", "all", "dev", "eth0")
		if strings.Count(known, "\n") != 1 || !strings.HasPrefix(known, a.Gateway.String()+" ") || !strings.Contains(known, "PERMANENT") {
			t.Errorf("neighbours inside:\n%swant the gateway", known)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	mustAnswer(t, ns, "udp4", publicAddress+":123", "time")
}

func TestNoIPv6Inside(t *testing.T) {
	b := openBridge(t, testConfig(t))
	_, ns := attach(t, b, "env-a", AttachOptions{})
	in(ns, func() error {
		if out := output(t, "ip", "-6", "addr", "show", "dev", "eth0"); out != "" {
			t.Errorf("eth0 has IPv6 addresses:\n%s", out)
		}
		return nil
	})
	for _, link := range []string{b.cfg.Name, b.linkName(mustAttachment(t, b, "env-a").IP)} {
		if out := output(t, "ip", "-6", "addr", "show", "dev", link); out != "" {
			t.Errorf("%s has IPv6 addresses:\n%s", link, out)
		}
	}
}

func mustAttachment(t testing.TB, b *Bridge, id string) *Attachment {
	t.Helper()
	a, err := b.Attachment(id)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mustPing(t testing.TB, ns *os.File, address string) {
	t.Helper()
	if err := in(ns, func() error { return command("ping", "-c1", "-W2", address) }); err != nil {
		t.Error(err)
	}
}

func TestAttachRefusesNonsense(t *testing.T) {
	b := openBridge(t, testConfig(t))
	attach(t, b, "env-a", AttachOptions{})
	own, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	uts, err := os.Open("/proc/self/ns/uts")
	if err != nil {
		t.Fatal(err)
	}
	defer uts.Close()
	for name, c := range map[string]struct {
		id string
		ns *os.File
		o  AttachOptions
	}{
		"attached already":  {"env-a", newNetns(t), AttachOptions{}},
		"path as id":        {"../x", newNetns(t), AttachOptions{}},
		"empty id":          {"", newNetns(t), AttachOptions{}},
		"the host itself":   {"env-b", own, AttachOptions{}},
		"no netns":          {"env-b", uts, AttachOptions{}},
		"port zero":         {"env-b", newNetns(t), AttachOptions{Ports: []Port{{HostPort: 0, Port: 1}}}},
		"unknown protocol":  {"env-b", newNetns(t), AttachOptions{Ports: []Port{{HostPort: 1, Port: 1, Proto: "sctp"}}}},
		"IPv6 host address": {"env-b", newNetns(t), AttachOptions{Ports: []Port{{HostIP: netip.MustParseAddr("::1"), HostPort: 1, Port: 1}}}},
		"tiny rate":         {"env-b", newNetns(t), AttachOptions{NetUp: 1}},
		"foreign address":   {"env-b", newNetns(t), AttachOptions{Ports: []Port{{HostIP: netip.MustParseAddr("192.0.2.77"), HostPort: 1, Port: 1}}}},
	} {
		if _, err := b.Attach(t.Context(), c.id, c.ns, c.o); err == nil {
			t.Errorf("%s: no error", name)
		} else {
			t.Logf("%s: %v", name, err)
			if name == "the host itself" && !strings.Contains(err.Error(), "host's own") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if _, err := b.Attachment("env-b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a failed Attach left %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Attach(ctx, "env-c", newNetns(t), AttachOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Attach with a cancelled context: %v", err)
	}
}

func TestAttachFailureLeavesNothing(t *testing.T) {
	b := openBridge(t, testConfig(t))
	ns := newNetns(t)
	if err := in(ns, func() error { return command("ip", "link", "add", "eth0", "type", "bridge") }); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Attach(t.Context(), "env-a", ns, AttachOptions{Ports: []Port{{HostPort: 8080, Port: 80}}}); err == nil {
		t.Fatal("attached a namespace that has an eth0")
	} else {
		t.Log(err)
	}
	mustBeEmpty(t, b)
	attach(t, b, "env-a", AttachOptions{Ports: []Port{{HostPort: 8080, Port: 80}}})
}

// mustBeEmpty checks that the kernel and the state directory hold nothing of any attachment.
func mustBeEmpty(t testing.TB, b *Bridge) {
	t.Helper()
	b.background.Wait()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	prefix := portPrefix(b.cfg.Name)
	for _, l := range links {
		if n := l.Attrs().Name; n[:min(len(n), 7)] == prefix || n[:min(len(n), 7)] == "li"+prefix[2:] {
			t.Errorf("link %s is left", n)
		}
	}
	for _, dir := range []string{b.leaseDir(), b.cfg.StateDir + "/ids"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			t.Errorf("%s/%s is left", dir, e.Name())
		}
	}
	if !b.rules.loaded(nil) {
		t.Errorf("rules are not those of an empty bridge:\n%s", output(t, "nft", "list", "ruleset"))
	}
	neighbours, err := netlink.NeighList(b.index, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range neighbours {
		if n.State == netlink.NUD_PERMANENT {
			t.Errorf("neighbour %s is left", n.IP)
		}
	}
}

func TestDetach(t *testing.T) {
	b := openBridge(t, testConfig(t))
	a, ns := attach(t, b, "env-a", AttachOptions{Ports: []Port{{HostPort: 8080, Port: 80}, {HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 5353, Port: 53, Proto: "udp"}}})
	serve(t, outside, "udp4", publicAddress+":123", "time")
	serve(t, ns, "tcp4", a.IP.String()+":80", "published")
	mustAnswer(t, ns, "udp4", publicAddress+":123", "time")
	mustAnswer(t, outside, "tcp4", hostAddress+":8080", "published")
	if flowsOf(t, a.IP) == 0 {
		t.Fatal("no connections of the environment are tracked: the test tests nothing")
	}
	for range 2 { // twice: idempotent
		if err := b.Detach(t.Context(), "env-a"); err != nil {
			t.Fatal(err)
		}
	}
	if n := flowsOf(t, a.IP); n != 0 {
		t.Errorf("%d connections of the environment are still tracked", n)
	}
	mustNotAnswer(t, ns, "udp4", publicAddress+":123")
	mustNotAnswer(t, outside, "tcp4", hostAddress+":8080")
	if _, err := b.Attachment("env-a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Attachment after Detach: %v", err)
	}
	if _, err := b.Stats(t.Context(), "env-a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Stats after Detach: %v", err)
	}
	mustBeEmpty(t, b)
}

// Only an environment that never used its link is spared the walk through the connection table.
func TestSilent(t *testing.T) {
	b := openBridge(t, testConfig(t))
	a, ns := attach(t, b, "env-a", AttachOptions{})
	v, _ := attach(t, b, "env-v", AttachOptions{})
	p, _ := attach(t, b, "env-p", AttachOptions{Ports: []Port{{HostPort: 8080, Port: 80}}})
	serve(t, outside, "udp4", publicAddress+":123", "time")
	for _, l := range []*lease{{IP: a.IP}, {IP: v.IP}} {
		if !b.silent(l) {
			t.Errorf("%s is not silent before it has sent a packet", l.IP)
		}
	}
	mustAnswer(t, ns, "udp4", publicAddress+":123", "time")
	_, _ = ask(nil, "udp4", v.IP.String()+":9", 100*time.Millisecond) // refused: it only answers
	for what, l := range map[string]*lease{"sent": {IP: a.IP}, "was sent to": {IP: v.IP}, "publishes": {IP: p.IP, Ports: p.Ports}, "has no link": {IP: p.IP.Next()}} {
		if b.silent(l) {
			t.Errorf("one that %s counts as silent", what)
		}
	}
}

// The namespace is alive when Detach returns: it must be cut off at once, not when its link is deleted.
func TestDetachCutsOffAtOnce(t *testing.T) {
	b := openBridge(t, testConfig(t))
	a, ns := attach(t, b, "env-a", AttachOptions{})
	unlock, err := b.lock()
	if err != nil {
		t.Fatal(err)
	}
	err = b.release(&lease{ID: a.ID, IP: a.IP}) // Detach without its background part
	unlock()
	if err != nil {
		t.Fatal(err)
	}
	serve(t, outside, "udp4", publicAddress+":123", "time")
	mustNotAnswer(t, ns, "udp4", publicAddress+":123")
	// Its link keeps its name; the next environment of that address gets it all the same.
	if err := os.Remove(b.cursorPath()); err != nil {
		t.Fatal(err)
	}
	l := &lease{ID: "env-b", IP: a.IP}
	if err := b.writeLease(l); err != nil {
		t.Fatal(err)
	}
	next := newNetns(t)
	nb := b.attachment(l)
	if err := b.rules.add(nb); err != nil {
		t.Fatal(err)
	}
	if err := b.connect(t.Context(), nb, next); err != nil {
		t.Fatal(err)
	}
	mustAnswer(t, next, "udp4", publicAddress+":123", "time")
}

// flowsOf counts tracked connections that touch the address.
func flowsOf(t testing.TB, ip netip.Addr) int {
	t.Helper()
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range flows {
		for _, x := range []net.IP{f.Forward.SrcIP, f.Forward.DstIP, f.Reverse.SrcIP, f.Reverse.DstIP} {
			if x.Equal(ip.AsSlice()) {
				n++
				break
			}
		}
	}
	return n
}

func TestAddressesRestBeforeTheyAreGivenAgain(t *testing.T) {
	cfg := testConfig(t)
	cfg.Subnet = netip.MustParsePrefix("10.77.0.0/29") // five environments
	b := openBridge(t, cfg)
	seen := make(map[netip.Addr]int)
	for i := range 10 {
		id := fmt.Sprintf("env-%d", i)
		ns := newNetns(t)
		a, err := b.Attach(t.Context(), id, ns, AttachOptions{})
		if err != nil {
			t.Fatal(err)
		}
		seen[a.IP]++
		if want := i/5 + 1; seen[a.IP] != want {
			t.Errorf("address %s given %d times after %d attaches", a.IP, seen[a.IP], i+1)
		}
		if err := b.Detach(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	b.background.Wait()
	for i := range 5 {
		attach(t, b, fmt.Sprintf("full-%d", i), AttachOptions{})
	}
	if _, err := b.Attach(t.Context(), "one-more", newNetns(t), AttachOptions{}); !errors.Is(err, ErrFull) {
		t.Errorf("attach to a full subnet: %v", err)
	}
}

func TestStats(t *testing.T) {
	b := openBridge(t, testConfig(t))
	_, ns := attach(t, b, "env-a", AttachOptions{})
	const down, up = 3 << 20, 1 << 20
	c, far := connectionFrom(t, ns)
	go func() {
		io.CopyN(io.Discard, far, up)
		far.Write(make([]byte, down))
		far.Close()
	}()
	c.Write(make([]byte, up))
	if n, err := io.Copy(io.Discard, c); n != down || err != nil {
		t.Fatalf("read %d bytes, %v", n, err)
	}
	s, err := b.Stats(t.Context(), "env-a")
	if err != nil {
		t.Fatal(err)
	}
	if s.RxBytes < down || s.RxBytes > down*11/10 || s.TxBytes < up || s.TxBytes > up*13/10 || s.RxPackets == 0 || s.TxPackets == 0 {
		t.Errorf("counted %+v for %d bytes down and %d up", s, down, up)
	}
}

func TestLoopback(t *testing.T) {
	ns := newNetns(t)
	if err := Loopback(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	serve(t, ns, "tcp4", "127.0.0.1:80", "me")
	serve(t, ns, "tcp6", "[::1]:80", "me6")
	mustAnswer(t, ns, "tcp4", "127.0.0.1:80", "me")
	mustAnswer(t, ns, "tcp6", "[::1]:80", "me6")
	mustNotAnswer(t, ns, "tcp4", publicAddress+":80")
}

func BenchmarkAttach(bm *testing.B) {
	b := openBridge(bm, testConfig(bm))
	var attachTime, detachTime time.Duration
	for i := range bm.N {
		ns := newNetns(bm)
		id := fmt.Sprintf("bench-%d", i)
		start := time.Now()
		_, err := b.Attach(bm.Context(), id, ns, AttachOptions{})
		attachTime += time.Since(start)
		if err != nil {
			bm.Fatal(err)
		}
		start = time.Now()
		err = b.Detach(bm.Context(), id)
		detachTime += time.Since(start)
		if err != nil {
			bm.Fatal(err)
		}
		ns.Close()
	}
	bm.ReportMetric(float64(attachTime.Microseconds())/float64(bm.N), "µs/attach")
	bm.ReportMetric(float64(detachTime.Microseconds())/float64(bm.N), "µs/detach")
}

// BenchmarkAttachEight is what a node does that starts and ends eight environments at once.
func BenchmarkAttachEight(bm *testing.B) {
	b := openBridge(bm, testConfig(bm))
	var attachTime, detachTime atomic.Int64
	for i := range bm.N {
		var wg sync.WaitGroup
		for j := range 8 {
			ns := newNetns(bm)
			wg.Go(func() {
				id := fmt.Sprintf("bench-%d-%d", i, j)
				start := time.Now()
				if _, err := b.Attach(bm.Context(), id, ns, AttachOptions{}); err != nil {
					bm.Error(err)
				}
				attachTime.Add(time.Since(start).Microseconds())
				start = time.Now()
				if err := b.Detach(bm.Context(), id); err != nil {
					bm.Error(err)
				}
				detachTime.Add(time.Since(start).Microseconds())
				ns.Close()
			})
		}
		wg.Wait()
	}
	bm.ReportMetric(float64(attachTime.Load())/float64(8*bm.N), "µs/attach")
	bm.ReportMetric(float64(detachTime.Load())/float64(8*bm.N), "µs/detach")
}

func BenchmarkOpen(bm *testing.B) {
	cfg := testConfig(bm)
	b := openBridge(bm, cfg)
	for i := range 50 {
		if _, err := b.Attach(bm.Context(), fmt.Sprintf("env-%d", i), newNetns(bm), AttachOptions{}); err != nil {
			bm.Fatal(err)
		}
	}
	for bm.Loop() {
		again, err := Open(bm.Context(), cfg)
		if err != nil {
			bm.Fatal(err)
		}
		again.Close()
	}
}

func BenchmarkStats(bm *testing.B) {
	b := openBridge(bm, testConfig(bm))
	if _, err := b.Attach(bm.Context(), "env", newNetns(bm), AttachOptions{}); err != nil {
		bm.Fatal(err)
	}
	for bm.Loop() {
		if _, err := b.Stats(bm.Context(), "env"); err != nil {
			bm.Fatal(err)
		}
	}
}
