// Package vm runs a command, most often a test binary, as root on a pure cgroup v2 machine: Debian's cloud kernel
// under QEMU, started for that one command. It is how Learnos proves what the kernel at hand can't show.
//
// The guest sees the host's whole file system, read-only by virtiofs, under a layer of its own memory, so the command
// finds every tool and file where it is outside, and nothing it writes is left. /tmp is memory too. It has no network but
// lo. A second disk, 1 GiB of nothing, is there to be throttled (environment variable LEARNOS_VM_DISK).
//
// What it does NOT do: measure. The processor is emulated and a system call takes several times as long as outside.
package vm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Job is the command a guest is started for.
type Job struct {
	Args  []string
	Env   []string // LEARNOS_VM=1 is added
	Dir   string
	Shell bool // Args run on the serial console as a login would, not over the port
}

// ErrInfrastructure is wrapped by every failure that is the machine's and says nothing about the command.
var ErrInfrastructure = errors.New("infrastructure failure")

// The guest tells the host by frames of one byte of kind, four of length (big-endian), and that many of data.
const (
	frameStarted = 'S' // the command is about to run
	frameOut     = 'O'
	frameErr     = 'E'
	frameExit    = 'X' // one byte of status, the last frame
	frameFailed  = 'F' // the guest could not run it: why
)

const maxFrame = 64 << 10

// portName is the virtio-serial port the frames go through.
const portName = "job"

// CacheDir is tests/.cache/vm of the checkout the directory is in.
func CacheDir(dir string) (string, error) {
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return filepath.Join(d, "tests", ".cache", "vm"), nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("%s is in no Go module: run from the checkout", dir)
		}
	}
}
