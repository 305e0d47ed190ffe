package web

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/learnos/learnos/internal/config"
	"github.com/learnos/learnos/web/sshdoor"
)

// goodbye is how long requests under way may take to end when the server stops.
const goodbye = 5 * time.Second

// Server is the panel and the SSH door, listening and ready to Run.
type Server struct {
	cfg   config.Web
	panel net.Listener
	http  *http.Server
	ssh   net.Listener // nil: no SSH door
	door  *sshdoor.Door
}

// Open listens on the configured addresses. The gateway need not answer yet. Call Run or Close afterwards. version
// is what /healthz tells.
func Open(cfg *config.Config, version string) (_ *Server, err error) {
	s := &Server{cfg: cfg.Web}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	secret, err := config.Secret(cfg.Common.DataDir, "door", 32)
	if err != nil {
		return nil, err
	}
	gateway, err := url.Parse(cfg.Web.GatewayURL)
	if err != nil {
		return nil, fmt.Errorf("web.gatewayURL: %w", err)
	}
	handler, err := NewHandler(gateway, hex.EncodeToString(secret), version, slog.Default())
	if err != nil {
		return nil, err
	}
	s.http = &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	if cfg.Web.TLSCert != "" {
		certs := &certificates{certFile: cfg.Web.TLSCert, keyFile: cfg.Web.TLSKey}
		if _, err := certs.get(nil); err != nil {
			return nil, err
		}
		// Websockets need HTTP/1.1.
		s.http.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certs.get, NextProtos: []string{"http/1.1"}}
	}
	if s.panel, err = net.Listen("tcp", cfg.Web.WebAddr); err != nil {
		return nil, fmt.Errorf("listen for the panel (web.webAddr): %w", err)
	}
	if cfg.Web.SSHAddr == "" {
		return s, nil
	}
	s.door, err = sshdoor.New(sshdoor.Options{GatewayURL: cfg.Web.GatewayURL, DoorKey: hex.EncodeToString(secret),
		DataDir: cfg.Common.DataDir, AttemptsPerMinute: cfg.Gateway.LoginPerMinute})
	if err != nil {
		return nil, err
	}
	if s.ssh, err = net.Listen("tcp", cfg.Web.SSHAddr); err != nil {
		return nil, fmt.Errorf("listen for SSH (web.sshAddr): %w", err)
	}
	return s, nil
}

// Close stops listening; for a server that is not Run.
func (s *Server) Close() {
	if s.panel != nil {
		s.panel.Close()
	}
	if s.ssh != nil {
		s.ssh.Close()
	}
}

// PanelURL is where a browser on this machine finds the panel.
func (s *Server) PanelURL() string {
	scheme := "http"
	if s.cfg.TLSCert != "" { // http.Server makes itself a TLSConfig in any case
		scheme = "https"
	}
	return scheme + "://" + reachable(s.panel.Addr())
}

// SSHAddr is where an SSH client on this machine finds the door: host and port, both "" when there is none.
func (s *Server) SSHAddr() (host, port string) {
	if s.ssh == nil {
		return "", ""
	}
	host, port, _ = net.SplitHostPort(reachable(s.ssh.Addr()))
	return host, port
}

// Fingerprint is the SSH host key's; "" when there is no door.
func (s *Server) Fingerprint() string {
	if s.door == nil {
		return ""
	}
	return s.door.Fingerprint()
}

// reachable turns "every address" into one that can be dialled.
func reachable(a net.Addr) string {
	host, port, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// Run serves until ctx ends, or until the panel or the door breaks.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		var err error
		if s.cfg.TLSCert != "" {
			err = s.http.ServeTLS(s.panel, "", "")
		} else {
			err = s.http.Serve(s.panel)
		}
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return fmt.Errorf("the panel on %s: %w", s.panel.Addr(), err)
	})
	g.Go(func() error {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
		defer cancel()
		if s.http.Shutdown(end) != nil { // websockets have no end of their own: their clients come back
			_ = s.http.Close()
		}
		return nil
	})
	if s.door != nil {
		g.Go(func() error { return s.door.Serve(ctx, s.ssh) })
	}
	return g.Wait()
}

// certificates reads a certificate again when its file has changed, so that a renewal needs no restart.
type certificates struct {
	certFile, keyFile string

	mu      sync.Mutex
	cert    *tls.Certificate
	changed time.Time // of certFile, when it was read
	looked  time.Time
}

func (c *certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cert != nil && time.Since(c.looked) < 10*time.Second {
		return c.cert, nil
	}
	c.looked = time.Now()
	st, err := os.Stat(c.certFile)
	if err == nil && c.cert != nil && st.ModTime().Equal(c.changed) {
		return c.cert, nil
	}
	if err == nil {
		var cert tls.Certificate
		if cert, err = tls.LoadX509KeyPair(c.certFile, c.keyFile); err == nil {
			c.cert, c.changed = &cert, st.ModTime()
			return c.cert, nil
		}
	}
	if c.cert != nil { // a renewal that is half written, perhaps: the old one is better than none
		slog.Warn("the new TLS certificate cannot be read; the old one stays in use", "file", c.certFile, "err", err)
		return c.cert, nil
	}
	return nil, fmt.Errorf("read the TLS certificate (web.tlsCert, web.tlsKey): %w", err)
}
