// Package probe is a stranger's attack on an environment, as tests: what root inside, an unprivileged user inside, and root
// inside without a user namespace try, and what the host sees of it meanwhile.
//
// It runs the command that people run (nodeagent), on real objects of this machine, under a root of its own. It does not
// test what an environment is for, only what it must not be able to do. docs/security.md says which wall each test leans on.
package probe

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/learnos/learnos/nodeagent"
)

var (
	agent  string // the nodeagent of this checkout
	lrun   string // and the OCI runtime command
	inside string // the hostile program
	root   string // the node under attack
	state  string // where it keeps what its runtime knows
	secret = rand.Text()
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Geteuid() != 0 {
			fmt.Fprintln(os.Stderr, "these tests make environments: run them as root")
			return 1
		}
		if _, err := os.Stat("../../runtime/embedded/init"); err != nil {
			fmt.Fprintf(os.Stderr, "%v: run `make init` first\n", err)
			return 1
		}
		dir, err := os.MkdirTemp("", "probe-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		agent, lrun = filepath.Join(dir, "nodeagent"), filepath.Join(dir, "lrun")
		inside, root = filepath.Join(dir, "inside"), filepath.Join(dir, "root")
		for out, pkg := range map[string]string{agent: "../../cmd/nodeagent", lrun: "../../cmd/lrun", inside: "./inside"} {
			// A guest under emulation (tests/vm) is no place to build in: there they are brought along.
			if built := os.Getenv("PROBE_BIN"); built != "" {
				body, err := os.ReadFile(filepath.Join(built, filepath.Base(out)))
				if err == nil {
					err = os.WriteFile(out, body, 0o755)
				}
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					return 1
				}
				continue
			}
			build := exec.Command("go", "build", "-trimpath", "-o", out, pkg)
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if text, err := build.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "build %s: %v\n%s", pkg, err, text)
				return 1
			}
		}
		// Environments read the program through a volume, whatever their users are.
		if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(inside, 0o755)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() {
			n, err := nodeagent.Open(root, nodeagent.Options{})
			if err == nil {
				err = n.Destroy(context.Background())
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "take the node away:", err)
			}
		}()
		if out, err := command("image", "build", "busybox").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the image: %v\n%s", err, out)
			return 1
		}
		n, err := nodeagent.Open(root, nodeagent.Options{})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		state = n.RunDir()
		return m.Run()
	}())
}

// command is nodeagent with this node's root, and a secret in its environment that nobody inside may ever see.
func command(args ...string) *exec.Cmd {
	c := exec.Command(agent, append([]string{"--root", root}, args...)...)
	c.Env = append(os.Environ(), "PROBE_SECRET="+secret)
	return c
}

// result is what a command wrote and how it ended.
type result struct {
	out, err string
	code     int
}

// try runs nodeagent to its end.
func try(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return finish(t, ctx, command(args...))
}

func finish(t *testing.T, ctx context.Context, c *exec.Cmd) result {
	t.Helper()
	var out, stderr bytes.Buffer
	c.Stdout, c.Stderr = &out, &stderr
	c.WaitDelay = 5 * time.Second // something inside may hold its ends open
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Process.Kill() })
	defer stop()
	err := c.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Fatalf("%v did not end\n%s%s", c.Args, out.String(), stderr.String())
	}
	return result{out.String(), stderr.String(), c.ProcessState.ExitCode()}
}

// must is try for what has to work.
func must(t *testing.T, args ...string) string {
	t.Helper()
	r := try(t, args...)
	if r.code != 0 {
		t.Fatalf("nodeagent %s: status %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return strings.TrimSpace(r.out)
}

// volume mounts the hostile program.
func volume() []string { return []string{"-v", inside + ":/inside:ro"} }

// machine starts an environment that lives until the test ends, and returns its id.
func machine(t *testing.T, flags ...string) string {
	t.Helper()
	args := append(append([]string{"run", "-d"}, volume()...), flags...)
	id := must(t, append(args, "busybox", "sleep", "3600")...)
	t.Cleanup(func() {
		if r := try(t, "rm", "-f", id); r.code != 0 {
			t.Errorf("rm: %s", r.err)
		}
	})
	return id
}

// eventually waits for what has no other way of telling.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Error("it never came")
}

// known are the holes that docs/security.md lists: what is open, and why it is still so.
var known = map[string]string{
	"ring with CAP_NET_RAW":      "the kernel charges the rings of packet sockets to nobody",
	"send-ring with CAP_NET_RAW": "the kernel charges the rings of packet sockets to nobody",
}

// hole notes whether what name calls is open. A hole that nobody knew fails, and so does one that has closed unnoticed.
func hole(t *testing.T, name string, open bool, what string) {
	t.Helper()
	why, listed := known[name]
	switch {
	case open && listed:
		t.Logf("known: %s (%s)", what, why)
	case open:
		t.Error(what)
	case listed:
		t.Errorf("%q has closed: take it out of known, and out of docs/security.md", name)
	}
}
