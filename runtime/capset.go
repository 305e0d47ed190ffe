package runtime

import (
	"fmt"
	"slices"
	"strings"
)

// ownCapabilities are those that the kernel asks for relative to a user namespace (ns_capable in its sources): the others
// mean something only where root is the machine's.
var ownCapabilities = append(DefaultCapabilities(), "CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_SYS_NICE",
	"CAP_DAC_READ_SEARCH", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_CHECKPOINT_RESTORE")

// CapabilityNames gives capabilities as people write them ("net_raw", "CAP_NET_RAW") their proper names, each once, sorted.
// The error for one that does not exist lists those that do.
func CapabilityNames(typed []string) ([]string, error) {
	var names []string
	for _, t := range typed {
		name := "CAP_" + strings.TrimPrefix(strings.ToUpper(strings.TrimSpace(t)), "CAP_")
		if _, known := capNumbers[name]; !known {
			return nil, fmt.Errorf("there is no capability %q; there are %s", t, listCapabilities(capNames[:]))
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// OwnCapability says whether a capability, by its proper name, does anything in a user namespace. The error for one that
// does not lists those that do.
func OwnCapability(name string) error {
	if slices.Contains(ownCapabilities, name) {
		return nil
	}
	return fmt.Errorf("%s is power over the whole machine, which no user namespace gives; it can give %s", name, listCapabilities(ownCapabilities))
}

func listCapabilities(names []string) string {
	var short []string
	for _, name := range names {
		short = append(short, strings.TrimPrefix(name, "CAP_"))
	}
	slices.Sort(short)
	return strings.Join(short, ", ")
}
