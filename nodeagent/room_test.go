package nodeagent

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/reason"
	"github.com/learnos/learnos/rootfs"
)

// TestRoom: a node takes no more than it has room for, and takes the next when there is room again.
func TestRoom(t *testing.T) {
	p := newPlatform(t, "maxEnvironments = 1")
	p.start()
	huge := p.create(func(s *queue.EnvSpec) { s.Limits.MemoryBytes = 1 << 50 })
	first := p.create(nil)
	p.await(first, queue.StateRunning)
	second := p.create(nil)
	time.Sleep(500 * time.Millisecond)
	for _, id := range []string{huge, second} {
		if s, err := p.queue.Status(context.Background(), id); err != nil || s.State != queue.StateQueued {
			t.Errorf("%s: %+v, %v", id, s, err)
		}
	}
	p.delete(first)
	p.await(first, queue.StateDeleted)
	p.await(second, queue.StateRunning)
	p.delete(huge)
	p.await(huge, queue.StateDeleted)
}

// TestOutOfDisk: disk is promised like memory is, and who asks for more than is left waits.
func TestOutOfDisk(t *testing.T) {
	p := newPlatform(t, "diskOvercommit = 1")
	p.start()
	nodes, err := p.queue.Nodes(context.Background())
	if err != nil || len(nodes) != 1 || nodes[0].DiskRoom <= 0 {
		t.Fatalf("%+v, %v", nodes, err)
	}
	most := min(nodes[0].DiskRoom/3*2, rootfs.MaxDisk)
	first := p.create(func(s *queue.EnvSpec) { s.Limits.DiskBytes = most })
	p.await(first, queue.StateRunning)
	second := p.create(func(s *queue.EnvSpec) { s.Limits.DiskBytes = most })
	time.Sleep(500 * time.Millisecond)
	if s, err := p.queue.Status(context.Background(), second); err != nil || s.State != queue.StateQueued {
		t.Errorf("%+v, %v", s, err)
	}
	p.delete(first)
	p.await(first, queue.StateDeleted)
	p.await(second, queue.StateRunning)
}

// TestRationNobodyGives: a create that asks for what this node can't give fails with the reason, and waits while another
// node could take it.
func TestRationNobodyGives(t *testing.T) {
	p := newPlatform(t, "")
	p.start()
	nodes, err := p.queue.Nodes(context.Background())
	check(t, err)
	high := func(s *queue.EnvSpec) { s.Limits.MemoryHighBytes = 32 << 20 }
	if _, lacks := nodes[0].Lacks[queue.RationMemoryHigh]; !lacks {
		p.await(p.create(high), queue.StateRunning) // cgroup v2
		return
	}
	s := p.await(p.create(high), queue.StateFailed)
	if code, _ := reason.Parse(s.Reason); code != reason.NoMemoryHigh {
		t.Error(s.Reason)
	}
	able, err := p.queue.RegisterNode(context.Background(), queue.NodeInfo{Name: "n2"}, time.Minute)
	check(t, err)
	time.Sleep(2 * othersAge)
	left := p.create(high)
	p.await(p.create(nil), queue.StateRunning)
	if s, err := p.queue.Status(context.Background(), left); err != nil || s.State != queue.StateQueued {
		t.Errorf("%+v, %v", s, err)
	}
	check(t, able.Close(context.Background()))
	time.Sleep(2 * othersAge)
	p.await(p.create(nil), queue.StateRunning) // which makes the node look again
	p.await(left, queue.StateFailed)
}

// Whatever a job limits, the node does.
func TestEveryLimitIsTaken(t *testing.T) {
	var told queue.Limits
	from := reflect.ValueOf(&told).Elem()
	for i := range from.NumField() {
		from.Field(i).Set(reflect.ValueOf(i + 1).Convert(from.Field(i).Type()))
	}
	l := limitsOf(told)
	if l.Cpuset = "0"; l.IO != (IORates{told.IOReadBPS, told.IOWriteBPS, told.IOReadIOPS, told.IOWriteIOPS}) {
		t.Errorf("%+v", l.IO)
	}
	for i, v := 0, reflect.ValueOf(l); i < v.NumField(); i++ {
		name := v.Type().Field(i).Name
		if want := from.FieldByName(name); v.Field(i).IsZero() || want.IsValid() && !v.Field(i).Equal(want) {
			t.Errorf("%s is %v", name, v.Field(i))
		}
	}
}

func TestDiskRoom(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct{ free, total, owed, reserve, overcommit, want int64 }{
		{40 * gib, 100 * gib, 60 * gib, 1 * gib, 4, 96 * gib}, // a class of thirty with 2 GiB each, and more
		{40 * gib, 100 * gib, 38 * gib, 1 * gib, 1, 1 * gib},
		{40 * gib, 100 * gib, 60 * gib, 1 * gib, 1, 0},
		{1 * gib, 100 * gib, 0, 1 * gib, 4, 0},
		{1 * gib, 5 * gib, 0, 1 * gib, 1, gib / 2}, // of a small disk a tenth is reserved
		{gib / 2, 100 * gib, 0, 1 * gib, 4, 0},
		{40 * gib, 100 * gib, 0, 0, 0, 40 * gib},
	} {
		if got := diskRoom(c.free, c.total, c.owed, c.reserve, c.overcommit); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}

// TestRationsReachTheKernel: what a job says is in the environment's cgroup, on whichever version this machine has.
func TestRationsReachTheKernel(t *testing.T) {
	p := newPlatform(t, "")
	p.start()
	nodes, err := p.queue.Nodes(context.Background())
	check(t, err)
	v2 := nodes[0].Lacks[queue.RationMemoryHigh] == ""
	id := p.create(func(s *queue.EnvSpec) {
		s.CapAdd = []string{"NET_RAW"}
		s.Limits.IOReadBPS, s.Limits.IOWriteBPS, s.Limits.IOReadIOPS, s.Limits.IOWriteIOPS = 4<<20, 2<<20, 50, 40
		if v2 {
			s.Limits.MemoryHighBytes = 32 << 20
		}
	})
	p.await(id, queue.StateRunning)
	n, err := Open(p.root, Options{})
	check(t, err)
	major, minor, err := diskOf(p.root)
	check(t, err)
	disk := fmt.Sprintf("%d:%d", major, minor)
	dir, files := "/sys/fs/cgroup/blkio", map[string]string{
		"blkio.throttle.read_bps_device": disk + " 4194304", "blkio.throttle.write_bps_device": disk + " 2097152",
		"blkio.throttle.read_iops_device": disk + " 50", "blkio.throttle.write_iops_device": disk + " 40",
	}
	if v2 {
		dir, files = "/sys/fs/cgroup", map[string]string{"memory.high": "33554432", "io.max": disk + " rbps=4194304 wbps=2097152 riops=50 wiops=40"}
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, n.CgroupParent(), id, name))
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	r, err := n.Record(id)
	check(t, err)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.PID))
	check(t, err)
	var bounding uint64
	for line := range strings.Lines(string(status)) {
		_, _ = fmt.Sscanf(line, "CapBnd: %x", &bounding)
	}
	const netRaw = 13
	if bounding>>netRaw&1 == 0 {
		t.Errorf("capabilities %x", bounding)
	}
	p.delete(id)
	p.await(id, queue.StateDeleted)
	p.clean()
}

// TestFullDiskIsEmptied: an environment can be deleted when the node's disk is full to the last block; it is what helps.
func TestFullDiskIsEmptied(t *testing.T) {
	dir := t.TempDir()
	disk, img := filepath.Join(dir, "disk"), filepath.Join(dir, "img")
	check(t, os.Mkdir(disk, 0o700))
	check(t, os.WriteFile(img, nil, 0o600))
	check(t, os.Truncate(img, 96<<20))
	root := filepath.Join(disk, "root")
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", img}, {"mount", "-o", "loop", img, disk}, {"cp", "-a", template, root}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", args, err, out)
		}
		if args[0] == "mount" {
			t.Cleanup(func() {
				if out, err := exec.Command("umount", disk).CombinedOutput(); err != nil {
					t.Errorf("umount: %v: %s", err, out)
				}
			})
		}
	}
	n, err := Open(root, Options{})
	check(t, err)
	defer func() { check(t, n.Destroy(context.Background())) }()
	for _, limit := range []int64{32 << 20, 0} {
		e, err := n.Create(t.Context(), CreateOptions{Image: busybox(t, n), NoMain: true, Owner: OwnerPlatform, Limits: Limits{PIDs: 64, DiskBytes: limit}})
		check(t, err)
		filler := filepath.Join(disk, "filler")
		if out, err := exec.Command("dd", "if=/dev/zero", "of="+filler, "bs=4k").CombinedOutput(); !strings.Contains(string(out), "No space left") {
			t.Fatalf("%v: %s", err, out)
		}
		check(t, e.Delete(t.Context()))
		for _, left := range []string{"envs", "snapshots"} {
			if names, err := filepath.Glob(filepath.Join(root, left, "*")); err != nil || len(names) > 0 {
				t.Errorf("left: %v, %v", names, err)
			}
		}
		check(t, os.Remove(filler))
	}
}
