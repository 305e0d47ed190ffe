// Command bench measures Learnos beside its peers in the same run, on the same machine: Debian's crun, runc and
// bubblewrap, podman, and docker, whose daemon it starts and stops itself.
//
//	go run ./tests/bench [-only REGEXP] [-quick] [-json FILE] [-page docs/bench.md]
//	go run ./tests/bench -page docs/bench.md FILE.json
//
// Everything runs in mount, network and process namespaces of its own: with an empty /run and /dev/shm, without a hybrid
// machine's second cgroup hierarchy (crun refuses it), and with no network but its own loopback, on which a registry
// serves the images. So nothing of the machine's is touched, nothing outlives the run, and all contenders have the same.
//
// Contenders take turns, run by run. Figures are the minimum, the median and the 99th percentile; a target is judged by
// the medians of one run. A peer that isn't there, or fails, is a row that says so, and the exit status is 3.
//
// One file is one question; each adds its part to the table below.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// part measures one thing.
type part struct {
	name string
	run  func(context.Context, *bench) ([]*Measure, error)
}

var parts = []part{
	{"cycle", cycle},
	{"exec", execTrue},
	{"create", creates},
	{"agent", agent},
	{"idle", idle},
	{"run", runRemove},
	{"burst", bursts},
	{"pull", pulls},
	{"calls", calls},
}

// bench is what the parts have in common.
type bench struct {
	quick bool
	work  string // a directory of our own, on a disk
	bin   string // of the binaries that `make build` makes
	tag   string // names cgroups and containers

	// What parts share, made by who first needs it.
	registry, busybox string
	dockerd           *docker
	dockerErr         error
	nodeRoot          string
}

// close ends what parts share.
func (b *bench) close() {
	if b.dockerd != nil {
		b.dockerd.stop()
	}
}

// runs is how often something is to be measured.
func (b *bench) runs(full, quick int) int {
	if b.quick {
		return quick
	}
	return full
}

// patience is how long one measure may go on for more runs: a busy machine gets fewer of them instead of hours.
func (b *bench) patience() time.Duration {
	if b.quick {
		return 10 * time.Second
	}
	return 40 * time.Second
}

func main() {
	only := flag.String("only", "", "run only parts whose name matches `REGEXP`: "+strings.Join(partNames(), ", "))
	quick := flag.Bool("quick", false, "fewer runs, for a look: three minutes at most")
	jsonFile := flag.String("json", "", "write the report to `FILE`")
	page := flag.String("page", "", "write the report as a page (with its plots) to `FILE`; with an argument, of that report")
	bin := flag.String("bin", "bin", "`DIR` of the binaries (make build)")
	work := flag.String("work", "", "`DIR` to work in, on a disk (default: a new one in the temporary directory)")
	flag.Parse()
	if err := start(*only, *quick, *jsonFile, *page, *bin, *work); err != nil {
		var inside *status
		if errors.As(err, &inside) {
			os.Exit(inside.code) // it has said why
		}
		fmt.Fprintln(os.Stderr, "bench:", err)
		var inc *incomplete
		if errors.As(err, &inc) {
			os.Exit(3)
		}
		os.Exit(1)
	}
}

func partNames() (names []string) {
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

func start(only string, quick bool, jsonFile, page, bin, work string) error {
	filter, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	if flag.NArg() > 0 {
		if flag.NArg() > 1 || page == "" {
			return errors.New("want one report, and -page FILE to write it to")
		}
		r, err := readReport(flag.Arg(0))
		if err != nil {
			return err
		}
		return writePage(r, page)
	}
	var chosen []part
	for _, p := range parts {
		if filter.MatchString(p.name) {
			chosen = append(chosen, p)
		}
	}
	if len(chosen) == 0 {
		return fmt.Errorf("-only %s: no such part; there are %s", only, strings.Join(partNames(), ", "))
	}
	if os.Getenv(stageVariable) == "" {
		return outside(work)
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	for _, name := range []string{"lrun", "nodeagent", "learnos"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			return fmt.Errorf("%w; `make build` makes it", err)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	work = os.Getenv(stageVariable)
	b := &bench{quick: quick, work: work, bin: bin, tag: filepath.Base(work)}
	defer b.close()
	r := &Report{When: time.Now().UTC().Truncate(time.Second), Quick: quick, Machine: machine(), Versions: versions(ctx, b),
		Command: asked(only, quick)}
	for i, p := range chosen {
		began := time.Now()
		say("part %d of %d: %s", i+1, len(chosen), p.name)
		measures, err := p.run(ctx, b)
		for _, m := range measures {
			m.judge()
			printMeasure(os.Stdout, m)
		}
		r.Measures = append(r.Measures, measures...)
		if err != nil {
			r.Failed = append(r.Failed, fmt.Sprintf("part %s: %v", p.name, err))
			say("part %s failed: %v", p.name, err)
		}
		if ctx.Err() != nil {
			return errors.New("interrupted; what was measured so far is above")
		}
		say("part %s took %.0f s", p.name, time.Since(began).Seconds())
	}
	r.Took = time.Since(r.When)
	printTargets(os.Stdout, r)
	if jsonFile != "" {
		if err := r.write(jsonFile); err != nil {
			return err
		}
	}
	if page != "" {
		if err := writePage(r, page); err != nil {
			return err
		}
	}
	return r.complete()
}

// asked is the command that repeats a run, wherever it wrote its report to.
func asked(only string, quick bool) string {
	var args []string
	if only != "" {
		args = append(args, "-only '"+only+"'")
	}
	if quick {
		args = append(args, "-quick")
	}
	if len(args) == 0 {
		return "make bench"
	}
	return `make bench ARGS="` + strings.Join(args, " ") + `"`
}

// say tells a person who waits.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}
