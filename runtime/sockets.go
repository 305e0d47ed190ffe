package runtime

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SocketUse is what the sockets of a container's processes hold of the kernel's memory that is charged to nobody.
type SocketUse struct {
	Bytes   int64
	Sockets int  // how many were found, without AF_UNIX ones: what these hold is charged
	Partly  bool // there are more descriptors than were to be looked at
}

// SocketUse counts what lies on sockets and no cgroup counts: unread errors and timestamps, what waits on sockets that are
// not TCP's or UDP's, and options; of what lies unread on TCP and UDP, what exceeds the cgroup's own count.
//
// It looks at every descriptor of every process, some microseconds each, but no more than most: their number is the
// processes' to choose, who may share millions among them. It does not find sockets that no process has open
// (connections that nobody has accepted, and descriptors on their way in messages), nor those that a thread has open for
// itself alone, as clone(2) without CLONE_FILES makes one.
func (c *Container) SocketUse(most int) (SocketUse, error) {
	w := socketWalk{seen: map[string]bool{}, left: most}
	for _, pid := range c.group.pids() {
		w.process(pid)
	}
	if len(w.errs) > 0 {
		return SocketUse{}, fmt.Errorf("sockets of container %s: %w", c.id, errors.Join(w.errs...))
	}
	return SocketUse{max(0, w.counted-c.group.networkBuffers()) + w.uncounted, w.sockets, w.left <= 0}, nil
}

// networkBuffers is what the cgroup counts of TCP and UDP, in bytes.
func (g *cgroup) networkBuffers() int64 {
	if _, v2, ok := g.controller("memory"); ok && v2 {
		return int64(keyed(g.read("memory", "", "memory.stat"), "sock"))
	}
	return int64(number(g.read("memory", "memory.kmem.tcp.usage_in_bytes", "")))
}

// socketWalk sums up sockets, each once.
type socketWalk struct {
	seen               map[string]bool // "socket:[inode]"
	left               int             // how many descriptors and processes it may still look at
	sockets            int             // not AF_UNIX
	counted, uncounted int64           // bytes: on sockets whose buffers cgroups count, and on others
	errs               []error
}

// process looks at the sockets among a process's descriptors.
func (w *socketWalk) process(pid int) {
	if w.left--; w.left <= 0 {
		return
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	d, err := os.Open(dir)
	if err != nil {
		return // it has ended
	}
	defer d.Close()
	names, _ := d.Readdirnames(w.left)
	w.left -= len(names)
	pidfd := -1
	defer func() {
		if pidfd >= 0 {
			unix.Close(pidfd)
		}
	}()
	for _, name := range names {
		var link [64]byte
		n, err := unix.Readlinkat(int(d.Fd()), name, link[:])
		if err != nil || !strings.HasPrefix(string(link[:n]), "socket:") || w.seen[string(link[:n])] {
			continue
		}
		w.seen[string(link[:n])] = true
		if pidfd < 0 {
			if pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
				if !errors.Is(err, unix.ESRCH) {
					w.errs = append(w.errs, fmt.Errorf("open process %d: %w", pid, err))
				}
				return
			}
		}
		number, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		switch {
		case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EBADF):
			continue // closed meanwhile
		case err != nil:
			w.errs = append(w.errs, fmt.Errorf("descriptor %s in %s: %w", name, dir, err))
			return
		}
		w.socket(fd)
	}
}

// socket adds one, and closes it.
func (w *socketWalk) socket(fd int) {
	if l, err := unix.GetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER); err == nil && l.Onoff != 0 {
		defer func() { go unix.Close(fd) }() // should ours be the last, that may take as long as a tenant pleases
	} else {
		defer unix.Close(fd)
	}
	var info [9]uint32 // SK_MEMINFO_VARS of linux/sock_diag.h
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return // not a socket any more: the number was given to another file meanwhile
	}
	if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && domain == unix.AF_UNIX {
		return
	}
	w.sockets++
	const received, options = 0, 6
	proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	kind, err2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err == nil && err2 == nil && (proto == unix.IPPROTO_TCP && kind == unix.SOCK_STREAM || proto == unix.IPPROTO_UDP && kind == unix.SOCK_DGRAM) {
		w.counted += int64(info[received])
	} else {
		w.uncounted += int64(info[received])
	}
	w.uncounted += int64(info[options])
}
