package election

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestLateRenewalIsIgnored: a renewal that is acknowledged after the end of the validity changes
// nothing, because another may hold the lease by now.
func TestLateRenewalIsIgnored(t *testing.T) {
	var now Instant
	var told []Instant
	tenure := &Tenure{clock: func() Instant { return now }, timing: defaults(t, ""), until: 4 * second}
	tenure.OnExtend(func(d Instant) { told = append(told, d) })
	now = 4*second - 1
	if !tenure.extend(Proof{2 * second}) || tenure.ValidUntil() != 6*second {
		t.Errorf("valid until %v after a renewal in time", time.Duration(tenure.ValidUntil()))
	}
	now = 6 * second
	if tenure.extend(Proof{5 * second}) || tenure.Valid() {
		t.Error("a late renewal resurrected the lease")
	}
	if len(told) != 2 || told[1] != 5500*Instant(time.Millisecond) {
		t.Errorf("the guard was told %v", told)
	}
}

func TestRate(t *testing.T) {
	var r rate
	if r.slow(100*second, 7*second) {
		t.Error("the first reading proves nothing")
	}
	if r.slow(101*second, 8*second) || r.slow(102*second, 9*second+15*Instant(time.Millisecond)) {
		t.Error("a rate within the bound was refused")
	}
	if r.slow(150*second, 10*second) {
		t.Error("a suspend is no slow clock: the lease has run out by it")
	}
	if !r.slow(151*second, 11*second+200*Instant(time.Millisecond)) {
		t.Error("a clock that is 20 % slow was not seen")
	}
	if d := BootClock().Sub(0); d <= 0 || RawClock() <= 0 {
		t.Error("the clocks stand still")
	}
}

// gatedPublisher is a store whose writes of the role key wait for a pass.
type gatedPublisher struct {
	Backend
	passes chan struct{}
	states []State
}

func (g *gatedPublisher) Publish(_ context.Context, _ LeaseID, a Active) error {
	<-g.passes
	g.states = append(g.states, a.State)
	return nil
}

// TestRepairDoesNotTakeANewStateBack: the role key is repaired while a new state is being published.
// The repair used to wait with the old state, and wrote that last: the role key stayed at it for good,
// while the controller served. Found by the simulator, seed 977868.
func TestRepairDoesNotTakeANewStateBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &gatedPublisher{passes: make(chan struct{}, 2)}
		tenure := &Tenure{backend: store, timing: defaults(t, ""), record: Active{Controller: "ctl-a", Term: 1, State: StateStarting}}
		go func() { _ = tenure.Publish(t.Context(), StateServing) }()
		synctest.Wait()
		go tenure.repair(t.Context())
		synctest.Wait()
		store.passes <- struct{}{}
		store.passes <- struct{}{}
		synctest.Wait()
		if last := store.states[len(store.states)-1]; len(store.states) != 2 || last != StateServing || tenure.State() != StateServing {
			t.Errorf("the role key was written as %v, and the reign believes %q", store.states, tenure.State())
		}
	})
}
