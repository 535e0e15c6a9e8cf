package tanist_test

import (
	"bytes"
	"encoding/json"
	"errors"
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
	"strings"
	"testing"
)

const module = "github.com/tanist/tanist"

// pkg is what `go list -json` tells of a package.
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

// room returns the room that a package belongs to: the first element of its path, or two of them under backends.
func room(rel string) string {
	parts := strings.Split(rel, "/")
	if parts[0] == "backends" && len(parts) > 1 {
		return path.Join(parts[:2]...)
	}
	return parts[0]
}

// TestImportArrows: cmd → all; a room → election and libraries; election → the standard library; nothing sideways. The
// rooms around the product (cmd, e2e, bench, examples) may import all; tests too may not look sideways.
func TestImportArrows(t *testing.T) {
	outside := []string{"cmd", "e2e", "bench", "examples", "model", ""}
	for _, p := range list(t, "./...") {
		from := room(p.rel())
		for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			rel, ours := strings.CutPrefix(imp, module+"/")
			if !ours || slices.Contains(outside, from) {
				continue
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

// TestEveryPackageTeaches: a doc.go (or a single file) whose package comment says something.
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
			t.Errorf("%s: the package comment does not teach what the package is for and what it guarantees: %q", p.rel(), doc)
		}
	}
}

// TestProductionBinaryIsLean: no server of a store, nothing of the lab, nothing of the tests in cmd/tanist.
func TestProductionBinaryIsLean(t *testing.T) {
	if _, err := os.Stat("cmd/tanist"); errors.Is(err, fs.ErrNotExist) {
		t.Skip("there is no cmd/tanist yet")
	}
	for _, p := range list(t, "-deps", "./cmd/tanist") {
		for _, no := range []string{"go.etcd.io/etcd/server", "go.etcd.io/bbolt", "go.etcd.io/raft", module + "/cmd/tanist-lab", "pgregory.net/rapid", "github.com/anishathalye/porcupine"} {
			if p.ImportPath == no || strings.HasPrefix(p.ImportPath, no+"/") {
				t.Errorf("cmd/tanist depends on %s", p.ImportPath)
			}
		}
		if p.ImportPath == "testing" {
			t.Error("cmd/tanist depends on package testing")
		}
	}
}

// TestFailureTableNamesRealTests: docs/failover.md promises tests; each of them exists.
func TestFailureTableNamesRealTests(t *testing.T) {
	table, err := os.ReadFile("docs/failover.md")
	if err != nil {
		t.Fatal(err)
	}
	var sources strings.Builder
	for _, p := range list(t, "./...") {
		for _, f := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
			b, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			sources.Write(b)
		}
	}
	names := regexp.MustCompile(`\bTest[A-Z]\w+`).FindAllString(string(table), -1)
	if len(names) < 30 {
		t.Errorf("docs/failover.md names only %d tests", len(names))
	}
	for _, name := range names {
		if !strings.Contains(sources.String(), "func "+name+"(") {
			t.Errorf("docs/failover.md names %s, which does not exist", name)
		}
	}
}

// TestOneWordPerConcept: names in the code say active, passive, controller, cluster and term.
func TestOneWordPerConcept(t *testing.T) {
	for _, p := range list(t, "./...") {
		for _, f := range slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles) {
			name := strings.ToLower(f)
			for _, word := range []string{"standby", "master_", "epoch", "node_", "util"} {
				if strings.Contains(name, word) {
					t.Errorf("%s/%s: the design has another word for %q", p.rel(), f, strings.Trim(word, "_"))
				}
			}
		}
	}
}
