// Package queuetest runs a real etcd server for one test: Debian's /usr/bin/etcd, on a random loopback port, with its
// data in the test's own directory.
package queuetest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/learnos/learnos/internal/config"
	"github.com/learnos/learnos/internal/queue"
)

// Binary is the server that is run.
const Binary = "/usr/bin/etcd"

// Etcd is a server of the test's own. Its methods are for the test's goroutine.
type Etcd struct {
	Endpoint string // host:port

	t    testing.TB
	dir  string
	peer string
	args []string
	cmd  *exec.Cmd
	gone chan struct{} // closed when cmd has ended
}

// Start runs an etcd and waits until it serves; args are more of its flags. It ends with the test, or with the
// process.
func Start(t testing.TB, args ...string) *Etcd {
	t.Helper()
	if _, err := os.Stat(Binary); err != nil {
		t.Fatalf("%v: apt-get install etcd-server", err)
	}
	for tries := 3; ; tries-- {
		e := &Etcd{Endpoint: freeAddress(t), peer: freeAddress(t), t: t, dir: t.TempDir(), args: args}
		err := e.start()
		if err == nil {
			t.Cleanup(e.Kill)
			return e
		}
		if tries == 1 {
			t.Fatal(err)
		}
		t.Logf("trying again, as others may have been given the same ports meanwhile: %v", err)
	}
}

// freeAddress is one that was free just now.
func freeAddress(t testing.TB) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// Client is a client of its own, closed with the test.
func (e *Etcd) Client() *clientv3.Client {
	e.t.Helper()
	cli, err := queue.Dial(config.Etcd{Addresses: []string{e.Endpoint}})
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { cli.Close() })
	return cli
}

// Kill ends the server as kill -9 does, and waits for its end.
func (e *Etcd) Kill() {
	if e.cmd == nil {
		return
	}
	_ = e.cmd.Process.Kill()
	<-e.gone
	e.cmd = nil
}

// Pause stops the server as SIGSTOP does: it keeps its connections and answers nothing. Resume lets it go on.
func (e *Etcd) Pause() { _ = e.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (e *Etcd) Resume() { _ = e.cmd.Process.Signal(syscall.SIGCONT) }

// Restart starts the server again with the same data and address, after Kill, and waits until it serves.
func (e *Etcd) Restart() {
	e.t.Helper()
	if err := e.start(); err != nil {
		e.t.Fatal(err)
	}
}

func (e *Etcd) start() error {
	log, err := os.OpenFile(filepath.Join(e.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	url, peer := "http://"+e.Endpoint, "http://"+e.peer
	cmd := exec.Command(Binary, append([]string{
		"--name", "test", "--data-dir", filepath.Join(e.dir, "data"),
		"--listen-client-urls", url, "--advertise-client-urls", url,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "test=" + peer,
	}, e.args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, gone := make(chan error), make(chan struct{})
	go func() {
		// The signal comes when the thread that started the server ends, so this one stays as long as it.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(gone)
	}()
	if err := <-started; err != nil {
		return err
	}
	e.cmd, e.gone = cmd, gone
	if err := e.ready(); err != nil {
		e.Kill()
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("etcd does not serve: %w\n%s", err, text[max(0, len(text)-4000):])
	}
	return nil
}

func (e *Etcd) ready() error {
	cli, err := queue.Dial(config.Etcd{Addresses: []string{e.Endpoint}})
	if err != nil {
		return err
	}
	defer cli.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		attempt, stop := context.WithTimeout(ctx, time.Second)
		_, err := cli.Get(attempt, "ready")
		stop()
		if err == nil {
			return nil
		}
		select {
		case <-e.gone:
			return fmt.Errorf("it has ended: %w", err)
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}
