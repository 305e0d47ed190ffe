package rawfork

import (
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// run runs a program that execs a shell script and returns what it wrote.
func shell(t *testing.T, script string, before func(p *Program)) (string, error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var p Program
	p.Add("dup", Must, unix.SYS_DUP3, w.Fd(), 1, 0)
	p.Add("signals", Must, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, p.Bytes(make([]byte, 8)), 0, 8)
	if before != nil {
		before(&p)
	}
	argv := p.Strings([]string{"sh", "-c", script})
	envp := p.Strings(nil)
	for _, path := range []string{"/nowhere/busybox", "/etc/passwd/busybox", "/bin/busybox"} {
		p.Add("exec", Exec, unix.SYS_EXECVE, p.String(path), argv, envp)
	}
	proc, err := Start(&p, 0, -1)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	err = proc.Wait()
	out, _ := io.ReadAll(r)
	unix.Wait4(proc.PID, nil, 0, nil)
	unix.Close(proc.PIDFD)
	return string(out), err
}

func TestExec(t *testing.T) {
	out, err := shell(t, "echo hello; busybox grep SigBlk /proc/self/status", nil)
	if err != nil || out != "hello\nSigBlk:\t0000000000000000\n" {
		t.Fatalf("%q %v", out, err)
	}
}

func TestFailingStepIsNamed(t *testing.T) {
	_, err := shell(t, "echo no", func(p *Program) { p.Add("enter", Must, unix.SYS_CHDIR, p.String("/nowhere")) })
	var e *Error
	if !errors.As(err, &e) || e.Step != "enter" || e.Errno != unix.ENOENT {
		t.Fatalf("%v", err)
	}
	out, err := shell(t, "echo yes", func(p *Program) {
		p.Add("enter", Try, unix.SYS_CHDIR, p.String("/nowhere"))
		p.Inside("inside")
	})
	if err != nil || out != "yes\n" {
		t.Fatalf("%q %v", out, err)
	}
}

func TestMissingCommand(t *testing.T) {
	var p Program
	for path, want := range map[string]unix.Errno{"/nowhere": unix.ENOENT, "/etc/passwd": unix.EACCES, "/": unix.EACCES} {
		p = Program{}
		p.Add("exec", Exec, unix.SYS_EXECVE, p.String(path), p.Strings([]string{"x"}), p.Strings(nil))
		p.Add("exec", Exec, unix.SYS_EXECVE, p.String("/nowhere/else"), p.Strings([]string{"x"}), p.Strings(nil))
		proc, err := Start(&p, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if err := proc.Wait(); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
		unix.Wait4(proc.PID, nil, 0, nil)
		unix.Close(proc.PIDFD)
	}
}

// TestForkStep joins the network namespace of another process and makes a process namespace on top, in a copy of our memory
// and in our own.
func TestForkStep(t *testing.T) {
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	for _, sharing := range []uintptr{0, unix.CLONE_VM} {
		var p Program
		p.Add("join", Must, unix.SYS_SETNS, ns.Fd(), unix.CLONE_NEWNET)
		p.Add("fork", Fork, unix.SYS_CLONE, unix.CLONE_NEWPID|sharing|unix.CLONE_PARENT|uintptr(unix.SIGCHLD), 0, 0, 0, 0)
		p.Add("exec", Exec, unix.SYS_EXECVE, p.String("/bin/busybox"), p.Strings([]string{"sh", "-c", "exit $$"}), p.Strings(nil))
		proc, err := Start(&p, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if err := proc.Forked(); err != nil {
			t.Fatal(err)
		}
		if err := proc.Wait(); err != nil {
			t.Fatal(err)
		}
		var st unix.WaitStatus
		if _, err := unix.Wait4(proc.PID, &st, 0, nil); err != nil || st.ExitStatus() != 1 {
			t.Errorf("exit status %d (it is PID 1 inside), %v", st.ExitStatus(), err)
		}
		unix.Close(proc.PIDFD)
	}
}

// TestUnderLoad forks from many goroutines while others allocate and collect: the children share this memory.
func TestUnderLoad(t *testing.T) {
	stop := make(chan struct{})
	var churn, work sync.WaitGroup
	for range 4 {
		churn.Go(func() {
			var keep [][]byte
			for {
				select {
				case <-stop:
					return
				default:
					keep = append(keep, make([]byte, 4096))
					if len(keep) > 1000 {
						keep = nil
					}
				}
			}
		})
	}
	for range 8 {
		work.Go(func() {
			for range 50 {
				if out, err := shell(t, "echo $((6*7))", nil); err != nil || out != "42\n" {
					t.Errorf("%q %v", out, err)
				}
			}
		})
	}
	work.Wait()
	close(stop)
	churn.Wait()
}

func TestAbort(t *testing.T) {
	var pair [2]int
	if err := unix.Pipe2(pair[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	var p Program
	p.Add("wait", Byte, unix.SYS_READ, uintptr(pair[0]), p.Bytes(make([]byte, 1)), 1)
	proc, err := Start(&p, unix.CLONE_NEWUSER, -1)
	if err != nil {
		t.Fatal(err)
	}
	proc.Abort()
	if err := unix.Kill(proc.PID, 0); err != unix.ESRCH {
		t.Errorf("%v", err)
	}
}

func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		var p Program
		p.Add("exit", Must, unix.SYS_EXIT_GROUP, 0)
		proc, err := Start(&p, 0, -1)
		if err != nil {
			b.Fatal(err)
		}
		proc.Wait()
		unix.Wait4(proc.PID, nil, 0, nil)
		unix.Close(proc.PIDFD)
	}
}

// What is to be done may be decided after the fork, and numbers that only the child learns may be handed from step to step.
func TestMore(t *testing.T) {
	for _, missing := range []bool{false, true} {
		var goAhead, out [2]int
		for _, pipe := range []*[2]int{&goAhead, &out} {
			if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
		}
		var p, more Program
		p.Add("signals", Must, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, p.Bytes(make([]byte, 8)), 0, 8)
		p.Add("go-ahead", More, unix.SYS_READ, uintptr(goAhead[0]), p.Bytes(make([]byte, 1)), 1)
		proc, err := Start(&p, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		path := t.TempDir() + "/file"
		if err := os.WriteFile(path, []byte("told\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if missing {
			path += "/missing"
		}
		fd := more.Number()
		how := &unix.OpenHow{Flags: unix.O_RDONLY}
		more.Keep(how)
		at := unix.AT_FDCWD
		more.Add("open it", Must, unix.SYS_OPENAT2, uintptr(at), more.String(path), uintptr(unsafe.Pointer(how)), unsafe.Sizeof(*how)).Into(fd)
		more.Add("input", Must, unix.SYS_DUP3, uintptr(fd), 0, 0).Load(0)
		more.Add("output", Must, unix.SYS_DUP3, uintptr(out[1]), 1, 0)
		more.Add("exec", Exec, unix.SYS_EXECVE, more.String("/bin/busybox"), more.Strings([]string{"cat"}), more.Strings(nil))
		proc.More(&more)
		if _, err := unix.Write(goAhead[1], []byte{1}); err != nil {
			t.Fatal(err)
		}
		err = proc.Wait()
		unix.Close(out[1])
		got := make([]byte, 100)
		n, _ := unix.Read(out[0], got)
		unix.Wait4(proc.PID, nil, 0, nil)
		var e *Error
		switch {
		case missing && (!errors.As(err, &e) || e.Step != "open it" || e.Errno != unix.ENOTDIR):
			t.Errorf("missing: %v", err)
		case !missing && (err != nil || string(got[:n]) != "told\n"):
			t.Errorf("%q %v", got[:n], err)
		}
		for _, fd := range []int{goAhead[0], goAhead[1], out[0], proc.PIDFD} {
			unix.Close(fd)
		}
	}
}
