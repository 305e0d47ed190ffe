// Command inside is the hostile program of the probes: it runs in an environment and tries what attackers try.
//
// `inside attempts` makes every attempt once and writes a line of JSON for each: its name, what came of it, what is
// expected. It decides nothing; the test outside does. An attempt that would do harm if it succeeded is made in its
// harmless form (opening /proc/sysrq-trigger for writing without writing, a reboot(2) that only sets what Ctrl-Alt-Del
// does), because it runs on machines that people need. The other words are single tools for the tests outside.
//
// It is built static, without cgo, and is mounted into the environment; it needs nothing that is there.
//
// Go's runtime must open nothing by itself (it would keep its own cgroup's cpu limit open), for descriptors are counted.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// What came of an attempt.
const (
	Refused = "refused" // as it should be
	Open    = "open"    // it worked: a hole
	Absent  = "absent"  // this kernel or machine has nothing to attack; Why says what is missing
	Strange = "strange" // refused, but not in the way that was expected: look at it
)

// Line is what is written about an attempt.
type Line struct {
	Name   string `json:"name"`
	Result string `json:"result"`
	Got    string `json:"got"`
	Want   string `json:"want"`
	Why    string `json:"why,omitempty"`
}

// target is what the test outside tells about the host, so that there is something to reach.
type target struct {
	abstract string // name of the host's abstract socket
	shm      int    // key of its SysV shared memory
	mqueue   string // name of its message queue
	pid      int    // a process of the host
	machine  string // the host's boot-unique secret: content no file inside may show
	hostRoot bool   // --userns host
	ownInit  bool   // PID 1 is a program of the container's own, not ours
}

func main() {
	runtime.LockOSThread() // some attempts are about the thread's own attributes
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "inside: which tool?")
		os.Exit(2)
	}
	tools := map[string]func([]string) error{
		"attempts": attempts, "descriptors": descriptors, "hog": hog, "frames": frames, "sniff": sniff, "dial": dial,
		"deep": deep, "flood": flood, "eat": eat, "forks": forks, "starve": starve, "signals": signals, "swell": swell, "stalk": stalk, "files": files, "leave": leave,
	}
	tool := tools[os.Args[1]]
	if tool == nil {
		fmt.Fprintln(os.Stderr, "inside: no tool", os.Args[1])
		os.Exit(2)
	}
	if err := tool(os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "inside:", err)
		os.Exit(1)
	}
}

// prober collects attempts.
type prober struct {
	to  target
	out *json.Encoder
}

func attempts(args []string) error {
	var p prober
	f := flag.NewFlagSet("attempts", flag.ExitOnError)
	f.StringVar(&p.to.abstract, "abstract", "", "the host's abstract socket")
	f.IntVar(&p.to.shm, "shm", 0, "key of the host's shared memory")
	f.StringVar(&p.to.mqueue, "mqueue", "", "the host's message queue")
	f.IntVar(&p.to.pid, "pid", 0, "a process of the host")
	f.StringVar(&p.to.machine, "secret", "", "what no file inside may show")
	f.BoolVar(&p.to.hostRoot, "host-root", false, "root inside is root outside")
	f.BoolVar(&p.to.ownInit, "own-init", false, "PID 1 is not ours to protect")
	if err := f.Parse(args); err != nil {
		return err
	}
	p.out = json.NewEncoder(os.Stdout)
	p.mounts()
	p.files()
	p.devices()
	p.kernel()
	p.namespaces()
	if !p.to.ownInit {
		p.processes()
	}
	p.handles()
	p.terminal()
	p.ipc()
	p.packets()
	p.abi()
	p.privileges()
	p.chroots()
	return nil
}

func (p *prober) say(name, result, got, want, why string) {
	_ = p.out.Encode(Line{name, result, got, want, why}) // a reader that has gone sees too few lines
}

// errnos names what an attempt may be answered with.
type errnos []unix.Errno

var (
	denied   = errnos{unix.EPERM, unix.EACCES}
	readOnly = errnos{unix.EPERM, unix.EACCES, unix.EROFS}
)

func (e errnos) String() string {
	var names []string
	for _, n := range e {
		names = append(names, unix.ErrnoName(n))
	}
	return strings.Join(names, " or ")
}

// try notes whether err is one of the expected refusals.
func (p *prober) try(name string, want errnos, err error) {
	p.tryOr(name, want, nil, "", err)
}

// tryOr is try for what the kernel may lack, which missing tells.
func (p *prober) tryOr(name string, want, missing errnos, why string, err error) {
	var errno unix.Errno
	switch {
	case err == nil:
		p.say(name, Open, "it worked", want.String(), "")
		return
	case !errors.As(err, &errno):
		p.say(name, Strange, err.Error(), want.String(), "")
		return
	}
	for _, n := range want {
		if n == errno {
			p.say(name, Refused, unix.ErrnoName(errno), want.String(), "")
			return
		}
	}
	for _, n := range missing {
		if n == errno {
			p.say(name, Absent, unix.ErrnoName(errno), want.String(), why)
			return
		}
	}
	p.say(name, Strange, unix.ErrnoName(errno), want.String(), "")
}

// check notes whether a content check held.
func (p *prober) check(name string, ok bool, got, want string) {
	result := Refused
	if !ok {
		result = Open
	}
	p.say(name, result, got, want, "")
}

// call is a raw system call.
func call(nr uintptr, a ...uintptr) error {
	var args [6]uintptr
	copy(args[:], a)
	_, _, errno := unix.Syscall6(nr, args[0], args[1], args[2], args[3], args[4], args[5])
	if errno != 0 {
		return errno
	}
	return nil
}

// open opens a path and closes it again.
func open(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}
