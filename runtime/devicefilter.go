package runtime

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// On cgroup v2 device rules are a small eBPF program of type BPF_PROG_TYPE_CGROUP_DEVICE: it is given a
// struct bpf_cgroup_dev_ctx {access_type, major, minor} and returns 1 to allow. Ours is a chain of comparisons, so it is
// assembled here, instruction by instruction, rather than by a library several times the size of this package.

// ebpf is struct bpf_insn (uapi/linux/bpf.h).
type ebpf struct {
	code uint8
	regs uint8 // destination low nibble, source high nibble
	off  int16
	imm  int32
}

const (
	ebpfLoad32  = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	ebpfMov     = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	ebpfMovReg  = unix.BPF_ALU | unix.BPF_MOV | unix.BPF_X
	ebpfAnd     = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	ebpfShift   = unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K
	ebpfJumpNot = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K
	ebpfExit    = unix.BPF_JMP | unix.BPF_EXIT
)

// deviceFilter compiles rules, of which the last that fits a request counts; one that nothing fits is refused.
func deviceFilter(rules []specs.LinuxDeviceCgroup) ([]ebpf, error) {
	// r2 type, r3 access, r4 major, r5 minor
	prog := []ebpf{
		{code: ebpfLoad32, regs: 1<<4 | 2, off: 0},
		{code: ebpfMovReg, regs: 2<<4 | 3},
		{code: ebpfAnd, regs: 2, imm: 0xffff},
		{code: ebpfShift, regs: 3, imm: 16},
		{code: ebpfLoad32, regs: 1<<4 | 4, off: 4},
		{code: ebpfLoad32, regs: 1<<4 | 5, off: 8},
	}
	for i := len(rules) - 1; i >= 0; i-- {
		rule := rules[i]
		if _, err := deviceRule(rule); err != nil {
			return nil, err
		}
		var body []ebpf
		switch rule.Type {
		case "c", "u":
			body = append(body, ebpf{code: ebpfJumpNot, regs: 2, imm: unix.BPF_DEVCG_DEV_CHAR})
		case "b":
			body = append(body, ebpf{code: ebpfJumpNot, regs: 2, imm: unix.BPF_DEVCG_DEV_BLOCK})
		}
		access := int32(0)
		for _, c := range rule.Access {
			access |= map[rune]int32{'r': unix.BPF_DEVCG_ACC_READ, 'w': unix.BPF_DEVCG_ACC_WRITE, 'm': unix.BPF_DEVCG_ACC_MKNOD}[c]
		}
		all := int32(unix.BPF_DEVCG_ACC_READ | unix.BPF_DEVCG_ACC_WRITE | unix.BPF_DEVCG_ACC_MKNOD)
		switch {
		case access == 0 || access == all:
		case rule.Allow:
			// Allowed only if nothing is asked for beyond what the rule gives.
			body = append(body, ebpf{code: ebpfMovReg, regs: 3<<4 | 1}, ebpf{code: ebpfAnd, regs: 1, imm: all &^ access},
				ebpf{code: ebpfJumpNot, regs: 1, imm: 0})
		default:
			// Denied if anything is asked for that the rule takes: skip when the intersection is empty.
			body = append(body, ebpf{code: ebpfMovReg, regs: 3<<4 | 1}, ebpf{code: ebpfAnd, regs: 1, imm: access},
				ebpf{code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, regs: 1, imm: 0})
		}
		if rule.Major != nil && *rule.Major >= 0 {
			body = append(body, ebpf{code: ebpfJumpNot, regs: 4, imm: int32(*rule.Major)})
		}
		if rule.Minor != nil && *rule.Minor >= 0 {
			body = append(body, ebpf{code: ebpfJumpNot, regs: 5, imm: int32(*rule.Minor)})
		}
		verdict := int32(0)
		if rule.Allow {
			verdict = 1
		}
		unconditional := len(body) == 0
		body = append(body, ebpf{code: ebpfMov, regs: 0, imm: verdict}, ebpf{code: ebpfExit})
		for at := range body {
			if body[at].code&7 == unix.BPF_JMP && body[at].code != ebpfExit {
				body[at].off = int16(len(body) - at - 1)
			}
		}
		prog = append(prog, body...)
		if unconditional {
			return prog, nil // the verifier refuses code that can't be reached
		}
	}
	return append(prog, ebpf{code: ebpfMov, regs: 0, imm: 0}, ebpf{code: ebpfExit}), nil
}

// attachDeviceFilter loads the rules and ties them to a cgroup2 directory, for as long as that exists.
func attachDeviceFilter(dir string, rules []specs.LinuxDeviceCgroup) error {
	prog, err := deviceFilter(rules)
	if err != nil {
		return err
	}
	license := []byte("Apache\x00")
	var pin runtime.Pinner // their addresses go into the kernel's struct as mere numbers
	defer pin.Unpin()
	pin.Pin(&prog[0])
	pin.Pin(&license[0])
	load := struct {
		progType, count      uint32
		insns, license       uint64
		logLevel, logSize    uint32
		logBuf               uint64
		kernVersion, flags   uint32
		name                 [16]byte
		ifindex, expectedTyp uint32
	}{
		progType: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(prog)),
		insns: uint64(uintptr(unsafe.Pointer(&prog[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
		expectedTyp: unix.BPF_CGROUP_DEVICE,
	}
	copy(load.name[:], "learnos_dev")
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&load)), unsafe.Sizeof(load))
	for try := 0; errno == unix.EAGAIN && try < 100; try++ { // a signal came while the kernel read it (kernel/bpf/verifier.c)
		fd, _, errno = unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&load)), unsafe.Sizeof(load))
	}
	if errno != 0 {
		return fmt.Errorf("load the device filter: %w", errno)
	}
	defer unix.Close(int(fd))
	cg, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer cg.Close()
	attach := struct{ target, prog, kind, flags, replace uint32 }{
		uint32(cg.Fd()), uint32(fd), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI, 0,
	}
	_, _, errno = unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_ATTACH, uintptr(unsafe.Pointer(&attach)), unsafe.Sizeof(attach))
	if errno != 0 {
		return fmt.Errorf("attach the device filter to %s: %w", dir, errno)
	}
	return nil
}
