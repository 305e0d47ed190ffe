package queue_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/learnos/learnos/internal/embedetcd"
	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/queue/queuetest"
)

// BenchmarkLife is an environment's whole life in the queue: enqueue, claim, two states, finish, delete, forget.
func BenchmarkLife(b *testing.B) {
	run := func(b *testing.B, q *queue.Queue) {
		ctx := b.Context()
		lease, err := q.RegisterNode(ctx, queue.NodeInfo{Name: "n1"}, time.Minute)
		must(b, err)
		defer lease.Close(ctx)
		for i := 0; b.Loop(); i++ {
			id := fmt.Sprintf("e%09d", i)
			must(b, q.Enqueue(ctx, createJob(id)))
			c := claim(b, q, "n1", lease)
			must(b, c.Status(ctx, queue.EnvStatus{State: queue.StatePulling}))
			must(b, c.Status(ctx, queue.EnvStatus{State: queue.StateCreating}))
			must(b, c.Finish(ctx, queue.EnvStatus{State: queue.StateRunning}))
			must(b, q.Enqueue(ctx, deleteJob(id)))
			must(b, claim(b, q, "n1", lease).Finish(ctx, queue.EnvStatus{State: queue.StateDeleted}))
			must(b, q.Forget(ctx, id))
		}
	}
	b.Run("debian", func(b *testing.B) {
		run(b, queue.New(queuetest.Start(b).Client(), prefix))
	})
	b.Run("embedded", func(b *testing.B) {
		s, err := embedetcd.Start(b.Context(), b.TempDir())
		must(b, err)
		defer s.Close()
		cli, err := queue.Dial(s.Config())
		must(b, err)
		defer cli.Close()
		run(b, queue.New(cli, prefix))
	})
	b.Run("inside", func(b *testing.B) {
		s, err := embedetcd.Start(b.Context(), b.TempDir())
		must(b, err)
		defer s.Close()
		cli := s.Client()
		defer cli.Close()
		run(b, queue.New(cli, prefix))
	})
}
