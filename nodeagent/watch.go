package nodeagent

import (
	"context"
	"sync"
	"time"

	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/reason"
	"github.com/learnos/learnos/internal/tunnel"
)

// sample is an environment's figures at one moment.
type sample struct {
	at      time.Time
	stats   Stats
	percent float64 // of one CPU, since the sample before
}

// idleSample is how old the figures of an environment may become that nobody is connected to and that has no quota. To take
// them is a dozen files each: a thousand environments that do nothing would keep half a processor busy.
const idleSample = 5 * time.Second

// due tells whether it is time for new figures.
func (h *hosted) due(l Limits, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.connected > 0 || l.NetQuotaBytes > 0 || l.BlkQuotaBytes > 0 || now.Sub(h.last.at) >= idleSample
}

// watchLimits looks at every environment once a second: what it uses, whether its time is up, whether it is idle.
func (d *daemon) watchLimits(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var looking sync.WaitGroup
		for _, h := range d.all() {
			looking.Go(func() { d.look(ctx, h, time.Now()) })
		}
		looking.Wait()
		d.mu.Lock()
		close(d.sample)
		d.sample = make(chan struct{})
		d.mu.Unlock()
	}
}

// sampled is closed when there are new figures.
func (d *daemon) sampled() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sample
}

// look takes one environment's figures and ends it if it has to.
func (d *daemon) look(ctx context.Context, h *hosted, now time.Time) {
	env, err := h.running()
	if err != nil {
		return
	}
	if h.due(env.Record().Limits, now) {
		if st, err := env.Stats(ctx); err == nil {
			h.mu.Lock()
			h.last = nextSample(h.last, st, now)
			h.mu.Unlock()
		}
	}
	if final, onlyIf := h.verdict(now); final != nil {
		// Taking it down must not hold up the look at the others.
		d.work.Go(func() { d.end(h, onlyIf, *final) })
	}
}

// nextSample works out the CPU share between two readings.
func nextSample(last sample, st Stats, now time.Time) sample {
	s := sample{at: now, stats: st}
	if span := now.Sub(last.at); !last.at.IsZero() && span > 0 && st.CPUNanos >= last.stats.CPUNanos {
		s.percent = 100 * float64(st.CPUNanos-last.stats.CPUNanos) / float64(span)
	}
	return s
}

// verdict says whether, and why, an environment must end now. onlyIf, if not nil, is asked once more under the
// lock that keeps people from coming in.
func (h *hosted) verdict(now time.Time) (final *queue.EnvStatus, onlyIf func() bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.env.Record()
	p := r.Platform
	if p == nil {
		return nil, nil
	}
	st := h.last.stats
	switch {
	case !p.Deadline.IsZero() && !now.Before(p.Deadline):
		return &queue.EnvStatus{State: queue.StateDeleted, Reason: reason.Say(reason.Lifetime)}, nil
	case r.Limits.NetQuotaBytes > 0 && st.Net.RxBytes+st.Net.TxBytes >= uint64(r.Limits.NetQuotaBytes):
		return &queue.EnvStatus{State: queue.StateOverstep, Reason: reason.Say(reason.NetQuota, sizeText(r.Limits.NetQuotaBytes))}, nil
	case r.Limits.BlkQuotaBytes > 0 && st.BlockRead+st.BlockWrite >= uint64(r.Limits.BlkQuotaBytes):
		return &queue.EnvStatus{State: queue.StateOverstep, Reason: reason.Say(reason.BlkQuota, sizeText(r.Limits.BlkQuotaBytes))}, nil
	case p.IdleTimeout > 0:
		idle := func() bool { return h.connected == 0 && now.Sub(h.lastSeen) >= p.IdleTimeout }
		if idle() {
			return &queue.EnvStatus{State: queue.StateDeleted, Reason: reason.Say(reason.Idle)}, idle
		}
	}
	return nil, nil
}

// figures is the environment's newest sample as the tunnel carries it.
func (h *hosted) figures() tunnel.Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.last.stats
	return tunnel.Stats{
		Env: h.id, CPUNanos: int64(s.CPUNanos), CPUPercent: h.last.percent,
		MemoryBytes: int64(s.MemoryBytes), MemoryLimit: int64(s.MemoryLimit),
		RxBytes: int64(s.Net.RxBytes), TxBytes: int64(s.Net.TxBytes),
		PIDs: int64(s.PIDs), Connected: h.connected,
	}
}
