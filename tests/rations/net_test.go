package rations

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/learnos/learnos/netbridge"
	"github.com/learnos/learnos/nodeagent"
)

// TestBandwidth sends through a published port for a while each way.
func TestBandwidth(t *testing.T) {
	up, down := 8e6, 16e6
	if inVM { // its processor is emulated, and the limit must be what is measured
		up, down = 2e6, 4e6
	}
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(probe.Addr().(*net.TCPAddr).Port)
	probe.Close()
	o := options(nodeagent.Limits{NetUpBits: int64(up), NetDownBits: int64(down)})
	o.Ports = []netbridge.Port{{HostPort: port, Port: 80, Proto: "tcp"}}
	e, err := node.Create(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Delete(context.Background())
	measure := func(server string, flow func(net.Conn) (int64, error), counter func() uint64) float64 {
		wait := begin(t, e, server)
		var conn net.Conn
		eventually(t, "the server inside answers", func() (ok bool) {
			conn, err = net.Dial("tcp", net.JoinHostPort(e.Record().Address, "80"))
			return err == nil
		})
		if conn == nil {
			t.Fatal(err)
		}
		go flow(conn)
		time.Sleep(500 * time.Millisecond) // past the first burst
		before, start := counter(), time.Now()
		time.Sleep(2 * time.Second)
		rate := float64(counter()-before) * 8 / time.Since(start).Seconds()
		conn.Close()
		wait()
		return rate
	}
	for _, c := range []struct {
		ration, server string
		want           float64
		flow           func(net.Conn) (int64, error)
		counter        func() uint64
	}{
		{"bandwidth out (--net-up)", "nc -l -p 80 < /dev/zero", up, func(c net.Conn) (int64, error) { return io.Copy(io.Discard, c) }, func() uint64 { return stats(t, e).Net.TxBytes }},
		{"bandwidth in (--net-down)", "nc -l -p 80 > /dev/null", down, func(c net.Conn) (int64, error) { return io.Copy(c, zeros{}) }, func() uint64 { return stats(t, e).Net.RxBytes }},
	} {
		rate := 0.0
		for range attempts {
			if rate = measure(c.server, c.flow, c.counter); within(rate, c.want, 0.1) {
				break
			}
		}
		if !within(rate, c.want, 0.1) {
			t.Errorf("%s: %.2f Mbit/s, want %.0f", c.ration, rate/1e6, c.want/1e6)
		}
		found(c.ration, fmt.Sprintf("%.0f Mbit/s", c.want/1e6), "%.2f Mbit/s", rate/1e6)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
