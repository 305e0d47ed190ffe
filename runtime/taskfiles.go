package runtime

import (
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto/rawfork"
)

// groups makes the v1 part of the cgroup, and sets all limits. The child makes its namespaces meanwhile.
func (b *birth) groups() error {
	resources := b.o.Spec.Linux.Resources
	if err := b.group.create(optionalControllers(resources), false); err != nil {
		return err
	}
	if err := b.group.apply(resources, b.o.Main != nil); err != nil {
		return err
	}
	for _, path := range b.later.paths {
		if _, err := b.own(openTasks(path)); err != nil {
			return err
		}
		b.later.files = append(b.later.files, b.files[len(b.files)-1])
	}
	return nil
}

func openTasks(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// taskFiles are the v1 groups' tasks files, which the child gets with its go-ahead, since they are made while it is on its way.
// It enters them by itself (see cgroup.tasks), and has one thread then.
type taskFiles struct {
	paths   []string
	files   []*os.File
	numbers []int32 // of the child's descriptors, as the message's control data has them
}

// message is what recvmsg(2) fills in. The kernel writes the control data's header in front of the numbers.
type message struct {
	header  unix.Msghdr
	iov     unix.Iovec
	body    [1]byte
	control []byte
}

func newTaskFiles(g *cgroup, optional map[string]bool) *taskFiles {
	t := &taskFiles{}
	for _, h := range g.hs.all {
		if !h.v2 && g.uses(h, optional) {
			t.paths = append(t.paths, filepath.Join(g.dir(h), "tasks"))
		}
	}
	return t
}

// enter adds the child's part to its program.
func (t *taskFiles) enter(p *rawfork.Program, sync uintptr) {
	m := &message{}
	p.Keep(m)
	m.iov.Base = &m.body[0]
	m.iov.SetLen(1)
	m.header.Iov, m.header.Iovlen = &m.iov, 1
	if len(t.paths) > 0 {
		m.control = make([]byte, unix.CmsgSpace(4*len(t.paths)))
		m.header.Control = &m.control[0]
		m.header.SetControllen(len(m.control))
		t.numbers = unsafe.Slice((*int32)(unsafe.Pointer(&m.control[unix.CmsgLen(0)])), len(t.paths))
		for i := range t.numbers {
			t.numbers[i] = -1 // no descriptor, should one not arrive
		}
	}
	p.Add("go-ahead", rawfork.Byte, unix.SYS_RECVMSG, sync, uintptr(unsafe.Pointer(&m.header)), unix.MSG_CMSG_CLOEXEC)
	zero := p.Bytes([]byte{'0'})
	for i, path := range t.paths {
		p.Add("enter cgroup "+filepath.Dir(path), rawfork.Must, unix.SYS_WRITE, uintptr(unsafe.Pointer(&t.numbers[i])), zero, 1).Load(0)
	}
}

// goAhead lets the child pass.
func (t *taskFiles) goAhead(sync *os.File) error {
	var oob []byte
	if len(t.files) > 0 {
		var fds []int
		for _, f := range t.files {
			fds = append(fds, int(f.Fd()))
		}
		oob = unix.UnixRights(fds...)
	}
	return unix.Sendmsg(int(sync.Fd()), []byte{1}, oob, nil, unix.MSG_NOSIGNAL)
}
