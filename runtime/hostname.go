package runtime

import (
	"context"
	"fmt"
	goruntime "runtime"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// SetHostname gives a container with a UTS namespace of its own another host name, of 64 bytes at most (sethostname(2)).
func (c *Container) SetHostname(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ns, err := c.NamespaceFD(specs.UTSNamespace)
	if err != nil {
		return err
	}
	defer ns.Close()
	home, err := unix.Open("/proc/self/ns/uts", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("container %s: open the own UTS namespace: %w", c.id, err)
	}
	defer unix.Close(home)
	var own, theirs unix.Stat_t
	if err := unix.Fstat(home, &own); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	if err := unix.Fstat(int(ns.Fd()), &theirs); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	if own.Ino == theirs.Ino && own.Dev == theirs.Dev {
		return fmt.Errorf("container %s shares this process's UTS namespace: the host's name would be changed", c.id)
	}
	goruntime.LockOSThread()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWUTS); err != nil {
		goruntime.UnlockOSThread()
		return fmt.Errorf("container %s: enter its UTS namespace: %w", c.id, err)
	}
	err = unix.Sethostname([]byte(name))
	if back := unix.Setns(home, unix.CLONE_NEWUTS); back != nil {
		// The thread stays this goroutine's, and so nobody else's, until it ends with it.
		return fmt.Errorf("container %s: leave its UTS namespace: %w", c.id, back)
	}
	goruntime.UnlockOSThread()
	if err != nil {
		return fmt.Errorf("container %s: host name %q: %w", c.id, name, err)
	}
	return nil
}
