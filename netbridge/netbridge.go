// Package netbridge gives an environment a network address of its own and nothing else: one Linux
// bridge per node, one veth pair per environment, masquerading to the outside, published ports from it,
// and rules that keep environments away from each other, from the host's services and, by policy, from
// private networks.
//
// It knows network namespaces, never what runs in them: no containers, no images, no users, no quotas.
// IPv4 only: IPv6 is off on the bridge and on every port, and what a tenant still sends over it is dropped.
//
// All state is in the kernel and in small files below Config.StateDir, so several processes may hold the
// same Bridge open, and one that is killed at any step leaves only what Detach, Sweep or the next Open
// can find by name.
package netbridge

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
)

// ErrNotFound is returned (wrapped) when an environment has no attachment.
var ErrNotFound = errors.New("no such attachment")

// Config says which bridge to keep and what environments on it may reach.
type Config struct {
	// Name of the bridge, at most 15 bytes (IFNAMSIZ less the final zero). Two Configs with different
	// names share nothing.
	Name string
	// Subnet of the bridge; its first address is the gateway's. Zero: a free /20 in 10.64.0.0/10 is chosen
	// once and remembered in StateDir.
	Subnet netip.Prefix
	// Table names the nftables tables (one of family ip, one of family bridge); empty means Name.
	Table string
	// StateDir holds leases and the lock; created with mode 0700.
	StateDir string
	// BlockPrivate closes private, shared and otherwise not globally routed IPv4 ranges.
	BlockPrivate bool
	// Allow lists ranges that stay open although BlockPrivate would close them. It opens neither the host's own
	// addresses nor link-local metadata addresses nor other environments.
	Allow []netip.Prefix
	// Resolvers are DNS servers that stay reachable on port 53, even in closed ranges.
	Resolvers []netip.Addr
}

// DefaultConfig is the closed policy for a bridge of that name.
func DefaultConfig(name, stateDir string) Config {
	return Config{Name: name, StateDir: stateDir, BlockPrivate: true}
}

// Bridge is one node's network for environments. Its methods may be called at once from several
// goroutines and several processes.
type Bridge struct {
	cfg Config
}

// Port publishes Port of an environment as HostPort of the host.
type Port struct {
	HostIP   netip.Addr `json:"hostIP,omitzero"` // an IPv4 address of the host; zero or 0.0.0.0: every one
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
	Prefix   netip.Prefix // IP with the subnet's length, as set on eth0 inside
	Gateway  netip.Addr
	MAC      net.HardwareAddr
	HostIf   string // the host's end of the veth pair
	Hostname string
	Ports    []Port
}

// Stats are an environment's traffic counters as it sees them itself: Rx is what came in.
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

var errUnfinished = errors.New("netbridge: not built yet")

// Open makes or repairs the bridge and its rules.
func Open(ctx context.Context, cfg Config) (*Bridge, error) { return nil, errUnfinished }

// Attach gives the network namespace an address.
func (b *Bridge) Attach(ctx context.Context, id string, netns *os.File, o AttachOptions) (*Attachment, error) {
	return nil, errUnfinished
}

// Detach takes it back.
func (b *Bridge) Detach(ctx context.Context, id string) error { return errUnfinished }

// Attachment returns what Attach made.
func (b *Bridge) Attachment(id string) (*Attachment, error) { return nil, errUnfinished }

// Stats reads the counters.
func (b *Bridge) Stats(ctx context.Context, id string) (Stats, error) { return Stats{}, errUnfinished }

// Sweep clears what is not live.
func (b *Bridge) Sweep(ctx context.Context, live func(id string) bool) ([]string, error) {
	return nil, errUnfinished
}

// Destroy removes bridge, tables and state.
func (b *Bridge) Destroy(ctx context.Context) error { return errUnfinished }

// Loopback brings lo up.
func Loopback(ctx context.Context, netns *os.File) error { return errUnfinished }

// Probe says what this kernel gives.
func Probe(ctx context.Context) []Check { return nil }
