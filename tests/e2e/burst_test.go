package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/learnos/learnos/tests/platform"
)

// Eight people create and delete without a pause, so that rows and statuses go to the database many in a transaction, while
// the gateway is killed again and again in the middle of it. Nothing that was accepted is lost or left half-way, nothing is
// made twice, and the histories read as if nobody had been killed.
func TestKillGatewayInABurst(t *testing.T) {
	p, ctx := start(t, platform.Options{Env: map[string]string{"LEARNOS_GATEWAY_MAXENVIRONMENTS": "500", "LEARNOS_NODE_SPARES": "2"}})
	c, _, _ := person(t, ctx, p)
	running(t, ctx, c, "busybox") // the image is there from now on

	const workers, kills = 8, 4
	var mu sync.Mutex
	accepted, unwanted := map[string]bool{}, map[string]bool{} // answered 202: creates; deletes
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for made := 0; ; made++ {
				mu.Lock()
				enough := len(accepted) > 180 // a listing has 200
				mu.Unlock()
				select {
				case <-stop:
					return
				default:
				}
				if enough {
					return
				}
				e, err := c.Create(ctx, "busybox")
				if err != nil { // whether it was accepted is anybody's guess
					time.Sleep(10 * time.Millisecond)
					continue
				}
				mu.Lock()
				accepted[e.ID] = true
				mu.Unlock()
				if made%4 == 3 { // a few stay to be counted
					continue
				}
				if c.Do(ctx, "DELETE", "/environments/"+e.ID, nil, nil) == nil {
					mu.Lock()
					unwanted[e.ID] = true
					mu.Unlock()
				}
			}
		})
	}
	for i := range kills {
		before := -1
		for { // no two kills hit the same place: some more creates each time
			mu.Lock()
			n := len(accepted)
			mu.Unlock()
			if before < 0 {
				before = n
			}
			if n >= before+6+5*i || n > 170 {
				break
			}
			if ctx.Err() != nil {
				t.Fatal("no creates are accepted any more")
			}
			time.Sleep(time.Millisecond)
		}
		if err := errors.Join(p.Kill("gateway"), p.Restart("gateway"), p.WaitReady(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()

	list := settled(t, ctx, c)
	byID := map[string]platform.Environment{}
	for _, e := range list {
		if _, twice := byID[e.ID]; twice {
			t.Errorf("%s is there twice", e.ID)
		}
		byID[e.ID] = e
	}
	var want []string
	for _, e := range list {
		if e.State == "running" {
			want = append(want, e.ID)
		} else if e.State != "deleted" {
			t.Errorf("%s is %s: %s", e.ID, e.State, e.Reason)
		}
		history(t, ctx, c, e)
	}
	for id := range accepted {
		if e, ok := byID[id]; !ok {
			t.Errorf("%s was accepted and is not there", id)
		} else if unwanted[id] && e.State != "deleted" {
			t.Errorf("%s was to be deleted and is %s", id, e.State)
		}
	}
	// The node has what the rows say, and nothing else.
	out, err := p.NodeAgent(ctx, "ps", "-q")
	if err != nil {
		t.Fatal(err, out)
	}
	have := strings.Fields(out)
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("the node has %d environments, the rows say %d:\n%v\n%v", len(have), len(want), have, want)
	}
	t.Logf("%d creates accepted, %d rows, %d running at the end", len(accepted), len(list), len(want))
}

// settled waits until none of a person's environments is on its way, and lists them all.
func settled(t *testing.T, ctx context.Context, c *platform.Client) []platform.Environment {
	t.Helper()
	for {
		var list []platform.Environment
		err := c.Do(ctx, "GET", "/environments?all=history", nil, &list)
		under := slices.ContainsFunc(list, func(e platform.Environment) bool {
			return !slices.Contains([]string{"running", "failed", "overstep", "deleted"}, e.State)
		})
		if err == nil && !under {
			return list
		}
		if ctx.Err() != nil {
			t.Fatalf("still under way: %v %+v", err, list)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// history checks that an environment came into each state once, in the order of its life.
func history(t *testing.T, ctx context.Context, c *platform.Client, e platform.Environment) {
	t.Helper()
	var list []struct{ State, Reason string }
	if err := c.Do(ctx, "GET", "/environments/"+e.ID+"/history", nil, &list); err != nil {
		t.Fatal(err)
	}
	life := []string{"queued", "pulling", "creating", "running", "stopping", "deleted"}
	last := -1
	for _, h := range list {
		at := slices.Index(life, h.State)
		if at <= last {
			t.Errorf("history of %s, which is %s: %s", e.ID, e.State, fmt.Sprint(list))
			return
		}
		last = at
	}
	if len(list) == 0 || list[0].State != "queued" || list[len(list)-1].State != e.State {
		t.Errorf("history of %s, which is %s: %s", e.ID, e.State, fmt.Sprint(list))
	}
}

// A node that is full serves those who wait in their order, as soon as one goes, and meanwhile they are told where they stand.
func TestAFullNodeServesTheLine(t *testing.T) {
	p, ctx := start(t, platform.Options{Env: map[string]string{"LEARNOS_GATEWAY_MAXENVIRONMENTS": "50", "LEARNOS_NODE_MAXENVIRONMENTS": "2"}})
	c, _, _ := person(t, ctx, p)
	inside := []*platform.Environment{running(t, ctx, c, "busybox"), running(t, ctx, c, "busybox")}
	var line []*platform.Environment
	for range 3 {
		e, err := c.Create(ctx, "busybox")
		if err != nil {
			t.Fatal(err)
		}
		line = append(line, e)
	}
	for len(line) > 0 {
		for i, e := range line {
			var told struct {
				State, Reason string
				QueuePosition *int
			}
			for { // what is told of the node is a moment old
				if err := c.Do(ctx, "GET", "/environments/"+e.ID, nil, &told); err != nil {
					t.Fatal(err)
				}
				if told.State != "queued" || told.QueuePosition == nil || *told.QueuePosition != i {
					t.Fatalf("number %d in the line is told %+v", i, told)
				}
				if strings.Contains(told.Reason, "as many environments as it may") {
					break
				}
				if ctx.Err() != nil {
					t.Fatalf("number %d in the line is told %+v", i, told)
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
		if err := c.Delete(ctx, inside[0].ID); err != nil {
			t.Fatal(err)
		}
		soon, cancel := context.WithTimeout(ctx, 20*time.Second) // the backstop behind every wake looks every 30
		next, err := c.WaitState(soon, line[0].ID, "running")
		cancel()
		if err != nil {
			t.Fatal("the first in the line did not come in: ", err)
		}
		inside, line = append(inside[1:], next), line[1:]
	}
}

// Creates of an image whose registry has stalled wait for it by themselves: those of images that are there go on, and the
// people who wait see that it is being pulled.
func TestAColdImageHoldsUpNobody(t *testing.T) {
	stalled := make(chan struct{})
	var asked atomic.Int32
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			asked.Add(1)
			select {
			case <-stalled:
			case <-r.Context().Done():
			}
			http.NotFound(w, r)
		}
	}))
	defer registry.Close()
	p, ctx := start(t, platform.Options{Env: map[string]string{"LEARNOS_GATEWAY_MAXENVIRONMENTS": "50"}})
	c := adminOf(t, p)
	image := map[string]any{"name": "stalled", "title": "Stalled", "source": strings.TrimPrefix(registry.URL, "http://") + "/stalled:1", "insecure": true}
	if err := c.Do(ctx, http.MethodPost, "/images", image, nil); err != nil {
		t.Fatal(err)
	}
	running(t, ctx, c, "busybox") // builds it

	var cold []*platform.Environment
	for range 8 {
		e, err := c.Create(ctx, "stalled")
		if err != nil {
			t.Fatal(err)
		}
		cold = append(cold, e)
	}
	for _, e := range cold {
		if _, err := c.WaitState(ctx, e.ID, "pulling"); err != nil {
			t.Fatal(err)
		}
	}
	for range 8 {
		running(t, ctx, c, "busybox")
	}
	for _, e := range cold {
		if now, err := c.Environment(ctx, e.ID); err != nil || now.State != "pulling" {
			t.Fatalf("%+v, %v", now, err)
		}
	}
	close(stalled)
	for _, e := range cold {
		if _, err := c.WaitState(ctx, e.ID, "running"); err == nil || !strings.Contains(err.Error(), "failed") {
			t.Errorf("an image that does not exist: %v", err)
		}
	}
	if n := asked.Load(); n > 8 {
		t.Errorf("the registry was asked %d times for one image", n)
	}
}
