package embedetcd_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/learnos/learnos/internal/config"
	"github.com/learnos/learnos/internal/embedetcd"
	"github.com/learnos/learnos/internal/queue"
)

// The test binary is also the process that is killed: with this variable it serves from that directory.
const dirVariable = "EMBEDETCD_TEST_DIR"

func TestMain(m *testing.M) {
	dir := os.Getenv(dirVariable)
	if dir == "" {
		os.Exit(m.Run())
	}
	s, err := embedetcd.Start(context.Background(), dir)
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	c := s.Config()
	fmt.Println(c.Addresses[0])
	select {} // until it is killed
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ctxOf(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func dial(t *testing.T, c config.Etcd) *clientv3.Client {
	cli, err := queue.Dial(c)
	must(t, err)
	t.Cleanup(func() { cli.Close() })
	return cli
}

// serve runs the server in a process of its own.
func serve(t *testing.T, dir string) (addr string, kill func()) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), dirVariable+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	must(t, err)
	started, gone := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // Pdeathsig is about this thread
		started <- cmd.Start()
		<-gone
	}()
	must(t, <-started)
	kill = func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	t.Cleanup(func() { kill(); close(gone) })
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	if strings.HasPrefix(line, "error:") {
		t.Fatal(line)
	}
	return strings.TrimSpace(line), kill
}

// Whatever was answered is there after a kill -9.
func TestKilledServerKeepsItsData(t *testing.T) {
	dir, ctx := t.TempDir(), ctxOf(t)
	settings := config.Default().Etcd
	settings.CAFile, settings.CertFile, settings.KeyFile = dir+"/pki/ca.pem", dir+"/pki/client.pem", dir+"/pki/client.key"
	for round := range 3 {
		addr, kill := serve(t, dir)
		settings.Addresses = []string{addr}
		cli := dial(t, settings)
		resp, err := cli.Get(ctx, "n/", clientv3.WithPrefix())
		must(t, err)
		if resp.Count != int64(round*100) {
			t.Fatalf("round %d: %d keys", round, resp.Count)
		}
		for i := range 100 {
			_, err := cli.Put(ctx, fmt.Sprintf("n/%d/%d", round, i), strings.Repeat("x", 1000))
			must(t, err)
		}
		kill()
	}
}

func TestSecondProcessIsToldWhy(t *testing.T) {
	dir := t.TempDir()
	s, err := embedetcd.Start(ctxOf(t), dir)
	must(t, err)
	if _, err := embedetcd.Start(ctxOf(t), dir); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Fatal(err)
	}
	must(t, s.Close())
	s, err = embedetcd.Start(ctxOf(t), dir)
	must(t, err)
	must(t, s.Close())
}

func TestErrors(t *testing.T) {
	if _, err := embedetcd.Start(ctxOf(t), t.TempDir(), "nonsense"); err == nil {
		t.Error("a listen address without a port was taken")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	if _, err := embedetcd.Start(ctxOf(t), t.TempDir(), ln.Addr().String()); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Error(err)
	}
	done, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := embedetcd.Start(done, t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Nobody without the installation's certificate gets in, and nobody else can read it.
func TestStrangersAreKeptOut(t *testing.T) {
	dir, ctx := t.TempDir(), ctxOf(t)
	s, err := embedetcd.Start(ctx, dir, "127.0.0.1:0")
	must(t, err)
	defer s.Close()
	_, err = dial(t, s.Config()).Put(ctx, "k", "v")
	must(t, err)
	for what, c := range map[string]config.Etcd{
		"no certificate": {Addresses: s.Config().Addresses, CAFile: s.Config().CAFile},
		"no TLS":         {Addresses: []string{strings.TrimPrefix(s.Config().Addresses[0], "https://")}},
	} {
		short, cancel := context.WithTimeout(ctx, time.Second)
		if _, err := dial(t, c).Get(short, "k"); err == nil {
			t.Errorf("%s: let in", what)
		}
		cancel()
	}
	for _, name := range []string{"ca.key", "client.key", "server.key", "client.pem"} {
		st, err := os.Stat(dir + "/pki/" + name)
		must(t, err)
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, st.Mode())
		}
	}
}
