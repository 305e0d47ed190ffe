package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// ErrNoLog: the environment's command does not write to a log.
var ErrNoLog = errors.New("it keeps no log")

// LogOptions of Logs.
type LogOptions struct {
	Follow bool // go on until the environment ends
	Tail   int  // only the last lines; 0: all that is kept
}

// Logs writes to w what the main command of a detached environment has printed.
func (n *Node) Logs(ctx context.Context, id string, w io.Writer, o LogOptions) error {
	return fmt.Errorf("%w", ErrNoLog)
}
