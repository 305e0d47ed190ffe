// Package embedetcd runs an etcd server inside the process, for an installation on one machine.
package embedetcd

import (
	"context"
	"errors"

	"github.com/learnos/learnos/internal/config"
)

// Server is a running etcd.
type Server struct{}

// Start runs an etcd member on dataDir; listen is an optional host:port for clients (default: a free loopback port).
// It returns when the member serves.
func Start(ctx context.Context, dataDir string, listen ...string) (*Server, error) {
	return nil, errors.New("embedetcd: not written yet")
}

// Config says how clients reach the server: addresses and TLS files, with the default prefix.
func (s *Server) Config() config.Etcd { return config.Etcd{} }

// Err receives once when the server stops by itself.
func (s *Server) Err() <-chan error { return nil }

// Close stops the server and waits for it.
func (s *Server) Close() error { return nil }
