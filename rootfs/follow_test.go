package rootfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestVolumeFollowsOnlyTrustedLinks(t *testing.T) {
	base := t.TempDir()
	bait := filepath.Join(base, "bait")
	link := func(dir string, mode os.FileMode, owner, linkOwner int) string {
		t.Helper()
		dir = filepath.Join(base, dir)
		name := filepath.Join(dir, "link")
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Symlink(bait, name), os.Lchown(name, linkOwner, linkOwner),
			os.Chown(dir, owner, owner), os.Chmod(dir, mode)); err != nil {
			t.Fatal(err)
		}
		return name
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(bait, "sub"), 0o755), os.WriteFile(filepath.Join(bait, "sub/f"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	roots := link("roots", 0o755, 0, 0)
	if err := errors.Join(os.Symlink("roots/link/sub/..", filepath.Join(base, "relative")), os.Symlink("loop", filepath.Join(base, "loop"))); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct{ src, why string }{
		"a directory":                    {bait, ""},
		"root's link":                    {roots, ""},
		"through root's link to a file":  {roots + "/sub/f", ""},
		"through a relative one":         {filepath.Join(base, "relative/sub"), ""},
		"a link in a directory for all":  {link("open", 0o777, 0, 0), "write to the directory"},
		"in a sticky one":                {link("sticky", 0o777|os.ModeSticky, 0, 0), "write to the directory"},
		"in one for a group":             {link("group", 0o775, 0, 0), "write to the directory"},
		"in a user's directory":          {link("users", 0o755, 1000, 0), "directory is user 1000's"},
		"a user's link":                  {link("mixed", 0o755, 0, 1000), "link is user 1000's"},
		"a way that leads through one":   {filepath.Join(base, "open/link/sub/f"), "open/link is a symbolic link"},
		"a process's root":               {"/proc/self/root" + bait, "procfs"},
		"a loop":                         {filepath.Join(base, "loop"), "too many levels"},
		"nothing":                        {filepath.Join(base, "nothing/at/all"), "does not exist"},
		"something beneath a plain file": {filepath.Join(bait, "sub/f/g"), "not a directory"},
	} {
		f, err := Volume(context.Background(), c.src, nil, true)
		if err == nil {
			f.Close()
		}
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v; want %q", what, err, c.why)
		}
	}
	// What a distribution links stays what it was.
	var direct, ours unix.Stat_t
	f, err := openTrusted("/var/run/../run")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(unix.Stat("/run", &direct), unix.Fstat(int(f.Fd()), &ours)); err != nil || direct.Ino != ours.Ino {
		t.Errorf("/var/run: inode %d, want %d; %v", ours.Ino, direct.Ino, err)
	}
}
