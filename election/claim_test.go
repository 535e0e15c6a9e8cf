package election

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// vacancy is a store in which nobody has reigned, and which answers every claim with err.
type vacancy struct {
	Backend
	err error
}

func (vacancy) Traits() Traits                                        { return Traits{} }
func (vacancy) Read(context.Context) (Snapshot, error)                { return Snapshot{}, nil }
func (vacancy) Grant(context.Context, time.Duration) (LeaseID, error) { return "l1", nil }
func (vacancy) Revoke(context.Context, LeaseID) error                 { return nil }
func (vacancy) List(context.Context, string) ([]Entry, error)         { return nil, nil }
func (v vacancy) Claim(context.Context, Claim) error                  { return v.err }

// TestClaimThatFailsSaysWhy: a lost race is no fault of the store, and is not reported as one.
func TestClaimThatFailsSaysWhy(t *testing.T) {
	for _, c := range []struct {
		err   error
		code  Code
		store bool // the store is at fault
	}{
		{fmt.Errorf("claim: %w", ErrConflict), CodeRaceLost, false},
		{errors.Join(ErrConflict, ErrNotYet), CodeNotClaimed, false},
		{ErrLost, CodeNotClaimed, false},
		{ErrDenied, CodeStoreAway, true},
	} {
		e := &Elector{
			Backend: vacancy{err: c.err}, Timing: defaults(t, ""), Clock: func() Instant { return 100 * second }, Record: func() Active { return Active{} },
			Self: func() Self { return Self{Name: "b", Incarnation: "b-1", Fit: true} },
		}
		status, tenure := e.candidate(t.Context())
		if tenure != nil || status.Decision.Code != c.code || (status.Store != nil) != c.store || c.store && !errors.Is(status.Store, c.err) {
			t.Errorf("%v: %q, store %v", c.err, status.Decision.Code, status.Store)
		}
	}
}
