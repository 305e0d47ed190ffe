package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/learnos/learnos/gateway/store"
	"github.com/learnos/learnos/internal/queue"
)

// rows makes a fleet without a queue and n environments that wait.
func rows(t *testing.T, n int) (f *Fleet, told *[]string) {
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
	for i := range n {
		e := store.Environment{ID: fmt.Sprint("e", i), UserID: u.ID, State: queue.StateQueued}
		if err := s.CreateEnvironment(context.Background(), &e, n); err != nil {
			t.Fatal(err)
		}
	}
	told = new([]string)
	return New(Options{Store: s, Log: slog.New(slog.DiscardHandler), Changed: func(_ int64, env string) { *told = append(*told, env) }}), told
}

func states(t *testing.T, f *Fleet, id string) []string {
	t.Helper()
	list, err := f.Store.History(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, h := range list {
		all = append(all, h.State)
	}
	return all
}

// Statuses that are written together leave the same history as one by one, and each environment is told of once.
func TestStatusesWrittenTogether(t *testing.T) {
	f, told := rows(t, 3)
	rev := int64(10)
	for _, state := range []string{queue.StateQueued, queue.StateCreating, queue.StateRunning} {
		for i := range 3 {
			rev++
			f.hear(queue.EnvStatus{ID: fmt.Sprint("e", i), State: state, Node: "n1", Rev: rev}, progress)
			f.hear(queue.EnvStatus{ID: fmt.Sprint("e", i), State: queue.StatePulling, Rev: rev - 9}, progress) // an old word
		}
		f.hear(queue.EnvStatus{ID: "a stranger's", State: state, Rev: rev}, progress)
	}
	n, err := f.ledger.write(context.Background())
	if n != 21 || err != nil {
		t.Fatal(n, err)
	}
	for i := range 3 {
		id := fmt.Sprint("e", i)
		e, err := f.Store.Environment(context.Background(), id)
		if err != nil || e.State != queue.StateRunning || e.Node != "n1" || !e.Enqueued || e.StatusRev != rev-2+int64(i) || e.StartedAt == 0 {
			t.Errorf("%+v, %v", e, err)
		}
		if got := states(t, f, id); !slices.Equal(got, []string{"queued", "creating", "running"}) {
			t.Errorf("history %v", got)
		}
	}
	if slices.Sort(*told); !slices.Equal(*told, []string{"e0", "e1", "e2"}) {
		t.Errorf("told of %v", *told)
	}
}

// What waits is written when the first of it is due, and takes along what is not.
func TestWhatIsDueTakesTheRestAlong(t *testing.T) {
	f, _ := rows(t, 2)
	f.hear(queue.EnvStatus{ID: "e0", State: queue.StateCreating, Rev: 1}, time.Hour)
	if wait := f.ledger.idle(); wait < time.Minute {
		t.Fatal(wait)
	}
	f.hear(queue.EnvStatus{ID: "e1", State: queue.StateRunning, Rev: 2}, atOnce)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go f.ledger.run(ctx)
	for {
		if b, _ := f.Store.Environment(ctx, "e1"); b.State == queue.StateRunning {
			if a, _ := f.Store.Environment(ctx, "e0"); a.State != queue.StateCreating {
				t.Error("written without it:", a.State)
			}
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// While the database refuses, everything waits in its order.
func TestNothingIsLostWhileTheDatabaseRefuses(t *testing.T) {
	f, told := rows(t, 1)
	ctx := context.Background()
	refused, stop := context.WithCancel(ctx)
	stop()
	f.hear(queue.EnvStatus{ID: "e0", State: queue.StateCreating, Rev: 1}, atOnce)
	if err := f.ledger.flush(refused); err == nil {
		t.Fatal("written under a context that has ended")
	}
	f.hear(queue.EnvStatus{ID: "e0", State: queue.StateRunning, Rev: 2}, atOnce)
	if err := f.ledger.flush(ctx); err != nil {
		t.Fatal(err)
	}
	if got := states(t, f, "e0"); !slices.Equal(got, []string{"queued", "creating", "running"}) || len(*told) != 1 {
		t.Error(got, *told)
	}
}
