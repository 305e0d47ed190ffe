package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Handler serves one stream on the node. It answers with WriteReply or Fail before any other byte. ctx ends with
// the tunnel. conn is a *Conn; it is closed when the handler returns.
type Handler func(ctx context.Context, req Request, conn net.Conn)

// DialGateway runs one tunnel until it breaks or ctx ends, and returns why after all its handlers have returned.
// addr, certSHA256 and token are queue's GatewayInfo and TunnelToken. The caller tries again, with a backoff.
func DialGateway(ctx context.Context, addr, certSHA256 string, token []byte, nodeName string, handler Handler) error {
	if len(token) < minToken {
		return fmt.Errorf("dial gateway %s: a token of %d bytes is too short", addr, len(token))
	}
	if !nameForm.MatchString(nodeName) {
		return fmt.Errorf("dial gateway %s: %q is no node name", addr, nodeName)
	}
	conn, err := dialGateway(ctx, addr, certSHA256, token, nodeName)
	if err != nil {
		return fmt.Errorf("dial gateway %s: %w", addr, err)
	}
	defer conn.Close()
	s, err := mux(conn, true, slog.Default())
	if err != nil {
		return fmt.Errorf("dial gateway %s: %w", addr, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var handlers sync.WaitGroup
	defer handlers.Wait()
	defer s.Close()
	defer cancel()
	for {
		stream, err := s.AcceptStreamWithContext(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("tunnel to gateway %s: %w", addr, err)
		}
		handlers.Add(1)
		go func() {
			defer handlers.Done()
			c := &Conn{Conn: stream}
			defer c.Close()
			serveStream(ctx, c, handler)
		}()
	}
}

func serveStream(ctx context.Context, c *Conn, handler Handler) {
	_ = c.SetReadDeadline(time.Now().Add(handshakeIn))
	line, err := readLine(c, MaxLine)
	if err != nil {
		_ = Fail(c, CodeBadRequest, "read request: "+err.Error())
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	req, err := parseRequest(line)
	if err != nil {
		_ = Fail(c, CodeBadRequest, err.Error())
		return
	}
	if req.Op == OpPing {
		_ = WriteReply(c, Reply{})
		return
	}
	handler(ctx, req, c)
}

// Failed turns the error of a handler's work into its refusal: an *Error keeps its code, others are internal.
func Failed(conn net.Conn, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return Fail(conn, e.Code, e.Message)
	}
	return Fail(conn, CodeInternal, err.Error())
}
