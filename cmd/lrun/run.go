package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/runtime"
)

func runCommand(a *app, args []string) error {
	var b birth
	f := b.flags("run")
	f.bool(&b.detach, "detach", "return when the process has begun")
	f.bool(&b.keep, "keep", "do not delete the container when its process ends")
	f.bool(new(bool), "no-subreaper", "accepted; it never is one")
	f.alias("d", "detach")
	id, err := f.id(args)
	if err != nil {
		return err
	}
	m, err := a.make(id, &b, false)
	if err != nil {
		return err
	}
	defer m.process.Close()
	fail := func(err error) error {
		m.process.Abort()
		m.record.PID = 0 // reaped
		a.remove(m.record, true)
		return err
	}
	if m.record.NoProcess {
		return fail(fmt.Errorf("container %q can't be started: its config.json has no process", id))
	}
	notify, err := a.listenNotify(m.record)
	if err != nil {
		return fail(err)
	}
	if err := m.process.Begin(); err != nil {
		return fail(err)
	}
	if err := a.poststart(m.record, m.spec); err != nil {
		return fail(err)
	}
	if b.detach {
		return forwardNotify(notify, m.record)
	}
	if notify != nil {
		go func() {
			if err := forwardNotify(notify, m.record); err != nil {
				a.warn("sd_notify: " + err.Error())
			}
		}()
	}
	code := attend(m.process.PID, m.terminal)
	if !b.keep {
		lock, err := a.lock(id)
		if err == nil {
			m.record.PID = 0
			err = a.remove(m.record, true)
			lock.Close()
		}
		if _, gone := os.Stat(a.dir(id)); err != nil && gone == nil { // else somebody else has deleted it
			return err
		}
	}
	return status(code)
}

func status(code int) error {
	if code == 0 {
		return nil
	}
	return exitStatus(code)
}

// attend is with a child of ours until it ends: it passes on signals, and the terminal both ways.
func attend(pid int, terminal *os.File) int {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGCONT)
	defer signal.Stop(signals)
	var console *console
	if terminal != nil {
		console = openConsole(terminal)
		defer console.close()
	}
	// Whoever waits, reaps; a signal that comes later would be somebody else's.
	var mu sync.Mutex
	reaped := false
	go func() {
		for s := range signals {
			if s == syscall.SIGWINCH {
				if console != nil {
					console.resize()
				}
				continue
			}
			mu.Lock()
			if !reaped {
				unix.Kill(pid, s.(syscall.Signal))
			}
			mu.Unlock()
		}
	}()
	// Seen to have ended first, reaped second: in between the number is still its own.
	var info unix.Siginfo
	for unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	mu.Lock()
	var status unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &status, 0, nil); err != unix.EINTR {
			break
		}
	}
	reaped = true
	mu.Unlock()
	if console != nil {
		console.drain()
	}
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// console joins our own terminal, or whatever stands for it, to a container's.
type console struct {
	master *os.File
	old    *unix.Termios
	output chan struct{}
}

func openConsole(master *os.File) *console {
	c := &console{master: master, output: make(chan struct{})}
	if t, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		c.old = t
		raw := *t
		raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
		raw.Oflag &^= unix.OPOST
		raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
		raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
		unix.IoctlSetTermios(0, unix.TCSETS, &raw)
	}
	c.resize()
	go func() {
		pump(os.Stdout, master)
		close(c.output)
	}()
	go pump(master, os.Stdin)
	return c
}

func pump(to, from *os.File) {
	buf := make([]byte, 32<<10)
	for {
		n, err := runtime.ReadTerminal(from, buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (c *console) resize() {
	if size, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ); err == nil {
		unix.IoctlSetWinsize(int(c.master.Fd()), unix.TIOCSWINSZ, size)
	}
}

// drain waits for the last output. Something inside may hold the terminal open: then a moment must do.
func (c *console) drain() {
	select {
	case <-c.output:
	case <-time.After(200 * time.Millisecond):
	}
}

func (c *console) close() {
	if c.old != nil {
		unix.IoctlSetTermios(0, unix.TCSETS, c.old)
	}
	c.master.Close()
}

func execCommand(a *app, args []string) (err error) {
	f := newFlags("exec", "[flags] ID COMMAND [ARGS]")
	var (
		processPath, consoleSocket, pidFile, cwd, user, sub string
		apparmor, selinux                                   string
		env, caps, groups                                   []string
		tty, detach, nnp, ignorePaused, noKeyring           bool
		preserve                                            int64
	)
	f.text(&processPath, "process", "a file with the process's configuration, instead of flags and a command")
	f.text(&consoleSocket, "console-socket", "unix socket that is sent the terminal")
	f.text(&pidFile, "pid-file", "file to write the process id to")
	f.text(&cwd, "cwd", "working directory")
	f.text(&user, "user", "UID[:GID]")
	f.text(&sub, "cgroup", "a cgroup below the container's")
	f.text(&apparmor, "apparmor", "AppArmor profile")
	f.text(&selinux, "process-label", "SELinux label")
	f.list(&env, "env", "NAME=VALUE, more than once")
	f.list(&caps, "cap", "a further capability, more than once")
	f.list(&groups, "additional-gids", "a further group, more than once")
	f.bool(&tty, "tty", "with a terminal")
	f.bool(&detach, "detach", "return when the process has begun")
	f.bool(&nnp, "no-new-privs", "as the configuration's noNewPrivileges")
	f.bool(&ignorePaused, "ignore-paused", "also in a paused container")
	f.bool(&noKeyring, "no-new-keyring", "keep the caller's session keyring")
	f.number(&preserve, "preserve-fds", "how many descriptors from 3 on the process inherits")
	for short, name := range map[string]string{"p": "process", "e": "env", "u": "user", "t": "tty", "d": "detach", "c": "cap", "g": "additional-gids"} {
		f.alias(short, name)
	}
	rest, err := f.parse(args)
	if err != nil {
		return err
	}
	if len(rest) == 0 {
		return errors.New("exec: no container id given (lrun exec [flags] ID COMMAND [ARGS])")
	}
	id, command := rest[0], rest[1:]
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}
	listenFDs, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	kept := int(preserve) + max(listenFDs, 0)
	if err := checkPreserved(kept); err != nil {
		return err
	}
	r, err := a.load(id)
	if err != nil {
		return err
	}
	if !r.alive() {
		return fmt.Errorf("container %q is stopped", id)
	}
	machine, err := a.machine()
	if err != nil {
		return err
	}
	if !ignorePaused && machine.Frozen(r.Group) {
		return fmt.Errorf("container %q is paused: resume it first, or use --ignore-paused", id)
	}
	p, err := machine.Join(runtime.OCIJoin{PID: r.PID, Start: r.Start, Group: r.Group, Sub: sub, Preserve: kept})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && p != nil {
			p.Abort()
		}
	}()
	config, err := a.execConfig(id)
	if err != nil {
		return err
	}
	process := config.Process
	if processPath != "" {
		if len(command) > 0 {
			return errors.New("exec: a command and --process can't be had together")
		}
		b, err := os.ReadFile(processPath)
		if err != nil {
			return err
		}
		process = &specs.Process{}
		if err := json.Unmarshal(b, process); err != nil {
			return fmt.Errorf("%s: %w", processPath, err)
		}
		if tty {
			process.Terminal = true
		}
	} else {
		if len(command) == 0 {
			return errors.New("exec: no command given")
		}
		process.Args, process.Terminal = command, tty
		// These are the first process's own.
		process.Scheduler, process.IOPriority, process.ConsoleSize = nil, nil, nil
	}
	if process.Cwd == "" {
		process.Cwd = "/"
	}
	if cwd != "" {
		process.Cwd = cwd
	}
	if !filepath.IsAbs(process.Cwd) {
		return fmt.Errorf("exec: working directory %q is not absolute", process.Cwd)
	}
	process.Env = append(process.Env, env...)
	if listenFDs > 0 {
		process.Env = append(process.Env, "LISTEN_FDS="+strconv.Itoa(listenFDs))
	}
	if apparmor != "" {
		process.ApparmorProfile = apparmor
	}
	if selinux != "" {
		process.SelinuxLabel = selinux
	}
	process.NoNewPrivileges = process.NoNewPrivileges || nnp
	if err := identity(process, user, groups, caps); err != nil {
		return err
	}
	if !process.Terminal && consoleSocket != "" {
		return errors.New("exec: --console-socket given, but there is no terminal to send")
	}
	if process.Terminal && consoleSocket == "" && detach {
		return errors.New("exec: a detached process with a terminal needs --console-socket")
	}
	if err := p.Command(runtime.OCICommand{Spec: config, Process: process, NoKeyring: noKeyring, ListenPID: listenFDs > 0}); err != nil {
		return err
	}
	for _, w := range p.Warnings {
		a.warn(w)
	}
	if pidFile != "" && !process.Terminal {
		// Written before the exec that Setup waits for, so that a failure leaves nothing running without one.
		if err := writePIDFile(pidFile, p.PID); err != nil {
			return err
		}
	}
	terminal, err := p.Setup()
	if err != nil {
		return err
	}
	if process.Terminal {
		if consoleSocket != "" {
			if err := sendTerminal(consoleSocket, terminal); err != nil {
				return err
			}
			terminal.Close()
			terminal = nil
		}
		if pidFile != "" {
			if err := writePIDFile(pidFile, p.PID); err != nil {
				return err
			}
		}
		if err := p.Begin(); err != nil {
			return err
		}
	}
	pid := p.PID
	p.Close()
	p = nil // it has begun
	if detach {
		return nil
	}
	return status(attend(pid, terminal))
}

// execConfig reads what counts of a container's configuration for one more process: the first one's, to begin with, and what
// holds for all.
func (a *app) execConfig(id string) (*specs.Spec, error) {
	path := filepath.Join(a.dir(id), configName)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	config := struct {
		Version string         `json:"ociVersion"`
		Process *specs.Process `json:"process"`
		Linux   struct {
			Seccomp      *specs.LinuxSeccomp      `json:"seccomp"`
			Personality  *specs.LinuxPersonality  `json:"personality"`
			MemoryPolicy *specs.LinuxMemoryPolicy `json:"memoryPolicy"`
		} `json:"linux"`
	}{}
	if err := json.Unmarshal(b, &config); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if config.Process == nil {
		config.Process = &specs.Process{}
	}
	l := &config.Linux
	return &specs.Spec{Version: config.Version, Process: config.Process,
		Linux: &specs.Linux{Seccomp: l.Seccomp, Personality: l.Personality, MemoryPolicy: l.MemoryPolicy}}, nil
}

// identity applies exec's flags on who runs it. Names are not resolved: the files that would tell are the container's.
func identity(p *specs.Process, user string, groups, caps []string) error {
	number := func(what, s string) (uint32, error) {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil || n == 1<<32-1 {
			return 0, fmt.Errorf("exec: %s %q is not a number", what, s)
		}
		return uint32(n), nil
	}
	var err error
	if user != "" {
		uid, gid, hasGID := strings.Cut(user, ":")
		if p.User.UID, err = number("user", uid); err != nil {
			return err
		}
		if hasGID {
			if p.User.GID, err = number("group", gid); err != nil {
				return err
			}
		}
	}
	for _, g := range groups {
		gid, err := number("group", g)
		if err != nil {
			return err
		}
		p.User.AdditionalGids = append(p.User.AdditionalGids, gid)
	}
	more, err := runtime.CapabilityNames(caps)
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	for _, name := range more {
		if p.Capabilities == nil {
			p.Capabilities = &specs.LinuxCapabilities{}
		}
		k := p.Capabilities
		k.Bounding, k.Effective, k.Permitted = append(k.Bounding, name), append(k.Effective, name), append(k.Permitted, name)
	}
	return nil
}
