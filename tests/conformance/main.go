// Command conformance runs the validation programs of opencontainers/runtime-tools against lrun and, beside it, crun and runc,
// on this machine and in a guest with pure cgroup v2 (package vm), and prints a table for each. It fails when lrun fails a
// program that one of the others passes on the same machine.
//
//	CGO_ENABLED=0 go run ./tests/conformance [-on native,guest] [-runtimes lrun,crun,runc] [-only REGEXP] [-v]
//
// A program's TAP is read strictly (tap.go). Several programs run at a time, since most of what they do is wait, but those
// that share a cgroup's name run one after the other. Some race with the process that they start (killsig, say, signals a shell
// that may not have set its trap yet): where lrun fails and another passes, lrun may try twice more, and what passed must pass
// each time as well. So only a difference that can be repeated counts.
//
// What lrun has no way of passing, and why, is written in notes.go.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/learnos/learnos/tests/vm"
)

func main() {
	vm.Role()
	on := flag.String("on", "native,guest", "where to run: native, guest")
	names := flag.String("runtimes", "lrun,crun,runc", "what to run, by name or path, the first being judged")
	only := flag.String("only", "", "run only programs whose name matches")
	verbose := flag.Bool("v", false, "show the output of what the first runtime fails")
	inside := flag.String("inside", "", "run what is prepared in a directory and print the results as JSON (as it calls itself in the guest)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	runtimes := strings.Split(*names, ",")
	var err error
	if *inside != "" {
		err = runInside(ctx, *inside, runtimes, *only)
	} else {
		err = run(ctx, strings.Split(*on, ","), runtimes, *only, *verbose)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, places, names []string, only string, verbose bool) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("containers need root: run it as root")
	}
	work, err := os.MkdirTemp("", "learnos-conformance-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := build(ctx, work); err != nil {
		return err
	}
	runtimes, err := find(ctx, work, names)
	if err != nil {
		return err
	}
	var behind []string
	for _, place := range places {
		began := time.Now()
		var t table
		switch place {
		case "native":
			t, err = native(ctx, work, runtimes, only)
		case "guest":
			t, err = guest(ctx, work, runtimes, only)
		default:
			err = fmt.Errorf("-on: %q is neither native nor guest", place)
		}
		if err != nil {
			return err
		}
		fmt.Printf("\n%s, %d s\n", map[string]string{"native": "On this machine", "guest": "In the cgroup v2 guest"}[place], int(time.Since(began).Seconds()))
		for _, program := range t.print(os.Stdout, runtimes, verbose) {
			behind = append(behind, program+" ("+place+")")
		}
	}
	if len(behind) > 0 {
		return fmt.Errorf("%s fails what another passes: %s", runtimes[0].name, strings.Join(behind, ", "))
	}
	return nil
}

// guest starts this program again in a guest, where it calls runInside.
func guest(ctx context.Context, work string, runtimes []runtime, only string) (table, error) {
	here, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	cache, err := vm.CacheDir(here)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, r := range runtimes {
		paths = append(paths, r.path)
	}
	var out bytes.Buffer
	job := vm.Job{Args: []string{self, "-inside", work, "-runtimes", strings.Join(paths, ","), "-only", only}, Env: os.Environ(), Dir: work}
	status, err := vm.Run(ctx, cache, job, &out, os.Stderr)
	if err != nil {
		return nil, err
	}
	if status != 0 {
		return nil, fmt.Errorf("the programs could not be run in the guest: exit status %d", status)
	}
	var t table
	if err := json.Unmarshal(out.Bytes(), &t); err != nil {
		return nil, fmt.Errorf("what the guest said of the programs: %w", err)
	}
	return t, nil
}

// runInside is the guest's part. A process costs several times as much there, and a Go program twice that with huge pages
// to clear and threads to start.
func runInside(ctx context.Context, work string, paths []string, only string) error {
	programs, err := list(work, only)
	if err != nil {
		return err
	}
	if err := os.WriteFile("/sys/kernel/mm/transparent_hugepage/enabled", []byte("never"), 0); err != nil {
		return err
	}
	if err := os.Setenv("GOMAXPROCS", "1"); err != nil {
		return err
	}
	r := &runner{work: work, limit: 3 * time.Minute, lanes: 4, version2: true}
	for _, path := range paths {
		r.runtimes = append(r.runtimes, runtime{filepath.Base(path), path})
	}
	return json.NewEncoder(os.Stdout).Encode(r.run(ctx, programs))
}

// list names the programs that have been built.
func list(work, only string) (programs []string, err error) {
	filter, err := regexp.Compile(only)
	if err != nil {
		return nil, fmt.Errorf("-only: %w", err)
	}
	entries, err := os.ReadDir(filepath.Join(work, "bin"))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if filter.MatchString(e.Name()) {
			programs = append(programs, e.Name())
		}
	}
	return programs, nil
}

// runtime is one under test.
type runtime struct{ name, path string }

// find locates the runtimes; ours is built.
func find(ctx context.Context, work string, names []string) (runtimes []runtime, err error) {
	for _, name := range names {
		path := filepath.Join(work, name)
		if name != "lrun" {
			if path, err = exec.LookPath(name); err != nil {
				return nil, fmt.Errorf("%s, to compare with, is not installed (scripts/setup test does that): %w", name, err)
			}
		} else if err := goBuild(ctx, ".", []string{"CGO_ENABLED=0"}, "-trimpath", "-ldflags", "-s -w", "-o", path, "./cmd/lrun"); err != nil {
			return nil, err
		}
		runtimes = append(runtimes, runtime{filepath.Base(name), path})
	}
	return runtimes, nil
}
