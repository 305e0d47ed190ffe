package words

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/learnos/learnos/gateway/problem"
	"github.com/learnos/learnos/internal/reason"
)

// A code that the gateway or a node has and this file has not, or the other way round, fails here.
func TestEveryCodeIsSaidInChinese(t *testing.T) {
	same := func(what string, want, got []string) {
		slices.Sort(want)
		slices.Sort(got)
		for _, code := range want {
			if !slices.Contains(got, code) {
				t.Errorf("%s %q has no Chinese in zh.json", what, code)
			}
		}
		for _, code := range got {
			if !slices.Contains(want, code) {
				t.Errorf("%s %q in zh.json does not exist", what, code)
			}
		}
	}
	c := chinese()
	same("problem", problem.Codes(), slices.Collect(maps.Keys(c.Problems)))
	var reasons []string
	for _, code := range reason.Codes() {
		reasons = append(reasons, string(code))
	}
	same("reason", reasons, slices.Collect(maps.Keys(c.Reasons)))
	same("hint of state", []string{"queued", "running", "stopping", "failed", "overstep"}, slices.Collect(maps.Keys(c.Hints))) // of gateway/fleet's View

	texts := map[string]string{}
	for code, p := range c.Problems {
		texts["problem "+code], texts["hint of "+code] = p.Message, p.Hint
	}
	for code, text := range c.Reasons {
		texts["reason "+code] = text
	}
	for state, text := range c.Hints {
		texts["hint in "+state] = text
	}
	for what, text := range texts {
		if !strings.ContainsFunc(text, func(r rune) bool { return unicode.Is(unicode.Han, r) }) {
			t.Errorf("%s: %q is not Chinese", what, text)
		}
	}
}

func TestReasonsKeepTheirValues(t *testing.T) {
	names := regexp.MustCompile(`\{(\w+)\}`)
	for code, text := range chinese().Reasons {
		var got []string
		for _, m := range names.FindAllStringSubmatch(text, -1) {
			got = append(got, m[1])
		}
		want := reason.Values(reason.Code(code))
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s has %q, want %q", code, got, want)
		}
	}
}

func TestWords(t *testing.T) {
	if m, h := Problem("invalid_field", "name", "name is long", "Correct name."); m != "“name”的值不符合要求：name is long" || h != "改正后再提交一次。" {
		t.Error(m, h)
	}
	if m, h := Problem("brand_new", "", "New.", "Do."); m != "New." || h != "Do." {
		t.Error(m, h)
	}
	code, values := reason.Parse(reason.Say(reason.NetQuota, "100.0 MiB"))
	if got := Reason(string(code), values, "x"); got != "网络流量超过了 100.0 MiB 的配额" {
		t.Error(got)
	}
	if got := Reason("", nil, "manifest unknown"); got != "manifest unknown" {
		t.Error(got)
	}
	if Hint("running", "") != "" || Hint("failed", "Try again.") == "Try again." {
		t.Error("hints")
	}
}
