package netbridge

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// minRate, in bits per second, still lets a full packet through every two seconds.
const minRate = 8_000

// limit shapes both directions where the environment can't reach: what goes to it by a token bucket on the host's
// end of the pair; what comes from it by one on an ifb device, to which the host's end passes all it receives
// (the kernel shapes only what leaves a device).
func (b *Bridge) limit(a *Attachment, index int) error {
	if a.NetDown > 0 {
		if err := b.h.QdiscAdd(tokenBucket(index, a.NetDown, b.mtu)); err != nil {
			return fmt.Errorf("limit %s to %d bit/s towards the environment: %w", a.HostIf, a.NetDown, err)
		}
	}
	if a.NetUp == 0 {
		return nil
	}
	name := b.ifbName(a.IP)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.TxQLen = name, b.mtu, 1000
	err := b.h.LinkAdd(&netlink.Ifb{LinkAttrs: attrs})
	if errors.Is(err, unix.EEXIST) && b.deleteLink(name) == nil { // left by a killed process
		err = b.h.LinkAdd(&netlink.Ifb{LinkAttrs: attrs})
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	ifb, err := b.h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := writeSysctl("ipv6/conf/"+name+"/disable_ipv6", "1"); err != nil {
		return err
	}
	if err := b.h.QdiscAdd(tokenBucket(ifb.Attrs().Index, a.NetUp, b.mtu)); err != nil {
		return fmt.Errorf("limit %s to %d bit/s: %w", name, a.NetUp, err)
	}
	if err := b.h.LinkSetUp(ifb); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	if err := b.h.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Parent: netlink.HANDLE_INGRESS, Handle: netlink.MakeHandle(0xffff, 0)}}); err != nil {
		return fmt.Errorf("ingress of %s: %w", a.HostIf, err)
	}
	all := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.MakeHandle(0xffff, 0), Priority: 1, Protocol: unix.ETH_P_ALL},
		Actions:     []netlink.Action{netlink.NewMirredAction(ifb.Attrs().Index)},
	}
	if err := b.h.FilterAdd(all); err != nil {
		return fmt.Errorf("pass what %s receives to %s: %w", a.HostIf, name, err)
	}
	return nil
}

// tokenBucket lets rate bits per second through in the long run: bursts of at most 10 ms of it, a queue of 100 ms.
// Both are large enough for one packet that the sender's offloading has not cut up yet.
func tokenBucket(index int, rate uint64, mtu int) *netlink.Tbf {
	bytes := rate / 8
	burst := max(bytes/100, uint64(2*mtu), 16<<10)
	queue := max(bytes/10, 64<<10)
	const ticksPerSecond = 15_625_000 // PSCHED: one tick is 64 ns (net/sched, NSEC_PER_USEC >> PSCHED_SHIFT)
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       bytes,
		Limit:      uint32(min(queue+burst, 1<<30)),
		Buffer:     uint32(min(burst*ticksPerSecond/max(bytes, 1), 1<<32-1)),
	}
}
