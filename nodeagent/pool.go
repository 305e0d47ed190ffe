package nodeagent

import (
	"context"
	"encoding/json"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/learnos/learnos/rootfs"
)

const (
	// spareHalfLife is how soon half of what was asked for counts no more: one create keeps one spare for ten minutes.
	spareHalfLife = 5 * time.Minute
	// spareLeast is the demand below which none is kept.
	spareLeast = 0.25
	// quietBefore is how long no create or delete must have been under way before a spare is made or thrown away: a burst
	// is served first.
	quietBefore = 25 * time.Millisecond
	// spareRetry is the pause after a spare could not be made.
	spareRetry = 10 * time.Second
)

// pool keeps spare environments, as many of each kind as were asked for lately, and never more than a bound. A kind is an
// image's content, a set of limits, and capabilities. Its methods work on a nil pool, which keeps none.
type pool struct {
	node  *Node
	bound int
	room  func() bool // whether the machine has memory for one more
	log   *slog.Logger

	mu      sync.Mutex
	kinds   map[string]*kind
	count   int       // spares, those being made included
	busy    int       // creates and deletes under way
	last    time.Time // when one of them ended
	failed  time.Time // when a spare could not be made
	closed  bool
	changed chan struct{}
}

// kind is what spares of one image, one set of limits and the same capabilities have in common.
type kind struct {
	name  string // in pool.kinds
	image *rootfs.Image
	like  CreateOptions // what all of them are made like; see spareLike
	score float64       // creates asked for, those of spareHalfLife ago counting half, and so on
	at    time.Time
	ready []*spare
}

func (k *kind) decayed(now time.Time) float64 {
	return k.score * math.Exp2(-float64(now.Sub(k.at))/float64(spareHalfLife))
}

// wanted is how many spares a demand is worth.
func wanted(score float64) int {
	if score < spareLeast {
		return 0
	}
	return int(math.Ceil(score - spareLeast))
}

// keepPool keeps spares until ctx ends, and then clears them.
func (n *Node) keepPool(ctx context.Context, bound int, room func() bool, log *slog.Logger) error {
	p := newPool(n, bound, room, log)
	if p == nil {
		return nil
	}
	n.pool.Store(p)
	p.run(ctx)
	return nil
}

func newPool(n *Node, bound int, room func() bool, log *slog.Logger) *pool {
	if bound <= 0 {
		return nil
	}
	return &pool{node: n, bound: bound, room: room, log: log, kinds: map[string]*kind{}, changed: make(chan struct{}, 1)}
}

// working says that a create or delete is under way, until the returned function is called.
func (p *pool) working() func() {
	if p == nil {
		return func() {}
	}
	p.mu.Lock()
	p.busy++
	p.mu.Unlock()
	return func() {
		p.mu.Lock()
		p.busy--
		p.last = time.Now()
		p.mu.Unlock()
		p.wake()
	}
}

func (p *pool) wake() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// take returns a spare that is just what is asked for, the caller's from now on, or nil. It counts what is asked for.
func (p *pool) take(o *CreateOptions) *spare {
	if p == nil || !o.fitsSpare() {
		return nil
	}
	like := spareLike(o)
	name, err := json.Marshal(struct {
		Digest          string
		Limits          Limits
		CapAdd, CapDrop []string
	}{o.Image.Digest, like.Limits, like.CapAdd, like.CapDrop})
	if err != nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	k := p.kinds[string(name)]
	if k == nil {
		k = &kind{name: string(name), like: like}
		p.kinds[k.name] = k
	}
	now := time.Now()
	k.score, k.at, k.image = k.decayed(now)+1, now, o.Image
	last := len(k.ready) - 1
	if last < 0 {
		return nil
	}
	s := k.ready[last]
	k.ready = k.ready[:last]
	p.count--
	return s
}

// discard throws a taken spare away.
func (p *pool) discard(s *spare) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := p.node.removeSpare(ctx, s); err != nil {
		p.log.Warn("left to the sweep", "err", err)
	}
}

// empty throws every spare away and returns how many there were. Demand starts anew.
func (p *pool) empty() int {
	if p == nil {
		return 0
	}
	p.mu.Lock()
	var all []*spare
	for _, k := range p.kinds {
		all = append(all, k.ready...)
	}
	p.kinds = map[string]*kind{}
	p.count -= len(all)
	p.mu.Unlock()
	for _, s := range all {
		p.discard(s)
	}
	return len(all)
}

// run makes and unmakes spares, one at a time.
func (p *pool) run(ctx context.Context) {
	defer func() {
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		p.empty()
	}()
	for ctx.Err() == nil {
		lacking, surplus, wait := p.next(time.Now())
		switch {
		case lacking != nil:
			p.make(ctx, lacking)
		case surplus != nil:
			p.discard(surplus)
		default:
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case <-timer.C:
			case <-p.changed:
			}
			timer.Stop()
		}
	}
}

// next says what is to be done now: a kind of which one more is to be made, a spare to throw away, or for how long
// there is nothing to do.
func (p *pool) next(now time.Time) (lacking *kind, surplus *spare, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy > 0 {
		return nil, nil, time.Hour // its end wakes us
	}
	if quiet := quietBefore - now.Sub(p.last); quiet > 0 {
		return nil, nil, quiet
	}
	// The most wanted first, until the bound is reached.
	type demand struct {
		*kind
		score float64
	}
	var all []demand
	for _, k := range p.kinds {
		all = append(all, demand{k, k.decayed(now)})
	}
	slices.SortFunc(all, func(a, b demand) int {
		if a.score != b.score {
			return int(math.Copysign(1, b.score-a.score))
		}
		return 0
	})
	left := p.bound
	for _, d := range all {
		want := min(wanted(d.score), left)
		left -= want
		switch have := len(d.ready); {
		case have > want:
			p.count--
			s := d.ready[0]
			d.ready = d.ready[1:]
			return nil, s, 0
		case have < want && lacking == nil:
			lacking = d.kind
		case have == 0 && want == 0 && d.score < spareLeast:
			delete(p.kinds, d.name)
		}
	}
	if lacking == nil || p.count >= p.bound {
		return nil, nil, time.Minute // demand fades
	}
	if pause := spareRetry - now.Sub(p.failed); pause > 0 {
		return nil, nil, pause
	}
	if !p.room() {
		return nil, nil, spareRetry
	}
	p.count++
	return lacking, nil, 0
}

// make adds a spare to its kind; next has counted it already.
func (p *pool) make(ctx context.Context, k *kind) {
	s, err := p.node.makeSpare(ctx, k.image, k.like)
	p.mu.Lock()
	if err != nil {
		p.count--
		p.failed = time.Now()
		p.mu.Unlock()
		if ctx.Err() == nil {
			p.log.Warn("make a spare environment", "image", k.image.Name, "err", err)
		}
		return
	}
	if p.kinds[k.name] != k { // emptied meanwhile
		p.count--
		p.mu.Unlock()
		p.discard(s)
		return
	}
	k.ready = append(k.ready, s)
	p.mu.Unlock()
}

// state is how many spares are ready, and how many there are with those being made.
func (p *pool) state() (ready, all int) {
	if p == nil {
		return 0, 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range p.kinds {
		ready += len(k.ready)
	}
	return ready, p.count
}
