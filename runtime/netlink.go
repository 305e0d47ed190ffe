package runtime

import (
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// What lies unread in a netlink socket is the kernel's memory, charged to nobody (net/netlink/af_netlink.c allocates without
// __GFP_ACCOUNT): only how many sockets there are bounds it. So init makes all netlink sockets of its environment itself
// (init/sockets.go); here is how it gets to be asked, and how many it may make.

const (
	// netlinkMemory is what the netlink sockets of an environment may hold together, in bytes, if its limit of memory is
	// not eight times as much.
	netlinkMemory = 64 << 20
	// However much or little that is to one socket, an environment can have this many and no more.
	fewestNetlinkSockets, mostNetlinkSockets = 8, 128
)

// netlinkSockets is how many netlink sockets an environment may have at a time.
func netlinkSockets(r *specs.LinuxResources) uint32 {
	memory := int64(netlinkMemory)
	if r != nil && r.Memory != nil && r.Memory.Limit != nil {
		memory = max(memory, *r.Memory.Limit/8)
	}
	return uint32(min(max(memory/netlinkSocketMemory(), fewestNetlinkSockets), mostNetlinkSockets))
}

// netlinkSocketMemory is the most that lies unread in one netlink socket: SO_RCVBUF takes twice net.core.rmem_max, 208 KiB by
// default and 4 MiB since Linux 6.18 (socket(7)), and the message that fills it may pass that, by 32 KiB for a dump.
func netlinkSocketMemory() int64 {
	limit := int64(math.MaxInt32 / 2) // the kernel's own bound, should the setting not be readable
	if b, err := os.ReadFile("/proc/sys/net/core/rmem_max"); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 32); err == nil {
			limit = n
		}
	}
	return 2*limit + 32<<10
}

// socketNumbers are those of socket(2), socketcallNumber that of i386's socketcall(2), whose first argument says what it is
// about. (The whole table would take longer to read than all else here.)
var socketNumbers = map[specs.Arch]uint32{specs.ArchX86_64: 41, specs.ArchX86: 359, specs.ArchAARCH64: 198, specs.ArchARM: 281}

const (
	socketcallNumber = 102
	socketcallSocket = 1 // SYS_SOCKET of linux/net.h
)

// socketFilter is the program that has init asked for every netlink socket, and for every socket that i386's socketcall(2) is
// to make; all other calls it lets pass. It stands beside the profile's, whose refusals come first (seccomp(2): the verdict
// that takes precedence over all others is taken).
var socketFilter = sync.OnceValues(func() ([]byte, error) {
	a := &assembler{}
	a.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, dataArch)
	arches := auditArches()
	for _, name := range slices.Sorted(maps.Keys(arches)) {
		ask, pass, next := a.label(), a.label(), a.label()
		other := pass
		if name == specs.ArchX86 {
			other = a.label()
		}
		a.jump(unix.BPF_JEQ, arches[name].id, 0, next)
		a.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, dataNumber)
		if name == specs.ArchX86_64 { // x32's numbers are these and a bit
			a.add(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, ^uint32(x32Bit))
		}
		a.jump(unix.BPF_JEQ, socketNumbers[name], 0, other)
		a.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, dataArgs) // an int to the kernel, so its lower half alone
		a.jump(unix.BPF_JEQ, unix.AF_NETLINK, ask, pass)
		if name == specs.ArchX86 {
			a.mark(other)
			a.jump(unix.BPF_JEQ, socketcallNumber, 0, pass)
			a.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, dataArgs)
			a.jump(unix.BPF_JEQ, socketcallSocket, ask, pass)
		}
		a.mark(ask)
		a.ret(unix.SECCOMP_RET_USER_NOTIF)
		a.mark(pass)
		a.ret(unix.SECCOMP_RET_ALLOW)
		a.mark(next)
	}
	a.ret(unix.SECCOMP_RET_ALLOW) // what the profile does with other machines' calls is its affair
	return a.assemble()
})

// superviseSockets has init make the sockets, where a profile is in force at all. Where SELinux labels processes it does not:
// they could not use a socket of init's.
func (p *plan) superviseSockets(s *specs.Spec) (err error) {
	if s.Linux.Seccomp == nil || s.Process.SelinuxLabel != "" {
		return nil
	}
	p.NetlinkSockets = netlinkSockets(s.Linux.Resources)
	p.SocketFilter, err = socketFilter()
	return err
}
