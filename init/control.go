package main

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto"
)

// maxConns bounds the connections held at once: all of them are the agent's, most live for one answer, and a waiter costs
// one for as long as its session lasts.
const maxConns = 2 * initproto.MaxSessions

// conn is one request and its answer.
type conn struct {
	fd  int
	fds []int // received with the request; closed with the connection unless taken
}

// accept takes in whoever asks. When the table is full the oldest goes: a waiter asks again, a hoarder loses.
func (s *server) accept() {
	for {
		fd, _, err := unix.Accept4(s.listen, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err != nil {
			return
		}
		if len(s.conns) >= maxConns {
			s.hangUp(s.conns[0])
		}
		if peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil || s.isInside(peer) {
			unix.Close(fd)
			continue
		}
		c := &conn{fd: fd}
		s.conns = append(s.conns, c)
		s.watch(fd, func() { s.serve(c) })
	}
}

// isInside says that a peer is of our own process namespace. The socket's path is not visible inside; should it ever be,
// the host's processes still have no number here.
func (s *server) isInside(peer *unix.Ucred) bool { return unix.Getpid() == 1 && peer.Pid != 0 }

func (s *server) hangUp(c *conn) {
	for i := range s.conns {
		if s.conns[i] == c {
			s.conns = append(s.conns[:i], s.conns[i+1:]...)
			break
		}
	}
	for _, session := range s.sessions {
		session.forget(c)
	}
	if s.setup == c {
		s.setup = nil
	}
	closeAll(c.fds)
	c.fds = nil
	s.drop(c.fd)
}

func closeAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// answer sends the one reply and hangs up. A peer that does not read loses it: we wait for nobody.
func (s *server) answer(c *conn, r *initproto.Reply, fds ...int) {
	if len(r.Message) > 4096 {
		r.Message = r.Message[:4096]
	}
	r.Phase = s.phase
	b, err := r.Encode()
	if err == nil {
		var oob []byte
		if len(fds) > 0 {
			oob = unix.UnixRights(fds...)
		}
		unix.SendmsgN(c.fd, b, oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	}
	s.hangUp(c)
}

func (s *server) refuse(c *conn, code initproto.Code, message string) {
	s.answer(c, &initproto.Reply{Code: code, Message: message})
}

// serve reads a connection's request. Waiters are watched, too: what then becomes readable is their end.
func (s *server) serve(c *conn) {
	request, err := receive(c)
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if err != nil {
		if err == initproto.ErrMalformed || err == initproto.ErrVersion {
			s.refuse(c, initproto.Invalid, err.Error())
			return
		}
		s.hangUp(c)
		return
	}
	if request.Kind != initproto.Setup {
		closeAll(c.fds)
		c.fds = nil
		if request.Kind != initproto.Ping && s.phase == initproto.Waiting {
			s.refuse(c, initproto.WrongPhase, "the environment has not been started")
			return
		}
	}
	switch request.Kind {
	case initproto.Setup:
		s.serveSetup(c, request.Plan)
	case initproto.Exec:
		s.serveExec(c, request.Session)
	case initproto.List:
		s.serveList(c)
	case initproto.Ping:
		s.answer(c, &initproto.Reply{})
	case initproto.Attach, initproto.Wait, initproto.Signal, initproto.CloseStdin:
		session := s.find(request.ID)
		if session == nil || session.starting != nil {
			s.refuse(c, initproto.NotFound, "no session "+strconvQuote(request.ID))
			return
		}
		s.serveSession(c, request, session)
	default:
		s.refuse(c, initproto.Invalid, "unknown request")
	}
}

func (s *server) serveSession(c *conn, request *initproto.Request, session *session) {
	switch request.Kind {
	case initproto.Attach:
		info, fds := session.handles()
		s.answer(c, &initproto.Reply{Infos: []initproto.Info{info}}, fds...)
	case initproto.Wait:
		if session.exited {
			session.asked = true
			s.answer(c, &initproto.Reply{Status: &session.status})
			return
		}
		session.waiters = append(session.waiters, c)
	case initproto.Signal:
		if session.exited {
			s.refuse(c, initproto.NotFound, "session "+strconvQuote(session.id)+" has ended")
			return
		}
		if request.Signal < 0 || request.Signal > 64 {
			s.refuse(c, initproto.Invalid, "no such signal")
			return
		}
		// The process is ours and not reaped, so its number is still its own.
		if err := unix.Kill(session.pid, unix.Signal(request.Signal)); err != nil {
			s.refuse(c, initproto.Failed, "signal: "+err.Error())
			return
		}
		s.answer(c, &initproto.Reply{})
	case initproto.CloseStdin:
		session.closeStdin()
		s.answer(c, &initproto.Reply{})
	}
}

// serveList tells every session, with the pidfd of those that run.
func (s *server) serveList(c *conn) {
	reply := &initproto.Reply{}
	var fds []int
	for _, session := range s.sessions {
		if session.starting != nil {
			continue
		}
		info, handles := session.handles()
		if info.HasPIDFD {
			fds = append(fds, handles[0])
		}
		info.FDs = 0
		reply.Infos = append(reply.Infos, info)
	}
	s.answer(c, reply, fds...)
}

// receive reads one request and the descriptors that came with it.
func receive(c *conn) (*initproto.Request, error) {
	// Ask for the size first: most requests are tiny, and a large buffer kept for the rare one would be kept for ever.
	size, _, err := unix.Recvfrom(c.fd, nil, unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, err
	}
	if size > initproto.MaxInline {
		return nil, unix.EMSGSIZE
	}
	buf := make([]byte, max(size, 1))
	oob := make([]byte, unix.CmsgSpace(4*initproto.MaxFDs))
	n, oobn, flags, _, err := unix.Recvmsg(c.fd, buf, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
		for i := range messages {
			if fds, err := unix.ParseUnixRights(&messages[i]); err == nil {
				c.fds = append(c.fds, fds...)
			}
		}
	}
	if n == 0 {
		return nil, unix.ECONNRESET
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return nil, initproto.ErrMalformed
	}
	buf = buf[:n]
	if n == 1 && buf[0] == 0 { // the body is in a memfd
		if len(c.fds) == 0 {
			return nil, initproto.ErrMalformed
		}
		last := len(c.fds) - 1
		buf, err = readAll(c.fds[last], initproto.MaxMessage)
		unix.Close(c.fds[last])
		c.fds = c.fds[:last]
		if err != nil {
			return nil, initproto.ErrMalformed
		}
	}
	return initproto.DecodeRequest(buf)
}

// readAll reads a regular file of at most limit bytes from its start.
func readAll(fd int, limit int64) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, syscall.EINVAL
	}
	if st.Size > limit {
		return nil, unix.EFBIG
	}
	buf := make([]byte, st.Size)
	done := 0
	for done < len(buf) {
		n, err := unix.Pread(fd, buf[done:], int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		done += n
	}
	return buf[:done], nil
}

// strconvQuote puts quotes around what a stranger named, without the weight of strconv.Quote.
func strconvQuote(s string) string {
	b := make([]byte, 0, len(s)+2)
	b = append(b, '"')
	for i := 0; i < len(s) && i < 200; i++ {
		if s[i] < ' ' || s[i] == 0x7f || s[i] == '"' {
			b = append(b, '?')
		} else {
			b = append(b, s[i])
		}
	}
	return string(append(b, '"'))
}
