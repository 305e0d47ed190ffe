package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Enqueue accepts a job exactly once: ErrExists when its id is taken already, which a caller that repeats itself
// takes for success.
//
// A create also gets the status queued. A delete needs no Node and is no more than a wish until it finds where the
// environment is: a create that is still pending is cancelled instead, an environment that is on no node becomes
// deleted at once, and otherwise the job is bound to the node that has it. A delete that came to nothing before is
// tried again, one of an environment that is deleted already does nothing.
//
// ErrFull: etcd takes nothing more.
func (q *Queue) Enqueue(ctx context.Context, j Job) error { return full(q.enqueue(ctx, j)) }

func (q *Queue) enqueue(ctx context.Context, j Job) error {
	if j.EnqueuedAt.IsZero() {
		j.EnqueuedAt = time.Now().UTC()
	}
	if err := j.check(); err != nil {
		return err
	}
	if b, err := json.Marshal(j); err != nil || len(b) > maxJob {
		return fmt.Errorf("enqueue job %s: %d bytes, the limit is %d", j.ID, len(b), maxJob)
	}
	if j.Kind == KindDelete {
		return q.enqueueDelete(ctx, j)
	}
	resp, err := q.cli.Txn(ctx).If(absent(q.key("job", j.ID))).Then(
		q.putPending(&j), q.putMark(&j, markPending, ""),
		q.putEnv(EnvStatus{ID: j.EnvID, State: StateQueued, Deadline: j.Spec.Deadline}),
	).Commit()
	if err != nil {
		return fmt.Errorf("enqueue job %s: %w", j.ID, err)
	}
	if !resp.Succeeded {
		return fmt.Errorf("enqueue job %s: %w", j.ID, ErrExists)
	}
	return nil
}

// envKeys is all that etcd holds of an environment, at one revision.
type envKeys struct {
	createKV, deleteKV, runningKV, envKV *mvccpb.KeyValue

	create, delete mark // marks of its two jobs; State is "" when there is none
	run            running
	env            EnvStatus
}

func (q *Queue) readEnv(ctx context.Context, envID string) (*envKeys, error) {
	kvs, err := q.read(ctx, q.key("job", envID), q.key("job", DeleteID(envID)), q.key("running", envID), q.key("env", envID))
	if err != nil {
		return nil, err
	}
	e := &envKeys{createKV: kvs[0], deleteKV: kvs[1], runningKV: kvs[2], envKV: kvs[3]}
	for i, v := range []any{&e.create, &e.delete, &e.run, &e.env} {
		if _, err := decode(kvs[i], v); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// same compares all four keys with what was read.
func (q *Queue) same(envID string, e *envKeys) []clientv3.Cmp {
	return []clientv3.Cmp{
		unchanged(q.key("job", envID), e.createKV),
		unchanged(q.key("job", DeleteID(envID)), e.deleteKV),
		unchanged(q.key("running", envID), e.runningKV),
		unchanged(q.key("env", envID), e.envKV),
	}
}

func (q *Queue) enqueueDelete(ctx context.Context, j Job) error {
	for {
		e, err := q.readEnv(ctx, j.EnvID)
		if err != nil {
			return fmt.Errorf("enqueue job %s: %w", j.ID, err)
		}
		switch {
		case e.delete.State == markPending || e.delete.State == markRunning, e.delete.State == markDone && e.env.State == StateDeleted:
			return fmt.Errorf("enqueue job %s: %w", j.ID, ErrExists)
		case e.env.State == StateDeleted && e.idle():
			return nil
		}
		ops := []clientv3.Op{clientv3.OpDelete(q.key("dead", j.ID))}
		owner := j.Node
		if e.env.Node != "" {
			owner = e.env.Node
		}
		if e.create.State == markRunning && e.run.Node != "" {
			owner = e.run.Node
		}
		switch {
		case e.create.State == markPending:
			ops = append(ops, q.cancelOps(&Job{ID: j.EnvID, EnvID: j.EnvID, Kind: KindCreate}, e.create, j.Reason)...)
		case owner == "":
			ops = append(ops, q.putMark(&j, markDone, ""), q.putEnv(EnvStatus{ID: j.EnvID, State: StateDeleted, Reason: j.Reason}))
		default:
			bound := j
			bound.Node = owner
			ops = append(ops, q.putPending(&bound), q.putMark(&bound, markPending, ""))
		}
		resp, err := q.cli.Txn(ctx).If(q.same(j.EnvID, e)...).Then(ops...).Commit()
		if err != nil {
			return fmt.Errorf("enqueue job %s: %w", j.ID, err)
		}
		if resp.Succeeded {
			return nil
		}
	}
}

// cancelOps ends a pending job that nobody will do.
func (q *Queue) cancelOps(j *Job, m mark, reason string) []clientv3.Op {
	if j.Kind == KindDelete {
		return []clientv3.Op{clientv3.OpDelete(m.Key), clientv3.OpDelete(q.key("job", j.ID))}
	}
	return []clientv3.Op{clientv3.OpDelete(m.Key), q.putMark(j, markDone, ""),
		q.putEnv(EnvStatus{ID: j.EnvID, State: StateDeleted, Reason: reason})}
}

// Cancel ends a job that is still pending and tells whether it was. A cancelled create's status is deleted; its id
// stays taken, so that nobody enqueues it again by mistake.
func (q *Queue) Cancel(ctx context.Context, jobID string) (bool, error) {
	for {
		kvs, err := q.read(ctx, q.key("job", jobID))
		if err != nil {
			return false, fmt.Errorf("cancel job %s: %w", jobID, err)
		}
		var m mark
		if _, err := decode(kvs[0], &m); err != nil {
			return false, fmt.Errorf("cancel job %s: %w", jobID, err)
		}
		if m.State != markPending {
			return false, nil
		}
		j := Job{ID: jobID, EnvID: m.EnvID, Kind: KindCreate}
		if jobID != m.EnvID {
			j.Kind = KindDelete
		}
		resp, err := q.cli.Txn(ctx).If(unchanged(q.key("job", jobID), kvs[0])).
			Then(q.cancelOps(&j, m, "cancelled while it was queued")...).Commit()
		if err != nil {
			return false, fmt.Errorf("cancel job %s: %w", jobID, err)
		}
		if resp.Succeeded {
			return true, nil
		}
	}
}

// Room finds out whether etcd takes anything: ErrFull when it does not. It costs a write.
func (q *Queue) Room(ctx context.Context) error {
	if _, err := q.cli.Put(ctx, q.key("room"), ""); err != nil {
		return full(fmt.Errorf("write to etcd: %w", err))
	}
	return nil
}

// full tells ErrFull from other errors.
func full(err error) error {
	if errors.Is(err, rpctypes.ErrNoSpace) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// EnqueueAgain gives a create whose environment has ended (a failed one, say) another life under the same id, from
// its first attempt on. ErrBusy when the environment has not ended, ErrNotFound when etcd never heard of it or has
// forgotten it (Enqueue does then).
func (q *Queue) EnqueueAgain(ctx context.Context, j Job) error { return full(q.enqueueAgain(ctx, j)) }

func (q *Queue) enqueueAgain(ctx context.Context, j Job) error {
	j.EnqueuedAt = time.Now().UTC()
	j.Attempts, j.NotBefore = 0, time.Time{}
	if err := j.check(); err != nil {
		return err
	}
	if j.Kind != KindCreate {
		return fmt.Errorf("enqueue job %s again: only creates have another life", j.ID)
	}
	for {
		e, err := q.readEnv(ctx, j.EnvID)
		if err != nil {
			return fmt.Errorf("enqueue job %s again: %w", j.ID, err)
		}
		if e.create.State == "" && e.envKV == nil {
			return fmt.Errorf("enqueue job %s again: %w", j.ID, ErrNotFound)
		}
		if !e.idle() {
			return fmt.Errorf("enqueue job %s again: %w", j.ID, ErrBusy)
		}
		resp, err := q.cli.Txn(ctx).If(q.same(j.EnvID, e)...).Then(
			q.putPending(&j), q.putMark(&j, markPending, ""),
			clientv3.OpDelete(q.key("dead", j.ID)),
			clientv3.OpDelete(q.key("dead", DeleteID(j.EnvID))),
			clientv3.OpDelete(q.key("job", DeleteID(j.EnvID))),
			q.putEnv(EnvStatus{ID: j.EnvID, State: StateQueued, Deadline: j.Spec.Deadline}),
		).Commit()
		if err != nil {
			return fmt.Errorf("enqueue job %s again: %w", j.ID, err)
		}
		if resp.Succeeded {
			return nil
		}
	}
}

// idle tells whether an environment has ended and no job of it is under way.
func (e *envKeys) idle() bool {
	for _, m := range []mark{e.create, e.delete} {
		if m.State == markPending || m.State == markRunning {
			return false
		}
	}
	return e.envKV == nil || Terminal(e.env.State)
}

// Forget removes all that etcd knows of an environment that has ended, and frees its ids. Gateways call it when the
// end is in their history. ErrBusy when it has not ended or a job of it is under way; nothing known is no error.
func (q *Queue) Forget(ctx context.Context, envID string) error {
	for {
		e, err := q.readEnv(ctx, envID)
		if err != nil {
			return fmt.Errorf("forget environment %s: %w", envID, err)
		}
		if !e.idle() {
			return fmt.Errorf("forget environment %s: %w", envID, ErrBusy)
		}
		resp, err := q.cli.Txn(ctx).If(q.same(envID, e)...).Then(
			clientv3.OpDelete(q.key("env", envID)),
			clientv3.OpDelete(q.key("job", envID)),
			clientv3.OpDelete(q.key("job", DeleteID(envID))),
			clientv3.OpDelete(q.key("dead", envID)),
			clientv3.OpDelete(q.key("dead", DeleteID(envID))),
		).Commit()
		if err != nil {
			return fmt.Errorf("forget environment %s: %w", envID, err)
		}
		if resp.Succeeded {
			return nil
		}
	}
}

// Position is how many jobs are before a pending one, 0 for the next; ErrNotFound when it is not pending.
func (q *Queue) Position(ctx context.Context, jobID string) (int, error) {
	kvs, err := q.read(ctx, q.key("job", jobID))
	if err != nil {
		return 0, fmt.Errorf("find place of job %s: %w", jobID, err)
	}
	var m mark
	if _, err := decode(kvs[0], &m); err != nil {
		return 0, fmt.Errorf("find place of job %s: %w", jobID, err)
	}
	if m.State != markPending {
		return 0, fmt.Errorf("find place of job %s: %w", jobID, ErrNotFound)
	}
	lane := laneOf(m.Key)
	resp, err := q.cli.Get(ctx, lane, clientv3.WithRange(m.Key), clientv3.WithCountOnly())
	if err != nil {
		return 0, fmt.Errorf("find place of job %s: %w", jobID, err)
	}
	return int(resp.Count), nil
}
