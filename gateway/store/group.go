package store

import (
	"context"
	"fmt"
	"sync"

	"gorm.io/gorm"
)

// writer lets those who write to SQLite share transactions. SQLite has one writer, and what a commit costs is the disk's
// sync; so while one transaction is being committed, those who come wait together and are the next one. Each is answered
// when its own change is on the disk, as if it had been alone, and nobody waits for company: a lone writer commits at once.
// (MySQL has many writers and gathers their commits by itself.)
type writer struct {
	db *gorm.DB

	mu      sync.Mutex
	waiting []*write
	busy    bool // somebody commits, and will look for more
}

// write is one writer's part of a transaction.
type write struct {
	fn    func(*gorm.DB) error
	taken bool // by who commits; under writer.mu
	done  chan error
}

// maxShare is how many writes a transaction has at most.
const maxShare = 64

// do runs fn in a transaction. fn must be repeatable, and may run in another goroutine; never later than do returns.
func (w *writer) do(ctx context.Context, fn func(*gorm.DB) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	me := &write{fn: fn, done: make(chan error, 1)}
	w.mu.Lock()
	w.waiting = append(w.waiting, me)
	leads := !w.busy
	w.busy = true
	w.mu.Unlock()
	if leads {
		go w.commit()
	}
	select {
	case err := <-me.done:
		return err
	case <-ctx.Done():
	}
	w.mu.Lock()
	taken := me.taken
	if !taken {
		me.fn = nil // nobody waits for it any more
	}
	w.mu.Unlock()
	if taken {
		return <-me.done
	}
	return ctx.Err()
}

// commit writes until nobody waits.
func (w *writer) commit() {
	for {
		w.mu.Lock()
		var share []*write
		for len(w.waiting) > 0 && len(share) < maxShare {
			if me := w.waiting[0]; me.fn != nil {
				me.taken = true
				share = append(share, me)
			}
			w.waiting = w.waiting[1:]
		}
		if len(share) == 0 {
			w.busy = false
			w.mu.Unlock()
			return
		}
		w.mu.Unlock()
		begun, err := w.together(share)
		if err != nil && begun && len(share) > 1 {
			// One of them was refused, and what the others did went with it.
			for _, me := range share {
				_, err := w.together([]*write{me})
				me.done <- err
			}
			continue
		}
		for _, me := range share { // done; or it was nobody's fault, and one by one they would only wait that much longer
			me.done <- err
		}
	}
}

// together runs writes in one transaction, all or nothing; begun tells whether there was one. No request's end interrupts
// it: an interrupted statement takes the whole transaction along (sqlite3_interrupt).
func (w *writer) together(share []*write) (begun bool, err error) {
	defer func() {
		if cause := recover(); cause != nil { // the transaction is rolled back by now
			err = fmt.Errorf("write to the database: panic: %v", cause)
		}
	}()
	err = w.db.Transaction(func(db *gorm.DB) error {
		begun = true
		for _, me := range share {
			if err := me.fn(db); err != nil {
				return err
			}
		}
		return nil
	})
	return begun, err
}
