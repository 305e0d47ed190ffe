package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// MemoryHigh says why this machine's cgroups have no memory.high, which slows down instead of killing; nil when they have.
func MemoryHigh() error {
	hs, err := findHierarchies()
	if err != nil {
		return err
	}
	switch h := hs.control["memory"]; {
	case h == nil:
		return errors.New("the kernel has no memory cgroup controller (boot with cgroup_enable=memory)")
	case !h.v2:
		return errors.New("the memory controller is on cgroup v1, which has no memory.high (boot with systemd.unified_cgroup_hierarchy=1)")
	}
	return nil
}

// DiskRates says why this machine's cgroups can't throttle disks; nil when they can.
func DiskRates() error {
	hs, err := findHierarchies()
	if err != nil {
		return err
	}
	h := hs.control["blkio"]
	if h == nil {
		return errors.New("the kernel has no blkio cgroup controller")
	}
	if h.v2 {
		return nil // io.max is in every group but the root; one who asks for it on a kernel without is told so
	}
	const file = "blkio.throttle.write_bps_device"
	if _, err := os.Stat(filepath.Join(h.dir, file)); err != nil {
		return fmt.Errorf("the blkio cgroup controller has no %s (the kernel needs CONFIG_BLK_DEV_THROTTLING)", file)
	}
	return nil
}
