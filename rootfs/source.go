package rootfs

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// Kinds of sources.
const (
	kindRegistry = "registry"
	kindLayout   = "oci"
	kindArchive  = "docker-archive"
	kindDir      = "dir"
	kindBuild    = "build"
)

// A source is where an image comes from, taken apart.
type source struct {
	kind string
	path string         // of layouts, archives and directories, absolute; for builds what to build
	tag  string         // of layouts, or the suite of builds
	ref  name.Reference // of registries
}

var layoutTag = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}$`)

// parseSource reads the syntax of Pull and Ensure:
//
//	busybox, debootstrap[:SUITE]   built on this machine
//	oci:DIR[:TAG]                  an OCI image layout
//	docker-archive:FILE            what docker save or podman save wrote
//	dir:PATH                       a plain root file system
//	anything else                  a registry reference, completed as docker does
func parseSource(s string) (source, error) {
	if s == "" {
		return source{}, fmt.Errorf("the image reference is empty: write for example busybox, registry.example/team/app:1, oci:DIR or dir:PATH")
	}
	if strings.IndexByte(s, 0) >= 0 {
		return source{}, fmt.Errorf("the image reference %q holds a zero byte", s)
	}
	switch {
	case s == "busybox":
		return source{kind: kindBuild, path: s}, nil
	case s == "debootstrap":
		return source{kind: kindBuild, path: s, tag: defaultSuite}, nil
	}
	if suite, ok := strings.CutPrefix(s, "debootstrap:"); ok {
		if !suiteName.MatchString(suite) {
			return source{}, fmt.Errorf("%q is no Debian suite: write for example debootstrap:%s", suite, defaultSuite)
		}
		return source{kind: kindBuild, path: "debootstrap", tag: suite}, nil
	}
	for _, kind := range []string{kindLayout, kindArchive, kindDir} {
		path, ok := strings.CutPrefix(s, kind+":")
		if !ok {
			continue
		}
		src := source{kind: kind, path: path}
		if kind == kindLayout {
			if i := strings.LastIndexByte(path, ':'); i >= 0 && !strings.Contains(path[i:], "/") {
				src.path, src.tag = path[:i], path[i+1:]
				if !layoutTag.MatchString(src.tag) {
					return source{}, fmt.Errorf("%q: %q is no tag; write oci:DIR[:TAG]", s, src.tag)
				}
			}
		}
		if src.path == "" {
			return source{}, fmt.Errorf("%q names no path; write %s:PATH", s, kind)
		}
		abs, err := filepath.Abs(src.path)
		if err != nil {
			return source{}, fmt.Errorf("%q: %w", s, err)
		}
		src.path = abs
		return src, nil
	}
	ref, err := name.ParseReference(s, name.WeakValidation)
	if err != nil {
		return source{}, fmt.Errorf("image reference %q: %w", s, err)
	}
	return source{kind: kindRegistry, ref: ref}, nil
}

// name is the catalogue name of what comes from the source when nobody gives another: registry references the
// way people write them, with their tag.
func (s source) name() string {
	switch s.kind {
	case kindRegistry:
		n := s.ref.Name()
		if rest, ok := strings.CutPrefix(n, name.DefaultRegistry+"/"); ok {
			n = strings.TrimPrefix(rest, "library/")
			// A short name that means something else here keeps its registry.
			if short, err := parseSource(n); err != nil || short.kind != kindRegistry {
				n = "docker.io/" + rest
			}
		}
		return n
	case kindBuild:
		if s.tag == "" {
			return s.path
		}
		return s.path + ":" + s.tag
	}
	if s.tag != "" {
		return s.kind + ":" + s.path + ":" + s.tag
	}
	return s.kind + ":" + s.path
}
