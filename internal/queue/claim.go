package queue

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/learnos/learnos/internal/reason"
)

// page is how many pending jobs a Claim looks at in one request.
const page = 64

// laneOf cuts priority, time and id off a pending key.
func laneOf(key string) string {
	cut := strings.LastIndexByte(key, '/')
	return key[:strings.LastIndexByte(key[:cut], '/')+1]
}

// Claim is a job taken by a node. Its methods may be called from any goroutine, and are repeated safely when their
// outcome is unknown (a timeout, etcd away).
//
// When the node's lease was lost and had again, a claim that nobody else took goes on by itself. So ErrFenced means
// that the job is somebody else's for good: stop, and tear down whatever was made for it.
type Claim struct {
	Job Job // Attempts includes this one
	// Told is the state that was written with the claim itself (ClaimTelling); "" for none, or none that is known.
	Told string

	q     *Queue
	lease *Lease
	node  string
	nonce string

	mu  sync.Mutex
	rev int64 // create revision of claim/<id>: the fence
}

// Claim takes the first pending job that fits, jobs bound to this node before all others; nil, nil when none does.
// fits is asked in the order of the queue and must be quick; deletes free room and should always fit.
// ErrLeaseLost: try again when the lease was regained.
func (q *Queue) Claim(ctx context.Context, node string, lease *Lease, fits func(Job) bool) (*Claim, error) {
	return q.ClaimTelling(ctx, node, lease, fits, nil)
}

// ClaimTelling is Claim, and writes in the same transaction what state a create's environment is in from then on, as Status
// would in one more. begins is asked for that state; "" leaves it as it is.
func (q *Queue) ClaimTelling(ctx context.Context, node string, lease *Lease, fits func(Job) bool, begins func(Job) string) (*Claim, error) {
	if _, err := lease.current(); err != nil {
		return nil, err
	}
	if c, err := lease.doubtful(ctx); c != nil || err != nil {
		return c, err
	}
	for _, lane := range []string{q.lane(node), q.lane("")} {
		c, err := q.claimFrom(ctx, lane, node, lease, fits, begins)
		if c != nil || err != nil {
			return c, err
		}
	}
	return nil, nil
}

func (q *Queue) claimFrom(ctx context.Context, lane, node string, lease *Lease, fits func(Job) bool, begins func(Job) string) (*Claim, error) {
	end := clientv3.GetPrefixRangeEnd(lane)
	from, beaten := lane, false
	for rounds := 0; rounds < 10; {
		resp, err := q.cli.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page))
		if err != nil {
			return nil, fmt.Errorf("list pending jobs: %w", err)
		}
		now := time.Now()
		for _, kv := range resp.Kvs {
			var j Job
			if _, err := decode(kv, &j); err != nil {
				q.o.Log.Error("a pending job is skipped", "error", err)
				continue
			}
			if j.NotBefore.After(now) || !fits(j) {
				continue
			}
			c, err := q.tryClaim(ctx, kv, j, node, lease, begins)
			if err != nil {
				return nil, fmt.Errorf("claim job %s: %w", j.ID, err)
			}
			if c != nil {
				return c, nil
			}
			beaten = true
		}
		switch {
		case resp.More:
			from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
		case beaten:
			// Others took what we saw, or it changed: what is left may be new.
			from, beaten = lane, false
			rounds++
		default:
			return nil, nil
		}
	}
	return nil, nil // each loss is a change that wakes Watch
}

// tryClaim returns nil, nil when somebody else was first.
func (q *Queue) tryClaim(ctx context.Context, kv *mvccpb.KeyValue, j Job, node string, lease *Lease, begins func(Job) string) (*Claim, error) {
	id, err := lease.current()
	if err != nil {
		return nil, err
	}
	j.Attempts++
	j.NotBefore = time.Time{}
	c := &Claim{Job: j, q: q, lease: lease, node: node, nonce: random(12)}
	doomKey := q.key("job", DeleteID(j.EnvID))
	cmps := []clientv3.Cmp{unchanged(string(kv.Key), kv), absent(c.claimKey()), absent(c.runningKey())}
	if j.Kind == KindCreate {
		cmps = append(cmps, absent(doomKey))
	}
	ops := []clientv3.Op{
		clientv3.OpDelete(string(kv.Key)),
		put(c.runningKey(), running{Job: j, Node: node, Nonce: c.nonce}),
		clientv3.OpPut(c.claimKey(), c.nonce, clientv3.WithLease(id)),
		q.putMark(&j, markRunning, c.nonce),
	}
	if begins != nil && j.Kind == KindCreate && j.Spec != nil {
		if c.Told = begins(j); c.Told != "" {
			ops = append(ops, q.putEnv(c.status(EnvStatus{State: c.Told, Deadline: j.Spec.Deadline})))
		}
	}
	resp, err := q.cli.Txn(ctx).If(cmps...).Then(ops...).Else(clientv3.OpGet(string(kv.Key)), clientv3.OpGet(doomKey)).Commit()
	switch {
	case err != nil && isLeaseGone(err):
		return nil, ErrLeaseLost
	case err != nil:
		lease.doubt(c)
		return nil, err
	case resp.Succeeded:
		c.rev = resp.Header.Revision
		lease.hold(c)
		return c, nil
	}
	still, doom := first(resp.Responses[0].GetResponseRange().Kvs), first(resp.Responses[1].GetResponseRange().Kvs)
	if still != nil && still.ModRevision == kv.ModRevision && doom != nil && j.Kind == KindCreate {
		_, err = q.cli.Txn(ctx).If(unchanged(string(kv.Key), kv)).
			Then(q.cancelOps(&j, mark{Key: string(kv.Key)}, reasonDoomed)...).Commit()
	}
	return nil, err
}

var reasonDoomed = reason.Say(reason.BeforeRun)

func (c *Claim) claimKey() string   { return c.q.key("claim", c.Job.ID) }
func (c *Claim) runningKey() string { return c.q.key("running", c.Job.ID) }

func (c *Claim) revision() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rev
}

func (c *Claim) setRevision(rev int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rev = rev
}

// errMoved: the claim's own earlier end of the job is found to be done.
var errMoved = errors.New("job has ended by this claim")

// write commits ops if the claim still stands and the extra comparisons hold; held is false when only those fail.
func (c *Claim) write(ctx context.Context, extra []clientv3.Cmp, ops ...clientv3.Op) (held bool, err error) {
	for {
		fence := clientv3.Compare(clientv3.CreateRevision(c.claimKey()), "=", c.revision())
		resp, err := c.q.cli.Txn(ctx).If(append([]clientv3.Cmp{fence}, extra...)...).Then(ops...).
			Else(clientv3.OpGet(c.claimKey(), clientv3.WithKeysOnly())).Commit()
		if err != nil {
			return false, err
		}
		if resp.Succeeded {
			return true, nil
		}
		kv := first(resp.Responses[0].GetResponseRange().Kvs)
		if kv != nil && kv.CreateRevision == c.revision() {
			return false, nil
		}
		if err := c.restore(ctx); err != nil {
			return false, err
		}
	}
}

// restore makes the claim stand under the current lease, if nobody else took the job meanwhile.
func (c *Claim) restore(ctx context.Context) error {
	for {
		kvs, err := c.q.read(ctx, c.claimKey(), c.runningKey(), c.q.key("job", c.Job.ID))
		if err != nil {
			return err
		}
		var run running
		var m mark
		if _, err := decode(kvs[1], &run); err != nil {
			return err
		}
		if _, err := decode(kvs[2], &m); err != nil {
			return err
		}
		claim := kvs[0]
		switch {
		case m.Nonce == c.nonce && m.State != markRunning:
			return errMoved
		case run.Nonce != c.nonce || claim != nil && string(claim.Value) != c.nonce:
			c.lease.drop(c)
			return ErrFenced
		}
		id, err := c.lease.wait(ctx)
		if err != nil {
			return err
		}
		if claim != nil && clientv3.LeaseID(claim.Lease) == id {
			c.setRevision(claim.CreateRevision)
			return nil
		}
		if claim != nil {
			// It hangs on an older lease of ours that will run out. A key can't move and get a new create
			// revision in one transaction.
			if _, err := c.q.cli.Txn(ctx).If(unchanged(c.claimKey(), claim)).Then(clientv3.OpDelete(c.claimKey())).Commit(); err != nil {
				return err
			}
			continue
		}
		run.LostAt = time.Time{}
		resp, err := c.q.cli.Txn(ctx).
			If(absent(c.claimKey()), unchanged(c.runningKey(), kvs[1])).
			Then(clientv3.OpPut(c.claimKey(), c.nonce, clientv3.WithLease(id)), put(c.runningKey(), run)).Commit()
		if err != nil && !isLeaseGone(err) {
			return err
		}
		if err == nil && resp.Succeeded {
			c.setRevision(resp.Header.Revision)
			return nil
		}
	}
}

// status fills in what the queue knows better than the caller.
func (c *Claim) status(s EnvStatus) EnvStatus {
	s.ID, s.Node = c.Job.EnvID, c.node
	return s
}

// Status writes the environment's state while the job goes on; ID and Node are filled in.
func (c *Claim) Status(ctx context.Context, s EnvStatus) error {
	if _, err := c.write(ctx, nil, c.q.putEnv(c.status(s))); err != nil {
		if err == errMoved {
			err = ErrFenced
		}
		return fmt.Errorf("write state of environment %s: %w", c.Job.EnvID, err)
	}
	return nil
}

// Finish writes the environment's state and ends the job, in one transaction: running or failed for a create,
// deleted for a delete.
func (c *Claim) Finish(ctx context.Context, final EnvStatus) error {
	_, err := c.write(ctx, nil,
		clientv3.OpDelete(c.claimKey()), clientv3.OpDelete(c.runningKey()),
		c.q.putMark(&c.Job, markDone, c.nonce), c.q.putEnv(c.status(final)))
	return c.ended("finish", err)
}

func (c *Claim) ended(what string, err error) error {
	if err == nil || err == errMoved {
		c.lease.drop(c)
		return nil
	}
	return fmt.Errorf("%s job %s: %w", what, c.Job.ID, err)
}

// Retry gives the job back for another attempt after backoff (0: the queue's own), here or elsewhere; reason is for
// people. After Options.MaxAttempts claims the job is dead instead and the environment failed for that reason.
// What was made so far must be gone before.
func (c *Claim) Retry(ctx context.Context, reason string, backoff time.Duration) error {
	dead := c.Job.Attempts >= c.q.o.MaxAttempts
	for {
		doomKey := c.q.key("job", DeleteID(c.Job.EnvID))
		kvs, err := c.q.read(ctx, doomKey)
		if err != nil {
			return c.ended("give back", err)
		}
		ops := append(c.q.giveBack(c.Job, c.nonce, reason, backoff, dead, kvs[0] != nil), clientv3.OpDelete(c.claimKey()))
		held, err := c.write(ctx, []clientv3.Cmp{unchanged(doomKey, kvs[0])}, ops...)
		if held || err != nil {
			return c.ended("give back", err)
		}
	}
}

// giveBack is how a running job leaves that state unfinished: to pending, to dead, or, when a create's environment is
// to be deleted anyway, to done.
func (q *Queue) giveBack(j Job, nonce, why string, backoff time.Duration, dead, doomed bool) []clientv3.Op {
	if backoff <= 0 {
		backoff = q.backoff(j.Attempts)
	}
	j.Reason = why
	j.NotBefore = time.Now().Add(backoff).UTC()
	ops := []clientv3.Op{clientv3.OpDelete(q.key("running", j.ID))}
	switch {
	case doomed && j.Kind == KindCreate:
		return append(ops, q.putMark(&j, markDone, nonce),
			q.putEnv(EnvStatus{ID: j.EnvID, State: StateDeleted, Reason: reasonDoomed}))
	case dead:
		s := EnvStatus{ID: j.EnvID, State: StateFailed, Reason: reason.Say(reason.GivenUp, j.Attempts, why)}
		if j.Kind == KindDelete {
			s.Node = j.Node // it is still there, for another delete to find
			s.Reason = reason.Say(reason.NotDeleted, j.Attempts, why)
		}
		return append(ops, put(q.key("dead", j.ID), j), q.putMark(&j, markDead, nonce), q.putEnv(s))
	case j.Kind == KindCreate:
		ops = append(ops, q.putEnv(EnvStatus{ID: j.EnvID, State: StateQueued, Reason: why, Deadline: j.Spec.Deadline}))
	}
	return append(ops, q.putPending(&j), q.putMark(&j, markPending, nonce))
}

// backoff doubles with each attempt.
func (q *Queue) backoff(attempts int) time.Duration {
	const longest = 5 * time.Minute
	d := q.o.Backoff
	for ; attempts > 1 && d < longest; attempts-- {
		d *= 2
	}
	return min(d, longest)
}

// Reclaim takes back, after the agent's restart, the unfinished jobs that this node had claimed before, and which
// nobody else was given meanwhile. A node calls it once after RegisterNode and before its first Claim. What it
// finds half-made on its disk and is neither among these nor its own according to env/<id> must be torn down.
func (q *Queue) Reclaim(ctx context.Context, node string, lease *Lease) ([]*Claim, error) {
	resp, err := q.cli.Get(ctx, q.key("running", ""), clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("list running jobs: %w", err)
	}
	var claims []*Claim
	for _, kv := range resp.Kvs {
		var run running
		if _, err := decode(kv, &run); err != nil {
			q.o.Log.Error("a running job is skipped", "error", err)
			continue
		}
		if run.Node != node || lease.holds(run.Nonce) {
			continue
		}
		c, err := q.reclaim(ctx, kv, run, node, lease)
		if err != nil {
			return claims, fmt.Errorf("take job %s back: %w", run.Job.ID, err)
		}
		if c != nil {
			claims = append(claims, c)
		}
	}
	return claims, nil
}

func (q *Queue) reclaim(ctx context.Context, kv *mvccpb.KeyValue, run running, node string, lease *Lease) (*Claim, error) {
	c := &Claim{Job: run.Job, q: q, lease: lease, node: node, nonce: random(12)}
	run.Nonce, run.LostAt = c.nonce, time.Time{} // whoever still has the old one is fenced
	for {
		id, err := lease.wait(ctx)
		if err != nil {
			return nil, err
		}
		resp, err := q.cli.Txn(ctx).If(absent(c.claimKey()), unchanged(c.runningKey(), kv)).Then(
			clientv3.OpPut(c.claimKey(), c.nonce, clientv3.WithLease(id)),
			put(c.runningKey(), run), q.putMark(&run.Job, markRunning, c.nonce),
		).Else(clientv3.OpGet(c.claimKey()), clientv3.OpGet(c.runningKey())).Commit()
		switch {
		case err != nil && isLeaseGone(err):
			continue
		case err != nil:
			lease.doubt(c)
			return nil, err
		case resp.Succeeded:
			c.rev = resp.Header.Revision
			lease.hold(c)
			return c, nil
		}
		claim, now := first(resp.Responses[0].GetResponseRange().Kvs), first(resp.Responses[1].GetResponseRange().Kvs)
		var changed running
		if _, err := decode(now, &changed); err != nil {
			return nil, err
		}
		switch {
		case now == nil || changed.Node != node:
			return nil, nil // given to somebody else, or ended
		case claim != nil:
			// A claim of this node's own, from before, that its old lease still holds up.
			if _, err := q.cli.Txn(ctx).If(unchanged(c.claimKey(), claim)).Then(clientv3.OpDelete(c.claimKey())).Commit(); err != nil {
				return nil, err
			}
		}
		kv = now // the reaper has marked it as lost meanwhile
	}
}
