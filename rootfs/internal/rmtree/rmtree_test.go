package rmtree

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A tree far deeper than PATH_MAX and the limit on open files, wide in places, with links out of it.
func TestRemoveDeepTree(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	if err := os.WriteFile(outside, []byte("stay"), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	name := "tree"
	for i := range 3000 {
		if err := unix.Mkdirat(fd, name, 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd, name = next, "a-directory-with-a-name-of-some-length"
		unix.Symlinkat(outside, fd, "link")
		unix.Mkdirat(fd, ".deep-1", 0o000)
		if i%1000 == 0 {
			for j := range 1500 {
				unix.Mkdirat(fd, fmt.Sprint("wide", j), 0o700)
			}
		}
	}
	unix.Close(fd)
	if err := Remove(filepath.Join(dir, "tree")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "tree")); !os.IsNotExist(err) {
		t.Errorf("still there: %v", err)
	}
	if data, err := os.ReadFile(outside); err != nil || string(data) != "stay" {
		t.Errorf("what a link pointed to: %q, %v", data, err)
	}
}

func TestRemoveOtherThings(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	os.Mkdir(target, 0o700)
	os.WriteFile(filepath.Join(target, "f"), nil, 0o600)
	os.Symlink(target, filepath.Join(dir, "link"))
	os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)
	for _, name := range []string{"link", "file", "missing", "missing/deeper"} {
		if err := Remove(filepath.Join(dir, name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(target, "f")); err != nil {
		t.Error(err)
	}
}
