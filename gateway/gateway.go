// Package gateway is the API daemon of Learnos: people, images and environments.
package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net"

	"github.com/learnos/learnos/internal/config"
)

// Deps are what a caller may hand to New instead of what the configuration describes. The zero value means:
// everything from the configuration.
type Deps struct {
	// Log receives the gateway's records; nil is slog.Default().
	Log *slog.Logger
	// Listener and TunnelListener replace listening on gateway.addr and gateway.tunnelAddr.
	Listener, TunnelListener net.Listener
	// Version is what GET /api/v1/config answers; "" is "dev".
	Version string
}

// Server is a gateway that is ready to run.
type Server struct{}

// New opens the store, makes what the first start needs and listens.
func New(ctx context.Context, cfg *config.Config, deps Deps) (*Server, error) {
	return nil, errors.New("gateway: not written yet")
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error { return errors.New("gateway: not written yet") }

// Addr is where the API listens.
func (s *Server) Addr() net.Addr { return nil }

// AdminPasswordFile is the file that holds the first admin's password.
func AdminPasswordFile(cfg *config.Config) string { return "" }
