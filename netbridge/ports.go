package netbridge

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// normalPorts checks the ports asked for and gives absent fields their meaning: Proto "tcp", HostIP zero.
func normalPorts(ports []Port) ([]Port, error) {
	out := make([]Port, 0, len(ports))
	for _, p := range ports {
		switch p.Proto {
		case "":
			p.Proto = "tcp"
		case "tcp", "udp":
		default:
			return nil, fmt.Errorf("publish %s: protocol %q: want tcp or udp", p, p.Proto)
		}
		p.HostIP = p.HostIP.Unmap()
		if p.HostIP.IsValid() && !p.HostIP.Is4() {
			return nil, fmt.Errorf("publish %s: only IPv4 addresses can be published", p)
		}
		if p.HostIP.IsUnspecified() {
			p.HostIP = netip.Addr{}
		}
		if p.HostPort == 0 || p.Port == 0 {
			return nil, fmt.Errorf("publish %s: ports go from 1 to 65535", p)
		}
		for _, q := range out {
			if p.overlaps(q) {
				return nil, fmt.Errorf("publish %s: host port %d/%s is asked for twice", p, p.HostPort, p.Proto)
			}
		}
		out = append(out, p)
	}
	return out, nil
}

// overlaps says whether both would answer the same packet.
func (p Port) overlaps(q Port) bool {
	return p.HostPort == q.HostPort && p.Proto == q.Proto && (p.HostIP == q.HostIP || !p.HostIP.IsValid() || !q.HostIP.IsValid())
}

// String is the usual notation, for example 127.0.0.1:2222:22/tcp.
func (p Port) String() string {
	s := fmt.Sprintf("%d:%d/%s", p.HostPort, p.Port, p.Proto)
	if p.HostIP.IsValid() {
		s = p.HostIP.String() + ":" + s
	}
	return s
}

// checkPorts returns ErrPortTaken, naming port and holder, if another lease or a process of the host has
// one of the ports already. Called with the lock held.
func (b *Bridge) checkPorts(ports []Port) error {
	if len(ports) == 0 {
		return nil
	}
	all, _, err := b.leases()
	if err != nil {
		return err
	}
	for _, p := range ports {
		for _, l := range all {
			for _, q := range l.Ports {
				if p.overlaps(q) {
					return fmt.Errorf("publish %s: host port %d/%s is published by environment %s already (as %s): %w", p, p.HostPort, p.Proto, l.ID, q, ErrPortTaken)
				}
			}
		}
		if err := bindable(p); err != nil {
			return err
		}
	}
	return nil
}

// bindable tries to bind the host's end without listening: a process that holds it would never see a packet
// again once the port is published.
func bindable(p Port) error {
	kind := unix.SOCK_STREAM
	if p.Proto == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("publish %s: socket: %w", p, err)
	}
	defer unix.Close(fd)
	if p.Proto == "tcp" { // connections of a former holder in TIME_WAIT are no conflict, listeners still are
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return fmt.Errorf("publish %s: setsockopt: %w", p, err)
		}
	}
	sa := &unix.SockaddrInet4{Port: int(p.HostPort)}
	if p.HostIP.IsValid() {
		sa.Addr = p.HostIP.As4()
	}
	err = unix.Bind(fd, sa)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("publish %s: a process of the host has %s port %d already: %w", p, p.Proto, p.HostPort, ErrPortTaken)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("publish %s: %s is no address of this host", p, p.HostIP)
	}
	return fmt.Errorf("publish %s: bind: %w", p, err)
}
