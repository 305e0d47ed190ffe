package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// person is somebody at a terminal in front of a nodeagent.
type person struct {
	t   *testing.T
	cmd *exec.Cmd
	tty *os.File

	mu  sync.Mutex
	saw strings.Builder
}

func sit(t *testing.T, root string, args ...string) *person {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Args[0] = "nodeagent" // the name by which testscript.Main knows which program to be
	cmd.Env = append(os.Environ(), "LEARNOS_ROOT="+root)
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: 91, Rows: 31})
	if err != nil {
		t.Fatal(err)
	}
	// One that Go's poller looks after, so that closing it ends the reader below.
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.SetNonblock(fd, true), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	f = os.NewFile(uintptr(fd), "terminal")
	p := &person{t: t, cmd: cmd, tty: f}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := f.Read(buf)
			p.mu.Lock()
			p.saw.Write(buf[:n])
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = f.Close() })
	return p
}

func (p *person) expect(text string) {
	p.t.Helper()
	for range 600 {
		p.mu.Lock()
		saw := p.saw.String()
		p.mu.Unlock()
		if strings.Contains(saw, text) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	p.t.Fatalf("never saw %q in %q", text, p.saw.String())
}

func (p *person) typed(text string) {
	p.t.Helper()
	if _, err := p.tty.WriteString(text); err != nil {
		p.t.Fatal(err)
	}
}

func (p *person) resize(cols, rows uint16) {
	p.t.Helper()
	raw, err := p.tty.SyscallConn()
	if err != nil {
		p.t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows})
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *person) status() int {
	p.t.Helper()
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode()
}

func copyRoot(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	if out, err := exec.Command("cp", "-a", template, root).CombinedOutput(); err != nil {
		t.Fatalf("copy the template: %v: %s", err, out)
	}
	t.Cleanup(func() { destroy(t, root) })
	return root
}

// TestTerminal: bytes go through as they are, ^C too; sizes follow.
func TestTerminal(t *testing.T) {
	root := copyRoot(t)
	p := sit(t, root, "run", "--rm", "-it", "--name", "box", "busybox", "sh")
	p.typed("stty size; tty\n")
	p.expect("31 91")
	p.expect("/dev/pts/0")
	p.typed("sleep 1000\n")
	p.expect("sleep 1000")
	time.Sleep(200 * time.Millisecond) // until the shell has started it; if not, the ^C does no harm
	p.typed("\x03")
	p.typed("echo status-$?\n")
	p.expect("status-130")
	p.resize(70, 20)
	p.typed("for i in 1 2 3 4 5; do stty size; sleep 0.2; done\n")
	p.expect("20 70")

	// A second person, in the same environment.
	q := sit(t, root, "exec", "-it", "box", "sh")
	q.typed("tty; exit 9\n")
	q.expect("/dev/pts/1")
	if got := q.status(); got != 9 {
		t.Errorf("exec's status %d", got)
	}

	p.typed("exit 5\n")
	if got := p.status(); got != 5 {
		t.Errorf("status %d", got)
	}
}

// TestTerminalGoes: who closes the window takes the environment along.
func TestTerminalGoes(t *testing.T) {
	root := copyRoot(t)
	p := sit(t, root, "run", "--rm", "-it", "busybox", "sh")
	p.typed("echo up-$((40+2))\n")
	p.expect("up-42")
	if err := p.tty.Close(); err != nil {
		t.Fatal(err)
	}
	_ = p.status()
	n := mustOpen(root)
	if _, err := n.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if all, err := n.Records(); err != nil || len(all) != 0 {
		t.Errorf("left: %v, %v", all, err)
	}
}
