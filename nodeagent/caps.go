package nodeagent

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/learnos/learnos/runtime"
)

// Capabilities are what root inside will have, by their proper names. The error says what can't be given, and what can.
func (o *CreateOptions) Capabilities() ([]string, error) {
	return capabilities(o.CapAdd, o.CapDrop, o.HostUsers, o.Net)
}

// capabilities are what root inside has: the default ones without those in drop and with those in add, as docker has it;
// one that is in both is added. "ALL" drops every one; to add, the one that is needed has to be named.
func capabilities(add, drop []string, hostUsers bool, net string) ([]string, error) {
	has := runtime.DefaultCapabilities()
	if hostUsers {
		// Root inside is the kernel's root then. The device list keeps it from opening a disk's node, but not a user of
		// the host who finds one in a volume.
		has = slices.DeleteFunc(has, func(name string) bool { return name == "CAP_MKNOD" })
	}
	harmless := append(slices.Clone(has), "CAP_NET_RAW")
	if slices.ContainsFunc(drop, isAll) {
		has, drop = nil, slices.DeleteFunc(slices.Clone(drop), isAll)
	}
	if slices.ContainsFunc(add, isAll) {
		return nil, errors.New("capabilities to add: ALL is more than anybody needs: name those that are")
	}
	without, err := runtime.CapabilityNames(drop)
	if err != nil {
		return nil, fmt.Errorf("capabilities to drop: %w", err)
	}
	has = slices.DeleteFunc(has, func(name string) bool { return slices.Contains(without, name) })
	more, err := runtime.CapabilityNames(add)
	if err != nil {
		return nil, fmt.Errorf("capabilities to add: %w", err)
	}
	for _, name := range more {
		err := runtime.OwnCapability(name)
		switch {
		case err != nil:
		case hostUsers && !slices.Contains(harmless, name):
			err = fmt.Errorf("%s is power over the host where the environment has no user namespace of its own", name)
		case net == NetHost && !hostUsers && (name == "CAP_NET_RAW" || name == "CAP_NET_ADMIN"):
			err = fmt.Errorf("%s does nothing on the host's network, which is not the environment's: it needs one of its own", name)
		}
		if err != nil {
			return nil, fmt.Errorf("capabilities to add: %w", err)
		}
		if !slices.Contains(has, name) {
			has = append(has, name)
		}
	}
	return has, nil
}

func isAll(name string) bool { return strings.EqualFold(strings.TrimSpace(name), "ALL") }

// capabilities gives root inside what the record says, and the system calls that go with it.
func (r *Record) capabilities(s *specs.Spec) error {
	hostUsers := r.FirstID == 0
	if !hostUsers && len(r.CapAdd)+len(r.CapDrop) == 0 {
		return nil // as the default is, whose profile is made already
	}
	has, err := capabilities(r.CapAdd, r.CapDrop, hostUsers, r.Net)
	if err != nil {
		return err
	}
	c := s.Process.Capabilities
	c.Bounding, c.Effective, c.Permitted = has, slices.Clone(has), slices.Clone(has)
	profile, err := runtime.DefaultSeccomp(s)
	if err != nil {
		return err
	}
	s.Linux.Seccomp = profile
	return nil
}

// properNames are capabilities as a record has them, so that equal wishes look equal. They were checked before.
func properNames(typed []string) []string {
	if slices.ContainsFunc(typed, isAll) {
		return []string{"ALL"}
	}
	names, _ := runtime.CapabilityNames(typed)
	return names
}
