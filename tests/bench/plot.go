package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Plots are SVG without scripts: a card with its own background, so that they can be read on any page, in light and dark.
const plotStyle = `<style>
.card{fill:#fff;stroke:#d8dee6}.text{fill:#1c2530}.faint{fill:#5b6775}.grid{stroke:#e4e9ef}.ours{fill:#0f766e}.peer{fill:#9aa8b8}
.good{fill:#0f766e}.bad{fill:#c2410c}.tick{stroke:#1c2530}.bound{stroke:#1c2530}.line0{stroke:#0f766e}.line1{stroke:#9aa8b8}
text{font:13px system-ui,-apple-system,"Segoe UI",sans-serif}.title{font-weight:600;font-size:15px}.end{text-anchor:end}.mid{text-anchor:middle}
@media (prefers-color-scheme:dark){.card{fill:#12181f;stroke:#2b3541}.text{fill:#e4e9ef}.faint{fill:#9aa8b8}.grid{stroke:#26303b}
.ours{fill:#2dd4bf}.peer{fill:#566474}.good{fill:#2dd4bf}.bad{fill:#fb923c}.tick{stroke:#e4e9ef}.bound{stroke:#e4e9ef}.line0{stroke:#2dd4bf}.line1{stroke:#7f8d9d}}
</style>
`

const (
	plotWidth = 760
	barLeft   = 300 // where bars begin: names stand before
	barRight  = 610 // and the longest ends: figures stand after, in a column
	barStep   = 28
	barTop    = 62
)

// svg wraps what is drawn; title is for people, and for those who can't see.
func svg(height int, title, subtitle, body string) string {
	title = html.EscapeString(strings.ReplaceAll(title, "`", ""))
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="%s">
%s<rect class="card" x=".5" y=".5" width="%d" height="%d" rx="8"/>
<text class="text title" x="20" y="28">%s</text>
<text class="faint" x="20" y="47">%s</text>
%s</svg>
`, plotWidth, height, plotWidth, height, title, plotStyle, plotWidth-1, height-1, title, html.EscapeString(subtitle), body)
}

// bar draws one row of a bar plot: a name, a bar of the given share of the width, a figure.
func bar(b *strings.Builder, i int, name, class, figure string, share float64) {
	y := barTop + i*barStep
	width := math.Max(1.5, share*(barRight-barLeft))
	fmt.Fprintf(b, `<text class="text end" x="%d" y="%d">%s</text>`, barLeft-10, y+15, html.EscapeString(shorten(name, 37)))
	fmt.Fprintf(b, `<rect class="%s" x="%d" y="%d" width="%.1f" height="18" rx="3"/>`, class, barLeft, y+1, width)
	fmt.Fprintf(b, `<text class="text end" x="%d" y="%d">%s</text>`+"\n", plotWidth-20, y+15, html.EscapeString(figure))
}

func shorten(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}

// barPlot draws the medians of a measure, a tick at each minimum; "" if there is nothing to compare.
func barPlot(m *Measure) string {
	var drawn []Row
	most := 0.0
	for _, r := range m.Rows {
		if r.Missing == "" && !r.Detail {
			drawn = append(drawn, r)
			most = max(most, r.Median)
		}
	}
	if len(drawn) < 2 || most <= 0 {
		return ""
	}
	var b strings.Builder
	for i, r := range drawn {
		class := "peer"
		if r.Ours {
			class = "ours"
		}
		bar(&b, i, r.Who, class, number(r.Median), r.Median/most)
		if x := barLeft + r.Min/most*(barRight-barLeft); r.Runs > 1 && r.Min < r.Median {
			y := barTop + i*barStep
			fmt.Fprintf(&b, `<line class="tick" x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke-width="1.5"/>`+"\n", x, x, y+4, y+16)
		}
	}
	return svg(barTop+len(drawn)*barStep+14, m.Title, m.Unit+", median; the tick is the minimum", b.String())
}

// targetPlot draws how much of each promise was used: 1 is just kept, less is better than promised.
func targetPlot(r *Report) string {
	type line struct {
		name string
		used float64
		t    Target
	}
	var lines []line
	most := 1.25
	for _, m := range r.Measures {
		for _, t := range m.Targets {
			if t.Missing != "" || t.Seen <= 0 {
				continue
			}
			used := t.Seen / t.Bound
			if t.AtLeast {
				used = t.Bound / t.Seen
			}
			name := m.Name + ": " + t.Of
			if t.Stat != "median" {
				name += " " + t.Stat
			}
			if t.Over != "" {
				name = m.Name + ": " + t.Of + " ÷ " + t.Over
			}
			lines = append(lines, line{name, used, t})
			most = max(most, used)
		}
	}
	if len(lines) == 0 {
		return ""
	}
	most = min(most, 3) // a bar that is longer says so by its figure
	var b strings.Builder
	for i, l := range lines {
		class := "good"
		if !l.t.Met {
			class = "bad"
		}
		sign := "≤"
		if l.t.AtLeast {
			sign = "≥"
		}
		bar(&b, i, l.name, class, fmt.Sprintf("%s (%s %s)", number(l.t.Seen), sign, number(l.t.Bound)), min(l.used, most)/most)
	}
	x := barLeft + (barRight-barLeft)/most
	bottom := barTop + len(lines)*barStep
	fmt.Fprintf(&b, `<line class="bound" x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke-dasharray="4 3"/><text class="faint mid" x="%.1f" y="%d">promised</text>`+"\n",
		x, x, barTop-4, bottom, x, bottom+14)
	return svg(bottom+26, "What was promised, and what was seen", "bars that end before the dashed line keep their promise; figures are seen (promised)", b.String())
}

// curvePlot draws a measure's curve.
func curvePlot(m *Measure) string {
	c := m.Curve
	const left, right, top, bottom = 70, 610, 70, 300
	mostX, mostY := 0.0, 0.0
	for _, l := range c.Lines {
		for _, p := range l.Points {
			mostX, mostY = max(mostX, p[0]), max(mostY, p[1])
		}
	}
	if mostX == 0 || mostY == 0 {
		return ""
	}
	stepX, stepY := niceStep(mostX), niceStep(mostY)
	mostX, mostY = math.Ceil(mostX/stepX)*stepX, math.Ceil(mostY/stepY)*stepY
	x := func(v float64) float64 { return left + v/mostX*(right-left) }
	y := func(v float64) float64 { return bottom - v/mostY*(bottom-top) }
	var b strings.Builder
	for v := 0.0; v <= mostY+stepY/2; v += stepY {
		fmt.Fprintf(&b, `<line class="grid" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/><text class="faint end" x="%d" y="%.1f">%s</text>`+"\n",
			left, right, y(v), y(v), left-8, y(v)+4, number(v))
	}
	for v := 0.0; v <= mostX+stepX/2; v += stepX {
		fmt.Fprintf(&b, `<text class="faint mid" x="%.1f" y="%d">%s</text>`+"\n", x(v), bottom+20, number(v))
	}
	fmt.Fprintf(&b, `<text class="faint mid" x="%d" y="%d">%s</text>`+"\n", (left+right)/2, bottom+42, html.EscapeString(c.X))
	for i, l := range c.Lines {
		if len(l.Points) == 0 {
			continue
		}
		var points []string
		for _, p := range l.Points {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(p[0]), y(p[1])))
		}
		fmt.Fprintf(&b, `<polyline class="line%d" fill="none" stroke-width="2" points="%s"/>`+"\n", i%2, strings.Join(points, " "))
		last := l.Points[len(l.Points)-1]
		fmt.Fprintf(&b, `<text class="text" x="%.1f" y="%.1f">%s</text>`+"\n", x(last[0])+8, y(last[1])+4, html.EscapeString(shorten(l.Name, 22)))
	}
	return svg(bottom+58, m.Title, c.Y, b.String())
}

// niceStep divides what an axis shows into five or so round parts.
func niceStep(most float64) float64 {
	step := math.Pow(10, math.Floor(math.Log10(most/4)))
	for _, f := range []float64{1, 2, 2.5, 5, 10} {
		if most/(f*step) <= 6 {
			return f * step
		}
	}
	return 10 * step
}
