package nodeagent

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/reason"
	"github.com/learnos/learnos/netbridge"
)

// Much of what hangs on a socket (errors, timestamps, options, packets that are not TCP's or UDP's, connections that nobody
// accepts) the kernel charges to no cgroup, on v1 and v2 alike, and bounds by socket only: a few hundred sockets hold
// gigabytes inside a limit of megabytes. So somebody has to look. Every guardTick one figure of the whole machine is read;
// only when the kernel's own memory has grown by guardStep since the last look, or every guardAtLeast, are the
// sockets of the environments counted that have enough of them to matter, and who holds more than its memory limit in them is
// ended: it has then about twice its limit.
const (
	guardTick = 100 * time.Millisecond
	guardStep = 32 << 20
	// guardRest is how many times as long as the looking took the guard rests, so that growth that is nobody's fault
	// (page tables, caches) costs no more than a twentieth of a processor. It rests no longer than until the kernel has grown
	// by guardLeap: how long the looking takes is the environments' to choose.
	guardRest = 20
	guardLeap = 8 * guardStep
	// guardAtLeast is how often it looks anyway: growth is out of sight where something else shrinks at the same time.
	guardAtLeast = 5 * time.Second
)

// guardSockets ends environments whose sockets hold more of the kernel's memory than their memory limit, until ctx is
// cancelled. envs are those to look at; over, which must not block, is told of each that is over and how many bytes it has.
// Environments without a memory limit are let be.
func guardSockets(ctx context.Context, envs func() []*Environment, over func(*Environment, int64), log *slog.Logger) error {
	file, err := os.Open("/proc/meminfo")
	if err != nil {
		return fmt.Errorf("guard socket memory: %w", err)
	}
	defer file.Close()
	tick := time.NewTicker(guardTick)
	defer tick.Stop()
	least, err := kernelMemory(file)
	if err != nil {
		return err
	}
	for looked, rested := time.Now(), time.Now(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, err := kernelMemory(file)
		if err != nil {
			return err
		}
		least = min(least, now)
		grown, due := now-least, time.Since(looked) >= guardAtLeast
		if grown < guardLeap && (time.Now().Before(rested) || grown < guardStep && !due) {
			continue
		}
		begun, full := time.Now(), fullest()
		for _, e := range envs() {
			limit, used := e.Record().Limits.MemoryBytes, e.socketsUsed()
			if limit <= 0 || used*full <= limit {
				continue
			}
			held, err := e.socketMemory(full, fewestLooks+4*int(used))
			if err != nil {
				log.Debug("count socket memory", "env", e.ID(), "err", err) // most often it is just ending
				continue
			}
			if held > limit {
				over(e, held)
			}
		}
		least, looked = now, time.Now()
		rested = looked.Add(guardRest * looked.Sub(begun))
	}
}

// GuardSockets ends the environment if its sockets hold more of the kernel's memory than its memory limit, as a daemon does
// with all that it has, until ctx is cancelled; say is then given the reason.
func (e *Environment) GuardSockets(ctx context.Context, say func(why string)) error {
	only := []*Environment{e}
	return guardSockets(ctx, func() []*Environment { return only }, func(_ *Environment, held int64) {
		only = nil
		say(socketReason(e, held))
		_ = e.Kill(ctx) // it may have ended by itself
	}, slog.New(slog.DiscardHandler))
}

// socketsUsed is how many sockets the environment's network namespace has; more than there can be when that is not known.
func (e *Environment) socketsUsed() int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/sockstat", e.c.PID()))
	if err != nil {
		return math.MaxInt32
	}
	used, _, _ := strings.Cut(strings.TrimPrefix(string(text), "sockets: used "), "\n")
	n, err := strconv.ParseInt(used, 10, 32)
	if err != nil {
		return math.MaxInt32
	}
	return n
}

// An environment's descriptors are looked at up to this many, and four for each socket that there is. What is not found by
// then is as good as hidden: nobody hides behind as many descriptors as he can make.
const fewestLooks = 16384

// hiddenSockets is how many sockets may be on their way from process to process, or come and go while they are counted,
// without anybody minding.
const hiddenSockets = 16

// socketMemory is what the environment's sockets hold of the kernel's memory and what is charged to nobody, in bytes.
//
// A socket under way in a message can't be looked at: a full one that is sent and never received would be out of sight. The
// kernel says how many sockets there are, though. Where more than hiddenSockets stay out of sight, each counts as full.
// full is what a full one holds, looks is how many descriptors are looked at, at the most.
func (e *Environment) socketMemory(full int64, looks int) (int64, error) {
	if e.Record().Net == NetHost { // whose namespace is the host's
		use, err := e.c.SocketUse(looks)
		return use.Bytes, err
	}
	ns, err := e.c.NamespaceFD(specs.NetworkNamespace)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	var held, hidden int64
	for try := range 3 {
		all, err := netbridge.CountSockets(ns)
		if err != nil {
			return 0, err
		}
		use, err := e.c.SocketUse(looks) // after the others, so that what is being made is not taken for hidden
		if err != nil {
			return 0, err
		}
		held = use.Bytes + all.OwnerlessBytes
		out := int64(all.Used - all.Local - all.Ownerless - use.Sockets)
		if try == 0 || out < hidden {
			hidden = out
		}
		if hidden <= hiddenSockets {
			return held, nil
		}
		if use.Partly { // and will be the next time
			break
		}
	}
	return held + hidden*full, nil
}

// fullest is what may lie on one socket, in bytes: the kernel doubles what is asked of a buffer (socket(7), SO_RCVBUF).
func fullest() int64 {
	var n int64
	for file, times := range map[string]int64{"rmem_max": 2, "optmem_max": 1} {
		text, err := os.ReadFile("/proc/sys/net/core/" + file)
		v, err2 := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil || err2 != nil {
			v = 212992 // what it is unless somebody has changed it
		}
		n += times * v
	}
	return n
}

// kernelMemory is what the kernel uses of the machine's memory for itself, in bytes, from an open /proc/meminfo: all that
// is neither free, nor a program's, nor could be freed at once.
func kernelMemory(meminfo *os.File) (int64, error) {
	var buf [4096]byte
	n, err := meminfo.ReadAt(buf[:], 0)
	if n == 0 {
		return 0, fmt.Errorf("read /proc/meminfo: %w", err)
	}
	m := parseMeminfo(string(buf[:n]))
	return m.kernel, nil
}

// environments are those that somebody may come into.
func (d *daemon) environments() []*Environment {
	var all []*Environment
	for _, h := range d.all() {
		if env, err := h.running(); err == nil {
			all = append(all, env)
		}
	}
	return all
}

// overSockets ends one whose sockets hold too much.
func (d *daemon) overSockets(e *Environment, held int64) {
	for _, h := range d.all() {
		if h.id == e.ID() {
			final := queue.EnvStatus{State: queue.StateFailed, Reason: socketReason(e, held)}
			d.work.Go(func() { d.end(h, nil, final) })
		}
	}
}

func socketReason(e *Environment, held int64) string {
	return reason.Say(reason.SocketMemory, sizeText(held), sizeText(e.Record().Limits.MemoryBytes))
}
