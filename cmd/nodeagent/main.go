// Command nodeagent is a Learnos node: disposable Linux environments from a shell with nothing else running, and,
// as `nodeagent serve`, the daemon that makes them for the platform. It parses flags and prints; package nodeagent
// does the work.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/learnos/learnos/internal/buildinfo"
	"github.com/learnos/learnos/nodeagent"
)

// ownFailure is the exit status of whatever went wrong on our side, as env(1), nohup(1) and docker have it.
const ownFailure = 125

// command is one word of the command line.
type command struct {
	name    string
	args    string // after the flags, for the usage line
	short   string // one line
	long    string // paragraphs; may be empty
	example string
	// inner commands get their flags parsed no further than the first argument: what follows is not ours.
	inner bool
	hide  bool
	// define registers the flags and returns what runs with them.
	define func(f *pflag.FlagSet) func(ctx context.Context, a *app, args []string) error
}

// app is what every command gets.
type app struct {
	root   string
	stdin  *os.File
	stdout *os.File
	stderr *os.File
}

// node opens the node under --root.
func (a *app) node() (*nodeagent.Node, error) {
	return nodeagent.Open(a.root, nodeagent.SavedOptions(a.root))
}

// exitCode is an error that carries an exit status. Its message, if any, is printed.
type exitCode struct {
	code int
	err  error
}

func (e *exitCode) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitCode) Unwrap() error { return e.err }

// usageError is an error of the command line: the message is followed by where help is.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func badUsage(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

func commands() []command {
	return []command{
		runCommand(), psCommand(), execCommand(), logsCommand(), inspectCommand(), statsCommand(),
		stopCommand(), killCommand(), rmCommand(), imageCommand(), doctorCommand(), gcCommand(),
		serveCommand(), versionCommand(),
	}
}

func main() {
	// A start must be quick and the process is short-lived: collect garbage late. `serve` turns this back.
	debug.SetGCPercent(400)
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	os.Exit(a.main(os.Args[1:]))
}

func (a *app) main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := a.dispatch(ctx, "nodeagent", commands(), args)
	var code *exitCode
	var usage *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		if msg := code.Error(); msg != "" {
			fmt.Fprintln(a.stderr, "nodeagent:", msg)
		}
		return code.code
	case errors.As(err, &usage):
		fmt.Fprintln(a.stderr, "nodeagent:", err)
		return ownFailure
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		fmt.Fprintln(a.stderr, "nodeagent: interrupted")
		return 128 + int(syscall.SIGINT)
	}
	fmt.Fprintln(a.stderr, "nodeagent:", err)
	return ownFailure
}

// dispatch finds the command that args begin with, under a prefix of words already taken, and runs it.
func (a *app) dispatch(ctx context.Context, prefix string, table []command, args []string) error {
	top := pflag.NewFlagSet(prefix, pflag.ContinueOnError)
	top.SetInterspersed(false)
	top.SetOutput(io.Discard)
	top.Usage = func() {}
	rootFlag(top, &a.root)
	version := top.Bool("version", false, "")
	err := top.Parse(args)
	if errors.Is(err, pflag.ErrHelp) || (err == nil && top.NArg() == 0 && !*version) {
		a.help(prefix, table)
		if err == nil {
			return &exitCode{code: ownFailure}
		}
		return nil
	}
	if err != nil {
		return badUsage("%w (see `%s --help`)", err, prefix)
	}
	if *version {
		return printVersion(a)
	}
	word, rest := top.Arg(0), top.Args()[1:]
	if word == "help" {
		if len(rest) == 0 {
			a.help(prefix, table)
			return nil
		}
		word, rest = rest[0], append(rest[1:], "--help")
	}
	at := slices.IndexFunc(table, func(c command) bool { return c.name == word })
	if at < 0 {
		return badUsage("no command %q (see `%s --help`)", word, prefix)
	}
	return a.run(ctx, prefix, table[at], rest)
}

func (a *app) run(ctx context.Context, prefix string, c command, args []string) error {
	f := pflag.NewFlagSet(c.name, pflag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.SetInterspersed(!c.inner)
	f.SortFlags = false
	f.Usage = func() {}
	do := c.define(f)
	rootFlag(f, &a.root)
	err := f.Parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		a.commandHelp(prefix, c, f)
		return nil
	}
	if err != nil {
		return badUsage("%s: %w (see `%s %s --help`)", c.name, plainParse(err), prefix, c.name)
	}
	err = do(ctx, a, f.Args())
	var usage *usageError
	if errors.As(err, &usage) {
		if strings.Contains(usage.Error(), "(see `") { // it says already where to look
			return badUsage("%s: %w", c.name, usage.err)
		}
		return badUsage("%s: %w (see `%s %s --help`)", c.name, usage.err, prefix, c.name)
	}
	return err
}

// plainParse says what a flag wants, where pflag would quote Go's number parser.
func plainParse(err error) error {
	var bad *pflag.InvalidValueError
	if !errors.As(err, &bad) {
		return err
	}
	want := "another kind of value"
	switch bad.GetFlag().Value.Type() {
	case "int", "int64":
		want = "a whole number"
	case "bool":
		want = "true or false"
	}
	return fmt.Errorf("--%s %q: want %s", bad.GetFlag().Name, bad.GetValue(), want)
}

func rootFlag(f *pflag.FlagSet, root *string) {
	value := *root
	if value == "" {
		value = os.Getenv("LEARNOS_ROOT")
	}
	if value == "" {
		value = nodeagent.DefaultRoot
	}
	f.StringVar(root, "root", value, "`DIR` with this node's state (also $LEARNOS_ROOT)")
}

func (a *app) help(prefix string, table []command) {
	w := a.stdout
	if prefix == "nodeagent" {
		fmt.Fprint(w, "nodeagent makes disposable Linux environments on this machine.\n\n")
	}
	fmt.Fprintf(w, "Usage: %s [--root DIR] COMMAND [ARG…]\n\nCommands:\n", prefix)
	for _, c := range table {
		if !c.hide {
			fmt.Fprintf(w, "  %-9s %s\n", c.name, c.short)
		}
	}
	fmt.Fprintf(w, "\n`%s COMMAND --help` says more.\n", prefix)
	if prefix == "nodeagent" {
		fmt.Fprint(w, `
Try:
  nodeagent image build busybox
  nodeagent run --rm -it busybox
`)
	}
}

func (a *app) commandHelp(prefix string, c command, f *pflag.FlagSet) {
	w := a.stdout
	fmt.Fprintf(w, "%s\n\nUsage: %s %s [flags]", strings.ToUpper(c.short[:1])+c.short[1:]+".", prefix, c.name)
	if c.args != "" {
		fmt.Fprint(w, " ", c.args)
	}
	fmt.Fprintln(w)
	if c.long != "" {
		fmt.Fprintf(w, "\n%s\n", strings.TrimSpace(c.long))
	}
	fmt.Fprintf(w, "\nFlags:\n%s", f.FlagUsages())
	if c.example != "" {
		fmt.Fprintf(w, "\nExamples:\n%s\n", indent(c.example))
	}
}

func indent(s string) string {
	var out strings.Builder
	for line := range strings.Lines(strings.TrimSpace(s)) {
		out.WriteString("  " + strings.TrimSpace(line) + "\n")
	}
	return strings.TrimRight(out.String(), "\n")
}

func versionCommand() command {
	return command{name: "version", short: "print the version",
		define: func(*pflag.FlagSet) func(context.Context, *app, []string) error {
			return func(_ context.Context, a *app, args []string) error {
				if err := noArgs(args); err != nil {
					return err
				}
				return printVersion(a)
			}
		}}
}

func printVersion(a *app) error {
	_, err := fmt.Fprintln(a.stdout, "nodeagent", buildinfo.Version())
	return err
}

func noArgs(args []string) error {
	if len(args) > 0 {
		return badUsage("takes no argument, but got %q", args[0])
	}
	return nil
}

func serveCommand() command {
	return command{name: "serve", short: "run the node's daemon",
		long: `The daemon registers this machine in etcd, takes create and delete jobs from the queue while it has room, keeps
deadlines and quotas, and serves terminals to gateways over connections it dials itself. It may be killed and started
again at any time: environments and their sessions go on. Other commands work beside it on the same root.`,
		example: `nodeagent serve --config /etc/learnos/config.toml
LEARNOS_ETCD_ADDRESSES=10.0.0.5:2379 nodeagent serve`,
		define: func(f *pflag.FlagSet) func(context.Context, *app, []string) error {
			path := f.String("config", "", "`FILE` in TOML; without it defaults and LEARNOS_… variables hold")
			return func(ctx context.Context, a *app, args []string) error {
				if err := noArgs(args); err != nil {
					return err
				}
				root := ""
				if f.Changed("root") {
					var err error
					if root, err = filepath.Abs(a.root); err != nil {
						return err
					}
				}
				return serve(ctx, *path, root)
			}
		}}
}
