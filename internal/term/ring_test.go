package term

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary is also the process that is killed while it writes to the ring named by this variable.
const ringVariable = "TERM_TEST_RING"

func TestMain(m *testing.M) {
	if path := os.Getenv(ringVariable); path != "" {
		writeForever(path)
	}
	os.Exit(m.Run())
}

func ctxOf(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// stream is the test's endless output: the byte at each offset is known.
func streamByte(off uint64) byte {
	x := off * 0x9e3779b97f4a7c15
	return byte(x >> 56)
}

func streamBytes(off uint64, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = streamByte(off + uint64(i))
	}
	return b
}

func checkStream(t testing.TB, b []byte, off uint64) {
	t.Helper()
	for i := range b {
		if b[i] != streamByte(off+uint64(i)) {
			t.Fatalf("byte at %d is wrong", off+uint64(i))
		}
	}
}

func writeForever(path string) {
	r, err := OpenRing(path, 8<<10)
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	rnd := rand.New(rand.NewPCG(uint64(os.Getpid()), 1))
	for {
		end := r.End()
		if _, err := r.Write(streamBytes(end, 1+rnd.IntN(6000))); err != nil {
			os.Exit(1)
		}
		fmt.Println(r.End())
	}
}

func TestRing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.ring")
	for name, open := range map[string]func() *Ring{
		"memory": func() *Ring { return NewRing(8 << 10) },
		"file": func() *Ring {
			r, err := OpenRing(path, 8<<10)
			must(t, err)
			return r
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := open()
			rnd := rand.New(rand.NewPCG(1, 2))
			buf := make([]byte, 16<<10)
			for r.End() < 1<<20 {
				end := r.End()
				n := rnd.IntN(20 << 10)
				if m, err := r.Write(streamBytes(end, n)); m != n || err != nil {
					t.Fatal(m, err)
				}
				if r.End() != end+uint64(n) || r.End()-r.Start() > 8<<10 || r.End() > 8<<10 && r.End()-r.Start() != 8<<10 {
					t.Fatal(r.Start(), r.End())
				}
				off := r.Start() + uint64(rnd.IntN(8<<10))
				m, at := r.ReadAt(buf[:rnd.IntN(len(buf))], off)
				if at != off && off < r.End() {
					t.Fatal(at, off)
				}
				checkStream(t, buf[:m], at)
			}
			if n, at := r.ReadAt(buf, 0); n != 8<<10 || at != r.Start() {
				t.Fatal("old offsets must give the oldest bytes", n, at)
			}
			start, end := r.Start(), r.End()
			must(t, r.Close())
			must(t, r.Close())
			if _, err := r.Write([]byte("x")); err != ErrRingEnded {
				t.Fatal(err)
			}
			if name == "file" {
				r, err := OpenRing(path, 123<<20) // keeps its own capacity
				must(t, err)
				defer r.Close()
				if r.Start() != start || r.End() != end {
					t.Fatal(r.Start(), r.End(), start, end)
				}
				n, at := r.ReadAt(buf, start)
				if n != 8<<10 {
					t.Fatal(n)
				}
				checkStream(t, buf[:n], at)
				if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 || st.Size() != 12<<10 {
					t.Fatal(st, err)
				}
			}
		})
	}
}

// A writer is killed with -9 in the middle of it, again and again: what the ring then says it holds, it holds.
func TestRingSurvivesKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.ring")
	var before uint64
	buf := make([]byte, 16<<10)
	for range 25 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), ringVariable+"="+path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.StdoutPipe()
		must(t, err)
		runtime.LockOSThread()
		must(t, cmd.Start())
		lines := bufio.NewScanner(out)
		var told uint64
		for range 1 + rand.IntN(60) {
			if !lines.Scan() || strings.HasPrefix(lines.Text(), "error") {
				t.Fatal(lines.Text())
			}
			told, err = strconv.ParseUint(lines.Text(), 10, 64)
			must(t, err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		runtime.UnlockOSThread()

		r, err := OpenRing(path, 0)
		must(t, err)
		if r.End() < told || r.End() <= before {
			t.Fatalf("end %d, but %d were told", r.End(), told)
		}
		n, at := r.ReadAt(buf, 0)
		if at != r.Start() || at+uint64(n) != r.End() || n == 0 {
			t.Fatal(n, at, r.Start(), r.End())
		}
		checkStream(t, buf[:n], at)
		before = r.End()
		must(t, r.Close())
	}
}

// A crash between reserving and finishing a write: the overwritten bytes are not claimed to be held.
func TestRingTornWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.ring")
	r, err := OpenRing(path, 4<<10)
	must(t, err)
	_, err = r.Write(streamBytes(0, 10_000))
	must(t, err)
	set(r.mem, 32, 11_000)                           // reserved
	for off := uint64(10_000); off < 10_700; off++ { // partly copied
		r.mem[ringHeader+off%4096] = '!'
	}
	must(t, r.Close())
	r, err = OpenRing(path, 0)
	must(t, err)
	defer r.Close()
	if r.Start() != 11_000-4096 || r.End() != 10_000 {
		t.Fatal(r.Start(), r.End())
	}
	buf := make([]byte, 4096)
	n, at := r.ReadAt(buf, 0)
	checkStream(t, buf[:n], at)
	_, err = r.Write(streamBytes(10_000, 3000))
	must(t, err)
	if r.Start() != 13_000-4096 {
		t.Fatal(r.Start())
	}
	n, at = r.ReadAt(buf, 0)
	if n != 4096 {
		t.Fatal(n)
	}
	checkStream(t, buf[:n], at)
}

func TestBadRingFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s.ring")
	good := make([]byte, ringHeader+4096)
	initRingHeader(good)
	for what, spoil := range map[string]func([]byte) []byte{
		"empty":     func(b []byte) []byte { return nil },
		"short":     func(b []byte) []byte { return b[:ringHeader] },
		"cut":       func(b []byte) []byte { return b[:len(b)-1] },
		"magic":     func(b []byte) []byte { b[0]++; return b },
		"version":   func(b []byte) []byte { b[8] = 9; return b },
		"capacity":  func(b []byte) []byte { b[17]++; return b },
		"total":     func(b []byte) []byte { b[24] = 1; return b },
		"reserved":  func(b []byte) []byte { b[34] = 1; return b },
		"far":       func(b []byte) []byte { b[31], b[39] = 0x80, 0x80; return b },
		"untouched": func(b []byte) []byte { return b },
	} {
		must(t, os.WriteFile(path, spoil(bytes.Clone(good)), 0o600))
		r, err := OpenRing(path, 4096)
		if what == "untouched" {
			must(t, err)
			r.Close()
		} else if !errors.Is(err, ErrRing) {
			t.Errorf("%s: %v", what, err)
		}
	}
	link := filepath.Join(dir, "link.ring")
	must(t, os.Symlink(path, link))
	if _, err := OpenRing(link, 4096); err == nil {
		t.Error("followed a link")
	}
	if _, err := OpenRing(filepath.Join(dir, "no", "dir"), 4096); err == nil {
		t.Error("made a ring nowhere")
	}
	if _, err := OpenRing(dir, 4096); err == nil {
		t.Error("a directory is no ring")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".ring-*")); len(left) > 0 {
		t.Error(left)
	}
}

func FuzzRingHeader(f *testing.F) {
	good := make([]byte, ringHeader+4096)
	initRingHeader(good)
	f.Add(good[:40])
	binary.NativeEndian.PutUint64(good[24:], 5000)
	binary.NativeEndian.PutUint64(good[32:], 6000)
	f.Add(good[:40])
	path := filepath.Join(f.TempDir(), "s.ring")
	f.Fuzz(func(t *testing.T, header []byte) {
		file := make([]byte, ringHeader+4096)
		copy(file, header[:min(len(header), ringHeader)])
		must(t, os.WriteFile(path, file, 0o600))
		r, err := OpenRing(path, 4096)
		if err != nil {
			return
		}
		defer r.Close()
		buf := make([]byte, 8192)
		for range 3 {
			n, at := r.ReadAt(buf, 0)
			if at != r.Start() || at+uint64(n) != r.End() || n > 4096 {
				t.Fatal(n, at, r.Start(), r.End())
			}
			_, err := r.Write(make([]byte, 3000))
			must(t, err)
		}
	})
}

func TestCursorWindow(t *testing.T) {
	r := NewRing(2 * WindowSize)
	ctx := ctxOf(t)
	c := r.Cursor(FromStart)
	defer c.Close()
	_, err := r.Write(streamBytes(0, WindowSize+1000))
	must(t, err)
	buf := make([]byte, 2*WindowSize)
	n, at, lost, err := c.Read(ctx, buf)
	if n != WindowSize || at != 0 || lost || err != nil {
		t.Fatal(n, at, lost, err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if n, _, _, err := c.Read(short, buf); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal("read beyond the window", n, err)
	}
	if err := c.Ack(WindowSize + 1); !errors.Is(err, ErrAck) {
		t.Fatal(err)
	}
	must(t, c.Ack(600))
	must(t, c.Ack(100)) // old
	n, at, _, err = c.Read(ctx, buf)
	if n != 600 || at != WindowSize || err != nil {
		t.Fatal(n, at, err)
	}
	checkStream(t, buf[:n], at)
	must(t, c.Ack(WindowSize+600))
	r.Finish()
	if n, _, _, err = c.Read(ctx, buf); n != 400 || err != nil {
		t.Fatal(n, err)
	}
	if _, _, _, err = c.Read(ctx, buf); err != io.EOF {
		t.Fatal(err)
	}

	for from, want := range map[uint64]struct {
		at   uint64
		lost bool
	}{FromStart: {0, false}, 0: {0, false}, 77: {77, false}, WindowSize + 1000: {WindowSize + 1000, false}, WindowSize + 1001: {0, true}} {
		c := r.Cursor(from)
		if at, lost := c.Start(); at != want.at || lost != want.lost {
			t.Errorf("from %d: %d, %v", from, at, lost)
		}
		c.Close()
	}
}

// A writer that waits for its readers loses nothing for them; one that does not tells them what they lost.
func TestSlowReaders(t *testing.T) {
	ctx := ctxOf(t)
	const total = 1 << 20
	r := NewRing(8 << 10)
	fast, slow := r.Cursor(FromStart), r.Cursor(FromStart)
	read := func(c *Cursor, pace int) {
		buf := make([]byte, pace)
		var pos uint64
		for {
			n, at, lost, err := c.Read(ctx, buf)
			if err == io.EOF {
				if pos != total {
					t.Error("ended at", pos)
				}
				break
			}
			if err != nil || lost || at != pos {
				t.Error(at, pos, lost, err)
				break
			}
			checkStream(t, buf[:n], at)
			pos += uint64(n)
			if err := c.Ack(pos); err != nil {
				t.Error(err)
			}
		}
		c.Close()
	}
	done := make(chan struct{}, 2)
	go func() { read(fast, 8<<10); done <- struct{}{} }()
	go func() { read(slow, 100); done <- struct{}{} }()
	for off := 0; off < total; off += 1 << 16 {
		must(t, r.WriteHeld(ctx, streamBytes(uint64(off), 1<<16)))
	}
	r.Finish()
	<-done
	<-done
	if err := r.WriteHeld(ctx, []byte("x")); err != ErrRingEnded {
		t.Fatal(err)
	}

	// No acks at all: patience ends, the reader is told.
	r = NewRing(4 << 10)
	r.patience = 10 * time.Millisecond
	c := r.Cursor(FromStart)
	must(t, r.WriteHeld(ctx, streamBytes(0, 10_000)))
	buf := make([]byte, 4096)
	n, at, lost, err := c.Read(ctx, buf)
	if n != 4096 || at != 10_000-4096 || !lost || err != nil {
		t.Fatal(n, at, lost, err)
	}
	checkStream(t, buf[:n], at)
	must(t, c.Ack(at+uint64(n))) // it is held for again
	must(t, r.WriteHeld(ctx, streamBytes(10_000, 4096)))
	stopped, cancel := context.WithCancel(ctx)
	r.patience = time.Hour
	held := make(chan error, 1)
	go func() { held <- r.WriteHeld(stopped, []byte("x")) }()
	cancel()
	if err := <-held; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	go func() { held <- r.WriteHeld(ctx, []byte("x")) }()
	c.Close() // whoever leaves holds nobody up
	must(t, <-held)
	c = r.Cursor(FromStart)
	must(t, r.Close())
	if _, _, _, err := c.Read(ctx, buf); err != io.EOF {
		t.Fatal(err)
	}
	c.Close()
}
