// Package insider is what tests of package runtime run inside a container: the test binary itself, or, for another
// architecture, the program in main.
package insider

import (
	"fmt"
	"io"
	"net"
	"os"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ways are what there is to do, each with a number that says how much, and answering what came of it.
var ways = map[string]func(n int) string{
	"open": func(n int) string { return openNetlink(n, func(int) {}) },
	"dup": func(n int) string {
		return openNetlink(n, func(fd int) {
			for range 5 {
				unix.Dup(fd)
			}
		})
	},
	"send": func(n int) string { // what a message carries is open, though nobody has a descriptor of it
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err.Error()
		}
		return openNetlink(n, func(fd int) {
			if err := unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(fd), nil, unix.MSG_DONTWAIT); err == nil {
				unix.Close(fd)
			}
		})
	},
	"hold": func(n int) string {
		openNetlink(n, func(int) {})
		fmt.Println("held")
		time.Sleep(time.Hour)
		return ""
	},
	"flood": func(n int) string {
		for range n {
			go func() {
				goruntime.LockOSThread()
				for {
					if fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, 0); err == nil {
						goruntime.Gosched()
						unix.Close(fd)
					}
				}
			}()
		}
		time.Sleep(100 * time.Millisecond)
		fmt.Println("flooding")
		time.Sleep(time.Hour)
		return ""
	},
	"look": func(int) string {
		var names []string
		all, err := net.Interfaces() // by netlink
		for _, i := range all {
			names = append(names, i.Name)
		}
		if err != nil {
			return err.Error()
		}
		flags := ""
		var st unix.Stat_t
		for _, kind := range []int{unix.SOCK_RAW, unix.SOCK_RAW | unix.SOCK_CLOEXEC, unix.SOCK_DGRAM, unix.SOCK_DGRAM | unix.SOCK_NONBLOCK} {
			fd, err := unix.Socket(unix.AF_NETLINK, kind, 0)
			if err != nil {
				return err.Error()
			}
			if err := unix.Fstat(fd, &st); err != nil {
				return err.Error()
			}
			now, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			status, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			flags += "," + strconv.Itoa(now|status&unix.O_NONBLOCK/unix.O_NONBLOCK)
			unix.Close(fd)
		}
		for _, odd := range [][3]int{{unix.SOCK_STREAM, 0, int(unix.ESOCKTNOSUPPORT)}, {unix.SOCK_RAW, 77, int(unix.EPROTONOSUPPORT)}, {1 << 20, 0, int(unix.EINVAL)}} {
			if _, err := unix.Socket(unix.AF_NETLINK, odd[0], odd[1]); err != unix.Errno(odd[2]) {
				return fmt.Sprint(odd, err)
			}
		}
		var few unix.Rlimit
		_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &few)
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: few.Max})
		if _, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, 0); err != unix.EMFILE {
			return fmt.Sprint("without room for a descriptor: ", err)
		}
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &few)
		return fmt.Sprintf("interfaces %v owner %d:%d flags %s link %v", names, st.Uid, st.Gid, flags[1:], newLink(-1, "mine"))
	},
	"lend": func(int) string {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err.Error()
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			goruntime.LockOSThread() // and never unlock: the thread is another user's
			call := func(trap uintptr, id uintptr) { unix.RawSyscall(trap, id, id, id) }
			call(unix.SYS_SETRESGID, 1000)
			call(unix.SYS_SETRESUID, 1000)
			if fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, 0); err == nil {
				_ = unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(fd), nil, 0)
				unix.Close(fd)
			}
			unix.Close(pair[0])
		}()
		<-done
		oob := make([]byte, 64)
		_, n, _, _, err := unix.Recvmsg(pair[1], make([]byte, 1), oob, unix.MSG_DONTWAIT)
		if err != nil {
			return err.Error()
		}
		messages, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil || len(messages) != 1 {
			return fmt.Sprint("nothing came: ", err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint("link ", newLink(fds[0], "lent"))
	},
	"talk": func(int) string { // as programs do, by all the calls that this takes
		said := make(chan string)
		hear := func(l net.Listener, err error) {
			if err != nil {
				said <- err.Error()
				return
			}
			c, err := l.Accept()
			if err != nil {
				said <- err.Error()
				return
			}
			b, _ := io.ReadAll(c)
			said <- string(b)
		}
		path := fmt.Sprintf("/tmp/talk-%d", os.Getpid())
		words := ""
		for range 2 {
			os.Remove(path)
			l, err := net.Listen("unix", path)
			go hear(l, err)
			if c, err := net.Dial("unix", path); err == nil {
				fmt.Fprint(c, "hello")
				c.Close()
			}
			words += " " + <-said
		}
		if l, err := net.Listen("tcp", ":0"); err != nil {
			return err.Error()
		} else {
			l.Close()
		}
		return words[1:]
	},
	"kinds": func(int) string {
		var all []string
		for _, k := range []struct {
			name                   string
			family, kind, protocol int
		}{
			{"inet", unix.AF_INET, unix.SOCK_STREAM, 0}, {"inet datagram", unix.AF_INET, unix.SOCK_DGRAM, 0}, {"inet6", unix.AF_INET6, unix.SOCK_STREAM, 0},
			{"unix", unix.AF_UNIX, unix.SOCK_STREAM, 0}, {"unix packets", unix.AF_UNIX, unix.SOCK_SEQPACKET, 0},
			{"raw", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}, {"packet", unix.AF_PACKET, unix.SOCK_RAW, 0x300}, {"vsock", unix.AF_VSOCK, unix.SOCK_STREAM, 0},
			{"usersock", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_USERSOCK},
		} {
			fd, err := unix.Socket(k.family, k.kind, k.protocol)
			if err == nil {
				if domain, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); domain != k.family {
					err = fmt.Errorf("is of family %d", domain)
				}
				unix.Close(fd)
			}
			all = append(all, fmt.Sprint(k.name, " ", err))
		}
		_, err := socketcall(nil)
		return strings.Join(append(all, fmt.Sprint("nowhere ", err)), ", ")
	},
	"swap": func(n int) string { // another thread writes another family while the call is under way
		words := &[3]uint32{unix.AF_INET, unix.SOCK_STREAM, 0}
		var done atomic.Bool
		go func() {
			for !done.Load() {
				atomic.StoreUint32(&words[0], unix.AF_VSOCK)
				atomic.StoreUint32(&words[0], unix.AF_INET)
			}
		}()
		defer done.Store(true)
		for range n {
			if fd, err := socketcall(unsafe.Pointer(words)); err == nil {
				if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || domain != unix.AF_INET {
					return fmt.Sprint("a socket of family ", domain, " ", err)
				}
				unix.Close(fd)
			}
		}
		return "inet"
	},
	"nag": func(n int) string { // all threads of PID 1 are sent signals while it makes sockets
		var wrong, made atomic.Int32
		var done atomic.Bool
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for !done.Load() {
					fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, 0)
					if err == nil && fd < 3 {
						wrong.Add(1)
					} else if err == nil {
						made.Add(1)
						unix.Close(fd)
					}
				}
			})
		}
		threads, err := os.ReadDir("/proc/1/task")
		if err != nil {
			return err.Error()
		}
		for i := 0; i < 50*n || made.Load() < int32(n) && i < 5000*n; i++ {
			for _, t := range threads {
				tid, _ := strconv.Atoi(t.Name())
				if err := unix.Tgkill(1, tid, unix.SIGURG); err != nil {
					return err.Error()
				}
			}
		}
		done.Store(true)
		wg.Wait()
		return fmt.Sprint(made.Load() >= int32(n), " ", wrong.Load())
	},
	"nested": func(int) string { // as root of a user namespace of its own, in the same network
		out, in, err := os.Pipe()
		if err != nil {
			return err.Error()
		}
		pid, err := syscall.ForkExec("/inside", []string{"/inside", "kinds"}, &syscall.ProcAttr{
			Env: os.Environ(), Files: []uintptr{0, in.Fd(), 2}, Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER,
				UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}}})
		if err != nil {
			return err.Error()
		}
		in.Close()
		b, _ := io.ReadAll(out)
		_, _ = unix.Wait4(pid, nil, 0, nil)
		return strings.TrimSpace(string(b))
	},
	"elsewhere": func(int) string {
		goruntime.LockOSThread()
		made := newLink(-1, "over")
		names := func() (list []string) {
			all, _ := net.Interfaces()
			for _, i := range all {
				list = append(list, i.Name)
			}
			return list
		}
		before := names()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err.Error()
		}
		return fmt.Sprint(made, " before ", before, " after ", names())
	},
}

// Run does what the arguments say, a way and perhaps a number, and says what came of it.
func Run(args []string) {
	if len(args) == 0 || ways[args[0]] == nil {
		fmt.Println("no such way")
		os.Exit(2)
	}
	n := 0
	if len(args) > 1 {
		n, _ = strconv.Atoi(args[1])
	}
	fmt.Println(ways[args[0]](n))
}

var keptOpen sync.Map

// socketcall is i386's way to a socket, of whose programs alone it may be called.
func socketcall(args unsafe.Pointer) (int, error) {
	fd, _, errno := unix.Syscall(102, 1, uintptr(args), 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// openNetlink opens up to n sockets and says how many it got, and the error that ended it.
func openNetlink(n int, each func(fd int)) string {
	for i := range n {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Sprint(i, " ", err)
		}
		keptOpen.Store(fd, true)
		each(fd)
	}
	return fmt.Sprint(n, " <nil>")
}

// newLink asks for a veth pair through a socket; -1 opens one. It returns the answer. It writes as a program does that takes
// the socket for its standard error: only then does the kernel look at the opener's capabilities, too.
func newLink(fd int, name string) error {
	if fd < 0 {
		var err error
		if fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE); err != nil {
			return err
		}
		defer unix.Close(fd)
	}
	attribute := func(kind uint16, value []byte) []byte {
		b := make([]byte, 4, 4+len(value)+3)
		*(*uint16)(unsafe.Pointer(&b[0])) = uint16(4 + len(value))
		*(*uint16)(unsafe.Pointer(&b[2])) = kind
		b = append(b, value...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
		return b
	}
	body := make([]byte, unix.SizeofIfInfomsg)
	body = append(body, attribute(unix.IFLA_IFNAME, append([]byte(name), 0))...)
	body = append(body, attribute(unix.IFLA_LINKINFO, attribute(unix.IFLA_INFO_KIND, []byte("veth")))...)
	header := make([]byte, unix.SizeofNlMsghdr)
	*(*unix.NlMsghdr)(unsafe.Pointer(&header[0])) = unix.NlMsghdr{Len: uint32(len(header) + len(body)), Type: unix.RTM_NEWLINK,
		Flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_EXCL, Seq: 1}
	if _, err := unix.Write(fd, append(header, body...)); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil || n < unix.SizeofNlMsghdr+4 {
		return fmt.Errorf("answer of %d bytes: %v", n, err)
	}
	if errno := *(*int32)(unsafe.Pointer(&answer[unix.SizeofNlMsghdr])); errno != 0 {
		return unix.Errno(-errno)
	}
	return nil
}
