package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
)

// two is a world in which ctl-a is active and ctl-b ready.
func two(t *testing.T, options ...func(*Config)) (w *world, a, b *host) {
	t.Helper()
	w = newWorld(t)
	a = w.add("ctl-a", options...).start()
	w.wait(5*time.Second, "ctl-a serves", a.is(election.StateServing))
	b = w.add("ctl-b", options...).start()
	w.wait(5*time.Second, "ctl-b is ready", b.is(election.StateReady))
	return w, a, b
}

// story is what `etcdctl watch --prefix …/role/` shows.
func (w *world) story() []string {
	var lines []string
	for _, c := range w.store.Changes() {
		name, ok := strings.CutPrefix(c.Key, "role/")
		switch {
		case !ok:
		case c.Deleted:
			lines = append(lines, name+" -")
		default:
			lines = append(lines, name+" "+c.Value)
		}
	}
	return lines
}

// outageAfter runs fault and returns how long it took until h served.
func (w *world) outageAfter(limit time.Duration, h *host, fault func()) time.Duration {
	w.t.Helper()
	begun := time.Now()
	fault()
	w.wait(limit, h.name+" serves", h.is(election.StateServing))
	return time.Since(begun)
}

func TestFirstStartedBecomesActive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		if !a.sidecar.Serving() || b.sidecar.Serving() {
			t.Error("the wrong one serves")
		}
		if w.runs("ctl-b") || b.program.starts.Load() != 0 {
			t.Error("the passive runs a controller")
		}
		if env := strings.Join(a.program.lastEnv, " "); env != "TANIST_CLUSTER=test TANIST_NAME=ctl-a TANIST_TERM=1 PGPASSWORD=secret-1" {
			t.Errorf("the controller's environment: %s", env)
		}
		w.finish()
	})
}

func TestControllerExit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		took := w.outageAfter(5*time.Second, b, a.program.crash)
		if took > 200*time.Millisecond {
			t.Errorf("the takeover took %v, of which 100 ms are the controller's start", took)
		}
		w.wait(time.Second, "ctl-a is ready", a.is(election.StateReady))
		want := []string{"ctl-a active", "ctl-b passive", "ctl-a -", "ctl-b active", "ctl-a passive"}
		if got := w.story(); !slices.Equal(got[len(got)-len(want):], want) {
			t.Errorf("the story is %q", got)
		}
		if v := b.sidecar.View(); v.Snapshot.Active.Reason != "ctl-a failed: the controller ended: killed by SIGKILL" {
			t.Errorf("the reason is %q", v.Snapshot.Active.Reason)
		}
		if !slices.Equal(a.events, []string{"pre_start", "on_active", "on_passive"}) {
			t.Errorf("hooks of ctl-a: %q", a.events)
		}
		w.finish()
	})
}

func TestUnhealthy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		a.program.set(func() { a.program.stopsIn = time.Hour }) // it hangs: only KILL ends it
		took := w.outageAfter(20*time.Second, b, func() { a.health.set("http: 500 (3 times)") })
		if took < 5*time.Second || took > 5500*time.Millisecond {
			t.Errorf("the takeover took %v, want the stop time-out of 5 s and little more", took)
		}
		w.wait(time.Second, "ctl-a is ready", a.is(election.StateReady))
		if f := a.sidecar.View().Status.Failure; f == nil || f.Term != 1 || !strings.Contains(f.Why, "http: 500 (3 times)") {
			t.Errorf("the failure is not kept: %+v", f)
		}
		a.health.set("")
		w.outageAfter(5*time.Second, a, b.program.crash)
		if f := a.sidecar.View().Status.Failure; f != nil {
			t.Errorf("the failure is still told: %+v", f)
		}
		w.finish()
	})
}

// The store can't be reached from the active: it has stopped its controller by s+V, the passive waits for the lease to end
// and the validity to be over, and the two never overlap.
func TestStorePartition(t *testing.T) {
	for _, stubborn := range []bool{false, true} {
		t.Run(fmt.Sprintf("stubborn=%v", stubborn), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, a, b := two(t)
				if stubborn {
					a.program.set(func() { a.program.stopsIn = time.Hour })
				}
				var stopped time.Time
				begun := time.Now()
				a.client.Partition()
				w.wait(4*time.Second, "ctl-a has stopped", func() bool { stopped = time.Now(); return !w.runs("ctl-a") })
				if d := stopped.Sub(begun); d < time.Second {
					t.Errorf("ctl-a stopped after %v already: a blink of the store must not stop it", d)
				}
				if killed := a.program.killed.Load() > 0; killed != stubborn {
					t.Errorf("killed: %v; a forced stop has to leave time for a polite one", killed)
				}
				w.wait(10*time.Second, "ctl-b serves", b.is(election.StateServing))
				if d := time.Since(begun); d > 10*time.Second {
					t.Errorf("the takeover took %v", d)
				}
				a.client.Heal()
				w.wait(10*time.Second, "ctl-a is ready", a.is(election.StateReady))
				w.finish()
			})
		})
	}
}

func TestStoreBlinkStopsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		for range 20 {
			w.store.Down()
			time.Sleep(1800 * time.Millisecond)
			w.store.Up()
			time.Sleep(1500 * time.Millisecond)
		}
		if a.program.starts.Load() != 1 || a.program.stops.Load() != 0 || !a.sidecar.Serving() || b.program.starts.Load() != 0 {
			t.Error("a blink of the store moved something")
		}
		w.finish()
	})
}

// The store was away, and the holder went on without it. When the store is back the passive gives it the time to be heard, although
// by then it has been silent for long.
func TestHolderThatWentOnWithoutTheStoreIsHeardFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		timing, err := election.Profile(election.ProfileFast)
		if err != nil {
			t.Fatal(err)
		}
		w, a, b := two(t, func(c *Config) { c.Timing, c.OnStoreLoss = timing, election.StoreLossKeep })
		a.client.Delay(100*time.Millisecond, 100*time.Millisecond) // the passive is first to reach it
		w.store.Down()
		time.Sleep(4 * time.Second)
		w.store.Up()
		time.Sleep(4 * time.Second)
		if !a.sidecar.Serving() || a.program.starts.Load() != 1 || b.program.starts.Load() != 0 {
			t.Error("the return of the store moved something")
		}
		if took := w.outageAfter(5*time.Second, b, func() { a.client.Partition(); a.program.crash() }); took > 1500*time.Millisecond {
			t.Errorf("a holder that is silent for once was replaced only after %v", took)
		}
		w.finish()
	})
}

// A stop that takes longer than the validity keeps the lease by renewing it.
func TestSlowStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t, func(c *Config) { c.StopTimeout = 30 * time.Second })
		a.program.set(func() { a.program.stopsIn = 20 * time.Second })
		took := w.outageAfter(40*time.Second, b, func() { a.health.set("slow") })
		if took < 20*time.Second || a.program.killed.Load() != 0 {
			t.Errorf("took %v, killed %d", took, a.program.killed.Load())
		}
		w.finish()
	})
}

// A lease that is lost during a polite stop shortens the stop.
func TestLeaseLostDuringStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, _ := two(t, func(c *Config) { c.StopTimeout = 30 * time.Second })
		a.program.set(func() { a.program.stopsIn = 20 * time.Second })
		a.health.set("slow")
		w.wait(time.Second, "ctl-a is stopping", a.is(election.StateStopping))
		a.client.Partition()
		w.wait(4*time.Second, "ctl-a has stopped", func() bool { return !w.runs("ctl-a") })
		w.finish()
	})
}

// A stop that can't be confirmed keeps the lease, and says so.
func TestRefusedStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		a.program.set(func() { a.program.refuse = 30 })
		a.health.set("bad")
		w.wait(time.Second, "ctl-a has failed", a.is(election.StateFailed))
		time.Sleep(20 * time.Second)
		a.mu.Lock()
		if got := slices.Index(a.events, "on_stop_failure"); got < 0 || slices.Contains(a.events[got+1:], "on_stop_failure") {
			t.Errorf("the hooks that ran: %v; want on_stop_failure once", a.events)
		}
		a.mu.Unlock()
		if b.program.starts.Load() != 0 {
			t.Fatal("ctl-b was started although ctl-a is not confirmed gone")
		}
		if !a.is(election.StateFailed)() {
			t.Error("the failure is not shown any more")
		}
		w.wait(30*time.Second, "ctl-b serves", b.is(election.StateServing))
		w.finish()
	})
}

func (w *world) request(r election.Request) {
	w.t.Helper()
	absent := election.Version(0)
	err := w.store.Client("operator").Put(w.t.Context(), election.Put{Key: "request", Value: r.Encode(), If: &absent})
	if err != nil {
		w.t.Fatal(err)
	}
}

func TestPlannedMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		c := w.add("ctl-c").start()
		w.wait(5*time.Second, "ctl-c is ready", c.is(election.StateReady))
		took := w.outageAfter(5*time.Second, c, func() {
			w.request(election.Request{ID: "1", Op: "switchover", To: "ctl-c", By: "ana", Term: 1, For: time.Minute})
		})
		if took > 250*time.Millisecond {
			t.Errorf("the move took %v, of which stop and start are 150 ms", took)
		}
		w.wait(time.Second, "both others are ready", func() bool { return a.is(election.StateReady)() && b.is(election.StateReady)() })
		e, err := w.store.Client("operator").Get(t.Context(), "request")
		if err != nil || e.Version != 0 {
			t.Errorf("the request is still there: %+v, %v", e, err)
		}
		w.finish()
	})
}

// Two sides that fail in turns pause in between, but a host's death is always answered.
func TestFailoverInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t, func(c *Config) { c.FailoverInterval = 20 * time.Second })
		if took := w.outageAfter(5*time.Second, b, a.program.crash); took > time.Second {
			t.Errorf("the first failover took %v", took)
		}
		if took := w.outageAfter(30*time.Second, a, b.program.crash); took < 18*time.Second || took > 21*time.Second {
			t.Errorf("the second failover took %v instead of what was left of 20 s", took)
		}
		time.Sleep(time.Minute)
		w.outageAfter(5*time.Second, b, a.program.crash)
		if took := w.outageAfter(30*time.Second, a, b.client.Partition); took > 15*time.Second {
			t.Errorf("a death was answered only after %v", took)
		}
		w.finish()
	})
}

// While the holder stops, the others get ready: the takeover needs no lease to be granted then. Those who are not needed give
// theirs back.
func TestTakeoverIsPreparedWhileTheHolderStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t, func(c *Config) { c.StopTimeout = 30 * time.Second })
		c := w.add("ctl-c").start()
		w.wait(5*time.Second, "ctl-c is ready", c.is(election.StateReady))
		a.program.set(func() { a.program.stopsIn = 15 * time.Second })
		granted := b.client.Calls("Grant") + c.client.Calls("Grant")
		w.request(election.Request{ID: "1", Op: "switchover", To: "ctl-b", By: "ana", Term: 1, For: time.Minute})
		w.wait(time.Second, "ctl-a is stopping", a.is(election.StateStopping))
		time.Sleep(10 * time.Second) // longer than any lease
		ahead := b.client.Calls("Grant") + c.client.Calls("Grant")
		if ahead != granted+1 {
			t.Errorf("%d leases were granted ahead, want one, to the passive that was asked for", ahead-granted)
		}
		if n := b.program.prepared.Load(); n == 0 {
			t.Error("ctl-b's controller was not prepared")
		}
		w.wait(20*time.Second, "ctl-b serves", b.is(election.StateServing))
		if now := b.client.Calls("Grant") + c.client.Calls("Grant"); now != ahead {
			t.Errorf("the takeover waited for %d leases more", now-ahead)
		}
		w.finish()
	})
}

// A controller that is to move goes on answering for a while after everybody was told; one that failed does not.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t, func(c *Config) { c.Drain = 2 * time.Second })
		took := w.outageAfter(5*time.Second, b, func() {
			w.request(election.Request{ID: "1", Op: "switchover", To: "ctl-b", By: "ana", Term: 1, For: time.Minute})
			w.wait(time.Second, "ctl-a is stopping", a.is(election.StateStopping))
			time.Sleep(1900 * time.Millisecond)
			if !w.runs("ctl-a") {
				t.Error("ctl-a was stopped before the time to drain was over")
			}
		})
		if took < 2*time.Second || took > 2250*time.Millisecond {
			t.Errorf("the move took %v, of which drain, stop and start are 2.15 s", took)
		}
		if took := w.outageAfter(5*time.Second, a, func() { b.health.set("bad") }); took > 250*time.Millisecond {
			t.Errorf("a controller that had failed was drained: %v", took)
		}
		w.finish()
	})
}

// Draining ends with the lease.
func TestLeaseLostDuringDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, _ := two(t, func(c *Config) { c.Drain = time.Minute })
		w.request(election.Request{ID: "1", Op: "switchover", To: "ctl-b", By: "ana", Term: 1, For: time.Minute})
		w.wait(time.Second, "ctl-a is stopping", a.is(election.StateStopping))
		time.Sleep(20 * time.Second)
		if !w.runs("ctl-a") {
			t.Fatal("ctl-a was stopped although its lease was renewed")
		}
		a.client.Partition()
		w.wait(4*time.Second, "ctl-a has stopped", func() bool { return !w.runs("ctl-a") })
		w.finish()
	})
}

// The target can't start its controller: the service comes back where it was.
func TestPlannedMoveToOneThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		b.program.set(func() { b.program.failing = true })
		w.request(election.Request{ID: "1", Op: "switchover", To: "ctl-b", By: "ana", Term: 1, For: time.Minute})
		w.wait(2*time.Second, "ctl-b has tried", func() bool { return b.program.starts.Load() == 1 })
		w.wait(2*time.Second, "ctl-a serves again", a.is(election.StateServing))
		w.finish()
	})
}

func TestSwitchoverToOneThatIsNotReadyIsVoid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, _ := two(t)
		w.request(election.Request{ID: "1", Op: "switchover", To: "ctl-x", By: "ana", Term: 1, For: time.Minute})
		time.Sleep(10 * time.Second)
		e, err := w.store.Client("operator").Get(t.Context(), "request")
		if err != nil || e.Version != 0 || a.program.stops.Load() != 0 {
			t.Errorf("request %+v, %v, %d stops", e, err, a.program.stops.Load())
		}
		w.finish()
	})
}

// The reply to a claim is lost: the claimant finds out that it won, and reigns.
func TestLostReplyOfAClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		b.client.LoseReplies(1, "Claim")
		b.noHeir()
		took := w.outageAfter(5*time.Second, b, a.program.crash)
		if took > 300*time.Millisecond {
			t.Errorf("took %v", took)
		}
		if term := b.sidecar.View().Term; term != 2 {
			t.Errorf("the term is %d: the claim was made twice", term)
		}
		w.finish()
	})
}

// A claim that arrives late, after its claimant gave it up, makes nobody active.
func TestLateClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		b.client.DeliverLate(1, 10*time.Second, "Claim")
		b.noHeir()
		w.outageAfter(20*time.Second, b, a.program.crash)
		time.Sleep(30 * time.Second)
		if !b.sidecar.Serving() || b.program.starts.Load() != 1 {
			t.Error("the late claim disturbed the reign")
		}
		w.finish()
	})
}

func TestLostReplyOfARelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		a.client.LoseReplies(1, "Release")
		b.noHeir()
		if took := w.outageAfter(5*time.Second, b, a.program.crash); took > 200*time.Millisecond {
			t.Errorf("took %v", took)
		}
		w.finish()
	})
}

// The store drops the lease early: the taker waits out the validity that the holder may still have.
func TestEarlyLossOfTheLease(t *testing.T) {
	for _, c := range []struct {
		name string
		drop func(w *world, lease election.LeaseID)
	}{
		{"revoked", func(w *world, lease election.LeaseID) { w.store.RevokeEarly(lease) }},
		{"role key deleted by a stranger", func(w *world, _ election.LeaseID) { w.store.Remove("active") }},
		{"role key overwritten by a stranger", func(w *world, _ election.LeaseID) { w.store.Overwrite("active", "me") }},
	} {
		for _, cut := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, holder cut off %v", c.name, cut), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w, a, b := two(t)
					a.program.set(func() { a.program.stopsIn = time.Hour }) // the whole validity is needed
					if cut {
						a.client.Partition() // it can't see the loss, and acts until s+V
					}
					w.drop(c.drop, a)
					w.wait(15*time.Second, "one serves", func() bool { return b.sidecar.Serving() || (!cut && a.sidecar.View().Term > 1 && a.sidecar.Serving()) })
					w.finish()
				})
			})
		}
	}
}

func (w *world) drop(how func(*world, election.LeaseID), h *host) {
	w.t.Helper()
	snap, err := w.store.Client("operator").Read(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	how(w, snap.ActiveLease)
}

func TestSidecarShutdownIsAPlannedMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		took := w.outageAfter(5*time.Second, b, func() {
			if err := a.stop(); err != nil {
				t.Error(err)
			}
			a.end = nil
		})
		if took > 250*time.Millisecond {
			t.Errorf("the move took %v", took)
		}
		e, err := w.store.Client("operator").List(t.Context(), "controllers/")
		if err != nil || len(e) != 1 {
			t.Errorf("controllers: %+v, %v", e, err)
		}
		w.finish()
	})
}

// There is nobody who could take over, or whoever could goes away without: the one that failed contends again, rather than leave
// the service down.
func TestYieldToNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.add("ctl-a").start()
		w.wait(5*time.Second, "ctl-a serves", a.is(election.StateServing))
		w.outageAfter(time.Second, a, a.program.crash)

		b := w.add("ctl-b").start()
		w.wait(5*time.Second, "ctl-b is ready", b.is(election.StateReady))
		w.outageAfter(7*time.Second, a, func() {
			b.client.Partition()
			a.program.crash()
		})
		w.finish()
	})
}

// Whoever could take over does not, for whatever reason: after yield_wait the one that failed contends again.
func TestYieldToOneThatDoesNotTakeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.add("ctl-a").start()
		w.wait(5*time.Second, "ctl-a serves", a.is(election.StateServing))
		idle := election.Controller{Name: "ctl-b", Incarnation: "b", State: election.StateReady}
		if err := w.store.Client("operator").Put(t.Context(), election.Put{Key: "controllers/ctl-b", Value: idle.Encode()}); err != nil {
			t.Fatal(err)
		}
		a.program.crash()
		w.wait(time.Second, "ctl-a yields", a.is(election.StateYielding))
		time.Sleep(29 * time.Second)
		if !a.is(election.StateYielding)() {
			t.Errorf("state %s before yield_wait is over", a.sidecar.View().Status.State)
		}
		w.wait(2*time.Second, "ctl-a serves again", a.is(election.StateServing))
		w.finish()
	})
}

// The one that took over fails too, a short while later: the first one, which has had time to recover, takes over at once.
func TestBothFailInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		for range 5 {
			w.outageAfter(time.Second, b, a.program.crash)
			w.wait(time.Second, "ctl-a is ready", a.is(election.StateReady))
			w.outageAfter(time.Second, a, b.program.crash)
			w.wait(time.Second, "ctl-b is ready", b.is(election.StateReady))
		}
		w.finish()
	})
}

// Neither can start its controller: the lease does not go to and fro, each tries once in yield_wait.
func TestNeitherCanStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		for _, h := range []*host{a, b} {
			h.program.set(func() { h.program.failing = true })
		}
		a.program.crash()
		time.Sleep(5 * time.Minute)
		if n := a.program.starts.Load() + b.program.starts.Load(); n < 10 || n > 24 {
			t.Errorf("%d starts in 5 minutes, with a yield_wait of 30 s", n)
		}
		w.finish()
	})
}

func TestRestartInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t, func(c *Config) { c.RestartLocal, c.RestartWithin = 1, time.Minute })
		a.program.crash()
		w.wait(time.Second, "ctl-a started again", func() bool { return a.program.starts.Load() == 2 && a.sidecar.Serving() })
		if term := a.sidecar.View().Term; term != 1 {
			t.Errorf("the term is %d", term)
		}
		w.outageAfter(time.Second, b, a.program.crash)
		w.finish()
	})
}

func TestSecondLiveProcessWithTheSameName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		twin := w.add("ctl-b").start()
		err := <-twin.done
		twin.end = nil
		if !errors.Is(err, election.ErrNameTaken) {
			t.Errorf("got %v", err)
		}
		if a.program.stops.Load() != 0 || twin.program.starts.Load() != 0 || !b.is(election.StateReady)() {
			t.Error("the twin disturbed somebody")
		}
		w.finish()
	})
}

// A process with the same name that is known to be dead does not keep its successor waiting.
func TestSuccessorOfADeadProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		lease, err := w.store.Client("dead").Grant(t.Context(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		dead := election.Controller{Name: "ctl-a", Incarnation: "dead"}
		if err := w.store.Client("dead").Put(t.Context(), election.Put{Key: "controllers/ctl-a", Value: dead.Encode(), Lease: lease}); err != nil {
			t.Fatal(err)
		}
		a := w.add("ctl-a", func(c *Config) {
			c.Alive = func(c election.Controller) (bool, bool) { return false, c.Incarnation == "dead" }
		}).start()
		w.wait(time.Second, "ctl-a serves", a.is(election.StateServing))
		w.finish()
	})
}

func TestUnfitPassiveDoesNotTakeOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var unfit error = errors.New("port 8080 is in use")
		w, a, b := two(t)
		c := w.add("ctl-c", func(cfg *Config) { cfg.PreFlight = func(context.Context) error { return unfit }; cfg.Priority = 900 }).start()
		w.wait(5*time.Second, "ctl-c is unfit", c.is(election.StateUnfit))
		w.outageAfter(time.Second, b, a.program.crash)
		if c.program.starts.Load() != 0 {
			t.Error("an unfit controller was started")
		}
		if reason := c.sidecar.View().Status.Reason; reason != "port 8080 is in use" {
			t.Errorf("the reason is %q", reason)
		}
		w.finish()
	})
}

// The repository is at a higher term than the store (the store was restored from a backup): the counter is raised past it.
func TestRepositoryAheadOfTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.fence = 41
		a := w.add("ctl-a").start()
		w.wait(5*time.Second, "ctl-a serves", a.is(election.StateServing))
		if term := a.sidecar.View().Term; term != 42 {
			t.Errorf("the term is %d", term)
		}
		w.finish()
	})
}

// Somebody else's term is open at the repository: the reign ends, whatever the store says.
func TestSupersededAtTheRepository(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, _ := two(t)
		w.mu.Lock()
		w.fence = 9
		w.mu.Unlock()
		w.wait(5*time.Second, "ctl-a has stopped", func() bool { return a.program.stops.Load() > 0 })
		w.wait(5*time.Second, "one serves with a higher term", func() bool {
			for _, h := range w.hosts {
				if v := h.sidecar.View(); h.sidecar.Serving() && v.Term > 9 {
					return true
				}
			}
			return false
		})
		w.finish()
	})
}

func TestPaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		if err := w.store.Client("operator").Put(t.Context(), election.Put{Key: "pause", Value: []byte(`{"by":"ana"}`)}); err != nil {
			t.Fatal(err)
		}
		w.wait(5*time.Second, "ctl-b is paused", b.is(election.StatePaused))
		a.health.set("bad")
		time.Sleep(time.Minute)
		if a.program.stops.Load() != 0 || b.program.starts.Load() != 0 {
			t.Fatal("a paused cluster moved")
		}
		if err := w.store.Client("operator").Delete(t.Context(), "pause", 0); err != nil {
			t.Fatal(err)
		}
		w.wait(10*time.Second, "ctl-b serves", b.is(election.StateServing))
		w.finish()
	})
}

// The history tells how each reign began and ended, and does not grow for ever.
func TestHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		w.outageAfter(5*time.Second, b, a.program.crash)
		time.Sleep(time.Second)
		var first, second election.History
		for key, h := range map[string]*election.History{election.HistoryKey(1): &first, election.HistoryKey(2): &second} {
			if err := json.Unmarshal([]byte(w.store.Value(key)), h); err != nil {
				t.Fatalf("%s: %v", key, err)
			}
		}
		if first.Reason != "first start" || first.EndedBy != "the controller ended: killed by SIGKILL" || first.Ended.IsZero() || first.Outage != 0 {
			t.Errorf("the first reign: %+v", first)
		}
		if second.From != "ctl-a" || second.To != "ctl-b" || second.Start < 100 || second.Start > 150 || second.Outage < 100 || second.Outage > 200 {
			t.Errorf("the second reign: %+v", second)
		}
		w.finish()
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.store.Overwrite("term", "300 clean controller=x incarnation=y validity=4s reason=z")
		for term := range election.Term(300) {
			w.store.Overwrite(election.HistoryKey(term+1), string(election.History{Term: term + 1}.Encode()))
		}
		a := w.add("ctl-a").start()
		w.wait(5*time.Second, "ctl-a serves", a.is(election.StateServing))
		time.Sleep(time.Second)
		entries, err := a.client.List(t.Context(), "history/")
		if err != nil || len(entries) != 200 || entries[0].Key != election.HistoryKey(102) {
			t.Errorf("%d reigns are kept, from %s, %v", len(entries), entries[0].Key, err)
		}
		w.finish()
	})
}
