package layertar

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func build(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		body := []byte(h.Gname) // a place to put it
		h.Gname = ""
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(body))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			w.Write(body)
		}
	}
	w.Close()
	return buf.Bytes()
}

func file(name, content string) tar.Header { return tar.Header{Name: name, Gname: content} }
func dir(name string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}
}
func soft(name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
}
func hard(name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}
}

func unpack(t testing.TB, data []byte, o Options) (string, Result, error) {
	t.Helper()
	path := t.TempDir()
	root, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	res, err := Unpack(context.Background(), root, bytes.NewReader(data), o)
	return path, res, err
}

// list describes a layer directory: name, type, and overlayfs' marks.
func list(t testing.TB, root string) string {
	t.Helper()
	var out []string
	filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		name, _ := filepath.Rel(root, p)
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			t.Fatal(err)
		}
		kind := map[uint32]string{unix.S_IFDIR: "/", unix.S_IFLNK: "@", unix.S_IFIFO: "|", unix.S_IFCHR: "%", unix.S_IFBLK: "#"}[st.Mode&unix.S_IFMT]
		if n, err := unix.Lgetxattr(p, opaqueXattr, make([]byte, 1)); err == nil && n == 1 {
			kind += "!"
		}
		if name != "." {
			out = append(out, name+kind)
		}
		return nil
	})
	return strings.Join(out, " ")
}

// Whiteouts hide what is below and nothing of the same layer, whatever comes first.
func TestWhiteouts(t *testing.T) {
	for name, c := range map[string]struct {
		tar  []byte
		want string
	}{
		"plain":                    {build(t, file("a/.wh.b", "")), "a/ a/b%"},
		"file then whiteout":       {build(t, file("b", "x"), file(".wh.b", "")), "b"},
		"whiteout then file":       {build(t, file(".wh.b", ""), file("b", "x")), "b"},
		"directory then whiteout":  {build(t, dir("b"), file("b/f", ""), file(".wh.b", "")), "b/! b/f"},
		"whiteout then directory":  {build(t, file(".wh.b", ""), dir("b"), file("b/f", "")), "b/! b/f"},
		"whiteout then contents":   {build(t, file(".wh.b", ""), file("b/f", "")), "b/! b/f"},
		"file then directory":      {build(t, file("b", ""), dir("b")), "b/!"},
		"link then directory":      {build(t, soft("b", "c"), dir("b")), "b/!"},
		"directory then file":      {build(t, dir("b"), file("b/c/d", ""), file("b", "")), "b"},
		"directory twice":          {build(t, dir("b"), file("b/f", ""), dir("b")), "b/ b/f"},
		"opaque first":             {build(t, dir("b"), file("b/.wh..wh..opq", ""), file("b/f", "")), "b/! b/f"},
		"opaque last":              {build(t, file("b/f", ""), file("b/.wh..wh..opq", "")), "b/! b/f"},
		"idle below opaque":        {build(t, file("b/c/.wh.x", ""), file("b/.wh.y", ""), file("b/.wh..wh..opq", ""), file("z/.wh.x", "")), "b/! b/c/ z/ z/x%"},
		"idle below opaque root":   {build(t, file("b/.wh.x", ""), file(".wh..wh..opq", ""), file("f", "")), "b/ f"},
		"whiteout twice":           {build(t, file(".wh.b", ""), file(".wh.b", "")), "b%"},
		"bookkeeping of aufs":      {build(t, file(".wh..wh.aufs", ""), dir(".wh..wh.plnk/"), file(".wh..wh.plnk/1.2", "")), ""},
		"as another type":          {build(t, dir(".wh.b"), soft(".wh.c", "/etc")), "b% c%"},
		"forged device":            {build(t, tar.Header{Name: "b", Typeflag: tar.TypeChar}, tar.Header{Name: "c", Typeflag: tar.TypeBlock, Devmajor: 8}), ""},
		"device below":             {build(t, tar.Header{Name: "dev/b", Typeflag: tar.TypeChar}), ""},
		"hard link over directory": {build(t, dir("d"), file("d/x", ""), file("f", ""), hard("d", "f")), "d f"},
		"hard link to itself":      {build(t, file("f", ""), hard("f", "f")), "f"},
		"link in the layer":        {build(t, dir("usr/lib"), soft("lib", "usr/lib"), file("lib/f", "")), "lib@ usr/ usr/lib/ usr/lib/f"},
	} {
		path, _, err := unpack(t, c.tar, Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := list(t, path); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		tar  []byte
		o    Options
		want string
	}{
		"bytes":     {build(t, file("a", "12345"), file("b", "12345")), Options{MaxBytes: 9}, "larger than 9 bytes"},
		"entries":   {build(t, file("a", ""), file("b", ""), file("c", "")), Options{MaxEntries: 2}, "more than 2 entries"},
		"depth":     {build(t, file("a/b/c/d", "")), Options{MaxDepth: 3}, "deeper than 3"},
		"path":      {build(t, file(strings.Repeat("abcdefgh/", 500)+"f", "")), Options{}, "longer than"},
		"component": {build(t, file(strings.Repeat("n", 256), "")), Options{}, "longer than 255"},
		"trailer":   {append(build(t, file("a", "")), make([]byte, 5000)...), Options{MaxBytes: 1000}, "behind the last entry"},
		"reserved":  {build(t, file(".wh.x/f", "")), Options{}, "reserved for whiteouts"},
		"root link": {build(t, soft(".", "/etc")), Options{}, "root of the layer is not a directory"},
		"file dir":  {build(t, file("f", ""), file("f/g", "")), Options{}, "is none"},
		"dangling":  {build(t, soft("s", "nothing"), file("s/g", "")), Options{}, "is none"},
		"loop":      {build(t, soft("s", "s"), file("s/g", "")), Options{}, "symbolic link"},
		"unknown":   {build(t, tar.Header{Name: "x", Typeflag: 'Z'}), Options{}, "unknown type"},
	} {
		_, _, err := unpack(t, c.tar, c.o)
		if c.want == "" && err == nil {
			continue
		}
		if !errors.Is(err, ErrLayer) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestUnpackStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	root, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if _, err := Unpack(ctx, root, bytes.NewReader(build(t, file("a", ""))), Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// The descriptors kept open stay few, and none is lost.
func TestUnpackKeepsFewDescriptors(t *testing.T) {
	var headers []tar.Header
	for i := range 2000 {
		headers = append(headers, file(fmt.Sprintf("d%d/e/f", i), ""))
	}
	before := descriptors(t)
	if _, _, err := unpack(t, build(t, headers...), Options{}); err != nil {
		t.Fatal(err)
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestPackRefusesReservedNames(t *testing.T) {
	path := t.TempDir()
	os.WriteFile(filepath.Join(path, ".wh.x"), nil, 0o600)
	d, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := Pack(context.Background(), d, &bytes.Buffer{}); !errors.Is(err, ErrLayer) || !strings.Contains(err.Error(), "rename it") {
		t.Error(err)
	}
}

// sealHeaders puts right checksums where headers lie, so that a changed header is not just refused.
func sealHeaders(data []byte) []byte {
	data = bytes.Clone(data)
	for off := 0; off+512 <= len(data); {
		h := data[off : off+512]
		off += 512
		if bytes.Equal(h, make([]byte, 512)) {
			continue
		}
		copy(h[148:156], "        ")
		sum := 0
		for _, b := range h {
			sum += int(b)
		}
		copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
		var size int
		if _, err := fmt.Sscanf(string(h[124:135]), "%o", &size); err == nil && size > 0 && size < len(data) {
			off += (size + 511) / 512 * 512
		}
	}
	return data
}

// fastDir is a temporary directory in memory where there is such a thing: a fuzzer makes many.
func fastDir(t testing.TB) string {
	var st unix.Statfs_t
	if unix.Statfs("/dev/shm", &st) != nil || st.Type != unix.TMPFS_MAGIC {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "layertar")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// FuzzUnpack feeds any bytes to the unpacker. Whatever they are, nothing beside the layer's root may change, no
// device may appear that is not a whiteout, no foreign attribute, and no descriptor may be lost.
func FuzzUnpack(f *testing.F) {
	for _, seed := range [][]byte{
		build(f, dir("a"), file("a/b", "content"), soft("s", "a"), hard("h", "a/b"), file("s/.wh.x", "")),
		build(f, file("../evil", "x")),
		build(f, soft("s", "../sentinel"), file("s/evil", "x"), file("s/.wh.keep", "")),
		build(f, soft("s", "/"), hard("h", "s/etc/passwd")),
		build(f, file("a/.wh..wh..opq", ""), file(".wh...", ""), tar.Header{Name: "c", Typeflag: tar.TypeChar}),
		build(f, tar.Header{Name: "x", Typeflag: tar.TypeReg, Uid: 1, PAXRecords: map[string]string{
			"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.a": "b", "SCHILY.xattr.security.capability": "zz"}}),
		build(f, tar.Header{Name: "p", Typeflag: tar.TypeFifo, Mode: 0o6777}, dir("p"), file("p", "")),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		data = sealHeaders(data)
		top := fastDir(t)
		os.MkdirAll(filepath.Join(top, "sentinel/keep"), 0o700)
		os.WriteFile(filepath.Join(top, "sentinel/file"), []byte("untouched"), 0o600)
		os.Mkdir(filepath.Join(top, "root"), 0o700)
		state := func() string {
			var out []string
			filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
				if p == filepath.Join(top, "root") {
					return filepath.SkipDir
				}
				var st unix.Stat_t
				if err := unix.Lstat(p, &st); err != nil {
					t.Fatal(err)
				}
				out = append(out, fmt.Sprint(p, st.Mode, st.Uid, st.Gid, st.Nlink, st.Size, st.Mtim, st.Ctim))
				return nil
			})
			return strings.Join(out, "\n")
		}
		before, open := state(), descriptors(t)
		root, err := os.Open(filepath.Join(top, "root"))
		if err != nil {
			t.Fatal(err)
		}
		Unpack(context.Background(), root, bytes.NewReader(data), Options{MaxBytes: 1 << 20, MaxEntries: 1000})
		root.Close()
		if after := state(); after != before {
			t.Errorf("outside changed:\n%s\nwas\n%s", after, before)
		}
		if n := descriptors(t); n > open {
			t.Errorf("%d descriptors, before %d", n, open)
		}
		filepath.WalkDir(filepath.Join(top, "root"), func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Lstat(p, &st); err != nil {
				t.Fatal(err)
			}
			if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFBLK || kind == unix.S_IFCHR && st.Rdev != 0 {
				t.Errorf("device %s", p)
			}
			if st.Uid >= MaxID || st.Gid >= MaxID {
				t.Errorf("%s belongs to %d:%d", p, st.Uid, st.Gid)
			}
			buf := make([]byte, 64<<10)
			n, err := unix.Llistxattr(p, buf)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range strings.Split(string(buf[:n]), "\x00") {
				if a != "" && a != opaqueXattr && a != "security.capability" && !strings.HasPrefix(a, "user.") {
					t.Errorf("%s has attribute %s", p, a)
				}
			}
			return nil
		})
	})
}

// A bomb that keeps within MaxBytes must not fill the machine: what is free counts, not what the layer says.
func TestUnpackLeavesRoomOnTheDisk(t *testing.T) {
	_, _, err := unpack(t, build(t, file("a", "12345")), Options{SpareBytes: 1 << 60})
	if !errors.Is(err, unix.ENOSPC) || errors.Is(err, ErrLayer) || !strings.Contains(err.Error(), "does not fit") {
		t.Errorf("%v: want ENOSPC, and words", err)
	}
}
