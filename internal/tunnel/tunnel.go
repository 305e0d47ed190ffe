// Package tunnel carries streams between gateways and nodes over one connection that the node dials, so that a
// node behind NAT works and no port of a node is open to the world.
//
// # Trust
//
// The connection is TLS 1.3 with a self-signed certificate of the gateway's, whose SHA-256 the node knows from
// etcd. Then both prove that they know the shared token, by an HMAC over material that both export from this very
// TLS connection (RFC 8446 section 7.5, RFC 9266): the token itself never travels, and a proof is worth nothing on
// any other connection, so somebody in the middle gains nothing by relaying it.
//
// # Streams
//
// The connection is multiplexed by yamux. The gateway opens a stream for each request: one line of JSON (Request),
// answered by one line of JSON (Reply), then the operation's own bytes both ways: term frames for session.attach,
// JSON lines for stats. A peer that stops answering is noticed in DeadAfter.
//
// Conn.CloseWrite ends one direction: the peer reads everything that was written and then io.EOF; what it still
// sends can be read for CloseGrace, then the stream is reset. Conn.Close ends both: bytes already written still
// arrive, the peer's reads end with io.EOF and its writes fail after CloseGrace at the latest. An end of input
// that must be followed by more than CloseGrace of output is said in the operation's own protocol (term's eof frame).
//
// The package knows nothing of what the operations do, and dials once: reconnecting is the caller's.
package tunnel

import (
	"encoding/json"
	"time"
)

// Operations that a gateway asks of a node.
const (
	OpSessionCreate = "session.create"
	OpSessionAttach = "session.attach"
	OpSessionList   = "session.list"
	OpSessionClose  = "session.close"
	OpExtend        = "extend"
	OpStats         = "stats"
	OpLogs          = "logs"
	OpPing          = "ping"
)

// FromStart as Request.Offset asks for everything that the session's ring still holds.
const FromStart = ^uint64(0)

// Codes of a refused request.
const (
	CodeBadRequest = "bad_request"
	CodeNotFound   = "not_found"
	CodeConflict   = "conflict"
	CodeLimit      = "limit"
	CodeInternal   = "internal"
)

// Request is the first line of a stream. Op decides which of the other fields mean something.
type Request struct {
	Op       string    `json:"op"`
	Env      string    `json:"env,omitempty"`      // environment id; "" in stats: all of the node's
	Session  string    `json:"session,omitempty"`  // session.attach, session.close
	Offset   uint64    `json:"offset,omitempty"`   // session.attach: resume here, or FromStart
	Args     []string  `json:"args,omitempty"`     // session.create: empty means the image's shell
	Vars     []string  `json:"vars,omitempty"`     // session.create: NAME=value
	Cwd      string    `json:"cwd,omitempty"`      // session.create
	User     string    `json:"user,omitempty"`     // session.create
	TTY      bool      `json:"tty,omitempty"`      // session.create
	Cols     uint16    `json:"cols,omitempty"`     // session.create, session.attach
	Rows     uint16    `json:"rows,omitempty"`     // session.create, session.attach
	ReadOnly bool      `json:"readOnly,omitempty"` // session.attach: input is refused
	Deadline time.Time `json:"deadline,omitzero"`  // extend
	Follow   bool      `json:"follow,omitempty"`   // logs
	Tail     int       `json:"tail,omitempty"`     // logs: last lines; 0: all
}

// Reply is the line that answers a request; afterwards come the operation's own bytes.
type Reply struct {
	OK       bool            `json:"ok"`
	Error    string          `json:"error,omitempty"` // when not OK: what was wrong
	Code     string          `json:"code,omitempty"`  // when not OK: one of the Code constants
	Session  string          `json:"session,omitempty"`
	Deadline time.Time       `json:"deadline,omitzero"`
	Sessions []SessionInfo   `json:"sessions,omitempty"`
	Data     json.RawMessage `json:"data,omitempty"`
}

// SessionInfo is one row of session.list.
type SessionInfo struct {
	ID        string    `json:"id"`
	Args      []string  `json:"args"`
	TTY       bool      `json:"tty"`
	Exited    bool      `json:"exited"`
	ExitCode  int       `json:"exitCode"`
	CreatedAt time.Time `json:"createdAt"`
}

// Stats is one line of a stats stream.
type Stats struct {
	Env         string  `json:"env"`
	CPUNanos    int64   `json:"cpuNanos"`
	CPUPercent  float64 `json:"cpuPercent"` // 100 is one whole CPU
	MemoryBytes int64   `json:"memoryBytes"`
	MemoryLimit int64   `json:"memoryLimit"`
	RxBytes     int64   `json:"rxBytes"`
	TxBytes     int64   `json:"txBytes"`
	PIDs        int64   `json:"pids"`
	Connected   int     `json:"connected"` // attached terminals
}

// Error is a refused request.
type Error struct{ Code, Message string }

func (e *Error) Error() string { return e.Message }

const (
	// MaxLine is the size of the longest request or reply in bytes, without its newline.
	MaxLine = 64 << 10
	// CloseGrace is how long a stream may stay half closed.
	CloseGrace = 10 * time.Second
	// DeadAfter is how long a peer may be silent before its tunnel counts as broken, at most.
	DeadAfter = keepAlive + writeTimeout

	keepAlive    = 3 * time.Second
	writeTimeout = 6 * time.Second
	handshakeIn  = 10 * time.Second
)
