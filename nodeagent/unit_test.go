package nodeagent

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/learnos/learnos/rootfs"
)

func TestIDRangesNeverOverlap(t *testing.T) {
	dir, root := t.TempDir(), t.TempDir()
	one, two := idRanges{dir, root}, idRanges{dir, t.TempDir()}
	var mu sync.Mutex
	seen := map[int]bool{}
	var wg sync.WaitGroup
	for _, r := range []idRanges{one, two, one, two} {
		wg.Go(func() {
			for range 50 {
				first, err := r.allocate("e1", func(int) error { return nil })
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if seen[first] || first < idBase || uint64(first)+idRangeSize > 0xf0000000 {
					t.Errorf("range %#x", first)
				}
				seen[first] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	removed, err := one.sweep(func(string) bool { return false })
	if err != nil || len(removed) != 100 {
		t.Errorf("swept %d, %v; want its own 100", len(removed), err)
	}
	first, err := one.allocate("e2", func(int) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := two.release(first, "e2"); err != nil {
		t.Error(err)
	}
	if err := one.release(first, "e3"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(one.path((first - idBase) / idRangeSize)); err != nil {
		t.Error("released by somebody else:", err)
	}
	for range 2 {
		if err := one.release(first, "e2"); err != nil {
			t.Error(err)
		}
	}
}

func TestNamesAreExclusive(t *testing.T) {
	n, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	ids := []string{NewID(), NewID(), NewID(), NewID()}
	for _, id := range ids {
		if !validID(id) || len(id) != 26 {
			t.Fatalf("id %q", id)
		}
		if err := os.Mkdir(n.envDir(id), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := n.save(&Record{ID: id, Name: "box"}); err != nil {
			t.Fatal(err)
		}
	}
	won := make(chan string, len(ids))
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			switch err := n.takeName("box", id); {
			case err == nil:
				won <- id
			case !errors.Is(err, ErrNameTaken):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	close(won)
	if len(won) != 1 {
		t.Fatalf("%d have the name", len(won))
	}
	winner := <-won
	if r, err := n.Find("box"); err != nil || r.ID != winner {
		t.Errorf("found %+v, %v", r, err)
	}
	if r, err := n.Find(winner[:20]); err != nil || r.ID != winner {
		t.Errorf("found %+v, %v", r, err)
	}
	if _, err := n.Find("e"); err == nil {
		t.Error("an ambiguous beginning was taken")
	}
	for _, bad := range []string{"", "..", "../names/box", "/etc/passwd", "nope"} {
		if _, err := n.Find(bad); !errors.Is(err, ErrNotFound) {
			t.Errorf("Find(%q): %v", bad, err)
		}
	}
	// A bearer that is gone leaves the name free.
	if err := os.RemoveAll(n.envDir(winner)); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if id != winner {
			if err := n.takeName("box", id); err != nil {
				t.Error(err)
			}
			break
		}
	}
}

func TestCommandOf(t *testing.T) {
	sh, empty := "/bin/sh", ""
	cfg := rootfs.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"serve", "now"}}
	for _, c := range []struct {
		entrypoint *string
		args, want []string
	}{
		{nil, nil, []string{"/entry", "serve", "now"}},
		{nil, []string{"x"}, []string{"/entry", "x"}},
		{&sh, nil, []string{"/bin/sh"}},
		{&sh, []string{"-c", "x"}, []string{"/bin/sh", "-c", "x"}},
		{&empty, []string{"x"}, []string{"x"}},
	} {
		if got := commandOf(cfg, c.entrypoint, c.args); !reflect.DeepEqual(got, c.want) {
			t.Errorf("commandOf(%v, %v) = %v, want %v", c.entrypoint, c.args, got, c.want)
		}
	}
}

func TestMergeEnv(t *testing.T) {
	got := mergeEnv([]string{"A=1", "B=2"}, []string{"B=3", "C=4"}, []string{"A=", "BB=5"})
	if want := []string{"A=", "B=3", "C=4", "BB=5"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestHostsFile(t *testing.T) {
	host := "127.0.0.1 localhost\n127.0.1.1 me\n10.1.2.3 db db.local # the one\n::1 x\nfe80::1 y\n2001:db8::7 six\nrubbish\n"
	got := string(hostsFile([]byte(host), "box", netip.MustParseAddr("10.64.0.2")))
	for _, want := range []string{"127.0.0.1\tlocalhost", "10.64.0.2\tbox", "10.1.2.3\tdb db.local\n", "2001:db8::7\tsix"} {
		if !strings.Contains(got, want) {
			t.Errorf("lacks %q:\n%s", want, got)
		}
	}
	for _, not := range []string{"me\n", "fe80", "rubbish", "#"} {
		if strings.Contains(got, not) {
			t.Errorf("has %q:\n%s", not, got)
		}
	}
}

func TestHostResolversSkipTheStub(t *testing.T) {
	dir := t.TempDir()
	stub, up := filepath.Join(dir, "stub"), filepath.Join(dir, "up")
	if err := errors.Join(os.WriteFile(stub, []byte("nameserver 127.0.0.53\noptions edns0\n"), 0o600), os.WriteFile(up, []byte("# x\nnameserver 9.9.9.9\nnameserver fe80::1%eth0\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if got := hostResolvers(stub, up); len(got) != 1 || got[0] != netip.MustParseAddr("9.9.9.9") {
		t.Errorf("got %v", got)
	}
	if got := hostResolvers(filepath.Join(dir, "nope")); got != nil {
		t.Errorf("got %v", got)
	}
}

// TestLookupAccount: what an image has in /etc/passwd leads nowhere but into that image.
func TestLookupAccount(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	passwd := filepath.Join(dir, "etc/passwd")
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if got := lookupAccount(root, ""); got.name != "root" || got.home != "/root" {
		t.Errorf("without a file: %+v", got)
	}
	if err := os.WriteFile(passwd, []byte("bad\nroot:x:0:0::/r:/bin/ash\nann:x:7:7::relative:\nann:x:8:8::/x:/y\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := lookupAccount(root, "0:5"); got != (account{"root", "/r", "/bin/ash"}) {
		t.Errorf("root: %+v", got)
	}
	if got := lookupAccount(root, "ann"); got != (account{"ann", "/", ""}) {
		t.Errorf("ann: %+v", got)
	}
	if got := lookupAccount(root, "7"); got.name != "ann" {
		t.Errorf("7: %+v", got)
	}
	if got := lookupAccount(root, "99"); got != (account{"99", "/", ""}) {
		t.Errorf("99: %+v", got)
	}
	if err := errors.Join(os.Remove(passwd), os.Symlink("/etc/passwd", passwd)); err != nil {
		t.Fatal(err)
	}
	if got := lookupAccount(root, "daemon"); got.name != "daemon" || got.home != "/" {
		t.Errorf("through a link to the host: %+v", got)
	}
}

// TestWriteEtc: links and directories an image has in its place are replaced, and none is followed.
func TestWriteEtc(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	victim := filepath.Join(outside, "victim")
	if err := errors.Join(os.WriteFile(victim, []byte("host"), 0o600), os.Mkdir(filepath.Join(dir, "etc"), 0o755),
		os.Symlink(victim, filepath.Join(dir, "etc/hosts")), os.Mkdir(filepath.Join(dir, "etc/hostname"), 0o755)); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	files := map[string][]byte{"hosts": []byte("mine"), "hostname": []byte("name")}
	if err := writeEtc(root, files, 1234, 1234); err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, "etc", name))
		if err != nil || string(got) != string(want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if got, _ := os.ReadFile(victim); string(got) != "host" {
		t.Errorf("the host's file is %q", got)
	}
	// /etc itself a link out of the root: it leads to the root's own, or nowhere.
	if err := errors.Join(os.RemoveAll(filepath.Join(dir, "etc")), os.Symlink(outside, filepath.Join(dir, "etc"))); err != nil {
		t.Fatal(err)
	}
	_ = writeEtc(root, files, 0, 0)
	if entries, _ := os.ReadDir(outside); len(entries) != 1 {
		t.Errorf("written outside: %v", entries)
	}
}

func TestStartTimeTellsProcessesApart(t *testing.T) {
	me := self()
	if me.StartTime == 0 || !me.alive() {
		t.Errorf("%+v", me)
	}
	me.StartTime++
	if me.alive() {
		t.Error("another start time is another process")
	}
	if (Process{PID: 1 << 22, StartTime: 1}).alive() || (Process{}).alive() {
		t.Error("nobody is alive")
	}
}

func TestParseMeminfo(t *testing.T) {
	m := parseMeminfo("MemTotal:       1000 kB\nMemFree: 5 kB\nMemAvailable:   600 kB\nHugePages_Total: 0\n")
	if m.total != 1000<<10 || m.available != 600<<10 {
		t.Errorf("%+v", m)
	}
	if m := readMeminfo(); m.total == 0 || m.available == 0 {
		t.Errorf("this machine: %+v", m)
	}
}

func TestPullingIsToldAHandfulOfTimes(t *testing.T) {
	p := &pulling{layers: map[string]rootfs.Progress{}}
	now := time.Now()
	told, last := 0, 0
	for i := range 10_000 {
		phase := rootfs.PhaseDownloading
		done := int64(i)
		if i >= 5000 {
			phase, done = rootfs.PhaseUnpacking, int64(i-5000)
		}
		now = now.Add(time.Millisecond)
		if _, percent, due := p.note(rootfs.Progress{Layer: "a", Phase: phase, Done: done * 2, Total: 10_000}, now); due {
			if percent < last {
				t.Errorf("%d after %d", percent, last)
			}
			told, last = told+1, percent
		}
	}
	if told < 5 || told > 20 {
		t.Errorf("told %d times", told)
	}
}

func TestVerdict(t *testing.T) {
	now := time.Now()
	h := func(r Record, change func(*hosted)) *hosted {
		h := &hosted{id: r.ID, env: &Environment{rec: r}, lastSeen: now}
		if change != nil {
			change(h)
		}
		return h
	}
	for name, c := range map[string]struct {
		h     *hosted
		state string
	}{
		"fresh":    {h(Record{Platform: &PlatformRecord{Deadline: now.Add(time.Hour), IdleTimeout: time.Minute}}, nil), ""},
		"deadline": {h(Record{Platform: &PlatformRecord{Deadline: now}}, nil), "deleted"},
		"idle":     {h(Record{Platform: &PlatformRecord{IdleTimeout: time.Minute}}, func(h *hosted) { h.lastSeen = now.Add(-time.Minute) }), "deleted"},
		"connected": {h(Record{Platform: &PlatformRecord{IdleTimeout: time.Minute}}, func(h *hosted) {
			h.lastSeen, h.connected = now.Add(-time.Hour), 1
		}), ""},
		"network": {h(Record{Limits: Limits{NetQuotaBytes: 10}, Platform: &PlatformRecord{}}, func(h *hosted) {
			h.last.stats.Net.RxBytes, h.last.stats.Net.TxBytes = 6, 4
		}), "overstep"},
		"disk": {h(Record{Limits: Limits{BlkQuotaBytes: 10}, Platform: &PlatformRecord{}}, func(h *hosted) {
			h.last.stats.BlockRead, h.last.stats.BlockWrite = 6, 4
		}), "overstep"},
	} {
		got := ""
		if final, _ := c.h.verdict(now); final != nil {
			got = final.State
		}
		if got != c.state {
			t.Errorf("%s: %q, want %q", name, got, c.state)
		}
	}
	// Somebody who comes between the verdict and the end stays.
	idle := h(Record{Platform: &PlatformRecord{IdleTimeout: time.Minute}}, func(h *hosted) { h.lastSeen = now.Add(-time.Hour) })
	_, onlyIf := idle.verdict(now)
	if err := idle.come(); err != nil {
		t.Fatal(err)
	}
	if idle.begin(onlyIf) {
		t.Error("an environment ends under somebody who has just come")
	}
	idle.goAway()
	idle.lastSeen = now.Add(-time.Hour)
	if !idle.begin(onlyIf) {
		t.Error("it does not end")
	}
	if err := idle.come(); !errors.Is(err, errEnding) {
		t.Errorf("came into an ending environment: %v", err)
	}
}

func TestLogsGoOnWhereTheyWere(t *testing.T) {
	for _, c := range []struct{ before, body, want string }{
		{"", "a\n", "a\n"},
		{"tick\n", "tick\ntick\n", "tick\n"},
		{"tick\n", "tick\n", ""},
		{"1\n2\n", "2\n3\n", "2\n3\n"},
	} {
		if got := string(after([]byte(c.body), []byte(c.before))); got != c.want {
			t.Errorf("after(%q, %q) = %q, want %q", c.body, c.before, got, c.want)
		}
	}
	long := strings.Repeat("x", 5000) + "the end\n"
	if got := string(after([]byte(long[100:]+"more"), []byte(long))); got != "more" {
		t.Errorf("after going round: %d bytes", len(got))
	}
	for _, c := range []struct {
		n    int
		want string
	}{{0, "a\nb\nc\n"}, {1, "c\n"}, {2, "b\nc\n"}, {3, "a\nb\nc\n"}, {9, "a\nb\nc\n"}} {
		if got := string(lastLines([]byte("a\nb\nc\n"), c.n)); got != c.want {
			t.Errorf("last %d lines: %q", c.n, got)
		}
	}
	if got := string(lastLines([]byte("a\nb"), 1)); got != "b" {
		t.Errorf("an unfinished line: %q", got)
	}
}

func TestSpelling(t *testing.T) {
	for s, want := range map[string][3]bool{
		"abc": {true, true, true}, "a-1": {true, true, true}, "A.b": {false, true, true}, "a_b": {false, true, false}, "a-": {true, true, false},
		"": {}, "-a": {}, ".": {}, "..": {}, "a/b": {}, "a b": {}, "a\n": {}, "a\x00": {}, "é": {}, strings.Repeat("a", 64): {},
		strings.Repeat("a", 63): {true, true, true},
	} {
		if got := [3]bool{validID(s), validName(s), validHost(s)}; got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}

func TestRaise(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid_max")
	for from, to := range map[string]string{"32768\n": "4194304", "4194304\n": "4194304\n", "nonsense": "nonsense"} {
		if err := os.WriteFile(path, []byte(from), 0o600); err != nil {
			t.Fatal(err)
		}
		raise(path, 4194304, "process numbers", slog.New(slog.DiscardHandler))
		if got, err := os.ReadFile(path); err != nil || string(got) != to {
			t.Errorf("from %q to %q (%v), want %q", from, got, err, to)
		}
	}
}

func BenchmarkKernelMemory(b *testing.B) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for b.Loop() {
		if _, err := kernelMemory(f); err != nil {
			b.Fatal(err)
		}
	}
}
