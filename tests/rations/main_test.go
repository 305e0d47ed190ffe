// Package rations measures every ration of an environment: what was asked, and what the kernel then let it have. The same
// tests run natively, on whatever cgroups the machine has, and on pure cgroup v2 in the guest of tests/vm. A ration that this
// kernel can't give must be refused. The table of what was measured is printed at the end.
package rations

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/learnos/learnos/nodeagent"
	"github.com/learnos/learnos/rootfs"
)

var (
	node  *nodeagent.Node
	image *rootfs.Image
	inVM  = os.Getenv("LEARNOS_VM") != ""
	table [][3]string
)

// found notes a line of the table.
func found(ration, asked, measured string, args ...any) {
	table = append(table, [3]string{ration, asked, fmt.Sprintf(measured, args...)})
}

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "rations:", err)
		return 1
	}
	if os.Geteuid() != 0 {
		return fail(errors.New("these tests make environments: run them as root"))
	}
	dir, err := os.MkdirTemp("", "rations-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	if inVM {
		if err := prepareGuest(dir); err != nil {
			return fail(err)
		}
	}
	if node, err = nodeagent.Open(filepath.Join(dir, "root"), nodeagent.Options{}); err != nil {
		return fail(err)
	}
	ctx := context.Background()
	defer func() {
		if err := node.Destroy(ctx); err != nil && code == 0 {
			code = fail(err)
		}
	}()
	if image, err = node.Images().Build(ctx, "busybox", rootfs.BuildOptions{}); err != nil {
		return fail(err)
	}
	code = m.Run()
	if len(table) > 0 {
		w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
		fmt.Fprintf(w, "RATION (%s)\tASKED\tMEASURED\n", cgroups())
		for _, row := range table {
			fmt.Fprintln(w, strings.Join(row[:], "\t"))
		}
		w.Flush()
	}
	return code
}

// prepareGuest puts the node's root on the guest's spare disk, and has swap for environments to be kept out of.
func prepareGuest(dir string) error {
	disk := os.Getenv("LEARNOS_VM_DISK")
	swap := filepath.Join(dir, "swap")
	for _, args := range [][]string{
		{"mkfs.ext4", "-q", "-F", disk}, {"mount", "-t", "ext4", disk, dir},
		{"dd", "if=/dev/zero", "of=" + swap, "bs=1M", "count=64", "status=none"}, {"chmod", "600", swap},
		{"busybox", "mkswap", swap}, {"busybox", "swapon", swap},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// v2 tells which version of cgroups serves a controller here ("io" is v1's blkio).
func v2(controller string) bool {
	if body, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return strings.Contains(" "+strings.TrimSpace(string(body))+" ", " "+controller+" ")
	}
	return false
}

func cgroups() string {
	if v2("memory") {
		return "cgroup v2"
	}
	return "cgroup v1"
}

// file reads a file of the environment's cgroup, by its name on v1 and on v2.
func file(t *testing.T, e *nodeagent.Environment, controller, name1, name2 string) string {
	t.Helper()
	path := filepath.Join("/sys/fs/cgroup", controller, node.CgroupParent(), e.ID(), name1)
	if v2(controller) || v2("io") && controller == "blkio" {
		path = filepath.Join("/sys/fs/cgroup", node.CgroupParent(), e.ID(), name2)
	}
	body, err := os.ReadFile(path)
	if err != nil {
		t.Errorf("%v", err)
	}
	return strings.TrimSpace(string(body))
}

// create makes an environment that lasts for the test; args, if any, are its main command.
func create(t *testing.T, limits nodeagent.Limits, args ...string) *nodeagent.Environment {
	t.Helper()
	e, err := node.Create(context.Background(), options(limits, args...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Delete(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return e
}

func options(limits nodeagent.Limits, args ...string) nodeagent.CreateOptions {
	o := nodeagent.CreateOptions{Image: image, Owner: nodeagent.OwnerDetached, Net: nodeagent.NetNone, Limits: limits, Args: args}
	if len(args) == 0 {
		o.NoMain, o.Owner = true, nodeagent.OwnerPlatform
	}
	if limits.NetUpBits+limits.NetDownBits > 0 {
		o.Net = nodeagent.NetBridge
	}
	return o
}

// begin starts a shell script inside. The returned function waits for it and gives its output and status.
func begin(t *testing.T, e *nodeagent.Environment, script string) (wait func() (string, int)) {
	t.Helper()
	s, err := e.Exec(context.Background(), nodeagent.ExecOptions{Args: []string{"sh", "-c", "exec 2>&1; " + script}})
	if err != nil {
		t.Fatal(err)
	}
	out := make(chan string, 1)
	go func() {
		var b bytes.Buffer
		_, _ = io.Copy(&b, s.Stdout())
		out <- b.String()
	}()
	return func() (string, int) {
		defer s.Close()
		st, err := e.WaitSession(context.Background(), s)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(<-out), st.Code
	}
}

func inside(t *testing.T, e *nodeagent.Environment, script string) (string, int) {
	t.Helper()
	return begin(t, e, script)()
}

func stats(t *testing.T, e *nodeagent.Environment) nodeagent.Stats {
	t.Helper()
	s, err := e.Stats(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// within says whether got is want, give or take a share of it. The guest's emulated processor may be too slow to use a ration
// up, on a host with much else to do; more than its ration it may not have there either.
func within(got, want, share float64) bool {
	least := want * (1 - share)
	if inVM {
		least = want / 2
	}
	return got >= least && got <= want*(1+share)
}

func number(t *testing.T, text string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Errorf("%q is no number", text)
	}
	return n
}

func mib(n uint64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// attempts is how often a measurement may be taken anew on a machine that has much else to do.
const attempts = 4

// eventually waits for what needs a moment.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 200 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("never: %s", what)
}
