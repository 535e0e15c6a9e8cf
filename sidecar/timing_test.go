package sidecar

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
)

// cutOff runs the worst case of a lease: the holder is cut off from the store right after a
// renewal, its program ignores the stop signal, and the store forgets the lease at once. So only
// the holder's own validity and the taker's wait keep the two apart. It reports whether both ran at
// once.
func cutOff(t *testing.T, timing election.Timing, change func(a, b *host)) (overlap bool) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.add("ctl-a", func(c *Config) { c.Timing = timing })
		b := w.add("ctl-b", func(c *Config) { c.Timing = timing })
		a.program.stopsIn, b.program.startsIn = time.Hour, 0
		change(a, b)
		a.start()
		w.wait(5*time.Second, "ctl-a serves", a.is(election.StateServing))
		b.start()
		w.wait(5*time.Second, "ctl-b is ready", b.is(election.StateReady))
		before := a.client.Calls("Hold")
		w.wait(5*time.Second, "a renewal", func() bool { return a.client.Calls("Hold") > before })
		a.client.Partition()
		w.drop(func(w *world, lease election.LeaseID) { w.store.RevokeEarly(lease) }, a)
		w.wait(60*time.Second, "ctl-b serves", b.is(election.StateServing))
		w.mu.Lock()
		overlap = len(w.overlaps) > 0
		w.overlaps = nil
		w.mu.Unlock()
		w.finish()
	})
	return overlap
}

func profiles(t *testing.T) []election.Timing {
	t.Helper()
	var all []election.Timing
	for _, name := range []string{election.ProfileDefault, election.ProfileFast} {
		p, err := election.Profile(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// TestInequalitiesThatKeepTwoHoldersApart: each inequality of Timing.Validate that keeps two
// holders apart holds in the profiles, and without it the same run overlaps. (The others keep a
// service up, see TestTimingValidate of package election: breaking them stops a controller
// needlessly, but starts none.)
func TestInequalitiesThatKeepTwoHoldersApart(t *testing.T) {
	for _, timing := range profiles(t) {
		t.Run(timing.Profile, func(t *testing.T) {
			for _, c := range []struct {
				name    string
				overlap bool
				change  func(a, b *host)
			}{
				{"as it should be", false, func(_, _ *host) {}},
				{"the holder's clock is slower by the drift that is allowed for", false, func(a, _ *host) { a.slow = election.MaxDrift * 0.95 }},
				{"the holder's clock is slower than that", true, func(a, _ *host) { a.slow = 0.4 }},
				{"the kill takes as long as the kill margin", false, func(a, _ *host) { a.program.diesIn = timing.KillMargin() }},
				{"the kill takes longer than the stop budget", true, func(a, _ *host) { a.program.diesIn = timing.StopBudget * 2 }},
				{"the last holder left no validity, and the taker's own is shorter", false, func(_, b *host) {
					own := &b.sidecar.elector.Timing
					own.Validity, own.StopBudget, own.RenewEvery = own.Validity/2, own.StopBudget/4, own.RenewEvery/4
					b.sidecar.elector.Backend = noValidity{b.client}
				}},
			} {
				t.Run(c.name, func(t *testing.T) {
					if got := cutOff(t, timing, c.change); got != c.overlap {
						t.Errorf("overlap: %v, want %v", got, c.overlap)
					}
				})
			}
		})
	}
}

// noValidity hides the last holder's validity from its taker.
type noValidity struct{ election.Backend }

func (n noValidity) Read(ctx context.Context) (election.Snapshot, error) {
	s, err := n.Backend.Read(ctx)
	s.Breadcrumb.Validity = 0
	return s, err
}

// TestSilenceOutlastsValidity: a fast takeover waits only for silence, so silence must outlast the
// validity, drift included.
func TestSilenceOutlastsValidity(t *testing.T) {
	for _, c := range []struct {
		slow    float64
		overlap bool
	}{{0, false}, {election.MaxDrift * 0.95, false}, {0.5, true}} {
		t.Run(fmt.Sprintf("clock slower by %v", c.slow), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				timing := profiles(t)[1]
				w := newWorld(t)
				fast := func(cfg *Config) { cfg.Timing = timing }
				a := w.add("ctl-a", fast)
				a.program.stopsIn, a.slow = time.Hour, c.slow
				a.start()
				w.wait(5*time.Second, "ctl-a serves", a.is(election.StateServing))
				b := w.add("ctl-b", fast)
				b.program.startsIn = 0
				b.start()
				w.wait(5*time.Second, "ctl-b is ready", b.is(election.StateReady))
				begun := time.Now()
				a.client.Partition()
				w.wait(5*time.Second, "ctl-b serves", b.is(election.StateServing))
				if took := time.Since(begun); took > timing.Silence+50*time.Millisecond {
					t.Errorf("the takeover took %v", took)
				}
				w.mu.Lock()
				if got := len(w.overlaps) > 0; got != c.overlap {
					t.Errorf("overlap: %v, want %v", got, c.overlap)
				}
				w.overlaps = nil
				w.mu.Unlock()
				w.finish()
			})
		})
	}
}

// TestSlowClockIsNoticed: a clock that is too slow to count a lease is detected with the next
// renewal, and the lease is given up before it does harm. Another takes over.
func TestSlowClockIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		raw := func() election.Instant { return election.Instant(time.Since(w.base)) + 1 }
		a := w.add("ctl-a", func(c *Config) { c.Raw = raw })
		a.slow = 0.2
		b := w.add("ctl-b", func(c *Config) { c.Raw = raw; c.Priority = 1 })
		a.start()
		b.start()
		w.wait(20*time.Second, "ctl-b serves", b.is(election.StateServing))
		w.finish()
	})
}
