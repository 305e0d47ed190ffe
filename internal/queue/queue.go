// Package queue is what gateways and nodes share, on etcd: the work queue, the live state of environments, and the
// registry of nodes and gateways.
//
// # Keys, below the prefix
//
//	job/<id>                                   mark: where the job is now; makes ids unique
//	pending/any/<priority>/<time>-<id>         job that any node may claim, in the order of the queue
//	pending/node/<name>/<priority>/<time>-<id> job that only this node may claim
//	running/<id>                               claimed job, who claimed it
//	claim/<id>                                 under the node's lease
//	dead/<id>                                  job that came to nothing too often
//	env/<id>                                   EnvStatus
//	nodes/<name>                               NodeInfo, under the node's lease
//	gateways/<id>                              GatewayInfo, under the gateway's lease
//	tunnel/token                               TunnelToken
//
// # What is promised
//
// An accepted create ends in running or failed: never lost, never twice.
//
// Never lost: a job is in exactly one of pending, running, dead and done, and every move between them is one
// transaction. A node's death takes its lease and so its claims with it; the reaper finds running jobs without a
// claim and puts them back, or to dead with the status failed and a reason a person can read.
//
// Never twice: whoever writes for a job compares the create revision of its claim in the same transaction. Until
// Finish an environment exists for nobody but its maker: no gateway opens a session to it, no address is told.
// So a create may be made anew elsewhere as long as it is unfinished, whatever stage its status names, and the
// node that made the first half learns by ErrFenced that nobody will ever come for it and tears it down. Once
// finished there is no job left that anybody could take: a running environment is never made again.
//
// A lost lease means a suspect node, not a dead one: the machine may only have been cut off for a while. So an
// orphaned job first waits for its own node (Options.Grace). A node that lost its lease and got a new one takes
// its claims back by itself, before anybody else may, and its work goes on; a node whose agent was restarted
// does so with Reclaim. Only after the grace is the job given to others. Nobody but the owning node
// ever deletes an environment: delete jobs are bound to it and wait for it, however long it is away.
//
// A delete that overtakes its create (the create lost its node just then) is found in every transaction that
// would start the create again, which ends as deleted instead.
//
// # Unknown outcomes
//
// A transaction whose answer never came may have been done. Claims and their ends carry a random mark, by which a
// repeated Finish or Retry finds its own first one, and a Claim is found again by the next call.
//
// # Limits
//
// Transactions have at most eight operations and jobs at most 64 KiB. Nobody polls but for a slow poll behind
// every watch. Old revisions are etcd's to compact (embedetcd does; set auto-compaction on a cluster): watchers
// list again when they come too late. Clocks of gateways and nodes should agree within seconds: they order equal
// priorities, end graces and start retries, but nothing that is promised depends on them.
//
// The package starts no environment, knows no SQL, and decides nothing about room: Claim asks its caller.
package queue

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/learnos/learnos/internal/config"
)

// Options of a Queue; zero values mean the defaults.
type Options struct {
	Grace       time.Duration // how long a lost claim waits for its own node to come back; 60 s
	MaxAttempts int           // claims after which a create that comes to nothing is dead; 5
	Backoff     time.Duration // first wait before another attempt, doubled each time up to 5 min; 2 s
	DoneWindow  time.Duration // how long a done job's id stays taken after its environment is forgotten; 24 h
	Poll        time.Duration // slow poll behind every watch; 30 s
	ReapEvery   time.Duration // RunReaper's pace; 5 s
	Log         *slog.Logger  // slog.Default()
}

// Queue is a handle; it is safe for concurrent use.
type Queue struct {
	cli    *clientv3.Client
	prefix string
	o      Options
}

// Dial makes an etcd client. It does not wait for a connection (except with a password, which needs one); requests
// wait for it as long as their contexts allow.
func Dial(cfg config.Etcd) (*clientv3.Client, error) {
	c := clientv3.Config{
		Endpoints:            cfg.Addresses,
		Username:             cfg.User,
		Password:             cfg.Password,
		DialTimeout:          5 * time.Second,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		PermitWithoutStream:  true,
		Logger:               zap.NewNop(), // errors are returned
	}
	if cfg.CAFile != "" || cfg.CertFile != "" || cfg.KeyFile != "" {
		c.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read etcd's CA: %w", err)
		}
		c.TLS.RootCAs = x509.NewCertPool()
		if !c.TLS.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read etcd's CA: %s holds no PEM certificate", cfg.CAFile)
		}
	}
	if cfg.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read the client certificate for etcd: %w", err)
		}
		c.TLS.Certificates = []tls.Certificate{pair}
	}
	cli, err := clientv3.New(c)
	if err != nil {
		return nil, fmt.Errorf("connect to etcd at %s: %w", strings.Join(cfg.Addresses, ", "), err)
	}
	return cli, nil
}

// New is NewWith the default options.
func New(cli *clientv3.Client, prefix string) *Queue { return NewWith(cli, prefix, Options{}) }

// NewWith makes a queue under prefix, e.g. "/learnos/". The client stays the caller's to close.
func NewWith(cli *clientv3.Client, prefix string, o Options) *Queue {
	o.Grace = positive(o.Grace, 60*time.Second)
	o.Backoff = positive(o.Backoff, 2*time.Second)
	o.DoneWindow = positive(o.DoneWindow, 24*time.Hour)
	o.Poll = positive(o.Poll, 30*time.Second)
	o.ReapEvery = positive(o.ReapEvery, 5*time.Second)
	if o.MaxAttempts <= 0 {
		o.MaxAttempts = 5
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Queue{cli: cli, prefix: strings.TrimSuffix(prefix, "/") + "/", o: o}
}

func positive(d, otherwise time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return otherwise
}

func (q *Queue) key(parts ...string) string { return q.prefix + strings.Join(parts, "/") }

// States of a job's mark.
const (
	markPending = "pending"
	markRunning = "running"
	markDead    = "dead"
	markDone    = "done"
)

// mark is the value of job/<id>.
type mark struct {
	State string    `json:"state"`
	EnvID string    `json:"envId"`
	Key   string    `json:"key,omitempty"`   // pending: the job's whole key
	Nonce string    `json:"nonce,omitempty"` // of the claim that moved it here
	At    time.Time `json:"at"`
}

// running is the value of running/<id>.
type running struct {
	Job   Job    `json:"job"`
	Node  string `json:"node"`  // who claimed it
	Nonce string `json:"nonce"` // of the claim
	// LostAt is when the reaper first saw it without a claim.
	LostAt time.Time `json:"lostAt,omitzero"`
}

var (
	idForm   = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,79}$`)
	nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)
)

const (
	maxPriority = 999
	maxJob      = 64 << 10
)

// CheckNodeName tells what is wrong with a node's name.
func CheckNodeName(name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("node name %q must be 1 to 63 of a-z, 0-9, \"-\" and \".\", starting and ending with a letter or digit", name)
	}
	return nil
}

func (j *Job) check() error {
	switch {
	case !idForm.MatchString(j.ID) || !idForm.MatchString(j.EnvID):
		return fmt.Errorf("job %q for environment %q: ids are 1 to 80 of a-z, 0-9 and \"-\"", j.ID, j.EnvID)
	case j.Kind == KindCreate && (j.ID != j.EnvID || j.Spec == nil || j.Spec.ID != j.EnvID):
		return fmt.Errorf("create job %q: the ids of job, environment and spec must be the same", j.ID)
	case j.Kind == KindDelete && j.ID != DeleteID(j.EnvID):
		return fmt.Errorf("delete job %q: its id must be %q", j.ID, DeleteID(j.EnvID))
	case j.Kind != KindCreate && j.Kind != KindDelete:
		return fmt.Errorf("job %q: kind %q is neither %s nor %s", j.ID, j.Kind, KindCreate, KindDelete)
	case j.Priority < -maxPriority || j.Priority > maxPriority:
		return fmt.Errorf("job %q: priority %d is not within ±%d", j.ID, j.Priority, maxPriority)
	case j.Node != "":
		if err := CheckNodeName(j.Node); err != nil {
			return fmt.Errorf("job %q: %w", j.ID, err)
		}
	}
	return nil
}

// lane is the prefix of the pending jobs for one node, or for any when node is "".
func (q *Queue) lane(node string) string {
	if node == "" {
		return q.key("pending", "any", "")
	}
	return q.key("pending", "node", node, "")
}

func (q *Queue) pendingKey(j *Job) string {
	return fmt.Sprintf("%s%04d/%016x-%s", q.lane(j.Node), j.Priority+maxPriority+1, uint64(j.EnqueuedAt.UnixNano()), j.ID)
}

// put is an operation that stores v as JSON.
func put(key string, v any, opts ...clientv3.OpOption) clientv3.Op {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("queue: %T can't be JSON: %v", v, err)) // own types without channels or functions
	}
	return clientv3.OpPut(key, string(b), opts...)
}

func (q *Queue) putPending(j *Job) clientv3.Op { return put(q.pendingKey(j), j) }

func (q *Queue) putMark(j *Job, state, nonce string) clientv3.Op {
	m := mark{State: state, EnvID: j.EnvID, Nonce: nonce, At: time.Now().UTC()}
	if state == markPending {
		m.Key = q.pendingKey(j)
	}
	return put(q.key("job", j.ID), m)
}

func (q *Queue) putEnv(s EnvStatus) clientv3.Op {
	if s.UpdatedAt.IsZero() {
		s.UpdatedAt = time.Now().UTC()
	}
	return put(q.key("env", s.ID), s)
}

func absent(key string) clientv3.Cmp { return clientv3.Compare(clientv3.CreateRevision(key), "=", 0) }

// unchanged compares a key with what was read of it; kv may be nil for a key that was not there.
func unchanged(key string, kv *mvccpb.KeyValue) clientv3.Cmp {
	if kv == nil {
		return absent(key)
	}
	return clientv3.Compare(clientv3.ModRevision(key), "=", kv.ModRevision)
}

func first(kvs []*mvccpb.KeyValue) *mvccpb.KeyValue {
	if len(kvs) == 0 {
		return nil
	}
	return kvs[0]
}

// decode reads the value of kv, which may be nil, into v.
func decode(kv *mvccpb.KeyValue, v any) (found bool, err error) {
	if kv == nil {
		return false, nil
	}
	if err := json.Unmarshal(kv.Value, v); err != nil {
		return false, fmt.Errorf("value of %s is not ours: %w", kv.Key, err)
	}
	return true, nil
}

// read gets single keys at one revision.
func (q *Queue) read(ctx context.Context, keys ...string) ([]*mvccpb.KeyValue, error) {
	ops := make([]clientv3.Op, len(keys))
	for i, k := range keys {
		ops[i] = clientv3.OpGet(k)
	}
	resp, err := q.cli.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return nil, err
	}
	kvs := make([]*mvccpb.KeyValue, len(keys))
	for i, r := range resp.Responses {
		kvs[i] = first(r.GetResponseRange().Kvs)
	}
	return kvs, nil
}

func random(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b) // never fails, crypto/rand says
	return hex.EncodeToString(b)
}

// TunnelToken is the secret that nodes and gateways prove to each other, 32 bytes, made by whoever asks first.
func (q *Queue) TunnelToken(ctx context.Context) ([]byte, error) {
	key := q.key("tunnel", "token")
	resp, err := q.cli.Txn(ctx).If(absent(key)).
		Then(clientv3.OpPut(key, random(32)), clientv3.OpGet(key)).
		Else(clientv3.OpGet(key)).Commit()
	if err != nil {
		return nil, fmt.Errorf("read the tunnel token: %w", err)
	}
	kv := first(resp.Responses[len(resp.Responses)-1].GetResponseRange().Kvs)
	token, err := hex.DecodeString(string(kv.Value))
	if err != nil || len(token) != 32 {
		return nil, errors.New("read the tunnel token: its value is not ours")
	}
	return token, nil
}
