package netbridge

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestEnvironmentsCannotReachEachOther(t *testing.T) {
	b := openBridge(t, testConfig(t))
	a, nsA := attach(t, b, "env-a", AttachOptions{})
	v, nsV := attach(t, b, "env-v", AttachOptions{})
	serve(t, nsV, "tcp4", v.IP.String()+":80", "secret")
	serve(t, nsV, "udp4", v.IP.String()+":80", "secret")
	mustAnswer(t, nil, "tcp4", v.IP.String()+":80", "secret") // the host may
	mustNotAnswer(t, nsA, "tcp4", v.IP.String()+":80")
	mustNotAnswer(t, nsA, "udp4", v.IP.String()+":80")
	// By way of the gateway instead of the bridge, and with the neighbour's MAC known.
	for _, line := range []string{
		"route add " + v.IP.String() + " via " + a.Gateway.String(),
		"neigh replace " + v.IP.String() + " lladdr " + v.MAC.String() + " dev eth0",
	} {
		if err := ipIn(nsA, line); err != nil {
			t.Fatal(err)
		}
		mustNotAnswer(t, nsA, "tcp4", v.IP.String()+":80")
		mustNotAnswer(t, nsA, "udp4", v.IP.String()+":80")
		if strings.HasPrefix(line, "route") {
			if err := ipIn(nsA, "route del "+v.IP.String()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestHostIsClosed(t *testing.T) {
	b := openBridge(t, testConfig(t))
	a, ns := attach(t, b, "env-a", AttachOptions{})
	for _, network := range []string{"tcp4", "udp4"} {
		serve(t, nil, network, "0.0.0.0:7000", "host")
		mustAnswer(t, nil, network, "127.0.0.1:7000", "host")
		mustAnswer(t, outside, network, hostAddress+":7000", "host")
		mustNotAnswer(t, ns, network, a.Gateway.String()+":7000")
		mustNotAnswer(t, ns, network, hostAddress+":7000")
	}
	// route_localnet is on for the bridge, so 127.0.0.1 of the host must be closed by rule.
	for _, line := range []string{"addr flush dev lo", "route flush table local dev lo", "route add 127.0.0.1 via " + a.Gateway.String() + " src " + a.IP.String()} {
		if err := ipIn(ns, line); err != nil {
			t.Fatal(err)
		}
	}
	if err := in(ns, func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/all/route_localnet", []byte("1"), 0) }); err != nil {
		t.Fatal(err)
	}
	serve(t, nil, "tcp4", "127.0.0.1:7001", "loopback")
	mustNotAnswer(t, ns, "tcp4", "127.0.0.1:7001")
}

func TestClosedRanges(t *testing.T) {
	for _, address := range []string{publicAddress, privateAddress, metadataAddress, outsideAddress, resolverAddress} {
		serve(t, outside, "tcp4", address+":80", "web")
	}
	serve(t, outside, "tcp4", resolverAddress+":53", "dns")
	serve(t, outside, "udp4", resolverAddress+":53", "dns")
	for name, c := range map[string]struct {
		change func(*Config)
		open   []string
	}{
		"default":       {func(*Config) {}, nil},
		"one allowed":   {func(c *Config) { c.Allow = []netip.Prefix{netip.MustParsePrefix(privateAddress + "/32")} }, []string{privateAddress}},
		"wide allowed":  {func(c *Config) { c.Allow = prefixes([]string{"10.0.0.0/8", "10.9.0.0/16", "169.254.0.0/16"}) }, []string{privateAddress, resolverAddress}},
		"private open":  {func(c *Config) { c.BlockPrivate = false }, []string{privateAddress, resolverAddress, outsideAddress}},
		"no resolver":   {func(c *Config) { c.Resolvers = nil }, nil},
		"uplink opened": {func(c *Config) { c.Allow = prefixes([]string{"203.0.113.0/24"}) }, []string{outsideAddress}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			c.change(&cfg)
			b := openBridge(t, cfg)
			_, ns := attach(t, b, "env-a", AttachOptions{})
			mustAnswer(t, ns, "tcp4", publicAddress+":80", "web")
			for _, address := range []string{privateAddress, metadataAddress, outsideAddress, resolverAddress} {
				if slices.Contains(c.open, address) {
					mustAnswer(t, ns, "tcp4", address+":80", "web")
				} else {
					mustNotAnswer(t, ns, "tcp4", address+":80")
				}
			}
			for _, network := range []string{"tcp4", "udp4"} {
				if len(cfg.Resolvers) > 0 {
					mustAnswer(t, ns, network, resolverAddress+":53", "dns")
				} else {
					mustNotAnswer(t, ns, network, resolverAddress+":53")
				}
			}
		})
	}
}

// A resolver may be the host itself: its port 53 is open then, and nothing else of it.
func TestResolverOnTheHost(t *testing.T) {
	cfg := testConfig(t)
	cfg.Resolvers = []netip.Addr{netip.MustParseAddr(hostAddress)}
	b := openBridge(t, cfg)
	_, ns := attach(t, b, "env-a", AttachOptions{})
	serve(t, nil, "udp4", hostAddress+":53", "dns")
	serve(t, nil, "udp4", hostAddress+":54", "no dns")
	mustAnswer(t, ns, "udp4", hostAddress+":53", "dns")
	mustNotAnswer(t, ns, "udp4", hostAddress+":54")
}

// One environment must not be able to fill the host's connection table.
func TestConnectionsAreLimited(t *testing.T) {
	b := openBridge(t, testConfig(t))
	a, ns := attach(t, b, "env-a", AttachOptions{})
	_, other := attach(t, b, "env-b", AttachOptions{})
	serve(t, outside, "udp4", publicAddress+":123", "time")
	serve(t, outside, "tcp4", publicAddress+":80", "web")
	mustAnswer(t, ns, "tcp4", publicAddress+":80", "web")
	var c net.PacketConn
	if err := in(ns, func() (err error) {
		c, err = net.ListenPacket("udp4", ":0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	start := time.Now()
	for port := range 2 * maxFlows {
		c.WriteTo([]byte("?"), &net.UDPAddr{IP: net.ParseIP(publicAddress), Port: 10000 + port})
	}
	t.Logf("%v for each of %d flows, half of them refused", time.Since(start)/(2*maxFlows), 2*maxFlows)
	if n := flowsOf(t, a.IP); n > maxFlows+16 || n < maxFlows/2 {
		t.Errorf("%d connections are tracked, want %d", n, maxFlows)
	}
	mustNotAnswer(t, ns, "tcp4", publicAddress+":80")
	mustAnswer(t, other, "tcp4", publicAddress+":80", "web")
	if err := b.Detach(t.Context(), "env-a"); err != nil {
		t.Fatal(err)
	}
	if n := flowsOf(t, a.IP); n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

// Nor by asking the host, where the host is the resolver, nor with the help of somebody outside who visits its published
// ports; and whoever does that does not keep the environment from going out.
func TestConnectionsToHostAndInwardsAreLimited(t *testing.T) {
	cfg := testConfig(t)
	cfg.Resolvers = []netip.Addr{netip.MustParseAddr(hostAddress)}
	b := openBridge(t, cfg)
	serve(t, outside, "tcp4", publicAddress+":80", "web")
	serve(t, nil, "udp4", hostAddress+":53", "dns")
	flood := func(ns *os.File, to string) {
		err := in(ns, func() error {
			for range 2 * maxFlows {
				c, err := net.Dial("udp4", to) // each from a port of its own
				if err != nil {
					return err
				}
				_, _ = c.Write([]byte("?")) // may be refused
				c.Close()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	limited := func(a *Attachment) {
		t.Helper()
		if n := flowsOf(t, a.IP); n > maxFlows+16 || n < maxFlows/2 {
			t.Errorf("%d connections are tracked, want %d", n, maxFlows)
		}
	}
	a, ns := attach(t, b, "env-a", AttachOptions{})
	flood(ns, hostAddress+":53")
	limited(a)
	visited, other := attach(t, b, "env-b", AttachOptions{Ports: []Port{{HostPort: 5353, Port: 53, Proto: "udp"}}})
	serve(t, other, "udp4", ":53", "mine")
	mustAnswer(t, outside, "udp4", hostAddress+":5353", "mine")
	flood(outside, hostAddress+":5353")
	limited(visited)
	mustAnswer(t, other, "tcp4", publicAddress+":80", "web")
}

// capture collects frames a link delivers to the stack of its namespace.
type capture struct {
	mu     sync.Mutex
	frames []string
}

func (c *capture) has(part string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.frames, func(f string) bool { return strings.Contains(f, part) })
}

func packetSocket(t testing.TB, ns *os.File, link string) int {
	t.Helper()
	var fd int
	err := in(ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		ifi, err := interfaceIndex(link)
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifi})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func interfaceIndex(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return 0, err
	}
	return int(req.Uint32()), nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func listen(t testing.TB, ns *os.File, link string) *capture {
	fd := packetSocket(t, ns, link)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		t.Fatal(err)
	}
	c, stop, done := &capture{}, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			select {
			case <-stop:
				return
			default:
			}
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				continue
			}
			if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			c.mu.Lock()
			c.frames = append(c.frames, string(buf[:n]))
			c.mu.Unlock()
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
	return c
}

func sum16(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

// udpFrame is an Ethernet frame with a UDP datagram without checksum.
func udpFrame(dstMAC, srcMAC []byte, src, dst netip.Addr, payload string) []byte {
	udp := slices.Concat([]byte{0x30, 0x39, 0, 123}, binary.BigEndian.AppendUint16(nil, uint16(8+len(payload))), []byte{0, 0}, []byte(payload))
	ip := slices.Concat([]byte{0x45, 0}, binary.BigEndian.AppendUint16(nil, uint16(20+len(udp))), []byte{0, 1, 0, 0, 64, 17, 0, 0}, src.AsSlice(), dst.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], sum16(ip))
	return slices.Concat(dstMAC, srcMAC, []byte{8, 0}, ip, udp)
}

var broadcast = []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// arpFrame carries its mark after the message, where padding goes.
func arpFrame(srcMAC []byte, op byte, senderMAC []byte, sender netip.Addr, target netip.Addr, mark string) []byte {
	return slices.Concat(broadcast, srcMAC, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, op}, senderMAC, sender.AsSlice(), make([]byte, 6), target.AsSlice(), []byte(mark))
}

func TestSpoofedFramesAreDropped(t *testing.T) {
	b := openBridge(t, testConfig(t))
	a, nsA := attach(t, b, "env-a", AttachOptions{})
	v, nsV := attach(t, b, "env-v", AttachOptions{})
	gwMAC := macOf(a.Gateway)
	public := netip.MustParseAddr(publicAddress)
	otherMAC := []byte{2, 0, 0, 0, 0, 0x66}
	free := b.subnet.Addr()
	for range 100 {
		free = free.Next()
	}

	atHost, atVictim, atOutside := listen(t, nil, b.cfg.Name), listen(t, nsV, "eth0"), listen(t, outside, "eth0")
	raw := packetSocket(t, nsA, "eth0")
	send := func(frame []byte) {
		t.Helper()
		if err := unix.Send(raw, frame, 0); err != nil {
			t.Fatal(err)
		}
	}
	tagged := func(frame []byte, tags ...byte) []byte { return slices.Concat(frame[:12], tags, frame[12:]) }
	bad := map[string][]byte{
		"bad-source":         udpFrame(gwMAC, a.MAC, v.IP, public, "bad-source"),
		"bad-free-source":    udpFrame(gwMAC, a.MAC, free, public, "bad-free-source"),
		"bad-host-source":    udpFrame(gwMAC, a.MAC, netip.MustParseAddr(hostAddress), public, "bad-host-source"),
		"bad-gateway-source": udpFrame(gwMAC, a.MAC, a.Gateway, public, "bad-gateway-source"),
		"bad-zero-source":    udpFrame(broadcast, a.MAC, netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), "bad-zero-source"),
		"bad-mac":            udpFrame(gwMAC, otherMAC, a.IP, public, "bad-mac"),
		"bad-victims-mac":    udpFrame(gwMAC, v.MAC, a.IP, public, "bad-victims-mac"),
		"bad-both":           udpFrame(gwMAC, v.MAC, v.IP, public, "bad-both"),
		"bad-to-victim-mac":  udpFrame(v.MAC, a.MAC, a.IP, v.IP, "bad-to-victim-mac"),
		"bad-arp-gateway":    arpFrame(a.MAC, 2, a.MAC, a.Gateway, v.IP, "bad-arp-gateway"),
		"bad-arp-victim":     arpFrame(a.MAC, 2, a.MAC, v.IP, a.Gateway, "bad-arp-victim"),
		"bad-arp-sender-mac": arpFrame(a.MAC, 2, otherMAC, a.IP, a.Gateway, "bad-arp-sender-mac"),
		"bad-arp-frame-mac":  arpFrame(otherMAC, 2, a.MAC, a.IP, a.Gateway, "bad-arp-frame-mac"),
		"bad-arp-probe":      arpFrame(a.MAC, 1, a.MAC, netip.IPv4Unspecified(), v.IP, "bad-arp-probe"),
		"bad-ipv6":           slices.Concat([]byte{0x33, 0x33, 0, 0, 0, 1}, a.MAC, []byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 59, 1}, make([]byte, 32), []byte("bad-ipv6")),
		"bad-ethertype":      slices.Concat(broadcast, a.MAC, []byte{0x88, 0xb5}, []byte("bad-ethertype")),
		"bad-short":          slices.Concat(gwMAC, a.MAC, []byte{8, 0, 0x45}, []byte("bad-short")),
		"bad-priority-tag":   tagged(udpFrame(gwMAC, a.MAC, v.IP, public, "bad-priority-tag"), 0x81, 0, 0, 0),
		"bad-vlan-7":         tagged(udpFrame(gwMAC, a.MAC, a.IP, public, "bad-vlan-7"), 0x81, 0, 0, 7),
		"bad-double-vlan":    tagged(udpFrame(gwMAC, a.MAC, v.IP, public, "bad-double-vlan"), 0x81, 0, 0, 7, 0x81, 0, 0, 8),
	}
	send(udpFrame(gwMAC, a.MAC, a.IP, public, "good-first"))
	send(arpFrame(a.MAC, 1, a.MAC, a.IP, a.Gateway, "good-arp"))
	for _, frame := range bad {
		send(frame)
	}
	send(udpFrame(gwMAC, a.MAC, a.IP, public, "good-last"))

	deadline := time.Now().Add(10 * time.Second)
	for !(atOutside.has("good-first") && atOutside.has("good-last") && atHost.has("good-arp")) {
		if time.Now().After(deadline) {
			t.Fatal("honest frames did not arrive: the test tests nothing")
		}
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond)
	for name := range bad {
		// A tagged frame reaches the bridge device, which has no VLAN 7, and ends there.
		if name != "bad-vlan-7" && atHost.has(name) {
			t.Errorf("%s reached the host", name)
		}
		if atVictim.has(name) {
			t.Errorf("%s reached the other environment", name)
		}
		if atOutside.has(name) {
			t.Errorf("%s reached the outside", name)
		}
	}
	if atVictim.has("good-arp") {
		t.Error("an environment sees another one's broadcasts")
	}
}

// Environments of one bridge must not get in the way of another bridge's ports on the same host.
func TestForeignBridgesAndFirewallsAreLeftAlone(t *testing.T) {
	foreign := "table inet foreign {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;\n\t\tip saddr 192.0.2.1 drop\n\t}\n}\n"
	path := t.TempDir() + "/rules"
	if err := os.WriteFile(path, []byte(foreign), 0o600); err != nil {
		t.Fatal(err)
	}
	output(t, "nft", "-f", path)
	t.Cleanup(func() { output(t, "nft", "delete", "table", "inet", "foreign") })

	one, two := openBridge(t, testConfig(t)), openBridge(t, testConfig(t))
	if one.subnet.Overlaps(two.subnet) {
		t.Fatalf("two bridges have the subnets %s and %s", one.subnet, two.subnet)
	}
	a, nsA := attach(t, one, "env", AttachOptions{})
	b, nsB := attach(t, two, "env", AttachOptions{})
	serve(t, outside, "tcp4", publicAddress+":80", "web")
	serve(t, nsB, "tcp4", b.IP.String()+":80", "secret")
	mustAnswer(t, nsA, "tcp4", publicAddress+":80", "web")
	mustAnswer(t, nsB, "tcp4", publicAddress+":80", "web")
	mustNotAnswer(t, nsA, "tcp4", b.IP.String()+":80")
	_ = a
	if got := output(t, "nft", "list", "table", "inet", "foreign"); got != foreign {
		t.Errorf("the foreign table became\n%s", got)
	}
}

func TestIntervals(t *testing.T) {
	var got []string
	for _, e := range intervals(prefixes([]string{"10.1.0.0/16", "224.0.0.0/4", "10.0.0.0/8", "11.0.0.0/8", "240.0.0.0/4", "1.2.3.4/32"})) {
		a, _ := netip.AddrFromSlice(e.Key)
		s := a.String()
		if e.IntervalEnd {
			s = "-" + s
		}
		got = append(got, s)
	}
	want := []string{"1.2.3.4", "-1.2.3.5", "10.0.0.0", "-12.0.0.0", "224.0.0.0"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
