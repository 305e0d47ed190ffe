package runtime

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// pingUnread makes a socket on which n answers to pings lie.
func pingUnread(t *testing.T, n int) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		if err := unix.Sendto(fd, append([]byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}, make([]byte, 1000)...), 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			t.Fatal(err)
		}
	}
	return fd
}

func walkSelf(t *testing.T) socketWalk { return walkSelfUpTo(t, 1<<20) }

func walkSelfUpTo(t *testing.T, most int) socketWalk {
	t.Helper()
	w := socketWalk{seen: map[string]bool{}, left: most}
	w.process(os.Getpid())
	if len(w.errs) > 0 {
		t.Fatal(w.errs)
	}
	return w
}

// TestSocketWalk: what lies on a process's sockets is found, without a cgroup's word for it.
func TestSocketWalk(t *testing.T) {
	before := walkSelf(t)
	fd := pingUnread(t, 20)
	defer unix.Close(fd)
	after := walkSelf(t)
	if after.sockets != before.sockets+1 || after.uncounted < before.uncounted+20*1000 {
		t.Errorf("%d sockets hold %d bytes, before %d and %d", after.sockets, after.uncounted, before.sockets, before.uncounted)
	}
}

// TestSocketWalkIsBounded: who has more descriptors than are to be looked at keeps nobody busy, and it is told.
func TestSocketWalkIsBounded(t *testing.T) {
	var fds []int
	for range 50 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	if w := walkSelf(t); w.sockets < len(fds) || w.left <= 0 {
		t.Errorf("all: %d sockets, %d left", w.sockets, w.left)
	}
	w := walkSelfUpTo(t, 20)
	if w.sockets >= 20 || w.left > 0 {
		t.Errorf("up to 20: %d sockets, %d left", w.sockets, w.left)
	}
	w.process(os.Getpid())
	if w.sockets >= 20 {
		t.Errorf("and once more: %d sockets", w.sockets)
	}
}
