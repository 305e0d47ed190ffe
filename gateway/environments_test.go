package gateway_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/learnos/learnos/gateway/store"
	"github.com/learnos/learnos/internal/config"
	"github.com/learnos/learnos/internal/queue"
	"github.com/learnos/learnos/internal/term"
	"github.com/learnos/learnos/internal/tunnel"
)

const attachPath = "/api/v1/environments/%s/sessions/t1/attach"

func TestAnEnvironmentsLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.node("n1", 1<<30)
	ada := w.user("ada")
	ws := ada.ws("/api/v1/events", "learnos.events.v1")
	if e := next(t, ws, func(event) bool { return true }); e.Type != "hello" || e.Environments == nil || len(e.Environments) != 0 || e.Resync {
		t.Fatal(e)
	}
	made := ada.post("/api/v1/environments", obj{"image": "busybox", "name": "box"}).want(202)
	if timing := made.header.Get("Server-Timing"); !regexp.MustCompile(`^auth;dur=\S+, row;dur=\S+, queue;dur=\S+, view;dur=\S+, total;dur=\S+$`).MatchString(timing) {
		t.Errorf("Server-Timing %q", timing)
	}
	e := made.json()
	id := e["id"].(string)
	if e["name"] != "box" || e["owner"] != "ada" || e["idleTimeoutSeconds"] != 1800.0 || e["deadline"] == nil {
		t.Fatal(e)
	}
	next(t, ws, func(e event) bool { return e.Type == "environment" && e.env()["state"] == "running" })
	e = ada.waitState(id, "running")
	if e["node"] != "n1" || e["nodeOnline"] != true || e["address"] != "10.64.0.2" || e["startedAt"] == nil || e["queuePosition"] != nil ||
		e["timings"].(obj)["start"] != 4321.0 {
		t.Fatal(e)
	}
	s := next(t, ws, func(e event) bool { return e.Type == "stats" })
	if string(s.Environment) != `"`+id+`"` || s.Stats["cpuPercent"] != 12.5 || s.Stats["txBytes"] != 8.0 {
		t.Fatal(s)
	}
	n.set(func() {
		if n.streams != 1 {
			t.Errorf("%d stats streams", n.streams)
		}
	})
	ws2 := ada.ws("/api/v1/events", "learnos.events.v1") // a second watcher opens no second stream
	if e := next(t, ws2, func(event) bool { return true }); len(e.Environments) != 1 {
		t.Fatal(e)
	}
	next(t, ws2, func(e event) bool { return e.Type == "stats" })
	n.set(func() {
		if n.streams != 1 {
			t.Errorf("%d stats streams for two watchers", n.streams)
		}
	})

	path := "/api/v1/environments/" + id
	if sid := ada.post(path+"/sessions", nil).want(201).str("id"); sid != "t1" {
		t.Fatal(sid)
	}
	ada.post(path+"/sessions", obj{"args": []string{"ls", "-l"}, "tty": false, "env": []string{"A=b"}, "user": "1:2", "cwd": "/tmp"}).want(201)
	n.set(func() {
		var asked []tunnel.Request
		for _, op := range n.ops {
			if op.Op == tunnel.OpSessionCreate {
				asked = append(asked, op)
			}
		}
		if len(asked) != 2 || !asked[0].TTY || asked[1].TTY || asked[1].Args[1] != "-l" || asked[1].Vars[0] != "A=b" || asked[1].User != "1:2" || asked[1].Env != id {
			t.Errorf("%+v", asked)
		}
	})
	for _, bad := range []obj{{"args": []string{"a\x00b"}}, {"env": []string{"novalue"}}, {"env": []string{"=x"}}, {"cwd": "rel"}, {"cols": 5000}, {"rows": -1},
		{"args": []string{strings.Repeat("x", 17<<10)}}, {"args": []string{strings.Repeat("x", 15<<10), strings.Repeat("x", 15<<10), strings.Repeat("x", 15<<10)}}} {
		ada.post(path+"/sessions", bad).want(422, "invalid_field")
	}
	if list := ada.get(path + "/sessions").want(200).list(); len(list) != 1 || list[0]["tty"] != true {
		t.Fatal(list)
	}

	tty := ada.ws(fmt.Sprintf(attachPath+"?cols=100&rows=30", id), "learnos.term.v1")
	if f := receive(t, tty); f.Op != term.OpHello || f.Offset != 0 {
		t.Fatal(f)
	}
	for i := range 200 { // in order, whatever the speed
		send(t, tty, term.Frame{Op: term.OpInput, Data: []byte(fmt.Sprintf("%04d", i))})
	}
	for i := range 200 {
		if f := receive(t, tty); f.Op != term.OpOutput || string(f.Data) != fmt.Sprintf("%04d", i) || f.Offset != uint64(4*i) {
			t.Fatal(i, f)
		}
	}
	big := strings.Repeat("y", term.MaxData)
	send(t, tty, term.Frame{Op: term.OpInput, Data: []byte(big)})
	if f := receive(t, tty); string(f.Data) != big {
		t.Fatal("a frame of the largest size was damaged")
	}
	send(t, tty, term.Frame{Op: term.OpEOF})
	if f := receive(t, tty); f.Op != term.OpExit || f.Code != 7 {
		t.Fatal(f)
	}
	if ce := closed(t, tty); ce.Code != websocket.CloseNormalClosure {
		t.Error(ce)
	}
	tty = ada.ws(fmt.Sprintf(attachPath+"?offset=77", id), "learnos.term.v1") // resumes
	if f := receive(t, tty); f.Offset != 77 {
		t.Fatal(f)
	}
	if err := tty.WriteMessage(websocket.BinaryMessage, term.Frame{Op: term.OpOutput, Data: []byte("I am the server")}.Append(nil)); err != nil {
		t.Fatal(err)
	}
	if ce := closed(t, tty); ce.Code != websocket.ClosePolicyViolation {
		t.Error(ce)
	}
	tty = ada.ws(fmt.Sprintf(attachPath, id), "learnos.term.v1")
	if err := tty.WriteMessage(websocket.TextMessage, []byte("ls")); err != nil {
		t.Fatal(err)
	}
	if ce := closed(t, tty); ce.Code != websocket.ClosePolicyViolation || !strings.Contains(ce.Text, "bad_frame") {
		t.Error(ce)
	}
	tty = ada.ws(path+"/sessions/t9/attach", "learnos.term.v1")
	if ce := closed(t, tty); ce.Code != 4404 || !strings.Contains(ce.Text, "not_found") {
		t.Error(ce)
	}
	for _, q := range []string{"?offset=-1", "?offset=x", "?cols=-1", "?rows=99999"} {
		if _, res, err := ada.dial(fmt.Sprintf(attachPath, id)+q, "learnos.term.v1", nil); err == nil || res.StatusCode != 422 {
			t.Errorf("%s was accepted", q)
		}
	}
	ada.delete(path + "/sessions/t1").want(204)
	ada.delete(path + "/sessions/t2").want(404)

	before, _ := time.Parse(time.RFC3339, e["deadline"].(string))
	after, _ := time.Parse(time.RFC3339, ada.post(path+"/extend", obj{"seconds": 3600}).want(200).str("deadline"))
	if after.Sub(before) != time.Hour {
		t.Error(before, after)
	}
	ada.post(path+"/extend", obj{"seconds": 24 * 3600}).want(409, "lifetime_limit")
	ada.post(path+"/extend", obj{"seconds": 0}).want(422, "invalid_field")
	ada.post(path+"/retry", nil).want(409, "not_failed")

	ada.delete(path).want(202)
	next(t, ws, func(e event) bool { return e.Type == "environment" && e.env()["state"] == "deleted" })
	e = ada.waitState(id, "deleted")
	if e["endedAt"] == nil {
		t.Fatal(e)
	}
	var states []string
	for _, h := range ada.get(path + "/history").want(200).list() {
		states = append(states, h["state"].(string))
	}
	if h := strings.Join(states, " "); !strings.HasPrefix(h, "queued ") || !strings.HasSuffix(h, "running stopping deleted") {
		t.Error(h)
	}
	if list := ada.get("/api/v1/environments").want(200).list(); len(list) != 0 {
		t.Error(list)
	}
	if list := ada.get("/api/v1/environments?all=history").want(200).list(); len(list) != 1 {
		t.Error(list)
	}
	ada.delete(path).want(202) // twice is once
	ada.post(path+"/sessions", nil).want(409, "not_running")
	waitFor(t, "the stats stream to end when nothing runs", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.streams == 0 })
	n.set(func() {
		if n.creates[id] != 1 || n.deletes[id] != 1 {
			t.Error(n.creates, n.deletes)
		}
	})
}

func TestForeignEnvironmentsDoNotExist(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.node("n1", 1<<30)
	ada, eve, admin := w.user("ada"), w.user("eve"), w.admin()
	id := ada.create()
	ada.waitState(id, "running")
	asked := len(n.ops)
	for _, other := range []*client{eve, admin} {
		for _, c := range []struct{ method, path string }{{"GET", ""}, {"DELETE", ""}, {"POST", "/extend"}, {"POST", "/retry"}, {"GET", "/history"}, {"GET", "/sessions"},
			{"POST", "/sessions"}, {"DELETE", "/sessions/t1"}, {"GET", "/sessions/t1/attach"}} {
			if other == admin && (c.path == "" || c.path == "/history") {
				continue // an admin may see and remove it, but not look inside
			}
			real := other.do(c.method, "/api/v1/environments/"+id+c.path, nil).want(404, "not_found")
			none := other.do(c.method, "/api/v1/environments/enothing"+c.path, nil).want(404, "not_found")
			if string(real.body) != string(none.body) {
				t.Errorf("%s %s tells that the environment is there", c.method, c.path)
			}
		}
		if _, res, err := other.dial(fmt.Sprintf(attachPath, id), "learnos.term.v1", nil); err == nil || res.StatusCode != 404 {
			t.Error("the websocket was opened before ownership was checked")
		}
	}
	n.set(func() {
		if len(n.ops) != asked {
			t.Errorf("the node was asked: %+v", n.ops[asked:])
		}
	})
	if list := eve.get("/api/v1/environments?all=history").want(200).list(); len(list) != 0 {
		t.Error(list)
	}
	ws := eve.ws("/api/v1/events", "learnos.events.v1")
	if e := next(t, ws, func(event) bool { return true }); len(e.Environments) != 0 {
		t.Error(e)
	}
	if list := admin.get("/api/v1/environments?users=all").want(200).list(); len(list) != 1 || list[0]["owner"] != "ada" {
		t.Error(list)
	}
	admin.delete("/api/v1/environments/" + id).want(202)
	ada.waitState(id, "deleted")
	eve2 := eve.create() // the next message on eve's socket is about eve's own
	e := next(t, ws, func(e event) bool { return e.Type == "environment" })
	if e.env()["id"] != eve2 {
		t.Errorf("%s", e.Environment)
	}
}

func TestAllowance(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ada := w.user("ada")
	var mu sync.Mutex
	var made []string
	refused := 0
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			a := ada.post("/api/v1/environments", obj{"image": "busybox"})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case a.status == 202:
				made = append(made, a.str("id"))
			case a.status == 409 && a.problem("code") == "allowance" && a.problem("hint") != "":
				refused++
			default:
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	wg.Wait()
	if len(made) != 3 || refused != 17 {
		t.Fatalf("%d made, %d refused", len(made), refused)
	}
	// Nobody took them: deleting is done at once and gives the place back.
	if a := ada.delete("/api/v1/environments/" + made[0]).want(202); a.str("state") != "deleted" {
		t.Fatalf("%s", a.body)
	}
	ada.create()
	ada.post("/api/v1/environments", obj{"image": "busybox"}).want(409, "allowance")
	n := w.node("n1", 1<<30)
	ada.waitState(made[1], "running")
	n.set(func() {
		if n.creates[made[0]] != 0 {
			t.Error("the cancelled one was made")
		}
	})
}

func TestWaitingIsExplained(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ada, bob := w.user("ada"), w.user("bob")
	first, second := ada.create(), bob.create()
	if e := ada.env(first); e["queuePosition"] != 0.0 || e["reason"] != "no node is online" || e["hint"] == "" {
		t.Fatal(e)
	}
	if e := bob.env(second); e["queuePosition"] != 1.0 {
		t.Fatal(e)
	}
	ws := bob.ws("/api/v1/events", "learnos.events.v1")
	next(t, ws, func(e event) bool { return e.Type == "environment" && e.env()["queuePosition"] == 1.0 })
	w.node("tiny", 10<<20)
	next(t, ws, func(e event) bool {
		return e.Type == "environment" && e.env()["reason"] == "no node has room: needs 64 MiB of memory, at most 10 MiB are free"
	})
	ada.delete("/api/v1/environments/" + first).want(202)
	next(t, ws, func(e event) bool { return e.Type == "environment" && e.env()["queuePosition"] == 0.0 })
	if list := w.admin().get("/api/v1/nodes").want(200).list(); len(list) != 1 || list[0]["name"] != "tiny" || list[0]["freeMemory"] != float64(10<<20) {
		t.Error(list)
	}
}

func TestFailureRetryAndPuttingAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.node("n1", 1<<30)
	n.set(func() { n.fail = "the registry said no" })
	ada := w.user("ada")
	id := ada.create()
	e := ada.waitState(id, "failed")
	if e["reason"] != "the registry said no" || e["hint"] == "" || e["endedAt"] == nil {
		t.Fatal(e)
	}
	ada.post("/api/v1/environments/"+id+"/retry", nil).want(202)
	waitFor(t, "the second failure", func() bool {
		return len(ada.get("/api/v1/environments/"+id+"/history").want(200).list()) >= 4 && ada.env(id)["state"] == "failed"
	})
	n.set(func() { n.fail = "" })
	if e := ada.post("/api/v1/environments/"+id+"/retry", nil).want(202).json(); e["id"] != id || e["endedAt"] != nil {
		t.Fatal(e)
	}
	ada.waitState(id, "running")
	n.set(func() {
		if n.creates[id] != 3 {
			t.Error(n.creates)
		}
		n.fail = "no again"
	})
	other := ada.create()
	ada.waitState(other, "failed")
	for range 2 { // a failed one holds no place
		ada.create()
	}
	ada.waitState(other, "failed")
	if a := ada.delete("/api/v1/environments/" + other).want(202); a.str("state") != "deleted" {
		t.Fatalf("%s", a.body)
	}
	ada.post("/api/v1/environments/"+other+"/retry", nil).want(409, "not_failed")
}

func TestNodeAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Config) { c.Gateway.MaxEnvironments = 1 })
	n := w.node("n1", 1<<30)
	ada := w.user("ada")
	id := ada.create()
	ada.waitState(id, "running")
	tty := ada.ws(fmt.Sprintf(attachPath, id), "learnos.term.v1")
	receive(t, tty)
	n.stop()
	if ce := closed(t, tty); ce.Code != websocket.CloseTryAgainLater {
		t.Error(ce)
	}
	waitFor(t, "the node to be away", func() bool { return ada.env(id)["nodeOnline"] == false })
	if e := ada.env(id); e["state"] != "running" || e["hint"] == "" {
		t.Fatal(e)
	}
	tty = ada.ws(fmt.Sprintf(attachPath, id), "learnos.term.v1")
	if ce := closed(t, tty); ce.Code != websocket.CloseTryAgainLater || !strings.Contains(ce.Text, `"code":"node_offline"`) || !strings.Contains(ce.Text, `"hint":`) {
		t.Error(ce)
	}
	path := "/api/v1/environments/" + id
	ada.post(path+"/sessions", nil).want(503, "node_offline")
	ada.post(path+"/extend", obj{"seconds": 60}).want(503, "node_offline")
	if a := ada.delete(path).want(202); a.str("state") != "stopping" || a.str("hint") == "" {
		t.Fatalf("%s", a.body)
	}
	ada.post("/api/v1/environments", obj{"image": "busybox"}).want(409, "allowance")
	ada.delete(path + "?force=maybe").want(422)
	if a := ada.delete(path + "?force=true").want(202); a.str("state") != "deleted" {
		t.Fatalf("%s", a.body)
	}
	second := ada.create()
	n.start()
	ada.waitState(second, "running")
	waitFor(t, "the node to remove what was given up", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.deletes[id] == 1 })
	if e := ada.env(id); e["state"] != "deleted" {
		t.Error(e)
	}

	// While its node is there, only an admin may give an environment up.
	n.set(func() { n.hold = true })
	stuck := w.user("bob")
	held := stuck.create()
	stuck.waitState(held, "pulling")
	stuck.delete("/api/v1/environments/"+held+"?force=true").want(409, "node_online")
	if a := w.admin().delete("/api/v1/environments/" + held + "?force=true").want(202); a.str("state") != "deleted" {
		t.Fatalf("%s", a.body)
	}
	stuck.create()
}

func TestWebsocketsEndWithTheLogin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.node("n1", 1<<30)
	ada := w.user("ada")
	id := ada.create()
	ada.waitState(id, "running")
	other := w.client().keep(w.client().post("/api/v1/auth/login", obj{"username": "ada", "password": "password of ada"}).want(200))
	tty, ev, kept := ada.ws(fmt.Sprintf(attachPath, id), "learnos.term.v1"), ada.ws("/api/v1/events", "learnos.events.v1"), other.ws(fmt.Sprintf(attachPath, id), "learnos.term.v1")
	ada.post("/api/v1/auth/logout", nil).want(204)
	for _, ws := range []*websocket.Conn{tty, ev} {
		if ce := closed(t, ws); ce.Code != 4401 || !strings.Contains(ce.Text, "session_ended") {
			t.Error(ce)
		}
	}
	receive(t, kept)
	send(t, kept, term.Frame{Op: term.OpPing})
	if f := receive(t, kept); f.Op != term.OpPong {
		t.Error(f)
	}
	if _, res, err := ada.dial("/api/v1/events", "learnos.events.v1", nil); err == nil || res.StatusCode != 401 {
		t.Error("a dead login opened a websocket")
	}

	// A session that was ended behind this gateway's back (by another one) is noticed too.
	db, err := store.Open(context.Background(), "sqlite", filepath.Join(w.cfg.Common.DataDir, "learnos.db"))
	if err != nil {
		t.Fatal(err)
	}
	u, err := db.UserByName(context.Background(), "ada")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.RevokeUser(context.Background(), u.ID, "", time.Now()); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if ce := closed(t, kept); ce.Code != 4401 {
		t.Error(ce)
	}

	bob := w.user("bob")
	ev = bob.ws("/api/v1/events", "learnos.events.v1")
	next(t, ev, func(e event) bool { return e.Type == "hello" })
	w.stop()
	if ce := closed(t, ev); ce.Code != websocket.CloseServiceRestart {
		t.Error(ce)
	}
}

func TestEtcdAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.node("n1", 1<<30)
	ada := w.user("ada")
	id := ada.create()
	ada.waitState(id, "running")
	w.etcd.Kill()
	waitFor(t, "the gateway to notice", func() bool { return w.client().get("/healthz").want(200).str("status") == "degraded" })
	a := ada.post("/api/v1/environments", obj{"image": "busybox"}).want(503, "queue_unavailable")
	if a.header.Get("Retry-After") == "" || a.problem("hint") == "" {
		t.Error(a.header, string(a.body))
	}
	w.admin().get("/api/v1/nodes").want(503, "queue_unavailable")
	// Everything else works.
	w.user("bob").get("/api/v1/images").want(200)
	if e := ada.env(id); e["state"] != "running" {
		t.Error(e)
	}
	tty := ada.ws(fmt.Sprintf(attachPath, id), "learnos.term.v1")
	receive(t, tty)
	send(t, tty, term.Frame{Op: term.OpPing})
	receive(t, tty)
	if a := ada.delete("/api/v1/environments/" + id).want(202); a.str("state") != "stopping" {
		t.Errorf("%s", a.body)
	}
	w.etcd.Restart()
	ada.waitState(id, "deleted")
	second := ada.create()
	ada.waitState(second, "running")
	n.set(func() {
		if n.creates[second] != 1 || n.deletes[id] != 1 {
			t.Error(n.creates, n.deletes)
		}
	})
}

func TestStartsWithoutEtcd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ada := w.user("ada")
	w.stop()
	w.etcd.Kill()
	started := make(chan struct{})
	go func() { defer close(started); w.start() }() // returns when all is well
	time.Sleep(500 * time.Millisecond)
	w.etcd.Restart()
	<-started
	w.node("n1", 1<<30)
	ada.token = ""
	ada.keep(ada.post("/api/v1/auth/login", obj{"username": "ada", "password": "password of ada"}).want(200))
	ada.waitState(ada.create(), "running")
}

// TestKilledBetweenRowAndJob kills a gateway of its own process (SIGKILL) after the row is there and before the job
// is, since etcd hangs. The next one must enqueue it, once.
func TestKilledBetweenRowAndJob(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ada := w.user("ada")
	w.stop()

	file := filepath.Join(t.TempDir(), "config.toml")
	api, tunnels := listen(t), listen(t)
	text := fmt.Sprintf("[common]\ndataDir = %q\n[etcd]\naddresses = [%q]\n[gateway]\naddr = %q\ntunnelAddr = %q\n",
		w.cfg.Common.DataDir, w.etcd.Endpoint, api.Addr(), tunnels.Addr())
	w.base = "http://" + api.Addr().String()
	api.Close()
	tunnels.Close()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "LEARNOS_TEST_GATEWAY_CONFIG="+file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	waitFor(t, "the gateway's process", func() bool {
		res, err := http.Get(w.base + "/healthz")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		return res.StatusCode == 200
	})
	waitFor(t, "etcd to be known", func() bool { return w.client().get("/healthz").json()["etcd"] == true })

	db, err := store.Open(context.Background(), "sqlite", filepath.Join(w.cfg.Common.DataDir, "learnos.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	w.etcd.Pause()
	t.Cleanup(w.etcd.Resume)
	go func() { // no answer will come
		r, _ := http.NewRequest("POST", w.base+"/api/v1/environments", strings.NewReader(`{"image":"busybox"}`))
		r.Header.Set("Authorization", "Bearer "+ada.token)
		if res, err := http.DefaultClient.Do(r); err == nil {
			res.Body.Close()
		}
	}()
	var rows []store.Environment
	waitFor(t, "the row", func() bool {
		rows, err = db.Environments(context.Background(), store.Filter{})
		return err == nil && len(rows) == 1
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if rows, _ = db.Environments(context.Background(), store.Filter{NotEnqueued: true}); len(rows) != 1 {
		t.Fatal("the job was enqueued before the kill; the test shows nothing")
	}
	w.etcd.Resume()
	n := w.node("n1", 1<<30)
	w.start()
	ada.waitState(rows[0].ID, "running")
	n.set(func() {
		if n.creates[rows[0].ID] != 1 {
			t.Error(n.creates)
		}
	})
}

// TestJobLostByEtcd: what waits is enqueued again when etcd has come back empty.
func TestJobLostByEtcd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ada := w.user("ada")
	id := ada.create()
	waitFor(t, "the job", func() bool { _, err := w.q.Position(context.Background(), id); return err == nil })
	w.stop()
	if _, err := w.etcd.Client().Delete(context.Background(), w.cfg.Etcd.Prefix, clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	w.start()
	n := w.node("n1", 1<<30)
	ada.waitState(id, "running") // after the grace for jobs that are on their way
	n.set(func() {
		if n.creates[id] != 1 {
			t.Error(n.creates)
		}
	})
}

func TestStatusesOfStrangersAreIgnored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := w.q.Enqueue(context.Background(), queue.Job{ID: "stranger", Kind: queue.KindCreate, EnvID: "stranger", Spec: &queue.EnvSpec{ID: "stranger"}}); err != nil {
		t.Fatal(err)
	}
	w.node("n1", 1<<30)
	ada := w.user("ada")
	ada.waitState(ada.create(), "running")
	ada.get("/api/v1/environments/stranger").want(404)
}
