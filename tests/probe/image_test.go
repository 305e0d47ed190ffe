package probe

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tree makes a root file system with a busybox in a directory that only this test has, and returns its path.
func tree(t *testing.T, change func(dir string)) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "fs")
	for _, d := range []string{"bin", "etc", "tmp", "proc", "sys", "dev"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	body, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), body, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "ls", "readlink", "pwd", "id", "sleep", "stat", "echo", "true", "grep"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	change(dir)
	return dir
}

// replace puts a symlink where something was.
func replace(t *testing.T, dir, name, to string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

// fingerprint is what a directory of the host holds: names, modes, sizes, times, contents of what is small.
func fingerprint(t *testing.T, dir string) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(h, path, info.Mode(), info.Size(), info.ModTime())
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			h.Write(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// TestProbeImages: images whose own files are links to the host's, to descriptors, or to nowhere. Either the environment is
// refused, or it runs with real masks and mounts; the host's files stay as they are.
func TestProbeImages(t *testing.T) {
	bait := t.TempDir() // what the links point at, as a path of the host
	for _, name := range []string{"hosts", "hostname", "resolv.conf", "null", "console", "passwd"} {
		if err := os.WriteFile(filepath.Join(bait, name), []byte("bait\n"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(bait, "dir"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(bait, 0o777); err != nil {
		t.Fatal(err)
	}
	before := fingerprint(t, bait)
	up := strings.Repeat("../", 40)
	type link struct{ name, to string }
	var cases []link
	for _, name := range []string{"proc", "sys", "dev", "etc"} {
		for _, to := range []string{bait + "/dir", up + bait[1:] + "/dir", "/proc/self/fd/3", "/proc/self/fd/7", "/proc/1/root", "/nowhere", "/tmp", name, "/proc/self/cwd"} {
			cases = append(cases, link{name, to})
		}
	}
	for _, name := range []string{"etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/passwd"} {
		base := filepath.Base(name)
		for _, to := range []string{bait + "/" + base, up + bait[1:] + "/" + base, "/proc/self/fd/3", "/proc/sys/kernel/core_pattern", "/nowhere", bait + "/new-" + base, "/dev/ptmx"} {
			cases = append(cases, link{name, to})
		}
	}
	for _, name := range []string{"dev/null", "dev/console", "dev/pts", "dev/shm", "dev/mqueue", "sys/fs/cgroup", "proc/sys", "proc/kcore", "proc/self/attr"} {
		for _, to := range []string{bait + "/null", bait + "/dir", "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/nowhere"} {
			cases = append(cases, link{name, to})
		}
	}
	flagsOf := map[string][]string{"auto": nil, "host": {"--userns", "host"}}
	for i, c := range cases {
		dir := tree(t, func(dir string) { replace(t, dir, c.name, c.to) })
		image := fmt.Sprintf("hostile-%d", i)
		if r := try(t, "image", "pull", "--name", image, "dir:"+dir); r.code != 0 {
			t.Logf("%s -> %s: image refused: %s", c.name, c.to, strings.TrimSpace(r.err))
			continue
		}
		for mode, flags := range flagsOf {
			args := append(append([]string{"run", "--rm", "--net", "none"}, flags...), image, "/bin/sh", "-c",
				// Everything that must be what it seems: file systems' types by their own words, masks by their emptiness.
				`set -e
				grep -q ' /proc proc ' /proc/self/mounts; grep -q ' /sys sysfs ro' /proc/self/mounts; grep -q ' /dev tmpfs ' /proc/self/mounts
				grep -q ' /dev/pts devpts ' /proc/self/mounts; grep -q ' /proc/sys proc ro' /proc/self/mounts
				test -c /dev/null; test "$(stat -c %t:%T /dev/null)" = 1:3; test ! -L /dev/null
				test ! -s /proc/keys; test "$(cat /proc/timer_list)" = ""; test -z "$(ls /sys/firmware)"
				if (echo x > /proc/sys/kernel/core_pattern) 2>/dev/null; then exit 9; fi
				if (: > /proc/sysrq-trigger) 2>/dev/null; then exit 9; fi
				test "$(readlink /proc/self/root)" = /
				if ls /../../..`+bait+` >/dev/null 2>&1; then exit 8; fi
				echo sound`)
			r := try(t, args...)
			switch {
			case r.code == 0 && strings.TrimSpace(r.out) == "sound":
			case r.code == 125 || r.code == 126 || r.code == 127:
				if !strings.Contains(r.err, "nodeagent:") {
					t.Errorf("%s -> %s (%s): no word why: %q", c.name, c.to, mode, r.err)
				}
			default:
				t.Errorf("%s -> %s (%s): status %d: %s%s", c.name, c.to, mode, r.code, r.out, r.err)
			}
			if now := fingerprint(t, bait); now != before {
				t.Fatalf("%s -> %s (%s): the host's files were changed", c.name, c.to, mode)
			}
		}
		must(t, "image", "rm", image)
	}
	if b, err := os.ReadFile("/proc/sys/kernel/core_pattern"); err != nil || strings.HasPrefix(string(b), "x") {
		t.Errorf("core_pattern is %q: %v", b, err)
	}
	t.Logf("%d hostile images in two ways", len(cases))
}

// TestProbeWorkdir: a working directory that is, or leads to, somebody's descriptor (CVE-2024-21626).
func TestProbeWorkdir(t *testing.T) {
	dir := tree(t, func(dir string) {
		for n := range 20 {
			replace(t, dir, fmt.Sprintf("link%d", n), fmt.Sprintf("/proc/self/fd/%d", n))
		}
		replace(t, dir, "root", "/proc/1/root")
		replace(t, dir, "cwd", "/proc/self/cwd")
		replace(t, dir, "task", "/proc/thread-self/root")
	})
	must(t, "image", "pull", "--name", "workdir", "dir:"+dir)
	var cwds []string
	for n := range 20 {
		cwds = append(cwds, fmt.Sprintf("/proc/self/fd/%d", n), fmt.Sprintf("/link%d", n), fmt.Sprintf("/link%d/..", n))
	}
	cwds = append(cwds, "/root", "/cwd", "/task", "/proc/1/cwd", "/proc/self/root", "/proc/thread-self/cwd", "/root/../../..")
	inside := func(r result, what string) {
		t.Helper()
		out := strings.TrimSpace(r.out)
		if r.code == 0 && (!strings.HasPrefix(out, "/") || strings.HasPrefix(out, "(unreachable)")) {
			t.Errorf("%s: a working directory outside: %q", what, out)
		}
		if r.code == 0 && out != "/" && !strings.HasPrefix(out, "/proc") && out != "/root" && out != "/cwd" {
			t.Errorf("%s: %q", what, out)
		}
	}
	id := must(t, "run", "-d", "--net", "none", "workdir", "/bin/sleep", "600")
	defer must(t, "rm", "-f", id)
	for _, cwd := range cwds {
		inside(try(t, "run", "--rm", "--net", "none", "-w", cwd, "workdir", "/bin/sh", "-c", "/bin/readlink /proc/self/cwd"), "run -w "+cwd)
		inside(try(t, "exec", "-w", cwd, id, "/bin/sh", "-c", "/bin/readlink /proc/self/cwd"), "exec -w "+cwd)
	}
	// The same as the image's own wish: an OCI layout whose WorkingDir is a descriptor.
	layout := layoutWith(t, map[string]any{"Cmd": []string{"/bin/sh", "-c", "/bin/readlink /proc/self/cwd"}, "WorkingDir": "/proc/self/fd/7"}, dir)
	must(t, "image", "pull", "--name", "workdir-own", "oci:"+layout)
	inside(try(t, "run", "--rm", "--net", "none", "workdir-own"), "WORKDIR /proc/self/fd/7")
}

// layoutWith writes an OCI image layout of one layer, a directory, with a configuration.
func layoutWith(t *testing.T, config map[string]any, dir string) string {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return writeLayout(t, config, layer.Bytes())
}

func writeLayout(t *testing.T, config map[string]any, layer []byte) string {
	t.Helper()
	out := t.TempDir()
	blobs := filepath.Join(out, "blobs/sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		t.Fatal(err)
	}
	put := func(b []byte) (string, int) {
		sum := sha256.Sum256(b)
		name := hex.EncodeToString(sum[:])
		if err := os.WriteFile(filepath.Join(blobs, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
		return "sha256:" + name, len(b)
	}
	text := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	layerDigest, layerSize := put(layer)
	configDigest, configSize := put(text(map[string]any{"architecture": "amd64", "os": "linux", "config": config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layerDigest}}}))
	manifestDigest, manifestSize := put(text(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": configDigest, "size": configSize},
		"layers": []any{map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layerDigest, "size": layerSize}}}))
	for name, v := range map[string]any{"oci-layout": map[string]any{"imageLayoutVersion": "1.0.0"},
		"index.json": map[string]any{"schemaVersion": 2, "manifests": []any{map[string]any{"mediaType": "application/vnd.oci.image.manifest.v1+json",
			"digest": manifestDigest, "size": manifestSize, "platform": map[string]any{"architecture": "amd64", "os": "linux"}}}}} {
		if err := os.WriteFile(filepath.Join(out, name), text(v), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestProbeLayers: layers that name, link to, or hide what is not theirs are refused, or stay inside.
func TestProbeLayers(t *testing.T) {
	bait := t.TempDir()
	if err := os.WriteFile(filepath.Join(bait, "file"), []byte("bait\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := fingerprint(t, bait)
	type header = tar.Header
	for name, entries := range map[string][]*header{
		"a name above the root":       {{Name: "../../../../../../../.." + bait + "/new", Typeflag: tar.TypeReg, Mode: 0o644}},
		"an absolute name":            {{Name: bait + "/new", Typeflag: tar.TypeReg, Mode: 0o644}},
		"through a symlink":           {{Name: "out", Typeflag: tar.TypeSymlink, Linkname: bait}, {Name: "out/new", Typeflag: tar.TypeReg, Mode: 0o644}},
		"through a relative symlink":  {{Name: "out", Typeflag: tar.TypeSymlink, Linkname: "../../../../../../../../.." + bait}, {Name: "out/new", Typeflag: tar.TypeReg, Mode: 0o644}},
		"a hard link to the host":     {{Name: "stolen", Typeflag: tar.TypeLink, Linkname: bait + "/file"}},
		"a hard link above the root":  {{Name: "stolen", Typeflag: tar.TypeLink, Linkname: "../../../../../../../../.." + bait + "/file"}},
		"a hard link by a symlink":    {{Name: "out", Typeflag: tar.TypeSymlink, Linkname: bait}, {Name: "stolen", Typeflag: tar.TypeLink, Linkname: "out/file"}},
		"a whiteout by a symlink":     {{Name: "out", Typeflag: tar.TypeSymlink, Linkname: bait}, {Name: "out/.wh.file", Typeflag: tar.TypeReg}},
		"a whiteout above the root":   {{Name: "../../../../../../../.." + bait + "/.wh.file", Typeflag: tar.TypeReg}},
		"a whiteout of the directory": {{Name: "a/.wh...", Typeflag: tar.TypeReg}},
		"a block device":              {{Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8, Mode: 0o666}},
		"a character device":          {{Name: "mem", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1, Mode: 0o666}},
		"a forged overlay mark":       {{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": bait}}},
		"a mode through a symlink":    {{Name: "out", Typeflag: tar.TypeSymlink, Linkname: bait}, {Name: "out", Typeflag: tar.TypeDir, Mode: 0o777}},
	} {
		var layer bytes.Buffer
		w := tar.NewWriter(&layer)
		for _, h := range entries {
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		image := "layer-" + strings.ReplaceAll(name, " ", "-")
		r := try(t, "image", "pull", "--name", image, "oci:"+writeLayout(t, nil, layer.Bytes()))
		if r.code == 0 {
			_ = filepath.WalkDir(root+"/layers", func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.Type()&fs.ModeDevice != 0 {
					var st unix.Stat_t
					if unix.Lstat(path, &st) == nil && st.Rdev != 0 {
						t.Errorf("%s: a device in the store: %s", name, path)
					}
				}
				if err == nil && d.Name() == "stolen" {
					if b, _ := os.ReadFile(path); string(b) == "bait\n" {
						t.Errorf("%s: the host's file is in a layer", name)
					}
				}
				value := make([]byte, 256)
				if n, err := unix.Lgetxattr(path, "trusted.overlay.redirect", value); err == nil {
					t.Errorf("%s: a layer says %q to overlayfs", name, value[:n])
				}
				return nil
			})
			must(t, "image", "rm", image)
		}
		if now := fingerprint(t, bait); now != before {
			t.Fatalf("%s: the host's files were changed", name)
		}
	}
}

// TestProbeUsers: odd users are refused, not guessed (CVE-2026-30892).
func TestProbeUsers(t *testing.T) {
	id := machine(t)
	for _, user := range []string{"-1", "4294967295", "4294967296", "18446744073709551616", "1000:", ":", ":0", "0x0", "00:-1", "+0", " 0", "0 ", "root ",
		"1000:4294967295", "nobody:nogroup:0", "root:x", "../root", "root\n0", "٣", "1e3", "70000", "0:70000"} {
		for _, args := range [][]string{{"run", "--rm", "--net", "none", "-u", user, "busybox", "id"}, {"exec", "-u", user, id, "id"}} {
			if r := try(t, args...); r.code == 0 {
				t.Errorf("%q: %s", args, r.out)
			}
		}
	}
	for user, want := range map[string]string{"1000": "uid=1000 gid=0", "1000:1000": "uid=1000 gid=1000", "0": "uid=0", "nobody": "uid=65534"} {
		out := must(t, "exec", "-u", user, id, "id")
		if strings.Contains(strings.ReplaceAll(out, "(root)", ""), want) || strings.HasPrefix(out, strings.Fields(want)[0]) {
			continue
		}
		t.Errorf("-u %s: %s, want %s", user, out, want)
	}
	// Whatever the number, its capabilities are none unless it is 0.
	if out := must(t, "exec", "-u", "00", id, "id", "-u"); out != "0" {
		t.Errorf("-u 00: %s", out)
	}
}

// TestProbeVolumes: what a shared directory of the host lets an environment do to the host, and to the next one.
func TestProbeVolumes(t *testing.T) {
	shared := t.TempDir()
	if err := os.Chmod(shared, 0o777); err != nil {
		t.Fatal(err)
	}
	bait := t.TempDir()
	if err := os.WriteFile(filepath.Join(bait, "secret"), []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	before := fingerprint(t, bait)
	t.Run("symlinks lead nowhere", func(t *testing.T) {
		for _, flags := range [][]string{nil, {"--userns", "host"}} {
			args := append(append([]string{"run", "--rm", "--net", "none", "-v", shared + ":/shared"}, flags...), "busybox", "sh", "-c",
				"ln -sfn "+bait+" /shared/link; ln -sfn / /shared/root; ln -sfn /proc/1/root /shared/init; cat /shared/link/secret /shared/root"+bait+"/secret /shared/init"+bait+"/secret")
			if r := try(t, args...); strings.Contains(r.out, secret) {
				t.Errorf("%v: it reads the host's file", flags)
			}
		}
	})
	t.Run("mount targets in a shared volume", func(t *testing.T) {
		// While one environment swaps a directory for a symlink, others are made with a mount below it (CVE-2021-30465).
		swapper := must(t, "run", "-d", "--net", "none", "-v", shared+":/shared", "busybox", "sh", "-c",
			"cd /shared; mkdir -p a; while :; do mv a b; ln -sfn "+strings.Repeat("../", 30)+bait[1:]+" a; rm a; mv b a; ln -sfn / c; done")
		defer must(t, "rm", "-f", swapper)
		made := 0
		for i := range 40 {
			r := try(t, "run", "--rm", "--net", "none", "-v", shared+":/shared", "-v", inside+fmt.Sprintf(":/shared/a/target%d", i), "busybox", "sh", "-c",
				fmt.Sprintf("cat /shared/a/secret /shared/c%s/secret 2>/dev/null; ls -d /shared/a/target%d", bait, i))
			if strings.Contains(r.out, secret) {
				t.Fatal("a mount below a swapped directory shows the host's file")
			}
			if r.code == 0 {
				made++
			}
			if now := fingerprint(t, bait); now != before {
				t.Fatal("a mount target was made on the host")
			}
		}
		t.Logf("%d of 40 were made, the others refused", made)
	})
	t.Run("no mount of the host's table", func(t *testing.T) {
		table, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(table), root) || strings.Contains(string(table), shared) {
			t.Error("an environment's mounts are in the host's table")
		}
	})
	t.Run("devices and set-uid files", func(t *testing.T) {
		_ = try(t, "run", "--rm", "--net", "none", "-v", shared+":/shared", "busybox", "sh", "-c",
			"cp /bin/busybox /shared/busybox-suid; chmod 4755 /shared/busybox-suid; mknod /shared/disk b 8 0; chmod 666 /shared/disk")
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(shared, "disk"), &st); err == nil {
			t.Errorf("an environment made a device node in a directory of the host: %o", st.Mode)
		}
		if err := unix.Lstat(filepath.Join(shared, "busybox-suid"), &st); err == nil && st.Mode&unix.S_ISUID != 0 && st.Uid == 0 {
			// What root writes into -v is root's, as with every engine; docs/security.md says so. A user of the host who
			// can reach the directory could run it: so it must not be reachable.
			t.Logf("a set-uid file of root (%o) is in the volume: keep its directory closed to users of the host", st.Mode)
		}
		// Inside, it is worth nothing.
		if out := must(t, "run", "--rm", "--net", "none", "-u", "1000:1000", "-v", shared+":/shared", "busybox", "sh", "-c", "/shared/busybox-suid id -u; /shared/busybox-suid grep CapEff /proc/self/status"); !strings.HasPrefix(out, "1000") || !strings.Contains(out, "0000000000000000") {
			t.Errorf("a set-uid file works inside: %s", out)
		}
	})
	t.Run("devices with the host's users", func(t *testing.T) {
		_ = try(t, "run", "--rm", "--net", "none", "--userns", "host", "-v", shared+":/shared", "busybox", "sh", "-c", "mknod /shared/disk2 b 8 0; chmod 666 /shared/disk2")
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(shared, "disk2"), &st); err == nil {
			t.Errorf("with --userns host an environment left the node of a disk in a directory of the host (%o, %d:%d): any user of the host who "+
				"reaches it opens the disk", st.Mode, unix.Major(st.Rdev), unix.Minor(st.Rdev))
			_ = os.Remove(filepath.Join(shared, "disk2"))
		}
	})
	t.Run("a source that a tenant made", func(t *testing.T) {
		// The operator mounts a directory of a volume that tenants write to; one of them has put a symlink there.
		if err := os.Symlink(bait, filepath.Join(shared, "mine")); err != nil {
			t.Fatal(err)
		}
		r := try(t, "run", "--rm", "--net", "none", "-v", filepath.Join(shared, "mine")+":/mine", "busybox", "cat", "/mine/secret")
		hole(t, "a source that a tenant made", strings.Contains(r.out, secret), "-v follows a symlink that a tenant made: it mounted "+bait)
	})
	if now := fingerprint(t, bait); now != before {
		t.Error("the host's files were changed")
	}
}

// TestProbePasswd: a user database that is a device, a pipe or a file of the kernel's is no database, and nobody hangs on it.
func TestProbePasswd(t *testing.T) {
	id := machine(t)
	must(t, "exec", id, "sh", "-c", "rm -f /etc/passwd; mkfifo /fifo")
	for _, to := range []string{"/proc/kmsg", "/dev/ptmx", "/dev/full", "/dev/zero", "/dev/tty", "/proc/self/fd/0", "/proc/1/mem", "/fifo", "/etc", "/etc/passwd", "/sys/kernel/notes"} {
		must(t, "exec", id, "ln", "-sfn", to, "/etc/passwd")
		begin := time.Now()
		if r := try(t, "exec", "-u", "nobody", id, "id"); r.code == 0 {
			t.Errorf("/etc/passwd is %s: a user out of a file that is none: %s", to, r.out)
		}
		if time.Since(begin) > 15*time.Second {
			t.Errorf("/etc/passwd is %s: the agent hung on it", to)
		}
	}
}

// TestProbeControlSocket: no path, and no descriptor, leads from inside to the socket that init listens on; and whoever
// reaches it from outside with garbage does init no harm.
func TestProbeControlSocket(t *testing.T) {
	id := machine(t)
	socket := filepath.Join(state, id, "ctl")
	dial := func() (net.Conn, error) {
		dir, err := os.Open(filepath.Dir(socket)) // an address holds 107 bytes only
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		return net.Dial("unixpacket", fmt.Sprintf("/proc/self/fd/%d/ctl", dir.Fd()))
	}
	c, err := dial()
	if err != nil {
		t.Fatalf("the host does not reach the socket: this test proves nothing: %v", err)
	}
	c.Close()
	// Even sharing the host's network namespace, where /proc/net/unix tells its name, and the host's users.
	for _, flags := range [][]string{nil, {"--net", "host"}, {"--net", "host", "--userns", "host"}} {
		args := append(append([]string{"run", "--rm"}, volume()...), flags...)
		if out := must(t, append(args, "busybox", "/inside", "dial", "unixpacket,"+socket, "unix,"+socket, "unixpacket,/proc/1/root"+socket)...); strings.Contains(out, "reached") {
			t.Errorf("%v: it reaches init's socket: %s", flags, out)
		}
	}
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	garbage := make([]byte, 48<<10)
	for i := range 600 {
		c, err := dial()
		if err != nil {
			break // its queue is full: so be it
		}
		held = append(held, c)
		_, _ = rand.Read(garbage)
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = c.Write(garbage[:1+i*79%len(garbage)])
		if i%3 == 0 {
			_, _ = c.Write([]byte{0}) // "the body is in a descriptor", of which there is none
		}
	}
	if out := must(t, "exec", id, "echo", "alive"); out != "alive" {
		t.Errorf("after garbage: %q", out)
	}
}

// TestProbeRootIsClosed: no user of the host reaches what environments write, set-uid files among it.
func TestProbeRootIsClosed(t *testing.T) {
	info, err := os.Stat(root)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the node's root is %v: %v", info.Mode(), err)
	}
	id := machine(t)
	must(t, "exec", id, "sh", "-c", "cp /bin/busybox /suid; chmod 6755 /suid")
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(root, "snapshots", id, "upper/suid"), &st); err != nil || st.Uid == 0 || st.Gid == 0 {
		t.Errorf("what root writes inside is %d:%d outside: %v", st.Uid, st.Gid, err)
	}
}
