package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What a container's process is executed from can be written to by nobody who holds it, is kept for the next one, and is
// made anew when it is not what we wrote.
func TestInitFile(t *testing.T) {
	dir := t.TempDir()
	open := func() (*os.File, string) {
		f, err := openInitFile(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		names, err := filepath.Glob(filepath.Join(dir, initFilePrefix+"*"))
		if err != nil || len(names) != 1 {
			t.Fatalf("files: %v, %v; want one", names, err)
		}
		return f, names[0]
	}
	inode := func(f *os.File) uint64 {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	first, name := open()
	for _, flags := range []int{unix.O_WRONLY, unix.O_RDWR, unix.O_WRONLY | unix.O_TRUNC} {
		fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", first.Fd()), flags, 0)
		if err != unix.EROFS {
			t.Errorf("open for writing (flags %#x): %d, %v; want EROFS", flags, fd, err)
		}
	}
	again, _ := open()
	if inode(first) != inode(again) {
		t.Error("the file was not kept for the second one")
	}
	if err := os.Truncate(name, 10); err != nil {
		t.Fatal(err)
	}
	whole, name := open()
	if inode(whole) == inode(first) {
		t.Error("a truncated file was taken for init")
	}
	if err := os.Link(name, filepath.Join(dir, "other")); err != nil {
		t.Fatal(err)
	}
	if _, err := detachInit(name, mustSize(t, name)); err == nil {
		t.Error("a file with another name was taken for init")
	}
	if _, err := detachInit(filepath.Join(dir, "none"), 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func mustSize(t *testing.T, name string) int64 {
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
