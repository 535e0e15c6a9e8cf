package sidecar

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
)

// stranding makes two sites under a policy that lets a holder continue without the store. ctl-a
// serves; ctl-b is ready and listed.
func stranding(t *testing.T, policy election.StoreLoss) (w *world, boot func(*site), a, b *site) {
	t.Helper()
	w = newWorld(t)
	p := &peers{world: w, down: map[string]bool{}}
	boot = func(s *site) {
		s.boot(func(c *Config) { c.Ask, c.OnStoreLoss, c.Fence = p.ask, policy, nil })
	}
	a, b = w.site("ctl-a"), w.site("ctl-b")
	boot(a)
	w.wait(5*time.Second, "ctl-a serves", a.now.is(election.StateServing))
	boot(b)
	w.wait(5*time.Second, "ctl-b is ready", b.now.is(election.StateReady))
	if policy == election.StoreLossFailsafe {
		w.wait(5*time.Second, "ctl-b is listed", func() bool { return w.listed("ctl-b") })
	}
	return w, boot, a, b
}

// TestSidecarRestartedWhileTheStoreIsAwayTakesItsReignUp: the controller survives kills and
// restarts of its sidecar if the policy lets the reign continue. Otherwise it has ended by its
// deadline.
func TestSidecarRestartedWhileTheStoreIsAwayTakesItsReignUp(t *testing.T) {
	for _, policy := range []election.StoreLoss{election.StoreLossFailsafe, election.StoreLossKeep, election.StoreLossStop} {
		t.Run(string(policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, boot, a, b := stranding(t, policy)
				w.store.Down()
				time.Sleep(2500 * time.Millisecond)
				for range 3 {
					a.now.kill()
					time.Sleep(200 * time.Millisecond)
					boot(a)
					time.Sleep(10 * time.Second)
				}
				if want := policy != election.StoreLossStop; w.runs("ctl-a") != want {
					t.Errorf("the controller runs: %v, want %v", w.runs("ctl-a"), want)
				}
				if policy == election.StoreLossStop {
					w.store.Up()
					w.finishSites([]*site{a, b})
					return
				}
				if policy == election.StoreLossKeep { // nobody knows whether another could take over
					w.store.Up()
					time.Sleep(10 * time.Second)
					if !a.now.sidecar.Serving() || a.now.sidecar.View().Term != 1 || b.program.starts.Load() != 0 {
						t.Error("the return of the store moved something")
					}
					w.finishSites([]*site{a, b})
					return
				}
				a.program.crash()
				w.wait(5*time.Second, "it runs again, in the same reign", func() bool { return a.program.starts.Load() == 2 && a.now.sidecar.Serving() })
				w.store.Up()
				time.Sleep(20 * time.Second)
				if v := a.now.sidecar.View(); v.Term != 1 || v.Alone || !a.now.sidecar.Serving() || b.program.starts.Load() != 0 || w.store.Value("url") != "http://ctl-a" {
					t.Errorf("term %d, alone %v, url %q", v.Term, v.Alone, w.store.Value("url"))
				}
				w.finishSites([]*site{a, b})
			})
		})
	}
}

// TestReignIsNotTakenUpWithoutTheStoreIfAPassiveMayHaveReigned: ctl-b has reigned since, and was
// killed. Its next process knows that from its disk.
func TestReignIsNotTakenUpWithoutTheStoreIfAPassiveMayHaveReigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, boot, a, b := stranding(t, election.StoreLossFailsafe)
		left := a.memory.get()
		a.now.kill()
		w.wait(20*time.Second, "ctl-b serves", b.now.is(election.StateServing))
		b.now.kill()
		b.memory.held = nil
		w.store.Down()
		boot(b)
		time.Sleep(time.Second)
		a.memory.held = left
		boot(a)
		time.Sleep(2 * time.Second)
		b.now.sidecar.board.mu.Lock()
		promised := b.now.sidecar.board.promised
		b.now.sidecar.board.mu.Unlock()
		// The reign would end at once, because no guard answers any more.
		if promised != 0 || a.now.is(election.StateYielding)() {
			t.Errorf("ctl-b promised for term %d, or ctl-a resumed a reign that was followed by another", promised)
		}
		w.store.Up()
		w.finishSites([]*site{a, b})
	})
}

// TestListIsNotWrittenIfALaterProcessWouldNotKnowIt: a controller that cannot be recorded on disk
// is not listed, and so cannot take over unasked.
func TestListIsNotWrittenIfALaterProcessWouldNotKnowIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, boot, a, b := stranding(t, election.StoreLossFailsafe)
		a.memory.full(true)
		c := w.site("ctl-c")
		boot(c)
		w.wait(5*time.Second, "ctl-c is ready", c.now.is(election.StateReady))
		time.Sleep(10 * time.Second)
		if w.listed("ctl-c") {
			t.Error("ctl-c is listed, and a later process of ctl-a would not ask it")
		}
		a.memory.full(false)
		w.wait(10*time.Second, "ctl-c is listed", func() bool { return w.listed("ctl-c") })
		w.finishSites([]*site{a, b, c})
	})
}

// full makes the memory refuse.
func (n *notes) full(full bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fail = nil
	if full {
		n.fail = errors.New("no space left on device")
	}
}

// TestControllerThatDiesWhileTheStoreIsAwayIsStartedInPlace: its lease could not be released, and
// every passive has promised not to take over. With keep that is not known: another may reach the
// store.
func TestControllerThatDiesWhileTheStoreIsAwayIsStartedInPlace(t *testing.T) {
	for _, policy := range []election.StoreLoss{election.StoreLossFailsafe, election.StoreLossKeep, election.StoreLossStop} {
		for _, after := range []time.Duration{time.Millisecond, 6 * time.Second} {
			t.Run(string(policy)+" after "+after.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w, _, a, b := stranding(t, policy)
					w.store.Down()
					time.Sleep(after)
					if policy != election.StoreLossFailsafe {
						if w.runs("ctl-a") {
							a.program.crash()
						}
						time.Sleep(3 * time.Second)
						if a.program.starts.Load() != 1 || w.runs("ctl-a") {
							t.Error("it was started in place")
						}
					} else {
						for n := range int32(3) {
							a.program.crash()
							w.wait(5*time.Second, "it serves again", func() bool { return a.program.starts.Load() == n+2 && a.now.sidecar.Serving() })
						}
						time.Sleep(20 * time.Second)
						if v := a.now.sidecar.View(); v.Term != 1 || !w.runs("ctl-a") || b.program.starts.Load() != 0 {
							t.Errorf("term %d, it runs: %v", v.Term, w.runs("ctl-a"))
						}
					}
					w.store.Up()
					if policy == election.StoreLossFailsafe {
						time.Sleep(10 * time.Second)
						a.program.crash() // the store is back: the passive takes over
						w.wait(10*time.Second, "ctl-b serves", b.now.is(election.StateServing))
					}
					w.finishSites([]*site{a, b})
				})
			})
		}
	}
}
