package main

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func testReport() *Report {
	r := &Report{When: time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC), Took: 90 * time.Second, Command: "bench -quick", Quick: true,
		Machine: Machine{Kernel: "Linux 6", System: "Debian", CPU: "a <fast> one", Cores: 2, Memory: 1 << 30, Cgroups: "v1", Load: "0.10"},
		Measures: []*Measure{
			{Name: "cycle", Title: "One cycle of `true`", About: "All of it.", Unit: "ms", Rows: []Row{
				{Who: "lrun", Ours: true, Runs: 3, Min: 5, Median: 6, P99: 9, User: 1, System: 2},
				{Who: "lrun: create", Runs: 3, Min: 1, Median: 2, P99: 3, Detail: true},
				{Who: "crun", Runs: 3, Min: 9, Median: 10, P99: 12},
				{Who: "runc", Missing: "exit status 1: a | b & <c>"},
			}, Targets: []Target{
				{Of: "lrun", Over: "crun", Stat: "median", Bound: 0.6},
				{Of: "crun", Over: "lrun", Stat: "median", Bound: 2, AtLeast: true},
				{Of: "lrun", Over: "runc", Stat: "median", Bound: 0.25},
				{Of: "lrun", Stat: "p99", Bound: 8},
			}},
			{Name: "idle", Title: "Many", Unit: "MiB", Rows: []Row{{Who: "ours", Runs: 1, Min: 1, Median: 1, P99: 1}},
				Curve: &Curve{X: "environments", Y: "MiB", Lines: []Series{{Name: "a & b", Points: [][2]float64{{0, 0}, {50, 40}, {100, 85}}}}}},
		}}
	for _, m := range r.Measures {
		m.judge()
	}
	return r
}

func TestTargetsAreJudgedByWhatWasSeen(t *testing.T) {
	targets := testReport().Measures[0].Targets
	for i, want := range []struct {
		seen float64
		met  bool
	}{{0.6, true}, {10.0 / 6, false}, {0, false}, {9, false}} {
		got := targets[i]
		if math.Abs(got.Seen-want.seen) > 1e-9 || got.Met != want.met {
			t.Errorf("%s: seen %v, met %v; want %v, %v", got.String(), got.Seen, got.Met, want.seen, want.met)
		}
	}
	if targets[2].Missing == "" {
		t.Error("a target over a peer without a figure has one")
	}
}

func TestAReportWithAHoleIsIncomplete(t *testing.T) {
	r := testReport()
	var inc *incomplete
	if err := r.complete(); !errors.As(err, &inc) || !strings.Contains(err.Error(), "cycle: runc") {
		t.Errorf("complete: %v; want it to name runc", err)
	}
	r.Measures[0].Rows = r.Measures[0].Rows[:3]
	if err := r.complete(); err != nil {
		t.Errorf("complete without the hole: %v", err)
	}
}

func TestThePageComesFromTheReport(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "report.json")
	if err := testReport().write(file); err != nil {
		t.Fatal(err)
	}
	r, err := readReport(file)
	if err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(dir, "bench-gone.svg")
	if err := os.WriteFile(stale, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	page := filepath.Join(dir, "bench.md")
	if err := writePage(r, page); err != nil {
		t.Fatal(err)
	}
	body, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"2026-01-02 03:04 UTC", "a &lt;fast> one, 2 cores", "| crun | 9 | 10 | 12 | 1.67 × |", "**not met**",
		`no figure: exit status 1: a \| b & &lt;c>`, "&emsp;lrun: create", "quick look", "![One cycle of true](bench-cycle.svg)",
		"(bench-idle-curve.svg)", "(bench-targets.svg)",
	} {
		if !strings.Contains(string(body), want) {
			t.Errorf("the page lacks %q:\n%s", want, body)
		}
	}
	if _, err := os.Stat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a plot of an older report is still there: %v", err)
	}
	plots, _ := filepath.Glob(filepath.Join(dir, "*.svg"))
	if len(plots) != 3 {
		t.Errorf("plots: %v; want three", plots)
	}
	for _, p := range plots {
		f, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		d := xml.NewDecoder(f)
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Errorf("%s is no XML: %v", filepath.Base(p), err)
				break
			}
		}
	}
}

func TestContendersTakeTurnsAndWhoFailsHasNoFigure(t *testing.T) {
	var order []string
	one := func(who string, fails int) contender {
		return contender{who: who, once: func(_ context.Context, i int) (sample, error) {
			order = append(order, who)
			if i == fails {
				return sample{}, errors.New("broken")
			}
			return sample{wall: time.Duration(i) * time.Millisecond}, nil
		}}
	}
	all := (&bench{}).race(t.Context(), "test", 2, []contender{one("a", -1), one("b", 1), absent("c", errors.New("not installed"))})
	if got, want := strings.Join(order, " "), "a b b a a"; got != want {
		t.Errorf("turns %s; want %s", got, want)
	}
	if a := all[0]; a.Runs != 2 || a.Min != 1 || a.P99 != 2 {
		t.Errorf("a: %+v; want the two rounds after the first", a)
	}
	if all[1].Missing != "run 1: broken" || all[2].Missing != "not installed" {
		t.Errorf("missing: %q, %q", all[1].Missing, all[2].Missing)
	}
}

func TestQuantilesAreNearestRanks(t *testing.T) {
	v := []float64{4, 1, 3, 2}
	for q, want := range map[float64]float64{0: 1, 0.5: 2, 0.75: 3, 0.99: 4, 1: 4} {
		if got := quantile(v, q); got != want {
			t.Errorf("quantile %v: %v; want %v", q, got, want)
		}
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

func TestStraceTablesAreRead(t *testing.T) {
	all, total := parseStrace(`% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 10.00    0.000100          10        12         3 openat
 90.00    0.000900         300         3           mount
------ ----------- ----------- --------- --------- ----------------
100.00    0.001000          66        15         3 total
`)
	if total != 15 || len(all) != 2 || all[0].name != "mount" || all[1].calls != 12 {
		t.Errorf("parsed %+v, %d calls in all", all, total)
	}
}
