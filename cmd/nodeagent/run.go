package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/learnos/learnos/nodeagent"
	"github.com/learnos/learnos/rootfs"
	"github.com/learnos/learnos/runtime"
)

// runFlags are what `run` was told.
type runFlags struct {
	interactive, tty, detach, rm, readOnly, insecure bool
	name, hostname, net, cwd, user, ns               string
	limits                                           limitFlags
	env, ports, volumes, capAdd, capDrop             []string
	entrypoint                                       string
}

func runCommand() command {
	return command{name: "run", args: "IMAGE [COMMAND [ARG…]]", short: "run a command in a new environment", inner: true,
		long: `IMAGE is the name of a pulled or built image (see ` + "`nodeagent image ls`" + `), or anything that ` + "`image pull`" + ` takes.
Without COMMAND the image's own runs. The exit status is the command's; 125 is ours, 126 says that the command can't
be executed and 127 that it was not found.

Without -d the environment belongs to this command: when this command dies, even by kill -9, so does it. With -d it
goes on by itself, its output goes to ` + "`nodeagent logs`" + `, and its id is printed.`,
		example: `nodeagent run --rm -it busybox
nodeagent run --rm busybox sh -c 'id -u; hostname; cat /proc/self/uid_map'
nodeagent run --rm -it --cap-add NET_RAW debootstrap:bookworm bash   # tcpdump, nmap
nodeagent run -d --name web -p 8080:80 --memory 128m --cpus 0.5 busybox httpd -f -h /etc`,
		define: func(f *pflag.FlagSet) func(context.Context, *app, []string) error {
			var o runFlags
			f.BoolVarP(&o.interactive, "interactive", "i", false, "pass our standard input to the command; with -d it stays open and empty")
			f.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
			f.BoolVarP(&o.detach, "detach", "d", false, "print the id and leave the environment running on its own")
			f.BoolVar(&o.rm, "rm", false, "remove the environment when its command has ended")
			f.StringVar(&o.name, "name", "", "`NAME` for ps, exec, rm and the others")
			f.StringVar(&o.hostname, "hostname", "", "`HOST` name inside (default: the id's beginning)")
			f.StringVar(&o.net, "net", nodeagent.NetBridge, "`MODE`: bridge (own address behind NAT), none, or host")
			f.StringArrayVarP(&o.ports, "publish", "p", nil, "`[IP:]HOSTPORT:PORT[/udp]` to publish; may be repeated")
			o.limits.define(f)
			f.StringArrayVarP(&o.env, "env", "e", nil, "environment variable `K=V` (K alone: ours); may be repeated")
			f.StringVarP(&o.cwd, "workdir", "w", "", "`DIR` to begin in")
			f.StringVarP(&o.user, "user", "u", "", "`USER`: name, uid, uid:gid")
			f.StringArrayVarP(&o.volumes, "volume", "v", nil, "`SRC:DST[:ro]`, a path of the host to mount; may be repeated")
			f.BoolVar(&o.readOnly, "read-only", false, "make the root file system read-only")
			f.StringVar(&o.ns, "userns", "auto", "`MODE`: auto (own user ids) or host (the host's; root inside is root outside)")
			f.StringArrayVar(&o.capAdd, "cap-add", nil, "capability `CAP` that root inside has besides the usual ones, as in NET_RAW; may be repeated")
			f.StringArrayVar(&o.capDrop, "cap-drop", nil, "capability `CAP` that it has not; ALL for none; may be repeated")
			f.StringVar(&o.entrypoint, "entrypoint", "", "`CMD` in place of the image's entrypoint")
			f.BoolVar(&o.insecure, "insecure", false, "pull over plain HTTP, if IMAGE has to be pulled")
			return func(ctx context.Context, a *app, args []string) error {
				return runMain(ctx, a, f, &o, args)
			}
		}}
}

// createOptions turns flags into what package nodeagent takes; every complaint comes before anything is made.
func (o *runFlags) createOptions(f *pflag.FlagSet, args []string) (nodeagent.CreateOptions, error) {
	c := nodeagent.CreateOptions{
		Name: o.name, Hostname: o.hostname, Args: args[1:], Cwd: o.cwd, User: o.user, TTY: o.tty,
		Owner: nodeagent.OwnerForeground, AutoRemove: o.rm, KeepStdin: o.interactive, Net: o.net, ReadOnly: o.readOnly,
		CapAdd: o.capAdd, CapDrop: o.capDrop,
	}
	if o.detach {
		c.Owner = nodeagent.OwnerDetached
	}
	if f.Changed("entrypoint") {
		c.Entrypoint = &o.entrypoint
	}
	switch o.ns {
	case "auto":
	case "host":
		c.HostUsers = true
	default:
		return c, fmt.Errorf("--userns %q: want auto or host", o.ns)
	}
	switch o.net {
	case nodeagent.NetBridge, nodeagent.NetNone, nodeagent.NetHost:
	default:
		return c, fmt.Errorf("--net %q: want bridge, none or host", o.net)
	}
	if _, err := c.Capabilities(); err != nil {
		return c, err
	}
	var err error
	if c.Limits, err = o.limits.parse(f); err != nil {
		return c, err
	}
	for _, kv := range o.env {
		if !strings.Contains(kv, "=") {
			v, set := os.LookupEnv(kv)
			if !set {
				continue
			}
			kv += "=" + v
		}
		c.Env = append(c.Env, kv)
	}
	for _, s := range o.ports {
		p, err := parsePort(s)
		if err != nil {
			return c, err
		}
		c.Ports = append(c.Ports, p)
	}
	for _, s := range o.volumes {
		v, err := parseVolume(s)
		if err != nil {
			return c, err
		}
		c.Volumes = append(c.Volumes, v)
	}
	return c, nil
}

func runMain(ctx context.Context, a *app, f *pflag.FlagSet, o *runFlags, args []string) error {
	if len(args) == 0 {
		return badUsage("say which image (see `nodeagent image ls`)")
	}
	c, err := o.createOptions(f, args)
	if err != nil {
		return &usageError{err}
	}
	if o.tty && o.interactive && !o.detach && !term.IsTerminal(int(a.stdin.Fd())) {
		return badUsage("-t with -i needs a terminal on standard input, and it is not one: leave -t out")
	}
	if o.tty {
		c.Cols, c.Rows = windowSize(a)
	}
	n, err := a.node()
	if err != nil {
		return err
	}
	if c.Image, err = ensureImage(ctx, a, n, args[0], o.insecure); err != nil {
		return err
	}
	if o.detach {
		env, err := create(ctx, n, c)
		if err != nil {
			return err
		}
		fmt.Fprintln(a.stdout, env.ID())
		_, err = n.Reconcile(ctx)
		if err != nil {
			fmt.Fprintln(a.stderr, "nodeagent: tidy up after others:", err)
		}
		return nil
	}
	return foreground(ctx, a, n, c, o.interactive)
}

// create makes the environment. A port may be held by one that has ended and that nobody has looked at since: then
// tidying up and trying once more is all it needs.
func create(ctx context.Context, n *nodeagent.Node, c nodeagent.CreateOptions) (*nodeagent.Environment, error) {
	env, err := n.Create(ctx, c)
	if err != nil && ctx.Err() == nil && (len(c.Ports) > 0 || c.Name != "") && !isExecError(err) {
		if touched, _ := n.Reconcile(ctx); len(touched) > 0 {
			env, err = n.Create(ctx, c)
		}
	}
	if err == nil {
		return env, nil
	}
	return nil, execFailure(err)
}

func isExecError(err error) bool {
	var e *runtime.ExecError
	return errors.As(err, &e)
}

// execFailure gives the statuses that shells have for a command that can't be executed.
func execFailure(err error) error {
	var e *runtime.ExecError
	if errors.As(err, &e) {
		return &exitCode{code: e.Code, err: errors.New(e.Message)}
	}
	return err
}

// foreground runs an environment that belongs to this process.
func foreground(ctx context.Context, a *app, n *nodeagent.Node, c nodeagent.CreateOptions, stdin bool) error {
	// Until the command runs, a signal means "don't": ctx is cancelled and the create undoes itself. From then on
	// signals are the command's.
	s := catchSignals()
	defer s.stop()
	env, err := create(ctx, n, c)
	if err != nil {
		return err
	}
	kept := context.WithoutCancel(ctx)
	var tidy sync.WaitGroup
	tidy.Go(func() { _, _ = n.Reconcile(kept) })

	guarded, stop := context.WithCancel(kept)
	tidy.Go(func() {
		err := env.GuardSockets(guarded, func(why string) { fmt.Fprintln(a.stderr, "nodeagent: the environment was ended:", why) })
		if err != nil {
			fmt.Fprintln(a.stderr, "nodeagent:", err)
		}
	})
	st, err := converse(kept, a, env, env.Command(), stdin, s, func() { _ = env.Kill(kept) })
	stop()
	if err != nil {
		_ = env.Delete(kept)
		return err
	}
	err = env.Finish(kept, st)
	tidy.Wait()
	if err != nil {
		fmt.Fprintln(a.stderr, "nodeagent: tidy up:", err, "(`nodeagent gc` tries again)")
	}
	if st.OOMKilled {
		fmt.Fprintln(a.stderr, "nodeagent: the environment ran out of memory: give it more with --memory")
	}
	if st.Code != 0 {
		return &exitCode{code: st.Code}
	}
	return nil
}

// signals are those that a foreground command passes on.
type signals struct{ ch chan os.Signal }

func catchSignals() *signals {
	s := &signals{ch: make(chan os.Signal, 16)}
	signal.Notify(s.ch, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT,
		syscall.SIGWINCH, syscall.SIGPIPE)
	if !signal.Ignored(syscall.SIGHUP) { // nohup(1) means it
		signal.Notify(s.ch, syscall.SIGHUP)
	}
	return s
}

func (s *signals) stop() { signal.Stop(s.ch) }

// impatience is how many times a person asks to end before the environment is killed.
const impatience = 3

// converse carries bytes, sizes and signals between us and a session until it ends. kill ends it by force.
func converse(ctx context.Context, a *app, env *nodeagent.Environment, s *runtime.Session, stdin bool, sigs *signals, kill func()) (nodeagent.ExitStatus, error) {
	defer s.Close()
	tty := s.PTY() != nil
	if tty && stdin && term.IsTerminal(int(a.stdin.Fd())) {
		old, err := term.MakeRaw(int(a.stdin.Fd()))
		if err != nil {
			return nodeagent.ExitStatus{}, fmt.Errorf("make the terminal raw: %w", err)
		}
		defer func() { _ = term.Restore(int(a.stdin.Fd()), old) }()
	}
	exited := make(chan struct{})
	go passSignals(ctx, a, s, sigs, kill, exited)
	if tty {
		resize(a, s)
	}
	// A reader of our standard input can't be stopped; it ends with the process.
	if stdin {
		go passInput(ctx, a.stdin, s)
	} else if !tty {
		if err := s.CloseStdin(ctx); err != nil && !errors.Is(err, runtime.ErrNotRunning) {
			return nodeagent.ExitStatus{}, fmt.Errorf("close standard input: %w", err)
		}
	}

	var out sync.WaitGroup
	var broken atomic.Bool
	copyTo := func(dst *os.File, src *os.File) {
		out.Go(func() {
			if err := nodeagent.CopyOutput(ctx, dst, src, exited); err != nil {
				// Nobody reads what it says any more: as in a pipeline, that is its end.
				broken.Store(true)
				kill()
			}
		})
	}
	if tty {
		copyTo(a.stdout, s.PTY())
	} else {
		copyTo(a.stdout, s.Stdout())
		copyTo(a.stderr, s.Stderr())
	}
	st, err := env.WaitSession(ctx, s)
	close(exited)
	out.Wait()
	if broken.Load() {
		st.Code = 128 + int(syscall.SIGPIPE)
	}
	return st, err
}

// passInput copies our standard input to the session's and then closes that.
func passInput(ctx context.Context, in *os.File, s *runtime.Session) {
	if pty := s.PTY(); pty != nil {
		_, _ = io.Copy(pty, in)
		return
	}
	_, _ = io.Copy(s.Stdin(), in)
	_ = s.CloseStdin(ctx)
}

// passSignals gives our signals to the session. Asked to end several times in vain, it kills.
func passSignals(ctx context.Context, a *app, s *runtime.Session, sigs *signals, kill func(), exited <-chan struct{}) {
	asked := 0
	for {
		select {
		case <-exited:
			return
		case got := <-sigs.ch:
			sig := got.(syscall.Signal)
			switch sig {
			case syscall.SIGWINCH:
				resize(a, s)
				continue
			case syscall.SIGPIPE: // caught so that a write tells us
				continue
			case syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP:
				if asked++; asked >= impatience {
					kill()
					continue
				}
			}
			_ = s.Signal(ctx, unix.Signal(sig))
		}
	}
}

// windowSize is our terminal's, or the classic one.
func windowSize(a *app) (cols, rows uint16) {
	for _, f := range []*os.File{a.stdin, a.stdout, a.stderr} {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 0 {
			return uint16(w), uint16(h)
		}
	}
	return 80, 24
}

func resize(a *app, s *runtime.Session) {
	if s.PTY() == nil {
		return
	}
	cols, rows := windowSize(a)
	_ = s.Resize(cols, rows)
}

// ensureImage finds the image, and fetches it with a progress report if need be.
func ensureImage(ctx context.Context, a *app, n *nodeagent.Node, name string, insecure bool) (*rootfs.Image, error) {
	img, err := n.Images().Image(ctx, name)
	if err == nil {
		return img, nil
	}
	if !errors.Is(err, rootfs.ErrNotFound) {
		return nil, err
	}
	p := newProgress(a.stderr)
	img, err = n.Images().Ensure(ctx, name, rootfs.PullOptions{Insecure: insecure, Progress: p.report})
	p.finish(err == nil)
	if err != nil {
		return nil, err
	}
	return img, nil
}

// since writes a time as people say it.
func since(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
