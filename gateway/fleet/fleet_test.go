package fleet

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/learnos/learnos/gateway/catalogue"
	"github.com/learnos/learnos/gateway/problem"
	"github.com/learnos/learnos/gateway/store"
	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/queue/queuetest"
)

// bare is a fleet whose loops don't run, on a real etcd and a real database.
func bare(t *testing.T) (*Fleet, store.User) {
	t.Helper()
	s, err := store.Open(context.Background(), "sqlite", filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	u := store.User{Username: "ada", PasswordHash: "x"}
	if err := s.CreateUser(context.Background(), &u); err != nil {
		t.Fatal(err)
	}
	return New(Options{Store: s, Queue: queue.New(queuetest.Start(t).Client(), "/t/"), Log: slog.Default(), Changed: func(int64, string) {},
		Policy: Policy{MaxEnvironments: 3, DefaultLifetime: time.Hour, MaxLifetime: 2 * time.Hour}}), u
}

// running creates an environment and lets a node that is then gone run it.
func running(t *testing.T, f *Fleet, u store.User) store.Environment {
	t.Helper()
	ctx := context.Background()
	image := catalogue.Defaults()
	image.Name, image.Source = "busybox", "busybox"
	e, err := f.Create(ctx, u, image, "")
	if err != nil {
		t.Fatal(err)
	}
	lease, err := f.Queue.RegisterNode(ctx, queue.NodeInfo{Name: "n1", Instance: "n1"}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	claim, err := f.Queue.Claim(ctx, "n1", lease, func(queue.Job) bool { return true })
	if err != nil || claim == nil {
		t.Fatal(claim, err)
	}
	if err := claim.Finish(ctx, queue.EnvStatus{State: queue.StateRunning}); err != nil {
		t.Fatal(err)
	}
	if err := lease.Close(ctx); err != nil {
		t.Fatal(err)
	}
	st, err := f.Queue.Status(ctx, e.ID)
	if err != nil {
		t.Fatal(err)
	}
	f.hear(st, atOnce)
	if err := f.ledger.flush(ctx); err != nil {
		t.Fatal(err)
	}
	if e, err = f.Store.Environment(ctx, e.ID); err != nil || e.State != queue.StateRunning || e.Node != "n1" {
		t.Fatal(e, err)
	}
	return e
}

func deleteJobs(t *testing.T, f *Fleet, env string) int {
	t.Helper()
	if _, err := f.Queue.Position(context.Background(), queue.DeleteID(env)); err != nil {
		return 0
	}
	return 1
}

func TestANodeThatStaysAwayGivesThePlaceBack(t *testing.T) {
	f, u := bare(t)
	ctx := context.Background()
	e := running(t, f, u)
	e, err := f.Delete(ctx, e.ID, false, false)
	if err != nil || e.State != queue.StateStopping || deleteJobs(t, f, e.ID) != 1 {
		t.Fatal(e.State, err)
	}
	f.emptyOutbox(ctx)
	if e, _ = f.Store.Environment(ctx, e.ID); e.State != queue.StateStopping {
		t.Fatal("given up at once: ", e.State)
	}
	f.now = func() time.Time { return time.Now().Add(awayGrace + time.Second) }
	f.emptyOutbox(ctx)
	if e, _ = f.Store.Environment(ctx, e.ID); e.State != queue.StateDeleted || deleteJobs(t, f, e.ID) != 1 {
		t.Fatal("the place is not given back, or the node will not be told: ", e.State)
	}
}

func TestWhatOutlivedItsRowIsDeleted(t *testing.T) {
	f, u := bare(t)
	ctx := context.Background()
	e := running(t, f, u)
	// The row ends without etcd's knowing, as after a restored database or a forced delete while etcd is away.
	if _, _, err := f.Store.ChangeEnvironment(ctx, e.ID, time.Now(), func(e *store.Environment) (bool, string, error) {
		e.State = queue.StateDeleted
		return true, "", nil
	}); err != nil {
		t.Fatal(err)
	}
	f.sweep(ctx)
	if deleteJobs(t, f, e.ID) != 1 {
		t.Fatal("nobody deletes it")
	}
	if e, _ = f.Store.Environment(ctx, e.ID); e.State != queue.StateDeleted {
		t.Fatal(e.State)
	}
}

func TestSweepForgetsWhatHasEnded(t *testing.T) {
	f, u := bare(t)
	ctx := context.Background()
	image := catalogue.Defaults()
	image.Name, image.Source = "busybox", "busybox"
	e, err := f.Create(ctx, u, image, "")
	if err != nil {
		t.Fatal(err)
	}
	if e, err = f.Delete(ctx, e.ID, false, false); err != nil || e.State != queue.StateDeleted {
		t.Fatal(e.State, err)
	}
	f.sweep(ctx)
	if _, err := f.Queue.Status(ctx, e.ID); err != nil {
		t.Fatal("forgotten too early: ", err)
	}
	f.now = func() time.Time { return time.Now().Add(keepStatus + time.Second) }
	f.sweep(ctx)
	if _, err := f.Queue.Status(ctx, e.ID); err == nil {
		t.Fatal("etcd remembers it for ever")
	}
}

func TestAYoungerEtcdIsHeard(t *testing.T) {
	f, u := bare(t)
	ctx := context.Background()
	e := running(t, f, u)
	if _, _, err := f.Store.ChangeEnvironment(ctx, e.ID, time.Now(), func(e *store.Environment) (bool, string, error) {
		e.StatusRev = 1 << 40
		return true, "", nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := f.Queue.PutStatus(ctx, "n1", queue.EnvStatus{ID: e.ID, State: queue.StateOverstep, Reason: "traffic"}); err != nil {
		t.Fatal(err)
	}
	f.sweep(ctx)
	if e, _ = f.Store.Environment(ctx, e.ID); e.State != queue.StateOverstep || e.Reason != "traffic" {
		t.Fatal(e.State)
	}
}

// A full etcd answers every question and takes nothing. What was accepted before anybody knew waits, nothing new is accepted,
// and all goes on when there is room again.
func TestAFullEtcdAcceptsNothing(t *testing.T) {
	f, u := bare(t)
	ctx := context.Background()
	etcd := queuetest.Start(t)
	f.Queue = queue.New(etcd.Client(), "/t/")
	alarm := pb.NewMaintenanceClient(etcd.Client().ActiveConnection())
	if _, err := alarm.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE}); err != nil {
		t.Fatal(err)
	}
	image := store.Image{Name: "busybox"}
	first, err := f.Create(ctx, u, image, "")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // and it does not forget
		var p *problem.Problem
		if _, err := f.Create(ctx, u, image, ""); !errors.As(err, &p) || p.Code != "queue_unavailable" || f.Healthy() {
			t.Fatal("accepted, or refused otherwise:", err)
		}
	}
	if _, err := etcd.Client().AlarmDisarm(ctx, &clientv3.AlarmMember{Alarm: pb.AlarmType_NOSPACE}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Create(ctx, u, image, ""); err != nil {
		t.Fatal(err)
	}
	f.emptyOutbox(ctx)
	if st, err := f.Queue.Status(ctx, first.ID); err != nil || st.State != queue.StateQueued {
		t.Fatal(st, err)
	}
}
