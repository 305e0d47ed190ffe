// Package tunnel carries streams between gateways and nodes over one connection that the node dials.
package tunnel

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
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

// ErrNodeOffline: the node has no living tunnel to this gateway.
var ErrNodeOffline = errors.New("node is offline")

// Identity is a gateway's certificate for its tunnels.
type Identity struct {
	Certificate tls.Certificate
	SHA256      string // hex, of the certificate's DER: what nodes pin
}

// NewIdentity makes a key and a self-signed certificate that live as long as the process.
func NewIdentity() (*Identity, error) { return nil, errStub }

// HubOptions of ServeGateway.
type HubOptions struct {
	Log *slog.Logger // slog.Default()
	// OnChange is told when a node comes or goes, in order, from one goroutine.
	OnChange func(node string, online bool)
}

// Hub holds the tunnels of the nodes that dialled this gateway.
type Hub struct{}

// ServeGateway accepts tunnels on ln (plain TCP: TLS is put on here) until ctx ends.
func ServeGateway(ctx context.Context, ln net.Listener, token []byte, id *Identity, o HubOptions) *Hub {
	return &Hub{}
}

// Open sends a request to a node, waits for its reply line and returns the stream behind it. A refusal is an
// *Error, a missing node ErrNodeOffline. ctx bounds the wait for the reply only.
func (h *Hub) Open(ctx context.Context, node string, req Request) (*Conn, error) {
	return nil, errStub
}

// Nodes lists the nodes with a tunnel, by name.
func (h *Hub) Nodes() []string { return nil }

// Close ends all tunnels.
func (h *Hub) Close() error { return nil }

// Conn is a stream; on the gateway's side with the node's reply.
type Conn struct {
	net.Conn
	Reply Reply
}

// Handler serves one stream on the node. It answers with WriteReply or Fail before any other byte. ctx ends
// with the tunnel. The stream is closed when the handler returns.
type Handler func(ctx context.Context, req Request, conn net.Conn)

// DialGateway runs one tunnel until it breaks or ctx ends.
func DialGateway(ctx context.Context, addr, certSHA256 string, token []byte, nodeName string, handler Handler) error {
	return errStub
}

// WriteReply answers a request; OK is set for the caller.
func WriteReply(conn net.Conn, r Reply) error { return errStub }

// Fail refuses a request.
func Fail(conn net.Conn, code, message string) error { return errStub }

var errStub = errors.New("tunnel: not written yet")
