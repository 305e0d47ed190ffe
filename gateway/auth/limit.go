package auth

import (
	"container/list"
	"math"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limiter bounds how often something may happen per key (an address, an account), with a token bucket each. It keeps
// the most recent buckets only, so strangers can't grow it without end.
type Limiter struct {
	every rate.Limit
	burst int
	max   int

	mu      sync.Mutex
	buckets map[string]*list.Element
	recent  *list.List // of *bucket, newest first
}

type bucket struct {
	key string
	*rate.Limiter
}

// NewLimiter allows n per period and key, n of them at once; n ≤ 0 allows everything.
func NewLimiter(n int, period time.Duration) *Limiter {
	l := &Limiter{burst: n, max: 50_000, buckets: make(map[string]*list.Element), recent: list.New()}
	if n > 0 {
		l.every = rate.Every(period / time.Duration(n))
	}
	return l
}

// Allow takes a token of key's bucket. When there is none it returns how long to wait.
func (l *Limiter) Allow(key string, now time.Time) (wait time.Duration, ok bool) {
	if l.burst <= 0 {
		return 0, true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.bucket(key)
	if b.AllowN(now, 1) {
		return 0, true
	}
	missing := 1 - b.TokensAt(now)
	return time.Duration(math.Ceil(missing / float64(l.every) * float64(time.Second))), false
}

// Refund gives a token back, for attempts that turned out well.
func (l *Limiter) Refund(key string, now time.Time) {
	if l.burst <= 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.bucket(key)
	if b.TokensAt(now) <= float64(l.burst-1) {
		b.AllowN(now, -1)
	}
}

func (l *Limiter) bucket(key string) *bucket {
	if e, ok := l.buckets[key]; ok {
		l.recent.MoveToFront(e)
		return e.Value.(*bucket)
	}
	if len(l.buckets) >= l.max {
		oldest := l.recent.Back()
		delete(l.buckets, oldest.Value.(*bucket).key)
		l.recent.Remove(oldest)
	}
	b := &bucket{key, rate.NewLimiter(l.every, l.burst)}
	l.buckets[key] = l.recent.PushFront(b)
	return b
}

// AddressKey is what an address is limited by: an IPv4 address itself, but the /64 that a subscriber has of IPv6.
func AddressKey(address string) string {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}
