package rootfs

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestParseSource(t *testing.T) {
	for in, want := range map[string]struct{ kind, path, tag, name string }{
		"busybox":                  {kindBuild, "busybox", "", "busybox"},
		"debootstrap":              {kindBuild, "debootstrap", "bookworm", "debootstrap:bookworm"},
		"debootstrap:trixie":       {kindBuild, "debootstrap", "trixie", "debootstrap:trixie"},
		"oci:/a/b":                 {kindLayout, "/a/b", "", "oci:/a/b"},
		"oci:/a/b:v1":              {kindLayout, "/a/b", "v1", "oci:/a/b:v1"},
		"oci:/a:b/c":               {kindLayout, "/a:b/c", "", "oci:/a:b/c"},
		"dir:/x/../y":              {kindDir, "/y", "", "dir:/y"},
		"docker-archive:/x.tar":    {kindArchive, "/x.tar", "", "docker-archive:/x.tar"},
		"docker-archive:/x:1.tar":  {kindArchive, "/x:1.tar", "", "docker-archive:/x:1.tar"},
		"alpine":                   {kindRegistry, "", "", "alpine:latest"},
		"docker.io/library/alpine": {kindRegistry, "", "", "alpine:latest"},
		"team/app:1":               {kindRegistry, "", "", "team/app:1"},
		"127.0.0.1:5000/a/b":       {kindRegistry, "", "", "127.0.0.1:5000/a/b:latest"},
	} {
		src, err := parseSource(in)
		if err != nil || src.kind != want.kind || src.path != want.path || src.tag != want.tag || src.name() != want.name {
			t.Errorf("%q: %+v %q, %v", in, src, src.name(), err)
		}
	}
	for _, in := range []string{"", "oci:", "oci:/a:", "oci::v1", "dir:", "docker-archive:", "debootstrap:", "debootstrap:-x", "a b", "dir:/a\x00b", "UPPER/x", "http://x/y"} {
		if src, err := parseSource(in); err == nil {
			t.Errorf("%q was taken for %+v", in, src)
		}
	}
}

// FuzzParseSource checks that what is accepted has a fixed name that means the same thing again, and only
// absolute paths.
func FuzzParseSource(f *testing.F) {
	for _, s := range []string{"busybox", "debootstrap:sid", "oci:/a:b", "oci:x:y:z", "dir:.", "docker-archive:a.tar", "localhost:5000/x@sha256:" + strings.Repeat("0", 64), "a/b:c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		src, err := parseSource(s)
		if err != nil {
			return
		}
		if src.kind != kindRegistry && src.kind != kindBuild && !filepath.IsAbs(src.path) {
			t.Errorf("%q: path %q", s, src.path)
		}
		again, err := parseSource(src.name())
		if err != nil || again.kind != src.kind || again.name() != src.name() {
			t.Errorf("%q became %q, which became %q, %v", s, src.name(), again.name(), err)
		}
		checkName(src.name())
	})
}

// FuzzDocuments reads any bytes as each of the documents an image brings. What is accepted must hold what the
// rest relies on.
func FuzzDocuments(f *testing.F) {
	img := makeImage(testLayer{tar: emptyTar(), press: gz})
	f.Add(img.manifest)
	f.Add(img.config)
	f.Add(mustJSON(map[string]any{"schemaVersion": 2, "manifests": []any{descriptor(ociImage, img.manifest)}}))
	f.Add([]byte(`[{"Config":"x.json","RepoTags":["a:b"],"Layers":["l/layer.tar"]}]`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:","size":-1,"platform":{}}]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if m, err := parseManifest(raw); err == nil {
			if m.Config.Size > maxConfig || len(m.Layers) > maxLayers {
				t.Error("limits do not hold")
			}
			for _, l := range m.Layers {
				if _, err := v1.NewHash(l.Digest.String()); err != nil || l.Size < 0 {
					t.Errorf("layer %+v: %v", l, err)
				}
			}
			if c, err := parseConfig(raw, len(m.Layers)); err == nil {
				layerRefs(m, c)
			}
		}
		for n := range 3 {
			if c, err := parseConfig(raw, n); err == nil {
				json.Marshal(imageConfig(c))
				for _, d := range c.RootFS.DiffIDs {
					if key := layerKey(d.String()); strings.ContainsAny(key, "/.") || !strings.HasPrefix(key, "sha256-") {
						t.Errorf("layer key %q", key)
					}
				}
			}
		}
		if idx, err := parseIndex(raw); err == nil {
			for _, tag := range []string{"", "v1"} {
				if d, err := pickTag(idx, tag); err == nil && !filepath.IsLocal(blobPath(d.Digest)) {
					t.Errorf("path %q", blobPath(d.Digest))
				}
			}
			pickPlatform(idx)
		}
		if a, err := parseDockerArchive(raw); err == nil {
			digestInName(a.Config)
		}
		isIndex("", raw)
	})
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 5-9/10")
	f.Add("bytes 5-9/*")
	f.Fuzz(func(t *testing.T, s string) {
		if start, total, ok := parseContentRange(s); ok && (start < 0 || total < -1) {
			t.Errorf("%q: %d of %d", s, start, total)
		}
	})
}
