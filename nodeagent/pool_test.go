package nodeagent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/tunnel"
	"github.com/learnos/learnos/netbridge"
	"github.com/learnos/learnos/rootfs"
)

// startPool keeps spares on a node until the test ends or the returned function is called.
func startPool(t testing.TB, n *Node, bound int) *pool {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := newPool(n, bound, func() bool { return true }, slog.New(slog.NewTextHandler(io.Discard, nil)))
	n.pool.Store(p)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if left, err := n.Spares(); err != nil || len(left) > 0 {
			t.Errorf("left when the pool has stopped: %v %v", left, err)
		}
	})
	return p
}

// awaitSpares waits until so many are ready, and fails when more ever are there than may be.
func awaitSpares(t *testing.T, p *pool, want int) {
	t.Helper()
	for range 2000 {
		ready, all := p.state()
		if all > p.bound {
			t.Fatalf("%d spares; at most %d may be", all, p.bound)
		}
		if ready == want && all == want {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	ready, all := p.state()
	t.Fatalf("%d of %d spares are ready after ten seconds; want %d", ready, all, want)
}

func busybox(t *testing.T, n *Node) *rootfs.Image {
	t.Helper()
	img, err := n.Images().Image(t.Context(), "busybox")
	check(t, err)
	return img
}

// output runs a command in an environment and returns what it wrote.
func output(t *testing.T, e *Environment, script string) string {
	t.Helper()
	s, err := e.Exec(t.Context(), ExecOptions{Args: []string{"sh", "-c", script}})
	check(t, err)
	defer s.Close()
	_ = s.Stdin().Close()
	out := &lockedBuffer{}
	var copying sync.WaitGroup
	for _, from := range []io.Reader{s.Stdout(), s.Stderr()} {
		copying.Go(func() { _, _ = io.Copy(out, from) })
	}
	copying.Wait()
	if st, err := s.Wait(t.Context()); err != nil || st.Code != 0 {
		t.Fatalf("%s: %+v %v %s", script, st, err, out)
	}
	return strings.TrimSpace(out.String())
}

// Spares follow what is asked for, and never pass their bound; one that is given away is replaced; a stopped pool leaves
// none.
func TestPoolFollowsDemand(t *testing.T) {
	n, err := Open(newRoot(t), Options{})
	check(t, err)
	p := startPool(t, n, 3)
	o := CreateOptions{Image: busybox(t, n), NoMain: true, Owner: OwnerPlatform, Limits: Limits{PIDs: 64}}
	if ready, all := p.state(); ready+all != 0 {
		t.Errorf("%d spares before anybody asked for anything", all)
	}
	first, err := n.Create(t.Context(), o)
	check(t, err)
	if r := first.Record(); r.Prepared != "" {
		t.Errorf("the first was made ahead of need, as %s", r.Prepared)
	}
	awaitSpares(t, p, 1)
	seen := map[string]bool{}
	for range 6 {
		ready, _ := p.state()
		e, err := n.Create(t.Context(), o)
		check(t, err)
		r := e.Record()
		if ready > 0 && (r.Prepared == "" || seen[r.Prepared]) {
			t.Errorf("a spare was ready, and the environment has %q", r.Prepared)
		}
		seen[r.Prepared] = true
		check(t, e.Delete(t.Context()))
		if _, err := os.Stat(n.sparePath(r.Prepared)); r.Prepared != "" && !os.IsNotExist(err) {
			t.Errorf("a deleted environment leaves the record of its spare: %v", err)
		}
		if _, all := p.state(); all > 3 {
			t.Errorf("%d spares; at most 3 may be", all)
		}
	}
	awaitSpares(t, p, 3)
	list, err := n.Spares()
	check(t, err)
	if len(list) != 3 || list[0].Image != "busybox" || list[0].Limits.PIDs != 64 {
		t.Errorf("they are told as %+v", list)
	}
	if swept, err := n.Sweep(t.Context()); err != nil || len(swept.Spares)+len(swept.Containers)+len(swept.Disks)+len(swept.Addresses)+len(swept.IDRanges) > 0 {
		t.Errorf("a sweep takes what is somebody's: %+v %v", swept, err)
	}
	awaitSpares(t, p, 3)
}

// What is decided about spares, with a clock of the test's own.
func TestPoolDecides(t *testing.T) {
	room := true
	p := newPool(nil, 4, func() bool { return room }, slog.Default())
	ask := func(image string, times int) {
		for range times {
			if s := p.take(&CreateOptions{Image: &rootfs.Image{Digest: image}, Owner: OwnerPlatform, NoMain: true, Net: NetBridge}); s != nil {
				t.Fatal("there was a spare")
			}
		}
	}
	now := time.Now()
	// settle makes and unmakes until there is nothing more to do, and tells what there is then.
	settle := func(after time.Duration) string {
		for range 20 {
			lacking, surplus, _ := p.next(now.Add(after))
			if lacking == nil && surplus == nil {
				break
			}
			if lacking != nil {
				lacking.ready = append(lacking.ready, &spare{})
			}
			if p.count > p.bound {
				t.Fatalf("%d spares", p.count)
			}
		}
		counts := map[string]int{}
		for _, k := range p.kinds {
			if len(k.ready) > 0 {
				counts[k.image.Digest] = len(k.ready)
			}
		}
		return fmt.Sprint(counts)
	}
	expect := func(what string, after time.Duration, want string) {
		t.Helper()
		if got := settle(after); got != want {
			t.Errorf("%s: %s; want %s", what, got, want)
		}
	}
	expect("nobody has asked for anything", time.Second, "map[]")
	ask("a", 2)
	expect("as many as were asked for", time.Second, "map[a:2]")
	p.busy = 1
	p.kinds = map[string]*kind{}
	p.count = 0
	ask("a", 2)
	expect("while a create goes on", time.Hour, "map[]")
	p.busy = 0
	p.last = now.Add(time.Second)
	expect("a moment after it", time.Second+quietBefore/2, "map[]")
	expect("when it is quiet", 2*time.Second, "map[a:2]")
	p.kinds[nameOf(p, "a")].ready = nil // given away
	p.count = 0
	ask("b", 9)
	expect("the most wanted have all there may be", 2*time.Second, "map[b:4]")
	expect("two half-lives later", 2*spareHalfLife+time.Minute, "map[a:1 b:2]")
	expect("hours later", 2*time.Hour, "map[]")
	if len(p.kinds) != 0 || p.count != 0 {
		t.Errorf("%d kinds and %d spares stay in memory", len(p.kinds), p.count)
	}
	room = false
	ask("c", 1)
	expect("without memory for it", time.Second, "map[]")
}

func nameOf(p *pool, digest string) string {
	for name, k := range p.kinds {
		if k.image.Digest == digest {
			return name
		}
	}
	return ""
}

// An environment that was a spare is what was asked for, and nothing of another's is in it.
func TestSpareBecomesWhatWasAskedFor(t *testing.T) {
	n, err := Open(newRoot(t), Options{})
	check(t, err)
	p := startPool(t, n, 2)
	limits := Limits{MemoryBytes: 64 << 20, PIDs: 77, CPUs: 0.5, NetUpBits: 8_000_000, NetDownBits: 9_000_000}
	o := CreateOptions{Image: busybox(t, n), NoMain: true, Owner: OwnerPlatform, Limits: limits, Hostname: "first", Env: []string{"A=secret"}}
	cold, err := n.Create(t.Context(), o)
	check(t, err)
	awaitSpares(t, p, 1)
	o.Hostname, o.Env, o.Limits.NetQuotaBytes = "second", nil, 1<<30
	warm, err := n.Create(t.Context(), o)
	check(t, err)
	a, b := cold.Record(), warm.Record()
	if b.Prepared == "" || a.Prepared != "" {
		t.Fatalf("prepared as %q and %q", a.Prepared, b.Prepared)
	}
	if a.FirstID == b.FirstID || a.Address == b.Address || b.Address == "" || b.FirstID == 0 || b.Limits != o.Limits {
		t.Errorf("the one is %+v, the other %+v", a, b)
	}
	// The same questions, answered by the one that was made when asked for and by the one that had been made before.
	for _, c := range []struct {
		ask  string
		same bool
	}{
		{"hostname; cat /etc/hostname", false},
		{"cat /etc/hosts", false},
		{"cat /etc/resolv.conf; stat -c '%a %u:%g' /etc/hosts /etc/hostname /etc/resolv.conf", true},
		{"grep -E 'Cap|NoNewPrivs|Seccomp' /proc/self/status", true},
		{"mount | sed 's/[0-9a-f]\\{6,\\}//g' | grep -v ' / '", true},
		{"ls -a / /etc /root /tmp /var /run; id; ulimit -a; umask; env | grep -v HOSTNAME | sort", true},
		{"ip -o addr show eth0 | sed 's/.*inet \\([0-9.]*\\).*/\\1/'", false},
		{"ip route | sed 's/ src .*//'", true},
	} {
		was, is := output(t, cold, c.ask), output(t, warm, c.ask)
		was = strings.ReplaceAll(strings.ReplaceAll(was, "secret", ""), "A=\n", "")
		if (was == is) != c.same {
			t.Errorf("%s:\n%s\nand\n%s", c.ask, was, is)
		}
		for _, others := range []string{a.Address, a.ID, b.Prepared, "first", "spare", "secret"} {
			if strings.Contains(is, others) && !strings.Contains(b.Address, others) {
				t.Errorf("%s tells %q: %s", c.ask, others, is)
			}
		}
	}
	if hosts := output(t, warm, "cat /etc/hosts"); !strings.Contains(hosts, b.Address+"\tsecond") {
		t.Errorf("/etc/hosts: %s", hosts)
	}
	for _, e := range []*Environment{cold, warm} {
		st, err := e.Stats(t.Context())
		check(t, err)
		if st.MemoryLimit != 64<<20 || st.PIDsLimit != 77 {
			t.Errorf("%s has the limits %d B and %d", e.Record().Hostname, st.MemoryLimit, st.PIDsLimit)
		}
		net, err := n.Bridge(t.Context())
		check(t, err)
		r := e.Record()
		if at, err := net.Attachment(r.heldAs()); err != nil || at.NetUp != 8_000_000 || at.NetDown != 9_000_000 || at.IP.String() != r.Address {
			t.Errorf("%s is attached as %+v, %v", r.Hostname, at, err)
		}
	}
	for _, id := range []string{a.heldAs(), b.heldAs()} {
		quota := ""
		for _, path := range []string{"cpu*/" + n.CgroupParent() + "/" + id + "/cpu.cfs_quota_us", n.CgroupParent() + "/" + id + "/cpu.max"} {
			found, _ := filepath.Glob("/sys/fs/cgroup/" + path)
			for _, f := range found {
				body, err := os.ReadFile(f)
				check(t, err)
				quota = strings.Fields(string(body))[0]
			}
		}
		if quota != "50000" {
			t.Errorf("CPU quota %q", quota)
		}
	}
	// It is one like any other to a process that did not make it.
	again, err := Open(n.Root(), Options{})
	check(t, err)
	loaded, err := again.Load(t.Context(), warm.ID())
	check(t, err)
	if !loaded.Alive(t.Context()) || output(t, loaded, "hostname") != "second" {
		t.Error("another process can't load it")
	}
	check(t, again.Delete(t.Context(), warm.ID()))
	if unix.Kill(b.PID, 0) == nil {
		t.Error("its init outlives its deletion")
	}
}

// Whoever asks for something else gets just that, and no spare.
func TestSpareIsNoSubstitute(t *testing.T) {
	n, err := Open(newRoot(t), Options{})
	check(t, err)
	p := startPool(t, n, 1)
	o := CreateOptions{Image: busybox(t, n), NoMain: true, Owner: OwnerPlatform, Limits: Limits{PIDs: 64}}
	_, err = n.Create(t.Context(), o)
	check(t, err)
	awaitSpares(t, p, 1)
	for what, change := range map[string]func(*CreateOptions){
		"fewer processes": func(o *CreateOptions) { o.Limits.PIDs = 63 },
		"a memory limit":  func(o *CreateOptions) { o.Limits.MemoryBytes = 64 << 20 },
		"a bandwidth":     func(o *CreateOptions) { o.Limits.NetUpBits = 1_000_000 },
		"a disk rate":     func(o *CreateOptions) { o.Limits.IO.WriteBytes = 1 << 20 },
		"raw packets":     func(o *CreateOptions) { o.CapAdd = []string{"NET_RAW"} },
		"read-only":       func(o *CreateOptions) { o.ReadOnly = true },
		"no network":      func(o *CreateOptions) { o.Net = NetNone },
		"the host's ids":  func(o *CreateOptions) { o.HostUsers = true },
		"a volume":        func(o *CreateOptions) { o.Volumes = []Volume{{Source: "/etc", Destination: "/mnt", ReadOnly: true}} },
		"a port":          func(o *CreateOptions) { o.Ports = []netbridge.Port{{HostPort: 47391, Port: 80}} },
		"a command":       func(o *CreateOptions) { o.NoMain, o.Owner, o.Args = false, OwnerDetached, []string{"sleep", "60"} },
	} {
		other := o
		change(&other)
		e, err := n.Create(t.Context(), other)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if r := e.Record(); r.Prepared != "" || r.Limits != other.Limits || r.ReadOnly != other.ReadOnly || r.Net != other.Net && other.Net != "" {
			t.Errorf("%s: got %+v", what, r)
		}
		check(t, e.Delete(t.Context()))
	}
	// One that has died in the meantime is not given to anybody.
	awaitSpares(t, p, 1)
	p.mu.Lock()
	for _, k := range p.kinds {
		for _, s := range k.ready {
			check(t, unix.Kill(s.c.PID(), unix.SIGKILL))
			_, err := s.c.Wait(t.Context())
			check(t, err)
		}
	}
	p.mu.Unlock()
	e, err := n.Create(t.Context(), o)
	check(t, err)
	if !e.Alive(t.Context()) {
		t.Error("the environment is dead")
	}
}

// An agent that is killed leaves no spare to its successor; what had become somebody's goes on.
func TestKilledAgentLeavesNoSpares(t *testing.T) {
	p := newPlatform(t, "spares = 2")
	p.start()
	n, err := Open(p.root, Options{})
	check(t, err)
	count := func() int {
		list, err := n.Spares()
		check(t, err)
		return len(list)
	}
	p.await(p.create(nil), queue.StateRunning)
	p.until("a spare is ready", func() bool { return count() > 0 })
	kept := p.create(nil)
	p.await(kept, queue.StateRunning)
	r, err := n.Record(kept)
	check(t, err)
	if r.Prepared == "" {
		t.Error("a spare was ready, and a new environment was made")
	}
	session := p.session(kept, tunnel.Request{Args: []string{"sh"}, TTY: true, Cols: 80, Rows: 24})
	p.attach(kept, session, nil).typed("echo still $((40+2))\n")
	p.until("spares are ready again", func() bool { return count() == 2 })
	before, err := n.Spares()
	check(t, err)
	p.kill()
	if count() != 0 {
		t.Error("a dead agent's spares count as ready")
	}
	if swept, err := n.Sweep(t.Context()); err != nil || len(swept.Spares) < 2 || len(swept.Environments) != 0 {
		t.Errorf("swept %+v, %v", swept, err)
	}
	for _, s := range before {
		for _, pattern := range []string{"/sys/fs/cgroup/*/" + machineName(p.root) + "/" + s.ID, "/sys/fs/cgroup/" + machineName(p.root) + "/" + s.ID,
			filepath.Join(n.RunDir(), s.ID), filepath.Join(p.root, "snapshots", s.ID), filepath.Join(p.root, "net", "ids", s.ID), n.sparePath(s.ID)} {
			if found, _ := filepath.Glob(pattern); len(found) > 0 {
				t.Errorf("of a spare of the killed agent there is left %v", found)
			}
		}
		if _, err := os.Stat(filepath.Join(idDir, strconv.Itoa((s.FirstID-idBase)/idRangeSize))); !os.IsNotExist(err) {
			t.Errorf("its range of ids is taken still: %v", err)
		}
	}
	p.start()
	p.attach(kept, session, nil).expect("still 42")
	p.delete(kept)
	p.await(kept, queue.StateDeleted)
}
