package nodeagent

import (
	"log/slog"
	"math"
	"os"
	"strconv"
	"strings"
)

// DefaultPIDs is how many processes and threads an environment of the platform may have when its image does not say.
const DefaultPIDs = 4096

// shared are numbers of the machine's that environments draw upon together, and how far the daemon raises them: to where no
// environment can use them up, as it has limits of its own. They cost nothing until they are used.
var shared = []struct {
	path string
	most int // the most that the kernel takes on 64 bits (proc_sys_kernel(5), proc_sys_fs(5))
	what string
}{
	// Many kernels begin at 32,768, which eight environments can use up.
	{"/proc/sys/kernel/pid_max", 4194304, "process numbers"},
	// The kernel begins at one for 10 KiB of memory, though an open file takes some 256 bytes, which are charged to who opens it:
	// memory is limited, so this needs no limit.
	{"/proc/sys/fs/file-max", math.MaxInt64, "open files"},
}

// raise sets a limit of the machine's to the most that there is. That it can't is no reason not to serve; `nodeagent doctor`
// says so, too.
func raise(path string, most int, what string, log *slog.Logger) {
	b, err := os.ReadFile(path)
	if err != nil {
		log.Warn("read the machine's limit of "+what, "err", err)
		return
	}
	now, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || now >= most {
		return
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(most)), 0); err != nil {
		log.Warn("raise the machine's limit of "+what+": a few environments can use them up", "path", path, "now", now, "err", err)
		return
	}
	log.Info("raised the machine's limit of "+what+", so that no environment uses them up", "path", path, "from", now, "to", most)
}
