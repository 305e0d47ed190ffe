package nodeagent

import (
	"context"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/reason"
)

// TestSocketMemoryEndsAnEnvironment: an environment in whose network namespace more lies on connections that nobody accepts
// than it may have of memory is ended, with the reason; its neighbour is let be.
func TestSocketMemoryEndsAnEnvironment(t *testing.T) {
	p := newPlatform(t, "")
	p.start()
	n, err := Open(p.root, Options{})
	check(t, err)
	id, neighbour := p.create(nil), p.create(nil)
	p.await(id, queue.StateRunning)
	p.await(neighbour, queue.StateRunning)
	env, err := n.Load(context.Background(), id)
	check(t, err)
	ns, err := env.Container().NamespaceFD(specs.NetworkNamespace)
	check(t, err)
	defer ns.Close()

	gone, filled := make(chan struct{}), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine, for it is in another namespace
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			filled <- err
			return
		}
		filled <- leaveUnread(150<<20, gone)
	}()
	s := p.await(id, queue.StateFailed)
	close(gone)
	check(t, <-filled)
	if code, values := reason.Parse(s.Reason); code != reason.SocketMemory || values["limit"] != "64 MiB" || !strings.HasSuffix(values["held"], " MiB") {
		t.Errorf("reason %q", s.Reason)
	}
	time.Sleep(2 * guardTick)
	if s, err := p.queue.Status(context.Background(), neighbour); err != nil || s.State != queue.StateRunning {
		t.Errorf("the neighbour: %+v, %v", s, err)
	}
	p.delete(neighbour)
	p.await(neighbour, queue.StateDeleted)
	p.clean()
}

// leaveUnread writes so many bytes to connections that nobody accepts, and keeps them until gone is closed.
func leaveUnread(bytes int, gone <-chan struct{}) error {
	settings := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if controlErr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20) }); controlErr != nil {
			return controlErr
		}
		return err
	}}
	l, err := settings.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	chunk := make([]byte, 64<<10)
	for bytes > 0 {
		select {
		case <-gone:
			return nil
		default:
		}
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)) // it is full when nothing more goes
		for {
			w, err := c.Write(chunk)
			bytes -= w
			if err != nil {
				break
			}
		}
	}
	<-gone
	return nil
}
