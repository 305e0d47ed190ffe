package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"gopkg.in/natefinch/lumberjack.v2"

	"github.com/learnos/learnos/gateway"
	"github.com/learnos/learnos/internal/buildinfo"
	"github.com/learnos/learnos/internal/config"
	"github.com/learnos/learnos/internal/embedetcd"
	"github.com/learnos/learnos/internal/only"
	"github.com/learnos/learnos/nodeagent"
	"github.com/learnos/learnos/rootfs"
	"github.com/learnos/learnos/web"
)

const withoutRoot = "Machines are made of namespaces, mounts, cgroups and network links, and only root may make those: run it with sudo."

// stopTime is how long one part may take to stop before it is left behind.
const stopTime = 30 * time.Second

func upCommand(ctx context.Context, f *pflag.FlagSet, args []string, stdout, stderr io.Writer) error {
	file := f.String("config", "", "configuration `FILE` (see: learnos config)")
	dir := f.String("data-dir", "", "`DIR` for everything that is kept (default /var/lib/learnos)")
	panelAddr := f.String("web-addr", "", "`HOST:PORT` of the panel (default 127.0.0.1:8011)")
	sshAddr := f.String("ssh-addr", "", "`HOST:PORT` of the SSH door (default 127.0.0.1:8022)")
	noDebian := f.Bool("no-debian", false, "don't build the Debian image in the background")
	f.Usage = func() {
		fmt.Fprintf(stdout, `Run everything on this machine until Ctrl-C: etcd, the gateway, the panel, the SSH door and a node.
People's machines go on when it stops, and are found again when it starts.

Usage: learnos up [--data-dir DIR] [--config FILE]

%s
Example: learnos up --web-addr 0.0.0.0:80
`, f.FlagUsages())
	}
	if err := parse(f, args); err != nil {
		return err
	}
	cfg, err := config.Load(*file, func(c *config.Config) {
		if f.Changed("data-dir") {
			c.Common.DataDir = *dir
			if abs, err := filepath.Abs(*dir); err == nil {
				c.Common.DataDir = abs
			}
		}
		if f.Changed("web-addr") {
			c.Web.WebAddr = *panelAddr
		}
		if f.Changed("ssh-addr") {
			c.Web.SSHAddr = *sshAddr
		}
	})
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		fmt.Fprintf(stdout, "%s\nWithout root these still work: learnos config, learnos doctor, and the gateway and web programs, with a node elsewhere.\n", withoutRoot)
		return errors.New("up needs root")
	}
	u := &upper{cfg: cfg, out: stdout, errOut: stderr, debian: !*noDebian}
	return u.run(ctx)
}

// upper runs the parts of Learnos.
type upper struct {
	cfg    *config.Config
	errOut io.Writer
	debian bool

	mu  sync.Mutex
	out io.Writer
}

// say prints one line of progress.
func (u *upper) say(format string, args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	fmt.Fprintf(u.out, format+"\n", args...)
}

// part is something that runs until it is stopped.
type part struct {
	name string
	stop context.CancelFunc
	done chan struct{}
	err  error // once done is closed
}

// start runs one part; broken is told if it ends by itself.
func start(name string, broken chan<- *part, run func(context.Context) error) *part {
	ctx, cancel := context.WithCancel(context.Background())
	p := &part{name: name, stop: cancel, done: make(chan struct{})}
	go func() {
		p.err = run(ctx)
		early := ctx.Err() == nil
		close(p.done)
		if early {
			broken <- p
		}
	}()
	return p
}

// end stops the part and waits; false when it does not stop in time.
func (p *part) end() bool {
	p.stop()
	select {
	case <-p.done:
		return true
	case <-time.After(stopTime):
		return false
	}
}

func (u *upper) run(ctx context.Context) (err error) {
	dir := u.cfg.Common.DataDir
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer unlock()
	closeLog, err := u.openLog(dir)
	if err != nil {
		return err
	}
	defer closeLog()

	u.say("Learnos %s", buildinfo.Version())
	u.say("  data   %s", dir)
	// Addresses first: one that is taken must be known before anything is made.
	api, err := net.Listen("tcp", u.cfg.Gateway.Addr)
	if err != nil {
		return fmt.Errorf("listen for the API (gateway.addr): %w", err)
	}
	defer api.Close()
	u.cfg.Web.GatewayURL = "http://" + dialable(api.Addr())
	front, err := web.Open(u.cfg, buildinfo.Version())
	if err != nil {
		return err
	}
	defer front.Close()
	unwell := make(chan []check, 1)
	go func() { unwell <- checks(ctx) }()

	// Parts stop in the reverse of the order they start in: each one needs those before it.
	var parts []*part
	broken := make(chan *part, 8)
	defer func() {
		for i := len(parts) - 1; i >= 0; i-- {
			if !parts[i].end() {
				err = errors.Join(err, fmt.Errorf("%s did not stop within %v", parts[i].name, stopTime))
			}
		}
	}()

	etcd, err := embedetcd.Start(ctx, filepath.Join(dir, "etcd"), u.etcdAddr())
	if err != nil {
		return err
	}
	prefix := u.cfg.Etcd.Prefix
	u.cfg.Etcd = etcd.Config()
	u.cfg.Etcd.Prefix = prefix
	client := etcd.Client()
	parts = append(parts, start("etcd", broken, func(ctx context.Context) error {
		defer etcd.Close()
		defer client.Close()
		select {
		case err := <-etcd.Err():
			return err
		case <-ctx.Done():
			return nil
		}
	}))
	u.say("  etcd   %s", strings.Join(u.cfg.Etcd.Addresses, " "))

	for _, c := range <-unwell {
		if !c.ok {
			u.say("  !      %s: %s\n         %s", c.name, c.detail, c.consequence)
		}
	}

	password := gateway.AdminPasswordFile(u.cfg)
	_, statErr := os.Stat(password)
	first := errors.Is(statErr, os.ErrNotExist)
	gw, err := gateway.New(ctx, u.cfg, gateway.Deps{Listener: api, Etcd: client, Version: buildinfo.Version()})
	if err != nil {
		return fmt.Errorf("the gateway cannot start: %w", err)
	}
	parts = append(parts, start("the gateway", broken, gw.Run))
	u.say("  api    %s", u.cfg.Web.GatewayURL)

	images, err := rootfs.Open(u.cfg.Node.Root)
	if err != nil {
		return fmt.Errorf("open the images of this node: %w", err)
	}
	began := time.Now()
	if _, err := images.Build(ctx, "busybox", rootfs.BuildOptions{}); err != nil {
		u.say("  !      the busybox image cannot be built: %v", err)
	} else {
		u.say("  image  busybox, %d ms", time.Since(began).Milliseconds())
	}
	parts = append(parts, start("the node", broken, func(ctx context.Context) error { return nodeagent.ServeWith(ctx, u.cfg, client) }))
	parts = append(parts, start("the panel or the SSH door", broken, front.Run))

	p, err := u.ready(ctx, broken)
	switch {
	case p != nil:
		return partError(p)
	case err != nil:
		return err
	case ctx.Err() != nil:
		return nil
	}
	if u.debian {
		build := start("the Debian image", nil, func(ctx context.Context) error { u.buildDebian(ctx, images); <-ctx.Done(); return nil })
		parts = append(parts, build)
	}
	u.welcome(front, password, first)

	select {
	case p := <-broken:
		return partError(p)
	case <-ctx.Done():
		u.say("\nStopping. Machines go on; learnos up finds them again.")
		return nil
	}
}

func partError(p *part) error {
	if p.err == nil {
		return fmt.Errorf("%s ended unexpectedly", p.name)
	}
	return fmt.Errorf("%s ended: %w", p.name, p.err)
}

// etcdAddr is where etcd listens: where the configuration says, unless it says nothing.
func (u *upper) etcdAddr() string {
	configured, ordinary := u.cfg.Etcd.Addresses, config.Default().Etcd.Addresses
	if len(configured) != 1 || configured[0] == ordinary[0] {
		return "" // any free port: the usual one may be somebody's
	}
	addr := configured[0]
	if i := strings.Index(addr, "://"); i >= 0 {
		addr = addr[i+3:]
	}
	return addr
}

// ready waits until the gateway answers in full. It returns the part that broke meanwhile, if one did.
func (u *upper) ready(ctx context.Context, broken <-chan *part) (*part, error) {
	client := &http.Client{Timeout: 2 * time.Second}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(time.Minute)
	last := "no answer"
	for {
		res, err := client.Get(u.cfg.Web.GatewayURL + "/healthz")
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				break
			}
			last = res.Status
		} else {
			last = err.Error()
		}
		select {
		case p := <-broken:
			return p, nil
		case <-ctx.Done():
			return nil, nil
		case <-limit:
			return nil, fmt.Errorf("the gateway is not ready after a minute: %s", last)
		case <-tick.C:
		}
	}
	select {
	case p := <-broken:
		return p, nil
	default:
		return nil, nil
	}
}

// welcome says where to go.
func (u *upper) welcome(front *web.Server, passwordFile string, first bool) {
	login := "password in " + passwordFile
	if data, err := os.ReadFile(passwordFile); err == nil && first {
		login = "password " + strings.TrimSpace(string(data)) + " (kept in " + passwordFile + ")"
	}
	u.say("\n  Panel        %s", front.PanelURL())
	if host, port := front.SSHAddr(); port != "" {
		u.say("  SSH          ssh -p %s admin@%s", port, host)
		u.say("  Host key     %s", front.Fingerprint())
	}
	u.say("  First login  admin, %s", login)
	u.say("  Log          %s", filepath.Join(u.cfg.Common.DataDir, "learnos.log"))
	u.say("\nCtrl-C stops it; machines go on.")
}

// buildDebian makes the Debian image beside everything else.
func (u *upper) buildDebian(ctx context.Context, images *rootfs.Store) {
	const kind = "debootstrap"
	if _, err := images.Image(ctx, kind+":bookworm"); err == nil {
		return
	}
	if _, err := exec.LookPath("debootstrap"); err != nil {
		u.say("  image  Debian is left out: debootstrap is not installed (apt-get install debootstrap)")
		return
	}
	u.say("  image  building Debian in the background; it takes a minute or two")
	began := time.Now()
	_, err := images.Build(ctx, kind, rootfs.BuildOptions{Progress: func(p rootfs.Progress) {
		slog.Debug("building Debian", "phase", p.Phase, "done", p.Done, "total", p.Total, "message", p.Message)
	}})
	switch {
	case ctx.Err() != nil:
	case err != nil:
		slog.Error("the Debian image could not be built", "err", err)
		u.say("  image  Debian could not be built: %v\n         The other images work; the next start tries again.", err)
	default:
		u.say("  image  Debian is ready, %d s", int(time.Since(began).Seconds()))
	}
}

// openLog sends the parts' records to a file, and those that need a person also to standard error.
func (u *upper) openLog(dir string) (func(), error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(u.cfg.Common.LogLevel)); err != nil {
		return nil, fmt.Errorf("common.logLevel: %w", err)
	}
	file := &lumberjack.Logger{Filename: filepath.Join(dir, "learnos.log"), MaxSize: 16, MaxBackups: 3} // MB; mode 0600
	slog.SetDefault(slog.New(slog.NewMultiHandler(
		slog.NewTextHandler(file, &slog.HandlerOptions{Level: level}),
		slog.NewTextHandler(u.errOut, &slog.HandlerOptions{Level: max(level, slog.LevelWarn)}))))
	return func() { _ = file.Close() }, nil
}

// lockDir makes sure that a data directory has one learnos up.
func lockDir(dir string) (func(), error) {
	path := filepath.Join(dir, "learnos.lock")
	f, err := only.Lock(path)
	if errors.Is(err, only.ErrTaken) {
		who, _ := os.ReadFile(path)
		return nil, fmt.Errorf("another learnos up (process %s) uses %s; stop it first, or give this one a --data-dir and addresses of its own", strings.TrimSpace(string(who)), dir)
	}
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	return func() { f.Close() }, nil
}

// dialable turns "every address" into one that can be dialled.
func dialable(a net.Addr) string {
	host, port, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}
