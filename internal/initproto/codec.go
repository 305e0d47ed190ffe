package initproto

import "unsafe"

// coder walks a message in one direction or the other: each message describes its fields once, in order, and the same
// description writes and reads it, so that the two can't drift apart.
type coder struct {
	buf []byte
	at  int
	out bool
	bad bool
}

func (c *coder) uint(v *uint64, bytes int) {
	if c.out {
		for i := 0; i < bytes; i++ {
			c.buf = append(c.buf, byte(*v>>(8*i)))
		}
		return
	}
	if c.bad || len(c.buf)-c.at < bytes {
		c.bad = true
		return
	}
	*v = 0
	for i := 0; i < bytes; i++ {
		*v |= uint64(c.buf[c.at+i]) << (8 * i)
	}
	c.at += bytes
}

type integer interface {
	~uint8 | ~uint16 | ~uint32 | ~uint64 | ~int32 | ~int64
}

func number[T integer](c *coder, v *T) {
	u := uint64(*v)
	c.uint(&u, int(unsafe.Sizeof(*v)))
	*v = T(u)
}

func (c *coder) bool(v *bool) {
	var b uint8
	if *v {
		b = 1
	}
	number(c, &b)
	if b > 1 {
		c.bad = true
	}
	*v = b == 1
}

// count writes or reads a length and checks that at least min bytes for each element can follow.
func (c *coder) count(n, bound, min int) int {
	u := uint64(n)
	c.uint(&u, 4)
	if c.out {
		if n > bound {
			c.bad = true
		}
		return n
	}
	if c.bad || u > uint64(bound) || int(u)*min > len(c.buf)-c.at {
		c.bad = true
		return 0
	}
	return int(u)
}

func (c *coder) string(s *string) {
	n := c.count(len(*s), maxString, 1)
	if c.out {
		c.buf = append(c.buf, *s...)
		return
	}
	*s = string(c.buf[c.at : c.at+n])
	c.at += n
}

func (c *coder) bytes(b *[]byte) {
	n := c.count(len(*b), maxString, 1)
	if c.out {
		c.buf = append(c.buf, *b...)
		return
	}
	*b = nil
	if n > 0 {
		*b = append([]byte(nil), c.buf[c.at:c.at+n]...)
	}
	c.at += n
}

// list walks a slice. min is the least an element takes, so that a short message can't ask for a long slice.
func list[T any](c *coder, l *[]T, min int, each func(*coder, *T)) {
	n := c.count(len(*l), maxList, min)
	if !c.out {
		*l = nil
		if n > 0 {
			*l = make([]T, n)
		}
	}
	for i := range *l {
		if c.bad {
			return
		}
		each(c, &(*l)[i])
	}
}

func (c *coder) strings(l *[]string) { list(c, l, 4, (*coder).string) }

// option walks a pointer that may be nil.
func option[T any](c *coder, p **T, each func(*coder, *T)) {
	there := *p != nil
	c.bool(&there)
	if !there || c.bad {
		return
	}
	if !c.out {
		*p = new(T)
	}
	each(c, *p)
}

func (c *coder) session(s *Session) {
	c.string(&s.ID)
	c.strings(&s.Args)
	c.strings(&s.Env)
	c.string(&s.Cwd)
	c.string(&s.User)
	c.bool(&s.TTY)
	number(c, &s.Cols)
	number(c, &s.Rows)
	c.bool(&s.MakeCwd)
}

func (c *coder) status(s *Status) {
	number(c, &s.Code)
	number(c, &s.Signal)
	c.string(&s.Reason)
}

func (c *coder) info(i *Info) {
	c.string(&i.ID)
	number(c, &i.PID)
	c.bool(&i.TTY)
	c.bool(&i.HasPIDFD)
	number(c, &i.FDs)
	c.strings(&i.Args)
	c.bool(&i.Exited)
	c.status(&i.Status)
}

func (c *coder) mount(m *Mount) {
	c.string(&m.Dest)
	number(c, &m.FD)
	c.string(&m.FSType)
	c.string(&m.Source)
	c.strings(&m.Options)
	number(c, &m.AttrSet)
	number(c, &m.AttrClear)
	c.bool(&m.Recursive)
	number(c, &m.Propagation)
	c.bool(&m.Strict)
	c.bool(&m.File)
	c.bool(&m.Optional)
	c.bool(&m.LikeTarget)
	c.bool(&m.CopyUp)
}

func (c *coder) device(d *Device) {
	c.string(&d.Path)
	c.string(&d.Host)
	number(c, &d.Mode)
	number(c, &d.Major)
	number(c, &d.Minor)
	number(c, &d.UID)
	number(c, &d.GID)
}

func (c *coder) pair(p *Pair) {
	c.string(&p.Key)
	c.string(&p.Value)
}

func (c *coder) rlimit(r *Rlimit) {
	number(c, &r.Resource)
	number(c, &r.Cur)
	number(c, &r.Max)
}

func (c *coder) plan(p *Plan) {
	number(c, &p.FDs)
	c.string(&p.Hostname)
	c.string(&p.Domainname)
	c.bool(&p.CgroupNS)
	c.bool(&p.UserNS)
	c.bool(&p.OwnDev)
	c.bool(&p.Loopback)
	c.bool(&p.RootReadonly)
	number(c, &p.RootPropagation)
	list(c, &p.Mounts, 40, (*coder).mount)
	list(c, &p.Devices, 28, (*coder).device)
	c.strings(&p.Masked)
	c.strings(&p.Readonly)
	list(c, &p.Sysctl, 8, (*coder).pair)
	list(c, &p.Rlimits, 20, (*coder).rlimit)
	number(c, &p.Caps.Bounding)
	number(c, &p.Caps.Effective)
	number(c, &p.Caps.Permitted)
	number(c, &p.Caps.Inheritable)
	number(c, &p.Caps.Ambient)
	c.bool(&p.NoNewPrivs)
	number(c, &p.Umask)
	list(c, &p.Groups, 4, func(c *coder, g *uint32) { number(c, g) })
	c.string(&p.ExecLabelFile)
	c.string(&p.ExecLabel)
	c.bytes(&p.Seccomp)
	number(c, &p.SeccompFlags)
	c.bool(&p.SeccompOnInit)
	c.bytes(&p.SocketFilter)
	number(c, &p.NetlinkSockets)
	option(c, &p.Main, (*coder).session)
	option(c, &p.Process, (*coder).process)
	number(c, &p.LogMax)
	c.bool(&p.KeepStdin)
}

func (c *coder) process(p *Process) {
	c.strings(&p.Args)
	c.strings(&p.Env)
	c.string(&p.Cwd)
	number(c, &p.UID)
	number(c, &p.GID)
	c.bool(&p.Join)
	c.bool(&p.Now)
	c.bool(&p.Terminal)
	number(c, &p.Cols)
	number(c, &p.Rows)
	number(c, &p.Preserve)
	c.string(&p.RootPath)
	c.bool(&p.NoPivot)
	c.bool(&p.NoKeyring)
	c.bool(&p.Detached)
	list(c, &p.CreateContainer, 16, (*coder).hook)
	list(c, &p.StartContainer, 16, (*coder).hook)
	c.string(&p.Creating)
	c.string(&p.Created)
	c.bool(&p.ListenPID)
	c.bool(&p.SetPersonality)
	number(c, &p.Personality)
	c.bool(&p.SetIOPriority)
	number(c, &p.IOPriority)
	c.bytes(&p.Scheduler)
	c.bytes(&p.Affinity)
	c.bytes(&p.FinalAffinity)
	c.bytes(&p.MemoryPolicy)
	number(c, &p.MemoryPolicyMode)
	c.bool(&p.SetMemoryPolicy)
}

func (c *coder) hook(h *Hook) {
	c.string(&h.Path)
	c.strings(&h.Args)
	c.strings(&h.Env)
	number(c, &h.Seconds)
}

func (c *coder) request(r *Request) {
	number(c, &r.Kind)
	option(c, &r.Plan, (*coder).plan)
	option(c, &r.Session, (*coder).session)
	c.string(&r.ID)
	number(c, &r.Signal)
}

func (c *coder) reply(r *Reply) {
	number(c, &r.Code)
	c.string(&r.Message)
	number(c, &r.Phase)
	list(c, &r.Infos, 20, (*coder).info)
	option(c, &r.Status, (*coder).status)
}

func encode[T any](v *T, size int, each func(*coder, *T)) ([]byte, error) {
	c := &coder{buf: make([]byte, 0, size), out: true}
	c.buf = append(c.buf, Version)
	each(c, v)
	if c.bad || len(c.buf) > MaxMessage {
		return nil, ErrMalformed
	}
	return c.buf, nil
}

func decode[T any](b []byte, each func(*coder, *T)) (*T, error) {
	if len(b) == 0 || len(b) > MaxMessage {
		return nil, ErrMalformed
	}
	if b[0] != Version {
		return nil, ErrVersion
	}
	c := &coder{buf: b, at: 1}
	v := new(T)
	each(c, v)
	if c.bad || c.at != len(b) {
		return nil, ErrMalformed
	}
	return v, nil
}

// Encode returns the request's bytes; ErrMalformed when it passes a bound.
func (r *Request) Encode() ([]byte, error) { return encode(r, 4096, (*coder).request) }

// DecodeRequest reads a request.
func DecodeRequest(b []byte) (*Request, error) { return decode(b, (*coder).request) }

// Encode returns the reply's bytes; ErrMalformed when it passes a bound.
func (r *Reply) Encode() ([]byte, error) { return encode(r, 256, (*coder).reply) }

// DecodeReply reads a reply.
func DecodeReply(b []byte) (*Reply, error) { return decode(b, (*coder).reply) }

// Encode returns the bytes of a status file.
func (s *Status) Encode() ([]byte, error) { return encode(s, 64, (*coder).status) }

// DecodeStatus reads a status file.
func DecodeStatus(b []byte) (*Status, error) { return decode(b, (*coder).status) }
