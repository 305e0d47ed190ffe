package e2e

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/learnos/learnos/tests/platform"
)

// The three daemons, as three processes on a real etcd, take a person from
// registration to a shell that is root in a user namespace of its own, and
// back to nothing.
func TestThreeDaemons(t *testing.T) {
	p, ctx := start(t, platform.Options{})
	c, _, _ := person(t, ctx, p)
	env := running(t, ctx, c, "busybox")
	term, session := shell(t, ctx, c, env.ID)
	says(t, ctx, term, "id -u; cat /proc/self/uid_map", "65536")
	if got, err := term.Expect(ctx, "65536"); err != nil || strings.Contains(got, "4294967295") {
		t.Fatalf("the shell has the host's ids: %q %v", got, err)
	}

	// A reload of the tab: the same shell, with its scrollback.
	says(t, ctx, term, "x=kept; echo mark$((40+2))", "mark42")
	term.Close()
	again, err := c.Attach(ctx, env.ID, session, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.Expect(ctx, "mark42"); err != nil {
		t.Fatal(err)
	}
	says(t, ctx, again, "echo [$x]", "[kept]")

	// Somebody else sees none of it.
	other, _, _ := person(t, ctx, p)
	var apiErr *platform.APIError
	if _, err := other.Environment(ctx, env.ID); !errors.As(err, &apiErr) || apiErr.Status != http.StatusNotFound {
		t.Fatalf("a stranger asked for the environment and got %v, want 404", err)
	}
	if _, err := other.Attach(ctx, env.ID, session, -1); err == nil {
		t.Fatal("a stranger attached to the session")
	}

	if err := c.Delete(ctx, env.ID); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(p.Root, "envs", "*")); len(left) > 0 {
		t.Fatalf("the node still keeps %v", left)
	}
}

// A session that is no terminal carries bytes and the exit status.
func TestCommandSession(t *testing.T) {
	p, ctx := start(t, platform.Options{})
	c, _, _ := person(t, ctx, p)
	env := running(t, ctx, c, "busybox")
	id, err := c.Session(ctx, env.ID, false, "sh", "-c", "echo out; echo err >&2; exit 7")
	if err != nil {
		t.Fatal(err)
	}
	term, err := c.Attach(ctx, env.ID, id, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	for term.Exit == nil {
		if err := term.Read(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if *term.Exit != 7 {
		t.Errorf("exit status %d, want 7", *term.Exit)
	}
	for _, want := range []string{"out\n", "err\n"} {
		if got, _ := term.Expect(ctx, want); !strings.Contains(got, want) {
			t.Errorf("%q is missing from %q", want, got)
		}
	}
}

// An image that no registry answers for fails with that reason, frees the
// person's place, and can be tried again.
func TestImageNobodyServes(t *testing.T) {
	p, ctx := start(t, platform.Options{})
	admin := adminOf(t, p)
	image := map[string]any{"name": "nowhere", "title": "Nowhere", "source": "127.0.0.1:1/nobody/nothing:latest", "memoryBytes": 64 << 20, "cpus": 1, "pids": 64, "enabled": true}
	if err := admin.Do(ctx, http.MethodPost, "/images", image, nil); err != nil {
		t.Fatal(err)
	}
	c, _, _ := person(t, ctx, p)
	env, err := c.Create(ctx, "nowhere")
	if err != nil {
		t.Fatal(err)
	}
	ended, err := c.WaitState(ctx, env.ID, "failed")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(ended.Reason, "127.0.0.1:1") {
		t.Errorf("reason %q does not say which registry did not answer", ended.Reason)
	}
	if err := c.Do(ctx, http.MethodPost, "/environments/"+env.ID+"/retry", map[string]any{}, nil); err != nil {
		t.Errorf("try again: %v", err)
	}
}

// An environment goes by itself: at its deadline, which a person can extend,
// and when nobody has been connected for a while.
func TestLifetimeAndIdleness(t *testing.T) {
	p, ctx := start(t, platform.Options{Env: map[string]string{"LEARNOS_GATEWAY_IDLETIMEOUT": "3s"}})
	c, _, _ := person(t, ctx, p)
	env := running(t, ctx, c, "busybox")
	var extended platform.Environment
	if err := c.Do(ctx, http.MethodPost, "/environments/"+env.ID+"/extend", map[string]int{"seconds": 600}, &extended); err != nil {
		t.Fatal(err)
	}
	if !extended.Deadline.After(env.Deadline.Add(500 * time.Second)) {
		t.Errorf("extended by 600 s from %v to %v", env.Deadline, extended.Deadline)
	}
	ended, err := c.WaitState(ctx, env.ID, "deleted")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(ended.Reason, "idle") {
		t.Errorf("reason %q, want idleness", ended.Reason)
	}
}

// A token dies at logout, at once.
func TestLogout(t *testing.T) {
	p, ctx := start(t, platform.Options{})
	c, _, _ := person(t, ctx, p)
	if err := c.Do(ctx, http.MethodGet, "/me", nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Do(ctx, http.MethodPost, "/auth/logout", nil, nil); err != nil {
		t.Fatal(err)
	}
	var apiErr *platform.APIError
	if err := c.Do(ctx, http.MethodGet, "/me", nil, nil); !errors.As(err, &apiErr) || apiErr.Status != http.StatusUnauthorized {
		t.Fatalf("after logout the token still says %v, want 401", err)
	}
}

// adminOf signs the first administrator in with the password made for this
// installation.
func adminOf(t *testing.T, p *platform.Platform) *platform.Client {
	t.Helper()
	f := filepath.Join(p.Dir, "secrets", "admin-password")
	password, err := os.ReadFile(f)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s has mode %v, want 0600 (%v)", f, info.Mode(), err)
	}
	c, err := p.Login(t.Context(), "admin", strings.TrimSpace(string(password)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}
