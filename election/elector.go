package election

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Elector is one candidate of one cluster. It watches the store, claims the lease when [Decide]
// allows it, calls Lead while it holds the lease, and releases it last. The fields must not change
// after Run was called.
type Elector struct {
	Backend   Backend
	Timing    Timing
	Clock     Clock
	Raw       Clock         // nil: the rate of Clock is not watched; see [RawClock]
	YieldWait time.Duration // how long a vacancy is left to others after a reign that ended with [End.Yield]
	// FailoverInterval is how long after such a reign this side leaves the lease to others,
	// whatever they do, unless a holder dies. Zero: both sides may fail in turn without a pause.
	FailoverInterval time.Duration

	// OnStoreLoss is what a holder does when the store is unreachable; empty means [StoreLossStop].
	OnStoreLoss StoreLoss
	// Ask asks every passive of a not to claim for a.Validity, and returns nil only if all have
	// promised. Only for [StoreLossFailsafe].
	Ask func(ctx context.Context, a Ask) error

	// Self describes the candidate. It is called before every decision, from any goroutine.
	Self func() Self

	// Record returns the record to claim with. The elector sets Controller, Term, State, Since,
	// Reason and Incarnation.
	Record func() Active

	// Resume is a reign of an earlier process of the same sidecar that may still be valid. It is
	// resumed before anything else. May be nil.
	Resume *Held
	// Known is what earlier processes of the same sidecar recorded for this one.
	Known Known
	// Remember is called with every change of what a later process must know. It must not block.
	// May be nil.
	Remember func(Known)
	// Ready is called before a candidate first reads the store, and after a resumed reign has
	// ended. It may take its time. May be nil.
	Ready func(ctx context.Context)

	// Lead is one reign. It is called with the lease held, and must not return before everything
	// that it started is undone and confirmed gone, because the lease is released next. While
	// something cannot be confirmed gone, Lead keeps trying, and the lease is kept. ctx ends when
	// the reign must end. Its cause is an [*Ending].
	Lead func(ctx context.Context, t *Tenure) End

	// Observe is called with every change in what the elector sees and decides while it does not
	// lead, from Run's goroutine. It must not block.
	Observe func(Status)

	seen     Sightings
	holdOff  Instant
	blind    Instant // since when the store is unreadable; zero: it is readable
	resting  Instant // the end of FailoverInterval
	yielded  bool    // since the last reign here, no other was seen serving
	cooldown bool    // holdOff applies whatever others do
	hints    <-chan Hint
	promise  promise
	spare    spare

	unreleased *Unreleased // an undone reign of this side that the store may still have
	noted      Known       // the last argument of Remember
}

// spare is a lease that was granted in advance, while a move is near. With it, a takeover needs one
// request less. With a hand-over to it, two more are saved. Only Run's goroutine uses it.
type spare struct {
	lease  LeaseID    // empty: none
	sent   Instant    // before the request that granted or last renewed it
	away   Instant    // before the last read that showed the role key bound to another lease
	nonce  string     // of the future reign
	after  Term       // the reign that it would follow
	crumb  Breadcrumb // of the future reign
	told   bool       // the heir key has been written
	toldOf string     // the ID of the request that it was written for
}

// Status is what a candidate sees and decides.
type Status struct {
	Snapshot Snapshot // the last one read
	Decision Decision
	Yielding bool  // reigned before, and no other has been active since
	Cooling  bool  // failed recently, and does not take over by itself yet
	Outlived Term  // see [Sightings.Outlived]
	Store    error // why the store is unreadable; nil while it is readable
}

// Ending is the cause of the end of a reign's context.
type Ending struct {
	Code Code
	Why  string
	Here bool // the fault is on this side, so another may do better
}

func (e *Ending) Error() string { return e.Why }

// End describes how a reign ended, as returned by Lead.
type End struct {
	Reason string // why; the next holder shows it
	Yield  bool   // leave a vacancy to others for YieldWait: this side failed
	// Cooldown: and for all of YieldWait, even if others take over and fail meanwhile. It is for a
	// side that could not start or fails repeatedly, so that two such sides do not pass the lease
	// back and forth.
	Cooldown bool
	Floor    Term // if not zero, the next term must be higher than this (the repository is ahead of the store)
	Unclean  bool // it cannot be proven that nothing of the reign is left (see ErrUnproven), so the next holder waits
	Keep     bool // nothing was undone, and the lease is kept: a later process of the same sidecar continues
}

// Held is what a later process of a sidecar needs to continue a reign with the reign's own timing.
type Held struct {
	Term        Term       `json:"term"`
	Lease       LeaseID    `json:"lease"`
	Incarnation string     `json:"incarnation"` // of the process that claimed
	Nonce       string     `json:"nonce,omitempty"`
	Reason      string     `json:"reason"`
	Previous    Breadcrumb `json:"previous"`
	Record      Active     `json:"record,omitzero"`
	Timing      Timing     `json:"timing,omitzero"`     // zero: written by an older version
	NotBefore   Instant    `json:"not_before,omitzero"` // see [Tenure]
	Origin      Origin     `json:"origin,omitzero"`     // of the store that it began in

	// For [StoreLossFailsafe]: the list as last written, and everybody who may be on the list in
	// the store.
	Listed string       `json:"listed,omitempty"`
	Asked  []Controller `json:"asked,omitempty"`
}

// Known is what must outlive a process of a sidecar, whatever becomes of its reign. Its instants
// are invalid after a reboot.
type Known struct {
	Term       Term          `json:"term"`            // the highest ever seen
	Reign      Term          `json:"reign,omitempty"` // the latest reign ever seen
	Validity   time.Duration `json:"validity"`        // the longest of any holder that was seen
	Heirs      string        `json:"heirs,omitempty"`
	Origin     Origin        `json:"origin,omitzero"` // the store of these values
	CoolTill   Instant       `json:"cool_till,omitzero"`
	RestTill   Instant       `json:"rest_till,omitzero"`
	Unreleased *Unreleased   `json:"unreleased,omitempty"`
}

// Unreleased is an undone reign whose release the store has not acknowledged.
type Unreleased struct {
	Lease      LeaseID    `json:"lease"`
	Breadcrumb Breadcrumb `json:"breadcrumb"` // the term record of the release
}

// ErrDetach keeps the reign for a later process when it is the cause of the end of
// [Elector.Run]'s context.
var ErrDetach = errors.New("detached")

// Run takes part in elections until ctx ends, and returns after the last reign has been undone.
func (e *Elector) Run(ctx context.Context) {
	// The watch outlives ctx, because a reign may still be being undone.
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	e.hints = e.Backend.Watch(watching)

	e.recall()
	if e.Resume != nil {
		if tenure := e.resume(ctx); tenure != nil {
			e.reign(ctx, tenure)
		}
	}
	if e.Ready != nil && ctx.Err() == nil {
		e.Ready(ctx)
	}
	defer e.dropSpare(ctx)
	var hint Hint
	for ctx.Err() == nil {
		if tenure := e.inherit(ctx, hint.Active, hint.Lease); tenure != nil {
			hint = Hint{}
			e.reign(ctx, tenure)
			continue
		}
		hint = Hint{}
		status, tenure := e.candidate(ctx)
		e.note()
		if tenure != nil {
			e.reign(ctx, tenure)
			continue
		}
		if e.Observe != nil {
			e.Observe(status)
		}
		e.keepSpare(ctx, status)
		if status.Decision.Remove {
			err := e.bounded(ctx, func(ctx context.Context) error {
				return e.Backend.Delete(ctx, ActiveKey, status.Snapshot.ActiveVersion)
			})
			if err == nil {
				continue
			}
		}
		hint = e.wait(ctx, status.Decision.Until)
	}
}

// candidate reads the store once, and claims if that is the decision. It returns a tenure if the
// claim succeeded.
func (e *Elector) candidate(ctx context.Context) (Status, *Tenure) {
	began := e.Clock()
	var snap Snapshot
	err := e.bounded(ctx, func(ctx context.Context) (err error) {
		snap, err = e.Backend.Read(ctx)
		return err
	})
	now := e.Clock()
	if err != nil {
		if e.blind == 0 {
			e.blind = began
		}
		d := Decision{Code: CodeStoreAway, Why: fmt.Sprintf("cannot read the store: %v", err)}
		return Status{Decision: d, Yielding: e.yielded, Store: err}, nil
	}
	if e.blind != 0 {
		e.seen = e.seen.blinded(e.blind, now, e.Timing)
		if e.OnStoreLoss == StoreLossFailsafe || e.OnStoreLoss == StoreLossKeep {
			e.seen.ListenTill = now.Add(listen)
		}
		e.blind = 0
	}
	if tenure := e.inherit(ctx, snap.Active, snap.ActiveLease); tenure != nil {
		return Status{}, tenure
	}
	e.spare.away = began
	e.seen = e.seen.Observe(snap, now)
	e.seen.PromisedTo, e.seen.PromisedTill = e.promise.get()
	if e.releaseLate(ctx, snap) {
		return e.candidate(ctx)
	}
	if snap.Vacant() && snap.TermBad == nil && e.seen.Term == 0 { // a missing term key does not prove that nobody has reigned
		highest, err := e.recorded(ctx)
		if err != nil {
			d := Decision{Code: CodeStoreAway, Why: fmt.Sprintf("cannot read the history: %v", err)}
			return Status{Snapshot: snap, Decision: d, Yielding: e.yielded, Store: err}, nil
		}
		e.seen.Term = highest
	}
	self := e.self()
	d := Decide(self, e.Timing, snap, e.seen, e.holdsOff(self, snap), now)
	if d.Claim || (snap.Active.Serving() && snap.Active.Incarnation != self.Incarnation) {
		e.resumeCandidacy()
	}
	status := Status{Snapshot: snap, Decision: d, Yielding: e.yielded, Cooling: e.cooldown && now < e.holdOff}
	status.Outlived = e.seen.Outlived(snap, e.Timing, now)
	if !d.Claim {
		return status, nil
	}
	if snap.TermBad != nil {
		highest, _ := e.recorded(ctx) // if that fails, the repository's floor and the sightings still apply
		d.Term = max(d.Term, highest+1)
	}
	if !e.promise.beginClaim(now) {
		return status, nil
	}
	tenure, err := e.claim(ctx, self, snap, d)
	if tenure == nil {
		e.promise.endClaim()
	}
	switch {
	case err == nil:
		return status, tenure
	case errors.Is(err, ErrNotYet):
		status.Decision = Decision{Code: CodeNotClaimed, Why: err.Error()}
	case errors.Is(err, ErrConflict):
		status.Decision = Decision{Code: CodeRaceLost, Why: fmt.Sprintf("another was first: %v", err)}
	case errors.Is(err, ErrLost):
		status.Decision = Decision{Code: CodeNotClaimed, Why: fmt.Sprintf("cannot claim: %v", err)}
	default:
		status.Decision, status.Store = Decision{Code: CodeStoreAway, Why: fmt.Sprintf("cannot claim: %v", err)}, err
	}
	return status, nil
}

// self describes this candidate.
func (e *Elector) self() Self {
	self := e.Self()
	if e.unreleased != nil {
		self.Undone = e.unreleased.Breadcrumb.Nonce
	}
	return self
}

// recorded returns the highest term of the history, for a term key that is unreadable or missing.
func (e *Elector) recorded(ctx context.Context) (highest Term, err error) {
	var entries []Entry
	err = e.bounded(ctx, func(ctx context.Context) (err error) {
		entries, err = e.Backend.List(ctx, HistoryPrefix)
		return err
	})
	if err != nil {
		return 0, err
	}
	for _, entry := range entries {
		n, err := parseTerm(strings.TrimPrefix(entry.Key, HistoryPrefix))
		if err == nil && n <= highestByHand {
			highest = max(highest, n)
		}
	}
	return highest, nil
}

// recall loads what earlier processes recorded.
func (e *Elector) recall() {
	k := e.Known
	e.noted, e.unreleased = k, k.Unreleased
	e.seen.Term, e.seen.Reign, e.seen.Validity, e.seen.Heirs = k.Term, k.Reign, k.Validity, k.Heirs
	e.promise.seen(k.Reign)
	e.seen.Origin = k.Origin
	e.resting, e.holdOff = k.RestTill, max(k.RestTill, k.CoolTill)
	e.cooldown = e.Clock() < k.CoolTill
}

// note records what later processes must know, if it is new.
func (e *Elector) note() {
	k := Known{Term: e.seen.Term, Reign: e.seen.Reign, Validity: e.seen.Validity, Heirs: e.seen.Heirs, Origin: e.seen.Origin, RestTill: e.resting, Unreleased: e.unreleased}
	if e.cooldown {
		k.CoolTill = e.holdOff
	}
	e.promise.seen(k.Reign)
	if k == e.noted || e.Remember == nil {
		return
	}
	e.noted = k
	e.Remember(k)
}

// releaseLate releases a reign that has ended but that the store still has, for example because the
// store was restarted as a whole and kept the lease for another TTL. It reports whether it did.
func (e *Elector) releaseLate(ctx context.Context, snap Snapshot) bool {
	u := e.unreleased
	if u == nil {
		return false
	}
	if snap.TermBad == nil && snap.Breadcrumb.Nonce != u.Breadcrumb.Nonce {
		e.unreleased = nil // somebody has reigned since
		return false
	}
	if snap.ActiveLease != u.Lease {
		return false
	}
	crumb := u.Breadcrumb
	crumb.Clean = crumb.Clean && e.seen.other == (Origin{}) // in another store, others may have reigned since
	crumb.raise(snap.Breadcrumb.Term)
	err := e.bounded(ctx, func(ctx context.Context) error {
		return e.Backend.Release(ctx, Release{Lease: u.Lease, Breadcrumb: crumb, TermVersion: snap.TermVersion})
	})
	if err == nil || errors.Is(err, ErrLost) {
		e.unreleased = nil
	}
	return err == nil
}

// listen is how long a holder that continued without the store has to bind the role key to a new
// lease. It tries several times a second.
const listen = time.Second

// resumeCandidacy ends the time that was left to others, because another serves or this candidate
// is about to. If others fail, this side may contend again.
func (e *Elector) resumeCandidacy() {
	e.yielded = false
	if !e.cooldown {
		e.holdOff = e.resting
	}
}

// holdsOff returns until when a vacancy is left to others. If there are none, there is no reason to
// wait, except after a failed start, which needs a pause in any case.
func (e *Elector) holdsOff(self Self, snap Snapshot) Instant {
	if !e.cooldown && !anotherFit(self, snap) {
		return e.resting
	}
	return e.holdOff
}

// inherit returns the tenure that the previous holder has handed to the spare lease, if the role
// key was seen bound to it. Nobody else can bind the role key to this lease, so even an old
// sighting proves it. The validity counts from a moment before the hand-over, or from a renewal if
// that was too long ago. A hand-over that cannot be used is given back.
func (e *Elector) inherit(ctx context.Context, active *Active, lease LeaseID) *Tenure {
	s := e.spare
	if s.lease == "" || s.lease != lease || active == nil {
		return nil
	}
	self, now, timing := e.Self(), e.Clock(), e.Timing
	usable := active.Controller == self.Name && active.Incarnation == self.Incarnation && active.Term > max(e.seen.Term, s.after) && ctx.Err() == nil
	proof := handed(s.away, s.sent)
	if usable && now >= proof.sent.Add(timing.Validity-timing.StopBudget) {
		mine := func(a Active) bool { return a == *active }
		err := e.bounded(ctx, func(ctx context.Context) (err error) {
			proof, _, err = prove(ctx, e.Backend, e.Clock, Hold{Lease: lease, Beat: timing.Beat}, e.seen.store(), mine)
			return err
		})
		usable = err == nil
	}
	if !usable || !e.promise.beginClaim(now) {
		e.dropSpare(ctx)
		return nil
	}
	e.spare = spare{}
	e.resumeCandidacy()
	e.seen.Term = active.Term
	if e.seen.StoppingAt == 0 { // that the holder was stopping was seen together with its end, or not at all
		e.seen.StoppingAt = now
	}
	previous := s.crumb
	previous.Clean, previous.Reason = true, active.Reason
	crumb := e.crumb(self, active.Term, active.Nonce, active.Reason)
	record := *active
	record.URLs = e.Record().URLs // a holder of the previous version did not pass them on
	return e.tenure(crumb, record, lease, proof, e.seen.dueAfter(now), previous)
}

// crumb returns the term record of a reign that begins here.
func (e *Elector) crumb(self Self, term Term, nonce, reason string) Breadcrumb {
	return Breadcrumb{
		Term: term, Controller: self.Name, Incarnation: self.Incarnation, Nonce: nonce, Reason: reason,
		Validity: e.Timing.Validity, TTL: e.Timing.TTL, Beat: e.Timing.Beat, Mode: ModeStore,
	}
}

// tenure returns a reign that begins.
func (e *Elector) tenure(crumb Breadcrumb, record Active, lease LeaseID, proof Proof, notBefore Instant, previous Breadcrumb) *Tenure {
	return &Tenure{
		Term: crumb.Term, notBefore: notBefore, owedBefore: notBefore, paid: make(chan struct{}), Reason: crumb.Reason, Previous: previous, Seen: e.seen,
		backend: e.Backend, clock: e.Clock, raw: e.Raw, timing: e.Timing, crumb: crumb, record: record, lease: lease, origin: e.seen.store(),
		until: proof.sent.Add(e.Timing.Validity), onStoreLoss: e.OnStoreLoss, ask: e.Ask,
	}
}

// resume continues the reign of an earlier process, if the role key is still bound to its lease.
// That proves that nobody has reigned since, so the validity may be counted anew. It retries until
// the outcome is known, or the lease has certainly ended.
func (e *Elector) resume(ctx context.Context) *Tenure {
	ttl := max(e.Timing.TTL, e.Resume.Timing.TTL)
	giveUp := e.Clock().Add(ttl + e.Backend.Traits().ExpirySlack)
	for {
		tenure, err := e.resumeOnce(ctx, *e.Resume)
		if err == nil {
			return tenure
		}
		if !errors.Is(err, ErrLost) {
			if tenure := e.resumeAlone(ctx, *e.Resume); tenure != nil {
				return tenure
			}
		}
		if errors.Is(err, ErrLost) || e.Clock() >= giveUp || !sleep(ctx, e.Timing.Attempt()/4) {
			return nil
		}
	}
}

func (e *Elector) resumeOnce(ctx context.Context, h Held) (*Tenure, error) {
	var snap Snapshot
	err := e.bounded(ctx, func(ctx context.Context) (err error) {
		snap, err = e.Backend.Read(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	timing, crumb, known := e.heldTerms(h, snap)
	if snap.ActiveLease != h.Lease || !known {
		return nil, ErrLost
	}
	// In a restored store, the role key may be bound to our old lease again although others have
	// reigned since.
	if e.Known.Term > h.Term || !snap.Origin.continues(e.Known.Origin) {
		return nil, ErrLost
	}
	mine := func(a Active) bool { return a.Term == h.Term && a.Incarnation == h.Incarnation && a.Nonce == h.Nonce }
	record := h.Record
	if snap.Active != nil && mine(*snap.Active) {
		record = *snap.Active
	}
	if record.Term == 0 {
		return nil, ErrLost // somebody overwrote it, so the record is unknown
	}
	var proof Proof
	err = bounded(ctx, timing.Attempt(), func(ctx context.Context) (err error) {
		proof, _, err = prove(ctx, e.Backend, e.Clock, Hold{Lease: h.Lease, Beat: timing.Beat}, snap.Origin, mine)
		if errors.Is(err, errForeign) {
			err = errors.Join(err, e.Backend.Publish(ctx, h.Lease, record)) // seen by the next attempt
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if !e.promise.beginClaim(proof.sent) {
		return nil, ErrLost
	}
	e.seen = e.seen.Observe(snap, e.Clock())
	t := e.resumed(h, timing, crumb, record, snap.Origin)
	t.until = proof.sent.Add(timing.Validity)
	return t, nil
}

// resumeAlone continues the reign of an earlier process while the store is unreachable, if its
// policy allows that. The missing proof that nobody has reigned since comes, with
// [StoreLossFailsafe], from everybody who may have reigned, by their promises.
func (e *Elector) resumeAlone(ctx context.Context, h Held) *Tenure {
	if h.Timing.Validity <= 0 || h.Nonce == "" || h.Record.Term != h.Term || max(e.Known.Term, e.Known.Reign) > h.Term {
		return nil
	}
	timing, crumb, _ := e.heldTerms(h, Snapshot{})
	t := e.resumed(h, timing, crumb, h.Record, h.Origin)
	t.alone = true
	proof, err := t.proveAlone(ctx)
	if err != nil || !e.promise.beginClaim(proof.sent) {
		return nil
	}
	t.until = proof.sent.Add(timing.Validity)
	return t
}

// resumed returns a reign that is taken up, not valid yet.
func (e *Elector) resumed(h Held, timing Timing, crumb Breadcrumb, record Active, in Origin) *Tenure {
	t := &Tenure{
		Term: h.Term, notBefore: h.NotBefore, owedBefore: h.NotBefore, paid: make(chan struct{}), Reason: h.Reason, Previous: h.Previous, Seen: e.seen, Resumed: true,
		backend: e.Backend, clock: e.Clock, raw: e.Raw, timing: timing, crumb: crumb, record: record, lease: h.Lease, origin: in,
		onStoreLoss: e.OnStoreLoss, ask: e.Ask, written: h.Listed, asked: map[string]Controller{},
	}
	for _, c := range h.Asked {
		t.asked[c.Name] = c
	}
	return t
}

// heldTerms returns the timing of a reign that an earlier process left, from the process's record
// or, if an older version wrote that, from the term record.
func (e *Elector) heldTerms(h Held, snap Snapshot) (timing Timing, crumb Breadcrumb, known bool) {
	if timing = h.Timing; timing.Validity > 0 {
		crumb = Breadcrumb{
			Term: h.Term, Controller: e.Self().Name, Incarnation: h.Incarnation, Nonce: h.Nonce, Reason: h.Reason,
			Validity: timing.Validity, TTL: timing.TTL, Beat: timing.Beat, Mode: ModeStore,
		}
		return timing, crumb, true
	}
	crumb = snap.Breadcrumb
	if snap.TermBad != nil || crumb.Of() != h.Term || crumb.Validity <= 0 {
		return timing, crumb, false
	}
	crumb.Beat, crumb.Clean = snap.Beat != 0, false
	return e.Timing.under(crumb), crumb, true
}

// claim makes one attempt. If the outcome is unknown, it reads until it is known, or until the
// lease would be unusable; then the lease expires by itself.
func (e *Elector) claim(ctx context.Context, self Self, snap Snapshot, d Decision) (*Tenure, error) {
	sent, lease, err := e.unbound(ctx)
	if err != nil {
		return nil, err
	}
	nonce := rand.Text()
	record := e.Record()
	record.Controller, record.Incarnation, record.Nonce = self.Name, self.Incarnation, nonce
	record.Term, record.State, record.Since, record.Reason = d.Term, StateStarting, time.Now().UTC(), d.Reason
	crumb := e.crumb(self, d.Term, nonce, d.Reason)
	if d.NotBefore != 0 {
		crumb.Debt = max(0, d.NotBefore.Sub(e.Clock()))
	}
	claim := Claim{
		Lease: lease, Active: record, Breadcrumb: crumb, TermVersion: snap.TermVersion,
		Silent: d.Silent, Beat: e.Timing.Beat, Previous: snap.Breadcrumb.Controller,
	}
	won := false
	claimErr := e.bounded(ctx, func(ctx context.Context) error { return e.Backend.Claim(ctx, claim) })
	switch {
	case claimErr == nil:
		won = true
	case errors.Is(claimErr, ErrConflict), errors.Is(claimErr, ErrLost), errors.Is(claimErr, ErrDenied):
	default:
		won, err = e.carriedOut(ctx, lease, sent)
		if err != nil {
			claimErr = err
		}
	}
	if !won {
		// Best effort: an unclaimed lease is harmless and expires by itself.
		_ = e.bounded(context.WithoutCancel(ctx), func(ctx context.Context) error { return e.Backend.Revoke(ctx, lease) })
		return nil, claimErr
	}
	e.seen.Term = max(e.seen.Term, d.Term)
	t := e.tenure(crumb, record, lease, claimed(sent), d.NotBefore, snap.Breadcrumb)
	t.owedBefore, t.confirmed = d.Owed, d.Confirmed
	return t, nil
}

// unbound returns a lease to claim with: the spare one, or a new one.
func (e *Elector) unbound(ctx context.Context) (sent Instant, lease LeaseID, err error) {
	s := e.spare
	e.spare = spare{}
	if s.lease != "" && e.Clock().Sub(s.sent) <= e.Timing.RenewEvery {
		return s.sent, s.lease, nil
	}
	// An older spare lease expires by itself: much of its validity is over.
	return e.grant(ctx)
}

// grant returns a new lease, and when it was requested.
func (e *Elector) grant(ctx context.Context) (sent Instant, lease LeaseID, err error) {
	sent = e.Clock()
	err = e.bounded(ctx, func(ctx context.Context) (err error) {
		lease, err = e.Backend.Grant(ctx, e.Timing.TTL)
		return err
	})
	return sent, lease, err
}

// keepSpare keeps a spare lease while a takeover from here is near, and offers it to the holder.
func (e *Elector) keepSpare(ctx context.Context, seen Status) {
	if seen.Store != nil {
		return // the spare lease may be needed soon, and another request would block this loop
	}
	self, now, snap := e.self(), e.Clock(), seen.Snapshot
	if !DecideHeir(self, e.Timing, snap, e.seen, e.holdOff, now) {
		e.dropSpare(ctx)
		return
	}
	if e.spare.lease != "" && e.spare.after != snap.Active.Term {
		e.dropSpare(ctx)
	}
	switch {
	case e.spare.lease == "":
		sent, lease, err := e.grant(ctx)
		if err != nil {
			return
		}
		e.spare = spare{lease: lease, sent: sent, away: sent, after: snap.Active.Term, crumb: snap.Breadcrumb, nonce: rand.Text()}
	case now.Sub(e.spare.sent) > e.Timing.RenewEvery/2:
		err := e.bounded(ctx, func(ctx context.Context) error {
			return e.Backend.Renew(ctx, e.spare.lease)
		})
		if err != nil {
			e.dropSpare(ctx) // including the offer, if there is one
			return
		}
		e.spare.sent = now
	}
	request := ""
	if snap.Request != nil && snap.Request.Term == e.spare.after {
		request = snap.Request.ID
	}
	told := e.spare.told && (request == "" || request == e.spare.toldOf)
	if !offered(self, e.spare.lease, e.spare.after, snap) && !told {
		e.spare.told, e.spare.toldOf = e.offer(ctx, self, request, snap.HeirVersion) == nil, request
	}
}

// offer writes the heir key for a request, or for none, over a value that is no valid offer.
func (e *Elector) offer(ctx context.Context, self Self, request string, over Version) error {
	record := e.Record()
	heir := Heir{
		Controller: self.Name, Incarnation: self.Incarnation, After: e.spare.after, Lease: e.spare.lease,
		URL: record.URL, URLs: record.URLs, API: record.API, Validity: e.Timing.Validity.String(), Beat: e.Timing.Beat,
		TTL: e.Timing.TTL.String(), Nonce: e.spare.nonce, Request: request,
	}
	return e.bounded(ctx, func(ctx context.Context) error {
		return e.Backend.Put(ctx, Put{Key: HeirKey, Value: heir.Encode(), Lease: heir.Lease, If: &over})
	})
}

// dropSpare gives the spare lease back, in one attempt: it would also expire by itself, and nothing
// is bound to it.
func (e *Elector) dropSpare(ctx context.Context) {
	if e.spare.lease == "" {
		return
	}
	lease := e.spare.lease
	e.spare = spare{}
	_ = e.bounded(context.WithoutCancel(ctx), func(ctx context.Context) error { return e.Backend.Revoke(ctx, lease) })
}

// carriedOut finds out whether a claim whose reply was lost has been carried out. Once the role key
// was read absent or bound to another lease, the claim can still arrive only if the term key has
// not changed. So the caller revokes the lease, after which the claim cannot succeed.
func (e *Elector) carriedOut(ctx context.Context, lease LeaseID, sent Instant) (bool, error) {
	for {
		var snap Snapshot
		err := e.bounded(ctx, func(ctx context.Context) (err error) {
			snap, err = e.Backend.Read(ctx)
			return err
		})
		if err == nil {
			return snap.ActiveLease == lease, ErrConflict
		}
		if e.Clock() >= sent.Add(e.Timing.Validity-e.Timing.StopBudget) {
			return false, err
		}
		if !sleep(ctx, e.Timing.Attempt()/2) {
			return false, ctx.Err()
		}
	}
}

// reign renews the lease, runs Lead, and releases.
func (e *Elector) reign(ctx context.Context, t *Tenure) {
	defer e.promise.endClaim()
	e.note()
	// Renewals must continue while Lead undoes the reign, even after ctx has ended.
	renewing, stopRenewing := context.WithCancel(context.WithoutCancel(ctx))
	leading, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	t.end = end
	stopAfter := context.AfterFunc(ctx, func() {
		code := CodeShutdown
		if errors.Is(context.Cause(ctx), ErrDetach) {
			code = CodeDetach
		}
		end(&Ending{Code: code, Why: context.Cause(ctx).Error()})
	})
	defer stopAfter()

	var background sync.WaitGroup
	background.Go(func() { t.renew(renewing) })
	background.Go(func() { t.guard(renewing) })
	background.Go(func() { e.watchReign(renewing, t) })

	outcome := e.Lead(leading, t)

	stopRenewing()
	background.Wait()

	if outcome.Keep {
		return
	}
	if t.elsewhere.Load() || !e.seen.store().continues(t.origin) {
		outcome.Unclean = true // others may have reigned since
	}
	if outcome.Floor > 0 {
		e.seen.Term = max(e.seen.Term, min(outcome.Floor, highestByHand))
	}
	if !e.handOver(ctx, t, outcome) {
		e.release(ctx, t, outcome)
	}
	e.yielded = true
	e.cooldown = outcome.Cooldown
	if outcome.Yield {
		now := e.Clock()
		e.resting = now.Add(e.FailoverInterval)
		e.holdOff = max(now.Add(e.YieldWait), e.resting)
	}
	e.note()
}

// handOver makes the heir the holder, if there is one, and reports whether it did. It makes one
// attempt; if the outcome is unknown, the release that follows finds out. Nothing is handed over
// with an open debt, or unless the reign is known to be undone.
func (e *Elector) handOver(ctx context.Context, t *Tenure, outcome End) bool {
	snap := t.Snapshot()
	if outcome.Floor > 0 || outcome.Unclean || t.owed() > 0 || snap.TermBad != nil || !Succeeds(e.Self(), t.Term, snap) {
		return false
	}
	heir := *snap.Heir
	validity, err := parseDuration(heir.Validity)
	term := max(e.seen.Term, t.Term) + 1
	if err != nil || term > MaxTerm {
		return false
	}
	ttl, _ := parseDuration(heir.TTL) // an older version does not have it
	crumb := Breadcrumb{
		Term: term, Controller: heir.Controller, Incarnation: heir.Incarnation, Nonce: heir.Nonce, Validity: validity, TTL: ttl, Beat: heir.Beat,
		Mode: ModeStore, Reason: outcome.Reason,
	}
	err = bounded(context.WithoutCancel(ctx), t.timing.Attempt(), func(ctx context.Context) error {
		return e.Backend.HandOver(ctx, t.LeaseID(), HandOver{
			From: t.crumb.Controller, Heir: snap.HeirVersion, TermVersion: snap.TermVersion, Lease: heir.Lease, Beat: heir.Beat,
			Active: Active{
				Controller: heir.Controller, Incarnation: heir.Incarnation, Nonce: heir.Nonce, Term: term, State: StateStarting, URL: heir.URL, URLs: heir.URLs, API: heir.API,
				Since: time.Now().UTC(), Reason: outcome.Reason,
			},
			Breadcrumb: crumb,
		})
	})
	return err == nil
}

// release gives the lease back, clean if the reign is known to be undone. It retries for as long as
// the store could keep the lease, because a release spares the taker the wait for the old validity.
// It tries once more if the lease turns out to be alive. A store that was away is read first: if it
// is another one now, others may have reigned since, and the end is not clean.
func (e *Elector) release(ctx context.Context, t *Tenure, outcome End) {
	ctx = context.WithoutCancel(ctx)
	snap := t.Snapshot()
	if _, _, err := t.Renewals(); err != nil {
		snap.TermVersion = 0
	}
	t.mu.Lock()
	giveUp := t.until.Add(t.timing.TTL - t.timing.Validity + e.Backend.Traits().ExpirySlack)
	t.mu.Unlock()
	for {
		crumb := t.termRecord()
		crumb.Clean, crumb.Reason = !outcome.Unclean, outcome.Reason
		crumb.raise(max(snap.Breadcrumb.Term, min(outcome.Floor, MaxTerm)))
		var err error
		if snap.TermVersion == 0 {
			err = bounded(ctx, t.timing.Attempt(), func(ctx context.Context) (err error) {
				snap, err = e.Backend.Read(ctx)
				return err
			})
			crumb.raise(snap.Breadcrumb.Term)
		}
		if err == nil {
			crumb.Clean = crumb.Clean && snap.Origin.continues(t.origin)
			err = bounded(ctx, t.timing.Attempt(), func(ctx context.Context) error {
				return e.Backend.Release(ctx, Release{Lease: t.LeaseID(), Breadcrumb: crumb, TermVersion: snap.TermVersion})
			})
		}
		// ErrLost is also the answer to a repeated release whose first reply was lost.
		if err == nil || errors.Is(err, ErrLost) {
			e.unreleased = nil
			return
		}
		if !outcome.Unclean && e.unreleased == nil {
			e.unreleased = &Unreleased{Lease: t.LeaseID(), Breadcrumb: crumb}
			e.note()
		}
		if e.Clock() >= giveUp {
			return
		}
		snap.TermVersion = 0 // somebody wrote the term key, or the store was away: read first
		if !errors.Is(err, ErrConflict) {
			sleep(ctx, t.timing.Attempt())
		}
	}
}

// watchReign reads the store on every hint, and at a multiple of the renewal interval.
func (e *Elector) watchReign(ctx context.Context, t *Tenure) {
	for ctx.Err() == nil {
		pause := reignReread * t.timing.RenewEvery
		var snap Snapshot
		lease := t.LeaseID()
		err := bounded(ctx, t.timing.Attempt(), func(ctx context.Context) (err error) {
			snap, err = e.Backend.Read(ctx)
			return err
		})
		if t.LeaseID() != lease {
			continue // the role key was bound to a new lease meanwhile, so the order of read and write is unknown
		}
		if err == nil && e.lookAt(ctx, t, lease, snap) == CodeAwaitHeir {
			pause = min(pause, heirPatience/8)
		}
		if r := snap.Request; err == nil && r != nil && r.becomes() != "" {
			wait, _ := r.due(time.Now())
			pause = min(pause, max(wait, t.timing.Attempt()/4))
		}
		if e.Clock() < t.repairAt {
			pause = min(pause, t.timing.RenewEvery) // is it repaired?
		}
		// Every renewal proves that the role key is ours. This read is for requests without a hint.
		e.waitFor(ctx, pause)
	}
}

// lookAt handles a snapshot for the holder, whose lease it had before the snapshot was read: the role
// key may be bound to a new one meanwhile, at any moment.
func (e *Elector) lookAt(ctx context.Context, t *Tenure, lease LeaseID, snap Snapshot) Code {
	now := e.Clock()
	e.seen = e.seen.Observe(snap, now)
	e.note()
	t.see(snap)
	t.pay(snap.Dead)
	if snap.ActiveLease == lease {
		t.keepTermRecord(ctx, snap, max(e.seen.Term, snap.outlived()))
	}
	d := DecideHolder(e.Self(), lease, t.Term, snap, e.seen, now)
	switch d.Code {
	case CodeLost:
		ours := snap.Vacant() || snap.Active != nil && t.mine(*snap.Active)
		if ours && t.mayRebind() || t.LeaseID() != lease {
			return CodeContinue // the role key is being bound to a new lease; the next renewal shows the outcome
		}
		t.lose(&Ending{Code: CodeLost, Why: d.Why})
	case CodeDead:
		t.lose(&Ending{Code: CodeLost, Why: d.Why})
	case CodeScheduled:
		e.schedule(ctx, t, snap, d)
	case CodeRestart:
		if t.carriesOut(d) {
			break
		}
		e.closeRequest(ctx, snap)
	case CodePlanned:
		t.end(&Ending{Code: CodePlanned, Why: d.Why})
	case CodeVoidRequest:
		t.void(d)
		e.closeRequest(ctx, snap)
	}
	return d.Code
}

// closeRequest removes the request in snap, in one attempt: one that stays is looked at again.
func (e *Elector) closeRequest(ctx context.Context, snap Snapshot) {
	_ = e.bounded(ctx, func(ctx context.Context) error { return e.Backend.Delete(ctx, RequestKey, snap.RequestVer) })
}

// schedule makes a scheduled operation that is due one that is acted on. Only the clock of this
// host counts.
func (e *Elector) schedule(ctx context.Context, t *Tenure, snap Snapshot, d HolderDecision) {
	now := *d.Request
	wait, missed := now.due(time.Now())
	switch {
	case missed:
		d.Code, d.Why = CodeVoidRequest, fmt.Sprintf("request %s was for %s, which has passed", now.ID, now.At.UTC().Format(time.RFC3339))
		t.void(d)
		e.closeRequest(ctx, snap)
	case wait == 0:
		now.Op = now.becomes()
		_ = e.bounded(ctx, func(ctx context.Context) error {
			return e.Backend.Put(ctx, Put{Key: RequestKey, Value: now.Encode(), If: &snap.RequestVer})
		})
	}
}

// reignReread is the number of renewals per read of the store, if there was no hint.
const reignReread = 3

// wait returns at the next hint, at until, at the next re-read, or when ctx ends.
func (e *Elector) wait(ctx context.Context, until Instant) Hint {
	d := e.Timing.RenewEvery
	if until != 0 {
		d = max(0, min(d, until.Sub(e.Clock())))
	}
	return e.waitFor(ctx, d)
}

// waitFor returns at the next hint, after d, or when ctx ends.
func (e *Elector) waitFor(ctx context.Context, d time.Duration) (hint Hint) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case hint = <-e.hints:
	}
	return hint
}

// bounded makes one request to the store with the timeout of one attempt.
func (e *Elector) bounded(ctx context.Context, request func(context.Context) error) error {
	return bounded(ctx, e.Timing.Attempt(), request)
}

func bounded(ctx context.Context, limit time.Duration, request func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return request(ctx)
}

// sleep waits for d and reports whether ctx has not ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
