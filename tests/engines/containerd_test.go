package engines

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ctr runs containerd's own client, in a containerd namespace of the tests'.
func ctr(t *testing.T, args ...string) result {
	t.Helper()
	return run(t, "", ctrLine(args...)...)
}

func ctrLine(args ...string) []string {
	return append([]string{"ctr", "-a", "/run/containerd.sock", "-n", "tests"}, args...)
}

// ctrRun is "ctr run" with lrun in runc's place.
func ctrRun(args ...string) []string {
	return append([]string{"run", "--runtime", "io.containerd.runc.v2", "--runc-binary", lrun()}, args...)
}

// daemon is a containerd.
type daemon struct {
	cmd *exec.Cmd
	log string
}

func startContainerd(t *testing.T) *daemon {
	t.Helper()
	d := &daemon{log: inHouse("containerd.log")}
	log, err := os.OpenFile(d.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	d.cmd = exec.Command("containerd", "--config", inHouse("containerd.toml"))
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's signals are not its business
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "containerd answers", func() bool { return ctr(t, "version").code == 0 })
	return d
}

// end stops it, and says what it logged where a test failed.
func (d *daemon) end(t *testing.T) {
	d.cmd.Process.Signal(syscall.SIGTERM)
	d.cmd.Wait()
	if text, err := os.ReadFile(d.log); err == nil && t.Failed() {
		t.Logf("containerd's log ends\n%s", text[max(0, len(text)-4000):])
	}
}

// task starts a container that stays.
func task(t *testing.T, id string, args ...string) {
	t.Helper()
	ctr(t, ctrRun(append([]string{"-d"}, args...)...)...).ok(t)
	t.Cleanup(func() {
		ctr(t, "task", "rm", "-f", id)
		ctr(t, "container", "rm", id)
	})
}

// taskState is RUNNING, PAUSED, STOPPED, or nothing, and the process id.
func taskState(t *testing.T, id string) (state string, pid int) {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + id + `\s+(\d+)\s+(\w+)`).FindStringSubmatch(ctr(t, "task", "ls").ok(t))
	if m == nil {
		return "", 0
	}
	pid, _ = strconv.Atoi(m[1])
	return m[2], pid
}

func TestContainerd(t *testing.T) {
	d := startContainerd(t)
	defer func() { d.end(t) }()
	ctr(t, "images", "import", inHouse("box.tar")).ok(t)
	for _, s := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"run gives the container's output, input and status", ctrOnce},
		{"run -t is a terminal", ctrTerminal},
		{"a task is entered, measured, paused, resumed, killed and removed", ctrTask},
		{"events tell a task's life in order", ctrEvents},
		{"an out-of-memory kill is an event", ctrOOM},
		{"exec after exec after exec, eight at once", ctrManyExecs},
		{"options reach the container", ctrOptions},
		{"a shim that is killed leaves nothing", ctrShimKilled},
	} {
		t.Run(s.name, s.run)
	}
	t.Run("a new containerd finds the running task", func(t *testing.T) {
		task(t, "kept", image, "kept", "sleep", "1000")
		_, pid := taskState(t, "kept")
		d.cmd.Process.Kill()
		d.cmd.Wait()
		d = startContainerd(t)
		if state, now := taskState(t, "kept"); state != "RUNNING" || now != pid {
			t.Errorf("it is %q, process %d; it was %d", state, now, pid)
		}
		ctr(t, "task", "exec", "--exec-id", "e", "kept", "echo", "still").says(t, "^still$").ok(t)
	})
	nothingLeft(t, "/run/containerd/runc/tests", "/tests/")
}

func ctrOnce(t *testing.T) {
	if got := ctr(t, ctrRun("--rm", image, "once", "echo", "hello")...).ok(t); got != "hello" {
		t.Errorf("it said %q", got)
	}
	r := ctr(t, ctrRun("--rm", image, "once", "sh", "-c", "echo out; echo err >&2; exit 6")...)
	if r.status(t, 6); r.out != "out\n" || !strings.Contains(r.err, "err\n") {
		t.Errorf("the streams: %q, %q", r.out, r.err)
	}
	if got := run(t, "through\n", ctrLine(ctrRun("--rm", image, "once", "head", "-n1")...)...).ok(t); got != "through" {
		t.Errorf("head said %q", got) // ctr passes on what it reads, but not that there is no more
	}
	ctr(t, ctrRun("--rm", image, "once", "nosuch")...).says(t, `OCI runtime create failed: .*exec "nosuch": no such file`).status(t, 1)
	ctr(t, ctrRun("--rm", image, "once", "echo", "the name is free again")...).ok(t)
}

func ctrTerminal(t *testing.T) {
	x := onTerminal(t, 33, 99, ctrLine(ctrRun("-t", "--rm", image, "tty", "sh")...)...)
	x.expect(`# `)
	x.write("tty; stty size; echo $((40+2))\n")
	x.expect(`/dev/pts/0\s+33 99\s+42`)
	x.resize(40, 120)
	x.write("while [ \"$(stty size)\" != '40 120' ]; do sleep 0.1; done; echo follow''ed\n")
	x.expect(`followed`)
	x.write("exit 3\n")
	x.ends(3)
}

func ctrTask(t *testing.T) {
	task(t, "life", "--memory-limit", "33554432", image, "life", "sh", "-c", "while :; do sleep 0.1; done")
	state, pid := taskState(t, "life")
	if state != "RUNNING" || pid == 0 {
		t.Fatalf("it is %q, process %d", state, pid)
	}
	ctr(t, "task", "exec", "--exec-id", "e1", "--user", "1:2", "--cwd", "/tmp", "life", "sh", "-c", "id; pwd; exit 4").
		says(t, `uid=1 gid=2`, `^/tmp$`).status(t, 4)
	ctr(t, "task", "exec", "--exec-id", "e2", "life", "nosuch").says(t, `OCI runtime exec failed: .*exec "nosuch"`).status(t, 1)
	x := onTerminal(t, 24, 80, ctrLine("task", "exec", "-t", "--exec-id", "e3", "life", "sh", "-c", "tty; exit 5")...)
	x.expect(`/dev/pts/0`)
	x.ends(5)
	ctr(t, "task", "ps", "life").says(t, fmt.Sprintf(`^%d\s`, pid)).ok(t)
	ctr(t, "task", "metrics", "life").says(t, `memory\S*\s+[1-9]`, `pids\.current\s+[1-9]`, `33554432`).ok(t)

	ctr(t, "task", "pause", "life").ok(t)
	if state, _ := taskState(t, "life"); state != "PAUSED" {
		t.Errorf("paused, it is %s", state)
	}
	before := ticks(t, pid)
	time.Sleep(300 * time.Millisecond)
	if after := ticks(t, pid); after != before {
		t.Error("it goes on while it is paused")
	}
	ctr(t, "task", "exec", "--exec-id", "e4", "life", "true").says(t, "paused").status(t, 1)
	ctr(t, "task", "resume", "life").ok(t)
	if state, _ := taskState(t, "life"); state != "RUNNING" {
		t.Errorf("resumed, it is %s", state)
	}

	ctr(t, "task", "kill", "-s", "TERM", "life").ok(t) // which PID 1 has no handler for
	if state, _ := taskState(t, "life"); state != "RUNNING" {
		t.Errorf("it is %s after a signal it does not hear", state)
	}
	ctr(t, "task", "kill", "-a", "-s", "KILL", "life").ok(t)
	eventually(t, "it has stopped", func() bool { state, _ := taskState(t, "life"); return state == "STOPPED" })
	ctr(t, "task", "rm", "life").says(t, "137").ok(t)
	ctr(t, "container", "rm", "life").ok(t)
}

// ticks is the processor time a process has had.
func ticks(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(b))[13:17], " ")
}

// listen gathers the events of a namespace until the test ends.
func listen(t *testing.T) (seen func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "events")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	ctx, cancel := context.WithCancel(context.Background())
	line := ctrLine("events")
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Stdout, cmd.Stderr = file, file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); cmd.Wait() })
	seen = func() string {
		b, _ := os.ReadFile(path)
		return string(b)
	}
	eventually(t, "events are heard", func() bool { // it does not say when it has begun to listen
		ctr(t, "container", "create", image, "first").ok(t)
		ctr(t, "container", "rm", "first").ok(t)
		return strings.Contains(seen(), "first")
	})
	return seen
}

func ctrEvents(t *testing.T) {
	seen := listen(t)
	task(t, "told", image, "told", "sleep", "1000")
	ctr(t, "task", "exec", "--exec-id", "inner", "told", "sh", "-c", "exit 4").status(t, 4)
	ctr(t, "task", "pause", "told").ok(t)
	ctr(t, "task", "resume", "told").ok(t)
	ctr(t, "task", "kill", "-s", "KILL", "told").ok(t)
	eventually(t, "it has stopped", func() bool { state, _ := taskState(t, "told"); return state == "STOPPED" })
	ctr(t, "task", "rm", "told").ok(t)
	want := []string{"/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit inner 4", "/tasks/paused", "/tasks/resumed",
		"/tasks/exit told 137", "/tasks/delete"}
	var got []string
	eventually(t, "all events are told", func() bool {
		got = got[:0]
		for line := range strings.Lines(seen()) {
			at := strings.Index(line, "/tasks/")
			if at < 0 || !strings.Contains(line, `"container_id":"told"`) {
				continue
			}
			topic, data, _ := strings.Cut(strings.TrimSpace(line[at:]), " ")
			if topic == "/tasks/exit" {
				var e struct {
					ID     string `json:"id"`
					Status int    `json:"exit_status"`
				}
				if err := json.Unmarshal([]byte(data), &e); err != nil {
					t.Fatalf("%v: %s", err, data)
				}
				topic = fmt.Sprint(topic, " ", e.ID, " ", e.Status)
			}
			got = append(got, topic)
		}
		return len(got) >= len(want)
	})
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("the events are\n%s\nwant\n%s", g, w)
	}
}

func ctrOOM(t *testing.T) {
	seen := listen(t)
	// The hog is a child: the shim takes a moment to begin to listen for such events.
	task(t, "hog", "--memory-limit", "25165824", image, "hog", "sh", "-c", "sleep 1; sh -c '"+hog+"'; echo $?; exec sleep 1000")
	eventually(t, "the event", func() bool { return strings.Contains(seen(), `/tasks/oom {"container_id":"hog"}`) })
	if state, _ := taskState(t, "hog"); state != "RUNNING" {
		t.Errorf("PID 1 was not the hog, and is %s", state)
	}
}

func ctrManyExecs(t *testing.T) {
	task(t, "many", image, "many", "sleep", "1000")
	done := make(chan result)
	const each, atOnce = 4, 8
	for i := range atOnce {
		go func() {
			for j := range each { // ctr may lose the words of a process that ends at once, with crun, too
				done <- run(t, "", ctrLine("task", "exec", "--exec-id", fmt.Sprintf("e%d-%d", i, j), "many", "sh", "-c", fmt.Sprintf("echo from %d; sleep 0.3; exit %d", i, i))...)
			}
		}()
	}
	for range each * atOnce {
		r := <-done
		if want := fmt.Sprintf("from %d\n", r.code); r.out != want {
			t.Errorf("status %d with %q%s", r.code, r.out, r.err)
		}
	}
	eventually(t, "no process of theirs is left", func() bool {
		return len(strings.Fields(run(t, "", lrun(), "--root", "/run/containerd/runc/tests", "ps", "-f", "json", "many").ok(t))) == 3 // [ pid ]
	})
}

func ctrOptions(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("outside\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		options, script string
		code            int
		says            []string
	}{
		{"--seccomp", "grep Seccomp: /proc/self/status", 0, []string{`Seccomp:\s+2`}},
		{"--privileged", "grep CapEff /proc/self/status; mount -t tmpfs x /tmp && echo mounted", 0, []string{"^mounted$"}},
		{"--cap-drop CAP_CHOWN", "chown 1 /etc", 1, []string{"not permitted"}},
		{"--read-only", "touch /x", 1, []string{"Read-only"}},
		{"--net-host", "readlink /proc/self/ns/net", 0, nil},
		{"--memory-limit 25165824 --cpus 0.5 --mount type=cgroup,src=cgroup,dst=/host,options=ro", "cd /host; cat memory.max cpu.max memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us 2>/dev/null; true", 0,
			[]string{`^25165824$`, `^50000( 100000)?$`}},
		{"--mount type=bind,src=" + dir + ",dst=/v,options=rbind:ro", "cat /v/file; touch /v/x", 1, []string{"^outside$", "Read-only"}},
		{"--device /dev/full", "ls /dev; echo x >/dev/full", 1, []string{"^full$", "No space left"}},
		{"--uidmap 0:200000:1000 --gidmap 0:200000:1000", "cat /proc/self/uid_map; stat -c 'of %u' /bin/busybox", 0, []string{`0\s+200000\s+1000`, "^of 0$"}},
		{"--no-pivot", "echo in", 0, []string{"^in$"}},
		{"--null-io", "echo unheard", 0, []string{`\A\z`}},
		{"--env A=b --cwd /data", "echo $A; pwd", 0, []string{"^b\n/data$"}},
	} {
		t.Run(c.options, func(t *testing.T) {
			args := ctrRun(append(append([]string{"--rm"}, strings.Fields(c.options)...), image, "options", "sh", "-c", "trap 'sleep 0.3' EXIT; "+c.script)...) // ctr may lose the last words of what ends at once
			ctr(t, args...).says(t, c.says...).status(t, c.code)
		})
	}
	ctr(t, ctrRun("--rm", "--runc-systemd-cgroup", "--cgroup", "a:b:c", image, "systemd", "true")...).says(t, "through systemd").status(t, 1)
}

func ctrShimKilled(t *testing.T) {
	task(t, "orphan", image, "orphan", "sleep", "1000")
	_, pid := taskState(t, "orphan")
	out := run(t, "", "pgrep", "-f", "containerd-shim-runc-v2.*-id orphan").ok(t) // in the house's own process namespace
	shim, err := strconv.Atoi(out)
	if err != nil {
		t.Fatalf("the shim: %q", out)
	}
	syscall.Kill(shim, syscall.SIGKILL)
	eventually(t, "the container is gone with its shim", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
		return err != nil && run(t, "", lrun(), "--root", "/run/containerd/runc/tests", "state", "orphan").code == 1
	})
	ctr(t, "container", "rm", "orphan").ok(t)
}
