package election

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Elector is one candidate of one cluster. It watches the store, claims the lease when [Decide] says so, calls
// Lead for as long as the lease lasts, and releases it last. The fields are set before Run and not changed after.
type Elector struct {
	Backend   Backend
	Timing    Timing
	Clock     Clock
	Raw       Clock         // nil: the rate of Clock is not watched; see [RawClock]
	YieldWait time.Duration // how long a vacancy is left to others after a reign that ended with [End.Yield]
	// FailoverInterval is how long, after such a reign, others are left to themselves whatever they do meanwhile, but for a
	// holder that dies. Zero: both sides may fail in turns without a pause.
	FailoverInterval time.Duration

	// OnStoreLoss says what a holder does when the store can't be reached; empty is [StoreLossStop].
	OnStoreLoss StoreLoss
	// Vouch asks every passive of a to leave the holder alone for a.Validity, and returns nil only if every one has
	// promised to. Only for [StoreLossFailsafe].
	Vouch func(ctx context.Context, a Ask) error

	// Self describes the candidate; it is called before every decision, from any goroutine.
	Self func() Self

	// Record returns the record to claim with; Controller, Term, State, Since, Reason and Incarnation are filled in by
	// the elector.
	Record func() Active

	// Resume is a reign of an earlier process of the same sidecar, that may still be on. May be nil.
	Resume *Held

	// Lead is one reign. It is called with the lease held, and must not return before everything it started is
	// undone and confirmed gone, because the lease is released right after; if something can't be confirmed gone it
	// keeps trying, and the lease is kept. ctx ends when the reign must end; its cause is an [*Ending].
	Lead func(ctx context.Context, t *Tenure) End

	// Observe is told of every change in what the elector sees and decides while it does not lead, from Run's
	// goroutine. It must not block.
	Observe func(Status)

	seen     Sightings
	holdOff  Instant
	blind    Instant // the store can't be read since; zero: it can
	resting  Instant // the end of FailoverInterval
	yielded  bool    // since the last reign here ended, no other has been seen serving
	cooldown bool    // holdOff stands whatever others do
	hints    <-chan Hint
	promise  promise
	spare    spare
}

// spare is a lease that was granted ahead, while a move is near. With it the takeover is one request shorter, and the holder can
// hand its reign over to it, which makes it shorter by two more. Only Run's goroutine uses it.
type spare struct {
	lease LeaseID    // empty: there is none
	sent  Instant    // from before the request that granted or last renewed it
	after Term       // the reign that it is to follow
	crumb Breadcrumb // of that reign
	told  bool       // in the heir key
}

// Status is what a candidate sees and decides.
type Status struct {
	Snapshot Snapshot // the last one that was read
	Decision Decision
	Yielding bool  // reigned before, and no other has been active since
	Store    error // why the store can't be read; nil while it can
}

// Ending is the cause of the end of a reign's context.
type Ending struct {
	Code Code
	Why  string
	Here bool // the fault lies with this side: another would do better
}

func (e *Ending) Error() string { return e.Why }

// End says how a reign ended, as its Lead saw it.
type End struct {
	Reason string // why; the next holder will show it
	Yield  bool   // leave a vacancy to others for YieldWait: this side failed
	// Cooldown: and leave it to others for all of YieldWait, even if others take over and fail meanwhile. For a side that
	// could not start, or fails again and again, so that two such sides don't hand the lease to and fro.
	Cooldown bool
	Floor    Term // if not zero: the next term must be higher than this (the repository is ahead of the store)
	Keep     bool // nothing was undone, and the lease is kept: a later process of the same sidecar goes on
}

// Held is what a later process of a sidecar needs to go on with a reign.
type Held struct {
	Term        Term       `json:"term"`
	Lease       LeaseID    `json:"lease"`
	Incarnation string     `json:"incarnation"`
	Reason      string     `json:"reason"`
	Previous    Breadcrumb `json:"previous"`
}

// ErrDetach is the cause to end the context of [Elector.Run] with, for the reign to be kept for a later process.
var ErrDetach = errors.New("detached")

// Run takes part in elections until ctx ends, and returns after the last reign has been undone.
func (e *Elector) Run(ctx context.Context) {
	// The watch outlives ctx, because a reign is still being undone then.
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	e.hints = e.Backend.Watch(watching)

	if e.Resume != nil {
		if tenure := e.resume(ctx); tenure != nil {
			e.reign(ctx, tenure)
		}
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
				return e.Backend.Delete(ctx, "active", status.Snapshot.ActiveVersion)
			})
			if err == nil {
				continue
			}
		}
		hint = e.wait(ctx, status.Decision.Until)
	}
}

// candidate looks once, and claims if that is the decision. It returns a tenure if the claim succeeded.
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
		d := Decision{Code: CodeStoreAway, Why: fmt.Sprintf("the store can't be read: %v", err)}
		return Status{Decision: d, Yielding: e.yielded, Store: err}, nil
	}
	if e.blind != 0 {
		e.seen = e.seen.Blinded(e.blind, now, e.Timing.Silence)
		e.blind = 0
	}
	if tenure := e.inherit(ctx, snap.Active, snap.ActiveLease); tenure != nil {
		return Status{}, tenure
	}
	e.seen = e.seen.Observe(snap, now)
	e.seen.VouchedTo, e.seen.VouchedTill = e.promise.get()
	self := e.Self()
	d := Decide(self, e.Timing, snap, e.seen, e.holdsOff(self, snap), now)
	if d.Claim || (snap.Active.Serving() && snap.Active.Incarnation != self.Incarnation) {
		e.resumeCandidacy()
	}
	status := Status{Snapshot: snap, Decision: d, Yielding: e.yielded}
	if !d.Claim {
		return status, nil
	}
	if listed, err := e.listed(ctx, self, snap, d); err != nil || !listed {
		status.Decision = Decision{Code: CodeUnlisted, Why: "the last holder did not know this passive, and may go on without the store"}
		return status, nil
	}
	if !e.promise.beginClaim(now) {
		return status, nil
	}
	tenure, err := e.claim(ctx, self, snap, d)
	if tenure == nil {
		e.promise.endClaim()
	}
	if err != nil {
		status.Decision = Decision{Code: CodeStoreAway, Why: fmt.Sprintf("cannot claim: %v", err)}
		if !errors.Is(err, ErrConflict) {
			status.Store = err
		}
		return status, nil
	}
	return status, tenure
}

// resumeCandidacy ends the time that was left to others: somebody serves, or this candidate is about to. Should others fail, it
// may have another go.
func (e *Elector) resumeCandidacy() {
	e.yielded = false
	if !e.cooldown {
		e.holdOff = e.resting
	}
}

// holdsOff returns until when a vacancy is left to others. Where there is nobody to leave it to, that is no reason to wait; but one
// that could not start its controller needs the pause itself.
func (e *Elector) holdsOff(self Self, snap Snapshot) Instant {
	if !e.cooldown && !AnotherFit(self, snap) {
		return e.resting
	}
	return e.holdOff
}

// inherit returns the tenure that the holder before has handed to the spare lease, if the role key was seen bound to it. Nobody
// else can bind the role key to this lease, nor has its validity, which counts from its last renewal, anything to do
// with when it was seen. So old news are as good as new ones. What is handed over and can't be used is given back.
func (e *Elector) inherit(ctx context.Context, active *Active, lease LeaseID) *Tenure {
	s := e.spare
	if s.lease == "" || s.lease != lease || active == nil {
		return nil
	}
	self, now := e.Self(), e.Clock()
	usable := active.Controller == self.Name && active.Incarnation == self.Incarnation && active.Term > max(e.seen.Term, s.after) &&
		now < s.sent.Add(e.Timing.Validity-e.Timing.StopBudget) && ctx.Err() == nil
	if !usable || !e.promise.beginClaim(now) {
		e.dropSpare(ctx)
		return nil
	}
	e.spare = spare{}
	e.resumeCandidacy()
	e.seen.Term = active.Term
	if e.seen.StoppingAt == 0 { // the news that the holder was stopping came with the news that it is over, or not at all
		e.seen.StoppingAt = now
	}
	previous := s.crumb
	previous.Clean, previous.Reason = true, active.Reason
	crumb := Breadcrumb{
		Term: active.Term, Controller: self.Name, Incarnation: self.Incarnation, Validity: e.Timing.Validity, Reason: active.Reason,
	}
	return e.tenure(crumb, *active, lease, s.sent, Instant(0), previous)
}

// tenure returns a reign that begins.
func (e *Elector) tenure(crumb Breadcrumb, record Active, lease LeaseID, sent, notBefore Instant, previous Breadcrumb) *Tenure {
	return &Tenure{
		Term: crumb.Term, Lease: lease, NotBefore: notBefore, Reason: crumb.Reason, Previous: previous, Seen: e.seen,
		backend: e.Backend, clock: e.Clock, raw: e.Raw, timing: e.Timing, crumb: crumb, record: record,
		until: sent.Add(e.Timing.Validity), onStoreLoss: e.OnStoreLoss, vouch: e.Vouch,
	}
}

// resume takes up the reign of an earlier process, if the role key still is bound to its lease. That proves that nobody
// has reigned since, so the validity may be counted anew.
func (e *Elector) resume(ctx context.Context) *Tenure {
	h := e.Resume
	sent := e.Clock()
	var snap Snapshot
	err := e.bounded(ctx, func(ctx context.Context) (err error) {
		if snap, err = e.Backend.Read(ctx); err != nil {
			return err
		}
		if snap.ActiveLease != h.Lease || snap.Active == nil || snap.Active.Term != h.Term || snap.Active.Incarnation != h.Incarnation {
			return ErrLost
		}
		return e.Backend.Renew(ctx, Renewal{Lease: h.Lease, Hold: true, Beat: e.Timing.Beat})
	})
	if err != nil || !e.promise.beginClaim(sent) {
		return nil
	}
	e.seen = e.seen.Observe(snap, e.Clock())
	return &Tenure{
		Term: h.Term, Lease: h.Lease, Reason: h.Reason, Previous: h.Previous, Seen: e.seen, Resumed: true,
		backend: e.Backend, clock: e.Clock, raw: e.Raw, timing: e.Timing, crumb: snap.Breadcrumb, record: *snap.Active,
		until: sent.Add(e.Timing.Validity), onStoreLoss: e.OnStoreLoss, vouch: e.Vouch,
	}
}

// claim makes one attempt. If its outcome is not known it reads until it is, or until the lease could not be used
// any more; the lease then is left to end by itself.
func (e *Elector) claim(ctx context.Context, self Self, snap Snapshot, d Decision) (*Tenure, error) {
	sent, lease, err := e.unbound(ctx)
	if err != nil {
		return nil, err
	}
	record := e.Record()
	record.Controller, record.Incarnation = self.Name, self.Incarnation
	record.Term, record.State, record.Since, record.Reason = d.Term, StateStarting, time.Now().UTC(), d.Reason
	crumb := Breadcrumb{
		Term: d.Term, Controller: self.Name, Incarnation: self.Incarnation, Validity: e.Timing.Validity, Reason: d.Reason,
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
		won, err = e.claimed(ctx, lease, sent)
		if err != nil {
			claimErr = err
		}
	}
	if !won {
		// Best effort: an unclaimed lease harms nobody and ends by itself.
		_ = e.bounded(context.WithoutCancel(ctx), func(ctx context.Context) error { return e.Backend.Revoke(ctx, lease) })
		return nil, claimErr
	}
	e.seen.Term = max(e.seen.Term, d.Term)
	return e.tenure(crumb, record, lease, sent, d.NotBefore, snap.Breadcrumb), nil
}

// unbound returns a lease to claim with: the spare one, or a new one.
func (e *Elector) unbound(ctx context.Context) (sent Instant, lease LeaseID, err error) {
	s := e.spare
	e.spare = spare{}
	if s.lease != "" && e.Clock().Sub(s.sent) <= e.Timing.RenewEvery {
		return s.sent, s.lease, nil
	}
	// A spare one that is older is left to end by itself: much of its validity is over.
	return e.grant(ctx)
}

// grant gets a lease, and tells when it was asked for.
func (e *Elector) grant(ctx context.Context) (sent Instant, lease LeaseID, err error) {
	sent = e.Clock()
	err = e.bounded(ctx, func(ctx context.Context) (err error) {
		lease, err = e.Backend.Grant(ctx, e.Timing.TTL)
		return err
	})
	return sent, lease, err
}

// keepSpare has a lease at hand for as long as a takeover from here is near, and offers it to the holder.
func (e *Elector) keepSpare(ctx context.Context, seen Status) {
	if seen.Store != nil {
		return // what there is may soon be needed; a request more would only keep this loop waiting
	}
	self, now, snap := e.Self(), e.Clock(), seen.Snapshot
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
		e.spare = spare{lease: lease, sent: sent, after: snap.Active.Term, crumb: snap.Breadcrumb}
	case now.Sub(e.spare.sent) > e.Timing.RenewEvery/2:
		err := e.bounded(ctx, func(ctx context.Context) error {
			return e.Backend.Renew(ctx, Renewal{Lease: e.spare.lease})
		})
		if err != nil {
			e.dropSpare(ctx) // with the offer, if there is one
			return
		}
		e.spare.sent = now
	}
	if !e.spare.told && snap.HeirVersion == 0 {
		e.spare.told = e.offer(ctx, self) == nil
	}
}

// offer writes the heir key.
func (e *Elector) offer(ctx context.Context, self Self) error {
	record := e.Record()
	heir := Heir{
		Controller: self.Name, Incarnation: self.Incarnation, After: e.spare.after, Lease: e.spare.lease,
		URL: record.URL, API: record.API, Validity: e.Timing.Validity.String(), Beat: e.Timing.Beat,
	}
	return e.bounded(ctx, func(ctx context.Context) error {
		return e.Backend.Put(ctx, Put{Key: "heir", Value: heir.Encode(), Lease: heir.Lease, If: new(Version)})
	})
}

// dropSpare gives the spare lease back. One attempt: it ends by itself too, and nothing is bound to it.
func (e *Elector) dropSpare(ctx context.Context) {
	if e.spare.lease == "" {
		return
	}
	lease := e.spare.lease
	e.spare = spare{}
	_ = e.bounded(context.WithoutCancel(ctx), func(ctx context.Context) error { return e.Backend.Revoke(ctx, lease) })
}

// claimed finds out whether a claim whose reply was lost has been carried out. Once it was read that the role key is bound
// to another lease, or absent, the claim can still arrive late only if nothing changed the term key; so the lease is
// revoked by the caller, after which the claim can't succeed.
func (e *Elector) claimed(ctx context.Context, lease LeaseID, sent Instant) (bool, error) {
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
	// The renewals must go on while Lead undoes the reign, even after ctx has ended.
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
	if outcome.Floor > 0 {
		e.seen.Term = max(e.seen.Term, outcome.Floor)
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
}

// handOver makes the heir the holder, if there is one, and reports whether it did. One attempt: whatever is not known of it,
// the release that follows finds out.
func (e *Elector) handOver(ctx context.Context, t *Tenure, outcome End) bool {
	snap := t.Snapshot()
	if outcome.Floor > 0 || !Succeeds(e.Self(), t.Term, snap) {
		return false
	}
	heir := *snap.Heir
	validity, err := time.ParseDuration(heir.Validity)
	if err != nil {
		return false
	}
	term := max(e.seen.Term, t.Term) + 1
	err = e.bounded(context.WithoutCancel(ctx), func(ctx context.Context) error {
		return e.Backend.HandOver(ctx, t.Lease, HandOver{
			From: t.crumb.Controller, Heir: snap.HeirVersion, Lease: heir.Lease, Beat: heir.Beat,
			Active: Active{
				Controller: heir.Controller, Incarnation: heir.Incarnation, Term: term, State: StateStarting, URL: heir.URL, API: heir.API,
				Since: time.Now().UTC(), Reason: outcome.Reason,
			},
			Breadcrumb: Breadcrumb{
				Term: term, Controller: heir.Controller, Incarnation: heir.Incarnation, Validity: validity, Reason: outcome.Reason,
			},
		})
	})
	return err == nil
}

// release gives the lease back, clean. It tries until the store could not keep the lease any longer, because a release
// spares the taker the wait for the old validity.
func (e *Elector) release(ctx context.Context, t *Tenure, outcome End) {
	ctx = context.WithoutCancel(ctx)
	crumb := t.crumb
	crumb.Clean, crumb.Reason = true, outcome.Reason
	if outcome.Floor > crumb.Term {
		crumb.Term = outcome.Floor // by compare-and-swap with the release; the next claim is above it
	}
	t.mu.Lock()
	giveUp := t.until.Add(e.Timing.TTL - e.Timing.Validity + e.Backend.Traits().ExpirySlack)
	t.mu.Unlock()
	for {
		err := e.bounded(ctx, func(ctx context.Context) error { return e.Backend.Release(ctx, t.Lease, crumb) })
		// ErrLost also is the answer to a repeated release whose first reply was lost.
		if err == nil || errors.Is(err, ErrLost) || e.Clock() >= giveUp {
			return
		}
		sleep(ctx, e.Timing.Attempt())
	}
}

// watchReign looks at the store on every hint, and at the pace of the renewals.
func (e *Elector) watchReign(ctx context.Context, t *Tenure) {
	for ctx.Err() == nil {
		var snap Snapshot
		err := e.bounded(ctx, func(ctx context.Context) (err error) {
			snap, err = e.Backend.Read(ctx)
			return err
		})
		if err == nil {
			e.seen = e.seen.Observe(snap, e.Clock())
			t.see(snap)
			e.keepList(ctx, t, snap)
			switch d := DecideHolder(e.Self(), t.Lease, t.Term, snap); d.Code {
			case CodeLost:
				t.lose(&Ending{Code: CodeLost, Why: d.Why})
			case CodePlanned:
				t.end(&Ending{Code: CodePlanned, Why: d.Why})
			case CodeVoidRequest:
				t.void(d)
				_ = e.bounded(ctx, func(ctx context.Context) error { return e.Backend.Delete(ctx, "request", snap.RequestVer) })
			}
		}
		// Every renewal proves that the role key is ours; this look is for requests that the watch failed to hint at.
		e.waitFor(ctx, reignReread*e.Timing.RenewEvery)
	}
}

// reignReread is how many renewals there are to one look at the store, if there was no hint.
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

// bounded makes one request to the store with the time-out of one attempt.
func (e *Elector) bounded(ctx context.Context, request func(context.Context) error) error {
	return bounded(ctx, e.Timing.Attempt(), request)
}

func bounded(ctx context.Context, limit time.Duration, request func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return request(ctx)
}

// sleep waits for d and reports whether ctx still goes on.
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
