package probe

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"unsafe"

	"golang.org/x/sys/unix"
)

// line is one attempt, as inside writes it.
type line struct{ Name, Result, Got, Want, Why string }

// ways are the three positions an attacker is tried in.
var ways = []struct {
	name  string
	flags []string // of nodeagent run
	tell  []string // to inside
}{
	{"root", nil, nil},
	{"user", []string{"-u", "1000"}, nil},
	{"userns=host", []string{"--userns", "host"}, []string{"-host-root"}},
}

// host makes what an environment must not reach, and returns what inside is to be told of it.
func host(t *testing.T) []string {
	t.Helper()
	name := "learnos-probe-" + strconv.Itoa(os.Getpid())
	l, err := net.Listen("unix", "@"+name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	key := 0x4c500000 | os.Getpid()&0xfffff
	shm, err := unix.SysvShmGet(key, 4096, unix.IPC_CREAT|0o666)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.SysvShmCtl(shm, unix.IPC_RMID, nil) })
	queue := append([]byte(name), 0)
	fd, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(&queue[0])), unix.O_CREAT|unix.O_RDWR, 0o666, 0, 0, 0)
	if errno != 0 {
		t.Fatal("message queue: ", errno)
	}
	t.Cleanup(func() {
		unix.Close(int(fd))
		_, _, _ = unix.Syscall(unix.SYS_MQ_UNLINK, uintptr(unsafe.Pointer(&queue[0])), 0, 0)
	})
	sleeper := exec.Command("sleep", "600")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sleeper.Process.Kill(); _ = sleeper.Wait() })
	return []string{"-abstract", name, "-shm", strconv.Itoa(key), "-mqueue", name, "-pid", strconv.Itoa(sleeper.Process.Pid), "-secret", secret}
}

// TestProbe makes every attempt in each of the three ways and prints the table. A result other than "refused" or "absent"
// fails: "open" is a hole, "strange" a refusal that nobody foresaw.
func TestProbe(t *testing.T) {
	to := host(t)
	var names []string
	table := map[string]map[string]line{}
	for _, way := range ways {
		args := append(append([]string{"run", "--rm"}, volume()...), way.flags...)
		args = append(append(args, "busybox", "/inside", "attempts"), to...)
		r := try(t, append(args, way.tell...)...)
		if r.code != 0 {
			t.Fatalf("%s: status %d: %s", way.name, r.code, r.err)
		}
		count := 0
		for text := range strings.Lines(r.out) {
			var l line
			if err := json.Unmarshal([]byte(text), &l); err != nil {
				t.Fatalf("%s: %q: %v", way.name, text, err)
			}
			count++
			if table[l.Name] == nil {
				table[l.Name] = map[string]line{}
				names = append(names, l.Name)
			}
			table[l.Name][way.name] = l
			if l.Result != "refused" && l.Result != "absent" {
				t.Errorf("as %s: %s: %s (%s), want %s", way.name, l.Name, l.Result, l.Got, l.Want)
			}
		}
		if count < 250 {
			t.Errorf("as %s: %d attempts were made, fewer than there are", way.name, count)
		}
	}
	for _, row := range attacks {
		if row.attempt != "" && !slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, row.attempt) }) {
			t.Errorf("%s: no attempt is called %q", row.attack, row.attempt)
		}
	}
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "ATTEMPT")
	for _, way := range ways {
		fmt.Fprint(w, "\t", strings.ToUpper(way.name))
	}
	fmt.Fprintln(w, "\tEXPECTED\tNOTE")
	totals := map[string]int{}
	for _, name := range names {
		fmt.Fprint(w, name)
		var any line
		for _, way := range ways {
			l, ok := table[name][way.name]
			text := "-"
			if ok {
				any = l
				text = l.Result
				if l.Result == "refused" && len(l.Got) < 12 {
					text = l.Got
				}
				if l.Result == "open" {
					text = "OPEN"
				}
				totals[l.Result]++
			}
			fmt.Fprint(w, "\t", text)
		}
		fmt.Fprintf(w, "\t%s\t%s\n", any.Want, any.Why)
	}
	w.Flush()
	t.Logf("%d attempts in three ways: %v\n%s", len(names), totals, out.String())
}

// TestProbeDescriptors: a fresh session has 0, 1 and 2, whoever it is, however it was started, and nothing else, O_PATH
// descriptors included.
func TestProbeDescriptors(t *testing.T) {
	for _, way := range ways {
		id := machine(t, way.flags...)
		for _, session := range [][]string{
			append(append([]string{"run", "--rm"}, append(volume(), way.flags...)...), "busybox"),
			append(append([]string{"run", "--rm", "-t"}, append(volume(), way.flags...)...), "busybox"),
			append(append([]string{"run", "--rm", "-i"}, append(volume(), way.flags...)...), "busybox"),
			{"exec", id}, {"exec", "-t", id}, {"exec", "-i", id}, {"exec", "-u", "1000", id},
		} {
			out := strings.ReplaceAll(must(t, append(session, "/inside", "descriptors")...), "\r", "")
			var numbers []string
			for text := range strings.Lines(out) {
				number, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
				numbers = append(numbers, number)
				if !strings.HasPrefix(rest, "pipe:[") && !strings.HasPrefix(rest, "/dev/pts/") && !strings.HasPrefix(rest, "/dev/null ") {
					t.Errorf("%v: descriptor %s", session, text)
				}
			}
			if !slices.Equal(numbers, []string{"0", "1", "2"}) {
				t.Errorf("%v: descriptors\n%s", session, out)
			}
		}
		// The detached main command's, which init's own descriptors are nearest to.
		must(t, append(append(append([]string{"run", "-d", "--name", "fds-" + strings.ReplaceAll(way.name, "=", "-")}, volume()...), way.flags...), "busybox", "/inside", "descriptors")...)
		name := "fds-" + strings.ReplaceAll(way.name, "=", "-")
		eventually(t, func() bool { return strings.Contains(must(t, "logs", name), "\n2 ") })
		if out := must(t, "logs", name); strings.Count(out, "\n") != 2 {
			t.Errorf("the main command's descriptors:\n%s", out)
		}
		must(t, "rm", "-f", name)
	}
}

// TestProbeInitHoldsNothing: PID 1 has no descriptor of the host's files but its status and log, and no host binary.
func TestProbeInitHoldsNothing(t *testing.T) {
	id := machine(t)
	pid := initPID(t, id)
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		link, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, n.Name()))
		switch {
		case strings.HasPrefix(link, "socket:"), strings.HasPrefix(link, "pipe:"), strings.HasPrefix(link, "anon_inode:"), strings.HasPrefix(link, "/dev/"):
		case strings.HasPrefix(link, state+"/"+id+"/status"), strings.Contains(link, "/"+id+"/") && strings.Contains(link, "log"):
		case link == "/", link == "/proc": // its own devpts and the environment's procfs
		default:
			t.Errorf("init holds %s -> %s", n.Name(), link)
		}
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil || !strings.Contains(exe, "memfd:") {
		t.Errorf("init runs from %q: %v", exe, err)
	}
	// The seals, seen from outside: not even root of the host can write to what environments run.
	f, err := os.Open(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	want := unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
	if err != nil || seals&want != want {
		t.Errorf("init's image has seals %#x: %v", seals, err)
	}
}

// initPID is the host's number of an environment's PID 1.
func initPID(t *testing.T, id string) int {
	t.Helper()
	var list []struct{ PID int }
	if err := json.Unmarshal([]byte(must(t, "inspect", id)), &list); err != nil || len(list) != 1 || list[0].PID <= 0 {
		t.Fatalf("inspect: %v %v", list, err)
	}
	return list[0].PID
}
