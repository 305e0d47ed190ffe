package tunnel

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"time"

	"github.com/hashicorp/yamux"
)

// Conn is a stream; on the gateway's side with the node's reply. See the package comment for how it is closed.
type Conn struct {
	net.Conn
	Reply Reply
}

// CloseWrite ends what this side sends; reading goes on for CloseGrace.
func (c *Conn) CloseWrite() error { return c.Conn.Close() }

// Close ends both directions.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	_ = c.Conn.SetReadDeadline(time.Unix(1, 0)) // our own pending reads end too
	return err
}

// mux is yamux with this package's timings. Its log lines become debug messages: what matters is returned.
func mux(conn net.Conn, client bool, l *slog.Logger) (*yamux.Session, error) {
	cfg := yamux.DefaultConfig()
	cfg.LogOutput = nil
	cfg.Logger = log.New(logWriter{l}, "", 0)
	cfg.KeepAliveInterval = keepAlive
	cfg.ConnectionWriteTimeout = writeTimeout
	cfg.StreamOpenTimeout = 0 // Open waits for the reply under its own context
	cfg.StreamCloseTimeout = CloseGrace
	cfg.MaxStreamWindowSize = 1 << 20
	if client {
		return yamux.Client(conn, cfg)
	}
	return yamux.Server(conn, cfg)
}

type logWriter struct{ l *slog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	w.l.Debug("tunnel multiplexer", "message", strings.TrimSpace(string(p)))
	return len(p), nil
}

// readLine reads up to and without a newline, and not one byte more: what follows belongs to the operation.
func readLine(r io.Reader, limit int) ([]byte, error) {
	var line []byte
	var b [1]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			if err == io.EOF && len(line) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if b[0] == '\n' {
			return line, nil
		}
		if len(line) == limit {
			return nil, fmt.Errorf("line is longer than %d bytes", limit)
		}
		line = append(line, b[0])
	}
}

func writeLine(w io.Writer, v any, limit int) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(line) > limit {
		return fmt.Errorf("line of %d bytes, the limit is %d", len(line), limit)
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

var opName = regexp.MustCompile(`^[a-z][a-z.]{0,31}$`)

// parseRequest checks what every operation can rely on: one JSON object with an operation's name. Unknown fields
// pass, so that gateways and nodes can be upgraded one after the other.
func parseRequest(line []byte) (Request, error) {
	var req Request
	d := json.NewDecoder(bytes.NewReader(line))
	if err := d.Decode(&req); err != nil {
		return Request{}, fmt.Errorf("request is no JSON object: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return Request{}, errors.New("request has more than one JSON value")
	}
	if !opName.MatchString(req.Op) {
		return Request{}, fmt.Errorf("op %q is no operation", req.Op)
	}
	if strings.ContainsAny(req.Env+req.Session, "/\x00") {
		return Request{}, errors.New("env and session are identifiers without slashes")
	}
	return req, nil
}

// WriteReply answers a request; OK is set for the caller.
func WriteReply(conn net.Conn, r Reply) error {
	r.OK = true
	if err := writeLine(conn, r, MaxLine); err != nil {
		return fmt.Errorf("answer request: %w", err)
	}
	return nil
}

// Fail refuses a request: code is one of the Code constants, message is for a person.
func Fail(conn net.Conn, code, message string) error {
	if len(message) > 4<<10 {
		message = strings.ToValidUTF8(message[:4<<10], "")
	}
	if err := writeLine(conn, Reply{Code: code, Error: message}, MaxLine); err != nil {
		return fmt.Errorf("refuse request: %w", err)
	}
	return nil
}
