package election

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Tenure is a held lease, as its holder sees it. It is valid until s+V, and says so by the local clock alone. All methods
// may be called from any goroutine.
type Tenure struct {
	Term      Term
	Lease     LeaseID
	NotBefore Instant    // the controller may not be started earlier; zero: at once
	Reason    string     // why the reign began
	Previous  Breadcrumb // the reign before, as it was when this one was claimed
	Seen      Sightings  // what the candidate had seen when it claimed
	Resumed   bool       // begun by an earlier process of this sidecar

	backend Backend
	clock   Clock
	raw     Clock
	timing  Timing
	crumb   Breadcrumb
	end     context.CancelCauseFunc

	onStoreLoss StoreLoss
	vouch       func(ctx context.Context, a Ask) error

	mu       sync.Mutex
	record   Active
	until    Instant // s+V of the last renewal that was acknowledged
	over     bool    // sticky: the validity has ended, or the lease is lost
	extended func(Instant)
	snapshot Snapshot
	voided   func(HolderDecision)
	renewals uint64
	failures uint64
	lastErr  error
	alone    bool                  // goes on without the store
	asked    map[string]Controller // who must vouch: everybody that may be on the list in the store
	written  []string              // the list as it was last written, in order
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

// Deadline returns the instant by which the guard kills what is left of the controller, s+V less the
// kill margin. It is in the past if the lease is lost.
func (t *Tenure) Deadline() Instant {
	return t.ValidUntil().Add(-t.timing.KillMargin())
}

// OnExtend sets the function that is called with the new [Tenure.Deadline] after every renewal, and calls it at once. It must
// not block.
func (t *Tenure) OnExtend(f func(deadline Instant)) {
	t.mu.Lock()
	t.extended = f
	t.mu.Unlock()
	if f != nil {
		f(t.Deadline())
	}
}

// Held returns what a later process needs to go on with the reign.
func (t *Tenure) Held() Held {
	return Held{Term: t.Term, Lease: t.Lease, Incarnation: t.crumb.Incarnation, Reason: t.Reason, Previous: t.Previous}
}

// State returns the state that was last published.
func (t *Tenure) State() State {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.record.State
}

// OnVoid sets the function that is told of requests that could not be carried out. It must not block.
func (t *Tenure) OnVoid(f func(HolderDecision)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.voided = f
}

// Snapshot returns what was last read of the store during the reign.
func (t *Tenure) Snapshot() Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.snapshot
}

// Paused reports whether the cluster was paused when the store was last read.
func (t *Tenure) Paused() bool { return t.Snapshot().Pause != nil }

// Renewals returns how many renewals were acknowledged, how many were not, and the error of the last one if it failed.
func (t *Tenure) Renewals() (acknowledged, failed uint64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.renewals, t.failures, t.lastErr
}

// Publish rewrites the role key with a new state. It makes one attempt; [ErrLost] ends the reign.
func (t *Tenure) Publish(ctx context.Context, state State) error {
	t.mu.Lock()
	record := t.record
	t.mu.Unlock()
	record.State, record.Since = state, time.Now().UTC()
	err := bounded(ctx, t.timing.Attempt(), func(ctx context.Context) error { return t.backend.Publish(ctx, t.Lease, record) })
	if err == nil {
		t.mu.Lock()
		t.record = record
		t.mu.Unlock()
		return nil
	}
	if errors.Is(err, ErrLost) {
		t.lose(&Ending{Code: CodeLost, Why: "the store says that the role key is not bound to this lease"})
	}
	return err
}

// renew prolongs the lease every RenewEvery, sooner after a failure, until ctx ends.
func (t *Tenure) renew(ctx context.Context) {
	var r rate
	for {
		sent := t.clock()
		if t.raw != nil && r.slow(sent, t.raw()) {
			t.lose(&Ending{Code: CodeLost, Why: "the host's clock runs too slowly to count a lease on it", Here: true})
			return
		}
		if sent >= t.ValidUntil() {
			t.lose(&Ending{Code: CodeLost, Why: "the lease was not renewed in time"})
			return // sticky: a late renewal would resurrect a lease that another may hold
		}
		err := bounded(ctx, t.timing.Attempt(), func(ctx context.Context) error {
			return t.backend.Renew(ctx, Renewal{Lease: t.Lease, Hold: true, Beat: t.timing.Beat})
		})
		if ctx.Err() != nil {
			return
		}
		pause := t.timing.RenewEvery
		switch {
		case err == nil:
			if !t.extend(sent) {
				t.lose(&Ending{Code: CodeLost, Why: "the lease was renewed too late"})
				return
			}
			t.renewed()
		case errors.Is(err, ErrLost):
			t.fail(err)
			t.lose(&Ending{Code: CodeLost, Why: "the store says that the lease is gone"})
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

// extend moves the validity to sent+V, unless it has already ended.
func (t *Tenure) extend(sent Instant) bool {
	t.mu.Lock()
	if t.over || t.clock() >= t.until {
		t.mu.Unlock()
		return false
	}
	t.until = sent.Add(t.timing.Validity)
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

// guard ends the reign when the forced stop must begin, because no renewal was acknowledged.
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

// lose ends the reign for good: the lease is not ours any more.
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
