package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// node is a `nodeagent` with a root of its own and nothing else running.
type node struct {
	t    *testing.T
	ctx  context.Context
	root string
}

func alone(t *testing.T) *node {
	t.Helper()
	root, err := os.MkdirTemp("", "learnos-node-")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	n := &node{t: t, ctx: ctx, root: root}
	t.Cleanup(func() {
		defer cancel()
		out, err := exec.Command(filepath.Join(bin, "nodeagent"), "--root", root, "gc", "--all").CombinedOutput()
		if err != nil {
			t.Errorf("gc --all: %v\n%s", err, out)
		}
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
		if left := leftovers(root); len(left) > 0 {
			t.Errorf("left on the machine:\n%s", strings.Join(left, "\n"))
		}
	})
	return n
}

// try runs a nodeagent command and returns its combined output.
func (n *node) try(args ...string) (string, error) {
	out, err := exec.CommandContext(n.ctx, filepath.Join(bin, "nodeagent"), append([]string{"--root", n.root}, args...)...).CombinedOutput()
	return string(out), err
}

func (n *node) must(args ...string) string {
	n.t.Helper()
	out, err := n.try(args...)
	if err != nil {
		n.t.Fatalf("nodeagent %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// Two environments can't reach each other, nor the host's ports, by address;
// each reaches the outside.
func TestEnvironmentsAreApart(t *testing.T) {
	n := alone(t)
	n.must("image", "build", "busybox")
	const serve = "while true; do echo reached | nc -l -p 7000; done"
	n.must("run", "-d", "--name", "a", "busybox", "sh", "-c", serve)
	n.must("run", "-d", "--name", "b", "busybox", "sh", "-c", serve)
	aIP := strings.TrimSpace(n.must("exec", "a", "hostname", "-i"))
	if net.ParseIP(aIP) == nil {
		t.Fatalf("environment a says its address is %q", aIP)
	}
	var info []struct{ Address string }
	if out := n.must("inspect", "a"); json.Unmarshal([]byte(out), &info) != nil || len(info) != 1 || info[0].Address != aIP {
		t.Fatalf("inspect says %s, the environment %s", out, aIP)
	}
	gateway := strings.Fields(n.must("exec", "a", "ip", "route", "show", "default"))[2]

	// It answers itself, so a silence from elsewhere is the wall's doing.
	if out := n.must("exec", "a", "sh", "-c", "nc -w 2 "+aIP+" 7000"); !strings.Contains(out, "reached") {
		t.Fatalf("the environment's own server does not answer: %q", out)
	}
	if out, err := n.try("exec", "b", "sh", "-c", "nc -w 2 "+aIP+" 7000"); err == nil || strings.Contains(out, "reached") {
		t.Errorf("b reached a: %q", out)
	}

	host, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	go func() {
		for {
			c, err := host.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, "host reached")
			c.Close()
		}
	}()
	port := host.Addr().(*net.TCPAddr).Port
	targets := []string{gateway}
	ifaces, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range ifaces {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			targets = append(targets, ip.IP.String())
		}
	}
	for _, ip := range targets {
		if out, err := n.try("exec", "a", "sh", "-c", fmt.Sprintf("nc -w 2 %s %d", ip, port)); err == nil || strings.Contains(out, "host reached") {
			t.Errorf("an environment reached the host's port at %s: %q", ip, out)
		}
	}
	if out, err := n.try("exec", "a", "sh", "-c", "nc -w 2 169.254.169.254 80"); err == nil {
		t.Errorf("the metadata address answered: %q", out)
	}
}

// A Debian made by debootstrap installs software over our bridge and NAT, and
// runs an sshd that is reached from outside through a published port.
func TestDebianInstallsAndServesSSH(t *testing.T) {
	n := alone(t)
	out := n.must("run", "--rm", "debootstrap:bookworm", "sh", "-c", "apt-get update -qq && apt-get install -y -qq hello >/dev/null && hello")
	if !strings.Contains(out, "Hello, world!") {
		t.Fatalf("hello said %q", out)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	n.must("run", "-d", "--name", "prison", "--hostname", "prison", "--memory", "512M", "--cpus", "1", "--pids", "200", "-p", fmt.Sprintf("%d:22", port), "debootstrap:bookworm", "sleep", "infinity")
	n.must("exec", "prison", "sh", "-c", "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends openssh-server >/dev/null 2>&1 && mkdir -p /root/.ssh")
	key := filepath.Join(t.TempDir(), "id")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v %s", err, out)
	}
	pub, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	n.must("exec", "prison", "sh", "-c", fmt.Sprintf("chmod 700 /root/.ssh && echo '%s' > /root/.ssh/authorized_keys && chmod 600 /root/.ssh/authorized_keys && service ssh start", strings.TrimSpace(string(pub))))
	ssh := exec.CommandContext(n.ctx, "ssh", "-p", fmt.Sprint(port), "-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "root@127.0.0.1", "hostname; id -u; cat /proc/1/comm")
	said, err := ssh.CombinedOutput()
	if err != nil {
		t.Fatalf("ssh into the environment: %v\n%s", err, said)
	}
	if want := "prison\n0\n"; !strings.HasPrefix(string(said), want) {
		t.Errorf("ssh said %q, want it to begin with %q", said, want)
	}
}

// A fork bomb inside leaves the host responsive and ends at its ration.
func TestForkBomb(t *testing.T) {
	n := alone(t)
	n.must("image", "build", "busybox")
	n.must("run", "-d", "--name", "bomb", "--pids", "64", "--cpus", "0.5", "busybox", "sleep", "1000")
	bomb := exec.CommandContext(n.ctx, filepath.Join(bin, "nodeagent"), "--root", n.root, "exec", "bomb", "sh", "-c", "f() { sleep 100 & f | f & }; f; while true; do sleep 100 & done")
	var said strings.Builder
	bomb.Stdout, bomb.Stderr = &said, &said
	if err := bomb.Start(); err != nil {
		t.Fatal(err)
	}
	most := 0
	for range 10 {
		time.Sleep(200 * time.Millisecond)
		if out, err := exec.Command("true").CombinedOutput(); err != nil {
			t.Fatalf("the host can't start a process any more: %v %s", err, out)
		}
		var stats []struct{ PIDs int }
		if out := n.must("stats", "--json", "bomb"); json.Unmarshal([]byte(out), &stats) != nil || len(stats) != 1 {
			t.Fatalf("stats said %s", out)
		}
		most = max(most, stats[0].PIDs)
	}
	if most > 64 {
		t.Errorf("the bomb had up to %d processes, want at most its ration of 64", most)
	}
	n.must("kill", "bomb")
	_ = bomb.Wait() // killed, whatever status that is
	if !strings.Contains(said.String(), "can't fork") {
		t.Errorf("the bomb never met its ration; it said %.500q", said.String())
	}
	n.must("rm", "bomb")
}
