package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// sd_notify(3): a service manager that started us gave a socket in NOTIFY_SOCKET. The container gets one of its own, and
// what its process says of its readiness is passed on, with its pid.

const notifyInside = "/run/notify"

// offerNotify puts a directory for the socket into the container.
func (a *app) offerNotify(r *record, spec *specs.Spec) error {
	dir := filepath.Join(a.dir(r.ID), notifyName)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	r.Notify = true
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: notifyInside, Type: "bind", Source: dir, Options: []string{"bind", "nosuid", "noexec", "nodev"}})
	spec.Process.Env = append(spec.Process.Env, "NOTIFY_SOCKET="+notifyInside+"/notify.sock")
	return nil
}

// listenNotify makes the socket, before the process begins; nil when nobody wants to know.
func (a *app) listenNotify(r *record) (*net.UnixConn, error) {
	if !r.Notify || os.Getenv("NOTIFY_SOCKET") == "" {
		return nil, nil
	}
	path := filepath.Join(a.dir(r.ID), notifyName, "notify.sock")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o777); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// forwardNotify waits until the process has said that it is ready, or has ended.
func forwardNotify(c *net.UnixConn, r *record) error {
	if c == nil {
		return nil
	}
	defer c.Close()
	host := os.Getenv("NOTIFY_SOCKET")
	buf := make([]byte, 4096)
	for {
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := c.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if !r.alive() {
				return nil
			}
			continue
		}
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(buf[:n])) {
			if strings.TrimSpace(line) == "READY=1" {
				return passOn(host, r.PID)
			}
		}
	}
}

func passOn(host string, pid int) error {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: host, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte("READY=1\nMAINPID=" + strconv.Itoa(pid) + "\n"))
	return err
}
