package sshdoor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// Exit statuses of the door itself; a session's own pass through.
const (
	exitUsage = 2   // the login or the request made no sense
	exitDoor  = 255 // what ssh itself uses when the way there is broken
)

const (
	// quietFor is how long a command that waits for its machine says nothing about it: scripts read stderr, people wonder.
	quietFor = 2 * time.Second
	// quietOnTerminal is the same where a person looks on: what is quicker than an eye needs no words.
	quietOnTerminal = 150 * time.Millisecond
)

// visit is one SSH connection of a person: what its channels share.
type visit struct {
	door    *Door
	p       *person
	login   Login
	local   net.Addr // where the client met the door
	badTo   error    // the login's target makes no sense
	watched sync.Once

	reaching sync.Mutex // held while target is found, made and waited for
	target   *target    // what login.Target turned out to be; nil until a channel needed it

	mu       sync.Mutex
	open     int
	left     bool
	keep     bool // a terminal was cut off, or files were copied in: the machine stays until it is idle
	promised bool // a person was told that the machine ends with their shell
	channels sync.WaitGroup
}

// enter counts a channel in; false when there are too many, or when the connection is gone.
func (v *visit) enter() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.left || v.open >= maxChannels {
		return false
	}
	v.open++
	v.channels.Add(1)
	return true
}

func (v *visit) exit() {
	v.mu.Lock()
	v.open--
	v.mu.Unlock()
	v.channels.Done()
}

// target is the machine that a login names.
type target struct {
	env   environment
	fresh bool // made for this connection, and deleted with it
}

// run serves one channel and returns its exit status.
func (v *visit) run(c *channel) int {
	w := language(c.vars)
	if v.badTo != nil {
		return v.fail(c, w, v.badTo, exitUsage)
	}
	if c.kind == "subsystem" {
		return v.sftp(c, w)
	}
	if v.login.Target == "" {
		switch {
		case c.kind == "exec":
			return v.fail(c, w, &apiError{own: true, Message: w.whichMachine,
				Hint: fmt.Sprintf(w.nameIt, fmt.Sprintf("%s %.60q", v.address("ssh", "busybox"), c.command))}, exitUsage)
		case c.tty:
			return v.pick(c, w)
		default:
			return v.list(c, w)
		}
	}
	t, err := v.reach(c, w)
	if err != nil {
		return v.fail(c, w, err, exitDoor)
	}
	if c.tty && t.fresh {
		v.mu.Lock()
		v.promised = true
		v.mu.Unlock()
		v.say(c, fmt.Sprintf(w.gone, t.env.label()))
	}
	code := v.session(c, w, t.env, "", c.in)
	if c.kind == "exec" && receives(c.command) && c.ctx.Err() == nil && code < 126 { // from 126 on there was no such program
		v.retain(c, w, t.env)
	}
	return code
}

// address is the command that leads to a machine of the person's through the door they came in by, such as
// "ssh -p 8022 alice+web@203.0.113.7": the client's own word for the host never reaches a server. program is ssh, scp or
// sftp.
func (v *visit) address(program, machine string) string {
	host, port, err := net.SplitHostPort(v.local.String())
	if err != nil {
		host, port = v.local.String(), "22"
	}
	flag := "-p"
	if program != "ssh" {
		flag = "-P"
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
	}
	if port != "22" {
		program += " " + flag + " " + port
	}
	return fmt.Sprintf("%s %s+%s@%s", program, v.login.User, machine, host)
}

// errCancelled: the person pressed Ctrl-C.
var errCancelled = errors.New("cancelled")

// reach returns the machine that the login names, makes it when it names an image, and waits until it runs. All channels of
// a connection share it, so that `ssh -M`, scp and sftp beside a shell meet the same machine.
func (v *visit) reach(c *channel, w words) (target, error) {
	v.reaching.Lock()
	defer v.reaching.Unlock()
	if v.target == nil {
		t, err := v.find(c.ctx, w)
		if err != nil {
			return target{}, err
		}
		v.target = t
	}
	env, err := v.await(c, w, v.target.env)
	if err != nil {
		return target{}, err
	}
	v.target.env = env
	return *v.target, nil
}

// find says what the login's target is: an environment's id, an image, or an environment's name, in this order.
// An image comes before a machine of the same name, so that alice+busybox always means the same.
func (v *visit) find(ctx context.Context, w words) (*target, error) {
	name := v.login.Target
	envs, err := v.p.environments(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range envs {
		if e.ID == name && !e.ended() {
			return &target{env: e}, nil
		}
	}
	images, err := v.p.images(ctx)
	if err != nil {
		return nil, err
	}
	var known []string
	for _, i := range images {
		if i.Name == name {
			env, err := v.p.create(context.WithoutCancel(ctx), name) // one that was made must be known, to be deleted
			return &target{env: env, fresh: true}, err
		}
		known = append(known, i.Name)
	}
	for _, e := range envs {
		if e.Name == name && !e.ended() {
			return &target{env: e}, nil
		}
	}
	hint := w.noImages
	if len(known) > 0 {
		hint = fmt.Sprintf(w.imagesAre, strings.Join(known, " "))
	}
	return nil, &apiError{own: true, Status: http.StatusNotFound, Message: fmt.Sprintf(w.unknown, name), Hint: hint}
}

// await waits until env runs and shows how it comes up: on a terminal at once, for a command only when it takes long.
// Ctrl-C gives up.
func (v *visit) await(c *channel, w words, env environment) (environment, error) {
	if env.State == "running" {
		return env, nil
	}
	ctx, cancel := context.WithCancelCause(c.ctx)
	defer cancel(nil)
	watching := make(chan struct{})
	if c.tty {
		stop := make(chan struct{})
		go func() {
			defer close(watching)
			r := c.in.reader(stop)
			buf := make([]byte, 256)
			var typed []byte
			for {
				n, err := r.Read(buf)
				if bytes.IndexByte(buf[:n], 3) >= 0 {
					cancel(errCancelled)
					return
				}
				if len(typed) < 4096 {
					typed = append(typed, buf[:n]...)
				}
				if err != nil {
					c.in.unread(typed) // what was typed ahead belongs to the shell
					return
				}
			}
		}()
		defer func() { close(stop); <-watching }()
	}
	progress := newProgress(c)
	env, err := v.p.waitRunning(ctx, env, func(e environment) {
		if e.State != "running" && !e.ended() {
			progress.set(e.label(), stageLine(w, e))
		}
	})
	progress.close()
	if cause := context.Cause(ctx); err != nil && cause != nil && c.ctx.Err() == nil {
		err = cause
	}
	return env, err
}

// progress shows the last thing it was told, once the wait is long enough to be worth words: on a terminal in one line
// that is erased again, else in lines of standard error.
type progress struct {
	c *channel

	mu     sync.Mutex
	timer  *time.Timer
	due    bool
	closed bool
	name   string
	line   string
	shown  string
}

func newProgress(c *channel) *progress {
	p := &progress{c: c}
	after := quietFor
	if c.tty {
		after = quietOnTerminal
	}
	p.timer = time.AfterFunc(after, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.due = true
		p.show()
	})
	return p
}

func (p *progress) set(name, line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.name, p.line = name, printable(line)
	p.show()
}

// show is called with mu held.
func (p *progress) show() {
	if !p.due || p.closed || p.line == "" || p.line == p.shown {
		return
	}
	p.shown = p.line
	if p.c.tty {
		_, _ = fmt.Fprintf(p.c, "\r\x1b[K%s: %s", p.name, p.line)
		return
	}
	_, _ = fmt.Fprintf(p.c.Stderr(), "learnos: %s: %s\n", p.name, p.line)
}

func (p *progress) close() {
	p.timer.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed = true; p.shown != "" && p.c.tty {
		_, _ = fmt.Fprint(p.c, "\r\x1b[K")
	}
}

// stageLine says in a person's words how far an environment is.
func stageLine(w words, e environment) string {
	var line string
	switch e.State {
	case "queued":
		line = w.queued
		if e.QueuePosition != nil && *e.QueuePosition > 0 {
			line = fmt.Sprintf(w.queuedAt, *e.QueuePosition)
		}
		if why := w.reason(e); why != "" {
			line += " (" + why + ")"
		}
		return line
	case "pulling":
		line = w.pulling
	case "creating":
		line = w.creating
	default:
		line = w.states[e.State]
	}
	if e.Stage != "" && e.Stage != e.State {
		line += ": " + e.Stage
	}
	if e.Percent > 0 && e.Percent < 100 {
		line += fmt.Sprintf(" %d%%", e.Percent)
	}
	return line
}

// session starts a session in env, or takes up an existing one, carries it to its end, and returns its exit status.
// in is what it reads: the channel's input, or something that reads along.
func (v *visit) session(c *channel, w words, env environment, existing string, in *input) int {
	id := existing
	if id == "" {
		req := sessionRequest{TTY: c.tty, Env: c.environment()}
		if c.kind == "exec" {
			req.Args = []string{"/bin/sh", "-c", c.command}
		}
		if c.tty {
			req.Cols, req.Rows = c.size()
		}
		var err error
		if id, err = v.p.startSession(c.ctx, env.ID, req); err != nil {
			return v.fail(c, w, err, exitDoor)
		}
	}
	end, err := attach(c.ctx, v.p, env.ID, id, ends{in: in, out: c, errOut: c.Stderr(), terminal: c})
	switch {
	case c.ctx.Err() != nil:
		if c.tty {
			v.mu.Lock()
			v.keep = true
			v.mu.Unlock()
			return exitDoor
		}
		v.closeLater(env.ID, id) // nobody is left to read what the command says
		return exitDoor
	case err != nil:
		if s := statusOf(err); s == http.StatusNotFound || s == http.StatusConflict || s == http.StatusGone {
			err = v.whyGone(c.ctx, w, env, err)
		}
		return v.fail(c, w, err, exitDoor)
	}
	if end.reason != "" {
		v.say(c, end.reason)
	}
	v.closeLater(env.ID, id)
	return end.code & 0xff
}

// whyGone turns "no such session" into what became of the machine, where that is known.
func (v *visit) whyGone(ctx context.Context, w words, env environment, err error) error {
	now, getErr := v.p.environment(ctx, env.ID)
	if getErr != nil || now.State == "running" {
		return err
	}
	msg := fmt.Sprintf(w.goneNow, env.label(), w.states[now.State])
	if why := w.reason(now); why != "" {
		msg += " " + why
	}
	return &apiError{own: true, Status: http.StatusGone, Message: msg, Hint: w.stateHint(now)}
}

// closeLater forgets a session that nobody will come back to.
func (v *visit) closeLater(env, session string) {
	v.door.background(func(ctx context.Context) { _ = v.p.closeSession(ctx, env, session) })
}

// leave ends the visit: the machine that was made for it is deleted, unless a terminal in it was cut off or it holds what
// was copied into it.
func (v *visit) leave() {
	v.mu.Lock()
	v.left = true
	v.mu.Unlock()
	v.door.background(func(ctx context.Context) {
		v.channels.Wait()
		v.mu.Lock()
		t, keep := v.target, v.keep
		v.mu.Unlock()
		if t != nil && t.fresh && !keep {
			for wait := time.Second; ; wait *= 2 {
				err := v.p.remove(ctx, t.env.ID)
				if !transient(err) || ctx.Err() != nil {
					if err != nil {
						v.door.log.Warn("a machine made for one SSH connection could not be deleted; it goes when it is idle", "environment", t.env.ID, "err", err)
					}
					break
				}
				select {
				case <-ctx.Done():
				case <-time.After(wait):
				}
			}
		}
		v.p.logout(ctx)
	})
}

// say writes a line of the door's own to where it does not mix with output.
func (v *visit) say(c *channel, line string) {
	if c.tty {
		fmt.Fprintf(c, "\x1b[2mlearnos: %s\x1b[0m\r\n", line)
		return
	}
	fmt.Fprintf(c.Stderr(), "learnos: %s\n", line)
}

// fail says what went wrong and what to do, and returns the status to exit with.
func (v *visit) fail(c *channel, w words, err error, status int) int {
	if c.ctx.Err() != nil {
		return status
	}
	out, eol := c.Stderr().Write, "\n"
	if c.tty {
		out, eol = c.Write, "\r\n"
	}
	msg, hint := w.explain(err)
	if statusOf(err) == 0 && transient(err) && !errors.Is(err, errInputLost) && strings.HasPrefix(msg, "asking the gateway") {
		v.door.log.Warn("the gateway did not answer", "err", err)
		msg, hint = w.away, w.tryAgain
	}
	if errors.Is(err, errCancelled) {
		msg = w.cancelled
	}
	text := "learnos: " + printable(msg) + eol
	if hint != "" {
		text += "learnos: " + w.hint + ": " + printable(hint) + eol
	}
	_, _ = out([]byte(text))
	return status
}

// printable drops control characters: an error may quote what a stranger typed.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return ' '
		}
		return r
	}, s)
}

// list answers a login without a terminal and without a command.
func (v *visit) list(c *channel, w words) int {
	images, err := v.p.images(c.ctx)
	if err != nil {
		return v.fail(c, w, err, exitDoor)
	}
	envs, err := v.p.environments(c.ctx)
	if err != nil {
		return v.fail(c, w, err, exitDoor)
	}
	var b strings.Builder
	table := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	fmt.Fprintf(table, w.welcome+"\n\n%s:\n", v.login.User, w.environments)
	n := 0
	for _, e := range envs {
		if !e.ended() {
			fmt.Fprintf(table, "  %s\t%s, %s\n", v.address("ssh", e.label()), e.Image, w.states[e.State])
			n++
		}
	}
	if n == 0 {
		fmt.Fprintf(table, "  %s\n", w.none)
	}
	fmt.Fprintf(table, "\n%s:\n", w.images)
	for _, i := range images {
		fmt.Fprintf(table, "  %s\t%s\n", v.address("ssh", i.Name), i.title(w))
	}
	_ = table.Flush() // into memory
	_, _ = c.Write([]byte(b.String()))
	return 0
}
