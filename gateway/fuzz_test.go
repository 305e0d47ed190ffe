package gateway_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/learnos/learnos/gateway/api"
	"github.com/learnos/learnos/gateway/auth"
	"github.com/learnos/learnos/gateway/events"
	"github.com/learnos/learnos/gateway/fleet"
	"github.com/learnos/learnos/gateway/openapi"
	"github.com/learnos/learnos/gateway/store"
	"github.com/learnos/learnos/internal/config"
	"github.com/learnos/learnos/internal/queue"
)

// bareAPI is an API on a real database and an etcd that never answers.
func bareAPI(t testing.TB) *api.API {
	t.Helper()
	s, err := store.Open(context.Background(), "sqlite", filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	cli, err := queue.Dial(config.Etcd{Addresses: []string{"127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cli.Close() })
	keys, err := auth.NewKeyring(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	f := fleet.New(fleet.Options{Store: s, Queue: queue.New(cli, "/x/"), Log: log, Changed: func(int64, string) {}})
	a, err := api.New(api.Options{Store: s, Fleet: f, Events: events.NewHub(s, func(context.Context, store.Environment) any { return nil }, log),
		Ready: func() bool { return false }, Keys: keys, Hasher: auth.NewHasher(), Sender: auth.LogSender{Log: log}, CodeKey: make([]byte, 32), DoorKey: make([]byte, 32), Log: log,
		AccessTTL: time.Minute, RefreshTTL: time.Hour, OpenRegistration: true})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestRoutesAndDocumentAgree(t *testing.T) {
	doc, err := openapi.Load()
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			documented[method+" "+path] = true
		}
	}
	for _, r := range bareAPI(t).Routes() {
		parts := strings.Split(r.Path, "/")
		for i, p := range parts {
			if name, ok := strings.CutPrefix(p, ":"); ok {
				parts[i] = "{" + name + "}"
			}
		}
		route := r.Method + " " + strings.Join(parts, "/")
		if !documented[route] {
			t.Errorf("%s is not in the document", route)
		}
		delete(documented, route)
	}
	for route := range documented {
		t.Errorf("%s is in the document only", route)
	}
}

// FuzzAuthJSON sends what a stranger may: no input may crash the server, be answered otherwise than documented, or log
// anybody in without a password.
func FuzzAuthJSON(f *testing.F) {
	for _, s := range []string{`{"username":"ada","password":"12345678"}`, `{"username":"ada"}`, `{`, `null`, `[]`, `{"username":null,"password":"x"}`,
		`{"username":"a","username":"b","password":"c"}`, `{"refreshToken":"x"}`, `{"email":"a@b"}`, `{"username":"\u0000","password":"\ud800"}`, "{\"username\":\"\xff\"}"} {
		f.Add("login", s)
		f.Add("register", s)
	}
	f.Add("refresh", `{"refreshToken":"x"}`)
	f.Add("code", `{"email":"a@b.c"}`)
	a := bareAPI(f)
	f.Fuzz(func(t *testing.T, what, body string) {
		switch what {
		case "login", "register", "refresh", "code":
		default:
			return
		}
		r := httptest.NewRequest(http.MethodPost, "/api/v1/auth/"+what, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		a.ServeHTTP(w, r)
		res := w.Result()
		data, _ := io.ReadAll(res.Body)
		if res.StatusCode >= 500 {
			t.Fatalf("%s %q: %d %s", what, body, res.StatusCode, data)
		}
		// encoding/json takes names in any case and repeated ones, which the document's validator need not like.
		verify(t, r, []byte(body), false, res, data)
		var session struct{ AccessToken string }
		_ = json.Unmarshal(data, &session)
		if session.AccessToken != "" && what != "register" && what != "login" {
			t.Fatalf("%s %q logged somebody in", what, body)
		}
	})
}
