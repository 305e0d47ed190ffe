package runtime

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"maps"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A seccomp profile becomes one classic BPF program (seccomp(2)): first the architecture is looked at, then, for each, a
// binary search over ranges of system call numbers with the same verdict leads to that verdict, or to the comparisons of
// arguments that decide. So a call costs about seven comparisons, where a list would cost hundreds.
//
// Calls above the highest number that the profile knows did not exist when it was written: they give ENOSYS rather than
// EPERM, so that programs fall back to what they did before.

// Offsets in struct seccomp_data.
const (
	dataNumber = 0
	dataArch   = 4
	dataArgs   = 16
)

// x32Bit marks calls of the x32 ABI, which share the architecture of x86-64. We refuse them: hardly a kernel offers them.
const x32Bit = 0x40000000

// verdict is a SECCOMP_RET_ value.
type verdict uint32

// rule is one entry of a profile for one system call. Without conditions it holds always.
type rule struct {
	conditions []specs.LinuxSeccompArg
	verdict    verdict
}

// auditArches maps the architectures we can compile for to their tables. Those of other machines are passed over: no
// process can be of them.
func auditArches() map[specs.Arch]*machineArch {
	switch goruntime.GOARCH {
	case "amd64":
		return map[specs.Arch]*machineArch{specs.ArchX86_64: archX86_64, specs.ArchX86: archI386}
	case "arm64":
		return map[specs.Arch]*machineArch{specs.ArchAARCH64: archAARCH64, specs.ArchARM: archARM}
	}
	return nil
}

func nativeArch() (specs.Arch, error) {
	switch goruntime.GOARCH {
	case "amd64":
		return specs.ArchX86_64, nil
	case "arm64":
		return specs.ArchAARCH64, nil
	}
	return "", fmt.Errorf("seccomp profiles can't be compiled for %s", goruntime.GOARCH)
}

// actInit is an action of ours: init makes the call (init/sockets.go). Where there is no init to ask, the kernel, which finds
// nobody that listens, gives ENOSYS.
const actInit specs.LinuxSeccompAction = "LEARNOS_ACT_INIT"

// action turns an OCI action into a verdict.
func action(a specs.LinuxSeccompAction, errno *uint) (verdict, error) {
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		n := uint(unix.EPERM)
		if errno != nil {
			n = *errno
		}
		if n > 4095 {
			return 0, fmt.Errorf("errno %d is out of range", n)
		}
		return unix.SECCOMP_RET_ERRNO | verdict(n), nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case actInit:
		return unix.SECCOMP_RET_USER_NOTIF, nil
	case specs.ActTrace:
		n := uint(unix.EPERM)
		if errno != nil {
			n = *errno
		}
		return unix.SECCOMP_RET_TRACE | verdict(n&0xffff), nil
	}
	return 0, fmt.Errorf("action %q is not supported", a)
}

var filterFlags = map[specs.LinuxSeccompFlag]uint32{
	specs.LinuxSeccompFlagLog:       unix.SECCOMP_FILTER_FLAG_LOG,
	specs.LinuxSeccompFlagSpecAllow: unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
	"SECCOMP_FILTER_FLAG_TSYNC":     0, // init sees to that
}

// compileSeccomp returns the program of a profile and the flags to install it with.
func compileSeccomp(s *specs.LinuxSeccomp) (*filter, error) {
	f := &filter{}
	for _, flag := range s.Flags {
		bits, ok := filterFlags[flag]
		if !ok {
			return nil, fmt.Errorf("seccomp flag %q is not supported", flag)
		}
		f.flags |= bits
	}
	if s.ListenerPath != "" {
		return nil, errors.New("seccomp listenerPath is not supported")
	}
	byDefault, err := action(s.DefaultAction, s.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	native, err := nativeArch()
	if err != nil {
		return nil, err
	}
	tables := auditArches()
	arches := []specs.Arch{native}
	for _, a := range s.Architectures {
		if tables[a] != nil && !slices.Contains(arches, a) {
			arches = append(arches, a)
		}
	}
	a := &assembler{}
	a.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, dataArch)
	for _, name := range arches {
		rules, highest, err := rulesOf(s, tables[name])
		if err != nil {
			return nil, fmt.Errorf("seccomp: %w", err)
		}
		if name == native {
			f.onInit = initCanLive(rules, byDefault, tables[name])
		}
		a.section(tables[name], name, rules, highest, byDefault)
	}
	// A process of any other architecture has no business here.
	a.add(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_KILL_PROCESS)
	if f.program, err = a.assemble(); err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	return f, nil
}

// rulesOf collects a profile's rules by system call number. highest is the greatest number it names, -1 for none.
func rulesOf(s *specs.LinuxSeccomp, info *machineArch) (rules map[int][]rule, highest int, err error) {
	rules, highest = map[int][]rule{}, -1
	numbers := info.numbers()
	for _, call := range s.Syscalls {
		if len(call.Names) == 0 {
			return nil, 0, errors.New("an entry names no system call")
		}
		v, err := action(call.Action, call.ErrnoRet)
		if err != nil {
			return nil, 0, err
		}
		sets, err := conditionSets(call.Args)
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", call.Names[0], err)
		}
		for _, name := range call.Names {
			n, ok := numbers[name]
			if !ok {
				continue // not of this architecture, or newer than our table, and then refused
			}
			highest = max(highest, n)
			for _, conditions := range sets {
				rules[n] = append(rules[n], rule{conditions, v})
			}
		}
	}
	return rules, highest, nil
}

// conditionSets splits an entry's conditions into what must hold together. As libseccomp has it, conditions on different
// arguments must all hold, while two on the same argument are alternatives.
func conditionSets(args []specs.LinuxSeccompArg) ([][]specs.LinuxSeccompArg, error) {
	seen := map[uint]bool{}
	twice := false
	for _, arg := range args {
		if arg.Index > 5 {
			return nil, fmt.Errorf("argument %d: a system call has six, from 0", arg.Index)
		}
		if !slices.Contains([]specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual,
			specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual}, arg.Op) {
			return nil, fmt.Errorf("operator %q is unknown", arg.Op)
		}
		twice = twice || seen[arg.Index]
		seen[arg.Index] = true
	}
	if !twice {
		return [][]specs.LinuxSeccompArg{args}, nil
	}
	var sets [][]specs.LinuxSeccompArg
	for i := range args {
		sets = append(sets, args[i:i+1])
	}
	return sets, nil
}

// initCalls are what init and Go's runtime need after setting up. A profile that stands in the way of one of them is
// installed by each session for itself.
var initCalls = []string{
	"accept4", "bind", "capset", "chdir", "clock_gettime", "clone", "close", "close_range", "dup3", "epoll_create1", "epoll_ctl",
	"epoll_pwait", "execve", "exit", "exit_group", "fchdir", "fchown", "fcntl", "fstat", "fstatfs", "ftruncate", "futex", "getcwd",
	"getpid", "getrandom", "getsockopt", "gettid", "ioctl", "kill", "madvise", "mkdirat", "mmap", "mprotect", "munmap",
	"nanosleep", "newfstatat", "openat", "openat2", "pipe2", "ppoll", "prctl", "pread64", "prlimit64", "pwrite64", "read", "recvfrom",
	"recvmsg", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_getaffinity", "sched_yield", "seccomp", "sendmsg", "setfsgid", "setfsuid", "setgroups",
	"setresgid", "setresuid", "setsid", "sigaltstack", "tgkill", "umask", "wait4", "write",
}

func initCanLive(rules map[int][]rule, byDefault verdict, info *machineArch) bool {
	numbers := info.numbers()
	for _, name := range initCalls {
		n, ok := numbers[name]
		if !ok {
			continue
		}
		v := byDefault
		for _, r := range rules[n] {
			// clone is let through without namespace flags, which is all that init needs of it.
			if len(r.conditions) == 0 || name == "clone" {
				v = r.verdict
				break
			}
		}
		if v != unix.SECCOMP_RET_ALLOW {
			return false
		}
	}
	return true
}

// assembler builds a program with symbolic jumps.
type assembler struct {
	code []instruction
	next int // label
}

// instruction is a sock_filter whose jumps are labels; an instruction with a label and no code is a mark.
type instruction struct {
	code    uint16
	k       uint32
	yes, no int // labels; 0 is the next instruction
	mark    int
}

func (a *assembler) label() int     { a.next++; return a.next }
func (a *assembler) mark(label int) { a.code = append(a.code, instruction{mark: label}) }
func (a *assembler) add(code uint16, k uint32) {
	a.code = append(a.code, instruction{code: code, k: k})
}
func (a *assembler) ret(v verdict) { a.add(unix.BPF_RET|unix.BPF_K, uint32(v)) }
func (a *assembler) jump(op uint16, k uint32, yes, no int) {
	a.code = append(a.code, instruction{code: unix.BPF_JMP | op | unix.BPF_K, k: k, yes: yes, no: no})
}

// assemble resolves the labels. A conditional jump reaches 255 instructions; a side that must go further goes by way of an
// unconditional jump, which reaches anywhere, put right behind. All jumps lead forwards, as the kernel demands.
func (a *assembler) assemble() ([]byte, error) {
	type reach struct{ yes, no bool } // which sides need the detour
	far := map[int]reach{}
	for {
		at := map[int]int{} // label → position
		n := 0
		for i, in := range a.code {
			if in.mark > 0 {
				at[in.mark] = n
				continue
			}
			n++
			if far[i].yes {
				n++
			}
			if far[i].no {
				n++
			}
		}
		if n > unix.BPF_MAXINSNS {
			return nil, fmt.Errorf("the profile compiles to %d instructions, more than the kernel takes (%d)", n, unix.BPF_MAXINSNS)
		}
		out := make([]unix.SockFilter, 0, n)
		again := false
		for i, in := range a.code {
			if in.mark > 0 {
				continue
			}
			if in.code&7 != unix.BPF_JMP {
				out = append(out, unix.SockFilter{Code: in.code, K: in.k})
				continue
			}
			f, here := far[i], len(out)
			next := here + 1 // where the instructions of this jump end
			if f.yes {
				next++
			}
			if f.no {
				next++
			}
			target := func(label int) int {
				if label == 0 {
					return next
				}
				return at[label]
			}
			yes, no := target(in.yes)-here-1, target(in.no)-here-1
			if yes > 255 && !f.yes || no > 255 && !f.no {
				far[i], again = reach{f.yes || yes > 255, f.no || no > 255}, true
				f = reach{} // the numbers of this round don't matter any more
				yes, no = 0, 0
			}
			var detours []unix.SockFilter
			if f.yes {
				detours = append(detours, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(target(in.yes) - here - 2)})
				yes = 0
			}
			if f.no {
				no = len(detours)
				detours = append(detours, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(target(in.no) - here - 2 - no)})
			}
			out = append(out, unix.SockFilter{Code: in.code, Jt: uint8(yes), Jf: uint8(no), K: in.k})
			out = append(out, detours...)
		}
		if again {
			continue
		}
		var b bytes.Buffer
		binary.Write(&b, binary.NativeEndian, out)
		return b.Bytes(), nil
	}
}

// section judges the calls of one architecture.
func (a *assembler) section(info *machineArch, name specs.Arch, rules map[int][]rule, highest int, byDefault verdict) {
	here, end := a.label(), a.label()
	a.jump(unix.BPF_JEQ, info.id, here, end)
	a.mark(here)
	a.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, dataNumber)
	unknown := byDefault
	if byDefault&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO {
		unknown = unix.SECCOMP_RET_ERRNO | verdict(unix.ENOSYS)
	}
	// Ranges of numbers, each with one verdict or one chain of conditions.
	type span struct {
		from    int
		verdict verdict
		rules   []rule // conditional ones; verdict is what holds when none does
	}
	spans := []span{{from: 0, verdict: byDefault}}
	push := func(s span) {
		last := &spans[len(spans)-1]
		switch {
		case last.from == s.from:
			*last = s
		case len(last.rules) == 0 && len(s.rules) == 0 && last.verdict == s.verdict:
		default:
			spans = append(spans, s)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(rules)) {
		s := span{from: n, verdict: byDefault}
		for _, r := range rules[n] {
			if len(r.conditions) == 0 {
				s.verdict = r.verdict
				break
			}
			s.rules = append(s.rules, r)
		}
		push(s)
		push(span{from: n + 1, verdict: byDefault})
	}
	push(span{from: highest + 1, verdict: unknown})
	if name == specs.ArchX86_64 {
		push(span{from: x32Bit, verdict: unix.SECCOMP_RET_ERRNO | verdict(unix.ENOSYS)})
	}
	// Verdicts are shared by the jumps around them: a return for each piece of the tree, near enough for short jumps.
	const piece = 100
	var returns map[verdict]int
	flush := func() {
		for _, v := range slices.Sorted(maps.Keys(returns)) {
			a.mark(returns[v])
			a.ret(v)
		}
		returns = map[verdict]int{}
	}
	verdictLabel := func(v verdict) int {
		if returns[v] == 0 {
			returns[v] = a.label()
		}
		return returns[v]
	}
	var tree func(spans []span)
	tree = func(spans []span) {
		if len(spans) == 1 {
			for _, r := range spans[0].rules {
				next := a.label()
				for _, c := range r.conditions {
					a.condition(c, next)
				}
				a.ret(r.verdict)
				a.mark(next)
			}
			a.ret(spans[0].verdict)
			return
		}
		middle := len(spans) / 2
		lower, upper := spans[:middle], spans[middle:]
		leaf := func(s []span) bool { return len(s) == 1 && len(s[0].rules) == 0 }
		lowerLabel, upperLabel := 0, 0 // 0: right behind
		if leaf(lower) {
			lowerLabel = verdictLabel(lower[0].verdict)
		}
		switch {
		case leaf(upper):
			upperLabel = verdictLabel(upper[0].verdict)
		case lowerLabel == 0:
			upperLabel = a.label()
		}
		a.jump(unix.BPF_JGE, uint32(upper[0].from), upperLabel, lowerLabel)
		if !leaf(lower) {
			tree(lower)
			if len(spans) > piece && len(lower) <= piece {
				flush()
			}
		}
		if !leaf(upper) {
			if !leaf(lower) {
				a.mark(upperLabel)
			}
			tree(upper)
			if len(spans) > piece && len(upper) <= piece {
				flush()
			}
		}
	}
	flush()
	tree(spans)
	flush()
	a.mark(end)
}

// condition goes on when it holds and to label otherwise. Arguments are 64 bits wide, the machine's registers 32.
func (a *assembler) condition(c specs.LinuxSeccompArg, otherwise int) {
	low, high := uint32(dataArgs+8*c.Index), uint32(dataArgs+8*c.Index+4) // little-endian, as all we compile for
	load := func(offset uint32) { a.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset) }
	value := c.Value
	holds := a.label()
	switch c.Op {
	case specs.OpEqualTo, specs.OpMaskedEqual, specs.OpNotEqual:
		yes, no := holds, otherwise
		if c.Op == specs.OpNotEqual {
			yes, no = otherwise, holds
		}
		mask := ^uint64(0)
		if c.Op == specs.OpMaskedEqual {
			mask, value = c.Value, c.ValueTwo
		}
		load(high)
		if c.Op == specs.OpMaskedEqual {
			a.add(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, uint32(mask>>32))
		}
		a.jump(unix.BPF_JEQ, uint32(value>>32), 0, no)
		load(low)
		if c.Op == specs.OpMaskedEqual {
			a.add(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, uint32(mask))
		}
		a.jump(unix.BPF_JEQ, uint32(value), yes, no)
	default:
		// x > v and x >= v; the other two are their negations.
		yes, no := holds, otherwise
		if c.Op == specs.OpLessThan || c.Op == specs.OpLessEqual {
			yes, no = otherwise, holds
		}
		op := uint16(unix.BPF_JGT)
		if c.Op == specs.OpGreaterEqual || c.Op == specs.OpLessThan {
			op = unix.BPF_JGE
		}
		load(high)
		a.jump(unix.BPF_JGT, uint32(value>>32), yes, 0)
		a.jump(unix.BPF_JEQ, uint32(value>>32), 0, no)
		load(low)
		a.jump(op, uint32(value), yes, no)
	}
	a.mark(holds)
}

// filter is a compiled profile.
type filter struct {
	program []byte
	flags   uint32
	onInit  bool // init can live under it
}

// filterDir holds compiled profiles below the state directory. No container's id starts with a dot.
const filterDir = ".seccomp"

// filterCache keeps compiled profiles: in memory for a daemon, on disk for a command that lives for one container.
type filterCache struct {
	dir string
	mu  sync.Mutex
	all map[[sha256.Size]byte]*filter
}

func newFilterCache(dir string) *filterCache {
	return &filterCache{dir: dir, all: map[[sha256.Size]byte]*filter{}}
}

// filterVersion is part of the key: raise it when the compiler changes.
const filterVersion = "5"

func (c *filterCache) compile(s *specs.LinuxSeccomp) (program []byte, flags uint32, onInit bool, err error) {
	if s == nil {
		return nil, 0, false, nil
	}
	key := profileKey(s)
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.all[key]
	if f == nil {
		path := filepath.Join(c.dir, fmt.Sprintf("%x", key))
		if f = readFilter(path); f == nil {
			if f, err = compileSeccomp(s); err != nil {
				return nil, 0, false, err
			}
			writeFilter(path, f) // a full disk only costs time
		}
		c.all[key] = f
	}
	return f.program, f.flags, f.onInit, nil
}

// profileKey is a hash of everything a profile says.
func profileKey(s *specs.LinuxSeccomp) (key [sha256.Size]byte) {
	h := sha256.New()
	text := func(list ...string) {
		for _, t := range list {
			h.Write([]byte(t))
			h.Write([]byte{0})
		}
	}
	text(filterVersion, goruntime.GOARCH, string(s.DefaultAction), s.ListenerPath, errnoText(s.DefaultErrnoRet))
	for _, a := range s.Architectures {
		text(string(a))
	}
	text("")
	for _, f := range s.Flags {
		text(string(f))
	}
	text("")
	for _, call := range s.Syscalls {
		text(call.Names...)
		text("", string(call.Action), errnoText(call.ErrnoRet))
		for _, arg := range call.Args {
			hashNumbers(h, uint64(arg.Index), arg.Value, arg.ValueTwo)
			text(string(arg.Op))
		}
		text("")
	}
	h.Sum(key[:0])
	return key
}

func hashNumbers(h hash.Hash, numbers ...uint64) {
	for _, n := range numbers {
		h.Write(binary.LittleEndian.AppendUint64(nil, n))
	}
}

func errnoText(n *uint) string {
	if n == nil {
		return "-"
	}
	return strconv.FormatUint(uint64(*n), 10)
}

// A compiled profile on disk: flags, onInit, the program, and a hash of these, so that a torn file is not taken for one.
func writeFilter(path string, f *filter) {
	b := binary.LittleEndian.AppendUint32(nil, f.flags)
	onInit := byte(0)
	if f.onInit {
		onInit = 1
	}
	b = append(append(b, onInit), f.program...)
	sum := sha256.Sum256(b)
	if os.MkdirAll(filepath.Dir(path), 0o700) != nil {
		return
	}
	temp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if os.WriteFile(temp, append(b, sum[:]...), 0o600) == nil {
		os.Rename(temp, path)
	}
}

func readFilter(path string) *filter {
	b, err := readFile(path)
	if err != nil || len(b) < 5+8+sha256.Size {
		return nil
	}
	b, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if got := sha256.Sum256(b); !bytes.Equal(got[:], sum) || (len(b)-5)%8 != 0 {
		return nil
	}
	return &filter{flags: binary.LittleEndian.Uint32(b), onInit: b[4] == 1, program: b[5:]}
}
