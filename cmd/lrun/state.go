package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/runtime"
)

// Files of a container's state directory.
const (
	recordName = "state.json"
	configName = "config.json" // a copy: what is done to the bundle's after create has no effect
	notifyName = "notify"      // where the process finds sd_notify's socket
)

// record is what later commands need to know of a container.
type record struct {
	ID          string            `json:"id"`
	PID         int               `json:"pid"`
	Start       uint64            `json:"startTime"`
	Boot        string            `json:"bootID"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	OCIVersion  string            `json:"ociVersion"`
	Group       runtime.OCIGroup  `json:"cgroup"`
	// Creating is true until create is done: its hooks may ask for the state meanwhile.
	Creating bool `json:"creating,omitempty"`
	// PoststartHooks and PoststopHooks say that the configuration has some, so that it needs no reading when it has none.
	PoststartHooks bool `json:"poststartHooks,omitempty"`
	PoststopHooks  bool `json:"poststopHooks,omitempty"`
	Notify         bool `json:"notify,omitempty"`
	NoProcess      bool `json:"noProcess,omitempty"`
	PIDNamespace   bool `json:"pidNamespace"`
}

var bootID = sync.OnceValue(func() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
})

// checkID accepts what runc does: letters, digits, and _ + - . but neither "." nor "..".
func checkID(id string) error {
	ok := id != "" && id != "." && id != ".." && len(id) <= 255
	for _, c := range []byte(id) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("_+-.", c) >= 0)
	}
	if !ok {
		return fmt.Errorf("container id %q: want letters, digits, '_', '+', '-' and '.'", id)
	}
	return nil
}

func (a *app) dir(id string) string { return filepath.Join(a.root, id) }

// load reads a container's record.
func (a *app) load(id string) (*record, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(a.dir(id), recordName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("container %q does not exist", id)
	}
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("container %q: its state is damaged: %w", id, err)
	}
	return r, nil
}

// save writes a record in one step.
func (a *app) save(r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	path := filepath.Join(a.dir(r.ID), recordName)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// config reads the container's copy of its configuration.
func (a *app) config(id string) (*specs.Spec, error) {
	return readConfig(filepath.Join(a.dir(id), configName))
}

// lock takes hold of a container against other commands that would change it.
func (a *app) lock(id string) (*os.File, error) {
	f, err := os.Open(a.dir(id))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("container %q does not exist", id)
	}
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock container %q: %w", id, err)
	}
	return f, nil
}

// pidfd opens the container's process; -1 when it has ended.
func (r *record) pidfd() int {
	if r.PID <= 0 || r.Boot != bootID() {
		return -1
	}
	fd, err := unix.PidfdOpen(r.PID, 0)
	if err != nil {
		return -1
	}
	// Opened first, compared second: had the number been given to another, its start time would tell.
	if start, state := processStat(r.PID); start != r.Start || state == 'Z' || state == 'X' {
		unix.Close(fd)
		return -1
	}
	return fd
}

func (r *record) alive() bool {
	fd := r.pidfd()
	if fd >= 0 {
		unix.Close(fd)
	}
	return fd >= 0
}

// processStat reads a process's start time and its state letter; 0 when it is gone.
func processStat(pid int) (start uint64, state byte) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 {
		return 0, 0
	}
	for _, c := range fields[19] {
		start = start*10 + uint64(c-'0')
	}
	return start, fields[0][0]
}

// status says where the container stands, in the specification's words and runc's "paused".
func (a *app) status(r *record) string {
	switch {
	case !r.alive():
		if r.Creating && r.PID == 0 {
			return "creating"
		}
		return "stopped"
	case r.Creating:
		return "creating"
	case runtime.OCIWaiting(a.dir(r.ID)):
		return "created"
	}
	if m, err := a.machine(); err == nil && m.Frozen(r.Group) {
		return "paused"
	}
	return "running"
}

// state writes the specification's state; a pid of "" is left out.
func (r *record) state(status, pid string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `{"ociVersion":%s,"id":%s,"status":%s`, quote(r.OCIVersion), quote(r.ID), quote(status))
	if pid != "" {
		b.WriteString(`,"pid":` + pid)
	}
	fmt.Fprintf(&b, `,"bundle":%s`, quote(r.Bundle))
	if len(r.Annotations) > 0 {
		text, err := json.Marshal(r.Annotations)
		if err == nil {
			b.WriteString(`,"annotations":` + string(text))
		}
	}
	return b.String() + "}"
}

func stateCommand(a *app, args []string) error {
	id, err := newFlags("state", "ID").id(args)
	if err != nil {
		return err
	}
	r, err := a.load(id)
	if err != nil {
		return err
	}
	return printJSON(a.listed(r))
}

// listed is a container as state and list show it, with what runc adds to the specification.
type listed struct {
	OCIVersion  string            `json:"ociVersion"`
	ID          string            `json:"id"`
	PID         int               `json:"pid"`
	Status      string            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Owner       string            `json:"owner"`
}

func (a *app) listed(r *record) listed {
	l := listed{OCIVersion: r.OCIVersion, ID: r.ID, PID: r.PID, Status: a.status(r), Bundle: r.Bundle, Rootfs: r.Rootfs,
		Created: r.Created, Annotations: r.Annotations}
	if start, _ := processStat(r.PID); l.Status == "stopped" && (start != r.Start || r.Boot != bootID()) {
		l.PID = 0 // while it waits to be reaped, the number is still its own
	}
	return l
}

func printJSON(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Println(string(b))
	return err
}

func list(a *app, args []string) error {
	f := newFlags("list", "[--format table|json] [--quiet]")
	format, quiet := "table", false
	f.text(&format, "format", "table or json")
	f.bool(&quiet, "quiet", "ids only")
	f.alias("f", "format")
	f.alias("q", "quiet")
	if rest, err := f.parse(args); err != nil {
		return err
	} else if len(rest) > 0 {
		return fmt.Errorf("list: %q is one argument too many", rest[0])
	}
	entries, err := os.ReadDir(a.root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	all := []listed{}
	for _, e := range entries {
		if checkID(e.Name()) != nil || e.Name()[0] == '.' {
			continue
		}
		if r, err := a.load(e.Name()); err == nil {
			all = append(all, a.listed(r))
		}
	}
	switch {
	case quiet:
		for _, l := range all {
			fmt.Println(l.ID)
		}
	case format == "json":
		return printJSON(all)
	case format == "table":
		fmt.Printf("%-24s %-8s %-9s %-40s %s\n", "ID", "PID", "STATUS", "BUNDLE", "CREATED")
		for _, l := range all {
			fmt.Printf("%-24s %-8d %-9s %-40s %s\n", l.ID, l.PID, l.Status, l.Bundle, l.Created.Format(time.RFC3339Nano))
		}
	default:
		return fmt.Errorf("list: --format %q is not table or json", format)
	}
	return nil
}
