// Package platform starts the real Learnos, as processes built from this
// checkout, for the tests and benchmarks that cross rooms.
//
// Everything it makes lives in one directory and on random loopback ports, so
// several can run side by side and nothing of the machine's own is touched. It
// knows how to start, kill and restart each process and how to be sure that
// nothing is left; what a test expects of the platform stays in the test.
package platform

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options says which Learnos to start.
type Options struct {
	Embedded bool              // one `learnos up` process instead of etcd and three daemons
	Env      map[string]string // more configuration, as LEARNOS_SECTION_KEY variables
	Bin      string            // directory of the binaries
}

// Platform is a running Learnos.
type Platform struct {
	Dir     string // everything it keeps
	WebURL  string // http://127.0.0.1:port of the panel
	SSHAddr string // 127.0.0.1:port of the SSH door
	Config  string // path of its config.toml
	Root    string // the node's root directory

	opts  Options
	env   []string
	mu    sync.Mutex
	procs map[string]*proc
	order []string
}

type proc struct {
	argv []string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has been reaped
}

// Start writes a configuration under dir and starts every process, returning
// when the panel answers. On an error everything it started is stopped.
func Start(ctx context.Context, dir string, opts Options) (*Platform, error) {
	ports, err := freePorts(6)
	if err != nil {
		return nil, fmt.Errorf("choose ports: %w", err)
	}
	at := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	p := &Platform{
		Dir: dir, WebURL: "http://" + at(0), SSHAddr: at(1),
		Config: filepath.Join(dir, "config.toml"), Root: dir,
		opts: opts, procs: map[string]*proc{},
	}
	config := fmt.Sprintf(`[common]
dataDir = %q
[etcd]
addresses = [%q]
[web]
webAddr = %q
sshAddr = %q
gatewayURL = "http://%s"
[gateway]
addr = %q
tunnelAddr = %q
loginPerMinute = 1000
registerPerHour = 1000
[node]
name = "node-1"
`, dir, at(4), at(0), at(1), at(2), at(2), at(3))
	if err := os.WriteFile(p.Config, []byte(config), 0o600); err != nil {
		return nil, err
	}
	p.env = os.Environ()
	for k, v := range opts.Env {
		p.env = append(p.env, k+"="+v)
	}

	bin := func(name string) string { return filepath.Join(opts.Bin, name) }
	if opts.Embedded {
		p.add("learnos", bin("learnos"), "up", "--config", p.Config, "--data-dir", dir, "--no-debian")
	} else {
		p.add("etcd", "etcd", "--data-dir", filepath.Join(dir, "etcd"), "--name", "one",
			"--listen-client-urls", "http://"+at(4), "--advertise-client-urls", "http://"+at(4),
			"--listen-peer-urls", "http://"+at(5), "--initial-advertise-peer-urls", "http://"+at(5),
			"--initial-cluster", "one=http://"+at(5), "--log-level", "warn")
		p.add("gateway", bin("gateway"), "--config", p.Config)
		p.add("web", bin("web"), "--config", p.Config)
		p.add("nodeagent", bin("nodeagent"), "serve", "--config", p.Config)
	}
	for _, name := range p.order {
		if err := p.Restart(name); err != nil {
			p.Close()
			return nil, err
		}
	}
	if err := p.WaitReady(ctx); err != nil {
		log := p.Logs()
		p.Close()
		return nil, fmt.Errorf("%w\n%s", err, log)
	}
	return p, nil
}

func (p *Platform) add(name string, argv ...string) {
	p.procs[name] = &proc{argv: argv}
	p.order = append(p.order, name)
}

// Processes names them in the order they are started.
func (p *Platform) Processes() []string { return p.order }

// PID is the process id of a running process, 0 for one that is not.
func (p *Platform) PID(name string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pr := p.procs[name]; pr != nil && pr.cmd != nil {
		return pr.cmd.Process.Pid
	}
	return 0
}

// Restart starts a process that is not running.
func (p *Platform) Restart(name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr := p.procs[name]
	if pr == nil {
		return fmt.Errorf("no process named %s", name)
	}
	if pr.cmd != nil {
		return fmt.Errorf("%s is running", name)
	}
	log, err := os.OpenFile(filepath.Join(p.Dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(pr.argv[0], pr.argv[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Env = log, log, p.env
	// A process group of its own: a Ctrl-C at the test run's terminal is for
	// the test, which then stops these in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	pr.cmd, pr.done = cmd, done
	return nil
}

// Kill sends SIGKILL to a process and waits until it is gone.
func (p *Platform) Kill(name string) error { return p.stop(name, syscall.SIGKILL, 10*time.Second) }

// Stop asks a process to end and waits; one that does not is killed.
func (p *Platform) Stop(name string) error {
	err := p.stop(name, syscall.SIGTERM, 20*time.Second)
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.Join(err, p.Kill(name))
	}
	return err
}

func (p *Platform) stop(name string, sig syscall.Signal, patience time.Duration) error {
	p.mu.Lock()
	pr := p.procs[name]
	if pr == nil || pr.cmd == nil {
		p.mu.Unlock()
		return fmt.Errorf("%s is not running", name)
	}
	cmd, done := pr.cmd, pr.done
	p.mu.Unlock()
	_ = cmd.Process.Signal(sig)
	select {
	case <-done:
	case <-time.After(patience):
		return fmt.Errorf("%s still runs %v after %v: %w", name, patience, sig, context.DeadlineExceeded)
	}
	p.mu.Lock()
	pr.cmd = nil
	p.mu.Unlock()
	return nil
}

// WaitReady returns when the panel and, through it, the gateway answer and a
// node is registered, or with what it last saw when ctx ends.
func (p *Platform) WaitReady(ctx context.Context) error {
	var last error
	for {
		last = p.probe(ctx)
		if last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("learnos did not become ready: %w", last)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (p *Platform) probe(ctx context.Context) error {
	for _, path := range []string{"/", "/api/v1/config"} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.WebURL+path, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("GET %s: %s", path, resp.Status)
		}
	}
	return nil
}

// Logs is the tail of every process's output, for a failure's report.
func (p *Platform) Logs() string {
	var b strings.Builder
	for _, name := range p.order {
		data, _ := os.ReadFile(filepath.Join(p.Dir, name+".log"))
		if len(data) > 6000 {
			data = data[len(data)-6000:]
		}
		fmt.Fprintf(&b, "--- %s\n%s\n", name, data)
	}
	return b.String()
}

// NodeAgent runs a low-level node command on the platform's own root and
// returns its combined output.
func (p *Platform) NodeAgent(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(p.opts.Bin, "nodeagent"), append([]string{"--root", p.Root}, args...)...)
	cmd.Env = p.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Close stops every process, the last started first, and removes the
// environments and network objects the node made.
func (p *Platform) Close() error {
	var errs []error
	for i := len(p.order) - 1; i >= 0; i-- {
		if p.PID(p.order[i]) != 0 {
			errs = append(errs, p.Stop(p.order[i]))
		}
	}
	if _, err := os.Stat(p.Root); err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if out, err := p.NodeAgent(ctx, "gc", "--all"); err != nil {
			errs = append(errs, fmt.Errorf("nodeagent gc --all: %w: %s", err, out))
		}
	}
	return errors.Join(errs...)
}

// freePorts asks the kernel for n loopback ports and holds them all until the
// last is known, so that no port comes twice.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
