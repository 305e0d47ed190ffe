package probe

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/nodeagent"
)

// address is an environment's on the bridge.
func address(t *testing.T, id string) netip.Addr {
	t.Helper()
	var list []struct{ Address string }
	if err := json.Unmarshal([]byte(must(t, "inspect", id)), &list); err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	a, err := netip.ParseAddr(list[0].Address)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// bridge is the node's bridge as the host sees it.
func bridge(t *testing.T) *net.Interface {
	t.Helper()
	n, err := nodeagent.Open(root, nodeagent.Options{})
	if err != nil {
		t.Fatal(err)
	}
	i, err := net.InterfaceByName(n.BridgeName())
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func gateway(t *testing.T) netip.Addr {
	t.Helper()
	addrs, err := bridge(t).Addrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			return p.Addr()
		}
	}
	t.Fatal("the bridge has no address")
	return netip.Addr{}
}

// frame builds an Ethernet frame.
func frame(dst, src net.HardwareAddr, kind uint16, body []byte) string {
	b := append(append([]byte{}, dst...), src...)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = append(b, body...)
	for len(b) < 60 {
		b = append(b, 0)
	}
	return hex.EncodeToString(b)
}

// datagram is IPv4 with UDP in it, which carries mark.
func datagram(src, dst netip.Addr, port int, mark string) []byte {
	udp := binary.BigEndian.AppendUint16(nil, 40000)
	udp = binary.BigEndian.AppendUint16(udp, uint16(port))
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(mark)))
	udp = append(append(udp, 0, 0), mark...)
	ip := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(udp)))
	ip = append(append(ip, src.AsSlice()...), dst.AsSlice()...)
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	return append(ip, udp...)
}

// arp is a message of RFC 826.
func arp(op uint16, srcMAC net.HardwareAddr, srcIP netip.Addr, dstMAC net.HardwareAddr, dstIP netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, byte(op)}
	b = append(append(b, srcMAC...), srcIP.AsSlice()...)
	return append(append(b, dstMAC...), dstIP.AsSlice()...)
}

// TestProbeFrames sends what a packet socket can, and looks on the bridge, on the host's sockets and in a neighbour for
// what came through. One well-formed frame shows that the look-out works.
func TestProbeFrames(t *testing.T) {
	// Others have no packet sockets: these show that who asks for them gets no further.
	a, b := machine(t, "--cap-add", "NET_RAW"), machine(t, "--cap-add", "NET_RAW")
	ipA, ipB, gw, br := address(t, a), address(t, b), gateway(t), bridge(t)
	macA, err := net.ParseMAC(must(t, "exec", a, "cat", "/sys/class/net/eth0/address"))
	if err != nil {
		t.Fatal(err)
	}
	macB, err := net.ParseMAC(must(t, "exec", b, "cat", "/sys/class/net/eth0/address"))
	if err != nil {
		t.Fatal(err)
	}
	other := net.HardwareAddr{2, 0x66, 0x66, 0x66, 0x66, 0x66}
	everybody := net.HardwareAddr{255, 255, 255, 255, 255, 255}

	// The host listens on every address, and counts.
	all, err := net.ListenUDP("udp", &net.UDPAddr{})
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	port := all.LocalAddr().(*net.UDPAddr).Port
	var arrived atomic.Int64
	go func() {
		buf := make([]byte, 2048)
		for {
			n, _, err := all.ReadFrom(buf)
			if err != nil {
				return
			}
			if strings.HasPrefix(string(buf[:n]), "probe") {
				arrived.Add(1)
			}
		}
	}()

	// The look-out on the bridge, which sees what the bridge's own rules let through to the host.
	tap, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0x0300)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tap)
	if err := unix.Bind(tap, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: br.Index}); err != nil {
		t.Fatal(err)
	}
	_ = unix.SetsockoptTimeval(tap, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300_000})

	// The neighbour sniffs meanwhile.
	sniffer := command("exec", b, "/inside", "sniff", "3s")
	sniffed := &strings.Builder{}
	sniffer.Stdout = sniffed
	if err := sniffer.Start(); err != nil {
		t.Fatal(err)
	}

	vlan := func(id byte, kind uint16, body []byte) []byte {
		return append([]byte{0, id, byte(kind >> 8), byte(kind)}, body...)
	}
	attempts := []struct {
		name, frame, mark string
		kind              uint16 // what to look for when there is no mark
	}{
		{"another's address", frame(br.HardwareAddr, macA, 0x0800, datagram(ipB, gw, port, "probe-ip-b")), "probe-ip-b", 0},
		{"the gateway's address", frame(br.HardwareAddr, macA, 0x0800, datagram(gw, gw, port, "probe-ip-gw")), "probe-ip-gw", 0},
		{"a loopback address", frame(br.HardwareAddr, macA, 0x0800, datagram(netip.MustParseAddr("127.0.0.1"), gw, port, "probe-ip-lo")), "probe-ip-lo", 0},
		{"no address", frame(br.HardwareAddr, macA, 0x0800, datagram(netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.255"), 67, "probe-ip-zero")), "probe-ip-zero", 0},
		{"a public address", frame(br.HardwareAddr, macA, 0x0800, datagram(netip.MustParseAddr("192.0.2.1"), gw, port, "probe-ip-pub")), "probe-ip-pub", 0},
		{"another MAC", frame(br.HardwareAddr, other, 0x0800, datagram(ipA, gw, port, "probe-mac-x")), "probe-mac-x", 0},
		{"the neighbour's MAC", frame(br.HardwareAddr, macB, 0x0800, datagram(ipA, gw, port, "probe-mac-b")), "probe-mac-b", 0},
		{"the neighbour's MAC and address", frame(br.HardwareAddr, macB, 0x0800, datagram(ipB, gw, port, "probe-both-b")), "probe-both-b", 0},
		{"the bridge's MAC", frame(macB, br.HardwareAddr, 0x0800, datagram(gw, ipB, port, "probe-mac-br")), "probe-mac-br", 0},
		{"to the neighbour's MAC", frame(macB, macA, 0x0800, datagram(ipA, ipB, port, "probe-to-b")), "probe-to-b", 0},
		{"to everybody's MAC", frame(everybody, macA, 0x0800, datagram(ipA, ipB, port, "probe-to-all")), "", 0},
		{"ARP for the gateway", frame(everybody, macA, 0x0806, arp(2, macA, gw, everybody, gw)), "", 0x0806},
		{"ARP for the neighbour", frame(everybody, macA, 0x0806, arp(2, macA, ipB, br.HardwareAddr, gw)), "", 0x0806},
		{"ARP with two senders", frame(everybody, macA, 0x0806, arp(2, other, ipA, br.HardwareAddr, gw)), "", 0x0806},
		{"ARP from another MAC", frame(everybody, other, 0x0806, arp(1, other, ipA, br.HardwareAddr, gw)), "", 0x0806},
		{"IPv6 router advertisement", frame(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, macA, 0x86dd, make([]byte, 64)), "", 0x86dd},
		{"a tagged frame", frame(br.HardwareAddr, macA, 0x8100, vlan(5, 0x0800, datagram(ipB, gw, port, "probe-vlan"))), "probe-vlan", 0},
		{"a priority-tagged frame", frame(br.HardwareAddr, macA, 0x8100, vlan(0, 0x0800, datagram(ipB, gw, port, "probe-prio"))), "probe-prio", 0},
		{"a doubly tagged frame", frame(br.HardwareAddr, macA, 0x88a8, vlan(0, 0x8100, vlan(0, 0x0800, datagram(ipB, gw, port, "probe-qinq")))), "probe-qinq", 0},
		{"a spanning tree message", frame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, macA, 38, []byte{0x42, 0x42, 3, 0, 0}), "", 38},
		{"LLDP", frame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 14}, macA, 0x88cc, make([]byte, 46)), "", 0x88cc},
		{"EAPOL", frame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 3}, macA, 0x888e, make([]byte, 46)), "", 0x888e},
		{"PPPoE discovery", frame(everybody, macA, 0x8863, make([]byte, 46)), "", 0x8863},
		// These may cross the bridge; the host's sockets must not see them.
		{"host's loopback", frame(br.HardwareAddr, macA, 0x0800, datagram(ipA, netip.MustParseAddr("127.0.0.1"), port, "probe-dst-lo")), "", 0},
		{"gateway's ports", frame(br.HardwareAddr, macA, 0x0800, datagram(ipA, gw, port, "probe-dst-gw")), "", 0},
		{"broadcast to the host", frame(everybody, macA, 0x0800, datagram(ipA, netip.MustParseAddr("255.255.255.255"), port, "probe-dst-bc")), "", 0},
		{"multicast to the host", frame(net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}, macA, 0x0800, datagram(ipA, netip.MustParseAddr("224.0.0.1"), port, "probe-dst-mc")), "", 0},
	}
	list := []string{"exec", a, "/inside", "frames"}
	for _, at := range attempts {
		list = append(list, at.frame)
	}
	// Last, what must come through: our own frame with our own names.
	must(t, append(list, frame(br.HardwareAddr, macA, 0x0800, datagram(ipA, gw, port, "control-frame")))...)

	var seen []string
	control := false
	buf := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(tap, buf, 0)
		if err != nil {
			break
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		control = control || strings.Contains(string(buf[:n]), "control-frame")
		seen = append(seen, string(buf[:n]))
	}
	if !control {
		t.Fatal("the look-out did not see what is allowed: this test proves nothing")
	}
	for _, at := range attempts {
		for _, s := range seen {
			raw, _ := hex.DecodeString(at.frame)
			if at.mark != "" && strings.Contains(s, at.mark) || at.kind != 0 && len(s) >= 32 && string(raw[:32]) == s[:32] {
				t.Errorf("%s: it got to the host", at.name)
				break
			}
		}
	}
	if n := arrived.Load(); n > 0 {
		t.Errorf("%d datagrams reached a socket of the host", n)
	}
	_ = sniffer.Wait()
	for text := range strings.Lines(sniffed.String()) {
		raw, err := hex.DecodeString(strings.TrimSpace(text))
		if err != nil || len(raw) < 14 {
			continue
		}
		if src := net.HardwareAddr(raw[6:12]).String(); src != macB.String() && src != br.HardwareAddr.String() || strings.Contains(string(raw), "probe-") {
			t.Errorf("the neighbour saw a frame of %s: %x", src, raw)
		}
	}
	if !strings.Contains(sniffed.String(), "listening") {
		t.Error("the neighbour did not sniff")
	}
	// Nobody's idea of who is who has changed.
	if out := must(t, "exec", b, "cat", "/proc/net/arp"); strings.Contains(out, macA.String()) {
		t.Errorf("the neighbour took a lie for an answer:\n%s", out)
	}
	table, _ := os.ReadFile("/proc/net/arp")
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) > 5 && f[0] == ipB.String() && f[3] != macB.String() {
			t.Errorf("the host took a lie for an answer: %s", line)
		}
	}
}

// TestProbeReach dials what an environment must not reach: the host on all its addresses, other environments, their
// published ports, private networks, and clouds' metadata. What the host itself reaches shows that it was there.
func TestProbeReach(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	published := free.Addr().(*net.TCPAddr).Port
	free.Close()

	server := must(t, "run", "-d", "-p", fmt.Sprintf("%d:8080", published), "busybox", "httpd", "-f", "-p", "8080", "-h", "/etc")
	t.Cleanup(func() { must(t, "rm", "-f", server) })
	a, ipB, gw := machine(t), address(t, server), gateway(t)
	reaches := func(to string) bool {
		c, err := net.DialTimeout("tcp", to, time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	eventually(t, func() bool { return reaches(fmt.Sprintf("%s:8080", ipB)) })
	if !reaches(fmt.Sprintf("127.0.0.1:%d", port)) || !reaches(fmt.Sprintf("%s:%d", gw, port)) {
		t.Fatal("the host does not reach itself: this test proves nothing")
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	list := []string{"exec", a, "/inside", "dial"}
	for _, x := range addrs {
		p, err := netip.ParsePrefix(x.String())
		if err != nil {
			continue
		}
		for _, n := range []int{port, published, 22} {
			list = append(list, fmt.Sprintf("tcp,%s", netip.AddrPortFrom(p.Addr(), uint16(n))))
		}
		list = append(list, fmt.Sprintf("udp,%s", netip.AddrPortFrom(p.Addr(), uint16(port))))
	}
	for _, to := range []string{ipB.String() + ":8080", "169.254.169.254:80", "169.254.170.2:80", "100.100.100.200:80", "[fd00:ec2::254]:80",
		"192.168.0.1:80", "10.0.0.1:80", "172.17.0.1:80", "0.0.0.0:22", "224.0.0.1:80", "[fe80::1%eth0]:80", "[ff02::1%eth0]:80"} {
		list = append(list, "tcp,"+to)
	}
	for line := range strings.Lines(must(t, list...)) {
		if strings.Contains(line, "reached") {
			t.Errorf("an environment %s", strings.TrimSpace(line))
		}
	}
	// With a network of its own or none, the host's abstract sockets and loopback are elsewhere, too.
	if out := must(t, append(append([]string{"run", "--rm", "--net", "none"}, volume()...), "busybox", "/inside", "dial", fmt.Sprintf("tcp,%s:%d", gw, port))...); strings.Contains(out, "reached") {
		t.Error("with --net none an environment reaches the host")
	}
	// No IPv6 on the link: nobody to find by link-local neighbour discovery.
	if out := must(t, "exec", a, "cat", "/proc/net/if_inet6"); strings.Contains(out, "eth0") {
		t.Errorf("eth0 speaks IPv6:\n%s", out)
	}
}
