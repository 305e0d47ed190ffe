package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/hook"
	"github.com/learnos/learnos/runtime"
)

// birth is what create and run are told.
type birth struct {
	bundle, config     string
	console, pidFile   string
	preserve           int64
	noPivot, noKeyring bool
	detach, keep       bool
}

func (b *birth) flags(command string) *flags {
	f := newFlags(command, "[flags] ID")
	b.bundle = "."
	f.text(&b.bundle, "bundle", "directory of config.json and the root file system (default: here)")
	f.text(&b.console, "console-socket", "unix socket that is sent the terminal")
	f.text(&b.pidFile, "pid-file", "file to write the process id to")
	f.number(&b.preserve, "preserve-fds", "how many descriptors from 3 on the process inherits")
	f.bool(&b.noPivot, "no-pivot", "move the root instead of pivot_root, for hosts on an initramfs")
	f.bool(&b.noKeyring, "no-new-keyring", "keep the caller's session keyring")
	f.text(&b.config, "config", "the configuration's file, if not the bundle's config.json")
	f.bool(new(bool), "no-mount-fallback", "accepted; a mount that can't be made as asked is always an error")
	f.alias("b", "bundle")
	f.alias("f", "config")
	return f
}

// complete checks what is the command's to check, and makes paths absolute.
func complete(s *specs.Spec, bundle string) error {
	major, _, ok := strings.Cut(s.Version, ".")
	switch {
	case s.Version == "":
		return errors.New("config.json: ociVersion is missing")
	case !ok || major != "1":
		return fmt.Errorf("config.json: ociVersion %q is not one of 1.x", s.Version)
	case s.Root == nil || s.Root.Path == "":
		return errors.New("config.json: root.path is missing")
	case s.Process != nil && len(s.Process.Args) == 0:
		return errors.New("config.json: process.args is missing")
	case s.Process != nil && !filepath.IsAbs(s.Process.Cwd):
		return fmt.Errorf("config.json: process.cwd %q is not an absolute path", s.Process.Cwd)
	case s.Linux == nil:
		return errors.New("config.json: the linux section is missing")
	}
	if s.Process == nil { // may be created, but not started
		s.Process = &specs.Process{Cwd: "/"}
	}
	if !filepath.IsAbs(s.Root.Path) {
		s.Root.Path = filepath.Join(bundle, s.Root.Path)
	}
	// Where the root is a symlink, it is so on the host, by the operator's wish. But it leads there by name: a magic link
	// (/proc/PID/fd/N, root, cwd) would make a root of whatever we or our caller happen to have open.
	fd, err := unix.Openat2(unix.AT_FDCWD, s.Root.Path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
	if err == unix.ELOOP {
		return fmt.Errorf("root: %s leads through a link to somebody's descriptor: name the directory", s.Root.Path)
	}
	if err != nil {
		return fmt.Errorf("root: %w", &os.PathError{Op: "open", Path: s.Root.Path, Err: err})
	}
	unix.Close(fd)
	root, err := filepath.EvalSymlinks(s.Root.Path)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if info, err := os.Stat(root); err != nil || !info.IsDir() {
		return fmt.Errorf("root: %s is not a directory", root)
	}
	s.Root.Path = root
	for i := range s.Mounts {
		m := &s.Mounts[i]
		if !filepath.IsAbs(m.Destination) {
			m.Destination = "/" + m.Destination // as 1.0 had it, and the others take it
		}
		if isBind(m) && m.Source != "" && !filepath.IsAbs(m.Source) {
			m.Source = filepath.Join(bundle, m.Source)
		}
	}
	if h := s.Hooks; h != nil {
		//lint:ignore SA1019 prestart is deprecated, not gone
		for _, list := range [][]specs.Hook{h.Prestart, h.CreateRuntime, h.CreateContainer, h.StartContainer, h.Poststart, h.Poststop} {
			for _, x := range list {
				if !filepath.IsAbs(x.Path) {
					return fmt.Errorf("hook path %q is not absolute", x.Path)
				}
				if x.Timeout != nil && *x.Timeout <= 0 {
					return fmt.Errorf("hook %s: a timeout must be greater than zero", x.Path)
				}
			}
		}
	}
	return nil
}

func isBind(m *specs.Mount) bool {
	for _, o := range m.Options {
		if o == "bind" || o == "rbind" {
			return true
		}
	}
	return m.Type == "bind"
}

// runHooks runs hooks of the runtime's own namespaces.
func runHooks(list []specs.Hook, state, dir string) error {
	for _, h := range runtime.HookWords(list) {
		if err := hook.Run(&h, state, dir); err != nil {
			return err
		}
	}
	return nil
}

// made is a container that has been created and waits to begin.
type made struct {
	record   *record
	spec     *specs.Spec
	process  *runtime.OCIProcess
	terminal *os.File // its master, without a console socket
}

// make creates a container. listen leaves the beginning to another command. On an error nothing is left of it.
func (a *app) make(id string, b *birth, listen bool) (_ *made, err error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	preserve := int(b.preserve)
	listenFDs, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	preserve += max(listenFDs, 0)
	if err := checkPreserved(preserve); err != nil {
		return nil, err
	}
	bundle, err := filepath.Abs(b.bundle)
	if err != nil {
		return nil, err
	}
	configPath := b.config
	if configPath == "" {
		configPath = filepath.Join(bundle, "config.json")
	}
	config, err := os.ReadFile(configPath)
	if err != nil {
		return nil, err
	}
	spec, err := parseConfig(configPath, config)
	if err != nil {
		return nil, err
	}
	if err := complete(spec, bundle); err != nil {
		return nil, err
	}
	if !spec.Process.Terminal && b.console != "" {
		return nil, errors.New("--console-socket given, but process.terminal is false")
	}
	if spec.Process.Terminal && b.console == "" && (listen || b.detach) {
		return nil, errors.New("process.terminal is true: --console-socket is needed to hand the terminal over")
	}
	if err := os.MkdirAll(a.root, 0o711); err != nil {
		return nil, err
	}
	dir := a.dir(id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("container %q already exists", id)
		}
		return nil, err
	}
	r := &record{ID: id, Boot: bootID(), Bundle: bundle, Rootfs: spec.Root.Path, Created: time.Now().UTC(), OCIVersion: specs.Version,
		Annotations: spec.Annotations, Creating: true, NoProcess: len(spec.Process.Args) == 0}
	for _, ns := range spec.Linux.Namespaces {
		r.PIDNamespace = r.PIDNamespace || ns.Type == specs.PIDNamespace
	}
	if h := spec.Hooks; h != nil {
		r.PoststartHooks, r.PoststopHooks = len(h.Poststart) > 0, len(h.Poststop) > 0
	}
	m := &made{record: r, spec: spec}
	defer func() {
		if err != nil {
			if m.process != nil {
				m.process.Abort()
				if machine, err := a.machine(); err == nil {
					machine.Remove(r.Group)
				}
			}
			if m.terminal != nil {
				m.terminal.Close()
			}
			os.RemoveAll(dir)
			if r.PoststopHooks && m.process != nil {
				a.poststop(r, spec)
			}
		}
	}()
	if err := os.WriteFile(filepath.Join(dir, configName), config, 0o600); err != nil {
		return nil, err
	}
	if listenFDs > 0 {
		spec.Process.Env = append(spec.Process.Env, "LISTEN_FDS="+strconv.Itoa(listenFDs))
		if names := os.Getenv("LISTEN_FDNAMES"); names != "" {
			spec.Process.Env = append(spec.Process.Env, "LISTEN_FDNAMES="+names)
		}
	}
	if os.Getenv("NOTIFY_SOCKET") != "" {
		if err := a.offerNotify(r, spec); err != nil {
			return nil, err
		}
	}
	machine, err := a.machine()
	if err != nil {
		return nil, err
	}
	options := runtime.OCIOptions{ID: id, Dir: dir, Spec: spec, Listen: listen, Preserve: preserve, NoPivot: b.noPivot,
		NoKeyring: b.noKeyring, ListenPID: listenFDs > 0,
		Creating: r.state("creating", runtime.HookPID), Created: r.state("created", runtime.HookPID)}
	if m.process, err = machine.Create(options); err != nil {
		return nil, err
	}
	for _, w := range m.process.Warnings {
		a.warn(w)
	}
	r.PID, r.Start, r.Group = m.process.PID, m.process.Start, m.process.Group
	if err := a.save(r); err != nil { // so that hooks may ask for it, and delete finds it should we be killed
		return nil, err
	}
	if h := spec.Hooks; h != nil {
		// The first kind is as old as a create that was already over when it ran, and is told so still.
		pid := strconv.Itoa(r.PID)
		//lint:ignore SA1019 prestart is deprecated, not gone
		if len(h.Prestart)+len(h.CreateRuntime) > 0 {
			if err := m.process.Await(); err != nil {
				return nil, err
			}
		}
		//lint:ignore SA1019 prestart is deprecated, not gone
		if err := runHooks(h.Prestart, r.state("created", pid), bundle); err != nil {
			return nil, err
		}
		if err := runHooks(h.CreateRuntime, r.state("creating", pid), bundle); err != nil {
			return nil, err
		}
	}
	if m.terminal, err = m.process.Setup(); err != nil {
		return nil, err
	}
	if b.console != "" {
		if err := sendTerminal(b.console, m.terminal); err != nil {
			return nil, err
		}
		m.terminal.Close()
		m.terminal = nil
	}
	if b.pidFile != "" {
		if err := writePIDFile(b.pidFile, r.PID); err != nil {
			return nil, err
		}
	}
	r.Creating = false
	return m, a.save(r)
}

// checkPreserved makes sure that the descriptors to be handed on are there: the process would get some of ours instead.
func checkPreserved(n int) error {
	if n < 0 || n > 1000 {
		return fmt.Errorf("--preserve-fds %d is out of range", n)
	}
	for fd := 3; fd < 3+n; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return fmt.Errorf("--preserve-fds: descriptor %d is not open", fd)
		}
	}
	return nil
}

// writePIDFile puts the file in place in one step: who sees it finds a number in it.
func writePIDFile(path string, pid int) error {
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(temp, []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("--pid-file: %w", err)
	}
	if err := os.Rename(temp, path); err != nil {
		os.Remove(temp)
		return fmt.Errorf("--pid-file: %w", err)
	}
	return nil
}

// sendTerminal gives a terminal's master to whoever listens on a socket, as runc and conmon have agreed.
func sendTerminal(socket string, master *os.File) error {
	if master == nil {
		return errors.New("the container made no terminal")
	}
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("--console-socket: %w", err)
	}
	defer c.Close()
	if _, _, err := c.WriteMsgUnix([]byte("/dev/ptmx"), unix.UnixRights(int(master.Fd())), nil); err != nil {
		return fmt.Errorf("--console-socket: %w", err)
	}
	return nil
}

func create(a *app, args []string) error {
	var b birth
	id, err := b.flags("create").id(args)
	if err != nil {
		return err
	}
	m, err := a.make(id, &b, true)
	if err != nil {
		return err
	}
	m.process.Close()
	return nil
}

func start(a *app, args []string) error {
	id, err := newFlags("start", "ID").id(args)
	if err != nil {
		return err
	}
	if _, err := a.load(id); err != nil {
		return err
	}
	lock, err := a.lock(id)
	if err != nil {
		return err
	}
	defer lock.Close()
	r, err := a.load(id)
	if err != nil {
		return err
	}
	if status := a.status(r); status != "created" {
		return fmt.Errorf("container %q is %s, not created: it can't be started", id, status)
	}
	if r.NoProcess {
		stop(r)
		return fmt.Errorf("container %q can't be started: its config.json has no process", id)
	}
	notify, err := a.listenNotify(r)
	if err != nil {
		return err
	}
	if err := runtime.OCIBegin(a.dir(id)); err != nil {
		return err
	}
	if err := a.poststart(r, nil); err != nil {
		return err
	}
	return forwardNotify(notify, r)
}

// poststart runs the hooks that follow the process's beginning. When one fails the container is stopped, or, for a
// configuration of a specification before 1.3, which wanted it so, a warning is given and all goes on.
func (a *app) poststart(r *record, spec *specs.Spec) (err error) {
	if !r.PoststartHooks {
		return nil
	}
	if spec == nil {
		if spec, err = a.config(r.ID); err != nil {
			return err
		}
	}
	state, lenient := r.state("running", strconv.Itoa(r.PID)), runtime.OCIBefore(spec.Version, 3)
	for i := range spec.Hooks.Poststart {
		err := runHooks(spec.Hooks.Poststart[i:i+1], state, r.Bundle)
		switch {
		case err != nil && lenient:
			a.warn("poststart " + err.Error())
		case err != nil:
			stop(r)
			return err
		}
	}
	return nil
}

// stop kills the container's process and waits for its end.
func stop(r *record) {
	if fd := r.pidfd(); fd >= 0 {
		unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		awaitEnd(fd, 10*time.Second)
		unix.Close(fd)
	}
}

// poststop runs the hooks that follow deletion. What fails is said, and changes nothing.
func (a *app) poststop(r *record, spec *specs.Spec) {
	for _, h := range spec.Hooks.Poststop {
		if err := runHooks([]specs.Hook{h}, r.state("stopped", ""), r.Bundle); err != nil {
			a.warn("poststop " + err.Error())
		}
	}
}

// awaitEnd waits for a process's end; false when it has not come in time.
func awaitEnd(pidfd int, limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for {
		left := time.Until(deadline)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(max(0, left/time.Millisecond)))
		if err == unix.EINTR {
			continue
		}
		return n > 0
	}
}

func kill(a *app, args []string) error {
	f := newFlags("kill", "[--all] ID [SIGNAL]")
	all := false
	name := ""
	f.bool(&all, "all", "to every process of the container's cgroup")
	f.text(&name, "signal", "the same as the second argument")
	f.alias("a", "all")
	f.alias("s", "signal")
	rest, err := f.parse(args)
	if err != nil {
		return err
	}
	if len(rest) == 0 {
		return errors.New("kill: no container id given (lrun kill [--all] ID [SIGNAL])")
	}
	id := rest[0]
	if rest, err = f.parse(rest[1:]); err != nil {
		return err
	}
	switch len(rest) {
	case 0:
	case 1:
		name = rest[0]
	default:
		return fmt.Errorf("kill: %q is one argument too many", rest[1])
	}
	sig, err := parseSignal(name)
	if err != nil {
		return err
	}
	r, err := a.load(id)
	if err != nil {
		return err
	}
	if all || sig == unix.SIGKILL && !r.PIDNamespace {
		m, err := a.machine()
		if err != nil {
			return err
		}
		if sig == unix.SIGKILL {
			return m.Kill(r.Group)
		}
		for _, pid := range m.PIDs(r.Group) {
			unix.Kill(pid, sig)
		}
		return nil
	}
	fd := r.pidfd()
	if fd < 0 {
		return fmt.Errorf("container %q is stopped: there is no process to signal", id)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
		return fmt.Errorf("signal container %q: %w", id, err)
	}
	if sig == unix.SIGKILL { // one that is frozen takes notice only when thawed
		if m, err := a.machine(); err == nil && m.Frozen(r.Group) {
			return m.Freeze(r.Group, false)
		}
	}
	return nil
}

// parseSignal reads "9", "KILL", "SIGKILL" or "kill"; empty means TERM.
func parseSignal(s string) (unix.Signal, error) {
	if s == "" {
		return unix.SIGTERM, nil
	}
	if n, err := strconv.Atoi(s); err == nil && n >= 0 && n <= 64 {
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if rest, ok := strings.CutPrefix(name, "SIGRTMIN"); ok {
		if n, err := strconv.Atoi("0" + strings.TrimPrefix(rest, "+")); err == nil && n <= 30 {
			return unix.Signal(34 + n), nil
		}
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("signal %q is unknown", s)
}

func deleteCommand(a *app, args []string) error {
	f := newFlags("delete", "[--force] ID")
	force := false
	f.bool(&force, "force", "kill it first; one that does not exist is no error")
	f.alias("f", "force")
	id, err := f.id(args)
	if err != nil {
		return err
	}
	if err := checkID(id); err != nil {
		return err
	}
	lock, err := a.lock(id)
	if err != nil {
		if force {
			return nil
		}
		return err
	}
	defer lock.Close()
	r, err := a.load(id)
	if err != nil {
		// Its creation was cut short before there was a process.
		if force {
			return os.RemoveAll(a.dir(id))
		}
		return err
	}
	return a.remove(r, force)
}

// remove deletes a container; the caller holds its lock.
func (a *app) remove(r *record, force bool) error {
	if fd := r.pidfd(); fd >= 0 {
		defer unix.Close(fd)
		if status := a.status(r); !force {
			return fmt.Errorf("container %q is %s, not stopped: kill it first, or use --force", r.ID, status)
		}
		unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		if m, err := a.machine(); err == nil && m.Frozen(r.Group) {
			m.Freeze(r.Group, false)
		}
		if !awaitEnd(fd, 10*time.Second) {
			return fmt.Errorf("container %q: its process does not die", r.ID)
		}
	}
	var spec *specs.Spec
	if r.PoststopHooks {
		var err error
		if spec, err = a.config(r.ID); err != nil {
			return err
		}
	}
	m, err := a.machine()
	if err != nil {
		return err
	}
	if r.Group.Path != "" {
		if err := m.Remove(r.Group); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(a.dir(r.ID)); err != nil {
		return err
	}
	if spec != nil {
		a.poststop(r, spec)
	}
	return nil
}
