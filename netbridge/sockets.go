package netbridge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
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
	Ownerless      int   // TCP sockets among them that no process has open: connections, and what is below a socket of MPTCP
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
		s.Local = using(string(text), "UNIX", "UNIX-STREAM")
		multipath := using(string(text), "MPTCP", "MPTCPv6") > 0
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			r := nl.NewNetlinkRequest(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
			r.AddRawData(tcpRequest(family, multipath))
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

// using counts the sockets of some protocols in /proc/net/protocols, whose lines begin with a protocol's name, its size, and how
// many there are. (/proc/net/unix has a line for each, but writes the names that programs have given them as they are, newlines
// too.)
func using(text string, protocols ...string) (n int) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 2 && slices.Contains(protocols, f[0]) {
			sockets, _ := strconv.Atoi(f[2])
			n += sockets
		}
	}
	return n
}

// INET_DIAG_INFO, INET_DIAG_SKMEMINFO, INET_DIAG_ULP_INFO and INET_ULP_INFO_NAME of linux/inet_diag.h.
const (
	inetDiagInfo    = 2
	inetDiagMeminfo = 7
	inetDiagULPInfo = 19
	inetULPInfoName = 1
)

// tcpRequest is an inet_diag_req_v2 (linux/inet_diag.h) for all sockets of a family but closed ones, with their memory.
// below asks what they are for, too, which comes with all else that there is to tell.
func tcpRequest(family uint8, below bool) []byte {
	const closed = 1 << 7 // TCP_CLOSE of net/tcp_states.h
	b := make([]byte, 56)
	b[0], b[1], b[2] = family, unix.IPPROTO_TCP, 1<<(inetDiagMeminfo-1)
	if below {
		b[2] |= 1 << (inetDiagInfo - 1)
	}
	binary.NativeEndian.PutUint32(b[4:], ^uint32(closed))
	return b
}

// ownerless reads an inet_diag_msg: how much the socket takes if no process has it open, and whether it is a full one. Those
// that carry a socket of MPTCP have that one's number, and nobody has them open either.
func ownerless(msg []byte) (n int64, full bool) {
	const length, inode = 72, 68
	if len(msg) < length {
		return 0, false
	}
	attrs, err := nl.ParseRouteAttr(msg[length:])
	if err != nil {
		return 0, false
	}
	below := binary.NativeEndian.Uint32(msg[inode:]) == 0
	for _, a := range attrs {
		switch {
		case a.Attr.Type&^unix.NLA_F_NESTED == inetDiagULPInfo:
			below = below || isMPTCP(a.Value)
		case a.Attr.Type == inetDiagMeminfo && len(a.Value) >= 28:
			const received, options = 0, 24 // SK_MEMINFO_RMEM_ALLOC and _OPTMEM of linux/sock_diag.h, four bytes each
			n, full = fullSocket+int64(binary.NativeEndian.Uint32(a.Value[received:]))+int64(binary.NativeEndian.Uint32(a.Value[options:])), true
		}
	}
	switch {
	case !below:
		return 0, false
	case !full:
		return smallSocket, false
	}
	return n, true
}

// isMPTCP reads INET_DIAG_ULP_INFO: what a TCP socket is for.
func isMPTCP(info []byte) bool {
	attrs, err := nl.ParseRouteAttr(info)
	for _, a := range attrs {
		if err == nil && a.Attr.Type == inetULPInfoName && string(bytes.TrimRight(a.Value, "\x00")) == "mptcp" {
			return true
		}
	}
	return false
}
