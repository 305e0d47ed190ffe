package netbridge

import (
	"net"
	"testing"
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
