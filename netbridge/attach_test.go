package netbridge

import (
	"fmt"
	"os"
	"testing"
	"time"
)

func TestAttachReachesOutside(t *testing.T) {
	b := openBridge(t, testConfig(t))
	a, ns := attach(t, b, "env-a", AttachOptions{})
	serve(t, outside, "tcp4", publicAddress+":80", "web")
	serve(t, outside, "udp4", publicAddress+":123", "time")
	mustAnswer(t, ns, "tcp4", publicAddress+":80", "web")
	mustAnswer(t, ns, "udp4", publicAddress+":123", "time")
	if mtu := linkIn(t, ns, "eth0").Attrs().MTU; mtu != uplinkMTU {
		t.Errorf("MTU inside is %d, want the uplink's %d", mtu, uplinkMTU)
	}
	if err := in(ns, func() error { return command("ping", "-c1", "-W2", publicAddress) }); err != nil {
		t.Error(err)
	}
	if err := in(ns, func() error { return command("ping", "-c1", "-W2", a.Gateway.String()) }); err != nil {
		t.Error(err)
	}
	if err := b.Detach(t.Context(), "env-a"); err != nil {
		t.Fatal(err)
	}
	mustNotAnswer(t, ns, "tcp4", publicAddress+":80")
}

func BenchmarkAttach(bm *testing.B) {
	b := openBridge(bm, testConfig(bm))
	var attachTime, detachTime time.Duration
	for i := range bm.N {
		ns := newNetns(bm)
		id := fmt.Sprintf("bench-%d", i)
		start := time.Now()
		_, err := b.Attach(bm.Context(), id, ns, AttachOptions{})
		attachTime += time.Since(start)
		if err != nil {
			bm.Fatal(err)
		}
		start = time.Now()
		err = b.Detach(bm.Context(), id)
		detachTime += time.Since(start)
		if err != nil {
			bm.Fatal(err)
		}
		ns.Close()
		b.background.Wait()
	}
	bm.ReportMetric(float64(attachTime.Microseconds())/float64(bm.N), "µs/attach")
	bm.ReportMetric(float64(detachTime.Microseconds())/float64(bm.N), "µs/detach")
}

var _ = os.Stdin
