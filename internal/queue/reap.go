package queue

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/learnos/learnos/internal/reason"
)

// Reap looks once at the running jobs without a claim. One that is new to it is marked as lost; one whose grace is over
// is put back with a backoff, or, being a create with maxAttempts claims (0: Options.MaxAttempts), put to dead and its
// environment failed with the reason. A delete never dies by its node's absence: nobody else could do it. Any number
// of gateways may reap at once. The ids are those of jobs.
func (q *Queue) Reap(ctx context.Context, maxAttempts int) (requeued, dead []string, err error) {
	if maxAttempts <= 0 {
		maxAttempts = q.o.MaxAttempts
	}
	claims := q.key("claim", "")
	resp, err := q.cli.Txn(ctx).Then(
		clientv3.OpGet(q.key("running", ""), clientv3.WithPrefix()),
		clientv3.OpGet(claims, clientv3.WithPrefix(), clientv3.WithKeysOnly()),
	).Commit()
	if err != nil {
		return nil, nil, fmt.Errorf("list running jobs: %w", err)
	}
	claimed := map[string]bool{}
	for _, kv := range resp.Responses[1].GetResponseRange().Kvs {
		claimed[strings.TrimPrefix(string(kv.Key), claims)] = true
	}
	var errs []error
	for _, kv := range resp.Responses[0].GetResponseRange().Kvs {
		var run running
		if _, err := decode(kv, &run); err != nil {
			errs = append(errs, err)
			continue
		}
		if claimed[run.Job.ID] {
			continue
		}
		outcome, err := q.reapOne(ctx, kv, run, maxAttempts)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("reap job %s: %w", run.Job.ID, err))
		case outcome == markDead:
			dead = append(dead, run.Job.ID)
		case outcome == markPending:
			requeued = append(requeued, run.Job.ID)
		}
	}
	return requeued, dead, errors.Join(errs...)
}

// reapOne returns where it put the job: pending, dead, or "" for nowhere yet.
func (q *Queue) reapOne(ctx context.Context, kv *mvccpb.KeyValue, run running, maxAttempts int) (string, error) {
	j := run.Job
	cmps := []clientv3.Cmp{absent(q.key("claim", j.ID)), unchanged(string(kv.Key), kv)}
	if run.LostAt.IsZero() {
		run.LostAt = time.Now().UTC()
		_, err := q.cli.Txn(ctx).If(cmps...).Then(put(string(kv.Key), run)).Commit()
		return "", err
	}
	if time.Since(run.LostAt) < q.o.Grace {
		return "", nil
	}
	doomKey := q.key("job", DeleteID(j.EnvID))
	kvs, err := q.read(ctx, doomKey)
	if err != nil {
		return "", err
	}
	outcome, doomed := markPending, kvs[0] != nil && j.Kind == KindCreate
	why := reason.Say(reason.NodeLost, run.Node)
	if j.Kind == KindCreate && j.Attempts >= maxAttempts && !doomed {
		outcome = markDead
	}
	if doomed {
		outcome = markDone
	}
	cmps = append(cmps, unchanged(doomKey, kvs[0]))
	resp, err := q.cli.Txn(ctx).If(cmps...).Then(q.giveBack(j, "", why, 0, outcome == markDead, doomed)...).Commit()
	if err != nil || !resp.Succeeded {
		return "", err // its node came back, another reaper was first, or a delete came: next time
	}
	return outcome, nil
}

// RunReaper reaps, and forgets the ids of jobs that are long done, until ctx ends. Every gateway runs one.
func (q *Queue) RunReaper(ctx context.Context) {
	const pruneEvery = 10 * time.Minute
	nextPrune := time.Now()
	for ctx.Err() == nil {
		pause(ctx, q.o.ReapEvery/2+rand.N(q.o.ReapEvery))
		requeued, dead, err := q.Reap(ctx, q.o.MaxAttempts)
		if len(requeued) > 0 || len(dead) > 0 {
			q.o.Log.Warn("lost jobs", "requeued", requeued, "dead", dead)
		}
		if err == nil && time.Now().After(nextPrune) {
			nextPrune = time.Now().Add(pruneEvery)
			err = q.prune(ctx)
		}
		if err != nil && ctx.Err() == nil {
			q.o.Log.Error("reaping failed; trying again", "error", err)
		}
	}
}

// prune frees the ids of jobs that were done before DoneWindow and whose environment is forgotten.
func (q *Queue) prune(ctx context.Context) error {
	prefix := q.key("job", "")
	resp, err := q.cli.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("list done jobs: %w", err)
	}
	for _, kv := range resp.Kvs {
		var m mark
		if _, err := decode(kv, &m); err != nil || m.State != markDone || time.Since(m.At) < q.o.DoneWindow {
			continue
		}
		if _, err := q.cli.Txn(ctx).If(unchanged(string(kv.Key), kv), absent(q.key("env", m.EnvID))).
			Then(clientv3.OpDelete(string(kv.Key))).Commit(); err != nil {
			return fmt.Errorf("free the id of a done job: %w", err)
		}
	}
	return nil
}
