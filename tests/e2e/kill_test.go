package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/learnos/learnos/tests/platform"
)

// Kill -9 of any one process loses no environment, no session and no job.
func TestKillEachProcess(t *testing.T) {
	p, ctx := start(t, platform.Options{Env: map[string]string{"LEARNOS_GATEWAY_MAXENVIRONMENTS": "50"}})
	c, _, _ := person(t, ctx, p)
	env := running(t, ctx, c, "busybox")
	term, session := shell(t, ctx, c, env.ID)
	says(t, ctx, term, "n=$((6*7)); echo ready$n", "ready42")
	offset := int64(term.Offset)

	for _, name := range p.Processes() {
		t.Run(name, func(t *testing.T) {
			// Creates are under way while the process dies: none may be lost.
			var pending []*platform.Environment
			for range 4 {
				e, err := c.Create(ctx, "busybox")
				if err != nil {
					t.Fatal(err)
				}
				pending = append(pending, e)
			}
			if err := p.Kill(name); err != nil {
				t.Fatal(err)
			}
			if err := p.Restart(name); err != nil {
				t.Fatal(err)
			}
			if err := p.WaitReady(ctx); err != nil {
				t.Fatal(err)
			}

			// The same shell answers, and resumes where the reader was.
			var again *platform.Terminal
			var err error
			for range 200 { // a node that was killed comes back within seconds
				if again, err = c.Attach(ctx, env.ID, session, offset); err == nil {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			if err != nil {
				t.Fatalf("attach after kill -9 of %s: %v", name, err)
			}
			defer again.Close()
			says(t, ctx, again, "echo still$((n+1))", "still43")
			offset = int64(again.Offset)

			for _, e := range pending {
				for {
					_, err := c.WaitState(ctx, e.ID, "running")
					if err == nil {
						break
					}
					if ctx.Err() != nil || ended(err) {
						t.Fatalf("create %s during kill -9 of %s: %v", e.ID, name, err)
					}
					time.Sleep(100 * time.Millisecond)
				}
				if err := c.Delete(ctx, e.ID); err != nil {
					t.Fatal(err)
				}
			}
			var list []platform.Environment
			if err := c.Do(ctx, "GET", "/environments", nil, &list); err != nil {
				t.Fatal(err)
			}
			if len(list) != 1 || list[0].ID != env.ID || list[0].State != "running" {
				t.Errorf("after kill -9 of %s the person has %v, want the one environment running", name, list)
			}
		})
	}
}

// `learnos up` is one process; killed, nothing is lost either.
func TestKillAllInOne(t *testing.T) {
	p, ctx := start(t, platform.Options{Embedded: true})
	c, name, password := person(t, ctx, p)
	env := running(t, ctx, c, "busybox")
	term, session := shell(t, ctx, c, env.ID)
	says(t, ctx, term, "n=$((6*7)); echo ready$n", "ready42")
	for i := range 2 {
		if err := p.Kill("learnos"); err != nil {
			t.Fatal(err)
		}
		if err := p.Restart("learnos"); err != nil {
			t.Fatal(err)
		}
		if err := p.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		c, err := p.Login(ctx, name, password)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.WaitState(ctx, env.ID, "running"); err != nil {
			t.Fatal(err)
		}
		var again *platform.Terminal
		for range 200 {
			if again, err = c.Attach(ctx, env.ID, session, -1); err == nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := again.Expect(ctx, "ready42"); err != nil {
			t.Fatalf("the scrollback is gone: %v", err)
		}
		says(t, ctx, again, fmt.Sprintf("echo still$((n+%d))", i), fmt.Sprintf("still%d", 42+i))
		again.Close()
	}
}

// ended reports whether err is the platform's word that an environment ended,
// rather than a connection that broke.
func ended(err error) bool {
	var api *platform.APIError
	return errors.As(err, &api) && api.Status == 404
}
