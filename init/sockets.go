package main

import (
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
	"github.com/learnos/learnos/internal/initproto/lookup"
)

// socketMaker makes sockets that programs inside must not make themselves. A seccomp filter turns the call into a question to
// us (seccomp_unotify(2)), and the answer is the socket itself, put into the asker's table in the same step. To answer "go on"
// would be less work, but nothing that was looked at is then sure to be so when the kernel looks again.
//
// Those are netlink sockets, since what lies unread in one is memory of the kernel's that is charged to nobody: so there are
// never more than so many, though thousands of threads ask at once. And those that 32-bit programs ask for by
// socketcall(2), which hides from any filter what they are to be: what we have read can't be changed any more, and we make
// it under the same profile and with no more capabilities than the asker has.
//
// It works on a thread of its own, as handing over waits until the asker gets processor time, which may be long; init's
// own thread has other duties. The filter is on that one alone, from which all sessions come: here, it would have us ask
// ourselves.
type socketMaker struct {
	proc     int // procfs
	bound    int // how many netlink sockets there may be
	caps     uint64
	begin    chan int // carries listener
	listener int
	made     int    // an epoll instance that waits for nothing: it is the kernel's list of netlink sockets that are still open
	list     int    // the text of that list
	users    string // what /proc/PID/uid_map says of who is in our user namespace
	network  uint64 // the number of a file that our network namespace has for itself
	room     int    // how many may be made before the list must be read again: closing only ever makes it shorter
	read     int64  // when it was last read, in monotonic milliseconds
	as       asker  // whose identity the thread has taken on
}

// asker is what of a process goes into a socket that it opens: fstat(2) and ss(8) show its owner, and a request through it is
// granted only if its opener had the capability, too (netlink(7)).
type asker struct {
	uid, gid uint32
	caps     uint64
}

// nobody has an id that is none.
var nobody = asker{uid: ^uint32(0)}

// newSocketMaker starts the thread, while nobody is inside who could leave none for it.
func newSocketMaker(proc int, p *initproto.Plan) *socketMaker {
	m := &socketMaker{
		proc: proc, bound: int(p.NetlinkSockets), caps: p.Caps.Permitted | initCaps, begin: make(chan int), as: nobody,
	}
	go m.run()
	return m
}

// superviseSockets puts our thread under the filter, for all that it starts from now on.
func (s *server) superviseSockets(p *initproto.Plan) *fault {
	if s.maker == nil {
		return nil
	}
	// WAIT_KILLABLE_RECV: once we have read a question, no signal but a deadly one takes its asker away. Go's runtime sends some
	// every 10 ms while a socket(2) lasts, and on a slow machine would never get one. (Freezing takes this into account.)
	fd, _, errno := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, uintptr(unsafe.Pointer(sockFprog(p.SocketFilter))))
	switch errno {
	case 0:
		s.maker.begin <- int(fd)
		return nil
	case unix.EBUSY:
		return invalid("sockets: this node is itself under a seccomp supervisor, of which there can be one only")
	}
	return failed("sockets: seccomp listener", errno)
}

func (m *socketMaker) run() {
	runtime.LockOSThread()
	m.listener = <-m.begin
	for m.serve() {
	}
	unix.Close(m.listener) // from now on the answer is ENOSYS
}

// prepare makes what is needed for the first answer; most environments never ask.
func (m *socketMaker) prepare() (err error) {
	if m.made > 0 {
		return nil
	}
	// Root inside may signal us. A signal while a socket is being handed over would leave the asker with 0 for a descriptor: the
	// kernel takes the answer for given then, and we can't give another. (Not earlier: AllThreadsSyscall comes by a signal.)
	all := ^uint64(0)
	if _, _, errno := syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_BLOCK, uintptr(unsafe.Pointer(&all)), 0, unsafe.Sizeof(all), 0, 0); errno != 0 {
		return errno
	}
	self := strconv.Itoa(unix.Getpid())
	if m.network, err = m.networkOf(self); err != nil {
		return err
	}
	if m.users, err = m.usersOf(self); err != nil {
		return err
	}
	made, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	if m.list, err = m.file(self+"/fdinfo/"+strconv.Itoa(made), unix.O_RDONLY); err != nil {
		unix.Close(made)
		return err
	}
	m.made = made
	return nil
}

// notification is struct seccomp_notif, response struct seccomp_notif_resp, addition struct seccomp_notif_addfd
// (linux/seccomp.h).
type (
	notification struct {
		id         uint64
		pid, flags uint32
		nr, arch   uint32
		ip         uint64
		args       [6]uint64
	}
	response struct {
		id    uint64
		val   int64
		error int32
		flags uint32
	}
	addition struct {
		id                            uint64
		flags, src, newFD, newFDFlags uint32
	}
)

const ioctlAddFD = 0x40182103 // SECCOMP_IOCTL_NOTIF_ADDFD

func (m *socketMaker) ioctl(request uintptr, arg unsafe.Pointer) syscall.Errno {
	_, _, errno := syscall.Syscall(unix.SYS_IOCTL, uintptr(m.listener), request, uintptr(arg))
	return errno
}

// serve answers one question. It returns false when there will be no more.
func (m *socketMaker) serve() bool {
	n := &notification{}
	switch errno := m.ioctl(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(n)); errno {
	case 0:
	case unix.EINTR, unix.ENOENT: // the asker is gone
		return true
	default:
		return false
	}
	fd, kind, errno := m.answer(n)
	if errno == goOn {
		m.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&response{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}))
		return true
	}
	if errno != 0 {
		m.refuse(n, errno)
		return true
	}
	add := &addition{id: n.id, flags: unix.SECCOMP_ADDFD_FLAG_SEND, src: uint32(fd), newFDFlags: uint32(kind) & unix.SOCK_CLOEXEC}
	for {
		errno = m.ioctl(ioctlAddFD, unsafe.Pointer(add))
		if errno != unix.EINTR {
			break
		}
	}
	if errno != 0 { // EMFILE, say; or ENOENT as it is gone, and then so is the refusal
		m.refuse(n, errno)
	}
	unix.Close(fd)
	return true
}

func (m *socketMaker) refuse(n *notification, errno syscall.Errno) {
	m.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&response{id: n.id, error: -int32(errno)}))
}

// goOn is no error: the kernel is to go on with the call itself.
const goOn = syscall.Errno(0x1000)

// answer makes the socket that a question is about.
func (m *socketMaker) answer(n *notification) (fd int, kind int, errno syscall.Errno) {
	hidden := n.arch == unix.AUDIT_ARCH_I386 && n.nr == socketcall386
	if err := m.prepare(); err != nil {
		return -1, 0, unix.ENOBUFS
	}
	pid := strconv.FormatUint(uint64(n.pid), 10)
	network, err := m.networkOf(pid)
	switch {
	case err != nil:
		return -1, 0, unix.EPERM
	case network != m.network && hidden:
		return -1, 0, unix.ENOSYS
	case network != m.network: // who may make network namespaces (CAP_SYS_ADMIN, a profile of his own) counts for himself there
		return -1, 0, goOn
	}
	who, err := m.asker(pid)
	if err != nil {
		return -1, 0, unix.EPERM
	}
	if errno := m.become(who); errno != 0 {
		return -1, 0, errno
	}
	w := wish{int(int32(n.args[0])), int(int32(n.args[1])), int(int32(n.args[2]))}
	if hidden {
		if w, err = m.hidden(pid, int64(uint32(n.args[1]))); err != nil {
			return -1, 0, unix.ENOSYS // as if there were no such call
		}
	}
	if users, err := m.usersOf(pid); err != nil || users != m.users {
		who.caps = 0 // they are those of a user namespace that somebody has made for himself, which this network is not of
		if errno := m.become(who); errno != 0 {
			return -1, 0, errno
		}
	}
	fd, errno = m.make(w)
	return fd, w.kind, errno
}

// wish is what socket(2) is called with.
type wish struct{ family, kind, protocol int }

// socketcall386 is the number of socketcall(2), which has a pointer to the arguments proper.
const socketcall386 = 102

// hidden reads what a 32-bit thread wants at an address. The thread is in the middle of its call, but others may write
// there: what counts is what we read. We are who it is (become), so its memory is open to us unless it is closed to itself.
func (m *socketMaker) hidden(pid string, at int64) (w wish, err error) {
	fd, err := m.file(pid+"/mem", unix.O_RDONLY)
	if err != nil {
		return w, err
	}
	defer unix.Close(fd)
	var b [12]byte
	n, err := unix.Pread(fd, b[:], at)
	if err == nil && n < len(b) {
		err = unix.EFAULT
	}
	word := func(i int) int {
		return int(int32(uint32(b[i]) | uint32(b[i+1])<<8 | uint32(b[i+2])<<16 | uint32(b[i+3])<<24))
	}
	return wish{word(0), word(4), word(8)}, err
}

// make opens a socket; a netlink one if there is room for one more.
func (m *socketMaker) make(w wish) (int, syscall.Errno) {
	counts := w.family == unix.AF_NETLINK
	if counts && m.room <= 0 && !m.makeRoom() {
		return -1, unix.ENOBUFS // as socket(2) has it: until sufficient resources are freed
	}
	// As unsigned ints, above which the profile looks for bits that are set.
	fd, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(uint32(w.family)), uintptr(uint32(w.kind))|unix.SOCK_CLOEXEC, uintptr(uint32(w.protocol)))
	if errno != 0 || !counts {
		return int(fd), errno
	}
	// Whatever keeps it open (descriptors anywhere, messages with it on their way) keeps it on this list.
	if err := unix.EpollCtl(m.made, unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{Events: unix.EPOLLET}); err != nil {
		unix.Close(int(fd))
		return -1, unix.ENOBUFS
	}
	m.room--
	return int(fd), 0
}

// makeRoom finds out how many netlink sockets have been closed. What lay in them is not free before the kernel's next grace
// period (RCU): who fills and closes all of them within a second waits for that, else hundreds of MiB would be on their
// way at a time.
func (m *socketMaker) makeRoom() bool {
	open, err := m.open()
	if err != nil || open >= m.bound {
		return false
	}
	if milliseconds()-m.read < 1000 {
		const global = 1                                                                   // MEMBARRIER_CMD_GLOBAL: synchronize_rcu()
		if _, _, errno := syscall.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 { // nohz_full, or a profile without it
			unix.Nanosleep(&unix.Timespec{Nsec: 50e6}, nil)
		}
	}
	m.room, m.read = m.bound-open, milliseconds()
	return true
}

// become gives this thread the owner and the effective capabilities of the asker, as far as we have them.
func (m *socketMaker) become(who asker) syscall.Errno {
	if who == m.as {
		return 0
	}
	m.as = nobody // until it is known again
	if errno := setEffective(m.caps, m.caps); errno != 0 {
		return errno
	}
	syscall.RawSyscall(unix.SYS_SETFSGID, uintptr(who.gid), 0, 0)
	syscall.RawSyscall(unix.SYS_SETFSUID, uintptr(who.uid), 0, 0)
	if errno := setEffective(who.caps&m.caps, m.caps); errno != 0 {
		return errno
	}
	m.as = who
	return 0
}

// setEffective changes this thread's capabilities alone.
func setEffective(effective, permitted uint64) syscall.Errno {
	header, data := capData(effective, permitted, 0)
	_, _, errno := syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(data)), 0)
	return errno
}

// open counts the sockets that are open.
func (m *socketMaker) open() (int, error) {
	var buf [4096]byte
	n, at := 0, int64(0)
	line := 0 // how many bytes of this line have fit
	const mark = "tfd:"
	for {
		got, err := unix.Pread(m.list, buf[:], at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, err
		}
		if got == 0 {
			return n, nil
		}
		at += int64(got)
		for _, c := range buf[:got] {
			switch {
			case c == '\n':
				line = 0
			case line >= 0 && line < len(mark) && c == mark[line]:
				if line++; line == len(mark) {
					n++
				}
			default:
				line = -1
			}
		}
	}
}

// networkOf tells network namespaces apart. /proc/PID/ns is closed to us, but files below /proc/PID/net are other ones in each.
func (m *socketMaker) networkOf(pid string) (uint64, error) {
	fd, err := m.file(pid+"/net/netlink", unix.O_PATH)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return st.Ino, err
}

// usersOf tells user namespaces apart: each has a map of its own. Ours has ids of the namespace around it, others those of ours.
func (m *socketMaker) usersOf(pid string) (string, error) {
	fd, err := m.file(pid+"/uid_map", unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var buf [4096]byte
	n, err := unix.Read(fd, buf[:])
	return string(buf[:max(n, 0)]), err
}

// file opens a file of procfs, and nothing that somebody who may has mounted over it.
func (m *socketMaker) file(path string, flags uint64) (int, error) {
	return resolve(m.proc, path, flags, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_SYMLINKS)
}

// asker reads who a thread is. It is in the middle of a system call and stays what it is as long as its question stands.
func (m *socketMaker) asker(pid string) (who asker, err error) {
	fd, err := m.file(pid+"/status", unix.O_RDONLY)
	if err != nil {
		return who, err
	}
	defer unix.Close(fd)
	var buf [4096]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return who, err
	}
	return parseAsker(buf[:n])
}

// parseAsker reads /proc/PID/status: "Uid:" and "Gid:" with real, effective, saved and file system id, "CapEff:" in hex.
func parseAsker(status []byte) (who asker, err error) {
	found := 0
	for _, line := range lookup.Split(status, '\n') {
		fields := lookup.Split(line, '\t')
		switch {
		case len(fields) == 5 && (string(fields[0]) == "Uid:" || string(fields[0]) == "Gid:"):
			id, ok := lookup.ParseID(string(fields[4]))
			if !ok {
				return asker{}, unix.EINVAL
			}
			if found++; fields[0][0] == 'U' {
				who.uid = id
			} else {
				who.gid = id
			}
		case len(fields) == 2 && string(fields[0]) == "CapEff:":
			if who.caps, err = strconv.ParseUint(string(fields[1]), 16, 64); err != nil {
				return asker{}, unix.EINVAL
			}
			found++
		}
	}
	if found != 3 {
		return asker{}, unix.EINVAL
	}
	return who, nil
}
