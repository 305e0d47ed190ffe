// Command lrun is an OCI runtime on top of package runtime: the commands and flags of runc and crun, so that engines and
// other people's test suites can drive it. The user's process is PID 1; nothing of ours stays beside it.
//
// What a configuration asks for and lrun can't do is refused with the reason, never ignored. It is kept lean, since an
// engine executes it several times for each container.
package main

import (
	"errors"
	"fmt"
	"os"
	goruntime "runtime"
	"strings"
	"time"

	"github.com/learnos/learnos/internal/initproto/rawfork"
	"github.com/learnos/learnos/runtime"
)

// command is one of lrun's commands.
type command struct {
	name, args, help string
	run              func(a *app, args []string) error
}

func commands() []command {
	return []command{
		{"create", "[flags] ID", "make a container from a bundle; its process waits for start", create},
		{"start", "ID", "let a created container's process begin", start},
		{"run", "[flags] ID", "create, start, and, unless detached, wait and delete", runCommand},
		{"state", "ID", "print a container's state as JSON", stateCommand},
		{"kill", "[--all] ID [SIGNAL]", "send a signal (TERM) to a container's process", kill},
		{"delete", "[--force] ID", "remove a stopped container", deleteCommand},
		{"exec", "[flags] ID COMMAND [ARGS]", "run one more process in a container", execCommand},
		{"list", "[--format table|json] [--quiet]", "list containers", list},
		{"ps", "[--format table|json] ID [ps options]", "list a container's processes", ps},
		{"pause", "ID", "freeze a container's processes", pause},
		{"resume", "ID", "let them go on", resume},
		{"update", "[flags] ID", "change a running container's limits", update},
		{"events", "[--stats] [--interval 5s] ID", "print what a container uses, as JSON lines", events},
		{"features", "", "print what this runtime can do, as JSON", features},
		{"spec", "[--bundle DIR]", "write a config.json to start from", spec},
		{"checkpoint", "", "not supported", unsupported},
		{"restore", "", "not supported", unsupported},
	}
}

// app is what the global flags say.
type app struct {
	root    string
	log     string
	logJSON bool
	oci     *runtime.OCI // see machine
}

// machine looks at the machine's cgroups, once.
func (a *app) machine() (_ *runtime.OCI, err error) {
	if a.oci == nil {
		a.oci, err = runtime.OpenOCI(a.root)
	}
	return a.oci, err
}

// The main thread is the one to fork from: others may have been started by the monitor, and have its slack (calmMonitor).
func init() { goruntime.LockOSThread() }

func main() {
	calmMonitor()
	rawfork.RestoreFileLimit() // which containers inherit
	a := &app{root: "/run/lrun"}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" && os.Geteuid() != 0 {
		a.root = dir + "/lrun"
	}
	err := a.main(os.Args[1:])
	if err == nil {
		return
	}
	var status exitStatus
	if errors.As(err, &status) {
		os.Exit(int(status))
	}
	a.complain("error", err.Error())
	code := 1
	var failed *runtime.ExecError
	if errors.As(err, &failed) {
		code = failed.Code
	}
	os.Exit(code)
}

// exitStatus is the status of a process that was waited for: not an error of ours.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// complain tells a person, and the log that an engine reads.
func (a *app) complain(level, message string) {
	fmt.Fprintln(os.Stderr, "lrun: "+message)
	a.note(level, message)
}

// warn says what changes nothing: in the log where there is one, since standard error may be the container's.
func (a *app) warn(message string) {
	if a.log == "" {
		fmt.Fprintln(os.Stderr, "lrun: warning: "+message)
		return
	}
	a.note("warning", message)
}

// note appends to the log.
func (a *app) note(level, message string) {
	if a.log == "" {
		return
	}
	f, err := os.OpenFile(a.log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lrun:", err)
		return
	}
	defer f.Close()
	now := time.Now().Format(time.RFC3339)
	if a.logJSON {
		fmt.Fprintf(f, "{\"level\":%s,\"msg\":%s,\"time\":%s}\n", quote(level), quote(message), quote(now))
		return
	}
	fmt.Fprintf(f, "time=%s level=%s msg=%s\n", quote(now), level, quote(message))
}

func (a *app) main(args []string) error {
	f := newFlags("lrun", "")
	format := "text"
	f.text(&a.root, "root", "directory of the containers' state")
	f.text(&a.log, "log", "file to append errors to")
	f.text(&format, "log-format", "of that file: text or json")
	systemd, version, help, rootless := false, false, false, "auto"
	f.bool(&systemd, "systemd-cgroup", "not supported")
	f.bool(new(bool), "debug", "accepted; there is nothing more to say")
	f.text(new(string), "log-level", "accepted; errors and warnings are all there is")
	f.text(new(string), "criu", "accepted; checkpoint and restore are not supported")
	f.text(&rootless, "rootless", "auto, or false; true is not supported")
	f.text(new(string), "cgroup-manager", "cgroupfs; nothing else is supported")
	f.bool(&version, "version", "print the version")
	f.bool(&help, "help", "print this")
	f.alias("v", "version")
	f.alias("h", "help")
	rest, err := f.parse(args)
	if err != nil {
		return err
	}
	switch format { // first, since what follows may go to the log
	case "json":
		a.logJSON = true
	case "text":
	default:
		return fmt.Errorf("--log-format %q is not text or json", format)
	}
	if manager, given := f.given["cgroup-manager"]; systemd || given && manager != "cgroupfs" {
		return errors.New("cgroups through systemd are not supported: leave out --systemd-cgroup and give an ordinary cgroupsPath")
	}
	if rootless == "true" {
		return errors.New("--rootless is not supported: lrun runs as root (a bundle may still ask for a user namespace)")
	}
	switch {
	case version:
		fmt.Println("lrun version", buildVersion)
		fmt.Println("spec: 1.3.0")
		return nil
	case help || len(rest) == 0 || rest[0] == "help":
		a.usage(f)
		return nil
	}
	for _, c := range commands() {
		if c.name == rest[0] {
			return c.run(a, rest[1:])
		}
	}
	return fmt.Errorf("there is no command %q; lrun --help lists them", rest[0])
}

// buildVersion is set by the linker.
var buildVersion = "dev"

func (a *app) usage(f *flags) {
	fmt.Println("usage: lrun [flags] COMMAND [flags] [arguments]")
	fmt.Println()
	for _, c := range commands() {
		fmt.Printf("  %-11s %-40s %s\n", c.name, c.args, c.help)
	}
	fmt.Println()
	f.usage()
}

func unsupported(a *app, args []string) error {
	return errors.New("checkpoint and restore are not supported")
}

// quote writes a JSON string.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ':
			fmt.Fprintf(&b, "\\u%04x", r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
