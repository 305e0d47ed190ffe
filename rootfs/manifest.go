package rootfs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"sort"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Documents of an image are small; what is larger than this was not meant to be read.
const (
	maxManifest = 4 << 20 // what registries must take (distribution-spec, "Pushing Manifests")
	maxConfig   = 8 << 20
	maxLayers   = 500 // what overlayfs stacks
	maxNesting  = 4   // of indexes
)

// A layerRef is one layer of an image as its documents promise it.
type layerRef struct {
	digest string // of the blob, compressed or not; "" if the source does not say
	size   int64  // of the blob; -1 if the source does not say
	diffID string // of the uncompressed tar
	path   string // of the blob in an archive
}

func (l layerRef) String() string {
	if l.digest != "" {
		return l.digest
	}
	return l.diffID
}

var errNoImage = errors.New("this is no container image")

func decode(raw []byte, what string, v any) error {
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("read %s: %w", what, err)
	}
	return nil
}

// parseManifest reads an image manifest, OCI or Docker schema 2 (image-spec manifest.md), and checks what this
// package relies on.
func parseManifest(raw []byte) (*v1.Manifest, error) {
	var m v1.Manifest
	if err := decode(raw, "image manifest", &m); err != nil {
		return nil, err
	}
	if m.SchemaVersion != 2 {
		return nil, fmt.Errorf("image manifest is of schema version %d; only 2 is known: push the image again with a newer tool", m.SchemaVersion)
	}
	if m.Config.Digest.Algorithm == "" {
		return nil, fmt.Errorf("%w: its manifest names no configuration", errNoImage)
	}
	if !m.Config.MediaType.IsConfig() {
		return nil, fmt.Errorf("%w but %q", errNoImage, m.Config.MediaType)
	}
	if m.Config.Size < 0 || m.Config.Size > maxConfig {
		return nil, fmt.Errorf("image configuration of %d bytes; %d are the limit", m.Config.Size, maxConfig)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("image has %d layers; %d are the limit", len(m.Layers), maxLayers)
	}
	for _, l := range m.Layers {
		if l.Digest.Algorithm == "" || l.Size < 0 {
			return nil, fmt.Errorf("image manifest has a layer without digest or size")
		}
		if !l.MediaType.IsLayer() {
			return nil, fmt.Errorf("layer %s is of the unknown type %q", l.Digest, l.MediaType)
		}
	}
	return &m, nil
}

// parseIndex reads an image index, OCI or Docker manifest list (image-spec image-index.md).
func parseIndex(raw []byte) (*v1.IndexManifest, error) {
	var idx v1.IndexManifest
	if err := decode(raw, "image index", &idx); err != nil {
		return nil, err
	}
	for _, d := range idx.Manifests {
		if d.Digest.Algorithm == "" || d.Size < 0 {
			return nil, errors.New("image index has an entry without digest or size")
		}
	}
	return &idx, nil
}

// parseConfig reads an image configuration (image-spec config.md) and makes sure that it is for this machine and
// has one diff id for each of the given number of layers.
func parseConfig(raw []byte, layers int) (*v1.ConfigFile, error) {
	var c v1.ConfigFile
	if err := decode(raw, "image configuration", &c); err != nil {
		return nil, err
	}
	if c.OS != "" && c.OS != "linux" || c.Architecture != "" && c.Architecture != runtime.GOARCH {
		return nil, fmt.Errorf("the image is for %s/%s, this machine is linux/%s", c.OS, c.Architecture, runtime.GOARCH)
	}
	if len(c.RootFS.DiffIDs) != layers {
		return nil, fmt.Errorf("the image has %d layers, but its configuration speaks of %d", layers, len(c.RootFS.DiffIDs))
	}
	for _, d := range c.RootFS.DiffIDs {
		if d.Algorithm == "" {
			return nil, errors.New("image configuration has an empty diff id")
		}
	}
	return &c, nil
}

// pickTag chooses the descriptor of a layout's index that carries the tag. Without a tag there must be nothing
// to choose, or only between platforms.
func pickTag(idx *v1.IndexManifest, tag string) (v1.Descriptor, error) {
	var tags []string
	var found []v1.Descriptor
	for _, d := range idx.Manifests {
		name := d.Annotations["org.opencontainers.image.ref.name"]
		if name != "" {
			tags = append(tags, name)
		}
		if tag == "" || name == tag || strings.HasSuffix(name, ":"+tag) {
			found = append(found, d)
		}
	}
	sort.Strings(tags)
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		if d, err := pickPlatform(&v1.IndexManifest{Manifests: found}); err == nil {
			return d, nil
		}
		if tag == "" {
			return v1.Descriptor{}, fmt.Errorf("the layout holds several images, choose one by its tag: %s", strings.Join(tags, ", "))
		}
		return v1.Descriptor{}, fmt.Errorf("the layout holds several images with the tag %q", tag)
	case tag != "":
		return v1.Descriptor{}, fmt.Errorf("the layout has no image with the tag %q; it has: %s", tag, strings.Join(tags, ", "))
	}
	return v1.Descriptor{}, errors.New("the layout is empty")
}

// pickPlatform chooses the one image of an index that is for this machine.
func pickPlatform(idx *v1.IndexManifest) (v1.Descriptor, error) {
	var offered []string
	var found []v1.Descriptor
	for _, d := range idx.Manifests {
		if d.Platform == nil {
			if d.MediaType.IsImage() || d.MediaType.IsIndex() {
				found = append(found, d)
			}
			continue
		}
		if d.Platform.OS == "linux" && d.Platform.Architecture == runtime.GOARCH {
			// Variants come from the most to the least general; the first is right for all machines.
			return d, nil
		}
		offered = append(offered, d.Platform.String())
	}
	if len(found) == 1 && len(offered) == 0 {
		return found[0], nil
	}
	return v1.Descriptor{}, fmt.Errorf("there is no image for linux/%s; there are: %s", runtime.GOARCH, strings.Join(offered, ", "))
}

// layerRefs pairs a manifest's layers with the diff ids of the configuration.
func layerRefs(m *v1.Manifest, c *v1.ConfigFile) []layerRef {
	refs := make([]layerRef, len(m.Layers))
	for i, l := range m.Layers {
		refs[i] = layerRef{digest: l.Digest.String(), size: l.Size, diffID: c.RootFS.DiffIDs[i].String()}
	}
	return refs
}

// A dockerArchive is one entry of the manifest.json of a docker save archive.
type dockerArchive struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func parseDockerArchive(raw []byte) (*dockerArchive, error) {
	var list []dockerArchive
	if err := decode(raw, "manifest.json", &list); err != nil {
		return nil, err
	}
	if len(list) != 1 {
		var names []string
		for _, a := range list {
			names = append(names, a.RepoTags...)
		}
		return nil, fmt.Errorf("the archive holds %d images (%s); save one alone", len(list), strings.Join(names, ", "))
	}
	if len(list[0].Layers) > maxLayers {
		return nil, fmt.Errorf("image has %d layers; %d are the limit", len(list[0].Layers), maxLayers)
	}
	return &list[0], nil
}

// isIndex says whether a document is an index; layouts may leave the type to be guessed.
func isIndex(mediaType types.MediaType, raw []byte) bool {
	return mediaType.IsIndex() || !mediaType.IsImage() && bytes.Contains(raw, []byte(`"manifests"`))
}

// imageConfig takes over what matters for running the image.
func imageConfig(c *v1.ConfigFile) ImageConfig {
	out := ImageConfig{
		Env: c.Config.Env, Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd,
		WorkingDir: c.Config.WorkingDir, User: c.Config.User, Labels: c.Config.Labels,
	}
	if len(c.Config.ExposedPorts) > 0 {
		out.ExposedPorts = sortedKeys(c.Config.ExposedPorts)
	}
	return out
}
