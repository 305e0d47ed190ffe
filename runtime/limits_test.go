package runtime

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// fakeGroup is a group in a directory with the files that a kernel would show, empty.
func fakeGroup(t *testing.T, v2 bool) *cgroup {
	t.Helper()
	const path = "parent/env"
	files := map[string]string{ // controller → its files on v1
		"memory": "memory.limit_in_bytes memory.memsw.limit_in_bytes memory.soft_limit_in_bytes memory.kmem.limit_in_bytes memory.kmem.tcp.limit_in_bytes memory.swappiness memory.oom_control",
		"cpu":    "cpu.shares cpu.cfs_period_us cpu.cfs_quota_us cpu.cfs_burst_us cpu.rt_period_us cpu.rt_runtime_us cpu.idle",
		"cpuset": "cpuset.cpus cpuset.mems", "pids": "pids.max", "hugetlb": "hugetlb.2MB.limit_in_bytes", "rdma": "rdma.max",
		"blkio":   "blkio.bfq.weight blkio.bfq.weight_device blkio.throttle.read_bps_device blkio.throttle.write_bps_device blkio.throttle.read_iops_device blkio.throttle.write_iops_device",
		"net_cls": "net_cls.classid", "net_prio": "net_prio.ifpriomap",
	}
	hs := &hierarchies{control: map[string]*hierarchy{}}
	write := func(path, text string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if v2 {
		h := &hierarchy{dir: t.TempDir(), v2: true}
		hs.all, hs.unified = []*hierarchy{h}, h
		for _, c := range []string{"memory", "cpu", "cpuset", "pids", "hugetlb", "rdma", "blkio"} {
			hs.control[c] = h
		}
		for _, f := range strings.Fields("memory.max memory.high memory.low memory.swap.max memory.oom.group cpu.max cpu.max.burst cpu.weight cpu.idle " +
			"cpuset.cpus cpuset.mems pids.max hugetlb.2MB.max rdma.max io.max io.bfq.weight") {
			write(filepath.Join(h.dir, path, f), "")
		}
		write(filepath.Join(h.dir, "parent/cpuset.cpus.effective"), "0-3\n")
		write(filepath.Join(h.dir, "parent/cpuset.mems.effective"), "0\n")
		return &cgroup{hs: hs, path: path}
	}
	for c, names := range files {
		h := &hierarchy{dir: t.TempDir(), options: []string{c}}
		hs.all, hs.control[c] = append(hs.all, h), h
		for _, f := range strings.Fields(names) {
			write(filepath.Join(h.dir, path, f), "")
		}
	}
	write(filepath.Join(hs.control["cpuset"].dir, "parent/cpuset.cpus"), "0-3\n")
	write(filepath.Join(hs.control["cpuset"].dir, "parent/cpuset.mems"), "0\n")
	return &cgroup{hs: hs, path: path}
}

// written lists "file=value" of what was set, in any order.
func (g *cgroup) written(t *testing.T) map[string]bool {
	t.Helper()
	set := map[string]bool{}
	for _, h := range g.hs.all {
		files, err := os.ReadDir(g.dir(h))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if text, _ := os.ReadFile(filepath.Join(g.dir(h), f.Name())); len(text) > 0 {
				set[f.Name()+"="+string(text)] = true
			}
		}
	}
	return set
}

func ptr[T any](v T) *T { return &v }

// TestNoLimitIsSilentlyLeftOut: every field of the specification's resources ends up in a file, on v1 and on v2, or is an
// error that names it. A field that is new in the specification fails here until it has its line.
func TestNoLimitIsSilentlyLeftOut(t *testing.T) {
	device := func(rate uint64) []specs.LinuxThrottleDevice {
		d := specs.LinuxThrottleDevice{Rate: rate}
		d.Major, d.Minor = 8, 16
		return []specs.LinuxThrottleDevice{d}
	}
	weighted := specs.LinuxWeightDevice{Weight: ptr(uint16(300))}
	weighted.Major = 8
	leaf := specs.LinuxWeightDevice{LeafWeight: ptr(uint16(300))}
	memory := func(m specs.LinuxMemory) specs.LinuxResources { return specs.LinuxResources{Memory: &m} }
	cpu := func(c specs.LinuxCPU) specs.LinuxResources { return specs.LinuxResources{CPU: &c} }
	blkio := func(b specs.LinuxBlockIO) specs.LinuxResources { return specs.LinuxResources{BlockIO: &b} }
	type row struct {
		ask    specs.LinuxResources
		v1, v2 string // files with values, or "error: words"
	}
	rows := map[string]row{
		"Memory.Limit":       {memory(specs.LinuxMemory{Limit: ptr(int64(1 << 20))}), "memory.limit_in_bytes=1048576 memory.memsw.limit_in_bytes=1048576 memory.kmem.tcp.limit_in_bytes=1048576", "memory.max=1048576 memory.swap.max=0 memory.oom.group=1"},
		"Memory.Reservation": {memory(specs.LinuxMemory{Reservation: ptr(int64(4096))}), "memory.soft_limit_in_bytes=4096", "memory.low=4096"},
		"Memory.Swap": {memory(specs.LinuxMemory{Limit: ptr(int64(4096)), Swap: ptr(int64(8192))}), "memory.limit_in_bytes=4096 memory.memsw.limit_in_bytes=8192 memory.kmem.tcp.limit_in_bytes=4096",
			"memory.max=4096 memory.swap.max=4096 memory.oom.group=1"},
		//lint:ignore SA1019 deprecated, but what is asked for is set or refused
		"Memory.Kernel":                   {memory(specs.LinuxMemory{Kernel: ptr(int64(4096))}), "memory.kmem.limit_in_bytes=4096", "error: kernel memory limit"},
		"Memory.KernelTCP":                {memory(specs.LinuxMemory{KernelTCP: ptr(int64(4096))}), "memory.kmem.tcp.limit_in_bytes=4096", "error: kernel TCP memory"},
		"Memory.Swappiness":               {memory(specs.LinuxMemory{Swappiness: ptr(uint64(7))}), "memory.swappiness=7", "error: swappiness"},
		"Memory.DisableOOMKiller":         {memory(specs.LinuxMemory{DisableOOMKiller: ptr(true)}), "memory.oom_control=1", "error: disabled OOM killer"},
		"CPU.Shares":                      {cpu(specs.LinuxCPU{Shares: ptr(uint64(1024))}), "cpu.shares=1024", "cpu.weight=39"},
		"CPU.Quota":                       {cpu(specs.LinuxCPU{Quota: ptr(int64(5000))}), "cpu.cfs_quota_us=5000", "cpu.max=5000 100000"},
		"CPU.Period":                      {cpu(specs.LinuxCPU{Period: ptr(uint64(20000))}), "cpu.cfs_period_us=20000", "cpu.max=max 20000"},
		"CPU.Burst":                       {cpu(specs.LinuxCPU{Burst: ptr(uint64(9))}), "cpu.cfs_burst_us=9", "cpu.max.burst=9"},
		"CPU.RealtimePeriod":              {cpu(specs.LinuxCPU{RealtimePeriod: ptr(uint64(9))}), "cpu.rt_period_us=9", "error: realtime period"},
		"CPU.RealtimeRuntime":             {cpu(specs.LinuxCPU{RealtimeRuntime: ptr(int64(9))}), "cpu.rt_runtime_us=9", "error: realtime runtime"},
		"CPU.Idle":                        {cpu(specs.LinuxCPU{Idle: ptr(int64(1))}), "cpu.idle=1", "cpu.idle=1"},
		"CPU.Cpus":                        {cpu(specs.LinuxCPU{Cpus: "0-1,3"}), "cpuset.cpus=0-1,3", "cpuset.cpus=0-1,3"},
		"CPU.Cpus absent":                 {cpu(specs.LinuxCPU{Cpus: "3-4"}), "error: 4 is not among those here, which are 0-3", "error: 4 is not among those here, which are 0-3"},
		"CPU.Cpus nonsense":               {cpu(specs.LinuxCPU{Cpus: "a"}), "error: as in 0-2,5", "error: as in 0-2,5"},
		"CPU.Mems":                        {cpu(specs.LinuxCPU{Mems: "0"}), "cpuset.mems=0", "cpuset.mems=0"},
		"CPU.Mems absent":                 {cpu(specs.LinuxCPU{Mems: "1"}), "error: memory nodes 1", "error: memory nodes 1"},
		"Pids":                            {specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(9))}}, "pids.max=9", "pids.max=9"},
		"BlockIO.Weight":                  {blkio(specs.LinuxBlockIO{Weight: ptr(uint16(200))}), "blkio.bfq.weight=200", "io.bfq.weight=200"},
		"BlockIO.LeafWeight":              {blkio(specs.LinuxBlockIO{LeafWeight: ptr(uint16(200))}), "error: leaf weight", "error: leaf weight"},
		"BlockIO.WeightDevice":            {blkio(specs.LinuxBlockIO{WeightDevice: []specs.LinuxWeightDevice{weighted}}), "blkio.bfq.weight_device=8:0 300", "io.bfq.weight=8:0 300"},
		"BlockIO.WeightDevice.LeafWeight": {blkio(specs.LinuxBlockIO{WeightDevice: []specs.LinuxWeightDevice{leaf}}), "error: leaf weight", "error: leaf weight"},
		"BlockIO.ThrottleReadBpsDevice":   {blkio(specs.LinuxBlockIO{ThrottleReadBpsDevice: device(1)}), "blkio.throttle.read_bps_device=8:16 1", "io.max=8:16 rbps=1"},
		"BlockIO.ThrottleWriteBpsDevice":  {blkio(specs.LinuxBlockIO{ThrottleWriteBpsDevice: device(2)}), "blkio.throttle.write_bps_device=8:16 2", "io.max=8:16 wbps=2"},
		"BlockIO.ThrottleReadIOPSDevice":  {blkio(specs.LinuxBlockIO{ThrottleReadIOPSDevice: device(3)}), "blkio.throttle.read_iops_device=8:16 3", "io.max=8:16 riops=3"},
		"BlockIO.ThrottleWriteIOPSDevice": {blkio(specs.LinuxBlockIO{ThrottleWriteIOPSDevice: device(4)}), "blkio.throttle.write_iops_device=8:16 4", "io.max=8:16 wiops=4"},
		"HugepageLimits":                  {specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 5}}}, "hugetlb.2MB.limit_in_bytes=5", "hugetlb.2MB.max=5"},
		"HugepageLimits absent":           {specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "3MB", Limit: 5}}}, "error: huge page limit 3MB", "error: huge page limit 3MB"},
		"Network.ClassID":                 {specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: ptr(uint32(5))}}, "net_cls.classid=5", "error: network class"},
		"Network.Priorities":              {specs.LinuxResources{Network: &specs.LinuxNetwork{Priorities: []specs.LinuxInterfacePriority{{Name: "eth0", Priority: 1}}}}, "net_prio.ifpriomap=eth0 1", "error: network priority"},
		"Rdma":                            {specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"mlx": {HcaHandles: ptr(uint32(1))}}}, "rdma.max=mlx hca_handle=1", "rdma.max=mlx hca_handle=1"},
		"Unified":                         {specs.LinuxResources{Unified: map[string]string{"memory.high": "4096"}}, "error: unified limit memory.high", "memory.high=4096"},
	}
	for name, r := range rows {
		for version, want := range map[string]string{"v1": r.v1, "v2": r.v2} {
			g := fakeGroup(t, version == "v2")
			err := g.apply(&r.ask, true)
			if words, ok := strings.CutPrefix(want, "error: "); ok {
				if err == nil || !strings.Contains(err.Error(), words) {
					t.Errorf("%s on %s: %v, want an error with %q", name, version, err, words)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s on %s: %v", name, version, err)
			}
			got := g.written(t)
			rest := " " + want + " "
			for set := range got {
				if !strings.Contains(rest, " "+set+" ") {
					t.Errorf("%s on %s: wrote %s, want %s", name, version, set, want)
				}
				rest = strings.Replace(rest, " "+set+" ", "  ", 1)
			}
			if strings.TrimSpace(rest) != "" {
				t.Errorf("%s on %s: never wrote %s", name, version, rest)
			}
		}
	}

	// What is no limit, or is tested elsewhere.
	elsewhere := map[string]bool{
		"Devices":                  true, // TestDeviceRules and others
		"Pids.Limit":               true, // under "Pids"
		"Memory.UseHierarchy":      true, // always on since Linux 5.11, and before that by createParents
		"Memory.CheckBeforeUpdate": true, // cmd/lrun's update
	}
	var walk func(prefix string, kind reflect.Type)
	walk = func(prefix string, kind reflect.Type) {
		for n := range kind.NumField() {
			f := kind.Field(n)
			name := prefix + f.Name
			inner := f.Type
			if inner.Kind() == reflect.Pointer && inner.Elem().Kind() == reflect.Struct {
				walk(name+".", inner.Elem())
				continue
			}
			if _, ok := rows[name]; !ok && !elsewhere[name] {
				t.Errorf("%s is a limit that nothing here asks for", name)
			}
		}
	}
	walk("", reflect.TypeFor[specs.LinuxResources]())
}

func TestBlockIOIsCountedOnce(t *testing.T) {
	loop := func(device string) bool { return strings.HasPrefix(device, "7:") }
	if r, w := parseIOStat("254:0 rbytes=100 wbytes=20 rios=1 wios=1 dbytes=0 dios=0\n7:0 rbytes=100 wbytes=20\n8:0 rbytes=1 wbytes=2\n\nx\n", loop); r != 101 || w != 22 {
		t.Errorf("io.stat: %d, %d", r, w)
	}
	if r, w := parseServiceBytes("254:0 Read 100\n254:0 Write 20\n254:0 Sync 120\n254:0 Total 120\n7:0 Read 9\n7:0 Total 9\nTotal 129\n", loop); r != 100 || w != 20 {
		t.Errorf("blkio.throttle.io_service_bytes: %d, %d", r, w)
	}
}
