package rootfs

import (
	"errors"
	"time"
)

// ErrNotFound is wrapped by every error that says a named image or snapshot does not exist.
var ErrNotFound = errors.New("not found")

// ErrInUse is wrapped by the error of removing an image that snapshots still stand on.
var ErrInUse = errors.New("in use")

// An Image is one entry of the store's catalogue: a name and the stack of layers it stands for. It is a
// value: a later pull of the same name does not change it.
type Image struct {
	// Name is what the catalogue knows it by, e.g. "busybox" or "registry.example/team/app:1".
	Name string `json:"name"`
	// Source is what it was made from, as Pull or Build took it.
	Source string `json:"source"`
	// Digest names the content: a manifest's digest for registries and OCI layouts, the config's digest for
	// archives of docker save, the single layer's digest for directories and built images.
	Digest string `json:"digest"`
	// Layers are the digests of the unpacked layers ("sha256:…", OCI image-spec DiffID), lowest first.
	Layers []string `json:"layers"`
	// Size is the sum of the layers' unpacked file sizes in bytes.
	Size int64 `json:"size"`
	// Created is when this entry came into the catalogue.
	Created time.Time `json:"created"`
	// Config is the part of the OCI image configuration that matters for running it.
	Config ImageConfig `json:"config"`
}

// ImageConfig is the execution part of an OCI image configuration (image-spec, config.md).
type ImageConfig struct {
	Env          []string          `json:"env,omitempty"`
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	WorkingDir   string            `json:"workingDir,omitempty"`
	User         string            `json:"user,omitempty"`
	ExposedPorts []string          `json:"exposedPorts,omitempty"` // "80/tcp", sorted
	Labels       map[string]string `json:"labels,omitempty"`
}

// Phases of a Progress, in the order a layer goes through them.
const (
	PhaseResolving   = "resolving"
	PhaseDownloading = "downloading"
	PhaseUnpacking   = "unpacking"
	PhaseDone        = "done"
	PhaseBuilding    = "building"
)

// Progress is one report about long work. Reports about different layers interleave; a function that takes
// them is called from several goroutines but never from two at once, and should return quickly.
type Progress struct {
	// Layer is the digest the report is about; "" when it is about the whole image.
	Layer string
	// Phase is one of the Phase constants.
	Phase string
	// Done and Total count bytes (downloading, unpacking: compressed bytes taken in) or, while building,
	// percent (Total 100). Total 0 means not known yet.
	Done, Total int64
	// Message is one line for a person, or "".
	Message string
}

// PullOptions says how Pull and Ensure fetch an image. The zero value is usable.
type PullOptions struct {
	// Name is the catalogue name to give the image; "" derives one from the reference.
	Name string
	// Insecure allows plain HTTP to a registry.
	Insecure bool
	// AbsoluteNames accepts layers whose entries have names beginning with "/" and takes those as relative to
	// the image's root, as some builders write them. Without it such layers are refused.
	AbsoluteNames bool
	// MaxBytes and MaxEntries bound what one layer may unpack to: the sum of its file sizes, and its files and
	// directories. 0 means 64 GiB and two million.
	MaxBytes, MaxEntries int64
	// Progress, if set, receives reports.
	Progress func(Progress)
}

// BuildOptions says how Build makes an image. The zero value is usable.
type BuildOptions struct {
	// Force builds even when the catalogue already has the image.
	Force bool
	// Mirror is the Debian mirror debootstrap fetches from; "" takes the host's own.
	Mirror string
	// Progress, if set, receives reports.
	Progress func(Progress)
}

// SnapshotOptions says who owns a snapshot's writable layer.
type SnapshotOptions struct {
	// HostUID and HostGID are the ids on the host that are root inside: the start of the environment's range.
	HostUID, HostGID int
	// Volatile lets the kernel skip syncing the writable layer (overlayfs "volatile"): much faster package
	// installs, and a writable layer that is worth nothing after the machine itself crashes.
	Volatile bool
	// DiskBytes bounds what the writable layer takes, with a bound on the number of files in proportion; 0: neither. Inside,
	// what goes beyond fails with ENOSPC, or EDQUOT on an ext4 with project quotas. See MinDisk and MaxDisk.
	DiskBytes int64
}
