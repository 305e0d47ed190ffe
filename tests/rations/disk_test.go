package rations

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/learnos/learnos/nodeagent"
)

// Every rate is measured with direct I/O, which both versions throttle; v2 buffered writes, too.
func TestDiskRates(t *testing.T) {
	const mb = 1 << 20
	e := create(t, nodeagent.Limits{IO: nodeagent.IORates{ReadBytes: 4 * mb, WriteBytes: 2 * mb}})
	image := create(t, nodeagent.Limits{DiskBytes: 64 * mb, IO: nodeagent.IORates{ReadBytes: 4 * mb, WriteBytes: 2 * mb}})
	slow := create(t, nodeagent.Limits{IO: nodeagent.IORates{Reads: 50, Writes: 40}})
	for _, c := range []struct {
		ration string
		env    *nodeagent.Environment
		want   float64 // a second
		unit   float64
		shown  string
		count  int
		size   int
		script string // one piece of size bytes after another, count of them
	}{
		{"bytes written (--io-write-bps)", e, 2 * mb, mb, "MiB/s", 16, mb / 4, `dd if=/dev/zero of=/file oflag=direct`},
		{"bytes read (--io-read-bps)", e, 4 * mb, mb, "MiB/s", 16, mb / 4, `dd if=/file of=/dev/null iflag=direct`},
		{"bytes written, with a disk limit", image, 2 * mb, mb, "MiB/s", 16, mb / 4, `dd if=/dev/zero of=/file oflag=direct`},
		{"bytes read, with a disk limit", image, 4 * mb, mb, "MiB/s", 16, mb / 4, `dd if=/file of=/dev/null iflag=direct`},
		{"writes (--io-write-iops)", slow, 40, 1, "/s", 80, 4096, `dd if=/dev/zero of=/file oflag=direct conv=notrunc`},
		{"reads (--io-read-iops)", slow, 50, 1, "/s", 80, 4096, `dd if=/file of=/dev/null iflag=direct`},
		{"bytes written through the page cache", e, 2 * mb, mb, "MiB/s", 16, mb / 4, `dd if=/dev/zero of=/cached conv=fsync`},
		{"bytes written through the page cache, with a disk limit", image, 2 * mb, mb, "MiB/s", 16, mb / 4, `dd if=/dev/zero of=/cached conv=fsync`},
	} {
		t.Run(c.ration, func(t *testing.T) {
			cached := strings.Contains(c.ration, "cache")
			if cached && !v2("io") {
				found(c.ration, "", "cgroup v1 does not throttle them (--help says so)")
				return
			}
			amount := float64(c.count)
			if c.unit != 1 {
				amount *= float64(c.size)
			}
			rate := 0.0
			for range attempts {
				start := time.Now()
				if out, code := inside(t, c.env, fmt.Sprintf("%s bs=%d count=%d", c.script, c.size, c.count)); code != 0 {
					t.Fatalf("status %d: %s", code, out)
				}
				rate = amount / time.Since(start).Seconds()
				if within(rate, c.want, 0.2) {
					break
				}
			}
			// The kernel lets a first slice through at once, and counts from there.
			if !within(rate, c.want, 0.2) {
				t.Errorf("%.2f %s, want %.2f", rate/c.unit, c.shown, c.want/c.unit)
			}
			found(c.ration, fmt.Sprintf("%.0f %s", c.want/c.unit, c.shown), "%.2f %s", rate/c.unit, c.shown)
		})
	}
	if s := stats(t, e); s.BlockRead < 4*mb || s.BlockWrite < 4*mb {
		t.Errorf("stats: %d bytes read, %d written", s.BlockRead, s.BlockWrite)
	}
}

func TestDiskSize(t *testing.T) {
	e := create(t, nodeagent.Limits{DiskBytes: 64 << 20})
	out, code := inside(t, e, `dd if=/dev/zero of=/full bs=1M; stat -c %s /full; df -m / | tail -n 1`)
	f := strings.Fields(out)
	if code != 0 || !strings.Contains(out, "No space left on device") && !strings.Contains(out, "quota exceeded") || len(f) < 7 {
		t.Fatalf("status %d: %s", code, out)
	}
	size := number(t, f[len(f)-7])
	if size > 64<<20 || size < 56<<20 {
		t.Errorf("%d bytes went into 64 MiB", size)
	}
	sn, err := node.Images().Snapshot(context.Background(), e.ID())
	if err != nil {
		t.Fatal(err)
	}
	used, err := sn.Usage(context.Background())
	if err != nil || used > 64<<20 {
		t.Errorf("outside it takes %d, %v", used, err)
	}
	s := stats(t, e)
	if s.DiskLimit != 64<<20 || s.DiskBytes < size || s.DiskBytes > 64<<20 {
		t.Errorf("stats: %d of %d", s.DiskBytes, s.DiskLimit)
	}
	way := "project quota"
	if sn.OnImage {
		way = "sparse image"
	}
	found("disk (--disk)", "64 MiB", "%s written, then ENOSPC; outside it takes %s (%s)", mib(uint64(size)), mib(uint64(used)), way)
}
