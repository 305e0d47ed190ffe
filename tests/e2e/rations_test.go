package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/learnos/learnos/tests/platform"
)

// imageRations are what the catalogue says an environment may have.
type imageRations struct {
	ID              int64    `json:"id,omitempty"`
	Name            string   `json:"name"`
	Source          string   `json:"source"`
	MemoryBytes     int64    `json:"memoryBytes"`
	MemoryHighBytes int64    `json:"memoryHighBytes"`
	IOReadBPS       int64    `json:"ioReadBps"`
	IOWriteBPS      int64    `json:"ioWriteBps"`
	IOReadIOPS      int64    `json:"ioReadIops"`
	IOWriteIOPS     int64    `json:"ioWriteIops"`
	CapAdd          []string `json:"capAdd"`
}

// fill puts a value into a field of a form as typing would, in place of what is there.
func fill(id, value string) chromedp.Action[chromedp.Void] {
	return script(fmt.Sprintf(`(() => {
		const input = document.querySelector('[data-testid=%q]');
		input.value = %q;
		return input.dispatchEvent(new Event('input', { bubbles: true }));
	})()`, id, value))
}

// script runs in the page; it must be true in the end.
func script(text string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		ok, err := chromedp.Evaluate[bool](text)(ctx, target)
		if err == nil && !ok {
			err = fmt.Errorf("not true: %s", text)
		}
		return err
	})
}

// An admin types rations into the panel's form; a person sees them on the image's card, on a phone too; and they are in
// the cgroup of the environment that the person starts, or the create fails and says why.
func TestRationsFromTheForm(t *testing.T) {
	p, ctx := start(t, platform.Options{Embedded: true})
	admin := adminOf(t, p)
	password, err := os.ReadFile(filepath.Join(p.Dir, "secrets", "admin-password"))
	if err != nil {
		t.Fatal(err)
	}
	tab := browser(t, ctx)
	run(t, tab, "sign in as the admin",
		chromedp.Navigate(p.WebURL+"/signin"),
		chromedp.WaitVisible(testid("signin-form")),
		chromedp.SendKeys(testid("username"), "admin"),
		chromedp.SendKeys(testid("password"), strings.TrimSpace(string(password))),
		chromedp.Click(testid("submit")),
		chromedp.WaitVisible(testid("image-card-busybox")))
	run(t, tab, "fill in the form",
		chromedp.Navigate(p.WebURL+"/admin/images"),
		chromedp.Click(testid("image-add")),
		chromedp.WaitVisible(testid("image-form")),
		fill("image-name", "slow"), fill("image-title", "Slow"), fill("image-source", "busybox"),
		fill("image-memory", "64"), fill("image-high", "65"),
		fill("image-readRate", "4"), fill("image-writeRate", "0.5"), fill("image-reads", "50"), fill("image-writes", "40"),
		chromedp.Click(testid("image-raw")),
		chromedp.Click(testid("image-save")),
		chromedp.WaitVisible(testid("image-high")+`[aria-invalid="true"]`)) // more than the memory
	keep(t, tab, "form")
	run(t, tab, "put it right and save",
		fill("image-high", "0"),
		chromedp.Click(testid("image-save")),
		chromedp.WaitNotPresent(testid("image-form")))

	var images []imageRations
	if err := admin.Do(ctx, http.MethodGet, "/images", nil, &images); err != nil {
		t.Fatal(err)
	}
	var got imageRations
	for _, i := range images {
		if i.Name == "slow" {
			got = i
		}
	}
	id := got.ID
	got.ID = 0
	want := imageRations{Name: "slow", Source: "busybox", MemoryBytes: 64 << 20, IOReadBPS: 4 << 20, IOWriteBPS: 512 << 10, IOReadIOPS: 50, IOWriteIOPS: 40, CapAdd: []string{"NET_RAW"}}
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("saved %+v\nwant  %+v", got, want)
	}

	// What a person sees, with the width of a phone.
	card := func(lang string) string {
		t.Helper()
		run(t, tab, "open the gallery on a phone in "+lang,
			script(fmt.Sprintf(`localStorage.setItem('learnos.lang', %q), true`, lang)),
			chromedp.EmulateViewport(360, 780),
			chromedp.Navigate(p.WebURL+"/"),
			chromedp.WaitVisible(testid("image-card-slow")),
			script(`document.querySelector('[data-testid="image-card-slow"]').scrollIntoView({ block: 'center' }), true`))
		keep(t, tab, "phone-"+lang)
		text, err := chromedp.Run(tab, chromedp.Evaluate[string](`document.querySelector('[data-testid="image-card-slow"]').innerText`))
		if err != nil {
			t.Fatal(err)
		}
		wide, err := chromedp.Run(tab, chromedp.Evaluate[int](`document.documentElement.scrollWidth`))
		if err != nil || wide > 360 {
			t.Errorf("the gallery is %d wide on a phone of 360, %v", wide, err)
		}
		return text
	}
	for lang, words := range map[string][]string{
		"en": {"64 MiB", "disk ↓ 4 MiB/s ↑ 512 KiB/s", "disk ↓ 50 ↑ 40 per second", "raw packets"},
		"zh": {"64 MiB", "磁盘速率 ↓ 4 MiB/s ↑ 512 KiB/s", "可收发原始数据包"},
	} {
		text := card(lang)
		for _, w := range words {
			if !strings.Contains(text, w) {
				t.Errorf("the card does not say %q:\n%s", w, text)
			}
		}
	}

	if !unified() {
		run(t, tab, "see on the list of nodes what this one can't give",
			script(`localStorage.setItem('learnos.lang', 'zh'), true`),
			chromedp.Navigate(p.WebURL+"/admin/nodes"),
			chromedp.WaitVisible(`[data-testid="node-lacks-memoryHigh"]`))
		keep(t, tab, "nodes")
	}

	// What the environment gets.
	c := admin // who is a person, too, and the one in the browser
	env := running(t, ctx, c, "slow")
	run(t, tab, "see it in the list of environments on a phone",
		script(`localStorage.setItem('learnos.lang', 'en'), true`),
		chromedp.Navigate(p.WebURL+"/environments"),
		chromedp.WaitVisible(testid("env-rations-"+env.ID)),
		script(`document.documentElement.scrollWidth <= 360`),
		script(fmt.Sprintf(`document.querySelector('[data-testid="env-rations-%s"]').innerText.includes('disk ↓ 4 MiB/s ↑ 512 KiB/s')`, env.ID)))
	keep(t, tab, "phone-environments")
	run(t, tab, "open the form on a phone",
		chromedp.Navigate(p.WebURL+"/admin/images"),
		chromedp.Click(testid("image-add")),
		chromedp.WaitVisible(testid("image-form")),
		script(`document.querySelector('[data-testid="image-raw"]').scrollIntoView({ block: 'end' }), document.documentElement.scrollWidth <= 360`))
	keep(t, tab, "phone-form")
	reached(t, p, env.ID, want)
	term, _ := shell(t, ctx, c, env.ID)
	says(t, ctx, term, `echo $((0x$(sed -n 's/^CapEff:.//p' /proc/self/status) >> 13 & 1))raw`, "1raw")
	if err := c.Delete(ctx, env.ID); err != nil {
		t.Fatal(err)
	}
	term.Close()

	usual := running(t, ctx, c, "busybox")
	term, _ = shell(t, ctx, c, usual.ID)
	says(t, ctx, term, `echo $((0x$(sed -n 's/^CapEff:.//p' /proc/self/status) >> 13 & 1))raw`, "0raw")
	term.Close()
	if err := c.Delete(ctx, usual.ID); err != nil {
		t.Fatal(err)
	}

	// A ration that this kernel may not have.
	image := fmt.Sprintf("/images/%d", id)
	if err := admin.Do(ctx, http.MethodPatch, image, map[string]any{"memoryHighBytes": 32 << 20}, nil); err != nil {
		t.Fatal(err)
	}
	env, err = c.Create(ctx, "slow")
	if err != nil {
		t.Fatal(err)
	}
	if unified() {
		want.MemoryHighBytes = 32 << 20
		if env, err = c.WaitState(ctx, env.ID, "running"); err != nil {
			t.Fatal(err)
		}
		reached(t, p, env.ID, want)
	} else {
		if env, err = c.WaitState(ctx, env.ID, "failed"); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(env.Reason, "soft memory limit, which needs cgroup v2") {
			t.Errorf("reason %q", env.Reason)
		}
	}

	// More disk than there is: it waits, and says for what.
	if err := admin.Do(ctx, http.MethodPatch, image, map[string]any{"memoryHighBytes": 0, "diskBytes": int64(16<<40 - 4096)}, nil); err != nil {
		t.Fatal(err)
	}
	if env, err = c.Create(ctx, "slow"); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(env.Reason, "out of disk; needs 16777215 MiB") {
		if env.State != "queued" || ctx.Err() != nil {
			t.Fatalf("%s: %q", env.State, env.Reason)
		}
		time.Sleep(100 * time.Millisecond)
		if env, err = c.Environment(ctx, env.ID); err != nil {
			t.Fatal(err)
		}
	}
	var refused *platform.APIError
	if err := admin.Do(ctx, http.MethodPatch, image, map[string]any{"ioWriteBps": -1}, nil); !errors.As(err, &refused) || refused.Status != http.StatusUnprocessableEntity || !strings.Contains(refused.Message, "4096") {
		t.Errorf("a rate below nothing: %v", err)
	}
}

// reached looks into the environment's cgroup for what was asked.
func reached(t *testing.T, p *platform.Platform, env string, want imageRations) {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(p.Root, "envs", env, "env.json"))
	if err != nil {
		t.Fatal(err)
	}
	var record struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal(body, &record); err != nil {
		t.Fatal(err)
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", record.PID))
	if err != nil {
		t.Fatal(err)
	}
	hierarchy, dir := ":blkio:", "/sys/fs/cgroup/blkio"
	files := map[string]string{ // each begins with the number of the disk
		"blkio.throttle.read_bps_device":   fmt.Sprintf(" %d", want.IOReadBPS),
		"blkio.throttle.write_bps_device":  fmt.Sprintf(" %d", want.IOWriteBPS),
		"blkio.throttle.read_iops_device":  fmt.Sprintf(" %d", want.IOReadIOPS),
		"blkio.throttle.write_iops_device": fmt.Sprintf(" %d", want.IOWriteIOPS),
	}
	if unified() {
		hierarchy, dir = "0::", "/sys/fs/cgroup"
		files = map[string]string{"io.max": fmt.Sprintf(" rbps=%d wbps=%d riops=%d wiops=%d", want.IOReadBPS, want.IOWriteBPS, want.IOReadIOPS, want.IOWriteIOPS)}
		if want.MemoryHighBytes > 0 {
			files["memory.high"] = fmt.Sprint(want.MemoryHighBytes)
		}
	}
	for line := range strings.Lines(string(groups)) {
		if _, path, ok := strings.Cut(line, hierarchy); ok {
			dir += strings.TrimSpace(path)
		}
	}
	for name, want := range files {
		body, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.HasSuffix(strings.TrimSpace(string(body)), want) {
			t.Errorf("%s: %q, %v; want %q", name, body, err, want)
		}
	}
}

// unified tells whether this machine's controllers are on cgroup v2.
func unified() bool {
	body, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	return err == nil && strings.Contains(string(body), "memory")
}
