package main

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// swell takes kernel memory by way of the network, as many MiB as told, says how many it got, and holds them for as long as
// told: memory that a process never touches itself is the kind that may be charged to nobody.
func swell(args []string) error {
	if len(args) < 3 {
		return errors.New("swell WHAT MIB HOLD")
	}
	mib, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	hold, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	way := map[string]func(bytes int) (int, error){
		"ring": ring, "send-ring": sendRing, "tcp": tcp, "udp": udp, "unix": stream, "netlink": netlink,
		"netlink-unread": unread, "netlink-threads": threads,
		"errors": errorQueue, "stamps": stamps, "echo": echo, "raw": raw, "small": small, "routing": routing, "md5": signatures,
		"filter": judges, "jail": jail, "backlog": backlog, "unaccepted": unaccepted, "pty": terminals, "huge": hugePages, "huge-mapped": hugePagesMapped,
		"disconnected": disconnected, "flight": flight, "disguised": disguised, "crowd": crowd,
	}[args[0]]
	if way == nil {
		return errors.New("no such way to swell")
	}
	time.Sleep(time.Nanosecond) // Go's timers take a descriptor when they are first used, and there may be none afterwards
	n, err := way(mib << 20)
	fmt.Println(n>>20, err)
	time.Sleep(hold)
	return nil
}

func ring(bytes int) (int, error)     { return packetRing(bytes, unix.PACKET_RX_RING) }
func sendRing(bytes int) (int, error) { return packetRing(bytes, unix.PACKET_TX_RING) }

// packetRing asks packet sockets for rings to share with the kernel, of 16 MiB each.
func packetRing(bytes, which int) (got int, err error) {
	for got < bytes {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err != nil {
			return got, err
		}
		const block, blocks, frame = 1 << 20, 16, 2048
		request := [4]uint32{block, blocks, frame, block * blocks / frame}
		if err := call(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_PACKET, uintptr(which), uintptr(unsafe.Pointer(&request)), 16); err != nil {
			return got, err
		}
		got += block * blocks
	}
	return got, nil
}

// fill sends until nothing more is taken.
func fill(fd, most int, chunk []byte) (n int) {
	for n < most {
		w, err := unix.Write(fd, chunk)
		if err != nil {
			return n
		}
		n += w
	}
	return n
}

// tcp makes connections to itself on which nobody reads.
func tcp(bytes int) (got int, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	to := &unix.SockaddrInet4{Port: l.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			kept = append(kept, c)
		}
	}()
	chunk := make([]byte, 64<<10)
	for end := time.Now().Add(3 * time.Second); got < bytes; {
		if time.Now().After(end) {
			return got, errors.New("slow")
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return got, err
		}
		if err := unix.Connect(fd, to); err != nil {
			return got, err
		}
		_ = unix.SetNonblock(fd, true)
		n, still := 0, 0
		for still < 3 { // the window opens step by step
			m := fill(fd, bytes-got-n, chunk)
			n += m
			if m == 0 {
				still++
			}
			time.Sleep(time.Millisecond)
		}
		if n == 0 {
			return got, errors.New("nothing more is taken")
		}
		got += n
	}
	return got, nil
}

var kept []net.Conn // collected, they would be closed

// udp sends datagrams to sockets that nobody reads.
func udp(bytes int) (got int, err error) {
	chunk := make([]byte, 32<<10)
	for got < bytes {
		to, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return got, err
		}
		kept = append(kept, to)
		_ = to.SetReadBuffer(64 << 20)
		raw, err := to.SyscallConn()
		if err != nil {
			return got, err
		}
		size := 0
		_ = raw.Control(func(fd uintptr) { size, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF) })
		from, err := net.DialUDP("udp", nil, to.LocalAddr().(*net.UDPAddr))
		if err != nil {
			return got, err
		}
		for n := 0; n < size && got < bytes; n += len(chunk) {
			if _, err := from.Write(chunk); err != nil {
				return got, err
			}
			got += len(chunk)
		}
		from.Close()
	}
	return got, nil
}

// stream fills socket pairs.
func stream(bytes int) (got int, err error) {
	chunk := make([]byte, 64<<10)
	for got < bytes {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return got, err
		}
		_ = unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 64<<20)
		n := fill(pair[0], bytes-got, chunk)
		if n == 0 {
			return got, errors.New("nothing more is taken")
		}
		got += n
	}
	return got, nil
}

// netlink sends messages to its own netlink sockets, which nobody reads.
func netlink(bytes int) (got int, err error) {
	chunk := make([]byte, 60<<10)
	for got < bytes {
		to, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK, unix.NETLINK_USERSOCK)
		if err != nil {
			return got, err
		}
		_ = unix.SetsockoptInt(to, unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<20)
		if err := unix.Bind(to, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return got, err
		}
		name, err := unix.Getsockname(to)
		if err != nil {
			return got, err
		}
		from, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK, unix.NETLINK_USERSOCK)
		if err != nil {
			return got, err
		}
		_ = unix.SetsockoptInt(from, unix.SOL_SOCKET, unix.SO_SNDBUF, 64<<20)
		n := 0
		for got < bytes && unix.Sendto(from, chunk, 0, name) == nil {
			n, got = n+len(chunk), got+len(chunk)
		}
		unix.Close(from)
		if n == 0 {
			return got, errors.New("nothing more is taken")
		}
	}
	return got, nil
}

// unread has the kernel answer into netlink sockets that nobody reads, as many as it can open. How much lies in them, the
// kernel says.
func unread(bytes int) (got int, err error) {
	request := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg)
	*(*unix.NlMsghdr)(unsafe.Pointer(&request[0])) = unix.NlMsghdr{
		Len: uint32(len(request)), Type: unix.RTM_GETLINK, Flags: unix.NLM_F_REQUEST | unix.NLM_F_DUMP}
	for got < bytes {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil && has32 { // perhaps the 32-bit call gets one more
			if n := int80(359, unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE, 0, 0); n >= 0 {
				fd, err = int(n), nil
			}
		}
		if err != nil {
			return got, err
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<20)
		var memory [9]uint32 // SK_MEMINFO_ of linux/sock_diag.h: what lies there, and how much may
		for last := uint32(1); ; {
			for range 64 {
				if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
					break
				}
			}
			size := uint32(unsafe.Sizeof(memory))
			if err := call(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO, uintptr(unsafe.Pointer(&memory)), uintptr(unsafe.Pointer(&size))); err != nil {
				return got, err
			}
			if memory[0] == last { // nothing was added
				break
			}
			last = memory[0]
		}
		got += int(memory[0])
	}
	return got, nil
}

// threads is unread by a thousand at once: somebody who counts must count right, whoever comes first.
func threads(bytes int) (int, error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	total, start := 0, make(chan struct{})
	for range 1000 {
		wg.Go(func() {
			<-start
			n, _ := unread(min(bytes, 1))
			mu.Lock()
			defer mu.Unlock()
			total += n
		})
	}
	close(start)
	wg.Wait()
	return total, nil
}
