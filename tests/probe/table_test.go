package probe

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
)

// attacks says where each attack that we know of is tried: by which test, and, for those that the hostile program makes inside,
// under which name (the beginning of it). TestProbe makes those as root, as an unprivileged user, and with --userns host;
// TestProbeLrun again in lrun's containers.
var attacks = []struct{ attack, test, attempt string }{
	{"mount file systems", "TestProbe", "mount "},
	{"remount a masked or read-only path", "TestProbe", "remount "},
	{"take a mask away", "TestProbe", "umount mask "},
	{"write /proc/sys", "TestProbe", "write /proc/sys/"},
	{"write /proc/sysrq-trigger", "TestProbe", "write /proc/sysrq-trigger"},
	{"write core_pattern", "TestProbe", "write /proc/sys/kernel/core_pattern"},
	{"write /sys", "TestProbe", "write /sys/"},
	{"write uevent_helper", "TestProbe", "write /sys/kernel/uevent_helper"},
	{"cgroup release_agent", "TestProbe", "release_agent of "},
	{"mknod and open the host's disks", "TestProbe", "open a node of "},
	{"load modules", "TestProbe", "init_module"},
	{"kexec", "TestProbe", "kexec_load"},
	{"reboot", "TestProbe", "reboot"},
	{"set the clock", "TestProbe", "clock_settime"},
	{"bpf", "TestProbe", "bpf "},
	{"perf_event_open", "TestProbe", "perf_event_open"},
	{"userfaultfd", "TestProbe", "userfaultfd"},
	{"keyctl", "TestProbe", "keyctl"},
	{"io_uring", "TestProbe", "io_uring_setup"},
	{"nested user namespaces", "TestProbe", "unshare a user namespace"},
	{"ptrace of init", "TestProbe", "ptrace init"},
	{"/proc/1/root", "TestProbe", "readlink /proc/1/root"},
	{"/proc/1/cwd", "TestProbe", "readlink /proc/1/cwd"},
	{"/proc/1/fd", "TestProbe", "read /proc/1/fd/"},
	{"/proc/1/exe", "TestProbe", "overwrite /proc/1/exe"},
	{"/proc/1/environ", "TestProbe", "read /proc/1/environ"},
	{"overwrite the runtime by /proc/self/exe", "TestProbe", "overwrite /proc/self/exe"},
	{"overwrite lrun by /proc/PID/exe of what joins", "TestProbeLrunJoining", ""},
	{"descriptors left open in init", "TestProbeInitHoldsNothing", ""},
	{"descriptors left open in sessions", "TestProbeDescriptors", ""},
	{"descriptors of lrun's caller, O_PATH too", "TestProbeLrunDescriptors", ""},
	{"sockets of odd families and protocols", "TestProbe", "socket of "},
	{"race the masks with symlinks and directories", "TestProbeLrunRaces", ""},
	{"race /dev/console with symlinks", "TestProbeLrunRaces", ""},
	{"race a mount's target in a volume", "TestProbeVolumes", ""},
	{"a root that is /proc/self/fd/N", "TestProbeLrunDirectories", ""},
	{"a WORKDIR that is /proc/self/fd/N", "TestProbeWorkdir", ""},
	{"symlinks where /proc, /sys, /dev, /etc belong", "TestProbeImages", ""},
	{"packet sockets", "TestProbe", "packet socket"},
	{"packet sockets by the 32-bit gate", "TestProbe", "32-bit packet socket"},
	{"raw sockets", "TestProbe", "raw socket of "},
	{"rings of packets, which nobody is charged for", "TestProbe", "a ring of packets"},
	{"raw packets with another's MAC or address", "TestProbeFrames", ""},
	{"ARP answers for the gateway", "TestProbeFrames", ""},
	{"reach another environment", "TestProbeReach", ""},
	{"reach the host's ports", "TestProbeReach", ""},
	{"link-local metadata", "TestProbeReach", ""},
	{"fill the disk", "TestProbeResources", ""},
	{"fill the inodes", "TestProbeResources", ""},
	{"fill the process table", "TestProbePIDs", ""},
	{"fill memory", "TestProbeResources", ""},
	{"fill memory by sockets", "TestProbeNetworkMemory", ""},
	{"fill memory by what hangs on sockets", "TestProbeSocketMemory", ""},
	{"take reserved huge pages", "TestProbeHugePages", ""},
	{"fill memory by rings, with CAP_NET_RAW", "TestProbeRings", ""},
	{"go further by capabilities that were added", "TestProbeCapabilities", ""},
	{"go behind masks with CAP_SYS_ADMIN", "TestProbeSysAdmin", ""},
	{"fill memory by answers that nobody reads", "TestProbeNetworkMemory", ""},
	{"fill a tmpfs and /dev/shm", "TestProbeResources", ""},
	{"fill the log", "TestProbeResources", ""},
	{"flood the PTY", "TestProbeResources", ""},
	{"take all terminals, aio contexts, neighbours", "TestProbeShares", ""},
	{"garbage and floods into init's control socket", "TestProbeControlSocket", ""},
	{"layers that point outside", "TestProbeLayers", ""},

	{"CVE-2016-9962", "TestProbeLrunJoining", ""},
	{"CVE-2019-5736", "TestProbeInitHoldsNothing", ""},
	{"CVE-2019-5736 (lrun)", "TestProbeLrunJoining", ""},
	{"CVE-2019-16884", "TestProbeLrunMounts", ""},
	{"CVE-2019-18837", "TestProbeImages", ""},
	{"CVE-2021-30465", "TestProbeVolumes", ""},
	{"CVE-2021-30465 (lrun)", "TestProbeLrunRaces", ""},
	{"CVE-2022-0492", "TestProbe", "mount cgroup"},
	{"CVE-2022-27650", "TestProbeLrunUsers", ""},
	{"CVE-2022-29162", "TestProbe", "CapInh"},
	{"CVE-2023-27561", "TestProbeLrunMounts", ""},
	{"CVE-2023-28642", "TestProbeImages", ""},
	{"CVE-2024-21626", "TestProbeWorkdir", ""},
	{"CVE-2024-21626 (lrun)", "TestProbeLrunDirectories", ""},
	{"CVE-2024-45310", "TestProbeVolumes", ""},
	{"CVE-2025-31133", "TestProbeLrunRaces", ""},
	{"CVE-2025-52565", "TestProbeLrunRaces", ""},
	{"CVE-2025-52881", "TestProbeLrunRaces", ""},
	{"CVE-2026-30892", "TestProbeUsers", ""},
	{"CVE-2026-30892 (lrun)", "TestProbeLrunUsers", ""},
	{"CVE-2026-41579", "TestProbeLrunRaces", ""},
	{"CVE-2026-47766", "TestProbeImages", ""},
}

// TestProbeTable prints the table, and fails where it names a test that there is not.
func TestProbeTable(t *testing.T) {
	there := map[string]bool{}
	files, err := filepath.Glob("*_test.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	for _, name := range files {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				there[fn.Name.Name] = true
			}
		}
	}
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	for _, row := range attacks {
		if !there[row.test] {
			t.Errorf("%s: there is no %s", row.attack, row.test)
		}
		text := row.attack + "\t" + row.test
		if row.attempt != "" {
			text += "\t" + row.attempt + "…"
		}
		_, _ = w.Write([]byte(text + "\n"))
	}
	_ = w.Flush()
	t.Logf("%d attacks\n%s", len(attacks), out.String())
}
