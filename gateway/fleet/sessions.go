package fleet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/learnos/learnos/gateway/problem"
	"github.com/learnos/learnos/gateway/store"
	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/tunnel"
)

// ask sends one request about a running environment to its node. Errors are problems for the client.
func (f *Fleet) ask(ctx context.Context, e store.Environment, req tunnel.Request) (*tunnel.Conn, error) {
	if e.State != queue.StateRunning || e.Node == "" {
		return nil, problem.New(http.StatusConflict, "not_running", fmt.Sprintf("The environment is %s.", e.State), "This works while it is running.")
	}
	req.Env = e.ID
	ctx, cancel := context.WithTimeout(ctx, tunnelIn)
	defer cancel()
	conn, err := f.Tunnel.Open(ctx, e.Node, req)
	if err == nil {
		return conn, nil
	}
	var refused *tunnel.Error
	switch {
	case errors.Is(err, tunnel.ErrNodeOffline), errors.Is(err, context.DeadlineExceeded):
		return nil, problem.New(http.StatusServiceUnavailable, "node_offline", "The environment's node is away for the moment.",
			"The environment waits there unharmed. Connect again in a few seconds.").After(2 * time.Second)
	case errors.As(err, &refused):
		hint := "Correct the request and send it again."
		status := http.StatusBadGateway
		switch refused.Code {
		case tunnel.CodeBadRequest:
			status = http.StatusUnprocessableEntity
		case tunnel.CodeNotFound:
			status, hint = http.StatusNotFound, "It may have ended; open a new terminal."
		case tunnel.CodeConflict:
			status, hint = http.StatusConflict, "Look at the environment's state, then try again."
		case tunnel.CodeLimit:
			status, hint = http.StatusConflict, "Close a session that you no longer need."
		default:
			refused.Code, hint = "node_error", "Try again; if it stays, show this to whoever runs the installation."
		}
		return nil, problem.New(status, refused.Code, "The node says: "+refused.Message, hint)
	}
	f.Log.Warn("ask a node", "node", e.Node, "op", req.Op, "environment", e.ID, "error", err)
	return nil, problem.New(http.StatusBadGateway, "node_error", "The environment's node did not answer as expected.", "Try again in a few seconds.")
}

// one is ask for operations that are over with the reply.
func (f *Fleet) one(ctx context.Context, e store.Environment, req tunnel.Request) (tunnel.Reply, error) {
	conn, err := f.ask(ctx, e, req)
	if err != nil {
		return tunnel.Reply{}, err
	}
	conn.Close()
	return conn.Reply, nil
}

// Sessions lists what runs inside an environment.
func (f *Fleet) Sessions(ctx context.Context, e store.Environment) ([]tunnel.SessionInfo, error) {
	reply, err := f.one(ctx, e, tunnel.Request{Op: tunnel.OpSessionList})
	return reply.Sessions, err
}

// StartSession starts a terminal or a command and returns its id.
func (f *Fleet) StartSession(ctx context.Context, e store.Environment, req tunnel.Request) (string, error) {
	req.Op = tunnel.OpSessionCreate
	reply, err := f.one(ctx, e, req)
	return reply.Session, err
}

// CloseSession ends a session.
func (f *Fleet) CloseSession(ctx context.Context, e store.Environment, session string) error {
	_, err := f.one(ctx, e, tunnel.Request{Op: tunnel.OpSessionClose, Session: session})
	return err
}

// Attach opens a session's stream of frames.
func (f *Fleet) Attach(ctx context.Context, e store.Environment, session string, offset uint64, cols, rows uint16) (*tunnel.Conn, error) {
	return f.ask(ctx, e, tunnel.Request{Op: tunnel.OpSessionAttach, Session: session, Offset: offset, Cols: cols, Rows: rows})
}

// Extend moves an environment's deadline by d.
func (f *Fleet) Extend(ctx context.Context, e store.Environment, d time.Duration) (store.Environment, error) {
	if e.Deadline == 0 {
		return e, problem.New(http.StatusConflict, "no_deadline", "The environment has no deadline.", "It stays until you delete it.")
	}
	wish, latest := e.Deadline.Std().Add(d), f.latestDeadline(e)
	if wish.After(latest) {
		left := max(latest.Sub(e.Deadline.Std()).Truncate(time.Second), 0)
		hint := fmt.Sprintf("Ask for at most %d seconds.", int64(left.Seconds()))
		if left == 0 {
			hint = "Save what you need and start a new environment."
		}
		return e, problem.New(http.StatusConflict, "lifetime_limit",
			fmt.Sprintf("An environment lives at most %s; this one can be extended by %s more.", f.Policy.MaxLifetime, left), hint)
	}
	reply, err := f.one(ctx, e, tunnel.Request{Op: tunnel.OpExtend, Deadline: wish})
	if err != nil {
		return e, err
	}
	if !reply.Deadline.IsZero() {
		wish = reply.Deadline
	}
	e, _, err = f.Store.ChangeEnvironment(context.WithoutCancel(ctx), e.ID, f.now(), func(e *store.Environment) (bool, string, error) {
		e.Deadline = store.At(wish)
		return true, "deadline moved to " + wish.UTC().Format(time.RFC3339), nil
	})
	if err == nil {
		f.Changed(e.UserID, e.ID)
	}
	return e, err
}
