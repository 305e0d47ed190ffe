package nodeagent

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// meminfo is what /proc/meminfo says, in bytes.
type meminfo struct {
	available, total int64
	kernel           int64 // what is neither free, nor a program's, nor could be freed at once
}

func readMeminfo() meminfo {
	body, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return meminfo{}
	}
	return parseMeminfo(string(body))
}

func parseMeminfo(text string) meminfo {
	var m meminfo
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			continue
		}
		switch f[0] {
		case "MemAvailable:":
			m.available = kb << 10
		case "MemTotal:":
			m.total = kb << 10
			m.kernel += kb << 10
		case "MemFree:", "Buffers:", "Cached:", "SwapCached:", "AnonPages:", "SReclaimable:":
			m.kernel -= kb << 10
		}
	}
	return m
}

// sizeText writes a number of bytes for people: "512 MiB".
func sizeText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0") + " " + units[i]
}
