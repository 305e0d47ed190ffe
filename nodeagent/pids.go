package nodeagent

import (
	"log/slog"
	"os"
	"strconv"
	"strings"
)

// DefaultPIDs is how many processes and threads an environment of the platform may have when its image does not say.
const DefaultPIDs = 4096

// pidMaxPath and mostPIDs: where the kernel says how many processes the machine has numbers for, and how many it can have
// on 64 bits (proc_sys_kernel(5)). Many kernels begin at 32,768, which eight environments can use up.
const (
	pidMaxPath = "/proc/sys/kernel/pid_max"
	mostPIDs   = 4194304
)

// raisePIDMax gives the machine all the numbers there are. It costs nothing until they are used. That it can't is no
// reason not to serve; `nodeagent doctor` says so, too.
func raisePIDMax(path string, log *slog.Logger) {
	b, err := os.ReadFile(path)
	if err != nil {
		log.Warn("read the limit of process numbers", "err", err)
		return
	}
	now, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || now >= mostPIDs {
		return
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(mostPIDs)), 0); err != nil {
		log.Warn("raise kernel.pid_max: a few environments can use up the machine's process numbers", "now", now, "err", err)
		return
	}
	log.Info("raised kernel.pid_max, so that no environment takes the host's process numbers", "from", now, "to", mostPIDs)
}
