package agentwatch

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

// truth is the actual state of the world, independent of the watch's picture.
type truth struct {
	w   *world
	rng *rand.Rand
	log []string

	names   []string
	term    election.Term
	record  *election.Active // in the store
	storeUp bool             // as this agent sees it
	cut     bool             // this agent is cut off from everything
	open    map[string]bool
	views   map[string]*election.Active // of the sidecars that run
	seen    election.Term               // highest that the agent can have seen
	target  *election.Active
	running string // what the agent is expected to be pointed at
	// Since when nobody is reachable; zero: somebody is. surely ignores moments of reachability
	// that are too short to be detected with certainty.
	missing, surely, reached time.Time
}

// reach records whether somebody is reachable from now on.
func (r *truth) reach(miss bool) {
	now := time.Now()
	switch {
	case miss && r.missing.IsZero():
		r.missing = now
		if r.surely.IsZero() || now.Sub(r.reached) > 2*time.Second {
			r.surely = now
		}
	case !miss && !r.missing.IsZero():
		r.missing, r.reached = time.Time{}, now
	}
}

// show makes the world match the truth.
func (r *truth) show() {
	r.w.do(func() {
		clear(r.w.open)
		clear(r.w.hang)
		clear(r.w.sidecars)
		for _, n := range r.names {
			r.w.open[n+".test:8080"] = r.open[n]
			r.w.hang[n+".test:8080"] = r.cut
			if v, ok := r.views[n]; ok && !r.cut {
				r.w.sidecars[n+".test:8710"] = election.ClusterRecord{Cluster: "orders", Active: v}
			}
		}
	})
	if !r.storeUp || r.cut {
		r.w.storeDown()
	} else {
		r.w.say(election.Sighting{Active: r.record})
	}
}

func (r *truth) takeover(n string) {
	for _, other := range r.names {
		r.open[other] = false
	}
	r.term++
	r.open[n] = true
	r.record = active(n, r.term, election.StateServing)
	for name := range r.views {
		if name == n || r.rng.IntN(4) > 0 { // now and then one keeps an old picture
			r.views[name] = r.record
		}
	}
	if _, up := r.views[n]; !up {
		r.views[n] = r.record
	}
}

// event makes something happen. fast: right before or after another event.
func (r *truth) event(fast bool) string {
	n := r.names[r.rng.IntN(len(r.names))]
	if !r.missing.IsZero() && time.Since(r.missing) > 5*time.Second && r.rng.IntN(8) > 0 { // it would end soon
		r.cut = false
		clear(r.open)
		r.takeover(n)
		return "rescue: " + n
	}
	if r.record != nil && r.record.Term < r.term { // a store that insists is believed; see the test of that
		r.takeover(n)
		return "takeover by " + n
	}
	switch r.rng.IntN(12) {
	case 0, 1, 2:
		r.takeover(n)
		return "takeover by " + n
	case 3:
		if r.record != nil {
			r.open[r.record.Controller] = false
			delete(r.views, r.record.Controller)
		}
		r.record = nil
		return "the active's host crashed"
	case 4:
		if r.record != nil {
			r.open[r.record.Controller] = false
		}
		return "the active hangs, and its sidecar has not noticed"
	case 5:
		clear(r.open)
		clear(r.views)
		r.record = nil
		return "all killed"
	case 6:
		clear(r.open)
		clear(r.views)
		r.takeover(n)
		return "all killed and one back: " + n
	case 7:
		r.storeUp = false
		return "store down"
	case 8:
		r.storeUp = true
		return "store up"
	case 9:
		r.cut = !r.cut
		return fmt.Sprintf("cut off: %v", r.cut)
	case 10:
		if r.term > 1 && !fast { // it is certain what the agent has seen before
			r.record = active(n, r.term-1, election.StateServing)
			return "a record of an older term, " + n
		}
		return "nothing"
	default:
		r.w.mu.Lock()
		var p *fakeProc
		for _, q := range r.w.procs {
			if q.up {
				p = q
			}
		}
		r.w.mu.Unlock()
		if p != nil {
			p.die("exit status 1")
			r.running = ""
		}
		return "the agent dies"
	}
}

// facts returns the facts of the truth, to look up in the decision table.
func (r *truth) facts() Facts {
	up := r.storeUp && !r.cut
	f := Facts{StoreUp: up}
	if up && r.record != nil && r.record.Term >= r.seen {
		r.seen, r.target = r.record.Term, r.record
		f.Named = true
	}
	f.UnderWay = up && r.record != nil && r.record.Term < r.seen // it may yet turn out to be the one
	if !up && !r.cut {
		for _, v := range r.views {
			if v != nil && v.Term > r.seen {
				r.seen, r.target = v.Term, v
			}
		}
	}
	f.TermSeen = r.seen > 0
	if !up {
		f.Named = r.target != nil
	}
	for _, n := range r.names {
		if !r.open[n] || r.cut {
			continue
		}
		if r.target != nil && r.target.Controller == n {
			f.Port = true
		} else {
			f.Others++
		}
	}
	return f
}

// settle is the longest time until everything is detected and done: Fall probes, a round of
// questions, the longest pause.
const settle = 8 * time.Second

func TestRandomSequencesAgainstTheTable(t *testing.T) {
	runs := 150
	if os.Getenv("TANIST_LONG") != "" {
		runs = 3000
	}
	exits := 0
	for seed := range runs {
		in(t, func(t *testing.T, w *world) {
			rng := rand.New(rand.NewPCG(uint64(seed), 8))
			r := &truth{
				w: w, rng: rng, names: []string{"a", "b", "c"}, storeUp: true, missing: time.Now(), surely: time.Now(),
				open: map[string]bool{}, views: map[string]*election.Active{},
			}
			w.stopTime = time.Duration(rng.IntN(300)) * time.Millisecond
			w.startTime = time.Duration(rng.IntN(100)) * time.Millisecond
			c := w.config()
			c.Random = func() float64 { return 0.3 }
			c.Agents[0].Command = []string{"/bin/agent", "{{ .Active.Host }}"}
			c.Backoff.Max = time.Second
			for _, n := range r.names {
				c.Controllers = append(c.Controllers, urlOf(n))
				c.Sidecars = append(c.Sidecars, "http://"+n+".test:8710")
			}
			watch, end := w.run(t, c)
			limit := time.Duration(c.Retries.Count) * c.Retries.Every
			slack := c.Probe.Interval + 2*c.Probe.Timeout

			fail := func(format string, args ...any) {
				t.Errorf("seed %d: %s\n%s\n%+v", seed, fmt.Sprintf(format, args...), strings.Join(r.log, "\n"), watch.Snapshot())
			}
			over := false
			for step := 0; step < 40 && !over && !t.Failed(); step++ {
				// One event, or several too fast to be seen one by one.
				burst := 1 + rng.IntN(3)/2*rng.IntN(5)
				for range burst {
					what := r.event(burst > 1)
					r.log = append(r.log, fmt.Sprintf("%v %s", time.Since(w.began), what))
					r.show()
					r.reach(Decide(r.facts()).Miss)
					sleep(time.Duration(rng.IntN(3)) * 100 * time.Millisecond)
				}
				sleep(settle + time.Duration(rng.IntN(4000))*time.Millisecond)

				f := r.facts()
				d := Decide(f)
				r.reach(d.Miss)
				got := strings.Join(w.living(), ",")
				status := watch.Snapshot().Agents[0]
				if got != "" {
					got += fmt.Sprintf("@%d", status.Term)
				}
				if status.State == "unreachable" {
					over = true
					exits++
					at := status.Since // when it gave up
					if out := at.Sub(r.surely); out < limit-slack || r.missing.IsZero() && at.Sub(r.reached) > slack {
						fail("gave up after %v without a controller", out)
					}
					break
				}
				if !r.missing.IsZero() && time.Since(r.missing) > limit+slack {
					fail("did not give up after %v without a controller", time.Since(r.missing))
				}
				switch {
				case d.Agent == Follow:
					r.running = fmt.Sprintf("%s.test@%d", r.target.Controller, r.target.Term)
				case d.Agent == Guess:
					if host, _, _ := strings.Cut(got, "@"); r.open[strings.TrimSuffix(host, ".test")] {
						r.running = host + "@0" // the one that answers, or one that answered first and still does
					} else {
						r.running = "one that answers"
					}
				case r.target != nil && got == fmt.Sprintf("%s.test@%d", r.target.Controller, r.target.Term):
					// Started while its port still counted as answering, or left as it was.
					r.running = got
				case burst > 1:
					r.running = got // it was left as it was found, at whichever moment that was
				}
				if got != r.running {
					fail("%+v: the agent is pointed at %q, want %q", f, got, r.running)
				}
			}
			err := end()
			var un *UnreachableError
			if gaveUp := errors.As(err, &un); over && !gaveUp || gaveUp && !over && time.Since(r.surely) < limit-slack {
				fail("Run: %v", err)
			}
			if left := w.living(); len(left) > 0 {
				fail("left running: %q", left)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			var terms []election.Term
			for _, p := range w.procs {
				terms = append(terms, p.term())
			}
			if !slices.IsSorted(terms) {
				fail("agents were started at terms %d", terms)
			}
		})
		if t.Failed() {
			return
		}
	}
	t.Logf("%d sequences, %d of them ended with exit", runs, exits)
	if exits == 0 || exits == runs {
		t.Error("the sequences are too tame, or too wild, to show anything")
	}
}
