package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
)

// printMeasure prints one table.
func printMeasure(w io.Writer, m *Measure) {
	fmt.Fprintf(w, "\n%s (%s)\n", strings.ReplaceAll(m.Title, "`", ""), m.Unit)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "min\tmedian\tp99\tuser\tsys\truns\t  ")
	for _, r := range m.Rows {
		if r.Missing != "" {
			fmt.Fprintf(t, "–\t–\t–\t\t\t\t  %s: no figure: %s\n", r.Who, r.Missing)
			continue
		}
		who := r.Who
		if r.Detail {
			who = "  " + who
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t  %s\n", fixed(r.Min), fixed(r.Median), fixed(r.P99), processor(r.User), processor(r.System), r.Runs, who)
	}
	t.Flush()
	for _, target := range m.Targets {
		fmt.Fprintf(w, "  %s: %s\n", target.String(), target.verdict())
	}
}

// printTargets prints what was promised and what was seen, all in one place.
func printTargets(w io.Writer, r *Report) {
	fmt.Fprintln(w, "\nTargets")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, m := range r.Measures {
		for _, target := range m.Targets {
			fmt.Fprintf(t, "%s\t%s\t%s\n", m.Name, target.String(), target.verdict())
		}
	}
	t.Flush()
}

func (t *Target) verdict() string {
	if t.Missing != "" {
		return "no figure: " + t.Missing
	}
	word := "met"
	if !t.Met {
		word = "NOT met"
	}
	return fmt.Sprintf("%s: %s%s", word, number(t.Seen), t.ofMinima(" (of the minima %s)", ""))
}

// ofMinima formats SeenMin, if there is one.
func (t *Target) ofMinima(format, none string) string {
	if t.SeenMin == 0 {
		return none
	}
	return fmt.Sprintf(format, number(t.SeenMin))
}

func fixed(f float64) string {
	if f == math.Trunc(f) {
		return fmt.Sprintf("%.0f", f) // a count
	}
	return fmt.Sprintf("%.2f", f)
}

// processor is a processor time, or nothing where nobody knows it.
func processor(f float64) string {
	if f == 0 {
		return ""
	}
	return fixed(f)
}
