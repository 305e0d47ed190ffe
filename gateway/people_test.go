package gateway_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/crypto/ssh"

	"github.com/learnos/learnos/gateway"
	"github.com/learnos/learnos/internal/config"
)

func TestAccounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anybody := w.client()
	cfg := anybody.get("/api/v1/config").want(200).json()
	if cfg["registration"] != true || cfg["requireCode"] != false || cfg["version"] != "test" || cfg["sshAddr"] != "127.0.0.1:8022" || cfg["maxEnvironments"] != 3.0 {
		t.Fatal(cfg)
	}
	anybody.get("/api/v1/openapi.json").want(200)
	anybody.get("/api/v1/me").want(401, "unauthenticated")

	ada := w.client()
	a := ada.post("/api/v1/auth/register", obj{"username": "Ada", "email": "Ada@Example.org", "password": "correct horse"}).want(201)
	ada.keep(a)
	if u := a.json()["user"].(obj); u["username"] != "ada" || u["email"] != "ada@example.org" || u["admin"] != false || a.json()["expiresIn"] != 600.0 {
		t.Fatal(a.json())
	}
	for _, c := range a.header.Values("Set-Cookie") {
		if !strings.Contains(c, "HttpOnly") || !strings.Contains(c, "SameSite=Strict") || strings.Contains(c, "Secure") {
			t.Error(c)
		}
	}
	if cookies := strings.Join(a.header.Values("Set-Cookie"), "\n"); !strings.Contains(cookies, "learnos_access=") || !strings.Contains(cookies, "learnos_refresh=") ||
		!strings.Contains(cookies, "Path=/api/v1/auth") {
		t.Error(cookies)
	}
	anybody.post("/api/v1/auth/register", obj{"username": "ADA", "password": "another horse"}).want(409, "username_taken")
	anybody.post("/api/v1/auth/login", obj{"username": "aDa", "password": "correct horse"}).want(200)
	wrong := anybody.post("/api/v1/auth/login", obj{"username": "ada", "password": "wrong"}).want(401, "wrong_credentials")
	nobody := anybody.post("/api/v1/auth/login", obj{"username": "nobody", "password": "wrong"}).want(401, "wrong_credentials")
	if string(wrong.body) != string(nobody.body) {
		t.Error("an unknown name is answered otherwise than a wrong password")
	}
	if me := ada.get("/api/v1/me").want(200).json(); me["username"] != "ada" || me["maxEnvironments"] != 3.0 {
		t.Fatal(me)
	}

	// A new password ends the other sessions, not this one.
	other := w.client().keep(anybody.post("/api/v1/auth/login", obj{"username": "ada", "password": "correct horse"}).want(200))
	ada.patch("/api/v1/me", obj{"password": "better horse"}).want(422)
	ada.patch("/api/v1/me", obj{"password": "better horse", "currentPassword": "wrong"}).want(403, "wrong_password")
	ada.patch("/api/v1/me", obj{"password": "short", "currentPassword": "correct horse"}).want(422, "invalid_field")
	ada.patch("/api/v1/me", obj{"password": "better horse", "email": "new@example.org", "currentPassword": "correct horse"}).want(200)
	other.get("/api/v1/me").want(401, "session_ended")
	if me := ada.get("/api/v1/me").want(200).json(); me["email"] != "new@example.org" {
		t.Fatal(me)
	}
	anybody.post("/api/v1/auth/login", obj{"username": "ada", "password": "correct horse"}).want(401)
	anybody.post("/api/v1/auth/login", obj{"username": "ada", "password": "better horse"}).want(200)
}

func TestTokensUnderAttack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ada, thief := w.user("ada"), w.client()
	first := ada.refresh
	ada.keep(ada.post("/api/v1/auth/refresh", obj{"refreshToken": first}).want(200))
	ada.get("/api/v1/me").want(200)
	thief.post("/api/v1/auth/refresh", obj{"refreshToken": first}).want(401, "refresh_reused")
	ada.get("/api/v1/me").want(401, "session_ended")
	ada.post("/api/v1/auth/refresh", obj{"refreshToken": ada.refresh}).want(401, "refresh_invalid")
	thief.post("/api/v1/auth/refresh", obj{"refreshToken": "made up"}).want(401, "refresh_invalid")
	thief.post("/api/v1/auth/refresh", nil).want(401, "unauthenticated")

	ada.token = ""
	ada.keep(ada.post("/api/v1/auth/login", obj{"username": "ada", "password": "password of ada"}).want(200))
	ada.post("/api/v1/auth/logout", nil).want(204)
	ada.get("/api/v1/me").want(401, "session_ended") // at once, though the token is good for minutes
	ada.post("/api/v1/auth/refresh", obj{"refreshToken": ada.refresh}).want(401, "refresh_invalid")

	ada.token = ""
	ada.keep(ada.post("/api/v1/auth/login", obj{"username": "ada", "password": "password of ada"}).want(200))
	var claims jwt.MapClaims
	good, _, err := jwt.NewParser().ParseUnverified(ada.token, &claims)
	if err != nil {
		t.Fatal(err)
	}
	key, err := config.Secret(w.cfg.Common.DataDir, "jwt", 32)
	if err != nil {
		t.Fatal(err)
	}
	forge := func(m jwt.SigningMethod, key any, change func(jwt.MapClaims)) string {
		c := jwt.MapClaims{}
		for k, v := range claims {
			c[k] = v
		}
		change(c)
		tok := jwt.NewWithClaims(m, c)
		tok.Header["kid"] = good.Header["kid"]
		s, err := tok.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	nothing := func(jwt.MapClaims) {}
	for name, token := range map[string]string{
		"alg none":        forge(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nothing),
		"other key":       forge(jwt.SigningMethodHS256, []byte("0123456789abcdef0123456789abcdef"), nothing),
		"expired":         forge(jwt.SigningMethodHS256, key, func(c jwt.MapClaims) { c["exp"] = time.Now().Add(-time.Minute).Unix() }),
		"another user":    forge(jwt.SigningMethodHS256, key, func(c jwt.MapClaims) { c["sub"] = "1" }),
		"no such login":   forge(jwt.SigningMethodHS256, key, func(c jwt.MapClaims) { c["sid"] = "s" }),
		"cut":             ada.token[:len(ada.token)-2],
		"a refresh token": ada.refresh,
	} {
		c := w.client()
		c.token = token
		if a := c.get("/api/v1/me"); a.status != 401 {
			t.Errorf("%s: %d", name, a.status)
		}
	}
	c := w.client()
	c.token = forge(jwt.SigningMethodHS256, key, nothing)
	c.get("/api/v1/me").want(200) // the forger's tools are sharp
}

func TestCrossSiteRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Config) { c.Web.Origins = []string{"https://learn.example.org"} })
	ada := w.user("ada")
	token, refresh := ada.token, ada.refresh
	ada.token = ""
	host := strings.TrimPrefix(w.base, "http://")
	for _, c := range []struct {
		origin string
		ok     bool
	}{{"", false}, {"http://evil.example", false}, {"null", false}, {"https://learn.example.org.evil.example", false}, {"http://" + host + "@evil.example", false},
		{"file://" + host, false}, {"http://" + host, true}, {"https://" + host, true}, {"https://learn.example.org", true}} {
		ada.header = http.Header{"Cookie": {"learnos_access=" + token}}
		if c.origin != "" {
			ada.header.Set("Origin", c.origin)
		}
		ada.get("/api/v1/me").want(200) // reading is safe: the answer can't be read by another site
		a := ada.post("/api/v1/me/keys", obj{"key": "no key"})
		if c.ok {
			a.want(422)
		} else {
			a.want(403, "wrong_origin")
		}
		ws, res, err := ada.dial("/api/v1/events", "learnos.events.v1", ada.header)
		if (err == nil) != c.ok || (!c.ok && res.StatusCode != 403) {
			t.Errorf("origin %q: websocket %v", c.origin, err)
		}
		if err == nil {
			ws.Close()
		}
	}
	ada.header = http.Header{"Cookie": {"learnos_refresh=" + refresh}}
	ada.post("/api/v1/auth/refresh", nil).want(403, "wrong_origin")
	ada.header.Set("Origin", "http://evil.example")
	ada.post("/api/v1/auth/login", obj{"username": "ada", "password": "password of ada"}).want(403, "wrong_origin")
	ada.post("/api/v1/auth/register", obj{"username": "eve", "password": "password of eve"}).want(403, "wrong_origin")
	ada.post("/api/v1/auth/logout", nil).want(403, "wrong_origin")
	ada.header.Set("Origin", w.base)
	a := ada.post("/api/v1/auth/refresh", nil).want(200)
	if !strings.Contains(strings.Join(a.header.Values("Set-Cookie"), ""), "learnos_access=") {
		t.Error("no cookies")
	}
	// The access cookie is gone after minutes; the refresh cookie alone must do to log out.
	ada.header = http.Header{"Cookie": {"learnos_refresh=" + a.str("refreshToken")}, "Origin": {w.base}}
	ada.post("/api/v1/auth/logout", nil).want(204)
	ada.post("/api/v1/auth/refresh", nil).want(401, "refresh_invalid")
	// A bearer token is never sent by a browser on its own, so it needs no Origin.
	bearer := w.client().keep(w.client().post("/api/v1/auth/login", obj{"username": "ada", "password": "password of ada"}).want(200))
	bearer.post("/api/v1/me/keys", obj{"key": "no key"}).want(422)
}

func TestRateLimitsSeeTheRealAddress(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Config) { c.Gateway.LoginPerMinute, c.Gateway.RegisterPerHour = 3, 2 })
	c := w.client()
	from := func(address string, door string) {
		c.header = http.Header{"X-Forwarded-For": {address}}
		if door != "" {
			c.header.Set("X-Learnos-Door", door)
		}
	}
	try := func(user string) *answer { return c.post("/api/v1/auth/login", obj{"username": user, "password": "x"}) }
	for i := range 3 {
		from(fmt.Sprint("10.0.0.", i), "") // unsigned: a lie
		try(fmt.Sprint("user", i)).want(401)
	}
	from("10.0.0.9", "")
	if a := try("user9").want(429, "too_many_attempts"); a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	from("10.0.0.9", strings.Repeat("0", 64))
	try("user9").want(429) // wrongly signed
	from("10.0.0.9", w.door)
	for range 3 {
		try("victim").want(401)
	}
	from("10.0.0.10", w.door)
	try("victim").want(429) // the account is guessed from everywhere
	try("other").want(401)
	from("2001:db8::1", w.door)
	for i := range 3 {
		from(fmt.Sprintf("2001:db8::%d", i), w.door) // one subscriber
		try(fmt.Sprint("six", i)).want(401)
	}
	try("six9").want(429)

	from("10.0.1.1", w.door)
	for i := range 2 {
		c.post("/api/v1/auth/register", obj{"username": fmt.Sprint("new", i), "password": "password"}).want(201)
	}
	c.post("/api/v1/auth/register", obj{"username": "new2", "password": "password"}).want(429)
	for range 5 { // successes cost nothing
		c.post("/api/v1/auth/login", obj{"username": "new0", "password": "password"}).want(200)
	}
	for i := range 2 {
		c.post("/api/v1/auth/code", obj{"email": fmt.Sprintf("a%d@b.c", i)}).want(202)
	}
	c.post("/api/v1/auth/code", obj{"email": "a9@b.c"}).want(429)

	c.header.Set("X-Forwarded-Proto", "https")
	for _, cookie := range c.post("/api/v1/auth/login", obj{"username": "new0", "password": "password"}).want(200).header.Values("Set-Cookie") {
		if !strings.Contains(cookie, "Secure") {
			t.Error(cookie)
		}
	}
	found := false
	from("10.0.2.1", w.door)
	for _, e := range w.adminFrom(c.header).get("/api/v1/audit?limit=500").want(200).list() {
		found = found || (e["action"] == "login_failed" && e["remoteAddr"] == "10.0.0.9")
	}
	if !found {
		t.Error("the audit log does not have the real address")
	}
}

func TestVerifiedAddresses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *config.Config) {
		c.Gateway.RequireCode, c.Gateway.SMTPAddr, c.Gateway.SMTPFrom = true, "127.0.0.1:1", "learnos@example.org"
	})
	c := w.client()
	reg := func(name, email, code string) *answer {
		return c.post("/api/v1/auth/register", obj{"username": name, "email": email, "password": "password", "code": code})
	}
	c.post("/api/v1/auth/register", obj{"username": "ada", "password": "password"}).want(422)
	c.post("/api/v1/auth/register", obj{"username": "ada", "email": "ada@example.org", "password": "password"}).want(422)
	reg("ada", "ada@example.org", "000000").want(422, "code_invalid")
	c.post("/api/v1/auth/code", obj{"email": "ADA@example.org"}).want(202)
	code := w.mail.code("ada@example.org")
	reg("bob", "bob@example.org", code).want(422, "code_invalid") // somebody else's
	reg("ada", "ada@example.org", code).want(201)
	reg("eve", "ada@example.org", code).want(422, "code_invalid") // spent
	c.post("/api/v1/auth/code", obj{"email": "ada@example.org"}).want(202)
	reg("eve", "ada@example.org", w.mail.code("ada@example.org")).want(409, "taken")

	c.post("/api/v1/auth/code", obj{"email": "bob@example.org"}).want(202)
	good := w.mail.code("bob@example.org")
	bad := "000000"
	if good == bad {
		bad = "000001"
	}
	for range 5 {
		reg("bob", "bob@example.org", bad).want(422, "code_invalid")
	}
	reg("bob", "bob@example.org", good).want(422, "code_invalid") // too many attempts

	ada := w.client().keep(c.post("/api/v1/auth/login", obj{"username": "ada", "password": "password"}).want(200))
	ada.patch("/api/v1/me", obj{"email": "new@example.org", "currentPassword": "password"}).want(422)
	ada.post("/api/v1/auth/code", obj{"email": "new@example.org"}).want(202)
	ada.patch("/api/v1/me", obj{"email": "new@example.org", "code": w.mail.code("new@example.org"), "currentPassword": "password"}).want(200)
	w.mail.mu.Lock()
	w.mail.fail = true
	w.mail.mu.Unlock()
	c.post("/api/v1/auth/code", obj{"email": "x@example.org"}).want(503, "mail_unavailable")
}

func sshKey(t *testing.T) string {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

func TestKeysAndTheDoor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ada, bob := w.user("ada"), w.user("bob")
	key := sshKey(t)
	k := ada.post("/api/v1/me/keys", obj{"key": key + " ada@laptop"}).want(201).json()
	if k["name"] != "ada@laptop" || k["key"] != key || !strings.HasPrefix(k["fingerprint"].(string), "SHA256:") {
		t.Fatal(k)
	}
	ada.post("/api/v1/me/keys", obj{"name": "again", "key": key}).want(409, "key_exists")
	bob.post("/api/v1/me/keys", obj{"name": "shared", "key": key}).want(201)
	if f := ada.post("/api/v1/me/keys", obj{"name": "x", "key": "-----BEGIN OPENSSH PRIVATE KEY-----"}).want(422).problem("field"); f != "key" {
		t.Error(f)
	}
	bob.delete(fmt.Sprintf("/api/v1/me/keys/%v", k["id"])).want(404)
	bob.delete("/api/v1/me/keys/x").want(404)
	if list := ada.get("/api/v1/me/keys").want(200).list(); len(list) != 1 || list[0]["lastUsedAt"] != nil {
		t.Fatal(list)
	}

	door := w.client()
	ask := func(path string, body obj) *answer {
		body["remoteAddr"] = "192.0.2.1"
		return door.post("/internal/v1/door/"+path, body)
	}
	ask("key", obj{"username": "ada", "publicKey": key}).want(401, "not_the_door")
	door.header = http.Header{"X-Learnos-Door": {w.door}}
	s := w.client().keep(ask("key", obj{"username": "Ada", "publicKey": key}).want(200))
	if s.get("/api/v1/me").want(200).str("username") != "ada" {
		t.Fatal("not ada")
	}
	ask("key", obj{"username": "ada", "publicKey": sshKey(t)}).want(401, "wrong_credentials")
	ask("key", obj{"username": "nobody", "publicKey": key}).want(401, "wrong_credentials")
	ask("key", obj{"username": "ada", "publicKey": "rubbish"}).want(401, "wrong_credentials")
	ask("password", obj{"username": "ada", "password": "password of ada"}).want(200)
	ask("password", obj{"username": "ada", "password": "wrong"}).want(401, "wrong_credentials")
	ada.delete(fmt.Sprintf("/api/v1/me/keys/%v", k["id"])).want(204)
	ask("key", obj{"username": "ada", "publicKey": key}).want(401)
	for i := range 64 {
		ada.post("/api/v1/me/keys", obj{"name": fmt.Sprint("key ", i), "key": sshKey(t)}).want(201)
	}
	ada.post("/api/v1/me/keys", obj{"key": sshKey(t)}).want(409, "too_many_keys")
}

func TestAdmin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	info, err := os.Stat(gateway.AdminPasswordFile(w.cfg))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}
	admin, ada := w.admin(), w.user("ada")
	for _, c := range []struct{ method, path string }{{"GET", "/nodes"}, {"GET", "/users"}, {"PATCH", "/users/1"}, {"GET", "/audit"}, {"POST", "/images"},
		{"PATCH", "/images/1"}, {"DELETE", "/images/1"}, {"GET", "/environments?users=all"}} {
		ada.do(c.method, "/api/v1"+c.path, nil).want(403, "admin_only")
		w.client().do(c.method, "/api/v1"+c.path, nil).want(401)
	}
	users := admin.get("/api/v1/users").want(200).list()
	if len(users) != 2 || users[0]["username"] != "ada" || users[1]["admin"] != true {
		t.Fatal(users)
	}
	adaPath, adminPath := fmt.Sprintf("/api/v1/users/%v", users[0]["id"]), fmt.Sprintf("/api/v1/users/%v", users[1]["id"])
	admin.patch(adminPath, obj{"admin": false}).want(409, "last_admin")
	admin.patch(adminPath, obj{"disabled": true}).want(409, "last_admin")
	admin.patch(adaPath, obj{}).want(422)
	admin.patch(adaPath, obj{"maxEnvironments": -1}).want(422)
	admin.patch("/api/v1/users/99", obj{"disabled": true}).want(404)
	admin.patch(adaPath, obj{"maxEnvironments": 7}).want(200)
	if ada.get("/api/v1/me").want(200).json()["maxEnvironments"] != 7.0 {
		t.Error("the new allowance does not show")
	}
	ws := ada.ws("/api/v1/events", "learnos.events.v1")
	admin.patch(adaPath, obj{"disabled": true}).want(200)
	if ce := closed(t, ws); ce.Code != 4401 {
		t.Error(ce)
	}
	ada.get("/api/v1/me").want(401, "session_ended")
	w.client().post("/api/v1/auth/login", obj{"username": "ada", "password": "password of ada"}).want(403, "account_disabled")
	w.client().post("/api/v1/auth/login", obj{"username": "ada", "password": "wrong"}).want(401, "wrong_credentials")
	admin.patch(adaPath, obj{"disabled": false, "password": "given by admin"}).want(200)
	w.client().post("/api/v1/auth/login", obj{"username": "ada", "password": "given by admin"}).want(200)

	actions := map[string]bool{}
	page := admin.get("/api/v1/audit?limit=3").want(200).list()
	for len(page) > 0 {
		for _, e := range page {
			actions[e["action"].(string)] = true
		}
		page = admin.get(fmt.Sprintf("/api/v1/audit?limit=3&before=%v", page[len(page)-1]["id"])).want(200).list()
	}
	for _, a := range []string{"register", "login", "login_failed", "user_changed"} {
		if !actions[a] {
			t.Errorf("%s is not in the audit log", a)
		}
	}
	admin.get("/api/v1/audit?limit=0").want(422)
	admin.get("/api/v1/audit?before=x").want(422)

	// A restart with the same data makes no second admin and no second catalogue.
	w.stop()
	w.start()
	if n := len(w.admin().get("/api/v1/users").want(200).list()); n != 2 {
		t.Error(n, "users")
	}
}

func TestCatalogue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin, ada := w.admin(), w.user("ada")
	images := ada.get("/api/v1/images").want(200).list()
	if len(images) != 24 || images[0]["name"] != "busybox" || images[0]["source"] != "busybox" {
		t.Fatal(len(images), images[0])
	}
	i := admin.post("/api/v1/images", obj{"name": "alpine", "source": "docker.io/library/alpine:3"}).want(201).json()
	if i["title"] != "alpine" || i["enabled"] != true || i["memoryBytes"] != float64(256<<20) {
		t.Fatal(i)
	}
	path := fmt.Sprintf("/api/v1/images/%v", i["id"])
	admin.post("/api/v1/images", obj{"name": "alpine", "source": "x"}).want(409, "name_taken")
	if f := admin.post("/api/v1/images", obj{"name": "x", "source": "x", "pids": 0}).want(422).problem("field"); f != "pids" {
		t.Error(f)
	}
	if f := admin.post("/api/v1/images", obj{"source": "x"}).want(422).problem("field"); f != "name" {
		t.Error(f)
	}
	rations := obj{"memoryHighBytes": 64 << 20, "ioReadBps": 1 << 20, "ioWriteBps": 2 << 20, "ioReadIops": 30, "ioWriteIops": 40}
	i = admin.patch(path, rations).want(200).json()
	for field, want := range rations {
		if i[field] != float64(want.(int)) {
			t.Errorf("%s is %v", field, i[field])
		}
	}
	for field, value := range map[string]int64{"memoryHighBytes": 1 << 40, "ioReadBps": 1, "ioWriteBps": -5, "ioReadIops": -1, "ioWriteIops": 1 << 51} {
		if f := admin.patch(path, obj{field: value}).want(422, "invalid_field").problem("field"); f != field {
			t.Errorf("%s: %s", field, f)
		}
	}
	if i = admin.patch(path, obj{"capAdd": []string{"NET_RAW"}}).want(200).json(); fmt.Sprint(i["capAdd"]) != "[NET_RAW]" {
		t.Error(i["capAdd"])
	}
	for _, bad := range [][]string{{"SYS_ADMIN"}, {"CAP_NET_RAW"}, {"NET_RAW", "NET_RAW"}, {""}} {
		p := admin.patch(path, obj{"capAdd": bad}).want(422, "invalid_field")
		if p.problem("field") != "capAdd" {
			t.Error(bad, p.problem("field"))
		}
	}
	if m := admin.patch(path, obj{"capAdd": []string{"NET_ADMIN"}}).want(422).problem("message"); !strings.Contains(m, "NET_RAW") {
		t.Error(m)
	}
	if i = admin.patch(path, obj{"capAdd": []string{}}).want(200).json(); fmt.Sprint(i["capAdd"]) != "[]" {
		t.Error(i["capAdd"])
	}
	admin.patch(path, obj{"name": "busybox"}).want(409, "name_taken")
	admin.patch(path, obj{}).want(422)
	admin.patch(path, obj{"logo": "NO"}).want(422)
	admin.patch("/api/v1/images/9999", obj{"enabled": false}).want(404)
	if i = admin.patch(path, obj{"enabled": false, "cpus": 0.5, "command": []string{"sh"}}).want(200).json(); i["cpus"] != 0.5 {
		t.Fatal(i)
	}
	if n := len(ada.get("/api/v1/images").want(200).list()); n != 24 {
		t.Error(n, "images: one is switched off")
	}
	if n := len(admin.get("/api/v1/images").want(200).list()); n != 25 {
		t.Error(n, "images for the admin")
	}
	ada.post("/api/v1/environments", obj{"image": "alpine"}).want(404, "no_such_image")
	admin.delete(path).want(204)
	admin.delete(path).want(404)
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ada := w.user("ada")
	for _, c := range []struct {
		path, body string
		status     int
		code       string
		field      string
	}{
		{"/auth/login", ``, 400, "bad_json", ""},
		{"/auth/login", `{`, 400, "bad_json", ""},
		{"/auth/login", `[]`, 400, "bad_json", ""},
		{"/auth/login", `{"username":1}`, 400, "bad_json", "username"},
		{"/auth/login", `{"username":"a","password":"b","admin":true}`, 400, "unknown_field", "admin"},
		{"/auth/login", `{"username":"a","password":"b"}{}`, 400, "bad_json", ""},
		{"/auth/login", `{"username":"","password":"b"}`, 422, "invalid_field", "username"},
		{"/auth/login", `{"username":"` + strings.Repeat("a", 70_000) + `"}`, 413, "body_too_large", ""},
		{"/auth/register", `{"username":"ab","password":"12345678"}`, 422, "invalid_field", "username"},
		{"/auth/register", `{"username":"9abc","password":"12345678"}`, 422, "invalid_field", "username"},
		{"/auth/register", `{"username":"abc","password":"1234567"}`, 422, "invalid_field", "password"},
		{"/auth/register", `{"username":"abc","password":"12345678","email":"x"}`, 422, "invalid_field", "email"},
		{"/auth/code", `{"email":"a@b\r\nBcc: c@d"}`, 422, "invalid_field", "email"},
		{"/environments", `{"image":""}`, 422, "invalid_field", "image"},
		{"/environments", `{"image":"busybox","name":"No!"}`, 422, "invalid_field", "name"},
		{"/environments", `{"image":"busybox","memoryBytes":1}`, 400, "unknown_field", "memoryBytes"},
		{"/environments", `{"image":"nothing"}`, 404, "no_such_image", "image"},
		{"/environments/e1/extend", `{"seconds":1}`, 404, "not_found", ""},
		{"/environments/E1/retry", ``, 404, "not_found", ""},
		{"/nothing", `{}`, 404, "no_such_route", ""},
		{"/me", `{}`, 405, "method_not_allowed", ""},
	} {
		a := ada.post("/api/v1"+c.path, c.body)
		if a.status != c.status || a.problem("code") != c.code || a.problem("field") != c.field || a.problem("message") == "" || a.problem("hint") == "" {
			t.Errorf("%s %.60s: %d %s, want %d %s %s", c.path, c.body, a.status, a.body, c.status, c.code, c.field)
		}
	}
	ada.get("/api/v1/environments?all=yes").want(422)
	ada.get("/api/v1/events").want(400, "no_websocket")
	closedWorld := newWorld(t, func(c *config.Config) { c.Gateway.OpenRegistration = false })
	closedWorld.client().post("/api/v1/auth/register", obj{"username": "abc", "password": "12345678"}).want(403, "registration_closed")
}
