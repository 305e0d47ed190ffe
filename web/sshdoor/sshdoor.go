// Package sshdoor is the SSH front door: a person runs `ssh -p 8022 alice@host`, proves who they are, picks an image
// in a small full-screen list, and gets a shell in an environment; or names the target in the login
// (`alice+busybox@host`) and gets exactly that, pipes, exit status and all.
//
// The door holds no state of its own. It speaks to the gateway over its HTTP API as the person who
// logged in, so it can do nothing that a browser could not, and it is stopped and started without ending any
// session: sessions live in the environments. It does not forward ports, agents or X11.
package sshdoor

import (
	"context"
	"errors"
	"log/slog"
	"net"
)

// Options are what a Door needs to know.
type Options struct {
	GatewayURL        string       // base URL of the gateway, such as "http://127.0.0.1:8010"
	DoorKey           string       // hex of the installation's "door" secret, sent as X-Learnos-Door
	DataDir           string       // the host key lives in DataDir/secrets
	AttemptsPerMinute int          // failed logins one address may make a minute; 0: 10
	Log               *slog.Logger // nil: slog.Default()
}

// Door is an SSH server; make one with New.
type Door struct{ o Options }

// New reads or makes the host key and returns a Door that does not listen yet.
func New(o Options) (*Door, error) { return &Door{o}, nil }

// Serve accepts connections on ln until ctx ends.
func (d *Door) Serve(ctx context.Context, ln net.Listener) error {
	return errors.New("sshdoor: being written")
}
