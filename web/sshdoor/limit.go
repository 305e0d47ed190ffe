package sshdoor

import (
	"net/netip"
	"sync"
	"time"
)

// limiter counts what each address spends: a bucket refills at perMinute and holds one minute's worth. IPv6
// addresses count by their /64, which is what one subscriber gets.
type limiter struct {
	perMinute float64
	now       func() time.Time

	mu      sync.Mutex
	buckets map[netip.Prefix]*bucket
}

type bucket struct {
	tokens float64
	at     time.Time
}

// maxBuckets bounds the limiter's memory; beyond it, full buckets are forgotten first.
const maxBuckets = 1 << 16

func newLimiter(perMinute int) *limiter {
	return &limiter{perMinute: float64(perMinute), now: time.Now, buckets: map[netip.Prefix]*bucket{}}
}

func addressBlock(ip string) netip.Prefix {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return netip.Prefix{} // everything unparseable shares one bucket
	}
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

// take spends one token of ip's and reports whether there was one.
func (l *limiter) take(ip string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.refill(addressBlock(ip))
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// refund gives a token back: what was tried turned out to be right.
func (l *limiter) refund(ip string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.refill(addressBlock(ip))
	b.tokens = min(b.tokens+1, l.perMinute)
}

func (l *limiter) refill(block netip.Prefix) *bucket {
	now := l.now()
	b := l.buckets[block]
	if b == nil {
		if len(l.buckets) >= maxBuckets {
			for k, old := range l.buckets {
				if old.tokens+now.Sub(old.at).Minutes()*l.perMinute >= l.perMinute {
					delete(l.buckets, k)
				}
			}
		}
		if len(l.buckets) >= maxBuckets { // every bucket is in use: an attack, and new addresses share one
			block = netip.Prefix{}
			if b = l.buckets[block]; b != nil {
				b.tokens = min(b.tokens+now.Sub(b.at).Minutes()*l.perMinute, l.perMinute)
				b.at = now
				return b
			}
		}
		b = &bucket{tokens: l.perMinute, at: now}
		l.buckets[block] = b
		return b
	}
	b.tokens = min(b.tokens+now.Sub(b.at).Minutes()*l.perMinute, l.perMinute)
	b.at = now
	return b
}
