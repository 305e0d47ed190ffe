package main

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// logger writes Main's output to a bounded pair of files. Each begins with a line that numbers it, so that a reader knows
// which comes first.
type logger struct {
	files   [2]int
	max     int64
	serial  uint64 // of the file being filled; its parity says which
	written int64
	sources []int
	buf     []byte
}

// logHeader starts every file; package runtime looks for it.
const logHeader = "#learnos-log "

func (l *logger) rotate() {
	l.serial++
	fd := l.files[l.serial%2]
	unix.Ftruncate(fd, 0)
	header := logHeader + strconv.FormatUint(l.serial, 10) + "\n"
	n, _ := unix.Pwrite(fd, []byte(header), 0)
	l.written = int64(max(n, 0))
}

// copy moves what a pipe holds to the files; at its end it is closed.
func (l *logger) copy(s *server, source int) {
	if !l.move(source) {
		s.drop(source)
		for i := range l.sources {
			if l.sources[i] == source {
				l.sources = append(l.sources[:i], l.sources[i+1:]...)
				break
			}
		}
	}
}

// move reads once. False says that no more will come.
func (l *logger) move(source int) bool {
	if l.buf == nil {
		l.buf = make([]byte, 32<<10)
	}
	n, err := unix.Read(source, l.buf)
	if n <= 0 {
		return err == unix.EAGAIN || err == unix.EINTR
	}
	for rest := l.buf[:n]; len(rest) > 0; {
		if l.serial == 0 || l.written >= l.max {
			l.rotate()
		}
		part := rest[:min(int64(len(rest)), max(1, l.max-l.written))]
		rest = rest[len(part):]
		// A full disk loses output; the environment goes on.
		w, _ := unix.Pwrite(l.files[l.serial%2], part, l.written)
		l.written += int64(max(w, 0))
		if w < len(part) {
			break
		}
	}
	return true
}

// drain takes what is left at the end, at most what the files can hold.
func (l *logger) drain() {
	for _, source := range l.sources {
		for total := int64(0); total < 2*l.max; total += int64(len(l.buf)) {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(source), Events: unix.POLLIN}}, 0)
			if n <= 0 || err != nil || !l.move(source) {
				break
			}
		}
	}
}
