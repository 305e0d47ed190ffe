// Package e2e holds the promises that cross every room, checked on real
// processes: the binaries of this checkout, a real etcd, a real browser and
// OpenSSH's own client.
package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/learnos/learnos/tests/platform"
)

var bin string // the directory of the binaries under test

func TestMain(m *testing.M) {
	os.Exit(func() int {
		for _, built := range []string{"../../runtime/embedded/init", "../../web/dist/index.html"} {
			if _, err := os.Stat(built); err != nil {
				fmt.Fprintf(os.Stderr, "%v: these tests run the product as built; run `make build` first\n", err)
				return 1
			}
		}
		dir, err := os.MkdirTemp("", "learnos-bin-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		build := exec.Command("go", "build", "-o", dir+"/", "./cmd/...")
		build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the commands: %v\n%s", err, out)
			return 1
		}
		bin = dir
		return m.Run()
	}())
}

// start brings a platform up for one test and proves at its end that nothing
// of it is left on the machine.
func start(t *testing.T, opts platform.Options) (*platform.Platform, context.Context) {
	t.Helper()
	// Not t.Context, which ends before the clean-up that still needs a browser.
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	t.Cleanup(cancel)
	// Not t.TempDir: its name holds the test's, and a unix socket's path may
	// have 107 bytes only.
	dir, err := os.MkdirTemp("", "learnos-")
	if err != nil {
		t.Fatal(err)
	}
	opts.Bin = bin
	p, err := platform.Start(ctx, dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(p.Logs())
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
		if left := leftovers(dir); len(left) > 0 {
			t.Errorf("left on the machine:\n%s", strings.Join(left, "\n"))
		}
	})
	return p, ctx
}

// leftovers lists the mounts and processes that still name dir.
func leftovers(dir string) []string {
	var left []string
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			left = append(left, "mount "+line)
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range procs {
		cmd, _ := os.ReadFile(f)
		if strings.Contains(string(cmd), dir) {
			left = append(left, f+" "+strings.ReplaceAll(string(cmd), "\x00", " "))
		}
	}
	return left
}

// person registers somebody new.
func person(t *testing.T, ctx context.Context, p *platform.Platform) (c *platform.Client, name, password string) {
	t.Helper()
	name = "u" + strings.ToLower(rand.Text()[:8])
	password = rand.Text()
	c, err := p.Register(ctx, name, password)
	if err != nil {
		t.Fatal(err)
	}
	return c, name, password
}

// running creates an environment and waits until it runs.
func running(t *testing.T, ctx context.Context, c *platform.Client, image string) *platform.Environment {
	t.Helper()
	env, err := c.Create(ctx, image)
	if err != nil {
		t.Fatal(err)
	}
	env, err = c.WaitState(ctx, env.ID, "running")
	if err != nil {
		t.Fatal(err)
	}
	return env
}

// shell opens a terminal in an environment.
func shell(t *testing.T, ctx context.Context, c *platform.Client, env string, args ...string) (*platform.Terminal, string) {
	t.Helper()
	id, err := c.Session(ctx, env, true, args...)
	if err != nil {
		t.Fatal(err)
	}
	term, err := c.Attach(ctx, env, id, -1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { term.Close() })
	return term, id
}

// says types a command and fails unless its output has want. want must not
// stand in the command itself, which the terminal echoes.
func says(t *testing.T, ctx context.Context, term *platform.Terminal, command, want string) {
	t.Helper()
	term.Forget()
	if err := term.Type(command + "\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := term.Expect(ctx, want); err != nil {
		t.Fatal(err)
	}
}
