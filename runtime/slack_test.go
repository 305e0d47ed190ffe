package runtime

import (
	"os"
	"strings"
	"testing"
)

// init is started with a large timer slack (timer_slack in prctl(2)); what it runs has that of whoever made the container.
func TestTimerSlack(t *testing.T) {
	want, err := os.ReadFile("/proc/self/timerslack_ns")
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, newRuntime(t), CreateOptions{})
	got := sh(t, c, "cat /proc/self/timerslack_ns")
	if strings.TrimSpace(got) != strings.TrimSpace(string(want)) {
		t.Errorf("timer slack inside: %q ns, want %q", got, want)
	}
}
