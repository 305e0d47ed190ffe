package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/learnos/learnos/netbridge"
	"github.com/learnos/learnos/nodeagent"
	"github.com/learnos/learnos/rootfs"
	"github.com/learnos/learnos/runtime"
)

func psCommand() command {
	return command{name: "ps", short: "list environments", example: "nodeagent ps\nnodeagent ps -a --json",
		define: func(f *pflag.FlagSet) func(context.Context, *app, []string) error {
			all := f.BoolP("all", "a", false, "ended ones too")
			quiet := f.BoolP("quiet", "q", false, "ids only")
			asJSON := f.Bool("json", false, "print JSON")
			return func(ctx context.Context, a *app, args []string) error {
				if err := noArgs(args); err != nil {
					return err
				}
				n, err := a.node()
				if err != nil {
					return err
				}
				if _, err := n.Reconcile(ctx); err != nil {
					fmt.Fprintln(a.stderr, "nodeagent: tidy up:", err)
				}
				records, err := n.Records()
				if err != nil {
					return err
				}
				shown := []*nodeagent.Record{}
				for _, r := range records {
					if *all || r.State != nodeagent.StateExited {
						shown = append(shown, r)
					}
				}
				switch {
				case *asJSON:
					return printJSON(a.stdout, shown)
				case *quiet:
					for _, r := range shown {
						fmt.Fprintln(a.stdout, r.ID)
					}
					return nil
				}
				t := newTable("ID", "NAME", "IMAGE", "STATE", "AGE", "ADDRESS", "PORTS", "COMMAND")
				for _, r := range shown {
					state, ports := r.State, portsText(r.Ports)
					if r.State == nodeagent.StateExited {
						ports = "" // they are free again
						if r.Exit != nil {
							state = fmt.Sprintf("exited (%d)", r.Exit.Code)
						}
					}
					t.row(clipText(r.ID, 12), r.Name, r.Image, state, since(r.CreatedAt), r.Address, ports, clipText(strings.Join(r.Args, " "), 40))
				}
				if err := t.print(a.stdout); err != nil {
					return err
				}
				if spares, err := n.Spares(); err == nil && len(spares) > 0 {
					fmt.Fprintf(a.stdout, "and %d made ahead of need, for %s\n", len(spares), spareImages(spares))
				}
				return nil
			}
		}}
}

// spareImages names the images of spare environments, each once.
func spareImages(spares []nodeagent.SpareRecord) string {
	var names []string
	for _, s := range spares {
		names = append(names, s.Image)
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ", ")
}

func portsText(ports []netbridge.Port) string {
	var list []string
	for _, p := range ports {
		s := fmt.Sprintf("%d->%d/%s", p.HostPort, p.Port, p.Proto)
		if p.HostIP.IsValid() && p.HostIP != netip.IPv4Unspecified() {
			s = p.HostIP.String() + ":" + s
		}
		list = append(list, s)
	}
	return strings.Join(list, ",")
}

// load finds a running environment by what a person typed.
func load(ctx context.Context, a *app, ref string) (*nodeagent.Environment, error) {
	n, err := a.node()
	if err != nil {
		return nil, err
	}
	r, err := n.Find(ref)
	if err != nil {
		return nil, err
	}
	return n.Load(ctx, r.ID)
}

func execCommand() command {
	return command{name: "exec", args: "ENV COMMAND [ARG…]", short: "run another command in an environment", inner: true,
		long:    "The exit status is the command's; 126 says that it can't be executed, 127 that it was not found, 125 is ours.",
		example: "nodeagent exec -it web sh\nnodeagent exec web cat /etc/hosts",
		define: func(f *pflag.FlagSet) func(context.Context, *app, []string) error {
			interactive := f.BoolP("interactive", "i", false, "pass our standard input to the command")
			tty := f.BoolP("tty", "t", false, "give the command a terminal")
			env := f.StringArrayP("env", "e", nil, "environment variable `K=V`; may be repeated")
			cwd := f.StringP("workdir", "w", "", "`DIR` to begin in")
			user := f.StringP("user", "u", "", "`USER`: name, uid, uid:gid")
			return func(ctx context.Context, a *app, args []string) error {
				if len(args) == 0 {
					return &usageError{errNoEnv}
				}
				if len(args) == 1 {
					return badUsage("say which command to run")
				}
				if *tty && *interactive && !term.IsTerminal(int(a.stdin.Fd())) {
					return badUsage("-t with -i needs a terminal on standard input, and it is not one: leave -t out")
				}
				e, err := load(ctx, a, args[0])
				if err != nil {
					return err
				}
				o := nodeagent.ExecOptions{Args: args[1:], Env: *env, Cwd: *cwd, User: *user, TTY: *tty}
				if *tty {
					o.Cols, o.Rows = windowSize(a)
				}
				sigs := catchSignals()
				defer sigs.stop()
				s, err := e.Exec(ctx, o)
				if err != nil {
					return execFailure(err)
				}
				kept := context.WithoutCancel(ctx)
				st, err := converse(kept, a, e, s, *interactive, sigs, func() { _ = s.Signal(kept, unix.SIGKILL) })
				if err != nil {
					return err
				}
				if st.Code != 0 {
					return &exitCode{code: st.Code}
				}
				return nil
			}
		}}
}

func logsCommand() command {
	return command{name: "logs", args: "ENV", short: "print what a detached environment's command has written",
		long:    "Output is kept up to a bound (two files of 4 MiB); the oldest goes first. A foreground run's goes to its own terminal.",
		example: "nodeagent logs -f web\nnodeagent logs --tail 20 web",
		define: func(f *pflag.FlagSet) func(context.Context, *app, []string) error {
			follow := f.BoolP("follow", "f", false, "go on until the environment ends")
			tail := f.IntP("tail", "n", 0, "only the last `N` lines (0: all)")
			return func(ctx context.Context, a *app, args []string) error {
				if len(args) != 1 {
					return &usageError{errNoEnv}
				}
				if *tail < 0 {
					return badUsage("--tail %d: want a number of lines", *tail)
				}
				n, err := a.node()
				if err != nil {
					return err
				}
				r, err := n.Find(args[0])
				if err != nil {
					return err
				}
				err = n.Logs(ctx, r.ID, a.stdout, nodeagent.LogOptions{Follow: *follow, Tail: *tail})
				if errors.Is(err, context.Canceled) && *follow {
					return &exitCode{code: 128 + int(unix.SIGINT)}
				}
				return err
			}
		}}
}

func inspectCommand() command {
	return command{name: "inspect", args: "ENV…", short: "print all that is known of environments, as JSON",
		example: "nodeagent inspect web\nnodeagent inspect web | grep address",
		define: func(f *pflag.FlagSet) func(context.Context, *app, []string) error {
			_ = f.Bool("json", true, "print JSON, which it does anyway")
			return func(ctx context.Context, a *app, args []string) error {
				if len(args) == 0 {
					return &usageError{errNoEnv}
				}
				n, err := a.node()
				if err != nil {
					return err
				}
				if _, err := n.Reconcile(ctx); err != nil {
					fmt.Fprintln(a.stderr, "nodeagent: tidy up:", err)
				}
				// What was found is printed, if only [], so that a program always reads JSON.
				list := []inspected{}
				err = forEach(a, args, 1, func(ref string) error {
					r, err := n.Find(ref)
					if err == nil {
						list = append(list, inspect(r))
					}
					return err
				})
				if printed := printJSON(a.stdout, list); printed != nil {
					return printed
				}
				return err
			}
		}}
}

// inspected is a record as people read it: its durations have units.
type inspected struct {
	*nodeagent.Record
	Timings  map[string]string  `json:"timings,omitempty"`
	Platform *inspectedPlatform `json:"platform,omitempty"`
}

type inspectedPlatform struct {
	*nodeagent.PlatformRecord
	IdleTimeout string `json:"idleTimeout,omitempty"`
}

func inspect(r *nodeagent.Record) inspected {
	out := inspected{Record: r, Timings: map[string]string{}}
	for stage, micros := range r.Timings {
		out.Timings[stage] = (time.Duration(micros) * time.Microsecond).String()
	}
	if r.Platform != nil {
		out.Platform = &inspectedPlatform{PlatformRecord: r.Platform}
		if r.Platform.IdleTimeout > 0 {
			out.Platform.IdleTimeout = r.Platform.IdleTimeout.String()
		}
	}
	return out
}

// statsRow is one environment's figures.
type statsRow struct {
	ID          string  `json:"id"`
	Name        string  `json:"name,omitempty"`
	CPUPercent  float64 `json:"cpuPercent"`
	CPUNanos    uint64  `json:"cpuNanos"`
	MemoryBytes uint64  `json:"memoryBytes"`
	MemoryLimit uint64  `json:"memoryLimit"`
	PIDs        uint64  `json:"pids"`
	RxBytes     uint64  `json:"rxBytes"`
	TxBytes     uint64  `json:"txBytes"`
	BlockRead   uint64  `json:"blockRead"`
	BlockWrite  uint64  `json:"blockWrite"`
	// DiskBytes is what the writable layer takes, where it has a limit.
	DiskBytes int64 `json:"diskBytes,omitempty"`
	DiskLimit int64 `json:"diskLimit,omitempty"`
	// PSI is pressure stall information, where the kernel keeps it.
	PSI *runtime.PSI `json:"psi,omitempty"`
}

func statsCommand() command {
	return command{name: "stats", args: "[ENV…]", short: "show what environments use",
		long: `On a terminal the table is renewed every second until interrupted; elsewhere it is printed once. PRESSURE is the share
of the last ten seconds in which something inside waited for a processor, memory or a disk (only where the kernel has
cgroup v2 and keeps it: psi=1).`,
		example: "nodeagent stats\nnodeagent stats --json web",
		define: func(f *pflag.FlagSet) func(context.Context, *app, []string) error {
			once := f.Bool("no-stream", false, "print once")
			asJSON := f.Bool("json", false, "print JSON, once")
			return func(ctx context.Context, a *app, args []string) error {
				n, err := a.node()
				if err != nil {
					return err
				}
				stream := !*once && !*asJSON && term.IsTerminal(int(a.stdout.Fd()))
				before, err := readStats(ctx, n, args)
				if err != nil {
					return err
				}
				pause := 250 * time.Millisecond
				for {
					begin := time.Now()
					select {
					case <-ctx.Done():
						return nil
					case <-time.After(pause):
					}
					now, err := readStats(ctx, n, args)
					if err != nil {
						return err
					}
					for i := range now {
						for _, old := range before {
							if old.ID == now[i].ID && now[i].CPUNanos >= old.CPUNanos {
								now[i].CPUPercent = 100 * float64(now[i].CPUNanos-old.CPUNanos) / float64(time.Since(begin))
							}
						}
					}
					if *asJSON {
						return printJSON(a.stdout, now)
					}
					if stream {
						fmt.Fprint(a.stdout, "\x1b[H\x1b[2J")
					}
					if err := statsTable(now).print(a.stdout); err != nil || !stream {
						return err
					}
					before, pause = now, time.Second
				}
			}
		}}
}

func readStats(ctx context.Context, n *nodeagent.Node, refs []string) ([]statsRow, error) {
	var records []*nodeagent.Record
	if len(refs) == 0 {
		all, err := n.Records()
		if err != nil {
			return nil, err
		}
		records = all
	}
	for _, ref := range refs {
		r, err := n.Find(ref)
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	rows := []statsRow{}
	for _, r := range records {
		e, err := n.Load(ctx, r.ID)
		var s nodeagent.Stats
		if err == nil {
			s, err = e.Stats(ctx)
		}
		if err != nil {
			if len(refs) == 0 {
				continue // ended, or ending this moment
			}
			return nil, err
		}
		rows = append(rows, statsRow{ID: r.ID, Name: r.Name, CPUNanos: s.CPUNanos, MemoryBytes: s.MemoryBytes, MemoryLimit: s.MemoryLimit,
			PIDs: s.PIDs, RxBytes: s.Net.RxBytes, TxBytes: s.Net.TxBytes, BlockRead: s.BlockRead, BlockWrite: s.BlockWrite, PSI: s.PSI,
			DiskBytes: s.DiskBytes, DiskLimit: s.DiskLimit})
	}
	return rows, nil
}

func statsTable(rows []statsRow) *table {
	t := newTable("ID", "NAME", "CPU", "MEMORY", "LIMIT", "PIDS", "RX", "TX", "READ", "WRITTEN", "DISK", "PRESSURE")
	for _, s := range rows {
		limit := "-"
		if s.MemoryLimit > 0 {
			limit = sizeText(int64(s.MemoryLimit))
		}
		disk := "-"
		if s.DiskLimit > 0 {
			disk = sizeText(s.DiskBytes) + " / " + sizeText(s.DiskLimit)
		}
		pressure := "-"
		if p := s.PSI; p != nil {
			pressure = fmt.Sprintf("cpu %.0f%% mem %.0f%% io %.0f%%", p.CPU.Some10, p.Memory.Some10, p.IO.Some10)
		}
		t.row(clipText(s.ID, 12), s.Name, fmt.Sprintf("%.1f%%", s.CPUPercent), sizeText(int64(s.MemoryBytes)), limit, strconv.FormatUint(s.PIDs, 10),
			sizeText(int64(s.RxBytes)), sizeText(int64(s.TxBytes)), sizeText(int64(s.BlockRead)), sizeText(int64(s.BlockWrite)), disk, pressure)
	}
	return t
}

// ends is what stop and kill have in common: they act on running environments, and print what they acted on. ended
// says what it means that one has ended already. They fail as docker's do, with exit status 1.
func ends(ctx context.Context, a *app, refs []string, do func(*nodeagent.Environment) error, ended func(ref string) error) error {
	if len(refs) == 0 {
		return &usageError{errNoEnv}
	}
	n, err := a.node()
	if err != nil {
		return err
	}
	err = forEach(a, refs, 1, func(ref string) error {
		r, err := n.Find(ref)
		if err != nil {
			return err
		}
		e, err := n.Load(ctx, r.ID)
		if err == nil {
			err = do(e)
		}
		if errors.Is(err, nodeagent.ErrNotRunning) {
			err = ended(ref)
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(a.stdout, ref)
		return nil
	})
	if _, tidy := n.Reconcile(ctx); tidy != nil {
		fmt.Fprintln(a.stderr, "nodeagent: tidy up:", tidy)
	}
	return err
}

func stopCommand() command {
	return command{name: "stop", args: "ENV…", short: "ask environments to end, and end them by force if they don't",
		example: "nodeagent stop web\nnodeagent stop --time 1 web",
		define: func(f *pflag.FlagSet) func(context.Context, *app, []string) error {
			grace := f.IntP("time", "t", 10, "`SECONDS` to wait before force is used")
			return func(ctx context.Context, a *app, args []string) error {
				if *grace < 0 {
					return badUsage("--time %d: want seconds", *grace)
				}
				return ends(ctx, a, args, func(e *nodeagent.Environment) error {
					return e.Stop(ctx, time.Duration(*grace)*time.Second)
				}, func(string) error { return nil }) // it is as it should be
			}
		}}
}

func killCommand() command {
	return command{name: "kill", args: "ENV…", short: "end environments at once, or send them a signal",
		example: "nodeagent kill web\nnodeagent kill -s HUP web",
		define: func(f *pflag.FlagSet) func(context.Context, *app, []string) error {
			name := f.StringP("signal", "s", "KILL", "`SIGNAL` for the main command; KILL ends everything in the environment")
			return func(ctx context.Context, a *app, args []string) error {
				sig, err := parseSignal(*name)
				if err != nil {
					return &usageError{err}
				}
				return ends(ctx, a, args, func(e *nodeagent.Environment) error {
					if sig == unix.SIGKILL {
						return e.Kill(ctx)
					}
					return e.Signal(ctx, sig)
				}, func(ref string) error { return fmt.Errorf("%s is not running: it has ended already", ref) })
			}
		}}
}

func rmCommand() command {
	return command{name: "rm", args: "ENV…", short: "remove environments", example: "nodeagent rm web\nnodeagent rm -f $(nodeagent ps -aq)",
		define: func(f *pflag.FlagSet) func(context.Context, *app, []string) error {
			force := f.BoolP("force", "f", false, "running ones too")
			return func(ctx context.Context, a *app, args []string) error {
				if len(args) == 0 {
					return &usageError{errNoEnv}
				}
				n, err := a.node()
				if err != nil {
					return err
				}
				if _, err := n.Reconcile(ctx); err != nil {
					fmt.Fprintln(a.stderr, "nodeagent: tidy up:", err)
				}
				return forEach(a, args, ownFailure, func(ref string) error {
					r, err := n.Find(ref)
					if err != nil {
						return err
					}
					if r.State != nodeagent.StateExited && !*force {
						return fmt.Errorf("%s is %s: stop it first, or use -f", ref, r.State)
					}
					if err := n.Delete(ctx, r.ID); err != nil {
						return err
					}
					fmt.Fprintln(a.stdout, ref)
					return nil
				})
			}
		}}
}

// check is one line of doctor.
type check struct {
	Part        string `json:"part"`
	Name        string `json:"name"`
	OK          bool   `json:"ok"`
	Detail      string `json:"detail"`
	Consequence string `json:"consequence,omitempty"`
}

func doctorCommand() command {
	return command{name: "doctor", short: "say what this machine gives and lacks",
		long:    "One line each; where something is missing, what will not work and what would help. Always exits 0.",
		example: "nodeagent doctor\nnodeagent doctor --json",
		define: func(f *pflag.FlagSet) func(context.Context, *app, []string) error {
			asJSON := f.Bool("json", false, "print JSON")
			return func(ctx context.Context, a *app, args []string) error {
				if err := noArgs(args); err != nil {
					return err
				}
				list := append([]check{privilege()}, spares(a)...)
				for _, c := range runtime.Probe(ctx) {
					list = append(list, check{"runtime", c.Name, c.OK, c.Detail, c.Consequence})
				}
				list = append(list, diskLimits(a.root))
				list = append(list, tool("busybox", "busybox-static", "`image build busybox`"), tool("debootstrap", "debootstrap", "`image build debootstrap`"))
				for _, c := range netbridge.Probe(ctx) {
					list = append(list, check{"network", c.Name, c.OK, c.Detail, c.Consequence})
				}
				if *asJSON {
					return printJSON(a.stdout, list)
				}
				for _, c := range list {
					mark := "ok     "
					if !c.OK {
						mark = "LACKING"
					}
					fmt.Fprintf(a.stdout, "%s  %-8s %s: %s\n", mark, c.Part, c.Name, c.Detail)
					if !c.OK && c.Consequence != "" {
						fmt.Fprintf(a.stdout, "                   → %s\n", c.Consequence)
					}
				}
				return nil
			}
		}}
}

func privilege() check {
	c := check{Part: "node", Name: "privilege", OK: os.Geteuid() == 0, Detail: "user id " + strconv.Itoa(os.Geteuid())}
	if !c.OK {
		c.Consequence = "nothing works without root: try sudo"
	}
	return c
}

// spares says how many environments wait to be given away on this node. It looks only where there is a node.
func spares(a *app) []check {
	if os.Geteuid() != 0 {
		return nil
	}
	if _, err := os.Stat(filepath.Join(a.root, "spares")); err != nil {
		return nil
	}
	n, err := a.node()
	if err != nil {
		return nil
	}
	list, err := n.Spares()
	if err != nil {
		return []check{{"node", "spares", false, err.Error(), "environments take a few milliseconds longer to start"}}
	}
	detail := "none made ahead of need"
	if len(list) > 0 {
		detail = strconv.Itoa(len(list)) + " made ahead of need, for " + spareImages(list)
	}
	return []check{{"node", "spares", true, detail, ""}}
}

func diskLimits(root string) check {
	how, err := rootfs.DiskLimits(root)
	if err != nil {
		return check{"node", "disk limits", false, err.Error(), "`run --disk`, and images with a disk limit, fail"}
	}
	return check{"node", "disk limits", true, how, ""}
}

// tool looks for a program that only one command needs.
func tool(program, pkg, needs string) check {
	path, err := exec.LookPath(program)
	c := check{Part: "images", Name: program, OK: err == nil, Detail: path}
	if err != nil {
		c.Detail = "not installed"
		c.Consequence = needs + " does not work: apt-get install " + pkg
	}
	return c
}

func gcCommand() command {
	return command{name: "gc", short: "clear what no live environment owns",
		long: `Environments whose makers were killed, and processes, cgroups, disks, addresses and user ids that nobody owns. Live
environments are never touched, unless --all gives the machine back: then they end too, and the node's bridge and
firewall table go. Images stay in any case.`,
		example: "nodeagent gc\nnodeagent gc --all",
		define: func(f *pflag.FlagSet) func(context.Context, *app, []string) error {
			asJSON := f.Bool("json", false, "print JSON")
			all := f.Bool("all", false, "end every environment and take the node's network away")
			return func(ctx context.Context, a *app, args []string) error {
				if err := noArgs(args); err != nil {
					return err
				}
				n, err := a.node()
				if err != nil {
					return err
				}
				var ended []string
				if *all {
					records, err := n.Records()
					if err != nil {
						return err
					}
					for _, r := range records {
						ended = append(ended, r.ID)
					}
					if err := n.Destroy(ctx); err != nil {
						return err
					}
				}
				s, err := n.Sweep(ctx)
				s.Environments = append(ended, s.Environments...)
				if *asJSON {
					for _, list := range []*[]string{&s.Environments, &s.Containers, &s.Disks, &s.Addresses, &s.IDRanges, &s.Names} {
						if *list == nil {
							*list = []string{}
						}
					}
					return errors.Join(printJSON(a.stdout, s), err)
				}
				total := 0
				for _, part := range []struct {
					what string
					list []string
				}{{"environment", s.Environments}, {"container", s.Containers}, {"disk", s.Disks}, {"address", s.Addresses}, {"id range", s.IDRanges}, {"name", s.Names}} {
					for _, id := range part.list {
						fmt.Fprintln(a.stdout, part.what, plain(id))
						total++
					}
				}
				fmt.Fprintf(a.stdout, "%d cleared\n", total)
				return err
			}
		}}
}
