package sshdoor

import (
	"bytes"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// eachSFTP runs a test with the machine's own sftp-server, and with nothing but BusyBox in the machine.
func eachSFTP(t *testing.T, f func(t *testing.T, d *testDoor)) {
	t.Run("server", func(t *testing.T) { f(t, openDoor(t, 100)) })
	t.Run("busybox", func(t *testing.T) {
		d := openDoor(t, 100)
		d.door.sftpServers = nil
		d.path = t.TempDir()
		if b, err := exec.Command("busybox", "--install", "-s", d.path).CombinedOutput(); err != nil {
			t.Fatalf("busybox: %v: %s", err, b)
		}
		f(t, d)
	})
}

func TestSCP(t *testing.T) {
	eachSFTP(t, func(t *testing.T, d *testDoor) {
		d.has(environment{ID: "e90", Name: "box", Image: "busybox", State: "running"})
		here := t.TempDir()
		data := make([]byte, 24<<20+7)
		_, _ = rand.Read(data)
		for name, body := range map[string][]byte{"big": data, "it's a \"name\" $x": []byte("small\n"), "empty": nil} {
			if err := os.WriteFile(filepath.Join(here, name), body, 0o640); err != nil {
				t.Fatal(err)
			}
		}
		then := time.Unix(1_000_000_000, 0)
		if err := os.Chtimes(filepath.Join(here, "big"), then, then); err != nil {
			t.Fatal(err)
		}
		if r := run(t, d.as("correct horse", "scp", "-q", "-p", "-r", "-P", d.port, here, "alice+box@127.0.0.1:up")); r.code != 0 {
			t.Fatalf("up: %+v", r)
		}
		st, err := os.Stat(filepath.Join(d.home, "up", "big"))
		if err != nil || !st.ModTime().Equal(then) || st.Mode() != 0o640 {
			t.Errorf("%v %v", st, err)
		}
		back := filepath.Join(t.TempDir(), "back")
		if r := run(t, d.as("correct horse", "scp", "-q", "-p", "-r", "-P", d.port, "alice+box@127.0.0.1:up", back)); r.code != 0 {
			t.Fatalf("down: %+v", r)
		}
		if r, err := exec.Command("diff", "-r", here, back).CombinedOutput(); err != nil {
			t.Errorf("not the same: %.300s", r)
		}
		if r := run(t, d.as("correct horse", "scp", "-q", "-P", d.port, "alice+box@127.0.0.1:none", back)); r.code == 0 || !strings.Contains(r.err, "No such file") {
			t.Errorf("missing file: %+v", r)
		}
		if r := run(t, d.as("correct horse", "scp", "-q", "-P", d.port, filepath.Join(here, "empty"), "alice+box@127.0.0.1:/none/x")); r.code == 0 || !strings.Contains(r.err, "No such file") {
			t.Errorf("missing directory: %+v", r)
		}
	})
}

func TestSFTPCommands(t *testing.T) {
	eachSFTP(t, func(t *testing.T, d *testDoor) {
		d.has(environment{ID: "e90", Name: "box", Image: "busybox", State: "running"})
		here := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(here, []byte("hello"), 0o600); err != nil {
			t.Fatal(err)
		}
		batch := strings.Join([]string{"mkdir dir", "put " + here + " dir/a", "rename dir/a dir/b", "chmod 754 dir/b", "symlink b dir/l", "ls -ln dir",
			"get dir/l " + here + "2", "pwd", "put " + here + " dir/c", "rm dir/c", "-rm dir/nothing", "-rmdir dir", "-ls nowhere"}, "\n")
		cmd := exec.Command("sshpass", append(append([]string{"-p", "correct horse", "sftp"}, d.options()...), "-o", "BatchMode=no", "-o", "PubkeyAuthentication=no", "-P", d.port, "-b", "-", "alice+box@127.0.0.1")...)
		cmd.Stdin = strings.NewReader(batch)
		r := run(t, cmd)
		if r.code != 0 || !strings.Contains(r.out, "-rwxr-xr--") || !strings.Contains(r.out, "lrwxrwxrwx") || !strings.Contains(r.out, "directory: "+d.home) ||
			strings.Count(strings.ToLower(r.err), "no such file")+strings.Count(r.err, "not found") < 2 {
			t.Fatalf("got %+v", r)
		}
		if b, err := os.ReadFile(here + "2"); err != nil || string(b) != "hello" {
			t.Errorf("%q %v", b, err)
		}
		if l, err := os.Readlink(filepath.Join(d.home, "dir", "l")); err != nil || l != "b" {
			t.Errorf("link %q %v", l, err)
		}
		if b, err := os.ReadFile(filepath.Join(d.home, "dir", "b")); err != nil || !bytes.Equal(b, []byte("hello")) {
			t.Errorf("%q %v", b, err)
		}
		if _, err := os.Stat(filepath.Join(d.home, "dir", "c")); !os.IsNotExist(err) {
			t.Errorf("c: %v", err)
		}
	})
}

func TestSFTPNeedsAMachine(t *testing.T) {
	d := openDoor(t, 100)
	r := run(t, d.as("correct horse", "scp", "-q", "-P", d.port, "/etc/hostname", "alice@127.0.0.1:x"))
	if r.code == 0 || !strings.Contains(r.err, "Which machine") {
		t.Errorf("got %+v", r)
	}
}

func TestRsyncAndTarThroughACommand(t *testing.T) {
	d := openDoor(t, 100)
	d.has(environment{ID: "e90", Name: "box", Image: "busybox", State: "running"})
	here := t.TempDir()
	data := make([]byte, 3<<20)
	_, _ = rand.Read(data)
	if err := os.WriteFile(filepath.Join(here, "f"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	ssh := d.ssh()
	cmd := exec.Command("rsync", "-a", "-e", strings.Replace(strings.Join(ssh.Args, " "), "correct horse", "'correct horse'", 1), here+"/", "alice+box@127.0.0.1:synced")
	if r := run(t, cmd); r.code != 0 {
		t.Fatalf("rsync: %+v", r)
	}
	if b, err := os.ReadFile(filepath.Join(d.home, "synced", "f")); err != nil || !bytes.Equal(b, data) {
		t.Errorf("rsync: %d bytes, %v", len(b), err)
	}
	tar := exec.Command("sh", "-c", `tar -C "$0" -cf - . | "$@"`)
	tar.Args = append(tar.Args, here)
	tar.Args = append(tar.Args, d.ssh("alice+box@127.0.0.1", "mkdir t && tar -C t -xf - && sha256sum t/f").Args...)
	if r := run(t, tar); r.code != 0 || !strings.Contains(r.out, "t/f") {
		t.Errorf("tar: %+v", r)
	}
}

func FuzzParseStats(f *testing.F) {
	f.Add("81a4 5 1000000000 0 0 ./a b\n41ed 40 1 0 0 ./d\n")
	f.Add("81a4 5 1000000000 0 0 ../x\nffffffffff 1 1 1 1 y\n81a4 -1 0 0 0 n\n")
	f.Fuzz(func(t *testing.T, out string) {
		for _, st := range parseStats(out) {
			if n := st.Name(); n == "" || n == "." || n == ".." || strings.ContainsAny(n, "/\x00\n") || st.Size() < 0 {
				t.Errorf("%q", n)
			}
			_ = st.Mode()
		}
	})
}

func TestUploadIntoAMachineMadeForItIsKept(t *testing.T) {
	eachSFTP(t, func(t *testing.T, d *testDoor) {
		file := filepath.Join(t.TempDir(), "f")
		for name, body := range map[string]string{"full": "hello", "empty": ""} {
			if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
				t.Fatal(err)
			}
			r := run(t, d.as("correct horse", "scp", "-q", "-P", d.port, file, "alice+busybox@127.0.0.1:"+name))
			made := d.lastMade()
			if r.code != 0 || !strings.Contains(r.err, made+" has your files and stays until nobody has been connected for 30 min, for 4 h at most.") {
				t.Fatalf("%s: got %+v", name, r)
			}
			// What it says can be copied and works.
			_, there, _ := strings.Cut(r.err, "Go there with: ")
			args := strings.Fields(there)
			if len(args) != 4 || args[0] != "ssh" {
				t.Fatalf("%s: %q", name, there)
			}
			if r := run(t, d.as("correct horse", "ssh", append(args[1:], "cat", name)...)); r.code != 0 || r.out != body {
				t.Errorf("%s: got %+v", name, r)
			}
		}
		// The old protocol and rsync are commands. Nothing that only reads keeps a machine.
		if r := run(t, d.as("correct horse", "scp", "-O", "-q", "-P", d.port, file, "alice+busybox@127.0.0.1:old")); d.path == os.Getenv("PATH") && (r.code != 0 || !strings.Contains(r.err, "has your files")) {
			t.Errorf("scp -O: got %+v", r)
		}
		d.mu.Lock()
		before := len(d.deleted)
		d.mu.Unlock()
		if r := run(t, d.as("correct horse", "scp", "-q", "-P", d.port, "alice+busybox@127.0.0.1:full", file)); r.code != 0 || r.err != "" {
			t.Errorf("down: got %+v", r)
		}
		d.waitFor(func() bool { return len(d.deleted) == before+1 })
	})
}

func TestCommandsThatReceiveFiles(t *testing.T) {
	for command, want := range map[string]bool{
		"scp -t .": true, "scp -v -r -p -d -t -- 'a b'": true, "scp -f x": false, "scp a -t": false, "scp": false, "": false,
		"rsync --server -logDtpre.iLsfxCIvu . dir/": true, "rsync --server --sender -logDtpre.iLsfxCIvu . dir/": false,
		"rsync -a x y": false, "echo scp -t": false, "rsync --server -vz . --sender": true,
	} {
		if got := receives(command); got != want {
			t.Errorf("%q: %v", command, got)
		}
	}
}

// FuzzSFTPWatch: whatever comes in whatever pieces, all of it is taken, and the pieces make no difference.
func FuzzSFTPWatch(f *testing.F) {
	open := "\x00\x00\x00\x12\x03\x00\x00\x00\x01\x00\x00\x00\x01a\x00\x00\x00\x1a\x00\x00\x00\x00"
	f.Add([]byte("\x00\x00\x00\x05\x01\x00\x00\x00\x03"+open+"\x00\x00\x00\x06\x04\x00\x00\x00\x02\x01"), uint8(3))
	f.Add([]byte("\x00\x00\x00\x00\x06"), uint8(1))
	f.Add([]byte("\x00\x00\x00\x05\x0e\x00\x00\x00\x01"), uint8(2))
	f.Add([]byte("\xff\xff\xff\xff\x03\x00\x00\x00\x00\xff\xff\xff\xff"), uint8(9))
	f.Fuzz(func(t *testing.T, data []byte, piece uint8) {
		var whole, pieces sftpWatch
		if n, err := whole.Write(data); n != len(data) || err != nil {
			t.Fatal(n, err)
		}
		for rest := data; len(rest) > 0; {
			n := min(len(rest), int(piece)+1)
			_, _ = pieces.Write(rest[:n])
			rest = rest[n:]
		}
		if whole.changed.Load() != pieces.changed.Load() || len(whole.packet) > maxOpen {
			t.Errorf("%q by %d: %v, %v", data, piece, whole.changed.Load(), pieces.changed.Load())
		}
	})
}

func TestSFTPWatch(t *testing.T) {
	opening := func(flags byte) string {
		return "\x00\x00\x00\x12\x03\x00\x00\x00\x01\x00\x00\x00\x01a\x00\x00\x00" + string(flags) + "\x00\x00\x00\x00"
	}
	closing, reading, making := "\x00\x00\x00\x06\x04\x00\x00\x00\x02\x01", "\x00\x00\x00\x05\x05\x00\x00\x00\x01", "\x00\x00\x00\x05\x0e\x00\x00\x00\x01"
	for stream, want := range map[string]bool{
		opening(1) + reading + closing: false, // read
		opening(0x1a):                  false, // refused, for all we know
		opening(0x1a) + closing:        true,  // an empty file
		reading + making:               true,
	} {
		var w sftpWatch
		_, _ = w.Write([]byte(stream))
		if got := w.changed.Load(); got != want {
			t.Errorf("%q: %v", stream, got)
		}
	}
}
