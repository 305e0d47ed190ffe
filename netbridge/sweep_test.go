package netbridge

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestOpenIsIdempotent(t *testing.T) {
	cfg := testConfig(t)
	b := openBridge(t, cfg)
	a, ns := attach(t, b, "env-a", AttachOptions{Ports: []Port{{HostPort: 8080, Port: 80}}})
	before := output(t, "nft", "-a", "list", "ruleset")
	again, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.subnet != b.subnet || again.index != b.index {
		t.Errorf("second Open: subnet %s index %d, want %s and %d", again.subnet, again.index, b.subnet, b.index)
	}
	if after := output(t, "nft", "-a", "list", "ruleset"); after != before {
		t.Errorf("Open rewrote rules that were right:\n%s\nwas\n%s", after, before)
	}
	if at, err := again.Attachment("env-a"); err != nil || at.IP != a.IP {
		t.Errorf("the second handle sees %+v, %v", at, err)
	}
	if err := again.Detach(t.Context(), "env-a"); err != nil { // by another process, so to speak
		t.Fatal(err)
	}
	serve(t, outside, "udp4", publicAddress+":123", "time")
	mustNotAnswer(t, ns, "udp4", publicAddress+":123")
}

func TestOpenRestoresRules(t *testing.T) {
	cfg := testConfig(t)
	b := openBridge(t, cfg)
	a, ns := attach(t, b, "env-a", AttachOptions{Ports: []Port{{HostPort: 8080, Port: 80}, {HostIP: netip.MustParseAddr(hostAddress), HostPort: 8081, Port: 80}}})
	serve(t, ns, "tcp4", a.IP.String()+":80", "mine")
	serve(t, outside, "tcp4", publicAddress+":80", "web")
	table := cfg.Name
	for name, damage := range map[string][]string{
		"flushed ruleset":  {"flush", "ruleset"},
		"deleted table":    {"delete", "table", "ip", table},
		"deleted pinning":  {"delete", "table", "bridge", table},
		"flushed table":    {"flush", "table", "ip", table},
		"flushed chain":    {"flush", "chain", "bridge", table, "prerouting"},
		"flushed pins":     {"flush", "set", "bridge", table, "pins"},
		"flushed ports":    {"flush", "map", "ip", table, "published"},
		"a rule too many":  {"add", "rule", "ip", table, "input", "accept"},
		"a stranger added": {"add", "element", "bridge", table, "pins", `{ "eth9" . 02:00:00:00:00:01 . 10.0.0.1 }`},
	} {
		t.Run(name, func(t *testing.T) {
			output(t, "nft", damage...)
			again, err := Open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			mustAnswer(t, ns, "tcp4", publicAddress+":80", "web")
			mustAnswer(t, outside, "tcp4", hostAddress+":8080", "mine")
			mustAnswer(t, outside, "tcp4", hostAddress+":8081", "mine")
			if !again.rules.loaded([]*Attachment{a}) {
				t.Error("the rules are still not as they should be")
			}
		})
	}
	t.Run("without Open", func(t *testing.T) {
		output(t, "nft", "flush", "ruleset")
		_, other := attach(t, b, "env-b", AttachOptions{}) // repairs on its way
		mustAnswer(t, ns, "tcp4", publicAddress+":80", "web")
		mustAnswer(t, other, "tcp4", publicAddress+":80", "web")
		output(t, "nft", "flush", "ruleset")
		if err := b.Detach(t.Context(), "env-b"); err != nil {
			t.Fatal(err)
		}
		mustAnswer(t, ns, "tcp4", publicAddress+":80", "web")
		mustNotAnswer(t, other, "tcp4", publicAddress+":80")
	})
}

func TestOpenRestoresBridge(t *testing.T) {
	cfg := testConfig(t)
	b := openBridge(t, cfg)
	for _, line := range []string{"link set " + cfg.Name + " down", "addr flush dev " + cfg.Name, "addr add 10.200.0.1/24 dev " + cfg.Name, "link del " + cfg.Name} {
		if err := ipIn(nil, line); err != nil {
			t.Fatal(err)
		}
		again, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if again.subnet != b.subnet {
			t.Errorf("after %q the subnet is %s, was %s", line, again.subnet, b.subnet)
		}
		ns := newNetns(t)
		if _, err := again.Attach(t.Context(), "env-a", ns, AttachOptions{}); err != nil {
			t.Fatalf("after %q: %v", line, err)
		}
		mustPing(t, ns, publicAddress)
		if err := again.Detach(t.Context(), "env-a"); err != nil {
			t.Fatal(err)
		}
		again.Close()
	}
}

// Environments survive the loss of the bridge under them.
func TestOpenPutsLiveEnvironmentsBack(t *testing.T) {
	cfg := testConfig(t)
	b := openBridge(t, cfg)
	a, ns := attach(t, b, "env-a", AttachOptions{NetUp: 1e9})
	_, other := attach(t, b, "env-b", AttachOptions{})
	serve(t, outside, "tcp4", publicAddress+":80", "web")
	for _, damage := range []string{"link set " + cfg.Name + " down", "link del " + cfg.Name, "link set " + a.HostIf + " nomaster"} {
		if err := ipIn(nil, damage); err != nil {
			t.Fatal(err)
		}
		if damage == "link set "+a.HostIf+" nomaster" {
			output(t, "ip", "neigh", "del", a.IP.String(), "dev", cfg.Name)
		}
		again, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		mustAnswer(t, ns, "tcp4", publicAddress+":80", "web")
		mustAnswer(t, other, "tcp4", publicAddress+":80", "web")
		mustNotAnswer(t, ns, "tcp4", hostAddress+":1")
		if out := output(t, "bridge", "-d", "link", "show", "dev", a.HostIf); !strings.Contains(out, "isolated on") || !strings.Contains(out, "learning off") {
			t.Errorf("after %q the port is %s", damage, out)
		}
		again.Close()
	}
}

func TestSubnets(t *testing.T) {
	cfg := testConfig(t)
	cfg.Subnet = netip.MustParsePrefix("10.66.0.0/16")
	b := openBridge(t, cfg)
	if gw := b.gateway().String(); gw != "10.66.0.1" {
		t.Errorf("gateway %s", gw)
	}
	for name, c := range map[string]func(*Config){
		"taken by another bridge": func(c *Config) { c.Subnet = netip.MustParsePrefix("10.66.8.0/24") },
		"the uplink's":            func(c *Config) { c.Subnet = netip.MustParsePrefix("203.0.113.0/25") },
		"host bits":               func(c *Config) { c.Subnet = netip.MustParsePrefix("10.67.0.1/24") },
		"too small":               func(c *Config) { c.Subnet = netip.MustParsePrefix("10.67.0.0/30") },
		"IPv6":                    func(c *Config) { c.Subnet = netip.MustParsePrefix("fd00::/64") },
		"long name":               func(c *Config) { c.Name = "bridge-name-of-16" },
		"path as name":            func(c *Config) { c.Name = "../x" },
		"name of another link":    func(c *Config) { c.Name = "eth0" },
		"no state directory":      func(c *Config) { c.StateDir = "" },
		"IPv6 allowed":            func(c *Config) { c.Allow = prefixes([]string{"fd00::/8"}) },
	} {
		bad := testConfig(t)
		c(&bad)
		if b, err := Open(t.Context(), bad); err == nil {
			t.Errorf("%s: no error", name)
			b.Destroy(t.Context())
		} else {
			t.Logf("%s: %v", name, err)
			if bad.Name != "eth0" {
				ipIn(nil, "link del "+bad.Name)
			}
		}
	}
	// A change of subnet waits until nobody is in the old one.
	_, _ = attach(t, b, "env-a", AttachOptions{})
	cfg.Subnet = netip.MustParsePrefix("10.69.0.0/16")
	if _, err := Open(t.Context(), cfg); err == nil {
		t.Error("changed the subnet under a live environment")
	}
	if err := b.Detach(t.Context(), "env-a"); err != nil {
		t.Fatal(err)
	}
	moved, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer moved.Close()
	_, ns := attach(t, moved, "env-b", AttachOptions{})
	mustPing(t, ns, publicAddress)
}

// A network that appears later, where the remembered subnet is, makes an idle bridge choose another.
func TestRememberedSubnetYields(t *testing.T) {
	cfg := testConfig(t)
	b := openBridge(t, cfg)
	old := b.subnet
	if err := ipIn(nil, "route add "+old.String()+" via "+outsideAddress+" metric 1"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ipIn(nil, "route del "+old.String()+" via "+outsideAddress+" metric 1") })
	again, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.subnet.Overlaps(old) {
		t.Errorf("still %s", again.subnet)
	}
	_, ns := attach(t, again, "env-a", AttachOptions{})
	mustPing(t, ns, publicAddress)
}

func TestSweep(t *testing.T) {
	b := openBridge(t, testConfig(t))
	kept, ns := attach(t, b, "kept", AttachOptions{})
	gone, nsGone := attach(t, b, "gone", AttachOptions{NetUp: 1e9, Ports: []Port{{HostPort: 8080, Port: 80}}})
	// What killed processes leave: a link without a lease, a name without one, a broken lease.
	for _, line := range []string{
		fmt.Sprintf("link add %s0a4d0001 type veth peer name peer0", portPrefix(b.cfg.Name)),
		fmt.Sprintf("link add li%s0a4d0002 type ifb", portPrefix(b.cfg.Name)[2:]),
		"link add lvother0a4d0003 type ifb",
	} {
		if err := ipIn(nil, line); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { ipIn(nil, "link del lvother0a4d0003") })
	for path, text := range map[string]string{b.idPath("half"): "{", b.leasePath("10.99.0.1"): "", b.leasePath("nonsense"): "nonsense"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := b.Sweep(t.Context(), func(id string) bool { return id == "kept" })
	if err != nil || !slices.Equal(removed, []string{"gone"}) {
		t.Fatalf("Sweep: %v, %v", removed, err)
	}
	serve(t, outside, "tcp4", publicAddress+":80", "web")
	mustAnswer(t, ns, "tcp4", publicAddress+":80", "web")
	mustNotAnswer(t, nsGone, "tcp4", publicAddress+":80")
	_, _ = kept, gone
	if err := ipIn(nil, "link show lvother0a4d0003"); err != nil {
		t.Errorf("swept a foreign link: %v", err)
	}
	if removed, err := b.Sweep(t.Context(), func(string) bool { return false }); err != nil || !slices.Equal(removed, []string{"kept"}) {
		t.Fatalf("Sweep: %v, %v", removed, err)
	}
	mustBeEmpty(t, b)
}

func TestManyProcessesGetUniqueAddresses(t *testing.T) {
	b := openBridge(t, testConfig(t))
	var mu sync.Mutex
	holder := make(map[string]int)
	var wg sync.WaitGroup
	for p := range 5 {
		_, out, stdin := otherProcess(t, b, "attach-ten")
		defer stdin.Close()
		wg.Go(func() {
			for out.Scan() && out.Text() != "done" {
				mu.Lock()
				if q, taken := holder[out.Text()]; taken {
					t.Errorf("%s was given to processes %d and %d", out.Text(), q, p)
				}
				holder[out.Text()] = p
				mu.Unlock()
			}
		})
	}
	for i := range 10 { // and goroutines of this one
		wg.Go(func() {
			ns := newNetns(t)
			a, err := b.Attach(t.Context(), fmt.Sprintf("local-%d", i), ns, AttachOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if q, taken := holder[a.IP.String()]; taken {
				t.Errorf("%s was given to process %d and here", a.IP, q)
			}
			holder[a.IP.String()] = -1
		})
	}
	wg.Wait()
	if len(holder) != 60 {
		t.Fatalf("%d addresses for 60 environments", len(holder))
	}
	leases, _, err := b.leases()
	if err != nil {
		t.Fatal(err)
	}
	all := b.attachments(leases)
	if len(all) != 60 || !b.rules.loaded(all) {
		t.Errorf("%d leases, and the rules do not hold just them", len(all))
	}
}

// Only one of many that want the same port gets it.
func TestOnePortManyAskers(t *testing.T) {
	b := openBridge(t, testConfig(t))
	var mu sync.Mutex
	var won int
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := b.Attach(context.Background(), fmt.Sprintf("env-%d", i), newNetns(t), AttachOptions{Ports: []Port{{HostPort: 8080, Port: 80}}}); err == nil {
				mu.Lock()
				won++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d environments have the port", won)
	}
}

// A process that attaches and detaches is killed at a random moment, many times.
func TestKilledProcessesLeaveNothingThatSweepCannotFind(t *testing.T) {
	b := openBridge(t, testConfig(t))
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	interrupted := 0
	for range rounds {
		cmd, out, _ := otherProcess(t, b, "churn")
		if !out.Scan() || out.Text() != "ready" {
			t.Fatalf("the other process said %q, %v", out.Text(), out.Err())
		}
		time.Sleep(time.Duration(rand.IntN(40_000)) * time.Microsecond)
		cmd.Process.Kill()
		cmd.Wait()
		left, err := filepath.Glob(b.leaseDir() + "/*")
		if err != nil {
			t.Fatal(err)
		}
		if len(left) > 0 {
			interrupted++
		}
		if _, err := b.Sweep(t.Context(), func(string) bool { return false }); err != nil {
			t.Fatal(err)
		}
		mustBeEmpty(t, b)
		if t.Failed() {
			return
		}
	}
	t.Logf("%d of %d kills were in the middle of an attachment", interrupted, rounds)
}
