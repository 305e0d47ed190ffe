package netbridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h, where package nl stops.
const (
	subsysConntrack     = 1 // NFNL_SUBSYS_CTNETLINK
	ctDelete            = 2 // IPCTNL_MSG_CT_DELETE
	ctaFilter           = 25
	ctaFilterOrigFlags  = 1
	ctaFilterReplyFlags = 2
	ctaFilterIPSrc      = 1 << 0
)

// endFlows forgets every tracked connection that the address began (its original source) or answers (its reply's
// source), so that whoever gets the address next gets none of its packets. The kernel picks them itself where it can
// (CTA_FILTER in a delete, Linux 6.8): the table is not copied to here. An older one is asked for the table and told
// which to forget.
func (b *Bridge) endFlows(ip netip.Addr) error {
	err := b.endFlowsByFilter(ip)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		_, err = b.h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, flowsWith(ip))
	}
	if err != nil {
		return fmt.Errorf("end the connections of %s: %w", ip, err)
	}
	return nil
}

// flowsWith matches what endFlows is to forget.
type flowsWith netip.Addr

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (ip flowsWith) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, src := range []net.IP{flow.Forward.SrcIP, flow.Reverse.SrcIP} {
		if a, ok := netip.AddrFromSlice(src); ok && a.Unmap() == netip.Addr(ip) {
			return true
		}
	}
	return false
}

func (b *Bridge) endFlowsByFilter(ip netip.Addr) error {
	for _, side := range []struct{ tuple, flags int }{
		{nl.CTA_TUPLE_ORIG, ctaFilterOrigFlags},
		{nl.CTA_TUPLE_REPLY, ctaFilterReplyFlags},
	} {
		r := nl.NewNetlinkRequest(subsysConntrack<<8|ctDelete, unix.NLM_F_ACK)
		r.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: b.filter}
		r.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: 1}) // version 1: the family counts
		tuple := nl.NewRtAttr(side.tuple|unix.NLA_F_NESTED, nil)
		tuple.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil).AddRtAttr(nl.CTA_IP_V4_SRC, ip.AsSlice())
		r.AddData(tuple)
		filter := nl.NewRtAttr(ctaFilter|unix.NLA_F_NESTED, nil)
		filter.AddRtAttr(side.flags, nl.Uint32Attr(ctaFilterIPSrc))
		r.AddData(filter)
		if _, err := r.Execute(unix.NETLINK_NETFILTER, 0); err != nil && !notThere(err) {
			return err
		}
	}
	return nil
}
