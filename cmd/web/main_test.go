package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/spf13/pflag"
)

// output tells when it was written to.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Write(b)
	select {
	case o.more <- struct{}{}:
	default:
	}
	return len(b), nil
}

func TestServesUntilItIsToldToStop(t *testing.T) {
	t.Setenv("LEARNOS_COMMON_DATADIR", t.TempDir())
	ctx, cancel := context.WithCancel(context.Background())
	out := &output{more: make(chan struct{}, 1)}
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"--web-addr", "127.0.0.1:0", "--ssh-addr", "127.0.0.1:0"}, out, out)
	}()
	select {
	case <-out.more:
	case err := <-done:
		t.Fatal(err)
	}
	out.mu.Lock()
	m := regexp.MustCompile(`panel=(\S+)`).FindStringSubmatch(out.text.String())
	out.mu.Unlock()
	if m == nil {
		t.Fatalf("%s", out.text.String())
	}
	res, err := http.Get(m[1] + "/healthz")
	if err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("%v %v", res, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestCommandLine(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--help"}, &out, &out); !errors.Is(err, pflag.ErrHelp) || !strings.Contains(out.String(), "Usage: web") {
		t.Errorf("%v %s", err, &out)
	}
	for arg, want := range map[string]string{"extra": `"extra" is not understood`, "--config=/none.toml": "/none.toml", "--web-addr=x": "webAddr"} {
		if err := run(t.Context(), []string{arg}, &out, &out); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", arg, err)
		}
	}
}
