// Package engines proves that other people's engines run their containers on lrun: Debian's podman, with conmon, and
// containerd, with its own shim for runc. It holds nothing but tests, which use these engines by their commands, as their
// users do, and look at what comes out.
//
// The tests live in a house of their own (house_test.go): mount, process, network, IPC and cgroup namespaces in which
// nothing of the engines' is shared with the machine's own podman or containerd, and with which everything goes away.
// They run natively, and those that are about cgroups in the cgroup v2 guest, too (tests/vm). That one is slow: there all of
// them run by `make engines` only, and some by hand:
//
//	CGO_ENABLED=0 go build -o bin/ ./cmd/lrun ./tests/vm/vmexec
//	LEARNOS_ENGINES_LRUN=$PWD/bin/lrun CGO_ENABLED=0 go test -p 1 -exec $PWD/bin/vmexec -run 'TestPodman$/(--memory|update)' ./tests/engines
package engines
