package term

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The wire, byte for byte: browsers implement the same.
var wire = []struct {
	frame Frame
	bytes string
}{
	{Frame{Op: OpInput, Data: []byte("ls\r")}, "\x01ls\r"},
	{Frame{Op: OpInput}, "\x01"},
	{Frame{Op: OpResize, Cols: 80, Rows: 258}, "\x02\x00\x50\x01\x02"},
	{Frame{Op: OpAck, Offset: 1<<40 + 2}, "\x03\x00\x00\x01\x00\x00\x00\x00\x02"},
	{Frame{Op: OpEOF}, "\x04"},
	{Frame{Op: OpSignal, Signal: 15}, "\x05\x0f"},
	{Frame{Op: OpPing}, "\x06"},
	{Frame{Op: OpOutput, Offset: 3, Data: []byte("x")}, "\x11\x00\x00\x00\x00\x00\x00\x00\x03x"},
	{Frame{Op: OpStderr, Data: []byte("oops")}, "\x12oops"},
	{Frame{Op: OpExit, Code: -2, Data: []byte("墙")}, "\x13\xff\xff\xff\xfe墙"},
	{Frame{Op: OpHello, Offset: 9, Flags: FlagLost | FlagReadOnly}, "\x14\x00\x00\x00\x00\x00\x00\x00\x09\x03"},
	{Frame{Op: OpError, Data: []byte("no")}, "\x15no"},
	{Frame{Op: OpPong}, "\x16"},
}

func TestWire(t *testing.T) {
	for _, w := range wire {
		if got := string(w.frame.Append(nil)); got != w.bytes {
			t.Errorf("%v: %q, want %q", w.frame.Op, got, w.bytes)
		}
		got, err := Parse([]byte(w.bytes))
		if err != nil || !reflect.DeepEqual(got, w.frame) {
			t.Errorf("%q: %+v, %v", w.bytes, got, err)
		}
		if w.frame.Op.FromClient() == w.frame.Op.FromServer() {
			t.Errorf("%v has no direction", w.frame.Op)
		}
	}
	for _, bad := range []string{"", "\x00", "\x07", "\x10", "\x17", "\xff", "\x02\x00\x50\x00", "\x02\x00\x50\x00\x01x", "\x02\x00\x00\x00\x01",
		"\x03\x00", "\x04x", "\x05", "\x05\x00", "\x05\x41", "\x06x", "\x11\x00", "\x13\x00\x00", "\x13\x00\x00\x00\x00\xff", "\x14\x00", "\x15\xc3", "\x16x",
		"\x01" + strings.Repeat("x", MaxFrame)} {
		if f, err := Parse([]byte(bad)); !errors.Is(err, ErrFrame) {
			t.Errorf("%.20q became %+v, %v", bad, f, err)
		}
	}
}

func TestStream(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	var want []string
	for range 3 {
		for _, f := range wire {
			must(t, w.WriteFrame(f.frame))
			want = append(want, f.bytes)
		}
		big := "\x01" + strings.Repeat("y", MaxFrame-1)
		must(t, w.WriteRaw([]byte(big)))
		want = append(want, big)
	}
	whole := b.Bytes()
	for name, r := range map[string]io.Reader{
		"whole": bytes.NewReader(whole), "bytes": iotest.OneByteReader(bytes.NewReader(whole)), "halves": iotest.HalfReader(bytes.NewReader(whole)),
		"with the error": iotest.DataErrReader(bytes.NewReader(whole)),
	} {
		fr := NewReader(r)
		for i, f := range want {
			got, err := fr.ReadRaw()
			if err != nil || string(got) != f {
				t.Fatalf("%s: frame %d is %.20q, %v", name, i, got, err)
			}
		}
		if _, err := fr.ReadRaw(); err != io.EOF {
			t.Fatal(name, err)
		}
	}
	for _, cut := range []int{1, 3, 4, 6} {
		if _, err := NewReader(bytes.NewReader(whole[:cut])).ReadFrame(); err != io.ErrUnexpectedEOF {
			t.Error(cut, err)
		}
	}
	for _, n := range []uint32{0, MaxFrame + 1, 1 << 31} {
		if _, err := NewReader(bytes.NewReader(binary.BigEndian.AppendUint32(nil, n))).ReadFrame(); !errors.Is(err, ErrFrame) {
			t.Error(n, err)
		}
	}
	if err := w.WriteFrame(Frame{Op: OpInput, Data: make([]byte, MaxFrame)}); !errors.Is(err, ErrFrame) {
		t.Error(err)
	}
	if err := w.WriteFrame(Frame{Op: OpOutput, Data: make([]byte, MaxData)}); err != nil {
		t.Error(err)
	}
}

func TestNoAllocationPerFrame(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	f := Frame{Op: OpOutput, Offset: 1, Data: make([]byte, 1000)}
	r := NewReader(&b)
	cycle := func() {
		b.Reset()
		if w.WriteFrame(f) != nil {
			t.Fatal()
		}
		if _, err := r.ReadFrame(); err != nil {
			t.Fatal(err)
		}
	}
	cycle()
	if n := testing.AllocsPerRun(100, cycle); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

// Frames of several goroutines do not mix.
func TestConcurrentWriters(t *testing.T) {
	a, b := net.Pipe()
	w := NewWriter(a)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 50 {
				if err := w.WriteFrame(Frame{Op: OpInput, Data: bytes.Repeat([]byte{byte(i)}, 100+i)}); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	go func() { wg.Wait(); a.Close() }()
	r := NewReader(b)
	n := 0
	for {
		f, err := r.ReadFrame()
		if err == io.EOF {
			break
		}
		must(t, err)
		if len(f.Data) != 100+int(f.Data[0]) || bytes.Count(f.Data, f.Data[:1]) != len(f.Data) {
			t.Fatalf("%q", f.Data)
		}
		n++
	}
	if n != 400 {
		t.Fatal(n)
	}
}

func FuzzParse(f *testing.F) {
	for _, w := range wire {
		f.Add([]byte(w.bytes))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := Parse(b)
		if err != nil {
			if !errors.Is(err, ErrFrame) {
				t.Fatal(err)
			}
			return
		}
		if again := frame.Append(nil); !bytes.Equal(again, b) {
			t.Fatalf("%q → %+v → %q", b, frame, again)
		}
	})
}

func FuzzReader(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02\x01x\x00\x00\x00\x01\x06"))
	f.Fuzz(func(t *testing.T, in []byte) {
		a, b := NewReader(bytes.NewReader(in)), NewReader(iotest.OneByteReader(bytes.NewReader(in)))
		for {
			x, errX := a.ReadRaw()
			y, errY := b.ReadRaw()
			if !bytes.Equal(x, y) || (errX == nil) != (errY == nil) {
				t.Fatalf("%q %v, %q %v", x, errX, y, errY)
			}
			if errX != nil {
				return
			}
		}
	})
}

func BenchmarkWriteRead(b *testing.B) {
	var buf bytes.Buffer
	w, r := NewWriter(&buf), NewReader(&buf)
	f := Frame{Op: OpOutput, Data: make([]byte, 32<<10)}
	b.SetBytes(32 << 10)
	b.ReportAllocs()
	for b.Loop() {
		buf.Reset()
		_ = w.WriteFrame(f)
		_, _ = r.ReadFrame()
	}
}
