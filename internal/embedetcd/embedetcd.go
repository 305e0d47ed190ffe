// Package embedetcd runs an etcd server inside the process, for an installation on one machine. It is a package of
// its own so that nodes and gateways, which only need the client, don't link the server.
//
// The server listens on loopback, and since loopback is every local user's, only for clients with a certificate of
// the server's own authority, made at the first start and kept in <dataDir>/pki with mode 0600. Writes are synced to
// disk before they are answered, so a kill -9 loses nothing. Old revisions are compacted away every ten minutes.
//
// Parts of the server's own process need not go through a socket: see Client.
package embedetcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"gopkg.in/natefinch/lumberjack.v2"

	"github.com/learnos/learnos/internal/config"
	"github.com/learnos/learnos/internal/only"
)

// startTimeout bounds a start when the caller's context does not.
const startTimeout = time.Minute

// Server is a running etcd.
type Server struct {
	etcd   *embed.Etcd
	lock   *os.File
	log    *lumberjack.Logger
	config config.Etcd
}

// Start runs an etcd member with its data in dataDir and returns when it serves. listen is the host:port for clients;
// without one, a free port of 127.0.0.1 is chosen. Its log is dataDir/etcd.log, warnings and worse. One process at a
// time can use a dataDir.
func Start(ctx context.Context, dataDir string, listen ...string) (_ *Server, err error) {
	addr := "127.0.0.1:0"
	if len(listen) > 0 && listen[0] != "" {
		addr = listen[0]
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %q is no host:port", addr)
	}
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	s := &Server{}
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	if s.lock, err = lock(filepath.Join(dataDir, "lock")); err != nil {
		return nil, fmt.Errorf("start etcd on %s: %w", dataDir, err)
	}
	files, err := makePKI(filepath.Join(dataDir, "pki"), host)
	if err != nil {
		return nil, fmt.Errorf("start etcd: make its certificates: %w", err)
	}
	s.log = &lumberjack.Logger{Filename: filepath.Join(dataDir, "etcd.log"), MaxSize: 8, MaxBackups: 2}

	cfg := embed.NewConfig()
	cfg.Name = "learnos"
	cfg.Dir = filepath.Join(dataDir, "data")
	client := url.URL{Scheme: "https", Host: addr}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ClientTLSInfo = transport.TLSInfo{CertFile: files.serverCert, KeyFile: files.serverKey, TrustedCAFile: files.ca, ClientCertAuth: true}
	// A single member dials no peer: any free port will do, and the advertised one is only a name.
	cfg.ListenPeerUrls = []url.URL{{Scheme: "https", Host: "127.0.0.1:0"}}
	cfg.AdvertisePeerUrls = []url.URL{{Scheme: "https", Host: "127.0.0.1:2380"}}
	cfg.PeerTLSInfo = cfg.ClientTLSInfo
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	// Nobody contests a single member's leadership: a short election only makes the start shorter.
	cfg.TickMs, cfg.ElectionMs = 20, 200
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModePeriodic, "10m"
	cfg.BootstrapDefragThresholdMegabytes = 64
	cfg.EnableGRPCGateway = false
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(zapcore.NewCore(
		zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(s.log), zap.WarnLevel)))

	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.start(ctx, cfg); err != nil {
		return nil, fmt.Errorf("start etcd on %s: %w (its log is %s)", dataDir, err, filepath.Join(dataDir, "etcd.log"))
	}
	s.config = config.Default().Etcd
	s.config.Addresses = []string{"https://" + s.etcd.Clients[0].Addr().String()}
	s.config.CAFile, s.config.CertFile, s.config.KeyFile = files.ca, files.clientCert, files.clientKey
	return s, nil
}

func (s *Server) start(ctx context.Context, cfg *embed.Config) error {
	type result struct {
		etcd *embed.Etcd
		err  error
	}
	began := make(chan result, 1)
	go func() {
		e, err := embed.StartEtcd(cfg)
		began <- result{e, err}
	}()
	select {
	case r := <-began:
		if r.err != nil {
			return r.err
		}
		s.etcd = r.etcd
	case <-ctx.Done():
		// StartEtcd can't be told to stop: what it holds is let go when it has come to an end.
		late := &Server{lock: s.lock, log: s.log}
		s.lock, s.log = nil, nil
		go func() {
			if r := <-began; r.err == nil {
				late.etcd = r.etcd
			}
			late.release()
		}()
		return fmt.Errorf("it did not start in time: %w", ctx.Err())
	}
	select {
	case <-s.etcd.Server.ReadyNotify():
		return nil
	case err := <-s.etcd.Err():
		return err
	case <-s.etcd.Server.StopNotify():
		return errors.New("it stopped while it was starting")
	case <-ctx.Done():
		return fmt.Errorf("it was not ready in time: %w", ctx.Err())
	}
}

// lock keeps a second process out, which would otherwise wait for the first one's database without a word.
func lock(path string) (*os.File, error) {
	f, err := only.Lock(path)
	if errors.Is(err, only.ErrTaken) {
		return nil, errors.New("another process is using it; stop that one, or choose another data directory")
	}
	return f, err
}

// Config says how clients on this machine reach the server: its address and the TLS files.
func (s *Server) Config() config.Etcd { return s.config }

// Client is a client inside this process: each request is a call of the server's own code, with the same answers as over a
// socket, for a tenth of the processor's time. The caller closes it, before the server.
func (s *Server) Client() *clientv3.Client { return v3client.New(s.etcd.Server) }

// Err receives when the server stops by itself.
func (s *Server) Err() <-chan error { return s.etcd.Err() }

// Close stops the server and waits for it.
func (s *Server) Close() error {
	s.release()
	return nil
}

func (s *Server) release() {
	if s.etcd != nil {
		s.etcd.Close()
	}
	if s.log != nil {
		s.log.Close()
	}
	if s.lock != nil {
		s.lock.Close()
	}
}
