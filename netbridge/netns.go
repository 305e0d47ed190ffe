package netbridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// onOwnThread runs f on a thread nothing else runs on meanwhile, and returns when f does. If f says the thread is not
// fit for use again, it ends with f. It is never the process's first thread: that one can't end, and /proc/self/ns and
// /proc/net, which are its, would show a stranger's namespace from then on.
func onOwnThread(f func() (fit bool)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			onOwnThread(f) // on another one, since this is taken as long
			runtime.UnlockOSThread()
			return
		}
		if f() {
			runtime.UnlockOSThread()
		}
	}()
	<-done
}

// inNetns runs f on a thread that is in the network namespace.
func inNetns(ns *os.File, f func() error) (err error) {
	onOwnThread(func() bool {
		var home int
		if home, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			err = fmt.Errorf("open the thread's own network namespace: %w", err)
			return true
		}
		defer unix.Close(home)
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter network namespace %s: %w", ns.Name(), err)
			return true
		}
		err = f()
		return unix.Setns(home, unix.CLONE_NEWNET) == nil
	})
	return err
}

// scratchNetns makes a namespace that lives as long as the file.
func scratchNetns() (ns *os.File, err error) {
	onOwnThread(func() bool {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return true
		}
		ns, err = os.Open("/proc/thread-self/ns/net")
		return false
	})
	return ns, err
}

// inside is a netlink socket in an environment's namespace.
type inside struct{ sock *nl.SocketHandle }

// enter opens a socket in the namespace and turns IPv6 off for links made there from now on. (lo keeps ::1,
// which many programs want.)
func enter(ns *os.File) (*inside, error) {
	in := &inside{}
	err := inNetns(ns, func() error {
		if err := writeSysctl("ipv6/conf/default/disable_ipv6", "1"); err != nil {
			return err
		}
		s, err := nl.GetNetlinkSocketAt(-1, -1, unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("netlink socket: %w", err)
		}
		in.sock = &nl.SocketHandle{Socket: s}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return in, nil
}

func (in *inside) close() { in.sock.Close() }

func (in *inside) request(kind, flags int) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(kind, flags)
	r.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: in.sock}
	return r
}

// up brings a link up.
func (in *inside) up(index int) error {
	r := in.request(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index, m.Flags, m.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	r.AddData(m)
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// address gives a link an address with no network around it: no one else is on the link.
func (in *inside) address(index int, ip net.IP) error {
	r := in.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	m := nl.NewIfAddrmsg(unix.AF_INET)
	m.Index, m.Prefixlen = uint32(index), 32
	r.AddData(m)
	r.AddData(nl.NewRtAttr(unix.IFA_LOCAL, ip.To4()))
	r.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, ip.To4()))
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// routes leads everything to the gateway, whose MAC is given, so that nobody is ever asked for.
//
// The kernel has one table of IPv4 neighbours for all network namespaces, and whoever makes it ask for addresses that
// nobody has fills it for the host. So the gateway is the only one on this link. A socket bound to the link that
// wants no gateway (SO_BINDTODEVICE and MSG_DONTROUTE) would still have the kernel take any address to be on it when
// no route says otherwise; the last route does, in the table that is looked at after all others: such packets stay
// in the environment.
func (in *inside) routes(index int, gateway net.IP, mac net.HardwareAddr) error {
	neighbour := &netlink.Ndmsg{Family: unix.AF_INET, Index: uint32(index), State: netlink.NUD_PERMANENT}
	r := in.request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	r.AddData(neighbour)
	r.AddData(nl.NewRtAttr(netlink.NDA_DST, gateway.To4()))
	r.AddData(nl.NewRtAttr(netlink.NDA_LLADDR, mac))
	if _, err := r.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("neighbour: %w", err)
	}
	for _, to := range []struct {
		what               string
		table, scope, kind uint8
		dst, via           net.IP
	}{
		{"the gateway", unix.RT_TABLE_MAIN, unix.RT_SCOPE_LINK, unix.RTN_UNICAST, gateway, nil},
		{"everything", unix.RT_TABLE_MAIN, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, nil, gateway},
		{"everything without a gateway", unix.RT_TABLE_DEFAULT, unix.RT_SCOPE_HOST, unix.RTN_LOCAL, nil, nil},
	} {
		r := in.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
		m := nl.NewRtMsg()
		m.Family, m.Table, m.Scope, m.Type = unix.AF_INET, to.table, to.scope, to.kind
		r.AddData(m)
		if to.dst != nil {
			m.Dst_len = 32
			r.AddData(nl.NewRtAttr(unix.RTA_DST, to.dst.To4()))
		}
		if to.via != nil {
			r.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, to.via.To4()))
		}
		r.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
		if _, err := r.Execute(unix.NETLINK_ROUTE, 0); err != nil {
			return fmt.Errorf("route to %s: %w", to.what, err)
		}
	}
	return nil
}

// loopbackIndex is lo's interface index in every network namespace (net/core/dev.c).
const loopbackIndex = 1

// Loopback gives the namespace a loopback interface that works and nothing else: mode "none".
func Loopback(ctx context.Context, netns *os.File) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	in, err := enter(netns)
	if err != nil {
		return err
	}
	defer in.close()
	if err := in.up(loopbackIndex); err != nil {
		return fmt.Errorf("bring lo up in %s: %w", netns.Name(), err)
	}
	return nil
}

// writeSysctl sets net/<name> of the thread's own namespace. A kernel without IPv6 has no such files, and
// nothing to turn off.
func writeSysctl(name, value string) error {
	err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
	if errors.Is(err, fs.ErrNotExist) && len(name) > 5 && name[:5] == "ipv6/" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set net/%s to %s: %w", name, value, err)
	}
	return nil
}

// sameNamespace tells whether the file is the network namespace this thread is in.
func sameNamespace(ns *os.File) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &a); err != nil {
		return false, fmt.Errorf("stat %s: %w", ns.Name(), err)
	}
	if err := unix.Stat("/proc/thread-self/ns/net", &b); err != nil {
		return false, fmt.Errorf("stat the own network namespace: %w", err)
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}

// notThere is what the kernel says of a link, route or neighbour that does not exist.
func notThere(err error) bool {
	var lnf netlink.LinkNotFoundError
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.As(err, &lnf)
}
