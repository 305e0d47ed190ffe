package queue

import (
	"errors"
	"time"
)

// States of an environment, in the order it lives through them.
const (
	StateQueued   = "queued"   // accepted; no node has taken it yet
	StatePulling  = "pulling"  // a node is fetching its image
	StateCreating = "creating" // a node is preparing its disk, network and limits
	StateRunning  = "running"
	StateStopping = "stopping" // a node is taking it down
	StateDeleted  = "deleted"  // gone, as asked (by its owner, its deadline or idleness)
	StateFailed   = "failed"   // EnvStatus.Reason says why
	StateOverstep = "overstep" // gone, because it used up a quota
)

// Terminal tells whether no node will change a state again by itself.
func Terminal(state string) bool {
	return state == StateDeleted || state == StateFailed || state == StateOverstep
}

// Kinds of jobs.
const (
	KindCreate = "create"
	KindDelete = "delete"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrExists: a job with this id is pending, running, dead, or was done a short while ago.
	ErrExists = errors.New("job exists already")
	// ErrFenced: the claim or the environment belongs to somebody else now. Whoever gets it for a create
	// must tear down what it made; nobody will ever reach it.
	ErrFenced = errors.New("claim was lost to another node")
	// ErrNotFound: etcd holds no such job or environment.
	ErrNotFound = errors.New("not found in the queue")
	// ErrBusy: the environment still has a pending or running job.
	ErrBusy = errors.New("environment still has a job")
	// ErrFull: etcd answers and takes nothing more, since its quota is used up (its alarm NOSPACE).
	ErrFull = errors.New("etcd is full")
	// ErrNameTaken: a living node with another Instance holds this node name.
	ErrNameTaken = errors.New("node name is taken by another living node")
	// ErrLeaseLost: the node's or gateway's lease is gone and a new one could not be had yet.
	ErrLeaseLost = errors.New("lease is lost")
)

// Limits of one environment. Zero means no limit of that kind.
type Limits struct {
	MemoryBytes     int64   `json:"memoryBytes,omitempty"`
	MemoryHighBytes int64   `json:"memoryHighBytes,omitempty"` // above it memory is reclaimed and its users slowed down
	CPUs            float64 `json:"cpus,omitempty"`            // 0.5 is half of one CPU
	PIDs            int64   `json:"pids,omitempty"`
	DiskBytes       int64   `json:"diskBytes,omitempty"`   // of the writable layer
	NetUpBits       int64   `json:"netUpBits,omitempty"`   // bits per second out of the environment
	NetDownBits     int64   `json:"netDownBits,omitempty"` // bits per second into it
	IOReadBPS       int64   `json:"ioReadBps,omitempty"`   // bytes per second from the node's disk
	IOWriteBPS      int64   `json:"ioWriteBps,omitempty"`
	IOReadIOPS      int64   `json:"ioReadIops,omitempty"` // operations per second
	IOWriteIOPS     int64   `json:"ioWriteIops,omitempty"`
	NetQuotaBytes   int64   `json:"netQuotaBytes,omitempty"` // received + sent over the whole life
	BlkQuotaBytes   int64   `json:"blkQuotaBytes,omitempty"` // read + written over the whole life
}

// Rations that some node may be unable to give: its cgroups are of version 1, or its disk is no disk. See NodeInfo.Lacks.
const (
	RationMemoryHigh = "memoryHigh"
	RationDiskRates  = "diskRates"
	RationDisk       = "disk"
)

// Lacking is the first ration of l that is among lacks, with the reason why; "" when none is.
func (l Limits) Lacking(lacks map[string]string) (ration, why string) {
	for _, r := range []struct {
		name  string
		asked bool
	}{
		{RationMemoryHigh, l.MemoryHighBytes != 0},
		{RationDiskRates, l.IOReadBPS != 0 || l.IOWriteBPS != 0 || l.IOReadIOPS != 0 || l.IOWriteIOPS != 0},
		{RationDisk, l.DiskBytes != 0},
	} {
		if why, lacks := lacks[r.name]; lacks && r.asked {
			return r.name, why
		}
	}
	return "", ""
}

// EnvSpec is all a node needs to know to make an environment.
type EnvSpec struct {
	ID          string        `json:"id"`
	Owner       string        `json:"owner,omitempty"`
	Name        string        `json:"name,omitempty"`
	Image       string        `json:"image,omitempty"`  // the catalogue's name, for people
	Source      string        `json:"source,omitempty"` // what rootfs.Store.Ensure takes
	Insecure    bool          `json:"insecure,omitempty"`
	Command     []string      `json:"command,omitempty"`
	Limits      Limits        `json:"limits"`
	CapAdd      []string      `json:"capAdd,omitempty"` // capabilities of root inside besides the usual ones
	Deadline    time.Time     `json:"deadline,omitzero"`
	IdleTimeout time.Duration `json:"idleTimeout,omitempty"` // nanoseconds in JSON
	CreatedAt   time.Time     `json:"createdAt,omitzero"`
}

// Job is one piece of work for a node.
type Job struct {
	// ID is unique among all jobs that are pending, running, dead or lately done. A create has its
	// environment's id, a delete has DeleteID of it.
	ID    string `json:"id"`
	Kind  string `json:"kind"` // KindCreate or KindDelete
	EnvID string `json:"envId"`
	// Node is the only node that may claim the job; "" lets any node. In a claimed job it is the claimer.
	Node string `json:"node,omitempty"`
	// Priority orders pending jobs: lower goes first, 0 is ordinary, the range is -999 to 999. Equal ones
	// go in the order of EnqueuedAt.
	Priority int      `json:"priority,omitempty"`
	Spec     *EnvSpec `json:"spec,omitempty"`
	// Attempts counts the claims so far, the current one included.
	Attempts   int       `json:"attempts,omitempty"`
	NotBefore  time.Time `json:"notBefore,omitzero"`  // no claim before
	EnqueuedAt time.Time `json:"enqueuedAt,omitzero"` // set by Enqueue when zero
	Reason     string    `json:"reason,omitempty"`    // why the last attempt came to nothing
}

// DeleteID is the id of the job that deletes an environment.
func DeleteID(envID string) string { return envID + "-delete" }

// EnvStatus is the live state of an environment, at env/<id>.
type EnvStatus struct {
	ID       string           `json:"id"`
	Node     string           `json:"node,omitempty"`
	State    string           `json:"state"`
	Stage    string           `json:"stage,omitempty"`  // finer than State: resolving, downloading, unpacking, …
	Reason   string           `json:"reason,omitempty"` // for failed, overstep and deleted: why
	Percent  int              `json:"percent,omitempty"`
	Deadline time.Time        `json:"deadline,omitzero"`
	Address  string           `json:"address,omitempty"`
	Timings  map[string]int64 `json:"timings,omitempty"` // stage → microseconds
	// UpdatedAt is set by whoever writes the status, when zero.
	UpdatedAt time.Time `json:"updatedAt,omitzero"`
	// Rev is etcd's revision of the last write; filled in by readers.
	Rev int64 `json:"-"`
}

// StatusEvent is one change that WatchStatuses saw.
type StatusEvent struct {
	Status EnvStatus // for a deletion only ID and Rev are set
	// Forgotten: the key is gone from etcd (Forget). It says nothing about the environment's end, which
	// came before as a status of its own.
	Forgotten bool
}

// NodeInfo is what a node tells about itself, at nodes/<name>, under its lease.
type NodeInfo struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	Address string `json:"address,omitempty"` // for people; nobody dials it
	// Instance tells two machines with one name apart: random, kept in the node's root directory. The same
	// instance may take its name over at once after a crash, another one gets ErrNameTaken while the first lives.
	Instance        string `json:"instance,omitempty"`
	FreeMemory      int64  `json:"freeMemory"`  // bytes, after the reserve
	TotalMemory     int64  `json:"totalMemory"` // bytes
	CPUs            int    `json:"cpus"`
	Environments    int    `json:"environments"`
	MaxEnvironments int    `json:"maxEnvironments,omitempty"` // 0: no limit
	Spares          int    `json:"spares,omitempty"`          // ready to be given away; not among Environments
	DiskFree        int64  `json:"diskFree,omitempty"`        // bytes
	DiskTotal       int64  `json:"diskTotal,omitempty"`       // bytes
	DiskRoom        int64  `json:"diskRoom,omitempty"`        // bytes of disk limits that it would still take on
	// Lacks has the rations that it can't give, each with the reason: jobs that ask for one are left to other nodes.
	Lacks     map[string]string `json:"lacks,omitempty"`
	StartedAt time.Time         `json:"startedAt,omitzero"`
	UpdatedAt time.Time         `json:"updatedAt,omitzero"`
}

// GatewayInfo is what a gateway tells the nodes, at gateways/<id>, under its lease.
type GatewayInfo struct {
	ID         string    `json:"id"`
	TunnelAddr string    `json:"tunnelAddr"` // host:port that nodes dial
	CertSHA256 string    `json:"certSha256"` // hex; nodes accept no other certificate
	StartedAt  time.Time `json:"startedAt,omitzero"`
}
