package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/runtime"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"lrun": main})
}

// TestScripts runs lrun on real containers of a busybox root.
func TestScripts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("these tests make containers: run them as root")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		WorkdirRoot:         t.TempDir(), // which goes with the test, also where it ends early
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("STATE", filepath.Join(e.WorkDir, "state"))
			group := fmt.Sprintf("lrun-test-%d-%s", os.Getpid(), filepath.Base(e.WorkDir))
			e.Setenv("GROUP", group)
			e.Values["consoles"] = &consoles{}
			rootfs := filepath.Join(e.WorkDir, "rootfs")
			for _, dir := range []string{"bin", "dev", "proc", "sys", "etc", "tmp"} {
				if err := os.MkdirAll(filepath.Join(rootfs, dir), 0o755); err != nil {
					return err
				}
			}
			if out, err := exec.Command("cp", busybox, rootfs+"/bin/busybox").CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			if out, err := exec.Command("chroot", rootfs, "/bin/busybox", "--install", "-s", "/bin").CombinedOutput(); err != nil {
				return fmt.Errorf("install busybox: %w: %s", err, out)
			}
			// A detached container keeps its creator's streams, for the end of which a script would wait.
			quietly := "#!/bin/sh\nexec \"$@\" </dev/null >/dev/null 2>&1\n"
			if err := os.WriteFile(filepath.Join(e.WorkDir, "quietly"), []byte(quietly), 0o755); err != nil {
				return err
			}
			e.Defer(func() { checkNothingLeft(t, e.Getenv("STATE"), group) })
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "selinux":
				b, err := os.ReadFile("/proc/filesystems")
				return strings.Contains(string(b), "selinuxfs"), err
			case "apparmor":
				b, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled")
				return strings.HasPrefix(string(b), "Y"), nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"bundle": cmdBundle, "eventually": cmdEventually, "console": cmdConsole, "status": cmdStatus, "notify": cmdNotify,
		},
	})
}

// checkNothingLeft deletes what a script left, and complains of it when that was a container.
func checkNothingLeft(t *testing.T, state, group string) {
	a := &app{root: state}
	entries, _ := os.ReadDir(state)
	for _, e := range entries {
		if r, err := a.load(e.Name()); err == nil {
			t.Errorf("container %s is left", e.Name())
			if err := a.remove(r, true); err != nil {
				t.Error(err)
			}
		}
	}
	left, _ := filepath.Glob("/sys/fs/cgroup/*/" + group + "/*")
	more, _ := filepath.Glob("/sys/fs/cgroup/" + group + "/*")
	for _, dir := range append(left, more...) {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			t.Errorf("cgroup %s is left", dir)
		}
	}
	parents, _ := filepath.Glob("/sys/fs/cgroup/*/" + group)
	for _, dir := range append(parents, "/sys/fs/cgroup/"+group) {
		os.Remove(dir)
	}
}

// cmdBundle writes a config.json: `bundle DIR PATCH ARGS...`, PATCH being a file with a JSON merge patch (RFC 7396), or -.
func cmdBundle(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: bundle DIR PATCH ARGS...")
	}
	s := runtime.OCISpec()
	s.Root.Path, s.Root.Readonly = ts.MkAbs("rootfs"), false
	s.Process.Terminal = false
	s.Process.Args = args[2:]
	s.Linux.CgroupsPath = "/" + ts.Getenv("GROUP") + "/" + filepath.Base(args[0])
	b, err := json.Marshal(s)
	ts.Check(err)
	var config any
	ts.Check(json.Unmarshal(b, &config))
	if args[1] != "-" {
		text := strings.NewReplacer("$WORK", ts.MkAbs("."), "$GROUP", ts.Getenv("GROUP")).Replace(ts.ReadFile(args[1]))
		var patch any
		ts.Check(json.Unmarshal([]byte(text), &patch))
		config = merge(config, patch)
	}
	b, err = json.MarshalIndent(config, "", " ")
	ts.Check(err)
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	ts.Check(os.WriteFile(filepath.Join(dir, "config.json"), b, 0o644))
}

func merge(target, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	t, ok := target.(map[string]any)
	if !ok {
		t = map[string]any{}
	}
	for k, v := range p {
		if v == nil {
			delete(t, k)
		} else {
			t[k] = merge(t[k], v)
		}
	}
	return t
}

// cmdStatus checks lrun state: `status ID STATUS`, waiting a while for it.
func cmdStatus(ts *testscript.TestScript, neg bool, args []string) {
	a := &app{root: ts.Getenv("STATE")}
	got := ""
	for range 200 {
		r, err := a.load(args[0])
		ts.Check(err)
		if got = a.status(r); (got == args[1]) != neg {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	ts.Fatalf("container %s is %s", args[0], got)
}

// cmdEventually waits until a file matches: `eventually FILE REGEXP`.
func cmdEventually(ts *testscript.TestScript, neg bool, args []string) {
	re := regexp.MustCompile(args[1])
	var text []byte
	for range 400 {
		text, _ = os.ReadFile(ts.MkAbs(args[0]))
		if re.Match(text) != neg {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	ts.Fatalf("%s never became so: %q", args[0], text)
}

// consoles are what came over console sockets.
type consoles struct {
	mu     sync.Mutex
	master *os.File
	text   strings.Builder
}

// cmdConsole plays conmon: `console listen SOCKET`, `console type TEXT`, `console expect REGEXP`.
func cmdConsole(ts *testscript.TestScript, neg bool, args []string) {
	c := ts.Value("consoles").(*consoles)
	switch args[0] {
	case "listen":
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: ts.MkAbs(args[1]), Net: "unix"})
		ts.Check(err)
		ts.Defer(func() { l.Close() })
		go c.receive(l)
	case "type":
		for range 200 {
			c.mu.Lock()
			master := c.master
			c.mu.Unlock()
			if master != nil {
				_, err := master.Write([]byte(args[1] + "\n"))
				ts.Check(err)
				return
			}
			time.Sleep(25 * time.Millisecond)
		}
		ts.Fatalf("no terminal came")
	case "expect":
		re := regexp.MustCompile(args[1])
		for range 400 {
			c.mu.Lock()
			text := c.text.String()
			c.mu.Unlock()
			if re.MatchString(text) {
				return
			}
			time.Sleep(25 * time.Millisecond)
		}
		ts.Fatalf("the terminal never said so: %q", c.text.String())
	}
}

func (c *consoles) receive(l *net.UnixListener) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		buf, oob := make([]byte, 64), make([]byte, unix.CmsgSpace(4))
		_, n, _, _, err := conn.ReadMsgUnix(buf, oob)
		conn.Close()
		if err != nil {
			return
		}
		messages, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil || len(messages) != 1 {
			return
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			return
		}
		master := os.NewFile(uintptr(fds[0]), "master")
		c.mu.Lock()
		c.master = master
		c.mu.Unlock()
		go func() {
			buf := make([]byte, 4096)
			for {
				n, err := master.Read(buf)
				c.mu.Lock()
				c.text.Write(buf[:n])
				c.mu.Unlock()
				if err != nil {
					return
				}
			}
		}()
	}
}

// cmdNotify plays systemd: `notify listen SOCKET FILE` writes what comes to a file; `notify send SOCKET TEXT` speaks for a
// container's process, for which busybox has no words.
func cmdNotify(ts *testscript.TestScript, neg bool, args []string) {
	address := &net.UnixAddr{Name: ts.MkAbs(args[1]), Net: "unixgram"}
	if args[0] == "send" {
		c, err := net.DialUnix("unixgram", nil, address)
		ts.Check(err)
		defer c.Close()
		_, err = c.Write([]byte(args[2]))
		ts.Check(err)
		return
	}
	c, err := net.ListenUnixgram("unixgram", address)
	ts.Check(err)
	ts.Defer(func() { c.Close() })
	file := ts.MkAbs(args[2])
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			os.WriteFile(file, buf[:n], 0o644)
		}
	}()
}

func TestSignals(t *testing.T) {
	for text, want := range map[string]unix.Signal{"": unix.SIGTERM, "9": unix.SIGKILL, "KILL": unix.SIGKILL, "sigusr1": unix.SIGUSR1,
		"SIGRTMIN+3": 37, "0": 0} {
		if got, err := parseSignal(text); err != nil || got != want {
			t.Errorf("parseSignal(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"-1", "65", "NOSUCH", "SIG", "SIGRTMIN+99"} {
		if got, err := parseSignal(text); err == nil {
			t.Errorf("parseSignal(%q) = %d", text, got)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"512": 512, "64k": 64 << 10, "10M": 10 << 20, "2GiB": 2 << 30, "1gb": 1 << 30, "-1": -1} {
		if got, err := bytesOf(text); err != nil || got != want {
			t.Errorf("bytesOf(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "x", "-2", "9999999999999t", "1.5G"} {
		if got, err := bytesOf(text); err == nil {
			t.Errorf("bytesOf(%q) = %d", text, got)
		}
	}
}

func FuzzConfig(f *testing.F) {
	b, err := json.Marshal(runtime.OCISpec())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"ociVersion":"1.0.2","root":{"path":"."},"process":{"args":["x"],"cwd":"/"},"linux":{},"mounts":[{"destination":"x"}],"hooks":{"poststop":[{"path":"/x"}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseConfig("config.json", b)
		if err == nil && complete(s, t.TempDir()) == nil && !filepath.IsAbs(s.Root.Path) {
			t.Errorf("root %q is not absolute", s.Root.Path)
		}
	})
}
