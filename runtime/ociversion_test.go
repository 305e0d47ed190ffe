package runtime

import (
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestOCIBefore(t *testing.T) {
	for _, c := range []struct {
		version string
		minor   int
		want    bool
	}{
		{"1.0.2", 1, true}, {"1.0.2-dev", 1, false}, {"1.0.0-rc5", 1, true}, {"1.0.0-rc5-dev", 1, true}, {"1.0.2-dev", 3, true},
		{"1.2.1", 3, true}, {"1.2.1+dev", 3, false}, {"1.3.0", 3, false}, {"1.4.0", 3, false}, {"1.10.0", 3, false},
		{"", 3, false}, {"1", 3, false}, {"1.x", 3, false}, {"2.0.0", 3, false},
	} {
		if got := OCIBefore(c.version, c.minor); got != c.want {
			t.Errorf("OCIBefore(%q, %d) = %v", c.version, c.minor, got)
		}
	}
}

// Up to 1.0.2 a capability that nobody knows "MUST cause an error"; since 1.1 it "MUST be logged as a warning".
func TestUnknownCapabilityByVersion(t *testing.T) {
	caps := &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL", "CAP_TEST"}}
	if _, _, err := grantableCaps(caps, "1.0.2", true); err == nil || !strings.Contains(err.Error(), "CAP_TEST") {
		t.Errorf("1.0.2: %v", err)
	}
	got, warnings, err := grantableCaps(caps, "1.1.0", true)
	if err != nil || len(warnings) != 1 || got.Bounding != 1<<5 {
		t.Errorf("1.1.0: %v, %q, %v", got, warnings, err)
	}
}
