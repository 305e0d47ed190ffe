package openapi

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/learnos/learnos/gateway/problem"
	"github.com/learnos/learnos/internal/reason"
)

func TestDocumentIsValid(t *testing.T) {
	data, err := JSON()
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		OpenAPI string         `json:"openapi"`
		Paths   map[string]any `json:"paths"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.OpenAPI != "3.0.3" || len(doc.Paths) == 0 {
		t.Fatalf("openapi %q with %d paths", doc.OpenAPI, len(doc.Paths))
	}
}

// The document names every code there is, and no other.
func TestDocumentHasTheCodes(t *testing.T) {
	doc, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	reasons := []string{""}
	for _, c := range reason.Codes() {
		reasons = append(reasons, string(c))
	}
	for name, want := range map[string][]string{"ErrorCode": problem.Codes(), "ReasonCode": reasons} {
		var got []string
		for _, v := range doc.Components.Schemas[name].Value.Enum {
			got = append(got, v.(string))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: the document has %q\nthe sources have %q", name, got, want)
		}
	}
}
