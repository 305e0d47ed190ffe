package runtime

import (
	"maps"
	"os"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// OCIFeatures says what OCI containers may ask for (runtime-spec, features.md).
func OCIFeatures() *features.Features {
	yes, no := true, false
	options := append(slices.Collect(maps.Keys(attrOptions)), slices.Collect(maps.Keys(propagations))...)
	for o := range attrOptions {
		options = append(options, "r"+o)
	}
	options = append(options, "bind", "rbind", "idmap", "ridmap", "defaults")
	slices.Sort(options)
	text := func(list ...string) []string { slices.Sort(list); return list }
	kinds := []string{string(specs.TimeNamespace)}
	for k := range namespaceKinds {
		kinds = append(kinds, string(k))
	}
	arches := []string{}
	for a := range auditArches() {
		arches = append(arches, string(a))
	}
	flags := []string{}
	for f := range filterFlags {
		flags = append(flags, string(f))
	}
	modes, modeFlags := []string{}, []string{}
	for m := range memoryModes {
		modes = append(modes, string(m))
	}
	for f := range memoryFlags {
		modeFlags = append(modeFlags, string(f))
	}
	apparmor := hasAppArmor()
	selinux := selinuxEnabled()
	return &features.Features{
		OCIVersionMin: "1.0.0", OCIVersionMax: specs.Version,
		Hooks:        []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"},
		MountOptions: options,
		Linux: &features.Linux{
			Namespaces:   text(kinds...),
			Capabilities: slices.Clone(capNames[:]),
			Cgroup:       &features.Cgroup{V1: &yes, V2: &yes, Systemd: &no, SystemdUser: &no, Rdma: &yes},
			Seccomp: &features.Seccomp{
				Enabled: &yes,
				Actions: text("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD",
					"SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"),
				Operators: text("SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"),
				Archs:     text(arches...), KnownFlags: text(flags...), SupportedFlags: text(flags...),
			},
			Apparmor:        &features.Apparmor{Enabled: &apparmor},
			Selinux:         &features.Selinux{Enabled: &selinux},
			IntelRdt:        &features.IntelRdt{Enabled: &no},
			MemoryPolicy:    &features.MemoryPolicy{Modes: text(modes...), Flags: text(modeFlags...)},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
			NetDevices:      &features.NetDevices{Enabled: &no},
		},
	}
}

func hasAppArmor() bool {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && len(b) > 0 && b[0] == 'Y'
}

// OCISpec is a configuration for people to start from: a shell on a terminal in the root file system "rootfs".
func OCISpec() *specs.Spec {
	s := DefaultSpec()
	s.Hostname = "lrun"
	s.Root = &specs.Root{Path: "rootfs", Readonly: true}
	s.Process.Terminal = true
	s.Process.Args = []string{"sh"}
	s.Process.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"}
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}}
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace })
	s.Linux.Sysctl, s.Linux.Seccomp = nil, nil
	s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	return s
}
