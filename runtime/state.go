package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Files of a container's state directory. A directory without stateName is a creation that was cut short.
const (
	stateName  = "state.json"
	statusName = "status" // written by init through a descriptor
	killedName = "killed" // left by Kill, so that Wait can tell a wish from a misfortune
)

// state is what a later process needs to find a container again.
type state struct {
	ID      string    `json:"id"`
	PID     int       `json:"pid"`
	Start   uint64    `json:"startTime"` // field 22 of /proc/PID/stat: with PID and Boot it names a process for good
	Boot    string    `json:"bootID"`
	Created time.Time `json:"created"`
	Cgroup  string    `json:"cgroup"`
	Main    bool      `json:"main"`
	Memory  int64     `json:"memoryLimit,omitempty"`
}

// validID says whether a name is of the form ^[a-z0-9][a-z0-9-]{0,62}$.
func validID(id string) bool {
	for i, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && (c != '-' || i == 0) {
			return false
		}
	}
	return id != "" && len(id) <= 63
}

func checkID(id string) error {
	if !validID(id) {
		return fmt.Errorf("container id %q: want lower-case letters, digits and '-', letter or digit first, 63 at most", id)
	}
	return nil
}

// bootID changes whenever the machine starts.
var bootID = sync.OnceValue(func() string {
	b, _ := readFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
})

// startTime reads when a process started, in clock ticks since boot.
func startTime(pid int) (uint64, error) {
	b, err := readFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The command name may hold anything, ')' and spaces too: count from its last ')'.
	_, rest, _ := cutLast(string(b), ")")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat is malformed", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// writeState puts the state in place in one step: a reader, or a successor after kill -9, sees all of it or none.
func writeState(dir string, s *state) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	temp := filepath.Join(dir, stateName+".new")
	if err := os.WriteFile(temp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(dir, stateName))
}

func readState(dir string) (*state, error) {
	b, err := os.ReadFile(filepath.Join(dir, stateName))
	if err != nil {
		return nil, err
	}
	s := &state{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, stateName), err)
	}
	return s, nil
}

// lockDir takes hold of a container's directory against other processes that would create or delete it. wait false
// returns nil without an error when somebody else has it.
func lockDir(dir string, wait bool) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			break
		}
	}
	if err == unix.EWOULDBLOCK {
		f.Close()
		return nil, nil
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// openPidfd opens the process that a state speaks of; nil if it is no more.
func openPidfd(s *state) (*os.File, error) {
	if s.PID <= 0 || s.Boot != bootID() {
		return nil, nil
	}
	fd, err := unix.PidfdOpen(s.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			return nil, nil
		}
		return nil, fmt.Errorf("pidfd of %d: %w", s.PID, err)
	}
	// Opened first, compared second: had the number been given to another, its start time would tell.
	if start, err := startTime(s.PID); err != nil || start != s.Start {
		unix.Close(fd)
		return nil, nil
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}
