package runtime

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// embedded holds the init binary, if `make init` has been run; the .gitkeep beside it lets a fresh clone compile.
//
//go:embed all:embedded
var embedded embed.FS

// errNoInit says what to do about a build without init.
var errNoInit = errors.New("this program was built without the environment's init: run `make init` and build again")

// initImage makes the memfd that every container of this process is started from.
//
// It is sealed, so that nobody who gets hold of it inside (/proc/self/exe) can write to it, and it may be executed but not
// read by the ids inside, so that the kernel marks the process undumpable from its first instruction on, with the host's
// user namespace as the judge of who may look (execve(2), "dumpable").
var initImage = sync.OnceValues(func() (*os.File, error) {
	src, err := embedded.Open("embedded/init")
	if err != nil {
		return nil, errNoInit
	}
	defer src.Close()
	fd, err := unix.MemfdCreate("init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3, where every memfd is executable
		fd, err = unix.MemfdCreate("init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd for init: %w", err)
	}
	f := os.NewFile(uintptr(fd), "init")
	if _, err := io.Copy(f, src); err != nil {
		f.Close()
		return nil, fmt.Errorf("memfd for init: %w", err)
	}
	if err := f.Chmod(0o111); err != nil {
		f.Close()
		return nil, fmt.Errorf("memfd for init: %w", err)
	}
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals|unix.F_SEAL_EXEC) // it stays executable
	if err == unix.EINVAL {                                                  // before Linux 6.3
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("seal init: %w", err)
	}
	return f, nil
})
