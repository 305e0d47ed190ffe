package vm

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRoomsInGuest runs on pure cgroup v2 the tests of those rooms to which the kernel's side matters: the runtime, the
// network, disk limits by project quota, quotas that end an environment, a job's rations, AppArmor, what attackers try, other people's engines,
// and every ration measured (run with -v: it prints a table). A guest that breaks, which says nothing about the tests in it, is started again.
func TestRoomsInGuest(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	cache, err := CacheDir(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	bin, err := os.MkdirTemp(cache, "rooms-") // not below /tmp: the guest has its own
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(bin)
	const onDisk = "mkfs.ext4 -q -F $LEARNOS_VM_DISK && mkdir /tmp/disk && mount -t ext4 $LEARNOS_VM_DISK /tmp/disk && export TMPDIR=/tmp/disk && "
	// Left out is what takes long when the processor is emulated, and has nothing to do with cgroups or the kernel's version.
	// Programs that a room would build itself are built here, into $BIN.
	for _, r := range []struct {
		dir, prepare, flags string
		programs            []string
	}{
		{dir: "runtime", flags: "-test.skip 'TestRandomProfiles|TestManySessions|TestControlFlood|TestParallel|TestDefaultProfile|TestPrivilegesAreGone|TestOrphansAreReaped'"},
		{dir: "netbridge", flags: "-test.skip 'TestRateLimits|TestKilledProcesses|TestManyProcesses|TestOnePortManyAskers|TestAddressesRest'"},
		{dir: "rootfs", flags: "-test.run 'TestDisk'"},
		{dir: "nodeagent", prepare: onDisk, flags: "-test.run 'TestQuotasEnd|TestRationsReach|TestRationNobody|TestOutOfDisk'"},
		{dir: "cmd/lrun", flags: "-test.run 'TestScripts/(apparmor|exec)$'"},
		{dir: "tests/rations"},
		{dir: "tests/probe", prepare: "export PROBE_BIN=$BIN && ", programs: []string{"./cmd/nodeagent", "./cmd/lrun", "./tests/probe/inside"},
			flags: "-test.run 'TestProbe$|TestProbeLrun$|TestProbeNetworkMemory|TestProbeSocketMemory|TestProbeHugePages' -test.skip 'TestProbeNetworkMemory/netlink-threads|TestProbeSocketMemory/(md5|pty|stamps|echo|raw|jail)'"},
		{dir: "tests/engines", prepare: "export LEARNOS_ENGINES_LRUN=$BIN/lrun && ", programs: []string{"./cmd/lrun"},
			flags: "-test.run 'TestPodman$/(--memory|--pids|update)|TestContainerd/a task'"},
	} {
		t.Run(strings.ReplaceAll(r.dir, "/", "-"), func(t *testing.T) {
			program := filepath.Join(bin, filepath.Base(r.dir)+".test")
			build := func(args ...string) {
				cmd := exec.Command("go", args...)
				cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
				if text, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("build: %v: %s", err, text)
				}
			}
			build("test", "-c", "-o", program, "./"+r.dir)
			for _, p := range r.programs {
				build("build", "-trimpath", "-o", filepath.Join(bin, filepath.Base(p)), p)
			}
			for n := 1; ; n++ {
				start := time.Now()
				cmd := exec.Command(vmexec, "/bin/sh", "-c", fmt.Sprintf("%sexec %s -test.v -test.timeout 8m %s", r.prepare, program, r.flags))
				cmd.Dir, cmd.Env = filepath.Join(root, r.dir), append(os.Environ(), "BIN="+bin)
				var out bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &out
				err := cmd.Run()
				status := cmd.ProcessState.ExitCode()
				t.Logf("%v in the guest\n%s", time.Since(start).Round(time.Second), essence(out.String(), status))
				if status == infrastructure && n < attempts {
					continue
				}
				if err != nil {
					t.Errorf("the tests in the guest: %v", err)
				}
				return
			}
		})
	}
}

// infrastructure is vmexec's status for a guest that failed.
const infrastructure = 125

// essence leaves out of verbose output what says only that all is well.
func essence(out string, status int) string {
	if status != 0 {
		return out
	}
	var kept []string
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "=== ") && !strings.Contains(line, "level=") && (!strings.HasPrefix(line, "    ") || strings.Contains(line, "_test.go")) {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}
