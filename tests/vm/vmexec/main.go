// Command vmexec runs a command in a guest of its own with pure cgroup v2; see package vm. It is made for
//
//	go test -p 1 -exec bin/vmexec ./runtime
//
// and, with -shell, to look around. It exits with the command's status, or with 125 if the machine failed and nothing
// is known about the command.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	"github.com/learnos/learnos/tests/vm"
	"golang.org/x/sys/unix"
)

const infrastructure = 125

// greeting says, before a shell, what machine this is: a table of what Learnos finds in it.
const greeting = `[ -x bin/nodeagent ] && bin/nodeagent doctor; echo; echo "cgroup v2, and nothing written here is kept; exit ends the machine"; exec /bin/bash -l`

func main() {
	vm.Role()
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "vmexec:", err)
		return infrastructure
	}
	dir, err := os.Getwd()
	if err != nil {
		return fail(err)
	}
	job := vm.Job{Args: args, Env: os.Environ(), Dir: dir}
	if len(args) > 0 && args[0] == "-shell" {
		job = vm.Job{Args: []string{"/bin/bash", "-lc", greeting}, Env: os.Environ(), Dir: dir, Shell: true}
	}
	if len(job.Args) == 0 {
		fmt.Fprintln(os.Stderr, "usage: vmexec COMMAND [ARGUMENT...] | vmexec -shell")
		return 2
	}
	path, err := exec.LookPath(job.Args[0])
	if err != nil {
		return fail(err)
	}
	if job.Args[0], err = filepath.Abs(path); err != nil {
		return fail(err)
	}
	cache, err := vm.CacheDir(dir)
	if err != nil {
		return fail(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGHUP)
	defer stop()
	status, err := vm.Run(ctx, cache, job, os.Stdout, os.Stderr)
	if err != nil {
		return fail(err)
	}
	return status
}
