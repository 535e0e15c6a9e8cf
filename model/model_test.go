package model

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the tables of README.md")

// outcome is what Spin reports about one search.
type outcome struct {
	violated string // the text of the assertion, empty if none was violated
	depth    int
	states   int
}

var (
	violatedRE = regexp.MustCompile(`assertion violated (.*) \(at depth (\d+)\)`)
	otherRE    = regexp.MustCompile(`(?m)^pan:.*(invalid end state|out of memory|max search depth|VECTORSZ).*`)
	statesRE   = regexp.MustCompile(`(?m)^\s*(\d+) states, stored`)
	errorsRE   = regexp.MustCompile(`errors: (\d+)`)
)

// kind is how to search a model.
type kind uint8

const (
	exhaustive kind = iota
	shortest        // breadth first, until the first counterexample
	deep            // exhaustive, with a large table
)

// search builds a verifier for a model and runs it. A breadth-first search finds a shortest
// counterexample, so its depth is a property of the model and not of the search.
func search(t *testing.T, file string, how kind, defs ...string) outcome {
	t.Helper()
	dir := t.TempDir()
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "m.pml"), source, 0o600); err != nil {
		t.Fatal(err)
	}
	args := make([]string, 0, len(defs)+2)
	for _, d := range defs {
		args = append(args, "-D"+d)
	}
	run(t, dir, "spin", append(args, "-a", "m.pml")...)
	build, table := []string{"-O1", "-DCOLLAPSE"}, "-w22"
	switch how {
	case exhaustive:
	case shortest:
		build = []string{"-O0", "-DBFS"} // the compiler would take longer than the search
	case deep:
		build, table = []string{"-O2", "-DCOLLAPSE"}, "-w26"
	}
	run(t, dir, "gcc", append(build, "-w", "-DSAFETY", "-DNOREDUCE", "-o", "pan", "pan.c")...)
	out := run(t, dir, "./pan", "-m1000000", table)
	if m := otherRE.FindString(out); m != "" {
		t.Fatalf("%s %v: incomplete search: %s", file, defs, m)
	}
	var o outcome
	if m := violatedRE.FindStringSubmatch(out); m != nil {
		o.violated, o.depth = m[1], number(t, m[2])
	}
	states, found := statesRE.FindStringSubmatch(out), errorsRE.FindStringSubmatch(out)
	if states == nil || found == nil || (found[1] == "0") != (o.violated == "") {
		t.Fatalf("%s %v: cannot parse the verifier's report:\n%s", file, defs, out)
	}
	o.states = number(t, states[1])
	return o
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("Error: ")) {
		t.Fatalf("cannot run %s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// tools fails if Spin or a compiler is missing: an unchecked model must not look like a checked
// one.
func tools(t *testing.T) {
	t.Helper()
	for _, name := range []string{"spin", "gcc"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatalf("cannot find %s: install the Debian packages spin and gcc (scripts/install-deps): %v", name, err)
		}
	}
}

// TestModels checks every model at small bounds, expects a counterexample from every mutant, and
// compares the tables of README.md with the results.
func TestModels(t *testing.T) {
	tools(t)
	var table strings.Builder
	all := true
	for _, m := range models {
		rows, complete := results(t, m)
		fmt.Fprintf(&table, "\n### %s\n\n%s", m.name, rows)
		all = all && complete
	}
	if all && !t.Failed() { // only if -run did not select some of the searches
		golden(t, table.String())
	}
}

// results runs the checks of one model, several at a time. It returns its rows in the order of the
// catalogue, and whether all checks ran.
func results(t *testing.T, m model) (rows string, complete bool) {
	right, mutants, reached := make([]string, len(m.right)), make([]string, len(m.mutants)), make([]string, len(m.reached))
	t.Run(m.name, func(t *testing.T) {
		for i, c := range m.right {
			t.Run("holds/"+c.name, func(t *testing.T) {
				t.Parallel()
				o := search(t, m.name+".pml", exhaustive, c.defs...)
				if o.violated != "" {
					t.Errorf("violated: %s, at depth %d", o.violated, o.depth)
				}
				right[i] = fmt.Sprintf("| %s | `%s` | none | %d |\n", c.what, strings.Join(c.defs, " "), o.states)
			})
		}
		for i, c := range m.mutants {
			t.Run("convicts/"+c.name, func(t *testing.T) {
				t.Parallel()
				o := search(t, m.name+".pml", shortest, c.all("MUT_")...)
				if o.violated == "" {
					t.Errorf("no counterexample in %d states: the model does not test the rule %q", o.states, c.what)
				} else {
					t.Logf("counterexample of depth %d after %d states", o.depth, o.states)
				}
				mutants[i] = fmt.Sprintf("| %s | `%s` | %d | %d |\n", c.what, strings.Join(c.all("MUT_"), " "), o.depth, o.states)
			})
		}
		for i, c := range m.reached {
			t.Run("reaches/"+c.name, func(t *testing.T) {
				t.Parallel()
				o := search(t, m.name+".pml", shortest, c.all("REACH_")...)
				if o.violated == "" {
					t.Errorf("not reached in %d states: %s", o.states, c.what)
				}
				reached[i] = fmt.Sprintf("| %s | `%s` | %d | %d |\n", c.what, strings.Join(c.all("REACH_"), " "), o.depth, o.states)
			})
		}
	})
	complete = !slices.Contains(slices.Concat(right, mutants, reached), "")
	return "| as it is | bounds | counterexample | states |\n|---|---|---|---|\n" + strings.Join(right, "") +
		"\n| rule switched off | switch and bounds | depth of the counterexample | states until then |\n|---|---|---|---|\n" + strings.Join(mutants, "") +
		"\n| reached | switch and bounds | depth | states until then |\n|---|---|---|---|\n" + strings.Join(reached, ""), complete
}

const (
	tableBegin = "<!-- The tables are written by go test ./model -update. -->\n"
	tableEnd   = "<!-- End of the tables. -->\n"
)

// golden compares the tables of README.md with the results.
func golden(t *testing.T, table string) {
	t.Helper()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(readme), tableBegin)
	_, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		t.Fatalf("README.md has no place for the tables, between %q and %q", tableBegin, tableEnd)
	}
	want := before + tableBegin + table + "\n" + tableEnd + after
	if want == string(readme) {
		return
	}
	if *update {
		if err := os.WriteFile("README.md", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	version, _ := exec.CommandContext(t.Context(), "spin", "-V").Output()
	t.Errorf("the tables of README.md differ from the results (with %s): run go test ./model -update and check the difference",
		strings.TrimSpace(string(version)))
}

// TestDeep checks the models at larger bounds.
func TestDeep(t *testing.T) {
	if os.Getenv("TANIST_LONG") == "" {
		t.Skip("set TANIST_LONG=1 for the deep bounds; TestModels checks the small ones")
	}
	tools(t)
	for _, m := range models {
		for _, c := range m.deep {
			t.Run(m.name+"/"+c.name, func(t *testing.T) {
				o := search(t, m.name+".pml", deep, c.defs...)
				if o.violated != "" {
					t.Errorf("violated: %s, at depth %d", o.violated, o.depth)
				}
				t.Logf("%s: %d states, no violation (%s)", m.name, o.states, strings.Join(c.defs, " "))
			})
		}
	}
}

// TestEverySwitchIsInTheCatalogue: a mutant that never runs tests no rule.
func TestEverySwitchIsInTheCatalogue(t *testing.T) {
	for _, m := range models {
		source, err := os.ReadFile(m.name + ".pml")
		if err != nil {
			t.Fatal(err)
		}
		var listed []string
		for _, c := range m.mutants {
			listed = append(listed, c.all("MUT_")...)
		}
		for _, c := range m.reached {
			listed = append(listed, c.all("REACH_")...)
		}
		for _, name := range regexp.MustCompile(`\b(MUT|REACH)_[A-Z_]+\b`).FindAllString(string(source), -1) {
			if !slices.Contains(listed, name) {
				t.Errorf("%s.pml has %s, which no check in the catalogue uses", m.name, name)
			}
		}
		for _, name := range listed {
			if (strings.HasPrefix(name, "MUT_") || strings.HasPrefix(name, "REACH_")) && !bytes.Contains(source, []byte(name)) {
				t.Errorf("the catalogue has %s, which %s.pml does not have", name, m.name)
			}
		}
	}
}
