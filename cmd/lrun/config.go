package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// linuxSpec is specs.Spec without the other platforms' sections, which we only have to see: making ready to decode their
// types takes encoding/json as long as all the rest.
type linuxSpec struct {
	Version     string            `json:"ociVersion"`
	Process     *specs.Process    `json:"process"`
	Root        *specs.Root       `json:"root"`
	Hostname    string            `json:"hostname"`
	Domainname  string            `json:"domainname"`
	Mounts      []specs.Mount     `json:"mounts"`
	Hooks       *specs.Hooks      `json:"hooks"`
	Annotations map[string]string `json:"annotations"`
	Linux       *specs.Linux      `json:"linux"`
	Solaris     json.RawMessage   `json:"solaris"`
	Windows     json.RawMessage   `json:"windows"`
	VM          json.RawMessage   `json:"vm"`
	ZOS         json.RawMessage   `json:"zos"`
	FreeBSD     json.RawMessage   `json:"freebsd"`
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
	var l linuxSpec
	if err := json.Unmarshal(b, &l); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, other := range []json.RawMessage{l.Solaris, l.Windows, l.VM, l.ZOS, l.FreeBSD} {
		if len(other) > 0 && string(other) != "null" {
			return nil, fmt.Errorf("%s: this is a runtime for Linux, and there is a section for another platform", path)
		}
	}
	return &specs.Spec{Version: l.Version, Process: l.Process, Root: l.Root, Hostname: l.Hostname, Domainname: l.Domainname,
		Mounts: l.Mounts, Hooks: l.Hooks, Annotations: l.Annotations, Linux: l.Linux}, nil
}
