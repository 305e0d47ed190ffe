package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

// load reads a file with this text, without the machine's own LEARNOS_ variables.
func load(t *testing.T, text string, overrides ...func(*Config)) (*Config, error) {
	t.Helper()
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "LEARNOS_") && !strings.HasPrefix(name, "LEARNOS_WEB_") {
			t.Setenv(name, "") // so that it is restored
			os.Unsetenv(name)
		}
	}
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path, overrides...)
}

func TestExampleIsTheDefault(t *testing.T) {
	a, err := load(t, Example())
	if err != nil {
		t.Fatal(err)
	}
	b, err := load(t, "")
	if err != nil {
		t.Fatal(err)
	}
	a.Web.Origins = nil // [] in the file
	if !reflect.DeepEqual(a, b) {
		t.Fatalf("\n%+v\n%+v", a, b)
	}
	_, sections := keys(reflect.ValueOf(b).Elem())
	for section, v := range sections {
		names, _ := keys(v)
		_, rest, ok := strings.Cut(Example(), "["+section+"]\n")
		if !ok {
			t.Errorf("section %s is not shown", section)
		}
		rest, _, _ = strings.Cut(rest, "\n[")
		for _, name := range names {
			if !strings.Contains(rest, "\n"+name+" = ") {
				t.Errorf("%s.%s is not shown", section, name)
			}
		}
	}
}

func TestValuesAndTheirOrder(t *testing.T) {
	t.Setenv("LEARNOS_WEB_ORIGINS", "https://a.example, https://b.example")
	t.Setenv("LEARNOS_WEB_WEBADDR", "127.0.0.1:9999")
	t.Setenv("LEARNOS_WEB_SERVICE_HOST", "10.0.0.1") // Kubernetes' own
	c, err := load(t, `
		[common]
		dataDir = "/srv/learnos"
		[web]
		webAddr = "127.0.0.1:1"
		sshAddr = ""
		[gateway]
		idleTimeout = "90s"
		openRegistration = false
		maxEnvironments = 7
		[node]
		reserve = "2GiB"
		name = "n1"
	`, func(c *Config) { c.Gateway.MaxEnvironments = 9 })
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Common.DataDir = "/srv/learnos"
	want.Web.WebAddr, want.Web.SSHAddr, want.Web.Origins = "127.0.0.1:9999", "", []string{"https://a.example", "https://b.example"}
	want.Gateway.IdleTimeout, want.Gateway.OpenRegistration, want.Gateway.MaxEnvironments = 90*time.Second, false, 9
	want.Gateway.DSN = "/srv/learnos/learnos.db"
	want.Node.Reserve, want.Node.Name, want.Node.Root = 2<<30, "n1", "/srv/learnos"
	if !reflect.DeepEqual(c, want) {
		t.Fatalf("\n%+v\n%+v", c, want)
	}

	t.Setenv("LEARNOS_ROOT", "/elsewhere")
	if c, err := Load(""); err != nil || c.Common.DataDir != "/elsewhere" || c.Gateway.DSN != "/elsewhere/learnos.db" {
		t.Fatal(c, err)
	}
	t.Setenv("LEARNOS_GATEWAY_ACCESSTTL", "soon")
	if _, err := Load(""); err == nil || !strings.Contains(err.Error(), `LEARNOS_GATEWAY_ACCESSTTL: "soon" is no duration`) {
		t.Fatal(err)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"[web]\nwebAdr = \"x\"":                                            "unknown key web.webAdr; did you mean web.webAddr?",
		"[web]\nwebaddr = \"x\"":                                           "did you mean web.webAddr?",
		"[gatway]\naddr = \"x\"":                                           "unknown section [gatway]; did you mean [gateway]?",
		"addr = \"x\"":                                                     `unknown key "addr" outside of any section`,
		"[gateway]\nmaxEnvironments = \"3\"":                               "gateway.maxEnvironments: 3 is not a whole number",
		"[gateway]\nidleTimeout = 30":                                      `gateway.idleTimeout: 30 is not a duration in quotes`,
		"[gateway]\nidleTimeout = \"30 minutes\"":                          `gateway.idleTimeout: "30 minutes" is no duration`,
		"[gateway]\nidleTimeout = \"-1s\"":                                 "gateway.idleTimeout: -1s is negative",
		"[gateway]\naccessTTL = \"1h\"\nrefreshTTL = \"1m\"":               "gateway.refreshTTL: 1m0s is shorter than accessTTL 1h0m0s",
		"[gateway]\naddr = \"8010\"":                                       `gateway.addr: "8010" is no address; write host:port`,
		"[gateway]\naddr = \"127.0.0.1:80100\"":                            `port "80100" is not a number from 0 to 65535`,
		"[gateway]\ndriver = \"postgres\"":                                 `"postgres" is neither sqlite nor mysql`,
		"[gateway]\ndriver = \"mysql\"":                                    "gateway.dsn: is empty",
		"[gateway]\nrequireCode = true":                                    "codes go by mail",
		"[gateway]\nsmtpAddr = \"a:25\"":                                   "gateway.smtpFrom",
		"[gateway]\nopenRegistration = \"yes\"":                            "gateway.openRegistration: yes is not true or false",
		"[node]\nreserve = \"100MB\"":                                      `node.reserve: "100MB" is no size: the unit must be`,
		"[node]\nreserve = \"1.5GiB\"":                                     "before the unit there must be a whole number",
		"[node]\nreserve = \"99999999999TiB\"":                             "it is too large",
		"[node]\nreserve = 100":                                            "node.reserve: 100 is not a size in quotes",
		"[node]\ndiskReserve = \"1G\"":                                     `node.diskReserve: "1G" is no size`,
		"[node]\ndiskOvercommit = 0":                                       "node.diskOvercommit: 0 is not between 1",
		"[node]\ndiskOvercommit = 1.5":                                     "node.diskOvercommit: 1.5 is not a whole number",
		"[node]\nsubnet = \"10.1.2.3/16\"":                                 "node.subnet",
		"[node]\nbridge = \"a-name-that-is-too-long\"":                     "node.bridge",
		"[node]\nname = \"Ümlaut\"":                                        "node.name",
		"[node]\nroot = \"here\"":                                          `node.root: "here" is not an absolute path`,
		"[common]\nlogLevel = \"loud\"":                                    `common.logLevel: "loud" is none of debug, info, warn, error`,
		"[common]\ndataDir = \"\"":                                         "common.dataDir",
		"[etcd]\naddresses = []":                                           "etcd.addresses: is empty",
		"[etcd]\naddresses = [\"ftp://a:1\"]":                              "the scheme must be http, https or unix",
		"[etcd]\naddresses = \"127.0.0.1:2379\"":                           "etcd.addresses: 127.0.0.1:2379 is not a list of texts",
		"[etcd]\naddresses = [1]":                                          "1 is not a text in quotes",
		"[etcd]\nprefix = \"learnos\"":                                     "etcd.prefix",
		"[etcd]\npassword = \"x\"":                                         "etcd.user",
		"[etcd]\ncertFile = \"x\"":                                         "certFile and keyFile belong together",
		"[web]\ntlsKey = \"x\"":                                            "tlsCert and tlsKey belong together",
		"[web]\norigins = [\"https://a.example/path\"]":                    "web.origins",
		"[web]\ngatewayURL = \"127.0.0.1:8010\"":                           "web.gatewayURL",
		"[web\n":                                                           "expected '.' or ']' to end table name",
		"[common]\nlogLevel = \"loud\"\n[node]\nname = \"n\"\nmaxx = 1":    "unknown key node.maxx",
		"[gateway]\nloginPerMinute = 0\nregisterPerHour = -1\naddr = \"\"": "gateway.registerPerHour",
	} {
		if _, err := load(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q:\n got %v\nwant %s", text, err, want)
		}
	}
	if _, err := Load("/nonexistent/config.toml"); err == nil {
		t.Error("a missing file was taken")
	}
	// All mistakes at once.
	_, err := load(t, "[gateway]\naddr = \"x\"\nmaxEnvironments = 0\n[node]\nsubnet = \"y\"")
	for _, want := range []string{"gateway.addr", "gateway.maxEnvironments", "node.subnet"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not named in %v", want, err)
		}
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "1B": 1, "100MiB": 100 << 20, "3 GiB": 3 << 30, "1024KiB": 1 << 20, "7TiB": 7 << 40} {
		if s, err := ParseSize(text); err != nil || s != want {
			t.Errorf("%s: %d, %v", text, s, err)
		}
	}
	for s, want := range map[Size]string{0: "0", 1: "1B", 1025: "1025B", 1 << 20: "1MiB", 1536 << 20: "1536MiB", 5 << 30: "5GiB", -1 << 10: "-1KiB"} {
		if s.String() != want {
			t.Errorf("%d: %s, want %s", int64(s), s, want)
		}
	}
	for _, text := range []string{"", "MiB", "-1MiB", "+1MiB", "1", "1M", "1mib", "0x10B", "9223372036854775808B", "8388608TiB"} {
		if s, err := ParseSize(text); err == nil {
			t.Errorf("%q became %d", text, s)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	f.Add("512MiB")
	f.Add("0")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSize(text)
		if err != nil {
			return
		}
		if again, err := ParseSize(s.String()); s < 0 || err != nil || again != s {
			t.Fatalf("%q → %d → %s → %d, %v", text, int64(s), s, int64(again), err)
		}
	})
}

func TestSecret(t *testing.T) {
	dir := t.TempDir()
	const n = 32
	got := make([]string, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s, err := Secret(dir, "door", 32)
			if err != nil || len(s) != 32 {
				t.Error(s, err)
			}
			got[i] = fmt.Sprintf("%x", s)
		}()
	}
	wg.Wait()
	for _, g := range got {
		if g != got[0] {
			t.Fatal("two secrets of one name")
		}
	}
	path := filepath.Join(dir, "secrets", "door")
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatal(st.Mode(), err)
	}
	if text, _ := os.ReadFile(path); strings.TrimSpace(string(text)) != got[0] {
		t.Fatal("not in hex")
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Fatal("something is left behind", entries)
	}
	if other, err := Secret(dir, "jwt", 32); err != nil || fmt.Sprintf("%x", other) == got[0] {
		t.Fatal(err)
	}
	for what, f := range map[string]func() error{
		"another length":      func() error { _, err := Secret(dir, "door", 64); return err },
		"readable by others":  func() error { os.Chmod(path, 0o640); _, err := Secret(dir, "door", 32); return err },
		"a path for a name":   func() error { _, err := Secret(dir, "../door", 32); return err },
		"too short to be one": func() error { _, err := Secret(dir, "pin", 4); return err },
	} {
		if f() == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func TestUnknownVariablesAreToldOf(t *testing.T) {
	got := warning([]string{"PATH=/bin", "LEARNOS_ROOT=/x", "LEARNOS_WEB_WEBADDR=x", "LEARNOS_WEB_WEBADR=127.0.0.1:1", "LEARNOS_GATEWAY_IDLE_TIMEOUT=1m"})
	want := `learnos: environment variables without a meaning are ignored: "LEARNOS_GATEWAY_IDLE_TIMEOUT" (did you mean LEARNOS_GATEWAY_IDLETIMEOUT?), "LEARNOS_WEB_WEBADR" (did you mean LEARNOS_WEB_WEBADDR?)`
	if got != want {
		t.Errorf("\n%s\n%s", got, want)
	}
	// What Kubernetes sets beside a service "learnos" or "learnos-web" is nobody's mistake.
	for _, name := range []string{"LEARNOS_SERVICE_HOST", "LEARNOS_SERVICE_PORT", "LEARNOS_SERVICE_PORT_HTTP", "LEARNOS_PORT", "LEARNOS_PORT_8011_TCP",
		"LEARNOS_PORT_8011_TCP_ADDR", "LEARNOS_WEB_SERVICE_HOST", "LEARNOS_WEB_PORT_80_TCP_PROTO"} {
		if got := warning([]string{name + "=x"}); got != "" {
			t.Errorf("%s: %s", name, got)
		}
	}
}
