package sshdoor

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestParseLogin(t *testing.T) {
	for name, want := range map[string]Login{
		"alice":                    {"alice", ""},
		"a_b-9":                    {"a_b-9", ""},
		"alice+busybox":            {"alice", "busybox"},
		"alice+debian-12":          {"alice", "debian-12"},
		"alice+debootstrap:trixie": {"alice", "debootstrap:trixie"},
	} {
		if got, err := ParseLogin(name); err != nil || got != want {
			t.Errorf("%q: %+v, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "al", "Alice", "9alice", "+busybox", "alice bob", "älice", "alice\n", strings.Repeat("a", 33)} {
		if _, err := ParseLogin(name); !errors.Is(err, ErrLoginUser) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"alice+", "alice++", "alice+../x", "alice+a b", "alice+\x1b[2J", "alice+" + strings.Repeat("a", 64)} {
		if l, err := ParseLogin(name); !errors.Is(err, ErrLoginTarget) || l.User != "alice" || l.Target != "" {
			t.Errorf("%q: %+v %v", name, l, err)
		}
	}
}

func FuzzParseLogin(f *testing.F) {
	for _, s := range []string{"alice", "alice+busybox", "+", "alice++", "a+b+c", "alice+\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		l, err := ParseLogin(name)
		if err != nil {
			if l.Target != "" || (l.User != "") != errors.Is(err, ErrLoginTarget) {
				t.Errorf("%q: %+v with %v", name, l, err)
			}
			return
		}
		again := l.User
		if l.Target != "" {
			again += "+" + l.Target
		}
		if again != name {
			t.Errorf("%q became %q", name, again)
		}
	})
}

func TestLimiter(t *testing.T) {
	now := time.Unix(0, 0)
	l := newLimiter(3)
	l.now = func() time.Time { return now }
	for range 3 {
		if !l.take("10.0.0.1") {
			t.Fatal("refused too early")
		}
	}
	if l.take("10.0.0.1") || l.take("::ffff:10.0.0.1") {
		t.Error("a fourth within the minute")
	}
	if !l.take("10.0.0.2") {
		t.Error("somebody else pays for it")
	}
	if !l.take("2001:db8::1") || !l.take("2001:db8::2") || !l.take("2001:db8:0:0:9::3") || l.take("2001:db8::4") || !l.take("2001:db8:0:1::1") {
		t.Error("IPv6 is counted by /64")
	}
	now = now.Add(20 * time.Second)
	if !l.take("10.0.0.1") || l.take("10.0.0.1") {
		t.Error("a third of a minute is one more")
	}
	l.refund("10.0.0.1")
	if !l.take("10.0.0.1") {
		t.Error("the refund was not credited")
	}
	for i := range maxBuckets + 10 {
		l.take("1." + strconv.Itoa(i>>16) + "." + strconv.Itoa(i>>8&255) + "." + strconv.Itoa(i&255))
	}
	if len(l.buckets) > maxBuckets+1 {
		t.Errorf("%d buckets", len(l.buckets))
	}
}
