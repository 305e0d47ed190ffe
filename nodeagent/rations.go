package nodeagent

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// check refuses limits that are no numbers of anything.
func (l Limits) check() error {
	for what, n := range map[string]int64{
		"memory limit": l.MemoryBytes, "memory.high": l.MemoryHighBytes, "process limit": l.PIDs,
		"disk limit": l.DiskBytes, "bandwidth out": l.NetUpBits, "bandwidth in": l.NetDownBits, "traffic quota": l.NetQuotaBytes, "disk traffic quota": l.BlkQuotaBytes,
		"read rate": l.IO.ReadBytes, "write rate": l.IO.WriteBytes, "reads per second": l.IO.Reads, "writes per second": l.IO.Writes,
	} {
		if n < 0 {
			return fmt.Errorf("%s %d: want 0 (none) or more", what, n)
		}
	}
	if !(l.CPUs >= 0) { // NaN too
		return fmt.Errorf("processor limit %v: want 0 (none) or more", l.CPUs)
	}
	return nil
}

// setIORates asks for block-IO throttling on the disk that dir lies on.
func setIORates(r *specs.LinuxResources, rates IORates, dir string) error {
	if rates == (IORates{}) {
		return nil
	}
	major, minor, err := diskOf(dir)
	if err != nil {
		return fmt.Errorf("disk rates can't be set: %w", err)
	}
	list := func(rate int64) []specs.LinuxThrottleDevice {
		if rate == 0 {
			return nil
		}
		d := specs.LinuxThrottleDevice{Rate: uint64(rate)}
		d.Major, d.Minor = int64(major), int64(minor)
		return []specs.LinuxThrottleDevice{d}
	}
	r.BlockIO = &specs.LinuxBlockIO{
		ThrottleReadBpsDevice: list(rates.ReadBytes), ThrottleWriteBpsDevice: list(rates.WriteBytes),
		ThrottleReadIOPSDevice: list(rates.Reads), ThrottleWriteIOPSDevice: list(rates.Writes),
	}
	return nil
}

// diskOf finds the device number of the whole disk under a path: the kernel throttles disks, not partitions.
func diskOf(path string) (major, minor uint32, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	major, minor = unix.Major(st.Dev), unix.Minor(st.Dev)
	dir := fmt.Sprintf("/sys/dev/block/%d:%d", major, minor)
	if _, err := os.Stat(dir); err != nil {
		return 0, 0, fmt.Errorf("the file system of %s is on no disk of its own (device %d:%d): put the node's root on ext4 or XFS", path, major, minor)
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err != nil {
		return major, minor, nil
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return 0, 0, err
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(real), "dev"))
	if err != nil {
		return 0, 0, fmt.Errorf("find the disk of partition %d:%d: %w", major, minor, err)
	}
	a, b, _ := strings.Cut(strings.TrimSpace(string(text)), ":")
	x, err1 := strconv.ParseUint(a, 10, 32)
	y, err2 := strconv.ParseUint(b, 10, 32)
	if err1 != nil || err2 != nil {
		return 0, 0, fmt.Errorf("find the disk of partition %d:%d: it is said to be %q", major, minor, text)
	}
	return uint32(x), uint32(y), nil
}
