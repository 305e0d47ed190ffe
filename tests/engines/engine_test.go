package engines

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
)

// patience is how long anything may take that takes a moment. In the guest it is longer than needed by far: the processor is
// emulated, and on a busy machine its clock has been seen to run at twice the host's.
var patience = func() time.Duration {
	if os.Getenv("LEARNOS_VM") != "" {
		return 5 * time.Minute
	}
	return time.Minute
}()

// result is what a command did.
type result struct {
	line     string
	out, err string
	code     int
}

// run runs a command to its end.
func run(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	cmd.WaitDelay = 5 * time.Second // what it left running may hold the pipes
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, &out, &errs)
	}
	return result{strings.Join(args, " "), out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// ok wants success, and gives the output without the space around it.
func (r result) ok(t *testing.T) string {
	t.Helper()
	return r.status(t, 0)
}

// status wants an exit status.
func (r result) status(t *testing.T, code int) string {
	t.Helper()
	if r.code != code {
		t.Fatalf("%s: status %d, want %d\n%s%s", r.line, r.code, code, r.out, r.err)
	}
	return strings.TrimSpace(r.out)
}

// says wants a line of what the command wrote to match each expression.
func (r result) says(t *testing.T, expressions ...string) result {
	t.Helper()
	for _, e := range expressions {
		if !regexp.MustCompile(`(?m)` + e).MatchString(r.out + r.err) {
			t.Errorf("%s: nothing matches %s in\n%s%s", r.line, e, r.out, r.err)
		}
	}
	return r
}

// eventually asks again until it is so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came to this: %s", what)
		}
	}
}

// terminal is a command on a terminal, as a person sits at it.
type terminal struct {
	t      *testing.T
	cmd    *exec.Cmd
	master *os.File
	mu     sync.Mutex
	text   bytes.Buffer
	done   chan struct{}
}

func onTerminal(t *testing.T, rows, cols uint16, args ...string) *terminal {
	t.Helper()
	x := &terminal{t: t, cmd: exec.Command(args[0], args[1:]...), done: make(chan struct{})}
	var err error
	if x.master, err = pty.StartWithSize(x.cmd, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		x.cmd.Process.Kill()
		x.cmd.Wait()
		x.master.Close()
	})
	go func() {
		defer close(x.done)
		buf := make([]byte, 4096)
		for {
			n, err := x.master.Read(buf)
			x.mu.Lock()
			x.text.Write(buf[:n])
			x.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return x
}

func (x *terminal) shown() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.text.String()
}

// expect waits until what the terminal shows matches.
func (x *terminal) expect(expression string) {
	x.t.Helper()
	re := regexp.MustCompile(expression)
	for deadline := time.Now().Add(patience); !re.MatchString(x.shown()); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			x.t.Fatalf("the terminal never showed %s, but\n%s", expression, x.shown())
		}
	}
}

func (x *terminal) write(text string) {
	x.t.Helper()
	if _, err := x.master.WriteString(text); err != nil {
		x.t.Fatal(err)
	}
}

func (x *terminal) resize(rows, cols uint16) {
	x.t.Helper()
	if err := pty.Setsize(x.master, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		x.t.Fatal(err)
	}
}

// ends waits for the command and wants its status.
func (x *terminal) ends(code int) {
	x.t.Helper()
	select {
	case <-x.done:
	case <-time.After(patience):
		x.t.Fatalf("it does not end; the terminal shows\n%s", x.shown())
	}
	x.cmd.Wait()
	if got := x.cmd.ProcessState.ExitCode(); got != code {
		x.t.Errorf("status %d, want %d; the terminal shows\n%s", got, code, x.shown())
	}
}
