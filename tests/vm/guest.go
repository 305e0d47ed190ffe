package vm

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Guest is PID 1 of the guest: it makes the file system, takes the job from the port, runs it, reports, and turns the
// machine off. It never returns.
func Guest() {
	err := guest()
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err) // the console, which the host keeps
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // QEMU runs with -no-reboot
	select {}
}

// port writes frames; its users are several goroutines.
type port struct {
	mu sync.Mutex
	f  *os.File
}

func (p *port) send(kind byte, data []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		n := min(len(data), maxFrame)
		frame := append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(n)), data[:n]...)
		if _, err := p.f.Write(frame); err != nil {
			return err
		}
		if data = data[n:]; len(data) == 0 {
			return nil
		}
	}
}

type portWriter struct {
	p    *port
	kind byte
}

func (w portWriter) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if err := w.p.send(w.kind, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

func guest() error {
	for _, m := range []struct{ kind, at string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return err
		}
	}
	if err := loadModules("/load"); err != nil {
		return err
	}
	f, err := openPort()
	if err != nil {
		return err
	}
	p := &port{f: f}
	job, err := readJob(f)
	if err == nil {
		err = makeRoot(job)
	}
	if err == nil {
		err = makeCgroups()
	}
	if err != nil {
		p.send(frameFailed, []byte(err.Error()))
		return err
	}
	return execute(p, job)
}

// loadModules loads every file of the directory, in the order of their names.
func loadModules(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", e.Name(), err)
		}
	}
	return nil
}

// openPort finds the port by its name: without udev it has no other path than its number.
func openPort() (*os.File, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if text, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(text)) == portName {
			fd, err := unix.Open("/dev/"+filepath.Base(filepath.Dir(n)), unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("open the job's port: %w", err)
			}
			return os.NewFile(uintptr(fd), "port"), nil
		}
	}
	return nil, fmt.Errorf("no port is called %s among %v", portName, names)
}

func readJob(r io.Reader) (*Job, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, fmt.Errorf("read the job: %w", err)
	}
	raw := make([]byte, binary.BigEndian.Uint32(head))
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, fmt.Errorf("read the job: %w", err)
	}
	var job Job
	if err := json.Unmarshal(raw, &job); err != nil {
		return nil, fmt.Errorf("read the job: %w", err)
	}
	return &job, nil
}

// makeRoot puts memory over the host's file system and makes that the root.
func makeRoot(job *Job) error {
	if err := mount("root", "/host", "virtiofs", unix.MS_RDONLY, ""); err != nil {
		return err
	}
	if err := mount("tmpfs", "/memory", "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	for _, d := range []string{"/memory/upper", "/memory/work"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := mount("overlay", "/new", "overlay", 0, "lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work"); err != nil {
		return err
	}
	for _, m := range []struct{ kind, at, data string }{
		{"devtmpfs", "dev", ""}, {"devpts", "dev/pts", "ptmxmode=0666,mode=0620,gid=5"}, {"tmpfs", "dev/shm", "mode=1777"},
		{"proc", "proc", ""}, {"sysfs", "sys", ""}, {"securityfs", "sys/kernel/security", ""}, {"cgroup2", "sys/fs/cgroup", ""},
		{"tmpfs", "tmp", "mode=1777"}, {"tmpfs", "run", "mode=0755"}, {"tmpfs", "var/tmp", "mode=1777"},
	} {
		if err := mount(m.kind, "/new/"+m.at, m.kind, 0, m.data); err != nil {
			return err
		}
	}
	// The kernel's own modules, and the command if it lies in a directory that is hidden now.
	modules, err := os.ReadFile("/modules")
	if err != nil {
		return err
	}
	if err := bind(string(modules), "/lib/modules/"+filepath.Base(string(modules))); err != nil {
		return err
	}
	if len(job.Args) > 0 && strings.HasPrefix(job.Args[0], "/tmp/") {
		if err := bind(job.Args[0], job.Args[0]); err != nil {
			return err
		}
	}
	if job.Dir != "" && strings.HasPrefix(job.Dir, "/tmp/") {
		// Writable like everything else, so with memory of its own over it.
		for _, d := range []string{"/memory/dir-upper", "/memory/dir-work", "/new" + job.Dir} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		if err := mount("overlay", "/new"+job.Dir, "overlay", 0, "lowerdir=/host"+job.Dir+",upperdir=/memory/dir-upper,workdir=/memory/dir-work"); err != nil {
			return err
		}
	}
	// The kernel loads modules by itself through this path, in the root its threads share with PID 1.
	if err := os.Symlink("/bin/busybox", "/new/run/modprobe"); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/kernel/modprobe", []byte("/run/modprobe"), 0); err != nil {
		return err
	}
	if err := os.Chdir("/new"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the new root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("guest")); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	return loopbackUp()
}

// bind shows a path of the host in the new root.
func bind(host, at string) error {
	from, to := "/host"+host, "/new"+at
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(to, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(to), 0o755); err == nil {
		err = os.WriteFile(to, nil, 0o755)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("show %s: %w", host, err)
	}
	return nil
}

func mount(source, at, kind string, flags uintptr, data string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, at, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s at %s: %w", kind, at, err)
	}
	return nil
}

// makeCgroups moves this process out of the root, which then may give its controllers to children (kernel
// documentation, admin-guide/cgroup-v2, "No Internal Process Constraint": the root itself is exempt, but what runs there
// has no limits to test).
func makeCgroups() error {
	const root = "/sys/fs/cgroup"
	if err := os.Mkdir(root+"/guest", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(root+"/guest/cgroup.procs", []byte("0"), 0); err != nil {
		return fmt.Errorf("move into a cgroup: %w", err)
	}
	have, err := os.ReadFile(root + "/cgroup.controllers")
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(have)) {
		if err := os.WriteFile(root+"/cgroup.subtree_control", []byte("+"+c), 0); err != nil {
			return fmt.Errorf("enable the controller %s: %w", c, err)
		}
	}
	// The first processor limit rewrites the scheduler's code (static keys), which two emulated processors at work don't
	// always survive. So it comes now, while one of them idles, and stays.
	if err := os.Mkdir(root+"/limited", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(root+"/limited/cpu.max", []byte("100000 100000"), 0); err != nil {
		return fmt.Errorf("set a processor limit: %w", err)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// scratchDisk is the device of the disk with that serial, or empty: names depend on the order of discovery.
func scratchDisk() string {
	serials, _ := filepath.Glob("/sys/block/*/serial")
	for _, s := range serials {
		if text, err := os.ReadFile(s); err == nil && strings.TrimSpace(string(text)) == scratchSerial {
			return "/dev/" + filepath.Base(filepath.Dir(s))
		}
	}
	return ""
}

// lastWords is how long after the command's end its children may still write. They end with the machine.
const lastWords = 5 * time.Second

func execute(p *port, job *Job) error {
	if err := command("/bin/busybox", "modprobe", "virtio_blk"); err != nil {
		p.send(frameFailed, []byte(err.Error()))
		return err
	}
	cmd := exec.Command(job.Args[0], job.Args[1:]...)
	cmd.Dir = job.Dir
	cmd.Env = append(job.Env, "LEARNOS_VM=1", "LEARNOS_VM_DISK="+scratchDisk())
	cmd.Stdout, cmd.Stderr = portWriter{p, frameOut}, portWriter{p, frameErr}
	cmd.WaitDelay = lastWords
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if job.Shell {
		console, err := os.OpenFile("/dev/ttyS0", os.O_RDWR, 0)
		if err != nil {
			p.send(frameFailed, []byte(err.Error()))
			return err
		}
		defer console.Close()
		cmd.Stdin, cmd.Stdout, cmd.Stderr = console, console, console
		cmd.SysProcAttr.Setctty = true
	}
	if err := p.send(frameStarted, nil); err != nil {
		return err
	}
	status, err := reapUntil(cmd)
	if err != nil {
		p.send(frameErr, fmt.Appendf(nil, "guest: %v\n", err))
	}
	return p.send(frameExit, []byte{status})
}

// reapUntil runs the command, and reaps as PID 1 must what becomes its child meanwhile: programs wait for their orphans to
// be gone.
func reapUntil(cmd *exec.Cmd) (byte, error) {
	if err := cmd.Start(); err != nil {
		return 127, err
	}
	for {
		var info unix.Siginfo
		if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil && err != unix.EINTR {
			break
		}
		pid := *(*int32)(unsafe.Add(unsafe.Pointer(&info), 16)) // si_pid of a SIGCHLD (sigaction(2)); x/sys names no such field
		if int(pid) == cmd.Process.Pid {
			break // cmd.Wait reaps it
		}
		if pid > 0 {
			unix.Wait4(int(pid), nil, 0, nil)
		}
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.Is(err, exec.ErrWaitDelay): // it ended well
		return 0, fmt.Errorf("the command left processes that hold its output open; they end with the machine, %v after it", lastWords)
	case errors.As(err, &exit):
		if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
			return byte(128 + int(s.Signal())), nil
		}
		return byte(exit.ExitCode()), nil
	}
	return 127, err
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
