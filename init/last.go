//lint:file-ignore U1000 called from assembly (entry_amd64.s, entry_arm64.s), which staticcheck does not read

package main

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What follows is init's shortest life: a process for which all has been done between fork and exec needs an image that is
// nobody's secret between the runtime's own and the user's (CVE-2019-5736), and nothing of Go's in it. entry, where the kernel
// begins (see the Makefile), calls last before Go's runtime has come up when we are executed as "last":
//
//	argv: "last", the descriptor to report to, the flags of seccomp(2) or "" for no filter, the paths to try, "", argv
//
// A filter is the one message that waits on that descriptor. Without Go's runtime nothing may allocate, grow the stack or
// write a pointer.

// entry is in assembly.
func entry()

// lastAddress lets entry find last as compiled Go calls it.
var lastAddress = last

// filter is room for the longest program that the kernel takes, 4096 instructions of 8 bytes.
var filter [4096 * 8]byte

// last installs the filter and executes the command. It reports an errno, when that fails, and does not return.
//
//go:nosplit
//go:norace
//go:nocheckptr
func last(stack *[1 << 20]*byte) {
	argv := unsafe.Pointer(&stack[1])
	argc := *(*uintptr)(unsafe.Pointer(stack))
	envp := uintptr(unsafe.Pointer(&stack[argc+2]))
	fd := number(stack[2])
	syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0) // as we are, by an image that can't be read
	// The report's descriptor came through one exec, and must not through the next.
	_, _, errno := syscall.RawSyscall(unix.SYS_FCNTL, fd, unix.F_SETFD, unix.FD_CLOEXEC)
	if errno == 0 && *stack[3] != 0 {
		errno = install(fd, number(stack[3]))
	}
	if errno == 0 {
		first := uintptr(4)
		end := first
		for *stack[end] != 0 {
			end++
		}
		args := uintptr(argv) + end*unsafe.Sizeof(uintptr(0)) // stack[1] is argv[0]: what follows stack[end]
		errno = unix.ENOENT
		for i := first; i < end; i++ {
			_, _, e := syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(stack[i])), args, envp)
			if e != unix.ENOENT && e != unix.ENOTDIR {
				errno = e
				if e != unix.EACCES {
					break
				}
			}
		}
	}
	report := int32(errno)
	syscall.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&report)), unsafe.Sizeof(report), unix.MSG_NOSIGNAL, 0, 0)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
	}
}

//go:nosplit
//go:norace
func install(fd, flags uintptr) syscall.Errno {
	n, _, errno := syscall.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&filter[0])), unsafe.Sizeof(filter))
	if errno != 0 {
		return errno
	}
	if n == 0 || n%8 != 0 {
		return unix.EINVAL
	}
	var prog struct {
		n    uint16
		addr uintptr
	}
	prog.n, prog.addr = uint16(n/8), uintptr(unsafe.Pointer(&filter[0]))
	_, _, errno = syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	return errno
}

// number reads a decimal number.
//
//go:nosplit
//go:norace
func number(s *byte) (n uintptr) {
	for at := unsafe.Pointer(s); *(*byte)(at) != 0; at = unsafe.Add(at, 1) {
		n = n*10 + uintptr(*(*byte)(at)-'0')
	}
	return n
}
