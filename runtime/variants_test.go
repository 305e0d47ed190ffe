package runtime

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// without removes a namespace from a Spec, and what needs it.
func without(s *specs.Spec, kind specs.LinuxNamespaceType) {
	var left []specs.LinuxNamespace
	for _, ns := range s.Linux.Namespaces {
		if ns.Type != kind {
			left = append(left, ns)
		}
	}
	s.Linux.Namespaces = left
}

func TestHostNetwork(t *testing.T) {
	spec := testSpec()
	without(spec, specs.NetworkNamespace)
	r := newRuntime(t)
	if _, err := r.Create(testContext(t), CreateOptions{ID: "net", Spec: spec}); err == nil || !strings.Contains(err.Error(), "network namespace") {
		t.Errorf("sysctls of the host's network were taken: %v", err)
	}
	spec.Linux.Sysctl = nil
	c := start(t, r, CreateOptions{Spec: spec})
	ours, _ := os.Readlink("/proc/self/ns/net")
	if inside := strings.TrimSpace(sh(t, c, "readlink /proc/self/ns/net")); inside != ours {
		t.Errorf("%s, want the host's %s", inside, ours)
	}
	if out := sh(t, c, "ls /sys/class/net; touch /sys/x 2>&1 | grep -c Read-only"); !strings.Contains(out, "lo") || !strings.Contains(out, "1\n") {
		t.Errorf("%q", out)
	}
	if out := sh(t, c, "mount | grep 'on /sys '"); !strings.Contains(out, "(ro,") {
		t.Errorf("%q", out)
	}
}

// TestJoinNetwork shares one network namespace, made beforehand and named by a path, between the test and a container.
func TestJoinNetwork(t *testing.T) {
	holder := exec.Command("/bin/busybox", "sleep", "1000")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC, Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { holder.Process.Kill(); holder.Wait() })
	path := fmt.Sprintf("/proc/%d/ns/net", holder.Process.Pid)
	want, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	spec := testSpec()
	for i := range spec.Linux.Namespaces {
		if spec.Linux.Namespaces[i].Type == specs.NetworkNamespace {
			spec.Linux.Namespaces[i].Path = path
		}
	}
	spec.Linux.Sysctl = nil // they are the owner's to set
	c := start(t, newRuntime(t), CreateOptions{Spec: spec})
	if inside := strings.TrimSpace(sh(t, c, "readlink /proc/self/ns/net; cat /proc/1/comm")); inside != want+"\ninit" {
		t.Errorf("%s, want %s", inside, want)
	}
	if st, err := c.State(testContext(t)); err != nil || st != StateRunning {
		t.Errorf("%s %v", st, err)
	}
	spec.Linux.Namespaces[0].Path = "/proc/none/ns/user"
	if _, err := newRuntime(t).Create(testContext(t), CreateOptions{ID: "bad", Spec: spec}); err == nil {
		t.Error("a namespace that isn't there was joined")
	}
}

// TestJoinUserNamespace has a container live in a user namespace made by somebody else.
func TestJoinUserNamespace(t *testing.T) {
	first := start(t, newRuntime(t), CreateOptions{ID: "first"})
	spec := testSpec()
	spec.Linux.UIDMappings, spec.Linux.GIDMappings = nil, nil
	for i := range spec.Linux.Namespaces {
		if spec.Linux.Namespaces[i].Type == specs.UserNamespace {
			spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/user", first.PID())
		}
	}
	second := start(t, newRuntime(t), CreateOptions{ID: "second", Spec: spec})
	a, b := sh(t, first, "readlink /proc/self/ns/user; id -u"), sh(t, second, "readlink /proc/self/ns/user; id -u")
	if a != b {
		t.Errorf("%s %s", a, b)
	}
	if a, b := sh(t, first, "readlink /proc/self/ns/mnt"), sh(t, second, "readlink /proc/self/ns/mnt"); a == b {
		t.Error("they share their mounts, too")
	}
}

// TestWithoutUserNamespace is how an OCI engine that runs as root may want it: devices are made, root is the host's.
func TestWithoutUserNamespace(t *testing.T) {
	spec := testSpec()
	without(spec, specs.UserNamespace)
	spec.Linux.UIDMappings, spec.Linux.GIDMappings = nil, nil
	root := busyboxRoot(t)
	spec.Root = &specs.Root{Path: root}
	r := newRuntime(t)
	c := create(t, r, CreateOptions{Spec: spec})
	if err := c.Start(testContext(t), StartOptions{}); err != nil {
		t.Fatal(err)
	}
	if out := sh(t, c, "cat /proc/self/uid_map; stat -c '%F %u %a %t:%T' /dev/null; echo x > /dev/null; grep CapEff /proc/self/status"); !strings.Contains(out, "4294967295") ||
		!strings.Contains(out, "character special file 0 666 1:3") || !strings.Contains(out, "00000000a80405fb") {
		t.Errorf("%s", out)
	}
	for _, script := range []string{"readlink /proc/1/exe", "readlink /proc/1/fd/4", "readlink /proc/1/root", "mount -t tmpfs none /tmp", "mknod /tmp/x b 8 0 && cat /tmp/x"} {
		if out, _, st := run(t, c, SessionSpec{Args: []string{"sh", "-c", script}}); st.Code == 0 {
			t.Errorf("%s succeeded: %s", script, out)
		}
	}
	if entries, _ := filepath.Glob(filepath.Join(root, "dev/*")); len(entries) != 0 {
		t.Errorf("the container's devices are in its image: %v", entries)
	}
}

// TestDeviceOfTheSpec lends a node of the host's.
func TestDeviceOfTheSpec(t *testing.T) {
	spec := testSpec()
	spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200}}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/mykmsg", Type: "c", Major: 1, Minor: 11}}
	}
	c := start(t, newRuntime(t), CreateOptions{Spec: spec})
	d := spec.Linux.Devices[0]
	if out := sh(t, c, "stat -c '%F %t:%T' "+d.Path); out != fmt.Sprintf("character special file %x:%x\n", d.Major, d.Minor) {
		t.Errorf("%q", out)
	}
	spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/nothing", Type: "b", Major: 4000, Minor: 1}}
	if _, err := newRuntime(t).Create(testContext(t), CreateOptions{ID: "none", Spec: spec}); err == nil || !strings.Contains(err.Error(), "no node") {
		t.Errorf("%v", err)
	}
}

// TestIDMappedVolumes shows a directory of the host's root with two mappings.
func TestIDMappedVolumes(t *testing.T) {
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := testSpec()
	own := []specs.LinuxIDMapping{{ContainerID: 0, HostID: testUID + 1000, Size: 1}}
	spec.Mounts = append(spec.Mounts,
		specs.Mount{Destination: "/root-s", Type: "bind", Source: volume, Options: []string{"rbind", "ridmap"}},
		specs.Mount{Destination: "/user-s", Type: "bind", Source: volume, Options: []string{"bind", "nosuid", "nodev"}, UIDMappings: own, GIDMappings: own},
	)
	c := start(t, newRuntime(t), CreateOptions{Spec: spec})
	if out := sh(t, c, "stat -c %u:%g /root-s/f /user-s/f; touch /root-s/new"); out != "0:0\n1000:1000\n" {
		t.Errorf("%q", out)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(volume, "new"), &st); err != nil || st.Uid != 0 {
		t.Errorf("uid %d on the host, %v", st.Uid, err)
	}
}

// TestAmbientCapabilities: a user that is not root gets what the Spec's ambient set says, and only that.
func TestAmbientCapabilities(t *testing.T) {
	spec := testSpec()
	c1 := []string{"CAP_NET_BIND_SERVICE"}
	spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: c1, Effective: c1, Permitted: c1, Inheritable: c1, Ambient: c1}
	c := start(t, newRuntime(t), CreateOptions{Spec: spec})
	for _, user := range []string{"", "user"} {
		out, _, _ := run(t, c, SessionSpec{Args: []string{"grep", "Cap", "/proc/self/status"}, User: user})
		if strings.Count(out, "0000000000000400") != 5 {
			t.Errorf("user %q: %s", user, out)
		}
	}
}

func TestSysctlPath(t *testing.T) {
	for key, want := range map[string]string{"net.ipv4.ip_forward": "net/ipv4/ip_forward", "net/ipv4/conf/eth0.1/x": "net/ipv4/conf/eth0.1/x",
		"net.ipv4.conf.eth0/1.x": "net/ipv4/conf/eth0.1/x"} {
		if got := sysctlPath(key); got != want {
			t.Errorf("%s: %s, want %s", key, got, want)
		}
	}
}

// FuzzOptions: mount options come from a user's configuration.
func FuzzOptions(f *testing.F) {
	f.Add("ro,rbind,rslave,size=64k")
	f.Fuzz(func(t *testing.T, text string) {
		flags, err := parseOptions(strings.Split(text, ","))
		if err == nil && (flags.set&flags.clear)&^unix.MOUNT_ATTR__ATIME != 0 {
			t.Fatalf("%q sets and clears %#x", text, flags.set&flags.clear)
		}
	})
}
