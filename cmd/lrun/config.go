package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Before encoding/json decodes a type it prepares it, with all types that can be reached from it, for encoding, too. For the
// whole of specs.Spec that takes several times as long as decoding a configuration. So the sections are decoded one by
// one, those that are there.

// section is one of them, decoded if present.
type section[T any] struct{ it *T }

func (s *section[T]) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	s.it = new(T)
	return json.Unmarshal(b, s.it)
}

// MarshalJSON is what spares T the preparation.
func (s section[T]) MarshalJSON() ([]byte, error) { return json.Marshal(s.it) }

type specSections struct {
	Version     string                 `json:"ociVersion"`
	Process     section[specs.Process] `json:"process"`
	Root        *specs.Root            `json:"root"`
	Hostname    string                 `json:"hostname"`
	Domainname  string                 `json:"domainname"`
	Mounts      []specs.Mount          `json:"mounts"`
	Hooks       section[specs.Hooks]   `json:"hooks"`
	Annotations map[string]string      `json:"annotations"`
	Linux       section[linuxSections] `json:"linux"`
	Solaris     json.RawMessage        `json:"solaris"`
	Windows     json.RawMessage        `json:"windows"`
	VM          json.RawMessage        `json:"vm"`
	ZOS         json.RawMessage        `json:"zos"`
	FreeBSD     json.RawMessage        `json:"freebsd"`
}

// linuxSections hides the embedded fields of the same names.
type linuxSections struct {
	specs.Linux
	Resources    section[resourceSections]                 `json:"resources"`
	Seccomp      section[specs.LinuxSeccomp]               `json:"seccomp"`
	IntelRdt     section[specs.LinuxIntelRdt]              `json:"intelRdt"`
	MemoryPolicy section[specs.LinuxMemoryPolicy]          `json:"memoryPolicy"`
	NetDevices   section[map[string]specs.LinuxNetDevice]  `json:"netDevices"`
	TimeOffsets  section[map[string]specs.LinuxTimeOffset] `json:"timeOffsets"`
	Personality  section[specs.LinuxPersonality]           `json:"personality"`
	Devices      section[[]specs.LinuxDevice]              `json:"devices"`
}

type resourceSections struct {
	specs.LinuxResources
	BlockIO        section[specs.LinuxBlockIO]         `json:"blockIO"`
	HugepageLimits section[[]specs.LinuxHugepageLimit] `json:"hugepageLimits"`
	Network        section[specs.LinuxNetwork]         `json:"network"`
	Rdma           section[map[string]specs.LinuxRdma] `json:"rdma"`
}

// readConfig reads a config.json.
func readConfig(path string) (*specs.Spec, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseConfig(path, b)
}

func parseConfig(path string, b []byte) (*specs.Spec, error) {
	var in specSections
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, other := range []json.RawMessage{in.Solaris, in.Windows, in.VM, in.ZOS, in.FreeBSD} {
		if len(other) > 0 && string(other) != "null" {
			return nil, fmt.Errorf("%s: this is a runtime for Linux, and there is a section for another platform", path)
		}
	}
	out := &specs.Spec{Version: in.Version, Process: in.Process.it, Root: in.Root, Hostname: in.Hostname, Domainname: in.Domainname,
		Mounts: in.Mounts, Hooks: in.Hooks.it, Annotations: in.Annotations}
	if l := in.Linux.it; l != nil {
		out.Linux = &l.Linux
		out.Linux.Seccomp, out.Linux.IntelRdt, out.Linux.MemoryPolicy = l.Seccomp.it, l.IntelRdt.it, l.MemoryPolicy.it
		out.Linux.Personality = l.Personality.it
		if x := l.NetDevices.it; x != nil {
			out.Linux.NetDevices = *x
		}
		if x := l.TimeOffsets.it; x != nil {
			out.Linux.TimeOffsets = *x
		}
		if x := l.Devices.it; x != nil {
			out.Linux.Devices = *x
		}
		if r := l.Resources.it; r != nil {
			out.Linux.Resources = &r.LinuxResources
			out.Linux.Resources.BlockIO, out.Linux.Resources.Network = r.BlockIO.it, r.Network.it
			if x := r.HugepageLimits.it; x != nil {
				out.Linux.Resources.HugepageLimits = *x
			}
			if x := r.Rdma.it; x != nil {
				out.Linux.Resources.Rdma = *x
			}
		}
	}
	return out, nil
}
