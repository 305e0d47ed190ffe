// Package runtime makes an OCI runtime-spec configuration a running, confined process tree: namespaces, cgroups,
// a private mount tree, capabilities and seccomp, with our own init as PID 1.
//
// It knows nothing of images, networks, queues or users: the caller hands it a root file system (a path or a detached
// mount) and may reach into the namespaces it made. No process of its own stays on the host: init runs inside, keeps the
// terminals, and writes the exit status, so the process that made an environment may be killed and another may Load it.
package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var (
	// ErrNotFound says that there is no container, or no session, of that id.
	ErrNotFound = errors.New("not found")
	// ErrExists says that the id is taken.
	ErrExists = errors.New("already exists")
	// ErrNotRunning says that the container has ended (or has not been started, where that matters).
	ErrNotRunning = errors.New("not running")
)

// Options configure a Runtime.
type Options struct {
	// StateDir holds one directory per container, mode 0700. It is created if missing. What it holds is worth nothing after
	// a restart of the machine, so a tmpfs (/run) is the place for it, and the fastest.
	StateDir string
	// CgroupParent is the name of the subtree under which every container gets its cgroups, on every hierarchy.
	CgroupParent string
}

// CreateOptions say what to make.
type CreateOptions struct {
	// ID names the container: ^[a-z0-9][a-z0-9-]{0,62}$.
	ID string
	// Spec is an OCI runtime-spec 1.3 configuration; DefaultSpec is the place to start. Process.Args, Env, Cwd and User
	// are not looked at: Main carries them.
	Spec *specs.Spec
	// Main, when set, is started by Start as session "main"; when it exits the container ends with its status.
	// When nil, the container lasts until it is killed.
	Main *SessionSpec
	// DieWithParent kills the container when this process ends, however it ends.
	DieWithParent bool
	// Log, when set, has init write the output of a Main without a TTY to files; Main's stdin is then /dev/null.
	Log *LogFiles
	// KeepStdin gives a Main with a Log a standard input that stays open and empty, instead of /dev/null's end of file.
	KeepStdin bool

	group *cgroup // of a process container, whose plan differs in places
}

// LogFiles is a bounded pair of log files: init fills one, then empties the other and goes on there.
// Read them with ReadLog.
type LogFiles struct {
	// Path is the first file; the second is Path + ".1". Both are created, mode 0600.
	Path string
	// MaxBytes bounds each of the two files; 0 means 4 MiB.
	MaxBytes int64
}

// StartOptions carry what is made between Create and Start, usually in the container's own namespaces.
type StartOptions struct {
	// Root is a detached mount (open_tree(2), fsmount(2)) that becomes "/". nil: Spec.Root.Path is bind-mounted.
	Root *os.File
	// Mounts are further detached mounts, attached after those of the Spec, in this order.
	Mounts []MountFD
}

// MountFD is a detached mount and the absolute path inside at which it is to appear.
type MountFD struct {
	Destination string
	FD          *os.File
}

// SessionSpec is one command, with or without a terminal.
type SessionSpec struct {
	// ID names the session (^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$); empty: one is chosen.
	ID string
	// Args is the command line; Args[0] without a slash is searched in PATH (of Env, else the usual one).
	Args []string
	// Env holds KEY=VALUE pairs. PATH, HOME and (with a TTY) TERM are added when missing.
	Env []string
	// Cwd is an absolute path inside; empty means "/".
	Cwd string
	// User is "", "name", "uid", "uid:gid" or "name:group", resolved by /etc/passwd and /etc/group inside; "" is root.
	User string
	// TTY asks for a pseudo terminal of Cols × Rows characters.
	TTY        bool
	Cols, Rows uint16
}

// SessionInfo describes a session as init tells it.
type SessionInfo struct {
	ID string
	// PID is the process id on the host while the session runs, 0 when that cannot be told.
	PID  int
	TTY  bool
	Args []string
	// Exited sessions stay listed, with their Status, until newer ones push them out.
	Exited bool
	Status ExitStatus
}

// ExitStatus says how a container or session ended.
type ExitStatus struct {
	// Code is the exit code, or 128 + Signal for a process that was killed; 126 and 127 say that the command could not be
	// executed or found.
	Code int `json:"code"`
	// Signal is the killing signal's number, or 0.
	Signal int `json:"signal,omitempty"`
	// OOMKilled says that the kernel killed it for lack of memory.
	OOMKilled bool `json:"oomKilled,omitempty"`
	// Reason is a sentence for people, or "".
	Reason string `json:"reason,omitempty"`
}

// State says where a container stands.
type State string

// The states of a container.
const (
	StateCreated State = "created"
	StateRunning State = "running"
	StatePaused  State = "paused"
	StateStopped State = "stopped"
)

// Stats is a snapshot of what a container uses; a field the kernel has no figure for is 0 (or nil).
type Stats struct {
	At time.Time `json:"at"`
	// CPUNanos is processor time used, in nanoseconds; CPUThrottledNanos the time it was held back by its quota.
	CPUNanos          uint64 `json:"cpuNanos"`
	CPUThrottledNanos uint64 `json:"cpuThrottledNanos"`
	// MemoryBytes is memory in use, page cache included; MemoryInactiveFile the part of it that is idle page cache.
	MemoryBytes        uint64 `json:"memoryBytes"`
	MemoryInactiveFile uint64 `json:"memoryInactiveFile"`
	MemoryPeak         uint64 `json:"memoryPeak"`
	// MemoryLimit is 0 when there is none.
	MemoryLimit uint64 `json:"memoryLimit"`
	PIDs        uint64 `json:"pids"`
	PIDsLimit   uint64 `json:"pidsLimit"`
	OOMKills    uint64 `json:"oomKills"`
	// BlockRead and BlockWrite are bytes moved from and to block devices.
	BlockRead  uint64 `json:"blockRead"`
	BlockWrite uint64 `json:"blockWrite"`
	// PSI holds pressure stall information where the kernel keeps it (cgroup v2 with psi=1).
	PSI *PSI `json:"psi,omitempty"`
}

// PSI is pressure stall information by resource (Documentation/accounting/psi.rst).
type PSI struct {
	CPU    Pressure `json:"cpu"`
	Memory Pressure `json:"memory"`
	IO     Pressure `json:"io"`
}

// Pressure is the share of time, in percent over the last 10 seconds, in which some (or all) tasks waited.
type Pressure struct {
	Some10 float64 `json:"some10"`
	Full10 float64 `json:"full10"`
}

// Check is one thing the runtime wants of the machine.
type Check struct {
	// Name is short ("user namespaces"); Detail says what was found.
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	// Consequence says what will not work, and what to do about it; empty when OK.
	Consequence string `json:"consequence,omitempty"`
}

// ExecError says that a session's command could not be started.
type ExecError struct {
	// Code is what a shell would return: 127 not found, 126 found but not executable or otherwise not startable.
	Code int
	// Message is the whole story.
	Message string
}

func (e *ExecError) Error() string { return e.Message }

// Runtime manages the containers under one state directory. Its methods may be called from several goroutines.
type Runtime struct {
	opts        Options
	hierarchies *hierarchies
	filters     *filterCache
	mortal      *mortal
	dumpable    int // PR_GET_DUMPABLE of this process at Open
}

// Open returns the Runtime of a state directory. Several processes may hold the same one.
func Open(opts Options) (*Runtime, error) {
	if !filepath.IsAbs(opts.StateDir) {
		return nil, fmt.Errorf("runtime: state directory %q is not an absolute path", opts.StateDir)
	}
	if strings.Trim(filepath.Clean("/"+opts.CgroupParent), "/") != opts.CgroupParent || opts.CgroupParent == "" {
		return nil, fmt.Errorf("runtime: cgroup parent %q is not a clean relative path such as learnos", opts.CgroupParent)
	}
	if err := os.MkdirAll(opts.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("runtime: %w", err)
	}
	// The control sockets below are nobody else's to reach.
	if err := os.Chmod(opts.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("runtime: %w", err)
	}
	hs, err := findHierarchies()
	if err != nil {
		return nil, fmt.Errorf("runtime: %w", err)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return nil, fmt.Errorf("runtime: %w", err)
	}
	return &Runtime{opts: opts, dumpable: dumpable, hierarchies: hs, filters: newFilterCache(filepath.Join(opts.StateDir, filterDir)), mortal: &mortal{}}, nil
}

func (r *Runtime) cgroupPath(id string) string { return r.opts.CgroupParent + "/" + id }

// Load finds a container made earlier, by this or another process; ErrNotFound if there is none.
func (r *Runtime) Load(ctx context.Context, id string) (*Container, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	dir := r.stateDir(id)
	s, err := readState(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("container %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	pidfd, err := openPidfd(s)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	return &Container{id: id, dir: dir, r: r, state: s, pidfd: pidfd, group: &cgroup{hs: r.hierarchies, path: s.Cgroup}}, nil
}

// List names the containers that have state, running or not, in alphabetical order.
func (r *Runtime) List(ctx context.Context) ([]string, error) {
	names, err := r.stateNames()
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, id := range names {
		if _, err := os.Stat(filepath.Join(r.stateDir(id), stateName)); err == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func (r *Runtime) stateNames() ([]string, error) {
	entries, err := os.ReadDir(r.opts.StateDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // it may have been given back; Create makes it anew
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && validID(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Sweep kills and removes every container, half-made one and cgroup whose id live denies, and names them. What another
// process is creating or deleting at the moment is left to it. Errors do not stop it.
func (r *Runtime) Sweep(ctx context.Context, live func(id string) bool) (removed []string, err error) {
	names, err := r.stateNames()
	if err != nil {
		return nil, err
	}
	var errs []error
	seen := map[string]bool{}
	for _, id := range names {
		seen[id] = true
		if ctx.Err() != nil {
			return removed, ctx.Err()
		}
		if live(id) {
			continue
		}
		gone, err := r.sweepOne(ctx, id)
		if err != nil {
			errs = append(errs, err)
		}
		if gone {
			removed = append(removed, id)
		}
	}
	// A cgroup without a state directory: its creation or deletion was cut short.
	for _, id := range r.hierarchies.siblings(r.opts.CgroupParent) {
		if seen[id] || live(id) {
			continue
		}
		if _, err := os.Stat(r.stateDir(id)); err == nil {
			continue // made since we looked
		}
		g := &cgroup{hs: r.hierarchies, path: r.cgroupPath(id)}
		err := g.kill()
		if err == nil {
			err = g.remove()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep %s: %w", id, err))
			continue
		}
		removed = append(removed, id)
	}
	return removed, errors.Join(errs...)
}

// sweepOne removes a container by its state directory, or, when that holds no state yet, by its name.
func (r *Runtime) sweepOne(ctx context.Context, id string) (gone bool, err error) {
	dir := r.stateDir(id)
	lock, err := lockDir(dir, false)
	if lock == nil {
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return false, err
	}
	c, err := r.Load(ctx, id)
	if err == nil {
		lock.Close()
		return true, c.Delete(ctx)
	}
	defer lock.Close()
	g := &cgroup{hs: r.hierarchies, path: r.cgroupPath(id)}
	if err := g.kill(); err != nil {
		return false, fmt.Errorf("sweep %s: %w", id, err)
	}
	if err := g.remove(); err != nil {
		return false, fmt.Errorf("sweep %s: %w", id, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return false, fmt.Errorf("sweep %s: %w", id, err)
	}
	return true, nil
}
