package sidecar

import (
	"strings"
	"sync"
	"time"

	"github.com/tanist/tanist/election"
)

// View is what a sidecar knows, for the REST interface, metrics and the service manager. It comes from memory.
type View struct {
	Status     election.Controller
	Term       election.Term    // of the present reign, or zero
	ValidUntil election.Instant // s+V of the present reign, or zero
	LeaseLeft  time.Duration    // until then; zero without a lease
	Snapshot   election.Snapshot
	Store      error // why the store can't be read; nil while it can
	Decision   election.Decision
	Renewals   uint64
	Failures   uint64
	Alone      bool             // the reign goes on without the store
	Ticked     election.Instant // when the elector last looked at the store, or a renewal was tried
}

// board is the sidecar's memory of itself.
type board struct {
	clock election.Clock

	mu       sync.Mutex
	status   election.Controller
	tenure   *election.Tenure
	fit      bool
	unfit    string
	seen     election.Status
	observed bool
	said     election.Role // the role that was last announced to hooks
	vouched  election.Term // the term that was last vouched for
	ticked   election.Instant
}

func (b *board) get() election.Controller {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status
}

// enter records a state. changed is false if nothing is new.
func (b *board) enter(state election.State, reason string) (now election.Controller, old election.State, changed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old = b.status.State
	if old == state && b.status.Reason == reason {
		return b.status, old, false
	}
	if old != state {
		b.status.Since = time.Now().UTC()
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

// health records a verdict and returns the status to publish.
func (b *board) health(words string) election.Controller {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status.Health = words
	return b.status
}

// fail records that the reign of term failed, for the next state that is entered to tell.
func (b *board) fail(term election.Term, why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status.Failure = &election.Failure{At: time.Now().UTC(), Term: term, Why: why}
}

func (b *board) begin(t *election.Tenure) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tenure = t
	b.ticked = b.clock()
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

// seeStore records what the elector saw, and reports whether the store came or went.
func (b *board) seeStore(s election.Status) (changed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	changed = (b.seen.Store == nil) != (s.Store == nil)
	if s.Store != nil {
		s.Snapshot = b.seen.Snapshot
	}
	b.seen, b.observed, b.ticked = s, true, b.clock()
	return changed
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

// vouch reports whether a is the first ask of its term.
func (b *board) vouch(a election.Ask) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	first := b.vouched != a.Term
	b.vouched = a.Term
	return first
}

// View returns what the sidecar knows now.
func (s *Sidecar) View() View {
	b := &s.board
	b.mu.Lock()
	v := View{Status: b.status, Snapshot: b.seen.Snapshot, Store: b.seen.Store, Decision: b.seen.Decision, Ticked: b.ticked}
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

// Serving reports whether the controller may be used now: the lease is valid by the local clock, and the startup port
// has answered.
func (s *Sidecar) Serving() bool {
	v := s.View()
	return v.LeaseLeft > 0 && v.Status.State == election.StateServing
}
