package netbridge

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// pool is where subnets are chosen from: the upper part of 10/8, which few networks use.
var pool = netip.MustParsePrefix("10.64.0.0/10")

const poolBits = 20 // 4,093 environments

// memory is StateDir/bridge.json.
type memory struct {
	Subnet netip.Prefix `json:"subnet"`
	// ForwardingWas is net.ipv4.ip_forward as it was found at first; it is left on, for others may rely on it by
	// the time the bridge goes.
	ForwardingWas string `json:"forwardingWas"`
}

// Open makes the bridge and its rules if they are not there, repairs them if they are not as they should be
// (live attachments included), and returns a handle on them. It works in the network namespace of the calling
// thread. Any number of processes may have the same bridge open, if their Configs are the same.
func Open(ctx context.Context, cfg Config) (*Bridge, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("open bridge: %w", err)
	}
	b := &Bridge{cfg: cfg, closing: make(chan struct{})}
	for _, d := range []string{cfg.StateDir, b.leaseDir(), filepath.Join(cfg.StateDir, "ids")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open bridge %s: %w", cfg.Name, err)
		}
	}
	if err := b.dial(); err != nil {
		return nil, fmt.Errorf("open bridge %s: netlink: %w", cfg.Name, err)
	}
	unlock, err := b.lock()
	if err == nil {
		err = b.ensure()
		unlock()
	}
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("open bridge %s: %w", cfg.Name, err)
	}
	return b, nil
}

// dial opens the sockets, which stay in the network namespace the calling thread is in now.
func (b *Bridge) dial() (err error) {
	if b.h, err = netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER); err != nil {
		return err
	}
	route, err := nl.GetNetlinkSocketAt(-1, -1, unix.NETLINK_ROUTE)
	if err != nil {
		b.h.Close()
		return err
	}
	filter, err := nl.GetNetlinkSocketAt(-1, -1, unix.NETLINK_NETFILTER)
	if err != nil {
		b.h.Close()
		route.Close()
		return err
	}
	b.route, b.filter = &nl.SocketHandle{Socket: route}, &nl.SocketHandle{Socket: filter}
	return nil
}

// ensure does Open's work, with the lock held.
func (b *Bridge) ensure() error {
	var mem memory
	memPath := filepath.Join(b.cfg.StateDir, "bridge.json")
	raw, err := os.ReadFile(memPath)
	if err == nil {
		err = json.Unmarshal(raw, &mem)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		mem = memory{} // written in full or not at all, unless the machine died: then nothing is live either
	}
	before := mem

	forwarding, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		return fmt.Errorf("read net/ipv4/ip_forward: %w", err)
	}
	if was := strings.TrimSpace(string(forwarding)); was != "1" {
		mem.ForwardingWas = was
		if err := writeSysctl("ipv4/ip_forward", "1"); err != nil {
			return err
		}
	}

	b.mtu, err = b.uplinkMTU()
	if err != nil {
		return err
	}
	link, err := b.ensureLink()
	if err != nil {
		return err
	}
	b.index = link.Attrs().Index
	all, _, err := b.leases()
	if err != nil {
		return err
	}
	if err := b.ensureSubnet(link, &mem, len(all)); err != nil {
		return err
	}
	if mem != before {
		raw, err := json.Marshal(mem)
		if err != nil {
			return fmt.Errorf("encode %s: %w", memPath, err)
		}
		if err := os.WriteFile(memPath+".tmp", raw, 0o600); err != nil {
			return fmt.Errorf("remember the subnet: %w", err)
		}
		if err := os.Rename(memPath+".tmp", memPath); err != nil {
			return fmt.Errorf("remember the subnet: %w", err)
		}
	}

	networks, err := b.ownNetworks()
	if err != nil {
		return err
	}
	if b.rules, err = newRules(b.cfg, b.subnet, networks); err != nil {
		return err
	}
	live := b.attachments(all)
	if err := b.ensurePorts(live); err != nil {
		return err
	}
	if b.rules.loaded(live) {
		return nil
	}
	return b.rules.load(live)
}

// ensurePorts puts live environments back on a bridge that was deleted or taken down since they were attached. That
// their neighbour entries are gone shows it: both lose them.
func (b *Bridge) ensurePorts(live []*Attachment) error {
	if len(live) == 0 {
		return nil
	}
	neighbours, err := b.h.NeighList(b.index, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	known := make(map[string]bool)
	for _, n := range neighbours {
		known[n.IP.String()] = n.State == netlink.NUD_PERMANENT
	}
	for _, a := range live {
		if known[a.IP.String()] {
			continue
		}
		link, err := b.h.LinkByName(a.HostIf)
		if notThere(err) {
			continue // being attached at this moment, or its namespace is dead
		}
		if err != nil {
			return fmt.Errorf("find %s: %w", a.HostIf, err)
		}
		index := link.Attrs().Index
		if link.Attrs().MasterIndex != b.index {
			if err := b.h.LinkSetMasterByIndex(link, b.index); err != nil {
				return fmt.Errorf("put %s back on the bridge: %w", a.HostIf, err)
			}
		}
		if err := b.openPort(index); err != nil {
			return fmt.Errorf("open bridge port %s: %w", a.HostIf, err)
		}
		if err := b.neighbour(a, index); err != nil {
			return fmt.Errorf("restore %s: %w", a.ID, err)
		}
	}
	return nil
}

// reload writes both tables anew from the leases, with the lock held.
func (b *Bridge) reload() error {
	all, _, err := b.leases()
	if err != nil {
		return err
	}
	return b.rules.load(b.attachments(all))
}

// uplinkMTU is the smallest MTU of the links with a default route: a larger one inside would send packets that
// have to be refused or cut outside.
func (b *Bridge) uplinkMTU() (int, error) {
	routes, err := b.h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	if err != nil {
		return 0, fmt.Errorf("list default routes: %w", err)
	}
	mtu := 0
	for _, r := range routes {
		link, err := b.h.LinkByIndex(r.LinkIndex)
		if err != nil {
			continue // multipath, or gone meanwhile
		}
		if m := link.Attrs().MTU; mtu == 0 || m < mtu {
			mtu = m
		}
	}
	if mtu == 0 {
		return 1500, nil
	}
	return min(max(mtu, 576), 65535), nil
}

// ensureLink makes the bridge device with everything a bridge for strangers should not do turned off.
func (b *Bridge) ensureLink() (netlink.Link, error) {
	link, err := b.h.LinkByName(b.cfg.Name)
	if err != nil && !notThere(err) {
		return nil, fmt.Errorf("find bridge: %w", err)
	}
	if err != nil {
		off := false
		attrs := netlink.NewLinkAttrs()
		attrs.Name = b.cfg.Name
		err := b.h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("create bridge: %w", err)
		}
		if link, err = b.h.LinkByName(b.cfg.Name); err != nil {
			return nil, fmt.Errorf("find bridge: %w", err)
		}
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("%s is a %s link already: choose another bridge name", b.cfg.Name, link.Type())
	}
	// Set afterwards, and so by a person as the kernel sees it, it stays when the last port goes.
	if link.Attrs().MTU != b.mtu {
		if err := b.h.LinkSetMTU(link, b.mtu); err != nil {
			return nil, fmt.Errorf("set MTU %d: %w", b.mtu, err)
		}
	}
	for _, s := range []struct{ name, value string }{
		{"ipv6/conf/%s/disable_ipv6", "1"},
		{"ipv6/conf/%s/accept_ra", "0"},
		{"ipv4/conf/%s/route_localnet", "1"}, // 127.0.0.1:port of the host reaches published ports; the input chain keeps tenants out
		{"ipv4/conf/%s/accept_redirects", "0"},
		{"ipv4/conf/%s/send_redirects", "0"},
		{"ipv4/conf/%s/accept_source_route", "0"},
		{"ipv4/conf/%s/proxy_arp", "0"},
		{"ipv4/conf/%s/arp_ignore", "1"}, // the host's other addresses are not told to tenants
	} {
		if err := writeSysctl(fmt.Sprintf(s.name, b.cfg.Name), s.value); err != nil {
			return nil, err
		}
	}
	return link, nil
}

// ensureSubnet settles the subnet, gives the bridge its address and brings it up.
func (b *Bridge) ensureSubnet(link netlink.Link, mem *memory, attached int) error {
	want := b.cfg.Subnet
	if !want.IsValid() {
		want = mem.Subnet
	}
	if want.IsValid() && mem.Subnet.IsValid() && want != mem.Subnet && attached > 0 {
		return fmt.Errorf("%d environments are attached in %s: detach them before changing the subnet to %s", attached, mem.Subnet, want)
	}
	// Somebody may choose the same subnet at the same moment under another name and lock, so look again afterwards.
	for range 16 {
		taken, err := b.othersNetworks()
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(taken, want.Overlaps); want.IsValid() && i >= 0 {
			switch {
			case b.cfg.Subnet.IsValid():
				return fmt.Errorf("subnet %s overlaps %s, which this host has a route or an address in: choose another", want, taken[i])
			case attached > 0:
				// Live environments come before a network that came later.
			default:
				if err := b.dropAddresses(link, netip.Prefix{}); err != nil {
					return err
				}
				want = netip.Prefix{}
			}
		}
		fresh := !want.IsValid()
		if fresh {
			if want, err = chooseSubnet(b.cfg.Name, taken); err != nil {
				return err
			}
		}
		b.subnet, mem.Subnet = want, want
		if err := b.dropAddresses(link, want); err != nil {
			return err
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: b.gateway().AsSlice(), Mask: net.CIDRMask(want.Bits(), 32)}, Broadcast: lastAddress(want)}
		if err := b.h.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("give the bridge the address %s: %w", addr.IPNet, err)
		}
		if err := b.bringUp(link); err != nil {
			return err
		}
		if !fresh {
			return nil
		}
		if taken, err = b.othersNetworks(); err != nil {
			return err
		}
		if !slices.ContainsFunc(taken, want.Overlaps) {
			return nil
		}
	}
	return errors.New("no subnet stayed free while the bridge was set up: give one")
}

// bringUp opens the bridge under a MAC of its own: it would take the lowest of its ports' otherwise and change it as
// they come and go. Nothing is done to a bridge that is right, since a change of MAC makes the kernel forget every
// neighbour on it.
func (b *Bridge) bringUp(link netlink.Link) error {
	mac := macOf(b.gateway())
	if link.Attrs().Flags&net.FlagUp != 0 && bytes.Equal(link.Attrs().HardwareAddr, mac) {
		return nil
	}
	r := b.request(unix.RTM_NEWLINK, 0)
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index, m.Flags, m.Change = int32(link.Attrs().Index), unix.IFF_UP, unix.IFF_UP
	r.AddData(m)
	r.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, mac))
	if _, err := r.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("bring the bridge up: %w", err)
	}
	return nil
}

// dropAddresses removes every IPv4 address of the bridge but the gateway's in keep.
func (b *Bridge) dropAddresses(link netlink.Link, keep netip.Prefix) error {
	addrs, err := b.h.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list the bridge's addresses: %w", err)
	}
	for _, a := range addrs {
		if p, ok := toPrefix(a.IPNet); ok && keep.IsValid() && p == netip.PrefixFrom(keep.Addr().Next(), keep.Bits()) {
			continue
		}
		if err := b.h.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove the bridge's former address %s: %w", a.IPNet, err)
		}
	}
	return nil
}

// othersNetworks is every IPv4 prefix this host routes somewhere else than to this bridge, the default route
// aside.
func (b *Bridge) othersNetworks() ([]netip.Prefix, error) {
	routes, err := b.h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []netip.Prefix
	for _, r := range routes {
		if p, ok := toPrefix(r.Dst); ok && p.Bits() > 0 && r.LinkIndex != b.index {
			out = append(out, p.Masked())
		}
	}
	addrs, err := b.h.AddrList(nil, netlink.FAMILY_V4) // a link that is down has addresses but no routes
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if p, ok := toPrefix(a.IPNet); ok && a.LinkIndex != b.index {
			out = append(out, p.Masked())
		}
	}
	return out, nil
}

// ownNetworks is what the host is directly on: its uplink's subnet, other bridges.
func (b *Bridge) ownNetworks() ([]netip.Prefix, error) {
	addrs, err := b.h.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []netip.Prefix
	for _, a := range addrs {
		if p, ok := toPrefix(a.IPNet); ok && a.LinkIndex != b.index && p.Bits() > 0 {
			out = append(out, p.Masked())
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	return slices.Compact(out), nil
}

// chooseSubnet takes the first free /20 of the pool, beginning at a place that depends on the bridge's name, so
// that bridges made at the same moment rarely meet.
func chooseSubnet(name string, taken []netip.Prefix) (netip.Prefix, error) {
	const count = 1 << (poolBits - 10)
	f := fnv.New32a()
	f.Write([]byte(name))
	base := binary.BigEndian.Uint32(pool.Addr().AsSlice())
	for i := range uint32(count) {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], base+(f.Sum32()+i)%count<<(32-poolBits))
		p := netip.PrefixFrom(netip.AddrFrom4(a), poolBits)
		if !slices.ContainsFunc(taken, p.Overlaps) {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("every /%d of %s is in use on this host: give a subnet", poolBits, pool)
}

func toPrefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits != 32 {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a.Unmap(), ones), true
}
