package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// hugePagesDir has a directory for each size of huge pages (mm/hugetlbpage.rst).
const hugePagesDir = "/sys/kernel/mm/hugepages"

// HugePages names the sizes of huge pages that there are to be had on this machine, as the specification does ("2MB"): those
// that its operator has reserved or allows to be made. unlimited says why they can't be limited, nil when they can.
func HugePages() (sizes []string, unlimited error) {
	sizes = hugePages(hugePagesDir)
	if len(sizes) == 0 {
		return nil, nil
	}
	hs, err := findHierarchies()
	if err != nil {
		return sizes, err
	}
	if hs.control["hugetlb"] == nil {
		return sizes, errors.New("the kernel has no hugetlb cgroup controller, or it is not mounted")
	}
	return sizes, nil
}

func hugePages(dir string) (sizes []string) {
	entries, _ := os.ReadDir(dir) // a kernel without has none
	for _, e := range entries {
		text, ok := strings.CutSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB")
		kb, err := strconv.ParseUint(text, 10, 64)
		if !ok || err != nil {
			continue
		}
		for _, file := range []string{"nr_hugepages", "nr_overcommit_hugepages"} {
			b, err := readFile(filepath.Join(dir, e.Name(), file))
			if n := strings.TrimSpace(string(b)); err == nil && n != "0" {
				sizes = append(sizes, pageSize(kb))
				break
			}
		}
	}
	return sizes
}

// pageSize is how cgroups write a size (mm/hugetlb_cgroup.c).
func pageSize(kb uint64) string {
	switch {
	case kb >= 1<<20:
		return fmt.Sprintf("%dGB", kb>>20)
	case kb >= 1<<10:
		return fmt.Sprintf("%dMB", kb>>10)
	}
	return fmt.Sprintf("%dKB", kb)
}
