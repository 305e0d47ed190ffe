package sshdoor

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// screen is a terminal of tmux's own kind, with its own server.
type screen struct {
	t    *testing.T
	sock string
}

// open runs ssh in a fresh tmux window of 100 by 30 characters. What it exits with appears as "exit=N".
func (d *testDoor) open(lang string, args ...string) *screen {
	d.t.Helper()
	s := &screen{d.t, filepath.Join(d.t.TempDir(), "tmux")}
	cmd := d.ssh(append([]string{"-o", "SendEnv=LANG LC_*"}, args...)...)
	line := "env LC_ALL= LANG=" + lang
	for _, a := range cmd.Args {
		line += " '" + a + "'"
	}
	line += "; echo exit=$?; sleep 1000"
	new := exec.Command("tmux", "-u", "-S", s.sock, "-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", line)
	new.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TMUX=")
	if b, err := new.CombinedOutput(); err != nil {
		d.t.Fatalf("tmux: %v: %s", err, b)
	}
	d.t.Cleanup(func() { _ = exec.Command("tmux", "-S", s.sock, "kill-server").Run() })
	return s
}

func (s *screen) tmux(args ...string) string {
	s.t.Helper()
	b, err := exec.Command("tmux", append([]string{"-u", "-S", s.sock}, args...)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("tmux %q: %v: %s", args, err, b)
	}
	return string(b)
}

func (s *screen) keys(keys ...string) {
	s.t.Helper()
	s.tmux(append([]string{"send-keys"}, keys...)...)
}

// typed sends text as it is.
func (s *screen) typed(text string) { s.t.Helper(); s.tmux("send-keys", "-l", text) }

// shows waits until the screen has all of these on it, and returns it.
func (s *screen) shows(want ...string) string {
	s.t.Helper()
	deadline := time.Now().Add(30 * time.Second) // only so that a failure says what was there instead
	for {
		text := s.tmux("capture-pane", "-p")
		missing := ""
		for _, w := range want {
			if !strings.Contains(text, w) {
				missing = w
			}
		}
		if missing == "" {
			return text
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the screen lacks %q:\n%s", missing, text)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (d *testDoor) has(envs ...environment) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range envs {
		d.envs[e.ID] = &e
		d.order = append(d.order, e.ID)
	}
}

func TestPickerStartsWhatIsTyped(t *testing.T) {
	d := openDoor(t, 100)
	s := d.open("en_US.UTF-8", "alice@127.0.0.1")
	s.shows("Welcome to Learnos, alice", "Start a new machine", "❯ busybox", "debian-12", "debian-13")
	s.typed("debian-1") // hyphens can be typed
	s.shows("filter: debian-1", "❯ debian-12")
	s.typed("3")
	if text := s.shows("❯ debian-13"); strings.Contains(text, "debian-12") {
		t.Errorf("not filtered:\n%s", text)
	}
	s.keys("Enter")
	s.shows("ready", "machine$")
	s.typed("stty size; echo $TERM\n")
	s.shows("30 100")
	s.tmux("resize-window", "-x", "77", "-y", "22")
	s.typed("while [ \"$(stty size)\" != '22 77' ]; do sleep 0.1; done; echo resi''zed\n")
	s.shows("resized")
	s.typed("exit 9\n")
	s.shows("exit=9", "keeps running", "ssh -p "+d.port+" alice+")
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.deleted) != 0 || len(d.envs) != 1 || d.envs[d.order[0]].Image != "debian-13" {
		t.Errorf("deleted %v, %d machines", d.deleted, len(d.envs))
	}
}

func TestPickerKeys(t *testing.T) {
	d := openDoor(t, 100)
	d.has(environment{ID: "e90", Name: "box-one", Image: "busybox", State: "running"}, environment{ID: "e91", Name: "box-two", Image: "busybox", State: "running"})
	s := d.open("en_US.UTF-8", "alice@127.0.0.1")
	s.shows("Your machines", "box-one", "❯ busybox")
	s.typed("d") // on an image this is a letter
	s.shows("filter: d", "❯ debian-12")
	s.keys("Tab")
	s.shows("filter: debian-1")
	s.keys("Tab")
	s.shows("filter: debian-12")
	s.keys("C-u")
	s.shows("❯ busybox")
	s.typed("zzz")
	s.shows("nothing is called like that")
	s.keys("BSpace", "BSpace", "BSpace")
	s.shows("❯ busybox")
	s.keys("Up")
	s.shows("❯ box-two", "d or Del deletes")
	s.typed("d")
	s.shows("Delete box-two and everything in it? y/N")
	s.typed("n")
	s.shows("❯ box-two", "filter:")
	s.keys("DC")
	s.shows("Delete box-two")
	s.typed("y")
	d.waitFor(func() bool { return len(d.deleted) == 1 && d.deleted[0] == "e91" })
	d.set("e90", func(e *environment) { e.State = "overstep" }) // news arrives by itself
	for strings.Contains(s.shows("busybox"), "box-one") {
		time.Sleep(20 * time.Millisecond)
	}
	s.keys("C-u")
	s.typed("q")
	s.shows("exit=0")
}

func TestPickerSpeaksChinese(t *testing.T) {
	d := openDoor(t, 100)
	d.has(environment{ID: "e90", Name: "box-one", Image: "busybox", State: "running"})
	s := d.open("zh_CN.UTF-8", "alice@127.0.0.1")
	s.shows("欢迎来到 Learnos，alice", "新建一台机器", "你的机器", "BusyBox 小系统", "运行中", "筛选")
	s.keys("C-c")
	s.shows("exit=0")
}

func TestStagesAreShownAndCanBeCancelled(t *testing.T) {
	d := openDoor(t, 100)
	three := 3
	d.mu.Lock()
	d.stages = []environment{{State: "queued", QueuePosition: &three}, {State: "pulling", Stage: "downloading", Percent: 40}}
	d.mu.Unlock()
	s := d.open("en_US.UTF-8", "alice+busybox@127.0.0.1")
	s.shows("fetching the image: downloading 40%")
	s.shows("machine$")
	s.typed("exit\n")
	s.shows("exit=0")
	d.waitFor(func() bool { return len(d.deleted) == 1 })

	d.mu.Lock()
	d.stages = []environment{{State: "queued", QueuePosition: &three}}
	for range 200 { // a minute
		d.stages = append(d.stages, environment{State: "pulling", Stage: "downloading", Percent: 1})
	}
	d.mu.Unlock()
	s = d.open("en_US.UTF-8", "alice+busybox@127.0.0.1")
	s.shows("fetching the image")
	s.keys("C-c")
	s.shows("learnos: cancelled", "exit=255")
	d.waitFor(func() bool { return len(d.deleted) == 2 })
}

func TestCutOffTerminalIsFoundAgain(t *testing.T) {
	d := openDoor(t, 100)
	s := d.open("en_US.UTF-8", "alice+busybox@127.0.0.1")
	s.shows("machine$")
	s.typed("remembered=yes\n")
	s.typed("echo $remembered-1\n")
	s.shows("yes-1")
	s.tmux("kill-server")
	d.waitFor(func() bool { return len(d.access) == 0 }) // the connection has been cleared away
	d.mu.Lock()
	deleted, name := len(d.deleted), d.envs[d.order[0]].Name
	d.mu.Unlock()
	if deleted != 0 {
		t.Fatal("the machine was deleted under the person")
	}
	s = d.open("en_US.UTF-8", "alice@127.0.0.1")
	s.shows(name, "❯ busybox")
	s.keys("Up")
	s.shows("❯ " + name)
	s.keys("Enter")
	s.shows("back in the shell", "yes-1")
	s.typed("echo $remembered-2\n")
	s.shows("yes-2")
	s.typed("exit\n")
	s.shows("exit=0")
}

func TestGatewayRestartIsOnlyAPause(t *testing.T) {
	d := openDoor(t, 100)
	s := d.open("en_US.UTF-8", "alice+busybox@127.0.0.1")
	s.shows("machine$")
	s.typed("x=kept; echo before\n")
	s.shows("before\n")
	for i := range 3 {
		d.stop()
		if i == 1 {
			time.Sleep(300 * time.Millisecond)
		}
		s.typed("echo $x\n") // typed while nobody is there
		d.restart()
		for strings.Count(s.shows("kept\n"), "\nkept\n") < i+1 {
			time.Sleep(20 * time.Millisecond)
		}
	}
	text := s.shows("machine$")
	if strings.Contains(text, "learnos: lost") || strings.Count(text, "before\n") != 2 /* typed and printed */ {
		t.Errorf("more than a pause:\n%s", text)
	}
	s.typed("exit 4\n")
	s.shows("exit=4")
}

func TestMachineThatEndsUnderATerminalSaysWhy(t *testing.T) {
	d := openDoor(t, 100)
	d.has(environment{ID: "e90", Name: "box-one", Image: "busybox", State: "running"})
	s := d.open("en_US.UTF-8", "alice+box-one@127.0.0.1")
	s.shows("machine$")
	d.stop()
	d.set("e90", func(e *environment) {
		e.State, e.Reason, e.Hint = "overstep", "The traffic quota is used up.", "Start another one."
	})
	d.restart()
	s.shows("box-one is gone (over quota). The traffic quota is used up.", "what to do: Start another one.", "exit=255")
}
