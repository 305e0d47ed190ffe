package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stalk lies in wait, for as long as told, for processes that others bring into the container, and tries to take hold of
// each in the moment before it has become harmless: its memory, its executable, its descriptors, its root. What it gets hold
// of that is not a program of the container's own it prints.
func stalk(args []string) error {
	long, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	seen := map[int]int{}
	said := map[string]bool{}
	say := func(what string, more ...any) {
		text := what + " " + strings.TrimSpace(fmt.Sprintln(more...))
		if !said[text] {
			said[text] = true
			fmt.Println("caught:", text)
		}
	}
	dir, err := unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	met := 0
	buf := make([]byte, 32<<10)
	for end := time.Now().Add(long); time.Now().Before(end); {
		_, _ = unix.Seek(dir, 0, 0)
		for {
			n, err := unix.Getdents(dir, buf)
			if n <= 0 || err != nil {
				break
			}
			names := []string{}
			_, _, names = unix.ParseDirent(buf[:n], -1, names)
			for _, name := range names {
				pid, err := strconv.Atoi(name)
				if err != nil || pid == os.Getpid() || seen[pid] > 200 {
					continue
				}
				if seen[pid] == 0 {
					met++
				}
				seen[pid]++
				catch(pid, say)
			}
		}
	}
	fmt.Println("met", met)
	return nil
}

func ours(exe string) bool {
	return strings.HasPrefix(exe, "/inside") || strings.HasPrefix(exe, "/bin/")
}

// strange says that a process is seen to run something that is not the container's.
func strange(proc string) bool {
	exe, err := os.Readlink(proc + "/exe")
	return err == nil && !ours(exe)
}

// catch tries everything once.
func catch(pid int, say func(string, ...any)) {
	proc := "/proc/" + strconv.Itoa(pid)
	exe, err := os.Readlink(proc + "/exe")
	if err == nil && !strange(proc) {
		return // a program of the container's
	}
	if err == nil {
		say("exe is", exe)
	}
	if unix.Kill(pid, unix.SIGSTOP) == nil { // wherever it is, there is time to look at it then
		defer unix.Kill(pid, unix.SIGCONT)
	}
	for _, flags := range []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_PATH} {
		if fd, err := unix.Open(proc+"/exe", flags|unix.O_CLOEXEC, 0); err == nil {
			link, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
			unix.Close(fd)
			if !ours(link) {
				say("exe opens", flags, link)
			}
		}
	}
	for fd := range 32 {
		if link, err := os.Readlink(proc + "/fd/" + strconv.Itoa(fd)); err == nil && strange(proc) {
			say("descriptor", link)
		}
	}
	for _, file := range []string{"/mem", "/environ", "/maps", "/root/etc", "/cwd/etc", "/map_files", "/ns/mnt", "/ns/user"} {
		flags := unix.O_RDONLY
		if file == "/mem" {
			flags = unix.O_RDWR
		}
		if fd, err := unix.Open(proc+file, flags|unix.O_CLOEXEC, 0); err == nil {
			n, err := 1, error(nil)
			if file == "/environ" || file == "/maps" {
				n, err = unix.Read(fd, make([]byte, 64))
			}
			unix.Close(fd)
			if n > 0 && err == nil && strange(proc) {
				say("opened", file)
			}
		}
	}
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0, 0, 0)
	if errno == 0 {
		_ = unix.PtraceInterrupt(pid)
		var status unix.WaitStatus
		_, _ = unix.Wait4(pid, &status, unix.WALL, nil)
		if status.Stopped() && strange(proc) {
			say("stopped by ptrace")
		}
		_ = unix.PtraceDetach(pid)
	}
	if pidfd, err := unix.PidfdOpen(pid, 0); err == nil {
		for fd := range 16 {
			got, err := unix.PidfdGetfd(pidfd, fd, 0)
			if err == nil {
				link, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(got))
				unix.Close(got)
				if strange(proc) {
					say("took descriptor", link)
				}
			} else if errors.Is(err, unix.ESRCH) {
				break
			}
		}
		unix.Close(pidfd)
	}
}
