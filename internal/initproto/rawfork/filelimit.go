package rawfork

import "syscall"

// RestoreFileLimit gives this process the soft limit of open files back that it was started with. A Go program raises it as
// it starts (package syscall), and puts it back for the programs that package os starts; Start, which forks below that, would
// hand the raised one on.
func RestoreFileLimit() {
	// The one public way to what it was: an exec restores it first, and this one then fails (ENOENT).
	syscall.Exec("", nil, nil)
}
