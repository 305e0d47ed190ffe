package runtime

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// readUntil reads a terminal until it has shown want.
func readUntil(t testing.TB, pty *os.File, want string) string {
	t.Helper()
	pty.SetReadDeadline(time.Now().Add(30 * time.Second))
	var got bytes.Buffer
	buf := make([]byte, 4096)
	for !strings.Contains(got.String(), want) {
		n, err := ReadTerminal(pty, buf)
		got.Write(buf[:n])
		if err != nil {
			t.Fatalf("terminal: %v; want %q, got %q", err, want, got.String())
		}
	}
	return got.String()
}

func TestTerminal(t *testing.T) {
	c := start(t, newRuntime(t), CreateOptions{})
	ctx := testContext(t)
	s, err := c.StartSession(ctx, SessionSpec{ID: "term", Args: []string{"sh"}, TTY: true, Cols: 91, Rows: 33, Env: []string{"PS1=$ "}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.PTY() == nil || s.Stdin() != nil || s.PID() <= 0 {
		t.Fatalf("pty %v stdin %v pid %d", s.PTY(), s.Stdin(), s.PID())
	}
	io.WriteString(s.PTY(), "stty size; tty; echo TERM=$TERM\n")
	out := readUntil(t, s.PTY(), "TERM=xterm")
	if !strings.Contains(out, "33 91") || !strings.Contains(out, "/dev/pts/0") {
		t.Errorf("terminal shows %q", out)
	}
	if err := s.Resize(120, 40); err != nil {
		t.Fatal(err)
	}
	io.WriteString(s.PTY(), "stty size\n")
	readUntil(t, s.PTY(), "40 120")

	// A second attachment sees the same terminal; the first may go.
	again, err := c.Attach(ctx, "term")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	s.Close()
	io.WriteString(again.PTY(), "sh -c 'echo still-$((40+2)); exec sleep 1000'\n")
	readUntil(t, again.PTY(), "still-42")
	io.WriteString(again.PTY(), "\x03") // interrupts the foreground process: it is a controlling terminal
	io.WriteString(again.PTY(), "echo back-$((40+2)); exit 7\n")
	readUntil(t, again.PTY(), "back-42")
	status, err := again.Wait(ctx)
	if err != nil || status != (ExitStatus{Code: 7}) {
		t.Fatalf("status %+v %v", status, err)
	}
	if _, err := io.ReadAll(again.PTY()); err != nil && !errors.Is(err, syscall.EIO) {
		t.Errorf("after the end: %v", err)
	}
}

func TestPipesAndStdin(t *testing.T) {
	c := start(t, newRuntime(t), CreateOptions{})
	ctx := testContext(t)
	s, err := c.StartSession(ctx, SessionSpec{Args: []string{"sh", "-c", "cat; echo done >&2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	text := strings.Repeat("0123456789", 20_000) // more than a pipe holds
	go func() {
		io.WriteString(s.Stdin(), text)
		s.CloseStdin(ctx)
	}()
	out, err := io.ReadAll(s.Stdout())
	if err != nil || string(out) != text {
		t.Fatalf("%d bytes came back of %d, %v", len(out), len(text), err)
	}
	if b, _ := io.ReadAll(s.Stderr()); string(b) != "done\n" {
		t.Fatalf("stderr %q", b)
	}
	if status, err := s.Wait(ctx); err != nil || status.Code != 0 {
		t.Fatalf("%+v %v", status, err)
	}
}

func TestSessionErrors(t *testing.T) {
	c := start(t, newRuntime(t), CreateOptions{})
	ctx := testContext(t)
	sh(t, c, "touch /tmp/plain; chmod 644 /tmp/plain; printf 'garbage' > /tmp/garbage; chmod 755 /tmp/garbage; mkdir /tmp/fifo; ln -s /etc /tmp/inside; ln -s nowhere /tmp/dangling")
	for _, tc := range []struct {
		spec SessionSpec
		code int // of an ExecError; 0: another error
		text string
	}{
		{SessionSpec{Args: []string{"no-such-command"}}, 127, "not found"},
		{SessionSpec{Args: []string{"/no/such"}}, 127, "not found"},
		{SessionSpec{Args: []string{"/tmp/plain"}}, 126, "permission denied"},
		{SessionSpec{Args: []string{"/tmp"}}, 126, "permission denied"},
		{SessionSpec{Args: []string{"/tmp/garbage"}}, 126, "not a program"},
		{SessionSpec{Args: nil}, 0, "no command"},
		{SessionSpec{Args: []string{"true"}, Cwd: "relative"}, 0, "not absolute"},
		{SessionSpec{Args: []string{"true"}, Cwd: "/none"}, 0, "working directory"},
		{SessionSpec{Args: []string{"true"}, Cwd: "/etc/passwd"}, 0, "working directory"},
		{SessionSpec{Args: []string{"true"}, Cwd: "/proc/self/fd/7"}, 0, "working directory"},
		{SessionSpec{Args: []string{"true"}, Cwd: "/proc/1/root"}, 0, "working directory"},
		{SessionSpec{Args: []string{"true"}, Cwd: "/proc/self/cwd"}, 0, "working directory"},
		{SessionSpec{Args: []string{"true"}, User: "nobody-here"}, 0, "not in the environment's /etc/passwd"},
		{SessionSpec{Args: []string{"true"}, User: "70000"}, 126, "mapped"},
		{SessionSpec{Args: []string{"true"}, User: "4294967295"}, 0, "out of range"},
		{SessionSpec{Args: []string{"true"}, User: "-1"}, 0, "neither"},
		{SessionSpec{Args: []string{"true"}, User: "0:nogroup"}, 0, "/etc/group"},
		{SessionSpec{Args: []string{"true"}, Env: []string{"NOVALUE"}}, 0, "NAME=VALUE"},
		{SessionSpec{Args: []string{"true"}, ID: "../x"}, 0, "session id"},
		{SessionSpec{Args: []string{"true"}, ID: "main"}, 0, "Main's"},
		{SessionSpec{Args: []string{"tr\x00ue"}}, 0, "NUL"},
	} {
		_, err := c.StartSession(ctx, tc.spec)
		if err == nil || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%+v: %v, want %q", tc.spec, err, tc.text)
			continue
		}
		var e *ExecError
		if errors.As(err, &e) != (tc.code != 0) || e != nil && e.Code != tc.code {
			t.Errorf("%+v: %v, want code %d", tc.spec, err, tc.code)
		}
	}
	if _, err := c.Attach(ctx, "never"); !errors.Is(err, ErrNotFound) {
		t.Errorf("attach: %v", err)
	}
	if list, err := c.Sessions(ctx); err != nil || len(list) != 1 { // the one that prepared
		t.Errorf("sessions %+v %v", list, err)
	}
	// Inside, a symlink is fine.
	if out, _, st := run(t, c, SessionSpec{Args: []string{"cat", "passwd"}, Cwd: "/tmp/inside"}); st.Code != 0 || !strings.Contains(out, "root") {
		t.Errorf("%q %+v", out, st)
	}
}

func TestUsers(t *testing.T) {
	c := start(t, newRuntime(t), CreateOptions{})
	for user, want := range map[string]string{
		"":           "0 0 0 10 /root",
		"root":       "0 0 0 10 /root",
		"0":          "0 0 0 10 /root",
		"user":       "1000 1000 1000 10 50 /home/user",
		"1000":       "1000 1000 1000 10 50 /home/user",
		"user:staff": "1000 50 50 /home/user",
		"1000:7":     "1000 7 7 /home/user",
		"12345":      "12345 0 0 /",
		"daemon":     "1 1 1 /",
	} {
		out, stderr, st := run(t, c, SessionSpec{Args: []string{"sh", "-c", `for g in $(id -G | tr ' ' '\n' | cat); do echo $g; done | tr '\n' ' ' > /dev/stderr; echo $(id -u) $(id -g) $(id -G) $HOME`}, User: user})
		got := strings.TrimSpace(out)
		f := strings.Fields(got)
		if st.Code != 0 || len(f) < 3 || sortedGroups(got) != sortedGroups(want) {
			t.Errorf("user %q: %q (%s), want %q", user, got, stderr, want)
		}
	}
	// Not root: no capabilities, but its own output may be opened by name.
	out, _, _ := run(t, c, SessionSpec{Args: []string{"sh", "-c", "grep CapEff /proc/self/status; echo x > /dev/stdout"}, User: "user"})
	if !strings.Contains(out, "0000000000000000") || !strings.HasSuffix(out, "x\n") {
		t.Errorf("%q", out)
	}
}

// sortedGroups drops repetitions, as id -G repeats the primary group.
func sortedGroups(s string) string {
	f := strings.Fields(s)
	if len(f) < 3 {
		return s
	}
	seen := map[string]bool{}
	out := f[:2:2]
	for _, g := range f[2 : len(f)-1] {
		if !seen[g] {
			out = append(out, g)
		}
		seen[g] = true
	}
	return strings.Join(append(out, f[len(f)-1]), " ")
}

func TestSessionSignals(t *testing.T) {
	c := start(t, newRuntime(t), CreateOptions{})
	ctx := testContext(t)
	s, err := c.StartSession(ctx, SessionSpec{ID: "s", Args: []string{"sleep", "1000"}, User: "user"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	list, err := c.Sessions(ctx)
	if err != nil || len(list) != 1 || list[0].PID != s.PID() || list[0].Exited || list[0].Args[0] != "sleep" {
		t.Fatalf("%+v %v, pid %d", list, err, s.PID())
	}
	if err := s.Signal(ctx, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	st, err := s.Wait(ctx)
	if err != nil || st.Signal != int(unix.SIGUSR1) || st.Code != 128+int(unix.SIGUSR1) {
		t.Fatalf("%+v %v", st, err)
	}
	if err := s.Signal(ctx, unix.SIGTERM); !errors.Is(err, ErrNotFound) {
		t.Errorf("signal to an ended session: %v", err)
	}
	// The status is kept, and the id with it.
	if again, err := c.Attach(ctx, "s"); err != nil || !again.Info().Exited || again.Info().Status != st {
		t.Errorf("%+v %v", again, err)
	}
}

// What is written to a terminal just before it is closed is read.
func TestTerminalsLastWords(t *testing.T) {
	for i := range 500 {
		master, slave, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			slave.WriteString("last words")
			slave.Close()
		}()
		var b [64]byte
		n, err := ReadTerminal(master, b[:])
		if err != nil || string(b[:n]) != "last words" {
			t.Fatalf("%d: %q, %v", i, b[:n], err)
		}
		if n, err := ReadTerminal(master, b[:]); !errors.Is(err, syscall.EIO) {
			t.Fatalf("%d: after the end: %q, %v", i, b[:n], err)
		}
		master.Close()
	}
}
