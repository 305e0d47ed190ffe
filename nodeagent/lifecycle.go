package nodeagent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/netbridge"
	"github.com/learnos/learnos/runtime"
)

// commandSession is the id of the session that runs a foreground environment's command.
const commandSession = "command"

// logPath is where init writes the output of a detached environment's command.
func (n *Node) logPath(id string) string { return filepath.Join(n.envDir(id), "output.log") }

func sortRecords(all []*Record) {
	slices.SortFunc(all, func(a, b *Record) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
}

// Load takes up an environment that another process (or this one, in an earlier life) made. ErrNotRunning when
// its record is there but it has ended.
func (n *Node) Load(ctx context.Context, id string) (*Environment, error) {
	r, err := n.Record(id)
	if err != nil {
		return nil, err
	}
	if r.State != StateRunning {
		return nil, fmt.Errorf("%w: %s is %s", ErrNotRunning, describe(r), r.State)
	}
	c, err := n.runtime.Load(ctx, r.heldAs())
	if errors.Is(err, runtime.ErrNotFound) {
		return nil, fmt.Errorf("%w: %s", ErrNotRunning, describe(r))
	}
	if err != nil {
		return nil, fmt.Errorf("load environment %s: %w", id, err)
	}
	return &Environment{node: n, c: c, rec: *r}, nil
}

// describe names an environment as a person knows it.
func describe(r *Record) string {
	if r.Name != "" {
		return r.Name
	}
	return r.ID
}

// Alive tells whether the environment's init still runs.
func (e *Environment) Alive(ctx context.Context) bool { return running(ctx, e.c) }

// running is true unless init is known to have ended: one that does not answer is not gone.
func running(ctx context.Context, c *runtime.Container) bool {
	st, err := c.State(ctx)
	return err != nil || st != runtime.StateStopped
}

// Wait waits for the environment to end and tells how its main command did.
func (e *Environment) Wait(ctx context.Context) (ExitStatus, error) {
	s, err := e.c.Wait(ctx)
	if err != nil {
		return ExitStatus{}, fmt.Errorf("wait for environment %s: %w", e.ID(), err)
	}
	return *exitStatus(s), nil
}

// Stop asks the main command to end (SIGTERM), and ends the environment by force after grace. It returns when
// nothing runs in it any more.
func (e *Environment) Stop(ctx context.Context, grace time.Duration) error {
	if len(e.Record().Args) > 0 && grace > 0 {
		if err := e.Signal(ctx, unix.SIGTERM); err == nil {
			wait, cancel := context.WithTimeout(ctx, grace)
			_, err = e.c.Wait(wait)
			cancel()
			if err == nil {
				return nil
			}
		}
	}
	return e.Kill(ctx)
}

// Kill ends everything in the environment, at once.
func (e *Environment) Kill(ctx context.Context) error {
	if err := e.c.Kill(ctx); err != nil {
		return fmt.Errorf("kill environment %s: %w", e.ID(), err)
	}
	if _, err := e.c.Wait(ctx); err != nil {
		return fmt.Errorf("wait for killed environment %s: %w", e.ID(), err)
	}
	return nil
}

// Delete ends the environment and removes all of it. It is idempotent.
func (e *Environment) Delete(ctx context.Context) error { return e.node.Delete(ctx, e.ID()) }

// Finish is for who waited an environment's end: what it held is given back. Its record and logs stay, unless it
// was to be removed by itself.
func (e *Environment) Finish(ctx context.Context, status ExitStatus) error {
	return e.node.finish(ctx, e.ID(), &status, "")
}

// Delete ends the environment of that id, whatever state it is in, and removes all of it. It is idempotent.
func (n *Node) Delete(ctx context.Context, id string) error {
	defer n.pool.Load().working()()
	unlock, err := n.lock(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	return n.deleteLocked(ctx, id)
}

func (n *Node) deleteLocked(ctx context.Context, id string) error {
	r, err := n.Record(id)
	if err != nil {
		r = &Record{ID: id} // unreadable: clear what carries its id
	} else if r.State != StateExited && r.State != StateStopping {
		r.State = StateStopping
		// A full disk takes no record, and what helps it is just this. If we die on the way, a Sweep finds it dead.
		if err := n.save(r); err != nil && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
			return err
		}
	}
	if r.State != StateExited {
		if err := n.teardown(ctx, r); err != nil {
			return err
		}
	}
	if r.Name != "" {
		n.dropName(r.Name, id)
	}
	// The record goes first: from then on whatever else a crash leaves in the directory is nobody's.
	if err := os.Remove(filepath.Join(n.envDir(id), "env.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove environment %s: %w", id, err)
	}
	if err := os.RemoveAll(n.envDir(id)); err != nil {
		return fmt.Errorf("remove environment %s: %w", id, err)
	}
	return nil
}

// teardown gives back everything the environment holds outside its directory: processes, then its address, disk,
// cgroup, and last its ids, which nothing may bear when the next one gets them.
func (n *Node) teardown(ctx context.Context, r *Record) error {
	var errs []error
	held := r.heldAs()
	c, err := n.runtime.Load(ctx, held)
	switch {
	case err == nil:
		if err := c.Kill(ctx); err != nil {
			return fmt.Errorf("kill environment %s: %w", r.ID, err)
		}
	case !errors.Is(err, runtime.ErrNotFound):
		return fmt.Errorf("load environment %s: %w", r.ID, err)
	default:
		// Usually the machine was restarted. But if only /run was emptied, processes that bear its ids still run in its
		// cgroup, and the ids go to the next.
		if _, err := n.runtime.Sweep(ctx, func(id string) bool { return id != held }); err != nil {
			return fmt.Errorf("clear what is left of environment %s: %w", r.ID, err)
		}
	}
	if b, err := n.existingBridge(ctx); err != nil {
		errs = append(errs, err)
	} else if b != nil {
		if err := b.Detach(ctx, held); err != nil {
			errs = append(errs, fmt.Errorf("release the address of %s: %w", r.ID, err))
		}
	}
	if c != nil {
		if err := c.Delete(ctx); err != nil {
			errs = append(errs, fmt.Errorf("remove environment %s: %w", r.ID, err))
		}
	}
	if err := n.images.Release(ctx, held); err != nil {
		errs = append(errs, fmt.Errorf("release the disk of %s: %w", r.ID, err))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := n.ids.release(r.FirstID, held); err != nil {
		return err
	}
	if r.Prepared != "" {
		return n.forgetSpare(r.Prepared)
	}
	return nil
}

// existingBridge is Bridge, but nil where no environment of this node ever had an address.
func (n *Node) existingBridge(ctx context.Context) (*netbridge.Bridge, error) {
	if _, err := os.Stat(n.netDir()); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return n.Bridge(ctx)
}

// finish makes a running environment an exited one. A nil status is asked of the runtime.
func (n *Node) finish(ctx context.Context, id string, status *ExitStatus, reason string) error {
	unlock, err := n.lock(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	return n.finishLocked(ctx, id, status, reason)
}

func (n *Node) finishLocked(ctx context.Context, id string, status *ExitStatus, reason string) error {
	r, err := n.Record(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if r.State == StateExited {
		return nil
	}
	if r.AutoRemove {
		return n.deleteLocked(ctx, id)
	}
	if status == nil {
		status = n.lastStatus(ctx, r)
	}
	if err := n.teardown(ctx, r); err != nil {
		return err
	}
	r.State, r.Exit, r.Reason, r.EndedAt, r.PID, r.Address = StateExited, status, reason, time.Now().UTC(), 0, ""
	if r.Reason == "" && status != nil {
		r.Reason = status.Reason
	}
	return n.save(r)
}

// lastStatus is what init wrote before it went, if it could.
func (n *Node) lastStatus(ctx context.Context, r *Record) *ExitStatus {
	c, err := n.runtime.Load(ctx, r.heldAs())
	if err != nil {
		return nil
	}
	if err := c.Kill(ctx); err != nil { // nothing is killed but what lost its owner
		return nil
	}
	s, err := c.Wait(ctx)
	if err != nil {
		return nil
	}
	return exitStatus(s)
}

// Stats are an environment's counters now.
type Stats struct {
	runtime.Stats
	Net netbridge.Stats // zero without a network of its own
	// DiskBytes is what the writable layer takes, where it has a DiskLimit; else both are 0.
	DiskBytes, DiskLimit int64
}

// Stats reads the environment's counters.
func (e *Environment) Stats(ctx context.Context) (Stats, error) {
	s, err := e.c.Stats(ctx)
	if err != nil {
		return Stats{}, fmt.Errorf("stats of environment %s: %w", e.ID(), err)
	}
	out := Stats{Stats: s}
	r := e.Record()
	if limit := r.Limits.DiskBytes; limit > 0 {
		// As df inside has it: the file system of the image, or of the project. Root inside can't move init's root.
		var st unix.Statfs_t
		if err := unix.Statfs(fmt.Sprintf("/proc/%d/root", e.c.PID()), &st); err == nil {
			out.DiskLimit, out.DiskBytes = limit, int64(st.Blocks-st.Bfree)*st.Bsize
		}
	}
	if r.Net != NetBridge {
		return out, nil
	}
	b, err := e.node.Bridge(ctx)
	if err != nil {
		return out, err
	}
	if out.Net, err = b.Stats(ctx, r.heldAs()); err != nil {
		return out, fmt.Errorf("traffic of environment %s: %w", e.ID(), err)
	}
	return out, nil
}

// Command is the session that a foreground environment was made for, in the process that made it; else nil.
func (e *Environment) Command() *runtime.Session { return e.command }

// WaitSession waits for a session's end. When the whole environment ends under it, that is the session's end too.
func (e *Environment) WaitSession(ctx context.Context, s *runtime.Session) (ExitStatus, error) {
	for {
		st, err := s.Wait(ctx)
		if err == nil {
			return *exitStatus(st), nil
		}
		if ctx.Err() != nil {
			return ExitStatus{}, ctx.Err()
		}
		// Whoever was asked did not live to answer, or the answer got lost. The first is settled by the kernel a moment
		// after its sockets are closed.
		wait, cancel := context.WithTimeout(ctx, time.Second)
		st, gone := e.c.Wait(wait)
		cancel()
		if gone == nil {
			return *exitStatus(st), nil
		}
		if errors.Is(err, runtime.ErrNotFound) {
			return ExitStatus{}, fmt.Errorf("wait for session %s: %w", s.ID(), err)
		}
	}
}

// Signal sends a signal to the command that the environment was made for.
func (e *Environment) Signal(ctx context.Context, sig unix.Signal) error {
	var err error
	if e.Record().Owner == OwnerForeground {
		var s *runtime.Session
		if s, err = e.c.Attach(ctx, commandSession); err == nil {
			err = s.Signal(ctx, sig)
			_ = s.Close()
		}
	} else {
		err = e.c.Signal(ctx, sig)
	}
	if err != nil {
		return fmt.Errorf("signal environment %s: %w", e.ID(), err)
	}
	return nil
}

// ExecOptions describe a further command in an environment.
type ExecOptions struct {
	Args       []string
	Env        []string // KEY=VALUE, over the environment's own
	Cwd        string   // empty: the environment's
	User       string   // empty: the environment's
	TTY        bool
	Cols, Rows uint16
}

// Exec starts a further command. A command that can't be executed is a *runtime.ExecError.
func (e *Environment) Exec(ctx context.Context, o ExecOptions) (*runtime.Session, error) {
	r := e.Record()
	for _, kv := range o.Env {
		if key, _, ok := strings.Cut(kv, "="); !ok || key == "" || strings.ContainsRune(kv, 0) {
			return nil, fmt.Errorf("environment variable %q: want NAME=VALUE", kv)
		}
	}
	s, err := e.c.StartSession(ctx, runtime.SessionSpec{
		Args: o.Args, Env: mergeEnv(r.Env, o.Env), Cwd: cmp.Or(o.Cwd, r.Cwd), User: cmp.Or(o.User, r.User),
		TTY: o.TTY, Cols: o.Cols, Rows: o.Rows,
	})
	if err != nil {
		return nil, fmt.Errorf("run in environment %s: %w", describe(&r), err)
	}
	return s, nil
}

// Destroy deletes every environment of the node and takes its network and cgroup away; images stay. It is for tests and for
// who gives a machine back.
func (n *Node) Destroy(ctx context.Context) error {
	ids, err := n.envIDs()
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		errs = append(errs, n.Delete(ctx, id))
	}
	n.forgetSpares()
	_, err = n.Sweep(ctx)
	errs = append(errs, err)
	b, err := n.existingBridge(ctx)
	errs = append(errs, err)
	if b != nil {
		errs = append(errs, b.Destroy(ctx))
		n.netMu.Lock()
		n.net = nil
		n.netMu.Unlock()
	}
	if err := n.runtime.Retire(); err != nil {
		errs = append(errs, err)
	} else {
		errs = append(errs, os.RemoveAll(n.RunDir()))
	}
	return errors.Join(errs...)
}
