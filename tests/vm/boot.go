package vm

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	scratchSerial = "scratch"
	scratchBytes  = 1 << 30
	bootPatience  = 90 * time.Second // a boot takes 3 to 5 s; this is for a machine with much else to do
	attempts      = 3
)

// errNotStarted is a boot that ended before the command began: worth another try, since emulated processors of two
// cores now and then lose their way early.
var errNotStarted = errors.New("the guest died before it began the command")

// Run boots a guest, runs the job there and returns its exit status. Every error wraps ErrInfrastructure.
func Run(ctx context.Context, cache string, job Job, stdout, stderr io.Writer) (int, error) {
	k, err := getKernel(ctx, cache)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrInfrastructure, err)
	}
	for n := 1; ; n++ {
		status, err := boot(ctx, k, job, stdout, stderr)
		if errors.Is(err, errNotStarted) && n < attempts && ctx.Err() == nil {
			fmt.Fprintf(stderr, "vmexec: boot %d of %d failed, trying again: %v\n", n, attempts, err)
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("%w: %w", ErrInfrastructure, err)
		}
		return status, nil
	}
}

// boot is one try.
func boot(ctx context.Context, k *kernel, job Job, stdout, stderr io.Writer) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dir, err := os.MkdirTemp("", "vmexec-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := writeInitramfs(filepath.Join(dir, "initramfs"), k); err != nil {
		return 0, fmt.Errorf("write the initramfs: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "scratch"), nil, 0o600); err != nil {
		return 0, err
	}
	if err := os.Truncate(filepath.Join(dir, "scratch"), scratchBytes); err != nil {
		return 0, err
	}
	listener, err := net.Listen("unix", filepath.Join(dir, "port"))
	if err != nil {
		return 0, err
	}
	defer listener.Close()

	share, shareLog, err := startShare(ctx, dir)
	if err != nil {
		return 0, err
	}
	defer share.Wait()
	defer cancel()
	consoleLog := filepath.Join(dir, "console")
	var qemuLog bytes.Buffer
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", qemuArgs(k, dir, job.Shell)...)
	qemu.Stderr = &qemuLog
	if job.Shell {
		qemu.Stdin, qemu.Stdout = os.Stdin, os.Stdout
	} else {
		qemu.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a ^C is ours to deal with
	}
	if err := qemu.Start(); err != nil {
		return 0, fmt.Errorf("start QEMU (apt-get install qemu-system-x86): %w", err)
	}
	gone := make(chan struct{})
	go func() {
		qemu.Wait()
		listener.Close()
		close(gone)
	}()
	defer func() { cancel(); <-gone }()

	// What the guest's end was, if there was one.
	why := func(err error) error {
		cancel()
		<-gone
		tail, _ := os.ReadFile(consoleLog)
		return fmt.Errorf("%w\nQEMU: %s\nvirtiofsd: %s\nconsole: %s", err, lastLines(qemuLog.Bytes()), lastLines(shareLog.Bytes()), lastLines(tail))
	}
	conn, err := listener.Accept()
	if err != nil {
		return 0, why(fmt.Errorf("%w: QEMU never connected: %w", errNotStarted, err))
	}
	defer conn.Close()
	job.Env = append([]string{}, job.Env...)
	raw, err := json.Marshal(job)
	if err != nil {
		return 0, err
	}
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(raw))), raw...)); err != nil {
		return 0, why(fmt.Errorf("%w: %w", errNotStarted, err))
	}
	conn.SetReadDeadline(time.Now().Add(bootPatience))
	r := bufio.NewReaderSize(conn, maxFrame)
	started := false
	for {
		kind, data, err := readFrame(r)
		switch {
		case err != nil && !started:
			return 0, why(fmt.Errorf("%w: %w", errNotStarted, err))
		case err != nil && ctx.Err() != nil:
			return 0, ctx.Err()
		case err != nil:
			return 0, why(fmt.Errorf("the guest began the command and was gone before its status came: %w", err))
		}
		switch kind {
		case frameStarted:
			started = true
			conn.SetReadDeadline(time.Time{})
		case frameOut:
			stdout.Write(data)
		case frameErr:
			stderr.Write(data)
		case frameFailed:
			return 0, why(fmt.Errorf("the guest can't run the command: %s", data))
		case frameExit:
			if len(data) != 1 {
				return 0, why(fmt.Errorf("status of %d bytes", len(data)))
			}
			return int(data[0]), nil
		default:
			return 0, why(fmt.Errorf("frame of unknown kind %q", kind))
		}
	}
}

func readFrame(r io.Reader) (byte, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("frame of %d bytes", n)
	}
	data := make([]byte, n)
	_, err := io.ReadFull(r, data)
	return head[0], data, err
}

func lastLines(log []byte) string {
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "\n")
}

// qemuArgs: software emulation only, and without the two processor features that emulation is not steady with
// (16-byte compare-and-swap, five-level page tables).
func qemuArgs(k *kernel, dir string, shell bool) []string {
	in := func(name string) string { return filepath.Join(dir, name) }
	console := "file,id=console,path=" + in("console")
	if shell {
		console = "stdio,id=console,signal=off"
	}
	return []string{
		"-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max,cx16=off,la57=off", "-smp", "2", "-m", "4096",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-object", "memory-backend-memfd,id=mem,size=4096M,share=on", "-numa", "node,memdev=mem", // virtiofsd reads and writes there
		"-kernel", k.image, "-initrd", in("initramfs"),
		"-append", "console=ttyS0 quiet loglevel=4 panic=-1 tsc=reliable no_timer_check mitigations=off cryptomgr.notests nokaslr 8250.nr_uarts=1 random.trust_cpu=on",
		"-chardev", console, "-serial", "chardev:console",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=job,server=off,path=" + in("port"), "-device", "virtserialport,chardev=job,name=" + portName,
		"-chardev", "socket,id=share,path=" + in("share"), "-device", "vhost-user-fs-pci,chardev=share,tag=root",
		"-drive", "if=none,id=disk,format=raw,file=" + in("scratch"), "-device", "virtio-blk-pci,drive=disk,serial=" + scratchSerial,
		"-device", "virtio-rng-pci",
	}
}

// needed are the drivers without which the guest does not come as far as the host's files; most kernels have most of
// them built in.
var needed = []string{"virtio_pci", "virtio_console", "virtio_blk", "virtiofs", "overlay"}

// firstModules lists what is to be loaded for them, in order, from modules.dep: "path: what it depends on, the nearest first".
func firstModules(dir string) ([]string, error) {
	deps, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	var order []string
	for _, name := range needed {
		for line := range strings.Lines(string(deps)) {
			path, rest, _ := strings.Cut(line, ":")
			if filepath.Base(path) != name+".ko" {
				continue
			}
			first := strings.Fields(rest)
			slices.Reverse(first)
			for _, m := range append(first, path) {
				if !slices.Contains(order, m) {
					order = append(order, m)
				}
			}
		}
	}
	return order, nil
}

// writeInitramfs packs what is needed until the host's files are there: this very program as /init, the modules
// it needs itself, and where the others are.
func writeInitramfs(path string, k *kernel) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	program, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	if parsed, err := elf.NewFile(bytes.NewReader(program)); err != nil {
		return err
	} else if libs, err := parsed.ImportedLibraries(); err != nil || len(libs) > 0 {
		return fmt.Errorf("%s needs %v, which the first root has not: build it with CGO_ENABLED=0", self, libs)
	}
	modules, err := firstModules(k.modules)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	c := &cpioWriter{w: w}
	for _, d := range []string{"dev", "proc", "sys", "host", "memory", "new", "load"} {
		c.dir(d)
	}
	c.file("init", 0o755, program)
	for i, m := range modules {
		content, err := os.ReadFile(filepath.Join(k.modules, m))
		if err != nil {
			return err
		}
		c.file(fmt.Sprintf("load/%02d-%s", i, filepath.Base(m)), 0o644, content)
	}
	c.file("modules", 0o644, []byte(k.modules))
	if err := c.close(); err != nil {
		return err
	}
	return w.Flush()
}

// virtiofsdPaths is where Debian keeps it: with QEMU 7.2, and in a package of its own since.
var virtiofsdPaths = []string{"/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"}

// shareEnv tells this program, started again, that it is to become virtiofsd for that directory.
const shareEnv = "LEARNOS_VM_SHARE"

// startShare runs virtiofsd in a mount namespace where the whole file system is read-only, for it has no flag for that.
func startShare(ctx context.Context, dir string) (*exec.Cmd, *bytes.Buffer, error) {
	if err := os.Mkdir(filepath.Join(dir, "root"), 0o755); err != nil {
		return nil, nil, err
	}
	log := new(bytes.Buffer)
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), shareEnv+"="+dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start virtiofsd: %w", err)
	}
	for deadline := time.Now().Add(20 * time.Second); !fileExists(filepath.Join(dir, "share")); {
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			cmd.Wait()
			return nil, nil, fmt.Errorf("virtiofsd did not come up: %s", log)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return cmd, log, nil
}

// Share is what the program does when shareEnv is set; it becomes virtiofsd.
func Share(dir string) error {
	root := filepath.Join(dir, "root")
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("/", root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind the root: %w", err)
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, root, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make it read-only: %w", err)
	}
	for _, path := range virtiofsdPaths {
		if fileExists(path) {
			return unix.Exec(path, []string{path, "--socket-path=" + filepath.Join(dir, "share"), "-o", "source=" + root,
				"-o", "sandbox=chroot", "-o", "cache=always", "-o", "xattr", "--rlimit-nofile=0", "-f"}, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"})
		}
	}
	return fmt.Errorf("no virtiofsd in %v (apt-get install qemu-system-common)", virtiofsdPaths)
}

// Role runs what this program was started again for, and does not return then: PID 1 of the guest, or virtiofsd.
func Role() {
	if os.Getpid() == 1 && os.Getenv(shareEnv) == "" && fileExists("/load") {
		Guest()
	}
	if dir := os.Getenv(shareEnv); dir != "" {
		fmt.Fprintln(os.Stderr, Share(dir))
		os.Exit(1)
	}
}
