package netbridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of a connection that nobody has accepted, or whose process has closed it, the kernel charges nobody with the socket and
// with what lies in its queue. These are what one takes, in bytes, a little more than seen (Linux 6.18): a full TCP socket
// with its request and the headers of a segment, and one in TIME_WAIT or not yet established.
const (
	fullSocket  = 4096
	smallSocket = 512
)

// Sockets is what a network namespace has of sockets.
type Sockets struct {
	Used           int   // all that programs made, or that came of connections (sockstat's "used")
	Local          int   // AF_UNIX ones among them
	Ownerless      int   // TCP connections among them that no process has open
	OwnerlessBytes int64 // what these hold of the kernel's memory, and connections that are only being made or in TIME_WAIT
}

// CountSockets counts them: TCP's by sock_diag(7), some 100 ns each.
func CountSockets(ns *os.File) (s Sockets, err error) {
	err = inNetns(ns, func() error {
		text, err := os.ReadFile("/proc/thread-self/net/sockstat")
		if err != nil {
			return fmt.Errorf("sockets: %w", err)
		}
		used, _, _ := strings.Cut(strings.TrimPrefix(string(text), "sockets: used "), "\n")
		if s.Used, err = strconv.Atoi(used); err != nil {
			return fmt.Errorf("sockets: /proc/net/sockstat begins with %q", used)
		}
		if text, err = os.ReadFile("/proc/thread-self/net/protocols"); err != nil {
			return fmt.Errorf("sockets: %w", err)
		}
		s.Local = local(string(text))
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			r := nl.NewNetlinkRequest(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
			r.AddRawData(tcpRequest(family))
			answers, err := r.Execute(unix.NETLINK_SOCK_DIAG, 0)
			if family == unix.AF_INET6 && errors.Is(err, unix.ENOENT) {
				continue // a kernel without IPv6
			}
			if err != nil {
				return fmt.Errorf("ask for the TCP sockets in %s: %w", ns.Name(), err)
			}
			for _, a := range answers {
				n, full := ownerless(a)
				s.OwnerlessBytes += n
				if full {
					s.Ownerless++
				}
			}
		}
		return nil
	})
	return s, err
}

// local counts AF_UNIX sockets in /proc/net/protocols, whose lines begin with a protocol's name, its size, and how many there
// are. (/proc/net/unix has a line for each, but writes the names that programs have given them as they are, newlines too.)
func local(protocols string) (n int) {
	for line := range strings.Lines(protocols) {
		if f := strings.Fields(line); len(f) > 2 && (f[0] == "UNIX" || f[0] == "UNIX-STREAM") {
			sockets, _ := strconv.Atoi(f[2])
			n += sockets
		}
	}
	return n
}

// inetDiagMeminfo is INET_DIAG_SKMEMINFO of linux/inet_diag.h.
const inetDiagMeminfo = 7

// tcpRequest is an inet_diag_req_v2 (linux/inet_diag.h) for all connections of a family, with their memory.
func tcpRequest(family uint8) []byte {
	const (
		listening = 1 << 10 // TCP_LISTEN of net/tcp_states.h, and so on: these have an owner
		closed    = 1 << 7
		synSent   = 1 << 2
	)
	b := make([]byte, 56)
	b[0], b[1], b[2] = family, unix.IPPROTO_TCP, 1<<(inetDiagMeminfo-1)
	binary.NativeEndian.PutUint32(b[4:], ^uint32(listening|closed|synSent))
	return b
}

// ownerless reads an inet_diag_msg: how much the socket takes if no process has it open, and whether it is a full one.
func ownerless(msg []byte) (n int64, full bool) {
	const length, inode = 72, 68
	if len(msg) < length || binary.NativeEndian.Uint32(msg[inode:]) != 0 {
		return 0, false
	}
	attrs, err := nl.ParseRouteAttr(msg[length:])
	if err != nil {
		return 0, false
	}
	for _, a := range attrs {
		if a.Attr.Type == inetDiagMeminfo && len(a.Value) >= 28 {
			const received, options = 0, 24 // SK_MEMINFO_RMEM_ALLOC and _OPTMEM of linux/sock_diag.h, four bytes each
			return fullSocket + int64(binary.NativeEndian.Uint32(a.Value[received:])) + int64(binary.NativeEndian.Uint32(a.Value[options:])), true
		}
	}
	return smallSocket, false
}
