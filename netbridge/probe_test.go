package netbridge

import (
	"strings"
	"testing"
)

func TestProbe(t *testing.T) {
	before := output(t, "ip", "-o", "link") + output(t, "nft", "list", "ruleset")
	for _, c := range Probe(t.Context()) {
		t.Logf("%-22s %v %s", c.Name, c.OK, c.Detail)
		if !c.OK {
			t.Errorf("%s: %s (%s)", c.Name, c.Detail, c.Consequence)
		}
	}
	if after := output(t, "ip", "-o", "link") + output(t, "nft", "list", "ruleset"); after != before {
		t.Errorf("Probe changed the host from\n%s\nto\n%s", before, after)
	}
}

func TestProbeNamesFirewallsThatDrop(t *testing.T) {
	output(t, "nft", "add table inet strict; add chain inet strict routed { type filter hook forward priority 0; policy drop; }")
	t.Cleanup(func() { output(t, "nft", "delete", "table", "inet", "strict") })
	c := firewallCheck()
	if c.OK || !strings.Contains(c.Detail, "strict") || c.Consequence == "" {
		t.Errorf("got %+v", c)
	}
}
