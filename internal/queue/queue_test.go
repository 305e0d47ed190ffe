package queue_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/learnos/learnos/internal/embedetcd"
	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/queue/queuetest"
)

const prefix = "/test/"

// quick makes graces and backoffs short, so that tests wait for events and not for clocks.
func quick() queue.Options {
	return queue.Options{Grace: time.Nanosecond, Backoff: time.Nanosecond, Log: slog.New(slog.DiscardHandler)}
}

func ctxOf(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func start(t *testing.T, o queue.Options) (*queue.Queue, *clientv3.Client, *queuetest.Etcd) {
	t.Helper()
	e := queuetest.Start(t)
	cli := e.Client()
	return queue.NewWith(cli, prefix, o), cli, e
}

func createJob(id string) queue.Job {
	return queue.Job{ID: id, Kind: queue.KindCreate, EnvID: id, Spec: &queue.EnvSpec{ID: id, Owner: "ada", Source: "busybox"}}
}

func deleteJob(id string) queue.Job {
	return queue.Job{ID: queue.DeleteID(id), Kind: queue.KindDelete, EnvID: id}
}

func anyJob(queue.Job) bool { return true }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, want %v", err, want)
	}
}

func register(t testing.TB, q *queue.Queue, name string, ttl time.Duration) *queue.Lease {
	t.Helper()
	l, err := q.RegisterNode(ctxOf(t), queue.NodeInfo{Name: name, Instance: "i-" + name}, ttl)
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = l.Close(ctx)
	})
	return l
}

func claim(t testing.TB, q *queue.Queue, node string, l *queue.Lease) *queue.Claim {
	t.Helper()
	c, err := q.Claim(ctxOf(t), node, l, anyJob)
	must(t, err)
	if c == nil {
		t.Fatal("nothing to claim")
	}
	return c
}

func noClaim(t testing.TB, q *queue.Queue, node string, l *queue.Lease) {
	t.Helper()
	c, err := q.Claim(ctxOf(t), node, l, anyJob)
	must(t, err)
	if c != nil {
		t.Fatalf("claimed %s", c.Job.ID)
	}
}

func wantState(t testing.TB, q *queue.Queue, id, state string) queue.EnvStatus {
	t.Helper()
	s, err := q.Status(ctxOf(t), id)
	must(t, err)
	if s.State != state {
		t.Fatalf("state of %s is %+v, want %s", id, s, state)
	}
	return s
}

// eventually waits for what another goroutine does; it fails by the test's own timeout.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx := ctxOf(t)
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatal("never: " + what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// loseLease ends a node's lease behind its back, as an expiry does.
func loseLease(t testing.TB, cli *clientv3.Client, node string) {
	t.Helper()
	var resp *clientv3.GetResponse
	eventually(t, node+" is announced", func() bool {
		var err error
		resp, err = cli.Get(ctxOf(t), prefix+"nodes/"+node)
		must(t, err)
		return resp.Count == 1
	})
	_, err := cli.Revoke(ctxOf(t), clientv3.LeaseID(resp.Kvs[0].Lease))
	must(t, err)
}

// keys lists all that is below the prefix.
func keys(t testing.TB, cli *clientv3.Client) []string {
	t.Helper()
	resp, err := cli.Get(ctxOf(t), prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	must(t, err)
	var all []string
	for _, kv := range resp.Kvs {
		all = append(all, strings.TrimPrefix(string(kv.Key), prefix))
	}
	return all
}

// onEach runs a test with a client of each kind of server: etcd as it comes, ours through a socket, and ours within this process.
func onEach(t *testing.T, test func(t *testing.T, cli *clientv3.Client)) {
	servers := map[string]func(t *testing.T) *clientv3.Client{
		"debian": func(t *testing.T) *clientv3.Client { return queuetest.Start(t).Client() },
		"embedded": func(t *testing.T) *clientv3.Client {
			s, err := embedetcd.Start(ctxOf(t), t.TempDir())
			must(t, err)
			cli, err := queue.Dial(s.Config())
			must(t, err)
			t.Cleanup(func() { cli.Close(); s.Close() })
			return cli
		},
		"inside": func(t *testing.T) *clientv3.Client {
			s, err := embedetcd.Start(ctxOf(t), t.TempDir())
			must(t, err)
			cli := s.Client()
			t.Cleanup(func() { cli.Close(); s.Close() })
			return cli
		},
	}
	for name, server := range servers {
		t.Run(name, func(t *testing.T) { test(t, server(t)) })
	}
}

func TestLifeOfAnEnvironment(t *testing.T) {
	onEach(t, func(t *testing.T, cli *clientv3.Client) {
		q := queue.NewWith(cli, prefix, quick())
		ctx := ctxOf(t)
		lease := register(t, q, "n1", 5*time.Second)

		must(t, q.Enqueue(ctx, createJob("e1")))
		wantErr(t, q.Enqueue(ctx, createJob("e1")), queue.ErrExists)
		must(t, q.Enqueue(ctx, createJob("e2")))
		for i, id := range []string{"e1", "e2"} {
			if p, err := q.Position(ctx, id); err != nil || p != i {
				t.Fatalf("place of %s is %d, %v", id, p, err)
			}
		}
		wantState(t, q, "e1", queue.StateQueued)

		c := claim(t, q, "n1", lease)
		if c.Job.ID != "e1" || c.Job.Attempts != 1 || c.Job.Spec.Owner != "ada" {
			t.Fatalf("claimed %+v", c.Job)
		}
		wantErr(t, q.Enqueue(ctx, createJob("e1")), queue.ErrExists)
		_, err := q.Position(ctx, "e1")
		wantErr(t, err, queue.ErrNotFound)
		wantErr(t, q.Forget(ctx, "e1"), queue.ErrBusy)

		must(t, c.Status(ctx, queue.EnvStatus{State: queue.StatePulling, Percent: 40}))
		if s := wantState(t, q, "e1", queue.StatePulling); s.Node != "n1" || s.Percent != 40 || s.Rev == 0 || s.UpdatedAt.IsZero() {
			t.Fatalf("status %+v", s)
		}
		wantErr(t, q.PutStatus(ctx, "n2", queue.EnvStatus{ID: "e1", State: queue.StateRunning}), queue.ErrFenced)
		must(t, c.Finish(ctx, queue.EnvStatus{State: queue.StateRunning, Address: "10.64.0.2"}))
		must(t, c.Finish(ctx, queue.EnvStatus{State: queue.StateRunning, Address: "10.64.0.2"})) // an answer that never came
		wantErr(t, c.Status(ctx, queue.EnvStatus{State: queue.StatePulling}), queue.ErrFenced)
		wantState(t, q, "e1", queue.StateRunning)
		wantErr(t, q.Enqueue(ctx, createJob("e1")), queue.ErrExists)
		must(t, q.PutStatus(ctx, "n1", queue.EnvStatus{ID: "e1", State: queue.StateRunning, Stage: "busy"}))
		wantErr(t, q.PutStatus(ctx, "n1", queue.EnvStatus{ID: "e9"}), queue.ErrNotFound)

		// A delete is bound to the node that has the environment and goes before the waiting create.
		must(t, q.Enqueue(ctx, deleteJob("e1")))
		wantErr(t, q.Enqueue(ctx, deleteJob("e1")), queue.ErrExists)
		d := claim(t, q, "n1", lease)
		if d.Job.ID != "e1-delete" || d.Job.Kind != queue.KindDelete || d.Job.Node != "n1" {
			t.Fatalf("claimed %+v", d.Job)
		}
		must(t, d.Finish(ctx, queue.EnvStatus{State: queue.StateDeleted}))
		wantState(t, q, "e1", queue.StateDeleted)
		wantErr(t, q.Enqueue(ctx, deleteJob("e1")), queue.ErrExists)
		wantErr(t, q.PutStatus(ctx, "n1", queue.EnvStatus{ID: "e1", State: queue.StateRunning}), queue.ErrFenced)
		must(t, q.Forget(ctx, "e1"))
		must(t, q.Forget(ctx, "e1"))
		must(t, q.Enqueue(ctx, deleteJob("e1"))) // on no node: at once
		wantState(t, q, "e1", queue.StateDeleted)
		must(t, q.Forget(ctx, "e1"))

		// A delete of what is still waiting cancels it.
		must(t, q.Enqueue(ctx, deleteJob("e2")))
		wantState(t, q, "e2", queue.StateDeleted)
		noClaim(t, q, "n1", lease)
		must(t, q.Forget(ctx, "e2"))

		must(t, q.Enqueue(ctx, createJob("e3")))
		if done, err := q.Cancel(ctx, "e3"); !done || err != nil {
			t.Fatal(done, err)
		}
		if done, err := q.Cancel(ctx, "e3"); done || err != nil {
			t.Fatal(done, err)
		}
		wantErr(t, q.Enqueue(ctx, createJob("e3")), queue.ErrExists) // a late outbox
		must(t, q.Forget(ctx, "e3"))

		if left := keys(t, cli); !slices.Equal(left, []string{"nodes/n1"}) {
			t.Fatalf("left behind: %q", left)
		}
	})
}

// The state that a create begins in is written with its claim, or not at all.
func TestClaimTellsTheState(t *testing.T) {
	q, _, _ := start(t, quick())
	ctx := ctxOf(t)
	lease := register(t, q, "n1", 5*time.Second)
	state := queue.StatePulling
	take := func() *queue.Claim {
		c, err := q.ClaimTelling(ctx, "n1", lease, anyJob, func(queue.Job) string { return state })
		must(t, err)
		return c
	}
	job := createJob("e1")
	job.Spec.Deadline = time.Now().Add(time.Hour).UTC()
	must(t, q.Enqueue(ctx, job))
	before := wantState(t, q, "e1", queue.StateQueued)
	c := take()
	if s := wantState(t, q, "e1", queue.StatePulling); c.Told != queue.StatePulling || s.Node != "n1" || s.Rev <= before.Rev || !s.Deadline.Equal(job.Spec.Deadline) {
		t.Fatalf("told %q, status %+v", c.Told, s)
	}
	must(t, c.Finish(ctx, queue.EnvStatus{State: queue.StateRunning}))

	// Deletes say what they have done, not what they are about to do.
	must(t, q.Enqueue(ctx, deleteJob("e1")))
	if c = take(); c.Told != "" {
		t.Fatal(c.Told)
	}
	wantState(t, q, "e1", queue.StateRunning)

	must(t, q.Enqueue(ctx, createJob("e2")))
	state = ""
	take()
	wantState(t, q, "e2", queue.StateQueued)
}

// A wake means that something may be claimed: one's own claims wake nobody.
func TestClaimsDoNotWake(t *testing.T) {
	q, _, _ := start(t, quick())
	ctx := ctxOf(t)
	lease := register(t, q, "n1", 5*time.Second)
	wake := q.Watch(ctx)
	<-wake // the first, for what is there already
	for i := range 5 {
		must(t, q.Enqueue(ctx, createJob(fmt.Sprint("e", i))))
		<-wake
		claim(t, q, "n1", lease)
		// Were the claim's own change a wake, it would be told before that of the next job.
	}
	must(t, q.Enqueue(ctx, createJob("last")))
	<-wake
	claim(t, q, "n1", lease)
	select {
	case <-wake:
		t.Error("woken for nothing")
	case <-time.After(100 * time.Millisecond):
	}
}

func TestBadJobsAreRefused(t *testing.T) {
	q, _, _ := start(t, quick())
	for what, j := range map[string]queue.Job{
		"no id":          {},
		"slash":          createJob("a/b"),
		"no spec":        {ID: "e1", EnvID: "e1", Kind: queue.KindCreate},
		"other spec":     {ID: "e1", EnvID: "e1", Kind: queue.KindCreate, Spec: &queue.EnvSpec{ID: "e2"}},
		"unknown kind":   {ID: "e1", EnvID: "e1", Kind: "resize"},
		"foreign delete": {ID: "e1-delete", EnvID: "e2", Kind: queue.KindDelete},
		"priority":       {ID: "e1-delete", EnvID: "e1", Kind: queue.KindDelete, Priority: 1000},
		"node":           {ID: "e1-delete", EnvID: "e1", Kind: queue.KindDelete, Node: "a/b"},
		"huge": {ID: "e1", EnvID: "e1", Kind: queue.KindCreate,
			Spec: &queue.EnvSpec{ID: "e1", Command: []string{strings.Repeat("x", 70<<10)}}},
	} {
		if err := q.Enqueue(ctxOf(t), j); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if _, err := q.RegisterNode(ctxOf(t), queue.NodeInfo{Name: "no/slash"}, time.Second); err == nil {
		t.Error("a node with a slash was registered")
	}
}

func TestOrder(t *testing.T) {
	q, _, _ := start(t, quick())
	ctx := ctxOf(t)
	lease := register(t, q, "n1", 5*time.Second)
	at := time.Now()
	for i, j := range []queue.Job{createJob("late"), createJob("early"), createJob("urgent"), createJob("patient"), createJob("bound"), createJob("elsewhere"), createJob("big"), createJob("notyet")} {
		j.EnqueuedAt = at.Add(time.Duration(i) * time.Second)
		switch j.ID {
		case "early":
			j.EnqueuedAt = at.Add(-time.Hour)
		case "urgent":
			j.Priority = -5
		case "patient":
			j.Priority = 5
		case "bound":
			j.Node = "n1"
		case "elsewhere":
			j.Node = "n2"
		case "big":
			j.Spec.Limits.MemoryBytes = 1 << 40
		case "notyet":
			j.NotBefore = at.Add(time.Hour)
		}
		must(t, q.Enqueue(ctx, j))
	}
	var got []string
	for {
		c, err := q.Claim(ctx, "n1", lease, func(j queue.Job) bool { return j.Spec.Limits.MemoryBytes < 1<<30 })
		must(t, err)
		if c == nil {
			break
		}
		got = append(got, c.Job.ID)
	}
	if want := []string{"bound", "urgent", "early", "late", "patient"}; !slices.Equal(got, want) {
		t.Fatalf("order %v, want %v", got, want)
	}
}

// TestManyClaimers: 1000 jobs, 8 claimers on 8 nodes, each job done once, though one in ten is given back first.
func TestManyClaimers(t *testing.T) {
	q, cli, _ := start(t, quick())
	ctx := ctxOf(t)
	const jobs, claimers = 1000, 8
	work := make(chan int)
	var enqueuers sync.WaitGroup
	for range 16 {
		enqueuers.Add(1)
		go func() {
			defer enqueuers.Done()
			for i := range work {
				id := fmt.Sprintf("e%04d", i)
				if err := q.Enqueue(ctx, createJob(id)); err != nil {
					t.Error(err)
				}
				if err := q.Enqueue(ctx, createJob(id)); !errors.Is(err, queue.ErrExists) {
					t.Errorf("second %s: %v", id, err)
				}
			}
		}()
	}

	var mu sync.Mutex
	done := map[string]int{}
	finished, stop := make(chan struct{}), make(chan struct{})
	var claimersDone sync.WaitGroup
	for n := range claimers {
		node := fmt.Sprintf("n%d", n)
		lease := register(t, q, node, 10*time.Second)
		wake := q.Watch(ctx)
		claimersDone.Add(1)
		go func() {
			defer claimersDone.Done()
			for {
				c, err := q.Claim(ctx, node, lease, anyJob)
				if err != nil {
					t.Error(err)
					return
				}
				if c == nil {
					select {
					case <-wake:
					case <-stop:
						return
					}
					continue
				}
				if c.Job.Attempts == 1 && strings.HasSuffix(c.Job.ID, "7") {
					if err := c.Retry(ctx, "again", time.Nanosecond); err != nil {
						t.Error(err)
					}
					continue
				}
				if err := c.Finish(ctx, queue.EnvStatus{State: queue.StateRunning}); err != nil {
					t.Error(err)
				}
				mu.Lock()
				done[c.Job.ID]++
				if len(done) == jobs {
					close(finished)
				}
				mu.Unlock()
			}
		}()
	}
	for i := range jobs {
		work <- i
	}
	close(work)
	enqueuers.Wait()
	select {
	case <-finished:
	case <-ctx.Done():
		t.Fatalf("%d of %d done", len(done), jobs)
	}
	close(stop)
	claimersDone.Wait()
	for id, n := range done {
		if n != 1 {
			t.Errorf("%s was done %d times", id, n)
		}
	}
	states, _, err := q.Statuses(ctx)
	must(t, err)
	if len(states) != jobs {
		t.Fatalf("%d statuses", len(states))
	}
	for _, s := range states {
		if s.State != queue.StateRunning {
			t.Fatalf("%+v", s)
		}
	}
	for _, k := range keys(t, cli) {
		if strings.HasPrefix(k, "pending/") || strings.HasPrefix(k, "running/") || strings.HasPrefix(k, "claim/") {
			t.Errorf("left behind: %s", k)
		}
	}
}

// A node that is cut off for longer than lease and grace is fenced, and the job is done elsewhere.
func TestExpiredLeaseIsFenced(t *testing.T) {
	q, cli, _ := start(t, quick())
	ctx := ctxOf(t)
	// The first node's own connection hangs at a proxy we can cut.
	proxy := newProxy(t, cli.Endpoints()[0])
	first := queue.NewWith(proxy.client(t), prefix, quick())
	lease1 := register(t, first, "n1", time.Second)
	lease2 := register(t, q, "n2", 10*time.Second)

	must(t, q.Enqueue(ctx, createJob("e1")))
	c1 := claim(t, first, "n1", lease1)
	must(t, c1.Status(ctx, queue.EnvStatus{State: queue.StateCreating}))

	proxy.cut()
	eventually(t, "the reaper puts the job back", func() bool {
		requeued, dead, err := q.Reap(ctx, 5)
		must(t, err)
		if len(dead) > 0 {
			t.Fatal(dead)
		}
		return len(requeued) == 1
	})
	if s := wantState(t, q, "e1", queue.StateQueued); s.Node != "" || !strings.Contains(s.Reason, "n1") {
		t.Fatalf("%+v", s)
	}
	c2 := claim(t, q, "n2", lease2)
	if c2.Job.Attempts != 2 {
		t.Fatalf("%+v", c2.Job)
	}
	must(t, c2.Status(ctx, queue.EnvStatus{State: queue.StatePulling}))

	proxy.restore()
	select {
	case <-lease1.Regained():
	case <-ctx.Done():
		t.Fatal("the lease was not regained")
	}
	wantErr(t, c1.Status(ctx, queue.EnvStatus{State: queue.StateRunning}), queue.ErrFenced)
	wantErr(t, c1.Finish(ctx, queue.EnvStatus{State: queue.StateRunning}), queue.ErrFenced)
	wantErr(t, c1.Retry(ctx, "", 0), queue.ErrFenced)
	wantErr(t, first.PutStatus(ctx, "n1", queue.EnvStatus{ID: "e1", State: queue.StateRunning}), queue.ErrFenced)
	if claims, err := first.Reclaim(ctx, "n1", lease1); err != nil || len(claims) > 0 {
		t.Fatal(claims, err)
	}
	must(t, c2.Finish(ctx, queue.EnvStatus{State: queue.StateRunning}))
	wantErr(t, c1.Finish(ctx, queue.EnvStatus{State: queue.StateFailed}), queue.ErrFenced)
	if s := wantState(t, q, "e1", queue.StateRunning); s.Node != "n2" {
		t.Fatalf("%+v", s)
	}
	eventually(t, "n1 is announced again", func() bool {
		nodes, err := q.Nodes(ctx)
		must(t, err)
		return len(nodes) == 2
	})
}

// A lease that is lost and regained within the grace costs nothing: the work goes on under the same claim.
func TestLostLeaseHeals(t *testing.T) {
	onEach(t, func(t *testing.T, cli *clientv3.Client) {
		o := quick()
		o.Grace = time.Hour
		q := queue.NewWith(cli, prefix, o)
		ctx := ctxOf(t)
		lease := register(t, q, "n1", 3*time.Second)
		must(t, q.Enqueue(ctx, createJob("e1")))
		must(t, q.Enqueue(ctx, createJob("e2")))
		c, idle := claim(t, q, "n1", lease), claim(t, q, "n1", lease)

		loseLease(t, cli, "n1")
		for range 2 {
			if requeued, dead, err := q.Reap(ctx, 1); err != nil || requeued != nil || dead != nil {
				t.Fatal(requeued, dead, err) // marks it as lost, and waits
			}
		}
		must(t, c.Status(ctx, queue.EnvStatus{State: queue.StateCreating})) // waits for the new lease
		select {
		case <-lease.Regained():
		case <-ctx.Done():
			t.Fatal("not regained")
		}
		if all := keys(t, cli); !slices.Contains(all, "claim/e1") || !slices.Contains(all, "claim/e2") {
			t.Fatalf("claims are not back: %v", all)
		}
		if claims, err := q.Reclaim(ctx, "n1", lease); err != nil || len(claims) > 0 {
			t.Fatal("claims in work were handed out again", claims, err)
		}
		must(t, c.Finish(ctx, queue.EnvStatus{State: queue.StateRunning}))
		must(t, idle.Finish(ctx, queue.EnvStatus{State: queue.StateRunning}))
		must(t, lease.Update(ctx, queue.NodeInfo{Name: "n1", Instance: "i-n1", Environments: 2}))
		nodes, err := q.Nodes(ctx)
		must(t, err)
		if len(nodes) != 1 || nodes[0].Environments != 2 {
			t.Fatal(nodes)
		}
	})
}

// An agent that was killed and started again gets its jobs back at once, and its former self is fenced.
func TestRestartedAgentReclaims(t *testing.T) {
	o := quick()
	o.Grace = time.Hour
	q, _, _ := start(t, o)
	ctx := ctxOf(t)
	old := register(t, q, "n1", time.Hour) // still alive when the new one comes
	must(t, q.Enqueue(ctx, createJob("e1")))
	must(t, q.Enqueue(ctx, createJob("e2")))
	c1, c2 := claim(t, q, "n1", old), claim(t, q, "n1", old)
	must(t, c2.Finish(ctx, queue.EnvStatus{State: queue.StateRunning}))

	_, err := q.RegisterNode(ctx, queue.NodeInfo{Name: "n1", Instance: "another machine"}, time.Second)
	wantErr(t, err, queue.ErrNameTaken)

	// The former self must not fight back: stop its keepalive as kill -9 would, by leaving its lease alone.
	neu, err := q.RegisterNode(ctx, queue.NodeInfo{Name: "n1", Instance: "i-n1"}, time.Hour)
	must(t, err)
	claims, err := q.Reclaim(ctx, "n1", neu)
	must(t, err)
	if len(claims) != 1 || claims[0].Job.ID != "e1" || claims[0].Job.Attempts != 1 || claims[0].Job.Spec == nil {
		t.Fatalf("%+v", claims)
	}
	wantErr(t, c1.Finish(ctx, queue.EnvStatus{State: queue.StateRunning}), queue.ErrFenced)
	must(t, claims[0].Finish(ctx, queue.EnvStatus{State: queue.StateRunning}))
	must(t, neu.Close(ctx))
}

func TestReaperGivesUp(t *testing.T) {
	q, cli, _ := start(t, quick())
	ctx := ctxOf(t)
	lease := register(t, q, "n1", time.Hour)
	must(t, q.Enqueue(ctx, createJob("e1")))
	lose := func() {
		_, err := cli.Delete(ctx, prefix+"claim/", clientv3.WithPrefix())
		must(t, err)
	}
	reap := func(max int) (requeued, dead []string) {
		t.Helper()
		for i := range 2 { // the first sees it, the second acts
			var err error
			requeued, dead, err = q.Reap(ctx, max)
			must(t, err)
			if i == 0 && (requeued != nil || dead != nil) {
				t.Fatal("no grace")
			}
		}
		return
	}
	claim(t, q, "n1", lease)
	lose()
	if requeued, dead := reap(2); !slices.Equal(requeued, []string{"e1"}) || dead != nil {
		t.Fatal(requeued, dead)
	}
	second := claim(t, q, "n1", lease)
	lose()
	if requeued, dead := reap(2); requeued != nil || !slices.Equal(dead, []string{"e1"}) {
		t.Fatal(requeued, dead)
	}
	if s := wantState(t, q, "e1", queue.StateFailed); !strings.Contains(s.Reason, "2 attempts") || !strings.Contains(s.Reason, "n1") {
		t.Fatalf("%+v", s)
	}
	wantErr(t, second.Finish(ctx, queue.EnvStatus{State: queue.StateRunning}), queue.ErrFenced)
	wantErr(t, q.Enqueue(ctx, createJob("e1")), queue.ErrExists)
	if all := keys(t, cli); !slices.Contains(all, "dead/e1") {
		t.Fatal(all)
	}
	noClaim(t, q, "n1", lease)

	// Another life, from the first attempt on.
	must(t, q.EnqueueAgain(ctx, createJob("e1")))
	wantErr(t, q.EnqueueAgain(ctx, createJob("e1")), queue.ErrBusy)
	wantErr(t, q.EnqueueAgain(ctx, createJob("e7")), queue.ErrNotFound)
	wantState(t, q, "e1", queue.StateQueued)
	third := claim(t, q, "n1", lease)
	if third.Job.Attempts != 1 {
		t.Fatalf("%+v", third.Job)
	}
	must(t, third.Finish(ctx, queue.EnvStatus{State: queue.StateFailed, Reason: "no such image"}))
	must(t, q.EnqueueAgain(ctx, createJob("e1")))
	must(t, claim(t, q, "n1", lease).Finish(ctx, queue.EnvStatus{State: queue.StateRunning}))

	// A delete never dies because its node is away, and comes back to that node only.
	must(t, q.Enqueue(ctx, deleteJob("e1")))
	other := register(t, q, "n2", time.Hour)
	for range 4 {
		claim(t, q, "n1", lease)
		lose()
		if requeued, dead := reap(2); !slices.Equal(requeued, []string{"e1-delete"}) || dead != nil {
			t.Fatal(requeued, dead)
		}
		noClaim(t, q, "n2", other)
	}
	// But when its node itself gives up, people are told, and may ask again.
	d := claim(t, q, "n1", lease)
	must(t, d.Retry(ctx, "mount is busy", time.Nanosecond))
	must(t, d.Retry(ctx, "mount is busy", time.Nanosecond)) // an answer that never came
	if s := wantState(t, q, "e1", queue.StateFailed); s.Node != "n1" || !strings.Contains(s.Reason, "mount is busy") {
		t.Fatalf("%+v", s)
	}
	must(t, q.Enqueue(ctx, deleteJob("e1")))
	must(t, claim(t, q, "n1", lease).Finish(ctx, queue.EnvStatus{State: queue.StateDeleted}))
	must(t, q.Forget(ctx, "e1"))
}

// A delete is asked for while the create's node is just being lost: the create must not come to life elsewhere.
func TestDeleteOvertakesCreate(t *testing.T) {
	for _, how := range []string{"reaper", "retry", "pending"} {
		t.Run(how, func(t *testing.T) {
			q, cli, _ := start(t, quick())
			ctx := ctxOf(t)
			n1, n2 := register(t, q, "n1", time.Hour), register(t, q, "n2", time.Hour)
			must(t, q.Enqueue(ctx, createJob("e1")))
			c := claim(t, q, "n1", n1)
			if how != "pending" {
				must(t, q.Enqueue(ctx, deleteJob("e1")))
			}
			switch how {
			case "reaper":
				_, err := cli.Delete(ctx, prefix+"claim/e1")
				must(t, err)
				for range 2 {
					requeued, dead, err := q.Reap(ctx, 5)
					must(t, err)
					if requeued != nil || dead != nil {
						t.Fatal(requeued, dead)
					}
				}
			case "retry":
				must(t, c.Retry(ctx, "registry is away", time.Nanosecond))
			case "pending":
				// As if the delete's transaction had come just before the create was given back.
				must(t, c.Retry(ctx, "registry is away", time.Nanosecond))
				_, err := cli.Put(ctx, prefix+"job/e1-delete", `{"state":"pending","envId":"e1"}`)
				must(t, err)
			}
			noClaim(t, q, "n2", n2)
			wantState(t, q, "e1", queue.StateDeleted)
			if all := keys(t, cli); slices.ContainsFunc(all, func(k string) bool { return strings.HasPrefix(k, "pending/any/") }) {
				t.Fatal(all)
			}
			if how != "pending" {
				d := claim(t, q, "n1", n1)
				must(t, d.Finish(ctx, queue.EnvStatus{State: queue.StateDeleted}))
			}
		})
	}
}

func TestRegistry(t *testing.T) {
	onEach(t, func(t *testing.T, cli *clientv3.Client) {
		q := queue.NewWith(cli, prefix, quick())
		ctx := ctxOf(t)
		watching, stop := context.WithCancel(ctx)
		gateways, nodes := q.WatchGateways(watching), q.WatchNodes(watching)
		if g := <-gateways; len(g) != 0 {
			t.Fatal(g)
		}
		if n := <-nodes; len(n) != 0 {
			t.Fatal(n)
		}
		g, err := q.RegisterGateway(ctx, queue.GatewayInfo{ID: "g1", TunnelAddr: "127.0.0.1:1", CertSHA256: "ab"})
		must(t, err)
		if all := <-gateways; len(all) != 1 || all[0].CertSHA256 != "ab" {
			t.Fatal(all)
		}
		must(t, g.Update(ctx, queue.GatewayInfo{ID: "g1", TunnelAddr: "127.0.0.1:2", CertSHA256: "ab"}))
		if all := <-gateways; len(all) != 1 || all[0].TunnelAddr != "127.0.0.1:2" {
			t.Fatal(all)
		}
		must(t, g.Close(ctx))
		if all := <-gateways; len(all) != 0 {
			t.Fatal(all)
		}
		n := register(t, q, "n1", 3*time.Second)
		if all := <-nodes; len(all) != 1 || all[0].Name != "n1" {
			t.Fatal(all)
		}
		loseLease(t, cli, "n1")
		for all := range nodes { // away, and there again
			if len(all) == 1 {
				break
			}
		}
		eventually(t, "the lease lives", n.Alive)
		stop()
		for range gateways {
		}
		for range nodes {
		}

		var wg sync.WaitGroup
		tokens := make([]string, 8)
		for i := range tokens {
			wg.Add(1)
			go func() {
				defer wg.Done()
				token, err := q.TunnelToken(ctx)
				if err != nil || len(token) != 32 {
					t.Error(token, err)
				}
				tokens[i] = string(token)
			}()
		}
		wg.Wait()
		if slices.Sort(tokens); tokens[0] != tokens[7] {
			t.Fatal("different tokens")
		}
	})
}
