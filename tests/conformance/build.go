package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	module    = "github.com/opencontainers/runtime-tools"
	moduleDir = "tests/conformance/suite" // where its versions are pinned
)

// goBuild runs go build in a directory of the checkout.
func goBuild(ctx context.Context, dir string, env []string, args ...string) error {
	_, err := goCommand(ctx, dir, env, append([]string{"build"}, args...)...)
	return err
}

func goCommand(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s (in the repository's root?): %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
}

// build puts the validation programs into work/bin, and beside it what they want to find in their working directory:
// runtimetest, which looks at a container from inside, and a root file system.
func build(ctx context.Context, work string) error {
	bin := filepath.Join(work, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	if err := goBuild(ctx, moduleDir, nil, "-o", bin+"/", module+"/validation/..."); err != nil {
		return err
	}
	overlay, err := keepLimits(ctx, work)
	if err != nil {
		return err
	}
	if err := goBuild(ctx, moduleDir, []string{"CGO_ENABLED=0"}, "-overlay", overlay, "-o", filepath.Join(work, "runtimetest"), module+"/cmd/runtimetest"); err != nil {
		return err
	}
	dir, err := goCommand(ctx, moduleDir, nil, "list", "-m", "-f", "{{.Dir}}", module)
	if err != nil {
		return err
	}
	roots, err := filepath.Glob(filepath.Join(dir, "rootfs-*.tar.gz"))
	if err != nil {
		return err
	}
	for _, root := range roots {
		if err := uncompressed(filepath.Join(work, filepath.Base(root)), root); err != nil {
			return err
		}
	}
	return nil
}

// keepLimits writes an overlay of Go's own library in which a program doesn't raise its limit of open files as it starts,
// as all do since Go 1.19. runtimetest, which is older, could otherwise never see the limit that a container was given.
func keepLimits(ctx context.Context, work string) (overlay string, err error) {
	root, err := goCommand(ctx, moduleDir, nil, "env", "GOROOT")
	if err != nil {
		return "", err
	}
	library := filepath.Join(root, "src", "syscall", "rlimit.go")
	source, err := os.ReadFile(library)
	if err != nil {
		return "", err
	}
	changed := bytes.Replace(source, []byte("\nfunc init() {"), []byte("\nfunc raiseLimit() {"), 1)
	if bytes.Equal(changed, source) {
		return "", errors.New("syscall/rlimit.go is not as it was: see where Go raises its limit of open files now")
	}
	replacement := filepath.Join(work, "rlimit.go")
	if err := os.WriteFile(replacement, changed, 0o644); err != nil {
		return "", err
	}
	b, err := json.Marshal(map[string]any{"Replace": map[string]string{library: replacement}})
	if err != nil {
		return "", err
	}
	overlay = filepath.Join(work, "overlay.json")
	return overlay, os.WriteFile(overlay, b, 0o644)
}

// uncompressed writes a tar without its gzip, which tar doesn't miss and an emulated processor is slow at.
func uncompressed(to, from string) error {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.Command("gzip", "-dc", from)
	cmd.Stdout = f
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("unpack %s: %w", from, err)
	}
	return f.Close()
}
