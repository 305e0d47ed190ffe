package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// writePage writes a report as a page of Markdown, and its plots beside it. All of it comes from the report.
func writePage(r *Report, path string) error {
	base := strings.TrimSuffix(path, filepath.Ext(path))
	old, err := filepath.Glob(base + "-*.svg")
	if err != nil {
		return err
	}
	for _, f := range old { // of a report that had other measures
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	var b strings.Builder
	var failure error
	plot := func(name, alt, body string) {
		if body == "" || failure != nil {
			return
		}
		file := base + "-" + name + ".svg"
		failure = os.WriteFile(file, []byte(body), 0o644)
		fmt.Fprintf(&b, "![%s](%s)\n\n", alt, filepath.Base(file))
	}
	head(&b, r)
	b.WriteString("## What was promised\n\n")
	plot("targets", "What was promised, and what was seen", targetPlot(r))
	targetTable(&b, r)
	if err := r.complete(); err != nil {
		b.WriteString("Incomplete: " + cell(strings.Join(err.(*incomplete).missing, "; ")) + ".\n\n")
	}
	for _, m := range r.Measures {
		fmt.Fprintf(&b, "<a id=\"%s\"></a>\n\n## %s\n\n%s\n\n", m.Name, m.Title, m.About)
		plot(m.Name, strings.ReplaceAll(m.Title, "`", ""), barPlot(m))
		if m.Curve != nil {
			plot(m.Name+"-curve", "How it grows", curvePlot(m))
		}
		measureTable(&b, m)
	}
	if failure != nil {
		return failure
	}
	return os.WriteFile(path, []byte(strings.TrimRight(b.String(), "\n")+"\n"), 0o644)
}

func head(b *strings.Builder, r *Report) {
	fmt.Fprintf(b, "# Speed, beside the peers\n\nWritten by `%s` on %s, in %s.", r.Command, r.When.Format("2006-01-02 15:04 MST"), r.Took.Round(time.Second))
	b.WriteString("\n\nContenders took turns, run by run, in namespaces of their own on one machine: with the same root " +
		"file system, the same configuration and the same registry. Targets are judged by medians; the same of the minima " +
		"is what a machine with nothing else to do would say. Processor times are medians of what one run's processes took, as " +
		"far as the command waits for them: \"system\" is what is left to the kernel. Where the time goes, and why, is in " +
		"[performance.md](performance.md).")
	if r.Quick {
		b.WriteString(" **This was a quick look (`-quick`), with few runs.**")
	}
	m := r.Machine
	fmt.Fprintf(b, "\n\n| | |\n| --- | --- |\n| kernel | %s, cgroup %s |\n| system | %s |\n| processor | %s, %d cores |\n| memory | %.1f GiB |\n| load average when it began | %s |\n",
		cell(m.Kernel), m.Cgroups, cell(m.System), cell(m.CPU), m.Cores, float64(m.Memory)/(1<<30), m.Load)
	for _, v := range r.Versions {
		fmt.Fprintf(b, "| %s | %s |\n", cell(v.Program), cell(v.Says))
	}
	b.WriteString("\n")
}

func targetTable(b *strings.Builder, r *Report) {
	b.WriteString("| measure | promise | seen | of the minima | |\n| --- | --- | ---: | ---: | --- |\n")
	for _, m := range r.Measures {
		for _, t := range m.Targets {
			if t.Missing != "" {
				fmt.Fprintf(b, "| [%s](#%[1]s) | %s | – | – | no figure: %s |\n", m.Name, t.String(), cell(t.Missing))
				continue
			}
			word := "met"
			if !t.Met {
				word = "**not met**"
			}
			fmt.Fprintf(b, "| [%s](#%[1]s) | %s | %s | %s | %s |\n", m.Name, cell(t.String()), number(t.Seen), t.ofMinima("%s", ""), word)
		}
	}
	b.WriteString("\n")
}

func measureTable(b *strings.Builder, m *Measure) {
	lead := m.lead()
	ratio := ""
	if lead != nil {
		ratio = " ÷ " + cell(lead.Who) + "'s"
	}
	fmt.Fprintf(b, "| %s | min | median | p99 | median%s | user ms | system ms | runs |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n", m.Unit, ratio)
	for _, r := range m.Rows {
		who := cell(r.Who)
		if r.Detail {
			who = "&emsp;" + who
		}
		if r.Missing != "" {
			fmt.Fprintf(b, "| %s | – | – | – | – | | | no figure: %s |\n", who, cell(r.Missing))
			continue
		}
		times := ""
		if lead != nil && !r.Detail && lead.Median > 0 {
			times = fmt.Sprintf("%s ×", fixed(r.Median/lead.Median))
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s | %s | %d |\n", who, fixed(r.Min), fixed(r.Median), fixed(r.P99), times, processor(r.User), processor(r.System), r.Runs)
	}
	b.WriteString("\n")
}

// lead is the row that others are compared with: the first of ours, if there are others.
func (m *Measure) lead() *Row {
	contenders := 0
	var lead *Row
	for i := range m.Rows {
		r := &m.Rows[i]
		if r.Detail {
			continue
		}
		contenders++
		if lead == nil && r.Ours && r.Missing == "" {
			lead = r
		}
	}
	if contenders < 2 {
		return nil
	}
	return lead
}

// cell is text for a cell of a table.
func cell(s string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;").Replace(s)
}
