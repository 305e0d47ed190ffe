package nodeagent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/reason"
	"github.com/learnos/learnos/rootfs"
)

// takeJobs claims work for as long as there is room, and does it side by side.
func (d *daemon) takeJobs(ctx context.Context) error {
	if !d.takeBack(ctx) {
		return nil
	}
	wake := d.queue.Watch(ctx)
	wait := newBackoff()
	for ctx.Err() == nil {
		d.refused.Store(false)
		c, err := d.queue.ClaimTelling(ctx, d.name, d.lease, d.fits, d.begins)
		switch {
		case err != nil && ctx.Err() == nil:
			d.log.Warn("claim a job", "err", err)
			if !wait.sleep(ctx) {
				return nil
			}
		case c != nil:
			wait.reset()
			d.begin(ctx, c)
		default:
			wait.reset()
			select {
			case <-ctx.Done():
			case _, ok := <-wake:
				if !ok {
					wake = nil
				}
			case <-d.kick:
			}
		}
	}
	return nil
}

// takeBack takes up the jobs that this node had claimed before it was restarted, and parts with environments whose
// job was given to another node meanwhile. It is false when ctx ended first.
func (d *daemon) takeBack(ctx context.Context) bool {
	wait := newBackoff()
	for {
		mine, err := d.queue.Reclaim(ctx, d.name, d.lease)
		again := map[string]bool{}
		for _, c := range mine {
			again[c.Job.EnvID] = true
			d.begin(ctx, c)
		}
		if err == nil {
			err = d.confirm(ctx, again)
		}
		if err == nil {
			err = d.missing(ctx)
		}
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		d.log.Warn("take up earlier jobs: trying again", "err", err)
		if !wait.sleep(ctx) {
			return false
		}
	}
}

// confirm asks etcd about environments that were made here without etcd's having said so: all but those of jobs that
// are this node's again.
func (d *daemon) confirm(ctx context.Context, again map[string]bool) error {
	for _, h := range d.all() {
		if again[h.id] || h.accepted() {
			continue
		}
		s, err := d.queue.Status(ctx, h.id)
		switch {
		case err == nil && s.Node == d.name && s.State == queue.StateRunning:
			h.accept()
		case err == nil || errors.Is(err, queue.ErrNotFound):
			d.abandon(h)
		default:
			return err
		}
	}
	return nil
}

// missing tells of environments that etcd has as running here and that are not: the disk was lost, or somebody
// removed them by hand while no daemon looked.
func (d *daemon) missing(ctx context.Context) error {
	all, _, err := d.queue.Statuses(ctx)
	if err != nil {
		return err
	}
	for _, s := range all {
		gone := s.Node == d.name && (s.State == queue.StateRunning || s.State == queue.StateStopping)
		if gone && d.lookup(s.ID) == nil && !d.pub.kept(s.ID) {
			d.pub.ended(queue.EnvStatus{ID: s.ID, State: queue.StateFailed, Reason: reason.Say(reason.NodeForgot)})
		}
	}
	return nil
}

// abandon takes down an environment that is nobody's.
func (d *daemon) abandon(h *hosted) {
	if !h.begin(nil) {
		return
	}
	d.log.Warn("the environment's job is another node's now: taking ours down", "env", h.id)
	d.work.Go(func() {
		if err := d.remove(h); err != nil {
			d.log.Error("take down", "env", h.id, "err", err)
		}
	})
}

// begins is the state that a create begins in.
func (d *daemon) begins(j queue.Job) string {
	if _, err := d.node.images.Image(d.life, j.Spec.Source); errors.Is(err, rootfs.ErrNotFound) {
		return queue.StatePulling
	}
	return queue.StateCreating
}

// begin starts the work on a claimed job.
func (d *daemon) begin(ctx context.Context, c *queue.Claim) {
	j := c.Job
	log := d.log.With("env", j.EnvID, "job", j.Kind)
	switch {
	case j.Kind == queue.KindDelete:
		d.work.Go(func() { d.doDelete(ctx, c) })
	case j.Kind != queue.KindCreate || j.Spec == nil || !validID(j.EnvID):
		log.Error("a job that makes no sense", "kind", j.Kind)
		d.work.Go(func() {
			d.settle(ctx, c, queue.EnvStatus{ID: j.EnvID, State: queue.StateFailed, Reason: reason.Say(reason.BadJob)})
		})
	default:
		h := &hosted{d: d, id: j.EnvID, promised: limitsOf(j.Spec.Limits), lastSeen: time.Now(),
			sessions: map[string]*session{}, made: make(chan struct{}), gone: make(chan struct{})}
		if at := j.EnqueuedAt; !at.IsZero() {
			h.queued = max(0, time.Since(at))
		}
		var cctx context.Context
		cctx, h.cancel = context.WithCancel(ctx)
		d.mu.Lock()
		old := d.envs[j.EnvID]
		if old == nil {
			d.envs[j.EnvID] = h
		}
		d.mu.Unlock()
		if old != nil { // made before a crash that came before the job was told done
			h.cancel()
			d.work.Go(func() {
				<-old.made
				switch d.settle(ctx, c, old.status()) {
				case settled:
					old.accept()
				case lost:
					d.abandon(old)
				}
			})
			return
		}
		d.announce()
		d.work.Go(func() { d.doCreate(ctx, cctx, c, h) })
	}
}

// outcome of a settle.
type outcome int

const (
	settled outcome = iota
	lost            // the job is another node's
	unknown         // this daemon ends; the next one finds out
)

// settle ends a job with a status, for as long as it takes.
func (d *daemon) settle(ctx context.Context, c *queue.Claim, s queue.EnvStatus) outcome {
	s.Node = d.name
	wait := newBackoff()
	for {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := c.Finish(try, s)
		cancel()
		if err == nil {
			return settled
		}
		if errors.Is(err, queue.ErrFenced) {
			d.log.Warn("a job was lost to another node", "env", s.ID)
			return lost
		}
		if ctx.Err() != nil {
			return unknown
		}
		d.log.Warn("tell etcd a job is done: trying again", "env", s.ID, "err", err)
		if !wait.sleep(ctx) {
			return unknown
		}
	}
}

// doCreate makes an environment. ctx is the daemon's, cctx ends also when somebody deletes the environment.
func (d *daemon) doCreate(ctx, cctx context.Context, c *queue.Claim, h *hosted) {
	spec := c.Job.Spec
	begin := time.Now()
	told := &teller{d: d, c: c, fenced: h.cancel, state: c.Told}
	env, err := d.create(cctx, h, spec, told)
	told.wait()
	h.mu.Lock()
	h.env = env
	ending := h.ending
	h.mu.Unlock()
	if err != nil {
		// A create that is cancelled because the daemon ends is left in the queue: it is somebody's wish still. One
		// that is cancelled because its environment is deleted ends here, before the delete goes on and says so.
		if ctx.Err() == nil && !told.lost() {
			final := queue.EnvStatus{ID: h.id, State: queue.StateFailed, Reason: reasonOf(err), Deadline: spec.Deadline}
			if ending {
				final.State, final.Reason = queue.StateStopping, reason.Say(reason.WhileMade)
			}
			d.log.Warn("create failed", "env", h.id, "err", err)
			d.settle(ctx, c, final)
		}
		close(h.made)
		d.drop(h)
		return
	}
	close(h.made)
	d.log.Info("running", "env", h.id, "image", spec.Image, "took", time.Since(begin).Round(time.Microsecond))
	if told.lost() {
		d.abandon(h)
		return
	}
	switch d.settle(ctx, c, h.status()) {
	case settled:
		h.accept()
	case lost:
		d.abandon(h)
		return
	}
	d.follow(ctx, h)
	d.announce()
}

// create gets the image and makes the environment.
func (d *daemon) create(ctx context.Context, h *hosted, spec *queue.EnvSpec, told *teller) (*Environment, error) {
	if !spec.Deadline.IsZero() && time.Now().After(spec.Deadline) {
		return nil, errors.New("its deadline passed while it waited in the queue")
	}
	if ration, why := spec.Limits.Lacking(d.lacks); ration != "" {
		return nil, errors.New(lackReason(ration, why))
	}
	// What an agent that was killed half way left under this id is nobody else's: jobs' ids are unique.
	if err := d.node.Delete(ctx, h.id); err != nil {
		return nil, fmt.Errorf("clear an earlier attempt: %w", err)
	}
	pullBegan := time.Now()
	img, err := d.image(ctx, spec, told)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	pulled := time.Since(pullBegan)
	told.begins(ctx, queue.EnvStatus{ID: h.id, State: queue.StateCreating, Deadline: spec.Deadline})
	return d.node.Create(ctx, CreateOptions{
		ID: h.id, Timings: map[string]int64{"queue": h.queued.Microseconds(), "image": pulled.Microseconds()}, Image: img, NoMain: true, Owner: OwnerPlatform, Hostname: hostnameFor(spec),
		Limits: limitsOf(spec.Limits), CapAdd: spec.CapAdd, Platform: &PlatformRecord{Shell: spec.Command, Deadline: spec.Deadline, IdleTimeout: spec.IdleTimeout},
	})
}

// limitsOf are a job's limits as the node keeps them.
func limitsOf(l queue.Limits) Limits {
	return Limits{
		MemoryBytes: l.MemoryBytes, MemoryHighBytes: l.MemoryHighBytes, CPUs: l.CPUs, PIDs: cmp.Or(l.PIDs, DefaultPIDs),
		DiskBytes: l.DiskBytes, NetUpBits: l.NetUpBits, NetDownBits: l.NetDownBits,
		IO:            IORates{ReadBytes: l.IOReadBPS, WriteBytes: l.IOWriteBPS, Reads: l.IOReadIOPS, Writes: l.IOWriteIOPS},
		NetQuotaBytes: l.NetQuotaBytes, BlkQuotaBytes: l.BlkQuotaBytes,
	}
}

// hostnameFor is what the environment calls itself: its name if that can be a host's, else its id.
func hostnameFor(spec *queue.EnvSpec) string {
	if validHost(spec.Name) {
		return spec.Name
	}
	return ""
}

// image finds, builds or pulls; only what takes time is told.
func (d *daemon) image(ctx context.Context, spec *queue.EnvSpec, told *teller) (*rootfs.Image, error) {
	img, err := d.node.images.Image(ctx, spec.Source)
	if err == nil || !errors.Is(err, rootfs.ErrNotFound) {
		return img, err
	}
	told.begins(ctx, queue.EnvStatus{ID: spec.ID, State: queue.StatePulling, Deadline: spec.Deadline})
	p := &pulling{layers: map[string]rootfs.Progress{}}
	return d.node.images.Ensure(ctx, spec.Source, rootfs.PullOptions{
		Insecure: spec.Insecure,
		Progress: func(pr rootfs.Progress) {
			if stage, percent, due := p.note(pr, time.Now()); due {
				told.tell(ctx, queue.EnvStatus{ID: spec.ID, State: queue.StatePulling, Stage: stage, Percent: percent, Deadline: spec.Deadline})
			}
		},
	})
}

// pulling makes a few figures out of many reports: etcd is not the place for a progress bar's every step.
type pulling struct {
	layers  map[string]rootfs.Progress
	percent int
	at      time.Time
}

// Steps of what is told: at least so many percent and so much time apart.
const (
	pullStep  = 5
	pullPause = 500 * time.Millisecond
)

// note takes a report in, and tells whether it is time to pass on how far all of it is.
func (p *pulling) note(pr rootfs.Progress, now time.Time) (stage string, percent int, due bool) {
	p.layers[pr.Layer] = pr
	var done, total float64
	for _, l := range p.layers {
		if l.Total <= 0 {
			continue
		}
		d, t := float64(l.Done), float64(l.Total)
		// Fetching is one half of a layer's work and unpacking the other.
		switch l.Phase {
		case rootfs.PhaseDownloading:
			d /= 2
		case rootfs.PhaseUnpacking:
			d = t/2 + d/2
		case rootfs.PhaseDone:
			d = t
		}
		done, total = done+d, total+t
	}
	if total > 0 {
		percent = min(100, int(100*done/total))
	}
	percent = max(percent, p.percent) // a layer that is found late must not make it run backwards
	if percent < p.percent+pullStep || now.Sub(p.at) < pullPause {
		return pr.Phase, percent, false
	}
	p.percent, p.at = percent, now
	return pr.Phase, percent, true
}

// teller writes the stages of a create in the background, in order, the newest replacing one not yet written: the
// create never waits for etcd.
type teller struct {
	d      *daemon
	c      *queue.Claim
	fenced func()
	state  string // the last that was told; of the create's goroutine alone

	mu      sync.Mutex
	next    *queue.EnvStatus
	busy    bool
	gone    bool
	pending sync.WaitGroup
}

// begins tells that the environment comes into a state, unless that is known.
func (t *teller) begins(ctx context.Context, s queue.EnvStatus) {
	if s.State == t.state {
		return
	}
	t.state = s.State
	t.tell(ctx, s)
}

func (t *teller) tell(ctx context.Context, s queue.EnvStatus) {
	s.Node = t.d.name
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next = &s
	if t.busy {
		return
	}
	t.busy = true
	t.pending.Go(func() { t.write(ctx) })
}

func (t *teller) write(ctx context.Context) {
	for {
		t.mu.Lock()
		s := t.next
		t.next = nil
		t.busy = s != nil && !t.gone
		stop := !t.busy
		t.mu.Unlock()
		if stop {
			return
		}
		try, cancel := context.WithTimeout(ctx, 3*time.Second)
		err := t.c.Status(try, *s)
		cancel()
		if errors.Is(err, queue.ErrFenced) {
			t.mu.Lock()
			t.gone = true
			t.mu.Unlock()
			t.fenced()
		}
	}
}

// wait returns when nothing is being written any more.
func (t *teller) wait() { t.pending.Wait() }

// lost tells whether the claim is another node's now.
func (t *teller) lost() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.gone
}

// doDelete takes an environment down because its owner said so.
func (d *daemon) doDelete(ctx context.Context, c *queue.Claim) {
	id := c.Job.EnvID
	final := queue.EnvStatus{ID: id, State: queue.StateDeleted, Reason: c.Job.Reason}
	var err error
	h := d.lookup(id)
	switch {
	case h != nil && h.begin(nil):
		d.pub.keep(final)
		err = d.remove(h)
	case h != nil: // its deadline, say, came first: wait until it is gone
		select {
		case <-h.gone:
		case <-ctx.Done():
		}
	default:
		err = d.node.Delete(ctx, id)
	}
	if ctx.Err() != nil {
		return
	}
	if err != nil { // "deleted" is said only of what is gone
		d.log.Error("take down", "env", id, "err", err)
		d.pub.forget(id)
		if err := c.Retry(ctx, "its node could not take it down: "+err.Error(), 0); err != nil {
			d.log.Error("give the delete job back", "env", id, "err", err)
		}
		return
	}
	if d.settle(ctx, c, final) != unknown {
		d.pub.forget(id)
	}
}

// reasonOf is an error as a person in front of a panel needs it.
func reasonOf(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return reason.Say(reason.TooLong, err.Error())
	}
	return err.Error()
}
