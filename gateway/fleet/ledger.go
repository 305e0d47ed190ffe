package fleet

import (
	"context"
	"sync"
	"time"

	"github.com/learnos/learnos/gateway/store"
)

// ledger brings what happens to environments into their rows, as many changes in one transaction as have come by then: what
// arrives while one is being committed is the next. So N environments that start together cost a few syncs of the disk and
// not three each. Changes of one environment stay in their order; none is lost while the database is away, and what a
// killed gateway had not written yet the next one finds in etcd (followStatuses lists it all at first).
type ledger struct {
	store   *store.Store
	now     func() time.Time
	fail    func(error)             // hears of what will be tried again
	changed func(store.Environment) // hears of each environment that has changed

	writing sync.Mutex // one transaction at a time, so that what came first is written first

	mu      sync.Mutex
	waiting []entry
	more    chan struct{} // something new waits
	room    *sync.Cond    // on mu: the list has become shorter
}

// entry is one change.
type entry struct {
	store.Change
	due  time.Time                                // when it must be written
	then func(context.Context, store.Environment) // when it is written: with the row after it, and after what was written with it; may be nil
}

// How long changes may wait for company: those that a person or a request waits for don't.
const (
	atOnce   = 0
	progress = 20 * time.Millisecond // a state between others that nobody could have read by then
	aNote    = time.Second           // that only a restart would miss, and then only ask once more
)

const (
	maxWaiting = 4096 // changes that may wait before those who can are made to (pace)
	maxWrite   = 256  // changes in one transaction
)

func newLedger(s *store.Store, now func() time.Time, fail func(error), changed func(store.Environment)) *ledger {
	l := &ledger{store: s, now: now, fail: fail, changed: changed, more: make(chan struct{}, 1)}
	l.room = sync.NewCond(&l.mu)
	return l
}

// add hands a change over, to be written within patience. It never waits.
func (l *ledger) add(id string, patience time.Duration, apply func(*store.Environment) bool, then func(context.Context, store.Environment)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, entry{store.Change{ID: id, Apply: apply}, time.Now().Add(patience), then})
	select {
	case l.more <- struct{}{}:
	default:
	}
}

// pace waits until the ledger is not too far behind, or ctx has ended.
func (l *ledger) pace(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.room.Broadcast()
	})
	defer stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.waiting) >= maxWaiting && ctx.Err() == nil {
		l.room.Wait()
	}
}

// idle is for how long nothing must be written.
func (l *ledger) idle() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	wait := time.Hour
	for _, e := range l.waiting {
		wait = min(wait, time.Until(e.due))
	}
	return wait
}

// run writes until ctx ends.
func (l *ledger) run(ctx context.Context) {
	for {
		if wait := l.idle(); wait > 0 {
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-l.more:
			case <-timer.C:
			}
			timer.Stop()
			continue
		}
		if _, err := l.write(ctx); err != nil {
			if ctx.Err() != nil {
				return
			}
			l.fail(err)
			if !sleep(ctx, time.Second) {
				return
			}
		}
	}
}

// flush writes all that waits, now.
func (l *ledger) flush(ctx context.Context) error {
	for {
		if n, err := l.write(ctx); n == 0 || err != nil {
			return err
		}
	}
}

// write writes what has waited longest, and tells how much. On an error it waits on, in its old place.
func (l *ledger) write(ctx context.Context) (int, error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	batch := l.waiting[:min(len(l.waiting), maxWrite)]
	l.mu.Unlock()
	if len(batch) == 0 {
		return 0, nil
	}
	changes := make([]store.Change, len(batch))
	for i, e := range batch {
		changes[i] = e.Change
	}
	rows, changed, err := l.store.ChangeEnvironments(ctx, l.now(), changes)
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	l.waiting = append([]entry(nil), l.waiting[len(batch):]...)
	l.room.Broadcast()
	l.mu.Unlock()
	for _, e := range batch {
		row, ok := rows[e.ID] // what has no row is not ours: another installation's
		if ok && changed[e.ID] {
			delete(changed, e.ID)
			l.changed(row)
		}
		if ok && e.then != nil {
			e.then(ctx, row)
		}
	}
	return len(batch), nil
}
