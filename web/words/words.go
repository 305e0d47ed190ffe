// Package words has the Chinese of what the gateway and nodes say in English: problems and reasons by their codes, hints by
// the environment's state. The SSH door reads zh.json through this package; the panel is built with the same file.
package words

import (
	_ "embed"
	"encoding/json"
	"strings"
	"sync"
)

//go:embed zh.json
var source []byte

type catalogue struct {
	Problems map[string]struct{ Message, Hint string }
	Reasons  map[string]string
	Hints    map[string]string
}

var chinese = sync.OnceValue(func() catalogue {
	var c catalogue
	if err := json.Unmarshal(source, &c); err != nil {
		panic("words: zh.json: " + err.Error()) // part of the program; its test reads it
	}
	return c
})

// Problem is the Chinese of a problem of the API. A code that is not known leaves the English.
func Problem(code, field, message, hint string) (string, string) {
	p, ok := chinese().Problems[code]
	if !ok {
		return message, hint
	}
	if hint != "" {
		hint = p.Hint
	}
	return fill(p.Message, map[string]string{"field": field, "message": message}), hint
}

// Reason is the Chinese of why an environment is in its state.
func Reason(code string, values map[string]string, english string) string {
	if text, ok := chinese().Reasons[code]; ok {
		return fill(text, values)
	}
	return english
}

// Hint is the Chinese of the gateway's hint for an environment in a state.
func Hint(state, english string) string {
	if text, ok := chinese().Hints[state]; ok && english != "" {
		return text
	}
	return english
}

// fill puts values in the place of their {names}.
func fill(text string, values map[string]string) string {
	var pairs []string
	for name, v := range values {
		pairs = append(pairs, "{"+name+"}", v)
	}
	return strings.NewReplacer(pairs...).Replace(text)
}
