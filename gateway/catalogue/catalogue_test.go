package catalogue

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/learnos/learnos/gateway/problem"
	"github.com/learnos/learnos/gateway/store"
)

func TestSeedIsValid(t *testing.T) {
	seen := map[string]bool{}
	for _, i := range Seed(time.Hour) {
		if err := Check(&i); err != nil {
			t.Errorf("%s: %v", i.Name, err)
		}
		if seen[i.Name] || i.Title == "" || i.TitleZh == "" || i.Description == "" || i.DescriptionZh == "" || i.LifetimeSeconds != 3600 {
			t.Errorf("%+v", i)
		}
		seen[i.Name] = true
	}
	if len(seen) != 24 || !seen["busybox"] || !seen["debian"] {
		t.Errorf("%d images", len(seen))
	}
}

func TestCheckNamesTheField(t *testing.T) {
	for field, spoil := range map[string]func(*store.Image){
		"name":            func(i *store.Image) { i.Name = "Redis!" },
		"title":           func(i *store.Image) { i.Title = "a\nb" },
		"descriptionZh":   func(i *store.Image) { i.DescriptionZh = strings.Repeat("好", 513) },
		"logo":            func(i *store.Image) { i.Logo = "../x" },
		"memoryBytes":     func(i *store.Image) { i.MemoryBytes = 1 },
		"cpus":            func(i *store.Image) { i.CPUs = 0 },
		"pids":            func(i *store.Image) { i.PIDs = 0 },
		"diskBytes":       func(i *store.Image) { i.DiskBytes = 1 << 20 },
		"netUpBits":       func(i *store.Image) { i.NetUpBits = 100 },
		"netDownBits":     func(i *store.Image) { i.NetDownBits = -1 },
		"memoryHighBytes": func(i *store.Image) { i.MemoryHighBytes = i.MemoryBytes + 1 },
		"ioReadBps":       func(i *store.Image) { i.IOReadBPS = 4095 },
		"ioWriteBps":      func(i *store.Image) { i.IOWriteBPS = -1 },
		"ioReadIops":      func(i *store.Image) { i.IOReadIOPS = -1 },
		"ioWriteIops":     func(i *store.Image) { i.IOWriteIOPS = 1<<50 + 1 },
		"capAdd":          func(i *store.Image) { i.CapAdd = []string{"NET_RAW", "SYS_ADMIN"} },
		"netQuotaBytes":   func(i *store.Image) { i.NetQuotaBytes = -1 },
		"blkQuotaBytes":   func(i *store.Image) { i.BlkQuotaBytes = -1 },
		"lifetimeSeconds": func(i *store.Image) { i.LifetimeSeconds = -1 },
		"command":         func(i *store.Image) { i.Command = []string{"a\x00b"} },
		"position":        func(i *store.Image) { i.Position = -1 },
		"source":          func(i *store.Image) { i.Source = "" },
	} {
		i := Defaults()
		i.Name, i.Source = "x", "busybox"
		if err := Check(&i); err != nil {
			t.Fatal(err)
		}
		spoil(&i)
		var p *problem.Problem
		if err := Check(&i); !errors.As(err, &p) || p.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestRationsThatMakeSense(t *testing.T) {
	i := Defaults()
	i.Name, i.Source = "x", "busybox"
	i.Rations = store.Rations{MemoryBytes: 64 << 20, MemoryHighBytes: 64 << 20, CPUs: 0.01, PIDs: 16, DiskBytes: 16 << 20,
		NetUpBits: 8000, NetDownBits: 8000, IOReadBPS: 4096, IOWriteBPS: 1 << 50, IOReadIOPS: 1, IOWriteIOPS: 1}
	if err := Check(&i); err != nil {
		t.Error(err)
	}
}

func TestSources(t *testing.T) {
	for s, ok := range map[string]bool{
		"busybox": true, "debootstrap": true, "debootstrap:trixie": true, "redis": true, "docker.io/library/redis:7": true, "localhost:5000/a/b:c": true,
		"ghcr.io/a/b@sha256:" + strings.Repeat("0", 64): true, "oci:/srv/x:tag": true, "docker-archive:/x.tar": true, "dir:/srv/root": true,
		"debootstrap:../x": false, "dir:relative": false, "dir:/a/../b": false, "dir:/..": false, "a b": false, "-x": false, "a//b": false,
		"a@sha256:12": false, "http://x/y": false, "a\n": false, "": false, strings.Repeat("a", 513): false,
	} {
		if err := Source(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}
