package nodeagent

import (
	"context"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/tunnel"
)

// A tenant makes its user database whatever it likes: the agent, which is root on the host, opens nothing but a regular
// file of the environment's own, never hangs on it, and still gives the tenant a session.
func TestPasswdOfATenant(t *testing.T) {
	p := newPlatform(t, "")
	p.start()
	id := p.create(func(s *queue.EnvSpec) { s.Command = []string{"sleep", "600"} })
	p.await(id, queue.StateRunning)
	n, err := Open(p.root, Options{})
	check(t, err)
	e, err := n.Load(context.Background(), id)
	check(t, err)
	root, err := os.OpenFile("/proc/"+strconv.Itoa(e.c.PID())+"/root", unix.O_PATH|unix.O_DIRECTORY, 0)
	check(t, err)
	defer root.Close()
	// sh runs a command inside and tells what it wrote and how long the session took to begin.
	sh := func(text string) (string, time.Duration) {
		begin := time.Now()
		sid := p.session(id, tunnel.Request{Args: []string{"/bin/busybox", "sh", "-c", text}, User: "0"})
		took := time.Since(begin)
		a := p.attach(id, sid, nil)
		<-a.done
		if a.err != nil || a.exit.Code != 0 {
			t.Errorf("%s: status %d, %v, %s", text, a.exit.Code, a.err, a.errs)
		}
		return strings.TrimSpace(a.out.String()), took
	}

	const line = "root:x:0:0::/elsewhere:/bin/sh\n"
	sh("rm -f /etc/passwd; printf '" + line + "' > /etc/passwd")
	if body, err := readInside(root, "etc/passwd", 1<<20); err != nil || string(body) != line {
		t.Fatalf("an honest file: %q, %v", body, err)
	}
	for what, c := range map[string]struct {
		make        string
		reads, home bool // whether it is a file to read; whether what it says of root's home counts
	}{
		"a link within":       {"ln -s real /etc/passwd; printf '" + line + "' > /etc/real", true, true},
		"an absolute one":     {"ln -s /etc/real /etc/passwd", true, true},
		"the kernel's log":    {"ln -s /proc/kmsg /etc/passwd", false, false},
		"a file of procfs":    {"ln -s /proc/1/status /etc/passwd", false, false},
		"a magic link":        {"ln -s /proc/self/exe /etc/passwd", false, false},
		"a root":              {"ln -s /proc/1/root/etc/real /etc/passwd", false, false},
		"out of the root":     {"ln -s ../../../../../../../../etc/hostname /etc/passwd; rm -f /etc/hostname", false, false},
		"a terminal's maker":  {"ln -s /dev/pts/ptmx /etc/passwd", false, false},
		"a device":            {"ln -s /dev/zero /etc/passwd", false, false},
		"shared memory":       {"printf '" + line + "' > /dev/shm/passwd; ln -s /dev/shm/passwd /etc/passwd", false, false},
		"a FIFO":              {"mkfifo /etc/passwd", false, false},
		"a directory":         {"mkdir /etc/passwd", false, false},
		"itself":              {"ln -s passwd /etc/passwd", false, false},
		"a large empty thing": {"truncate -s 1G /etc/passwd", true, false},
	} {
		sh("rm -rf /etc/passwd; printf '" + line + "' > /etc/real; " + c.make)
		body, err := readInside(root, "etc/passwd", 1<<20)
		if (err == nil) != c.reads || len(body) > 1<<20 {
			t.Errorf("%s: read %d bytes, %v", what, len(body), err)
		}
		home, took := sh("echo $HOME")
		if want := map[bool]string{true: "/elsewhere", false: "/root"}[c.home]; home != want {
			t.Errorf("%s: a session has the home %q; want %q", what, home, want)
		}
		if took > 10*time.Second {
			t.Errorf("%s: the session took %s to begin", what, took)
		}
	}
}
