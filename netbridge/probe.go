package netbridge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Probe tries every kernel feature this package stands on, in throwaway network namespaces, and looks (only looks)
// at what else on this host decides about forwarded packets.
func Probe(ctx context.Context) []Check {
	var checks []Check
	onOwnThread(func() bool {
		checks = probeInScratch(ctx)
		return false // it is in another namespace for good
	})
	return append(checks, forwardingCheck(), firewallCheck())
}

func probeInScratch(ctx context.Context) []Check {
	var checks []Check
	check := func(name, consequence string, err error) bool {
		c := Check{Name: name, OK: err == nil, Detail: "works"}
		if err != nil {
			c.Detail, c.Consequence = err.Error(), consequence
		}
		checks = append(checks, c)
		return c.OK
	}
	if !check("network namespaces", "environments can't have a network of their own (kernel: CONFIG_NET_NS; run as root)", unix.Unshare(unix.CLONE_NEWNET)) {
		return checks
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if !check("rtnetlink", "no link, address or route can be set", err) {
		return checks
	}
	defer h.Close()

	named := func(name string) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Name = name
		return a
	}
	bridge := &netlink.Bridge{LinkAttrs: named("probe0")}
	check("bridge", "mode bridge does not work (kernel: CONFIG_BRIDGE)", h.LinkAdd(bridge))
	veth := &netlink.Veth{LinkAttrs: named("probe1"), PeerName: "probe2"}
	check("veth", "mode bridge does not work (kernel: CONFIG_VETH)", h.LinkAdd(veth))
	check("isolated bridge ports", "environments would be kept apart by rules only, so they are not started (kernel: 4.18)", probeIsolation(h, veth, bridge))
	check("token bucket", "download rates can't be limited (kernel: CONFIG_NET_SCH_TBF)", h.QdiscAdd(tokenBucket(veth.Index, 1e6, 1500)))
	check("ifb", "upload rates can't be limited (kernel: CONFIG_IFB)", h.LinkAdd(&netlink.Ifb{LinkAttrs: named("probe3")}))
	check("nftables", "no rule can be set (kernel: CONFIG_NF_TABLES)", probeTable(nftables.TableFamilyIPv4, nftables.ChainTypeFilter, nftables.ChainHookForward))
	check("nftables NAT", "environments can't reach the outside (kernel: CONFIG_NFT_NAT, CONFIG_NFT_MASQ)", probeTable(nftables.TableFamilyIPv4, nftables.ChainTypeNAT, nftables.ChainHookPostrouting))
	check("nftables for bridges", "addresses can't be pinned to ports (kernel: CONFIG_NF_TABLES_BRIDGE)", probeTable(nftables.TableFamilyBridge, nftables.ChainTypeFilter, nftables.ChainHookPrerouting))
	check("all together", "mode bridge does not work", rehearse(ctx))
	return checks
}

func probeIsolation(h *netlink.Handle, port, bridge netlink.Link) error {
	if err := h.LinkSetMaster(port, bridge); err != nil {
		return err
	}
	if err := h.LinkSetIsolated(port, true); err != nil {
		return err
	}
	info, err := h.LinkGetProtinfo(port)
	if err != nil {
		return err
	}
	if !info.Isolated {
		return errors.New("the kernel does not know the flag")
	}
	return nil
}

func probeTable(family nftables.TableFamily, kind nftables.ChainType, hook *nftables.ChainHook) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Name: "probe", Family: family})
	c.AddChain(&nftables.Chain{Name: "probe", Table: table, Type: kind, Hooknum: hook, Priority: nftables.ChainPriorityFilter})
	if err := c.Flush(); err != nil {
		return err
	}
	c.DelTable(table)
	return c.Flush()
}

// rehearse attaches and detaches an empty namespace on a bridge in the scratch namespace: conntrack, sets, maps,
// fib, reject, u32 and mirred are needed by then.
func rehearse(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "netbridge-probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cfg := DefaultConfig("probe9", dir)
	cfg.Subnet = netip.MustParsePrefix("10.64.0.0/20")
	b, err := Open(ctx, cfg)
	if err != nil {
		return err
	}
	ns, err := scratchNetns()
	if err != nil {
		return errors.Join(err, b.Destroy(ctx))
	}
	defer ns.Close()
	_, err = b.Attach(ctx, "probe", ns, AttachOptions{NetUp: 1e6, NetDown: 1e6, Ports: []Port{{HostPort: 22, Port: 22}}})
	return errors.Join(err, b.Destroy(context.WithoutCancel(ctx)))
}

func forwardingCheck() Check {
	c := Check{Name: "forwarding"}
	raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err == nil {
		err = unix.Access("/proc/sys/net/ipv4/ip_forward", unix.W_OK)
	}
	if err != nil {
		c.Detail, c.Consequence = err.Error(), "environments can't reach the outside: net.ipv4.ip_forward can't be set here"
		return c
	}
	c.OK, c.Detail = true, "net.ipv4.ip_forward is "+strings.TrimSpace(string(raw))
	if c.Detail[len(c.Detail)-1] == '0' {
		c.Detail += ", and is set to 1 when the bridge is opened"
	}
	return c
}

// firewallCheck names others' chains that drop forwarded packets unless told otherwise. This package never changes
// them: an accept of ours does not overrule a drop of theirs.
func firewallCheck() Check {
	c := Check{Name: "other firewalls"}
	conn, err := nftables.New()
	if err != nil {
		c.Detail, c.Consequence = err.Error(), "can't tell whether another firewall drops forwarded packets"
		return c
	}
	chains, err := conn.ListChains()
	if err != nil {
		c.Detail, c.Consequence = err.Error(), "can't tell whether another firewall drops forwarded packets"
		return c
	}
	var dropping []string
	for _, chain := range chains {
		ip := chain.Table.Family == nftables.TableFamilyIPv4 || chain.Table.Family == nftables.TableFamilyINet
		if ip && chain.Hooknum != nil && *chain.Hooknum == *nftables.ChainHookForward && chain.Policy != nil && *chain.Policy == nftables.ChainPolicyDrop {
			dropping = append(dropping, fmt.Sprintf("table %s chain %s", chain.Table.Name, chain.Name))
		}
	}
	if len(dropping) > 0 {
		c.Detail = "forwarded packets are dropped by default in " + strings.Join(dropping, ", ")
		c.Consequence = "environments may not reach the outside until those chains accept what comes from and goes to the bridge"
		return c
	}
	c.OK, c.Detail = true, "none that drops forwarded packets by default"
	return c
}
