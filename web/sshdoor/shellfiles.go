package sshdoor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pkg/sftp"
)

const (
	// readKept is how much of a file that is being read is kept for requests out of order, bytes.
	readKept = 4 << 20
	// writeAhead is how much of a file that is being written may arrive before what belongs in front of it, bytes.
	writeAhead = 8 << 20
	// maxUploads bounds the files open for writing in one SFTP session.
	maxUploads = 64
)

// shellFiles serves files by the commands that a BusyBox has: cat, stat, find and their like. A file is read and
// written from its front to its end, which is what scp and sftp do; resuming an upload is refused.
type shellFiles struct {
	sh *remoteShell

	mu   sync.Mutex
	open map[string]*upload
}

// Fileread opens a file for reading.
func (f *shellFiles) Fileread(r *sftp.Request) (io.ReaderAt, error) {
	st, err := f.stat(r.Filepath, true)
	if err != nil {
		return nil, status(err)
	}
	if st.IsDir() {
		return nil, errors.New("is a directory")
	}
	return &download{sh: f.sh, path: r.Filepath}, nil
}

// download is a file that is being read, as one stream that is begun again when somebody reads backwards or far ahead.
type download struct {
	sh   *remoteShell
	path string

	mu     sync.Mutex
	cancel context.CancelFunc
	r      *io.PipeReader
	buf    []byte // of the file, from offset at
	at     int64
	ended  error // what the stream ended with, io.EOF at the end of the file
}

// ReadAt implements io.ReaderAt.
func (d *download) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if end := d.at + int64(len(d.buf)); d.r == nil || off < d.at || off > end+readKept {
		d.restart(off)
	}
	chunk := make([]byte, 64<<10)
	for d.ended == nil && d.at+int64(len(d.buf)) < off+int64(len(p)) {
		n, err := d.r.Read(chunk)
		d.buf = append(d.buf, chunk[:n]...)
		if err != nil {
			d.ended = err
		}
		if extra := len(d.buf) - 2*readKept; extra > 0 { // rarely, so that moving bytes costs little
			keep := min(int64(len(d.buf)-readKept), max(0, off-d.at))
			d.buf, d.at = append([]byte(nil), d.buf[keep:]...), d.at+keep
		}
	}
	n := 0
	if skip := off - d.at; skip < int64(len(d.buf)) {
		n = copy(p, d.buf[skip:])
	}
	if n < len(p) {
		return n, status(d.ended)
	}
	return n, nil
}

func (d *download) restart(off int64) {
	d.stop()
	ctx, cancel := context.WithCancel(d.sh.ctx)
	r, w := io.Pipe()
	d.cancel, d.r, d.buf, d.at, d.ended = cancel, r, nil, off, nil
	go func() {
		var err error
		if off == 0 {
			err = d.sh.stream(ctx, nil, w, `cat < "$1"`, d.path)
		} else {
			err = d.sh.stream(ctx, nil, w, `tail -c +"$2" < "$1"`, d.path, strconv.FormatInt(off+1, 10))
		}
		if err == nil {
			err = io.EOF
		}
		_ = w.CloseWithError(err)
	}()
}

func (d *download) stop() {
	if d.r != nil {
		d.cancel()
		_ = d.r.Close()
	}
}

// Close ends the stream.
func (d *download) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stop()
	return nil
}

// Filewrite opens a file for writing.
func (f *shellFiles) Filewrite(r *sftp.Request) (io.WriterAt, error) {
	flags := r.Pflags()
	if !flags.Trunc && !flags.Append {
		if st, err := f.stat(r.Filepath, true); err == nil && st.Size() > 0 {
			return nil, fmt.Errorf("this machine has no sftp-server, so an upload cannot be resumed; send the whole file: %w", sftp.ErrSSHFxOpUnsupported)
		}
	}
	script := `cat > "$1"`
	switch {
	case flags.Excl:
		script = `set -C; [ ! -e "$1" ] || exit 45; cat > "$1"`
	case flags.Append:
		script = `cat >> "$1"`
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.open) >= maxUploads {
		return nil, errors.New("too many files are open for writing")
	}
	if f.open[r.Filepath] != nil {
		return nil, errors.New("the file is being written already")
	}
	// An upload that can't even begin says so now, and an empty one leaves an empty file.
	if !flags.Append && !flags.Excl {
		if _, err := f.sh.run(nil, `[ -d "${1%/*}/" ] || exit 44; : > "$1"`, r.Filepath); err != nil {
			return nil, status(err)
		}
	}
	pr, pw := io.Pipe()
	u := &upload{files: f, path: r.Filepath, w: pw, early: map[int64][]byte{}, done: make(chan error, 1), appending: flags.Append}
	f.open[r.Filepath] = u
	go func() {
		err := f.sh.stream(f.sh.ctx, pr, io.Discard, script, r.Filepath)
		_ = pr.CloseWithError(errors.Join(err, io.ErrClosedPipe))
		u.done <- err
	}()
	return u, nil
}

// upload is a file that is being written. Requests are answered side by side, so their data is put in order here.
type upload struct {
	files     *shellFiles
	path      string
	w         *io.PipeWriter
	done      chan error
	appending bool

	mu    sync.Mutex
	next  int64
	early map[int64][]byte // what came before its turn
	held  int
	after []func() error // changes of attributes, which must follow the last byte
}

// WriteAt implements io.WriterAt.
func (u *upload) WriteAt(p []byte, off int64) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.appending { // offsets mean nothing then
		off = u.next
	}
	if off < u.next {
		return 0, errors.New("this machine has no sftp-server, so a file can only be written from its front to its end")
	}
	if off > u.next {
		if u.early[off] != nil || u.held+len(p) > writeAhead {
			return 0, errors.New("this machine has no sftp-server, so a file can only be written from its front to its end")
		}
		u.early[off] = append([]byte(nil), p...)
		u.held += len(p)
		return len(p), nil
	}
	if _, err := u.w.Write(p); err != nil {
		return 0, fmt.Errorf("writing: %w", err)
	}
	u.next += int64(len(p))
	for b := u.early[u.next]; b != nil; b = u.early[u.next] {
		delete(u.early, u.next)
		u.held -= len(b)
		if _, err := u.w.Write(b); err != nil {
			return 0, fmt.Errorf("writing: %w", err)
		}
		u.next += int64(len(b))
	}
	return len(p), nil
}

// Close waits until the machine has taken everything.
func (u *upload) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	defer func() {
		u.files.mu.Lock()
		delete(u.files.open, u.path)
		u.files.mu.Unlock()
	}()
	if len(u.early) > 0 {
		_ = u.w.CloseWithError(errors.New("the upload has holes"))
		<-u.done
		return errors.New("the upload has holes")
	}
	_ = u.w.Close()
	err := <-u.done
	for _, change := range u.after {
		err = errors.Join(err, change())
	}
	return status(err)
}

// Filecmd does what is neither reading nor writing.
func (f *shellFiles) Filecmd(r *sftp.Request) error {
	run := func(script string, args ...string) error {
		_, err := f.sh.run(nil, script, args...)
		return status(err)
	}
	switch r.Method {
	case "Setstat":
		change := func() error { return f.setAttributes(r) }
		f.mu.Lock()
		u := f.open[r.Filepath]
		f.mu.Unlock()
		if u == nil {
			return change()
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		u.after = append(u.after, change)
		return nil
	case "Rename":
		return run(`[ ! -e "$2" ] || exit 45; mv -- "$1" "$2"`, r.Filepath, r.Target)
	case "PosixRename":
		return f.PosixRename(r)
	case "Rmdir":
		return run(`rmdir -- "$1"`, r.Filepath)
	case "Remove":
		return run(`rm -- "$1" < /dev/null`, r.Filepath)
	case "Mkdir":
		return run(`mkdir -- "$1"`, r.Filepath)
	case "Link":
		return run(`ln -- "$1" "$2"`, r.Filepath, r.Target)
	case "Symlink":
		// pkg/sftp gives the link's text in Filepath as it came, and its place in Target.
		return run(`ln -s -- "$1" "$2"`, r.Filepath, r.Target)
	}
	return sftp.ErrSSHFxOpUnsupported
}

// PosixRename replaces what is at the target.
func (f *shellFiles) PosixRename(r *sftp.Request) error {
	_, err := f.sh.run(nil, `if [ -d "$2" ] && [ ! -L "$2" ]; then rmdir -- "$2" || exit; fi; mv -f -- "$1" "$2"`, r.Filepath, r.Target)
	return status(err)
}

func (f *shellFiles) setAttributes(r *sftp.Request) error {
	flags, a := r.AttrFlags(), r.Attributes()
	var script []string
	args := []string{r.Filepath}
	add := func(format string, values ...any) { script = append(script, fmt.Sprintf(format, values...)) }
	if flags.Size {
		add(`truncate -s %d -- "$1"`, a.Size)
	}
	if flags.UidGid {
		add(`chown %d:%d -- "$1"`, a.UID, a.GID)
	}
	if flags.Permissions {
		add(`chmod %o -- "$1"`, a.Mode&0o7777)
	}
	if flags.Acmodtime {
		add(`touch -m -d @%d -- "$1"`, a.Mtime)
	}
	if script == nil {
		return nil
	}
	_, err := f.sh.run(nil, strings.Join(script, " && "), args...)
	return status(err)
}

// statFormat is one line for each file: raw mode in hex, size, mtime, uid, gid, name.
const statFormat = `%f %s %Y %u %g %n`

// Filelist answers questions about files.
func (f *shellFiles) Filelist(r *sftp.Request) (sftp.ListerAt, error) {
	switch r.Method {
	case "List":
		out, err := f.sh.run(nil, `[ -d "$1" ] || exit 44; cd -- "$1" && find . ! -name . -prune -exec stat -c '`+statFormat+`' {} +`, r.Filepath)
		if err != nil {
			return nil, status(err)
		}
		return lister(parseStats(string(out))), nil
	case "Stat":
		st, err := f.stat(r.Filepath, true)
		if err != nil {
			return nil, status(err)
		}
		return lister{st}, nil
	}
	return nil, sftp.ErrSSHFxOpUnsupported
}

// Lstat is Stat that does not follow a link.
func (f *shellFiles) Lstat(r *sftp.Request) (sftp.ListerAt, error) {
	st, err := f.stat(r.Filepath, false)
	if err != nil {
		return nil, status(err)
	}
	return lister{st}, nil
}

// Readlink returns a link's text.
func (f *shellFiles) Readlink(name string) (string, error) {
	out, err := f.sh.run(nil, `[ -L "$1" ] || exit 44; readlink -- "$1"`, name)
	if err != nil {
		return "", status(err)
	}
	return strings.TrimSuffix(string(out), "\n"), nil
}

func (f *shellFiles) stat(name string, follow bool) (os.FileInfo, error) {
	script := `[ -e "$1" ] || [ -L "$1" ] || exit 44; stat -c '` + statFormat + `' -- "$1"`
	if follow {
		script = `[ -e "$1" ] || exit 44; stat -L -c '` + statFormat + `' -- "$1"`
	}
	out, err := f.sh.run(nil, script, name)
	if err != nil {
		return nil, err
	}
	line, _, _ := strings.Cut(string(out), "\n") // a name may go on, but it is known
	st, ok := parseStat(line)
	if !ok {
		return nil, fmt.Errorf("stat of this machine answers %.80q", line)
	}
	st.name = path.Base(name)
	return st, nil
}

// lister is a list that is known whole.
type lister []os.FileInfo

// ListAt implements sftp.ListerAt.
func (l lister) ListAt(to []os.FileInfo, off int64) (int, error) {
	if off >= int64(len(l)) {
		return 0, io.EOF
	}
	n := copy(to, l[off:])
	if off+int64(n) == int64(len(l)) {
		return n, io.EOF
	}
	return n, nil
}

// fileStat is what stat said of a file.
type fileStat struct {
	name     string
	raw      uint32
	size     int64
	modified time.Time
	uid, gid uint32
}

func (s *fileStat) Name() string       { return s.name }
func (s *fileStat) Size() int64        { return s.size }
func (s *fileStat) ModTime() time.Time { return s.modified }
func (s *fileStat) IsDir() bool        { return s.raw&syscall.S_IFMT == syscall.S_IFDIR }
func (s *fileStat) Sys() any           { return &sftp.FileStat{UID: s.uid, GID: s.gid} }

func (s *fileStat) Mode() os.FileMode {
	m := os.FileMode(s.raw & 0o777)
	switch s.raw & syscall.S_IFMT {
	case syscall.S_IFDIR:
		m |= os.ModeDir
	case syscall.S_IFLNK:
		m |= os.ModeSymlink
	case syscall.S_IFIFO:
		m |= os.ModeNamedPipe
	case syscall.S_IFSOCK:
		m |= os.ModeSocket
	case syscall.S_IFBLK:
		m |= os.ModeDevice
	case syscall.S_IFCHR:
		m |= os.ModeDevice | os.ModeCharDevice
	}
	for bit, mode := range map[uint32]os.FileMode{syscall.S_ISUID: os.ModeSetuid, syscall.S_ISGID: os.ModeSetgid, syscall.S_ISVTX: os.ModeSticky} {
		if s.raw&bit != 0 {
			m |= mode
		}
	}
	return m
}

// parseStat reads one line of statFormat. What it says is a tenant's word.
func parseStat(line string) (*fileStat, bool) {
	p := strings.SplitN(line, " ", 6)
	if len(p) != 6 || p[5] == "" {
		return nil, false
	}
	raw, err1 := strconv.ParseUint(p[0], 16, 32)
	size, err2 := strconv.ParseInt(p[1], 10, 64)
	mtime, err3 := strconv.ParseInt(p[2], 10, 64)
	uid, err4 := strconv.ParseUint(p[3], 10, 32)
	gid, err5 := strconv.ParseUint(p[4], 10, 32)
	if errors.Join(err1, err2, err3, err4, err5) != nil || size < 0 {
		return nil, false
	}
	return &fileStat{name: p[5], raw: uint32(raw), size: size, modified: time.Unix(mtime, 0), uid: uint32(uid), gid: uint32(gid)}, true
}

// parseStats reads the lines of a directory. Names with a line end in them lose it and are left out, as is every name
// that would lead out of the directory on the person's own machine.
func parseStats(out string) []os.FileInfo {
	var list []os.FileInfo
	for line := range strings.SplitSeq(out, "\n") {
		st, ok := parseStat(line)
		if !ok {
			continue
		}
		st.name = strings.TrimPrefix(st.name, "./")
		if st.name == "" || st.name == "." || st.name == ".." || strings.ContainsAny(st.name, "/\x00") {
			continue
		}
		list = append(list, st)
	}
	return list
}
