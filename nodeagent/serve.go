package nodeagent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/buildinfo"
	"github.com/learnos/learnos/internal/config"
	"github.com/learnos/learnos/internal/only"
	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/reason"
)

// nodeTTL is how long etcd remembers a node that has gone silent.
const nodeTTL = 15 * time.Second

// daemon is one running Serve.
type daemon struct {
	node    *Node
	name    string // the node's, in etcd
	cfg     config.Node
	queue   *queue.Queue
	lease   *queue.Lease // set once before any job is claimed
	log     *slog.Logger
	pub     *publisher
	started time.Time
	life    context.Context // Serve's own, for what is begun by a stream and outlives it

	lacks  map[string]string // rations that this node can't give, and why
	others others            // of the claimer alone

	mu     sync.Mutex
	envs   map[string]*hosted
	sample chan struct{} // closed and renewed whenever there are new figures
	kick   chan struct{} // there may be room for a job that had none
	// refused: the claimer has left a job to others, or for later, since it last began to look.
	refused atomic.Bool
	news    chan struct{} // the node's entry in etcd is not true any more

	work sync.WaitGroup // jobs and endings under way
}

// Serve runs the node's daemon until ctx ends. It returns early only when it can't begin: another daemon has the
// same root, or the configuration makes no sense. That etcd is away is no reason: environments that run go on, and
// their states are told when it is back. When it returns, environments and their sessions go on.
func Serve(ctx context.Context, cfg *config.Config) error {
	cli, err := queue.Dial(cfg.Etcd)
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	defer cli.Close()
	return ServeWith(ctx, cfg, cli)
}

// ServeWith is Serve with an etcd client of the caller's.
func ServeWith(ctx context.Context, cfg *config.Config, etcd *clientv3.Client) error {
	opts, err := nodeOptions(cfg.Node)
	if err != nil {
		return err
	}
	root := cfg.Node.Root
	if root == "" {
		root = cfg.Common.DataDir
	}
	n, err := Open(root, opts)
	if err != nil {
		return err
	}
	unlock, err := n.lockServe()
	if err != nil {
		return err
	}
	defer unlock()
	if err := n.saveOptions(); err != nil {
		return err
	}
	if _, err := n.Bridge(ctx); err != nil {
		return err
	}
	d := &daemon{
		node: n, name: nodeName(cfg.Node), cfg: cfg.Node, queue: queue.New(etcd, cfg.Etcd.Prefix),
		log: slog.Default().With("node", nodeName(cfg.Node)), started: time.Now(), life: ctx, lacks: n.lacks(),
		envs: map[string]*hosted{}, sample: make(chan struct{}),
		kick: make(chan struct{}, 1), news: make(chan struct{}, 1),
	}
	for _, s := range shared {
		raise(s.path, s.most, s.what, d.log)
	}
	d.pub = newPublisher(d.queue, d.name, filepath.Join(n.root, "ended"), d.log)
	if err := d.takeUp(ctx); err != nil {
		return err
	}
	d.log.Info("node is up", "root", n.root, "bridge", n.BridgeName(), "environments", len(d.envs))
	defer d.leave()

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.pub.run(gctx) })
	g.Go(func() error { return d.watchLimits(gctx) })
	g.Go(func() error { return guardSockets(gctx, d.environments, d.overSockets, d.log) })
	g.Go(func() error { return d.keepTunnels(gctx) })
	g.Go(func() error { return d.node.keepPool(gctx, d.sparesBound(), d.roomForSpare, d.log) })
	g.Go(func() error { return d.keepRegistered(gctx) })
	err = g.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func nodeName(cfg config.Node) string {
	if cfg.Name != "" {
		return cfg.Name
	}
	host, err := os.Hostname()
	if err != nil {
		return "node"
	}
	return host
}

func nodeOptions(cfg config.Node) (Options, error) {
	o := Options{Bridge: cfg.Bridge, AllowPrivate: !cfg.BlockPrivate}
	if cfg.Subnet != "" {
		p, err := netip.ParsePrefix(cfg.Subnet)
		if err != nil {
			return o, fmt.Errorf("[node] subnet %q: want a CIDR as in 10.90.0.0/20", cfg.Subnet)
		}
		o.Subnet = p
	}
	return o, nil
}

// lockServe makes sure that a root has one daemon.
func (n *Node) lockServe() (func(), error) {
	f, err := only.Lock(filepath.Join(n.root, "serve.lock"))
	if errors.Is(err, only.ErrTaken) {
		return nil, fmt.Errorf("another daemon serves %s already: stop it, or give this one a root of its own", n.root)
	}
	if err != nil {
		return nil, fmt.Errorf("lock node: %w", err)
	}
	return func() { _ = f.Close() }, nil
}

// instance is a random word that tells this root from every other machine's, kept for ever.
func (n *Node) instance() (string, error) {
	path := filepath.Join(n.root, "instance")
	body, err := os.ReadFile(path)
	if err == nil && len(body) > 0 {
		return strings.TrimSpace(string(body)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("node instance: %w", err)
	}
	id := rand.Text()
	if err := os.WriteFile(path, []byte(id+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("node instance: %w", err)
	}
	return id, nil
}

// SavedOptions are those of the last daemon on root, for commands that a person types beside it.
func SavedOptions(root string) Options {
	var o Options
	body, err := os.ReadFile(filepath.Join(root, "node.json"))
	if err != nil || json.Unmarshal(body, &o) != nil {
		return Options{}
	}
	return o
}

// saveOptions lets commands that a person types beside the daemon see the network as it does.
func (n *Node) saveOptions() error {
	body, err := json.MarshalIndent(n.opts, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(n.root, "node.json.tmp")
	if err := os.WriteFile(tmp, body, 0o600); err != nil {
		return fmt.Errorf("node options: %w", err)
	}
	return os.Rename(tmp, filepath.Join(n.root, "node.json"))
}

// takeUp finds every environment that an earlier daemon left, its sessions with it, and clears what is nobody's.
func (d *daemon) takeUp(ctx context.Context) error {
	all, err := d.node.Records()
	if err != nil {
		return err
	}
	if err := d.node.restoreRanges(all); err != nil {
		return err
	}
	for _, r := range all {
		if r.Owner != OwnerPlatform || r.State == StateExited {
			continue
		}
		if r.State != StateRunning || d.pub.kept(r.ID) { // half-made or half-deleted; whatever is to be said of it, its job says
			if err := d.node.Delete(ctx, r.ID); err != nil {
				d.log.Error("clear a half-made environment", "env", r.ID, "err", err)
			}
			continue
		}
		env, err := d.node.Load(ctx, r.ID)
		if err != nil || !env.Alive(ctx) {
			why := reason.Say(reason.WhileAway)
			if st := d.node.lastStatus(ctx, r); st != nil {
				why = endReason(*st, r.Limits)
			}
			d.pub.ended(queue.EnvStatus{ID: r.ID, State: queue.StateFailed, Reason: why})
			if err := d.node.Delete(ctx, r.ID); err != nil {
				d.log.Error("remove a dead environment", "env", r.ID, "err", err)
			}
			continue
		}
		h := d.host(env)
		sessions, err := d.node.restoreSessions(ctx, env)
		if err != nil {
			d.log.Error("take up sessions", "env", r.ID, "err", err)
		}
		h.sessions = sessions
		if h.accepted() {
			d.pub.put(h.status())
		}
		d.follow(ctx, h)
	}
	swept, err := d.node.Sweep(ctx)
	if err != nil {
		d.log.Error("sweep", "err", err)
	}
	d.log.Info("swept", "what", swept)
	return nil
}

// leave ends what the daemon does, never what it keeps.
func (d *daemon) leave() {
	d.work.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range d.envs {
		h.letGo()
	}
}

// sparesBound is how many environments may wait to be given away: as configured, but no more than may run at all, nor more
// than a sixteenth of the addresses.
func (d *daemon) sparesBound() int {
	bound := d.cfg.Spares
	if d.cfg.MaxEnvironments > 0 {
		bound = min(bound, d.cfg.MaxEnvironments)
	}
	if p := d.node.opts.Subnet; p.IsValid() {
		bound = min(bound, 1<<(32-p.Bits())/16)
	}
	return bound
}

// spareRoom is how much memory, in bytes, the node must be able to promise before it makes one more spare, which takes
// 1.5 MiB: enough that an environment is not refused for it.
const spareRoom = 64 << 20

func (d *daemon) roomForSpare() bool {
	return d.free(readMeminfo()) >= spareRoom && d.diskRoom() >= spareRoom
}

// wake makes the claimer and the registry look again.
func (d *daemon) wake() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
	d.announce()
}

// announce makes the registry look again.
func (d *daemon) announce() {
	select {
	case d.news <- struct{}{}:
	default:
	}
}

// info is what the node tells about itself.
func (d *daemon) info(instance string) queue.NodeInfo {
	mem := readMeminfo()
	i := queue.NodeInfo{
		Name: d.name, Version: buildinfo.Version(), Instance: instance, Address: hostAddress(),
		FreeMemory: d.free(mem), TotalMemory: mem.total, CPUs: goruntime.NumCPU(),
		DiskRoom: d.diskRoom(), Lacks: d.lacks,
		MaxEnvironments: d.cfg.MaxEnvironments, StartedAt: d.started, UpdatedAt: time.Now(),
	}
	d.mu.Lock()
	i.Environments = len(d.envs)
	d.mu.Unlock()
	i.Spares, _ = d.node.pool.Load().state()
	i.DiskFree, i.DiskTotal, _ = diskSpace(d.node.root)
	return i
}

// hostAddress is the address this machine uses to reach others, for people who look at lists; "" without one.
func hostAddress() string {
	// A connected UDP socket gets its source address from the routing table; nothing is sent. 192.0.2.1 is TEST-NET-1.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	if unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{192, 0, 2, 1}}) != nil {
		return ""
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return ""
	}
	if in, ok := sa.(*unix.SockaddrInet4); ok {
		return netip.AddrFrom4(in.Addr).String()
	}
	return ""
}

// keepRegistered gets the node its lease, however long etcd takes, and then takes jobs under it.
func (d *daemon) keepRegistered(ctx context.Context) error {
	instance, err := d.node.instance()
	if err != nil {
		return err
	}
	wait := newBackoff()
	for {
		if d.lease, err = d.queue.RegisterNode(ctx, d.info(instance), nodeTTL); err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		d.log.Warn("register in etcd: trying again", "err", err)
		if errors.Is(err, queue.ErrNameTaken) {
			d.log.Error("another machine has this node's name: set name in [node] of the configuration", "name", d.name)
		}
		if !wait.sleep(ctx) {
			return nil
		}
	}
	defer func() {
		bye, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = d.lease.Close(bye)
	}()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.takeJobs(gctx) })
	g.Go(func() error { return d.tellAboutItself(gctx, instance) })
	return g.Wait()
}

// newsPause is how long changes of the node's entry are gathered, so that a burst of creates costs etcd one write and not
// three each. What the entry says is for people; claims are decided by the node itself.
const newsPause = 250 * time.Millisecond

// tellAboutItself keeps the node's entry fresh: soon when something changed, else now and then.
func (d *daemon) tellAboutItself(ctx context.Context, instance string) error {
	slow := time.NewTicker(10 * time.Second)
	defer slow.Stop()
	for {
		if err := d.lease.Update(ctx, d.info(instance)); err != nil && ctx.Err() == nil {
			d.log.Warn("tell etcd about this node", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-d.lease.Regained():
			// etcd forgot us for a while; whoever reads it may have missed what happened meanwhile.
			for _, h := range d.all() {
				if h.accepted() {
					d.pub.put(h.status())
				}
			}
			d.wake()
		case <-d.news:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(newsPause):
			}
			select { // what came meanwhile is told by the same write
			case <-d.news:
			default:
			}
		case <-slow.C:
		}
	}
}

// all is a copy of the list of hosted environments.
func (d *daemon) all() []*hosted {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]*hosted, 0, len(d.envs))
	for _, h := range d.envs {
		list = append(list, h)
	}
	return list
}

func (d *daemon) lookup(id string) *hosted {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.envs[id]
}

// backoff waits longer each time, up to a bound, and never exactly as long as its neighbours.
type backoff struct{ next time.Duration }

func newBackoff() *backoff { return &backoff{next: 250 * time.Millisecond} }

func (b *backoff) reset() { b.next = 250 * time.Millisecond }

// sleep waits; false when ctx ended first.
func (b *backoff) sleep(ctx context.Context) bool {
	var r [1]byte
	_, _ = rand.Read(r[:])
	t := time.NewTimer(b.next*3/4 + b.next*time.Duration(r[0])/512)
	defer t.Stop()
	b.next = min(2*b.next, 10*time.Second)
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
