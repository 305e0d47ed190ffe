package rootfs

import (
	"context"
	"sync"
)

// content is an image before it has a name. Whoever has it keeps its layers in the store until release.
type content struct {
	digest string
	layers []string
	size   int64
	config ImageConfig
	holds  []*lock
}

func (c *content) release() {
	for _, l := range c.holds {
		l.unlock()
	}
	c.holds = nil
}

// flights lets those who want the same content at the same time share the work of fetching it. The work goes on
// as long as one of them waits for it.
type flights struct {
	mu sync.Mutex
	m  map[string]*flight
}

type flight struct {
	done    chan struct{}
	cancel  context.CancelFunc
	content *content
	err     error
	askers  int

	report sync.Mutex
	sinks  map[int]func(Progress)
	next   int
	last   map[string]Progress // by layer, for those who come late
}

// share runs fetch, or joins the run of somebody who asked for the same key, and gives its content to use
// before the content is released.
func (fs *flights) share(ctx context.Context, key string, progress func(Progress),
	fetch func(ctx context.Context, report func(Progress)) (*content, error), use func(*content) error) error {
	f := fs.join(ctx, key, fetch)
	unsubscribe := f.subscribe(progress)
	defer fs.leave(key, f)
	defer unsubscribe()
	select {
	case <-f.done:
		if f.err != nil {
			return f.err
		}
		return use(f.content)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (fs *flights) join(ctx context.Context, key string, fetch func(context.Context, func(Progress)) (*content, error)) *flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.m[key]; f != nil {
		f.askers++
		return f
	}
	// Its own life, not the first asker's: others may still want the result when that one has gone.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{done: make(chan struct{}), cancel: cancel, askers: 1, sinks: map[int]func(Progress){}, last: map[string]Progress{}}
	if fs.m == nil {
		fs.m = map[string]*flight{}
	}
	fs.m[key] = f
	go func() {
		c, err := fetch(ctx, f.publish)
		fs.mu.Lock()
		f.content, f.err = c, err
		if fs.m[key] == f {
			delete(fs.m, key)
		}
		if f.askers == 0 && c != nil {
			c.release()
		}
		close(f.done)
		fs.mu.Unlock()
		cancel()
	}()
	return f
}

// leave ends one asker's interest. The last one out stops a run that goes on and releases one that is done.
func (fs *flights) leave(key string, f *flight) {
	fs.mu.Lock()
	f.askers--
	last := f.askers == 0
	finished := false
	select {
	case <-f.done:
		finished = true
	default:
		if last && fs.m[key] == f {
			delete(fs.m, key)
		}
	}
	fs.mu.Unlock()
	if !last {
		return
	}
	f.cancel()
	if !finished {
		// Whoever gives up last sees to it that nothing half-done is left: the caller may be about to exit.
		<-f.done
		return
	}
	if f.content != nil {
		f.content.release()
	}
}

func (f *flight) publish(p Progress) {
	f.report.Lock()
	defer f.report.Unlock()
	f.last[p.Layer] = p
	for _, sink := range f.sinks {
		sink(p)
	}
}

func (f *flight) subscribe(sink func(Progress)) (unsubscribe func()) {
	if sink == nil {
		return func() {}
	}
	f.report.Lock()
	defer f.report.Unlock()
	id := f.next
	f.next++
	f.sinks[id] = sink
	for _, p := range f.last {
		sink(p)
	}
	return func() {
		f.report.Lock()
		delete(f.sinks, id)
		f.report.Unlock()
	}
}
