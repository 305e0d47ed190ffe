package e2e

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/learnos/learnos/tests/platform"
)

// sshCommand is OpenSSH's own client, logging in with a password.
func sshCommand(ctx context.Context, p *platform.Platform, password string, args ...string) *exec.Cmd {
	host, port, _ := net.SplitHostPort(p.SSHAddr)
	base := []string{"-e", "ssh", "-p", port, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR", "-o", "PreferredAuthentications=publickey,password", "-o", "HostName=" + host}
	cmd := exec.CommandContext(ctx, "sshpass", append(base, args...)...)
	cmd.Env = append(os.Environ(), "SSHPASS="+password)
	return cmd
}

// `ssh alice+busybox@host command` creates, runs, prints, passes the exit
// status back and deletes.
func TestSSHCommand(t *testing.T) {
	p, ctx := start(t, platform.Options{Embedded: true})
	c, name, password := person(t, ctx, p)

	cmd := sshCommand(ctx, p, password, name+"+busybox@learnos", "id; echo err >&2; exit 7")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Fatalf("ssh ended with %v, want exit status 7; it said %q %q", err, stdout.String(), stderr.String())
	}
	if !strings.HasPrefix(stdout.String(), "uid=0(root)") || !strings.Contains(stderr.String(), "err\n") {
		t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
	}
	var envs []platform.Environment
	if err := c.Do(ctx, "GET", "/environments", nil, &envs); err != nil {
		t.Fatal(err)
	}
	for _, e := range envs {
		if _, err := c.WaitState(ctx, e.ID, "deleted"); err != nil {
			t.Errorf("the environment of one command stayed: %v", err)
		}
	}

	// Standard input passes byte for byte, and its end ends the command.
	data := bytes.Repeat([]byte("\x00\xff\r\n\x04learnos"), 1<<20/11)
	cmd = sshCommand(ctx, p, password, name+"+busybox@learnos", "wc -c")
	cmd.Stdin = bytes.NewReader(data)
	if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != "1048575" && len(data) == 1048575 {
		t.Errorf("wc -c of %d bytes said %q, %v", len(data), out, err)
	}
}

// A registered key opens the door; a wrong password does not.
func TestSSHAuthentication(t *testing.T) {
	p, ctx := start(t, platform.Options{Embedded: true})
	c, name, _ := person(t, ctx, p)
	key := filepath.Join(t.TempDir(), "id")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v %s", err, out)
	}
	pub, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := sshCommand(ctx, p, "wrong password", name+"+busybox@learnos", "id").CombinedOutput(); err == nil {
		t.Fatalf("a wrong password opened the door: %s", out)
	}
	if err := c.Do(ctx, "POST", "/me/keys", map[string]string{"name": "laptop", "key": string(pub)}, nil); err != nil {
		t.Fatal(err)
	}
	out, err := sshCommand(ctx, p, "", "-i", key, name+"+busybox@learnos", "echo by key").CombinedOutput()
	if err != nil || string(out) != "by key\n" {
		t.Fatalf("login by key: %v %q", err, out)
	}
}
