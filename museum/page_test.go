package museum

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var page = filepath.Join(root, "docs", "museum.md")

// TestPageIsCurrent: docs/museum.md has every mutant, and what convicted it.
func TestPageIsCurrent(t *testing.T) {
	all, known := load(t), results(t)
	for _, m := range all {
		if r := known[m.name]; m.reach == "" && r.Found == "" && r.Tried == "" {
			t.Errorf("%s was never played: task museum -- -only '^%s$'", m.name, m.name)
		}
		if m.twin != "" && known[m.twin].Found == "" {
			t.Errorf("%s is out of reach, but its twin %q is not convicted", m.name, m.twin)
		}
	}
	if *update {
		write(t, all, known)
		return
	}
	is, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if string(is) != text(all, known) {
		t.Errorf("%s is not what %s and the patches say: go test ./museum -run Page -args -update", page, record)
	}
}

// write writes the page, and removes results of mutants that are no more.
func write(t *testing.T, all []mutant, known map[string]result) {
	t.Helper()
	there := map[string]result{}
	for _, m := range all {
		if r, ok := known[m.name]; ok && m.reach == "" {
			there[m.name] = r
		}
	}
	keep(t, there)
	if err := os.WriteFile(page, []byte(text(all, there)), 0o644); err != nil {
		t.Fatal(err)
	}
}

const introduction = `# Bug museum

<!-- Written by task museum, from museum/mutants and museum/results.json. Do not edit. -->

Each row is a mutant: the code with one guard or rule switched off, or with a known defect put back in. The patches are
in [museum/mutants](../museum/mutants). They are applied to copies of the files; the product never contains them. The
suite in the row convicted the mutant under random faults. It knows nothing of the mutant, and no unit test counts. With
the suite *model*, Spin finds a counterexample in the model that has the same rule off; the patch itself is not run, or
the simulation has not found it yet.

` + "```" + `
task museum                          # convict every mutant, and rewrite this page
task museum -- -only '^no-wait$'     # one of them, or some, by a regular expression
go test ./museum                     # as in continuous integration: all apply and compile, three random ones are convicted
` + "```" + `

*Simulated* is the simulated time of all runs until the first violation, *real* what that took on two cores, without
compilation. The seeds are random, so both vary from run to run. A seed is that of the code when its row was written.

`

// text returns the page.
func text(all []mutant, known map[string]result) string {
	var b strings.Builder
	b.WriteString(introduction)
	found, reach, missing := 0, 0, 0
	for _, m := range all {
		switch {
		case m.reach != "":
			reach++
		case known[m.name].Found != "":
			found++
		default:
			missing++
		}
	}
	fmt.Fprintf(&b, "%d mutants: %d convicted, %d not found yet, %d out of reach.\n\n", len(all), found, missing, reach)
	b.WriteString("| Mutant | The rule that it breaks | From | Suite | Seed | Simulated | Real | What was seen |\n|---|---|---|---|---|---|---|---|\n")
	for _, m := range all {
		r := known[m.name]
		if m.reach != "" || r.Found == "" {
			continue
		}
		seed, suite := "–", m.suite
		if r.Suite != "" {
			suite = r.Suite
		}
		if r.Seed != 0 {
			seed = fmt.Sprint(r.Seed)
		}
		fmt.Fprintf(&b, "| [%s](../museum/mutants/%s.patch) | %s | %s | %s | %s | %s | %s | %s |\n",
			m.name, m.name, m.rule, m.from, suite, seed, long(r.Simulated), r.Real.Round(time.Millisecond), strings.ReplaceAll(seen(r), "|", "\\|"))
	}
	if missing > 0 {
		b.WriteString("\n## Not found yet\n\nThe simulator is too weak for these, or they need more time, or another rule covers for the one that is off.\n\n")
		b.WriteString("| Mutant | The rule that it breaks | From | Tried |\n|---|---|---|---|\n")
		for _, m := range all {
			if r := known[m.name]; m.reach == "" && r.Found == "" {
				fmt.Fprintf(&b, "| [%s](../museum/mutants/%s.patch) | %s | %s | %s |\n", m.name, m.name, m.rule, m.from, r.Tried)
			}
		}
	}
	if reach > 0 {
		b.WriteString("\n## Out of reach\n\n| Mutant | The rule that it breaks | From | Why |\n|---|---|---|---|\n")
		for _, m := range all {
			if m.reach != "" {
				why := m.reach
				if m.twin != "" {
					why += fmt.Sprintf(". With both off it is [%s](../museum/mutants/%s.patch), which is convicted", m.twin, m.twin)
				}
				fmt.Fprintf(&b, "| [%s](../museum/mutants/%s.patch) | %s | %s | %s |\n", m.name, m.name, m.rule, m.from, why)
			}
		}
	}
	return b.String()
}

// seen writes what a suite said for people: how long into the run that was, and what.
func seen(r result) string {
	_, what, found := strings.Cut(r.Found, "s: ")
	if !found || r.At == 0 {
		what = r.Found
	}
	if before, _, quoted := strings.Cut(what, ": \""); quoted {
		what = before
	}
	if r.At == 0 {
		return what
	}
	return fmt.Sprintf("%s into the run: %s", long(r.At), what)
}

// long writes simulated time for people.
func long(d time.Duration) string {
	switch {
	case d == 0:
		return "–"
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return fmt.Sprintf("%.1f h", d.Hours())
	}
	return fmt.Sprintf("%.1f days", d.Hours()/24)
}
