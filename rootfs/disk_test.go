package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fillScript writes until it can't, says why, gives it back, and does the same with files.
const fillScript = `
dd if=/dev/zero of=/full bs=64k 2>&1 | grep -o 'No space left on device\|Disk quota exceeded'
stat -c %s /full
rm /full; sync
mkdir /many; i=0; while [ $i -lt 3000 ] && true > /many/$i; do i=$((i+1)); done 2>/dev/null; echo $i
rm -r /many; echo again > /again && cat /again
`

// checkBounded fills a snapshot of 16 MiB from inside.
func checkBounded(t *testing.T, s *Store, img *Image) {
	t.Helper()
	for _, attach := range []bool{false, true} {
		s.attach.Store(attach)
		const id = "bounded"
		sn, err := s.Prepare(context.Background(), id, img, SnapshotOptions{HostUID: shift, HostGID: shift, Volatile: true, DiskBytes: 16 << 20})
		if err != nil {
			t.Fatal(err)
		}
		m, err := sn.Mount(context.Background(), userns(t), false)
		if err != nil {
			t.Fatal(err)
		}
		out := strings.Fields(strings.NewReplacer("No space left on device", "ENOSPC", "Disk quota exceeded", "EDQUOT").Replace(inside(t, m, fillScript)))
		t.Logf("old way %v, project %d: %v", attach, sn.Project, out)
		var size, files int
		if len(out) != 4 || out[3] != "again" || out[0] != "ENOSPC" && out[0] != "EDQUOT" {
			t.Errorf("inside: %q", out)
		} else if _, err := fmt.Sscan(out[1]+" "+out[2], &size, &files); err != nil || size < 12<<20 || size > 16<<20 || files < 500 || files > 1024 {
			t.Errorf("%d bytes and %d files fit into 16 MiB, %v", size, files, err)
		}
		used, err := sn.Usage(context.Background())
		if err != nil || used > 4<<20 {
			t.Errorf("after all was deleted it takes %d bytes, %v", used, err)
		}
		m.Close()
		if err := s.Release(context.Background(), id); err != nil {
			t.Fatal(err)
		}
		s.attach.Store(false)
	}
}

// loopsUnder lists loop devices whose files are in the store.
func loopsUnder(t *testing.T, s *Store) (found []string) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(text), s.root) {
			found = append(found, string(text))
		}
	}
	return found
}

// Without quotas a bounded layer lies in an image; nothing of it outlives mount and snapshot.
func TestDiskLimitByImage(t *testing.T) {
	s, img := storeWithBusybox(t)
	if quotas, err := projectQuotas(s.root); err != nil || quotas {
		t.Skipf("this file system has project quotas (%v): TestDiskLimitByQuota is for it", err)
	}
	checkBounded(t, s, img)
	for range 100 {
		if len(loopsUnder(t, s)) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("left: %v", loopsUnder(t, s))
}

// A mount that is closed and made anew finds what the first one wrote.
func TestDiskImageIsMountedOnce(t *testing.T) {
	s, img := storeWithBusybox(t)
	sn, err := s.Prepare(context.Background(), "twice", img, SnapshotOptions{DiskBytes: 32 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if !sn.OnImage {
		t.Error("root of the host's user namespace could leave a quota's project")
	}
	for n := range 5 {
		m, err := sn.Mount(context.Background(), nil, false)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(procPath(m), "count")
		got, err := os.ReadFile(path)
		if n > 0 && (err != nil || len(got) != n) {
			t.Errorf("after %d mounts: %q, %v", n, got, err)
		}
		if err := os.WriteFile(path, append(got, 'x'), 0o600); err != nil {
			t.Error(err)
		}
		m.Close()
	}
	var st unix.Statfs_t
	m, err := sn.Mount(context.Background(), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := unix.Fstatfs(int(m.Fd()), &st); err != nil || int64(st.Blocks)*st.Bsize > 32<<20 {
		t.Errorf("df inside: %d bytes, %v", int64(st.Blocks)*st.Bsize, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := sn.Mount(ctx, nil, false); err == nil {
		t.Error("mounted a second time beside the first")
	}
}

func TestDiskLimitRefusesNonsense(t *testing.T) {
	s, img := storeWithBusybox(t)
	for _, size := range []int64{-1, 1, MinDisk - 1, MaxDisk + 1} {
		if _, err := s.Prepare(context.Background(), "bad", img, SnapshotOptions{DiskBytes: size}); err == nil || !strings.Contains(err.Error(), "16 MiB") {
			t.Errorf("%d: %v", size, err)
		}
	}
	if _, err := s.Snapshot(context.Background(), "bad"); !errors.Is(err, ErrNotFound) {
		t.Errorf("left: %v", err)
	}
}

// Formatting happens once, and an image that nobody wants for days goes.
func TestDiskTemplates(t *testing.T) {
	s, img := storeWithBusybox(t)
	if _, err := s.Prepare(context.Background(), "first", img, SnapshotOptions{DiskBytes: 48 << 20}); err != nil {
		t.Fatal(err)
	}
	path := s.path("disks", fmt.Sprint(48<<20))
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(context.Background(), "second", img, SnapshotOptions{DiskBytes: 48 << 20}); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("formatted twice: %v", err)
	}
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(-2*templateAge)); err != nil {
		t.Fatal(err)
	}
	removed, err := s.Sweep(context.Background(), func(string) bool { return true })
	if err != nil || len(removed) != 1 || !strings.HasPrefix(removed[0], "disks/") {
		t.Errorf("swept %v, %v", removed, err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// On file systems with project quotas nothing is mounted. It needs a disk to format, so it runs in a guest (tests/vm).
func TestDiskLimitByQuota(t *testing.T) {
	disk := os.Getenv("LEARNOS_VM_DISK")
	if disk == "" {
		t.Skip("needs a kernel with quotas and a disk to format: tests/vm runs it in a guest")
	}
	at := t.TempDir()
	for name, c := range map[string]struct {
		mkfs   []string
		option string
	}{
		"ext4": {[]string{"mkfs.ext4", "-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota", disk}, "prjquota"},
		"xfs":  {[]string{"mkfs.xfs", "-q", "-f", disk}, "prjquota"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, module := range []string{"quota_v2", name} {
				if out, err := exec.Command("busybox", "modprobe", module).CombinedOutput(); err != nil {
					t.Logf("modprobe %s: %v: %s", module, err, out)
				}
			}
			if out, err := exec.Command(c.mkfs[0], c.mkfs[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", c.mkfs, err, out)
			}
			if err := unix.Mount(disk, at, name, 0, c.option); err != nil {
				t.Fatal(err)
			}
			defer unix.Unmount(at, unix.MNT_DETACH)
			s, img := storeWithBusyboxAt(t, filepath.Join(at, "store"))
			if quotas, err := projectQuotas(s.root); err != nil || !quotas {
				t.Fatalf("quotas are on: %v, %v", quotas, err)
			}
			checkBounded(t, s, img)
			if loops := loopsUnder(t, s); len(loops) > 0 {
				t.Errorf("images are mounted: %v", loops)
			}
		})
	}
}

func storeWithBusybox(t *testing.T) (*Store, *Image) {
	return storeWithBusyboxAt(t, filepath.Join(t.TempDir(), "store"))
}

func storeWithBusyboxAt(t *testing.T, root string) (*Store, *Image) {
	t.Helper()
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	img, err := s.Build(context.Background(), "busybox", BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s, img
}
