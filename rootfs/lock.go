package rootfs

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A lock is a named lock between all users of a store: goroutines and processes alike. It is one byte of the
// store's lock file, locked on an open file description of its own (fcntl(2), "Open file description locks"),
// so it ends with the process that holds it, whatever kills that, and no lock file is left to clean up.
type lock struct {
	f  *os.File
	at int64
}

// tryLock takes the named lock if nobody is in the way; ok says whether it did.
func (s *Store) tryLock(name string, exclusive bool) (l *lock, ok bool, err error) {
	f, err := os.OpenFile(s.path("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, fmt.Errorf("open the store's lock file: %w", err)
	}
	sum := sha256.Sum256([]byte(name))
	l = &lock{f, int64(binary.BigEndian.Uint64(sum[:]) >> 2)}
	if ok, err = l.set(exclusive); !ok {
		f.Close()
		return nil, false, err
	}
	return l, true, nil
}

// lock waits for the named lock.
func (s *Store) lock(ctx context.Context, name string, exclusive bool) (*lock, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		l, ok, err := s.tryLock(name, exclusive)
		if ok || err != nil {
			return l, err
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, err
		}
	}
}

func (l *lock) set(exclusive bool) (bool, error) {
	kind := int16(unix.F_RDLCK)
	if exclusive {
		kind = unix.F_WRLCK
	}
	err := unix.FcntlFlock(l.f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: l.at, Len: 1})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", l.f.Name(), err)
	}
	return true, nil
}

// share lets others in who only want to share. The lock is never lost in between.
func (l *lock) share() error {
	_, err := l.set(false)
	return err
}

// unlock gives the lock back, at once even while a child process still holds a copy of the descriptor.
func (l *lock) unlock() {
	unix.FcntlFlock(l.f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK, Start: l.at, Len: 1})
	l.f.Close()
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
