package engines

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// image is a busybox, made here and known to both engines.
const image = "localhost/box:1"

// lrun is the command under test.
func lrun() string { return os.Getenv(lrunEnv) }

// inHouse is a path of the house's.
func inHouse(parts ...string) string {
	return filepath.Join(append([]string{os.Getenv(dirEnv)}, parts...)...)
}

// configure writes the engines' configuration. The limits are there because podman asks for more than a process without
// CAP_SYS_RESOURCE may have; events go to a file, as there is no journal.
func configure(dir string) error {
	files := map[string]string{
		"containers.conf": `[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[network]
network_config_dir = "` + dir + `/networks"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "lrun"
runtime_supports_json = ["lrun"]
image_copy_tmp_dir = "` + dir + `"
[engine.runtimes]
lrun = ["` + lrun() + `"]
`,
		"storage.conf": `[storage]
driver = "overlay"
runroot = "/run/containers/storage"
graphroot = "` + dir + `/podman"
`,
		"registries.conf":                     "unqualified-search-registries = []\n",
		"home/.config/containers/policy.json": `{"default": [{"type": "insecureAcceptAnything"}]}`,
		"containerd.toml": `version = 2
root = "` + dir + `/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "/run/containerd.sock"
`,
	}
	for path, text := range files {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	for key, value := range map[string]string{
		"CONTAINERS_CONF": "containers.conf", "CONTAINERS_STORAGE_CONF": "storage.conf", "CONTAINERS_REGISTRIES_CONF": "registries.conf",
		"HOME": "home", "TMPDIR": "", "XDG_RUNTIME_DIR": "-", "NOTIFY_SOCKET": "-",
	} {
		if value == "-" {
			os.Unsetenv(key)
		} else if err := os.Setenv(key, filepath.Join(dir, value)); err != nil {
			return err
		}
	}
	return nil
}

// makeImage writes an image of busybox as an archive that both engines load.
func makeImage(dir string) error {
	layer, err := rootFS()
	if err != nil {
		return fmt.Errorf("make a root file system: %w", err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil })
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	ref, err := name.ParseReference(image)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(filepath.Join(dir, "box.tar"), ref, img)
}

// rootFS is a layer with busybox, its commands, and the few directories and files that programs look for.
func rootFS() ([]byte, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	busybox, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	list, err := exec.Command(path, "--list").Output()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h *tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err == nil {
			err = w.WriteHeader(h)
		}
		if err == nil {
			_, err = w.Write(content)
		}
	}
	for dir, mode := range map[string]int64{"bin/": 0o755, "dev/": 0o755, "etc/": 0o755, "proc/": 0o555, "root/": 0o700, "run/": 0o755, "sys/": 0o555,
		"tmp/": 0o1777, "data/": 0o755} {
		add(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: mode}, nil)
	}
	for file, text := range map[string]string{"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n",
		"etc/group": "root:x:0:\nuser:x:1000:\n", "data/there": "from the image\n"} {
		add(&tar.Header{Name: file, Typeflag: tar.TypeReg, Mode: 0o644}, []byte(text))
	}
	add(&tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, busybox)
	for _, command := range strings.Fields(string(list)) {
		if command != "busybox" {
			add(&tar.Header{Name: "bin/" + command, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	if err != nil {
		return nil, err
	}
	return b.Bytes(), w.Close()
}
