// Package gateway is the API daemon of Learnos: people, images and environments. It puts the packages beside it
// together: store (SQL), auth, catalogue, fleet (environments' life), events (what clients are told) and api (HTTP).
//
// It runs no environment and serves no page; nodes dial its tunnel, and the web process proxies to its API.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/learnos/learnos/gateway/api"
	"github.com/learnos/learnos/gateway/auth"
	"github.com/learnos/learnos/gateway/catalogue"
	"github.com/learnos/learnos/gateway/events"
	"github.com/learnos/learnos/gateway/fleet"
	"github.com/learnos/learnos/gateway/store"
	"github.com/learnos/learnos/internal/config"
	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/tunnel"
)

// Deps are what a caller may hand to New instead of what the configuration describes. The zero value means:
// everything from the configuration.
type Deps struct {
	// Log receives the gateway's records; nil is slog.Default().
	Log *slog.Logger
	// Listener and TunnelListener replace listening on gateway.addr and gateway.tunnelAddr.
	Listener, TunnelListener net.Listener
	// Etcd is used, and not closed, in place of a client of the gateway's own as [etcd] of the configuration describes it.
	Etcd *clientv3.Client
	// Sender brings verification codes to people; nil is SMTP when gateway.smtpAddr is set, else the log.
	Sender auth.CodeSender
	// Version is what GET /api/v1/config answers; "" is "dev".
	Version string
}

// Server is a gateway that is ready to run.
type Server struct {
	cfg    *config.Config
	log    *slog.Logger
	store  *store.Store
	etcd   *clientv3.Client // the gateway's own; nil when it was given one
	queue  *queue.Queue
	fleet  *fleet.Fleet
	events *events.Hub
	api    *api.API
	nodes  *nodes

	listener, tunnels net.Listener
	admin             string
}

// AdminPasswordFile holds the password of the user "admin", which the first start makes; mode 0600.
func AdminPasswordFile(cfg *config.Config) string {
	return filepath.Join(cfg.Common.DataDir, "secrets", "admin-password")
}

// New opens the store, makes what the first start needs, and listens. etcd need not answer yet. Either the server's
// Run or its Close must be called.
func New(ctx context.Context, cfg *config.Config, deps Deps) (_ *Server, err error) {
	s := &Server{cfg: cfg, log: deps.Log, listener: deps.Listener, tunnels: deps.TunnelListener, nodes: &nodes{}}
	if s.log == nil {
		s.log = slog.Default()
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	dsn := cfg.Gateway.DSN
	if dsn == "" && cfg.Gateway.Driver == "sqlite" {
		dsn = filepath.Join(cfg.Common.DataDir, "learnos.db")
	}
	if s.store, err = store.Open(ctx, cfg.Gateway.Driver, dsn); err != nil {
		return nil, err
	}
	hasher := auth.NewHasher()
	if err := s.firstAdmin(ctx, hasher); err != nil {
		return nil, err
	}
	if err := s.store.SeedImages(ctx, catalogue.Seed(cfg.Gateway.DefaultLifetime)); err != nil {
		return nil, fmt.Errorf("fill the catalogue: %w", err)
	}
	keys, err := keyring(cfg.Common.DataDir)
	if err != nil {
		return nil, err
	}
	codeKey, err := config.Secret(cfg.Common.DataDir, "codes", 32)
	if err != nil {
		return nil, err
	}
	doorKey, err := config.Secret(cfg.Common.DataDir, "door", 32)
	if err != nil {
		return nil, err
	}
	etcd := deps.Etcd
	if etcd == nil {
		if s.etcd, err = queue.Dial(cfg.Etcd); err != nil {
			return nil, err
		}
		etcd = s.etcd
	}
	s.queue = queue.NewWith(etcd, cfg.Etcd.Prefix, queue.Options{Log: s.log})

	g := cfg.Gateway
	policy := fleet.Policy{MaxEnvironments: g.MaxEnvironments, IdleTimeout: g.IdleTimeout, DefaultLifetime: g.DefaultLifetime, MaxLifetime: g.MaxLifetime}
	s.fleet = fleet.New(fleet.Options{Store: s.store, Queue: s.queue, Tunnel: s.nodes, Policy: policy, Log: s.log,
		Changed: func(user int64, env string) { s.events.Changed(user, env) },
		Watched: func(user int64) bool { return s.events.Watched(user) }})
	s.events = events.NewHub(s.store, func(ctx context.Context, e store.Environment) any { return s.fleet.View(ctx, e) }, s.log)

	sender := deps.Sender
	if sender == nil {
		sender = auth.LogSender{Log: s.log}
		if g.SMTPAddr != "" {
			sender = auth.SMTPSender{Addr: g.SMTPAddr, User: g.SMTPUser, Password: g.SMTPPassword, From: g.SMTPFrom}
		}
	}
	version := deps.Version
	if version == "" {
		version = "dev"
	}
	s.api, err = api.New(api.Options{Store: s.store, Fleet: s.fleet, Events: s.events, Tunnel: s.nodes, Ready: s.nodes.ready, Keys: keys, Hasher: hasher,
		Sender: sender, CodeKey: codeKey, DoorKey: doorKey, Log: s.log, Version: version, SSHAddr: cfg.Web.SSHAddr, Origins: cfg.Web.Origins,
		AccessTTL: g.AccessTTL, RefreshTTL: g.RefreshTTL, OpenRegistration: g.OpenRegistration, RequireCode: g.RequireCode,
		LoginPerMinute: g.LoginPerMinute, RegisterPerHour: g.RegisterPerHour, Policy: policy})
	if err != nil {
		return nil, err
	}
	if s.listener == nil {
		if s.listener, err = net.Listen("tcp", g.Addr); err != nil {
			return nil, fmt.Errorf("listen for the API on gateway.addr: %w", err)
		}
	}
	if s.tunnels == nil {
		if s.tunnels, err = listenForNodes(g.TunnelAddr); err != nil {
			return nil, fmt.Errorf("listen for nodes on gateway.tunnelAddr: %w", err)
		}
	}
	return s, nil
}

// Close releases what New took, for a server that is never run.
func (s *Server) Close() {
	for _, l := range []net.Listener{s.listener, s.tunnels} {
		if l != nil {
			l.Close()
		}
	}
	if s.etcd != nil {
		s.etcd.Close()
	}
	if s.store != nil {
		if err := s.store.Close(); err != nil {
			s.log.Error("close the database", "error", err)
		}
	}
}

// Addr is where the API listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// FirstAdminMade is the file with the new admin's password if this start made the account, else "".
func (s *Server) FirstAdminMade() string { return s.admin }

// listenForNodes listens on addr, which is the address that nodes dial; where that is not one of this machine's (it is
// behind a NAT, say) on its port of all addresses.
func listenForNodes(addr string) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	if err == nil || !errors.Is(err, syscall.EADDRNOTAVAIL) {
		return ln, err
	}
	_, port, split := net.SplitHostPort(addr)
	if split != nil {
		return nil, err
	}
	return net.Listen("tcp", net.JoinHostPort("", port))
}

// advertised is the address that nodes are told to dial: the configured host with the port that is really listened on.
func (s *Server) advertised() (string, error) {
	host, _, err := net.SplitHostPort(s.cfg.Gateway.TunnelAddr)
	if err != nil {
		return "", fmt.Errorf("read gateway.tunnelAddr: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		if host, err = os.Hostname(); err != nil {
			return "", fmt.Errorf("find a name for nodes to dial; set gateway.tunnelAddr to one: %w", err)
		}
	}
	_, port, err := net.SplitHostPort(s.tunnels.Addr().String())
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(host, port), nil
}

// keyring reads the key of access tokens, making it at the first start. To replace it, rename the file to
// jwt-previous and restart: tokens it signed stay good for their few minutes.
func keyring(dataDir string) (*auth.Keyring, error) {
	current, err := config.Secret(dataDir, "jwt", 32)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dataDir, "secrets", "jwt-previous")); errors.Is(err, fs.ErrNotExist) {
		return auth.NewKeyring(current)
	}
	previous, err := config.Secret(dataDir, "jwt-previous", 32)
	if err != nil {
		return nil, err
	}
	return auth.NewKeyring(current, previous)
}

// firstAdmin makes the user "admin" in an empty database. The password is on disk before the account is in the
// database, so a start that dies in between has lost nothing.
func (s *Server) firstAdmin(ctx context.Context, hasher *auth.Hasher) error {
	users, err := s.store.Users(ctx)
	if err != nil {
		return fmt.Errorf("look for users: %w", err)
	}
	if len(users) > 0 {
		return nil
	}
	path := AdminPasswordFile(s.cfg)
	password, err := adminPassword(path)
	if err != nil {
		return err
	}
	u := store.User{Username: "admin", Admin: true, CreatedAt: store.At(time.Now())}
	if u.PasswordHash, err = hasher.Hash(ctx, password); err != nil {
		return fmt.Errorf("hash the admin's password: %w", err)
	}
	err = s.store.CreateFirstUser(ctx, &u)
	if errors.Is(err, store.ErrConflict) {
		return nil // another gateway was first; with the same data directory it read the same file
	}
	if err != nil {
		return fmt.Errorf("make the first admin: %w", err)
	}
	s.admin = path
	s.log.Info("made the user admin", "passwordFile", path)
	return nil
}

// adminPassword reads the file, or makes it: complete or not at all, and never over one that is there.
func adminPassword(path string) (string, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("make the directory of secrets: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".admin-password-") // mode 0600
	if err != nil {
		return "", fmt.Errorf("write the admin's password: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(auth.NewPassword() + "\n")
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("write the admin's password: %w", err)
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("write the admin's password: %w", err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the admin's password: %w", err)
	}
	password := strings.TrimSpace(string(data))
	if err := auth.Password(password); err != nil {
		return "", fmt.Errorf("the password in %s %w", path, err)
	}
	return password, nil
}

// Run serves until ctx ends, then says goodbye to clients, lets requests end (10 seconds at most) and closes
// everything. An error is one that ended it early.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	server := &http.Server{
		Handler:           s.api,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.fleet.Run(ctx) })
	group.Go(func() error { s.events.Run(ctx); return nil })
	group.Go(func() error { s.events.RunStats(ctx, s.nodes); return nil })
	group.Go(func() error { s.api.Run(ctx); return nil })
	group.Go(func() error { return s.serveNodes(ctx) })
	group.Go(func() error {
		if err := server.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the API: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := server.Shutdown(stop); err != nil {
			server.Close()
		}
		return nil
	})
	s.log.Info("gateway serves", "api", s.listener.Addr().String(), "tunnels", s.tunnels.Addr().String())
	return group.Wait()
}

// serveNodes opens the tunnel's door as soon as etcd tells the token, and announces it.
func (s *Server) serveNodes(ctx context.Context) error {
	id, err := tunnel.NewIdentity()
	if err != nil {
		return fmt.Errorf("make the tunnel's certificate: %w", err)
	}
	addr, err := s.advertised()
	if err != nil {
		return err
	}
	var token []byte
	if !s.insist(ctx, "get the tunnel's token from etcd", func(ctx context.Context) error {
		token, err = s.queue.TunnelToken(ctx)
		return err
	}) {
		return nil
	}
	hub := tunnel.ServeGateway(ctx, s.tunnels, token, id, tunnel.HubOptions{Log: s.log})
	defer hub.Close()
	s.nodes.hub.Store(hub)
	var lease *queue.Lease
	if !s.insist(ctx, "announce the gateway in etcd", func(ctx context.Context) error {
		lease, err = s.queue.RegisterGateway(ctx, queue.GatewayInfo{ID: auth.NewID("g"), TunnelAddr: addr, CertSHA256: id.SHA256, StartedAt: time.Now().UTC()})
		return err
	}) {
		return nil
	}
	s.nodes.announced.Store(true)
	s.log.Info("nodes can connect", "address", addr)
	<-ctx.Done()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := lease.Close(stop); err != nil {
		s.log.Warn("withdraw the gateway from etcd; its lease will", "error", err)
	}
	return nil
}

// insist tries until it works (true) or ctx ends (false).
func (s *Server) insist(ctx context.Context, what string, try func(context.Context) error) bool {
	for wait := 250 * time.Millisecond; ; wait = min(2*wait, 4*time.Second) {
		tryCtx, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := try(tryCtx)
		cancel()
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		s.log.Warn("will try again", "what", what, "error", err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
}

// nodes is the tunnel hub, which comes later than those who use it.
type nodes struct {
	hub       atomic.Pointer[tunnel.Hub]
	announced atomic.Bool
}

func (n *nodes) ready() bool { return n.announced.Load() }

// Open asks a node; see tunnel.Hub.
func (n *nodes) Open(ctx context.Context, node string, req tunnel.Request) (*tunnel.Conn, error) {
	hub := n.hub.Load()
	if hub == nil {
		return nil, fmt.Errorf("%s: %w", node, tunnel.ErrNodeOffline)
	}
	return hub.Open(ctx, node, req)
}

// Nodes lists the nodes with a tunnel.
func (n *nodes) Nodes() []string {
	if hub := n.hub.Load(); hub != nil {
		return hub.Nodes()
	}
	return nil
}
