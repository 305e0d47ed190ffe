package main

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// calmMonitor lets the kernel be a millisecond late with the timers of Go's monitor thread, which wakes up every 20 µs at
// first, and for a command of some milliseconds is never needed: that costs a twentieth of what a run costs. A slack belongs
// to a thread and is inherited from the thread that starts another (PR_SET_TIMERSLACK(2const)); the monitor, started before
// any code of ours, is reached by the file that proc_pid_timerslack_ns(5) describes.
func calmMonitor() {
	// It is the first thread to be started, and has the next number unless another program took that: then let it be.
	tid := strconv.Itoa(os.Getpid() + 1)
	if unix.Access("/proc/self/task/"+tid, unix.F_OK) != nil {
		return
	}
	fd, err := unix.Open("/proc/"+tid+"/timerslack_ns", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_, _ = unix.Write(fd, []byte("1000000"))
}
