package probe

import (
	"bufio"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
)

// TestProbeCapabilities: what an environment is given by --cap-add opens what it is for, in the environment's own namespaces,
// and nothing else. Every attempt is made again; those that begin as listed may succeed, or fail for another reason.
func TestProbeCapabilities(t *testing.T) {
	raw := []string{"packet socket", "socketpair of packets", "a ring of packets", "raw socket", "another's address", "32-bit packet socket",
		"32-bit raw socket", "32-bit socketcall packet socket", "32-bit socketcall raw socket", "bounding set"}
	for _, c := range []struct {
		name  string
		caps  []string
		flags []string
		opens []string
	}{
		{"NET_RAW", []string{"NET_RAW"}, nil, raw},
		{"NET_RAW, another user", []string{"NET_RAW"}, []string{"-u", "1000"}, []string{"bounding set"}},
		{"the others", []string{"NET_ADMIN", "SYS_PTRACE", "SYS_NICE", "IPC_LOCK", "IPC_OWNER", "DAC_READ_SEARCH", "CHECKPOINT_RESTORE"}, nil, []string{
			"netlink netfilter", "netlink kobject", "change the own address", "another's address", // of its own network namespace
			"open_by_handle_at of pidfs", "open_by_handle_at of nsfs", "32-bit open_by_handle_at", // there is no such handle
			"set_mempolicy", "bounding set"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append(append([]string{"run", "--rm"}, volume()...), c.flags...)
			for _, name := range c.caps {
				args = append(args, "--cap-add", name)
			}
			r := try(t, append(append(args, "busybox", "/inside", "attempts"), host(t)...)...)
			if r.code != 0 {
				t.Fatalf("status %d: %s", r.code, r.err)
			}
			opened := 0
			for text := range strings.Lines(r.out) {
				var l line
				if err := json.Unmarshal([]byte(text), &l); err != nil {
					t.Fatalf("%q: %v", text, err)
				}
				if l.Result == "refused" || l.Result == "absent" {
					continue
				}
				meant := false
				for _, name := range c.opens {
					meant = meant || strings.HasPrefix(l.Name, name)
				}
				if opened++; !meant {
					t.Errorf("%s: %s (%s), want %s", l.Name, l.Result, l.Got, l.Want)
				}
			}
			if opened == 0 {
				t.Error("nothing opened: it was not given, and this test proves nothing")
			}
		})
	}
}

// TestProbeSysAdmin: CAP_SYS_ADMIN opens mounts and namespaces, so that masks are no walls any more; what lies behind them is
// refused by the user namespace.
func TestProbeSysAdmin(t *testing.T) {
	// A line is what is tried; the first must work. What is printed did not fail.
	tries := []string{
		"mount -o remount,bind,rw /proc/sys", // meant
		"(echo x > /proc/sys/kernel/core_pattern)", "(echo 1 > /proc/sys/vm/drop_caches)", "(echo 1 > /proc/sys/kernel/panic)",
		"umount /proc/timer_list && head -c1 /proc/timer_list", "(: >> /proc/sysrq-trigger)", "umount /proc/kcore && head -c1 /proc/kcore | grep -q .", "dmesg",
		"mknod /tmp/sda b 8 0", "mknod /tmp/kmsg c 1 11", "mount -t devtmpfs none /mnt", "mount -t ext4 /dev/null /mnt",
		"mkdir -p /tmp/s && mount -t sysfs none /tmp/s && (echo 1 > /tmp/s/kernel/mm/ksm/run)", "(echo x > /tmp/s/kernel/uevent_helper)",
		"(echo -1000 > /proc/self/oom_score_adj)", "cat /proc/1/environ", "readlink /proc/1/exe", "readlink /proc/1/root",
		"unshare -n true && /inside swell ring 16 0s | grep '^16'", "unshare -Urn /inside swell ring 16 0s | grep '^16'", // filters are inherited
	}
	for _, h := range []string{"cgroup -o memory", "cgroup -o pids", "cgroup -o devices", "cgroup2"} {
		at := "/tmp/cg" + strings.TrimLeft(strings.ReplaceAll(h, " -o ", "-"), " ")
		mount := "mkdir -p " + at + "; mount -t " + h + " none " + at + "; "
		for _, what := range []string{"mkdir " + at + "/x", "(echo max > " + at + "/memory.max)", "(echo 1073741824 > " + at + "/memory.limit_in_bytes)",
			"(echo max > " + at + "/pids.max)", "(echo a > " + at + "/devices.allow)", "(echo /x > " + at + "/release_agent)", "(echo 1 > " + at + "/cgroup.kill)",
			"(echo +pids > " + at + "/cgroup.subtree_control)"} {
			// Where it can't be mounted, the directory is the environment's own, and writing there means nothing.
			tries = append(tries, mount+"grep -q ' "+at+" ' /proc/self/mountinfo && "+what)
		}
	}
	var script strings.Builder
	for i, what := range tries {
		script.WriteString("{ " + what + "; } > /dev/null 2>&1 && echo worked " + strconv.Itoa(i) + "\n")
	}
	out := must(t, append(append([]string{"run", "--rm", "--cap-add", "SYS_ADMIN", "--memory", "128m"}, volume()...), "busybox", "sh", "-c", script.String()+"true")...)
	meant := false
	for text := range strings.Lines(out) {
		i, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(text, "worked ")))
		switch {
		case err != nil:
			t.Errorf("it said %q", text)
		case i == 0:
			meant = true
		default:
			t.Errorf("it worked: %s", tries[i])
		}
	}
	if !meant {
		t.Error("nothing could be remounted: CAP_SYS_ADMIN was not given, and this test proves nothing")
	}
}

// TestProbeRings: who is given CAP_NET_RAW has packet sockets, whose rings the kernel charges to nobody: docs/security.md says
// so. (That others have none is TestProbe's and TestProbeNetworkMemory's.)
func TestProbeRings(t *testing.T) {
	for _, way := range []string{"ring", "send-ring"} {
		c := command(append(append([]string{"run", "--rm", "--memory", "48m", "--cap-add", "NET_RAW"}, volume()...), "busybox", "/inside", "swell", way, "480", "1s")...)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		said := ""
		if lines := bufio.NewScanner(out); lines.Scan() { // it has what it gets, or was killed for it
			said = lines.Text()
		}
		_ = c.Process.Kill()
		_ = c.Wait()
		got, _ := strconv.Atoi(strings.Fields(said + " 0")[0])
		hole(t, way+" with CAP_NET_RAW", got > 96, "an environment of 48 MiB gets "+said+" MiB of the kernel's memory for rings")
	}
}
