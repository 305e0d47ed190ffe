// Package initproto is what package runtime (outside) and init (inside) say to each other: messages over a SOCK_SEQPACKET
// unix socket, one request and its answer per connection, descriptors beside them.
//
// The encoding is plain: little-endian integers, length-prefixed strings, every length checked against what is left and
// against a bound, so that a decoder fed garbage returns an error and nothing worse. Neither side trusts the other: init
// is inside a tenant's machine, and the runtime's socket might one day be reached by somebody else.
//
// It imports nothing that init would not want to carry.
package initproto

import "errors"

// Version is raised whenever the encoding changes; a container keeps the init it was born with, so a runtime that meets
// another version says so instead of guessing.
const Version = 1

// Bounds of a message.
const (
	// MaxInline is the longest message sent in one piece; a longer request travels in a memfd passed as its last descriptor.
	MaxInline = 48 << 10
	// MaxMessage bounds any message.
	MaxMessage = 4 << 20
	// MaxFDs is how many descriptors go with a message (the kernel's SCM_MAX_FD is 253).
	MaxFDs = 250
	// MaxSessions is how many sessions, running or ended, an init remembers.
	MaxSessions = 128
	maxList     = 4096
	maxString   = 1 << 20
)

// Kind says what a message is.
type Kind uint8

// Requests, sent to init. Each is answered by one Reply.
const (
	// Setup carries a Plan; the descriptors it counts go with it.
	Setup Kind = iota + 1
	// Exec carries a Session. Answer: an Info, with the pidfd and our ends of the terminal or pipes.
	Exec
	// List has no body. Answer: Infos, with the pidfd of each that runs.
	List
	// Attach names a session. Answer as for Exec.
	Attach
	// Wait names a session. Answer, when it has ended: a Status.
	Wait
	// Signal names a session and a signal.
	Signal
	// CloseStdin names a session.
	CloseStdin
	// Ping has no body. Answer: the Phase.
	Ping
	// Begin has no body: it lets a Process go on to its exec. Nothing but an error is answered; success closes the connection.
	Begin
	// Enter, only to a Process and before Setup, has no body: the descriptors with it are the tasks files of the cgroups
	// (v1) that init is to enter. Answered when it has.
	Enter
)

// Phase says how far init is.
type Phase uint8

// The phases of init.
const (
	Waiting Phase = iota + 1
	Running
	Ending
)

// Code says how a request went.
type Code uint8

// Codes of a Reply.
const (
	OK Code = iota
	Failed
	NotFound
	Exists
	Invalid
	// ExecNotFound and ExecFailed are a shell's 127 and 126.
	ExecNotFound
	ExecFailed
	WrongPhase
	Busy
)

// Request is a message to init.
type Request struct {
	Kind    Kind
	Plan    *Plan    // Setup
	Session *Session // Exec
	ID      string   // Attach, Wait, Signal, CloseStdin
	Signal  int32    // Signal
}

// Reply is init's answer.
type Reply struct {
	Code    Code
	Message string
	Phase   Phase
	Infos   []Info
	Status  *Status
}

// Session is a command to run.
type Session struct {
	ID         string
	Args, Env  []string
	Cwd, User  string
	TTY        bool
	Cols, Rows uint16
	// MakeCwd creates a missing working directory, as images expect of their own.
	MakeCwd bool
}

// Info describes a session. HasPIDFD says that a pidfd goes with it.
type Info struct {
	ID       string
	PID      int32 // inside
	TTY      bool
	HasPIDFD bool
	FDs      uint8 // which descriptors follow the pidfd: bit 0 terminal or stdin, bit 1 stdout, bit 2 stderr
	Args     []string
	Exited   bool
	Status   Status
}

// Status is how a process ended.
type Status struct {
	Code, Signal int32
	Reason       string
}

// Mount is one mount to make inside the root, in order.
type Mount struct {
	// Dest is the absolute target inside.
	Dest string
	// FD is the index of a detached mount among the descriptors, NewFS, or Remount.
	FD     int32
	FSType string
	Source string
	// Options are "key" or "key=value", for fsconfig(2).
	Options []string
	// AttrSet and, for FromPath, AttrClear hold MOUNT_ATTR_ flags; Recursive applies them below, too.
	AttrSet, AttrClear uint64
	Recursive          bool
	// Propagation is MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE (perhaps with MS_REC), or 0.
	Propagation uint64
	// Strict refuses any symlink on the way to Dest; File says that the mount's root is not a directory.
	Strict, File bool
	// Optional mounts that the kernel refuses are left out.
	Optional bool
	// LikeTarget gives a new file system the mode of the directory it covers, CopyUp that directory's content.
	LikeTarget, CopyUp bool
}

// Values of Mount.FD beside an index.
const (
	// NewFS makes a file system of type FSType.
	NewFS = -1
	// Remount sets AttrSet on what has been mounted at Dest before.
	Remount = -2
	// FromPath binds Source, a path of the host, with all below it if the one option is "rbind". It is for a Process
	// that has the host's rights: the mount then is made in its turn, and mount tables go by the order of making.
	FromPath = -3
)

// Device is a node to put into /dev: Major:Minor at Path.
type Device struct {
	Path         string
	Host         string // bind this node when mknod is refused
	Mode         uint32 // with the type bits of mknod(2)
	Major, Minor uint32
	UID, GID     uint32
}

// Pair is a sysctl: a path below /proc/sys and its value.
type Pair struct{ Key, Value string }

// Rlimit is a resource limit of every session.
type Rlimit struct {
	Resource uint32
	Cur, Max uint64
}

// Caps are the five capability sets, bit by bit (capability.h).
type Caps struct{ Bounding, Effective, Permitted, Inheritable, Ambient uint64 }

// Plan is everything init does before it starts Main. Descriptor 0 is the root's detached mount.
type Plan struct {
	FDs                  uint16
	Hostname, Domainname string
	CgroupNS, UserNS     bool
	// OwnDev says that /dev is a file system of our own, to be filled with the usual nodes and links.
	OwnDev bool
	// Loopback has the loopback device brought up, in a network namespace that is new.
	Loopback        bool
	RootReadonly    bool
	RootPropagation uint64
	Mounts          []Mount
	Devices         []Device
	Masked          []string
	Readonly        []string
	Sysctl          []Pair
	Rlimits         []Rlimit
	Caps            Caps
	NoNewPrivs      bool
	Umask           uint32
	// Groups are extra supplementary groups of sessions that run as the default user.
	Groups []uint32
	// ExecLabel is written to the file ExecLabelFile below /proc/self/attr before a session's exec (AppArmor, SELinux).
	ExecLabelFile, ExecLabel string
	// Seccomp is a classic BPF program (struct sock_filter); SeccompFlags are SECCOMP_FILTER_FLAG_ bits. SeccompOnInit
	// says that init itself can live under it, so that sessions inherit it.
	Seccomp       []byte
	SeccompFlags  uint32
	SeccompOnInit bool
	// SocketFilter is a second program, by which init is asked for every netlink socket, of which it makes at most
	// NetlinkSockets at a time, and for what the profile calls init's to make; empty where it is not asked.
	SocketFilter   []byte
	NetlinkSockets uint32
	Main           *Session
	// Process, set instead of Main, is what init itself becomes by exec.
	Process *Process
	// LogMax bounds each of the two log files; 0 without a log.
	LogMax int64
	// KeepStdin: a logged Main reads from a pipe that stays open, not from /dev/null.
	KeepStdin bool
}

// Process is a program that init becomes: the container's first one (which the rest of the Plan makes the container for),
// or, with Join, one more in a container that is already there, of whose Plan only the confinement counts.
type Process struct {
	Args, Env []string
	Cwd       string
	UID, GID  uint32
	Join      bool
	// Now goes on to exec without the first answer and without waiting for Begin.
	Now        bool
	Terminal   bool
	Cols, Rows uint16
	// Preserve is how many descriptors from 3 on the process inherits.
	Preserve uint16
	// RootPath is where the host knows the root: it is attached there for the createContainer hooks to find.
	RootPath           string
	NoPivot, NoKeyring bool
	// Detached leaves the root a detached tree to chroot into, for want of a mount namespace of the container's own
	// (Linux 6.15).
	Detached          bool
	CreateContainer   []Hook
	StartContainer    []Hook
	Creating, Created string // the state for hooks, with HookPID where the process id belongs
	ListenPID         bool   // adds LISTEN_PID to the environment (sd_listen_fds(3))
	SetPersonality    bool
	Personality       uint32
	SetIOPriority     bool
	IOPriority        uint32 // as ioprio_set(2) takes it
	Scheduler         []byte // struct sched_attr of sched_setattr(2), or empty
	Affinity          []byte // a CPU mask for sched_setaffinity(2), or empty
	FinalAffinity     []byte // the same, set last
	MemoryPolicy      []byte // a node mask for set_mempolicy(2)
	MemoryPolicyMode  uint32
	SetMemoryPolicy   bool
}

// Hook is a program to run at a point of the container's life, with its state on standard input.
type Hook struct {
	Path      string
	Args, Env []string
	// Seconds is how long it may take; 0: as long as it likes.
	Seconds uint32
}

// HookPID stands in a state for the process id that only the process itself knows.
const HookPID = "\x01"

// ErrMalformed says that a message is not one.
var ErrMalformed = errors.New("initproto: malformed message")

// ErrVersion says that the other side speaks another version.
var ErrVersion = errors.New("initproto: other side speaks another version")
