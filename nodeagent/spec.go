package nodeagent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/rootfs"
	"github.com/learnos/learnos/runtime"
)

// defaultPath is what an image that sets no PATH gets.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// cpuPeriod is the span, in microseconds, over which a cpu quota is measured: the kernel's default.
const cpuPeriod = 100_000

// oomScoreAdj puts environments ahead of everything of the host's in line for the OOM killer (proc(5), -1000 to 1000).
const oomScoreAdj = 500

// buildSpec makes the OCI configuration of an environment out of its record.
func buildSpec(r *Record) (*specs.Spec, error) {
	s := runtime.DefaultSpec()
	s.Hostname = r.Hostname
	s.Root = &specs.Root{Path: "/", Readonly: r.ReadOnly}
	l := s.Linux
	if r.FirstID == 0 {
		l.Namespaces = without(l.Namespaces, specs.UserNamespace)
		l.UIDMappings, l.GIDMappings = nil, nil
		l.Sysctl["net.ipv4.ping_group_range"] = "0 2147483647" // every group there is
	} else {
		l.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: uint32(r.FirstID), Size: idRangeSize}}
		l.GIDMappings = slices.Clone(l.UIDMappings)
	}
	if r.Net == NetHost {
		l.Namespaces = without(l.Namespaces, specs.NetworkNamespace)
		// Network sysctls belong to the network namespace, and this one is the host's.
		for key := range l.Sysctl {
			if strings.HasPrefix(key, "net.") {
				delete(l.Sysctl, key)
			}
		}
		// A sysfs can be mounted only by the owner of the network namespace, which the environment's user
		// namespace is not; start hands the host's in, read-only.
		if r.FirstID != 0 {
			s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return m.Type == "sysfs" })
		}
	}
	if err := r.capabilities(s); err != nil {
		return nil, err
	}
	setResources(l, r.Limits)
	// Some of the kernel's memory is charged to nobody. When the machine runs out of it, environments go before the node.
	before := oomScoreAdj
	s.Process.OOMScoreAdj = &before
	return s, nil
}

func without(list []specs.LinuxNamespace, kind specs.LinuxNamespaceType) []specs.LinuxNamespace {
	return slices.DeleteFunc(list, func(ns specs.LinuxNamespace) bool { return ns.Type == kind })
}

// setResources adds the rations to what the default configuration limits already.
func setResources(l *specs.Linux, lim Limits) {
	if l.Resources == nil {
		l.Resources = &specs.LinuxResources{}
	}
	if lim.MemoryBytes > 0 {
		// Memory and swap together may not pass the limit either: swap is the host's.
		l.Resources.Memory = &specs.LinuxMemory{Limit: &lim.MemoryBytes, Swap: &lim.MemoryBytes}
	}
	if lim.MemoryHighBytes > 0 {
		l.Resources.Unified = map[string]string{"memory.high": strconv.FormatInt(lim.MemoryHighBytes, 10)}
	}
	if lim.CPUs > 0 || lim.Cpuset != "" {
		l.Resources.CPU = &specs.LinuxCPU{Cpus: lim.Cpuset}
	}
	if lim.CPUs > 0 {
		period, quota := uint64(cpuPeriod), int64(lim.CPUs*cpuPeriod)
		shares := max(2, uint64(lim.CPUs*1024))
		l.Resources.CPU.Period, l.Resources.CPU.Quota, l.Resources.CPU.Shares = &period, &quota, &shares
	}
	// What the operator has reserved is not for environments: nobody can ask for it. Where it can't be kept from them doctor
	// says so.
	if sizes, unlimited := runtime.HugePages(); unlimited == nil {
		for _, size := range sizes {
			l.Resources.HugepageLimits = append(l.Resources.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size})
		}
	}
	if lim.PIDs > 0 {
		l.Resources.Pids = &specs.LinuxPids{Limit: &lim.PIDs}
	}
}

// commandOf joins what the image runs and what the person asked for, as people know it from docker: arguments
// replace the image's Cmd and keep its Entrypoint; an entrypoint given replaces both.
func commandOf(cfg rootfs.ImageConfig, entrypoint *string, args []string) []string {
	if entrypoint != nil {
		if *entrypoint == "" {
			return args
		}
		return append([]string{*entrypoint}, args...)
	}
	if len(args) == 0 {
		args = cfg.Cmd
	}
	return append(slices.Clone(cfg.Entrypoint), args...)
}

// mergeEnv joins lists of KEY=VALUE: later ones win, key by key, in the first one's place.
func mergeEnv(lists ...[]string) []string {
	var env []string
	for _, list := range lists {
		for _, kv := range list {
			key, _, _ := strings.Cut(kv, "=")
			at := slices.IndexFunc(env, func(have string) bool { return strings.HasPrefix(have, key+"=") })
			if at >= 0 {
				env[at] = kv
			} else {
				env = append(env, kv)
			}
		}
	}
	return env
}

// account is a line of passwd(5).
type account struct {
	name, home, shell string
}

// lookupAccount finds the home directory and shell of user ("", "name", "uid", either with ":group") in the root
// file system that root is, without following anything out of it. What the root says there is a tenant's word:
// the answer is used for nothing but that tenant's own variables.
func lookupAccount(root *os.File, user string) account {
	user, _, _ = strings.Cut(user, ":")
	if user == "" {
		user = "0"
	}
	found := account{name: user, home: "/"}
	if user == "0" || user == "root" {
		found = account{name: "root", home: "/root"}
	}
	body, err := readInside(root, "etc/passwd", 1<<20)
	if err != nil {
		return found
	}
	for line := range strings.Lines(string(body)) {
		f := strings.Split(strings.TrimRight(line, "\n"), ":")
		if len(f) < 7 || (f[0] != user && f[2] != user) {
			continue
		}
		if _, err := strconv.ParseUint(f[2], 10, 32); err != nil || strings.ContainsRune(line, 0) {
			continue
		}
		found.name = f[0]
		if path.IsAbs(f[5]) {
			found.home = f[5]
		}
		if path.IsAbs(f[6]) {
			found.shell = f[6]
		}
		return found
	}
	return found
}

// readInside reads at most limit bytes of a regular file under root, which a tenant may be changing at this moment.
//
// The path is resolved with root as "/", and not into another mount: what the tenant's own procfs and /dev hold is
// the kernel's, and this process would open it with the powers of the host's root. Nothing is opened before it is
// known to be a file: a device acts when it is opened, a FIFO waits. (What -v put there isn't read for that reason.)
func readInside(root *os.File, name string, limit int64) ([]byte, error) {
	at, mode, err := findInside(root, name, unix.RESOLVE_NO_XDEV)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	if mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New(name + " inside is not a regular file")
	}
	// Opened by descriptor, so it is the file that was looked at. A lease that the tenant holds on it must not stop us.
	f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(at.Fd())), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s inside: %w", name, err)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// existsInside tells whether name under root is a regular file somebody may execute.
func existsInside(root *os.File, name string) bool {
	at, mode, err := findInside(root, name, 0)
	if err != nil {
		return false
	}
	_ = at.Close()
	return mode&unix.S_IFMT == unix.S_IFREG && mode&0o111 != 0
}

// directoryInside tells whether name under root is a directory.
func directoryInside(root *os.File, name string) bool {
	at, mode, err := findInside(root, name, 0)
	if err != nil {
		return false
	}
	_ = at.Close()
	return mode&unix.S_IFMT == unix.S_IFDIR
}

// findInside resolves name with root as "/" and tells what is there (st_mode) without opening it: O_PATH. resolve is
// added to RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS (openat2(2)).
func findInside(root *os.File, name string, resolve uint64) (*os.File, uint32, error) {
	fd, err := unix.Openat2(int(root.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve,
	})
	if err != nil {
		return nil, 0, fmt.Errorf("find %s inside: %w", name, err)
	}
	at := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = at.Close()
		return nil, 0, fmt.Errorf("look at %s inside: %w", name, err)
	}
	return at, st.Mode, nil
}
