package museum

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	only   = flag.String("only", ".", "a regular expression: play only the mutants whose names match")
	limit  = flag.Duration("limit", 2*time.Minute, "how long each mutant is played at most")
	update = flag.Bool("update", false, "rewrite results.json and docs/museum.md")
)

// result is how a mutant was convicted.
type result struct {
	Seed      uint64        `json:"seed,omitempty"`
	Found     string        `json:"found,omitempty"`     // what the suite said; empty: it was not found
	Tried     string        `json:"tried,omitempty"`     // how long it was looked for in vain, with the mutant's own suite
	Suite     string        `json:"suite,omitempty"`     // that convicted it
	At        time.Duration `json:"at,omitempty"`        // of simulated time, in the run that found it
	Simulated time.Duration `json:"simulated,omitempty"` // in all
	Runs      int           `json:"runs,omitempty"`
	Real      time.Duration `json:"real"`
	// Searches has the number of runs that each of several searches took, all from random seeds. See
	// [result.quick].
	Searches []int `json:"searches,omitempty"`
}

// Continuous integration draws only mutants that it cannot fail to find. A mutant is quick if each of
// searchesKept searches has found it within quickRuns runs, and continuous integration plays
// quickLimit of them. Let p be the probability that one run convicts the mutant. That it counts as
// quick and is then not found has the probability
//
//	(1-(1-p)^quickRuns)^searchesKept × (1-p)^quickLimit < (quickRuns×p)^searchesKept × exp(-quickLimit×p)
//
// which is largest at p = searchesKept/quickLimit = 0.004: 0.1^8 × exp(-8) < 4e-12. So one
// run of continuous integration fails by chance with less than 2e-11, whatever p is. It counts
// runs, not seconds, so that a busy machine changes nothing.
const (
	searchesKept = 8
	quickRuns    = 25
	quickLimit   = 2000
)

// quick reports whether continuous integration may draw the mutant.
func (r result) quick() bool {
	return len(r.Searches) >= searchesKept && slices.Max(r.Searches) <= quickRuns
}

// court has what the suites need.
type court struct {
	simulator string // a binary that builds and runs players
	right     string // a player without a mutant
	runs      int    // how many runs a search has at most; zero: as many as there is time for
}

// suites convict mutants. A suite returns an error if it did not.
var suites = map[string]func(c *court, t *testing.T, m mutant) (result, error){
	"simulation": (*court).simulation,
	"model":      (*court).model,
}

func newCourt(t *testing.T) *court {
	t.Helper()
	dir := t.TempDir()
	c := &court{simulator: filepath.Join(dir, "simulation"), right: filepath.Join(dir, "right")}
	if out, err := command(t.Context(), "go", "test", "-c", "-o", c.simulator, "./election/simulation").CombinedOutput(); err != nil {
		t.Fatalf("cannot build the simulator: %v\n%s", err, out)
	}
	if err := c.build(t, c.right); err != nil {
		t.Fatal(err)
	}
	return c
}

// build builds a player.
func (c *court) build(t *testing.T, path string, args ...string) error {
	cmd := command(t.Context(), c.simulator, append([]string{"-test.run=^TestBuild$", "-build", path}, args...)...)
	cmd.Dir = filepath.Join(root, "election", "simulation")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build a player: %v\n%s", err, tail(out))
	}
	return nil
}

// command is a command in the root of the module.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = root
	return cmd
}

// simulation plays random seeds, and the seed that it finds once more without the mutant: a run that
// fails all the same convicts nothing. A mutant that is found soon is searched for some more times.
func (c *court) simulation(t *testing.T, m mutant) (result, error) {
	file, err := overlay(t.TempDir(), m)
	if err != nil {
		return result{}, err
	}
	path := filepath.Join(t.TempDir(), "player")
	if err := c.build(t, path, "-mutant", file); err != nil {
		return result{}, err
	}
	r, err := c.search(t, path, c.runs)
	if err != nil || r.Runs > quickRuns || c.runs != 0 {
		return r, err
	}
	for r.Searches = []int{r.Runs}; len(r.Searches) < searchesKept; {
		again, err := c.search(t, path, quickRuns)
		if err != nil {
			t.Log(err)
			return r, nil // it was found, and is not quick
		}
		r.Searches = append(r.Searches, again.Runs)
	}
	return r, nil
}

// search looks for a run that fails with the mutant, and does not fail without it.
func (c *court) search(t *testing.T, player string, runs int) (result, error) {
	first := rand.Uint64N(1 << 32)
	args := []string{fmt.Sprint("-first=", first), fmt.Sprint("-shards=", runtime.NumCPU())}
	if runs != 0 {
		args = append(args, fmt.Sprint("-count=", (runs+runtime.NumCPU()-1)/runtime.NumCPU()))
	}
	r, err := c.simulate(t, player, args...)
	switch {
	case err != nil:
		return r, err
	case r.Seed == 0:
		return r, fmt.Errorf("not found in %d runs, %v of simulated time, from seed %d", r.Runs, r.Simulated.Round(time.Second), first)
	}
	right, err := c.simulate(t, c.right, fmt.Sprint("-first=", r.Seed), "-count=1", "-shards=1")
	if err == nil && right.Seed != 0 {
		err = fmt.Errorf("seed %d fails without the mutant too: %s", r.Seed, right.Found)
	}
	return r, err
}

// simulate returns the first run that fails.
func (c *court) simulate(t *testing.T, player string, args ...string) (result, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 2**limit+time.Minute)
	defer cancel()
	args = append([]string{"-test.run=^TestGuaranteesHoldUnderAnySeed$", "-test.v", "-until-wrong", fmt.Sprint("-for=", *limit), "-player", player}, args...)
	cmd := command(ctx, c.simulator, args...)
	cmd.Dir = filepath.Join(root, "election", "simulation")
	out, err := cmd.CombinedOutput()
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		if text, found := strings.CutPrefix(lines.Text(), "FOUND "); found {
			var r result
			return r, json.Unmarshal([]byte(text), &r)
		}
	}
	return result{}, fmt.Errorf("the simulator ended without a result: %v\n%s", err, tail(out))
}

func tail(out []byte) []byte {
	if len(out) > 4000 {
		out = out[len(out)-4000:]
	}
	return out
}

// convict lets the suite of a mutant convict it.
func (c *court) convict(t *testing.T, m mutant) (result, error) {
	t.Helper()
	suite := suites[m.suite]
	if suite == nil {
		return result{}, fmt.Errorf("there is no suite %q", m.suite)
	}
	r, err := suite(c, t, m)
	if err == nil {
		r.Suite = m.suite
	}
	if err == nil || m.model == "" || m.suite == "model" {
		return r, err
	}
	r, failed := c.model(t, m)
	r.Suite, r.Tried = "model", err.Error()
	return r, failed
}

// model lets Spin find a counterexample in the model that has the same rule off. The patch is not run.
func (c *court) model(t *testing.T, m mutant) (result, error) {
	file, name, _ := strings.Cut(m.model, "/")
	begun := time.Now()
	run := fmt.Sprintf("^TestModels$/^%s$/^convicts$/^%s$", regexp.QuoteMeta(file), regexp.QuoteMeta(name))
	out, err := command(t.Context(), "go", "test", "-count=1", "-v", "-run", run, "./model").CombinedOutput()
	found := counterexampleRE.FindStringSubmatch(string(out))
	if err != nil || found == nil {
		return result{}, fmt.Errorf("no counterexample from %s: %v\n%s", m.model, err, tail(out))
	}
	return result{Found: fmt.Sprintf("%s.pml with MUT_%s: %s", file, name, found[1]), Real: time.Since(begun)}, nil
}

var counterexampleRE = regexp.MustCompile(`(counterexample of depth \d+ after \d+ states)`)

func load(t *testing.T) []mutant {
	t.Helper()
	all, err := mutants()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatal("there are no mutants")
	}
	return all
}

// TestMutantsApplyAndCompile: no mutant has become void because the code was changed.
func TestMutantsApplyAndCompile(t *testing.T) {
	rest := load(t)
	for _, m := range rest {
		if _, err := apply(m); err != nil {
			t.Error(err)
		}
	}
	for round := 0; len(rest) > 0 && !t.Failed(); round++ {
		var together, later []mutant
		packages := map[string]bool{}
		for _, m := range rest { // those that touch other places compile together
			if _, err := apply(append(together, m)...); err != nil {
				later = append(later, m)
				continue
			}
			together = append(together, m)
			for _, h := range m.hunks {
				packages["./"+filepath.Dir(h.file)] = true
			}
		}
		if len(together) == 0 {
			t.Fatal("a mutant's own hunks are in each other's way")
		}
		file, err := overlay(t.TempDir(), together...)
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"build", "-overlay", file}
		for p := range packages {
			args = append(args, p)
		}
		if out, err := command(t.Context(), "go", args...).CombinedOutput(); err != nil {
			t.Errorf("round %d: cannot compile: %v\n%s", round, err, out)
		}
		rest = later
	}
}

// TestThreeRandomMutantsAreConvicted is the short form of TestMuseum: it takes mutants that it cannot
// fail to find.
func TestThreeRandomMutantsAreConvicted(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds and plays the simulator")
	}
	known, c := results(t), newCourt(t)
	c.runs = quickLimit
	var quick []mutant
	for _, m := range load(t) {
		if m.suite == "simulation" && known[m.name].quick() {
			quick = append(quick, m)
		}
	}
	if len(quick) < 3 {
		t.Fatalf("%d mutants are found surely and soon: task museum", len(quick))
	}
	for range 3 {
		i := rand.IntN(len(quick))
		m := quick[i]
		quick = append(quick[:i:i], quick[i+1:]...)
		t.Run(m.name, func(t *testing.T) {
			r, err := c.convict(t, m)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("seed %d, after %d runs and %v: %s", r.Seed, r.Runs, r.Real.Round(time.Millisecond), r.Found)
		})
	}
}

// TestMuseum convicts every mutant.
func TestMuseum(t *testing.T) {
	if os.Getenv("TANIST_LONG") == "" {
		t.Skip("set TANIST_LONG=1; TestThreeRandomMutantsAreConvicted is the short form")
	}
	name, err := regexp.Compile(*only)
	if err != nil {
		t.Fatal(err)
	}
	known, all, c := results(t), load(t), newCourt(t)
	for _, m := range all {
		if m.reach != "" || !name.MatchString(m.name) {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			r, err := c.convict(t, m)
			found := known[m.name].Found != ""
			if err != nil {
				r = result{Tried: err.Error()}
			}
			known[m.name] = r
			if *update {
				keep(t, known)
			}
			switch {
			case err == nil:
				t.Logf("seed %d, after %d runs and %v, searches %v: %s", r.Seed, r.Runs, r.Real.Round(time.Millisecond), r.Searches, r.Found)
			case found:
				t.Errorf("it was found before: %v", err)
			default:
				t.Skip(err)
			}
		})
	}
	if *update {
		write(t, all, known)
	}
}

const record = "results.json"

// results reads what the last run of TestMuseum found.
func results(t *testing.T) map[string]result {
	t.Helper()
	all := map[string]result{}
	b, err := os.ReadFile(record)
	if errors.Is(err, os.ErrNotExist) {
		return all
	}
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// keep writes results.json.
func keep(t *testing.T, known map[string]result) {
	t.Helper()
	b, err := json.MarshalIndent(known, "", "\t")
	if err == nil {
		err = os.WriteFile(record, append(b, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
