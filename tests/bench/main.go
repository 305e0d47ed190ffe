// Command bench measures the way of a create, from the HTTP request to the
// first byte of the shell's prompt on a websocket, through the whole platform
// as it is shipped: `learnos up` with everything inside, or (-daemons) three
// daemons and a real etcd.
//
// It prints medians and 99th percentiles, one create at a time and several at
// once, and the time each stage took on the node. It judges nothing.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/learnos/learnos/tests/platform"
)

func main() {
	n := flag.Int("n", 200, "creates in each series")
	at := flag.Int("at-once", 8, "creates under way at once in the second series")
	daemons := flag.Bool("daemons", false, "three daemons and a real etcd instead of one process")
	bin := flag.String("bin", "bin", "directory of the binaries (make build)")
	asJSON := flag.Bool("json", false, "print JSON instead of tables")
	flag.Parse()
	if err := bench(context.Background(), *n, *at, *daemons, *bin, *asJSON); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// series is what one way of creating was seen to take.
type series struct {
	Name    string                     `json:"name"`
	Creates int                        `json:"creates"`
	Wall    time.Duration              `json:"wallNs"`
	Stages  map[string][]time.Duration `json:"stagesNs"`
}

func bench(ctx context.Context, n, atOnce int, daemons bool, bin string, asJSON bool) (err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	if _, err := exec.LookPath(filepath.Join(bin, "learnos")); err != nil {
		return fmt.Errorf("%w; `make build` makes it", err)
	}
	dir, err := os.MkdirTemp("", "learnos-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, err := platform.Start(ctx, dir, platform.Options{Bin: bin, Embedded: !daemons, Env: map[string]string{
		"LEARNOS_GATEWAY_MAXENVIRONMENTS": fmt.Sprint(10 * atOnce),
		"LEARNOS_COMMON_LOGLEVEL":         "warn",
	}})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := p.Close(); err == nil {
			err = cerr
		}
	}()
	c, err := p.Register(ctx, "bench", rand.Text())
	if err != nil {
		return err
	}
	if err := once(ctx, c, func(string, time.Duration) {}); err != nil { // the image is built here
		return fmt.Errorf("warm up: %w", err)
	}
	var all []series
	for _, workers := range []int{1, atOnce} {
		s, err := measure(ctx, c, n, workers)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, p.Logs())
		}
		all = append(all, s)
	}
	if asJSON {
		return json.NewEncoder(os.Stdout).Encode(all)
	}
	for _, s := range all {
		s.print()
	}
	return nil
}

func measure(ctx context.Context, c *platform.Client, n, workers int) (series, error) {
	s := series{Name: fmt.Sprintf("%d at once", workers), Creates: n, Stages: map[string][]time.Duration{}}
	var (
		mu    sync.Mutex
		wg    sync.WaitGroup
		first error
		todo  = make(chan struct{}, n)
	)
	for range n {
		todo <- struct{}{}
	}
	close(todo)
	start := time.Now()
	for range workers {
		wg.Go(func() {
			for range todo {
				err := once(ctx, c, func(stage string, d time.Duration) {
					mu.Lock()
					s.Stages[stage] = append(s.Stages[stage], d)
					mu.Unlock()
				})
				if err != nil {
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
					return
				}
			}
		})
	}
	wg.Wait()
	s.Wall = time.Since(start)
	return s, first
}

// once creates an environment, waits for its prompt, and deletes it.
func once(ctx context.Context, c *platform.Client, took func(stage string, d time.Duration)) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	start := time.Now()
	env, err := c.Create(ctx, "busybox")
	if err != nil {
		return err
	}
	took("http create", time.Since(start))
	ready, err := c.WaitState(ctx, env.ID, "running")
	if err != nil {
		return err
	}
	took("→ running (seen by the client)", time.Since(start))
	session, err := c.Session(ctx, env.ID, true)
	if err != nil {
		return err
	}
	took("→ session started", time.Since(start))
	term, err := c.Attach(ctx, env.ID, session, -1)
	if err != nil {
		return err
	}
	defer term.Close()
	if _, err := term.Expect(ctx, "#"); err != nil {
		return err
	}
	took("→ first prompt byte", time.Since(start))
	for stage, micros := range ready.Timings {
		took("node: "+stage, time.Duration(micros)*time.Microsecond)
	}
	start = time.Now()
	if err := c.Delete(ctx, env.ID); err != nil {
		return err
	}
	took("delete, until it is gone", time.Since(start))
	return nil
}

func (s series) print() {
	fmt.Printf("%d creates, %s: %.1f a second\n", s.Creates, s.Name, float64(s.Creates)/s.Wall.Seconds())
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "p50 ms\tp99 ms\tmax ms\t  stage")
	names := make([]string, 0, len(s.Stages))
	for name := range s.Stages {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if na, nb := strings.HasPrefix(a, "node:"), strings.HasPrefix(b, "node:"); na != nb {
			if na {
				return 1
			}
			return -1
		}
		return int(quantile(s.Stages[a], 0.5) - quantile(s.Stages[b], 0.5))
	})
	for _, name := range names {
		d := s.Stages[name]
		fmt.Fprintf(w, "%.2f\t%.2f\t%.2f\t  %s\n", ms(quantile(d, 0.5)), ms(quantile(d, 0.99)), ms(quantile(d, 1)), name)
	}
	w.Flush()
	fmt.Println()
}

// quantile is the nearest-rank quantile of d.
func quantile(d []time.Duration, q float64) time.Duration {
	sorted := slices.Clone(d)
	slices.Sort(sorted)
	i := int(q*float64(len(sorted))+0.999999) - 1
	return sorted[max(0, min(i, len(sorted)-1))]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
