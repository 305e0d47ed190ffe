// Command conformance runs the validation programs of opencontainers/runtime-tools against lrun and, beside it, crun and runc,
// and prints one table. It fails when lrun fails a program that one of the others passes on this machine.
//
//	go run ./tests/conformance [-runtimes lrun,crun,runc] [-only REGEXP] [-v]
//
// Every program runs alone, in a directory of its own, for a minute at most. Its TAP is read strictly: a "not ok", a count
// that doesn't match the plan, a bail-out, an error that belongs to no result, or an exit status other than 0 fails it.
package main

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const perProgram = time.Minute

func main() {
	names := flag.String("runtimes", "lrun,crun,runc", "what to run, by name or path, the first being judged")
	only := flag.String("only", "", "run only programs whose name matches")
	verbose := flag.Bool("v", false, "show the output of what the first runtime fails")
	flag.Parse()
	if err := run(strings.Split(*names, ","), *only, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run(runtimes []string, only string, verbose bool) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("containers need root: run it as root")
	}
	filter, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	work, err := os.MkdirTemp("", "learnos-conformance-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	programs, err := build(work)
	if err != nil {
		return err
	}
	if only != "" {
		kept := programs[:0]
		for _, p := range programs {
			if filter.MatchString(p) {
				kept = append(kept, p)
			}
		}
		programs = kept
	}
	var columns []string
	results := map[string]map[string]string{} // runtime, program: "" or why it failed
	for i, name := range runtimes {
		path, err := find(work, name)
		if err != nil {
			if i == 0 {
				return err
			}
			fmt.Fprintf(os.Stderr, "conformance: %v; left out\n", err)
			continue
		}
		label := filepath.Base(name)
		columns = append(columns, label)
		results[label] = map[string]string{}
		for _, p := range programs {
			why, output := one(work, path, p, label != "lrun")
			results[label][p] = why
			if why != "" && verbose && i == 0 {
				fmt.Printf("--- %s with %s: %s\n%s\n", p, label, why, output)
			}
		}
	}
	return report(columns, programs, results)
}

// build makes every validation program, runtimetest, and the root file system they unpack.
func build(work string) ([]string, error) {
	bin := filepath.Join(work, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return nil, err
	}
	const module = "github.com/opencontainers/runtime-tools"
	suite := func(env []string, args ...string) (string, error) {
		cmd := exec.Command("go", args...)
		cmd.Dir = filepath.Join("tests", "conformance", "suite")
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("go %s (in the repository's root?): %w\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out)), nil
	}
	if _, err := suite(nil, "build", "-o", bin+"/", module+"/validation/..."); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(bin)
	if err != nil {
		return nil, err
	}
	var programs []string
	for _, e := range entries {
		programs = append(programs, e.Name())
	}
	if _, err := suite([]string{"CGO_ENABLED=0"}, "build", "-o", filepath.Join(work, "runtimetest"), module+"/cmd/runtimetest"); err != nil {
		return nil, err
	}
	// Where GOFLAGS vendors or the cache is fresh, the module must have been downloaded for its root file system.
	dir, err := suite(nil, "list", "-m", "-f", "{{.Dir}}", module)
	if err != nil {
		return nil, err
	}
	roots, err := filepath.Glob(filepath.Join(dir, "rootfs-*.tar.gz"))
	if err != nil {
		return nil, err
	}
	for _, root := range roots {
		data, err := os.ReadFile(root)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(work, filepath.Base(root)), data, 0o644); err != nil {
			return nil, err
		}
	}
	return programs, nil
}

// find returns the path of a runtime; ours is built.
func find(work, name string) (string, error) {
	if name != "lrun" {
		return exec.LookPath(name)
	}
	if _, err := os.Stat("runtime/embedded/init"); err != nil {
		if out, err := exec.Command("make", "init").CombinedOutput(); err != nil {
			return "", fmt.Errorf("make init: %w\n%s", err, out)
		}
	}
	path := filepath.Join(work, "lrun")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./cmd/lrun")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build lrun: %w\n%s", err, out)
	}
	return path, nil
}

// hideHybrid runs what follows without the unified hierarchy of a hybrid machine, with which crun and runc can't deal.
const hideHybrid = `if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec "$@"`

// one runs one program and says why it failed, "" if it passed.
func one(work, runtime, program string, hide bool) (why, output string) {
	ctx, cancel := context.WithTimeout(context.Background(), perProgram)
	defer cancel()
	args := []string{filepath.Join(work, "bin", program)}
	if hide {
		args = append([]string{"unshare", "-m", "--propagation", "private", "sh", "-c", hideHybrid, "sh"}, args...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = work
	cmd.Env = append(os.Environ(), "RUNTIME="+runtime)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	output = stdout.String() + stderr.String()
	if ctx.Err() != nil {
		return "not done within a minute", output
	}
	if why := judge(stdout.String()); why != "" {
		return why, output
	}
	if err != nil {
		return err.Error(), output
	}
	return "", output
}

var (
	resultLine = regexp.MustCompile(`^(not )?ok\b`)
	planLine   = regexp.MustCompile(`^1\.\.(\d+)`)
)

// judge reads TAP (version 13).
func judge(tap string) string {
	results, plan, diagnosis := 0, -1, false
	explained := true // there is no result whose diagnosis might follow
	lines := bufio.NewScanner(strings.NewReader(tap))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		trimmed := strings.TrimSpace(line)
		switch {
		case diagnosis:
			// Some programs report a failure by nothing but a diagnosis that belongs to no result.
			if strings.HasPrefix(trimmed, `"error"`) && explained {
				return trimmed
			}
			if diagnosis = trimmed != "..."; !diagnosis {
				explained = true
			}
		case trimmed == "---":
			diagnosis = true
		case strings.HasPrefix(line, "Bail out!"):
			return line
		case resultLine.MatchString(line):
			results++
			explained = false
			if strings.HasPrefix(line, "not ok") {
				return line
			}
		case planLine.MatchString(line):
			n, _ := strconv.Atoi(planLine.FindStringSubmatch(line)[1])
			plan = max(plan, n) // some print an empty one for an empty part, and then their own
		case strings.HasPrefix(strings.ToLower(trimmed), "error"):
			return line
		}
	}
	switch {
	case plan < 0:
		return "no plan: it did not come to its end"
	case plan != results:
		return fmt.Sprintf("%d results where %d were planned", results, plan)
	}
	return ""
}

// otherwise says where lrun means to do other than a program wants.
var otherwise = map[string]string{
	"linux_mount_label": "a label that the kernel has no SELinux for is refused, not ignored",
	"poststart_fail":    "wants what 1.0 to 1.2 said; in 1.3 a poststart hook that fails stops the container with an error",
}

func report(columns, programs []string, results map[string]map[string]string) error {
	sort.Strings(programs)
	fmt.Printf("%-34s", "program")
	for _, c := range columns {
		fmt.Printf(" %-6s", c)
	}
	fmt.Println()
	passed := map[string]int{}
	var behind []string
	for _, p := range programs {
		fmt.Printf("%-34s", p)
		other := false
		for i, c := range columns {
			word := "pass"
			if results[c][p] != "" {
				word = "FAIL"
			} else {
				passed[c]++
				other = other || i > 0
			}
			fmt.Printf(" %-6s", word)
		}
		why := results[columns[0]][p]
		if why != "" {
			reason, meant := otherwise[p]
			if meant {
				why = "meant: " + reason
			}
			fmt.Printf(" %.110s", why)
			if other && !meant {
				behind = append(behind, p)
			}
		}
		fmt.Println()
	}
	fmt.Printf("%-34s", fmt.Sprintf("passed, of %d", len(programs)))
	for _, c := range columns {
		fmt.Printf(" %-6d", passed[c])
	}
	fmt.Println()
	if len(behind) > 0 {
		return fmt.Errorf("%s fails what another passes: %s", columns[0], strings.Join(behind, ", "))
	}
	return nil
}
