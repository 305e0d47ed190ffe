package e2e

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/learnos/learnos/tests/platform"
)

// browser opens a tab of Debian's chromium; when the test fails, what it
// showed is kept as a picture under tests/artifacts.
func browser(t *testing.T, ctx context.Context) context.Context {
	t.Helper()
	path, err := chromium()
	if err != nil {
		t.Fatal(err)
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.WindowSize(1280, 800),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true),
		chromedp.UserDataDir(t.TempDir()))
	alloc, cancelAlloc := chromedp.NewExecAllocator(ctx, opts...)
	tab, cancelTab := chromedp.NewContext(alloc)
	// The first call starts the browser and ties its life to its own context.
	if err := chromedp.Do(tab); err != nil {
		t.Fatalf("start chromium: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			keep(t, tab, "failed")
		}
		cancelTab()
		cancelAlloc()
	})
	return tab
}

func chromium() (string, error) {
	for _, p := range []string{"/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"} {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", errors.New("no chromium here: scripts/setup test installs it")
}

// keep stores a picture of the tab.
func keep(t *testing.T, tab context.Context, what string) {
	ctx, cancel := context.WithTimeout(tab, 10*time.Second)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		t.Logf("screenshot: %v", err)
		return
	}
	dir := filepath.Join("..", "artifacts")
	_ = os.MkdirAll(dir, 0o755)
	file := filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "-")+"-"+what+".png")
	if err := os.WriteFile(file, png, 0o644); err == nil {
		t.Logf("screenshot: %s", file)
	}
}

func testid(id string) string { return fmt.Sprintf(`[data-testid=%q]`, id) }

// see waits until the terminal on the screen shows want.
func see(want string) chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, t *chromedp.Target) (none chromedp.Void, err error) {
		for {
			got, err := onScreen(ctx, t)
			if err == nil && strings.Contains(got, want) {
				return none, nil
			}
			select {
			case <-ctx.Done():
				return none, fmt.Errorf("%q never came on the screen: %w; it shows %.2000q", want, ctx.Err(), got)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}

// onScreen is the text of the terminal that is shown, with its scrollback.
var onScreen = chromedp.Evaluate[string](`window.__learnosTerm ? window.__learnosTerm.text() : ""`)

// typing presses keys as a keyboard does: a key that the page takes at its
// keydown makes no character any more, so the character must come with the
// keydown and not as an event of its own.
func typing(text string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		for _, r := range text {
			var down, up *input.DispatchKeyEventParams
			for _, e := range kb.Encode(r) {
				switch e.Type {
				case kb.KeyDown:
					down = e
				case kb.KeyChar:
					down.Text, down.UnmodifiedText = e.Text, e.UnmodifiedText
				case kb.KeyUp:
					up = e
				}
			}
			for _, e := range []*input.DispatchKeyEventParams{down, up} {
				if _, err := cdp.Call(ctx, t, input.DispatchKeyEvent, *e); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// run performs the actions in the tab, within a minute.
func run(t *testing.T, tab context.Context, what string, actions ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	ctx, cancel := context.WithTimeout(tab, time.Minute)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// signUp registers somebody through the panel's form.
func signUp(t *testing.T, tab context.Context, p *platform.Platform) (name, password string) {
	t.Helper()
	name, password = "p"+strings.ToLower(rand.Text()[:8]), rand.Text()
	run(t, tab, "sign up",
		chromedp.Navigate(p.WebURL+"/signup"),
		chromedp.WaitVisible(testid("signup-form")),
		chromedp.SendKeys(testid("signup-form")+" "+testid("username"), name),
		chromedp.SendKeys(testid("signup-form")+" "+testid("password"), password),
		chromedp.Click(testid("signup-form")+" "+testid("submit")),
		chromedp.WaitVisible(testid("image-card-busybox")))
	return name, password
}

// A person signs up, clicks an image, types `id`, reads the answer, reloads
// the tab, reads it again, and deletes the environment.
func TestPanel(t *testing.T) {
	p, ctx := start(t, platform.Options{Embedded: true})
	tab := browser(t, ctx)
	name, password := signUp(t, tab, p)
	run(t, tab, "click an image and type", // with no click in between: the prompt has the focus
		chromedp.Click(testid("image-card-busybox")),
		chromedp.WaitVisible(testid("terminal")),
		see("#"),
		typing("id\r"),
		see("uid=0(root) gid=0(root)"))
	keep(t, tab, "terminal")
	run(t, tab, "reload and find the same shell with its scrollback",
		chromedp.Reload(),
		chromedp.WaitVisible(testid("terminal")),
		see("uid=0(root) gid=0(root)"))

	c, err := p.Login(ctx, name, password)
	if err != nil {
		t.Fatal(err)
	}
	var envs []platform.Environment
	if err := c.Do(ctx, "GET", "/environments", nil, &envs); err != nil {
		t.Fatal(err)
	}
	if len(envs) != 1 {
		t.Fatalf("the person has %d environments, want 1", len(envs))
	}
	run(t, tab, "delete it",
		chromedp.Navigate(p.WebURL+"/environments"),
		chromedp.WaitVisible(testid("env-row-"+envs[0].ID)),
		chromedp.Click(testid("env-delete-"+envs[0].ID)),
		chromedp.WaitVisible(testid("confirm-delete")),
		chromedp.Click(testid("confirm-delete")))
	if env, err := c.WaitState(ctx, envs[0].ID, "deleted"); err != nil {
		t.Fatalf("%v %v", env, err)
	}
	keep(t, tab, "environments")

	run(t, tab, "delete another one from its terminal",
		chromedp.Navigate(p.WebURL+"/"),
		chromedp.Click(testid("image-card-busybox")),
		chromedp.WaitVisible(testid("terminal")),
		chromedp.Click(testid("workspace-delete")),
		chromedp.WaitVisible(testid("confirm-delete")),
		chromedp.Click(testid("confirm-delete")))
	if err := c.Do(ctx, "GET", "/environments?all=history", nil, &envs); err != nil {
		t.Fatal(err)
	}
	for _, e := range envs {
		if env, err := c.WaitState(ctx, e.ID, "deleted"); err != nil {
			t.Fatalf("%v %v", env, err)
		}
	}
	run(t, tab, "see that it is gone", chromedp.WaitVisible(testid("stage")+`[data-state="deleted"]`))
}

// A `top` in a browser tab goes on after kill -9 of each process: the tab
// reconnects by itself and the same program is still drawing.
func TestTopSurvivesKills(t *testing.T) {
	p, ctx := start(t, platform.Options{})
	tab := browser(t, ctx)
	signUp(t, tab, p)
	run(t, tab, "start top",
		chromedp.Click(testid("image-card-busybox")),
		chromedp.WaitVisible(testid("terminal")),
		see("#"),
		// A program that draws a changing screen and cannot be mistaken for a new one.
		typing("echo born $$ ; exec top -d 1\r"),
		see("Load average"))
	for _, name := range p.Processes() {
		if err := p.Kill(name); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond) // long enough for the tab to notice
		if err := p.Restart(name); err != nil {
			t.Fatal(err)
		}
		if err := p.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		run(t, tab, "top after kill -9 of "+name, changes(), changes())
	}
	run(t, tab, "leave top", typing("q"), chromedp.WaitVisible(testid("term-state")+`[data-state="exited"]`))
}

// changes waits until the terminal shows something it did not show before.
func changes() chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, t *chromedp.Target) (none chromedp.Void, err error) {
		before, err := onScreen(ctx, t)
		if err != nil {
			return none, err
		}
		for {
			now, err := onScreen(ctx, t)
			if err == nil && now != before && strings.Contains(now, "Load average") {
				return none, nil
			}
			select {
			case <-ctx.Done():
				return none, fmt.Errorf("the screen stands still: %w; it shows %.1000q", ctx.Err(), now)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}
