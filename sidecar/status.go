package sidecar

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tanist/tanist/election"
)

// View is the state of a sidecar, for the REST interface, metrics and the service manager. It comes
// from memory.
type View struct {
	Status     election.Controller
	Term       election.Term    // of the current reign, or zero
	ValidUntil election.Instant // s+V of the current reign, or zero
	LeaseLeft  time.Duration    // until then; zero without a lease
	Snapshot   election.Snapshot
	Store      error // why the store is unreadable; nil while it is readable
	Decision   election.Decision
	Renewals   uint64
	Failures   uint64
	Takeovers  map[election.Why]uint64 // reigns of this process that served, by their reason
	Alone      bool                    // the reign continues without the store
	Entered    election.Instant        // when the current state was entered
	Ticked     election.Instant        // when the elector last read the store, or a renewal was tried
}

// board is the sidecar's record of itself.
type board struct {
	clock election.Clock

	mu       sync.Mutex
	status   election.Controller
	tenure   *election.Tenure
	fit      bool
	unfit    string
	seen     election.Status
	observed bool
	looking  election.Instant // the first look at the store; zero: none yet
	said     election.Role    // the role last announced to hooks
	promised election.Term    // the last term that this side promised for
	ticked   election.Instant
	entered  election.Instant // when the current state was entered
	begun    bool             // a state was entered since New
	took     map[election.Why]uint64
	told     string           // the reason that was logged last
	toldAt   election.Instant // when

	termBad atomic.Bool
}

func (b *board) get() election.Controller {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status
}

// enter records a state. changed is false if nothing is new. The old state is empty if there was
// none.
func (b *board) enter(state election.State, reason string) (now election.Controller, old election.State, changed bool) {
	at := b.clock()
	b.mu.Lock()
	defer b.mu.Unlock()
	old = b.status.State
	if old == state && b.status.Reason == reason {
		return b.status, old, false
	}
	if !b.begun && old == state {
		old = "" // a sidecar that is unfit from its start must report why, too
	}
	b.begun = true
	if old != state {
		b.status.Since = time.Now().UTC()
		b.entered = at
	}
	b.status.State, b.status.Reason = state, reason
	b.status.Role = election.RolePassive
	if state == election.StateServing {
		b.status.Role, b.status.Failure = election.RoleActive, nil
	}
	if state != election.StateServing {
		b.status.Health = "-"
	}
	return b.status, old, true
}

// tell reports whether a state is to be logged: when it is new, and while this side is unfit, when the
// reason is another, at most once per tellEvery.
func (b *board) tell(state election.State, reason string, entered bool) bool {
	now := b.clock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !entered && (state != election.StateUnfit || reason == b.told || now.Sub(b.toldAt) < tellEvery) {
		return false
	}
	b.told, b.toldAt = reason, now
	return true
}

// tellEvery bounds how often a changing reason is logged. Some contain a port or a time.
const tellEvery = 10 * time.Second

// takeover counts a reign that serves.
func (b *board) takeover(reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.took == nil {
		b.took = map[election.Why]uint64{}
	}
	b.took[election.WhyOf(reason)]++
}

// standing records whether this side is not counted as fit for a while, and the term that it has
// outlived. It returns the status to publish if that is new.
func (b *board) standing(seen election.Status) (status election.Controller, changed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	changed = b.status.Cooling != seen.Cooling || b.status.Outlived != seen.Outlived
	b.status.Cooling, b.status.Outlived = seen.Cooling, seen.Outlived
	return b.status, changed
}

// health records a verdict and returns the status to publish.
func (b *board) health(words string) election.Controller {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status.Health = words
	return b.status
}

// fail records the failure of term's reign, to be reported with the next state. A failed start stays
// on record until one succeeds.
func (b *board) fail(term election.Term, why string, start bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status.Failure = &election.Failure{At: time.Now().UTC(), Term: term, Why: why, Start: start}
}

func (b *board) begin(t *election.Tenure) {
	now := b.clock()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tenure, b.ticked = t, now
	if b.looking == 0 && t != nil {
		b.looking = now
	}
}

func (b *board) over() { b.begin(nil) }

func (b *board) reigning() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.tenure != nil
}

func (b *board) term() election.Term {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tenure == nil {
		return 0
	}
	return b.tenure.Term
}

func (b *board) fitness() (fit bool, why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fit, b.unfit
}

func (b *board) setFitness(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fit, b.unfit = err == nil, ""
	if err != nil {
		b.unfit = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
}

// seeStore records what the elector saw, and reports whether the store became readable or
// unreadable.
func (b *board) seeStore(s election.Status) (changed bool) {
	now := b.clock()
	b.mu.Lock()
	defer b.mu.Unlock()
	changed = (b.seen.Store == nil) != (s.Store == nil)
	if s.Store != nil {
		s.Snapshot = b.seen.Snapshot
	}
	b.seen, b.observed, b.ticked = s, true, now
	if b.looking == 0 && s.Store == nil {
		b.looking = now
	}
	return changed
}

// lookingSince returns when this process first read the store as a candidate, or zero.
func (b *board) lookingSince() election.Instant {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.looking
}

// announce reports whether role is new.
func (b *board) announce(role election.Role) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.said == role {
		return false
	}
	first := b.said == ""
	b.said = role
	return !first || role == election.RoleActive
}

// promise reports whether a is the first ask of its term.
func (b *board) promise(a election.Ask) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	first := b.promised != a.Term
	b.promised = a.Term
	return first
}

// View returns the current state of the sidecar.
func (s *Sidecar) View() View {
	b := &s.board
	b.mu.Lock()
	v := View{Status: b.status, Snapshot: b.seen.Snapshot, Store: b.seen.Store, Decision: b.seen.Decision, Ticked: b.ticked, Entered: b.entered}
	v.Takeovers = maps.Clone(b.took)
	t := b.tenure
	b.mu.Unlock()
	if t == nil {
		return v
	}
	v.Term, v.ValidUntil = t.Term, t.ValidUntil()
	if left := v.ValidUntil.Sub(b.clock()); v.ValidUntil > 0 && left > 0 {
		v.LeaseLeft = left
	}
	v.Snapshot = t.Snapshot()
	v.Renewals, v.Failures, v.Store = t.Renewals()
	v.Alone = t.Alone()
	v.Ticked = b.clock()
	return v
}

// Serving reports whether the controller may be used now: the lease is valid by the local clock,
// and the startup port has answered.
func (s *Sidecar) Serving() bool {
	v := s.View()
	return v.LeaseLeft > 0 && v.Status.State == election.StateServing
}
