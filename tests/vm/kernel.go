package vm

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// kernel is one unpacked in the cache.
type kernel struct {
	image   string // an ELF vmlinux (boots by PVH, a second sooner), or the bzImage it did not come out of
	modules string // lib/modules/<version>, with dependencies listed
}

// kernelEnv names another kernel package than the default, to try what an older kernel lacks:
//
//	LEARNOS_VM_KERNEL=linux-image-cloud-amd64 go test -exec $PWD/bin/vmexec ./netbridge
const kernelEnv = "LEARNOS_VM_KERNEL"

// kernelPackages are tried in this order: the newest cloud kernel of Debian's backports and security pockets, then the
// release's own.
var kernelPackages = []string{"linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"}

var dependsLine = regexp.MustCompile(`(?m)^\s*Depends: (linux-image-[0-9][^\s<>]*)$`)

// getKernel downloads and unpacks a kernel (never installs it), once for all processes. What is in the cache is used
// without asking for a newer one.
func getKernel(ctx context.Context, cache string) (*kernel, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	dir, packages := filepath.Join(cache, "kernel"), kernelPackages
	if name := os.Getenv(kernelEnv); name != "" {
		if name != filepath.Base(name) || strings.HasPrefix(name, "-") {
			return nil, fmt.Errorf("%s=%q is no package's name", kernelEnv, name)
		}
		dir, packages = dir+"-"+name, []string{name}
	}
	if k, err := findKernel(dir); err == nil {
		return k, nil
	}
	if err := os.RemoveAll(dir + ".tmp"); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir+".tmp", 0o755); err != nil {
		return nil, err
	}
	fmt.Fprintln(os.Stderr, "vmexec: downloading a kernel into", cache)
	if err := unpackKernel(ctx, packages, dir+".tmp"); err != nil {
		return nil, fmt.Errorf("get a kernel: %w", err)
	}
	if err := errors.Join(os.RemoveAll(dir), os.Rename(dir+".tmp", dir)); err != nil {
		return nil, err
	}
	return findKernel(dir)
}

func findKernel(dir string) (*kernel, error) {
	modules, err := filepath.Glob(filepath.Join(dir, "lib", "modules", "*"))
	if err != nil || len(modules) != 1 {
		return nil, fmt.Errorf("%s: want the modules of one kernel, have %v", dir, modules)
	}
	for _, name := range []string{"vmlinux", "vmlinuz"} {
		if image := filepath.Join(dir, name); fileExists(image) {
			return &kernel{image: image, modules: modules[0]}, nil
		}
	}
	return nil, fmt.Errorf("%s holds no kernel", dir)
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func unpackKernel(ctx context.Context, packages []string, dir string) error {
	name, err := kernelPackage(ctx, packages)
	if err != nil {
		return err
	}
	if _, err := run(ctx, dir, "apt-get", "download", name); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get download %s left %v", name, debs)
	}
	if _, err := run(ctx, dir, "dpkg-deb", "-x", debs[0], "."); err != nil {
		return err
	}
	if err := os.Remove(debs[0]); err != nil {
		return err
	}
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("%s holds the kernels %v, want one", name, images)
	}
	raw, err := os.ReadFile(images[0])
	if err != nil {
		return err
	}
	if elf, err := extractVmlinux(raw); err == nil {
		if err := os.WriteFile(filepath.Join(dir, "vmlinux"), elf, 0o644); err != nil {
			return err
		}
	} else if err := os.Rename(images[0], filepath.Join(dir, "vmlinuz")); err != nil { // boots too, only later
		return err
	}
	for _, rest := range []string{"boot", "usr", "etc"} {
		if err := os.RemoveAll(filepath.Join(dir, rest)); err != nil {
			return err
		}
	}
	return indexModules(ctx, dir)
}

// kernelPackage resolves the first of the meta packages that there is to the package that holds the kernel.
func kernelPackage(ctx context.Context, packages []string) (string, error) {
	var errs []error
	for _, meta := range packages {
		out, err := run(ctx, "", "apt-cache", "depends", meta)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if m := dependsLine.FindStringSubmatch(out); m != nil {
			return m[1], nil
		}
		errs = append(errs, fmt.Errorf("%s depends on no kernel: %s", meta, out))
	}
	return "", fmt.Errorf("find a cloud kernel (apt-get update may help): %w", errors.Join(errs...))
}

// extractVmlinux takes the ELF image out of a bzImage (kernel documentation, arch/x86/boot: payload_offset and
// payload_length).
func extractVmlinux(bz []byte) ([]byte, error) {
	if len(bz) < 0x250 || string(bz[0x202:0x206]) != "HdrS" {
		return nil, errors.New("no bzImage")
	}
	setup := int(bz[0x1f1])
	if setup == 0 {
		setup = 4
	}
	from := (setup+1)*512 + int(binary.LittleEndian.Uint32(bz[0x248:]))
	to := from + int(binary.LittleEndian.Uint32(bz[0x24c:]))
	if from < 0 || to > len(bz) || to < from+8 {
		return nil, errors.New("payload lies outside the image")
	}
	payload := bz[from : to-4] // its last four bytes are the unpacked size
	var out []byte
	var err error
	switch {
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(nil, zstd.WithDecoderMaxMemory(1<<30), zstd.WithDecoderMaxWindow(1<<29)); err == nil {
			out, err = d.DecodeAll(payload, nil)
			d.Close()
		}
	case bytes.HasPrefix(payload, []byte{0xfd, '7', 'z', 'X', 'Z'}):
		cmd := exec.Command("xz", "-dc", "--single-stream")
		cmd.Stdin = bytes.NewReader(payload)
		out, err = cmd.Output()
	default:
		err = fmt.Errorf("compressed in a way that begins with % x", payload[:6])
	}
	if err != nil {
		return nil, fmt.Errorf("unpack vmlinux: %w", err)
	}
	if _, err := elf.NewFile(bytes.NewReader(out)); err != nil {
		return nil, fmt.Errorf("unpack vmlinux: %w", err)
	}
	return out, nil
}

// indexModules unpacks compressed modules, for busybox's modprobe in the guest, and lists what needs what.
func indexModules(ctx context.Context, dir string) error {
	var packed []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".ko.xz") {
			packed = append(packed, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	for len(packed) > 0 {
		n := min(len(packed), 200)
		if _, err := run(ctx, "", "xz", append([]string{"-d"}, packed[:n]...)...); err != nil {
			return err
		}
		packed = packed[n:]
	}
	modules, err := filepath.Glob(filepath.Join(dir, "lib", "modules", "*"))
	if err != nil || len(modules) != 1 {
		return fmt.Errorf("want the modules of one kernel, have %v", modules)
	}
	_, err = run(ctx, "", "busybox", "depmod", "-b", dir, filepath.Base(modules[0]))
	return err
}

func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args[:min(len(args), 4)], " "), err, bytes.TrimSpace(out))
	}
	return string(out), nil
}
