package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// insideDir is removed at the end of the run.
var insideDir string

// insideProgram is package insider for an architecture, without C, so that it runs on a root that holds nothing else.
func insideProgram(t *testing.T, arch string) string {
	t.Helper()
	if os.Getenv("LEARNOS_VM") != "" { // no place to build in
		if arch != goruntime.GOARCH {
			t.Skip("the guest can't build programs")
		}
		path, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	if insideDir == "" {
		dir, err := os.MkdirTemp("", "inside-")
		if err == nil {
			insideDir, err = dir, os.Chmod(dir, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(insideDir, arch)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	build := exec.Command("go", "build", "-o", path, "./internal/insider/main")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// withInside is testSpec with the test binary at /inside.
func withInside(t *testing.T) *specs.Spec { return withInsideOf(t, goruntime.GOARCH) }

func withInsideOf(t *testing.T, arch string) *specs.Spec {
	t.Helper()
	path := insideProgram(t, arch)
	spec := testSpec()
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/inside", Type: "bind", Source: path, Options: []string{"bind", "ro"}})
	return spec
}

// inside does something in a container (package insider).
func inside(t *testing.T, c *Container, user string, args ...string) string {
	t.Helper()
	out, stderr, st := run(t, c, SessionSpec{Args: append([]string{"/inside"}, args...), User: user, Env: []string{"RUNTIME_TEST_INSIDE=1"}})
	if st.Code != 0 {
		t.Fatalf("%v: %+v %s%s", args, st, out, stderr)
	}
	return strings.TrimSpace(out)
}

// netlinkOpen asks the kernel how many netlink sockets programs have in a container's network namespace, bound or not.
func netlinkOpen(t *testing.T, c *Container) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/protocols", c.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "NETLINK" {
			n, err := strconv.Atoi(f[2])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no NETLINK in\n%s", b)
	return 0
}

func TestNetlinkSocketsAreBounded(t *testing.T) {
	c := start(t, newRuntime(t), CreateOptions{Spec: withInside(t)})
	bound := int(netlinkSockets(nil))
	for _, user := range []string{"", "user"} {
		for _, way := range []string{"open", "dup", "send"} { // the same, each with many descriptors, without any
			if got := inside(t, c, user, way, "1000"); got != fmt.Sprintf("%d no buffer space available", bound) {
				t.Errorf("user %q, %s: %s, want %d", user, way, got, bound)
			}
		}
	}
	// What one session holds, another one lacks; and gets when the first has ended.
	first, err := c.StartSession(testContext(t), SessionSpec{Args: []string{"/inside", "hold", strconv.Itoa(bound - 3)}, Env: []string{"RUNTIME_TEST_INSIDE=1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := first.Stdout().Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if got := inside(t, c, "", "open", "1000"); !strings.HasPrefix(got, "3 ") {
		t.Errorf("beside %d: %s", bound-3, got)
	}
	if err := first.Signal(testContext(t), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if got := inside(t, c, "", "open", strconv.Itoa(bound)); got != fmt.Sprintf("%d <nil>", bound) {
		t.Errorf("after its end: %s", got)
	}
	if n := netlinkOpen(t, c); n != 0 {
		t.Errorf("%d sockets are left", n)
	}
}

// TestNetlinkFlood: hundreds of threads ask at once, are killed while they do, and init goes on with everything else.
func TestNetlinkFlood(t *testing.T) {
	c := start(t, newRuntime(t), CreateOptions{Spec: withInside(t)})
	bound := int(netlinkSockets(nil))
	ctx, cancel := context.WithCancel(testContext(t))
	var wg sync.WaitGroup
	most := 0
	wg.Go(func() { // what the kernel says meanwhile
		for ctx.Err() == nil {
			most = max(most, netlinkOpen(t, c))
			time.Sleep(time.Millisecond)
		}
	})
	for range 3 {
		flood, err := c.StartSession(testContext(t), SessionSpec{Args: []string{"/inside", "flood", "300"}, Env: []string{"RUNTIME_TEST_INSIDE=1"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := flood.Stdout().Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			sh(t, c, "(sleep 0 &); true") // a session, and an orphan to reap
			if err := errors.Join(c.Pause(testContext(t)), c.Resume(testContext(t))); err != nil {
				t.Error(err)
			}
		}
		if err := flood.Signal(testContext(t), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if _, err := flood.Wait(testContext(t)); err != nil {
			t.Fatal(err)
		}
		flood.Close()
	}
	cancel()
	wg.Wait()
	// Some are just being closed: off init's list, but not yet out of the kernel's count.
	if most == 0 || most > bound+20 {
		t.Errorf("%d sockets at a time, want 1 to %d", most, bound)
	}
	if got := inside(t, c, "", "open", strconv.Itoa(bound)); got != fmt.Sprintf("%d <nil>", bound) {
		t.Errorf("after the floods: %s", got)
	}
}

// TestNetlinkSocketsAreTheAskers: who looks at a socket that init has made sees one of the asker's, with his rights.
func TestNetlinkSocketsAreTheAskers(t *testing.T) {
	for name, change := range map[string]func(s *specs.Spec){
		"default": func(s *specs.Spec) {},
		"new privileges": func(s *specs.Spec) {
			s.Process.NoNewPrivileges = false
		},
		"a filter that init can't live under": func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"setresuid", "accept4"}, Action: specs.ActErrno}}}
		},
		"both": func(s *specs.Spec) {
			s.Process.NoNewPrivileges = false
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"accept4"}, Action: specs.ActErrno}}}
		},
		"network administrator": func(s *specs.Spec) {
			for _, set := range []*[]string{&s.Process.Capabilities.Bounding, &s.Process.Capabilities.Effective, &s.Process.Capabilities.Permitted} {
				*set = append(slices.Clone(*set), "CAP_NET_ADMIN")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			spec := withInside(t)
			change(spec)
			c := start(t, newRuntime(t), CreateOptions{Spec: spec})
			own := "operation not permitted"
			if name == "network administrator" {
				own = "<nil>"
			}
			for _, tc := range [][2]string{
				{"user", "interfaces [lo] owner 1000:1000 flags 0,1,0,1 link operation not permitted"},
				{"", "interfaces [lo] owner 0:0 flags 0,1,0,1 link " + own},
			} {
				if got := inside(t, c, tc[0], "look"); got != tc[1] {
					t.Errorf("user %q:\n%s, want\n%s", tc[0], got, tc[1])
				}
			}
			// Opened by one who may not, used by one who may (CVE-2014-0181).
			if got := inside(t, c, "", "lend"); got != "link operation not permitted" {
				t.Errorf("through a socket of somebody else's: %s", got)
			}
			if got := inside(t, c, "", "open", "1000"); got != fmt.Sprintf("%d no buffer space available", netlinkSockets(nil)) {
				t.Errorf("the bound: %s", got)
			}
		})
	}
}

// TestNetlinkElsewhere: sockets are of the asker's network namespace, not of init's; with the host's network only an
// environment's own count.
func TestNetlinkElsewhere(t *testing.T) {
	spec := withInside(t)
	for _, set := range []*[]string{&spec.Process.Capabilities.Bounding, &spec.Process.Capabilities.Effective, &spec.Process.Capabilities.Permitted} {
		*set = append(slices.Clone(*set), "CAP_SYS_ADMIN", "CAP_NET_ADMIN")
	}
	var err error
	if spec.Linux.Seccomp, err = DefaultSeccomp(spec); err != nil {
		t.Fatal(err)
	}
	r := newRuntime(t)
	c := start(t, r, CreateOptions{ID: "admin", Spec: spec})
	if got := inside(t, c, "", "elsewhere"); got != "<nil> before [lo veth0 over] after [lo]" {
		t.Errorf("%s", got)
	}
	spec = withInside(t)
	without(spec, specs.NetworkNamespace)
	spec.Linux.Sysctl = nil
	for _, id := range []string{"one", "two"} {
		c := start(t, r, CreateOptions{ID: id, Spec: spec})
		if got := inside(t, c, "", "open", "1000"); got != fmt.Sprintf("%d no buffer space available", netlinkSockets(nil)) {
			t.Errorf("%s: %s", id, got)
		}
		held, err := c.StartSession(testContext(t), SessionSpec{Args: []string{"/inside", "hold", "5"}, Env: []string{"RUNTIME_TEST_INSIDE=1"}})
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		if _, err := held.Stdout().Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSocketsOf32BitPrograms: a program of i386 that knows no call but socketcall(2) gets the sockets that it would get by
// socket(2), no others, and as few netlink ones.
func TestSocketsOf32BitPrograms(t *testing.T) {
	if goruntime.GOARCH != "amd64" {
		t.Skip("no machine for programs of i386")
	}
	bound := netlinkSockets(nil)
	for name, change := range map[string]func(*specs.Spec){
		"default":        func(*specs.Spec) {},
		"new privileges": func(s *specs.Spec) { s.Process.NoNewPrivileges = false },
	} {
		t.Run(name, func(t *testing.T) {
			spec := withInsideOf(t, "386")
			change(spec)
			c := start(t, newRuntime(t), CreateOptions{Spec: spec})
			for user, owner := range map[string]string{"": "0:0", "user": "1000:1000"} {
				for way, want := range map[string]string{
					"look":  "interfaces [lo] owner " + owner + " flags 0,1,0,1 link operation not permitted",
					"open":  fmt.Sprintf("%d no buffer space available", bound),
					"talk":  "hello hello",
					"swap":  "inet",
					"kinds": "inet <nil>, inet datagram <nil>, inet6 <nil>, unix <nil>, unix packets <nil>, raw operation not permitted, packet operation not permitted, vsock address family not supported by protocol, usersock protocol not supported, nowhere function not implemented",
				} {
					if got := inside(t, c, user, way, "1000"); got != want {
						t.Errorf("user %q, %s:\n%s, want\n%s", user, way, got, want)
					}
				}
			}
		})
	}
}

// TestSignalsToTheMaker: who may signal init gets no answer that is none: as 0, which is not a socket.
func TestSignalsToTheMaker(t *testing.T) {
	c := start(t, newRuntime(t), CreateOptions{Spec: withInside(t)})
	if got := inside(t, c, "", "nag", "300"); got != "true 0" {
		t.Errorf("enough sockets, and answers that are none: %s", got)
	}
}

// TestSocketsOfNestedUsers: capabilities in a user namespace that somebody makes for himself are none over the network that he
// is in, whoever makes the socket for him.
func TestSocketsOfNestedUsers(t *testing.T) {
	arches := []string{goruntime.GOARCH}
	if goruntime.GOARCH == "amd64" && os.Getenv("LEARNOS_VM") == "" {
		arches = append(arches, "386")
	}
	r := newRuntime(t)
	for _, arch := range arches {
		spec := withInsideOf(t, arch)
		for _, set := range []*[]string{&spec.Process.Capabilities.Bounding, &spec.Process.Capabilities.Effective, &spec.Process.Capabilities.Permitted} {
			*set = append(slices.Clone(*set), "CAP_SYS_ADMIN", "CAP_NET_RAW", "CAP_SYS_PTRACE")
		}
		var err error
		if spec.Linux.Seccomp, err = DefaultSeccomp(spec); err != nil {
			t.Fatal(err)
		}
		c := start(t, r, CreateOptions{ID: "nested" + arch, Spec: spec})
		got := inside(t, c, "user", "nested")
		if !strings.HasPrefix(got, "inet <nil>, ") || !strings.Contains(got, "raw operation not permitted, packet operation not permitted") {
			t.Errorf("%s: %s", arch, got)
		}
	}
}

func TestNetlinkRoom(t *testing.T) {
	per := netlinkSocketMemory()
	limit := func(n int64) *specs.LinuxResources {
		return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &n}}
	}
	for _, tc := range []struct {
		r    *specs.LinuxResources
		want int64
	}{
		{nil, netlinkMemory / per}, {&specs.LinuxResources{}, netlinkMemory / per}, {limit(48 << 20), netlinkMemory / per},
		{limit(4 << 30), 512 << 20 / per}, {limit(1 << 60), mostNetlinkSockets}, {limit(-1), netlinkMemory / per},
	} {
		if got := int64(netlinkSockets(tc.r)); got != min(max(tc.want, fewestNetlinkSockets), mostNetlinkSockets) {
			t.Errorf("%+v: %d, want %d", tc.r, got, tc.want)
		}
	}
}

func TestSocketFilter(t *testing.T) {
	program, err := socketFilter()
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, &filter{program: program})
	const ask, pass = verdict(unix.SECCOMP_RET_USER_NOTIF), verdict(unix.SECCOMP_RET_ALLOW)
	for name, info := range auditArches() {
		nr := uint32(info.numbers()["socket"])
		if nr != socketNumbers[name] {
			t.Errorf("%s: socket is %d", name, nr)
		}
		for family, want := range map[uint64]verdict{unix.AF_NETLINK: ask, 1<<32 | unix.AF_NETLINK: ask, unix.AF_INET: pass, unix.AF_UNIX: pass, 0: pass, 1<<32 - 1: pass} {
			if got := m.judge(t, info.id, nr, family, unix.SOCK_RAW, 0); got != want {
				t.Errorf("%s: socket(%#x): %#x", name, family, got)
			}
			if got := m.judge(t, info.id, nr+1, family); got != pass {
				t.Errorf("%s: another call: %#x", name, got)
			}
		}
		if name == specs.ArchX86_64 {
			if got := m.judge(t, info.id, nr|x32Bit, unix.AF_NETLINK); got != ask {
				t.Errorf("x32: %#x", got)
			}
		}
	}
	if i386, ok := auditArches()[specs.ArchX86]; ok {
		if got := i386.numbers()["socketcall"]; got != socketcallNumber {
			t.Errorf("socketcall is %d", got)
		}
		for of, want := range map[uint64]verdict{0: pass, socketcallSocket: ask, 2: pass, 8: pass, 1<<32 - 1: pass} {
			if got := m.judge(t, i386.id, socketcallNumber, of); got != want {
				t.Errorf("socketcall(%d): %#x", of, got)
			}
		}
	}
	if got := m.judge(t, 0, 41, unix.AF_NETLINK); got != pass {
		t.Errorf("another machine: %#x", got)
	}
}
