package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// shift is where the tests' environments have their ids.
const shift = 700_000

// userns returns a user namespace that maps the 65536 ids from shift on, kept alive by a sleeping child.
func userns(t testing.TB) *os.File {
	t.Helper()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: shift, Size: 65536}}
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, Pdeathsig: syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start a child in a user namespace: %v", err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// inside runs a shell script as root of a user namespace whose root file system is the mount. It returns its
// output.
func inside(t testing.TB, mount *os.File, script string) string {
	t.Helper()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: shift, Size: 65536}}
	// Not by its path, which lies in a directory that the shifted root may not enter.
	cmd := exec.Command("/proc/self/exe", "sh", "-c", script)
	cmd.Env = []string{helperEnv + "=enter", "PATH=/bin:/usr/bin:/sbin:/usr/sbin"}
	cmd.ExtraFiles = []*os.File{mount}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, Unshareflags: syscall.CLONE_NEWNS, UidMappings: ids, GidMappings: ids,
		GidMappingsEnableSetgroups: true, Pdeathsig: syscall.SIGKILL,
		Credential: &syscall.Credential{Uid: 0, Gid: 0},
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("inside: %v\n%s", err, out)
	}
	return string(out)
}

// helperEnv makes the test binary play another part than that of a test.
const helperEnv = "ROOTFS_TEST_HELPER"

func TestMain(m *testing.M) {
	switch os.Getenv(helperEnv) {
	case "":
		os.Exit(m.Run())
	case "enter":
		fmt.Println(enter(3, os.Args[1:]))
	case "pull":
		fmt.Println(helperPull(os.Args[1:]))
	}
	os.Exit(99)
}

// enter makes the detached mount the root and runs a program in it.
func enter(fd int, args []string) error {
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, "/mnt", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move mount: %w", err)
	}
	for _, dir := range []string{"/dev", "/proc"} {
		if err := unix.Mount(dir, "/mnt"+dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", dir, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Chdir("/mnt"); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	os.Unsetenv(helperEnv)
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return unix.Exec(path, args, os.Environ())
}

func testStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testSnapshot(t testing.TB, s *Store, id string, img *Image) *Snapshot {
	t.Helper()
	sn, err := s.Prepare(context.Background(), id, img, SnapshotOptions{HostUID: shift, HostGID: shift})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Release(context.Background(), id) })
	return sn
}

func mountTable(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// Both ways of mounting give an environment a root it owns: new kernels build it from detached mounts, older
// ones need a mount namespace to do it in.
func TestMountShowsRootItsOwnFiles(t *testing.T) {
	for _, attach := range []bool{false, true} {
		t.Run(fmt.Sprintf("attach=%v", attach), func(t *testing.T) {
			ctx := context.Background()
			s := testStore(t)
			s.attach.Store(attach)
			img, err := s.Build(ctx, "busybox", BuildOptions{})
			if err != nil {
				t.Fatal(err)
			}
			sn := testSnapshot(t, s, "env", img)
			m, err := sn.Mount(ctx, userns(t), false)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if s.attach.Load() != attach {
				t.Error("fell back to attaching although this kernel need not")
			}
			if strings.Contains(mountTable(t), s.root) {
				t.Error("the mount shows in the host's mount table")
			}
			got := inside(t, m, `
				stat -c '%u:%g %a %n' / /bin/busybox /tmp /root /etc/shadow /home/user
				echo hello > /root/new && echo more >> /etc/hosts && chown 1000:1000 /root/new
				mkdir /srv/d && mv /usr/share /usr/other && rm /etc/issue
				stat -c '%u:%g %n' /root/new /srv/d
			`)
			want := "0:0 755 /\n0:0 755 /bin/busybox\n0:0 1777 /tmp\n0:0 700 /root\n0:0 600 /etc/shadow\n1000:1000 755 /home/user\n" +
				"1000:1000 /root/new\n0:0 /srv/d\n"
			if got != want {
				t.Errorf("inside:\n%s\nwant:\n%s", got, want)
			}
			for name, uid := range map[string]uint32{"root/new": shift + 1000, "srv/d": shift, "etc/hosts": shift} {
				var st unix.Stat_t
				if err := unix.Lstat(s.path("snapshots/env/upper", name), &st); err != nil || st.Uid != uid {
					t.Errorf("on the host %s belongs to %d (%v), want %d", name, st.Uid, err, uid)
				}
			}
			if n, err := sn.Usage(ctx); err != nil || n <= 0 {
				t.Errorf("usage: %d, %v", n, err)
			}
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(s.layerFS(img.Layers[0]), "etc/issue"), &st); err != nil || st.Uid != 0 {
				t.Errorf("the layer changed: %v, owner %d", err, st.Uid)
			}

			ro, err := sn.Mount(ctx, userns(t), true)
			if err != nil {
				t.Fatal(err)
			}
			defer ro.Close()
			if got := inside(t, ro, "touch /x 2>&1; cat /etc/issue; [ -e /root/new ] || echo none"); !strings.Contains(got, "Read-only") || !strings.Contains(got, "BusyBox") || !strings.Contains(got, "none") {
				t.Errorf("read-only: %s", got)
			}
		})
	}
}

func TestMountWithoutUserNamespace(t *testing.T) {
	ctx := context.Background()
	s := testStore(t)
	img, err := s.Build(ctx, "busybox", BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sn, err := s.Prepare(ctx, "host", img, SnapshotOptions{Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // volatile ones can be mounted again, too
		m, err := sn.Mount(ctx, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Fstatat(int(m.Fd()), "etc/passwd", &st, 0); err != nil || st.Uid != 0 {
			t.Errorf("passwd: %v, owner %d", err, st.Uid)
		}
		m.Close()
	}
}

func TestSnapshotLifecycle(t *testing.T) {
	ctx := context.Background()
	s := testStore(t)
	img, err := s.Build(ctx, "busybox", BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	testSnapshot(t, s, "a", img)
	testSnapshot(t, s, "b", img)
	if _, err := s.Prepare(ctx, "a", img, SnapshotOptions{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second snapshot of the same id: %v", err)
	}
	for _, id := range []string{"", ".", "..", "a/b", "../x", ".x", strings.Repeat("x", 200)} {
		if _, err := s.Prepare(ctx, id, img, SnapshotOptions{}); err == nil {
			t.Errorf("id %q was accepted", id)
		}
		if err := s.Release(ctx, id); err == nil {
			t.Errorf("id %q was released", id)
		}
	}
	err = s.Remove(ctx, "busybox")
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "a, b") {
		t.Errorf("remove while in use: %v", err)
	}
	removed, err := s.Sweep(ctx, func(id string) bool { return id == "a" })
	if err != nil || len(removed) != 1 || removed[0] != "snapshots/b" {
		t.Errorf("sweep: %v, %v", removed, err)
	}
	if _, err := s.Snapshot(ctx, "b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("swept snapshot: %v", err)
	}
	if err := s.Release(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if err := s.Release(ctx, "a"); err != nil {
		t.Errorf("second release: %v", err)
	}
	if err := s.Remove(ctx, "busybox"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Image(ctx, "busybox"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed image: %v", err)
	}
	assertEmpty(t, s)
}

// assertEmpty checks that a store holds nothing but itself.
func assertEmpty(t testing.TB, s *Store) {
	t.Helper()
	for _, dir := range []string{"images", "layers", "snapshots", "partial", "tmp"} {
		names, err := listDir(s.path(dir))
		if err != nil || len(names) > 0 {
			t.Errorf("%s holds %v (%v)", dir, names, err)
		}
	}
}

func TestVolume(t *testing.T) {
	ctx := context.Background()
	src := t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "f"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	ns := userns(t)
	dir, err := Volume(ctx, src, ns, false)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), "f", &st, 0); err != nil || st.Uid != shift {
		t.Errorf("owner through the volume: %d, %v", st.Uid, err)
	}
	var vfs unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &vfs); err != nil || vfs.Flags&(unix.ST_NOSUID|unix.ST_NODEV) != unix.ST_NOSUID|unix.ST_NODEV {
		t.Errorf("flags %x, %v", vfs.Flags, err)
	}
	file, err := Volume(ctx, filepath.Join(src, "f"), ns, true)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := unix.Fstat(int(file.Fd()), &st); err != nil || st.Uid != shift || st.Mode&unix.S_IFMT != unix.S_IFREG {
		t.Errorf("file volume: %+v, %v", st, err)
	}
	if fd, err := unix.Open(procPath(file), unix.O_WRONLY, 0); err != unix.EROFS {
		unix.Close(fd)
		t.Errorf("write to a read-only volume: %v", err)
	}
	missing := filepath.Join(src, "missing")
	if _, err := Volume(ctx, missing, ns, false); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("missing volume: %v", err)
	}
	if _, err := Volume(ctx, "/proc/sys", ns, false); err == nil || !strings.Contains(err.Error(), "/proc/sys") {
		t.Errorf("volume on procfs: %v", err)
	}
}

func TestBusyboxRuns(t *testing.T) {
	ctx := context.Background()
	s := testStore(t)
	img, err := s.Build(ctx, "busybox", BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(img.Config.Cmd) != 1 || img.Config.Cmd[0] != "sh" {
		t.Errorf("command %v", img.Config.Cmd)
	}
	again, err := s.Build(ctx, "busybox", BuildOptions{Force: true})
	if err != nil || again.Digest != img.Digest {
		t.Errorf("a forced build gave %v (%v), want the same %s", again, err, img.Digest)
	}
	m, err := testSnapshot(t, s, "e", img).Mount(ctx, userns(t), false)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	out := inside(t, m, `. /etc/profile; echo "$PS1"; id -un; . /etc/os-release; echo $ID; ls / | tr '\n' ' '; [ -x /bin/vi ] && [ -x /usr/bin/awk ] && echo links; su user -c id`)
	for _, want := range []string{`\u@\h`, "root\n", "busybox\n", "bin dev etc home mnt opt proc root run sbin srv sys tmp usr var", "links", "uid=1000(user)"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing from:\n%s", want, out)
		}
	}
}

func TestBusyboxMustBeStatic(t *testing.T) {
	_, err := findBusybox([]string{"/bin/ls"})
	if err == nil || !strings.Contains(err.Error(), "apt-get install busybox-static") {
		t.Errorf("dynamic: %v", err)
	}
	_, err = findBusybox([]string{filepath.Join(t.TempDir(), "none")})
	if err == nil || !strings.Contains(err.Error(), "apt-get install busybox-static") {
		t.Errorf("missing: %v", err)
	}
	script := filepath.Join(t.TempDir(), "script")
	os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755)
	if _, err = findBusybox([]string{script}); err == nil {
		t.Error("a script passed for busybox")
	}
}

func BenchmarkPrepareMountRelease(b *testing.B) {
	ctx := context.Background()
	s := testStore(b)
	img, err := s.Build(ctx, "busybox", BuildOptions{})
	if err != nil {
		b.Fatal(err)
	}
	ns := userns(b)
	for b.Loop() {
		sn, err := s.Prepare(ctx, "bench", img, SnapshotOptions{HostUID: shift, HostGID: shift})
		if err != nil {
			b.Fatal(err)
		}
		m, err := sn.Mount(ctx, ns, false)
		if err != nil {
			b.Fatal(err)
		}
		m.Close()
		if err := s.Release(ctx, "bench"); err != nil {
			b.Fatal(err)
		}
	}
}

func helperPull(args []string) error {
	s, err := Open(args[0])
	if err != nil {
		return err
	}
	_, err = s.Pull(context.Background(), args[1], PullOptions{})
	return err
}

// The shell of the image finds our ping, and busybox still finds each of its applets: their table is sorted.
func TestBusyboxHidesItsPing(t *testing.T) {
	before := []byte("\x00pidof\x00ping\x00ping6\x00pivot_root\x00...")
	after := hidePing(before)
	if string(after) != "\x00pidof\x00pinf\x00pinf6\x00pivot_root\x00..." {
		t.Errorf("%q", after)
	}
	if names := strings.Split(strings.Trim(string(after), ".\x00"), "\x00"); !slices.IsSorted(names) || len(after) != len(before) {
		t.Errorf("%q", names)
	}
	for _, other := range []string{"", "\x00ping\x00", "\x00ping\x00ping6\x00\x00ping\x00ping6\x00", "ping: permission denied"} {
		if got := string(hidePing([]byte(other))); got != other {
			t.Errorf("%q became %q", other, got)
		}
	}
}
