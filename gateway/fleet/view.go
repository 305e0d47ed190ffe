package fleet

import (
	"context"
	"fmt"
	"time"

	"github.com/learnos/learnos/gateway/store"
	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/reason"
)

// View is an environment as clients see it; see Environment in the OpenAPI document.
type View struct {
	ID                 string            `json:"id"`
	Name               string            `json:"name"`
	Owner              string            `json:"owner"`
	Image              string            `json:"image"`
	Title              string            `json:"title"`
	TitleZh            string            `json:"titleZh"`
	Logo               string            `json:"logo"`
	State              string            `json:"state"`
	Stage              string            `json:"stage"`
	Percent            int               `json:"percent"`
	Reason             string            `json:"reason"`
	ReasonCode         reason.Code       `json:"reasonCode"` // "": the reason is somebody's own text
	ReasonValues       map[string]string `json:"reasonValues"`
	Hint               string            `json:"hint"`
	Node               string            `json:"node"`
	NodeOnline         bool              `json:"nodeOnline"`
	Address            string            `json:"address"`
	QueuePosition      *int              `json:"queuePosition"`
	CreatedAt          time.Time         `json:"createdAt"`
	StartedAt          *time.Time        `json:"startedAt"`
	EndedAt            *time.Time        `json:"endedAt"`
	Deadline           *time.Time        `json:"deadline"`
	LatestDeadline     time.Time         `json:"latestDeadline"`
	IdleTimeoutSeconds int64             `json:"idleTimeoutSeconds"`
	Timings            map[string]int64  `json:"timings"`
	store.Rations
	CapAdd []string `json:"capAdd"`
}

// View renders an environment. A waiting one costs a question to etcd.
func (f *Fleet) View(ctx context.Context, e store.Environment) View {
	v := View{
		ID: e.ID, Name: e.Name, Owner: e.Owner, Image: e.Image, Title: e.Title, TitleZh: e.TitleZh, Logo: e.Logo,
		State: e.State, Stage: e.Stage, Percent: e.Percent, Reason: e.Reason, Node: e.Node, NodeOnline: e.Node != "" && f.online(e.Node), Address: e.Address,
		CreatedAt: e.CreatedAt.Std(), StartedAt: e.StartedAt.Ptr(), EndedAt: e.EndedAt.Ptr(), Deadline: e.Deadline.Ptr(),
		LatestDeadline: f.latestDeadline(e), IdleTimeoutSeconds: e.IdleSeconds,
		Timings: e.Timings, Rations: e.Rations, CapAdd: e.CapAdd,
	}
	if v.CapAdd == nil {
		v.CapAdd = []string{}
	}
	if v.Timings == nil {
		v.Timings = map[string]int64{}
	}
	if e.State == queue.StateQueued {
		var why string
		v.QueuePosition, why = f.place(ctx, e)
		if v.Reason == "" {
			v.Reason = why
		}
	}
	v.ReasonCode, v.ReasonValues = reason.Parse(v.Reason)
	v.Hint = f.hint(e, v.NodeOnline)
	return v
}

func (f *Fleet) hint(e store.Environment, online bool) string {
	switch e.State {
	case queue.StateQueued:
		return "It starts by itself as soon as a node has room; you may close this page."
	case queue.StateRunning:
		if !online {
			return "Its node is away for the moment. The environment waits there unharmed; terminals reconnect by themselves."
		}
	case queue.StateStopping:
		if e.Node != "" && !online {
			return "Its node is away. Force the deletion to get your place back at once; the node cleans up when it returns."
		}
	case queue.StateFailed:
		return "Try again. If it fails once more, show the reason to whoever runs this installation."
	case queue.StateOverstep:
		return "It used up a quota of its image, so it was removed. Start a new one, or ask for a larger quota."
	}
	return ""
}

func (f *Fleet) latestDeadline(e store.Environment) time.Time {
	from := e.TriedAt
	if e.StartedAt != 0 {
		from = e.StartedAt
	}
	return from.Std().Add(f.Policy.MaxLifetime)
}

// place is a waiting environment's position (nil when etcd can't tell) and why it waits.
func (f *Fleet) place(ctx context.Context, e store.Environment) (*int, string) {
	if !f.Healthy() {
		return nil, reason.Say(reason.QueueAway)
	}
	ctx, cancel := context.WithTimeout(ctx, probeIn)
	defer cancel()
	var place *int
	if n, err := f.Queue.Position(ctx, e.ID); err == nil {
		place = &n
	}
	return place, capacity(e, f.Nodes())
}

// capacity tells why no node takes an environment. It is a guess at what nodes will decide, for people.
func capacity(e store.Environment, nodes []queue.NodeInfo) string {
	if len(nodes) == 0 {
		return reason.Say(reason.NoNode)
	}
	var roomiest, widest int64
	full, lacking, narrow := 0, 0, 0
	for _, n := range nodes {
		if ration, _ := limits(e.Rations).Lacking(n.Lacks); ration != "" {
			lacking++
			continue
		}
		if n.MaxEnvironments > 0 && n.Environments >= n.MaxEnvironments {
			full++
			continue
		}
		switch {
		case n.FreeMemory < e.MemoryBytes:
			roomiest = max(roomiest, n.FreeMemory)
		case n.DiskTotal > 0 && n.DiskRoom < max(1, e.DiskBytes):
			narrow++
			widest = max(widest, n.DiskRoom)
		default:
			return reason.Say(reason.SoonTaken)
		}
	}
	if lacking == len(nodes) {
		return reason.Say(reason.SoonTaken) // and ends with the reason why none can give it
	}
	if full == len(nodes)-lacking {
		return reason.Say(reason.NodesFull)
	}
	if narrow > 0 { // it has the memory
		return reason.Say(reason.NoDisk, size(e.DiskBytes), size(widest))
	}
	return reason.Say(reason.NoMemory, size(e.MemoryBytes), size(max(roomiest, 0)))
}

func size(n int64) string {
	switch {
	case n >= 1<<30 && n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}
