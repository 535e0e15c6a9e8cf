package tanist_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/tanist/tanist"

// pkg is what `go list -json` reports about a package.
type pkg struct {
	ImportPath, Dir, Name              string
	Standard                           bool
	GoFiles, TestGoFiles, XTestGoFiles []string
	Imports, TestImports, XTestImports []string
}

func (p pkg) rel() string { return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/") }

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-e", "-json=ImportPath,Dir,Name,Standard,GoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cannot list packages: %v\n%s", err, stderr.String())
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// room returns the room of a package: the first element of its path, or the first two under
// backends.
func room(rel string) string {
	if rel == simulation {
		return rel
	}
	parts := strings.Split(rel, "/")
	if parts[0] == "backends" && len(parts) > 1 {
		return path.Join(parts[:2]...)
	}
	return parts[0]
}

// simulation is inside election, and runs the packages above it. Nothing imports it: it has only tests.
const simulation = "election/simulation"

// TestImportArrows: cmd imports all, a room imports election and libraries, election imports the
// standard library, and nothing imports sideways. The rooms around the product (cmd, e2e, bench,
// examples) may import all. Tests may not import sideways either.
func TestImportArrows(t *testing.T) {
	outside := []string{"cmd", "e2e", "bench", "examples", "model", "museum", simulation, ""}
	for _, p := range list(t, "./...") {
		from := room(p.rel())
		for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			rel, ours := strings.CutPrefix(imp, module+"/")
			if !ours || slices.Contains(outside, from) {
				continue
			}
			if rel == testbed || rel == privateServer && !slices.Contains(p.Imports, imp) {
				continue // see TestTestbedIsForTests
			}
			if to := room(rel); to != from && to != "election" {
				t.Errorf("%s imports %s: a room imports election and libraries only", p.rel(), rel)
			}
		}
		if p.rel() == "election" {
			for _, imp := range p.Imports {
				if first, _, _ := strings.Cut(imp, "/"); strings.Contains(first, ".") {
					t.Errorf("election imports %s: it imports only the standard library", imp)
				}
			}
		}
	}
}

// TestProcessesArrows: each folder inside process belongs to one process. What two of them share is
// below both.
func TestProcessesArrows(t *testing.T) {
	const inside = "process/internal/"
	may := map[string][]string{
		"process/internal/kernel": {},
		"process/internal/wire":   {"process/internal/kernel"},
		"process/internal/attend": {"process/internal/kernel", "process/internal/wire"},
		"process/internal/unit":   {"process/internal/kernel", "process/internal/wire"},
		"process/internal/guard":  {"process/internal/kernel", "process/internal/wire", "process/internal/unit"},
		"process":                 {"process/internal/kernel", "process/internal/wire", "process/internal/unit", "process/internal/attend", "process/internal/guard"},
		"process/torture":         {"process/internal/kernel"},
	}
	for _, p := range list(t, "./process/...") {
		allowed, known := may[p.rel()]
		if !known {
			t.Errorf("%s: add to this test which process runs it, and what it may import", p.rel())
		}
		for _, imp := range p.Imports {
			rel, ours := strings.CutPrefix(imp, module+"/")
			if ours && rel != "election" && !slices.Contains(allowed, rel) {
				t.Errorf("%s imports %s", p.rel(), rel)
			}
		}
		// The sidecar's side imports the guard's and the companion's only at their entry points.
		for _, f := range p.GoFiles {
			if p.rel() != "process" || f == "entry.go" {
				continue
			}
			b, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			for _, other := range []string{"guard", "attend"} {
				if bytes.Contains(b, []byte(`"`+module+"/"+inside+other+`"`)) {
					t.Errorf("process/%s imports %s: that runs in another process", f, inside+other)
				}
			}
		}
	}
}

// testbed is the package that tests of real processes share, and privateServer the PostgreSQL that
// tests and the lab start.
const (
	testbed       = "internal/testbed"
	privateServer = "postgres/private"
)

// TestTestbedIsForTests: only tests, and packages that exist for tests, import it.
func TestTestbedIsForTests(t *testing.T) {
	for _, p := range list(t, "./...") {
		if slices.Contains(p.Imports, module+"/"+testbed) && !strings.HasSuffix(p.rel(), "test") && !strings.HasPrefix(p.rel(), testbed+"/") && !slices.Contains([]string{"e2e", "bench"}, room(p.rel())) {
			t.Errorf("%s imports %s, which is for tests", p.rel(), testbed)
		}
	}
}

// TestEveryPackageTeaches: a package has one package comment, and it explains the package.
func TestEveryPackageTeaches(t *testing.T) {
	banned := []string{"util", "utils", "common", "helper", "helpers", "misc", "shared", "lib"}
	for _, p := range list(t, "./...") {
		if slices.Contains(banned, path.Base(p.rel())) {
			t.Errorf("%s: a package is named after what it provides", p.rel())
		}
		if len(p.GoFiles) == 0 {
			continue
		}
		doc := ""
		for _, f := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if file.Doc == nil {
				continue
			}
			if doc != "" {
				t.Errorf("%s has more than one package comment (the second is in %s)", p.rel(), f)
			}
			doc = file.Doc.Text()
		}
		want, enough := "Package "+p.Name+" ", 120
		if p.Name == "main" {
			want, enough = path.Base(p.rel())+" ", 60
			doc = strings.TrimPrefix(doc, "Command ")
		}
		if !strings.HasPrefix(strings.ToUpper(doc), strings.ToUpper(want)) {
			t.Errorf("%s: no package comment that begins with %q", p.rel(), want)
		} else if len(doc) < enough {
			t.Errorf("%s: the package comment does not explain what the package is for and what it guarantees: %q", p.rel(), doc)
		}
	}
}

// TestProductionBinaryIsLean: cmd/tanist contains no server of a store, nothing of the lab, and
// nothing of the tests.
func TestProductionBinaryIsLean(t *testing.T) {
	if _, err := os.Stat("cmd/tanist"); errors.Is(err, fs.ErrNotExist) {
		t.Skip("cmd/tanist does not exist")
	}
	for _, p := range list(t, "-deps", "./cmd/tanist") {
		for _, no := range []string{"go.etcd.io/etcd/server", "go.etcd.io/bbolt", "go.etcd.io/raft", module + "/cmd/tanist-lab", "pgregory.net/rapid", "github.com/anishathalye/porcupine"} {
			if p.ImportPath == no || strings.HasPrefix(p.ImportPath, no+"/") {
				t.Errorf("cmd/tanist depends on %s", p.ImportPath)
			}
		}
		// go-plugin has helpers for tests in its package, and `tanist plugin contract` runs the contract.
		may := []string{"github.com/hashicorp/go-plugin", module + "/election/electiontest", "go.uber.org/goleak", module + "/cmd/tanist"}
		if slices.Contains(p.Imports, "testing") && !slices.Contains(may, p.ImportPath) {
			t.Errorf("cmd/tanist depends on %s, which imports package testing", p.ImportPath)
		}
	}
}

// TestDocumentationNamesRealTests: every test or fuzz target that a page names exists.
func TestDocumentationNamesRealTests(t *testing.T) {
	declared := map[string]bool{}
	declaration := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	for _, p := range list(t, "./...") {
		for _, f := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
			b, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range declaration.FindAllStringSubmatch(string(b), -1) {
				declared[m[1]] = true
			}
		}
	}
	name := regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w+`)
	for file, text := range pages(t) {
		names := name.FindAllString(text, -1)
		if file == "docs/failover.md" && len(names) < 200 {
			t.Errorf("%s names only %d tests", file, len(names))
		}
		for _, n := range names {
			if !declared[n] {
				t.Errorf("%s names %s, which does not exist", file, n)
			}
		}
	}
}

// TestDocumentationLinksResolve: a relative link leads to an existing file and, with a fragment, to
// one of its headings.
func TestDocumentationLinksResolve(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	all, links := pages(t), 0
	for file, text := range all {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, fragment, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			links++
			to := file
			if target != "" {
				to = path.Join(path.Dir(file), target)
			}
			if _, err := os.Stat(filepath.FromSlash(to)); err != nil {
				t.Errorf("%s links to %s, which does not exist", file, m[1])
			} else if fragment != "" && !slices.Contains(anchors(all[to]), fragment) {
				t.Errorf("%s links to %s, which has no such heading", file, m[1])
			}
		}
	}
	if links < 40 {
		t.Errorf("found only %d links", links)
	}
}

// pages returns the text of every documentation page by its path in the repository.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && name != ".", d.IsDir() && d.Name() == "testdata":
			return filepath.SkipDir
		case d.IsDir() || path.Ext(name) != ".md":
			return nil
		}
		b, err := os.ReadFile(name)
		all[filepath.ToSlash(name)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// anchors returns the fragments that GitHub makes of a page's headings.
func anchors(text string) []string {
	var found []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		anchor := regexp.MustCompile(`[^\w\- ]`).ReplaceAllString(strings.ToLower(m[1]), "")
		found = append(found, strings.ReplaceAll(anchor, " ", "-"))
	}
	return found
}

// TestOneWordPerConcept: file names use active, passive, controller, cluster and term.
func TestOneWordPerConcept(t *testing.T) {
	for _, p := range list(t, "./...") {
		for _, f := range slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles) {
			name := strings.ToLower(f)
			for _, word := range []string{"master_", "epoch", "node_", "util"} {
				if strings.Contains(name, word) {
					t.Errorf("%s/%s: the glossary has another word for %q", p.rel(), f, strings.Trim(word, "_"))
				}
			}
		}
	}
}

// TestOnlyElectionKnowsKeyNames: only election/keys.go has the names of the store's keys, so that
// they can be changed in one place. A literal counts as a key if it has a key's form ("role/…") or
// is used as one: passed to a store's verb, given as a Put's key, appended to a prefix, or listed
// only among keys.
func TestOnlyElectionKnowsKeyNames(t *testing.T) {
	keys := []string{"active", "url", "beat", "term", "heir", "request", "pause", "settings"}
	prefixes := []string{"role/", "controllers/", "agents/", "history/", "audit/", "notices/", "tanist/", "/tanist/"}
	verbs := []string{"Get", "List", "Put", "Delete", "OpGet", "OpPut", "OpDelete", "Watch", "kv", "set", "bind", "lock", "bound", "absent", "unchanged", "remove", "get"}
	text := func(e ast.Expr) string {
		if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			s, _ := strconv.Unquote(lit.Value)
			return s
		}
		return ""
	}
	isKey := func(e ast.Expr) bool { return slices.Contains(keys, text(e)) }
	for _, p := range list(t, "./...") {
		if room(p.rel()) == "election" {
			continue
		}
		for _, name := range p.GoFiles {
			if strings.HasSuffix(name, ".pb.go") { // generated
				continue
			}
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				var suspects []ast.Expr
				switch n := n.(type) {
				case *ast.ImportSpec:
					return false
				case *ast.BasicLit:
					if slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(text(n), prefix) }) {
						t.Errorf("%s: %s is the name of a key: use election's", set.Position(n.Pos()), n.Value)
					}
				case *ast.BinaryExpr:
					if n.Op == token.ADD {
						suspects = []ast.Expr{n.X, n.Y}
					}
				case *ast.KeyValueExpr:
					if id, ok := n.Key.(*ast.Ident); ok && strings.EqualFold(id.Name, "key") {
						suspects = []ast.Expr{n.Value}
					}
				case *ast.CallExpr:
					if f, ok := n.Fun.(*ast.SelectorExpr); ok && slices.Contains(verbs, f.Sel.Name) {
						suspects = n.Args
					}
				case *ast.CompositeLit:
					if len(n.Elts) > 1 && !slices.ContainsFunc(n.Elts, func(e ast.Expr) bool { return !isKey(e) }) {
						suspects = n.Elts
					}
				}
				for _, e := range suspects {
					if isKey(e) {
						t.Errorf("%s: %q is the name of a key: use election's", set.Position(e.Pos()), text(e))
					}
				}
				return true
			})
		}
	}
}

// TestNoFunctionIsLongOrDeep: outside tests, the body of a function has at most 80 lines, without
// comments, and nests at most five deep, so that it can be read at a glance.
func TestNoFunctionIsLongOrDeep(t *testing.T) {
	const longest, deepest = 80, 5
	for _, p := range list(t, "./...") {
		for _, name := range p.GoFiles {
			set := token.NewFileSet()
			source, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			file, err := parser.ParseFile(set, name, source, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			all := strings.Split(string(source), "\n")
			for _, decl := range file.Decls {
				f, ok := decl.(*ast.FuncDecl)
				if !ok || f.Body == nil {
					continue
				}
				lines := 0
				for _, line := range all[set.Position(f.Body.Lbrace).Line:max(set.Position(f.Body.Lbrace).Line, set.Position(f.Body.Rbrace).Line-1)] {
					if !strings.HasPrefix(strings.TrimSpace(line), "//") {
						lines++
					}
				}
				if lines > longest {
					t.Errorf("%s/%s: %s has %d lines", p.rel(), set.Position(f.Pos()), f.Name.Name, lines)
				}
				if d := depth(f.Body); d > deepest {
					t.Errorf("%s/%s: %s nests %d deep", p.rel(), set.Position(f.Pos()), f.Name.Name, d)
				}
			}
		}
	}
}

// depth returns how many loops, branches and function literals are nested in a statement.
func depth(in ast.Node) int {
	deepest := 0
	ast.Inspect(in, func(n ast.Node) bool {
		if n == in {
			return true
		}
		var inner []ast.Node
		switch n := n.(type) {
		case *ast.IfStmt:
			inner = []ast.Node{n.Body}
			switch other := n.Else.(type) {
			case *ast.BlockStmt:
				inner = append(inner, other)
			case *ast.IfStmt: // else if: as deep as the if
				deepest = max(deepest, depth(&ast.BlockStmt{List: []ast.Stmt{other}}))
			}
		case *ast.ForStmt:
			inner = []ast.Node{n.Body}
		case *ast.RangeStmt:
			inner = []ast.Node{n.Body}
		case *ast.SwitchStmt:
			inner = []ast.Node{n.Body}
		case *ast.TypeSwitchStmt:
			inner = []ast.Node{n.Body}
		case *ast.SelectStmt:
			inner = []ast.Node{n.Body}
		case *ast.FuncLit:
			inner = []ast.Node{n.Body}
		default:
			return true
		}
		for _, body := range inner {
			deepest = max(deepest, 1+depth(body))
		}
		return false
	})
	return deepest
}

// TestOneGoVersion: the module, its tools and the contributors' documentation name the same Go
// version.
func TestOneGoVersion(t *testing.T) {
	files, err := filepath.Glob("tools/*/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^go (\S+)$`)
	read := func(file string) string {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	want := version.FindStringSubmatch(read("go.mod"))[1]
	for _, file := range append(files, "tools/go.mod") {
		if got := version.FindStringSubmatch(read(file)); got == nil || got[1] != want {
			t.Errorf("%s: %v, want go %s as in go.mod", file, got, want)
		}
	}
	for _, file := range []string{"CONTRIBUTING.md", "README.md"} {
		for _, m := range regexp.MustCompile(`Go (1\.\d+\.\d+)`).FindAllStringSubmatch(read(file), -1) {
			if m[1] != want {
				t.Errorf("%s names Go %s, want %s as in go.mod", file, m[1], want)
			}
		}
	}
}
