package runtime

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// An AppArmor profile confines every session of an environment, whoever starts it; one that is not loaded is an error that
// leaves nothing.
func TestAppArmor(t *testing.T) {
	if !hasAppArmor() {
		t.Skip("this kernel has no AppArmor (the cgroup v2 guest's has: tests/vm)")
	}
	const name = "learnos-runtime-test"
	profile := filepath.Join(t.TempDir(), "profile")
	text := fmt.Sprintf("profile %s flags=(attach_disconnected,mediate_deleted) {\n file,\n capability,\n network,\n signal,\n deny /etc/passwd rwklx,\n}\n", name)
	if err := os.WriteFile(profile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	parser := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("apparmor_parser", append(args, profile)...).CombinedOutput(); err != nil {
			t.Fatalf("apparmor_parser (scripts/setup test installs the package apparmor): %v: %s", err, out)
		}
	}
	parser("-r", "-K")
	t.Cleanup(func() { parser("-R") })

	r := newRuntime(t)
	spec := testSpec()
	spec.Process.ApparmorProfile = name
	c := start(t, r, CreateOptions{Spec: spec})
	for range 3 {
		if got := strings.TrimSpace(sh(t, c, "cat /proc/self/attr/apparmor/current; cat /etc/group >/dev/null")); got != name+" (enforce)" {
			t.Errorf("a session's profile is %q", got)
		}
		if _, stderr, st := run(t, c, SessionSpec{Args: []string{"cat", "/etc/passwd"}}); st.Code == 0 || !strings.Contains(stderr, "Permission denied") {
			t.Errorf("a file that the profile denies: %+v %s", st, stderr)
		}
	}
	if _, stderr, st := run(t, c, SessionSpec{Args: []string{"cat", "/etc/passwd"}, User: "0:0"}); st.Code == 0 {
		t.Errorf("another user: %+v %s", st, stderr)
	}

	spec = testSpec()
	spec.Process.ApparmorProfile = "nosuch"
	bad, err := r.Create(testContext(t), CreateOptions{ID: "bad", Spec: spec})
	if err == nil {
		err = bad.Start(testContext(t), StartOptions{Root: mountRoot(t, bad, busyboxRoot(t))})
		if err := bad.Delete(testContext(t)); err != nil {
			t.Error(err)
		}
	}
	if err == nil || !strings.Contains(err.Error(), `AppArmor profile "nosuch" is not loaded`) {
		t.Errorf("a profile that is not loaded: %v", err)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/" + testParent + "/bad"); len(left) > 0 {
		t.Errorf("cgroups are left: %v", left)
	}
}
