package runtime

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// benchMount is mountRoot without a testing.T's bookkeeping in the loop.
func benchMount(b *testing.B, c *Container, root string) *os.File {
	fd, err := unix.OpenTree(unix.AT_FDCWD, root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	ns, err := c.NamespaceFD(specs.UserNamespace)
	if err != nil {
		b.Fatal(err)
	}
	defer ns.Close()
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}); err != nil {
		b.Fatal(err)
	}
	return os.NewFile(uintptr(fd), root)
}

// BenchmarkCreateStart is the whole way of a `true`: Create, Start, its exit. Delete is outside of the clock.
func BenchmarkCreateStart(b *testing.B) {
	r, root := newRuntime(b), busyboxRoot(b)
	ctx := b.Context()
	for i := 0; b.Loop(); i++ {
		c, err := r.Create(ctx, CreateOptions{ID: fmt.Sprintf("b%d", i), Spec: testSpec(), Main: &SessionSpec{Args: []string{"/bin/true"}}})
		if err != nil {
			b.Fatal(err)
		}
		f := benchMount(b, c, root)
		if err := c.Start(ctx, StartOptions{Root: f}); err != nil {
			b.Fatal(err)
		}
		f.Close()
		if st, err := c.Wait(ctx); err != nil || st.Code != 0 {
			b.Fatal(st, err)
		}
		b.StopTimer()
		if err := c.Delete(ctx); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkCycle adds Delete.
func BenchmarkCycle(b *testing.B) {
	r, root := newRuntime(b), busyboxRoot(b)
	ctx := b.Context()
	for i := 0; b.Loop(); i++ {
		c, err := r.Create(ctx, CreateOptions{ID: fmt.Sprintf("b%d", i), Spec: testSpec(), Main: &SessionSpec{Args: []string{"/bin/true"}}})
		if err != nil {
			b.Fatal(err)
		}
		f := benchMount(b, c, root)
		if err := c.Start(ctx, StartOptions{Root: f}); err != nil {
			b.Fatal(err)
		}
		f.Close()
		if _, err := c.Wait(ctx); err != nil {
			b.Fatal(err)
		}
		if err := c.Delete(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

func benchContainer(b *testing.B) *Container {
	r := newRuntime(b)
	return start(b, r, CreateOptions{})
}

// BenchmarkCreate stops at the waiting init.
func BenchmarkCreate(b *testing.B) {
	r := newRuntime(b)
	ctx := b.Context()
	for i := 0; b.Loop(); i++ {
		c, err := r.Create(ctx, CreateOptions{ID: fmt.Sprintf("b%d", i), Spec: testSpec()})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := c.Delete(ctx); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkSession(b *testing.B) {
	c := benchContainer(b)
	ctx := b.Context()
	for b.Loop() {
		s, err := c.StartSession(ctx, SessionSpec{Args: []string{"/bin/true"}})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Wait(ctx); err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}

func BenchmarkTerminal(b *testing.B) {
	c := benchContainer(b)
	ctx := b.Context()
	for b.Loop() {
		s, err := c.StartSession(ctx, SessionSpec{Args: []string{"/bin/true"}, TTY: true, Cols: 80, Rows: 24})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Wait(ctx); err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}

func BenchmarkAttach(b *testing.B) {
	c := benchContainer(b)
	ctx := b.Context()
	s, err := c.StartSession(ctx, SessionSpec{ID: "x", Args: []string{"sleep", "1000"}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for b.Loop() {
		s, err := c.Attach(ctx, "x")
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}

func BenchmarkStats(b *testing.B) {
	c := benchContainer(b)
	for b.Loop() {
		if _, err := c.Stats(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompileSeccomp(b *testing.B) {
	for b.Loop() {
		if _, err := compileSeccomp(defaultProfile()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIdleInit measures no time: it reports the memory and threads of an idle init among thirty.
func BenchmarkIdleInit(b *testing.B) {
	r, root := newRuntime(b), busyboxRoot(b)
	ctx := b.Context()
	const n = 30
	var all []*Container
	for i := range n {
		c, err := r.Create(ctx, CreateOptions{ID: fmt.Sprintf("idle%d", i), Spec: testSpec()})
		if err != nil {
			b.Fatal(err)
		}
		f := benchMount(b, c, root)
		if err := c.Start(ctx, StartOptions{Root: f}); err != nil {
			b.Fatal(err)
		}
		f.Close()
		all = append(all, c)
	}
	rss, pss, threads := 0.0, 0.0, 0.0
	for _, c := range all {
		rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", c.PID()))
		if err != nil {
			b.Fatal(err)
		}
		for line := range strings.Lines(string(rollup)) {
			f := strings.Fields(line)
			if len(f) < 2 {
				continue
			}
			v, _ := strconv.ParseFloat(f[1], 64)
			switch f[0] {
			case "Rss:":
				rss += v / n
			case "Pss:":
				pss += v / n
			}
		}
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", c.PID()))
		threads += float64(len(tasks)) / n
	}
	for b.Loop() {
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(rss, "RSS-KiB")
	b.ReportMetric(pss, "PSS-KiB")
	b.ReportMetric(threads, "threads")
}

// BenchmarkCycleParallel is BenchmarkCycle, eight at once on two processors.
func BenchmarkCycleParallel(b *testing.B) {
	r, root := newRuntime(b), busyboxRoot(b)
	ctx := b.Context()
	var serial atomic.Int64
	b.SetParallelism(4)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c, err := r.Create(ctx, CreateOptions{ID: fmt.Sprintf("b%d", serial.Add(1)), Spec: testSpec(), Main: &SessionSpec{Args: []string{"/bin/true"}}})
			if err != nil {
				b.Error(err)
				return
			}
			f := benchMount(b, c, root)
			if err := c.Start(ctx, StartOptions{Root: f}); err != nil {
				b.Error(err)
			}
			f.Close()
			if _, err := c.Wait(ctx); err != nil {
				b.Error(err)
			}
			if err := c.Delete(ctx); err != nil {
				b.Error(err)
			}
		}
	})
}
