package buildinfo

import (
	"runtime"
	"testing"
)

func TestVersion(t *testing.T) {
	old := version
	defer func() { version = old }()
	version = "v1.2.3"
	if got, want := Version(), "v1.2.3 "+runtime.Version(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	version = ""
	if got := Version(); got == " "+runtime.Version() {
		t.Errorf("a binary that nobody named says %q", got)
	}
}
