package election

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Tenure is a held lease, as its holder sees it. It is valid until s+V, by the local clock alone.
// All methods may be called from any goroutine.
type Tenure struct {
	Term     Term
	Reason   string     // why the reign began
	Previous Breadcrumb // the previous reign, as it was when this one was claimed
	Seen     Sightings  // what the candidate had seen when it claimed
	Resumed  bool       // begun by an earlier process of this sidecar

	backend Backend
	clock   Clock
	raw     Clock
	timing  Timing
	crumb   Breadcrumb
	origin  Origin // of the store in which the reign began
	end     context.CancelCauseFunc

	onStoreLoss StoreLoss
	ask         func(ctx context.Context, a Ask) error

	publish turn // held during each write of the role key, so that a repair does not overtake a new state

	elsewhere atomic.Bool // another store has answered
	repairAt  Instant     // the term record is not repaired again before; only watchReign uses it

	paid chan struct{} // closed when an operator has confirmed that the previous holder is dead

	mu sync.Mutex
	// Nothing may be started or handed over before notBefore, because of the reign's debt; zero:
	// there is none. owedBefore is that of holders before the previous one.
	notBefore, owedBefore Instant
	confirmed             string // the operator who confirmed that the previous holder is dead
	lease                 LeaseID
	record                Active
	until                 Instant // s+V of the last acknowledged renewal
	over                  bool    // sticky: the validity has ended, or the lease is lost
	extended              func(Instant)
	snapshot              Snapshot
	voided                func(HolderDecision)
	renewals              uint64
	failures              uint64
	lastErr               error
	alone                 bool                  // continues without the store
	asked                 map[string]Controller // who must promise: everybody who may be on the list in the store
	written               string                // the list as last written

	restart    func(HolderDecision) bool
	rebound    func()
	save       func(Held) error
	publishing bool // a write of the role key is under way
	torn       bool // the role key was bound to a new lease, without the URL and the role word
}

// ValidUntil returns s+V, or zero if the lease is lost.
func (t *Tenure) ValidUntil() Instant {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return 0
	}
	return t.until
}

// Valid reports whether the holder may act now.
func (t *Tenure) Valid() bool { return t.clock() < t.ValidUntil() }

// Deadline returns the instant by which the guard kills what is left of the controller: s+V less
// the kill margin. It is in the past if the lease is lost.
func (t *Tenure) Deadline() Instant {
	return t.ValidUntil().Add(-t.timing.KillMargin())
}

// OnExtend sets the function that is called with the new [Tenure.Deadline] after every renewal, and
// calls it at once. It must not block.
func (t *Tenure) OnExtend(f func(deadline Instant)) {
	t.mu.Lock()
	t.extended = f
	t.mu.Unlock()
	if f != nil {
		f(t.Deadline())
	}
}

// Held returns what a later process needs to continue the reign.
func (t *Tenure) Held() Held {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Held{
		Term: t.Term, Lease: t.lease, Incarnation: t.crumb.Incarnation, Nonce: t.crumb.Nonce, Reason: t.Reason, Previous: t.Previous,
		Record: t.record, Timing: t.timing, NotBefore: t.notBefore, Origin: t.origin, Listed: t.written,
		Asked: slices.SortedFunc(maps.Values(t.asked), func(a, b Controller) int { return strings.Compare(a.Name, b.Name) }),
	}
}

// OnSave sets the function that keeps [Tenure.Held] for a later process; it is called whenever that
// has changed, and before what could mislead a later process with the old one. It must not block
// for long.
func (t *Tenure) OnSave(f func(Held) error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.save = f
}

func (t *Tenure) remember() error {
	t.mu.Lock()
	f := t.save
	t.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(t.Held())
}

// Timing returns the timing of the reign, which is that of the process that claimed.
func (t *Tenure) Timing() Timing { return t.timing }

// LeaseID returns the lease that the role key is bound to.
func (t *Tenure) LeaseID() LeaseID {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lease
}

// owed returns how long a holder before this reign may still act.
func (t *Tenure) owed() time.Duration {
	due := t.NotBefore()
	if due == 0 {
		return 0
	}
	return max(0, due.Sub(t.clock()))
}

// NotBefore returns when the debt of the reign ends: nothing may be started or handed over earlier.
// Zero: there is none.
func (t *Tenure) NotBefore() Instant {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.notBefore
}

// Paid is closed when [Tenure.NotBefore] has become earlier.
func (t *Tenure) Paid() <-chan struct{} { return t.paid }

// Confirmed returns the operator who confirmed that the previous holder is dead, or "".
func (t *Tenure) Confirmed() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.confirmed
}

// pay takes a certificate in: the debt to the previous holder is paid, if it is about that one, and
// what is owed to holders before it is not.
func (t *Tenure) pay(dead *Dead) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.notBefore <= t.owedBefore || !dead.pays(t.Previous, t.Term) {
		return
	}
	t.notBefore, t.confirmed = t.owedBefore, dead.By
	close(t.paid)
}

// termRecord returns the term record of the reign, as it would be written now.
func (t *Tenure) termRecord() Breadcrumb {
	crumb := t.crumb
	crumb.Debt = t.owed()
	return crumb
}

// raise makes the counter at least term, without changing the rest of the record.
func (b *Breadcrumb) raise(term Term) {
	if term > b.Term {
		b.Reign, b.Term = b.Of(), term
	}
}

// wrote reports whether b has this reign's facts as this reign wrote them. The counter, the list
// and the reason are not compared. A debt shrinks all the time, so a written debt is right while it
// is not below the remaining one. Once that is paid, no debt is right.
func (t *Tenure) wrote(b Breadcrumb) bool {
	owed, want := t.owed(), t.crumb
	paid := b.Debt == 0 || owed > 0
	b.Term, b.Reign, want.Term, want.Reign = b.Of(), 0, t.Term, 0
	enough := b.Debt >= owed
	b.Heirs, b.Debt, b.Reason = want.Heirs, want.Debt, want.Reason
	return b == want && paid && enough
}

// keepTermRecord rewrites the term record if it is not what this reign wrote (it is unreadable, or
// somebody has changed it) or if it does not have the required list or the highest known term.
func (t *Tenure) keepTermRecord(ctx context.Context, snap Snapshot, highest Term) {
	b := snap.Breadcrumb
	list, present := t.wants(snap)
	ours := snap.TermBad == nil && t.wrote(b) && b.Term >= highest
	t.mu.Lock()
	listed, told := b.Heirs == list, t.written == list
	t.mu.Unlock()
	if ours && listed && told {
		return
	}
	// Repairs are paced: somebody, or a store that does not show what was written, may undo each of
	// them at once.
	if now := t.clock(); !ours || told {
		if now < t.repairAt {
			return
		}
		t.repairAt = now.Add(t.timing.RenewEvery)
	}
	// A later process that does not know who may be on the list would not ask all of them.
	if !told && t.remember() != nil {
		return
	}
	crumb := t.termRecord()
	crumb.Heirs = list
	crumb.raise(max(b.Term, highest))
	// By compare-and-swap: every claim changes the term key, so a late write of another list fails.
	err := bounded(ctx, t.timing.Attempt(), func(ctx context.Context) error {
		return t.backend.Put(ctx, Put{Key: TermKey, Value: crumb.Encode(), If: &snap.TermVersion})
	})
	if err != nil {
		return // retried at the next read
	}
	t.mu.Lock()
	t.written, t.asked = list, present
	t.mu.Unlock()
	if !told {
		_ = t.remember() // what was kept before asks more, never fewer
	}
}

// mayRebind reports whether the reign rightly continued without the store, so that the end of its
// lease in the store does not end the reign.
func (t *Tenure) mayRebind() bool {
	now := t.clock()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.alone && !t.over && now < t.until
}

// rebind binds the role key to a new lease of this reign, if it is absent and the term record is as
// this reign left it: then nobody has claimed.
func (t *Tenure) rebind(ctx context.Context) (Proof, error) {
	var snap Snapshot
	err := bounded(ctx, t.timing.Attempt(), func(ctx context.Context) (err error) {
		snap, err = t.backend.Read(ctx)
		return err
	})
	if err != nil {
		return Proof{}, err
	}
	b := snap.Breadcrumb
	if _, dead := snap.certified(b); dead {
		return Proof{}, ErrLost // others act on it
	}
	if !snap.Vacant() || snap.TermBad != nil || b.Of() != t.Term || b.Nonce != t.crumb.Nonce || b.Clean || !snap.Origin.continues(t.origin) {
		return Proof{}, ErrLost
	}
	sent := t.clock()
	var lease LeaseID
	err = bounded(ctx, t.timing.Attempt(), func(ctx context.Context) (err error) {
		lease, err = t.backend.Grant(ctx, t.timing.TTL)
		return err
	})
	if err != nil {
		return Proof{}, err
	}
	if err := t.publish.lock(ctx); err != nil {
		return Proof{}, err
	}
	defer t.publish.unlock()
	t.mu.Lock()
	record := t.record
	t.mu.Unlock()
	crumb := t.termRecord()
	crumb.Heirs = b.Heirs
	crumb.raise(b.Term)
	err = bounded(ctx, t.timing.Attempt(), func(ctx context.Context) error {
		return t.backend.Claim(ctx, Claim{Lease: lease, Active: record, Breadcrumb: crumb, TermVersion: snap.TermVersion, Beat: t.timing.Beat})
	})
	if errors.Is(err, ErrConflict) || errors.Is(err, ErrLost) {
		_ = bounded(ctx, t.timing.Attempt(), func(ctx context.Context) error { return t.backend.Revoke(ctx, lease) })
		if errors.Is(err, ErrNotYet) {
			return Proof{}, fmt.Errorf("cannot bind the role key to a new lease: %v", ErrNotYet) // retried at the next renewal
		}
		return Proof{}, ErrLost
	}
	// If the outcome is unknown, the next renewal, of the new lease, shows it.
	t.mu.Lock()
	t.lease, t.torn = lease, true
	rebound := t.rebound
	t.mu.Unlock()
	_ = t.remember()
	if rebound != nil {
		rebound()
	}
	if err != nil {
		return Proof{}, err
	}
	return claimed(sent), nil
}

// OnRebind sets the function that is called when the role key was bound to a new lease. It must not
// block for long.
func (t *Tenure) OnRebind(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rebound = f
}

// State returns the state that was last published.
func (t *Tenure) State() State {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.record.State
}

// OnVoid sets the function that is called with requests that cannot be carried out. It must not
// block.
func (t *Tenure) OnVoid(f func(HolderDecision)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.voided = f
}

// OnRestart sets the function that is called with a request for a restart in place whenever it is
// read, and returns whether the request is still to be carried out. When it is not, the request is
// removed. It must not block.
func (t *Tenure) OnRestart(f func(HolderDecision) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.restart = f
}

// carriesOut hands a request for a restart over, and reports whether it is still to be carried out.
func (t *Tenure) carriesOut(d HolderDecision) bool {
	t.mu.Lock()
	f := t.restart
	t.mu.Unlock()
	return f != nil && f(d)
}

// Snapshot returns what was last read from the store during the reign.
func (t *Tenure) Snapshot() Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.snapshot
}

// Paused reports whether the cluster was paused when the store was last read.
func (t *Tenure) Paused() bool { return t.Snapshot().Pause != nil }

// Renewals returns how many renewals were acknowledged, how many were not, and the error of the
// last one if it failed.
func (t *Tenure) Renewals() (acknowledged, failed uint64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.renewals, t.failures, t.lastErr
}

// Publish rewrites the role key with a new state. It makes one attempt; [ErrLost] ends the reign.
func (t *Tenure) Publish(ctx context.Context, state State) error {
	return t.rewrite(ctx, func(State) State { return state })
}

// rewrite is Publish with a state that may depend on the one that was last published.
func (t *Tenure) rewrite(ctx context.Context, next func(last State) State) error {
	if err := t.publish.lock(ctx); err != nil {
		return err
	}
	defer t.publish.unlock()
	t.mu.Lock()
	record := t.record
	t.publishing = true
	t.mu.Unlock()
	if state := next(record.State); record.State != state {
		record.State, record.Since = state, time.Now().UTC()
	}
	err := bounded(ctx, t.timing.Attempt(), func(ctx context.Context) error { return t.backend.Publish(ctx, t.LeaseID(), record) })
	t.mu.Lock()
	t.publishing = false
	if err == nil {
		t.record, t.torn = record, false
	}
	t.mu.Unlock()
	if err == nil {
		return nil
	}
	if errors.Is(err, ErrLost) {
		t.lose(&Ending{Code: CodeLost, Why: "the store reports that the role key is not bound to this lease"})
	}
	return err
}

// renew renews the lease every RenewEvery, sooner after a failure, until ctx ends.
func (t *Tenure) renew(ctx context.Context) {
	var r rate
	for {
		sent := t.clock()
		if t.raw != nil && r.slow(sent, t.raw()) {
			t.lose(&Ending{Code: CodeLost, Why: "the host's clock is too slow to count a lease", Here: true})
			return
		}
		if sent >= t.ValidUntil() {
			t.lose(&Ending{Code: CodeLost, Why: "the lease was not renewed in time"})
			return // sticky: a late renewal would resurrect a lease that another may hold
		}
		proof, err := t.prove(ctx)
		if errors.Is(err, ErrLost) && t.mayRebind() {
			if proof, err = t.rebind(ctx); err == nil {
				t.repair(ctx) // including the URL and the role word; if that fails, the next renewal repairs
			}
		}
		if ctx.Err() != nil {
			return
		}
		pause := t.timing.RenewEvery
		switch {
		case err == nil:
			if !t.extend(proof) {
				t.lose(&Ending{Code: CodeLost, Why: "the lease was renewed too late"})
				return
			}
			t.renewed()
		case errors.Is(err, errForeign):
			t.fail(err)
			t.repair(ctx)
			pause = t.timing.Attempt() / 4
		case errors.Is(err, ErrLost):
			t.fail(err)
			t.lose(&Ending{Code: CodeLost, Why: "the store reports that the lease is gone"})
			return
		default:
			t.fail(err)
			t.goOnAlone(ctx)
			pause = t.timing.Attempt() / 4
		}
		if !sleep(ctx, max(pause-t.clock().Sub(sent), pause/4)) {
			return
		}
	}
}

// prove renews the lease, and proves that the reign continues. A role key of ours that differs from
// what was last published is rewritten.
func (t *Tenure) prove(ctx context.Context) (proof Proof, err error) {
	var is Active
	err = bounded(ctx, t.timing.Attempt(), func(ctx context.Context) (err error) {
		proof, is, err = prove(ctx, t.backend, t.clock, Hold{Lease: t.LeaseID(), Beat: t.timing.Beat}, t.origin, t.mine)
		return err
	})
	if errors.Is(err, errElsewhere) {
		t.elsewhere.Store(true)
	}
	t.mu.Lock()
	outdated := err == nil && !t.publishing && (is != t.record || t.torn)
	t.mu.Unlock()
	if outdated {
		t.repair(ctx)
	}
	return proof, err
}

// mine reports whether this reign wrote a, whatever its state.
func (t *Tenure) mine(a Active) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.record
	return a.Controller == r.Controller && a.Term == r.Term && a.Incarnation == r.Incarnation && a.Nonce == r.Nonce && a.URL == r.URL && a.API == r.API
}

// repair rewrites the role key as it was last published, over what somebody else wrote. A new state
// that is published meanwhile stays.
func (t *Tenure) repair(ctx context.Context) {
	_ = t.rewrite(ctx, func(last State) State { return last }) // the next renewal checks again
}

// extend moves the validity to what p proves, unless it has already ended.
func (t *Tenure) extend(p Proof) bool {
	now := t.clock()
	t.mu.Lock()
	if t.over || now >= t.until || p.sent == 0 {
		t.mu.Unlock()
		return false
	}
	t.until = max(t.until, p.sent.Add(t.timing.Validity))
	f, deadline := t.extended, t.until.Add(-t.timing.KillMargin())
	t.mu.Unlock()
	if f != nil {
		f(deadline)
	}
	return true
}

func (t *Tenure) renewed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.renewals++
	t.lastErr, t.alone = nil, false
}

func (t *Tenure) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failures++
	t.lastErr = err
}

// guard ends the reign when the forced stop must begin because no renewal was acknowledged.
func (t *Tenure) guard(ctx context.Context) {
	for {
		stopAt := t.ValidUntil().Add(-t.timing.StopBudget)
		left := stopAt.Sub(t.clock())
		if left <= 0 {
			_, _, err := t.Renewals()
			why := "the lease is running out"
			if err != nil {
				why = fmt.Sprintf("the lease is running out: cannot renew it: %v", err)
			}
			t.end(&Ending{Code: CodeStoreAway, Why: why})
			return
		}
		if !sleep(ctx, left) {
			return
		}
	}
}

// lose ends the reign for good: the lease is no longer ours.
func (t *Tenure) lose(e *Ending) {
	t.mu.Lock()
	t.over = true
	f := t.extended
	t.mu.Unlock()
	if f != nil {
		f(0) // a deadline in the past: whatever is left is killed now
	}
	t.end(e)
}

func (t *Tenure) see(s Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.snapshot = s
}

func (t *Tenure) void(d HolderDecision) {
	t.mu.Lock()
	f := t.voided
	t.mu.Unlock()
	if f != nil && d.Request.Term >= t.Term {
		f(d)
	}
}
