package probe

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/nodeagent"
	"github.com/learnos/learnos/runtime"
)

// sysctl reads a number of the kernel's.
func sysctl(t *testing.T, name string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.Fields(string(b))[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestProbeShares: what the kernel counts for the whole machine, or for whoever made the user namespaces, no environment
// may take more than a part of. The attempt ends at the part, so that the machine under test stays usable.
func TestProbeShares(t *testing.T) {
	for _, c := range []struct {
		what string
		most int // how many one environment may have at the most
		fix  string
	}{
		// kernel.pty.max counts every terminal but those of the reserve; at the limit nobody gets a session with one.
		{"pty", (sysctl(t, "kernel/pty/max") - sysctl(t, "kernel/pty/reserve")) / 4, "the max= option of the devpts mount"},
		// One number for the machine, 1,024 events each here.
		{"aio", sysctl(t, "fs/aio-max-nr") / 4 / 1024, "raise fs.aio-max-nr, or refuse io_setup"},
		// One table for all network namespaces; at gc_thresh3 the host itself can't find a new neighbour.
		{"neighbour", sysctl(t, "net/ipv4/neigh/default/gc_thresh3") / 4, "an address with no one but the gateway on its link"},
	} {
		t.Run(c.what, func(t *testing.T) {
			id := machine(t)
			before := neighbours(t)
			out := must(t, "exec", id, "/inside", "hog", c.what, strconv.Itoa(c.most+1), "100ms")
			got, err := strconv.Atoi(strings.Fields(out)[0])
			if err != nil {
				t.Fatal(out)
			}
			if c.what == "neighbour" {
				got = max(0, neighbours(t)-before)
			}
			t.Logf("took %s of at most %d: %s", out, c.most, c.fix)
			hole(t, c.what, got > c.most, fmt.Sprintf("one environment gets %d, more than a quarter of what everybody has together: a few of them "+
				"take it all (%s)", got, c.fix))
		})
	}
}

// TestProbeAllowances: what the kernel counts by user, and for whoever made the user namespace too, each environment has for
// itself: while one holds all that it can get, another gets as much, and the host's root gets some.
func TestProbeAllowances(t *testing.T) {
	for _, what := range []string{"inotify", "mqueue"} {
		t.Run(what, func(t *testing.T) {
			greedy, other := machine(t), machine(t)
			c := command("exec", greedy, "/inside", "hog", what, "100000", "1m")
			out, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
			var all int
			var why string
			if _, err := fmt.Fscan(out, &all, &why); err != nil || all == 0 || why == "<nil>" {
				t.Fatalf("it took %d, then %q: %v", all, why, err)
			}
			if got := must(t, "exec", other, "/inside", "hog", what, strconv.Itoa(all)); got != fmt.Sprint(all, " <nil>") {
				t.Errorf("while one environment holds %d, another gets %s", all, got)
			}
			if what == "mqueue" {
				return // root may exceed its allowance anyway
			}
			host, err := exec.Command(inside, "hog", what, "1").CombinedOutput()
			if strings.TrimSpace(string(host)) != "1 <nil>" {
				t.Errorf("while an environment holds %d, the host's root gets %s %v", all, host, err)
			}
		})
	}
}

// neighbours is how many entries the kernel's one IPv4 neighbour table has.
func neighbours(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/net/stat/arp_cache")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(strings.SplitN(string(b), "\n", 3)[1])
	n, err := strconv.ParseInt(fields[0], 16, 32)
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

// TestProbePIDs: an environment for which nobody set a number has a limit of processes, and the machine has numbers for many
// such environments, or doctor says that it has not. (The daemon raises kernel.pid_max when it starts, which nodeagent's own
// tests look at; a command that a person types changes nothing of the machine's.)
func TestProbePIDs(t *testing.T) {
	id := machine(t)
	n, err := strconv.Atoi(strings.Fields(must(t, "exec", id, "/inside", "forks"))[0])
	if err != nil {
		t.Fatal(err)
	}
	if n > nodeagent.DefaultPIDs {
		t.Errorf("one environment may have %d processes", n)
	}
	var findings []struct {
		Name string
		OK   bool
	}
	if err := json.Unmarshal([]byte(must(t, "doctor", "--json")), &findings); err != nil {
		t.Fatal(err)
	}
	room := sysctl(t, "kernel/pid_max") >= 16*n
	for _, f := range findings {
		if f.Name == "process numbers" {
			if f.OK != room {
				t.Errorf("one environment may have %d processes of the machine's %d, and doctor finds that fine: %v", n, sysctl(t, "kernel/pid_max"), f.OK)
			}
			return
		}
	}
	t.Error("doctor does not look at kernel.pid_max")
}

// TestProbeDoubleClose: what a process that made a container closes must be its own. With DieWithParent the descriptor on
// which init's exec is heard of was closed a second time a moment later, when the number belonged to somebody else: to the
// next user namespace, socket or mount.
func TestProbeDoubleClose(t *testing.T) {
	r, err := runtime.Open(runtime.Options{StateDir: t.TempDir(), CgroupParent: "probe-" + strconv.Itoa(os.Getpid())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Retire(); err != nil {
			t.Error(err)
		}
	})
	ctx := context.Background()
	for try := range 20 {
		spec := runtime.DefaultSpec()
		spec.Linux.Namespaces = spec.Linux.Namespaces[1:] // no user namespace, so no ids needed
		c, err := r.Create(ctx, runtime.CreateOptions{ID: fmt.Sprintf("double%d", try), Spec: spec, DieWithParent: true})
		if err != nil {
			t.Fatal(err)
		}
		var ours []int
		for range 64 { // take the numbers that are free now
			fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			ours = append(ours, fd)
		}
		time.Sleep(5 * time.Millisecond) // let whatever runs beside us run
		stolen := -1
		for _, fd := range ours {
			if unix.Close(fd) != nil {
				stolen = fd
			}
		}
		if err := c.Delete(ctx); err != nil {
			t.Error(err)
		}
		if stolen >= 0 {
			t.Fatalf("create %d: somebody closed our descriptor %d", try, stolen)
		}
	}
}

// TestProbeResources: bombs hit their own environment's limits, and the host hears why.
func TestProbeResources(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		r := try(t, append(append([]string{"run", "--rm", "--memory", "64m"}, volume()...), "busybox", "/inside", "eat", "512")...)
		if r.code != 137 || !strings.Contains(r.err, "memory") {
			t.Errorf("status %d, %q", r.code, r.err)
		}
	})
	for _, dir := range []string{"/dev/shm", "/dev"} {
		t.Run("fill "+dir, func(t *testing.T) {
			// 32 MiB of memory, and a file system that would take 64: it ends at one of the two, not beyond.
			r := try(t, append(append([]string{"run", "--rm", "--memory", "32m"}, volume()...), "busybox", "/inside", "eat", "512", dir)...)
			if n := strings.Fields(r.out); r.code == 0 && len(n) > 0 {
				if mib, _ := strconv.Atoi(n[0]); mib > 32 {
					t.Errorf("%d MiB went into %s beyond a limit of 32", mib, dir)
				}
			}
			t.Logf("status %d: %s%s", r.code, r.out, r.err)
		})
	}
	t.Run("disk", func(t *testing.T) {
		// What is written inside ends at --disk, in bytes and in files, and the node loses no more than that by it.
		var before, after unix.Statfs_t
		if err := unix.Statfs(root, &before); err != nil {
			t.Fatal(err)
		}
		id := machine(t, "--disk", "64m")
		out := must(t, "exec", id, "/inside", "eat", "512", "/")
		if mib, err := strconv.Atoi(strings.Fields(out + " x")[0]); err != nil || mib > 64 || !strings.Contains(out, "no space left") && !strings.Contains(out, "quota") {
			t.Errorf("512 MiB onto a disk of 64: %q", out)
		}
		must(t, "exec", id, "rm", "/eaten")
		out = must(t, "exec", id, "/inside", "files", "/tmp", "1000000")
		if n, err := strconv.Atoi(strings.Fields(out + " x")[0]); err != nil || n > 64<<20/1024 {
			t.Errorf("a million files onto a disk of 64 MiB: %q", out)
		}
		must(t, "exec", id, "sh", "-c", "rm -rf /tmp/[0-9]* 2>/dev/null; true")
		if out := must(t, "exec", id, "/inside", "leave", "/left"); out != "" {
			t.Errorf("a file past the limit: %s", out)
		}
		if out := must(t, "exec", id, "echo", "alive"); out != "alive" {
			t.Errorf("with a full disk: %q", out)
		}
		if err := unix.Statfs(root, &after); err != nil {
			t.Fatal(err)
		}
		if lost := (int64(before.Bavail) - int64(after.Bavail)) * before.Bsize >> 20; lost > 512 { // others write meanwhile
			t.Errorf("the node lost %d MiB of its disk to an environment of 64", lost)
		}
	})
	t.Run("processes", func(t *testing.T) {
		r := try(t, append(append([]string{"run", "--rm", "--pids", "64"}, volume()...), "busybox", "/inside", "forks")...)
		n, err := strconv.Atoi(strings.Fields(r.out + " x")[0])
		if err != nil || n > 64 || n < 16 {
			t.Errorf("%q %q", r.out, r.err)
		}
	})
	t.Run("log", func(t *testing.T) {
		id := must(t, append(append([]string{"run", "-d"}, volume()...), "busybox", "/inside", "flood", "100000000")...)
		defer must(t, "rm", "-f", id)
		eventually(t, func() bool {
			return !strings.Contains(must(t, "ps"), id[:8]) || strings.Contains(must(t, "inspect", id), "exited")
		})
		var size int64
		for _, dir := range []string{root + "/envs/" + id, state + "/" + id} {
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				if info, err := e.Info(); err == nil {
					size += info.Size()
				}
			}
		}
		if size > 16<<20 {
			t.Errorf("100 MB of output left %d bytes on the host", size)
		}
		// Lines that look like the log's own header must not lead its reader astray.
		out := must(t, "logs", id)
		if len(out) > 16<<20 || len(out) < 1<<20 {
			t.Errorf("the log gives %d bytes", len(out))
		}
	})
	t.Run("terminal", func(t *testing.T) {
		id := machine(t)
		c := command("exec", "-t", id, "/inside", "flood", "50000000")
		c.Stdout = slow{}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Process.Pid))
		if rss := status(string(b), "VmRSS"); rss > 128<<10 {
			t.Errorf("a terminal that floods a slow reader makes the agent %d KiB large", rss)
		}
		if out := must(t, "exec", id, "echo", "alive"); out != "alive" {
			t.Errorf("beside a flood: %q", out)
		}
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	t.Run("sessions", func(t *testing.T) {
		id, other := machine(t), machine(t)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 20 {
					_ = command("exec", id, "true").Run()
				}
			})
		}
		if out := must(t, "exec", other, "echo", "alive"); out != "alive" {
			t.Errorf("beside many sessions: %q", out)
		}
		wg.Wait()
		if out := must(t, "exec", id, "echo", "alive"); out != "alive" {
			t.Errorf("after many sessions: %q", out)
		}
	})
	t.Run("deep directories", func(t *testing.T) {
		id := must(t, append(append([]string{"run", "-d"}, volume()...), "busybox", "sleep", "600")...)
		must(t, "exec", id, "/inside", "deep", "/deep", "5000")
		must(t, "rm", "-f", id)
		if _, err := os.Stat(root + "/snapshots/" + id); !os.IsNotExist(err) {
			t.Errorf("its disk is still there: %v", err)
		}
	})
	t.Run("init starved", func(t *testing.T) {
		// Root inside may lower its own init's limits. It then hurts itself: the node must still get rid of it, and soon.
		id := must(t, append(append([]string{"run", "-d"}, volume()...), "busybox", "sleep", "600")...)
		other := machine(t)
		try(t, "exec", id, "/inside", "starve") // init may die of it at once, and this session with it
		_ = command("exec", id, "true").Start() // hangs on it
		if out := must(t, "exec", other, "echo", "alive"); out != "alive" {
			t.Errorf("beside a starved init: %q", out)
		}
		must(t, "rm", "-f", id)
	})
	t.Run("signals to init", func(t *testing.T) {
		id := machine(t)
		must(t, "exec", id, "/inside", "signals") // all but the few that it heeds, a hundred times each
		if out := must(t, "exec", id, "echo", "alive"); out != "alive" {
			t.Errorf("after every signal: %q", out)
		}
	})
}

// slow is a reader that takes nothing for long.
type slow struct{}

func (slow) Write(b []byte) (int, error) { time.Sleep(50 * time.Millisecond); return len(b), nil }

func status(text, field string) int {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			n, _ := strconv.Atoi(strings.Fields(v)[0])
			return n
		}
	}
	return 0
}
