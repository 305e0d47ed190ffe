package nodeagent

import (
	"cmp"
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/netbridge"
	"github.com/learnos/learnos/runtime"
)

// States of an environment as a node's disk knows them. StateExited is the node's own: a command ended by itself
// and its record and logs wait for `rm`. The others are the platform's words (internal/queue).
const (
	StateCreating = "creating"
	StateRunning  = "running"
	StateStopping = "stopping"
	StateExited   = "exited"
)

// Network modes of an environment.
const (
	NetBridge = "bridge" // an address of its own behind the node's bridge
	NetNone   = "none"   // a network namespace with nothing but loopback
	NetHost   = "host"   // the host's own network namespace
)

// Who ends an environment when its maker dies.
const (
	OwnerForeground = "foreground" // its `run` does: the environment dies with it
	OwnerDetached   = "detached"   // nobody: it goes on until its command ends
	OwnerPlatform   = "platform"   // the daemon: it goes on, and the next daemon takes it up
)

// Volume is a host directory or file mounted into an environment.
type Volume struct {
	Source      string `json:"source"` // absolute path on the host
	Destination string `json:"destination"`
	ReadOnly    bool   `json:"readOnly,omitempty"`
}

// Limits are an environment's rations. Zero means none.
type Limits struct {
	MemoryBytes     int64   `json:"memoryBytes,omitempty"`
	MemoryHighBytes int64   `json:"memoryHighBytes,omitempty"` // above it the kernel reclaims and slows down (v2 only)
	CPUs            float64 `json:"cpus,omitempty"`            // 1.5 = one and a half processors' time
	Cpuset          string  `json:"cpuset,omitempty"`
	PIDs            int64   `json:"pids,omitempty"`
	DiskBytes       int64   `json:"diskBytes,omitempty"`     // of the writable layer
	NetUpBits       int64   `json:"netUpBits,omitempty"`     // bits per second out of the environment
	NetDownBits     int64   `json:"netDownBits,omitempty"`   // bits per second into it
	IO              IORates `json:"io,omitzero"`             // of the disk that holds the writable layer
	NetQuotaBytes   int64   `json:"netQuotaBytes,omitempty"` // received + sent, over its life
	BlkQuotaBytes   int64   `json:"blkQuotaBytes,omitempty"` // read + written, over its life
}

// IORates bound what an environment moves from and to a disk in a second. Zero means unbounded.
type IORates struct {
	ReadBytes  int64 `json:"readBytes,omitempty"`
	WriteBytes int64 `json:"writeBytes,omitempty"`
	Reads      int64 `json:"reads,omitempty"` // operations
	Writes     int64 `json:"writes,omitempty"`
}

// Process names a process so that its number's next bearer is not mistaken for it.
type Process struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"` // field 22 of /proc/PID/stat, proc_pid_stat(5)
}

// Record is what <root>/envs/<id>/env.json holds: all a node knows about an environment.
type Record struct {
	ID         string           `json:"id"`
	Name       string           `json:"name,omitempty"` // unique on the node
	Hostname   string           `json:"hostname"`
	Image      string           `json:"image"`
	Digest     string           `json:"digest,omitempty"`
	Args       []string         `json:"args,omitempty"` // of the main command; empty: none, init waits
	Env        []string         `json:"env,omitempty"`
	Cwd        string           `json:"cwd,omitempty"`
	User       string           `json:"user,omitempty"`
	TTY        bool             `json:"tty,omitempty"`
	State      string           `json:"state"`
	Reason     string           `json:"reason,omitempty"`
	Exit       *ExitStatus      `json:"exit,omitempty"`
	Owner      string           `json:"owner"`
	Maker      Process          `json:"maker"`
	AutoRemove bool             `json:"autoRemove,omitempty"`
	Net        string           `json:"net"`
	Address    string           `json:"address,omitempty"`
	Ports      []netbridge.Port `json:"ports,omitempty"`
	Volumes    []Volume         `json:"volumes,omitempty"`
	Limits     Limits           `json:"limits"`
	ReadOnly   bool             `json:"readOnly,omitempty"`
	CapAdd     []string         `json:"capAdd,omitempty"`  // capabilities of root inside beyond the usual ones, by their proper names
	CapDrop    []string         `json:"capDrop,omitempty"` // and those it has not; "ALL" for every usual one
	FirstID    int              `json:"firstID,omitempty"` // first host id of its range; 0: no user namespace
	PID        int              `json:"pid,omitempty"`     // init's, on the host
	CreatedAt  time.Time        `json:"createdAt"`
	StartedAt  time.Time        `json:"startedAt,omitzero"`
	EndedAt    time.Time        `json:"endedAt,omitzero"`
	// Timings says how long each stage of the start took, in microseconds.
	Timings map[string]int64 `json:"timings,omitempty"`
	// Prepared, when set, is the id under which all but its own directory was made ahead of need (see pool), and under
	// which runtime, disk, network and id range know it.
	Prepared string          `json:"prepared,omitempty"`
	Platform *PlatformRecord `json:"platform,omitempty"`
}

// heldAs is the id under which the parts below know the environment.
func (r *Record) heldAs() string { return cmp.Or(r.Prepared, r.ID) }

// PlatformRecord is what the daemon keeps about an environment it made for a job.
type PlatformRecord struct {
	Shell       []string      `json:"shell,omitempty"` // the catalogue's command: what a new terminal runs
	Deadline    time.Time     `json:"deadline,omitzero"`
	IdleTimeout time.Duration `json:"idleTimeout,omitempty"` // nanoseconds; 0: never idle
	// Accepted: etcd has taken the environment as made here. Until then its job may be given to another node, and
	// then this one is nobody's.
	Accepted bool `json:"accepted,omitempty"`
}

// ExitStatus is how a command ended.
type ExitStatus struct {
	Code      int    `json:"code"` // 128+signal when a signal ended it
	OOMKilled bool   `json:"oomKilled,omitempty"`
	Reason    string `json:"reason,omitempty"`
}

func exitStatus(s runtime.ExitStatus) *ExitStatus {
	return &ExitStatus{Code: s.Code, OOMKilled: s.OOMKilled, Reason: s.Reason}
}

// NewID makes an environment's id: 26 characters, 125 random bits.
func NewID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return "e" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))[:25]
}

// maxName bounds ids, names and host names, in bytes: what a host name's label may have (RFC 1035).
const maxName = 63

const (
	digits = "0123456789"
	lower  = "abcdefghijklmnopqrstuvwxyz"
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// spelled tells whether s begins with one of first and goes on with those or one of more.
func spelled(s, first, more string) bool {
	return s != "" && len(s) <= maxName && strings.IndexByte(first, s[0]) >= 0 && strings.Trim(s, first+more) == ""
}

func validID(s string) bool   { return spelled(s, lower+digits, "-") }
func validName(s string) bool { return spelled(s, lower+upper+digits, "_.-") }

// validHost is what sethostname(2) and a line of /etc/hosts both take.
func validHost(s string) bool {
	return spelled(s, lower+upper+digits, ".-") && strings.IndexByte(".-", s[len(s)-1]) < 0
}

func (n *Node) envDir(id string) string { return filepath.Join(n.root, "envs", id) }

// save writes the record whole: a reader sees the old one or the new one.
func (n *Node) save(r *Record) error {
	body, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("environment %s: %w", r.ID, err)
	}
	if err := replaceFile(filepath.Join(n.envDir(r.ID), "env.json"), append(body, '\n')); err != nil {
		return fmt.Errorf("record environment %s: %w", r.ID, err)
	}
	return nil
}

// replaceFile writes a file whole: a reader sees the old one or the new one, also after kill -9. (Not after a loss of power,
// with which everything ends that our records tell of.)
func replaceFile(path string, body []byte) error {
	tmp := path + "." + strconv.Itoa(os.Getpid()) + "." + rand.Text()[:8]
	if err := os.WriteFile(tmp, body, 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return nil
}

// Record reads an environment's record by its id. ErrNotFound when there is none.
func (n *Node) Record(id string) (*Record, error) {
	if !validID(id) {
		return nil, fmt.Errorf("%w: %q", ErrNotFound, id)
	}
	body, err := os.ReadFile(filepath.Join(n.envDir(id), "env.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %q", ErrNotFound, id)
	}
	if err != nil {
		return nil, fmt.Errorf("environment %s: %w", id, err)
	}
	var r Record
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("environment %s: env.json: %w", id, err)
	}
	if r.ID != id {
		return nil, fmt.Errorf("environment %s: env.json says it is %q", id, r.ID)
	}
	return &r, nil
}

// Records reads every environment of the node, oldest first. A directory without a readable record (a create
// killed in its first microseconds) is left out: Sweep clears it.
func (n *Node) Records() ([]*Record, error) {
	ids, err := n.envIDs()
	if err != nil {
		return nil, err
	}
	var all []*Record
	for _, id := range ids {
		if r, err := n.Record(id); err == nil {
			all = append(all, r)
		}
	}
	sortRecords(all)
	return all, nil
}

func (n *Node) envIDs() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(n.root, "envs"))
	if err != nil {
		return nil, fmt.Errorf("list environments: %w", err)
	}
	ids := make([]string, 0, len(entries))
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids, nil
}

// Find resolves what a person typed: a name, an id, or an id's beginning that fits only one environment.
func (n *Node) Find(ref string) (*Record, error) {
	if body, err := os.ReadFile(filepath.Join(n.root, "names", filepath.Base("/"+ref))); err == nil && validName(ref) {
		if r, err := n.Record(string(body)); err == nil && r.Name == ref {
			return r, nil
		}
	}
	if r, err := n.Record(ref); err == nil {
		return r, nil
	}
	ids, err := n.envIDs()
	if err != nil {
		return nil, err
	}
	var found string
	for _, id := range ids {
		if ref == "" || !strings.HasPrefix(id, ref) {
			continue
		}
		if found != "" {
			return nil, fmt.Errorf("%q is the beginning of several environments' ids: type more of it", ref)
		}
		found = id
	}
	if found == "" {
		return nil, fmt.Errorf("%w: %q (see `nodeagent ps -a`)", ErrNotFound, ref)
	}
	return n.Record(found)
}

// takeName gives name to id, exclusively. A name whose bearer is gone is free.
func (n *Node) takeName(name, id string) error {
	path := filepath.Join(n.root, "names", name)
	for range 3 {
		tmp := path + "~" + id // "~" cannot be in a name, so this never meets one
		if err := os.WriteFile(tmp, []byte(id), 0o600); err != nil {
			return fmt.Errorf("name %q: %w", name, err)
		}
		err := os.Link(tmp, path)
		_ = os.Remove(tmp)
		if err == nil {
			return nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("name %q: %w", name, err)
		}
		holder, err := os.ReadFile(path)
		if err != nil {
			continue // released this moment
		}
		if r, err := n.Record(string(holder)); err == nil && r.Name == name {
			return fmt.Errorf("%w: environment %s is called %q (remove it with `nodeagent rm %s` or choose another name)", ErrNameTaken, r.ID, name, name)
		}
		n.dropName(name, string(holder))
	}
	return fmt.Errorf("%w: %q", ErrNameTaken, name)
}

// dropName frees name if id has it.
func (n *Node) dropName(name, id string) {
	path := filepath.Join(n.root, "names", name)
	if holder, err := os.ReadFile(path); err == nil && string(holder) == id {
		_ = os.Remove(path)
	}
}

// lock serializes what changes an environment, between processes and goroutines. It waits.
func (n *Node) lock(id string) (unlock func(), err error) {
	f, err := os.Open(n.envDir(id)) // a lock file of its own would be one more inode to make and to remove
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %q", ErrNotFound, id)
	}
	if err != nil {
		return nil, fmt.Errorf("lock environment %s: %w", id, err)
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock environment %s: %w", id, err)
	}
	return func() { _ = f.Close() }, nil
}

// self is the calling process.
func self() Process {
	pid := os.Getpid()
	start, _ := startTime(pid)
	return Process{PID: pid, StartTime: start}
}

// alive tells whether that very process still runs. A zombie does not.
func (p Process) alive() bool {
	start, ok := startTime(p.PID)
	return ok && start == p.StartTime
}

// startTime reads field 22 of /proc/PID/stat; false when there is no such process or it is a zombie.
func startTime(pid int) (uint64, bool) {
	if pid <= 0 {
		return 0, false
	}
	body, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false
	}
	// The command's name may hold anything, so count from its closing parenthesis: field 3 follows it.
	_, rest, ok := strings.Cut(string(body[strings.LastIndexByte(string(body), ')')+1:]), " ")
	if !ok {
		return 0, false
	}
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0, false
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	return start, err == nil
}
