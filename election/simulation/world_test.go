package simulation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tanist/tanist/election"
)

// world is one cluster in fake time, and its judge. It must be made inside a synctest bubble.
type world struct {
	seed     chance
	timeline *timeline
	ctx      context.Context

	mu         sync.Mutex // guards everything in the world
	store      *store
	storeAway  time.Time // the store can't be reached by anybody until then
	repository *repository
	hosts      []*host
	processes  []*process
	running    []*tree
	pending    sync.WaitGroup // of what is under way

	attended  bool          // sidecars that end are started again, as their service manager would do
	beyond    bool          // faults that the guarantees do not cover happen: the fence alone must hold
	open      bool          // there is no repository, and no fence
	strict    bool          // nobody goes on without the store
	rewound   bool          // somebody has set the store's term back
	scribbled bool          // somebody has written or removed other keys
	margin    time.Duration // that every guard has to end its tree
	newest    election.Term
	opened    map[string]bool // of which controllers and terms a program was ever open
	served    time.Time       // somebody served, last
	wrong     []string
	wrongAt   time.Duration
	figures   figures
}

// figures is what a run, or many, amounts to.
type figures struct {
	Seeds      int           `json:"seeds"`
	Simulated  time.Duration `json:"simulated"`
	Faults     int           `json:"faults"`
	Starts     int           `json:"starts"` // of a program
	Takeovers  int           `json:"takeovers"`
	Commits    int           `json:"commits"`
	Refused    int           `json:"refused"`
	Overlaps   int           `json:"overlaps"` // beyond the guarantees
	Quiets     int           `json:"quiets"`   // times without a fault in which one had to serve
	SlowestEnd time.Duration `json:"slowest"`  // until one did
	Stubborn   int           `json:"stubborn"` // planned moves that were not carried out
	Events     uint64        `json:"events"`
	CPU        time.Duration `json:"cpu"`
}

func (f *figures) add(o figures) {
	f.Seeds += o.Seeds
	f.Simulated += o.Simulated
	f.Faults += o.Faults
	f.Starts += o.Starts
	f.Takeovers += o.Takeovers
	f.Commits += o.Commits
	f.Refused += o.Refused
	f.Overlaps += o.Overlaps
	f.Quiets += o.Quiets
	f.SlowestEnd = max(f.SlowestEnd, o.SlowestEnd)
	f.Stubborn += o.Stubborn
	f.Events += o.Events
	f.CPU += o.CPU
}

func newWorld(ctx context.Context, seed uint64, keep bool) *world {
	w := &world{seed: chance(mix(seed)), ctx: ctx, repository: &repository{}, opened: map[string]bool{}}
	w.timeline = &timeline{base: time.Now(), keep: keep}
	w.served = w.timeline.base
	return w
}

func (w *world) now() time.Time { return time.Now() }

// after does something later, with world.mu held.
func (w *world) after(d time.Duration, do func()) {
	w.pending.Add(1)
	time.AfterFunc(max(0, d), func() {
		defer w.pending.Done()
		w.mu.Lock()
		defer w.mu.Unlock()
		do()
	})
}

func (w *world) host(name string) *host {
	for _, h := range w.hosts {
		if h.name == name {
			return h
		}
	}
	return nil
}

// violates records that a guarantee was broken.
func (w *world) violates(format string, args ...any) {
	text := fmt.Sprintf("%v: ", time.Since(w.timeline.base)) + fmt.Sprintf(format, args...)
	w.timeline.add("judge", "VIOLATION", text)
	if len(w.wrong) == 0 {
		w.wrongAt = time.Since(w.timeline.base)
	}
	w.wrong = append(w.wrong, text)
}

// began is told of every program that begins, ended of every one that has ended: by the programs, not by those who keep them.
func (w *world) began(t *tree) {
	w.timeline.add(t.id, "program begins, term", int(t.term))
	w.figures.Starts++
	for _, o := range w.running {
		if w.beyond || o.excused && o.host.clock() >= o.deadline {
			w.figures.Overlaps++
			w.timeline.add("judge", "two programs, beyond the guarantees", o.id, t.id)
			continue
		}
		w.violates("two programs: %s (term %d) begins while %s (term %d) runs", t.id, t.term, o.id, o.term)
	}
	if t.term > w.newest {
		w.figures.Takeovers++
	}
	if t.term < t.host.newest {
		w.violates("%s begins with term %d after term %d on the same host", t.id, t.term, t.host.newest)
	}
	t.host.newest = max(t.host.newest, t.term)
	if t.term < w.newest && !w.beyond && (!w.open || !w.rewound) {
		w.violates("%s begins with term %d after term %d", t.id, t.term, w.newest)
	}
	w.newest = max(w.newest, t.term)
	w.running = append(w.running, t)
}

func (w *world) ended(t *tree) {
	if !t.begun {
		return
	}
	w.timeline.add(t.id, "program has ended:", t.how)
	for i, o := range w.running {
		if o == t {
			w.running = append(w.running[:i:i], w.running[i+1:]...)
			return
		}
	}
}

// serves reports whether a program runs that is open, that can use the repository, and that the store
// sends users to.
func (w *world) serves() *tree {
	a := w.store.snap.Active
	if !a.Serving() {
		return nil
	}
	for _, t := range w.running {
		if t.host.name == a.Controller && t.term == a.Term {
			select {
			case <-t.open:
				if w.open || slices.Contains(w.repository.sessions, t) {
					return t
				}
			default:
			}
		}
	}
	return nil
}

// rests waits without a fault until everything in the store is as it must be, at most limit.
func (w *world) rests(limit time.Duration) {
	if len(w.wrong) > 0 {
		return
	}
	for begun := w.now(); ; time.Sleep(100*time.Millisecond + 7*time.Nanosecond) {
		w.mu.Lock()
		why := w.restless()
		if why != "" && w.now().Sub(begun) > limit {
			w.violates("%v after one serves, %s", limit, why)
		}
		done := why == "" || len(w.wrong) > 0
		w.mu.Unlock()
		if done {
			return
		}
	}
}

// restless returns what in the store is not as it must be when nothing happens.
func (w *world) restless() string {
	s := w.store
	a, b := s.snap.Active, s.snap.Breadcrumb
	switch {
	case w.serves() == nil:
		return "nobody serves"
	case s.snap.TermBad != nil:
		return "the term record can't be read"
	case b.Controller != a.Controller || b.Of() != a.Term || b.Clean:
		return fmt.Sprintf("the term record is not that of term %d of %s: %q", a.Term, a.Controller, s.keys[election.TermKey].value)
	case w.scribbled:
		return "" // nobody promises that what only people read is repaired
	case string(s.keys[election.URLKey].value) != a.URL:
		return fmt.Sprintf("the URL is %q", s.keys[election.URLKey].value)
	}
	for _, h := range w.hosts {
		role := election.RolePassive
		if h.name == a.Controller {
			role = election.RoleActive
		}
		// The claim that follows a holder removes its role word, even one that its next process has written.
		is := string(s.keys[election.RoleWordKey(h.name)].value)
		if h.process.lives() && is != string(role) && (is != "" || role == election.RoleActive) {
			return fmt.Sprintf("the role of %s is %q", h.name, is)
		}
		c, err := election.DecodeController(s.keys[election.ControllerKey(h.name)].value)
		if h.process.lives() && (err != nil || c.Name != h.name || c.Role != role || c.Incarnation != h.process.id) {
			return fmt.Sprintf("the status of %s is %q", h.name, s.keys[election.ControllerKey(h.name)].value)
		}
	}
	return ""
}

// quiet waits without a fault until one serves, at most limit.
func (w *world) quiet(limit time.Duration) {
	begun := w.now()
	for {
		w.mu.Lock()
		t := w.serves()
		took := w.now().Sub(begun)
		if t != nil {
			w.figures.Quiets++
			w.figures.SlowestEnd = max(w.figures.SlowestEnd, took)
			w.timeline.add("judge", "serves after", took, t.id)
			w.mu.Unlock()
			return
		}
		if took > limit {
			w.violates("nobody serves %v after the last fault", limit)
			w.mu.Unlock()
			w.explain()
			return
		}
		w.mu.Unlock()
		time.Sleep(20*time.Millisecond + 7*time.Nanosecond)
	}
}

// explain adds what each sidecar thinks.
func (w *world) explain() {
	for _, h := range w.hosts {
		if p := h.process; p.lives() {
			v := p.sidecar.View()
			w.timeline.add(p.id, string(v.Status.State), v.Status.Reason, string(v.Decision.Code), v.Decision.Why)
			w.wrong = append(w.wrong, fmt.Sprintf("  %s is %s (%s), decides %s: %s", p.id, v.Status.State, v.Status.Reason, v.Decision.Code, v.Decision.Why))
		}
	}
}

// finish moves the program once more, as planned, ends everything, and looks what is left behind.
func (w *world) finish(limit time.Duration) {
	if len(w.wrong) == 0 {
		time.Sleep(5 * time.Second) // what was told to end at the last moment has ended
		w.quiet(limit)
	}
	if len(w.wrong) == 0 {
		w.move(limit)
	}
	w.mu.Lock()
	w.attended = false
	w.mu.Unlock()
	for _, h := range w.hosts {
		if h.process.lives() {
			h.process.cancel(errors.New("told to end"))
			<-h.process.done
			if err := h.process.ended; err != nil {
				w.violates("%s ended with: %v", h.process.id, err)
			}
		}
	}
	w.mu.Lock()
	for _, t := range w.running {
		w.violates("%s is left behind", t.id)
		t.end("left behind")
	}
	for _, h := range w.hosts {
		if h.trace != nil && !h.trace.over {
			h.trace.end("left behind")
		}
		h.setHealth("")
	}
	w.mu.Unlock()
	for _, p := range w.processes {
		<-p.done
	}
	w.pending.Wait()
	time.Sleep(5 * time.Minute) // leases of processes that were killed end by themselves
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left()
	w.figures.Simulated = time.Since(w.timeline.base)
	w.figures.Commits, w.figures.Refused = w.repository.commits, w.repository.refused
	w.figures.Events = w.timeline.events
}

// move is a planned move without any fault: another serves, and the history tells of both reigns.
func (w *world) move(limit time.Duration) {
	w.mu.Lock()
	before := w.serves()
	w.mu.Unlock()
	var now *tree
	for n := 0; before != nil && (now == nil || now == before); n++ {
		w.mu.Lock()
		// A holder gives an heir three seconds to answer, and with long leases one that missed the hint needs more: people ask again.
		if a := w.store.snap.Active; a != nil && a.Term == before.term && n%200 == 0 {
			r := election.Request{ID: "last", Op: election.OpSwitchover, By: "ana", Term: before.term, For: time.Minute}
			_ = w.store.set(election.Put{Key: election.RequestKey, Value: r.Encode(), If: new(election.Version)})
		}
		now = w.serves()
		w.mu.Unlock()
		if time.Duration(n)*50*time.Millisecond > limit {
			// A passive that has seen a higher term than the holder knows of does not offer itself: docs/reliability.md, what it
			// has found.
			w.figures.Stubborn++
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	time.Sleep(5 * time.Second)
	w.mu.Lock()
	defer w.mu.Unlock()
	if now == nil {
		w.violates("nobody serves, although nothing has happened since one did")
		return
	}
	if now.running && !w.open && !slices.Contains(w.repository.sessions, now) {
		w.violates("%s serves, and cannot use the repository", now.id)
	}
	for _, t := range []*tree{before, now} {
		var h election.History
		e := w.store.keys[election.HistoryKey(t.term)]
		if json.Unmarshal(e.value, &h) != nil || h.To != t.host.name || t == before && h.Ended.IsZero() {
			w.violates("the history does not tell of term %d of %s: %q", t.term, t.host.name, e.value)
		}
	}
}

// left checks that no lease and no key is left behind. Leases of processes that were killed end by themselves.
func (w *world) left() {
	for _, id := range w.store.allLeases() {
		w.violates("lease %s is left behind", id)
	}
	for _, key := range w.store.names {
		if w.store.keys[key].lease != "" {
			w.violates("the key %s is left behind", key)
		}
	}
}

// logger puts the logs of the processes into the timeline.
type logger struct {
	w  *world
	id string
}

func (l logger) Write(b []byte) (int, error) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.w.timeline.lines = append(l.w.timeline.lines, line{time.Since(l.w.timeline.base), l.id, "log", []any{string(b[:len(b)-1])}})
	return len(b), nil
}
