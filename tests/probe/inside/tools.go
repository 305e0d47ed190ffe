package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hog takes as much as it gets, at most the number given, of something that the kernel counts for the whole machine, says
// how much that was, and lets go at once (or, with a third word, after that long).
func hog(args []string) error {
	if len(args) < 2 {
		return errors.New("hog WHAT HOW-MANY [HOLD]")
	}
	most, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	one := map[string]func(i int) error{
		"pty": func(int) error {
			_, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0)
			return err
		},
		"inotify": func(int) error { _, err := unix.InotifyInit1(0); return err },
		"aio": func(int) error { // 1,024 events each
			var ctx uintptr
			return call(unix.SYS_IO_SETUP, 1024, uintptr(unsafe.Pointer(&ctx)))
		},
		"mqueue": func(i int) error { // 10 messages of 8 KiB each, charged when the queue is made
			attr := [8]int64{0, 10, 8192}
			return call(unix.SYS_MQ_OPEN, ptr("hog"+strconv.Itoa(i)), unix.O_CREAT|unix.O_RDWR, 0o600, uintptr(unsafe.Pointer(&attr)))
		},
		"sigqueue": func(i int) error { // queued signals that are never taken
			info := [16]uint64{}
			*(*int32)(unsafe.Pointer(&info)) = 50
			*(*int32)(unsafe.Pointer(uintptr(unsafe.Pointer(&info)) + 8)) = -1 // SI_QUEUE
			return call(unix.SYS_RT_TGSIGQUEUEINFO, uintptr(os.Getpid()), uintptr(unix.Gettid()), 50, uintptr(unsafe.Pointer(&info)))
		},
		"neighbour": func(i int) error { // an address nobody has: the kernel remembers that it asks
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			ip, bits, err := ownAddress()
			if err != nil {
				return err
			}
			// Around itself, whatever its own address says of the link, and every way round a gateway.
			bits, flags := min(bits, 20), 0
			if i%2 == 1 {
				if err := unix.BindToDevice(fd, "eth0"); err != nil {
					return err
				}
				flags = unix.MSG_DONTROUTE
			}
			v := uint32(ip[0])<<24 | uint32(ip[1])<<16 | uint32(ip[2])<<8 | uint32(ip[3])
			mask := ^uint32(0) << (32 - bits)
			if i >= int(^mask)-2 {
				return unix.ERANGE
			}
			v = v&mask + uint32(i) + 2
			return unix.Sendto(fd, []byte{0}, flags, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}})
		},
	}[args[0]]
	if one == nil {
		return errors.New("no such thing to hog")
	}
	if args[0] == "sigqueue" {
		set := unix.Sigset_t{}
		set.Val[0] = 1 << 49
		if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil); err != nil {
			return err
		}
	}
	n := 0
	for n < most {
		if err = one(n); err != nil {
			break
		}
		n++
	}
	fmt.Println(n, err)
	if len(args) > 2 {
		hold, err := time.ParseDuration(args[2])
		if err != nil {
			return err
		}
		time.Sleep(hold)
	}
	if args[0] == "mqueue" {
		for i := range n {
			_ = call(unix.SYS_MQ_UNLINK, ptr("hog"+strconv.Itoa(i)))
		}
	}
	return nil
}

func ownAddress() (net.IP, int, error) {
	eth, err := net.InterfaceByName("eth0")
	if err != nil {
		return nil, 0, err
	}
	addrs, err := eth.Addrs()
	if err != nil {
		return nil, 0, err
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
			bits, _ := n.Mask.Size()
			return n.IP.To4(), bits, nil
		}
	}
	return nil, 0, errors.New("eth0 has no address")
}

// frames sends Ethernet frames, given in hexadecimal, out of eth0, each a few times.
func frames(list []string) error {
	eth, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	defer unix.Close(fd)
	fmt.Println(eth.HardwareAddr)
	for _, text := range list {
		b, err := hex.DecodeString(text)
		if err != nil {
			return err
		}
		for range 3 {
			if err := unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: eth.Index, Halen: 6}); err != nil {
				return fmt.Errorf("send: %w", err)
			}
		}
	}
	return nil
}

// sniff writes every frame that eth0 shows for a while.
func sniff(args []string) error {
	long, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	const everything = 0x0300 // ETH_P_ALL, big-endian
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, everything)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	defer unix.Close(fd)
	eth, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	_ = unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{Ifindex: int32(eth.Index), Type: unix.PACKET_MR_PROMISC})
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})
	fmt.Println("listening")
	buf := make([]byte, 2048)
	for end := time.Now().Add(long); time.Now().Before(end); {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			continue
		}
		fmt.Println(hex.EncodeToString(buf[:n]))
	}
	return nil
}

// dial tries to reach each of NETWORK,ADDRESS and writes what came of it.
func dial(list []string) error {
	var wg sync.WaitGroup
	results := make([]string, len(list))
	for i, to := range list {
		wg.Go(func() {
			network, address, _ := strings.Cut(to, ",")
			c, err := net.DialTimeout(network, address, 1500*time.Millisecond)
			if err == nil && network != "tcp" {
				_ = c.SetDeadline(time.Now().Add(time.Second))
				_, err = c.Write([]byte("probe"))
				if err == nil {
					_, err = c.Read(make([]byte, 16))
				}
			}
			if c != nil {
				c.Close()
			}
			if err == nil {
				results[i] = "reached"
			} else {
				results[i] = "closed"
			}
		})
	}
	wg.Wait()
	for i, to := range list {
		fmt.Println(to, results[i])
	}
	return nil
}

// deep nests directories far beyond PATH_MAX.
func deep(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	if err := os.Mkdir(args[0], 0o700); err != nil {
		return err
	}
	if err := unix.Chdir(args[0]); err != nil {
		return err
	}
	for i := range n {
		if err := unix.Mkdir("directory", 0o700); err != nil {
			return err
		}
		_ = unix.Symlink("/", "link"+strconv.Itoa(i%7))
		if err := unix.Chdir("directory"); err != nil {
			return err
		}
	}
	return unix.Chmod(".", 0)
}

// flood writes that many bytes of nonsense to standard output, whose beginning looks like a log's own header.
func flood(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	chunk := []byte(strings.Repeat("#learnos-log 18446744073709551615\n\x1b[2J\x00\xff", 800))
	for n > 0 {
		w, err := os.Stdout.Write(chunk[:min(n, len(chunk))])
		if err != nil {
			return err
		}
		n -= w
	}
	return nil
}

// eat touches that many MiB of memory, or fills a file in a directory.
func eat(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	if len(args) > 1 {
		f, err := os.Create(args[1] + "/eaten")
		if err != nil {
			return err
		}
		defer f.Close()
		b := make([]byte, 1<<20)
		for i := range n {
			if _, err := f.Write(b); err != nil {
				fmt.Println(i, err)
				return nil
			}
		}
		fmt.Println(n, nil)
		return nil
	}
	var kept [][]byte
	for range n {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		kept = append(kept, b)
	}
	fmt.Println(len(kept))
	return nil
}

// files makes empty files in a directory, at most that many, and says how many it could.
func files(args []string) error {
	most, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	n := 0
	for ; n < most; n++ {
		var fd int
		if fd, err = unix.Open(args[0]+"/"+strconv.Itoa(n), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644); err != nil {
			break
		}
		unix.Close(fd)
	}
	fmt.Println(n, err)
	return nil
}

// leave tries to move a file out of the project whose quota bounds it (FS_IOC_FSSETXATTR), and to take more than is its own
// by marks that a file system may heed (FS_IOC_SETFLAGS, fallocate beyond the end).
func leave(args []string) error {
	fd, err := unix.Open(args[0], unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	var attr [28]byte
	const get, set = 0x801c581f, 0x401c5820
	if err := call(unix.SYS_IOCTL, uintptr(fd), get, uintptr(unsafe.Pointer(&attr))); err == nil {
		attr[12]++ // fsx_projid
		if err := call(unix.SYS_IOCTL, uintptr(fd), set, uintptr(unsafe.Pointer(&attr))); err == nil {
			fmt.Println("left the project")
		}
	}
	if err := unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 1<<30); err == nil {
		fmt.Println("allocated a GiB")
	}
	return nil
}

// forks makes processes that wait until it ends, as many as it may, and says how many.
func forks([]string) error {
	var children []int
	var err error
	for {
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			err = errno
			break
		}
		if pid == 0 {
			for {
				unix.RawSyscall(unix.SYS_PAUSE, 0, 0, 0)
			}
		}
		children = append(children, int(pid))
	}
	fmt.Println(len(children), err)
	for _, pid := range children {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	return nil
}

// starve takes from init what root inside may: its limits.
func starve([]string) error {
	for _, what := range []int{unix.RLIMIT_NOFILE, unix.RLIMIT_FSIZE, unix.RLIMIT_AS, unix.RLIMIT_NPROC} {
		if err := unix.Prlimit(1, what, &unix.Rlimit{}, nil); err != nil {
			return err
		}
	}
	return nil
}

// signals sends init every signal but those that it is documented to heed.
func signals([]string) error {
	for sig := unix.Signal(1); sig <= 64; sig++ {
		switch sig {
		case unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2:
			continue
		}
		for range 100 {
			if err := unix.Kill(1, sig); err != nil && err != unix.EAGAIN {
				return fmt.Errorf("signal %d: %w", sig, err)
			}
		}
	}
	return nil
}
