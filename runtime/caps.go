package runtime

import (
	"fmt"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
)

// capNames lists capabilities by number (capabilities(7), uapi/linux/capability.h).
var capNames = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
	"CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME",
	"CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
	"CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ",
	"CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

var capNumbers = func() map[string]int {
	m := map[string]int{}
	for i, name := range capNames {
		m[name] = i
	}
	return m
}()

// parseCaps turns the five lists into sets. A Spec without capabilities has none. A permitted set is a subset of the
// bounding set, an ambient one of permitted and inheritable: what breaks that is refused rather than bent.
func parseCaps(c *specs.LinuxCapabilities) (out initproto.Caps, err error) {
	if c == nil {
		return out, nil
	}
	for _, set := range []struct {
		names []string
		bits  *uint64
	}{{c.Bounding, &out.Bounding}, {c.Effective, &out.Effective}, {c.Permitted, &out.Permitted},
		{c.Inheritable, &out.Inheritable}, {c.Ambient, &out.Ambient}} {
		for _, name := range set.names {
			n, ok := capNumbers[name]
			if !ok {
				return out, fmt.Errorf("capability %q is unknown", name)
			}
			*set.bits |= 1 << n
		}
	}
	switch {
	case out.Effective&^out.Permitted != 0:
		return out, fmt.Errorf("capabilities: effective holds %s, which permitted lacks", firstCap(out.Effective&^out.Permitted))
	case out.Permitted&^out.Bounding != 0:
		return out, fmt.Errorf("capabilities: permitted holds %s, which bounding lacks", firstCap(out.Permitted&^out.Bounding))
	case out.Inheritable&^out.Bounding != 0:
		return out, fmt.Errorf("capabilities: inheritable holds %s, which bounding lacks", firstCap(out.Inheritable&^out.Bounding))
	case out.Ambient&^(out.Permitted&out.Inheritable) != 0:
		return out, fmt.Errorf("capabilities: ambient holds %s, which permitted or inheritable lacks",
			firstCap(out.Ambient&^(out.Permitted&out.Inheritable)))
	}
	return out, nil
}

// grantableCaps is parseCaps as the OCI specification has it: what can't be granted (unknown here, not ours to give, or not
// allowed by another of the sets) is warned of and left out. Up to 1.0.2 the unknown was an error, and still is where a
// configuration names that.
func grantableCaps(c *specs.LinuxCapabilities, ociVersion string, userNS bool) (out initproto.Caps, warnings []string, err error) {
	if c == nil {
		return out, nil, nil
	}
	ours := ^uint64(0)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if !userNS && unix.Capget(&header, &data[0]) == nil { // a new user namespace has them all
		ours = uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32
	}
	sets := func(name string, names []string, within uint64, why string) (bits uint64) {
		var refused []string
		for _, capability := range names {
			n, ok := capNumbers[capability]
			switch {
			case !ok && OCIBefore(ociVersion, 1):
				err = fmt.Errorf("capability %q is unknown", capability)
			case !ok:
				warnings = append(warnings, fmt.Sprintf("capability %q is unknown", capability))
			case within&(1<<n) == 0:
				refused = append(refused, capability)
			default:
				bits |= 1 << n
			}
		}
		if len(refused) > 0 {
			warnings = append(warnings, fmt.Sprintf("%s capabilities can't be granted, as %s: %s", name, why, strings.Join(refused, " ")))
		}
		return bits
	}
	out.Bounding = sets("bounding", c.Bounding, ours, "lrun has not got them itself")
	out.Permitted = sets("permitted", c.Permitted, ours, "lrun has not got them itself")
	out.Effective = sets("effective", c.Effective, out.Permitted, "they are not permitted")
	out.Inheritable = sets("inheritable", c.Inheritable, out.Bounding, "they are not in the bounding set")
	out.Ambient = sets("ambient", c.Ambient, out.Permitted&out.Inheritable, "they are not both permitted and inheritable")
	return out, warnings, err
}

func firstCap(bits uint64) string {
	for i, name := range capNames {
		if bits&(1<<i) != 0 {
			return name
		}
	}
	return "something"
}

// hasCap says whether this process has a capability in its effective set.
func hasCap(bit int) bool { return processCaps().Effective&(1<<bit) != 0 }

// permittedCaps is this process's permitted set.
func permittedCaps() uint64 { return processCaps().Permitted }

func processCaps() (c initproto.Caps) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) == nil {
		c.Effective = uint64(data[0].Effective) | uint64(data[1].Effective)<<32
		c.Permitted = uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32
	}
	return c
}
