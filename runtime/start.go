package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
	"github.com/learnos/learnos/internal/initproto/rawfork"
)

// startTimeout bounds what init does in Start. Most of it is some thirty system calls; the rest is Main's exec, which may
// have to wait for a disk.
const startTimeout = 60 * time.Second

// Start builds the root file system and the confinement inside and starts Main, if there is one. It is called once, by the
// process that created the container. When it fails the container has ended, with the reason as its status, and is to be
// deleted; a Main that can't be executed gives an *ExecError.
func (c *Container) Start(ctx context.Context, o StartOptions) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.options == nil {
		return fmt.Errorf("start container %s: it was created by another process, or has been started already", c.id)
	}
	p := c.plan
	fds, opened, err := c.mountFDs(p, o)
	defer closeFiles(opened)
	if err != nil {
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	p.FDs = uint16(len(fds))
	<-c.left
	if err := setOOMScore(c.state.PID, c.options.Spec); err != nil && c.alive() {
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	_, files, err := c.call(ctx, &initproto.Request{Kind: initproto.Setup, Plan: &p.Plan}, fds, startTimeout)
	closeFiles(files)
	if err != nil {
		if errors.Is(err, ErrNotRunning) && !c.alive() {
			// It was up a moment ago: say what became of it.
			return fmt.Errorf("start container %s: init has ended: %s: %w", c.id, c.exitStatus().Reason, ErrNotRunning)
		}
		return err
	}
	c.options, c.plan = nil, nil
	return nil
}

// mountFDs collects the detached mounts that go with the plan: the root first.
func (c *Container) mountFDs(p *plan, o StartOptions) (fds []int, opened []*os.File, err error) {
	root := o.Root
	if root == nil {
		spec := c.options.Spec.Root
		if spec == nil || spec.Path == "" {
			return nil, nil, errors.New("neither StartOptions.Root nor Spec.Root.Path says what becomes /")
		}
		root, err = c.attach(&bind{source: spec.Path, recursive: true})
		if err != nil {
			return nil, nil, err
		}
		opened = append(opened, root)
	}
	fds = append(fds, int(root.Fd()))
	for i := range p.binds {
		f, err := c.attach(&p.binds[i])
		if err != nil {
			return nil, opened, fmt.Errorf("mount %s: %w", p.Mounts[p.binds[i].mount].Dest, err)
		}
		opened = append(opened, f)
		p.Mounts[p.binds[i].mount].FD = int32(len(fds))
		fds = append(fds, int(f.Fd()))
	}
	for _, m := range o.Mounts {
		dest := path.Clean(m.Destination)
		if !path.IsAbs(dest) || dest == "/" || dest == "/proc" {
			return nil, opened, fmt.Errorf("mount %s: the destination must be an absolute path other than / and /proc", m.Destination)
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(m.FD.Fd()), &st); err != nil {
			return nil, opened, fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		p.Mounts = append(p.Mounts, initproto.Mount{Dest: dest, FD: int32(len(fds)), Strict: strict(dest),
			File: st.Mode&unix.S_IFMT != unix.S_IFDIR})
		fds = append(fds, int(m.FD.Fd()))
	}
	return fds, opened, nil
}

// mappingNamespace returns a user namespace with a bind's id mappings: the container's own unless others are given.
func (c *Container) mappingNamespace(b *bind) (*os.File, error) {
	l := c.options.Spec.Linux
	if len(b.uids) == 0 && len(b.gids) == 0 || slices.Equal(b.uids, l.UIDMappings) && slices.Equal(b.gids, l.GIDMappings) {
		return c.NamespaceFD(specs.UserNamespace)
	}
	return newUserNamespace(b.uids, b.gids)
}

// newUserNamespace makes one that holds nothing but its mappings, by way of a process that lives for a moment.
func newUserNamespace(uids, gids []specs.LinuxIDMapping) (*os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pair[0])
	var program rawfork.Program
	program.Add("parent death signal", rawfork.Must, unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	program.Add("close", rawfork.Must, unix.SYS_CLOSE, uintptr(pair[0]))
	program.Add("wait", rawfork.Byte, unix.SYS_READ, uintptr(pair[1]), program.Bytes(make([]byte, 1)), 1)
	p, err := rawfork.Start(&program, unix.CLONE_NEWUSER, -1)
	unix.Close(pair[1])
	if err != nil {
		return nil, fmt.Errorf("user namespace: %w", err)
	}
	defer p.Abort()
	proc := fmt.Sprintf("/proc/%d/", p.PID)
	if err := writeFile(proc+"uid_map", idMap(uids)); err != nil {
		return nil, fmt.Errorf("uidMappings: %w", err)
	}
	if err := writeFile(proc+"gid_map", idMap(gids)); err != nil {
		return nil, fmt.Errorf("gidMappings: %w", err)
	}
	return os.Open(proc + "ns/user")
}
