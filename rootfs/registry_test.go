package rootfs

import (
	"archive/tar"
	"context"
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestRegistryIndexAndPlatforms(t *testing.T) {
	ctx := context.Background()
	s := testStore(t)
	reg := startRegistry(t, nil)
	mine := makeImage(testLayer{tar: makeTar(t, nil, tar.Header{Name: "mine"}), press: gz})
	reg.push(t, "x", mine)
	foreign := makeImage(testLayer{tar: makeTar(t, nil, tar.Header{Name: "foreign"}), press: gz})
	foreign.config = []byte(strings.Replace(string(foreign.config), runtime.GOARCH, "s390x", 1))
	foreign.manifest = mustJSON(map[string]any{"schemaVersion": 2, "mediaType": ociImage, "config": descriptor(ociConfig, foreign.config),
		"layers": []any{descriptor(ociGzip, foreign.layers[0])}})
	bare := reg.push(t, "foreign", foreign)
	reg.push(t, "x", foreign)
	desc := func(img *testImage, arch string) map[string]any {
		d := descriptor(ociImage, img.manifest)
		d["platform"] = map[string]any{"os": "linux", "architecture": arch}
		return d
	}
	put := func(tag string, entries ...any) string {
		reg.put(t, http.MethodPut, "/v2/x/manifests/"+tag, ociIndex, mustJSON(map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": entries}))
		return reg.host + "/x:" + tag
	}
	img, err := s.Pull(ctx, put("both", desc(foreign, "s390x"), desc(mine, runtime.GOARCH)), PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if img.Digest != sha(mine.manifest) {
		t.Errorf("digest %s", img.Digest)
	}
	if _, err := os.Stat(filepath.Join(s.layerFS(img.Layers[0]), "mine")); err != nil {
		t.Error(err)
	}
	if byDigest, err := s.Pull(ctx, reg.host+"/x@"+img.Digest, PullOptions{}); err != nil || byDigest.Digest != img.Digest {
		t.Errorf("by digest: %v", err)
	}
	for _, ref := range []string{put("other", desc(foreign, "s390x")), bare} {
		if _, err := s.Pull(ctx, ref, PullOptions{}); err == nil || !strings.Contains(err.Error(), "s390x") || !strings.Contains(err.Error(), runtime.GOARCH) {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

func TestRegistryCredentials(t *testing.T) {
	ctx := context.Background()
	reg := startRegistry(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
	ref := reg.push(t, "private", makeImage(testLayer{tar: makeTar(t, nil, tar.Header{Name: "f"}), press: gz}))
	docker := t.TempDir()
	t.Setenv("DOCKER_CONFIG", docker)
	s := testStore(t)
	if _, err := s.Pull(ctx, ref, PullOptions{}); err == nil || !strings.Contains(err.Error(), "docker login") {
		t.Errorf("without credentials: %v", err)
	}
	auth := base64.StdEncoding.EncodeToString([]byte("me:secret"))
	if err := os.WriteFile(filepath.Join(docker, "config.json"), mustJSON(map[string]any{"auths": map[string]any{reg.host: map[string]string{"auth": auth}}}), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
		t.Errorf("with credentials: %v", err)
	}
}

func TestPullKeepsToItsLimits(t *testing.T) {
	ctx := context.Background()
	ref := "oci:" + writeLayout(t, makeImage(testLayer{tar: makeTar(t, map[string]string{"a": "12345"}, tar.Header{Name: "a"}, tar.Header{Name: "b"}), press: gz}))
	for want, o := range map[string]PullOptions{"larger than 4 bytes": {MaxBytes: 4}, "more than 1 entries": {MaxEntries: 1}} {
		s := testStore(t)
		if _, err := s.Pull(ctx, ref, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
		assertEmpty(t, s)
	}
}

// A whiteout for what no layer below has must not show, not even in a directory that only one layer has.
func TestIdleWhiteoutsDoNotShow(t *testing.T) {
	ctx := context.Background()
	s := testStore(t)
	for name, layers := range map[string][]testLayer{
		"lowest": {{tar: makeTar(t, nil, tar.Header{Name: "only/.wh.x"}, tar.Header{Name: "only/y"}), press: gz}},
		"upper": {{tar: makeTar(t, nil, tar.Header{Name: "f"}), press: gz},
			{tar: makeTar(t, nil, tar.Header{Name: "only/.wh.x"}, tar.Header{Name: "only/y"}), press: gz}},
		"again and again": {
			{tar: makeTar(t, nil, tar.Header{Name: "only/.wh.x"}, tar.Header{Name: "only/old"}), press: gz},
			{tar: makeTar(t, nil, tar.Header{Name: ".wh.only"}), press: gz},
			{tar: makeTar(t, nil, tar.Header{Name: "only/.wh.x"}, tar.Header{Name: "only/y"}), press: gz}},
	} {
		img, err := s.Pull(ctx, "oci:"+writeLayout(t, makeImage(layers...)), PullOptions{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		for _, readOnly := range []bool{false, true} {
			lines := strings.Join(mountedTree(t, s, img, readOnly), "\n")
			if strings.Contains(lines, "only/x") || strings.Contains(lines, "only/old") || !strings.Contains(lines, "only/y") {
				t.Errorf("%s, read-only %v:\n%s", name, readOnly, lines)
			}
		}
	}
}
