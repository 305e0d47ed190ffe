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
	"os"
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
	// StateDir holds one directory per container, mode 0700. It is created if missing.
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
	CPU, Memory, IO Pressure
}

// Pressure is the share of time, in percent over the last 10 seconds, in which some (or all) tasks waited.
type Pressure struct {
	Some10, Full10 float64
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

var errStub = errors.New("runtime: not built yet")

// Runtime manages the containers under one state directory.
type Runtime struct {
	opts Options
}

// Open returns the Runtime of a state directory. Several processes may hold the same one.
func Open(opts Options) (*Runtime, error) { return &Runtime{opts: opts}, nil }

// Create makes a container's namespaces and cgroups; its init then waits for Start.
func (r *Runtime) Create(ctx context.Context, o CreateOptions) (*Container, error) {
	return nil, errStub
}

// Load finds a container made earlier, by this or another process; ErrNotFound if there is none.
func (r *Runtime) Load(ctx context.Context, id string) (*Container, error) { return nil, errStub }

// List names the containers that have state, running or not.
func (r *Runtime) List(ctx context.Context) ([]string, error) { return nil, errStub }

// Sweep kills and removes every container, cgroup and state directory whose id live denies.
func (r *Runtime) Sweep(ctx context.Context, live func(id string) bool) (removed []string, err error) {
	return nil, errStub
}

// Container is one environment.
type Container struct {
	id  string
	pid int
}

// ID is the id given to Create.
func (c *Container) ID() string { return c.id }

// PID is init's process id on the host.
func (c *Container) PID() int { return c.pid }

// NamespaceFD opens one of the container's namespaces.
func (c *Container) NamespaceFD(kind specs.LinuxNamespaceType) (*os.File, error) { return nil, errStub }

// State says where the container stands.
func (c *Container) State(ctx context.Context) (State, error) { return "", errStub }

// Start builds the root and confinement and, if there is a Main, starts it.
func (c *Container) Start(ctx context.Context, o StartOptions) error { return errStub }

// StartSession starts a command inside.
func (c *Container) StartSession(ctx context.Context, s SessionSpec) (*Session, error) {
	return nil, errStub
}

// Sessions lists the container's sessions.
func (c *Container) Sessions(ctx context.Context) ([]SessionInfo, error) { return nil, errStub }

// Attach returns a session by its id, with fresh duplicates of its terminal or pipes.
func (c *Container) Attach(ctx context.Context, sessionID string) (*Session, error) {
	return nil, errStub
}

// Signal sends a signal to Main, or to init when there is none.
func (c *Container) Signal(ctx context.Context, sig unix.Signal) error { return errStub }

// Kill ends the whole container at once.
func (c *Container) Kill(ctx context.Context) error { return errStub }

// Pause freezes every process of the container.
func (c *Container) Pause(ctx context.Context) error { return errStub }

// Resume undoes Pause.
func (c *Container) Resume(ctx context.Context) error { return errStub }

// Wait returns when the container has ended.
func (c *Container) Wait(ctx context.Context) (ExitStatus, error) { return ExitStatus{}, errStub }

// Stats reads what the container uses.
func (c *Container) Stats(ctx context.Context) (Stats, error) { return Stats{}, errStub }

// Delete kills the container and removes its cgroups and state. It may be called again.
func (c *Container) Delete(ctx context.Context) error { return errStub }

// Session is one command running inside, as seen by this process.
type Session struct {
	id                         string
	pid                        int
	pty, stdin, stdout, stderr *os.File
}

// ID is the session's id.
func (s *Session) ID() string { return s.id }

// PID is its process id on the host, or 0 when that cannot be told.
func (s *Session) PID() int { return s.pid }

// PTY is the master side of its terminal; nil without one.
func (s *Session) PTY() *os.File { return s.pty }

// Stdin is our end of its standard input; nil with a TTY.
func (s *Session) Stdin() *os.File { return s.stdin }

// Stdout is our end of its standard output; nil with a TTY.
func (s *Session) Stdout() *os.File { return s.stdout }

// Stderr is our end of its standard error; nil with a TTY.
func (s *Session) Stderr() *os.File { return s.stderr }

// CloseStdin gives the session end of file on its standard input.
func (s *Session) CloseStdin(ctx context.Context) error { return errStub }

// Resize sets the terminal's size in characters.
func (s *Session) Resize(cols, rows uint16) error { return errStub }

// Signal sends a signal to the session's process.
func (s *Session) Signal(ctx context.Context, sig unix.Signal) error { return errStub }

// Wait returns when the session's process has ended.
func (s *Session) Wait(ctx context.Context) (ExitStatus, error) { return ExitStatus{}, errStub }

// Close closes our descriptors; the session goes on.
func (s *Session) Close() error { return errStub }

// DefaultSpec is the locked-down configuration to start from. The caller fills the id mappings and the limits.
func DefaultSpec() *specs.Spec { return &specs.Spec{Version: specs.Version} }

// Probe says what this machine gives and lacks.
func Probe(ctx context.Context) []Check { return nil }
