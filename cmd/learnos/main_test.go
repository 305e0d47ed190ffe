package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/learnos/learnos/internal/config"
	"github.com/learnos/learnos/nodeagent"
)

// binary is the command under test, built once.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "learnos-test-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // also for the test that runs it as nobody
		return "", err
	}
	path := filepath.Join(dir, "learnos")
	out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := binary(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

func learnos(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(path, args...)
}

// result runs a command to its end.
func result(t *testing.T, cmd *exec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// uncreatable is a data directory that nobody may make.
const uncreatable = "/proc/learnos-test"

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		args        []string
		code        int
		out, errOut string
	}{
		{nil, 0, "learnos up ", ""},
		{[]string{"help"}, 0, "learnos doctor ", ""},
		{[]string{"version"}, 0, "learnos ", ""},
		{[]string{"up", "--help"}, 0, "--no-debian", ""},
		{[]string{"version", "extra"}, 1, "", `"extra" is not understood; see learnos version --help`},
		{[]string{"upp"}, 1, "", `there is no command "upp"`},
		{[]string{"up", "--nonsense"}, 1, "", "unknown flag: --nonsense"},
		{[]string{"up", "--config", "/none/x.toml"}, 1, "", "/none/x.toml"},
		{[]string{"up", "--web-addr", "nonsense"}, 1, "", "webAddr"},
		{[]string{"up", "--data-dir", uncreatable}, 1, "", uncreatable},
	} {
		out, errOut, code := result(t, learnos(t, c.args...))
		if code != c.code || !strings.Contains(out, c.out) || !strings.Contains(errOut, c.errOut) {
			t.Errorf("learnos %q: %d\n%s\n%s", c.args, code, out, errOut)
		}
	}
}

func TestConfigPrintsOneThatLoads(t *testing.T) {
	out, _, _ := result(t, learnos(t, "config"))
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(file); err != nil {
		t.Error(err)
	}
}

func TestDoctorSaysWhatItFound(t *testing.T) {
	out, _, code := result(t, learnos(t, "doctor"))
	if missing := strings.Contains(out, "!  "); !strings.Contains(out, "ok  ") || missing != (code == 1) {
		t.Errorf("%d\n%s", code, out)
	}
}

func TestUpWithoutRootSaysWhatCannotBeDone(t *testing.T) {
	cmd := learnos(t, "up", "--data-dir", "/tmp/learnos-nobody")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, errOut, code := result(t, cmd)
	if code != 1 || !strings.Contains(errOut, "up needs root") || !strings.Contains(out, "only root may make those") {
		t.Errorf("%d\n%s\n%s", code, out, errOut)
	}
	if _, err := os.Stat("/tmp/learnos-nobody"); !os.IsNotExist(err) {
		t.Errorf("something was made: %v", err)
	}
}

// installation is a learnos up on a directory of its own.
type installation struct {
	t      *testing.T
	dir    string
	config string

	cmd  *exec.Cmd
	mu   sync.Mutex
	said strings.Builder
	more chan struct{}
}

func install(t *testing.T) *installation {
	t.Helper()
	in := &installation{t: t, dir: filepath.Join(t.TempDir(), "data"), more: make(chan struct{}, 1)}
	in.config = filepath.Join(filepath.Dir(in.dir), "config.toml")
	text := fmt.Sprintf("[common]\ndataDir = %q\n[web]\nwebAddr = \"127.0.0.1:0\"\nsshAddr = \"127.0.0.1:0\"\n[gateway]\naddr = \"127.0.0.1:0\"\ntunnelAddr = \"127.0.0.1:0\"\n", in.dir)
	if err := os.WriteFile(in.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if in.cmd != nil {
			in.stop()
		}
		n, err := nodeagent.Open(in.dir, nodeagent.Options{})
		if err == nil {
			err = n.Destroy(context.Background())
		}
		if err != nil {
			t.Errorf("clean up the node: %v", err)
		}
	})
	return in
}

func (in *installation) Write(b []byte) (int, error) {
	in.mu.Lock()
	in.said.Write(b)
	in.mu.Unlock()
	select {
	case in.more <- struct{}{}:
	default:
	}
	return len(b), nil
}

// start runs up until it says that it is there.
func (in *installation) start() string {
	in.t.Helper()
	in.said.Reset()
	in.cmd = learnos(in.t, "up", "--config", in.config, "--no-debian")
	in.cmd.Stdout, in.cmd.Stderr = in, in
	if err := in.cmd.Start(); err != nil {
		in.t.Fatal(err)
	}
	limit := time.After(time.Minute) // only so that a failure says what was said
	for {
		in.mu.Lock()
		text := in.said.String()
		in.mu.Unlock()
		if strings.Contains(text, "Ctrl-C stops it") {
			return text
		}
		select {
		case <-in.more:
		case <-limit:
			in.t.Fatalf("up is not there:\n%s", text)
		}
	}
}

func (in *installation) stop() int {
	in.t.Helper()
	_ = in.cmd.Process.Signal(syscall.SIGTERM)
	_ = in.cmd.Wait()
	code := in.cmd.ProcessState.ExitCode()
	in.cmd = nil
	return code
}

func find(t *testing.T, pattern, text string) string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no %s in:\n%s", pattern, text)
	}
	return m[1]
}

func (in *installation) ssh(port, password string, args ...string) *exec.Cmd {
	return exec.Command("sshpass", append([]string{"-p", password, "ssh", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR", "-o", "PubkeyAuthentication=no",
		"-o", "UserKnownHostsFile=" + filepath.Join(in.dir, "known_hosts"), "-p", port}, args...)...)
}

// The whole of it: a first start, a machine by ssh and by the API, a stop that leaves machines, and a start that finds them.
func TestUp(t *testing.T) {
	in := install(t)
	said := in.start()
	password := find(t, `First login  admin, password (\S+) \(kept`, said)
	port := find(t, `ssh -p (\d+) admin@127\.0\.0\.1`, said)
	panel := find(t, `Panel        (http://\S+)`, said)

	cmd := in.ssh(port, password, "admin+busybox@127.0.0.1", "cat; hostname; echo err >&2; exit 6")
	cmd.Stdin = strings.NewReader("through\n")
	if out, errOut, code := result(t, cmd); !strings.HasPrefix(out, "through\nbusybox-") || errOut != "err\n" || code != 6 {
		t.Errorf("ssh: %d %q %q", code, out, errOut)
	}

	// A second one on the same directory.
	if _, errOut, code := result(t, learnos(t, "up", "--config", in.config)); code != 1 || !strings.Contains(errOut, fmt.Sprintf("another learnos up (process %d) uses %s", in.cmd.Process.Pid, in.dir)) {
		t.Errorf("second up: %d %s", code, errOut)
	}
	// One elsewhere whose address is taken makes nothing.
	other := filepath.Join(t.TempDir(), "other")
	addr := strings.TrimPrefix(panel, "http://")
	if _, errOut, code := result(t, learnos(t, "up", "--data-dir", other, "--web-addr", addr)); code != 1 || !strings.Contains(errOut, "web.webAddr") && !strings.Contains(errOut, "gateway.addr") {
		t.Errorf("taken address: %d %s", code, errOut)
	}
	if _, err := os.Stat(filepath.Join(other, "learnos.db")); !os.IsNotExist(err) {
		t.Errorf("the database was made: %v", err)
	}

	var session struct{ AccessToken string }
	in.call(panel, "", "POST", "/auth/login", map[string]string{"username": "admin", "password": password}, &session)
	var env struct{ ID, State, Name string }
	in.call(panel, session.AccessToken, "POST", "/environments", map[string]string{"image": "busybox", "name": "stays"}, &env)
	mark := in.ssh(port, password, "admin+stays@127.0.0.1", "echo remembered > /root/mark")
	if _, errOut, code := result(t, mark); code != 0 {
		t.Fatalf("mark: %d %s", code, errOut)
	}

	if code := in.stop(); code != 0 {
		t.Errorf("SIGTERM: exit %d", code)
	}
	said = in.start()
	if strings.Contains(said, password) || !strings.Contains(said, "password in "+filepath.Join(in.dir, "secrets", "admin-password")) {
		t.Errorf("a later start:\n%s", said)
	}
	port = find(t, `ssh -p (\d+) admin@127\.0\.0\.1`, said)
	if out, errOut, code := result(t, in.ssh(port, password, "admin+stays@127.0.0.1", "cat /root/mark")); out != "remembered\n" || code != 0 {
		t.Errorf("after a restart: %d %q %q\n%s", code, out, errOut, said)
	}

	// Killed, it is no different.
	_ = in.cmd.Process.Kill()
	_ = in.cmd.Wait()
	said = in.start()
	port = find(t, `ssh -p (\d+) admin@127\.0\.0\.1`, said)
	if out, errOut, code := result(t, in.ssh(port, password, "admin+stays@127.0.0.1", "cat /root/mark")); out != "remembered\n" || code != 0 {
		t.Errorf("after a kill: %d %q %q", code, out, errOut)
	}
}

func (in *installation) call(panel, token, method, path string, body, answer any) {
	in.t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		in.t.Fatal(err)
	}
	req, err := http.NewRequest(method, panel+"/api/v1"+path, bytes.NewReader(data))
	if err != nil {
		in.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		in.t.Fatal(err)
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	if res.StatusCode/100 != 2 {
		in.t.Fatalf("%s %s: %d %s", method, path, res.StatusCode, text)
	}
	if err := json.Unmarshal(text, answer); err != nil {
		in.t.Fatalf("%s %s: %v in %s", method, path, err, text)
	}
}

// A part that breaks ends the process, which says which one and why.
func TestBrokenPartIsNamed(t *testing.T) {
	in := install(t)
	if err := os.MkdirAll(in.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(in.dir, "learnos.db"), []byte("this is no database, and far too short for one"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, errOut, code := result(t, learnos(t, "up", "--config", in.config, "--no-debian"))
	if code != 1 || !strings.Contains(errOut, "learnos: the gateway cannot start: ") {
		t.Errorf("%d %s", code, errOut)
	}
}
