package agentwatch

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// table prints every row of the decision table.
func table() string {
	var b strings.Builder
	yes := map[bool]string{true: "yes", false: "no"}
	up := map[bool]string{true: "up", false: "down"}
	b.WriteString("| store | one is named | its port answers | others that answer | a term was seen | agent | ask sidecars | counts against retries |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|\n")
	for _, store := range []bool{true, false} {
		for _, named := range []bool{true, false} {
			for _, port := range []bool{true, false} {
				for others := range 3 {
					for _, seen := range []bool{true, false} {
						if named && !seen {
							continue // who is named has a term
						}
						d := Decide(Facts{StoreUp: store, Named: named, Port: port, Others: others, TermSeen: seen})
						fmt.Fprintf(&b, "| %s | %s | %s | %d | %s | %s | %s | %s |\n", up[store], yes[named], yes[port], others,
							yes[seen], d.Agent, yes[d.Ask], yes[d.Miss])
					}
				}
			}
		}
	}
	return b.String()
}

func TestDecisionTable(t *testing.T) {
	const file = "testdata/decide.golden.md"
	got := table()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the table has changed (go test -update, and look at the difference):\n%s", got)
	}
	page, err := os.ReadFile("../docs/agents.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), "\n"+got) {
		t.Error("docs/agents.md has another table: copy the golden file there")
	}
}

// The rules that the rows must obey, whatever the table looks like.
func TestDecisionRules(t *testing.T) {
	for _, store := range []bool{true, false} {
		for _, named := range []bool{true, false} {
			for _, port := range []bool{true, false} {
				for _, seen := range []bool{true, false} {
					for others := range 4 {
						f := Facts{StoreUp: store, Named: named, Port: port, Others: others, TermSeen: seen}
						d := Decide(f)
						if d.Miss != (!port && others == 0) {
							t.Errorf("%+v: a retry counts if and only if nobody answers: %+v", f, d)
						}
						f.UnderWay = true
						if Decide(f).Miss != (d.Miss && !store) {
							t.Errorf("%+v: no retry counts while the store reports that a controller is starting", f)
						}
						if d.Agent == Stop {
							t.Errorf("%+v: the table itself stops nothing", f)
						}
						if d.Agent == Guess && (store || seen || named) {
							t.Errorf("%+v: a guess against better knowledge", f)
						}
						if d.Agent == Follow && !named {
							t.Errorf("%+v: follows nobody", f)
						}
						if d.Ask == store {
							t.Errorf("%+v: sidecars are asked while the store is away, and only then", f)
						}
					}
				}
			}
		}
	}
}
