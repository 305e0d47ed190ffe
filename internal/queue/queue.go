// Package queue is the work queue, the live state and the registry that gateways and nodes share, on etcd.
package queue

import (
	"context"
	"errors"
	"log/slog"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/learnos/learnos/internal/config"
)

var errStub = errors.New("queue: not written yet")

// Options of a Queue; zero values mean the defaults.
type Options struct {
	Grace       time.Duration // how long a lost claim waits for its own node to come back; 60 s
	MaxAttempts int           // claims after which a job is dead; 5
	Backoff     time.Duration // first wait after a lost claim, doubled each attempt up to 5 min; 2 s
	DoneWindow  time.Duration // how long a done job's id stays taken; 24 h
	Poll        time.Duration // slow poll behind every watch; 30 s
	Log         *slog.Logger  // slog.Default()
}

// Queue is a handle; it is safe for concurrent use.
type Queue struct{ cli *clientv3.Client }

// Dial makes an etcd client; it does not wait for a connection.
func Dial(cfg config.Etcd) (*clientv3.Client, error) { return nil, errStub }

// New is NewWith the default options.
func New(cli *clientv3.Client, prefix string) *Queue { return NewWith(cli, prefix, Options{}) }

// NewWith makes a queue under prefix, e.g. "/learnos/".
func NewWith(cli *clientv3.Client, prefix string, o Options) *Queue { return &Queue{cli: cli} }

// Enqueue accepts a job exactly once.
func (q *Queue) Enqueue(ctx context.Context, j Job) error { return errStub }

// EnqueueAgain gives a job that is dead or done another life, for `retry`.
func (q *Queue) EnqueueAgain(ctx context.Context, j Job) error { return errStub }

// Cancel removes a still pending job.
func (q *Queue) Cancel(ctx context.Context, jobID string) (bool, error) { return false, errStub }

// Position is a pending job's place, 0 for the next one.
func (q *Queue) Position(ctx context.Context, jobID string) (int, error) { return 0, errStub }

// Claim takes the first pending job that fits; nil, nil when none does.
func (q *Queue) Claim(ctx context.Context, node string, lease *Lease, fits func(Job) bool) (*Claim, error) {
	return nil, errStub
}

// Reclaim takes back, after a restart, the jobs that this node had claimed before.
func (q *Queue) Reclaim(ctx context.Context, node string, lease *Lease) ([]*Claim, error) {
	return nil, errStub
}

// Watch wakes its reader whenever a Claim may find something.
func (q *Queue) Watch(ctx context.Context) <-chan struct{} { return nil }

// Claim is a job taken by a node.
type Claim struct{ Job Job }

// Status writes the environment's state.
func (c *Claim) Status(ctx context.Context, s EnvStatus) error { return errStub }

// Finish writes the environment's state and ends the job.
func (c *Claim) Finish(ctx context.Context, final EnvStatus) error { return errStub }

// Retry gives the job back.
func (c *Claim) Retry(ctx context.Context, reason string, backoff time.Duration) error {
	return errStub
}

// PutStatus writes a state by the node that owns the environment.
func (q *Queue) PutStatus(ctx context.Context, node string, s EnvStatus) error { return errStub }

// Status is one environment's state, or ErrNotFound.
func (q *Queue) Status(ctx context.Context, envID string) (EnvStatus, error) {
	return EnvStatus{}, errStub
}

// Statuses lists all and the revision to watch from.
func (q *Queue) Statuses(ctx context.Context) ([]EnvStatus, int64, error) { return nil, 0, errStub }

// WatchStatuses tells every change after rev.
func (q *Queue) WatchStatuses(ctx context.Context, rev int64) <-chan StatusEvent { return nil }

// Forget removes what etcd knows of an environment that has ended.
func (q *Queue) Forget(ctx context.Context, envID string) error { return errStub }

// Reap puts lost jobs back.
func (q *Queue) Reap(ctx context.Context, maxAttempts int) (requeued, dead []string, err error) {
	return nil, nil, errStub
}

// RunReaper reaps until ctx ends.
func (q *Queue) RunReaper(ctx context.Context) {}

// Lease keeps one key alive.
type Lease struct{}

// RegisterNode announces a node.
func (q *Queue) RegisterNode(ctx context.Context, info NodeInfo, ttl time.Duration) (*Lease, error) {
	return nil, errStub
}

// RegisterGateway announces a gateway.
func (q *Queue) RegisterGateway(ctx context.Context, info GatewayInfo) (*Lease, error) {
	return nil, errStub
}

// Update replaces what the lease's key says: a NodeInfo or a GatewayInfo.
func (l *Lease) Update(ctx context.Context, info any) error { return errStub }

// Regained receives after the lease was lost and had anew.
func (l *Lease) Regained() <-chan struct{} { return nil }

// Close removes the key and the lease.
func (l *Lease) Close(ctx context.Context) error { return errStub }

// Nodes lists the living nodes, by name.
func (q *Queue) Nodes(ctx context.Context) ([]NodeInfo, error) { return nil, errStub }

// WatchNodes sends the whole list at first and after each change.
func (q *Queue) WatchNodes(ctx context.Context) <-chan []NodeInfo { return nil }

// WatchGateways sends the whole list at first and after each change.
func (q *Queue) WatchGateways(ctx context.Context) <-chan []GatewayInfo { return nil }

// TunnelToken is the secret that nodes and gateways prove to each other.
func (q *Queue) TunnelToken(ctx context.Context) ([]byte, error) { return nil, errStub }
