package queue_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/learnos/learnos/internal/queue"
)

// TestKilledEtcd kills etcd with -9 again and again while jobs are enqueued, claimed, given back and finished, and starts
// it again. Every job must be done once. There is no reaper: a claim whose answer was lost must be found
// by the node that made it.
func TestKilledEtcd(t *testing.T) {
	q, cli, etcd := start(t, quick())
	ctx := ctxOf(t)
	const jobs, claimers, kills = 150, 4, 4
	// try repeats what has an unknown outcome, as gateways and nodes do.
	try := func(what string, f func(context.Context) error) {
		for ctx.Err() == nil {
			attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
			err := f(attempt)
			cancel()
			if err == nil {
				return
			}
			if errors.Is(err, queue.ErrFenced) || errors.Is(err, queue.ErrNotFound) || errors.Is(err, queue.ErrBusy) {
				t.Errorf("%s: %v", what, err)
				return
			}
		}
		t.Errorf("%s: never", what)
	}

	var mu sync.Mutex
	done := map[string]int{}
	progress := make(chan int, jobs+1)
	var workers sync.WaitGroup
	workers.Add(1)
	go func() {
		defer workers.Done()
		for i := range jobs {
			j := createJob(fmt.Sprintf("e%04d", i))
			try("enqueue", func(ctx context.Context) error {
				if err := q.Enqueue(ctx, j); !errors.Is(err, queue.ErrExists) {
					return err
				}
				return nil
			})
		}
	}()
	stop, halt := context.WithCancel(ctx)
	for n := range claimers {
		node := fmt.Sprintf("n%d", n)
		lease := register(t, q, node, 20*time.Second)
		workers.Add(1)
		go func() {
			defer workers.Done()
			wake := q.Watch(stop)
			for stop.Err() == nil {
				attempt, cancel := context.WithTimeout(stop, 2*time.Second)
				c, err := q.Claim(attempt, node, lease, anyJob)
				cancel()
				if err != nil {
					continue
				}
				if c == nil {
					<-wake
					continue
				}
				try("status", func(ctx context.Context) error { return c.Status(ctx, queue.EnvStatus{State: queue.StateCreating}) })
				if c.Job.Attempts == 1 && c.Job.ID[4] == '3' {
					try("retry", func(ctx context.Context) error { return c.Retry(ctx, "again", time.Nanosecond) })
					continue
				}
				try("finish", func(ctx context.Context) error { return c.Finish(ctx, queue.EnvStatus{State: queue.StateRunning}) })
				mu.Lock()
				done[c.Job.ID]++
				progress <- len(done)
				mu.Unlock()
			}
		}()
	}
	killed := 0
	for n := range progress {
		if n >= (killed+1)*jobs/(kills+1) && killed < kills {
			killed++
			etcd.Kill()
			etcd.Restart()
		}
		if n == jobs || ctx.Err() != nil {
			break
		}
	}
	halt()
	workers.Wait()
	if killed != kills {
		t.Fatalf("killed %d times", killed)
	}
	for id, n := range done {
		if n != 1 {
			t.Errorf("%s was done %d times", id, n)
		}
	}
	for _, what := range []string{"pending/", "running/", "claim/", "dead/"} {
		resp, err := cli.Get(ctx, prefix+what, clientv3.WithPrefix())
		must(t, err)
		if resp.Count != 0 {
			t.Errorf("%d keys left in %s: %s", resp.Count, what, resp.Kvs[0].Key)
		}
	}
}

// The answer to a claim is lost, though it was done: the next Claim returns it.
func TestLostAnswerOfClaim(t *testing.T) {
	plain, cli, _ := start(t, quick())
	ctx := ctxOf(t)
	proxy := newProxy(t, cli.Endpoints()[0])
	q := queue.NewWith(proxy.client(t), prefix, quick())
	lease := register(t, q, "n1", time.Hour)
	must(t, plain.Enqueue(ctx, createJob("e1")))
	must(t, plain.Enqueue(ctx, createJob("e2")))

	attempt, cancel := context.WithCancel(ctx)
	_, err := q.Claim(attempt, "n1", lease, func(queue.Job) bool {
		proxy.cutAnswers()
		go func() { // when etcd has done it, the node gives up waiting
			defer cancel()
			eventually(t, "the claim is in etcd", func() bool {
				resp, err := cli.Get(ctx, prefix+"claim/e1")
				return err == nil && resp.Count == 1
			})
		}()
		return true
	})
	if err == nil {
		t.Fatal("the answer was not lost")
	}
	proxy.restore()
	c := claim(t, q, "n1", lease)
	if c.Job.ID != "e1" || c.Job.Attempts != 1 {
		t.Fatalf("%+v", c.Job)
	}
	must(t, c.Finish(ctx, queue.EnvStatus{State: queue.StateRunning}))
	if c := claim(t, q, "n1", lease); c.Job.ID != "e2" {
		t.Fatalf("%+v", c.Job)
	}
}

// A frozen etcd (a stuck leader) loses the leases of all its nodes in their own eyes; when it thaws all goes on.
func TestFrozenEtcd(t *testing.T) {
	q, _, etcd := start(t, quick())
	ctx := ctxOf(t)
	lease := register(t, q, "n1", time.Second)
	must(t, q.Enqueue(ctx, createJob("e1")))
	c := claim(t, q, "n1", lease)
	etcd.Pause()
	eventually(t, "the node notices", func() bool { return !lease.Alive() })
	_, err := q.Claim(ctx, "n1", lease, anyJob)
	wantErr(t, err, queue.ErrLeaseLost)
	wantErr(t, lease.Update(ctx, queue.NodeInfo{Name: "n1", Instance: "i-n1", Environments: 7}), queue.ErrLeaseLost)
	etcd.Resume()
	must(t, c.Finish(ctx, queue.EnvStatus{State: queue.StateRunning}))
	eventually(t, "the node is announced with its newest words", func() bool {
		nodes, err := q.Nodes(ctx)
		return err == nil && len(nodes) == 1 && nodes[0].Environments == 7
	})
}

// Watchers that etcd's compaction has overtaken list again and miss no last state.
func TestCompactionDuringWatch(t *testing.T) {
	plain, cli, _ := start(t, quick())
	ctx := ctxOf(t)
	put := func(id, state string) int64 {
		t.Helper()
		resp, err := cli.Put(ctx, prefix+"env/"+id, fmt.Sprintf(`{"id":%q,"node":"n1","state":%q}`, id, state))
		must(t, err)
		return resp.Header.Revision
	}
	put("known", queue.StateRunning)
	states, rev, err := plain.Statuses(ctx)
	must(t, err)
	if len(states) != 1 || states[0].ID != "known" {
		t.Fatal(states)
	}
	put("e1", queue.StatePulling)
	put("e2", queue.StatePulling)
	last := put("e1", queue.StateRunning)
	_, err = cli.Compact(ctx, last)
	must(t, err)

	// From a revision that is compacted away.
	watching, stop := context.WithCancel(ctx)
	defer stop()
	events := plain.WatchStatuses(watching, rev)
	got := map[string]string{}
	for len(got) < 2 || got["e1"] != queue.StateRunning {
		ev := <-events
		if ev.Status.ID == "known" {
			t.Fatal("told again what the caller had")
		}
		got[ev.Status.ID] = ev.Status.State
	}
	if want := map[string]string{"e1": queue.StateRunning, "e2": queue.StatePulling}; !maps.Equal(got, want) {
		t.Fatal(got)
	}

	// While the watcher is cut off: the server compacts what it has not seen.
	proxy := newProxy(t, cli.Endpoints()[0])
	o := quick()
	o.Poll = time.Second
	far := queue.NewWith(proxy.client(t), prefix, o)
	farEvents := far.WatchStatuses(watching, 0)
	wake := far.Watch(watching)
	<-wake
	for range 3 {
		<-farEvents
	}
	proxy.cut()
	put("e3", queue.StateQueued)
	_, err = cli.Delete(ctx, prefix+"env/e2")
	must(t, err)
	must(t, plain.Enqueue(ctx, createJob("e4")))
	for i := range 50 {
		last = put("e1", fmt.Sprintf("s%d", i))
	}
	_, err = cli.Compact(ctx, last)
	must(t, err)
	proxy.restore()
	seen := map[string]string{}
	forgotten := false
	for seen["e1"] != "s49" || seen["e3"] != queue.StateQueued || seen["e4"] != queue.StateQueued || !forgotten {
		ev, ok := <-farEvents
		if !ok {
			t.Fatal(seen, forgotten)
		}
		if ev.Forgotten {
			forgotten = ev.Status.ID == "e2"
			continue
		}
		if ev.Status.Rev == 0 {
			t.Fatal("no revision")
		}
		seen[ev.Status.ID] = ev.Status.State
	}
	<-wake

	// And the job's time coming wakes, too.
	j := createJob("e5")
	j.NotBefore = time.Now().Add(300 * time.Millisecond)
	must(t, plain.Enqueue(ctx, j))
	lease := register(t, plain, "n1", time.Hour)
	must(t, claim(t, plain, "n1", lease).Finish(ctx, queue.EnvStatus{State: queue.StateRunning})) // e4
	for {
		c, err := plain.Claim(ctx, "n1", lease, anyJob)
		must(t, err)
		if c != nil {
			if c.Job.ID != "e5" || time.Now().Before(j.NotBefore) {
				t.Fatalf("%+v", c.Job)
			}
			break
		}
		<-wake
	}
	stop()
	for range events {
	}
	for range farEvents {
	}
	for range wake {
	}
}

func TestRunReaper(t *testing.T) {
	o := quick()
	o.ReapEvery = 20 * time.Millisecond
	o.DoneWindow = time.Nanosecond
	q, cli, _ := start(t, o)
	ctx := ctxOf(t)
	lease := register(t, q, "n1", time.Hour)
	must(t, q.Enqueue(ctx, createJob("e0")))
	must(t, claim(t, q, "n1", lease).Finish(ctx, queue.EnvStatus{State: queue.StateFailed}))
	_, err := cli.Delete(ctx, prefix+"env/e0")
	must(t, err)
	must(t, q.Enqueue(ctx, createJob("e1")))
	claim(t, q, "n1", lease)
	_, err = cli.Delete(ctx, prefix+"claim/e1")
	must(t, err)

	running, stop := context.WithCancel(ctx)
	var reapers sync.WaitGroup
	for range 3 { // three gateways
		reapers.Add(1)
		go func() { defer reapers.Done(); q.RunReaper(running) }()
	}
	eventually(t, "the job is back", func() bool { _, err := q.Position(ctx, "e1"); return err == nil })
	eventually(t, "the id of the done one is free", func() bool {
		resp, err := cli.Get(ctx, prefix+"job/e0")
		must(t, err)
		return resp.Count == 0
	})
	stop()
	reapers.Wait()
	if c := claim(t, q, "n1", lease); c.Job.ID != "e1" || c.Job.Attempts != 2 {
		t.Fatalf("%+v", c.Job)
	}
}
