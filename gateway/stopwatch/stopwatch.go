// Package stopwatch tells what the time of a request went into, for the Server-Timing header of its answer
// (https://www.w3.org/TR/server-timing/), which browsers show beside the request. Stages are few and may overlap; what was
// not started under a watch costs nothing.
package stopwatch

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"
)

type key struct{}

// Watch gathers the stages of one request. It is safe for concurrent use.
type Watch struct {
	began time.Time

	mu    sync.Mutex
	order []string
	spent map[string]time.Duration
}

// With starts a watch for all that is done under the returned context.
func With(ctx context.Context) (context.Context, *Watch) {
	w := &Watch{began: time.Now(), spent: map[string]time.Duration{}}
	return context.WithValue(ctx, key{}, w), w
}

// Start begins a stage, a token of RFC 9110, until the returned function is called. The times of stages with one name add up.
func Start(ctx context.Context, stage string) (stop func()) {
	w, _ := ctx.Value(key{}).(*Watch)
	if w == nil {
		return func() {}
	}
	began := time.Now()
	return func() {
		took := time.Since(began)
		w.mu.Lock()
		defer w.mu.Unlock()
		if _, ok := w.spent[stage]; !ok {
			w.order = append(w.order, stage)
		}
		w.spent[stage] += took
	}
}

// String is the header's value so far: each stage and the total, in milliseconds.
func (w *Watch) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	for _, stage := range w.order {
		fmt.Fprintf(&b, "%s;dur=%.2f, ", stage, ms(w.spent[stage]))
	}
	fmt.Fprintf(&b, "total;dur=%.2f", ms(time.Since(w.began)))
	return b.String()
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
