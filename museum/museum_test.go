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
	Found     string        `json:"found"`               // what the suite said
	At        time.Duration `json:"at,omitempty"`        // of simulated time, in the run that found it
	Simulated time.Duration `json:"simulated,omitempty"` // in all
	Runs      int           `json:"runs,omitempty"`
	Real      time.Duration `json:"real"`
}

// court has what the suites need.
type court struct {
	simulator string // a binary that builds and runs players
}

// suites convict mutants. A suite returns an error if it did not.
var suites = map[string]func(c *court, t *testing.T, overlay string) (result, error){
	"simulation": (*court).simulation,
}

func newCourt(t *testing.T) *court {
	t.Helper()
	c := &court{simulator: filepath.Join(t.TempDir(), "simulation")}
	if out, err := command(t.Context(), "go", "test", "-c", "-o", c.simulator, "./election/simulation").CombinedOutput(); err != nil {
		t.Fatalf("cannot build the simulator: %v\n%s", err, out)
	}
	return c
}

// command is a command in the root of the module.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = root
	return cmd
}

// simulation plays random seeds, and the seed that it finds once more without the mutant: a run that
// fails all the same convicts nothing.
func (c *court) simulation(t *testing.T, overlay string) (result, error) {
	first := rand.Uint64N(1 << 32)
	r, err := c.simulate(t, "-mutant", overlay, fmt.Sprint("-first=", first), fmt.Sprint("-shards=", runtime.NumCPU()))
	switch {
	case err != nil:
		return r, err
	case r.Seed == 0:
		return r, fmt.Errorf("not found in %d runs, %v of simulated time, from seed %d", r.Runs, r.Simulated.Round(time.Second), first)
	}
	right, err := c.simulate(t, fmt.Sprint("-first=", r.Seed), "-count=1", "-shards=1")
	if err == nil && right.Seed != 0 {
		err = fmt.Errorf("seed %d fails without the mutant too: %s", r.Seed, right.Found)
	}
	return r, err
}

// simulate returns the first run that fails.
func (c *court) simulate(t *testing.T, args ...string) (result, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 2**limit+time.Minute)
	defer cancel()
	args = append([]string{"-test.run=^TestGuaranteesHoldUnderAnySeed$", "-test.v", "-until-wrong", fmt.Sprint("-for=", *limit)}, args...)
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
	file, err := overlay(t.TempDir(), m)
	if err != nil {
		return result{}, err
	}
	return suite(c, t, file)
}

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

// TestThreeRandomMutantsAreConvicted is the short form of TestMuseum: it takes those that the
// simulation finds in seconds.
func TestThreeRandomMutantsAreConvicted(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds and plays the simulator")
	}
	known, c := results(t), newCourt(t)
	var quick []mutant
	for _, m := range load(t) {
		if r := known[m.name]; m.suite == "simulation" && r.Found != "" && r.Real < 10*time.Second {
			quick = append(quick, m)
		}
	}
	for range min(3, len(quick)) {
		i := rand.IntN(len(quick))
		m := quick[i]
		quick = append(quick[:i:i], quick[i+1:]...)
		t.Run(m.name, func(t *testing.T) {
			r, err := c.convict(t, m)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("seed %d, after %v: %s", r.Seed, r.Real.Round(time.Millisecond), r.Found)
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
			switch {
			case err != nil && m.missing != "":
				t.Skip(err)
			case err != nil:
				t.Error(err)
				return
			case m.missing != "":
				t.Log("the line missing: can be removed")
			}
			t.Logf("seed %d, after %v: %s", r.Seed, r.Real.Round(time.Millisecond), r.Found)
			known[m.name] = r
			if *update {
				keep(t, known)
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
