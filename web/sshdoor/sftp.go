package sshdoor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/pkg/sftp"
)

// probe finds the first of its arguments that is a program, and the home directory.
const probe = `p=; for f do [ -x "$f" ] && p=$f && break; done; echo "$p"; cd 2>/dev/null; pwd`

// sftpServers is where distributions put the server of OpenSSH.
var sftpServers = []string{"/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server",
	"/usr/libexec/sftp-server", "/usr/lib/sftp-server"}

// sftp serves the subsystem that scp and sftp use: with the machine's own sftp-server if it has one, else by the
// commands that every small Linux has.
func (v *visit) sftp(c *channel, w words) int {
	if v.login.Target == "" {
		return v.fail(c, w, &apiError{own: true, Message: w.whichFiles, Hint: fmt.Sprintf(w.nameRunning, v.address("sftp", "NAME"))}, exitUsage)
	}
	t, err := v.reach(c, w)
	if err != nil {
		return v.fail(c, w, err, exitDoor)
	}
	sh := &remoteShell{v: v, ctx: c.ctx, env: t.env.ID}
	out, err := sh.run(nil, probe, v.door.sftpServers...)
	if err != nil {
		return v.fail(c, w, &apiError{own: true, Message: fmt.Sprintf(w.noShell, err)}, exitDoor)
	}
	var watch sftpWatch
	in, release := watchUploads(c.in, &watch)
	defer func() {
		release()
		if watch.changed.Load() && c.ctx.Err() == nil {
			v.retain(c, w, t.env)
		}
	}()
	server, home, _ := strings.Cut(strings.TrimSuffix(string(out), "\n"), "\n")
	if server != "" {
		c.kind, c.command = "exec", "exec "+server
		return v.session(c, w, t.env, "", in)
	}
	if !strings.HasPrefix(home, "/") {
		home = "/"
	}
	files := &shellFiles{sh: sh, open: map[string]*upload{}}
	stop := make(chan struct{})
	defer close(stop)
	rw := struct {
		io.Reader
		io.WriteCloser
	}{in.reader(stop), c}
	srv := sftp.NewRequestServer(rw, sftp.Handlers{FileGet: files, FilePut: files, FileCmd: files, FileList: files}, sftp.WithStartDirectory(home))
	if err := srv.Serve(); err != nil && !errors.Is(err, io.EOF) && c.ctx.Err() == nil {
		v.door.log.Debug("an SFTP session broke off", "err", err)
		return 1
	}
	return 0
}

// remoteShell runs small scripts in a machine.
type remoteShell struct {
	v   *visit
	ctx context.Context
	env string
}

// commandError is a script that failed.
type commandError struct {
	code int
	text string // what it wrote to standard error
}

func (e *commandError) Error() string {
	if e.text != "" {
		return e.text
	}
	return fmt.Sprintf("exit status %d", e.code)
}

// Exit statuses that the scripts use for what SFTP has words for.
const (
	scriptNotFound = 44
	scriptExists   = 45
)

// Is lets errors.Is see what happened, and with it pkg/sftp.
func (e *commandError) Is(target error) bool {
	switch target {
	case os.ErrNotExist:
		return e.code == scriptNotFound || strings.Contains(e.text, "No such file")
	case os.ErrExist:
		return e.code == scriptExists || strings.Contains(e.text, "File exists")
	case os.ErrPermission:
		return strings.Contains(e.text, "Permission denied") || strings.Contains(e.text, "not permitted")
	}
	return false
}

// status is err as an SFTP client understands it.
func status(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrNotExist):
		return sftp.ErrSSHFxNoSuchFile
	case errors.Is(err, os.ErrPermission):
		return sftp.ErrSSHFxPermissionDenied
	}
	return err
}

// stream runs a script with arguments $1… between two streams. ctx's end ends the script.
func (sh *remoteShell) stream(ctx context.Context, stdin io.Reader, stdout io.Writer, script string, args ...string) error {
	argv := append([]string{"/bin/sh", "-c", script, "sh"}, args...)
	id, err := sh.v.p.startSession(ctx, sh.env, sessionRequest{Args: argv, Env: []string{"LC_ALL=C"}})
	if err != nil {
		return err
	}
	defer sh.v.closeLater(sh.env, id)
	if stdin == nil {
		stdin = bytes.NewReader(nil)
	}
	in := newInput(stdin)
	defer in.close()
	var errOut limited
	end, err := attach(ctx, sh.v.p, sh.env, id, ends{in: in, out: stdout, errOut: &errOut})
	if err != nil {
		return err
	}
	if end.code != 0 {
		return &commandError{code: end.code, text: printable(strings.TrimSpace(errOut.String()))}
	}
	return nil
}

// maxAnswer bounds what a script's answer may take of the door's memory, bytes.
const maxAnswer = 16 << 20

// run returns what a script prints.
func (sh *remoteShell) run(stdin io.Reader, script string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(sh.ctx, time.Minute)
	defer cancel()
	out := limited{max: maxAnswer}
	if err := sh.stream(ctx, stdin, &out, script, args...); err != nil {
		return nil, err
	}
	if out.cut {
		return nil, errors.New("the answer is too long")
	}
	return out.Bytes(), nil
}

// limited is a buffer that drops what is beyond its bound.
type limited struct {
	bytes.Buffer
	max int // 0: 4096
	cut bool
}

func (l *limited) Write(p []byte) (int, error) {
	limit := l.max
	if limit == 0 {
		limit = 4096
	}
	if room := limit - l.Len(); room < len(p) {
		l.cut = true
		l.Buffer.Write(p[:max(0, room)])
		return len(p), nil
	}
	return l.Buffer.Write(p)
}
