package problem

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Codes is what the sources say: every code that the gateway, the web server or a node answers with is in it, and it has no
// other.
func TestCodesAreThoseOfTheSources(t *testing.T) {
	found := map[string]string{}
	note := func(path string, e ast.Expr) {
		if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			code, _ := strconv.Unquote(lit.Value)
			found[code] = path
		}
	}
	inJSON := regexp.MustCompile(`"code":"(\w+)"`)
	// Which argument of a function is a code.
	args := map[string]int{"New": 1, "unauthenticated": 0, "closing": 1, "writeError": 2}
	look := func(path string) {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				name := ""
				switch f := n.Fun.(type) {
				case *ast.Ident:
					name = f.Name
				case *ast.SelectorExpr:
					if x, ok := f.X.(*ast.Ident); ok && x.Name == "problem" {
						name = f.Sel.Name
					}
				}
				if at, ok := args[name]; ok && len(n.Args) > at {
					note(path, n.Args[at])
				}
			case *ast.KeyValueExpr:
				if key, ok := n.Key.(*ast.Ident); ok && key.Name == "Code" {
					note(path, n.Value)
				}
			case *ast.AssignStmt:
				for i, left := range n.Lhs {
					if s, ok := left.(*ast.SelectorExpr); ok && s.Sel.Name == "Code" && i < len(n.Rhs) {
						note(path, n.Rhs[i])
					}
				}
			case *ast.BasicLit:
				for _, m := range inJSON.FindAllStringSubmatch(n.Value, -1) {
					found[m[1]] = path
				}
			case *ast.ValueSpec: // the tunnel's
				for i, name := range n.Names {
					if strings.HasPrefix(name.Name, "Code") && i < len(n.Values) && name.Name != "CodeInternal" { // that one becomes node_error
						note(path, n.Values[i])
					}
				}
			}
			return true
		})
	}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			look(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	web, _ := filepath.Glob("../../web/*.go")
	for _, path := range append(web, "../../internal/tunnel/tunnel.go") {
		if !strings.HasSuffix(path, "_test.go") {
			look(path)
		}
	}
	for code, path := range found {
		if !slices.Contains(codes, code) {
			t.Errorf("%s answers %q, which is not in codes.go", path, code)
		}
	}
	for _, code := range codes {
		if found[code] == "" {
			t.Errorf("nothing answers %q", code)
		}
	}
	if !slices.IsSorted(codes) {
		t.Error("codes are not sorted")
	}
}
