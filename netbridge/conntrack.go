package netbridge

import (
	"fmt"
	"net/netip"

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
// source), so that whoever gets the address next gets none of its packets. The kernel picks them itself
// (CTA_FILTER, Linux 5.8): the table is not copied to here.
func (b *Bridge) endFlows(ip netip.Addr) error {
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
			return fmt.Errorf("end the connections of %s: %w", ip, err)
		}
	}
	return nil
}
