package sshdoor

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gossh "golang.org/x/crypto/ssh"
)

// testDoor is a door with a gateway behind it and OpenSSH's client in front.
type testDoor struct {
	*testGateway
	t     *testing.T
	door  *Door
	port  string
	dir   string
	close func()
}

func openDoor(t *testing.T, perMinute int) *testDoor {
	t.Helper()
	g := newTestGateway(t)
	dir := t.TempDir()
	d, err := New(Options{GatewayURL: "http://" + g.addr, DoorKey: testDoorKey, DataDir: dir, AttemptsPerMinute: perMinute,
		Log: slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- d.Serve(ctx, ln) }()
	done := false
	closeDoor := func() {
		if done {
			return
		}
		done = true
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
	t.Cleanup(closeDoor)
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	known := "[127.0.0.1]:" + port + " " + string(gossh.MarshalAuthorizedKey(d.signer.PublicKey()))
	if err := os.WriteFile(filepath.Join(dir, "known_hosts"), []byte(known), 0o600); err != nil {
		t.Fatal(err)
	}
	return &testDoor{testGateway: g, door: d, t: t, port: port, dir: dir, close: closeDoor}
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func (d *testDoor) options() []string {
	return []string{"-F", "none", "-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile=" + filepath.Join(d.dir, "known_hosts"),
		"-o", "IdentityAgent=none", "-o", "NumberOfPasswordPrompts=1"}
}

// ssh is OpenSSH's client, logging in with alice's password.
func (d *testDoor) ssh(args ...string) *exec.Cmd {
	return d.as("correct horse", "ssh", append([]string{"-p", d.port}, args...)...)
}

func (d *testDoor) as(password, prog string, args ...string) *exec.Cmd {
	all := append([]string{"-p", password, prog}, d.options()...)
	all = append(all, "-o", "PubkeyAuthentication=no")
	cmd := exec.Command("sshpass", append(all, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	return cmd
}

type result struct {
	out, err string
	code     int
}

func run(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		t.Fatal(err)
	}
	return result{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
}

func TestCommandIsRunAndItsMachineDeleted(t *testing.T) {
	d := openDoor(t, 100)
	r := run(t, d.ssh("alice+busybox@127.0.0.1", "echo out; echo err >&2; exit 7"))
	if r.out != "out\n" || r.err != "err\n" || r.code != 7 {
		t.Errorf("got %+v", r)
	}
	d.waitFor(func() bool { return len(d.deleted) == 1 })
	d.waitFor(func() bool { return len(d.access) == 0 }) // logged out
}

func TestSignalledCommandPassesItsStatusOn(t *testing.T) {
	d := openDoor(t, 100)
	if r := run(t, d.ssh("alice+busybox@127.0.0.1", "kill -TERM $$")); r.code != 143 {
		t.Errorf("got %+v", r)
	}
}

func TestMachineNamedByIDOrNameIsKept(t *testing.T) {
	d := openDoor(t, 100)
	d.mu.Lock()
	d.envs["e99"] = &environment{ID: "e99", Name: "my-box", Image: "busybox", State: "running"}
	d.order = append(d.order, "e99")
	d.mu.Unlock()
	for _, target := range []string{"e99", "my-box"} {
		if r := run(t, d.ssh("alice+"+target+"@127.0.0.1", "pwd")); r.out != d.home+"\n" || r.code != 0 {
			t.Errorf("%s: got %+v", target, r)
		}
	}
	d.close()
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.deleted) != 0 {
		t.Errorf("deleted %v", d.deleted)
	}
}

func TestUnknownTargetSaysWhatThereIs(t *testing.T) {
	d := openDoor(t, 100)
	r := run(t, d.ssh("alice+nothing@127.0.0.1", "true"))
	if r.code != 255 || !strings.Contains(r.err, `called "nothing"`) || !strings.Contains(r.err, "busybox debian-12 debian-13.") || r.out != "" {
		t.Errorf("got %+v", r)
	}
	if r = run(t, d.ssh("alice+bad/target@127.0.0.1", "true")); r.code != 2 || !strings.Contains(r.err, "after +") {
		t.Errorf("got %+v", r)
	}
	if r = run(t, d.ssh("alice@127.0.0.1", "id")); r.code != 2 || !strings.Contains(r.err, "ssh -p "+d.port+" alice+busybox@127.0.0.1") {
		t.Errorf("got %+v", r)
	}
	if r = run(t, d.ssh("-T", "alice@127.0.0.1")); r.code != 0 || !strings.Contains(r.out, "ssh -p "+d.port+" alice+debian-12@127.0.0.1") || strings.Contains(r.out, "off") {
		t.Errorf("got %+v", r)
	}
}

func TestFailedCreateSaysWhy(t *testing.T) {
	d := openDoor(t, 100)
	d.mu.Lock()
	d.stages = []environment{{State: "failed", Reason: "The image does not exist.", Hint: "Check its name."}}
	d.mu.Unlock()
	r := run(t, d.ssh("alice+busybox@127.0.0.1", "true"))
	if r.code != 255 || r.err != "learnos: The image does not exist.\nlearnos: what to do: Check its name.\n" {
		t.Errorf("got %+v", r)
	}
}

// What comes from the gateway is said in the person's language by its code, and in English when nobody knows the code.
func TestErrorsSpeakChinese(t *testing.T) {
	d := openDoor(t, 100)
	d.mu.Lock()
	d.stages = []environment{{State: "failed", Reason: "given up after 5 attempts: manifest unknown", Hint: "Try again.", ReasonCode: "given_up",
		ReasonValues: map[string]string{"n": "5", "cause": "manifest unknown"}}}
	d.mu.Unlock()
	zh := func(args ...string) result {
		return run(t, d.ssh(append([]string{"-o", "SetEnv=LC_ALL=zh_CN.UTF-8"}, args...)...))
	}
	if r := zh("alice+busybox@127.0.0.1", "true"); r.err != "learnos: 尝试 5 次后放弃：manifest unknown\nlearnos: 建议: 请重试；若再次失败，请把原因告诉管理员。\n" {
		t.Errorf("got %+v", r)
	}
	if r := zh("alice+nothing@127.0.0.1", "true"); r.err != "learnos: 没有叫 \"nothing\" 的镜像，你的机器里也没有。\nlearnos: 建议: 镜像有：busybox debian-12 debian-13。\n" {
		t.Errorf("got %+v", r)
	}
	d.mu.Lock()
	d.refuse = "allowance"
	d.mu.Unlock()
	if r := zh("alice+busybox@127.0.0.1", "true"); !strings.Contains(r.err, "你的环境名额已全部用完。") || strings.Contains(r.err, "refused") {
		t.Errorf("got %+v", r)
	}
	d.mu.Lock()
	d.refuse = "of_tomorrow"
	d.mu.Unlock()
	if r := zh("alice+busybox@127.0.0.1", "true"); !strings.Contains(r.err, "It was refused.") {
		t.Errorf("got %+v", r)
	}
}

func TestLargeBinaryPipeIsByteExact(t *testing.T) {
	d := openDoor(t, 100)
	data := make([]byte, 64<<20)
	_, _ = rand.Read(data)
	want := sha256.Sum256(data)
	cmd := d.ssh("alice+busybox@127.0.0.1", "sha256sum")
	cmd.Stdin = bytes.NewReader(data)
	if r := run(t, cmd); !strings.HasPrefix(r.out, hex.EncodeToString(want[:])) || r.code != 0 {
		t.Errorf("into: %+v", r)
	}
	// Both ways at once: neither direction may wait for the other.
	cmd = d.ssh("alice+busybox@127.0.0.1", "cat")
	cmd.Stdin = bytes.NewReader(data)
	h := sha256.New()
	cmd.Stdout = h
	if err := cmd.Run(); err != nil || !bytes.Equal(h.Sum(nil), want[:]) {
		t.Errorf("through: %v, %x", err, h.Sum(nil))
	}
}

// A client that sends little blocks to a command that reads nothing must still get the output.
func TestUnreadInputDoesNotHoldOutputBack(t *testing.T) {
	d := openDoor(t, 100)
	cmd := d.ssh("alice+busybox@127.0.0.1", "head -c 4000000 /dev/zero | cat; echo done >&2; sleep 0.1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	go func() {
		defer in.Close()
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := in.Write([]byte("x")); err != nil {
					return
				}
			}
		}
	}()
	r := run(t, cmd)
	close(stop)
	if len(r.out) != 4000000 || !strings.Contains(r.err, "done") {
		t.Errorf("got %d bytes, %q", len(r.out), r.err)
	}
}

func TestEnvironmentVariablesOfTheTerminalReachTheSession(t *testing.T) {
	d := openDoor(t, 100)
	cmd := d.ssh("-o", "SendEnv=LANG LC_* SECRET", "alice+busybox@127.0.0.1", "echo $LANG $LC_TIME ${SECRET-none}")
	cmd.Env = append(os.Environ(), "LANG=zh_CN.UTF-8", "LC_TIME=C", "LC_ALL=", "SECRET=x")
	if r := run(t, cmd); r.out != "zh_CN.UTF-8 C none\n" {
		t.Errorf("got %+v", r)
	}
}

func TestForcedTerminal(t *testing.T) {
	d := openDoor(t, 100)
	cmd := d.ssh("-tt", "alice+busybox@127.0.0.1", "tty; stty size; echo $TERM; printf 'a\\nb\\n'")
	cmd.Env = append(os.Environ(), "TERM=vt220")
	cmd.Stdin = nil
	r := run(t, cmd)
	if !strings.Contains(r.out, "/dev/pts/") || !strings.Contains(r.out, "vt220\r\n") || !strings.Contains(r.out, "a\r\nb\r\n") || strings.Contains(r.out, "\r\r") || r.code != 0 {
		t.Errorf("got %+v", r)
	}
}

func TestShellReadsItsCommandsFromAPipe(t *testing.T) {
	d := openDoor(t, 100)
	cmd := d.ssh("-T", "alice+busybox@127.0.0.1")
	cmd.Stdin = strings.NewReader("echo one\nexit 3\n")
	if r := run(t, cmd); r.out != "one\n" || r.code != 3 {
		t.Errorf("got %+v", r)
	}
}

func TestOneConnectionIsOneMachine(t *testing.T) {
	d := openDoor(t, 100)
	sock := filepath.Join(t.TempDir(), "s")
	master := d.ssh("-M", "-S", sock, "-o", "ControlPersist=no", "alice+busybox@127.0.0.1", "echo up; cat")
	in, _ := master.StdinPipe()
	out, _ := master.StdoutPipe()
	if err := master.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	results := make(chan string, 8)
	for range cap(results) {
		go func() {
			b, err := exec.Command("ssh", "-S", sock, "x", "echo second; exit 0").CombinedOutput()
			if err != nil {
				b = append(b, err.Error()...)
			}
			results <- string(b)
		}()
	}
	for range cap(results) {
		if s := <-results; s != "second\n" {
			t.Errorf("got %q", s)
		}
	}
	d.mu.Lock()
	n := len(d.envs)
	d.mu.Unlock()
	if n != 1 {
		t.Errorf("%d machines", n)
	}
	_ = in.Close()
	if err := master.Wait(); err != nil {
		t.Error(err)
	}
	d.waitFor(func() bool { return len(d.deleted) == 1 })
}

func TestWrongLoginsAreAllTheSame(t *testing.T) {
	d := openDoor(t, 1000)
	var seen []result
	for _, who := range []string{"alice", "nobody-here", "NOT A NAME", "alice+busybox", "al"} {
		for _, method := range []string{"password", "keyboard-interactive"} {
			r := run(t, d.as("wrong", "ssh", "-p", d.port, "-l", who, "-o", "PreferredAuthentications="+method, "127.0.0.1", "true"))
			r.err = strings.ReplaceAll(r.err, who+"@", "")
			seen = append(seen, r)
		}
	}
	for _, r := range seen {
		if r != seen[0] || r.code == 0 {
			t.Errorf("got %+v and %+v", seen[0], r)
		}
	}
	for _, method := range []string{"none", "hostbased", "gssapi-with-mic"} {
		if r := run(t, d.ssh("-o", "PreferredAuthentications="+method, "alice+busybox@127.0.0.1", "echo in")); r.code != 255 || r.out != "" {
			t.Errorf("%s: %+v", method, r)
		}
	}
	if len(d.remotes) != len(seen) || d.remotes[0] != "127.0.0.1" {
		t.Errorf("gateway saw %q", d.remotes)
	}
}

func TestKeyLogin(t *testing.T) {
	d := openDoor(t, 100)
	file := filepath.Join(t.TempDir(), "key")
	other := filepath.Join(t.TempDir(), "other")
	for _, f := range []string{file, other} {
		if b, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, b)
		}
	}
	pub, err := os.ReadFile(file + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	d.keys[strings.Join(strings.Fields(string(pub))[:2], " ")] = "alice"
	d.mu.Unlock()
	ssh := func(who string, files ...string) result {
		args := append(d.options(), "-p", d.port, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes")
		for _, f := range files {
			args = append(args, "-i", f)
		}
		return run(t, exec.Command("ssh", append(args, who+"@127.0.0.1", "echo in")...))
	}
	if r := ssh("alice+busybox", other, file); r.out != "in\n" || r.code != 0 {
		t.Errorf("got %+v", r)
	}
	// Offering somebody's key and proving another one must not let anybody in.
	if r := ssh("alice+busybox", other); r.code != 255 || r.out != "" {
		t.Errorf("got %+v", r)
	}
	if r := ssh("bob+busybox", file); r.code != 255 || r.out != "" {
		t.Errorf("got %+v", r)
	}
}

func TestGuessingIsLimited(t *testing.T) {
	d := openDoor(t, 3)
	for range 3 {
		if r := run(t, d.as("wrong", "ssh", "-p", d.port, "-o", "PreferredAuthentications=password", "alice@127.0.0.1", "true")); strings.Contains(r.err, "Too many") {
			t.Fatalf("too early: %+v", r)
		}
	}
	r := run(t, d.ssh("-o", "PreferredAuthentications=password", "alice+busybox@127.0.0.1", "true"))
	if r.code == 0 || !strings.Contains(r.err, "Too many failed logins") {
		t.Errorf("got %+v", r)
	}
	if n := len(d.remotes); n != 3 {
		t.Errorf("the gateway was asked %d times", n)
	}
}

func TestRightLoginsAreNotLimited(t *testing.T) {
	d := openDoor(t, 2)
	for range 5 {
		if r := run(t, d.ssh("alice+busybox@127.0.0.1", "true")); r.code != 0 {
			t.Fatalf("got %+v", r)
		}
	}
}

func TestForwardingIsRefused(t *testing.T) {
	d := openDoor(t, 100)
	r := run(t, d.ssh("-W", "127.0.0.1:22", "alice@127.0.0.1"))
	if r.code == 0 || !strings.Contains(r.err, "does not forward ports") {
		t.Errorf("got %+v", r)
	}
	r = run(t, d.ssh("-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:22", "alice+busybox@127.0.0.1", "true"))
	if r.code == 0 || !strings.Contains(r.err, "forwarding failed") {
		t.Errorf("got %+v", r)
	}
}

func TestGatewayAwaySaysSo(t *testing.T) {
	d := openDoor(t, 100)
	d.stop()
	r := run(t, d.ssh("alice+busybox@127.0.0.1", "true"))
	if r.code == 0 || !strings.Contains(r.err, "its gateway does not answer") {
		t.Errorf("got %+v", r)
	}
	d.restart()
}

func TestClientThatLeavesEndsItsCommand(t *testing.T) {
	d := openDoor(t, 100)
	cmd := d.ssh("alice+busybox@127.0.0.1", "echo started; sleep 1000")
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	d.waitFor(func() bool { return len(d.deleted) == 1 && len(d.sessions) == 0 })
}

func TestOutputGoesOnAfterTheGatewayCameBack(t *testing.T) {
	d := openDoor(t, 100)
	cmd := d.ssh("alice+busybox@127.0.0.1", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); [ $i = 5000 ] && sleep 1; done; exit 5")
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if _, err := io.CopyN(&got, out, 20000); err != nil {
		t.Fatal(err)
	}
	d.stop()
	d.restart()
	_, _ = io.Copy(&got, out)
	_ = cmd.Wait()
	if cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("exit %d", cmd.ProcessState.ExitCode())
	}
	lines := strings.Split(strings.TrimSuffix(got.String(), "\n"), "\n")
	if len(lines) != 20000 || lines[0] != "line 0" || lines[19999] != "line 19999" || !slices.IsSortedFunc(lines, func(a, b string) int { return len(a) - len(b) }) {
		t.Errorf("%d lines", len(lines))
	}
}

func TestHostKeyIsMadeOnceAndPrivate(t *testing.T) {
	dir := t.TempDir()
	prints := make(chan string, 4)
	for range cap(prints) {
		go func() {
			d, err := New(Options{GatewayURL: "http://127.0.0.1:1", DataDir: dir})
			if err != nil {
				prints <- err.Error()
				return
			}
			prints <- d.Fingerprint()
		}()
	}
	first := <-prints
	for range cap(prints) - 1 {
		if p := <-prints; p != first {
			t.Errorf("%s and %s", first, p)
		}
	}
	fi, err := os.Stat(filepath.Join(dir, "secrets", "ssh_host_ed25519_key"))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
}
