package runtime

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
)

var updateSyscalls = flag.Bool("update-syscalls", false, "write syscalls.txt anew")

// The embedded table of system calls is go-seccomp-bpf's.
func TestSyscallTable(t *testing.T) {
	arches := []*arch.Info{arch.X86_64, arch.I386, arch.AARCH64, arch.ARM}
	names := map[string]bool{}
	for _, a := range arches {
		for name := range a.SyscallNames {
			names[name] = true
		}
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(names)) {
		b.WriteString(name)
		for _, a := range arches {
			if n, ok := a.SyscallNames[name]; ok {
				fmt.Fprintf(&b, " %d", n)
			} else {
				b.WriteString(" -")
			}
		}
		b.WriteByte('\n')
	}
	if *updateSyscalls {
		if err := os.WriteFile("syscalls.txt", []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if b.String() != syscallText {
		t.Error("syscalls.txt is not go-seccomp-bpf's table: go test -run TestSyscallTable ./runtime -update-syscalls")
	}
	for i, a := range []*machineArch{archX86_64, archI386, archAARCH64, archARM} {
		if a.id != uint32(arches[i].ID) {
			t.Errorf("%s: id %#x, want %#x", arches[i].Name, a.id, uint32(arches[i].ID))
		}
		if !maps.Equal(a.numbers(), arches[i].SyscallNames) {
			t.Errorf("%s: the table reads otherwise", arches[i].Name)
		}
	}
}
