package simulation

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	oneSeed   = flag.Uint64("seed", 0, "replay the run of this seed, with its timeline, and make it shorter if it fails")
	playFor   = flag.Duration("for", 0, "how long to play random seeds; zero: the same few seeds every time, or 4 min with TANIST_LONG=1")
	firstSeed = flag.Uint64("first", 0, "the first seed; zero: a random one")
	seeds     = flag.Uint64("count", 0, "how many seeds each process plays, whatever time it takes; zero: for as long as is said")
	shards    = flag.Int("shards", runtime.NumCPU(), "how many processes play seeds at the same time")
	shrink    = flag.Bool("shrink", true, "make a run that fails shorter")
	inside    = flag.Int("inside", -1, "be this one of the processes that play; for the test itself")
	mutant    = flag.String("mutant", "", "a file for go build -overlay: play the code with these files replaced")
	first     = flag.Bool("until-wrong", false, "end with the first run that fails")
	builds    = flag.String("build", "", "only build the binary that plays seeds, and write it to this file")
	built     = flag.String("player", "", "play with this binary, written by -build")
)

func duration() time.Duration {
	switch {
	case *playFor != 0:
		return *playFor
	default:
		return 4 * time.Minute
	}
}

// inCI is how many seeds are played if nothing is said: the same ones every time.
const inCI = 500

// player returns the binary that plays seeds.
func player(t *testing.T) string {
	t.Helper()
	if *built != "" {
		return *built
	}
	path, err := build(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestBuild writes the binary that plays seeds, for package museum: a mutant is compiled once, and
// played often.
func TestBuild(t *testing.T) {
	if *builds == "" {
		t.Skip("only with -build")
	}
	if err := os.Rename(player(t), *builds); err != nil {
		t.Fatal(err)
	}
}

// TestPlayer is what the processes that play run.
func TestPlayer(t *testing.T) {
	if *inside < 0 {
		t.Skip("run by the other tests, in a process of its own")
	}
	runtime.GOMAXPROCS(1)      // goroutines of one instant take turns in one order
	runtime.MemProfileRate = 0 // samples are taken by chance
	if *oneSeed != 0 {
		replay(t)
		return
	}
	end := time.Now().Add(duration())
	for n, played := uint64(0), uint64(0); *seeds == 0 && time.Now().Before(end) || played < *seeds; n++ {
		seed := *firstSeed + n*uint64(*shards) + uint64(*inside)
		if *first && *seeds != 1 && seed%4 != 0 && planOf(chance(mix(seed))).long {
			continue // most of what is wrong shows in short runs, of which there are thirty in the same time
		}
		played++
		fmt.Fprintln(os.Stderr, "playing seed", seed)
		o := play(t, seed, false, nil)
		b, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println(result + string(b))
		if *first && len(o.Wrong) > 0 {
			return
		}
	}
}

const result = "RESULT "

// runPlayer plays seeds in another process.
func runPlayer(ctx context.Context, path string, i int, from uint64, args ...string) (all []outcome, err error) {
	args = append([]string{"-test.run=^TestPlayer$", "-test.timeout=0", fmt.Sprint("-inside=", i), fmt.Sprint("-first=", from)}, args...)
	cmd := exec.CommandContext(ctx, path, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var rest strings.Builder
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		text, found := strings.CutPrefix(lines.Text(), result)
		var o outcome
		if found && json.Unmarshal([]byte(text), &o) == nil {
			all = append(all, o)
			rest.Reset()
		} else {
			fmt.Fprintln(&rest, lines.Text())
		}
	}
	err = cmd.Wait()
	if err != nil && ctx.Err() == nil && *first {
		return append(all, crashed(rest.String())), nil
	}
	if err != nil {
		return all, fmt.Errorf("a player ended: %v\n%s", err, rest.String())
	}
	return all, nil
}

// crashed is what came of a run that took the player with it.
func crashed(words string) outcome {
	o := outcome{Wrong: []string{"the run crashed"}, Figures: figures{Seeds: 1}}
	if _, after, found := strings.Cut(words, "playing seed "); found {
		_, _ = fmt.Sscan(after, &o.Seed)
	}
	if _, after, found := strings.Cut(words, "panic: "); found {
		what, _, _ := strings.Cut(after, "\n")
		o.Wrong[0] += ": " + what
	}
	return o
}

// TestGuaranteesHoldUnderAnySeed plays seeds on all cores. Every seed is played to its end.
func TestGuaranteesHoldUnderAnySeed(t *testing.T) {
	if *inside >= 0 || *oneSeed != 0 {
		t.Skip("this process plays, or one seed is replayed")
	}
	path := player(t)
	from, each := *firstSeed, *seeds
	switch long := *playFor != 0 || os.Getenv("TANIST_LONG") != ""; {
	case !long && each == 0:
		each = max(1, inCI/uint64(*shards))
		from = max(from, 1)
	case from == 0:
		from = rand.Uint64N(1 << 40)
	}
	var all figures
	var failed []outcome
	var mu sync.Mutex
	var running sync.WaitGroup
	begun := time.Now()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for i := range *shards {
		running.Go(func() {
			results, err := runPlayer(ctx, path, i, from, fmt.Sprint("-shards=", *shards), fmt.Sprint("-for=", duration()), fmt.Sprint("-count=", each), fmt.Sprint("-until-wrong=", *first))
			mu.Lock()
			defer mu.Unlock()
			for _, o := range results {
				all.add(o.Figures)
				if len(o.Wrong) > 0 {
					failed = append(failed, o)
				}
			}
			if err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			if *first && len(failed) > 0 {
				stop()
			}
		})
	}
	running.Wait()
	t.Logf("%s in %v, first seed %d", all, time.Since(begun).Round(time.Second), from)
	if *first {
		found(all, failed, time.Since(begun))
		return
	}
	if all.Takeovers == 0 {
		t.Error("nobody ever took over: nothing was tested")
	}
	for i, o := range failed {
		if i == 20 {
			t.Errorf("and %d more", len(failed)-i)
			break
		}
		t.Errorf("seed %d (task simulate -- --seed %d):\n%s", o.Seed, o.Seed, strings.Join(o.Wrong, "\n"))
	}
}

// finding is what package museum reads of a run with -until-wrong.
type finding struct {
	Seed      uint64        `json:"seed"` // zero: nothing was wrong
	Wrong     string        `json:"found"`
	At        time.Duration `json:"at"`        // of simulated time, in that run
	Simulated time.Duration `json:"simulated"` // in all
	Runs      int           `json:"runs"`
	Real      time.Duration `json:"real"`
}

// found prints the first run that failed.
func found(all figures, failed []outcome, real time.Duration) {
	f := finding{Simulated: all.Simulated, Runs: all.Seeds, Real: real}
	if len(failed) > 0 {
		f.Seed, f.Wrong, f.At = failed[0].Seed, failed[0].Wrong[0], failed[0].At
	}
	b, _ := json.Marshal(f) // of plain values
	fmt.Println("FOUND " + string(b))
}

func (f figures) String() string {
	return fmt.Sprintf("%d seeds: %.3f simulated years, %d faults, %d takeovers, %d starts, %d quiet times (served after at most %v), %d commits, %d refused, %d overlaps beyond the guarantees, %d planned moves refused, %v of processor time",
		f.Seeds, f.Simulated.Hours()/24/365.25, f.Faults, f.Takeovers, f.Starts, f.Quiets, f.SlowestEnd.Round(time.Millisecond), f.Commits, f.Refused, f.Overlaps, f.Stubborn, f.CPU.Round(time.Millisecond))
}

// TestSameSeedSameTimeline: what a seed does is one thing, event for event, in any process.
func TestSameSeedSameTimeline(t *testing.T) {
	if *inside >= 0 || *oneSeed != 0 {
		t.Skip("this process plays, or one seed is replayed")
	}
	path, from, n := player(t), uint64(1), uint64(6)
	if *firstSeed != 0 {
		from = *firstSeed
	}
	if *seeds != 0 {
		n = *seeds
	}
	var runs [2][]outcome
	var running sync.WaitGroup
	for i := range runs {
		running.Go(func() {
			all, err := runPlayer(t.Context(), path, 0, from, "-shards=1", fmt.Sprint("-count=", n))
			if err != nil {
				t.Error(err)
			}
			runs[i] = all
		})
	}
	running.Wait()
	same := 0
	for i := range min(len(runs[0]), len(runs[1])) {
		if a, b := runs[0][i], runs[1][i]; a.Sum != b.Sum {
			t.Errorf("seed %d has two timelines, of %d and %d events", a.Seed, a.Figures.Events, b.Figures.Events)
		} else if a.Figures.Events > 0 {
			same++
		}
	}
	t.Logf("%d of %d seeds have one timeline", same, n)
	if same != int(n) {
		t.Fail()
	}
}

// TestReplay plays one seed, for people to read, and makes it shorter.
func TestReplay(t *testing.T) {
	if *oneSeed == 0 || *inside >= 0 {
		t.Skip("no seed is given: -seed N")
	}
	cmd := exec.CommandContext(t.Context(), player(t), "-test.run=^TestPlayer$", "-test.v", "-test.timeout=0", "-inside=0",
		fmt.Sprint("-seed=", *oneSeed), fmt.Sprint("-shrink=", *shrink))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
}

func replay(t *testing.T) {
	o := play(t, *oneSeed, true, nil)
	skip := map[int]bool{}
	if len(o.Wrong) > 0 && *shrink {
		for n := o.faults; n > 0; n-- {
			skip[n] = true
			if shorter := play(t, *oneSeed, true, skip); len(shorter.Wrong) > 0 {
				o = shorter
			} else {
				delete(skip, n)
			}
		}
	}
	fmt.Printf("%s\nseed %d, sum %x, %d of %d faults left out: %s\n", o.story, *oneSeed, o.Sum, len(skip), o.faults, o.Figures)
	for _, w := range o.Wrong {
		t.Error(w)
	}
}
