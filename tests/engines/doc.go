// Package engines proves that other people's engines run their containers on lrun: Debian's podman, with conmon, and
// containerd, with its own shim for runc. It holds nothing but tests, which use these engines by their commands, as their
// users do, and look at what comes out.
//
// The tests live in a house of their own (house_test.go): mount, process, network, IPC and cgroup namespaces in which
// nothing of the engines' is shared with the machine's own podman or containerd, and with which everything goes away.
// They run natively and, the part of them that depends on cgroups, in the cgroup v2 guest of tests/vm.
package engines
