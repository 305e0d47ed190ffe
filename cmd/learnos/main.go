// Command learnos runs the whole of Learnos on one machine, in one process: an embedded etcd, SQLite, the gateway, the
// panel, the SSH door and a node. It parses flags and calls the packages that do the work.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/learnos/learnos/internal/buildinfo"
	"github.com/learnos/learnos/internal/config"
	"github.com/learnos/learnos/netbridge"
	"github.com/learnos/learnos/runtime"
)

const usage = `Learnos gives people disposable Linux machines, in a browser tab or by ssh.

Usage:
  learnos up        run everything on this machine
  learnos doctor    say what this machine gives and lacks
  learnos config    print a configuration file with every key and what it means
  learnos version   say which build this is

Each takes --help.
`

// errUnwell: doctor found something.
var errUnwell = errors.New("this machine lacks something, see above")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends it at once
	switch err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); {
	case err == nil, errors.Is(err, pflag.ErrHelp):
	default:
		fmt.Fprintln(os.Stderr, "learnos:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		fmt.Fprint(stdout, usage)
		return nil
	}
	name, args := args[0], args[1:]
	f := pflag.NewFlagSet("learnos "+name, pflag.ContinueOnError)
	f.SetOutput(stdout)
	switch name {
	case "help", "--help", "-h":
		fmt.Fprint(stdout, usage)
		return nil
	case "version", "--version":
		f.Usage = func() { fmt.Fprintln(stdout, "Say which build this is.\n\nUsage: learnos version") }
		if err := parse(f, args); err != nil {
			return err
		}
		fmt.Fprintln(stdout, "learnos", buildinfo.Version())
		return nil
	case "config":
		f.Usage = func() {
			fmt.Fprintln(stdout, "Print a configuration file with every key, its default and what it means.\n\nUsage: learnos config > config.toml")
		}
		if err := parse(f, args); err != nil {
			return err
		}
		fmt.Fprint(stdout, config.Example())
		return nil
	case "doctor":
		f.Usage = func() {
			fmt.Fprintln(stdout, "Say what this machine gives and lacks, and what follows from it. The status is 1 when something is missing.\n\nUsage: learnos doctor")
		}
		if err := parse(f, args); err != nil {
			return err
		}
		return doctor(ctx, stdout)
	case "up":
		return upCommand(ctx, f, args, stdout, stderr)
	}
	return fmt.Errorf("there is no command %q; learnos help lists them", name)
}

// parse takes flags and no other arguments.
func parse(f *pflag.FlagSet, args []string) error {
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("%q is not understood; see %s --help", f.Arg(0), f.Name())
	}
	return nil
}

// check is one finding about the machine.
type check struct {
	name, detail, consequence string
	ok                        bool
}

// checks asks the runtime and the network what they find.
func checks(ctx context.Context) []check {
	var out []check
	for _, c := range runtime.Probe(ctx) {
		out = append(out, check{c.Name, c.Detail, c.Consequence, c.OK})
	}
	for _, c := range netbridge.Probe(ctx) {
		out = append(out, check{c.Name, c.Detail, c.Consequence, c.OK})
	}
	return out
}

func doctor(ctx context.Context, stdout io.Writer) error {
	well := true
	if os.Geteuid() != 0 {
		well = false
		fmt.Fprintf(stdout, "!   root: this is user %d\n    %s\n", os.Geteuid(), withoutRoot)
	}
	for _, c := range checks(ctx) {
		mark := "ok "
		if !c.ok {
			mark, well = "!  ", false
		}
		fmt.Fprintf(stdout, "%s %s: %s\n", mark, c.name, c.detail)
		if !c.ok && c.consequence != "" {
			fmt.Fprintf(stdout, "    %s\n", c.consequence)
		}
	}
	if !well {
		return errUnwell
	}
	return nil
}
