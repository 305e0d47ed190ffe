package runtime

import (
	_ "embed"
	"strconv"
	"strings"
	"sync"
)

// syscallText lists every system call by name with its number on x86_64, i386, aarch64 and arm, "-" where there is none.
// It is go-seccomp-bpf's table as text (TestSyscallTable): that package builds its maps at the start of every program that
// imports it, which a command that finds its filter compiled has no use for.
//
//go:embed syscalls.txt
var syscallText string

// machineArch is one processor architecture's numbers.
type machineArch struct {
	id      uint32 // AUDIT_ARCH_ of linux/audit.h
	column  int    // of syscallText
	numbers func() map[string]int
}

func newMachineArch(id uint32, column int) *machineArch {
	return &machineArch{id, column, sync.OnceValue(func() map[string]int {
		numbers := make(map[string]int, 512)
		for line := range strings.Lines(syscallText) {
			fields := strings.Fields(line)
			if n, err := strconv.Atoi(fields[column]); err == nil {
				numbers[fields[0]] = n
			}
		}
		return numbers
	})}
}

// Columns of syscallText.
var (
	archX86_64  = newMachineArch(0xc000003e, 1)
	archI386    = newMachineArch(0x40000003, 2)
	archAARCH64 = newMachineArch(0xc00000b7, 3)
	archARM     = newMachineArch(0x40000028, 4)
)
