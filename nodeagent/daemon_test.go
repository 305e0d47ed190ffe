package nodeagent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/learnos/learnos/internal/config"
	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/queue/queuetest"
	"github.com/learnos/learnos/internal/term"
	"github.com/learnos/learnos/internal/tunnel"
	"github.com/learnos/learnos/rootfs"
)

// agentVariable makes the test binary an agent instead, so that tests can kill one.
const agentVariable = "NODEAGENT_TEST_CONFIG"

// template is a root with the busybox image, made once and copied for each test.
var template string

func TestMain(m *testing.M) {
	if path := os.Getenv(agentVariable); path != "" {
		cfg, err := config.Load(path)
		if err == nil {
			err = Serve(context.Background(), cfg)
		}
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
	os.Exit(func() int {
		if os.Geteuid() != 0 {
			fmt.Fprintln(os.Stderr, "these tests make environments: run them as root")
			return 1
		}
		dir, err := os.MkdirTemp("", "nodeagent-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		template = filepath.Join(dir, "root")
		n, err := Open(template, Options{})
		if err == nil {
			_, err = n.Images().Build(context.Background(), "busybox", rootfs.BuildOptions{})
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "build the busybox image:", err)
			return 1
		}
		return m.Run()
	}())
}

// newRoot copies the template and takes everything down with the test.
func newRoot(t testing.TB) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	if out, err := exec.Command("cp", "-a", template, root).CombinedOutput(); err != nil {
		t.Fatalf("copy the template: %v: %s", err, out)
	}
	t.Cleanup(func() {
		n, err := Open(root, Options{})
		if err == nil {
			err = n.Destroy(context.Background())
		}
		if err != nil {
			t.Errorf("destroy: %v", err)
		}
	})
	return root
}

// platform is etcd and a gateway's end of the tunnels, and agents as processes.
type platform struct {
	t     *testing.T
	etcd  *queuetest.Etcd
	queue *queue.Queue
	hub   *tunnel.Hub
	root  string
	conf  string
	agent *exec.Cmd
}

func newPlatform(t *testing.T, more string) *platform {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	p := &platform{t: t, etcd: queuetest.Start(t), root: newRoot(t)}
	p.queue = queue.New(p.etcd.Client(), "/learnos/")
	token, err := p.queue.TunnelToken(ctx)
	check(t, err)
	id, err := tunnel.NewIdentity()
	check(t, err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	p.hub = tunnel.ServeGateway(ctx, ln, token, id, tunnel.HubOptions{Log: quiet})
	t.Cleanup(func() { _ = p.hub.Close() })
	_, err = p.queue.RegisterGateway(ctx, queue.GatewayInfo{ID: "g1", TunnelAddr: ln.Addr().String(), CertSHA256: id.SHA256})
	check(t, err)
	p.conf = filepath.Join(t.TempDir(), "config.toml")
	text := fmt.Sprintf("[etcd]\naddresses = [%q]\n[node]\nname = \"n1\"\nroot = %q\n%s\n", p.etcd.Endpoint, p.root, more)
	if !strings.Contains(more, "spares") { // so that a machine without environments is an empty one
		text += "spares = 0\n"
	}
	check(t, os.WriteFile(p.conf, []byte(text), 0o600))
	return p
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start runs an agent and waits for its tunnel.
func (p *platform) start() {
	p.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), agentVariable+"="+p.conf)
	log := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = log, log
	check(p.t, cmd.Start())
	p.agent = cmd
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if p.t.Failed() {
			p.t.Logf("agent %d:\n%s", cmd.Process.Pid, log)
		}
	})
	p.until("the tunnel is up", func() bool { return len(p.hub.Nodes()) == 1 })
}

// kill ends the agent as kill -9 does.
func (p *platform) kill() {
	p.t.Helper()
	check(p.t, p.agent.Process.Signal(syscall.SIGKILL))
	_ = p.agent.Wait()
	p.until("the tunnel is down", func() bool { return len(p.hub.Nodes()) == 0 })
}

func (p *platform) until(what string, ok func() bool) {
	p.t.Helper()
	for range 600 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	p.t.Fatalf("never: %s", what)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// create enqueues a job for a busybox environment.
func (p *platform) create(change func(*queue.EnvSpec)) string {
	p.t.Helper()
	spec := &queue.EnvSpec{ID: NewID(), Image: "busybox", Source: "busybox", CreatedAt: time.Now(),
		Limits: queue.Limits{MemoryBytes: 64 << 20, PIDs: 100}}
	if change != nil {
		change(spec)
	}
	check(p.t, p.queue.Enqueue(context.Background(), queue.Job{ID: spec.ID, Kind: queue.KindCreate, EnvID: spec.ID, Spec: spec}))
	return spec.ID
}

func (p *platform) delete(id string) {
	p.t.Helper()
	check(p.t, p.queue.Enqueue(context.Background(), queue.Job{ID: queue.DeleteID(id), Kind: queue.KindDelete, EnvID: id}))
}

// await waits until the environment is in the state and returns its status.
func (p *platform) await(id, state string) queue.EnvStatus {
	p.t.Helper()
	var s queue.EnvStatus
	for range 600 {
		var err error
		if s, err = p.queue.Status(context.Background(), id); err == nil && s.State == state {
			return s
		}
		if err == nil && queue.Terminal(s.State) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	p.t.Fatalf("environment %s: want %s, is %q (%s)", id, state, s.State, s.Reason)
	return s
}

// ask sends a request over the tunnel.
func (p *platform) ask(req tunnel.Request) *tunnel.Conn {
	p.t.Helper()
	c, err := p.hub.Open(context.Background(), "n1", req)
	if err != nil {
		p.t.Fatalf("%s: %v", req.Op, err)
	}
	return c
}

// attachment is a client of one session.
type attachment struct {
	t    *testing.T
	c    *term.Client
	conn *tunnel.Conn
	out  *lockedBuffer
	errs *lockedBuffer
	done chan struct{}
	exit term.Exit
	err  error
}

func (p *platform) attach(env, session string, a *attachment) *attachment {
	p.t.Helper()
	if a == nil {
		a = &attachment{t: p.t, out: &lockedBuffer{}, errs: &lockedBuffer{}}
		a.c = term.NewClient(a.out, a.errs)
	}
	a.done = make(chan struct{})
	a.conn = p.ask(tunnel.Request{Op: tunnel.OpSessionAttach, Env: env, Session: session, Offset: a.c.Offset(), Cols: 80, Rows: 24})
	p.t.Cleanup(func() { _ = a.conn.Close() })
	go func() {
		defer close(a.done)
		a.exit, a.err = a.c.Run(term.NewReader(a.conn), term.NewWriter(a.conn))
	}()
	return a
}

func (a *attachment) typed(text string) {
	a.t.Helper()
	_, err := a.c.Write([]byte(text))
	check(a.t, err)
}

func (a *attachment) expect(text string) {
	a.t.Helper()
	for range 600 {
		if strings.Contains(a.out.String(), text) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	out := a.out.String()
	a.t.Fatalf("never saw %q; the end of what came: %q (connection: %v)", text, out[max(0, len(out)-500):], a.err)
}

func (p *platform) session(env string, req tunnel.Request) string {
	p.t.Helper()
	req.Op, req.Env = tunnel.OpSessionCreate, env
	c := p.ask(req)
	defer c.Close()
	if c.Reply.Session == "" {
		p.t.Fatal("a session without an id")
	}
	return c.Reply.Session
}

// clean checks that nothing of the root's environments is left.
func (p *platform) clean() {
	p.t.Helper()
	parent := machineName(p.root)
	var found []string
	for range 100 {
		found = nil
		for _, pattern := range []string{
			filepath.Join(p.root, "envs", "*"), filepath.Join(runDir, parent, "[a-z0-9]*"), filepath.Join(p.root, "snapshots", "*"),
			"/sys/fs/cgroup/*/" + parent + "/*/cgroup.procs", "/sys/fs/cgroup/" + parent + "/*/cgroup.procs",
			"/sys/class/net/" + parent + "/brif/*",
		} {
			matches, err := filepath.Glob(pattern)
			check(p.t, err)
			found = append(found, matches...)
		}
		ranges, _ := filepath.Glob(idDir + "/*")
		for _, r := range ranges {
			if owner, err := readRange(r); err == nil && owner.Root == p.root {
				found = append(found, r)
			}
		}
		if len(found) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	p.t.Fatalf("left over: %s", strings.Join(found, "\n"))
}

// TestWholeLife is the way of an environment with an agent that is killed in the middle of it.
func TestWholeLife(t *testing.T) {
	p := newPlatform(t, "")
	p.start()
	id := p.create(nil)
	s := p.await(id, queue.StateRunning)
	if s.Address == "" || s.Node != "n1" || s.Timings["total"] <= 0 || s.Timings["image"] <= 0 {
		t.Errorf("status lacks something: %+v", s)
	}
	t.Logf("timings: %v", s.Timings)

	sid := p.session(id, tunnel.Request{TTY: true, Cols: 100, Rows: 30})
	a := p.attach(id, sid, nil)
	a.typed("stty size; id -un; echo $TERM $HOME $USER\n")
	a.expect("24 80") // the attachment's size, which came after the session's
	a.expect("xterm-256color /root root")
	a.typed("A=before; echo mark-$A\n")
	a.expect("mark-before")
	piped := p.session(id, tunnel.Request{Args: []string{"sh", "-c", "cat; exit 3"}})
	b := p.attach(id, piped, nil)
	b.typed("first\n")
	b.expect("first\n")

	p.kill()
	<-a.done
	<-b.done
	p.start()
	p.attach(id, sid, a)
	a.typed("echo again-$A\n")
	a.expect("again-before")
	a.typed("echo after-$A\n")
	a.expect("after-before")
	p.attach(id, piped, b)
	b.typed("second\n")
	check(t, b.c.EOF())
	<-b.done
	if b.err != nil || b.exit.Code != 3 || b.out.String() != "first\nsecond\n" {
		t.Errorf("the command's session after the restart: %v, status %d, output %q", b.err, b.exit.Code, b.out)
	}
	// Somebody who comes for the first time sees what was there before.
	late := p.attach(id, sid, nil)
	late.expect("mark-before")
	late.expect("after-before")

	c := p.ask(tunnel.Request{Op: tunnel.OpSessionList, Env: id})
	if len(c.Reply.Sessions) != 2 || !c.Reply.Sessions[1].Exited || c.Reply.Sessions[1].ExitCode != 3 {
		t.Errorf("sessions: %+v", c.Reply.Sessions)
	}
	_ = c.Close()

	p.delete(id)
	s = p.await(id, queue.StateDeleted)
	<-a.done
	p.clean()
	if _, err := p.hub.Open(context.Background(), "n1", tunnel.Request{Op: tunnel.OpSessionList, Env: id}); err == nil {
		t.Error("sessions of a deleted environment are listed")
	}
}

// TestKilledInTheMiddle kills the agent at many moments of a burst of creates: all of them end running or are taken
// up by the next agent, and nothing is left of what was half-made.
func TestKilledInTheMiddle(t *testing.T) {
	p := newPlatform(t, "")
	p.start()
	var ids []string
	for round := range 4 {
		for range 3 {
			ids = append(ids, p.create(nil))
		}
		time.Sleep(time.Duration(round*7) * time.Millisecond)
		p.kill()
		p.start()
	}
	for _, id := range ids {
		p.await(id, queue.StateRunning)
	}
	n, err := Open(p.root, Options{})
	check(t, err)
	all, err := n.Records()
	check(t, err)
	if len(all) != len(ids) {
		t.Errorf("%d environments on disk, want %d", len(all), len(ids))
	}
	for _, id := range ids {
		p.delete(id)
	}
	for _, id := range ids {
		p.await(id, queue.StateDeleted)
	}
	p.clean()
}

func TestTwentyAtOnce(t *testing.T) {
	p := newPlatform(t, "")
	p.start()
	var ids []string
	for range 20 {
		ids = append(ids, p.create(nil))
	}
	seen := map[string]bool{}
	for _, id := range ids {
		s := p.await(id, queue.StateRunning)
		if seen[s.Address] {
			t.Errorf("address %s twice", s.Address)
		}
		seen[s.Address] = true
	}
	for _, id := range ids {
		sid := p.session(id, tunnel.Request{Args: []string{"hostname"}})
		a := p.attach(id, sid, nil)
		<-a.done
		if a.err != nil || a.exit.Code != 0 || !strings.HasPrefix(id, strings.TrimSpace(a.out.String())) {
			t.Errorf("%s: %v, status %d, output %q", id, a.err, a.exit.Code, a.out)
		}
		p.delete(id)
	}
	for _, id := range ids {
		p.await(id, queue.StateDeleted)
	}
	p.clean()
}

// After a restart of the machine the runtime remembers nothing: what ran has ended, and gives back what it held. The same
// when only /run was emptied, and its processes still run.
func TestRestartedMachine(t *testing.T) {
	root := newRoot(t)
	n, err := Open(root, Options{})
	check(t, err)
	img, err := n.Images().Image(t.Context(), "busybox")
	check(t, err)
	env, err := n.Create(t.Context(), CreateOptions{Image: img, Args: []string{"sleep", "600"}, Owner: OwnerDetached, Net: NetNone})
	check(t, err)
	if info, err := os.Stat(n.RunDir()); err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("%s: %v %v", n.RunDir(), info, err)
	}
	pid := env.Record().PID
	check(t, os.RemoveAll(n.RunDir()))
	n, err = Open(root, Options{})
	check(t, err)
	check(t, env.update(func(r *Record) { r.PID = 0 })) // what the number names after a restart is another process, or none
	touched, err := n.Reconcile(t.Context())
	check(t, err)
	if len(touched) != 1 || touched[0] != env.ID() {
		t.Errorf("settled %v", touched)
	}
	r, err := n.Record(env.ID())
	check(t, err)
	if r.State != StateExited || !strings.Contains(r.Reason, "restarted") {
		t.Errorf("it is %s: %s", r.State, r.Reason)
	}
	if b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err == nil && !strings.Contains(string(b), ") Z ") {
		t.Errorf("its init still runs: %s", b)
	}
	if _, err := os.Stat(filepath.Join(root, "snapshots", env.ID())); !os.IsNotExist(err) {
		t.Errorf("its disk is still there: %v", err)
	}
	check(t, n.Destroy(t.Context()))
	if _, err := os.Stat(n.RunDir()); !os.IsNotExist(err) {
		t.Errorf("a node given back leaves %s: %v", n.RunDir(), err)
	}
}

// A job that names no limit of processes gets one all the same, and the daemon sees to it that the machine has numbers for many
// environments like it, and files.
func TestProcessesAreLimited(t *testing.T) {
	p := newPlatform(t, "")
	p.start()
	id := p.create(func(s *queue.EnvSpec) { s.Limits.PIDs = 0 })
	p.await(id, queue.StateRunning)
	n, err := Open(p.root, Options{})
	check(t, err)
	env, err := n.Load(t.Context(), id)
	check(t, err)
	stats, err := env.Container().Stats(t.Context())
	check(t, err)
	if stats.PIDsLimit != DefaultPIDs {
		t.Errorf("it may have %d processes, want %d", stats.PIDsLimit, DefaultPIDs)
	}
	for _, s := range shared {
		body, err := os.ReadFile(s.path)
		check(t, err)
		if strings.TrimSpace(string(body)) != strconv.Itoa(s.most) {
			t.Errorf("the machine has only %s %s", strings.TrimSpace(string(body)), s.what)
		}
	}
	p.delete(id)
	p.await(id, queue.StateDeleted)
}

func TestFailuresHaveReasons(t *testing.T) {
	p := newPlatform(t, "")
	p.start()
	id := p.create(func(s *queue.EnvSpec) { s.Source = "dir:/no/such/tree" })
	if s := p.await(id, queue.StateFailed); !strings.Contains(s.Reason, "/no/such/tree") {
		t.Errorf("reason %q", s.Reason)
	}
	id = p.create(func(s *queue.EnvSpec) { s.Deadline = time.Now().Add(-time.Minute) })
	if s := p.await(id, queue.StateFailed); !strings.Contains(s.Reason, "deadline") {
		t.Errorf("reason %q", s.Reason)
	}
	p.clean()
}

func TestDeadlineIdleAndExtend(t *testing.T) {
	p := newPlatform(t, "")
	p.start()
	short := p.create(func(s *queue.EnvSpec) { s.Deadline = time.Now().Add(3 * time.Second) })
	longer := p.create(func(s *queue.EnvSpec) { s.Deadline = time.Now().Add(3 * time.Second) })
	idle := p.create(func(s *queue.EnvSpec) { s.IdleTimeout = 2 * time.Second })
	busy := p.create(func(s *queue.EnvSpec) { s.IdleTimeout = 2 * time.Second })
	p.await(longer, queue.StateRunning)
	c := p.ask(tunnel.Request{Op: tunnel.OpExtend, Env: longer, Deadline: time.Now().Add(time.Hour)})
	if time.Until(c.Reply.Deadline) < 50*time.Minute {
		t.Errorf("new deadline %v", c.Reply.Deadline)
	}
	p.await(busy, queue.StateRunning)
	a := p.attach(busy, p.session(busy, tunnel.Request{TTY: true}), nil)

	if s := p.await(short, queue.StateDeleted); s.Reason != "lifetime" {
		t.Errorf("reason %q", s.Reason)
	}
	if s := p.await(idle, queue.StateDeleted); s.Reason != "idle" {
		t.Errorf("reason %q", s.Reason)
	}
	if s := p.await(longer, queue.StateRunning); time.Until(s.Deadline) < 50*time.Minute {
		t.Errorf("deadline in etcd %v", s.Deadline)
	}
	a.typed("echo still $((40+2))\n")
	a.expect("still 42")
	_ = a.conn.Close()
	if s := p.await(busy, queue.StateDeleted); s.Reason != "idle" {
		t.Errorf("reason %q", s.Reason)
	}
	p.delete(longer)
	p.await(longer, queue.StateDeleted)
	p.clean()
}

// TestQuotasEndAnEnvironment: once a quota is passed, its environment is gone, and etcd knows why, within two seconds.
func TestQuotasEndAnEnvironment(t *testing.T) {
	p := newPlatform(t, "blockPrivate = false")
	p.start()
	n, err := Open(p.root, Options{})
	check(t, err)
	for name, c := range map[string]struct {
		limits queue.Limits
		script string // passes the quota with its last act
		reason string
	}{
		// To its own gateway: dropped there, counted here.
		"traffic": {queue.Limits{NetQuotaBytes: 200_000}, `gw=$(ip route | sed -n 's/default via \([^ ]*\).*/\1/p'); ping -c 6 -i 0.1 -W 1 -s 60000 $gw`, "network traffic passed its quota of 195.3 KiB"},
		"disk":    {queue.Limits{BlkQuotaBytes: 4 << 20}, `dd if=/dev/zero of=/filled bs=1M count=8 oflag=direct`, "disk traffic passed its quota of 4 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			within := false
			for range 3 { // a machine with much else to do may take longer, but not always
				id := p.create(func(s *queue.EnvSpec) { s.Limits = c.limits })
				p.await(id, queue.StateRunning)
				env, err := n.Load(context.Background(), id)
				check(t, err)
				sess, err := env.Exec(context.Background(), ExecOptions{Args: []string{"sh", "-c", c.script}})
				check(t, err)
				_, _ = env.WaitSession(context.Background(), sess) // or the environment's end
				passed := time.Now()
				s := p.await(id, queue.StateOverstep)
				took := time.Since(passed)
				_ = sess.Close()
				if s.Reason != c.reason {
					t.Errorf("reason %q", s.Reason)
				}
				if _, err := n.Record(id); !errors.Is(err, ErrNotFound) {
					t.Errorf("it is still there: %v", err)
				}
				t.Logf("overstep %v after the quota was passed", took.Round(time.Millisecond))
				if within = took < 2*time.Second; within {
					break
				}
			}
			if !within {
				t.Error("never within two seconds")
			}
		})
	}
	p.clean()
}

func TestInitKilled(t *testing.T) {
	p := newPlatform(t, "")
	p.start()
	n, err := Open(p.root, Options{})
	check(t, err)
	// init itself is the one that goes: what is left of it is a reason.
	dead := p.create(nil)
	p.await(dead, queue.StateRunning)
	env, err := n.Load(context.Background(), dead)
	check(t, err)
	check(t, syscall.Kill(env.Container().PID(), syscall.SIGKILL))
	if s := p.await(dead, queue.StateFailed); s.Reason == "" {
		t.Error("no reason")
	}
	p.clean()
}

// TestEtcdAway: sessions don't notice, and what ended meanwhile is told afterwards.
func TestEtcdAway(t *testing.T) {
	p := newPlatform(t, "")
	p.start()
	id := p.create(nil)
	p.await(id, queue.StateRunning)
	ends := p.create(func(s *queue.EnvSpec) { s.Deadline = time.Now().Add(5 * time.Second) })
	p.await(ends, queue.StateRunning)
	a := p.attach(id, p.session(id, tunnel.Request{TTY: true}), nil)
	p.etcd.Kill()
	time.Sleep(6 * time.Second)
	a.typed("echo without $((40+2))\n")
	a.expect("without 42")
	p.etcd.Restart()
	if s := p.await(ends, queue.StateDeleted); s.Reason != "lifetime" {
		t.Errorf("reason %q", s.Reason)
	}
	p.delete(id)
	p.await(id, queue.StateDeleted)
	p.clean()
}

// TestSessions: everything a client may do to one.
func TestSessions(t *testing.T) {
	p := newPlatform(t, "")
	p.start()
	id := p.create(func(s *queue.EnvSpec) { s.Command = []string{"sh", "-c", "echo from the catalogue; cat"} })
	p.await(id, queue.StateRunning)

	a := p.attach(id, p.session(id, tunnel.Request{TTY: true}), nil)
	a.expect("from the catalogue")

	// Standard error apart, status and reason at the end, all output before it, much of it.
	b := p.attach(id, p.session(id, tunnel.Request{Args: []string{"sh", "-c", "seq 1 300000; echo problem >&2; exit 42"}}), nil)
	<-b.done
	if lines := strings.Count(b.out.String(), "\n"); b.err != nil || b.exit.Code != 42 || lines != 300000 || b.errs.String() != "problem\n" {
		t.Errorf("%v, status %d, %d lines, stderr %q", b.err, b.exit.Code, lines, b.errs)
	}

	// Nothing of a command's output is lost to a client that comes late, breaks off and comes again.
	sid := p.session(id, tunnel.Request{Args: []string{"seq", "1", "400000"}})
	time.Sleep(300 * time.Millisecond)
	late := p.attach(id, sid, nil)
	late.expect("100\n")
	_ = late.conn.Close()
	<-late.done
	for range 5 {
		if late.err == nil {
			break
		}
		p.attach(id, sid, late)
		time.Sleep(50 * time.Millisecond)
		_ = late.conn.Close()
		<-late.done
	}
	if late.err != nil {
		p.attach(id, sid, late)
		<-late.done
	}
	if got := late.out.String(); late.err != nil || strings.Count(got, "\n") != 400000 || !strings.HasSuffix(got, "\n400000\n") {
		t.Errorf("%v, %d lines", late.err, strings.Count(got, "\n"))
	}

	// A client that reads nothing does not hold the others up.
	flood := p.session(id, tunnel.Request{TTY: true, Args: []string{"sh", "-c", "seq 1 200000; echo the-end; sleep 1000"}})
	stuck := p.ask(tunnel.Request{Op: tunnel.OpSessionAttach, Env: id, Session: flood, Offset: tunnel.FromStart, Cols: 80, Rows: 24})
	defer stuck.Close()
	quick := p.attach(id, flood, nil)
	quick.expect("the-end")

	// A signal, and the status that it makes.
	c := p.attach(id, p.session(id, tunnel.Request{Args: []string{"sleep", "1000"}}), nil)
	check(t, c.c.Signal(uint8(syscall.SIGTERM)))
	<-c.done
	if c.exit.Code != 128+int(syscall.SIGTERM) {
		t.Errorf("status %d after SIGTERM", c.exit.Code)
	}

	// What can't be: refusals with a code.
	for _, bad := range []struct {
		req  tunnel.Request
		code string
	}{
		{tunnel.Request{Op: tunnel.OpSessionCreate, Args: []string{"no-such-command"}}, tunnel.CodeBadRequest},
		{tunnel.Request{Op: tunnel.OpSessionCreate, Vars: []string{"novalue"}}, tunnel.CodeBadRequest},
		{tunnel.Request{Op: tunnel.OpSessionCreate, Cwd: "relative"}, tunnel.CodeBadRequest},
		{tunnel.Request{Op: tunnel.OpSessionAttach, Session: "nope"}, tunnel.CodeNotFound},
		{tunnel.Request{Op: tunnel.OpSessionClose, Session: "nope"}, tunnel.CodeNotFound},
		{tunnel.Request{Op: tunnel.OpExtend, Deadline: time.Now().Add(-time.Hour)}, tunnel.CodeBadRequest},
		{tunnel.Request{Op: "dance"}, tunnel.CodeBadRequest},
	} {
		bad.req.Env = id
		conn, err := p.hub.Open(context.Background(), "n1", bad.req)
		var refused *tunnel.Error
		if !errors.As(err, &refused) || refused.Code != bad.code {
			t.Errorf("%+v: %v, want code %s", bad.req, err, bad.code)
		}
		if err == nil {
			_ = conn.Close()
		}
	}

	// Closing ends the process, and the session is no more.
	check(t, p.ask(tunnel.Request{Op: tunnel.OpSessionClose, Env: id, Session: flood}).Close())
	list := p.ask(tunnel.Request{Op: tunnel.OpSessionList, Env: id})
	for _, s := range list.Reply.Sessions {
		if s.ID == flood {
			t.Error("a closed session is listed")
		}
	}
	_ = list.Close()

	// There is a bound.
	var full error
	for range maxSessions + 1 {
		conn, err := p.hub.Open(context.Background(), "n1", tunnel.Request{Op: tunnel.OpSessionCreate, Env: id, Args: []string{"sleep", "1000"}})
		if err != nil {
			full = err
			break
		}
		_ = conn.Close()
	}
	var refused *tunnel.Error
	if !errors.As(full, &refused) || refused.Code != tunnel.CodeLimit {
		t.Errorf("too many sessions: %v", full)
	}

	// Figures.
	st := p.ask(tunnel.Request{Op: tunnel.OpStats, Env: id})
	var line tunnel.Stats
	dec := json.NewDecoder(st)
	for line.MemoryBytes == 0 || line.PIDs < 3 {
		check(t, dec.Decode(&line))
	}
	if line.Env != id || line.MemoryLimit != 64<<20 || line.Connected < 1 {
		t.Errorf("figures: %+v", line)
	}
	_ = st.Close()
}

// TestEndsSurviveTheAgent: what a killed agent had decided to end ends, with its reason; what somebody took away while
// no agent looked is told, too.
func TestEndsSurviveTheAgent(t *testing.T) {
	p := newPlatform(t, "")
	p.start()
	decided, taken := p.create(nil), p.create(nil)
	p.await(decided, queue.StateRunning)
	p.await(taken, queue.StateRunning)
	p.kill()
	pub := newPublisher(p.queue, "n1", filepath.Join(p.root, "ended"), slog.Default())
	pub.keep(queue.EnvStatus{ID: decided, State: queue.StateDeleted, Reason: "idle"})
	n, err := Open(p.root, Options{})
	check(t, err)
	check(t, n.Delete(context.Background(), taken))
	p.start()
	if s := p.await(decided, queue.StateDeleted); s.Reason != "idle" {
		t.Errorf("reason %q", s.Reason)
	}
	if s := p.await(taken, queue.StateFailed); !strings.Contains(s.Reason, "no longer") {
		t.Errorf("reason %q", s.Reason)
	}
	p.clean()
}

func TestOneDaemonPerRoot(t *testing.T) {
	p := newPlatform(t, "")
	p.start()
	cfg, err := config.Load(p.conf)
	check(t, err)
	if err := Serve(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("a second daemon: %v", err)
	}
}
