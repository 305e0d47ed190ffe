package fleet

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/learnos/learnos/gateway/store"
	"github.com/learnos/learnos/internal/queue"
)

func TestAdvance(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	row := func(state string, deleting bool) store.Environment {
		e := store.Environment{State: state, StatusRev: 5, Node: "old"}
		if deleting {
			e.DeleteAskedAt = store.At(now)
		}
		return e
	}
	for name, c := range map[string]struct {
		row     store.Environment
		status  queue.EnvStatus
		changed bool
		state   string
		node    string
	}{
		"onwards":                    {row("queued", false), queue.EnvStatus{Rev: 6, State: "pulling", Node: "n"}, true, "pulling", "n"},
		"an old word":                {row("running", false), queue.EnvStatus{Rev: 5, State: "pulling", Node: "n"}, false, "running", "old"},
		"back into the queue":        {row("creating", false), queue.EnvStatus{Rev: 6, State: "queued"}, true, "queued", ""},
		"the end":                    {row("running", false), queue.EnvStatus{Rev: 6, State: "overstep", Node: "n"}, true, "overstep", "n"},
		"nothing after the end":      {row("deleted", false), queue.EnvStatus{Rev: 6, State: "running", Node: "n"}, true, "deleted", "old"},
		"nor after a failure":        {row("failed", false), queue.EnvStatus{Rev: 6, State: "running", Node: "n"}, true, "failed", "old"},
		"a delete is not undone":     {row("stopping", true), queue.EnvStatus{Rev: 6, State: "running", Node: "n"}, true, "stopping", "n"},
		"whatever end, it was asked": {row("stopping", true), queue.EnvStatus{Rev: 6, State: "failed", Node: "n"}, true, "deleted", "n"},
		"its own end":                {row("running", false), queue.EnvStatus{Rev: 6, State: "stopping", Node: "n"}, true, "stopping", "n"},
	} {
		e := c.row
		if changed := advance(&e, c.status, now); changed != c.changed || e.State != c.state || e.Node != c.node {
			t.Errorf("%s: %t %s on %q", name, changed, e.State, e.Node)
		}
		if queue.Terminal(e.State) != (e.EndedAt != 0) && !queue.Terminal(c.row.State) {
			t.Errorf("%s: ended at %d", name, e.EndedAt)
		}
	}
	e := row("creating", false)
	advance(&e, queue.EnvStatus{Rev: 6, State: "running", Percent: 900, Node: strings.Repeat("n", 300), Address: strings.Repeat("1", 80), Stage: strings.Repeat("é", 60), Reason: strings.Repeat("x", 9999)}, now)
	if e.Percent != 100 || len(e.Stage) > 64 || !strings.HasSuffix(e.Stage, "é") || len(e.Reason) != 4096 || len(e.Node) != 255 || len(e.Address) != 64 || e.StartedAt != store.At(now) {
		t.Errorf("%+v", e)
	}
}

func TestCapacity(t *testing.T) {
	e := store.Environment{Rations: store.Rations{MemoryBytes: 256 << 20}}
	for want, nodes := range map[string][]queue.NodeInfo{
		"no node is online": nil,
		"no node has room: needs 256 MiB of memory, at most 100 MiB are free": {{FreeMemory: 100 << 20}, {FreeMemory: 20 << 20}}, // as numbers: "20" is not more than "100"
		"no node has room: needs 256 MiB of memory, at most 0 bytes are free": {{FreeMemory: -5}},
		"no node has room: each holds as many environments as it may":         {{FreeMemory: 1 << 40, Environments: 2, MaxEnvironments: 2}},
		"a node will take it in a moment":                                     {{FreeMemory: 1}, {FreeMemory: 1 << 40, Environments: 1, MaxEnvironments: 2}},
	} {
		if got := capacity(e, nodes); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	e.DiskBytes, e.MemoryHighBytes = 2<<30, 1<<20
	for want, nodes := range map[string][]queue.NodeInfo{
		"no node has room: out of disk; needs 2 GiB, at most 1 GiB can still be promised": {{FreeMemory: 1 << 40, DiskTotal: 1 << 40, DiskRoom: 1 << 30}, {DiskTotal: 1 << 40, DiskRoom: 1 << 40}},
		"no node has room: needs 256 MiB of memory, at most 0 bytes are free":             {{FreeMemory: 0, DiskTotal: 1 << 40, DiskRoom: 1 << 40}, {FreeMemory: 1 << 40, Lacks: map[string]string{queue.RationMemoryHigh: "v1"}}},
		"no node has room: each holds as many environments as it may":                     {{Environments: 1, MaxEnvironments: 1}, {Lacks: map[string]string{queue.RationDisk: "no mkfs"}}},
		"a node will take it in a moment":                                                 {{Lacks: map[string]string{queue.RationMemoryHigh: "v1"}}}, // and fail it, with the reason
	} {
		if got := capacity(e, nodes); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 bytes", 2048: "2 KiB", 1 << 30: "1 GiB", 1500 << 20: "1500 MiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}

// Whatever an image rations reaches the nodes.
func TestEveryRationIsTold(t *testing.T) {
	var r store.Rations
	from := reflect.ValueOf(&r).Elem()
	for i := range from.NumField() {
		from.Field(i).Set(reflect.ValueOf(i + 1).Convert(from.Field(i).Type()))
	}
	told := reflect.ValueOf(limits(r))
	if told.NumField() != from.NumField() {
		t.Errorf("%d rations, %d limits", from.NumField(), told.NumField())
	}
	for i := range told.NumField() {
		name := told.Type().Field(i).Name
		if want := from.FieldByName(name); !want.IsValid() || !told.Field(i).Equal(want) {
			t.Errorf("%s is told as %v", name, told.Field(i))
		}
	}
}

func TestDefaultName(t *testing.T) {
	for image, want := range map[string]string{"busybox": "busybox-vwxyz", "a.b_c": "a-b-c-vwxyz", "x.": "x-vwxyz", strings.Repeat("y", 63): strings.Repeat("y", 50) + "-vwxyz"} {
		if got := defaultName(image, "eabcdefvwxyz"); got != want {
			t.Errorf("%s: %s", image, got)
		}
	}
}
