// Package only sees to it that a directory has one process that works with it.
package only

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrTaken: another process has the lock.
var ErrTaken = errors.New("another process has it")

// patience is how long somebody else's lock is waited for. It is the open file's, and a process that was killed may leave a
// child behind that has the file until it executes something else, or notices: that takes milliseconds, on a busy machine
// more, and who starts it again in that moment is no second process.
const patience = 3 * time.Second

// Lock takes the lock of a file, which is made if need be, with mode 0600. It is held until the file is closed or the
// process ends, however it does. When it is somebody else's for long: ErrTaken.
func Lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EWOULDBLOCK):
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		case time.Since(begin) > patience:
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, ErrTaken)
		}
	}
}
