package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is what the figures were taken on.
type Machine struct {
	Kernel  string `json:"kernel"`
	System  string `json:"system"`
	CPU     string `json:"cpu"`
	Cores   int    `json:"cores"`
	Memory  int64  `json:"memoryBytes"`
	Cgroups string `json:"cgroups"`
	// Load is the load average of the last minute when the run began: what else was going on.
	Load string `json:"load"`
}

func machine() Machine {
	m := Machine{Cores: runtime.NumCPU(), Kernel: runtime.GOOS, CPU: runtime.GOARCH, Cgroups: "v1"}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
	}
	m.System = field("/etc/os-release", "PRETTY_NAME", "=")
	if name := field("/proc/cpuinfo", "model name", ":"); name != "" {
		m.CPU = name
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.Memory = int64(info.Totalram) * int64(info.Unit)
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		m.Cgroups = "v2"
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load, _, _ = strings.Cut(string(b), " ")
	}
	return m
}

// field finds a line "name <separator> value" in a file.
func field(path, name, separator string) string {
	b, _ := os.ReadFile(path)
	for line := range strings.Lines(string(b)) {
		key, value, ok := strings.Cut(line, separator)
		if ok && strings.TrimSpace(key) == name {
			return strings.Trim(strings.TrimSpace(value), `"`)
		}
	}
	return ""
}

func versions(ctx context.Context, b *bench) (all []Version) {
	for _, argv := range [][]string{
		{filepath.Join(b.bin, "lrun"), "--version"}, {"crun", "--version"}, {"runc", "--version"}, {"bwrap", "--version"},
		{"podman", "--version"}, {dockerd, "--version"},
	} {
		v := Version{Program: filepath.Base(argv[0])}
		out, err := output(ctx, argv...)
		if v.Says, _, _ = strings.Cut(strings.TrimSpace(out), "\n"); err != nil {
			v.Says = oneLine(err)
		}
		all = append(all, v)
	}
	return all
}

// newOutput is an unnamed file for a command's output.
func newOutput() (*os.File, error) {
	fd, err := unix.MemfdCreate("output", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("file for a command's output: %w", err)
	}
	return os.NewFile(uintptr(fd), "output"), nil
}

// tail is the end of a command's output.
func tail(f *os.File) string {
	size, _ := f.Seek(0, io.SeekEnd)
	b := make([]byte, 1000)
	n, _ := f.ReadAt(b, max(0, size-int64(len(b))))
	return strings.TrimSpace(string(b[:n]))
}
