package queue

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// PutStatus writes a state by the node that has the environment, after its create was finished: ErrFenced when
// env/<id> names another node or says deleted, ErrNotFound when there is none. Neither is a reason to delete anything
// that runs; see Reclaim for what is.
func (q *Queue) PutStatus(ctx context.Context, node string, s EnvStatus) error {
	key := q.key("env", s.ID)
	s.Node = node
	for {
		cur, kv, err := q.status(ctx, s.ID)
		switch {
		case err != nil:
		case cur.Node != node || cur.State == StateDeleted && s.State != StateDeleted:
			err = ErrFenced
		default:
			var resp *clientv3.TxnResponse
			resp, err = q.cli.Txn(ctx).If(unchanged(key, kv)).Then(q.putEnv(s)).Commit()
			if err == nil && !resp.Succeeded {
				continue
			}
		}
		if err != nil {
			return fmt.Errorf("write state of environment %s: %w", s.ID, err)
		}
		return nil
	}
}

// Status is one environment's state, or ErrNotFound.
func (q *Queue) Status(ctx context.Context, envID string) (EnvStatus, error) {
	s, _, err := q.status(ctx, envID)
	if err != nil {
		return EnvStatus{}, fmt.Errorf("read state of environment %s: %w", envID, err)
	}
	return s, nil
}

func (q *Queue) status(ctx context.Context, envID string) (s EnvStatus, kv *mvccpb.KeyValue, err error) {
	kvs, err := q.read(ctx, q.key("env", envID))
	if err != nil {
		return s, nil, err
	}
	found, err := decode(kvs[0], &s)
	if err == nil && !found {
		err = ErrNotFound
	}
	if err != nil {
		return s, nil, err
	}
	s.Rev = kvs[0].ModRevision
	return s, kvs[0], nil
}

// list decodes all values below one of the queue's prefixes; more may add what the value does not hold.
func list[T any](ctx context.Context, q *Queue, what string, more func(*T, *mvccpb.KeyValue)) ([]T, int64, error) {
	resp, err := q.cli.Get(ctx, q.key(what, ""), clientv3.WithPrefix())
	if err != nil {
		return nil, 0, fmt.Errorf("list %s: %w", what, err)
	}
	all := make([]T, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		var v T
		if _, err := decode(kv, &v); err != nil {
			q.o.Log.Error("a value is skipped", "error", err)
			continue
		}
		if more != nil {
			more(&v, kv)
		}
		all = append(all, v)
	}
	return all, resp.Header.Revision, nil
}

// watchAll sends all values below one of the queue's prefixes whenever one changes.
func watchAll[T any](ctx context.Context, q *Queue, what string) <-chan []T {
	ch := make(chan []T, 1)
	values := map[string]T{}
	go func() {
		defer close(ch)
		dirty := true // even an empty list is worth telling once
		q.follow(ctx, q.key(what, ""), 0, follower{
			change: func(kv *mvccpb.KeyValue, deleted bool) {
				dirty = true
				delete(values, string(kv.Key))
				if deleted {
					return
				}
				var v T
				if _, err := decode(kv, &v); err != nil {
					q.o.Log.Error("a value is skipped", "error", err)
					return
				}
				values[string(kv.Key)] = v
			},
			settled: func(bool) {
				if !dirty {
					return
				}
				dirty = false
				all := make([]T, 0, len(values))
				for _, key := range slices.Sorted(maps.Keys(values)) {
					all = append(all, values[key])
				}
				select {
				case <-ch: // an older list that nobody took
				default:
				}
				ch <- all
			},
		})
	}()
	return ch
}
