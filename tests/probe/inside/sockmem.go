package main

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Ways of swell by what hangs on a socket and is not TCP's or UDP's buffers: the kernel counts it by socket, if at all.

// memoryOf is what a socket holds: what came in or went wrong and is unread, and its options (sock_diag's SK_MEMINFO).
func memoryOf(fd int) int {
	var info [9]uint32
	size := uint32(unsafe.Sizeof(info))
	if call(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO, uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size))) != nil {
		return 0
	}
	const received, options = 0, 6
	return int(info[received] + info[options])
}

// each makes sockets until they hold as many bytes as asked for, or one more holds nothing, or it takes too long.
func each(bytes int, one func() (fd int, err error)) (got int, err error) {
	for end := time.Now().Add(10 * time.Second); got < bytes; {
		if time.Now().After(end) {
			return got, errors.New("slow")
		}
		fd, err := one()
		if err != nil {
			return got, err
		}
		n := memoryOf(fd)
		if n == 0 {
			return got, errors.New("nothing more is taken")
		}
		got += n
	}
	return got, nil
}

// wide makes a socket with the largest buffer that it may have.
func wide(family, kind, proto int) (int, error) {
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return 0, err
	}
	return fd, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<20)
}

var nowhere = &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}} // nobody listens there

// until sends until the socket holds no more.
func until(fd int, send func() error) {
	for last, still := -1, 0; still < 8; {
		for range 16 {
			_ = send() // an error is what came of the message before
		}
		n := memoryOf(fd)
		if n == last {
			still++
		} else {
			last, still = n, 0
		}
	}
}

// errorQueue asks for errors to be kept, and makes some: each keeps a message.
func errorQueue(bytes int) (int, error) {
	chunk := make([]byte, 1024)
	return each(bytes, func() (int, error) {
		fd, err := wide(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return 0, err
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1); err != nil {
			return 0, err
		}
		until(fd, func() error { return unix.Sendto(fd, chunk, 0, nowhere) })
		return fd, nil
	})
}

// stamps asks when its datagrams left: each lies in the queue of errors, whole.
func stamps(bytes int) (int, error) {
	chunk := make([]byte, 60<<10)
	return each(bytes, func() (int, error) {
		fd, err := wide(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return 0, err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPING, unix.SOF_TIMESTAMPING_TX_SOFTWARE|unix.SOF_TIMESTAMPING_TX_SCHED|unix.SOF_TIMESTAMPING_SOFTWARE); err != nil {
			return 0, err
		}
		until(fd, func() error { return unix.Sendto(fd, chunk, 0, nowhere) })
		return fd, nil
	})
}

// echo sends itself pings and reads no answer.
func echo(bytes int) (int, error) { return each(bytes, echoing) }

func echoing() (int, error) {
	chunk := make([]byte, 60<<10)
	chunk[0] = 8
	fd, err := wide(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
	if err != nil {
		return 0, err
	}
	until(fd, func() error { return unix.Sendto(fd, chunk, 0, nowhere) })
	return fd, nil
}

// raw listens to a protocol and reads nothing.
func raw(bytes int) (int, error) {
	chunk := make([]byte, 60<<10)
	return each(bytes, func() (int, error) {
		fd, err := wide(unix.AF_INET, unix.SOCK_RAW, 253)
		if err != nil {
			return 0, err
		}
		until(fd, func() error { return unix.Sendto(fd, chunk, 0, nowhere) })
		return fd, nil
	})
}

// small sends datagrams of a byte: what they cost is their heads.
func small(bytes int) (int, error) {
	return each(bytes, func() (int, error) {
		to, err := wide(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return 0, err
		}
		if err := unix.Bind(to, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return 0, err
		}
		name, err := unix.Getsockname(to)
		if err != nil {
			return 0, err
		}
		from, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return 0, err
		}
		defer unix.Close(from)
		until(to, func() error { return unix.Sendto(from, []byte{0}, 0, name) })
		return to, nil
	})
}

// routing gives IPv6 sockets options as long as they may be.
func routing(bytes int) (int, error) {
	const rthdr = 57 // IPV6_RTHDR
	return each(bytes, func() (int, error) {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
		if err != nil {
			return 0, err
		}
		for _, opt := range []uintptr{unix.IPV6_HOPOPTS, unix.IPV6_DSTOPTS, unix.IPV6_RTHDRDSTOPTS, rthdr} {
			header := make([]byte, 2048)
			header[1] = 255
			if opt == rthdr {
				header[1], header[2], header[3] = 2, 2, 1
				header = header[:24]
			}
			_ = call(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_IPV6, opt, uintptr(unsafe.Pointer(&header[0])), uintptr(len(header)))
		}
		// What RFC 2292 has for all of them at once: up to 64 KiB of ancillary data.
		control := make([]byte, 60000)
		h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
		h.Level, h.Type = unix.SOL_UDP, 77 // nobody's: passed over, and kept
		h.SetLen(len(control))
		_ = call(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_IPV6, 6, uintptr(unsafe.Pointer(&control[0])), uintptr(len(control)))
		return fd, nil
	})
}

// signatures gives TCP sockets keys for as many neighbours as they may have.
func signatures(bytes int) (int, error) {
	return each(bytes, func() (int, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return 0, err
		}
		for i := range 4096 {
			sig := unix.TCPMD5Sig{Keylen: 80}
			*(*uint16)(unsafe.Pointer(&sig.Addr)) = unix.AF_INET
			*(*[4]byte)(unsafe.Pointer(uintptr(unsafe.Pointer(&sig.Addr)) + 4)) = [4]byte{10, 0, byte(i >> 8), byte(i)}
			if err := unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, &sig); err != nil {
				if i == 0 {
					return 0, err
				}
				break
			}
		}
		return fd, nil
	})
}

// judges gives sockets filters as long as they may be.
func judges(bytes int) (int, error) {
	return each(bytes, func() (int, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return 0, err
		}
		return fd, unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, longFilter())
	})
}

// longFilter is 4,096 instructions that do nothing and are translated one by one.
func longFilter() *unix.SockFprog {
	code := make([]unix.SockFilter, 4096)
	for i := range code {
		code[i] = unix.SockFilter{Code: unix.BPF_LD | unix.BPF_IMM, K: uint32(i)}
	}
	code[4095] = unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	return &unix.SockFprog{Len: 4096, Filter: &code[0]}
}

// unaccepted is backlog with data in it.
func unaccepted(bytes int) (got int, err error) {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return got, err
	}
	_ = unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<20)
	if err := errors.Join(unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(l, 65535)); err != nil {
		return got, err
	}
	name, err := unix.Getsockname(l)
	if err != nil {
		return got, err
	}
	chunk := make([]byte, 64<<10)
	for end := time.Now().Add(10 * time.Second); got < bytes; {
		if time.Now().After(end) {
			return got, errors.New("slow")
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return got, err
		}
		if err := unix.Connect(fd, name); err != nil {
			return got, err
		}
		_ = unix.SetNonblock(fd, true)
		n, still := 0, 0
		for still < 3 && got+n < bytes {
			m := fill(fd, bytes-got-n, chunk)
			n += m
			if m == 0 {
				still++
			}
			time.Sleep(time.Millisecond)
		}
		got += n
	}
	return got, nil
}

// jail puts filters of system calls on top of each other in one thread after another.
func jail(bytes int) (got int, err error) {
	for got < bytes {
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			f := allowFilter()
			for range 7 { // 32,768 instructions for one thread at the most
				if err := call(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(f))); err != nil {
					done <- err
					return
				}
				got += 4096 * 8
			}
			done <- nil
			select {}
		}()
		if err := <-done; err != nil {
			return got, err
		}
	}
	return got, nil
}

func allowFilter() *unix.SockFprog {
	f := longFilter()
	code := unsafe.Slice(f.Filter, f.Len)
	code[0] = unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	code[4095] = code[0]
	return f
}

// backlog fills listeners' queues with connections that nobody accepts and whose other end is gone.
func backlog(bytes int) (got int, err error) {
	const child = 2560 // a tcp_sock
	for end := time.Now().Add(20 * time.Second); got < bytes; {
		l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return got, err
		}
		if err := errors.Join(unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(l, 65535)); err != nil {
			return got, err
		}
		name, err := unix.Getsockname(l)
		if err != nil {
			return got, err
		}
		for n := 0; n < 4096; n++ {
			if time.Now().After(end) {
				return got, errors.New("slow")
			}
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return got, err
			}
			if unix.Connect(fd, name) != nil {
				if e, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); e != 0 {
					return got, unix.Errno(e)
				}
			}
			_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{})
			unix.Close(fd) // without linger: FIN, and CLOSE_WAIT at the other end
			got += child
		}
	}
	return got, nil
}

// terminals fills both directions of all of them.
func terminals(bytes int) (got int, err error) {
	chunk := make([]byte, 4096)
	for got < bytes {
		m, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		if err != nil {
			return got, err
		}
		if err := unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0); err != nil {
			return got, err
		}
		n, err := unix.IoctlGetInt(m, unix.TIOCGPTN)
		if err != nil {
			return got, err
		}
		s, err := unix.Open(fmt.Sprint("/dev/pts/", n), unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		if err != nil {
			return got, err
		}
		for _, fd := range []int{m, s} {
			got += fill(fd, 4<<20, chunk)
			time.Sleep(time.Millisecond)
			got += fill(fd, 4<<20, chunk)
		}
	}
	return got, nil
}

// hugePages takes pages that the operator has reserved.
func hugePages(bytes int) (int, error) { return hugePagesTouched(bytes, true) }

// hugePagesMapped only has them set aside.
func hugePagesMapped(bytes int) (int, error) { return hugePagesTouched(bytes, false) }

func hugePagesTouched(bytes int, touch bool) (got int, err error) {
	for got < bytes {
		b, err := unix.Mmap(-1, 0, 2<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE|unix.MAP_HUGETLB)
		if err != nil {
			return got, err
		}
		if touch {
			b[0] = 1
		}
		got += len(b)
	}
	return got, nil
}

// disconnected is errors on sockets that the kernel has no port for any more, and so in no list.
func disconnected(bytes int) (int, error) {
	chunk := make([]byte, 1024)
	return each(bytes, func() (int, error) {
		fd, err := wide(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return 0, err
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1); err != nil {
			return 0, err
		}
		until(fd, func() error { return unix.Sendto(fd, chunk, 0, nowhere) })
		var none [16]byte // AF_UNSPEC
		return fd, call(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), uintptr(len(none)))
	})
}

// flight sends full sockets to a socket on which nobody takes them, and closes its own.
func flight(bytes int) (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	return each(bytes, func() (int, error) {
		fd, err := echoing()
		if err != nil {
			return 0, err
		}
		if err := unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
			if pair, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0); err != nil {
				return 0, err
			}
			if err := unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
				return 0, err
			}
		}
		closing = append(closing, fd)
		if len(closing) > 1 { // the last is still to be measured
			unix.Close(closing[len(closing)-2])
		}
		return fd, nil
	})
}

var closing []int

// disguised is flight among local sockets whose names read like a hundred more of them (/proc/net/unix writes names as they are).
func disguised(bytes int) (int, error) {
	for i := range 100 {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
		if err != nil {
			return 0, err
		}
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "/tmp/" + strings.Repeat("\n", 90) + strconv.Itoa(i)}); err != nil {
			return 0, err
		}
	}
	return flight(bytes)
}

// crowd is echo by somebody who has as many descriptors as he gets, and hundreds of processes that share them: whoever looked at
// all of them would be busy for half a minute.
func crowd(bytes int) (int, error) {
	const processes = 200
	debug.SetGCPercent(-1) // the threads that wait for the processes would not stop for it
	runtime.GOMAXPROCS(processes + 4)
	var sockets []int
	for range 1200 {
		fd, err := wide(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
		if err != nil {
			return 0, err
		}
		sockets = append(sockets, fd)
	}
	for range processes {
		go func() {
			runtime.LockOSThread()
			pid, _, _ := syscall.RawSyscall(unix.SYS_CLONE, unix.CLONE_VM|unix.CLONE_VFORK|unix.CLONE_FILES|uintptr(unix.SIGCHLD), 0, 0)
			for pid == 0 { // with its memory, on its stack
				syscall.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
			}
		}()
	}
	time.Sleep(time.Second)
	for {
		if _, err := unix.Dup(0); err != nil {
			break
		}
	}
	time.Sleep(6 * time.Second) // by now somebody looks
	chunk := make([]byte, 60<<10)
	chunk[0] = 8
	got := 0
	for _, fd := range sockets {
		until(fd, func() error { return unix.Sendto(fd, chunk, 0, nowhere) })
		if got += memoryOf(fd); got >= bytes {
			break
		}
	}
	return got, nil
}
