// Package nodeagent turns an image, an address and a confined process tree into an environment: it is the one
// place where runtime, rootfs and netbridge meet.
//
// A Node is a directory. Everything a node knows about its environments is on its disk, one directory each, so
// any number of processes (commands a person types, the daemon) work on the same node at once, and a process
// that dies takes nothing with it. Serve is the daemon on top: it takes jobs from etcd, keeps deadlines and
// quotas, and serves terminal sessions over tunnels it dials itself.
//
// The package does not know users, HTTP or SQL; it never listens on a network address.
package nodeagent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/learnos/learnos/netbridge"
	"github.com/learnos/learnos/rootfs"
	"github.com/learnos/learnos/runtime"
)

// DefaultRoot is where a node keeps its state when nobody says otherwise.
const DefaultRoot = "/var/lib/learnos"

// Errors that callers tell apart with errors.Is.
var (
	// ErrNotFound: no environment of that name or id is on this node.
	ErrNotFound = errors.New("no such environment")
	// ErrNameTaken: another environment of this node has the name.
	ErrNameTaken = errors.New("name is taken")
	// ErrNotRunning: the environment has ended (or has not begun).
	ErrNotRunning = errors.New("environment is not running")
)

// Options say how a node reaches its network. The zero value is right for a machine of one's own.
type Options struct {
	// Bridge is the name of the bridge; empty: "learnos0" for DefaultRoot, else one derived from the root.
	Bridge string
	// Subnet of the bridge; zero: netbridge chooses a free one and remembers it.
	Subnet netip.Prefix
	// AllowPrivate opens private address ranges to environments. They are closed otherwise.
	AllowPrivate bool
}

// Node is the state of one node under one root directory. It is safe for concurrent use, and several processes
// may have the same root open.
type Node struct {
	root    string
	name    string // bridge and cgroup parent
	opts    Options
	images  *rootfs.Store
	runtime *runtime.Runtime
	ids     idRanges

	pool atomic.Pointer[pool] // nil where none is kept; see keepPool

	netMu sync.Mutex
	net   *netbridge.Bridge // nil until first needed
}

// Open opens (and creates, mode 0700) the node under root. It touches neither the network nor any cgroup.
func Open(root string, opts Options) (*Node, error) {
	if root == "" {
		root = DefaultRoot
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("node root: %w", err)
	}
	for _, dir := range []string{root, filepath.Join(root, "envs"), filepath.Join(root, "names"), filepath.Join(root, "spares")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			if errors.Is(err, os.ErrPermission) {
				return nil, fmt.Errorf("node root %s: %w (a node needs root: try sudo)", root, err)
			}
			return nil, fmt.Errorf("node root %s: %w", root, err)
		}
	}
	n := &Node{root: root, name: machineName(root), opts: opts, ids: idRanges{dir: idDir, root: root}}
	if n.images, err = rootfs.Open(root); err != nil {
		return nil, fmt.Errorf("open images under %s: %w", root, err)
	}
	if n.runtime, err = runtime.Open(runtime.Options{StateDir: n.RunDir(), CgroupParent: n.name}); err != nil {
		return nil, fmt.Errorf("open runtime under %s: %w", root, err)
	}
	return n, nil
}

// machineName is what a root's objects are called where the whole machine sees them: its bridge, its nftables
// table, its cgroup directory. Two roots never share a name.
func machineName(root string) string {
	if root == DefaultRoot {
		return "learnos"
	}
	sum := sha256.Sum256([]byte(root))
	return "lrn" + hex.EncodeToString(sum[:4])
}

// Root is the node's directory.
func (n *Node) Root() string { return n.root }

// runDir holds what is worth nothing after a restart of the machine, by node. It is a tmpfs almost everywhere.
const runDir = "/run/learnos"

// RunDir is where the runtime keeps the state of the environments' processes, one directory each.
func (n *Node) RunDir() string { return filepath.Join(runDir, n.name) }

// Images is the node's image store.
func (n *Node) Images() *rootfs.Store { return n.images }

// CgroupParent is the name of the cgroup directory, on every hierarchy, that holds this node's environments.
func (n *Node) CgroupParent() string { return n.name }

// BridgeName is the name of the node's bridge interface.
func (n *Node) BridgeName() string {
	switch {
	case n.opts.Bridge != "":
		return n.opts.Bridge
	case n.root == DefaultRoot:
		return "learnos0"
	}
	return n.name
}

func (n *Node) netDir() string { return filepath.Join(n.root, "net") }

// Bridge opens the node's network, and creates it when it is not there yet.
func (n *Node) Bridge(ctx context.Context) (*netbridge.Bridge, error) {
	n.netMu.Lock()
	defer n.netMu.Unlock()
	if n.net != nil {
		return n.net, nil
	}
	cfg := netbridge.DefaultConfig(n.BridgeName(), n.netDir())
	cfg.Subnet = n.opts.Subnet
	if n.opts.AllowPrivate {
		cfg.BlockPrivate = false
	}
	cfg.Resolvers = hostResolvers("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
	b, err := netbridge.Open(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open bridge %s: %w", cfg.Name, err)
	}
	n.net = b
	return b, nil
}
