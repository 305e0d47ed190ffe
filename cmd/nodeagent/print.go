package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// table is columns of text.
type table struct{ rows [][]string }

func newTable(head ...string) *table { return &table{rows: [][]string{head}} }

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, r := range t.rows {
		for i, cell := range r {
			if cell == "" {
				cell = "-"
			}
			r[i] = plain(cell)
		}
		if _, err := fmt.Fprintln(tw, strings.Join(r, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// plain keeps what a tenant wrote from steering the terminal of whoever lists it.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return '?'
		}
		return r
	}, s)
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// forEach does something to each of args and goes on after failures, which it prints; it fails with code if any did.
func forEach(a *app, args []string, code int, do func(string) error) error {
	failed := false
	for _, arg := range args {
		if err := do(arg); err != nil {
			fmt.Fprintln(a.stderr, "nodeagent:", err)
			failed = true
		}
	}
	if failed {
		return &exitCode{code: code}
	}
	return nil
}

// sizeText writes bytes for people.
func sizeText(n int64) string {
	f, units := float64(n), "BKMGT"
	i := 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}
