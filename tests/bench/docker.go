package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Debian's: other programs of these names may be about.
const (
	dockerd      = "/usr/sbin/dockerd"
	dockerClient = "/usr/bin/docker"
)

// docker is a daemon of our own and the client to it.
type docker struct {
	daemon *exec.Cmd
	gone   chan struct{}
	log    string
	driver string // of its storage
}

const dockerSocket = "unix:///run/bench-docker.sock"

func (d *docker) argv(args ...string) []string {
	return append([]string{dockerClient, "-H", dockerSocket}, args...)
}

// docker starts the daemon at the first call.
func (b *bench) docker(ctx context.Context) (*docker, error) {
	if b.dockerd == nil && b.dockerErr == nil {
		b.dockerd, b.dockerErr = startDocker(ctx, b.work, "/"+b.tag+"/docker")
		if b.dockerErr != nil {
			say("docker: %v", b.dockerErr)
		}
	}
	return b.dockerd, b.dockerErr
}

func startDocker(ctx context.Context, work, cgroup string) (*docker, error) {
	for _, path := range []string{dockerd, dockerClient} {
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("docker.io is not installed (scripts/setup bench): %w", err)
		}
	}
	var last error
	for _, driver := range []string{"overlay2", "vfs"} {
		d, err := startDockerWith(ctx, work, cgroup, driver)
		if err == nil {
			return d, nil
		}
		last = err
	}
	return nil, last
}

func startDockerWith(ctx context.Context, work, cgroup, driver string) (*docker, error) {
	d := &docker{log: filepath.Join(work, "dockerd.log"), driver: driver, gone: make(chan struct{})}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	config := filepath.Join(work, "docker.json") // not the machine's
	if err := os.WriteFile(config, []byte("{}"), 0o600); err != nil {
		return nil, err
	}
	d.daemon = exec.Command(dockerd, "-H", dockerSocket, "--data-root", filepath.Join(work, "docker"), "--exec-root", "/run/bench-docker",
		"--pidfile", "/run/bench-docker.pid", "--cgroup-parent", cgroup, "--storage-driver", driver, "--exec-opt", "native.cgroupdriver=cgroupfs",
		"--config-file", config)
	d.daemon.Stdout, d.daemon.Stderr = log, log
	if err := d.daemon.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start dockerd: %w", err), log.Close())
	}
	go func() {
		_ = d.daemon.Wait()
		close(d.gone)
	}()
	limit := time.After(30 * time.Second)
	for {
		if _, err = output(ctx, d.argv("info")...); err == nil {
			return d, nil
		}
		select {
		case <-d.gone:
			return nil, fmt.Errorf("dockerd with %s ended: %s", driver, tail(log))
		case <-limit:
			d.stop()
			return nil, fmt.Errorf("dockerd with %s does not answer: %w: %s", driver, err, tail(log))
		case <-ctx.Done():
			d.stop()
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// stop ends the daemon, which ends its containerd.
func (d *docker) stop() {
	_ = d.daemon.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.gone:
	case <-time.After(15 * time.Second):
		_ = d.daemon.Process.Kill()
		<-d.gone
	}
}
