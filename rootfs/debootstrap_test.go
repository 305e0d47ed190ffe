package rootfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// The one real build of the test run: interrupted first, then whole, then used as an environment would.
func TestDebootstrap(t *testing.T) {
	s := testStore(t)

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	before := mountTable(t)
	_, err := s.Build(ctx, "debootstrap", BuildOptions{Progress: func(p Progress) {
		if strings.HasPrefix(p.Message, "Extracting") {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted build: %v", err)
	}
	assertEmpty(t, s)
	if after := mountTable(t); after != before {
		t.Errorf("mounts changed:\n%s\nwas\n%s", after, before)
	}

	ctx = context.Background()
	var reports, last int64
	img, err := s.Build(ctx, "debootstrap", BuildOptions{Progress: func(p Progress) {
		reports++
		if p.Done < last || p.Done > 100 {
			t.Errorf("progress went from %d to %d", last, p.Done)
		}
		last = p.Done
	}})
	if err != nil {
		t.Fatal(err)
	}
	if img.Name != "debootstrap:bookworm" || len(img.Layers) != 1 || reports < 100 || last != 100 {
		t.Errorf("image %+v after %d reports, %d%%", img, reports, last)
	}
	t.Logf("%d bytes", img.Size)
	var built atomic.Bool
	again, err := s.Ensure(ctx, "debootstrap:bookworm", PullOptions{Progress: func(Progress) { built.Store(true) }})
	if err != nil || again.Digest != img.Digest || built.Load() {
		t.Errorf("second build: %v, %v, built %v", again, err, built.Load())
	}

	root := s.layerFS(img.Layers[0])
	for _, pattern := range []string{"dev/*", "var/lib/apt/lists/*", "var/cache/apt/archives/*.deb", "debootstrap"} {
		if left, _ := filepath.Glob(filepath.Join(root, pattern)); len(left) > 0 {
			t.Errorf("left over: %v", left)
		}
	}
	sn, err := s.Prepare(ctx, "deb", img, SnapshotOptions{HostUID: shift, HostGID: shift, Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Release(ctx, "deb")
	m, err := sn.Mount(ctx, userns(t), false)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, name := range []string{"resolv.conf", "hosts"} { // the runtime's part
		data, err := os.ReadFile(filepath.Join("/etc", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.path("snapshots/deb/upper"), "host-"+name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := inside(t, m, `set -e
		cat /host-resolv.conf > /etc/resolv.conf; cat /host-hosts > /etc/hosts
		apt-get update 2>&1; apt-get install -y hello 2>&1; hello; apt-get check; id _apt; find / -xdev -nouser -o -xdev -nogroup | head`)
	if !strings.Contains(out, "Hello, world!") {
		t.Errorf("apt-get install hello:\n%s", out)
	}
	for _, bad := range []string{"unsandboxed", "W: ", "E: ", "denied"} {
		if strings.Contains(out, bad) {
			t.Errorf("apt complains: %q in\n%s", bad, out)
		}
	}
}

func TestDebootstrapSaysWhatIsWrong(t *testing.T) {
	s := testStore(t)
	ctx := context.Background()
	for kind, want := range map[string]string{
		"debootstrap:nosuchsuite": "knows no suite",
		"debootstrap:../../etc":   "no Debian suite",
		"slackware":               "busybox and debootstrap",
	} {
		if _, err := s.Build(ctx, kind, BuildOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", kind, err, want)
		}
	}
	_, err := s.Build(ctx, "debootstrap", BuildOptions{Mirror: "http://127.0.0.1:1/debian"})
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("mirror that is not there: %v", err)
	}
	if _, err := s.Build(ctx, "debootstrap", BuildOptions{Mirror: "--help"}); err == nil || !strings.Contains(err.Error(), "no http") {
		t.Errorf("mirror that is an option: %v", err)
	}
	assertEmpty(t, s)
}

func TestDebootstrapProgress(t *testing.T) {
	var p debootstrapProgress
	last := int64(0)
	feed := func(line string) int64 {
		percent, _, ok := p.line(line)
		if ok && percent < last {
			t.Errorf("%q went back from %d to %d", line, last, percent)
		}
		if ok {
			last = percent
		}
		return percent
	}
	feed("I: Target architecture can be executed")
	for range 300 {
		feed("I: Retrieving foo 1.0")
		feed("I: Validating foo 1.0")
	}
	for _, word := range []string{"Extracting", "Unpacking", "Configuring"} {
		for range 300 {
			feed("I: " + word + " foo...")
		}
	}
	if got := feed("I: Base system installed successfully."); got != 94 {
		t.Errorf("at the end %d%%", got)
	}
	feed("E: Couldn't download foo")
	feed("W: whatever")
	if len(p.errors) != 1 {
		t.Errorf("errors: %q", p.errors)
	}
}

func TestHostMirror(t *testing.T) {
	dir := t.TempDir()
	if got := hostMirror(dir); got != debianMirror {
		t.Errorf("without sources: %s", got)
	}
	os.Mkdir(filepath.Join(dir, "sources.list.d"), 0o755)
	os.WriteFile(filepath.Join(dir, "sources.list.d/debian.sources"), []byte("Types: deb\n# URIs: http://no/debian\nURIs: http://mirror.example/debian/\n"), 0o644)
	if got := hostMirror(dir); got != "http://mirror.example/debian" {
		t.Errorf("deb822: %s", got)
	}
	os.WriteFile(filepath.Join(dir, "sources.list"), []byte("deb [signed-by=/x] https://other.example/debian bookworm main\n"), 0o644)
	if got := hostMirror(dir); got != "https://other.example/debian" {
		t.Errorf("one line: %s", got)
	}
}
