package netbridge

import (
	"io"
	"net"
	"testing"
	"time"
)

// goodput is how many bits per second of payload go through in one direction, measured while it flows.
func goodput(t *testing.T, from, to net.Conn, bytes int64) float64 {
	t.Helper()
	go func() {
		from.Write(make([]byte, bytes))
	}()
	warm := bytes / 4 // past the first burst and TCP's start
	if _, err := io.CopyN(io.Discard, to, warm); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := io.CopyN(io.Discard, to, bytes-warm); err != nil {
		t.Fatal(err)
	}
	return float64(bytes-warm) * 8 / time.Since(start).Seconds()
}

func TestRateLimits(t *testing.T) {
	b := openBridge(t, testConfig(t))
	for _, c := range []struct {
		name     string
		up, down uint64
		bytes    int64
	}{
		{"eight", 8e6, 16e6, 3 << 20},
		{"hundred", 100e6, 200e6, 40 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, ns := attach(t, b, c.name, AttachOptions{NetUp: c.up, NetDown: c.down})
			defer b.Detach(t.Context(), c.name)
			inside, far := connectionFrom(t, ns)
			for _, d := range []struct {
				name     string
				from, to net.Conn
				rate     uint64
			}{{"up", inside, far, c.up}, {"down", far, inside, c.down}} {
				// Headers take 5 % of a full segment at this MTU. A busy machine may be slower than the limit, and then
				// gets another chance; none may be faster.
				var got float64
				for range 4 {
					got = goodput(t, d.from, d.to, c.bytes)
					t.Logf("%s: %.2f Mbit/s of payload for %.0f asked", d.name, got/1e6, float64(d.rate)/1e6)
					if got > 0.9*float64(d.rate) {
						break
					}
				}
				if got > 1.1*float64(d.rate) || got < 0.9*float64(d.rate) {
					t.Errorf("%s: %.2f Mbit/s, want %.0f less headers, within 10 %%", d.name, got/1e6, float64(d.rate)/1e6)
				}
			}
		})
	}
	b.background.Wait()
	mustBeEmpty(t, b)
}
