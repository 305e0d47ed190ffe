package main

import (
	"fmt"
	"io"
	"slices"
)

// print writes the table, and returns the programs that the first runtime fails and another passes.
func (t table) print(w io.Writer, runtimes []runtime, verbose bool) (behind []string) {
	var programs []string
	for p := range t {
		programs = append(programs, p)
	}
	slices.Sort(programs)
	fmt.Fprintf(w, "%-34s", "program")
	for _, r := range runtimes {
		fmt.Fprintf(w, " %-6s", r.name)
	}
	fmt.Fprintln(w)
	passed := make([]int, len(runtimes))
	for _, p := range programs {
		fmt.Fprintf(w, "%-34s", p)
		first, other := t[p][runtimes[0].name], false
		for i, r := range runtimes {
			word := "FAIL"
			if t[p][r.name].Why == "" {
				word = "pass"
				passed[i]++
				other = other || i > 0
			}
			fmt.Fprintf(w, " %-6s", word)
		}
		if first.Why != "" {
			why := first.Why
			if note := notes[p]; note != "" {
				why = "(" + note + ")"
			}
			fmt.Fprintf(w, " %.150s", why)
			if other {
				behind = append(behind, p)
			}
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "%-34s", fmt.Sprintf("passed, of %d", len(programs)))
	for _, n := range passed {
		fmt.Fprintf(w, " %-6d", n)
	}
	fmt.Fprintln(w)
	for _, p := range programs {
		show := slices.Contains(behind, p)
		for _, r := range runtimes {
			if o := t[p][r.name]; show && o.Why != "" || verbose && r == runtimes[0] && o.Why != "" {
				fmt.Fprintf(w, "--- %s with %s: %s\n%s\n", p, r.name, o.Why, o.Output)
			}
		}
	}
	return behind
}
