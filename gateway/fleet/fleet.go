// Package fleet is the life of environments as the gateway sees it: a row in SQL becomes a job in the queue, exactly
// once; what nodes report becomes the row's state and history; deletes, retries and deadlines go the same ways; and
// sessions are asked for over the nodes' tunnels.
//
// It decides nothing about who may do what, speaks no HTTP, and places nothing: nodes take jobs by themselves.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/learnos/learnos/gateway/auth"
	"github.com/learnos/learnos/gateway/problem"
	"github.com/learnos/learnos/gateway/stopwatch"
	"github.com/learnos/learnos/gateway/store"
	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/reason"
	"github.com/learnos/learnos/internal/tunnel"
)

// Tunnel reaches nodes; *tunnel.Hub is one.
type Tunnel interface {
	Open(ctx context.Context, node string, req tunnel.Request) (*tunnel.Conn, error)
	Nodes() []string
}

// Policy is what the installation allows.
type Policy struct {
	MaxEnvironments int // active ones per user, unless the user's row says otherwise
	IdleTimeout     time.Duration
	DefaultLifetime time.Duration
	MaxLifetime     time.Duration
}

// Options of a Fleet; all but Watched are needed.
type Options struct {
	Store  *store.Store
	Queue  *queue.Queue
	Tunnel Tunnel
	Policy Policy
	Log    *slog.Logger
	// Changed is told after an environment's row, or what is shown of it, has changed. It must not block.
	Changed func(user int64, env string)
	// Watched tells whether somebody looks at a user's environments right now; places in the queue are only followed
	// for those. nil: nobody.
	Watched func(user int64) bool
}

// Waiting times. All of them only bound how long something stays wrong after a part was away; nothing depends on them
// in ordinary operation.
const (
	probeEvery  = 2 * time.Second
	probeIn     = 1500 * time.Millisecond
	outboxEvery = 3 * time.Second
	sweepEvery  = 30 * time.Second
	etcdIn      = 3 * time.Second  // one request to etcd
	tunnelIn    = 10 * time.Second // a node's reply
	awayGrace   = 5 * time.Minute  // a node that is away this long no longer holds its tenants' allowance
	againAfter  = 2 * time.Minute  // a delete that was not done by then is asked for once more
	lostAfter   = 30 * time.Second // a queued row without job and status: etcd has lost it
	keepStatus  = 10 * time.Minute // how long etcd keeps the status of what has ended
)

// Fleet runs environments. It is safe for concurrent use.
type Fleet struct {
	Options
	now     func() time.Time
	healthy atomic.Bool
	full    atomic.Bool   // etcd answers and takes nothing, so that asking it is not enough to know that it is well
	wake    chan struct{} // the outbox has work

	mu    sync.Mutex
	nodes map[string]queue.NodeInfo

	ledger *ledger
	shown  map[string]string // what was last pushed of a waiting environment's place; of followPlaces alone
}

// New makes a fleet; Run makes it move.
func New(o Options) *Fleet {
	if o.Watched == nil {
		o.Watched = func(int64) bool { return false }
	}
	f := &Fleet{Options: o, now: time.Now, wake: make(chan struct{}, 1), nodes: map[string]queue.NodeInfo{}, shown: map[string]string{}}
	f.ledger = newLedger(o.Store, func() time.Time { return f.now() },
		func(err error) { f.Log.Error("write what nodes report", "error", err) },
		func(e store.Environment) { f.Changed(e.UserID, e.ID) })
	return f
}

// Healthy tells whether etcd answered lately, and took what it was given.
func (f *Fleet) Healthy() bool { return f.healthy.Load() }

// Nodes lists the nodes that are online, as last heard.
func (f *Fleet) Nodes() []queue.NodeInfo {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]queue.NodeInfo, 0, len(f.nodes))
	for _, n := range f.nodes {
		list = append(list, n)
	}
	return list
}

func (f *Fleet) online(node string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.nodes[node]
	return ok
}

// Away is the problem of a request that needs etcd while it does not answer.
func Away() *problem.Problem {
	return problem.New(http.StatusServiceUnavailable, "queue_unavailable", "The queue does not answer, so nothing new can be started right now.",
		"What runs keeps running. Try again in a few seconds; an operator should look at etcd if this lasts.").After(5 * time.Second)
}

// refused notes, of an error of etcd's, that it takes nothing more.
func (f *Fleet) refused(err error) {
	if errors.Is(err, queue.ErrFull) && !f.full.Swap(true) {
		f.healthy.Store(false)
		f.Log.Error("etcd is full and takes nothing; compact and defragment it, then disarm its alarm", "error", err)
	}
}

// probe asks etcd for a key that is never there, and when it was full last time, whether it is still.
func (f *Fleet) probe(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, probeIn)
	defer cancel()
	_, err := f.Queue.Status(ctx, "probe")
	ok := err == nil || errors.Is(err, queue.ErrNotFound)
	if ok && f.full.Load() {
		err = f.Queue.Room(ctx)
		ok = err == nil
		f.full.Store(!ok)
	}
	if was := f.healthy.Swap(ok); was != ok && ctx.Err() != context.Canceled {
		if ok {
			f.Log.Info("etcd answers")
			f.poke()
		} else {
			f.Log.Warn("etcd does not answer", "error", err)
		}
	}
	return ok
}

func (f *Fleet) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Allowance is how many active environments a user may hold.
func (f *Fleet) Allowance(u store.User) int {
	if u.MaxEnvironments > 0 {
		return u.MaxEnvironments
	}
	return f.Policy.MaxEnvironments
}

func (f *Fleet) allowanceProblem(u store.User) *problem.Problem {
	return problem.New(http.StatusConflict, "allowance", fmt.Sprintf("You already hold %d of %d environments.", f.Allowance(u), f.Allowance(u)),
		"Delete one that you no longer need, then start this one.")
}

// Create accepts an environment: afterwards it ends up running, or failed with a reason, whatever is killed.
func (f *Fleet) Create(ctx context.Context, u store.User, image store.Image, name string) (store.Environment, error) {
	if !f.Healthy() && !f.probe(ctx) {
		return store.Environment{}, Away()
	}
	now := f.now()
	e := store.Environment{
		ID: auth.NewID("e"), UserID: u.ID, Owner: u.Username, Name: name,
		Image: image.Name, Title: image.Title, TitleZh: image.TitleZh, Logo: image.Logo, Source: image.Source, Insecure: image.Insecure, Command: image.Command,
		Rations: image.Rations, CapAdd: image.CapAdd, LifetimeSeconds: int64(f.lifetime(image).Seconds()), IdleSeconds: int64(f.Policy.IdleTimeout.Seconds()),
		CreatedAt: store.At(now),
	}
	if e.Name == "" {
		e.Name = defaultName(image.Name, e.ID)
	}
	f.start(&e, now)
	stop := stopwatch.Start(ctx, "row")
	err := f.Store.CreateEnvironment(ctx, &e, f.Allowance(u))
	stop()
	if errors.Is(err, store.ErrAllowance) {
		return e, f.allowanceProblem(u)
	}
	if err != nil {
		return e, fmt.Errorf("insert environment: %w", err)
	}
	return f.accepted(ctx, e), nil
}

// Retry gives a failed environment another try, under its id.
func (f *Fleet) Retry(ctx context.Context, u store.User, id string) (store.Environment, error) {
	if !f.Healthy() && !f.probe(ctx) {
		return store.Environment{}, Away()
	}
	notFailed := problem.New(http.StatusConflict, "not_failed", "Only an environment that failed can be tried again.", "Start a new one from the gallery.")
	e, err := f.Store.RetryEnvironment(ctx, id, f.Allowance(u), func(e *store.Environment) error {
		if e.State != queue.StateFailed {
			return notFailed
		}
		e.Try++
		f.start(e, f.now())
		return nil
	})
	switch {
	case errors.Is(err, store.ErrAllowance):
		return e, f.allowanceProblem(u)
	case errors.Is(err, store.ErrConflict):
		return e, notFailed
	case err != nil:
		return e, err
	}
	return f.accepted(ctx, e), nil
}

// start sets what every try starts with.
func (f *Fleet) start(e *store.Environment, now time.Time) {
	e.State, e.Stage, e.Percent, e.Reason, e.Node, e.Address, e.Timings = queue.StateQueued, "", 0, "", "", "", map[string]int64{}
	e.Enqueued, e.DeleteAskedAt, e.DeleteJobAt, e.StartedAt, e.EndedAt = false, 0, 0, 0, 0
	e.TriedAt, e.UpdatedAt = store.At(now), store.At(now)
	e.Deadline = 0
	if e.LifetimeSeconds > 0 {
		e.Deadline = store.At(now.Add(time.Duration(e.LifetimeSeconds) * time.Second))
	}
}

// accepted tries to enqueue at once. The row is the promise: should this not succeed, the outbox loop keeps it.
func (f *Fleet) accepted(ctx context.Context, e store.Environment) store.Environment {
	f.Changed(e.UserID, e.ID)
	defer stopwatch.Start(ctx, "queue")()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), etcdIn)
	defer cancel()
	queued, err := f.enqueue(ctx, e, e.Try > 0)
	if err != nil {
		f.Log.Warn("enqueue later", "environment", e.ID, "error", err)
		f.poke()
		return e
	}
	return queued
}

func (f *Fleet) lifetime(i store.Image) time.Duration {
	life := f.Policy.DefaultLifetime
	if i.LifetimeSeconds > 0 {
		life = time.Duration(i.LifetimeSeconds) * time.Second
	}
	if f.Policy.MaxLifetime > 0 && life > f.Policy.MaxLifetime {
		life = f.Policy.MaxLifetime
	}
	return life
}

// defaultName is a host name made of the image and a bit of the id.
func defaultName(image, id string) string {
	name := make([]byte, 0, 63)
	for _, c := range []byte(image) {
		if ('a' <= c && c <= 'z') || ('0' <= c && c <= '9') {
			name = append(name, c)
		} else if n := len(name); n > 0 && name[n-1] != '-' {
			name = append(name, '-')
		}
		if len(name) == 50 {
			break
		}
	}
	for len(name) > 0 && name[len(name)-1] == '-' {
		name = name[:len(name)-1]
	}
	return string(name) + "-" + id[len(id)-5:]
}

// limits are an environment's rations as nodes are told them.
func limits(r store.Rations) queue.Limits {
	return queue.Limits{
		MemoryBytes: r.MemoryBytes, MemoryHighBytes: r.MemoryHighBytes, CPUs: r.CPUs, PIDs: r.PIDs, DiskBytes: r.DiskBytes,
		NetUpBits: r.NetUpBits, NetDownBits: r.NetDownBits,
		IOReadBPS: r.IOReadBPS, IOWriteBPS: r.IOWriteBPS, IOReadIOPS: r.IOReadIOPS, IOWriteIOPS: r.IOWriteIOPS,
		NetQuotaBytes: r.NetQuotaBytes, BlkQuotaBytes: r.BlkQuotaBytes,
	}
}

// enqueue puts the create job of a row's present try into the queue. It may be called any number of times, by any number of
// gateways: the job's id is the row's. With note it writes down that the job is there; without, which is for first tries
// only, the job's own status does (advance): were that one lost, enqueueing once more would do nothing.
func (f *Fleet) enqueue(ctx context.Context, e store.Environment, note bool) (store.Environment, error) {
	job := queue.Job{ID: e.ID, Kind: queue.KindCreate, EnvID: e.ID, EnqueuedAt: e.TriedAt.Std(), Spec: &queue.EnvSpec{
		ID: e.ID, Owner: e.Owner, Name: e.Name, Image: e.Image, Source: e.Source, Insecure: e.Insecure, Command: e.Command,
		Limits: limits(e.Rations), CapAdd: e.CapAdd, Deadline: e.Deadline.Std(), IdleTimeout: time.Duration(e.IdleSeconds) * time.Second, CreatedAt: e.TriedAt.Std(),
	}}
	var err error
	if e.Try > 0 { // the id was used by the try before
		err = f.Queue.EnqueueAgain(ctx, job)
	}
	if e.Try == 0 || errors.Is(err, queue.ErrNotFound) {
		err = f.Queue.Enqueue(ctx, job)
	}
	// Both errors mean that it is there: this very call was made before and its answer lost.
	if err != nil && !errors.Is(err, queue.ErrExists) && !errors.Is(err, queue.ErrBusy) {
		f.refused(err)
		return e, fmt.Errorf("enqueue environment %s: %w", e.ID, err)
	}
	if !note { // a delete that came meanwhile left its mark in the queue, and no node will take the job
		return e, nil
	}
	now, _, err := f.Store.ChangeEnvironment(ctx, e.ID, f.now(), func(row *store.Environment) (bool, string, error) {
		if row.Try != e.Try || row.Enqueued {
			return false, "", nil
		}
		row.Enqueued = true
		return true, "", nil
	})
	if err != nil {
		return e, fmt.Errorf("note that environment %s is enqueued: %w", e.ID, err)
	}
	if now.DeleteAskedAt != 0 || now.State == queue.StateDeleted { // deleted while we were at it
		return now, f.settle(ctx, now)
	}
	return now, nil
}

// Delete asks for an environment's end. What waits is gone at once, what has ended is put away, what runs becomes
// stopping until its node is done. With force the row is given up when the node is away; anyway (for admins) also
// when it is not.
func (f *Fleet) Delete(ctx context.Context, id string, force, anyway bool) (store.Environment, error) {
	stop := stopwatch.Start(ctx, "row")
	e, changed, err := f.Store.ChangeEnvironment(ctx, id, f.now(), func(e *store.Environment) (bool, string, error) {
		if e.State == queue.StateDeleted || e.DeleteAskedAt != 0 {
			return false, "", nil
		}
		e.DeleteAskedAt = store.At(f.now())
		if queue.Terminal(e.State) {
			e.State = queue.StateDeleted // no node holds anything of it
			return true, reason.Say(reason.PutAway, e.Reason), nil
		}
		e.State, e.Stage, e.Percent, e.Reason = queue.StateStopping, "", 0, ""
		return true, reason.Say(reason.AskedFor), nil
	})
	stop()
	if err != nil {
		return e, err
	}
	if changed {
		f.Changed(e.UserID, e.ID)
	}
	ctx = context.WithoutCancel(ctx)
	if f.Healthy() { // else the outbox loop does it when etcd is back
		stop := stopwatch.Start(ctx, "queue")
		asking, cancel := context.WithTimeout(ctx, etcdIn)
		if err := f.settle(asking, e); err != nil {
			f.Log.Warn("finish deleting later", "environment", id, "error", err)
		}
		cancel()
		stop()
	}
	if e, err = f.Store.Environment(ctx, id); err != nil {
		return e, err
	}
	if force && e.State == queue.StateStopping {
		if !anyway && (e.Node == "" || f.online(e.Node)) {
			return e, problem.New(http.StatusConflict, "node_online", "The environment's node is there and is removing it.", "Wait a moment; it takes a few seconds.")
		}
		return f.finish(ctx, id, reason.Say(reason.NodeRemoves))
	}
	return e, nil
}

// finish ends an environment that was asked to go.
func (f *Fleet) finish(ctx context.Context, id, reason string) (store.Environment, error) {
	e, changed, err := f.Store.ChangeEnvironment(ctx, id, f.now(), func(e *store.Environment) (bool, string, error) {
		if e.State != queue.StateStopping {
			return false, "", nil
		}
		e.State, e.Reason, e.EndedAt = queue.StateDeleted, reason, store.At(f.now())
		return true, "", nil
	})
	if changed {
		f.Changed(e.UserID, e.ID)
	}
	return e, err
}

// settle brings an environment that was asked to go one step nearer to its end. It is called again until it is there.
// The queue finds out where the environment is: a create that still waits is cancelled, one that is on a node becomes
// a job for that node.
func (f *Fleet) settle(ctx context.Context, e store.Environment) error {
	if e.State != queue.StateStopping && e.State != queue.StateDeleted {
		return nil
	}
	if e.DeleteAskedAt == 0 {
		return nil // its node ends it by itself, and says why
	}
	if e.DeleteJobAt == 0 || f.now().Sub(e.DeleteJobAt.Std()) > againAfter {
		if err := f.askDelete(ctx, e, e.Node); err != nil {
			return err
		}
	}
	if e.State == queue.StateDeleted {
		return nil
	}
	// The watch would tell too; this way a request that deletes sees at once what it did.
	st, err := f.Queue.Status(ctx, e.ID)
	switch {
	case err == nil:
		if st.Rev <= e.StatusRev {
			break
		}
		if err := f.tryTake(ctx, st); err != nil {
			return err
		}
	case !errors.Is(err, queue.ErrNotFound):
		return fmt.Errorf("look for its node: %w", err)
	}
	if f.now().Sub(e.DeleteAskedAt.Std()) > awayGrace && (e.Node == "" || !f.online(e.Node)) {
		_, err := f.finish(ctx, e.ID, reason.Say(reason.NodeAway))
		return err
	}
	return nil
}

// askDelete puts the delete job into the queue.
func (f *Fleet) askDelete(ctx context.Context, e store.Environment, node string) error {
	err := f.Queue.Enqueue(ctx, queue.Job{ID: queue.DeleteID(e.ID), Kind: queue.KindDelete, EnvID: e.ID, Node: node, Reason: reason.Say(reason.ByOwner)})
	if err != nil && !errors.Is(err, queue.ErrExists) {
		f.refused(err)
		return fmt.Errorf("enqueue the delete job: %w", err)
	}
	at := store.At(f.now())
	f.ledger.add(e.ID, aNote, func(row *store.Environment) bool {
		row.DeleteJobAt = at
		return true
	}, nil)
	return nil
}
