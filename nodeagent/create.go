package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/netbridge"
	"github.com/learnos/learnos/rootfs"
	"github.com/learnos/learnos/runtime"
)

// CreateOptions describe an environment to be.
type CreateOptions struct {
	ID       string // empty: a new one
	Name     string // empty: none
	Hostname string // empty: the id's first 12 characters
	Image    *rootfs.Image

	// Args are the main command's; empty: the image's. Entrypoint, when not nil, replaces the image's.
	Args       []string
	Entrypoint *string
	NoMain     bool     // no main command at all: init waits for sessions
	Env        []string // KEY=VALUE, over the image's
	Cwd        string   // empty: the image's
	User       string   // empty: the image's
	TTY        bool
	Cols, Rows uint16

	Owner      string // OwnerForeground, OwnerDetached or OwnerPlatform
	AutoRemove bool
	KeepStdin  bool   // a detached command without a TTY gets a standard input that stays open, not end of file
	Net        string // NetBridge (also when empty), NetNone, NetHost
	Ports      []netbridge.Port
	Volumes    []Volume
	Limits     Limits
	ReadOnly   bool
	HostUsers  bool // no user namespace; all else stays locked down
	// CapAdd and CapDrop change what root inside may do (capabilities(7)), as docker's --cap-add and --cap-drop do: names with
	// or without CAP_, in any case; "ALL" can be dropped. Of those added the ones that act on the whole machine are refused.
	CapAdd, CapDrop []string
	Platform        *PlatformRecord

	// Timings are of stages before this one, in microseconds, for the record.
	Timings map[string]int64
	// Stage, when not nil, hears what the create is at.
	Stage func(stage string)
}

// Environment is one disposable machine on this node.
type Environment struct {
	node    *Node
	c       *runtime.Container
	command *runtime.Session // a foreground environment's, in the process that made it

	mu  sync.Mutex
	rec Record
}

// Record is a copy of what the node knows about it.
func (e *Environment) Record() Record {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.rec
}

// ID is the environment's id.
func (e *Environment) ID() string { return e.rec.ID }

// Container is the process tree itself.
func (e *Environment) Container() *runtime.Container { return e.c }

// update changes the record, on disk too.
func (e *Environment) update(change func(r *Record)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(&e.rec)
	return e.node.save(&e.rec)
}

// check refuses what can't work before anything exists, with the words a person needs to put it right.
func (o *CreateOptions) check() error {
	switch {
	case o.Image == nil:
		return errors.New("no image given")
	case o.ID != "" && !validID(o.ID):
		return fmt.Errorf("id %q: want lowercase letters, digits and dashes, at most 63", o.ID)
	case o.Name != "" && !validName(o.Name):
		return fmt.Errorf("name %q: want letters, digits, '_', '.' and '-', beginning with a letter or digit, at most 63", o.Name)
	case o.Hostname != "" && !validHost(o.Hostname):
		return fmt.Errorf("hostname %q: want letters, digits, '.' and '-', at most 63", o.Hostname)
	case o.Cwd != "" && !path.IsAbs(o.Cwd):
		return fmt.Errorf("working directory %q: want an absolute path", o.Cwd)
	case o.Net != NetBridge && o.Net != NetNone && o.Net != NetHost:
		return fmt.Errorf("network %q: want bridge, none or host", o.Net)
	case o.Net != NetBridge && len(o.Ports) > 0:
		return fmt.Errorf("published ports need the bridge network, not %q", o.Net)
	case o.Net != NetBridge && (o.Limits.NetUpBits != 0 || o.Limits.NetDownBits != 0):
		return fmt.Errorf("bandwidth limits need the bridge network, not %q", o.Net)
	case o.Net == NetHost && o.Limits.NetQuotaBytes != 0:
		return errors.New("the host's network has no traffic counters of one environment: a traffic quota needs the bridge network")
	}
	if err := o.Limits.check(); err != nil {
		return err
	}
	if _, err := o.Capabilities(); err != nil {
		return err
	}
	for _, kv := range o.Env {
		if key, _, ok := strings.Cut(kv, "="); !ok || key == "" || strings.ContainsRune(kv, 0) {
			return fmt.Errorf("environment variable %q: want NAME=VALUE", kv)
		}
	}
	for _, v := range o.Volumes {
		if !path.IsAbs(v.Source) || !path.IsAbs(v.Destination) || path.Clean(v.Destination) == "/" {
			return fmt.Errorf("volume %s:%s: want two absolute paths, the second not /", v.Source, v.Destination)
		}
		if _, err := os.Stat(v.Source); err != nil {
			return fmt.Errorf("volume %s: %w (create it first)", v.Source, err)
		}
	}
	return nil
}

// record is the environment's first record, state creating.
func (o *CreateOptions) record() *Record {
	r := &Record{
		ID: o.ID, Name: o.Name, Hostname: o.Hostname,
		Image: o.Image.Name, Digest: o.Image.Digest,
		TTY: o.TTY, State: StateCreating, Owner: o.Owner, Maker: self(), AutoRemove: o.AutoRemove,
		Net: o.Net, Ports: o.Ports, Volumes: o.Volumes, Limits: o.Limits, ReadOnly: o.ReadOnly,
		CapAdd: properNames(o.CapAdd), CapDrop: properNames(o.CapDrop),
		Cwd: o.Cwd, User: o.User, CreatedAt: time.Now().UTC(), Timings: map[string]int64{}, Platform: o.Platform,
	}
	maps.Copy(r.Timings, o.Timings)
	cfg := o.Image.Config
	if r.Cwd == "" {
		r.Cwd = cfg.WorkingDir
	}
	if !path.IsAbs(r.Cwd) {
		r.Cwd = "/" + r.Cwd
	}
	if r.User == "" {
		r.User = cfg.User
	}
	if !o.NoMain {
		r.Args = commandOf(cfg, o.Entrypoint, o.Args)
	}
	r.Env = mergeEnv([]string{"PATH=" + defaultPath, "HOSTNAME=" + r.Hostname}, cfg.Env, o.Env)
	return r
}

// Create makes an environment and starts it. When it fails nothing of it is left; when its process is killed half
// way, what is left has a record that says so, and Sweep clears it.
func (n *Node) Create(ctx context.Context, o CreateOptions) (*Environment, error) {
	if o.Net == "" {
		o.Net = NetBridge
	}
	if o.ID == "" {
		o.ID = NewID()
	}
	if o.Hostname == "" {
		o.Hostname = strings.TrimRight(o.ID[:min(12, len(o.ID))], "-")
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	r := o.record()
	if !o.NoMain && len(r.Args) == 0 {
		return nil, fmt.Errorf("image %q has no command of its own: say which to run", o.Image.Name)
	}
	pool := n.pool.Load()
	defer pool.working()()
	if o.Stage != nil {
		o.Stage(StateCreating)
	}
	for sp := pool.take(&o); sp != nil; sp = pool.take(&o) {
		e, err := n.give(ctx, sp, r)
		if err == nil {
			return e, nil
		}
		if pool.discard(sp); ctx.Err() != nil {
			return nil, err
		}
		slog.Warn("a spare environment could not be given away", "spare", sp.rec.ID, "env", r.ID, "err", err)
	}
	e, err := n.build(ctx, &o, r)
	if errors.Is(err, netbridge.ErrFull) && pool.empty() > 0 {
		e, err = n.build(ctx, &o, r) // spares held addresses
	}
	return e, err
}

// build makes an environment from nothing.
func (n *Node) build(ctx context.Context, o *CreateOptions, r *Record) (*Environment, error) {
	b := &builder{node: n, o: o, env: &Environment{node: n, rec: *r}, timings: maps.Clone(r.Timings)}
	defer b.close()
	if err := b.build(ctx); err != nil {
		b.revert()
		return nil, err
	}
	return b.env, nil
}

// builder carries one create through its stages.
type builder struct {
	node *Node
	o    *CreateOptions
	env  *Environment

	mu      sync.Mutex
	timings map[string]int64
	undo    []func(context.Context) error // in the order done
	netns   *os.File
	userns  *os.File
	root    *os.File // the mounted disk

	snapshot *rootfs.Snapshot
	bridge   *netbridge.Bridge     // in bridge mode
	place    *netbridge.Attachment // the same
	main     bool                  // init runs a command as soon as it is started
}

func (b *builder) close() {
	for _, f := range []*os.File{b.netns, b.userns, b.root} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// onFailure remembers how to undo a step that was, or may have been, done.
func (b *builder) onFailure(f func(context.Context) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.undo = append(b.undo, f)
}

// revert undoes every step, last first. It does not hear the create's context: that may be what ended it.
func (b *builder) revert() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, f := range slices.Backward(b.undo) {
		_ = f(ctx) // what can't be undone now has a record on disk, and Sweep comes by
	}
}

// timed runs a stage and notes how long it took.
func (b *builder) timed(stage string, f func() error) error {
	begin := time.Now()
	err := f()
	b.mu.Lock()
	b.timings[stage] = time.Since(begin).Microseconds()
	b.mu.Unlock()
	return err
}

func (b *builder) build(ctx context.Context) error {
	n, r := b.node, &b.env.rec
	begin := time.Now()
	if err := b.claim(); err != nil {
		return err
	}
	unlock, err := n.lock(r.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	if err := b.join(ctx, b.etc); err != nil {
		return err
	}
	if r.Owner == OwnerForeground && r.Args != nil {
		// Not as init's own main command: with that one's end init ends too, and a quick command's output would have to
		// be fetched before. As a session it waits for whoever owns the environment.
		if err := b.timed("command", func() (err error) {
			b.env.command, err = b.env.c.StartSession(ctx, *b.session(commandSession))
			return err
		}); err != nil {
			return fmt.Errorf("start the command: %w", err)
		}
	}
	b.timings["total"] = time.Since(begin).Microseconds()
	return b.env.update(func(r *Record) {
		r.State, r.StartedAt, r.Timings, r.PID = StateRunning, time.Now().UTC(), b.timings, b.env.c.PID()
		if own := b.address(); own.IsValid() {
			r.Address = own.String()
		}
	})
}

// prepare makes processes, disk and address, side by side; none of it meets the others yet.
func (b *builder) prepare(ctx context.Context) error {
	n, r := b.node, &b.env.rec
	spec, err := buildSpec(r)
	if err != nil {
		return err
	}
	if err := setIORates(spec.Linux.Resources, r.Limits.IO, n.root); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.timed("runtime", func() error { return b.container(gctx, spec) }) })
	g.Go(func() error { return b.timed("snapshot", func() error { return b.disk(gctx) }) })
	if r.Net == NetBridge {
		g.Go(func() error { return b.timed("address", func() error { return b.reserve(gctx) }) })
	}
	return g.Wait()
}

// join brings together what prepare made, and lets init build the inside, while the network comes up; the main command, if
// init is to run one, finds it up. fill writes what the root has to have beforehand.
func (b *builder) join(ctx context.Context, fill func() error) error {
	g, gctx := errgroup.WithContext(ctx)
	connected := make(chan struct{})
	g.Go(func() error {
		defer close(connected)
		return b.timed("network", func() error { return b.network(gctx) })
	})
	g.Go(func() error {
		if err := b.timed("mount", func() error { return b.mount(gctx, fill) }); err != nil {
			return err
		}
		if b.main {
			<-connected
		}
		return b.timed("start", func() error { return b.start(gctx) })
	})
	return g.Wait()
}

// disk makes the writable layer.
func (b *builder) disk(ctx context.Context) (err error) {
	n, r := b.node, &b.env.rec
	b.onFailure(func(ctx context.Context) error { return n.images.Release(ctx, r.ID) })
	o := rootfs.SnapshotOptions{HostUID: r.FirstID, HostGID: r.FirstID, Volatile: true, DiskBytes: r.Limits.DiskBytes}
	if b.snapshot, err = n.images.Prepare(ctx, r.ID, b.o.Image, o); err != nil {
		return fmt.Errorf("prepare the disk: %w", err)
	}
	return nil
}

// mount puts the root file system together, still nobody's "/".
func (b *builder) mount(ctx context.Context, fill func() error) (err error) {
	// Writable for now: /etc is still to be filled in.
	if b.root, err = b.snapshot.Mount(ctx, b.userns, false); err != nil {
		return fmt.Errorf("mount the disk: %w", err)
	}
	if err := fill(); err != nil {
		return err
	}
	// Nobody inside gains privileges by an exec. With nosuid a file that would give them (set-uid, or capabilities) runs without:
	// no_new_privs alone has the kernel refuse Debian's ping, whose file asks for CAP_NET_RAW (bprm_caps_from_vfs_caps).
	attr := uint64(unix.MOUNT_ATTR_NOSUID)
	if b.env.rec.ReadOnly {
		attr |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(int(b.root.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: attr}); err != nil {
		return fmt.Errorf("mount attributes of the disk: %w", err)
	}
	return nil
}

// start lets init build the inside.
func (b *builder) start(ctx context.Context) error {
	mounts, closeMounts, err := b.mounts(ctx)
	defer closeMounts()
	if err != nil {
		return err
	}
	if err := b.env.c.Start(ctx, runtime.StartOptions{Root: b.root, Mounts: mounts}); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	return nil
}

// claim takes what is exclusive: the directory, the name, the range of ids; and leaves the record that says so.
func (b *builder) claim() error {
	n, r := b.node, &b.env.rec
	if err := os.Mkdir(n.envDir(r.ID), 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("environment %s exists already", r.ID)
		}
		return fmt.Errorf("environment %s: %w", r.ID, err)
	}
	b.onFailure(func(context.Context) error { return os.RemoveAll(n.envDir(r.ID)) })
	if err := b.identify(func() error { return n.save(r) }); err != nil {
		return err
	}
	if r.Name != "" {
		if err := n.takeName(r.Name, r.ID); err != nil {
			return err
		}
		b.onFailure(func(context.Context) error { n.dropName(r.Name, r.ID); return nil })
	}
	return nil
}

// identify gives the environment its range of ids. save writes the record, before the range is taken.
func (b *builder) identify(save func() error) error {
	n, r := b.node, &b.env.rec
	if b.o.HostUsers {
		return save()
	}
	b.onFailure(func(context.Context) error { return n.ids.release(r.FirstID, r.ID) })
	_, err := n.ids.allocate(r.ID, func(first int) error {
		r.FirstID = first
		return save()
	})
	return err
}

// session describes the command that the environment is made for.
func (b *builder) session(id string) *runtime.SessionSpec {
	r := &b.env.rec
	return &runtime.SessionSpec{ID: id, Args: r.Args, Env: r.Env, Cwd: r.Cwd, User: r.User, TTY: r.TTY, Cols: b.o.Cols, Rows: b.o.Rows}
}

// container makes namespaces and cgroup, with init waiting in them.
func (b *builder) container(ctx context.Context, spec *specs.Spec) error {
	n, r := b.node, &b.env.rec
	o := runtime.CreateOptions{ID: r.ID, Spec: spec, DieWithParent: r.Owner == OwnerForeground}
	if r.Owner == OwnerDetached && r.Args != nil {
		o.Main, b.main = b.session(""), true
		if !r.TTY {
			o.Log, o.KeepStdin = &runtime.LogFiles{Path: n.logPath(r.ID)}, b.o.KeepStdin
		}
	}
	b.onFailure(func(ctx context.Context) error {
		if b.env.c == nil {
			return nil
		}
		return b.env.c.Delete(ctx)
	})
	c, err := n.runtime.Create(ctx, o)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	b.env.c = c
	if r.FirstID != 0 {
		if b.userns, err = c.NamespaceFD(specs.UserNamespace); err != nil {
			return fmt.Errorf("user namespace: %w", err)
		}
	}
	if r.Net != NetHost {
		if b.netns, err = c.NamespaceFD(specs.NetworkNamespace); err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
	}
	return nil
}

// reserve takes an address and what goes with it, in bridge mode.
func (b *builder) reserve(ctx context.Context) (err error) {
	r := &b.env.rec
	if b.bridge, err = b.node.Bridge(ctx); err != nil {
		return err
	}
	b.onFailure(func(ctx context.Context) error { return b.bridge.Detach(ctx, r.ID) })
	if b.place, err = b.bridge.Reserve(ctx, r.ID, netbridge.AttachOptions{
		Ports: r.Ports, Hostname: r.Hostname, NetUp: uint64(r.Limits.NetUpBits), NetDown: uint64(r.Limits.NetDownBits),
	}); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	return nil
}

// network gives the environment what its mode says.
func (b *builder) network(ctx context.Context) error {
	switch b.env.rec.Net {
	case NetNone:
		if err := netbridge.Loopback(ctx, b.netns); err != nil {
			return fmt.Errorf("loopback: %w", err)
		}
	case NetBridge:
		if err := b.bridge.Connect(ctx, b.place, b.netns); err != nil {
			return fmt.Errorf("network: %w", err)
		}
	}
	return nil
}

// address is the environment's own, in bridge mode; else none.
func (b *builder) address() (own netip.Addr) {
	if b.place != nil {
		own = b.place.IP
	}
	return own
}

// etc writes the generated files of /etc.
func (b *builder) etc() error {
	r := &b.env.rec
	hosts, err := hosts(r.Hostname, b.address())
	if err != nil {
		return err
	}
	files := map[string][]byte{"hostname": []byte(r.Hostname + "\n"), "hosts": hosts}
	if r.Net != NetNone {
		files["resolv.conf"] = resolvConf(r.Net)
	}
	return writeEtc(b.root, files, r.FirstID, r.FirstID)
}

// mounts opens what is mounted from outside. The returned function closes it all and is never nil.
func (b *builder) mounts(ctx context.Context) ([]runtime.MountFD, func(), error) {
	r := &b.env.rec
	var list []runtime.MountFD
	closeAll := func() {
		for _, m := range list {
			_ = m.FD.Close()
		}
	}
	if r.Net == NetHost && r.FirstID != 0 {
		fd, err := unix.OpenTree(unix.AT_FDCWD, "/sys", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return nil, closeAll, fmt.Errorf("the host's sysfs: %w", err)
		}
		list = append(list, runtime.MountFD{Destination: "/sys", FD: os.NewFile(uintptr(fd), "/sys")})
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
			return nil, closeAll, fmt.Errorf("the host's sysfs, read-only: %w", err)
		}
	}
	for _, v := range r.Volumes {
		fd, err := rootfs.Volume(ctx, filepath.Clean(v.Source), b.userns, v.ReadOnly)
		if err != nil {
			return nil, closeAll, fmt.Errorf("volume %s: %w", v.Source, err)
		}
		list = append(list, runtime.MountFD{Destination: v.Destination, FD: fd})
	}
	return list, closeAll, nil
}
