package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
)

// controlName is the socket of a container's init, in its state directory.
const controlName = "ctl"

// answerTimeout is how long init may take over a request that it answers at once.
const answerTimeout = 20 * time.Second

// listenControl makes the socket that init will listen on. It is ours to name: init only accepts.
func listenControl(dir *os.File) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), controlName)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: socketPath(dir)})
	if err == nil {
		err = unix.Listen(fd, 4096)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return f, nil
}

// socketPath goes by the directory's descriptor, because a socket address holds no more than 107 bytes of path.
func socketPath(dir *os.File) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + controlName
}

// call sends one request to a container's init and returns the answer with its descriptors, all of them the caller's.
// A negative timeout waits as long as ctx does.
func (c *Container) call(ctx context.Context, request *initproto.Request, fds []int, timeout time.Duration) (*initproto.Reply, []*os.File, error) {
	body, err := request.Encode()
	if err != nil {
		return nil, nil, fmt.Errorf("container %s: the request is too large: %w", c.id, err)
	}
	if len(body) > initproto.MaxInline {
		f, err := bodyFile(body)
		if err != nil {
			return nil, nil, err
		}
		defer f.Close()
		body, fds = []byte{0}, append(fds[:len(fds):len(fds)], int(f.Fd()))
	}
	if len(fds) > initproto.MaxFDs {
		return nil, nil, fmt.Errorf("container %s: %d descriptors are more than one message carries (%d)", c.id, len(fds), initproto.MaxFDs)
	}
	dir, err := os.Open(c.dir)
	if err != nil {
		return nil, nil, c.ended(err)
	}
	defer dir.Close()
	socket, err := dialControl(ctx, dir)
	if err != nil {
		return nil, nil, c.ended(err)
	}
	defer socket.Close()
	stop := context.AfterFunc(ctx, func() { socket.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if timeout >= 0 {
		socket.SetDeadline(time.Now().Add(timeout))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := socket.WriteMsgUnix(body, oob, nil); err != nil {
		return nil, nil, c.unanswered(ctx, err)
	}
	answer := make([]byte, 64<<10)
	oob = make([]byte, unix.CmsgSpace(4*initproto.MaxFDs))
	n, oobn, flags, err := readAnswer(socket, answer, oob)
	if err != nil {
		return nil, nil, c.unanswered(ctx, err)
	}
	files := receivedFiles(oob[:oobn])
	if n == 0 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		closeFiles(files)
		if n == 0 {
			return nil, nil, c.unanswered(ctx, syscall.ECONNRESET)
		}
		return nil, nil, fmt.Errorf("container %s: init's answer is malformed", c.id)
	}
	reply, err := initproto.DecodeReply(answer[:n])
	if err != nil {
		closeFiles(files)
		return nil, nil, fmt.Errorf("container %s: init's answer: %w", c.id, err)
	}
	if reply.Code != initproto.OK {
		closeFiles(files)
		return nil, nil, replyError(c.id, reply)
	}
	return reply, files, nil
}

// readAnswer reads from a peer that hangs up as soon as it has answered. The kernel looks whether there is a message and then
// whether the peer is gone: when both happen in between, it reports the end first (Linux, net/unix, unix_dgram_recvmsg; seen
// once in some hundred reads that raced with the answer). The second read tells which it was.
func readAnswer(socket *net.UnixConn, answer, oob []byte) (n, oobn, flags int, err error) {
	n, oobn, flags, _, err = socket.ReadMsgUnix(answer, oob)
	if errors.Is(err, io.EOF) {
		n, oobn, flags, _, err = socket.ReadMsgUnix(answer, oob)
	}
	return n, oobn, flags, err
}

// dialControl connects to a container's init. A full backlog, which Linux reports as EAGAIN, is waited out: init empties it
// unless it is paused.
func dialControl(ctx context.Context, dir *os.File) (*net.UnixConn, error) {
	for try := 0; ; try++ {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unixpacket", socketPath(dir))
		if err == nil {
			return conn.(*net.UnixConn), nil
		}
		if !errors.Is(err, syscall.EAGAIN) || try == 1000 {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// ended turns a failure to reach init into what it means.
func (c *Container) ended(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("container %s: %w", c.id, ErrNotRunning)
	}
	return fmt.Errorf("container %s: reach init: %w", c.id, err)
}

func (c *Container) unanswered(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("container %s: %w", c.id, ctx.Err())
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("container %s: init does not answer (is the container paused?): %w", c.id, err)
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed), !c.alive():
		return fmt.Errorf("container %s: %w", c.id, ErrNotRunning)
	}
	return fmt.Errorf("container %s: ask init: %w", c.id, err)
}

func replyError(id string, r *initproto.Reply) error {
	switch r.Code {
	case initproto.NotFound:
		return fmt.Errorf("container %s: %s: %w", id, r.Message, ErrNotFound)
	case initproto.Exists:
		return fmt.Errorf("container %s: %s: %w", id, r.Message, ErrExists)
	case initproto.WrongPhase:
		return fmt.Errorf("container %s: %s: %w", id, r.Message, ErrNotRunning)
	case initproto.ExecNotFound:
		return &ExecError{Code: 127, Message: fmt.Sprintf("container %s: %s", id, r.Message)}
	case initproto.ExecFailed:
		return &ExecError{Code: 126, Message: fmt.Sprintf("container %s: %s", id, r.Message)}
	}
	return fmt.Errorf("container %s: %s", id, r.Message)
}

// bodyFile puts a long request into a memfd.
func bodyFile(body []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("request", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "request")
	if _, err := f.Write(body); err != nil {
		f.Close()
		return nil, fmt.Errorf("memfd: %w", err)
	}
	return f, nil
}

// receivedFiles takes the descriptors out of a control message, whatever else is in it.
func receivedFiles(oob []byte) (files []*os.File) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "from init"))
		}
	}
	return files
}

// stateDir is where a container's files are.
func (r *Runtime) stateDir(id string) string { return filepath.Join(r.opts.StateDir, id) }
