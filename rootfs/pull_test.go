package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sampleImage is the tree of sampleTree as three layers: one with too much, one that takes it away again, and
// an empty one.
func sampleImage(t testing.TB, tree string) *testImage {
	t.Helper()
	extra := t.TempDir()
	if out, err := exec.Command("cp", "-a", tree+"/.", extra).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v %s", err, out)
	}
	for _, name := range []string{"etc/gone", "opaque/gone1", "opaque/kept/gone2", "gone/dir/f", "long/gone"} {
		os.MkdirAll(filepath.Dir(filepath.Join(extra, name)), 0o755)
		if err := os.WriteFile(filepath.Join(extra, name), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// What may not come through: devices, and marks that only overlayfs may set.
	if err := unix.Mknod(filepath.Join(extra, "etc/forged"), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(extra, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	for name, attr := range map[string]string{"etc": "trusted.overlay.opaque", "bin/prog": "trusted.overlay.metacopy", "home": "trusted.overlay.redirect", "var": "trusted.other"} {
		if err := unix.Setxattr(filepath.Join(extra, name), attr, []byte("y"), 0); err != nil {
			t.Fatal(err)
		}
	}
	// Changed directories would keep the wrong times; the second layer brings the right ones back.
	whole := gnuTar(t, tree)
	var again bytes.Buffer
	tw := tar.NewWriter(&again)
	for _, name := range []string{"opaque/.wh..wh..opq", "etc/.wh.gone", ".wh.gone", "long/.wh.gone", "etc/.wh.neverwas"} {
		tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644})
	}
	tr := tar.NewReader(bytes.NewReader(whole))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(h.Name, "./")
		dir := h.Typeflag == tar.TypeDir
		if !dir && !strings.HasPrefix(name, "opaque/") {
			continue
		}
		h.Format = tar.FormatPAX // else times lose their fractions
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(tw, tr); err != nil {
			t.Fatal(err)
		}
	}
	tw.Close()
	return makeImage(
		testLayer{tar: makeTar(t, nil, tar.Header{Name: ".wh.ghost"}, tar.Header{Name: "etc/.wh.ghost"})},
		testLayer{tar: gnuTar(t, extra), press: gz},
		testLayer{tar: again.Bytes(), press: zst, kind: ociZstd},
		testLayer{tar: emptyTar(), press: gz},
		testLayer{tar: again.Bytes(), press: nil, kind: ociLayer},
	)
}

func TestAllSourcesGiveTheSameTree(t *testing.T) {
	ctx := context.Background()
	tree := t.TempDir()
	sampleTree(t, tree)
	want := dropRootTime(treeLines(t, tree))
	img := sampleImage(t, tree)
	archive := writeArchive(t, img)
	packed, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(archive+".gz", gz(packed), 0o644); err != nil {
		t.Fatal(err)
	}
	layout := writeLayout(t, img)
	ociArchive := filepath.Join(t.TempDir(), "oci.tar")
	if err := os.WriteFile(ociArchive, gnuTar(t, layout), 0o644); err != nil {
		t.Fatal(err)
	}
	for kind, ref := range map[string]string{
		"registry":        startRegistry(t, nil).push(t, "team/app", img),
		"layout":          "oci:" + layout,
		"layout, tag":     "oci:" + layout + ":v1",
		"archive":         "docker-archive:" + archive,
		"archive, gzip":   "docker-archive:" + archive + ".gz",
		"archive, layout": "docker-archive:" + ociArchive,
		"directory":       "dir:" + tree,
	} {
		t.Run(kind, func(t *testing.T) {
			s := testStore(t)
			var done atomic.Int32
			got, err := s.Pull(ctx, ref, PullOptions{Name: "it", Insecure: true, Progress: func(p Progress) {
				if p.Phase == PhaseDone && p.Layer == "" {
					done.Add(1)
				}
			}})
			if err != nil {
				t.Fatal(err)
			}
			if done.Load() != 1 {
				t.Errorf("%d reports of the end", done.Load())
			}
			for _, readOnly := range []bool{false, true} {
				sameLines(t, fmt.Sprintf("%s, read-only %v", kind, readOnly), mountedTree(t, s, got, readOnly), want)
			}
			if kind != "directory" && (got.Config.Cmd[0] != "serve" || got.Config.User != "1000" || got.Config.ExposedPorts[0] != "80/tcp" || got.Config.Labels["k"] != "v") {
				t.Errorf("configuration %+v", got.Config)
			}
			if names, _ := listDir(s.path("tmp")); len(names) > 0 {
				t.Errorf("left in tmp: %v", names)
			}
			if names, _ := listDir(s.path("partial")); len(names) > 0 {
				t.Errorf("left in partial: %v", names)
			}
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(s.layerFS(got.Layers[max(0, len(got.Layers)-2)]), "sparse"), &st); err == nil && st.Blocks*512 > 1<<20 {
				t.Errorf("the sparse file takes %d bytes", st.Blocks*512)
			}
			if err := s.Remove(ctx, "it"); err != nil {
				t.Fatal(err)
			}
			assertEmpty(t, s)
		})
	}
}

// File capabilities must still work after the ids have been shifted: a program sees them as its own.
func TestFileCapabilitiesThroughShiftedIds(t *testing.T) {
	ctx := context.Background()
	s := testStore(t)
	box, err := s.Build(ctx, "busybox", BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	src := t.TempDir()
	if out, err := exec.Command("cp", "-a", s.layerFS(box.Layers[0])+"/.", src).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v %s", err, out)
	}
	raw := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	if err := unix.Setxattr(filepath.Join(src, "bin/busybox"), "security.capability", []byte(raw), 0); err != nil {
		t.Fatal(err)
	}
	img, err := s.Pull(ctx, "dir:"+src, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := testSnapshot(t, s, "cap", img).Mount(ctx, userns(t), false)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	v := make([]byte, 64)
	n, err := unix.Getxattr(procPath(m)+"/bin/busybox", "security.capability", v)
	if err != nil || n != 24 || v[20] != byte(shift&0xff) || v[21] != byte(shift>>8&0xff) || v[22] != byte(shift>>16) {
		t.Errorf("seen from the host: %x, %v; want a capability of namespace root %d", v[:max(n, 0)], err, shift)
	}
}

func TestPullRefusesWhatIsWrong(t *testing.T) {
	ctx := context.Background()
	good := makeTar(t, map[string]string{"ok": "fine"}, tar.Header{Name: "ok"})
	hard := func(name, target string) []byte {
		return makeTar(t, nil, tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target})
	}
	for name, c := range map[string]struct {
		layer []byte
		want  string
	}{
		"dotdot":              {makeTar(t, nil, tar.Header{Name: "../evil"}), `".."`},
		"dotdot inside":       {makeTar(t, nil, tar.Header{Name: "a/../../evil"}), `".."`},
		"absolute":            {makeTar(t, nil, tar.Header{Name: "/evil"}), "absolute"},
		"absolute symlink":    {makeTar(t, nil, tar.Header{Name: "s", Typeflag: tar.TypeSymlink, Linkname: "/"}, tar.Header{Name: "s/evil"}), "symbolic link"},
		"climbing symlink":    {makeTar(t, nil, tar.Header{Name: "s", Typeflag: tar.TypeSymlink, Linkname: "../../../.."}, tar.Header{Name: "s/evil"}), "symbolic link"},
		"symlink chain":       {makeTar(t, nil, tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: ".."}, tar.Header{Name: "b", Typeflag: tar.TypeSymlink, Linkname: "a/.."}, tar.Header{Name: "b/evil"}), "symbolic link"},
		"hard link out":       {hard("l", "../evil"), `".."`},
		"hard link absolute":  {hard("l", "/etc/shadow"), "absolute"},
		"hard link missing":   {hard("l", "nothing"), "not a file in this layer"},
		"hard link symlinked": {makeTar(t, nil, tar.Header{Name: "s", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "s/shadow"}), "symbolic link"},
		"whiteout dotdot":     {makeTar(t, nil, tar.Header{Name: "../.wh.x"}), `".."`},
		"whiteout of parent":  {makeTar(t, nil, tar.Header{Name: "a/.wh..."}), "hides no name"},
		"whiteout of self":    {makeTar(t, nil, tar.Header{Name: ".wh.."}), "hides no name"},
		"big uid":             {makeTar(t, nil, tar.Header{Name: "f", Uid: 65536}), "65535"},
		"big gid":             {makeTar(t, nil, tar.Header{Name: "f", Gid: 100000}), "65535"},
		"not a tar":           {bytes.Repeat([]byte("junk"), 1000), "tar header"},
		"cut tar":             {makeTar(t, map[string]string{"f": strings.Repeat("x", 5000)}, tar.Header{Name: "f"})[:1500], "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			img := makeImage(testLayer{tar: good, press: gz}, testLayer{tar: c.layer, press: gz})
			for kind, ref := range map[string]string{
				"registry": startRegistry(t, nil).push(t, "x", img), "layout": "oci:" + writeLayout(t, img), "archive": "docker-archive:" + writeArchive(t, img),
			} {
				s := testStore(t)
				before := treeLines(t, filepath.Dir(s.root))
				_, err := s.Pull(ctx, ref, PullOptions{})
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: %v; want %q", kind, err, c.want)
				}
				if _, err := s.Sweep(ctx, func(string) bool { return true }); err != nil { // the good layer
					t.Error(err)
				}
				assertEmpty(t, s)
				after := treeLines(t, filepath.Dir(s.root))
				if len(after) > len(before)+1 { // the lock file
					t.Errorf("%s: left %v", kind, after)
				}
			}
		})
	}
	t.Run("absolute, allowed", func(t *testing.T) {
		s := testStore(t)
		img := makeImage(testLayer{tar: makeTar(t, nil, tar.Header{Name: "/app/prog"}), press: gz})
		got, err := s.Pull(ctx, "oci:"+writeLayout(t, img), PullOptions{AbsoluteNames: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(s.layerFS(got.Layers[0]), "app/prog")); err != nil {
			t.Error(err)
		}
	})
}

// A blob that is not what its digest says is refused from every source, and nothing of it stays.
func TestPullRefusesWrongBlobs(t *testing.T) {
	ctx := context.Background()
	data := make([]byte, 300_000)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	img := makeImage(testLayer{tar: makeTar(t, map[string]string{"f": string(data)}, tar.Header{Name: "f"}), press: gz})
	blob := img.layers[0]
	flipped := bytes.Clone(blob)
	flipped[len(flipped)/2] ^= 1
	other := gz(makeTar(t, map[string]string{"f": "evil"}, tar.Header{Name: "f"}))
	for name, c := range map[string]struct {
		serve []byte
		want  string
	}{
		"flipped bit": {flipped, "digest is"}, "truncated": {blob[:len(blob)/2], "bytes"}, "oversize": {append(bytes.Clone(blob), 0, 0, 0), "bytes"},
		"another": {append(bytes.Clone(other), make([]byte, len(blob)-len(other))...), "digest is"}, "empty": {nil, "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			reg := startRegistry(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if strings.HasSuffix(r.URL.Path, "/blobs/"+sha(blob)) {
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(c.serve))
					return
				}
				next.ServeHTTP(w, r)
			})
			layout := writeLayout(t, img)
			if err := os.WriteFile(filepath.Join(layout, "blobs/sha256", strings.TrimPrefix(sha(blob), "sha256:")), c.serve, 0o644); err != nil {
				t.Fatal(err)
			}
			for _, ref := range []string{reg.push(t, "x", img), "oci:" + layout} {
				s := testStore(t)
				_, err := s.Pull(ctx, ref, PullOptions{})
				if !errors.Is(err, errBlob) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), sha(blob)) {
					t.Errorf("%s: %v; want %q", ref, err, c.want)
				}
				assertEmpty(t, s)
			}
		})
	}
	t.Run("wrong diff id", func(t *testing.T) {
		bad := makeImage(testLayer{tar: img.tars[0], press: gz})
		bad.config = bytes.Replace(bad.config, []byte(sha(img.tars[0])), []byte(sha([]byte("else"))), 1)
		bad.manifest = mustJSON(map[string]any{"schemaVersion": 2, "config": descriptor(ociConfig, bad.config), "layers": []any{descriptor(ociGzip, blob)}})
		for _, ref := range []string{startRegistry(t, nil).push(t, "x", bad), "oci:" + writeLayout(t, bad), "docker-archive:" + writeArchive(t, bad)} {
			s := testStore(t)
			if _, err := s.Pull(ctx, ref, PullOptions{}); !errors.Is(err, errBlob) || !strings.Contains(err.Error(), "configuration says") {
				t.Errorf("%s: %v", ref, err)
			}
			assertEmpty(t, s)
		}
	})
	t.Run("wrong config", func(t *testing.T) {
		layout := writeLayout(t, img)
		path := filepath.Join(layout, "blobs/sha256", strings.TrimPrefix(sha(img.config), "sha256:"))
		if err := os.WriteFile(path, bytes.Replace(img.config, []byte("serve"), []byte("evils"), 1), 0o644); err != nil {
			t.Fatal(err)
		}
		s := testStore(t)
		if _, err := s.Pull(ctx, "oci:"+layout, PullOptions{}); !errors.Is(err, errBlob) {
			t.Error(err)
		}
		assertEmpty(t, s)
	})
	t.Run("truncated archive", func(t *testing.T) {
		file := writeArchive(t, img)
		if err := os.Truncate(file, 100_000); err != nil {
			t.Fatal(err)
		}
		s := testStore(t)
		if _, err := s.Pull(ctx, "docker-archive:"+file, PullOptions{}); err == nil || !strings.Contains(err.Error(), "truncated") {
			t.Error(err)
		}
		assertEmpty(t, s)
	})
}

func TestPullErrorsSayWhatToDo(t *testing.T) {
	ctx := context.Background()
	s := testStore(t)
	dir := t.TempDir()
	for ref, want := range map[string]string{
		"":                             "empty",
		"Not A Reference":              "reference",
		"oci:":                         "oci:PATH",
		"oci:" + dir:                   "no OCI image layout",
		"oci:" + dir + "/none":         "no such file",
		"docker-archive:" + dir:        "is a directory",
		"docker-archive:" + dir + "/x": "no such file",
		"dir:" + dir + "/none":         "no such file",
		"dir:/proc/self/status":        "not a directory",
		"dir:/":                        "holds the image store",
		"busybox":                      "docker.io/library/busybox",
		startRegistry(t, nil).host + "/no/such:tag": "check name and tag",
	} {
		if _, err := s.Pull(ctx, ref, PullOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", ref, err, want)
		}
	}
	assertEmpty(t, s)
}

// Eight askers in one process and four other processes want the same image: every blob crosses the wire once.
func TestSimultaneousPullsFetchOnce(t *testing.T) {
	ctx := context.Background()
	var layers []testLayer
	for i := range 4 {
		content := strings.Repeat(fmt.Sprint("layer ", i), 20_000)
		layers = append(layers, testLayer{tar: makeTar(t, map[string]string{"f": content}, tar.Header{Name: "f"}), press: gz})
	}
	img := makeImage(layers...)
	var mu sync.Mutex
	count := map[string]int{}
	reg := startRegistry(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			mu.Lock()
			count[r.URL.Path]++
			mu.Unlock()
			time.Sleep(20 * time.Millisecond) // so that they meet
		}
		next.ServeHTTP(w, r)
	})
	ref := reg.push(t, "x", img)
	s := testStore(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			var reports atomic.Int32
			got, err := s.Pull(ctx, ref, PullOptions{Name: fmt.Sprint("name", i%4), Progress: func(Progress) { reports.Add(1) }})
			if err != nil || len(got.Layers) != 4 || reports.Load() == 0 {
				t.Errorf("pull %d: %+v, %v, %d reports", i, got, err, reports.Load())
			}
		})
	}
	for range 4 {
		wg.Go(func() {
			cmd := exec.Command("/proc/self/exe", s.root, ref)
			cmd.Env = append(os.Environ(), helperEnv+"=pull")
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "<nil>") {
				t.Errorf("pull in another process: %s", out)
			}
		})
	}
	wg.Wait()
	if len(count) != 5 {
		t.Errorf("%d blobs were fetched, want 5", len(count))
	}
	for path, n := range count {
		if n != 1 {
			t.Errorf("%s was fetched %d times", path, n)
		}
	}
	if images, err := s.Images(ctx); err != nil || len(images) != 5 {
		t.Errorf("images: %v, %v", images, err)
	}
}

// An asker that gives up does not end the pull of another; the last one does, and leaves nothing but what the
// next try continues.
func TestPullCancelled(t *testing.T) {
	data := strings.Repeat("0123456789", 50_000)
	img := makeImage(testLayer{tar: makeTar(t, map[string]string{"f": data}, tar.Header{Name: "f"})})
	started, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	reg := startRegistry(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, sha(img.layers[0])) {
			once.Do(func() { close(started) })
			select {
			case <-goOn:
			case <-r.Context().Done():
				return
			}
		}
		next.ServeHTTP(w, r)
	})
	ref := reg.push(t, "x", img)
	s := testStore(t)
	first, cancelFirst := context.WithCancel(context.Background())
	second, cancelSecond := context.WithCancel(context.Background())
	defer cancelSecond()
	errs := make(chan error, 2)
	for _, ctx := range []context.Context{first, second} {
		go func() {
			_, err := s.Pull(ctx, ref, PullOptions{})
			errs <- err
		}()
	}
	<-started
	for { // until both wait for the same flight
		s.flights.mu.Lock()
		askers := 0
		for _, f := range s.flights.m {
			askers += f.askers
		}
		s.flights.mu.Unlock()
		if askers == 2 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancelFirst()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("first: %v", err)
	}
	cancelSecond()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("second: %v", err)
	}
	assertEmpty(t, s)
	close(goOn)
	if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// cutter breaks connections in the middle of a blob.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		c.ResponseWriter.Write(p[:c.left])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

func TestDownloadContinuesByRange(t *testing.T) {
	ctx := context.Background()
	data := make([]byte, 1_000_000)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	img := makeImage(testLayer{tar: makeTar(t, map[string]string{"f": string(data)}, tar.Header{Name: "f"}), kind: ociLayer})
	var mu sync.Mutex
	var ranges []string
	dead := false
	reg := startRegistry(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, sha(img.layers[0])) {
			next.ServeHTTP(w, r)
			return
		}
		mu.Lock()
		ranges = append(ranges, r.Header.Get("Range"))
		n, down := len(ranges), dead
		mu.Unlock()
		if down {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if n <= 2 {
			w = &cutter{w, 300_000}
		}
		next.ServeHTTP(w, r)
	})
	ref := reg.push(t, "x", img)

	t.Run("in one pull", func(t *testing.T) {
		s := testStore(t)
		if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if want := []string{"", "bytes=300000-1001983", "bytes=600000-1001983"}; !slices.Equal(ranges, want) {
			t.Errorf("ranges %q, want %q", ranges, want)
		}
	})
	t.Run("in the next pull", func(t *testing.T) {
		s := testStore(t)
		part := s.path("partial", layerKey(sha(img.layers[0])))
		if err := os.WriteFile(part, img.layers[0][:400_000], 0o600); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		ranges, dead = []string{"", ""}, true
		mu.Unlock()
		if _, err := s.Pull(ctx, ref, PullOptions{}); !errors.Is(err, errNetwork) || !strings.Contains(err.Error(), "503") {
			t.Errorf("with the registry down: %v", err)
		}
		if info, err := os.Stat(part); err != nil || info.Size() != 400_000 {
			t.Errorf("the beginning was not kept: %v, %v", info, err)
		}
		mu.Lock()
		if len(ranges) != 2+netTries {
			t.Errorf("%d tries, want %d", len(ranges)-2, netTries)
		}
		ranges, dead = []string{"", ""}, false
		mu.Unlock()
		got, err := s.Pull(ctx, ref, PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{"", "", "bytes=400000-1001983"}; !slices.Equal(ranges, want) {
			t.Errorf("ranges %q, want %q", ranges, want)
		}
		file, err := os.ReadFile(filepath.Join(s.layerFS(got.Layers[0]), "f"))
		if err != nil || !bytes.Equal(file, data) {
			t.Errorf("the file differs: %v", err)
		}
	})
	t.Run("from a spoilt beginning", func(t *testing.T) {
		s := testStore(t)
		if err := os.WriteFile(s.path("partial", layerKey(sha(img.layers[0]))), bytes.Repeat([]byte{'x'}, 400_000), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
			t.Errorf("a spoilt beginning spoils the pull: %v", err)
		}
	})
}

// A process killed at any moment of a pull leaves nothing that counts as a layer or image, and the next pull and
// sweep make all good.
func TestKilledPullLeavesNothingHalf(t *testing.T) {
	ctx := context.Background()
	contents := map[string]string{}
	var headers []tar.Header
	for i := range 3000 {
		name := fmt.Sprintf("d%d/f%d", i%50, i)
		contents[name] = strings.Repeat("x", i)
		headers = append(headers, tar.Header{Name: name})
	}
	img := makeImage(testLayer{tar: makeTar(t, contents, headers...), press: gz}, testLayer{tar: makeTar(t, nil, tar.Header{Name: "g"}), press: gz})
	reg := startRegistry(t, nil)
	ref := reg.push(t, "x", img)
	s := testStore(t)
	killed := 0
	for i := range 12 {
		cmd := exec.Command("/proc/self/exe", s.root, ref)
		cmd.Env = append(os.Environ(), helperEnv+"=pull")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Later each round, measured by what has been unpacked and not by time.
		for {
			files, _ := filepath.Glob(s.path("tmp", "layer-*", "fs", "*"))
			if len(files) > i*4 {
				break
			}
			if images, _ := s.Images(ctx); len(images) > 0 {
				break
			}
			if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
				break
			}
			var ws syscall.WaitStatus
			if pid, _ := syscall.Wait4(cmd.Process.Pid, &ws, syscall.WNOHANG, nil); pid != 0 {
				break
			}
		}
		cmd.Process.Kill()
		cmd.Wait()
		if images, err := s.Images(ctx); err != nil {
			t.Fatal(err)
		} else if len(images) > 0 {
			break // it was faster
		}
		killed++
		keys, err := listDir(s.path("layers"))
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			info, err := s.haveLayer(strings.Replace(key, "-", ":", 1))
			if err != nil || info == nil {
				t.Fatalf("half a layer: %s, %v", key, err)
			}
			if n := len(treeLines(t, s.path("layers", key, "fs"))); n != int(info.Entries)+len(info.Implicit) {
				t.Fatalf("layer %s has %d entries of %d", key, n, info.Entries)
			}
		}
		if i%3 == 2 {
			if _, err := s.Sweep(ctx, func(string) bool { return true }); err != nil {
				t.Fatal(err)
			}
			if names, _ := listDir(s.path("tmp")); len(names) > 0 {
				t.Errorf("sweep left %v", names)
			}
		}
	}
	if killed == 0 {
		t.Error("no pull was killed in time")
	}
	got, err := s.Pull(ctx, ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(mountedTree(t, s, got, true)); n != 3000+50+2 {
		t.Errorf("%d files", n)
	}
	if _, err := s.Sweep(ctx, func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if names, _ := listDir(s.path("tmp")); len(names) > 0 {
		t.Errorf("sweep left %v", names)
	}
	if err := s.Remove(ctx, got.Name); err != nil {
		t.Fatal(err)
	}
}

// A name moved to other content disturbs neither the snapshots of what it meant, nor keeps what nobody needs.
func TestRepullMovesTheName(t *testing.T) {
	ctx := context.Background()
	shared := testLayer{tar: makeTar(t, nil, tar.Header{Name: "shared"}), press: gz}
	one := makeImage(shared, testLayer{tar: makeTar(t, map[string]string{"v": "1"}, tar.Header{Name: "v"}), press: gz})
	two := makeImage(shared, testLayer{tar: makeTar(t, map[string]string{"v": "2"}, tar.Header{Name: "v"}), press: gz})
	reg := startRegistry(t, nil)
	s := testStore(t)
	ref := reg.push(t, "x", one)
	first, err := s.Pull(ctx, ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sn := testSnapshot(t, s, "old", first)
	reg.push(t, "x", two)
	same, err := s.Ensure(ctx, ref, PullOptions{})
	if err != nil || same.Digest != first.Digest {
		t.Errorf("ensure looked again: %v", err)
	}
	second, err := s.Pull(ctx, ref, PullOptions{})
	if err != nil || second.Digest == first.Digest || second.Layers[0] != first.Layers[0] {
		t.Fatalf("second pull: %+v, %v", second, err)
	}
	if keys, _ := listDir(s.path("layers")); len(keys) != 3 {
		t.Errorf("layers: %v", keys)
	}
	if _, err := s.Sweep(ctx, func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	m, err := sn.Mount(ctx, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(procPath(m) + "/v"); err != nil || string(data) != "1" {
		t.Errorf("the old snapshot reads %q, %v", data, err)
	}
	m.Close()
	if err := s.Remove(ctx, ref); err != nil { // no snapshot of the second content
		t.Fatal(err)
	}
	if keys, _ := listDir(s.path("layers")); len(keys) != 2 {
		t.Errorf("layers of the old snapshot: %v", keys)
	}
	if err := s.Release(ctx, "old"); err != nil {
		t.Fatal(err)
	}
	if removed, err := s.Sweep(ctx, func(string) bool { return true }); err != nil || len(removed) != 2 {
		t.Errorf("sweep: %v, %v", removed, err)
	}
	assertEmpty(t, s)
}

func TestImplicitDirectoriesKeepTheirLook(t *testing.T) {
	ctx := context.Background()
	dir := func(name string, mode int64, uid int) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode, Uid: uid}
	}
	img := makeImage(
		testLayer{tar: makeTar(t, nil, dir("./", 0o711, 0), dir("tmp/", 0o1777, 0), dir("home/", 0o750, 12), dir("home/u/", 0o700, 1000), dir("old/", 0o700, 3), dir("old/x", 0o700, 3)), press: gz},
		testLayer{tar: makeTar(t, nil, tar.Header{Name: "tmp/f"}, tar.Header{Name: "home/u/f"}, tar.Header{Name: "new/f"}, tar.Header{Name: ".wh.old"}), press: gz},
		testLayer{tar: makeTar(t, nil, tar.Header{Name: "old/x/f"}), press: gz},
	)
	s := testStore(t)
	got, err := s.Pull(ctx, "oci:"+writeLayout(t, img), PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, readOnly := range []bool{false, true} {
		lines := strings.Join(mountedTree(t, s, got, readOnly), "\n")
		for _, want := range []string{
			`"" mode=40711 owner=0:0`, `"tmp" mode=41777 owner=0:0`, `"home" mode=40750 owner=12:0`, `"home/u" mode=40700 owner=1000:0`,
			`"new" mode=40755 owner=0:0`, `"old" mode=40755 owner=0:0`, `"old/x" mode=40755 owner=0:0`, `"old/x/f"`, `"tmp/f"`,
		} {
			if !strings.Contains(lines, want) {
				t.Errorf("read-only %v: %s is missing from\n%s", readOnly, want, lines)
			}
		}
	}
}

func TestOpaqueRootAndImagesFromNothing(t *testing.T) {
	ctx := context.Background()
	s := testStore(t)
	low := testLayer{tar: makeTar(t, nil, tar.Header{Name: "low"}), press: gz}
	high := testLayer{tar: makeTar(t, nil, tar.Header{Name: "high"}, tar.Header{Name: ".wh..wh..opq"}), press: gz}
	img, err := s.Pull(ctx, "oci:"+writeLayout(t, makeImage(low, high)), PullOptions{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if lines := mountedTree(t, s, img, true); len(lines) != 2 || !strings.Contains(lines[1], "high") {
		t.Errorf("opaque root: %v", lines)
	}
	img, err = s.Pull(ctx, "oci:"+writeLayout(t, makeImage()), PullOptions{Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if lines := mountedTree(t, s, img, false); len(lines) != 1 {
		t.Errorf("image from nothing: %v", lines)
	}
}

func TestSweepSparesWhatOthersMake(t *testing.T) {
	ctx := context.Background()
	s := testStore(t)
	mine, err := s.temp("layer")
	if err != nil {
		t.Fatal(err)
	}
	for path, age := range map[string]time.Duration{"tmp/layer-orphan": 0, "partial/sha256-old": 4 * 24 * time.Hour, "partial/sha256-new": 0} {
		if err := os.Mkdir(s.path(path), 0o700); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(-age)
		os.Chtimes(s.path(path), when, when)
	}
	other, err := Open(s.root)
	if err != nil {
		t.Fatal(err)
	}
	removed, err := other.Sweep(ctx, func(string) bool { return true })
	slices.Sort(removed)
	if err != nil || !slices.Equal(removed, []string{"partial/sha256-old", "tmp/layer-orphan"}) {
		t.Errorf("removed %v, %v", removed, err)
	}
	if _, err := os.Stat(mine.path); err != nil {
		t.Error(err)
	}
	mine.remove()
}
