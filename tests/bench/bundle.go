package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/learnos/learnos/runtime"
)

// firstID is the first of the host's ids that a user namespace of the benchmark gets: high, since nobody needs them.
const firstID = 1 << 30

// spec is the configuration that every runtime is given: what engines ask for. All namespaces but, unless asked for, the
// user namespace; moby's seccomp profile and capabilities, a cgroup with limits of memory and processes, masked and
// read-only paths.
func spec(rootfs string, users bool, args ...string) (*specs.Spec, error) {
	s := runtime.OCISpec()
	s.Version = "1.0.2" // the newest that all peers say they know
	s.Root.Path = rootfs
	s.Process.Terminal = false
	s.Process.Args = args
	s.Hostname = "bench"
	memory, pids := int64(256<<20), int64(256)
	s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &memory}
	s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
	if users {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: firstID, Size: 1 << 16}}
		s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids
	}
	// As moby gives it: what runtime.DefaultSeccomp adds to it, libseccomp can't do.
	profile, err := seccomp.GetDefaultProfile(s)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	s.Linux.Seccomp = profile
	return s, nil
}

// bundle writes an OCI bundle.
func (b *bench) bundle(name string, s *specs.Spec) (string, error) {
	dir := filepath.Join(b.work, "bundle-"+name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	body, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "config.json"), body, 0o644)
}

// rootfs makes a root file system of one busybox.
func (b *bench) rootfs() (string, error) {
	root := filepath.Join(b.work, "rootfs")
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}
	if err := os.Chmod(b.work, 0o711); err != nil { // a user namespace's root is a stranger here
		return "", err
	}
	busybox, err := staticBusybox()
	if err != nil {
		return "", err
	}
	for _, dir := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "root", "var"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return "", err
		}
	}
	body, err := os.ReadFile(busybox)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), body, 0o755); err != nil {
		return "", err
	}
	for _, applet := range []string{"sh", "true", "sleep"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil {
			return "", err
		}
	}
	return root, nil
}

func staticBusybox() (string, error) {
	for _, path := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	_, err := exec.LookPath("busybox")
	return "", errors.Join(fmt.Errorf("busybox-static is not installed"), err)
}
