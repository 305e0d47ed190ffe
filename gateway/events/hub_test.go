package events

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/learnos/learnos/gateway/store"
)

func hub(t *testing.T) (*Hub, *store.Store) {
	t.Helper()
	s, err := store.Open(context.Background(), "sqlite", filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	h := NewHub(s, func(_ context.Context, e store.Environment) any {
		return map[string]string{"id": e.ID, "state": e.State, "reason": e.Reason}
	}, slog.Default())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); h.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; s.Close() })
	return h, s
}

func add(t *testing.T, s *store.Store, user int64, id string) {
	t.Helper()
	e := store.Environment{ID: id, UserID: user, State: "queued", CreatedAt: store.At(time.Now()), UpdatedAt: store.At(time.Now())}
	if err := s.CreateEnvironment(context.Background(), &e, 1000); err != nil {
		t.Fatal(err)
	}
}

func change(t *testing.T, h *Hub, s *store.Store, id, reason string) {
	t.Helper()
	e, _, err := s.ChangeEnvironment(context.Background(), id, time.Now(), func(e *store.Environment) (bool, string, error) {
		e.Reason = reason
		return true, "", nil
	})
	if err != nil {
		t.Fatal(err)
	}
	h.Changed(e.UserID, id)
}

func TestASlowClientIsResynchronisedAndHoldsUpNobody(t *testing.T) {
	h, s := hub(t)
	u := store.User{Username: "ada", PasswordHash: "x"}
	if err := s.CreateUser(context.Background(), &u); err != nil {
		t.Fatal(err)
	}
	add(t, s, u.ID, "e1")
	slow, quick := h.Subscribe(u.ID), h.Subscribe(u.ID)
	defer h.Unsubscribe(quick)
	last := ""
	for i := range 3 * backlog {
		last = fmt.Sprint("change ", i)
		change(t, h, s, "e1", last)
		var m struct{ Environment map[string]string }
		if err := json.Unmarshal(<-quick.C, &m); err != nil || m.Environment["reason"] != last {
			t.Fatalf("%+v, %v; want %s", m, err, last)
		}
	}
	<-slow.Lost
	if len(slow.C) != backlog {
		t.Errorf("%d messages wait", len(slow.C))
	}
	messages, err := h.Snapshot(context.Background(), u.ID, true)
	if err != nil || len(messages) != 2 {
		t.Fatal(messages, err)
	}
	var hello Message
	if err := json.Unmarshal(messages[0], &hello); err != nil || !hello.Resync || len(hello.Environments) != 1 {
		t.Fatal(string(messages[0]), err)
	}
	select {
	case <-quick.Lost:
		t.Error("the quick client was held to be slow")
	default:
	}
	h.Unsubscribe(slow)
	change(t, h, s, "e1", "more") // to the quick one only
	<-quick.C
	if len(slow.C) != backlog {
		t.Error("a client that left is still told")
	}
}

func TestChangesByAnotherGatewayAreToldToo(t *testing.T) {
	h, s := hub(t)
	u := store.User{Username: "ada", PasswordHash: "x"}
	if err := s.CreateUser(context.Background(), &u); err != nil {
		t.Fatal(err)
	}
	c := h.Subscribe(u.ID)
	defer h.Unsubscribe(c)
	add(t, s, u.ID, "e1") // nobody calls Changed
	<-c.C
}
