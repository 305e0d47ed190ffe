package rootfs

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
	stdlog "log"
)

func sha(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func gz(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b)
	w.Close()
	return buf.Bytes()
}

func zst(b []byte) []byte {
	w, _ := zstd.NewWriter(nil)
	return w.EncodeAll(b, nil)
}

// makeTar builds a tar of headers; a header's content comes from contents by name.
func makeTar(t testing.TB, contents map[string]string, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		if h.Typeflag == tar.TypeReg || h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(contents[h.Name]))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			io.WriteString(w, contents[h.Name])
		}
	}
	w.Close()
	return buf.Bytes()
}

// A testImage is an image's documents and blobs.
type testImage struct {
	config, manifest []byte
	layers           [][]byte // blobs
	tars             [][]byte
	types            []string
}

type testLayer struct {
	tar   []byte
	press func([]byte) []byte // nil: not compressed
	kind  string              // media type
}

const (
	ociLayer  = "application/vnd.oci.image.layer.v1.tar"
	ociGzip   = "application/vnd.oci.image.layer.v1.tar+gzip"
	ociZstd   = "application/vnd.oci.image.layer.v1.tar+zstd"
	ociConfig = "application/vnd.oci.image.config.v1+json"
	ociImage  = "application/vnd.oci.image.manifest.v1+json"
	ociIndex  = "application/vnd.oci.image.index.v1+json"
)

func descriptor(kind string, blob []byte) map[string]any {
	return map[string]any{"mediaType": kind, "digest": sha(blob), "size": len(blob)}
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func makeImage(layers ...testLayer) *testImage {
	img := &testImage{}
	diffs := []string{}
	descs := []any{}
	for _, l := range layers {
		blob := l.tar
		if l.press != nil {
			blob = l.press(blob)
		}
		if l.kind == "" {
			l.kind = ociGzip
		}
		img.layers, img.tars, img.types = append(img.layers, blob), append(img.tars, l.tar), append(img.types, l.kind)
		diffs = append(diffs, sha(l.tar))
		descs = append(descs, descriptor(l.kind, blob))
	}
	img.config = mustJSON(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{
			"Env": []string{"A=b"}, "Cmd": []string{"serve"}, "Entrypoint": []string{"/entry"}, "WorkingDir": "/srv", "User": "1000",
			"ExposedPorts": map[string]any{"80/tcp": map[string]any{}}, "Labels": map[string]string{"k": "v"},
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	img.manifest = mustJSON(map[string]any{
		"schemaVersion": 2, "mediaType": ociImage, "config": descriptor(ociConfig, img.config), "layers": descs,
	})
	return img
}

func (img *testImage) blobs() [][]byte { return append([][]byte{img.config}, img.layers...) }

// A testRegistry is go-containerregistry's registry behind a hook that sees, counts and may answer requests.
type testRegistry struct {
	host    string
	handler http.Handler
	hook    func(w http.ResponseWriter, r *http.Request, next http.Handler) // set before use
}

func startRegistry(t testing.TB, hook func(w http.ResponseWriter, r *http.Request, next http.Handler)) *testRegistry {
	t.Helper()
	reg := &testRegistry{handler: registry.New(registry.Logger(stdlog.New(io.Discard, "", 0))), hook: hook}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if reg.hook != nil {
			reg.hook(w, r, reg.handler)
			return
		}
		reg.handler.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
	t.Cleanup(srv.Close)
	reg.host = strings.TrimPrefix(srv.URL, "http://")
	return reg
}

func (r *testRegistry) put(t testing.TB, method, path, kind string, body []byte) {
	t.Helper()
	req := httptest.NewRequest(method, path, bytes.NewReader(body))
	req.Header.Set("Content-Type", kind)
	rec := httptest.NewRecorder()
	r.handler.ServeHTTP(rec, req)
	if rec.Code != http.StatusCreated {
		t.Fatalf("%s %s: %d %s", method, path, rec.Code, rec.Body)
	}
}

// push stores the image under repo:latest and returns the reference.
func (r *testRegistry) push(t testing.TB, repo string, img *testImage) string {
	t.Helper()
	for _, blob := range img.blobs() {
		r.put(t, http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+sha(blob), "application/octet-stream", blob)
	}
	r.put(t, http.MethodPut, "/v2/"+repo+"/manifests/latest", ociImage, img.manifest)
	return r.host + "/" + repo + ":latest"
}

// writeLayout writes an OCI image layout with the image under the tag "v1", inside an index for two platforms.
func writeLayout(t testing.TB, img *testImage) string {
	t.Helper()
	dir := t.TempDir()
	put := func(name string, data []byte) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(data []byte) { put("blobs/sha256/"+strings.TrimPrefix(sha(data), "sha256:"), data) }
	for _, b := range img.blobs() {
		blob(b)
	}
	blob(img.manifest)
	mine, other := descriptor(ociImage, img.manifest), descriptor(ociImage, []byte("another"))
	mine["platform"] = map[string]any{"os": "linux", "architecture": runtime.GOARCH}
	other["platform"] = map[string]any{"os": "linux", "architecture": "s390x"}
	inner := mustJSON(map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": []any{other, mine}})
	blob(inner)
	top := descriptor(ociIndex, inner)
	top["annotations"] = map[string]string{"org.opencontainers.image.ref.name": "v1"}
	put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	put("index.json", mustJSON(map[string]any{"schemaVersion": 2, "manifests": []any{top}}))
	return dir
}

// writeArchive writes what docker save writes: uncompressed layers, one of them behind a symbolic link.
func writeArchive(t testing.TB, img *testImage) string {
	t.Helper()
	contents := map[string]string{}
	var headers []tar.Header
	add := func(name string, data []byte) {
		contents[name] = string(data)
		headers = append(headers, tar.Header{Name: name})
	}
	var names []string
	for i, l := range img.tars {
		name := fmt.Sprintf("layer%d/layer.tar", i)
		add(name, l)
		if i == 0 {
			headers = append(headers, tar.Header{Name: "first/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../" + name})
			name = "first/layer.tar"
		}
		names = append(names, name)
	}
	config := strings.TrimPrefix(sha(img.config), "sha256:") + ".json"
	add(config, img.config)
	add("manifest.json", mustJSON([]any{map[string]any{"Config": config, "RepoTags": []string{"x:1"}, "Layers": names}}))
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(path, makeTar(t, contents, headers...), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// sampleTree makes a directory with everything a root file system may hold.
func sampleTree(t testing.TB, dir string) {
	t.Helper()
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"bin", "etc/deep/er", "tmp", "home/user", "var/lib/x", "unicode-ü☃", "opaque/kept", strings.Repeat("long/", 40) + "end"} {
		do(os.MkdirAll(at(d), 0o755))
	}
	do(os.Chmod(dir, 0o755))
	for name, content := range map[string]string{
		"bin/prog": "#!/bin/sh\n", "etc/passwd": "root:x:0:0\n", "etc/deep/er/f": "deep", "home/user/mine": "mine", "empty": "",
		"unicode-ü☃/Ω": "omega", "opaque/kept/f": "kept", "capable": "cap", "name with  spaces\nand newline": "odd", "long/" + strings.Repeat("n", 200): "long",
	} {
		do(os.WriteFile(at(name), []byte(content), 0o644))
	}
	do(os.WriteFile(at("big"), bytes.Repeat([]byte("0123456789abcdef"), 100_000), 0o600))
	sparse, err := os.Create(at("sparse"))
	do(err)
	_, err = sparse.WriteAt([]byte("middle"), 3<<20)
	do(err)
	do(sparse.Truncate(8 << 20))
	do(sparse.Close())
	do(os.Link(at("bin/prog"), at("bin/alias")))
	do(os.Link(at("bin/prog"), at("var/lib/x/alias")))
	do(os.Symlink("prog", at("bin/soft")))
	do(os.Symlink("/etc/passwd", at("absolute")))
	do(os.Symlink("../../../../outside", at("etc/dangling")))
	do(os.Link(at("absolute"), at("absolute-twin")))
	do(unix.Mkfifo(at("fifo"), 0o620))
	do(os.Lchown(at("fifo"), 5, 6))
	do(os.Lchown(at("home/user"), 1000, 1000))
	do(os.Lchown(at("home/user/mine"), 1000, 65535))
	do(os.Lchown(at("bin/soft"), 7, 8))
	do(os.Lchown(at("bin/prog"), 0, 50))
	do(unix.Chmod(at("bin/prog"), 0o6755))
	do(unix.Chmod(at("tmp"), 0o1777))
	do(unix.Chmod(at("var/lib/x"), 0o2700))
	do(unix.Chmod(at("empty"), 0))
	do(unix.Setxattr(at("etc/passwd"), "user.note", []byte("hi\x00there"), 0))
	do(unix.Setxattr(at("tmp"), "user.dir", []byte("d"), 0))
	do(unix.Setxattr(at("capable"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	// Times last, deepest first: making a file changes its directory.
	var paths []string
	do(filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		paths = append(paths, p)
		return err
	}))
	for i := len(paths) - 1; i >= 0; i-- {
		ts := unix.NsecToTimespec(time.Date(2001, 2, 3, 4, 5, i%60, 123456789, time.UTC).UnixNano())
		do(unix.UtimesNanoAt(unix.AT_FDCWD, paths[i], []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// treeLines describes a tree so completely that two equal descriptions mean equal trees.
func treeLines(t testing.TB, dir string) []string {
	t.Helper()
	var lines []string
	inodes := map[uint64]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(strings.TrimPrefix(p, strings.TrimSuffix(dir, "/.")), "/")
		if name == "." {
			name = ""
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return fmt.Errorf("%s is listed but %w", p, err)
		}
		line := fmt.Sprintf("%q mode=%o owner=%d:%d", name, st.Mode, st.Uid, st.Gid)
		if d.IsDir() {
			line += fmt.Sprintf(" mtime=%d", st.Mtim.Nano())
		} else {
			line += fmt.Sprintf(" mtime=%d nlink=%d size=%d", st.Mtim.Nano(), st.Nlink, st.Size)
			if first, ok := inodes[st.Ino]; ok && st.Nlink > 1 {
				line += fmt.Sprintf(" same as %q", first)
			} else {
				inodes[st.Ino] = name
			}
		}
		switch {
		case d.Type().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += " " + sha(data)
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" -> %q", target)
		}
		buf := make([]byte, 64<<10)
		n, err := unix.Llistxattr(p, buf)
		if err != nil {
			return fmt.Errorf("llistxattr %s: %w", p, err)
		}
		attrs := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
		sort.Strings(attrs)
		for _, a := range attrs {
			if a == "" || strings.HasPrefix(a, "security.selinux") {
				continue
			}
			v := make([]byte, 4096)
			n, err := unix.Lgetxattr(p, a, v)
			if err != nil {
				return fmt.Errorf("lgetxattr %s %s: %w", p, a, err)
			}
			line += fmt.Sprintf(" %s=%x", a, v[:n])
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// mountedTree describes an image's tree as an environment without shifted ids sees it. The root's time is left
// out: it is that of the writable layer.
func mountedTree(t testing.TB, s *Store, img *Image, readOnly bool) []string {
	t.Helper()
	id := fmt.Sprintf("tree-%d", time.Now().UnixNano())
	sn, err := s.Prepare(t.Context(), id, img, SnapshotOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Release(t.Context(), id)
	m, err := sn.Mount(t.Context(), nil, readOnly)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	return dropRootTime(treeLines(t, procPath(m)+"/."))
}

func dropRootTime(lines []string) []string {
	lines[0] = lines[0][:strings.Index(lines[0], " mtime=")]
	return lines
}

func sameLines(t testing.TB, what string, got, want []string) {
	t.Helper()
	in := func(list []string) map[string]bool {
		m := map[string]bool{}
		for _, l := range list {
			m[l] = true
		}
		return m
	}
	g, w := in(got), in(want)
	for _, l := range got {
		if !w[l] {
			t.Errorf("%s: has   %s", what, l)
		}
	}
	for _, l := range want {
		if !g[l] {
			t.Errorf("%s: lacks %s", what, l)
		}
	}
}

// gnuTar packs a directory with the system's tar, which owes nothing to this package.
func gnuTar(t testing.TB, dir string) []byte {
	t.Helper()
	cmd := exec.Command("tar", "--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--sparse", "-C", dir, "-c", ".")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tar: %v %s", err, errs.String())
	}
	return out
}
