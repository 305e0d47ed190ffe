package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// gatewayTTL is how long a silent gateway stays announced.
const gatewayTTL = 15 * time.Second

// Lease keeps a node or a gateway announced, and a node's claims alive, until Close. When etcd was away for longer
// than its TTL the lease is lost, and had anew as soon as etcd is back: then the announcement is made again, claims
// that nobody took are taken back, and Regained receives.
type Lease struct {
	q        *Queue
	key      string
	instance string
	ttl      time.Duration
	cancel   context.CancelFunc
	done     chan struct{}
	regained chan struct{}

	mu      sync.Mutex
	id      clientv3.LeaseID // 0 while lost
	changed chan struct{}    // closed at every change of id
	value   []byte
	held    map[*Claim]struct{}
	doubts  []*Claim // whose transaction had no answer
}

func isLeaseGone(err error) bool { return errors.Is(err, rpctypes.ErrLeaseNotFound) }

// RegisterNode announces a node under a lease of ttl (at least a second), which also bears its claims. A node that
// was restarted takes over from itself at once, and its old claims end there: see Reclaim. ErrNameTaken when a
// living node with another Instance has the name. ctx bounds the registration only.
func (q *Queue) RegisterNode(ctx context.Context, info NodeInfo, ttl time.Duration) (*Lease, error) {
	if err := CheckNodeName(info.Name); err != nil {
		return nil, err
	}
	l, err := q.register(ctx, q.key("nodes", info.Name), info.Instance, info, ttl)
	if err != nil {
		return nil, fmt.Errorf("register node %s: %w", info.Name, err)
	}
	return l, nil
}

// RegisterGateway announces a gateway. ctx bounds the registration only.
func (q *Queue) RegisterGateway(ctx context.Context, info GatewayInfo) (*Lease, error) {
	if !idForm.MatchString(info.ID) {
		return nil, fmt.Errorf("register gateway %q: ids are 1 to 80 of a-z, 0-9 and \"-\"", info.ID)
	}
	l, err := q.register(ctx, q.key("gateways", info.ID), "", info, gatewayTTL)
	if err != nil {
		return nil, fmt.Errorf("register gateway %s: %w", info.ID, err)
	}
	return l, nil
}

func (q *Queue) register(ctx context.Context, key, instance string, info any, ttl time.Duration) (*Lease, error) {
	value, err := json.Marshal(info)
	if err != nil {
		return nil, err
	}
	l := &Lease{q: q, key: key, instance: instance, ttl: max(ttl, time.Second), value: value,
		done: make(chan struct{}), regained: make(chan struct{}, 1), changed: make(chan struct{}), held: map[*Claim]struct{}{}}
	id, err := l.announce(ctx)
	if err != nil {
		return nil, err
	}
	l.set(id)
	run, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	go l.run(run, id)
	return l, nil
}

// announce gets a new lease and puts the key under it.
func (l *Lease) announce(ctx context.Context) (clientv3.LeaseID, error) {
	granted, err := l.q.cli.Grant(ctx, int64((l.ttl+time.Second-1)/time.Second))
	if err != nil {
		return 0, err
	}
	if err := l.announceAs(ctx, granted.ID); err != nil {
		l.revoke(granted.ID)
		return 0, err
	}
	return granted.ID, nil
}

func (l *Lease) announceAs(ctx context.Context, id clientv3.LeaseID) error {
	for {
		kvs, err := l.q.read(ctx, l.key)
		if err != nil {
			return err
		}
		var other struct{ Instance string }
		if _, err := decode(kvs[0], &other); err != nil {
			return err
		}
		if other.Instance != "" && l.instance != "" && other.Instance != l.instance {
			return fmt.Errorf("%w; give this one another name ([node] name)", ErrNameTaken)
		}
		l.mu.Lock()
		value := string(l.value)
		l.mu.Unlock()
		resp, err := l.q.cli.Txn(ctx).If(unchanged(l.key, kvs[0])).
			Then(clientv3.OpPut(l.key, value, clientv3.WithLease(id))).Commit()
		if err != nil {
			return err
		}
		if !resp.Succeeded {
			continue
		}
		if kvs[0] != nil && kvs[0].Lease != 0 && clientv3.LeaseID(kvs[0].Lease) != id {
			l.revoke(clientv3.LeaseID(kvs[0].Lease)) // our own from before
		}
		return nil
	}
}

// revoke ends a lease; one that can't be ends by itself.
func (l *Lease) revoke(id clientv3.LeaseID) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	_, _ = l.q.cli.Revoke(ctx, id)
}

func (l *Lease) set(id clientv3.LeaseID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.id = id
	close(l.changed)
	l.changed = make(chan struct{})
}

// run keeps the lease alive and gets another one when it is lost.
func (l *Lease) run(ctx context.Context, id clientv3.LeaseID) {
	defer close(l.done)
	for {
		// The channel ends when the lease is gone, or when nothing was heard for as long as it lives.
		if alive, err := l.q.cli.KeepAlive(ctx, id); err == nil {
			for range alive {
			}
		}
		if ctx.Err() != nil {
			return
		}
		l.set(0)
		l.q.o.Log.Warn("lease was lost", "key", l.key)
		var ok bool
		if id, ok = l.regain(ctx, id); !ok {
			return
		}
	}
}

func (l *Lease) regain(ctx context.Context, old clientv3.LeaseID) (clientv3.LeaseID, bool) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		id, err := l.announce(attempt)
		cancel()
		if err == nil {
			l.revoke(old) // it may live on at the server; its claims must not
			l.set(id)
			l.q.o.Log.Info("lease was regained", "key", l.key)
			l.restoreClaims(ctx)
			select {
			case l.regained <- struct{}{}:
			default:
			}
			return id, true
		}
		if ctx.Err() != nil {
			return 0, false
		}
		l.q.o.Log.Warn("lease could not be regained; trying again", "key", l.key, "error", err)
		select {
		case <-time.After(wait/2 + rand.N(wait)): // spread out: all nodes lose theirs together
		case <-ctx.Done():
			return 0, false
		}
	}
}

// restoreClaims puts the claims in work under the new lease, before their grace ends. What fails is tried again by
// the claim's own next write.
func (l *Lease) restoreClaims(ctx context.Context) {
	l.mu.Lock()
	held := slices.Collect(maps.Keys(l.held))
	l.mu.Unlock()
	for _, c := range held {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		if err := c.restore(attempt); err != nil {
			l.q.o.Log.Warn("claim could not be taken back", "job", c.Job.ID, "error", err)
		}
		cancel()
	}
}

// current is the lease's id, or ErrLeaseLost.
func (l *Lease) current() (clientv3.LeaseID, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.id == 0 {
		return 0, ErrLeaseLost
	}
	return l.id, nil
}

// wait is current, but waits for a lost lease to be regained.
func (l *Lease) wait(ctx context.Context) (clientv3.LeaseID, error) {
	for {
		l.mu.Lock()
		id, changed := l.id, l.changed
		l.mu.Unlock()
		if id != 0 {
			return id, nil
		}
		select {
		case <-changed:
		case <-l.done:
			return 0, ErrLeaseLost
		case <-ctx.Done():
			return 0, fmt.Errorf("%w: %w", ErrLeaseLost, ctx.Err())
		}
	}
}

func (l *Lease) hold(c *Claim) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held[c] = struct{}{}
}

func (l *Lease) drop(c *Claim) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, c)
}

func (l *Lease) holds(nonce string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.held {
		if c.nonce == nonce {
			return true
		}
	}
	return false
}

func (l *Lease) doubt(c *Claim) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.doubts = append(l.doubts, c)
}

// doubtful finds out about claims whose transaction had no answer, and returns one that was done after all.
func (l *Lease) doubtful(ctx context.Context) (*Claim, error) {
	for {
		l.mu.Lock()
		if len(l.doubts) == 0 {
			l.mu.Unlock()
			return nil, nil
		}
		c := l.doubts[0]
		l.mu.Unlock()
		err := c.restore(ctx)
		if err != nil && !errors.Is(err, ErrFenced) && err != errMoved {
			return nil, fmt.Errorf("look after the claim of job %s: %w", c.Job.ID, err)
		}
		l.mu.Lock()
		l.doubts = l.doubts[1:]
		l.mu.Unlock()
		if err == nil {
			l.hold(c)
			return c, nil
		}
	}
}

// Update replaces what is announced: a NodeInfo or a GatewayInfo with the same name. While the lease is lost it
// returns ErrLeaseLost, and the new text is announced when it is regained.
func (l *Lease) Update(ctx context.Context, info any) error {
	value, err := json.Marshal(info)
	if err != nil {
		return fmt.Errorf("update %s: %w", l.key, err)
	}
	l.mu.Lock()
	l.value = value
	id := l.id
	l.mu.Unlock()
	if id == 0 {
		return fmt.Errorf("update %s: %w", l.key, ErrLeaseLost)
	}
	resp, err := l.q.cli.Txn(ctx).If(clientv3.Compare(clientv3.LeaseValue(l.key), "=", id)).
		Then(clientv3.OpPut(l.key, string(value), clientv3.WithLease(id))).Commit()
	if err != nil {
		return fmt.Errorf("update %s: %w", l.key, err)
	}
	if !resp.Succeeded {
		return fmt.Errorf("update %s: %w", l.key, ErrLeaseLost)
	}
	return nil
}

// Regained receives after the lease was lost and had anew.
func (l *Lease) Regained() <-chan struct{} { return l.regained }

// Alive tells whether the lease is held, as far as this process knows.
func (l *Lease) Alive() bool {
	_, err := l.current()
	return err == nil
}

// Close ends the lease: what it announced is gone at once, and unfinished claims wait for Reclaim or the grace's end.
func (l *Lease) Close(ctx context.Context) error {
	l.cancel()
	<-l.done
	id, err := l.current()
	if err != nil {
		return nil
	}
	l.set(0)
	if _, err := l.q.cli.Revoke(ctx, id); err != nil && !isLeaseGone(err) {
		return fmt.Errorf("end lease of %s: %w", l.key, err)
	}
	return nil
}
