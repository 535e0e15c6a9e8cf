package vip

import (
	"context"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// Source is the store as a [Follower] uses it.
//
// Obligations: Read returns the state of the cluster as of one moment that is not before the call.
// Watch sends a hint after a change; hints may be late, missing or spurious.
type Source interface {
	Read(ctx context.Context) (election.Snapshot, error)
	Watch(ctx context.Context) <-chan election.Hint
}

// Holds is what a [Follower] needs of a [Holder].
type Holds interface {
	Look()
	Hold(ctx context.Context, term election.Term, deadline election.Instant) error
	Extend(deadline election.Instant)
	Release(ctx context.Context) error
	Holding() bool
}

// A read of the role key that was sent at s and names the controller as serving lets its host hold
// the addresses until s + followFor. A host that is cut off or frozen lets go by then: the keeper
// and the kernel see to it. Another host therefore waits for followFor after it first saw that its
// own controller is active: every read that named another one was answered before that. followFor
// is not configurable, because every host must use the same value.
const (
	followFor   = 2 * time.Second
	followWait  = followFor + followFor/50 + 50*time.Millisecond // clocks differ by up to 2 %
	followEvery = followFor / 4                                  // interval of the reads
	followRead  = followFor / 4                                  // limit of one read
)

// Follower holds addresses while a controller is active whose election is in another process's
// hands. Make one with [NewFollower].
type Follower struct {
	controller string
	source     Source
	holds      Holds
	log        zerolog.Logger
	clock      election.Clock

	rule pursuit

	mu     sync.Mutex
	status FollowerStatus
}

// FollowerStatus is what a Follower knows.
type FollowerStatus struct {
	Controller string        `json:"controller"` // the one that is followed
	Active     string        `json:"active"`     // the serving one; empty: none, or unknown
	Term       election.Term `json:"term"`       // of the last reign that was seen
	Holding    bool          `json:"holding"`
	Error      string        `json:"error,omitempty"` // why the store can't be read, or the addresses can't be held
}

// NewFollower returns a follower of a controller.
func NewFollower(controller string, source Source, holds Holds, log zerolog.Logger) *Follower {
	return &Follower{
		controller: controller, source: source, holds: holds, log: log, clock: election.BootClock,
		rule: pursuit{filter: election.NewFilter(nil)}, status: FollowerStatus{Controller: controller},
	}
}

// Status returns the last known status. It may be called from any goroutine.
func (f *Follower) Status() FollowerStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.Holding = f.holds.Holding()
	return f.status
}

// Run follows until ctx ends, then releases the addresses.
func (f *Follower) Run(ctx context.Context) error {
	hints := f.source.Watch(ctx)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), followWait)
			defer cancel()
			return f.holds.Release(limited)
		case _, ok := <-hints:
			if !ok {
				hints = nil
			}
		case <-timer.C:
		}
		timer.Reset(f.turn(ctx))
	}
}

// turn reads the role key once and does what follows from it. It returns when the next turn is due.
func (f *Follower) turn(ctx context.Context) time.Duration {
	sent := f.clock()
	limited, cancel := context.WithTimeout(ctx, followRead)
	defer cancel()
	snap, err := f.source.Read(limited)
	if ctx.Err() != nil {
		return 0
	}
	now := f.clock()
	what := decision{kind: keepAsItIs, again: followEvery}
	var target election.Target
	if err == nil {
		target, err = f.rule.see(snap.Active, time.Now())
	}
	if err == nil {
		what = f.rule.decide(f.controller, target, sent, now, f.holds.Holding())
	}
	f.carryOut(ctx, what, &err)
	f.report(target, err)
	return what.again
}

func (f *Follower) carryOut(ctx context.Context, what decision, err *error) {
	limited, cancel := context.WithTimeout(ctx, followRead)
	defer cancel()
	switch what.kind {
	case keepAsItIs:
	case prepare:
		f.holds.Look()
	case hold:
		*err = f.holds.Hold(limited, what.number, what.deadline)
	case extend:
		f.holds.Extend(what.deadline)
	case letGo:
		*err = f.holds.Release(limited)
	}
}

// report keeps the status and logs what has changed.
func (f *Follower) report(target election.Target, err error) {
	f.mu.Lock()
	before := f.status
	f.status.Error = ""
	if err != nil {
		f.status.Error = err.Error()
	} else {
		f.status.Active = ""
		if target.Serving() {
			f.status.Active, f.status.Term = target.Controller, target.Term
		}
	}
	after := f.status
	f.mu.Unlock()
	switch {
	case after.Error != "" && before.Error == "":
		f.log.Warn().Err(err).Msg("cannot follow the active controller")
	case after.Error == "" && (before.Error != "" || before.Active != after.Active):
		f.log.Info().Str("controller", after.Active).Uint64("term", uint64(after.Term)).Msg("active controller seen")
	}
}

// pursuit decides. It has no clock and no store: facts go in, decisions come out.
type pursuit struct {
	filter *election.Filter
	term   election.Term    // of the followed controller's reign
	first  election.Instant // when it, or the one before it, was first seen; every reign in between was the controller's
	held   election.Term    // last reign for which the addresses were held; 0: none by this process
	number election.Term    // of the present hold; 0: none by this process
}

// decision is what to do with the addresses.
type decision struct {
	kind     decisionKind
	number   election.Term // of a hold: every hold has a higher one, also after a deadline has passed
	deadline election.Instant
	again    time.Duration // until the next read
}

type decisionKind int

const (
	keepAsItIs decisionKind = iota // nothing is known: the deadline decides
	prepare                        // ask the network who has them
	hold
	extend
	letGo
)

// see checks the role key.
func (p *pursuit) see(a *election.Active, now time.Time) (election.Target, error) {
	v := p.filter.Sighting(election.Sighting{Active: a}, now)
	return v.Target, v.Err
}

// decide takes in a read that was sent and answered at two instants. holding means that this host's
// keeper holds the addresses now, for this process or an earlier one.
func (p *pursuit) decide(controller string, t election.Target, sent, answered election.Instant, holding bool) decision {
	if t.Controller != controller || !t.Serving() {
		p.number = 0
		return decision{kind: letGo, again: followFor} // a hint comes first
	}
	// A term belongs to one controller, so a reign of another one shows as a gap in the terms.
	if p.term == 0 || t.Term != p.term && t.Term != p.term+1 {
		p.first = answered
	}
	if t.Term < p.held || t.Term > p.held+1 {
		p.held = 0
	}
	p.term = t.Term
	// Nobody else can hold them: they are held here, or the last to hold them was this host, or
	// every other host's deadline has passed. An answer that took long may be older than the end of
	// that wait.
	free := holding || p.held != 0 || sent >= p.first.Add(followWait)
	if !free {
		return decision{kind: prepare, again: min(followEvery, max(0, p.first.Add(followWait).Sub(answered)))}
	}
	p.held = t.Term
	d := decision{kind: extend, number: p.number, deadline: sent.Add(followFor), again: followEvery}
	if p.number == 0 || !holding {
		p.number = election.Term(answered)
		d.kind, d.number = hold, p.number
	}
	return d
}
