package runtime

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// machine runs a compiled profile as the kernel would.
type machine struct{ vm *bpf.VM }

func newMachine(t testing.TB, f *filter) *machine {
	t.Helper()
	var raw []bpf.RawInstruction
	for at := 0; at < len(f.program); at += 8 {
		b := f.program[at:]
		raw = append(raw, bpf.RawInstruction{Op: binary.NativeEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.NativeEndian.Uint32(b[4:])})
	}
	instructions, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the program holds an instruction that is none")
	}
	vm, err := bpf.NewVM(instructions)
	if err != nil {
		t.Fatal(err)
	}
	return &machine{vm}
}

// judge returns the verdict on a call. The VM reads big-endian words, as network packets have them.
func (m *machine) judge(t testing.TB, arch uint32, nr uint32, args ...uint64) verdict {
	t.Helper()
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[0:], nr)
	binary.BigEndian.PutUint32(data[4:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[16+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[20+8*i:], uint32(a>>32))
	}
	v, err := m.vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return verdict(v)
}

// expected is the profile read plainly: the first conditional rule that holds, else the first unconditional one, else the
// default.
func expected(s *specs.LinuxSeccomp, info *arch.Info, nr int, args [6]uint64) verdict {
	highest := -1
	for _, call := range s.Syscalls {
		for _, name := range call.Names {
			if n, ok := info.SyscallNames[name]; ok {
				highest = max(highest, n)
			}
		}
	}
	byDefault, _ := action(s.DefaultAction, s.DefaultErrnoRet)
	if nr > highest && s.DefaultAction == specs.ActErrno {
		return unix.SECCOMP_RET_ERRNO | verdict(unix.ENOSYS)
	}
	var fallback *verdict
	for _, call := range s.Syscalls {
		if !slices.Contains(call.Names, info.SyscallNumbers[nr]) || info.SyscallNumbers[nr] == "" {
			continue
		}
		v, _ := action(call.Action, call.ErrnoRet)
		if len(call.Args) == 0 {
			if fallback == nil {
				fallback = &v
			}
			if fallback != nil {
				break // later rules can't be reached
			}
		}
		sets, _ := conditionSets(call.Args)
		for _, set := range sets {
			if len(set) > 0 && !slices.ContainsFunc(set, func(c specs.LinuxSeccompArg) bool { return !holds(c, args[c.Index]) }) {
				return v
			}
		}
	}
	if fallback != nil {
		return *fallback
	}
	return byDefault
}

func holds(c specs.LinuxSeccompArg, a uint64) bool {
	switch c.Op {
	case specs.OpEqualTo:
		return a == c.Value
	case specs.OpNotEqual:
		return a != c.Value
	case specs.OpLessThan:
		return a < c.Value
	case specs.OpLessEqual:
		return a <= c.Value
	case specs.OpGreaterThan:
		return a > c.Value
	case specs.OpGreaterEqual:
		return a >= c.Value
	}
	return a&c.Value == c.ValueTwo
}

func TestDefaultProfileIsWhatItSays(t *testing.T) {
	if nativeName, _ := nativeArch(); nativeName != specs.ArchX86_64 {
		t.Skip("the numbers below are x86-64's")
	}
	for _, caps := range [][]string{DefaultCapabilities(), capNames[:], nil} {
		s, err := DefaultSeccomp(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
		if err != nil {
			t.Fatal(err)
		}
		f, err := compileSeccomp(s)
		if err != nil {
			t.Fatal(err)
		}
		m := newMachine(t, f)
		interesting := []uint64{0, 1, 2, 16, 38, 39, 40, 41, 0x20000, 0xffffffff, 1 << 32, 38 | 1<<32, 0x7e020000, 0x10000000, ^uint64(0)}
		for _, info := range []*arch.Info{arch.X86_64, arch.I386} {
			for nr := range 600 {
				for _, a := range interesting {
					args := [6]uint64{a, 7, 7, 7, 7, 7}
					got := m.judge(t, uint32(info.ID), uint32(nr), args[:]...)
					if want := expected(s, info, nr, args); got != want {
						t.Fatalf("%s %d %s(%#x): %#x, want %#x", info.Name, nr, info.SyscallNumbers[nr], a, got, want)
					}
				}
			}
		}
		enosys := verdict(unix.SECCOMP_RET_ERRNO | unix.ENOSYS)
		if got := m.judge(t, uint32(arch.X86_64.ID), x32Bit|1); got != enosys {
			t.Errorf("x32 write: %#x", got)
		}
		refusal := func(errno unix.Errno) verdict { return unix.SECCOMP_RET_ERRNO | verdict(errno) }
		packets := refusal(unix.EPERM)
		if slices.Contains(caps, "CAP_NET_RAW") {
			packets = unix.SECCOMP_RET_ALLOW
		}
		for _, c := range []struct {
			info *arch.Info
			name string
			arg  uint64
			want verdict
		}{
			{arch.X86_64, "socket", unix.AF_INET, unix.SECCOMP_RET_ALLOW},
			{arch.X86_64, "socket", unix.AF_VSOCK, refusal(unix.EAFNOSUPPORT)},
			{arch.X86_64, "socket", unix.AF_ALG, refusal(unix.EAFNOSUPPORT)},
			{arch.X86_64, "socket", unix.AF_TIPC, refusal(unix.EAFNOSUPPORT)},
			{arch.X86_64, "socket", unix.AF_PACKET, packets},
			{arch.I386, "socket", unix.AF_PACKET, packets},
			{arch.X86_64, "socket", unix.AF_NETLINK, unix.SECCOMP_RET_ALLOW},
			{arch.X86_64, "socketpair", unix.AF_UNIX, unix.SECCOMP_RET_ALLOW},
			{arch.X86_64, "socketpair", unix.AF_TIPC, refusal(unix.EAFNOSUPPORT)},
			{arch.X86_64, "socket", 1<<32 | unix.AF_VSOCK, refusal(unix.EINVAL)},
			{arch.X86_64, "socket", 1<<63 | unix.AF_INET, refusal(unix.EINVAL)},
			{arch.I386, "socket", unix.AF_INET, unix.SECCOMP_RET_ALLOW},
			{arch.I386, "socket", unix.AF_VSOCK, refusal(unix.EAFNOSUPPORT)},
			{arch.I386, "socketcall", 1, unix.SECCOMP_RET_USER_NOTIF}, // SYS_SOCKET
			{arch.I386, "socketcall", 3, unix.SECCOMP_RET_ALLOW},
			{arch.X86_64, "io_setup", 128, refusal(unix.ENOSYS)},
			{arch.I386, "io_setup", 128, refusal(unix.ENOSYS)},
		} {
			if c.info.SyscallNames[c.name] == 0 {
				t.Fatalf("%s has no %s", c.info.Name, c.name)
			}
			if got := m.judge(t, uint32(c.info.ID), uint32(c.info.SyscallNames[c.name]), c.arg); got != c.want {
				t.Errorf("%s %s(%#x): %#x, want %#x", c.info.Name, c.name, c.arg, got, c.want)
			}
		}
		if got := m.judge(t, uint32(arch.ARM.ID), 1); got != unix.SECCOMP_RET_KILL_PROCESS {
			t.Errorf("a foreign architecture: %#x", got)
		}
		if slices.Contains(caps, "CAP_SYS_ADMIN") {
			continue
		}
		if got := m.judge(t, uint32(arch.X86_64.ID), unix.SYS_CLONE3); got != enosys {
			t.Errorf("clone3: %#x", got)
		}
		if got := m.judge(t, uint32(arch.X86_64.ID), 9999); got != enosys {
			t.Errorf("an unknown call: %#x", got)
		}
		if got := m.judge(t, uint32(arch.X86_64.ID), unix.SYS_MOUNT); got != unix.SECCOMP_RET_ERRNO|verdict(unix.EPERM) {
			t.Errorf("mount: %#x", got)
		}
		if !f.onInit {
			t.Error("init could not live under its own default profile")
		}
		if n := len(f.program) / 8; n > 1100 {
			t.Errorf("the program is %d instructions", n)
		}
	}
}

// TestRandomProfiles compiles what nobody would write and compares it with a plain reading.
func TestRandomProfiles(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var names []string
	for _, name := range arch.X86_64.SyscallNumbers {
		names = append(names, name)
	}
	slices.Sort(names)
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual}
	actions := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActKillProcess, specs.ActLog, specs.ActTrap}
	values := []uint64{0, 1, 5, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 + 5, 1 << 63, ^uint64(0)}
	for range 300 {
		s := &specs.LinuxSeccomp{DefaultAction: actions[random.IntN(len(actions))], Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchMIPS}}
		for range random.IntN(25) {
			call := specs.LinuxSyscall{Action: actions[random.IntN(len(actions))]}
			for range 1 + random.IntN(8) {
				call.Names = append(call.Names, names[random.IntN(len(names))])
			}
			for range random.IntN(4) {
				call.Args = append(call.Args, specs.LinuxSeccompArg{Index: uint(random.IntN(6)), Op: ops[random.IntN(len(ops))],
					Value: values[random.IntN(len(values))], ValueTwo: values[random.IntN(len(values))]})
			}
			s.Syscalls = append(s.Syscalls, call)
		}
		f, err := compileSeccomp(s)
		if err != nil {
			t.Fatal(err)
		}
		m := newMachine(t, f)
		for range 2000 {
			var args [6]uint64
			for i := range args {
				args[i] = values[random.IntN(len(values))]
			}
			info := []*arch.Info{arch.X86_64, arch.I386}[random.IntN(2)]
			nr := random.IntN(500)
			if got, want := m.judge(t, uint32(info.ID), uint32(nr), args[:]...), expected(s, info, nr, args); got != want {
				t.Fatalf("%s(%#x): %#x, want %#x in %+v", info.SyscallNumbers[nr], args, got, want, s)
			}
		}
	}
}

func TestProfileErrors(t *testing.T) {
	for want, s := range map[string]*specs.LinuxSeccomp{
		"not supported": {DefaultAction: specs.ActNotify},
		"flag":          {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}},
		"listenerPath":  {DefaultAction: specs.ActAllow, ListenerPath: "/x"},
		"six":           {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}}},
		"operator":      {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: "SCMP_CMP_ISH"}}}}},
		"names no":      {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Action: specs.ActErrno}}},
	} {
		if _, err := compileSeccomp(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestFilterCache(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	s := defaultProfile()
	first, flags, onInit, err := newFilterCache(dir).compile(s)
	if err != nil {
		t.Fatal(err)
	}
	files, _ := os.ReadDir(dir)
	if len(files) != 1 {
		t.Fatalf("%d files", len(files))
	}
	path := filepath.Join(dir, files[0].Name())
	if f := readFilter(path); f == nil || !slices.Equal(f.program, first) || f.flags != flags || f.onInit != onInit {
		t.Error("what was kept is something else")
	}
	b, _ := os.ReadFile(path)
	for _, damage := range [][]byte{nil, b[:len(b)-1], append([]byte{1}, b[1:]...), make([]byte, len(b))} {
		if err := os.WriteFile(path, damage, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _, _, err := newFilterCache(dir).compile(s); err != nil || !slices.Equal(got, first) {
			t.Errorf("a damaged file was believed: %v", err)
		}
	}
	other := *s
	other.Syscalls = append(slices.Clone(s.Syscalls), specs.LinuxSyscall{Names: []string{"getcwd"}, Action: specs.ActErrno})
	if profileKey(&other) == profileKey(s) {
		t.Error("two profiles have one key")
	}
}

// TestOddProfiles run for real: one that init could not live under, and one without no_new_privs.
func TestOddProfiles(t *testing.T) {
	r := newRuntime(t)
	for name, change := range map[string]func(s *specs.Spec){
		"not for init": func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"setresuid", "mkdir", "accept4"}, Action: specs.ActErrno}}}
		},
		"with new privileges": func(s *specs.Spec) {
			s.Process.NoNewPrivileges = false
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActErrno}}}
		},
		"both": func(s *specs.Spec) {
			s.Process.NoNewPrivileges = false
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "sendmsg"}, Action: specs.ActErrno}}}
		},
	} {
		spec := testSpec()
		change(spec)
		c := start(t, r, CreateOptions{ID: "odd", Spec: spec})
		for _, user := range []string{"", "user"} {
			out, _, _ := run(t, c, SessionSpec{Args: []string{"cat", "/proc/self/status"}, User: user})
			if !strings.Contains(out, "Seccomp:\t2\n") || strings.Contains(out, "NoNewPrivs:\t1") != spec.Process.NoNewPrivileges {
				t.Errorf("%s: %s", name, out)
			}
			if _, stderr, st := run(t, c, SessionSpec{Args: []string{"mkdir", "/tmp/" + user + "x"}, User: user}); st.Code == 0 || !strings.Contains(stderr, "not permitted") {
				t.Errorf("%s: mkdir went through: %s", name, stderr)
			}
		}
		if err := c.Delete(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDeviceFilter(t *testing.T) {
	n := func(i int64) *int64 { return &i }
	r := newRuntime(t)
	g := &cgroup{hs: r.hierarchies, path: testParent + "/dev"}
	if r.hierarchies.unified == nil {
		t.Fatal("these tests need cgroup2 mounted")
	}
	makeGroup(t, g)
	for name, rules := range map[string][]specs.LinuxDeviceCgroup{
		"default":  testSpec().Linux.Resources.Devices,
		"all":      {{Allow: true, Access: "rwm"}},
		"partial":  {{Allow: false}, {Allow: true, Type: "c", Major: n(1), Access: "r"}, {Allow: false, Type: "b", Minor: n(3), Access: "wm"}},
		"nothing":  {{Allow: true}, {Allow: false, Type: "a"}},
		"fallback": {{Allow: true, Type: "c", Major: n(5)}},
	} {
		if err := attachDeviceFilter(g.dir(r.hierarchies.unified), rules); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, rule := range []specs.LinuxDeviceCgroup{{Type: "x"}, {Access: "q"}, {Type: "a", Major: n(1)}} {
		if _, err := deviceFilter([]specs.LinuxDeviceCgroup{rule}); err == nil {
			t.Errorf("%+v was taken", rule)
		}
	}
}

// TestDeviceFilterHolds opens devices from a process born into a cgroup with a filter.
func TestDeviceFilterHolds(t *testing.T) {
	n := func(i int64) *int64 { return &i }
	r := newRuntime(t)
	g := &cgroup{hs: r.hierarchies, path: testParent + "/devs"}
	makeGroup(t, g)
	dir := g.dir(r.hierarchies.unified)
	rules := []specs.LinuxDeviceCgroup{{Allow: false}, {Allow: true, Type: "c", Major: n(1), Minor: n(3), Access: "rw"}, {Allow: true, Type: "c", Major: n(1), Minor: n(5), Access: "r"}}
	if err := attachDeviceFilter(dir, rules); err != nil {
		t.Fatal(err)
	}
	out := inCgroup(t, dir, "for d in null zero full; do (: < /dev/$d) 2>/dev/null && echo r $d; (: > /dev/$d) 2>/dev/null && echo w $d; done; true")
	if out != "r null\nw null\nr zero\n" {
		t.Errorf("%q", out)
	}
}
