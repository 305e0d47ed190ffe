package main

import (
	"context"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// podman is the command on roots of our own.
type podman struct{ path, work, cgroup string }

func (b *bench) podman() (*podman, error) {
	path, err := program("podman")
	if err != nil {
		return nil, err
	}
	return &podman{path: path, work: filepath.Join(b.work, "podman"), cgroup: "/" + b.tag + "/podman"}, nil
}

func (p *podman) argv(args ...string) []string {
	return append([]string{p.path, "--root", p.work + "/root", "--runroot", "/run/podman-bench", "--tmpdir", "/run/podman-bench/tmp",
		"--cgroup-manager", "cgroupfs", "--events-backend", "none"}, args...)
}

// run is `podman run --rm`. Hard limits are our own: raising them, as podman does, takes a capability that root may lack.
func (p *podman) run(args ...string) []string {
	flags := []string{"run", "--rm", "--log-driver", "none", "--cgroup-parent", p.cgroup}
	for name, which := range map[string]int{"nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC} {
		var r unix.Rlimit
		if unix.Getrlimit(which, &r) == nil {
			limit := int64(r.Max) // RLIM_INFINITY is -1
			flags = append(flags, "--ulimit", fmt.Sprintf("%s=%d:%d", name, limit, limit))
		}
	}
	return p.argv(append(flags, args...)...)
}

func (p *podman) pull(ctx context.Context, ref string) error {
	_, err := output(ctx, p.argv("pull", "--quiet", "--tls-verify=false", ref)...)
	return err
}
