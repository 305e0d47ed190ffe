package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// limits sets what a Spec's resources ask for. Every failure names the limit: nothing that was asked for is left out.
type limits struct {
	g    *cgroup
	errs []error
}

// optionalControllers tells which controllers are worth a directory only because they are asked for.
func optionalControllers(r *specs.LinuxResources) map[string]bool {
	if r == nil {
		return nil
	}
	return map[string]bool{
		"cpuset":  r.CPU != nil && (r.CPU.Cpus != "" || r.CPU.Mems != ""),
		"hugetlb": len(r.HugepageLimits) > 0,
		"rdma":    len(r.Rdma) > 0,
	}
}

// apply sets the limits of a fresh group. wholeOOM makes running out of memory the end of the whole group, where the
// kernel can (v2): right when it is one workload, wrong when it is somebody's machine.
func (g *cgroup) apply(r *specs.LinuxResources, wholeOOM bool) error {
	if r == nil {
		return nil
	}
	l := &limits{g: g}
	l.memory(r.Memory, wholeOOM)
	l.cpu(r.CPU)
	l.pids(r.Pids)
	l.blkio(r.BlockIO)
	for _, h := range r.HugepageLimits {
		l.hugePages(h.Pagesize, strconv.FormatUint(h.Limit, 10))
	}
	for device, x := range r.Rdma {
		v := device
		if x.HcaHandles != nil {
			v += fmt.Sprintf(" hca_handle=%d", *x.HcaHandles)
		}
		if x.HcaObjects != nil {
			v += fmt.Sprintf(" hca_object=%d", *x.HcaObjects)
		}
		l.set("rdma limit", "rdma", "rdma.max", "rdma.max", v, v)
	}
	if n := r.Network; n != nil {
		if n.ClassID != nil {
			l.set("network class", "net_cls", "net_cls.classid", "", strconv.FormatUint(uint64(*n.ClassID), 10), "")
		}
		for _, p := range n.Priorities {
			l.set("network priority", "net_prio", "net_prio.ifpriomap", "", fmt.Sprintf("%s %d", p.Name, p.Priority), "")
		}
	}
	for file, value := range r.Unified {
		l.unified(file, value)
	}
	l.devices(r.Devices)
	return errors.Join(l.errs...)
}

// hugePages limits those in use, and those that are only mapped: they are then nobody else's either (from Linux 5.7).
func (l *limits) hugePages(size, v string) {
	prefix := "hugetlb." + size
	if !l.set("huge page limit "+size, "hugetlb", prefix+".limit_in_bytes", prefix+".max", v, v) {
		return
	}
	dir, v2, _ := l.g.controller("hugetlb")
	file := prefix + ".rsvd.limit_in_bytes"
	if v2 {
		file = prefix + ".rsvd.max"
	}
	if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
		l.set("limit of mapped huge pages "+size, "hugetlb", file, file, v, v)
	}
}

func (l *limits) pids(p *specs.LinuxPids) {
	if p == nil || p.Limit == nil {
		return
	}
	value := "max"
	if *p.Limit > 0 {
		value = strconv.FormatInt(*p.Limit, 10)
	}
	l.set("process limit", "pids", "pids.max", "pids.max", value, value)
}

func (l *limits) fail(what string, err error) {
	l.errs = append(l.errs, fmt.Errorf("%s can't be set: %w", what, err))
}

// set writes a limit to the file of whichever version serves the controller; an empty file name means that it has none.
func (l *limits) set(what, controller, v1, v2, value1, value2 string) bool {
	dir, isV2, ok := l.g.controller(controller)
	if !ok {
		l.fail(what, fmt.Errorf("the kernel has no %s cgroup controller", controller))
		return false
	}
	file, value := v1, value1
	if isV2 {
		file, value = v2, value2
	}
	if file == "" {
		l.fail(what, errors.New("this version of cgroups has no such limit"))
		return false
	}
	if err := writeFile(filepath.Join(dir, file), value); err != nil {
		l.fail(what+" "+value, err)
		return false
	}
	return true
}

func (l *limits) memory(m *specs.LinuxMemory, wholeOOM bool) {
	if m == nil {
		return
	}
	dir, v2, _ := l.g.controller("memory")
	has := func(file string) bool {
		_, err := os.Stat(filepath.Join(dir, file))
		return err == nil
	}
	if m.Limit != nil {
		v := strconv.FormatInt(*m.Limit, 10)
		v2value := v
		if *m.Limit < 0 {
			v, v2value = "-1", "max"
		}
		if !l.set("memory limit", "memory", "memory.limit_in_bytes", "memory.max", v, v2value) {
			return
		}
		// Without a word about swap there is none: swapping would make the limit soft and the node slow.
		if m.Swap == nil {
			if !v2 && has("memory.memsw.limit_in_bytes") {
				l.set("swap limit", "memory", "memory.memsw.limit_in_bytes", "", v, "")
			}
			if v2 && has("memory.swap.max") && *m.Limit >= 0 {
				l.set("swap limit", "memory", "", "memory.swap.max", "", "0")
			}
		}
		// v1 counts what lies in the buffers of TCP and UDP by a counter of its own, and only when that has a limit: without
		// one it is charged to nobody, up to what the whole machine may have (net.ipv4.tcp_mem).
		if !v2 && m.KernelTCP == nil && has("memory.kmem.tcp.limit_in_bytes") {
			l.set("limit of network buffers", "memory", "memory.kmem.tcp.limit_in_bytes", "", v, "")
		}
		if v2 && wholeOOM {
			l.set("memory.oom.group", "memory", "", "memory.oom.group", "", "1")
		}
	}
	if m.Swap != nil {
		value1, value2 := strconv.FormatInt(*m.Swap, 10), "max"
		if *m.Swap >= 0 {
			// The specification counts memory and swap together, cgroup v2 counts swap alone.
			if m.Limit == nil || *m.Limit < 0 || *m.Swap < *m.Limit {
				l.fail("swap limit "+value1, errors.New("it includes memory, so a memory limit no greater than it is needed"))
				return
			}
			value2 = strconv.FormatInt(*m.Swap-*m.Limit, 10)
		}
		if !v2 || has("memory.swap.max") || value2 != "0" {
			if v2 || has("memory.memsw.limit_in_bytes") || m.Limit == nil || *m.Swap != *m.Limit {
				l.set("swap limit", "memory", "memory.memsw.limit_in_bytes", "memory.swap.max", value1, value2)
			}
		}
	}
	if m.Reservation != nil {
		v := strconv.FormatInt(*m.Reservation, 10)
		l.set("memory reservation", "memory", "memory.soft_limit_in_bytes", "memory.low", v, v)
	}
	//lint:ignore SA1019 deprecated, but what is asked for is set or refused
	if kernel := m.Kernel; kernel != nil {
		l.set("kernel memory limit", "memory", "memory.kmem.limit_in_bytes", "", strconv.FormatInt(*kernel, 10), "")
	}
	if m.KernelTCP != nil {
		l.set("kernel TCP memory limit", "memory", "memory.kmem.tcp.limit_in_bytes", "", strconv.FormatInt(*m.KernelTCP, 10), "")
	}
	if m.Swappiness != nil {
		l.set("swappiness", "memory", "memory.swappiness", "", strconv.FormatUint(*m.Swappiness, 10), "")
	}
	if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
		l.set("disabled OOM killer", "memory", "memory.oom_control", "", "1", "")
	}
}

func (l *limits) cpu(c *specs.LinuxCPU) {
	if c == nil {
		return
	}
	if c.Shares != nil && *c.Shares > 0 {
		l.set("CPU shares", "cpu", "cpu.shares", "cpu.weight", strconv.FormatUint(*c.Shares, 10), strconv.FormatUint(sharesToWeight(*c.Shares), 10))
	}
	_, v2, _ := l.g.controller("cpu")
	period := uint64(100_000)
	if c.Period != nil && *c.Period > 0 {
		period = *c.Period
	}
	switch quota := c.Quota; {
	case v2 && (quota != nil || c.Period != nil):
		q := "max"
		if quota != nil && *quota > 0 {
			q = strconv.FormatInt(*quota, 10)
		}
		l.set("CPU quota", "cpu", "", "cpu.max", "", fmt.Sprintf("%s %d", q, period))
	case !v2:
		if c.Period != nil && *c.Period > 0 {
			l.set("CPU period", "cpu", "cpu.cfs_period_us", "", strconv.FormatUint(period, 10), "")
		}
		if quota != nil && *quota != 0 {
			l.set("CPU quota", "cpu", "cpu.cfs_quota_us", "", strconv.FormatInt(*quota, 10), "")
		}
	}
	if c.Burst != nil {
		v := strconv.FormatUint(*c.Burst, 10)
		l.set("CPU burst", "cpu", "cpu.cfs_burst_us", "cpu.max.burst", v, v)
	}
	if c.RealtimePeriod != nil {
		l.set("realtime period", "cpu", "cpu.rt_period_us", "", strconv.FormatUint(*c.RealtimePeriod, 10), "")
	}
	if c.RealtimeRuntime != nil {
		l.set("realtime runtime", "cpu", "cpu.rt_runtime_us", "", strconv.FormatInt(*c.RealtimeRuntime, 10), "")
	}
	if c.Idle != nil {
		v := strconv.FormatInt(*c.Idle, 10)
		l.set("CPU idle", "cpu", "cpu.idle", "cpu.idle", v, v)
	}
	if c.Cpus != "" {
		l.members("CPU set", "cpuset.cpus", c.Cpus)
	}
	if c.Mems != "" {
		l.members("memory nodes", "cpuset.mems", c.Mems)
	}
}

// members sets one of the lists of a cpuset. What is not to be had is refused here: v1 would say no more than "invalid
// argument", and v2 would take it without a word and let the processes run elsewhere (admin-guide/cgroup-v2, Cpuset).
func (l *limits) members(what, file, list string) {
	dir, v2, ok := l.g.controller("cpuset")
	if !ok {
		l.fail(what, errors.New("the kernel has no cpuset cgroup controller"))
		return
	}
	above := filepath.Join(filepath.Dir(dir), file)
	if v2 {
		above += ".effective"
	}
	have, err := os.ReadFile(above)
	if err != nil {
		l.fail(what+" "+list, err)
		return
	}
	given, err := parseList(strings.TrimSpace(string(have)))
	if err != nil {
		l.fail(what+" "+list, err)
		return
	}
	asked, err := parseList(list)
	if err != nil {
		l.fail(what+" "+strconv.Quote(list), err)
		return
	}
	for n := range asked {
		if !given[n] {
			l.fail(what+" "+list, fmt.Errorf("%d is not among those here, which are %s", n, strings.TrimSpace(string(have))))
			return
		}
	}
	l.set(what, "cpuset", file, file, list, list)
}

// parseList reads the kernel's list format, "0-2,5" (cpuset(7)).
func parseList(text string) (map[int]bool, error) {
	set := map[int]bool{}
	for part := range strings.SplitSeq(text, ",") {
		low, high, ranged := strings.Cut(strings.TrimSpace(part), "-")
		first, err := strconv.ParseUint(low, 10, 14)
		last := first
		if err == nil && ranged {
			last, err = strconv.ParseUint(high, 10, 14)
		}
		if err != nil || last < first {
			return nil, fmt.Errorf("want numbers and ranges, as in 0-2,5, not %q", part)
		}
		for n := first; n <= last; n++ {
			set[int(n)] = true
		}
	}
	return set, nil
}

// sharesToWeight maps v1's 2…262144 to v2's 1…10000, the ends and the order kept.
func sharesToWeight(shares uint64) uint64 {
	shares = min(max(shares, 2), 262144)
	return 1 + (shares-2)*9999/262142
}

func (l *limits) blkio(b *specs.LinuxBlockIO) {
	if b == nil {
		return
	}
	if b.LeafWeight != nil {
		l.fail("leaf weight", errors.New("it went with the CFQ scheduler in Linux 5.0"))
	}
	if b.Weight != nil && *b.Weight > 0 {
		l.weight("", *b.Weight)
	}
	for _, w := range b.WeightDevice {
		if w.LeafWeight != nil {
			l.fail("leaf weight", errors.New("it went with the CFQ scheduler in Linux 5.0"))
		}
		if w.Weight != nil {
			l.weight(fmt.Sprintf("%d:%d ", w.Major, w.Minor), *w.Weight)
		}
	}
	throttle := func(what, v1, v2 string, list []specs.LinuxThrottleDevice) {
		for _, d := range list {
			device := fmt.Sprintf("%d:%d", d.Major, d.Minor)
			rate := strconv.FormatUint(d.Rate, 10)
			l.set(what, "blkio", "blkio.throttle."+v1, "io.max", device+" "+rate, device+" "+v2+"="+rate)
		}
	}
	throttle("disk read rate", "read_bps_device", "rbps", b.ThrottleReadBpsDevice)
	throttle("disk write rate", "write_bps_device", "wbps", b.ThrottleWriteBpsDevice)
	throttle("disk reads per second", "read_iops_device", "riops", b.ThrottleReadIOPSDevice)
	throttle("disk writes per second", "write_iops_device", "wiops", b.ThrottleWriteIOPSDevice)
}

// weight sets a share of disk time, for one device or (empty) all. Which file there is depends on the I/O scheduler.
func (l *limits) weight(device string, w uint16) {
	dir, v2, ok := l.g.controller("blkio")
	if !ok {
		l.fail("disk weight", errors.New("the kernel has no blkio cgroup controller"))
		return
	}
	files := []string{"blkio.bfq.weight", "blkio.weight"}
	if device != "" {
		files = []string{"blkio.bfq.weight_device", "blkio.weight_device"}
	}
	value := device + strconv.Itoa(int(w))
	if v2 {
		files = []string{"io.bfq.weight", "io.weight"}
	}
	var err error
	for _, file := range files {
		if err = writeFile(filepath.Join(dir, file), value); err == nil {
			return
		}
	}
	l.fail("disk weight "+value, err)
}

// unified writes a cgroup v2 file by its name.
func (l *limits) unified(file, value string) {
	what := "unified limit " + file
	if strings.ContainsAny(file, "/\x00") || strings.HasPrefix(file, "cgroup.") {
		l.fail(what, errors.New("not a limit"))
		return
	}
	if l.g.hs.unified == nil {
		l.fail(what, errors.New("cgroup v2 is not mounted"))
		return
	}
	controller, _, _ := strings.Cut(file, ".")
	if h := l.g.hs.control[controller]; h != nil && !h.v2 {
		l.fail(what, fmt.Errorf("the %s controller is on cgroup v1, which has no %s (boot with systemd.unified_cgroup_hierarchy=1)", controller, file))
		return
	}
	if err := writeFile(filepath.Join(l.g.dir(l.g.hs.unified), file), value); err != nil {
		l.fail(what, err)
	}
}

// devices restricts which device nodes may be opened or made.
func (l *limits) devices(rules []specs.LinuxDeviceCgroup) {
	if len(rules) == 0 {
		return
	}
	if dir, v2, ok := l.g.controller("devices"); ok && !v2 {
		// Opening one of these costs more than writing to it.
		files := map[bool]int{}
		for allow, name := range map[bool]string{true: "devices.allow", false: "devices.deny"} {
			path := filepath.Join(dir, name)
			fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				l.fail("device rules", &os.PathError{Op: "open", Path: path, Err: err})
				return
			}
			defer unix.Close(fd)
			files[allow] = fd
		}
		for _, rule := range rules {
			text, err := deviceRule(rule)
			if err == nil {
				_, err = unix.Write(files[rule.Allow], []byte(text))
			}
			if err != nil {
				l.fail("device rule "+text, err)
			}
		}
		return
	}
	if l.g.hs.unified == nil {
		l.fail("device rules", errors.New("neither a v1 devices controller nor cgroup v2 is there"))
		return
	}
	if err := attachDeviceFilter(l.g.dir(l.g.hs.unified), rules); err != nil {
		l.fail("device rules", err)
	}
}

// deviceRule writes a rule as v1 reads it: "c 1:3 rwm", or "a" for everything.
func deviceRule(r specs.LinuxDeviceCgroup) (string, error) {
	access := r.Access
	if access == "" {
		access = "rwm"
	}
	if strings.Trim(access, "rwm") != "" {
		return "", fmt.Errorf("access %q is not made of r, w and m", r.Access)
	}
	number := func(n *int64) string {
		if n == nil || *n < 0 {
			return "*"
		}
		return strconv.FormatInt(*n, 10)
	}
	kind := r.Type
	switch kind {
	case "", "a":
		if r.Major == nil && r.Minor == nil || kind == "" && access == "rwm" && number(r.Major) == "*" && number(r.Minor) == "*" {
			return "a", nil
		}
		return "", errors.New("a rule for all types of device can't name numbers")
	case "u":
		kind = "c"
	case "c", "b":
	default:
		return "", fmt.Errorf("device type %q is not a, b, c or u", r.Type)
	}
	return kind + " " + number(r.Major) + ":" + number(r.Minor) + " " + access, nil
}
