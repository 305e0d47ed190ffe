package runtime

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestHugePages: sizes are those of which there are any, by the names that cgroups give them.
func TestHugePages(t *testing.T) {
	dir := t.TempDir()
	for name, counts := range map[string][2]string{"hugepages-2048kB": {"4\n", "0\n"}, "hugepages-1048576kB": {"0\n", "1\n"},
		"hugepages-64kB": {"1\n", "1\n"}, "hugepages-32768kB": {"0\n", "0\n"}, "other": {"1\n", "1\n"}} {
		for i, file := range []string{"nr_hugepages", "nr_overcommit_hugepages"} {
			if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name, file), []byte(counts[i]), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := hugePages(dir)
	slices.Sort(got)
	if want := []string{"1GB", "2MB", "64KB"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := hugePages(filepath.Join(dir, "none")); got != nil {
		t.Errorf("without any: %q", got)
	}
}
