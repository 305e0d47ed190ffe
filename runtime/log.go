package runtime

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// logHeader starts the first line of a log file, which numbers it; init writes it.
const logHeader = "#learnos-log "

func (l *LogFiles) max() int64 {
	if l.MaxBytes > 0 {
		return l.MaxBytes
	}
	return 4 << 20
}

func (l *LogFiles) paths() [2]string { return [2]string{l.Path, l.Path + ".1"} }

// ReadLog returns what a pair of log files holds, oldest first; it reads to where the log ends now. A log that has not been
// begun is empty. os.ErrNotExist if there is none.
func ReadLog(l LogFiles) (io.ReadCloser, error) {
	type part struct {
		serial uint64
		f      *os.File
		r      io.Reader
	}
	var parts []part
	var missing error
	for _, path := range l.paths() {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			missing = err
			continue
		}
		if err != nil {
			for _, p := range parts {
				p.f.Close()
			}
			return nil, fmt.Errorf("read log: %w", err)
		}
		r := bufio.NewReader(io.LimitReader(f, l.max()+1<<16))
		line, _ := r.ReadString('\n')
		serial, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(line, logHeader), "\n"), 10, 64)
		if err != nil || !strings.HasPrefix(line, logHeader) {
			f.Close() // not begun
			continue
		}
		parts = append(parts, part{serial, f, r})
	}
	if len(parts) == 0 && missing != nil {
		return nil, fmt.Errorf("read log: %w", missing)
	}
	if len(parts) == 2 && parts[1].serial < parts[0].serial {
		parts[0], parts[1] = parts[1], parts[0]
	}
	var readers []io.Reader
	var files []*os.File
	for _, p := range parts {
		readers, files = append(readers, p.r), append(files, p.f)
	}
	return &logReader{io.MultiReader(readers...), files}, nil
}

type logReader struct {
	io.Reader
	files []*os.File
}

func (r *logReader) Close() error {
	closeFiles(r.files)
	return nil
}
