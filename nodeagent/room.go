package nodeagent

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/reason"
	"github.com/learnos/learnos/rootfs"
	"github.com/learnos/learnos/runtime"
)

// fits tells whether the node has room for a job now. The claimer is one goroutine, so nothing changes the answer
// for the worse before begin has written the promise down.
func (d *daemon) fits(j queue.Job) bool {
	// Noted before the look: room that comes while we look wakes the claimer then.
	before := d.refused.Swap(true)
	if !d.hasRoom(j) {
		return false
	}
	d.refused.Store(before)
	return true
}

func (d *daemon) hasRoom(j queue.Job) bool {
	if j.Kind != queue.KindCreate {
		return true
	}
	if j.Spec == nil {
		return true // so that it fails with a reason instead of lying in the queue for ever
	}
	if d.lookup(j.EnvID) != nil {
		return true
	}
	if ration, _ := j.Spec.Limits.Lacking(d.lacks); ration != "" {
		return j.Node == d.name || !d.others.give(d, j.Spec.Limits) // where nobody else can, it fails here, with the reason
	}
	d.mu.Lock()
	count := len(d.envs)
	d.mu.Unlock()
	if d.cfg.MaxEnvironments > 0 && count >= d.cfg.MaxEnvironments {
		return false
	}
	return d.free(readMeminfo()) >= j.Spec.Limits.MemoryBytes && d.diskRoom() >= max(1, j.Spec.Limits.DiskBytes)
}

// free is how much memory the node may still promise, in bytes: what is available now, less the reserve, less what
// environments were promised and have not taken yet (what they have taken is not available any more).
func (d *daemon) free(m meminfo) int64 {
	memory, _ := d.owed()
	return max(0, m.available-int64(d.cfg.Reserve)-memory)
}

// diskRoom is how much disk the node may still promise, in bytes. Hardly anybody fills a disk, so that the promises not yet
// called in may come to several times what is free after the reserve.
func (d *daemon) diskRoom() int64 {
	free, total, err := diskSpace(d.node.root)
	if err != nil {
		return 0
	}
	_, disk := d.owed()
	return diskRoom(free, total, disk, int64(d.cfg.DiskReserve), int64(d.cfg.DiskOvercommit))
}

func diskRoom(free, total, owed, reserve, overcommit int64) int64 {
	free -= min(reserve, total/10)
	return max(0, free*max(1, overcommit)-owed)
}

// diskSpace is what the file system of a directory has left for others than root, and has in all, in bytes.
func diskSpace(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("look at the disk of %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// owed is what environments were promised and have not taken yet.
func (d *daemon) owed() (memory, disk int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range d.envs {
		h.mu.Lock()
		memory += max(0, h.promised.MemoryBytes-int64(h.last.stats.MemoryBytes))
		disk += max(0, h.promised.DiskBytes-h.last.stats.DiskBytes)
		h.mu.Unlock()
	}
	return memory, disk
}

// lacks says which rations this machine can't give, and why.
func (n *Node) lacks() map[string]string {
	lacks := map[string]string{}
	for ration, err := range map[string]error{
		queue.RationMemoryHigh: runtime.MemoryHigh(),
		queue.RationDiskRates:  n.diskRates(),
		queue.RationDisk:       n.diskLimit(),
	} {
		if err != nil {
			lacks[ration] = err.Error()
		}
	}
	return lacks
}

func (n *Node) diskRates() error {
	if err := runtime.DiskRates(); err != nil {
		return err
	}
	_, _, err := diskOf(n.root)
	return err
}

func (n *Node) diskLimit() error {
	_, err := rootfs.DiskLimits(n.root)
	return err
}

// lackReason is why a create that asks for such a ration has failed, for people.
func lackReason(ration, why string) string {
	switch ration {
	case queue.RationMemoryHigh:
		return reason.Say(reason.NoMemoryHigh)
	case queue.RationDiskRates:
		return reason.Say(reason.NoDiskRates, why)
	}
	return reason.Say(reason.NoDiskLimit, why)
}

// others is what this node knows of other ones.
type others struct {
	nodes []queue.NodeInfo
	at    time.Time
}

// othersAge is how old that knowledge may be: a queue full of jobs for others is looked through at each wake.
const othersAge = time.Second

// give tells whether another living node has all the rations of l; true also when etcd doesn't say, so that the job waits.
func (o *others) give(d *daemon, l queue.Limits) bool {
	if time.Since(o.at) > othersAge {
		ctx, cancel := context.WithTimeout(d.life, 3*time.Second)
		defer cancel()
		nodes, err := d.queue.Nodes(ctx)
		if err != nil {
			return true
		}
		o.nodes, o.at = nodes, time.Now()
	}
	for _, n := range o.nodes {
		if ration, _ := l.Lacking(n.Lacks); n.Name != d.name && ration == "" {
			return true
		}
	}
	return false
}
