package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy is one mounted cgroup file system.
type hierarchy struct {
	dir string // where it is mounted
	v2  bool
	// options select a v1 hierarchy when it is mounted again inside: its controllers, or "name=…".
	options []string
}

// name is the hierarchy's usual place below /sys/fs/cgroup.
func (h *hierarchy) name() string {
	if h.v2 {
		return "unified"
	}
	return strings.TrimPrefix(strings.Join(h.options, ","), "name=")
}

// hierarchies is the machine's arrangement of cgroups. A kernel may keep some controllers on v1 and others on v2, so each
// controller is looked up on its own.
type hierarchies struct {
	all     []*hierarchy
	control map[string]*hierarchy
	unified *hierarchy
}

// v1Controllers are those we use where they are on v1. The rest (perf_event, …) limit nothing that is asked for.
var v1Controllers = []string{"memory", "cpu", "cpuacct", "pids", "freezer", "devices", "blkio", "cpuset", "hugetlb", "rdma",
	"net_cls", "net_prio"}

// findHierarchies reads the mount table (proc_pid_mountinfo(5)).
func findHierarchies() (*hierarchies, error) {
	table, err := readFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	hs := &hierarchies{control: map[string]*hierarchy{}}
	for line := range strings.Lines(string(table)) {
		fields, rest, ok := strings.Cut(strings.TrimSpace(line), " - ")
		f, r := strings.Fields(fields), strings.Fields(rest)
		if !ok || len(f) < 6 || len(r) < 3 || f[3] != "/" {
			continue
		}
		h := &hierarchy{dir: f[4]}
		switch r[0] {
		case "cgroup2":
			if hs.unified != nil {
				continue
			}
			h.v2 = true
			hs.unified = h
		case "cgroup":
			for _, option := range strings.Split(r[2], ",") {
				if strings.HasPrefix(option, "name=") || slices.Contains(v1Controllers, option) {
					h.options = append(h.options, option)
				}
			}
			if len(h.options) == 0 || hs.control[h.options[0]] != nil {
				continue
			}
			for _, c := range h.options {
				hs.control[c] = h
			}
		default:
			continue
		}
		hs.all = append(hs.all, h)
	}
	if hs.unified != nil {
		list, err := readFile(filepath.Join(hs.unified.dir, "cgroup.controllers"))
		if err != nil {
			return nil, err
		}
		for _, c := range strings.Fields(string(list)) {
			if c == "io" {
				c = "blkio" // one name for one thing
			}
			if hs.control[c] == nil {
				hs.control[c] = hs.unified
			}
		}
	}
	if len(hs.all) == 0 {
		return nil, errors.New("no cgroup file system is mounted (mount -t cgroup2 cgroup2 /sys/fs/cgroup)")
	}
	return hs, nil
}

// cgroup is a container's group, which has a directory of the same path on each hierarchy that serves us.
type cgroup struct {
	hs   *hierarchies
	path string // relative, e.g. "learnos/env1"
	// below says under which group path begins, by a hierarchy's mount point; the root's when there is none.
	below map[string]string
	// every has the group on all hierarchies, those that limit nothing too.
	every bool
	made  bool // createFresh has made at least one
}

func (g *cgroup) base(h *hierarchy) string { return filepath.Join(h.dir, g.below[h.dir]) }
func (g *cgroup) dir(h *hierarchy) string  { return filepath.Join(g.base(h), g.path) }

// uses says whether the container gets a directory on h: on v2 always (to be killed and watched by), on v1 where a
// controller that limits, accounts or freezes is. cpuset, hugetlb and rdma only when they are asked for.
func (g *cgroup) uses(h *hierarchy, optional map[string]bool) bool {
	if h.v2 || g.every {
		return true
	}
	for _, c := range h.options {
		switch c {
		case "memory", "cpu", "cpuacct", "pids", "freezer", "devices", "blkio":
			return true
		case "cpuset", "hugetlb", "rdma":
			if optional[c] {
				return true
			}
		}
	}
	return false
}

// create makes the directories on cgroup v2 or on v1. optional names the controllers that are only wanted if asked for.
func (g *cgroup) create(optional map[string]bool, v2 bool) error {
	for _, h := range g.hs.all {
		if h.v2 != v2 || !g.uses(h, optional) {
			continue
		}
		dir := g.dir(h)
		extra := ""
		for c, asked := range optional {
			if asked && h.v2 && g.hs.control[c] == h {
				extra += " +" + c
			}
		}
		var err error = os.ErrNotExist
		if extra == "" {
			err = os.Mkdir(dir, 0o755)
		}
		if errors.Is(err, os.ErrNotExist) {
			if err = g.createParents(h, filepath.Dir(g.path), extra); err == nil {
				err = os.Mkdir(dir, 0o755)
			}
		}
		if err != nil {
			return fmt.Errorf("make cgroup %s: %w", dir, err)
		}
		if slices.Contains(h.options, "cpuset") {
			if err := inheritCpuset(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// createParents makes the directories above and, on v2, has them pass on the controllers that are served there. What can't
// be passed on shows up when a limit is set. extra names further ones, as "+hugetlb".
func (g *cgroup) createParents(h *hierarchy, path, extra string) error {
	enable := func(dir string) {
		for _, c := range append([]string{"memory", "cpu", "cpuset", "pids", "blkio"}, strings.Fields(extra)...) {
			c = strings.TrimPrefix(c, "+")
			if g.hs.control[c] != h {
				continue
			}
			if c == "blkio" {
				c = "io"
			}
			writeFile(filepath.Join(dir, "cgroup.subtree_control"), "+"+c)
		}
	}
	at := g.base(h)
	if h.v2 {
		enable(at)
	}
	for _, part := range strings.Split(path, "/") {
		at = filepath.Join(at, part)
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		switch {
		case h.v2:
			enable(at)
		case slices.Contains(h.options, "cpuset"):
			if err := inheritCpuset(at); err != nil {
				return err
			}
		case slices.Contains(h.options, "memory"):
			// Kernels that still know flat accounting have this off at the root; where it is a fixture, the write fails.
			writeFile(filepath.Join(at, "memory.use_hierarchy"), "1")
		}
	}
	return nil
}

// inheritCpuset fills a new v1 cpuset, which nothing can enter while it is empty (cgroup-v1/cpusets.rst).
func inheritCpuset(dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := readFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(own)) > 0 {
			continue
		}
		above, err := readFile(filepath.Join(filepath.Dir(dir), file))
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(dir, file), strings.TrimSpace(string(above))); err != nil {
			return err
		}
	}
	return nil
}

// writeFile writes to a kernel file; unlike os.WriteFile it never creates one.
func writeFile(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return &os.PathError{Op: "write " + strconv.Quote(value) + " to", Path: path, Err: err}
	}
	return nil
}

// readFile is os.ReadFile for the kernel's files, which Go's poller has no business with. It spares half of the system calls.
func readFile(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	b := make([]byte, 0, 4096)
	for {
		n, err := unix.Read(fd, b[len(b):cap(b)])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		case n == 0:
			return b, nil
		}
		if b = b[:len(b)+max(n, 0)]; len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
	}
}

// birthplace opens the cgroup2 directory that a new process is born into; nil where there is no cgroup2.
func (g *cgroup) birthplace() (*os.File, error) {
	if g.hs.unified == nil {
		return nil, nil
	}
	dir := g.dir(g.hs.unified)
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// tasks opens, for each v1 hierarchy, the file to which a new process writes "0", meaning itself.
//
// A task that moves itself spares the kernel the lock under which it would wait out every fork and exit of the machine.
func (g *cgroup) tasks() (tasks []*os.File, err error) {
	for _, h := range g.hs.all {
		if h.v2 {
			continue
		}
		file := filepath.Join(g.dir(h), "tasks")
		f, err := openTasks(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			closeFiles(tasks)
			return nil, err
		}
		tasks = append(tasks, f)
	}
	return tasks, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// controller returns the directory that serves a controller; false when nothing does.
func (g *cgroup) controller(name string) (dir string, v2, ok bool) {
	h := g.hs.control[name]
	if h == nil {
		return "", false, false
	}
	return g.dir(h), h.v2, true
}

// read returns a controller's file, trimmed; "" when it can't be read.
func (g *cgroup) read(controller, v1, v2 string) string {
	dir, isV2, ok := g.controller(controller)
	file := v1
	if isV2 {
		file = v2
	}
	if !ok || file == "" {
		return ""
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// freeze stops or continues every process, and returns when that is so.
func (g *cgroup) freeze(frozen bool) error {
	dir, file, value, opposite := "", "", "THAWED", "FROZEN"
	if h := g.hs.control["freezer"]; h != nil && !h.v2 {
		dir, file = g.dir(h), "freezer.state"
	} else if h := g.hs.unified; h != nil {
		dir, file, value, opposite = g.dir(h), "cgroup.freeze", "0", "1"
	} else {
		return errors.New("this kernel offers no freezer")
	}
	if frozen {
		value, opposite = opposite, value
	}
	if err := writeFile(filepath.Join(dir, file), value); err != nil {
		return err
	}
	for i := range 2000 {
		if g.frozen() == frozen {
			return nil
		}
		time.Sleep(time.Millisecond)
		if value == "FROZEN" { // a fork may have slipped out: v1 wants to be told again
			writeFile(filepath.Join(dir, file), value)
		}
		if frozen && i%50 == 49 { // somebody waits, as for a socket from init, for one who is frozen already: let them get on
			writeFile(filepath.Join(dir, file), opposite)
			time.Sleep(time.Millisecond)
			writeFile(filepath.Join(dir, file), value)
		}
	}
	if frozen {
		g.freeze(false)
		return errors.New("some process could not be frozen within two seconds")
	}
	return errors.New("some process could not be thawed within two seconds")
}

func (g *cgroup) frozen() bool {
	if h := g.hs.control["freezer"]; h != nil && !h.v2 {
		b, _ := readFile(filepath.Join(g.dir(h), "freezer.state"))
		return strings.TrimSpace(string(b)) == "FROZEN"
	}
	if h := g.hs.unified; h != nil {
		b, _ := readFile(filepath.Join(g.dir(h), "cgroup.events"))
		return keyed(string(b), "frozen") == 1
	}
	return false
}

// kill ends every process in the group.
func (g *cgroup) kill() error {
	if h := g.hs.unified; h != nil {
		err := writeFile(filepath.Join(g.dir(h), "cgroup.kill"), "1")
		if err == nil {
			g.thaw()
			return nil
		}
		if errors.Is(err, os.ErrNotExist) {
			if _, err := os.Stat(g.dir(h)); err == nil {
				return g.killEach() // before Linux 5.14
			}
		}
	}
	return g.killEach()
}

// thaw lets processes of a v1 freezer take notice of their death.
func (g *cgroup) thaw() {
	if h := g.hs.control["freezer"]; h != nil && !h.v2 {
		writeFile(filepath.Join(g.dir(h), "freezer.state"), "THAWED")
	}
}

// killEach signals every process until none is left to be seen, against those that fork meanwhile. On a busy machine the killed
// may have to wait long for the processor on which they die.
func (g *cgroup) killEach() error {
	for range 5000 {
		pids := g.pids()
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
		g.thaw()
		if len(pids) == 0 {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("processes of cgroup %s do not die", g.path)
}

// pids lists the processes of the group and those below it, on every hierarchy.
func (g *cgroup) pids() (pids []int) {
	seen := map[int]bool{}
	for _, h := range g.hs.all {
		filepath.WalkDir(g.dir(h), func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil
			}
			b, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			for _, field := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(field); err == nil && pid > 0 && !seen[pid] {
					seen[pid] = true
					pids = append(pids, pid)
				}
			}
			return nil
		})
	}
	return pids
}

// remove deletes the group's directories; its processes must have been killed. Directories made below are deleted, too.
func (g *cgroup) remove() error {
	var errs []error
	for _, h := range g.hs.all {
		if err := removeTree(g.dir(h)); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeEmpty deletes the group's directories if they hold no process and no directory. False says that something is left.
func (g *cgroup) removeEmpty() bool {
	empty := true
	for _, h := range g.hs.all {
		if err := unix.Rmdir(g.dir(h)); err != nil && err != unix.ENOENT {
			empty = false
		}
	}
	return empty
}

func removeTree(dir string) error {
	var err error
	for try := range 200 {
		err = unix.Rmdir(dir)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err != unix.EBUSY && err != unix.ENOTEMPTY {
			break
		}
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.IsDir() {
				removeTree(filepath.Join(dir, e.Name()))
			}
		}
		if try > 0 { // the dying need a moment to leave
			time.Sleep(time.Duration(min(try, 20)) * time.Millisecond / 2)
		}
	}
	return &os.PathError{Op: "remove cgroup", Path: dir, Err: err}
}

// siblings names the groups under a parent, on any hierarchy.
func (hs *hierarchies) siblings(parent string) []string {
	var names []string
	for _, h := range hs.all {
		entries, _ := os.ReadDir(filepath.Join(h.dir, parent))
		for _, e := range entries {
			if e.IsDir() && !slices.Contains(names, e.Name()) {
				names = append(names, e.Name())
			}
		}
	}
	return names
}

// keyed reads a number from "key value" lines.
func keyed(text, key string) uint64 {
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == key {
			n, _ := strconv.ParseUint(v, 10, 64)
			return n
		}
	}
	return 0
}
