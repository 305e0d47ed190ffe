package nodeagent

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A program whose file asks for a capability that nobody inside has, as Debian's ping asks for CAP_NET_RAW, runs without it.
func TestFileThatAsksForCapabilities(t *testing.T) {
	n, err := Open(newRoot(t), Options{})
	check(t, err)
	for _, readOnly := range []bool{false, true} {
		e, err := n.Create(t.Context(), CreateOptions{Image: busybox(t, n), NoMain: true, Owner: OwnerPlatform, Limits: Limits{PIDs: 64}, ReadOnly: readOnly})
		check(t, err)
		if !readOnly {
			output(t, e, "cp /bin/busybox /tmp/true")
			// struct vfs_cap_data, revision 2, effective: CAP_NET_RAW permitted (uapi/linux/capability.h).
			blob := []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
			check(t, unix.Setxattr(fmt.Sprintf("/proc/%d/root/tmp/true", e.Record().PID), "security.capability", blob, 0))
			output(t, e, "/tmp/true && su user -c /tmp/true 2>&1")
		}
		if got := output(t, e, "grep ' / / ' /proc/self/mountinfo"); !strings.Contains(got, "nosuid") || strings.Contains(got, "/ ro,") != readOnly {
			t.Errorf("the root is mounted as %s", got)
		}
		check(t, e.Delete(t.Context()))
	}
}

// Capabilities are as docker's flags have them, and what can't be given is refused.
func TestCapabilitiesAskedFor(t *testing.T) {
	bits := func(add, drop string, hostUsers bool, net string) string {
		has, err := capabilities(strings.Fields(add), strings.Fields(drop), hostUsers, net)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(len(has), strings.Contains(strings.Join(has, " "), "CAP_NET_RAW"))
	}
	for _, c := range []struct {
		add, drop string
		hostUsers bool
		net, want string
	}{
		{"", "", false, NetBridge, "13 false"},
		{"", "", true, NetBridge, "12 false"}, // no CAP_MKNOD
		{"net_raw CAP_NET_RAW Cap_Chown", "", false, NetBridge, "14 true"},
		{"NET_RAW", "", true, NetHost, "13 true"},
		{"", "ALL", false, NetBridge, "0 false"},
		{"NET_RAW", "all NET_RAW", false, NetNone, "1 true"},
		{"", "chown SYS_ADMIN", false, NetBridge, "12 false"},
		{"NET_RAW", "", false, NetHost, "does nothing on the host's network"},
		{"SYS_ADMIN", "", true, NetBridge, "power over the host"},
		{"MKNOD", "", true, NetBridge, "power over the host"},
		{"SYS_MODULE", "", false, NetBridge, "power over the whole machine"},
		{"ALL", "", false, NetBridge, "name those"},
		{"NET_FLY", "", false, NetBridge, `there is no capability "NET_FLY"; there are AUDIT_CONTROL`},
		{"", "CAP_", false, NetBridge, "there is no capability"},
	} {
		if got := bits(c.add, c.drop, c.hostUsers, c.net); !strings.Contains(got, c.want) {
			t.Errorf("+%s -%s (host's users: %v, network %s): %s; want %s", c.add, c.drop, c.hostUsers, c.net, got, c.want)
		}
	}
}

// A spare serves only who asks for the capabilities it was made with.
func TestSparesHaveTheirCapabilities(t *testing.T) {
	n, err := Open(newRoot(t), Options{})
	check(t, err)
	p := startPool(t, n, 3) // two for the kind that is asked for twice, one for the other
	plain := CreateOptions{Image: busybox(t, n), NoMain: true, Owner: OwnerPlatform, Limits: Limits{PIDs: 64}}
	packets := plain
	packets.CapAdd = []string{"NET_RAW"}
	raw := func(o CreateOptions) (warm, has bool) {
		e, err := n.Create(t.Context(), o)
		check(t, err)
		defer func() { check(t, e.Delete(t.Context())) }()
		output(t, e, "ping -qc1 -W5 127.0.0.1")
		return e.Record().Prepared != "", strings.Contains(output(t, e, "grep CapBnd /proc/self/status"), "25fb")
	}
	if warm, has := raw(plain); warm || has {
		t.Errorf("the first: from a spare %v, with CAP_NET_RAW %v", warm, has)
	}
	awaitSpares(t, p, 1)
	if warm, has := raw(packets); warm || !has {
		t.Errorf("the first that asks for it: from a spare %v, with CAP_NET_RAW %v", warm, has)
	}
	awaitSpares(t, p, 2)
	packets.CapAdd = []string{"cap_net_raw", "NET_RAW"}
	if warm, has := raw(packets); !warm || !has {
		t.Errorf("the second: from a spare %v, with CAP_NET_RAW %v", warm, has)
	}
	if warm, has := raw(plain); !warm || has {
		t.Errorf("and one without: from a spare %v, with CAP_NET_RAW %v", warm, has)
	}
}
