package runtime

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// blockIO counts the bytes that the group's processes have moved from and to disks.
func (g *cgroup) blockIO() (read, written uint64) {
	if _, v2, ok := g.controller("blkio"); ok && v2 {
		return parseIOStat(g.read("blkio", "", "io.stat"), stacked)
	}
	read, written = parseServiceBytes(g.read("blkio", "blkio.throttle.io_service_bytes_recursive", ""), stacked)
	// v1 knows nobody for what is written through the page cache, which is almost everything. The processes' own counts
	// do: a parent inherits those of the children it has waited for, and init waits for everybody's.
	r, w := g.processIO()
	return max(read, r), max(written, w)
}

// parseIOStat adds up io.stat (admin-guide/cgroup-v2, IO Interface Files). What skip says of a device ("7:0") is left out.
func parseIOStat(text string, skip func(device string) bool) (read, written uint64) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || skip(f[0]) {
			continue
		}
		for _, field := range f[1:] {
			if v, ok := strings.CutPrefix(field, "rbytes="); ok {
				read += number(v)
			} else if v, ok := strings.CutPrefix(field, "wbytes="); ok {
				written += number(v)
			}
		}
	}
	return read, written
}

// parseServiceBytes adds up blkio.throttle.io_service_bytes (admin-guide/cgroup-v1/blkio-controller).
func parseServiceBytes(text string, skip func(device string) bool) (read, written uint64) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 || skip(f[0]) {
			continue
		}
		switch f[1] {
		case "Read":
			read += number(f[2])
		case "Write":
			written += number(f[2])
		}
	}
	return read, written
}

// stacked tells of a device that lies on others (a loop, LVM, dm-crypt): its bytes are counted again below.
func stacked(device string) bool {
	dir := "/sys/dev/block/" + device
	if _, err := os.Stat(filepath.Join(dir, "loop")); err == nil {
		return true
	}
	below, _ := os.ReadDir(filepath.Join(dir, "slaves"))
	return len(below) > 0
}

// processIO adds up /proc/PID/io (proc_pid_io(5)) of the processes in the group. A child that nobody waits for, because
// its parent ignores SIGCHLD, takes its count along.
func (g *cgroup) processIO() (read, written uint64) {
	var undone uint64 // deleted before it got to the disk
	dir, _, ok := g.controller("pids")
	if !ok {
		return 0, 0
	}
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		procs, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for _, pid := range strings.Fields(string(procs)) {
			if _, err := strconv.Atoi(pid); err != nil || pid == "0" {
				continue
			}
			text, _ := os.ReadFile("/proc/" + pid + "/io")
			read += keyed(string(text), "read_bytes:")
			written += keyed(string(text), "write_bytes:")
			undone += keyed(string(text), "cancelled_write_bytes:")
		}
		return nil
	})
	return read, written - min(written, undone)
}
