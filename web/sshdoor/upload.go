package sshdoor

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"
)

// A machine that is made for one connection goes with it, and what was copied into it would go too: scp would end well
// and the file be nowhere. So a machine that has taken an upload stays, and the person is told its name.

// receives reports whether a command is the far end of a copy into the machine: `scp -t` (which `scp -O` asks for), or
// rsync's server when it is not the sender.
func receives(command string) bool {
	words := strings.Fields(command)
	if len(words) < 2 {
		return false
	}
	has := func(word string) bool {
		for _, w := range words[1:] {
			if w == word {
				return true
			}
			if w == "--" || !strings.HasPrefix(w, "-") {
				break
			}
		}
		return false
	}
	switch words[0] {
	case "scp":
		return has("-t")
	case "rsync":
		return words[1] == "--server" && !has("--sender")
	}
	return false
}

// Packets of the SFTP protocol, version 3 (draft-ietf-secsh-filexfer-02), that an upload is made of.
const (
	fxpOpen, fxpClose, fxpWrite, fxpSetstat, fxpFsetstat, fxpMkdir, fxpRename, fxpSymlink = 3, 4, 6, 9, 10, 14, 18, 20

	fxfWrite = 2 // a flag of fxpOpen
)

// maxOpen is how much of a request to open a file is looked at, bytes: enough for any path (PATH_MAX is 4096).
const maxOpen = 8 << 10

// sftpWatch reads along what an SFTP client sends and notices when it changes files. It never holds the stream up: what it
// does not understand it passes over.
type sftpWatch struct {
	changed atomic.Bool

	packet  []byte // the beginning of the current packet, its length first
	left    int64  // bytes of it still to come; meaningful once packet has 5
	opening bool   // a file was opened for writing, and is empty so far
}

// Write takes the next bytes of the stream in. It never fails.
func (s *sftpWatch) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && !s.changed.Load() {
		if len(s.packet) < 5 {
			take := min(5-len(s.packet), len(p))
			s.packet, p = append(s.packet, p[:take]...), p[take:]
			if len(s.packet) < 5 {
				break
			}
			s.left = int64(binary.BigEndian.Uint32(s.packet)) - 1
		}
		take := int(min(max(s.left, 0), int64(len(p))))
		if room := maxOpen - len(s.packet); s.packet[4] == fxpOpen && room > 0 {
			s.packet = append(s.packet, p[:min(take, room)]...)
		}
		p, s.left = p[take:], s.left-int64(take)
		if s.left <= 0 {
			s.whole()
			s.packet = s.packet[:0]
		}
	}
	return n, nil
}

// whole looks at a packet that has arrived completely.
func (s *sftpWatch) whole() {
	switch s.packet[4] {
	case fxpWrite, fxpSetstat, fxpFsetstat, fxpMkdir, fxpRename, fxpSymlink:
		s.changed.Store(true)
	case fxpOpen: // length, type, id, then the path with its length, then the flags
		if len(s.packet) < 13 {
			return
		}
		at := 13 + int64(binary.BigEndian.Uint32(s.packet[9:]))
		if int64(len(s.packet)) >= at+4 && binary.BigEndian.Uint32(s.packet[at:])&fxfWrite != 0 {
			s.opening = true
		}
	case fxpClose: // had the file not been made, there would be nothing to close
		if s.opening {
			s.changed.Store(true)
		}
	}
}

// watchUploads returns an input with in's bytes that w reads along, and what lets it go again.
func watchUploads(in *input, w io.Writer) (*input, func()) {
	stop := make(chan struct{})
	watched := newInput(io.TeeReader(in.reader(stop), w))
	return watched, func() { close(stop); watched.close() }
}

// retain keeps the machine that was made for this connection, since something was copied into it, and says where it is.
// Where the person was told that it ends with their shell, it does.
func (v *visit) retain(c *channel, w words, env environment) {
	v.mu.Lock()
	tell := v.target != nil && v.target.fresh && !v.promised && !v.keep
	v.keep = v.keep || tell
	v.mu.Unlock()
	if !tell {
		return
	}
	line := fmt.Sprintf(w.uploaded, env.label())
	if env.IdleTimeoutSeconds > 0 {
		line += fmt.Sprintf(w.untilIdle, w.span(time.Duration(env.IdleTimeoutSeconds)*time.Second))
	}
	if env.Deadline != nil {
		line += fmt.Sprintf(w.untilLatest, w.span(time.Until(*env.Deadline)))
	}
	v.say(c, line+w.stop)
	v.say(c, fmt.Sprintf(w.goThere, v.address("ssh", env.label())))
}
