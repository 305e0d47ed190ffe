package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// stageVariable is set inside the namespaces, to the work directory; with initVariable set too, we are their PID 1.
const (
	stageVariable = "LEARNOS_BENCH_WORK"
	initVariable  = "LEARNOS_BENCH_INIT"
)

func init() {
	if os.Getenv(initVariable) != "" {
		os.Exit(first())
	}
}

// outside starts this program again in namespaces of its own, and removes what they leave.
func outside(work string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("containers need root: run it as root")
	}
	// The name must be unique on the machine and fit into a cgroup's, a bridge's and a container's.
	if work, err = os.MkdirTemp(work, "lbench"); err != nil {
		return err
	}
	defer func() {
		if cerr := clear(work); cerr != nil {
			err = errors.Join(cerr, err)
			say("%v", cerr)
		}
	}()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageVariable+"="+work, initVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // an interrupt at the terminal is for us, who pass it on once
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start in namespaces of our own: %w", err)
	}
	go func() {
		for range signals {
			_ = cmd.Process.Signal(syscall.SIGTERM)
		}
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &status{exit.ExitCode()} // it has said why
	}
	return err
}

// status is the exit status of the program inside.
type status struct{ code int }

func (s *status) Error() string { return fmt.Sprintf("exit status %d", s.code) }

// clear removes the cgroups and files of a run whose processes and mounts have gone with their namespaces.
func clear(work string) error {
	owned, err := os.ReadFile(filepath.Join(work, cgroupsFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var errs []error
	for _, name := range append(strings.Fields(string(owned)), filepath.Base(work)) {
		groups, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup/*", name))
		for _, g := range append(groups, filepath.Join("/sys/fs/cgroup", name)) {
			errs = append(errs, removeGroup(g))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(work))...)
}

// cgroupsFile, in the work directory, lists cgroups that have to go at the end besides the one named like it.
const cgroupsFile = "cgroups"

// ownGroup notes a cgroup that is ours.
func (b *bench) ownGroup(name string) error {
	f, err := os.OpenFile(filepath.Join(b.work, cgroupsFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, name)
	return errors.Join(err, f.Close())
}

// removeGroup removes a cgroup and those below it. Their processes are dead, though some may not know it yet.
func removeGroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeGroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for try := 0; ; try++ {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if try == 100 {
			return fmt.Errorf("remove cgroup: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// first is PID 1: it prepares the namespaces, starts the program a third time, and reaps until that ends.
func first() int {
	os.Unsetenv(initVariable)
	if err := furnish(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: prepare namespaces:", err)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		for s := range signals {
			_ = syscall.Kill(cmd.Process.Pid, s.(syscall.Signal))
		}
	}()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			fmt.Fprintln(os.Stderr, "bench: wait:", err)
			return 1
		case pid == cmd.Process.Pid && ws.Exited():
			return ws.ExitStatus()
		case pid == cmd.Process.Pid && ws.Signaled():
			return 128 + int(ws.Signal())
		}
	}
}

func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// What programs keep about containers, their locks and sockets included, is then nobody else's.
	for _, dir := range []string{"/run", "/dev/shm", "/var/lib"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	// docker writes a key there, podman a network.
	for _, dir := range []string{"/run/etc/upper", "/run/etc/work"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work"); err != nil {
		return fmt.Errorf("mount an overlay on /etc: %w", err)
	}
	const unified = "/sys/fs/cgroup/unified"
	if _, err := os.Stat(unified); err == nil {
		if err := unix.Unmount(unified, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
			return fmt.Errorf("unmount %s: %w", unified, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}
