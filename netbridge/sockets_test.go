package netbridge

import (
	"errors"
	"net"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCountSockets: connections that nobody accepts are found, with what lies on them, also when their other end has gone.
func TestCountSockets(t *testing.T) {
	ns, err := scratchNetns()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := Loopback(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	before, err := CountSockets(ns)
	if err != nil {
		t.Fatal(err)
	}
	const connections, said = 5, 10_000
	var l net.Listener
	err = inNetns(ns, func() error {
		var err error
		if l, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
			return err
		}
		for range connections {
			c, err := net.Dial("tcp4", l.Addr().String())
			if err != nil {
				return err
			}
			if _, err := c.Write(make([]byte, said)); err != nil {
				return err
			}
			if err := c.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := CountSockets(ns)
	if err != nil {
		t.Fatal(err)
	}
	// The listener, and each connection's end here; the other end may still be on its way out.
	if s.Used < before.Used+1+connections || s.Ownerless < connections || s.OwnerlessBytes < connections*(fullSocket+said) {
		t.Errorf("%+v after %d connections of %d bytes that nobody accepted; before %+v", s, connections, said, before)
	}
	l.Close()
	if s, err = CountSockets(ns); err != nil || s.OwnerlessBytes >= connections*fullSocket {
		t.Errorf("%+v after the listener has gone: %v", s, err)
	}
}

// TestCountLocalSockets: a local socket counts once, whatever its name is made to look like.
func TestCountLocalSockets(t *testing.T) {
	ns, err := scratchNetns()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	before, err := CountSockets(ns)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var fds []int
	err = inNetns(ns, func() error {
		for i, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET, unix.SOCK_STREAM} {
			fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			fds = append(fds, fd)
			if err := unix.Bind(fd, &unix.SockaddrUnix{Name: dir + "/" + strings.Repeat("\n", 20) + strconv.Itoa(i)}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := CountSockets(ns)
	if err != nil || s.Local-before.Local != len(fds) || s.Used-before.Used < len(fds) {
		t.Errorf("%+v with %d local sockets more than %+v: %v", s, len(fds), before, err)
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// TestCountMultipath: what lies below sockets of MPTCP, which no process has open, is found: it is nothing that somebody hides.
func TestCountMultipath(t *testing.T) {
	ns, err := scratchNetns()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := Loopback(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	before, err := CountSockets(ns)
	if err != nil {
		t.Fatal(err)
	}
	err = inNetns(ns, func() error {
		l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
		if err != nil {
			t.Skip("this kernel has no MPTCP: ", err)
		}
		fds = append(fds, l)
		if err := errors.Join(unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(l, 10)); err != nil {
			return err
		}
		name, err := unix.Getsockname(l)
		if err != nil {
			return err
		}
		for range 5 {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
			if err != nil {
				return err
			}
			fds = append(fds, fd)
			if err := unix.Connect(fd, name); err != nil {
				return err
			}
			if fd, _, err = unix.Accept4(l, unix.SOCK_CLOEXEC); err != nil {
				return err
			}
			fds = append(fds, fd)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := CountSockets(ns)
	if out := s.Used - before.Used - s.Ownerless - len(fds); err != nil || out >= len(fds) { // asking takes a few, too
		t.Errorf("%+v with %d sockets of MPTCP, before %+v: %d are out of sight: %v", s, len(fds), before, out, err)
	}
}
