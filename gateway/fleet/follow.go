package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/learnos/learnos/gateway/store"
	"github.com/learnos/learnos/internal/queue"
)

// Run moves environments until ctx ends.
func (f *Fleet) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, loop := range []func(context.Context){f.followHealth, f.followNodes, f.followStatuses, f.ledger.run, f.outbox, f.followPlaces, f.sweeps} {
		group.Go(func() error { loop(ctx); return nil })
	}
	group.Go(func() error { f.Queue.RunReaper(ctx); return nil })
	return group.Wait()
}

// sleep tells whether ctx still lives after d.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (f *Fleet) followHealth(ctx context.Context) {
	for {
		f.probe(ctx)
		if !sleep(ctx, probeEvery) {
			return
		}
	}
}

func (f *Fleet) followNodes(ctx context.Context) {
	for list := range f.Queue.WatchNodes(ctx) {
		nodes := make(map[string]queue.NodeInfo, len(list))
		for _, n := range list {
			nodes[n.Name] = n
		}
		f.mu.Lock()
		was := f.nodes
		f.nodes = nodes
		f.mu.Unlock()
		f.tellComings(ctx, was, nodes)
	}
}

// tellComings pushes the environments of nodes that came or went, since whether their node is there is part of what
// is shown.
func (f *Fleet) tellComings(ctx context.Context, was, is map[string]queue.NodeInfo) {
	changed := map[string]bool{}
	for n := range was {
		if _, ok := is[n]; !ok {
			f.Log.Warn("node is away", "node", n)
			changed[n] = true
		}
	}
	for n := range is {
		if _, ok := was[n]; !ok {
			f.Log.Info("node is there", "node", n)
			changed[n] = true
		}
	}
	if len(changed) == 0 {
		return
	}
	rows, err := f.Store.Environments(ctx, store.Filter{States: store.ActiveStates})
	if err != nil {
		f.Log.Error("list environments of nodes that came or went", "error", err)
		return
	}
	for _, e := range rows {
		if changed[e.Node] && f.Watched(e.UserID) {
			f.Changed(e.UserID, e.ID)
		}
	}
}

// followStatuses lists, then watches what nodes report, for ever.
func (f *Fleet) followStatuses(ctx context.Context) {
	for {
		list, rev, err := f.Queue.Statuses(ctx)
		if err == nil {
			f.forgetOldRevisions(ctx, rev)
			for _, st := range list {
				f.ledger.pace(ctx)
				f.hear(st, atOnce)
			}
			for ev := range f.Queue.WatchStatuses(ctx, rev) {
				if ev.Forgotten {
					continue
				}
				patience := progress
				if ev.Status.State == queue.StateRunning || queue.Terminal(ev.Status.State) {
					patience = atOnce
				}
				f.ledger.pace(ctx)
				f.hear(ev.Status, patience)
			}
		}
		if !sleep(ctx, time.Second) {
			return
		}
	}
}

// forgetOldRevisions: revisions beyond etcd's own come from another etcd that was there before (restored from nothing,
// say). Rows that keep them would be deaf.
func (f *Fleet) forgetOldRevisions(ctx context.Context, rev int64) {
	rows, err := f.Store.Environments(ctx, store.Filter{})
	if err != nil {
		f.Log.Error("list environments", "error", err)
		return
	}
	for _, e := range rows {
		if e.StatusRev <= rev {
			continue
		}
		f.Log.Warn("etcd is younger than what it reported before", "environment", e.ID, "revision", e.StatusRev, "newest", rev)
		_, _, err := f.Store.ChangeEnvironment(ctx, e.ID, f.now(), func(e *store.Environment) (bool, string, error) {
			e.StatusRev = 0
			return true, "", nil
		})
		if err != nil {
			f.Log.Error("forget an old revision", "environment", e.ID, "error", err)
		}
	}
}

// hear puts one status into its row, within patience, or however long the database is away.
func (f *Fleet) hear(st queue.EnvStatus, patience time.Duration) {
	f.ledger.add(st.ID, patience, func(e *store.Environment) bool { return advance(e, st, f.now()) },
		func(ctx context.Context, e store.Environment) { f.follow(ctx, e, st) })
}

// tryTake puts one status into its row, now.
func (f *Fleet) tryTake(ctx context.Context, st queue.EnvStatus) error {
	e, changed, err := f.Store.ChangeEnvironment(ctx, st.ID, f.now(), func(e *store.Environment) (bool, string, error) {
		return advance(e, st, f.now()), "", nil
	})
	if err != nil {
		return err
	}
	if changed {
		f.Changed(e.UserID, e.ID)
	}
	f.follow(ctx, e, st)
	return nil
}

// follow does what a status of an environment that should not be there any more calls for.
func (f *Fleet) follow(ctx context.Context, e store.Environment, st queue.EnvStatus) {
	ctx, cancel := context.WithTimeout(ctx, etcdIn)
	defer cancel()
	switch {
	case e.State == queue.StateDeleted && !queue.Terminal(st.State) && st.Rev >= e.StatusRev &&
		(e.DeleteJobAt == 0 || f.now().Sub(e.DeleteJobAt.Std()) > againAfter):
		// It was given up, but it is still there, or there again.
		f.Log.Info("environment outlived its row; deleting it", "environment", e.ID, "node", st.Node)
		if err := f.askDelete(ctx, e, st.Node); err != nil {
			f.Log.Warn("delete it later", "environment", e.ID, "error", err) // the sweep comes by again
		}
	case e.State == queue.StateStopping && e.DeleteJobAt == 0 && st.Rev >= e.StatusRev:
		if err := f.settle(ctx, e); err != nil {
			f.Log.Warn("finish deleting later", "environment", e.ID, "error", err)
		}
	}
}

// advance moves a row on to what a node reports, and tells whether anything changed. Reports older than the row, and
// those that contradict an end, change nothing.
func advance(e *store.Environment, st queue.EnvStatus, now time.Time) bool {
	if st.Rev != 0 && st.Rev <= e.StatusRev {
		return false
	}
	e.StatusRev = st.Rev
	if e.Try == 0 { // whatever etcd says of it, its job was there; of a later try only who enqueued it knows
		e.Enqueued = true
	}
	if queue.Terminal(e.State) {
		return true
	}
	if st.Node != "" || st.State == queue.StateQueued {
		e.Node = clip(st.Node, 255)
	}
	if st.Address != "" {
		e.Address = clip(st.Address, 64)
	}
	if !st.Deadline.IsZero() {
		e.Deadline = store.At(st.Deadline)
	}
	if len(st.Timings) > 0 {
		e.Timings = maps.Clone(st.Timings)
	}
	if st.State == queue.StateRunning && e.StartedAt == 0 {
		e.StartedAt = store.At(now)
	}
	state := clip(st.State, 16)
	if e.DeleteAskedAt != 0 { // only the end counts now, whatever kind it is
		if !queue.Terminal(state) {
			return true
		}
		state = queue.StateDeleted
	}
	e.State, e.Stage, e.Percent, e.Reason = state, clip(st.Stage, 64), min(max(st.Percent, 0), 100), clip(st.Reason, 4096)
	if queue.Terminal(state) {
		e.EndedAt = store.At(now)
	}
	return true
}

// clip bounds what a node says to what a column holds: MariaDB refuses more, and everything written with it.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}

// outbox enqueues rows that have no job: the gateway died between the two, or etcd was away. It also moves deletes on.
func (f *Fleet) outbox(ctx context.Context) {
	for {
		if f.Healthy() {
			f.emptyOutbox(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
			if !sleep(ctx, 100*time.Millisecond) { // failures poke too
				return
			}
		case <-time.After(outboxEvery):
		}
	}
}

func (f *Fleet) emptyOutbox(ctx context.Context) {
	rows, err := f.Store.Environments(ctx, store.Filter{States: []string{queue.StateQueued}, NotEnqueued: true})
	if err != nil {
		f.Log.Error("look for environments without a job", "error", err)
		return
	}
	stopping, err := f.Store.Environments(ctx, store.Filter{States: []string{queue.StateStopping}})
	if err != nil {
		f.Log.Error("look for environments to delete", "error", err)
		return
	}
	for _, e := range rows {
		if !f.patiently(ctx, e, "enqueue", func(ctx context.Context) error { _, err := f.enqueue(ctx, e, true); return err }) {
			return
		}
	}
	for _, e := range stopping {
		if e.DeleteAskedAt == 0 {
			continue // its node ends it by itself
		}
		if !f.patiently(ctx, e, "delete", func(ctx context.Context) error { return f.settle(ctx, e) }) {
			return
		}
	}
}

// patiently does one step with a bound on its time; when etcd seems away the rest waits.
func (f *Fleet) patiently(ctx context.Context, e store.Environment, what string, step func(context.Context) error) bool {
	ctx, cancel := context.WithTimeout(ctx, etcdIn)
	defer cancel()
	err := step(ctx)
	if err == nil {
		return true
	}
	f.Log.Warn("will try again", "what", what, "environment", e.ID, "error", err)
	return ctx.Err() == nil
}

// sweeps repairs what watching can't see, every now and then: rows whose job etcd has lost, environments that outlived
// their rows, statuses of what ended.
func (f *Fleet) sweeps(ctx context.Context) {
	for sleep(ctx, sweepEvery) {
		if f.Healthy() {
			f.sweep(ctx)
		}
	}
}

func (f *Fleet) sweep(ctx context.Context) {
	queued, err := f.Store.Environments(ctx, store.Filter{States: []string{queue.StateQueued}})
	if err != nil {
		f.Log.Error("sweep", "error", err)
		return
	}
	list, rev, err := f.Queue.Statuses(ctx)
	if err != nil {
		return // it will be back
	}
	known := make(map[string]queue.EnvStatus, len(list))
	f.forgetOldRevisions(ctx, rev)
	rows, err := f.rowsOf(ctx, list)
	if err != nil {
		f.Log.Error("sweep", "error", err)
		return
	}
	for _, st := range list {
		known[st.ID] = st
		e, ours := rows[st.ID]
		switch {
		case !ours:
			continue
		case st.Rev > e.StatusRev:
			f.hear(st, atOnce)
		default:
			f.follow(ctx, e, st)
		}
		if queue.Terminal(st.State) && f.now().Sub(st.UpdatedAt) >= keepStatus && queue.Terminal(e.State) {
			if err := f.Queue.Forget(ctx, st.ID); err != nil && !errors.Is(err, queue.ErrBusy) && !errors.Is(err, queue.ErrNotFound) {
				f.Log.Warn("forget an ended environment", "environment", st.ID, "error", err)
			}
		}
	}
	if err := f.ledger.flush(ctx); err != nil {
		f.Log.Error("sweep", "error", err)
		return
	}
	for _, e := range queued {
		st, ok := known[e.ID]
		if !e.Enqueued || (ok && st.State != queue.StateQueued) || f.now().Sub(e.UpdatedAt.Std()) < lostAfter {
			continue
		}
		if _, err := f.Queue.Position(ctx, e.ID); !errors.Is(err, queue.ErrNotFound) {
			continue
		}
		f.Log.Warn("the queue has lost a job; enqueueing it again", "environment", e.ID)
		_, _, err := f.Store.ChangeEnvironment(ctx, e.ID, f.now(), func(e *store.Environment) (bool, string, error) {
			if e.State != queue.StateQueued {
				return false, "", nil
			}
			e.Enqueued = false
			return true, "", nil
		})
		if err != nil {
			f.Log.Error("note a lost job", "environment", e.ID, "error", err)
		}
		f.poke()
	}
}

// rowsOf reads the rows of those whose statuses these are.
func (f *Fleet) rowsOf(ctx context.Context, list []queue.EnvStatus) (map[string]store.Environment, error) {
	rows := make(map[string]store.Environment, len(list))
	for part := range slices.Chunk(list, 500) { // databases bound a statement's variables
		ids := make([]string, len(part))
		for i, st := range part {
			ids[i] = st.ID
		}
		found, err := f.Store.Environments(ctx, store.Filter{IDs: ids})
		if err != nil {
			return nil, fmt.Errorf("read the rows of statuses: %w", err)
		}
		for _, e := range found {
			rows[e.ID] = e
		}
	}
	return rows, nil
}

// followPlaces pushes waiting environments whose place in the queue, or reason to wait, has changed.
func (f *Fleet) followPlaces(ctx context.Context) {
	woken := f.Queue.Watch(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-woken:
			if !ok {
				woken = nil
			}
			if !sleep(ctx, 200*time.Millisecond) { // a burst of changes is one
				return
			}
		case <-time.After(3 * time.Second):
		}
		rows, err := f.Store.Environments(ctx, store.Filter{States: []string{queue.StateQueued}})
		if err != nil {
			continue
		}
		shown := make(map[string]string, len(rows))
		for _, e := range rows {
			if !f.Watched(e.UserID) {
				continue
			}
			place, reason := f.place(ctx, e)
			text := reason
			if place != nil {
				text = fmt.Sprint(*place, reason)
			}
			shown[e.ID] = text
			if f.shown[e.ID] != text {
				f.Changed(e.UserID, e.ID)
			}
		}
		f.shown = shown
	}
}
