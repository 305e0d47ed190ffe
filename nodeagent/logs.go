package nodeagent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/learnos/learnos/runtime"
)

// ErrNoLog: the environment's command does not write to a log.
var ErrNoLog = errors.New("it keeps no log")

// LogOptions of Logs.
type LogOptions struct {
	Follow bool // go on until the environment ends
	Tail   int  // only the last lines; 0: all that is kept
}

// logPause is how often a followed log is looked at: init writes it, and nobody else is there to tell.
const logPause = 100 * time.Millisecond

// Logs writes to w what the command of a detached environment has printed. ErrNoLog for one that writes elsewhere.
func (n *Node) Logs(ctx context.Context, id string, w io.Writer, o LogOptions) error {
	r, err := n.Record(id)
	if err != nil {
		return err
	}
	log := runtime.LogFiles{Path: n.logPath(id)}
	var before []byte // what there was the last time
	var marks string
	for first := true; ; first = false {
		// Ask before reading: what ended before has written all.
		over := r.State != StateRunning || !n.initAlive(r)
		if now := logMarks(log); first || now != marks {
			marks = now
			body, err := readLog(log)
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s: %w: only what runs detached (-d) and without a terminal does", describe(r), ErrNoLog)
			}
			if err != nil {
				return fmt.Errorf("logs of %s: %w", describe(r), err)
			}
			fresh := after(body, before)
			if first {
				fresh = lastLines(body, o.Tail)
			}
			if _, err := w.Write(fresh); err != nil {
				return err
			}
			before = body
		}
		if !o.Follow || over {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(logPause):
		}
		if r, err = n.Record(id); err != nil {
			return nil // removed while we looked
		}
	}
}

func readLog(l runtime.LogFiles) ([]byte, error) {
	r, err := runtime.ReadLog(l)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// logMarks changes whenever the files do.
func logMarks(l runtime.LogFiles) string {
	var marks string
	for _, path := range []string{l.Path, l.Path + ".1"} {
		if info, err := os.Stat(path); err == nil {
			marks += fmt.Sprintln(info.Size(), info.ModTime().UnixNano())
		}
	}
	return marks
}

// after is what body has beyond before. Once the log has gone round, body begins later than before did: then what
// before ended with is looked for, and if the same text stands there more than once, some comes twice, none is lost.
func after(body, before []byte) []byte {
	if bytes.HasPrefix(body, before) {
		return body[len(before):]
	}
	end := before[max(0, len(before)-4096):]
	if at := bytes.Index(body, end); at >= 0 {
		return body[at+len(end):]
	}
	return body
}

// lastLines is the last n lines of body, or all of it if n is 0.
func lastLines(body []byte, n int) []byte {
	if n <= 0 {
		return body
	}
	at := len(bytes.TrimSuffix(body, []byte("\n")))
	for range n {
		i := bytes.LastIndexByte(body[:at], '\n')
		if i < 0 {
			return body
		}
		at = i
	}
	return body[at+1:]
}
