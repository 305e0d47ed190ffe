package engines

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// podman runs podman as its users do; its configuration names lrun, and the option does so once more.
func podman(t *testing.T, args ...string) result {
	t.Helper()
	return run(t, "", append([]string{"podman", "--runtime", "lrun"}, args...)...)
}

// withImage has podman know the image, and checks in the end that nothing is left of any container.
func withImage(t *testing.T) {
	t.Helper()
	podman(t, "load", "-i", inHouse("box.tar")).ok(t)
	t.Cleanup(func() {
		podman(t, "rm", "-fa", "-t", "0").ok(t)
		nothingLeft(t, "/run/lrun", "/libpod-")
	})
}

// nothingLeft complains of containers in lrun's state directory and of cgroups whose path holds that.
func nothingLeft(t *testing.T, state, part string) {
	t.Helper()
	if left := run(t, "", lrun(), "--root", state, "list", "-q").ok(t); left != "" {
		t.Errorf("lrun still has %s", left)
	}
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, part) {
			t.Errorf("cgroup %s is left", path)
		}
		return nil
	})
}

// detached starts a container that stays, and returns its id.
func detached(t *testing.T, args ...string) string {
	t.Helper()
	id := podman(t, append([]string{"run", "-d"}, args...)...).ok(t)
	t.Cleanup(func() { podman(t, "rm", "-f", "-t", "0", id) })
	return id
}

func inspect(t *testing.T, id, format string) string {
	t.Helper()
	return podman(t, "inspect", "--format", format, id).ok(t)
}

func TestPodman(t *testing.T) {
	withImage(t)
	for _, s := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"run gives the container's output, input and status", podmanRun},
		{"run -it is a terminal that follows its window", podmanTerminal},
		{"a detached container is entered, looked at, paused, killed and removed", podmanDetached},
		{"stop asks first and kills later, and start begins again", podmanStop},
		{"--memory ends what wants more", podmanMemory},
		{"--pids-limit holds a fork bomb, and the host answers", podmanPids},
		{"--userns=auto gives every container ids of its own", podmanUserns},
		{"a healthcheck tells well from ill", podmanHealthcheck},
		{"build makes an image of a Dockerfile", podmanBuild},
		{"update changes the limits of a running container", podmanUpdate},
		{"a published port is answered", podmanPort},
		{"a volume outlives its container, and cp and diff see inside", podmanVolume},
		{"pods are paused and stopped as one, and namespaces are shared by asking", podmanPod},
		{"what podman can't have is refused with a reason", podmanRefusals},
	} {
		t.Run(s.name, s.run)
	}
}

func podmanRun(t *testing.T) {
	if got := podman(t, "run", "--rm", image, "echo", "hello").ok(t); got != "hello" {
		t.Errorf("it said %q", got)
	}
	r := podman(t, "run", "--rm", image, "sh", "-c", "echo out; echo err >&2; exit 7")
	if r.status(t, 7); r.out != "out\n" || r.err != "err\n" {
		t.Errorf("the streams: %q, %q", r.out, r.err)
	}
	podman(t, "run", "--rm", image, "sh", "-c", "kill -9 $$").status(t, 0) // PID 1 does not let itself be killed from inside
	if got := run(t, "line\n", "podman", "run", "-i", "--rm", image, "cat").ok(t); got != "line" {
		t.Errorf("cat said %q", got)
	}
	podman(t, "run", "--rm", image, "nosuch").says(t, `exec "nosuch": no such file`).status(t, 127)
	podman(t, "run", "--rm", image, "/etc/passwd").says(t, `exec "/etc/passwd": permission denied`).status(t, 126)
	podman(t, "create", "--name", "twice", image, "sh", "-c", "echo created; exit 5").ok(t)
	for range 2 {
		if got := podman(t, "start", "-a", "twice").status(t, 5); got != "created" {
			t.Errorf("it said %q", got)
		}
	}
	podman(t, "rm", "twice").ok(t)
}

func podmanTerminal(t *testing.T) {
	x := onTerminal(t, 31, 91, "podman", "run", "-it", "--rm", image, "sh")
	x.expect(`# `)
	x.write("tty; stty size\n")
	x.expect(`/dev/pts/0\r\n31 91`)
	x.resize(40, 120)
	x.write("while [ \"$(stty size)\" != '40 120' ]; do sleep 0.1; done; echo follow''ed\n")
	x.expect(`followed`)
	x.write("sleep 1000\n")
	time.Sleep(300 * time.Millisecond) // else the shell itself is interrupted, which is as good
	x.write("\x03")
	x.write("echo still $((40+2))\n")
	x.expect(`still 42`)
	x.write("exit 3\n")
	x.ends(3)

	id := detached(t, "-it", image, "sh", "-c", "echo begun; read x; echo got $x; sleep 1000")
	y := onTerminal(t, 24, 80, "podman", "exec", "-it", "-e", "HERE=there", id, "sh", "-c", "echo $HERE; stty size; cat /proc/1/cmdline; exit 4")
	y.expect(`there\r\n24 80\r\nsh`)
	y.ends(4)
	z := onTerminal(t, 24, 80, "podman", "attach", "--detach-keys", "ctrl-q", id)
	z.write("words\n")
	z.expect(`got words`)
	z.write("\x11")
	z.ends(0)
	if got := inspect(t, id, "{{.State.Status}}"); got != "running" {
		t.Errorf("left by its keys, the container is %s", got)
	}
	podman(t, "logs", id).says(t, "^begun", "^got words")
}

func podmanDetached(t *testing.T) {
	id := detached(t, "--name", "long", image, "sh", "-c", "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.1; done")
	if got := inspect(t, "long", "{{.OCIRuntime}} {{.State.Status}}"); got != "lrun running" {
		t.Errorf("it is %s", got)
	}
	podman(t, "ps").says(t, id[:12]+`.* Up .* long`)

	podman(t, "exec", "-e", "A=b", "-w", "/tmp", "-u", "user", id, "sh", "-c", "echo $A; pwd; id; hostname; exit 9").
		says(t, `^b$`, `^/tmp$`, `uid=1000\(user\) gid=1000`, "^"+id[:12]+"$").status(t, 9)
	podman(t, "exec", id, "nosuch").says(t, `exec "nosuch": no such file`).status(t, 127)
	if got := run(t, "through\n", "podman", "exec", "-i", id, "cat").ok(t); got != "through" {
		t.Errorf("cat said %q", got)
	}
	podman(t, "exec", "-d", id, "sleep", "1000").ok(t)
	podman(t, "top", id).says(t, `root +1 +0 .*sh -c i=0`, `sleep 1000`)
	podman(t, "top", id, "-eo", "pid,args").says(t, `^ *1 sh -c`)

	eventually(t, "podman logs shows lines", func() bool { return strings.Count(podman(t, "logs", id).ok(t), "line") > 2 })
	if got := podman(t, "logs", "--tail", "1", id).ok(t); !regexp.MustCompile(`^line \d+$`).MatchString(got) {
		t.Errorf("the last line is %q", got)
	}

	var stats []struct {
		CPU    string `json:"cpu_percent"`
		Memory string `json:"mem_usage"`
		PIDs   string `json:"pids"`
	}
	if err := json.Unmarshal([]byte(podman(t, "stats", "--no-stream", "--format", "json", id).ok(t)), &stats); err != nil || len(stats) != 1 {
		t.Fatalf("stats: %v %v", err, stats)
	}
	if s := stats[0]; s.PIDs == "0" || s.PIDs == "" || strings.HasPrefix(s.Memory, "0B") || s.CPU == "0.00%" {
		t.Errorf("stats say %+v", s)
	}

	podman(t, "pause", id).ok(t)
	if got := inspect(t, id, "{{.State.Status}}"); got != "paused" {
		t.Errorf("paused, it is %s", got)
	}
	before := podman(t, "logs", id).ok(t)
	time.Sleep(300 * time.Millisecond)
	if after := podman(t, "logs", id).ok(t); after != before {
		t.Error("it goes on while it is paused")
	}
	podman(t, "exec", id, "true").status(t, 255)
	podman(t, "unpause", id).ok(t)
	eventually(t, "it goes on when it is resumed", func() bool { return podman(t, "logs", id).ok(t) != before })

	podman(t, "rm", id).says(t, "running or paused").status(t, 2)
	podman(t, "kill", "-s", "KILL", id).ok(t)
	if got := podman(t, "wait", id).ok(t); got != "137" {
		t.Errorf("killed, its status is %s", got)
	}
	podman(t, "rm", id).ok(t)
	podman(t, "container", "exists", id).status(t, 1)

	// Paused and killed all the same.
	id = detached(t, image, "sleep", "1000")
	podman(t, "pause", id).ok(t)
	podman(t, "rm", "-f", "-t", "0", id).ok(t)
}

func podmanStop(t *testing.T) {
	id := detached(t, image, "sh", "-c", `trap "echo got TERM; exit 3" TERM; echo ready; while :; do sleep 0.1; done`)
	eventually(t, "it is ready", func() bool { return podman(t, "logs", id).ok(t) == "ready" })
	podman(t, "stop", "-t", "60", id).ok(t)
	if got := inspect(t, id, "{{.State.Status}} {{.State.ExitCode}}"); got != "exited 3" {
		t.Errorf("stopped, it is %s", got)
	}
	podman(t, "start", id).ok(t)
	podman(t, "restart", "-t", "0", id).ok(t)
	if got := inspect(t, id, "{{.State.Status}}"); got != "running" {
		t.Errorf("restarted, it is %s", got)
	}
	deaf := detached(t, image, "sleep", "1000") // PID 1 without a handler hears no TERM
	podman(t, "stop", "-t", "1", deaf).says(t, "SIGKILL").ok(t)
	if got := inspect(t, deaf, "{{.State.ExitCode}}"); got != "137" {
		t.Errorf("stopped by force, its status is %s", got)
	}
	own := detached(t, "--stop-signal", "USR1", image, "sh", "-c", `trap "exit 9" USR1; echo ready; while :; do sleep 0.1; done`)
	eventually(t, "it is ready", func() bool { return podman(t, "logs", own).ok(t) == "ready" })
	podman(t, "stop", "-t", "60", own).ok(t)
	if got := inspect(t, own, "{{.State.ExitCode}}"); got != "9" {
		t.Errorf("stopped by a signal of its own, its status is %s", got)
	}
}

// hog wants all the memory there is.
const hog = "a=0123456789abcdef; while :; do a=$a$a; done"

func podmanMemory(t *testing.T) {
	r := podman(t, "run", "--rm", "--memory", "24m", image, "sh", "-c", "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true")
	if got := r.ok(t); got != "25165824" {
		t.Errorf("inside, the limit reads %q", got)
	}
	podman(t, "run", "--rm", "--memory", "24m", image, "sh", "-c", hog).status(t, 137)
	podman(t, "run", "--rm", "--memory", "24m", image, "sh", "-c", "sh -c '"+hog+"'; echo the child ended with $?").says(t, "ended with 137").ok(t)
}

func podmanPids(t *testing.T) {
	id := detached(t, "--pids-limit", "20", image, "sh", "-c", "(while :; do sleep 1000 & done) 2>/dev/null; exec sleep 1000")
	eventually(t, "its processes are as many as they may be", func() bool {
		var pids []int
		json.Unmarshal([]byte(run(t, "", lrun(), "ps", "-f", "json", id).ok(t)), &pids)
		if len(pids) > 20 {
			t.Fatalf("%d processes", len(pids))
		}
		return len(pids) >= 19
	})
	podman(t, "exec", id, "true") // may have no room
	podman(t, "run", "--rm", image, "true").ok(t)
	podman(t, "rm", "-f", "-t", "0", id).ok(t)
}

func podmanUserns(t *testing.T) {
	script := "cat /proc/self/uid_map; id -u; touch /tmp/x && stat -c 'owned by %u' /tmp/x; stat -c 'image is of %u' /bin/busybox"
	ids := map[string]bool{}
	for range 2 {
		id := detached(t, "--userns=auto:size=2048", image, "sh", "-c", script+"; sleep 1000")
		eventually(t, "it has said who it is", func() bool { return strings.Contains(podman(t, "logs", id).ok(t), "image") })
		out := podman(t, "logs", id).says(t, `^0$`, `^owned by 0$`, `^image is of 0$`).out
		m := regexp.MustCompile(`^\s*0\s+(\d+)\s+2048\n`).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("uid_map: %s", out)
		}
		if ids[m[1]] {
			t.Error("two containers have the same ids")
		}
		ids[m[1]] = true
		host, err := os.ReadFile("/proc/" + inspect(t, id, "{{.State.Pid}}") + "/status")
		if err != nil || !strings.Contains(string(host), "Uid:\t"+m[1]+"\t") {
			t.Errorf("outside, it is not user %s: %v\n%s", m[1], err, host)
		}
		podman(t, "exec", id, "sh", "-c", "id -u; grep CapEff /proc/self/status").says(t, `^0$`, `CapEff:\s+0*[1-9a-f]`).ok(t)
		podman(t, "exec", "-u", "user", id, "touch", "/bin/x").says(t, "Permission denied").status(t, 1)
	}
	x := onTerminal(t, 24, 80, "podman", "run", "-it", "--rm", "--userns=auto", image, "sh", "-c", "tty; stat -c 'mine %u' /dev/pts/0; exit 2")
	x.expect(`/dev/pts/0\r\nmine 0`)
	x.ends(2)
	podman(t, "run", "--rm", "--uidmap", "0:200000:1000", "--gidmap", "0:300000:1000", image, "cat", "/proc/self/uid_map", "/proc/self/gid_map").
		says(t, `0\s+200000\s+1000`, `0\s+300000\s+1000`).ok(t)
}

func podmanHealthcheck(t *testing.T) {
	id := detached(t, "--health-cmd", "test -e /tmp/well", "--health-interval", "disable", "--health-retries", "1", image, "sleep", "1000")
	podman(t, "healthcheck", "run", id).status(t, 1)
	if got := inspect(t, id, "{{.State.Health.Status}}"); got != "unhealthy" {
		t.Errorf("ill, it is %s", got)
	}
	podman(t, "exec", id, "touch", "/tmp/well").ok(t)
	podman(t, "healthcheck", "run", id).ok(t)
	if got := inspect(t, id, "{{.State.Health.Status}}"); got != "healthy" {
		t.Errorf("well, it is %s", got)
	}
}

func podmanBuild(t *testing.T) {
	dir := t.TempDir()
	dockerfile := `FROM ` + image + `
RUN echo built > /etc/built && id -u
COPY Dockerfile /copied
WORKDIR /srv/work
ENV GREETING=hello
USER 1234
RUN ["sh", "-c", "test -w /etc && exit 1; echo $GREETING as $(id -u)"]
CMD echo $GREETING from $(pwd) as $(id -u): $(cat /etc/built)
`
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	podman(t, "build", "--isolation", "oci", "-t", "localhost/built", dir).says(t, `^0$`, `^hello as 1234$`).ok(t)
	if got := podman(t, "run", "--rm", "localhost/built").ok(t); got != "hello from /srv/work as 1234: built" {
		t.Errorf("what was built says %q", got)
	}
	failing := filepath.Join(dir, "Failing")
	os.WriteFile(failing, []byte("FROM "+image+"\nRUN exit 6\n"), 0o644)
	if r := podman(t, "build", "-f", failing, dir).says(t, `exit status 6|exit code 6|status 6`); r.code == 0 {
		t.Error("a RUN that fails is taken for one that works")
	}
}

func podmanUpdate(t *testing.T) {
	id := detached(t, "--memory", "64m", "--cpus", "1", image, "sleep", "1000")
	podman(t, "update", "--memory", "32m", "--cpus", "0.5", id).ok(t)
	podman(t, "exec", id, "sh", "-c", "cd /sys/fs/cgroup; cat memory.max cpu.max memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us 2>/dev/null; true").
		says(t, `^33554432$`, `^50000( 100000)?$`)
}

func podmanPort(t *testing.T) {
	detached(t, "-p", "127.0.0.1:18080:80", image, "sh", "-c", "mkdir /w; echo served > /w/index.html; httpd -f -p 80 -h /w")
	eventually(t, "the port answers", func() bool {
		r, err := http.Get("http://127.0.0.1:18080/")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		b, _ := io.ReadAll(r.Body)
		return string(b) == "served\n"
	})
}

func podmanVolume(t *testing.T) {
	podman(t, "volume", "create", "kept").ok(t)
	t.Cleanup(func() { podman(t, "volume", "rm", "-f", "kept") })
	podman(t, "run", "--rm", "-v", "kept:/data", image, "sh", "-c", "cat /data/there; echo more > /data/more").says(t, "from the image").ok(t)
	podman(t, "run", "--rm", "-v", "kept:/v:ro", image, "sh", "-c", "cat /v/more; touch /v/x").says(t, "^more$", "Read-only file system").status(t, 1)
	id := detached(t, image, "sh", "-c", "echo made > /made; sleep 1000")
	eventually(t, "diff shows the file", func() bool { return strings.Contains(podman(t, "diff", id).ok(t), "A /made") })
	got := filepath.Join(t.TempDir(), "got")
	podman(t, "cp", id+":/made", got).ok(t)
	if b, err := os.ReadFile(got); err != nil || string(b) != "made\n" {
		t.Errorf("cp: %q %v", b, err)
	}
	podman(t, "cp", got, id+":/tmp/put").ok(t)
	podman(t, "exec", id, "cat", "/tmp/put").says(t, "^made$").ok(t)
}

func podmanPod(t *testing.T) {
	podman(t, "pod", "create", "--infra=false", "--name", "pod").ok(t)
	t.Cleanup(func() { podman(t, "pod", "rm", "-f", "-t", "0", "pod") })
	detached(t, "--pod", "pod", image, "sleep", "1000")
	podman(t, "pod", "pause", "pod").ok(t)
	podman(t, "pod", "unpause", "pod").ok(t)
	podman(t, "pod", "stop", "-t", "0", "pod").ok(t)
	podman(t, "pod", "rm", "pod").ok(t)

	id := detached(t, image, "sleep", "1000")
	podman(t, "run", "--rm", "--network", "container:"+id, "--pid", "container:"+id, "--ipc", "container:"+id, image, "sh", "-c",
		"ps -o args; for n in net pid ipc; do [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] && echo shares $n; done").
		says(t, "^sleep 1000$", "^shares net$", "^shares pid$", "^shares ipc$").ok(t)
}

func podmanRefusals(t *testing.T) {
	podman(t, "run", "--rm", "--sysctl", "kernel.panic=1", image, "true").says(t, "kernel.panic").status(t, 125)
	podman(t, "--cgroup-manager", "systemd", "run", "--rm", image, "true").says(t, "through systemd")
	if r := podman(t, "run", "--rm", "--ulimit", "nofile=2000000000:2000000000", image, "true").says(t, "RLIMIT_NOFILE"); r.code != 126 {
		t.Errorf("status %d: %s", r.code, r.err)
	}
	id := detached(t, image, "sleep", "1000")
	if r := podman(t, "container", "checkpoint", id).says(t, "checkpoint"); r.code == 0 {
		t.Error("checkpoint is said to have worked")
	}
}
