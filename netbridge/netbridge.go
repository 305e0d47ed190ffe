// Package netbridge gives an environment a network address of its own and nothing else: one Linux
// bridge per node, one veth pair per environment, masquerading to the outside, published ports from it,
// and rules that keep environments away from each other, from the host's services and, by policy, from
// private networks.
//
// It knows network namespaces, never what runs in them: no containers, no images, no users, no quotas.
// IPv4 only: IPv6 is off on the bridge and on both ends of every pair, and what a tenant still sends over
// it is dropped.
//
// All state is in the kernel and in small files below Config.StateDir, so several processes may hold the
// same bridge open, and one that is killed at any step leaves only what Detach, Sweep or the next Open
// can find by name. The lease files are the truth; links and nftables elements are made from them.
package netbridge

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

var (
	// ErrNotFound is wrapped when an environment has no attachment.
	ErrNotFound = errors.New("no such attachment")
	// ErrExists is wrapped when an environment is attached already.
	ErrExists = errors.New("already attached")
	// ErrPortTaken is wrapped when a port to publish belongs to another environment or to a process of the host.
	ErrPortTaken = errors.New("port is taken")
	// ErrFull is wrapped when every address of the subnet is leased.
	ErrFull = errors.New("no free address")
)

// Config says which bridge to keep and what environments on it may reach.
type Config struct {
	// Name of the bridge, at most 15 bytes (IFNAMSIZ less the final zero). Two Configs with different
	// names share nothing.
	Name string
	// Subnet of the bridge, between /8 and /29; its first address is the gateway's. Zero: a free /20 in
	// 10.64.0.0/10 is chosen once and remembered in StateDir.
	Subnet netip.Prefix
	// Table names the nftables tables (one of family ip, one of family bridge); empty means Name.
	Table string
	// StateDir holds leases and the lock; created with mode 0700.
	StateDir string
	// BlockPrivate closes private, shared and otherwise not globally routed IPv4 ranges (RFC 6890) and the
	// networks the host itself is on.
	BlockPrivate bool
	// Allow lists ranges that stay open although BlockPrivate would close them. It opens neither the host's own
	// addresses nor link-local (metadata) addresses nor other environments.
	Allow []netip.Prefix
	// Resolvers are DNS servers that stay reachable on port 53, even in closed ranges and on the host itself.
	Resolvers []netip.Addr
}

// DefaultConfig is the closed policy for a bridge of that name.
func DefaultConfig(name, stateDir string) Config {
	return Config{Name: name, StateDir: stateDir, BlockPrivate: true}
}

// Bridge is one node's network for environments. Its methods may be called at once from several
// goroutines and several processes.
type Bridge struct {
	cfg    Config
	subnet netip.Prefix
	mtu    int
	index  int // the bridge's interface index
	h      *netlink.Handle
	route  *nl.SocketHandle // for the requests that package netlink has no words for
	filter *nl.SocketHandle // the same, to netfilter
	rules  *rules

	background sync.WaitGroup // link deletions nobody waits for
	closing    chan struct{}  // closed by Close: they wait no longer
	closeOnce  sync.Once
}

// Port publishes Port of an environment as HostPort of the host.
type Port struct {
	// HostIP is an IPv4 address of the host, a loopback one included; zero or 0.0.0.0 means all of them.
	HostIP   netip.Addr `json:"hostIP,omitzero"`
	HostPort uint16     `json:"hostPort"`
	Port     uint16     `json:"port"`
	Proto    string     `json:"proto"` // "tcp" or "udp"; empty means tcp
}

// AttachOptions are what an environment gets beside its address.
type AttachOptions struct {
	Ports    []Port
	Hostname string // recorded with the lease, for people who look
	NetUp    uint64 // bits per second out of the environment; 0: no limit
	NetDown  uint64 // bits per second into the environment; 0: no limit
}

// Attachment is an environment's place on the bridge.
type Attachment struct {
	ID       string
	IP       netip.Addr
	Prefix   netip.Prefix // IP/32, as set on eth0 inside: not the bridge's subnet, of which an environment sees the gateway only
	Gateway  netip.Addr   // the host's address on the bridge, alone on the link with the environment
	MAC      net.HardwareAddr
	HostIf   string // the host's end of the veth pair
	Hostname string
	Ports    []Port
	NetUp    uint64 // bits per second, 0: no limit
	NetDown  uint64 // bits per second, 0: no limit
}

// Stats are an environment's traffic counters as it sees them itself: Rx is what came in. Bytes include
// the Ethernet header.
type Stats struct {
	RxBytes, TxBytes, RxPackets, TxPackets uint64
}

// Check is one finding about the machine.
type Check struct {
	Name        string
	OK          bool
	Detail      string // what was seen
	Consequence string // what will not work, when not OK
}

var (
	ifNamePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$`)
	idPattern     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
)

func (c *Config) validate() error {
	if !ifNamePattern.MatchString(c.Name) {
		return fmt.Errorf("bridge name %q: want 1 to 15 letters, digits, dots, dashes or underscores", c.Name)
	}
	if c.Table == "" {
		c.Table = c.Name
	}
	if !idPattern.MatchString(c.Table) {
		return fmt.Errorf("table name %q: want letters, digits, dots, dashes or underscores", c.Table)
	}
	if c.StateDir == "" {
		return errors.New("StateDir is empty: want a directory for the leases")
	}
	if c.Subnet.IsValid() {
		if !c.Subnet.Addr().Is4() || c.Subnet.Bits() < 8 || c.Subnet.Bits() > 29 {
			return fmt.Errorf("subnet %s: want an IPv4 prefix between /8 and /29", c.Subnet)
		}
		if c.Subnet != c.Subnet.Masked() {
			return fmt.Errorf("subnet %s has host bits set: write %s", c.Subnet, c.Subnet.Masked())
		}
	}
	for _, p := range c.Allow {
		if !p.IsValid() || !p.Addr().Is4() {
			return fmt.Errorf("allowed range %s: want an IPv4 prefix", p)
		}
	}
	return nil
}

// gateway is the host's own address on the bridge.
func (b *Bridge) gateway() netip.Addr { return b.subnet.Addr().Next() }

// portPrefix begins the name of every link on this bridge, so that rules, Sweep and people can tell them
// from others'. It is a hash, since a bridge's name and an address do not both fit into 15 bytes.
func portPrefix(bridge string) string {
	const digits = "abcdefghijklmnopqrstuvwxyz234567"
	f := fnv.New32a()
	f.Write([]byte(bridge))
	h, out := f.Sum32(), []byte("lv")
	for range 5 {
		out = append(out, digits[h%32])
		h /= 32
	}
	return string(out)
}

// linkName is the host's end of the pair of that address: one address, one name, so an orphan says whose
// it was.
func (b *Bridge) linkName(ip netip.Addr) string {
	a := ip.As4()
	return fmt.Sprintf("%s%08x", portPrefix(b.cfg.Name), a[:])
}

// ifbName is the device through which what comes out of the environment of that address is shaped.
func (b *Bridge) ifbName(ip netip.Addr) string { return "li" + b.linkName(ip)[2:] }

// macOf is the address inside: locally administered, and derived, so that it needs no record.
func macOf(ip netip.Addr) net.HardwareAddr {
	a := ip.As4()
	return net.HardwareAddr{0x02, 0x4c, a[0], a[1], a[2], a[3]}
}

// lock excludes other processes and goroutines that change leases and rules. The lock lives with an open file
// description, so the kernel gives it back when its holder is killed.
func (b *Bridge) lock() (unlock func(), err error) {
	return lockDir(b.cfg.StateDir)
}

func lockDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

// Close waits for the link deletions that Detach left running and closes sockets. It changes nothing in the
// kernel; a process that ends without it leaves at most links that Sweep finds.
func (b *Bridge) Close() error {
	b.closeOnce.Do(func() { close(b.closing) })
	b.background.Wait()
	b.h.Close()
	b.route.Close()
	b.filter.Close()
	if b.rules != nil {
		b.rules.close()
	}
	return nil
}
