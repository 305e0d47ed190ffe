package queue

import (
	"context"
	"maps"
	"math/rand/v2"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// follower sees the keys below a prefix.
type follower struct {
	// change is told of each put and each deletion (of which only Key and ModRevision are set).
	change func(kv *mvccpb.KeyValue, deleted bool)
	// settled is told after each listing (listed) and each batch of changes.
	settled func(listed bool)
}

// follow tells f of every key below prefix (every change after rev, when that is not 0) until ctx ends. It lists, then
// watches from there; when the watch breaks, is too late for etcd's compaction, or has run for Options.Poll, it lists
// again and tells only what differs. The last state of each key is always told, states between may be left out.
func (q *Queue) follow(ctx context.Context, prefix string, rev int64, f follower) {
	known := map[string]int64{} // key → revision of its last told change
	since := rev
	tell := func(kv *mvccpb.KeyValue, deleted bool) {
		key := string(kv.Key)
		if kv.ModRevision <= max(known[key], since) {
			if !deleted {
				known[key] = kv.ModRevision // the caller had it from its own listing
			}
			return
		}
		if deleted {
			delete(known, key)
		} else {
			known[key] = kv.ModRevision
		}
		f.change(kv, deleted)
	}
	for wait := time.Duration(0); ctx.Err() == nil; {
		if rev == 0 {
			resp, err := q.cli.Get(ctx, prefix, clientv3.WithPrefix())
			if err != nil {
				wait = min(max(2*wait, 100*time.Millisecond), 5*time.Second)
				if ctx.Err() == nil {
					q.o.Log.Warn("list for watching failed; trying again", "prefix", prefix, "error", err)
				}
				pause(ctx, wait)
				continue
			}
			rev = resp.Header.Revision
			gone := maps.Clone(known)
			for _, kv := range resp.Kvs {
				delete(gone, string(kv.Key))
				tell(kv, false)
			}
			for key := range gone {
				tell(&mvccpb.KeyValue{Key: []byte(key), ModRevision: rev}, true)
			}
			f.settled(true)
		}
		wait = 0
		started := time.Now()
		watching, cancel := context.WithTimeout(ctx, q.o.Poll+rand.N(q.o.Poll/4+1))
		for resp := range q.cli.Watch(clientv3.WithRequireLeader(watching), prefix, clientv3.WithPrefix(), clientv3.WithRev(rev+1)) {
			if resp.Err() != nil {
				break
			}
			for _, ev := range resp.Events {
				tell(ev.Kv, ev.Type == clientv3.EventTypeDelete)
			}
			f.settled(false)
		}
		cancel()
		rev = 0
		if time.Since(started) < time.Second {
			pause(ctx, 100*time.Millisecond+rand.N(200*time.Millisecond))
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// Watch wakes its reader at first, when a job came or its time has come, and now and then. Wakes that nobody
// received are one. The channel is closed when ctx ends.
func (q *Queue) Watch(ctx context.Context) <-chan struct{} {
	ch := make(chan struct{}, 1)
	wake := make(chan struct{}, 1)
	nudge := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	go func() {
		defer close(ch)
		for {
			select {
			case <-wake:
				select {
				case ch <- struct{}{}:
				default:
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	came := false
	go q.follow(ctx, q.key("pending", ""), 0, follower{
		change: func(kv *mvccpb.KeyValue, deleted bool) {
			var j Job
			if deleted { // claimed, or cancelled: nothing to wake for
				return
			}
			came = true
			if _, err := decode(kv, &j); err == nil && j.NotBefore.After(time.Now()) {
				time.AfterFunc(time.Until(j.NotBefore), nudge)
			}
		},
		settled: func(listed bool) {
			if came || listed {
				nudge()
			}
			came = false
		},
	})
	return ch
}

// Statuses lists all environments and the revision to watch from.
func (q *Queue) Statuses(ctx context.Context) ([]EnvStatus, int64, error) {
	return list[EnvStatus](ctx, q, "env", func(s *EnvStatus, kv *mvccpb.KeyValue) { s.Rev = kv.ModRevision })
}

// WatchStatuses tells every environment's changes after rev (Statuses' one; 0: all there are first). Changes that
// follow each other closely may be told as one, the last state never is left out. The channel is closed when ctx ends;
// a reader that is slow delays its own events only.
func (q *Queue) WatchStatuses(ctx context.Context, rev int64) <-chan StatusEvent {
	ch := make(chan StatusEvent, 64)
	prefix := q.key("env", "")
	go func() {
		defer close(ch)
		q.follow(ctx, prefix, rev, follower{
			change: func(kv *mvccpb.KeyValue, deleted bool) {
				ev := StatusEvent{Forgotten: deleted}
				if !deleted {
					if _, err := decode(kv, &ev.Status); err != nil {
						q.o.Log.Error("an environment's state is skipped", "error", err)
						return
					}
				}
				ev.Status.ID = strings.TrimPrefix(string(kv.Key), prefix)
				ev.Status.Rev = kv.ModRevision
				select {
				case ch <- ev:
				case <-ctx.Done():
				}
			},
			settled: func(bool) {},
		})
	}()
	return ch
}

// Nodes lists the living nodes, by name.
func (q *Queue) Nodes(ctx context.Context) ([]NodeInfo, error) {
	nodes, _, err := list[NodeInfo](ctx, q, "nodes", nil)
	return nodes, err
}

// WatchNodes sends the living nodes at first and after each change, by name. Lists that nobody received are replaced by
// newer ones. The channel is closed when ctx ends.
func (q *Queue) WatchNodes(ctx context.Context) <-chan []NodeInfo {
	return watchAll[NodeInfo](ctx, q, "nodes")
}

// WatchGateways sends the living gateways as WatchNodes does nodes, by id.
func (q *Queue) WatchGateways(ctx context.Context) <-chan []GatewayInfo {
	return watchAll[GatewayInfo](ctx, q, "gateways")
}
