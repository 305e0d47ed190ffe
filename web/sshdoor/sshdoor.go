// Package sshdoor is the SSH front door: a person runs `ssh -p 8022 alice@host`, proves who they are, picks an image
// in a small full-screen list, and gets a shell in an environment; or names the target in the login
// (`alice+busybox@host`) and gets exactly that, pipes, exit status and all.
//
// A login that names an image makes an environment for this connection and deletes it afterwards; one that names a
// running environment, by id or name, leaves it. A terminal that is cut off leaves its environment until it
// is idle, and so does a copy into one (scp, sftp, rsync).
//
// The door holds no state of its own. It speaks to the gateway over its HTTP API as the person who
// logged in, so it can do nothing that a browser could not, and it is stopped and started without ending any
// session: sessions live in the environments. It does not forward ports, agents or X11.
package sshdoor

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gliderlabs/ssh"
	gossh "golang.org/x/crypto/ssh"
)

const (
	loginGrace    = 90 * time.Second // to prove who one is
	maxAuthTries  = 6                // as OpenSSH
	maxStrangers  = 256              // connections that have not logged in yet
	maxChannels   = 32               // open at once in one connection
	keepAlive     = 20 * time.Second // between questions to a client that says nothing
	farewell      = 30 * time.Second // for deleting and logging out after a connection
	keyAttempts   = 10               // key logins allowed for each password login: keys can't be guessed, only asked about
	defaultPerMin = 10
)

// Options are what a Door needs to know.
type Options struct {
	GatewayURL        string       // base URL of the gateway, such as "http://127.0.0.1:8010"
	DoorKey           string       // hex of the installation's "door" secret, sent as X-Learnos-Door
	DataDir           string       // the host key lives in DataDir/secrets
	AttemptsPerMinute int          // failed password logins one address may make a minute; 0: 10
	Log               *slog.Logger // nil: slog.Default()
}

// Door is an SSH server; make one with New.
type Door struct {
	gw        *gatewayClient
	log       *slog.Logger
	signer    gossh.Signer
	passwords *limiter
	keys      *limiter
	strangers chan struct{}

	sftpServers []string // paths inside machines

	ctx    context.Context // of background work; ends when Serve's caller no longer waits for it
	cancel context.CancelFunc
	work   sync.WaitGroup
	mu     sync.Mutex // orders work.Add before Serve's Wait
	closed bool
}

// New reads or makes the host key and returns a Door that does not listen yet.
func New(o Options) (*Door, error) {
	gw, err := newGatewayClient(o.GatewayURL, o.DoorKey)
	if err != nil {
		return nil, err
	}
	signer, err := hostKey(filepath.Join(o.DataDir, "secrets"))
	if err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.AttemptsPerMinute <= 0 {
		o.AttemptsPerMinute = defaultPerMin
	}
	d := &Door{sftpServers: sftpServers, gw: gw, log: o.Log, signer: signer, strangers: make(chan struct{}, maxStrangers),
		passwords: newLimiter(o.AttemptsPerMinute), keys: newLimiter(o.AttemptsPerMinute * keyAttempts)}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d, nil
}

// Fingerprint is the host key's, as ssh shows it at the first connection.
func (d *Door) Fingerprint() string { return gossh.FingerprintSHA256(d.signer.PublicKey()) }

// hostKey reads dir/ssh_host_ed25519_key or makes it. Two processes that start at once agree on one.
func hostKey(dir string) (gossh.Signer, error) {
	file := filepath.Join(dir, "ssh_host_ed25519_key")
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		block, err := gossh.MarshalPrivateKey(key, "learnos")
		if err != nil {
			return nil, fmt.Errorf("making the SSH host key: %w", err)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making the SSH host key: %w", err)
		}
		tmp, err := os.CreateTemp(dir, ".ssh_host_*") // mode 0600
		if err != nil {
			return nil, fmt.Errorf("making the SSH host key: %w", err)
		}
		defer os.Remove(tmp.Name())
		_, werr := tmp.Write(pem.EncodeToMemory(block))
		if err := errors.Join(werr, tmp.Sync(), tmp.Close()); err != nil {
			return nil, fmt.Errorf("writing the SSH host key: %w", err)
		}
		if err := os.Link(tmp.Name(), file); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("keeping the SSH host key: %w", err)
		}
		data, err = os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading the SSH host key: %w", err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("reading the SSH host key: %w", err)
	}
	signer, err := gossh.ParsePrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("the SSH host key %s: %w; remove the file to have a new one made (clients will warn)", file, err)
	}
	return signer, nil
}

// Serve accepts connections on ln until ctx ends; then it closes all of them and waits, for a bounded time, until
// the machines made for them are deleted.
func (d *Door) Serve(ctx context.Context, ln net.Listener) error {
	srv := &ssh.Server{
		Version:     "Learnos",
		HostSigners: []ssh.Signer{d.signer},
		// Every login method is set here. gliderlabs' own handlers can't tell which of several offered keys was
		// proven, and without them it would let anybody in but for NoClientAuthCallback.
		ServerConfigCallback: d.serverConfig,
		ConnCallback:         d.admit,
		ChannelHandlers: map[string]ssh.ChannelHandler{
			"session":                        d.sessionChannel,
			"direct-tcpip":                   refuseForwarding,
			"direct-streamlocal@openssh.com": refuseForwarding,
		},
		ConnectionFailedCallback: func(conn net.Conn, err error) {
			d.log.Debug("an SSH connection ended before its login", "remote", conn.RemoteAddr(), "err", err)
		},
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	err := srv.Serve(ln)
	_ = srv.Close()
	// Connections notice that they are closed, and what they leave behind is cleared while the gateway still listens.
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	time.AfterFunc(farewell, d.cancel)
	d.work.Wait()
	d.cancel()
	if ctx.Err() != nil && errors.Is(err, ssh.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("the SSH door on %s: %w", ln.Addr(), err)
}

// hold counts a connection or its leftovers, so that Serve waits for it; false when the door is closed.
func (d *Door) hold() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	d.work.Add(1)
	return true
}

// background does what must be done although its connection is gone. It is called while hold is in force.
func (d *Door) background(f func(context.Context)) {
	d.work.Add(1)
	go func() {
		defer d.work.Done()
		ctx, cancel := context.WithTimeout(d.ctx, farewell)
		defer cancel()
		f(ctx)
	}()
}

// admit bounds how many strangers may stand in the door, and for how long.
func (d *Door) admit(ctx ssh.Context, conn net.Conn) net.Conn {
	select {
	case d.strangers <- struct{}{}:
		if !d.hold() {
			<-d.strangers
			return nil
		}
	default:
		d.log.Warn("too many SSH connections wait for their login; one was refused", "remote", conn.RemoteAddr())
		return nil
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3})
	}
	_ = conn.SetDeadline(time.Now().Add(loginGrace))
	g := &guest{Conn: conn, enter: sync.OnceFunc(func() { <-d.strangers })}
	g.leave = sync.OnceFunc(func() {
		defer d.work.Done()
		if v := g.visit.Load(); v != nil {
			v.leave()
		}
	})
	ctx.SetValue(guestKey{}, g)
	return g
}

// guest is a connection that counts as a stranger until it logs in or closes.
type guest struct {
	net.Conn
	visit atomic.Pointer[visit] // nil until the login
	enter func()                // once: no longer a stranger
	leave func()                // once: gone
}

type guestKey struct{}

// Close is called once or more for every connection that was admitted.
func (g *guest) Close() error {
	g.enter()
	err := g.Conn.Close()
	g.leave()
	return err
}

// visitKey is where a login leaves its visit in the connection's permissions.
type visitKey struct{}

var errDenied = errors.New("permission denied")

func (d *Door) serverConfig(ctx ssh.Context) *gossh.ServerConfig {
	return &gossh.ServerConfig{
		MaxAuthTries:         maxAuthTries,
		NoClientAuthCallback: func(gossh.ConnMetadata) (*gossh.Permissions, error) { return nil, errDenied },
		PasswordCallback: func(conn gossh.ConnMetadata, password []byte) (*gossh.Permissions, error) {
			return d.password(ctx, conn, string(password))
		},
		KeyboardInteractiveCallback: func(conn gossh.ConnMetadata, ask gossh.KeyboardInteractiveChallenge) (*gossh.Permissions, error) {
			answers, err := ask("", "", []string{"Password: "}, []bool{false})
			if err != nil || len(answers) != 1 {
				return nil, errDenied
			}
			return d.password(ctx, conn, answers[0])
		},
		// Any key may try to prove itself, so that the answer to an offered key tells nobody whose it is.
		PublicKeyCallback: func(gossh.ConnMetadata, gossh.PublicKey) (*gossh.Permissions, error) {
			return &gossh.Permissions{}, nil
		},
		VerifiedPublicKeyCallback: func(conn gossh.ConnMetadata, key gossh.PublicKey, _ *gossh.Permissions, _ string) (*gossh.Permissions, error) {
			return d.login(ctx, conn, d.keys, "key", "publicKey", strings.TrimSpace(string(gossh.MarshalAuthorizedKey(key))))
		},
	}
}

func (d *Door) password(ctx ssh.Context, conn gossh.ConnMetadata, password string) (*gossh.Permissions, error) {
	if password == "" || len(password) > 256 {
		return nil, errDenied
	}
	return d.login(ctx, conn, d.passwords, "password", "password", password)
}

// login asks the gateway whether this is the person. Every no is the same no.
func (d *Door) login(ctx ssh.Context, conn gossh.ConnMetadata, budget *limiter, way, field, proof string) (*gossh.Permissions, error) {
	remote := hostOf(conn.RemoteAddr())
	if !budget.take(remote) {
		return nil, &gossh.BannerError{Err: errDenied, Message: "Too many failed logins from your address. Wait a minute, then try again.\r\n"}
	}
	login, parseErr := ParseLogin(conn.User())
	name := login.User
	if name == "" {
		name = "-" // nobody's name; asked about all the same, so that it takes as long as any other
	}
	var t tokens
	err := d.gw.request(ctx, http.MethodPost, "/internal/v1/door/"+way, "", remote,
		map[string]string{"username": name, field: proof, "remoteAddr": remote}, &t)
	switch status := statusOf(err); {
	case err == nil && login.User != "":
		budget.refund(remote)
	case status == http.StatusTooManyRequests:
		return nil, &gossh.BannerError{Err: errDenied, Message: "Too many failed logins. Wait a minute, then try again.\r\n"}
	case transient(err):
		budget.refund(remote)
		d.log.Warn("the gateway did not answer a login", "err", err)
		return nil, &gossh.BannerError{Err: errDenied, Message: "Learnos cannot check logins at the moment: its gateway does not answer. Try again in a moment.\r\n"}
	default:
		if status == http.StatusForbidden || status == http.StatusNotFound && way != "key" {
			d.log.Error("the gateway does not know this door: do both use the same secrets directory?", "err", err)
		}
		return nil, errDenied
	}
	v := &visit{door: d, p: newPerson(d.gw, t, remote), login: login, local: conn.LocalAddr()}
	if errors.Is(parseErr, ErrLoginTarget) {
		v.badTo = parseErr
	}
	g, ok := ctx.Value(guestKey{}).(*guest)
	if !ok {
		return nil, errDenied
	}
	g.visit.Store(v)
	g.enter()
	_ = g.SetDeadline(time.Time{})
	return &gossh.Permissions{ExtraData: map[any]any{visitKey{}: v}}, nil
}

func hostOf(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	host, _, _ = strings.Cut(host, "%")
	return host
}

func refuseForwarding(_ *ssh.Server, _ *gossh.ServerConn, nc gossh.NewChannel, _ ssh.Context) {
	_ = nc.Reject(gossh.Prohibited, "Learnos does not forward ports over SSH; inside the machine, curl and its like reach them")
}

// sessionChannel serves one session channel; the first one of a connection also starts what watches over it.
func (d *Door) sessionChannel(_ *ssh.Server, conn *gossh.ServerConn, nc gossh.NewChannel, ctx ssh.Context) {
	v, ok := conn.Permissions.ExtraData[visitKey{}].(*visit)
	if !ok || !v.enter() {
		_ = nc.Reject(gossh.ResourceShortage, fmt.Sprintf("one connection may hold %d sessions", maxChannels))
		return
	}
	defer v.exit()
	v.watched.Do(func() { go watchClient(ctx, conn) })
	serveChannel(ctx, nc, d.log, v.run)
}

// watchClient asks the client now and then whether it is there, and closes a connection whose client is not.
func watchClient(ctx context.Context, conn *gossh.ServerConn) {
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		answered := make(chan error, 1)
		go func() {
			_, _, err := conn.SendRequest("keepalive@openssh.com", true, nil)
			answered <- err
		}()
		select {
		case err := <-answered:
			if err != nil {
				return
			}
		case <-time.After(3 * keepAlive):
			_ = conn.Close()
			return
		case <-ctx.Done():
			return
		}
	}
}
