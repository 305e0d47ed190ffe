package sshdoor

import (
	"context"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"

	gossh "golang.org/x/crypto/ssh"
)

// maxVariables bounds what environment a client may send.
const maxVariables = 64

// signals are the names of RFC 4254 section 6.10 and their Linux numbers.
var signals = map[string]uint8{"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "ABRT": 6, "FPE": 8, "KILL": 9, "USR1": 10,
	"SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15}

// channel is one SSH session channel and what the client asked of it (RFC 4254 section 6). gliderlabs' own session
// type rewrites line ends on terminals, which ruins what programs inside draw, and blocks on unread window changes;
// so the door reads the requests itself.
type channel struct {
	gossh.Channel
	ctx context.Context // ends when the channel or its connection does
	in  *input

	kind    string // "shell", "exec" or "subsystem"
	command string // of exec; the name of a subsystem
	tty     bool
	term    string
	vars    map[string]string
	signals chan uint8 // full: further ones are dropped

	mu         sync.Mutex
	cols, rows int
	resized    chan struct{} // holds one token after a change of size
}

// size returns the client's window in characters.
func (c *channel) size() (cols, rows int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cols, c.rows
}

// setSize notes a window's size, bounded to what the gateway takes.
func (c *channel) setSize(cols, rows uint32) {
	c.mu.Lock()
	c.cols, c.rows = int(min(max(cols, 1), 1000)), int(min(max(rows, 1), 1000))
	c.mu.Unlock()
	select {
	case c.resized <- struct{}{}:
	default:
	}
}

// environment is what a session gets of the client's variables, as NAME=value.
func (c *channel) environment() []string {
	var out []string
	for k, v := range c.vars {
		out = append(out, k+"="+v)
	}
	if c.tty && c.term != "" {
		out = append(out, "TERM="+c.term)
	}
	return out
}

// allowedVariable limits what reaches a session to what describes the person's terminal and language.
func allowedVariable(name, value string) bool {
	if len(value) > 256 || strings.ContainsAny(value, "\x00\n") {
		return false
	}
	if name == "LANG" || name == "LANGUAGE" || name == "COLORTERM" || name == "TZ" || name == "NO_COLOR" {
		return true
	}
	rest, ok := strings.CutPrefix(name, "LC_")
	return ok && rest != "" && strings.Trim(rest, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") == ""
}

// serveChannel answers a channel's requests and calls run once for the shell, command or subsystem that it asks for.
// run's result is the exit status.
func serveChannel(ctx context.Context, nc gossh.NewChannel, log *slog.Logger, run func(*channel) int) {
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &channel{Channel: ch, ctx: ctx, in: newInput(ch), vars: map[string]string{}, signals: make(chan uint8, 16),
		cols: 80, rows: 24, resized: make(chan struct{}, 1)}
	var done chan struct{}
	for req := range reqs {
		ok := c.request(req, done == nil)
		if req.WantReply {
			_ = req.Reply(ok, nil)
		}
		if ok && done == nil && c.kind != "" {
			done = make(chan struct{})
			go func() {
				defer close(done)
				c.finish(c.guarded(run, log))
			}()
		}
	}
	cancel()
	c.in.close()
	if done != nil {
		<-done
	}
	_ = ch.Close()
}

// guarded keeps a mistake in the handling of one channel from ending everybody's.
func (c *channel) guarded(run func(*channel) int, log *slog.Logger) (code int) {
	defer func() {
		if v := recover(); v != nil {
			log.Error("an SSH session's handler panicked", "panic", v, "stack", string(debug.Stack()))
			code = 255
		}
	}()
	return run(c)
}

// finish tells the client the exit status and closes the channel. The status goes before the end of the output: a client
// whose input has ended answers that end with a close, which package ssh returns at once, and after it nothing can be said.
func (c *channel) finish(code int) {
	c.in.close()
	_, _ = c.SendRequest("exit-status", false, gossh.Marshal(struct{ Status uint32 }{uint32(code)}))
	_ = c.CloseWrite()
	_ = c.Close()
}

// request takes one request in; fresh says that nothing was started yet.
func (c *channel) request(req *gossh.Request, fresh bool) bool {
	switch req.Type {
	case "pty-req":
		var p struct {
			Term                      string
			Cols, Rows, Width, Height uint32
			Modes                     string
		}
		if !fresh || c.tty || gossh.Unmarshal(req.Payload, &p) != nil {
			return false
		}
		c.tty, c.term = true, cleanTerm(p.Term)
		c.setSize(p.Cols, p.Rows)
		return true
	case "env":
		var p struct{ Name, Value string }
		if !fresh || gossh.Unmarshal(req.Payload, &p) != nil || len(c.vars) >= maxVariables || !allowedVariable(p.Name, p.Value) {
			return false
		}
		c.vars[p.Name] = p.Value
		return true
	case "shell":
		if !fresh {
			return false
		}
		c.kind = req.Type
		return true
	case "exec", "subsystem":
		var p struct{ Value string }
		if !fresh || gossh.Unmarshal(req.Payload, &p) != nil {
			return false
		}
		c.kind, c.command = req.Type, p.Value
		return req.Type == "exec" || p.Value == "sftp" || c.refuseSubsystem()
	case "window-change":
		var p struct{ Cols, Rows, Width, Height uint32 }
		if !c.tty || gossh.Unmarshal(req.Payload, &p) != nil {
			return false
		}
		c.setSize(p.Cols, p.Rows)
		return true
	case "signal":
		var p struct{ Name string }
		if gossh.Unmarshal(req.Payload, &p) != nil || signals[p.Name] == 0 {
			return false
		}
		select {
		case c.signals <- signals[p.Name]:
		default:
		}
		return true
	}
	return false // agent and X11 forwarding, breaks, and what nobody knows
}

// refuseSubsystem takes a subsystem that the door does not have back.
func (c *channel) refuseSubsystem() bool {
	c.kind, c.command = "", ""
	return false
}

// cleanTerm keeps a terminal's name only when it is one.
func cleanTerm(s string) string {
	if len(s) > 64 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-._") != "" {
		return "xterm"
	}
	return s
}
