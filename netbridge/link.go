package netbridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// vethInfoPeer is VETH_INFO_PEER of linux/veth.h.
const vethInfoPeer = 1

// request is a route request on the bridge's own socket, that is, in the namespace Open was called in.
func (b *Bridge) request(kind, flags int) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	r.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: b.route}
	return r
}

// makePair creates the veth pair in one request: the host's end a port of the bridge, the other one eth0 in the
// namespace; both still down (an end can't be brought up before it has a peer).
func (b *Bridge) makePair(a *Attachment, ns *os.File) error {
	r := b.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(a.HostIf)))
	r.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(b.mtu))))
	r.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(b.index))))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	peer := data.AddRtAttr(vethInfoPeer, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("eth0"))
	peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(b.mtu)))
	peer.AddRtAttr(unix.IFLA_ADDRESS, a.MAC)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns.Fd())))
	r.AddData(info)
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// openPort makes the port isolated, deaf to what is not its own, and up, in one request and in that order (the
// kernel applies IFLA_INFO_SLAVE_DATA before flags). The host's end gets no IPv6 address.
func (b *Bridge) openPort(index int) error {
	r := b.request(unix.RTM_NEWLINK, 0)
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index, m.Flags, m.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	r.AddData(m)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
	port := info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil)
	port.AddRtAttr(nl.IFLA_BRPORT_ISOLATED, []byte{1})
	for _, off := range []int{nl.IFLA_BRPORT_LEARNING, nl.IFLA_BRPORT_UNICAST_FLOOD, nl.IFLA_BRPORT_MCAST_FLOOD, nl.IFLA_BRPORT_BCAST_FLOOD} {
		port.AddRtAttr(off, []byte{0})
	}
	r.AddData(info)
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// neighbour tells the host where the address lives, so it never has to ask and no answer can lie: an entry in the
// bridge's forwarding table (dies with the port) and one in the neighbour table (does not).
func (b *Bridge) neighbour(a *Attachment, index int) error {
	if err := b.h.NeighAppend(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER, HardwareAddr: a.MAC}); err != nil {
		return fmt.Errorf("forwarding entry: %w", err)
	}
	if err := b.h.NeighSet(&netlink.Neigh{LinkIndex: b.index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: a.IP.AsSlice(), HardwareAddr: a.MAC}); err != nil {
		return fmt.Errorf("neighbour entry: %w", err)
	}
	return nil
}

func (b *Bridge) forgetNeighbour(ip netip.Addr) error {
	err := b.h.NeighDel(&netlink.Neigh{LinkIndex: b.index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: ip.AsSlice()})
	if err != nil && !notThere(err) {
		return fmt.Errorf("delete neighbour entry of %s: %w", ip, err)
	}
	return nil
}

// connect gives the namespace its eth0.
func (b *Bridge) connect(ctx context.Context, a *Attachment, ns *os.File) error {
	in, err := enter(ns)
	if err != nil {
		return err
	}
	defer in.close()
	if err := in.up(loopbackIndex); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	err = b.makePair(a, ns)
	if errors.Is(err, unix.EEXIST) && b.deleteLink(a.HostIf) == nil {
		// A link left by a killed process under this address's name; if it was eth0 inside that exists, it fails again.
		err = b.makePair(a, ns)
	}
	if err != nil {
		return fmt.Errorf("create veth pair %s and eth0: %w", a.HostIf, err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	link, err := b.h.LinkByName(a.HostIf)
	if err != nil {
		return fmt.Errorf("find %s: %w", a.HostIf, err)
	}
	index, peer := link.Attrs().Index, link.Attrs().ParentIndex
	if err := writeSysctl("ipv6/conf/"+a.HostIf+"/disable_ipv6", "1"); err != nil {
		return err
	}
	if err := b.limit(a, index); err != nil {
		return err
	}
	if err := b.openPort(index); err != nil {
		return fmt.Errorf("open bridge port %s: %w", a.HostIf, err)
	}
	if err := b.neighbour(a, index); err != nil {
		return err
	}
	if err := in.up(peer); err != nil {
		return fmt.Errorf("bring eth0 up: %w", err)
	}
	if err := in.address(peer, a.IP.AsSlice()); err != nil {
		return fmt.Errorf("give eth0 the address %s: %w", a.Prefix, err)
	}
	if err := in.routes(peer, a.Gateway.AsSlice(), macOf(a.Gateway)); err != nil {
		return fmt.Errorf("through %s: %w", a.Gateway, err)
	}
	if err := b.settle(ctx, index); err != nil {
		return err
	}
	return b.settle(ctx, b.index) // the bridge itself has no carrier, and sends nothing, without a port that has
}

// settle waits until a link, the bridge's port or the bridge, is up for good. A bridge hears of its port's carrier a moment late, from a worker of
// the kernel's, and drops frames until then: an environment's first datagram would be lost. (To be asked for a link
// makes Linux 6.8 and later tell the bridge at once, linkwatch_sync_dev.) A port that stays silent for a second fails
// nothing: it may still come.
func (b *Bridge) settle(ctx context.Context, index int) error {
	for range 1000 {
		link, err := b.h.LinkByIndex(index)
		if err != nil {
			return fmt.Errorf("watch link %d: %w", index, err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// deleteLink removes a link of ours by name. It takes some 30 ms: the kernel waits for every CPU.
func (b *Bridge) deleteLink(name string) error {
	r := b.request(unix.RTM_DELLINK, 0)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	if _, err := r.Execute(unix.NETLINK_ROUTE, 0); err != nil && !notThere(err) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

func (b *Bridge) deleteLinkAt(index int) error {
	r := b.request(unix.RTM_DELLINK, 0)
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index = int32(index)
	r.AddData(m)
	if _, err := r.Execute(unix.NETLINK_ROUTE, 0); err != nil && !notThere(err) {
		return fmt.Errorf("delete link %d: %w", index, err)
	}
	return nil
}

func lastAddress(p netip.Prefix) net.IP {
	a := p.Masked().Addr().As4()
	mask := net.CIDRMask(p.Bits(), 32)
	for i := range a {
		a[i] |= ^mask[i]
	}
	return a[:]
}
