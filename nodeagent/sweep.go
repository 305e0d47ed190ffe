package nodeagent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/runtime"
)

// Reconcile looks at every environment's record and finishes what a dead process left: a half-made environment
// goes, a foreground one whose `run` was killed ends, a detached one whose command ended gives back what it held.
// It is cheap (one small file each) and leaves to the daemon what the daemon made. It returns whom it touched.
func (n *Node) Reconcile(ctx context.Context) ([]string, error) {
	all, err := n.Records()
	if err != nil {
		return nil, err
	}
	var touched []string
	var errs []error
	for _, r := range all {
		if !n.stale(r) {
			continue
		}
		did, err := n.settle(ctx, r.ID)
		if err != nil {
			errs = append(errs, err)
		}
		if did {
			touched = append(touched, r.ID)
		}
	}
	return touched, errors.Join(errs...)
}

// stale tells whether somebody has to finish r's business for it.
func (n *Node) stale(r *Record) bool {
	switch r.State {
	case StateCreating:
		return !r.Maker.alive()
	case StateStopping:
		return true // settle finds out whether its deleter still holds the lock
	case StateExited:
		return r.AutoRemove
	case StateRunning:
		if r.Owner == OwnerPlatform {
			return false
		}
		if r.Owner == OwnerForeground && r.Maker.alive() {
			return false // its run tidies up
		}
		return r.Owner == OwnerForeground || !n.initAlive(r)
	}
	return false
}

// initAlive tells whether r's init runs. The runtime's own state decides; the pid in the record is only the
// cheap way to a "no".
func (n *Node) initAlive(r *Record) bool {
	if _, alive := startTime(r.PID); !alive {
		return false
	}
	c, err := n.runtime.Load(context.Background(), r.heldAs())
	if err != nil {
		return false
	}
	return running(context.Background(), c)
}

// settle finishes one stale environment, unless another process is at it.
func (n *Node) settle(ctx context.Context, id string) (bool, error) {
	unlock, ok := n.tryLock(id)
	if !ok {
		return false, nil
	}
	defer unlock()
	r, err := n.Record(id)
	if err != nil || !n.stale(r) {
		return false, nil
	}
	if r.State == StateRunning {
		reason := ""
		_, err := n.runtime.Load(ctx, r.heldAs())
		switch {
		case errors.Is(err, runtime.ErrNotFound):
			reason = "the machine was restarted"
		case r.Owner == OwnerForeground:
			reason = "its run was killed"
		}
		return true, n.finishLocked(ctx, id, nil, reason)
	}
	return true, n.deleteLocked(ctx, id)
}

// tryLock is lock without waiting.
func (n *Node) tryLock(id string) (unlock func(), ok bool) {
	f, err := os.Open(n.envDir(id))
	if err != nil {
		return nil, false
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, false
	}
	return func() { _ = f.Close() }, true
}

// live is what the sweeps of the parts below ask: does that environment, or spare, still hold things? What is on disk is
// read then and there, and is written before anything is made, so a create that begins during a sweep is safe.
func (n *Node) live(id string) bool {
	r, err := n.Record(id)
	switch {
	case err == nil:
		return r.State != StateExited
	case !errors.Is(err, ErrNotFound):
		return true // unreadable is not the same as gone
	}
	return n.liveSpare(id)
}

// unrecordedGrace is how old a directory without a record must be before it counts as left over: its create
// writes the record microseconds after the directory.
const unrecordedGrace = 10 * time.Second

// Swept says what a Sweep cleared, by kind.
type Swept struct {
	Environments []string `json:"environments"`
	Containers   []string `json:"containers"`
	Disks        []string `json:"disks"`
	Addresses    []string `json:"addresses"`
	IDRanges     []string `json:"idRanges"`
	Names        []string `json:"names"`
	Spares       []string `json:"spares"`
}

// Sweep clears everything on this node that no live environment owns: Reconcile, and then every part's own
// orphans. What it reports went; what could not go is in the error.
func (n *Node) Sweep(ctx context.Context) (Swept, error) {
	var s Swept
	var errs []error
	note := func(into *[]string, list []string, err error) {
		*into = append(*into, list...)
		if err != nil {
			errs = append(errs, err)
		}
	}
	touched, err := n.Reconcile(ctx)
	note(&s.Environments, touched, err)

	ids, err := n.envIDs()
	note(&s.Environments, nil, err)
	for _, id := range ids {
		if n.abandoned(id) {
			note(&s.Environments, []string{id}, n.Delete(ctx, id))
		}
	}
	list, err := n.runtime.Sweep(ctx, n.live)
	note(&s.Containers, list, err)
	if b, err := n.existingBridge(ctx); err != nil {
		errs = append(errs, err)
	} else if b != nil {
		list, err := b.Sweep(ctx, n.live)
		note(&s.Addresses, list, err)
	}
	list, err = n.images.Sweep(ctx, n.live)
	note(&s.Disks, list, err)
	list, err = n.ids.sweep(n.live)
	note(&s.IDRanges, list, err)

	names, err := os.ReadDir(filepath.Join(n.root, "names"))
	note(&s.Names, nil, err)
	for _, e := range names {
		path := filepath.Join(n.root, "names", e.Name())
		holder, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if r, err := n.Record(string(holder)); errors.Is(err, ErrNotFound) || (err == nil && r.Name != e.Name()) {
			note(&s.Names, []string{e.Name()}, os.Remove(path))
		}
	}
	list, err = n.sweepSpares()
	note(&s.Spares, list, err)
	return s, errors.Join(errs...)
}

// abandoned tells of a directory whose create died before, or whose delete died after, the record.
func (n *Node) abandoned(id string) bool {
	if _, err := os.Lstat(filepath.Join(n.envDir(id), "env.json")); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	info, err := os.Stat(n.envDir(id))
	return err == nil && time.Since(info.ModTime()) > unrecordedGrace
}

// restoreRanges claims the id ranges of live environments anew: after the machine was restarted /run is empty,
// while their files on disk still bear the ids.
func (n *Node) restoreRanges(all []*Record) error {
	for _, r := range all {
		if r.FirstID != 0 && r.State != StateExited {
			if err := n.ids.reclaim(r.FirstID, r.heldAs()); err != nil {
				return err
			}
		}
	}
	return nil
}
