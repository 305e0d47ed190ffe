package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"time"
)

// Report is one run: what -json writes and the page is made of.
type Report struct {
	When     time.Time     `json:"when"`
	Took     time.Duration `json:"tookNs"`
	Command  string        `json:"command"`
	Quick    bool          `json:"quick,omitempty"`
	Machine  Machine       `json:"machine"`
	Versions []Version     `json:"versions"`
	Measures []*Measure    `json:"measures"`
	// Failed parts, by what was wrong with them as a whole.
	Failed []string `json:"failed,omitempty"`
}

// Version is what a program says of itself, or why it can't.
type Version struct {
	Program string `json:"program"`
	Says    string `json:"says"`
}

// Measure is one question, asked of several contenders on the same machine in the same minutes.
type Measure struct {
	Name    string   `json:"name"`
	Title   string   `json:"title"`
	About   string   `json:"about"` // for people: what exactly is timed
	Unit    string   `json:"unit"`
	Rows    []Row    `json:"rows"`
	Targets []Target `json:"targets,omitempty"`
	Curve   *Curve   `json:"curve,omitempty"`
}

// Row is what one contender was seen to do.
type Row struct {
	Who  string `json:"who"`
	Ours bool   `json:"ours,omitempty"`
	Runs int    `json:"runs,omitempty"`
	// In the measure's unit. P99 is the nearest rank, so with few runs it is the maximum.
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	P99    float64 `json:"p99"`
	// User and System are medians of the processor time in ms of the processes started for one run, as far as they are
	// waited for by it; 0 where nobody can say.
	User   float64 `json:"userMs,omitempty"`
	System float64 `json:"systemMs,omitempty"`
	// Missing says why there is no figure.
	Missing string `json:"missing,omitempty"`
	// Detail rows explain another one; they are no contender and are not drawn.
	Detail bool `json:"detail,omitempty"`
}

// Target is a promise: Stat of one row, alone or over another row's, is at most (or at least) Bound.
type Target struct {
	Of      string  `json:"of"`
	Over    string  `json:"over,omitempty"`
	Stat    string  `json:"stat"` // "min", "median" or "p99"
	Unit    string  `json:"unit,omitempty"`
	Bound   float64 `json:"bound"`
	AtLeast bool    `json:"atLeast,omitempty"`
	// Seen is the value; SeenMin, for a median, the same of the minima, which is what a quiet machine would say.
	Seen    float64 `json:"seen"`
	SeenMin float64 `json:"seenMin,omitempty"`
	Met     bool    `json:"met"`
	Missing string  `json:"missing,omitempty"` // why it can't be said
}

// Curve is one value at growing n.
type Curve struct {
	X     string   `json:"x"`
	Y     string   `json:"y"`
	Lines []Series `json:"lines"`
}

// Series is a line of a Curve.
type Series struct {
	Name   string       `json:"name"`
	Points [][2]float64 `json:"points"`
}

func (m *Measure) row(who string) *Row {
	for i := range m.Rows {
		if m.Rows[i].Who == who {
			return &m.Rows[i]
		}
	}
	return nil
}

func (r *Row) stat(name string) float64 {
	switch name {
	case "min":
		return r.Min
	case "p99":
		return r.P99
	}
	return r.Median
}

// judge fills in what was seen of each target.
func (m *Measure) judge() {
	for i := range m.Targets {
		t := &m.Targets[i]
		value := func(stat string) (float64, string) {
			of := m.row(t.Of)
			if of == nil || of.Missing != "" {
				return 0, t.Of + " has no figure"
			}
			if t.Over == "" {
				return of.stat(stat), ""
			}
			over := m.row(t.Over)
			if over == nil || over.Missing != "" || over.stat(stat) == 0 {
				return 0, t.Over + " has no figure"
			}
			return of.stat(stat) / over.stat(stat), ""
		}
		if t.Over == "" {
			t.Unit = m.Unit
		}
		t.Seen, t.Missing = value(t.Stat)
		if t.Stat == "median" {
			t.SeenMin, _ = value("min")
		}
		t.Met = t.Missing == "" && (t.AtLeast && t.Seen >= t.Bound || !t.AtLeast && t.Seen <= t.Bound)
	}
}

func (t *Target) String() string {
	sign, what := "≤", t.Of
	if t.AtLeast {
		sign = "≥"
	}
	if t.Stat != "median" {
		what += " " + t.Stat
	}
	if t.Over != "" {
		return fmt.Sprintf("%s %s %s × %s", what, sign, number(t.Bound), t.Over)
	}
	return fmt.Sprintf("%s %s %s %s", what, sign, number(t.Bound), t.Unit)
}

// sample is one run of one contender.
type sample struct {
	wall, user, system time.Duration
	details            []namedSample
}

type namedSample struct {
	name string
	sample
}

// detail adds a part of the sample, for a row below it.
func (s *sample) detail(name string, part sample) {
	s.details = append(s.details, namedSample{name, part})
}

// rows makes a contender's row of its samples, and one for each of their details.
func rows(who string, samples []sample) []Row {
	all := []Row{row(who, samples)}
	var names []string
	parts := map[string][]sample{}
	for _, s := range samples {
		for _, d := range s.details {
			if parts[d.name] == nil {
				names = append(names, d.name)
			}
			parts[d.name] = append(parts[d.name], d.sample)
		}
	}
	for _, name := range names {
		r := row(who+": "+name, parts[name])
		r.Detail = true
		all = append(all, r)
	}
	return all
}

// row sums samples up, in ms.
func row(who string, samples []sample) Row {
	take := func(f func(s sample) time.Duration) []float64 {
		all := make([]float64, len(samples))
		for i, s := range samples {
			all[i] = ms(f(s))
		}
		return all
	}
	r := rowOf(who, take(func(s sample) time.Duration { return s.wall }))
	r.User = quantile(take(func(s sample) time.Duration { return s.user }), 0.5)
	r.System = quantile(take(func(s sample) time.Duration { return s.system }), 0.5)
	return r
}

func rowOf(who string, values []float64) Row {
	return Row{Who: who, Runs: len(values), Min: quantile(values, 0), Median: quantile(values, 0.5), P99: quantile(values, 0.99)}
}

// quantile is the nearest-rank quantile of v.
func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	sorted := slices.Clone(v)
	slices.Sort(sorted)
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[max(0, min(i, len(sorted)-1))]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// number writes f with as many digits as mean something.
func number(f float64) string {
	switch a := math.Abs(f); {
	case f == math.Trunc(f) && a < 1e6:
		return fmt.Sprintf("%.0f", f)
	case a >= 100:
		return fmt.Sprintf("%.0f", f)
	case a >= 10:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.2f", f)
}

func readReport(path string) (*Report, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &r, nil
}

func (r *Report) write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// complete says what keeps the report from being whole: a part that failed, a row or target without a figure.
func (r *Report) complete() error {
	missing := slices.Clone(r.Failed)
	for _, m := range r.Measures {
		for _, row := range m.Rows {
			if row.Missing != "" {
				missing = append(missing, m.Name+": "+row.Who+" has no figure")
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return &incomplete{missing}
}

type incomplete struct{ missing []string }

func (e *incomplete) Error() string {
	text := "the report is incomplete:"
	for _, m := range e.missing {
		text += "\n  " + m
	}
	return text
}
