package reason

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"testing"
)

func TestWhatIsSaidIsFoundAgain(t *testing.T) {
	for _, c := range Codes() {
		want := map[string]string{}
		var values []any
		for i, name := range Values(c) {
			want[name] = strconv.Itoa(i+5) + " MiB: {n}, of\nthose"
			values = append(values, want[name])
		}
		code, got := Parse(Say(c, values...))
		if code != c || len(got) != len(want) {
			t.Errorf("%q: %q %q", Say(c, values...), code, got)
		}
		for name, v := range want {
			if got[name] != v {
				t.Errorf("%s: %s is %q", c, name, got[name])
			}
		}
	}
	for _, other := range []string{"", "pull docker.io/library/x: not found", "idle ", "it ran out of memory!"} {
		if code, _ := Parse(other); code != "" {
			t.Errorf("%q: %s", other, code)
		}
	}
}

// Every constant is in the table, once.
func TestEveryCodeHasItsSentence(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "reason.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	ast.Inspect(file, func(node ast.Node) bool {
		if spec, ok := node.(*ast.ValueSpec); ok {
			if kind, ok := spec.Type.(*ast.Ident); ok && kind.Name == "Code" {
				code, _ := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
				if n++; !slices.Contains(Codes(), Code(code)) {
					t.Errorf("%s has no sentence", code)
				}
			}
		}
		return true
	})
	if n == 0 || n != len(Codes()) {
		t.Errorf("%d constants, %d sentences", n, len(Codes()))
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range Codes() {
		f.Add(Say(c, "1 GiB", "2 MiB"))
	}
	f.Fuzz(func(t *testing.T, text string) {
		code, values := Parse(text)
		if code == "" {
			return
		}
		var in []any
		for _, name := range Values(code) {
			in = append(in, values[name])
		}
		if again := Say(code, in...); again != text {
			t.Errorf("%q became %q", text, again)
		}
	})
}
