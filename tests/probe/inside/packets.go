package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// packets: sockets that see or make whole packets are for who was given CAP_NET_RAW, by whatever gate they are asked for;
// ping is everybody's.
func (p *prober) packets() {
	opened := func(family, kind, proto int) error {
		fd, err := unix.Socket(family, kind, proto)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	everything := 0x0300 // ETH_P_ALL, big-endian
	for name, kind := range map[string]int{"raw": unix.SOCK_RAW, "datagram": unix.SOCK_DGRAM, "old": unix.SOCK_PACKET} {
		p.try("packet socket, "+name, denied, opened(unix.AF_PACKET, kind, everything))
	}
	p.try("packet socket that hears nothing", denied, opened(unix.AF_PACKET, unix.SOCK_RAW, 0))
	p.try("packet socket, with bits above the 32nd", append(denied, unix.EINVAL), call(unix.SYS_SOCKET, 1<<32|unix.AF_PACKET, unix.SOCK_RAW, 0))
	_, err := unix.Socketpair(unix.AF_PACKET, unix.SOCK_RAW, 0)
	p.try("socketpair of packets", denied, err)
	for name, ring := range map[string]func(int) (int, error){"received": ring, "sent": sendRing} {
		_, err := ring(1 << 20)
		p.try("a ring of packets "+name, denied, err)
	}
	for name, proto := range map[string]int{"ICMP": unix.IPPROTO_ICMP, "TCP": unix.IPPROTO_TCP, "UDP": unix.IPPROTO_UDP, "GRE": unix.IPPROTO_GRE, "any": unix.IPPROTO_RAW} {
		p.try("raw socket of "+name, denied, opened(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_NONBLOCK, proto))
	}
	for name, proto := range map[string]int{"ICMPv6": unix.IPPROTO_ICMPV6, "UDP": unix.IPPROTO_UDP, "any": unix.IPPROTO_RAW} {
		p.tryOr("raw socket of IPv6, "+name, denied, errnos{unix.EAFNOSUPPORT}, "this kernel has no IPv6", opened(unix.AF_INET6, unix.SOCK_RAW, proto))
	}
	if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0); err == nil {
		p.try("another's address (IP_TRANSPARENT)", denied, unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1))
		unix.Close(fd)
	}
	if !p.to.ownInit { // there it is config.json's to say
		err := pingOneself()
		p.check("ping oneself", err == nil, fmt.Sprint(err), "an answer")
	}
}

// packets32 is packets by the 32-bit gate. page is memory that it reaches.
func (p *prober) packets32(at uint32, page []byte) {
	for name, c := range map[string][3]uint32{"packet socket": {unix.AF_PACKET, unix.SOCK_RAW, 0}, "raw socket": {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}} {
		asError := func(r int32) error {
			if r < 0 {
				return unix.Errno(-r)
			}
			return nil
		}
		p.try("32-bit "+name, denied, asError(int80(359, c[0], c[1], c[2], 0, 0)))
		*(*[3]uint32)(unsafe.Pointer(&page[64])) = c
		p.try("32-bit socketcall "+name, append(denied, unix.ENOSYS), asError(int80(102, 1, at+64, 0, 0, 0)))
	}
}

// pingOneself sends an echo request to its own loopback, by the socket that every user may have (icmp(7)).
func pingOneself() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	request := []byte{8, 0, 0, 0, 0, 0, 0, 7, 'p', 'r', 'o', 'b', 'e'}
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	answer := make([]byte, 64)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		n, _, err := unix.Recvfrom(fd, answer, 0)
		if err != nil {
			return err
		}
		if n == len(request) && answer[0] == 0 && binary.BigEndian.Uint16(answer[6:]) == 7 {
			return nil
		}
	}
	return errors.New("no answer")
}
