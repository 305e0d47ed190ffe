package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/learnos/learnos/rootfs"
)

// progress shows how far an image is: a bar per layer on a terminal, plain lines elsewhere.
type progress struct {
	out *os.File

	mu    sync.Mutex
	bars  *mpb.Progress // nil: plain lines
	layer map[string]*layerBar
	said  map[string]string // plain: what was said last, by layer
	next  map[string]int64  // plain: the percent at which to speak again
}

type layerBar struct {
	bar   *mpb.Bar
	mu    sync.Mutex
	phase string
}

// newProgress draws nothing until there is something to say.
func newProgress(out *os.File) *progress {
	p := &progress{out: out, said: map[string]string{}, next: map[string]int64{}}
	if term.IsTerminal(int(out.Fd())) && os.Getenv("TERM") != "dumb" {
		p.bars = mpb.New(mpb.WithOutput(out), mpb.WithWidth(72), mpb.WithRefreshRate(100*time.Millisecond))
		p.layer = map[string]*layerBar{}
	}
	return p
}

// report takes one of rootfs's reports.
func (p *progress) report(r rootfs.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bars == nil {
		p.line(r)
		return
	}
	lb := p.layer[r.Layer]
	if lb == nil {
		if r.Total <= 0 && r.Layer == "" && r.Phase == rootfs.PhaseResolving {
			return // over before it could be drawn
		}
		lb = &layerBar{phase: r.Phase}
		lb.bar = p.bars.AddBar(max(r.Total, 0),
			mpb.PrependDecorators(decor.Name(label(r)+" ", decor.WCSyncSpaceR), decor.Any(func(decor.Statistics) string {
				lb.mu.Lock()
				defer lb.mu.Unlock()
				return lb.phase
			}, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(counter(r)))
		p.layer[r.Layer] = lb
	}
	lb.mu.Lock()
	lb.phase = r.Phase
	if r.Message != "" && r.Phase == rootfs.PhaseBuilding {
		lb.phase = clipText(r.Message, 40)
	}
	lb.mu.Unlock()
	if r.Total > 0 {
		lb.bar.SetTotal(r.Total, false)
	}
	if r.Phase == rootfs.PhaseDone {
		lb.bar.SetTotal(-1, true) // complete, however far the count went
		return
	}
	lb.bar.SetCurrent(r.Done)
}

func counter(r rootfs.Progress) decor.Decorator {
	if r.Phase == rootfs.PhaseBuilding {
		return decor.Percentage()
	}
	return decor.CountersKibiByte("% .1f / % .1f")
}

// line prints a change of phase, and every tenth of long work.
func (p *progress) line(r rootfs.Progress) {
	text := r.Phase
	if r.Message != "" {
		text += ": " + r.Message
	}
	if p.said[r.Layer] != text {
		p.said[r.Layer] = text
		p.next[r.Layer] = 10
		fmt.Fprintln(p.out, label(r), text)
		return
	}
	if r.Total <= 0 {
		return
	}
	if percent := 100 * r.Done / r.Total; percent >= p.next[r.Layer] && percent < 100 {
		p.next[r.Layer] = percent/10*10 + 10
		fmt.Fprintf(p.out, "%s %s: %d%%\n", label(r), r.Phase, percent)
	}
}

// finish ends the drawing.
func (p *progress) finish(ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bars == nil {
		return
	}
	for _, lb := range p.layer {
		if ok {
			lb.bar.SetTotal(-1, true)
		} else {
			lb.bar.Abort(false)
		}
	}
	p.bars.Wait()
}

// label is a layer's digest as people recognize it, or "image".
func label(r rootfs.Progress) string {
	if r.Layer == "" {
		return "image"
	}
	_, hex, ok := strings.Cut(r.Layer, ":")
	if !ok {
		hex = r.Layer
	}
	return clipText(hex, 12)
}

func clipText(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n])
	}
	return s
}
