package sidecar

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// two returns a world in which ctl-a is active and ctl-b ready. The timeline begins then.
func two(t *testing.T, options ...func(*Config)) (w *world, a, b *host) {
	t.Helper()
	w = newWorld(t)
	a = w.add("ctl-a", options...).start()
	w.wait(5*time.Second, "ctl-a serves", a.is(election.StateServing))
	b = w.add("ctl-b", options...).start()
	w.wait(5*time.Second, "ctl-b is ready", b.is(election.StateReady))
	w.from()
	return w, a, b
}

// story returns what `etcdctl watch --prefix …/role/` shows.
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
		w.outageAfter(200*time.Millisecond, b, a.program.crash)
		w.want(t, "0s gone ctl-a@1, killed by SIGKILL", "0s start ctl-b@2", "100ms open ctl-b@2")
		w.wait(time.Second, "ctl-a is ready", a.is(election.StateReady))
		want := []string{"ctl-a active", "ctl-b passive", "ctl-a -", "ctl-b active", "ctl-a passive"}
		if got := w.story(); !slices.Equal(got[len(got)-len(want):], want) {
			t.Errorf("the role keys show %q", got)
		}
		if v := b.sidecar.View(); v.Snapshot.Active.Reason != "ctl-a failed: the controller exited: killed by SIGKILL" {
			t.Errorf("the reason is %q", v.Snapshot.Active.Reason)
		}
		if !slices.Equal(a.hooks, []string{"pre_start", "on_active", "on_passive"}) {
			t.Errorf("hooks of ctl-a: %q", a.hooks)
		}
		w.finish()
	})
}

func TestUnhealthy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		a.program.set(func() { a.program.stopsIn = time.Hour }) // it hangs: only KILL ends it
		w.outageAfter(20*time.Second, b, func() { a.health.set("http: 500 (3 times)") })
		w.want(t, "2s gone ctl-a@1, stopped", "2s start ctl-b@2", "2.1s open ctl-b@2") // the kill time-out is 2 s
		w.wait(time.Second, "ctl-a is ready", a.is(election.StateReady))
		if f := a.sidecar.View().Status.Failure; f == nil || f.Term != 1 || !strings.Contains(f.Why, "http: 500 (3 times)") {
			t.Errorf("the failure is not kept: %+v", f)
		}
		a.health.set("")
		w.outageAfter(5*time.Second, a, b.program.crash)
		if f := a.sidecar.View().Status.Failure; f != nil {
			t.Errorf("the failure is still shown: %+v", f)
		}
		w.finish()
	})
}

// TestStorePartition: the active cannot reach the store. It has stopped its controller by s+V, the
// passive waits out the lease and the validity, and the two never overlap.
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
					t.Errorf("ctl-a stopped after only %v: a short outage of the store must not stop it", d)
				}
				if killed := a.program.killed.Load() > 0; killed != stubborn {
					t.Errorf("killed: %v; a forced stop has to leave time for a graceful one", killed)
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
		w.want(t)
		if a.program.stops.Load() != 0 || b.program.stops.Load() != 0 || !a.sidecar.Serving() {
			t.Error("a short outage of the store changed something")
		}
		w.finish()
	})
}

// TestHolderThatWentOnWithoutTheStoreIsHeardFirst: the store was away, and the holder continued
// without it. When the store is back, the passive gives it time to report, although it has been
// silent for long by then.
func TestHolderThatWentOnWithoutTheStoreIsHeardFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		timing, err := election.Profile(election.ProfileFast)
		if err != nil {
			t.Fatal(err)
		}
		w, a, b := two(t, func(c *Config) { c.Timing, c.OnStoreLoss = timing, election.StoreLossKeep })
		a.client.Delay(100*time.Millisecond, 100*time.Millisecond) // the passive reaches the store first
		w.store.Down()
		time.Sleep(4 * time.Second)
		w.store.Up()
		time.Sleep(4 * time.Second)
		if !a.sidecar.Serving() || a.program.starts.Load() != 1 || b.program.starts.Load() != 0 {
			t.Error("the return of the store changed something")
		}
		if took := w.outageAfter(5*time.Second, b, func() { a.client.Partition(); a.program.crash() }); took > 1500*time.Millisecond {
			t.Errorf("a holder that is silent for once was replaced only after %v", took)
		}
		w.finish()
	})
}

// TestSlowStop: a stop that takes longer than the validity keeps the lease by renewing it.
func TestSlowStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t, func(c *Config) { c.StopTimeout, c.KillTimeout = 30*time.Second, 30*time.Second })
		a.program.set(func() { a.program.stopsIn = 20 * time.Second })
		w.outageAfter(40*time.Second, b, func() { a.health.set("slow") })
		w.want(t, "20s gone ctl-a@1, stopped", "20s start ctl-b@2", "20.1s open ctl-b@2")
		w.finish()
	})
}

// TestLeaseLostDuringStop: losing the lease shortens a graceful stop.
func TestLeaseLostDuringStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, _ := two(t, func(c *Config) { c.StopTimeout, c.KillTimeout = 30*time.Second, 30*time.Second })
		a.program.set(func() { a.program.stopsIn = 20 * time.Second })
		a.health.set("slow")
		w.wait(time.Second, "ctl-a is stopping", a.is(election.StateStopping))
		a.client.Partition()
		w.wait(4*time.Second, "ctl-a has stopped", func() bool { return !w.runs("ctl-a") })
		w.finish()
	})
}

// TestRefusedStop: a stop that cannot be confirmed keeps the lease, and is reported.
func TestRefusedStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		a.program.set(func() { a.program.refuse = 30 })
		a.health.set("bad")
		w.wait(time.Second, "ctl-a has failed", a.is(election.StateFailed))
		time.Sleep(20 * time.Second)
		a.mu.Lock()
		if got := slices.Index(a.hooks, "on_stop_failure"); got < 0 || slices.Contains(a.hooks[got+1:], "on_stop_failure") {
			t.Errorf("the hooks that ran: %v; want on_stop_failure once", a.hooks)
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

// TestUnprovenStopIsReleasedUnclean: if nothing can be proven about a program, the lease is
// released all the same, and the next holder waits out the old validity.
func TestUnprovenStopIsReleasedUnclean(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		a.program.set(func() { a.program.unproven = true })
		took := w.outageAfter(30*time.Second, b, func() { a.health.set("bad") })
		if took < 2*time.Second {
			t.Errorf("ctl-b serves after %v: it did not wait for a holder that may be left", took)
		}
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
		w.from()
		w.outageAfter(250*time.Millisecond, c, func() {
			w.request(election.Request{ID: "1", Op: "switchover", To: "ctl-c", By: "ana", Term: 1, For: time.Minute})
		})
		w.want(t, "50ms gone ctl-a@1, stopped", "50ms start ctl-c@2", "150ms open ctl-c@2")
		w.wait(time.Second, "both others are ready", func() bool { return a.is(election.StateReady)() && b.is(election.StateReady)() })
		e, err := w.store.Client("operator").Get(t.Context(), "request")
		if err != nil || e.Version != 0 {
			t.Errorf("the request is still there: %+v, %v", e, err)
		}
		w.finish()
	})
}

// TestFailoverInterval: two sides that fail in turn pause in between, but the death of a host
// always leads to a failover.
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
			t.Errorf("a death led to a failover only after %v", took)
		}
		w.finish()
	})
}

// TestTakeoverIsPreparedWhileTheHolderStops: while the holder stops, the others prepare, so the
// takeover needs no new lease. Those who are not needed give theirs back.
func TestTakeoverIsPreparedWhileTheHolderStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t, func(c *Config) { c.StopTimeout, c.KillTimeout = 30*time.Second, 30*time.Second })
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
			t.Errorf("the takeover waited for %d more leases", now-ahead)
		}
		w.finish()
	})
}

// TestDrain: a controller that is to move still answers for a while after its withdrawal is
// published. A failed one does not.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t, func(c *Config) { c.Drain = 2 * time.Second })
		w.outageAfter(2250*time.Millisecond, b, func() {
			w.request(election.Request{ID: "1", Op: "switchover", To: "ctl-b", By: "ana", Term: 1, For: time.Minute})
		})
		w.want(t, "2.05s gone ctl-a@1, stopped", "2.05s start ctl-b@2", "2.15s open ctl-b@2")
		w.from()
		w.outageAfter(250*time.Millisecond, a, func() { b.health.set("bad") })
		w.want(t, "50ms gone ctl-b@2, stopped", "50ms start ctl-a@3", "150ms open ctl-a@3")
		w.finish()
	})
}

// TestLeaseLostDuringDrain: the drain ends with the lease.
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

// TestPlannedMoveToOneThatFails: the target cannot start its controller, and the service returns to
// where it was.
func TestPlannedMoveToOneThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		b.program.set(func() { b.program.failing = true })
		w.request(election.Request{ID: "1", Op: "switchover", To: "ctl-b", By: "ana", Term: 1, For: time.Minute})
		w.wait(2*time.Second, "ctl-b has tried", func() bool { return b.program.starts.Load() == 1 })
		w.wait(2*time.Second, "ctl-a serves again", a.is(election.StateServing))
		w.want(t, "50ms gone ctl-a@1, stopped", "50ms failed ctl-b@2", "50ms start ctl-a@3", "150ms open ctl-a@3")
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

// TestLostReplyOfAClaim: the reply to a claim is lost. The claimant finds out that it won, and
// reigns.
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

// TestLateClaim: a claim that arrives after its claimant has given it up makes nobody active.
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
		w.outageAfter(200*time.Millisecond, b, a.program.crash)
		w.want(t, "0s gone ctl-a@1, killed by SIGKILL", "0s start ctl-b@2", "100ms open ctl-b@2")
		w.finish()
	})
}

// TestEarlyLossOfTheLease: the store drops the lease early. The taker waits out the validity that
// the holder may still have.
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
						a.client.Partition() // it cannot see the loss, and acts until s+V
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
		w.outageAfter(250*time.Millisecond, b, func() {
			if err := a.stop(); err != nil {
				t.Error(err)
			}
			a.end = nil
		})
		w.want(t, "50ms gone ctl-a@1, stopped", "50ms start ctl-b@2", "150ms open ctl-b@2")
		e, err := w.store.Client("operator").List(t.Context(), "controllers/")
		if err != nil || len(e) != 1 {
			t.Errorf("controllers: %+v, %v", e, err)
		}
		w.finish()
	})
}

// TestYieldToNobody: no other can take over, or the one that could goes away. The side that failed
// contends again, rather than leave the service down.
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

// TestYieldToOneThatDoesNotTakeIt: the one that could take over does not. After yield_wait, the
// side that failed contends again.
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

// TestBothFailInTurn: the one that took over fails too, shortly after. The first, which has had
// time to recover, takes over at once.
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

// TestNeitherCanStart: neither can start its controller. The lease does not go back and forth; each
// tries once per yield_wait.
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
		w.want(t, "0s gone ctl-a@1, killed by SIGKILL", "0s start ctl-a@1", "100ms open ctl-a@1")
		w.from()
		w.outageAfter(time.Second, b, a.program.crash)
		w.want(t, "0s gone ctl-a@1, killed by SIGKILL", "0s start ctl-b@2", "100ms open ctl-b@2")
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
			t.Error("the second process disturbed another")
		}
		w.finish()
	})
}

// TestSuccessorOfADeadProcess: a process with the same name that is known to be dead does not make
// its successor wait.
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

// TestSidecarUnfitFromItsStartLogsWhy: there is no transition that would report it.
func TestSidecarUnfitFromItsStartLogsWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		w := newWorld(t)
		c := w.add("ctl-a", func(cfg *Config) {
			cfg.Log = zerolog.New(zerolog.SyncWriter(&log))
			cfg.PreFlight = func(context.Context) error { return errors.New("port 8080 is in use") }
		}).start()
		w.wait(5*time.Second, "ctl-c shows why it is unfit", func() bool { return c.sidecar.View().Status.Reason == "port 8080 is in use" })
		w.finish()
		if !regexp.MustCompile(`"state":"unfit".*"reason":"port 8080 is in use".*"message":"unfit"`).MatchString(log.String()) {
			t.Errorf("the log:\n%s", log.String())
		}
	})
}

// TestAnotherReasonToBeUnfitIsLogged: once per 10 s at most, and the last one in any case.
func TestAnotherReasonToBeUnfitIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		w := newWorld(t)
		n := 0
		var why atomic.Value // string
		why.Store("port 8080 is in use")
		w.add("ctl-a", func(cfg *Config) {
			cfg.Log = zerolog.New(zerolog.SyncWriter(&log))
			cfg.PreFlight = func(context.Context) error { return errors.New(why.Load().(string)) }
		}).start()
		time.Sleep(30 * time.Second)
		for n = range 15 { // a reason that changes all the time
			why.Store(fmt.Sprintf("cannot connect from port %d", 40000+n))
			time.Sleep(time.Second)
		}
		time.Sleep(15 * time.Second)
		w.finish()
		var reasons []string
		for _, m := range regexp.MustCompile(`"reason":"([^"]*)","message":"unfit( for another reason)?"`).FindAllStringSubmatch(log.String(), -1) {
			reasons = append(reasons, m[1])
		}
		last := fmt.Sprintf("cannot connect from port %d", 40000+n)
		if len(reasons) < 3 || len(reasons) > 5 || !slices.Contains(reasons, "port 8080 is in use") || reasons[len(reasons)-1] != last {
			t.Errorf("logged were %q, and the last reason was %q", reasons, last)
		}
	})
}

func TestUnfitPassiveDoesNotTakeOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var unfit error = errors.New("port 8080 is in use")
		w, a, b := two(t)
		c := w.add("ctl-c", func(cfg *Config) { cfg.PreFlight = func(context.Context) error { return unfit }; cfg.Priority = 900 }).start()
		w.wait(5*time.Second, "ctl-c is unfit", c.is(election.StateUnfit))
		w.from()
		w.outageAfter(time.Second, b, a.program.crash)
		w.want(t, "0s gone ctl-a@1, killed by SIGKILL", "0s start ctl-b@2", "100ms open ctl-b@2")
		if reason := c.sidecar.View().Status.Reason; reason != "port 8080 is in use" {
			t.Errorf("the reason is %q", reason)
		}
		w.finish()
	})
}

// unsettled is a program of which an earlier process may have left something. The test determines
// how each call of Settle ends.
type unsettled struct {
	*program
	ends chan error
}

func (u unsettled) Settle(ctx context.Context) error {
	select {
	case err := <-u.ends:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// TestPassiveThatStillSettlesDoesNotClaim: a lease that began with this wait could end before the
// controller starts.
func TestPassiveThatStillSettlesDoesNotClaim(t *testing.T) {
	for name, last := range map[string]error{"gone": nil, "unproven": fmt.Errorf("its guard is dead: %w", election.ErrUnproven)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				ends := make(chan error)
				a := w.add("ctl-a", func(c *Config) { c.Controller = unsettled{c.Controller.(*program), ends} }).start()
				w.wait(5*time.Second, "ctl-a is unfit, and shows why", func() bool {
					now := a.sidecar.View().Status
					return now.State == election.StateUnfit && strings.Contains(now.Reason, "an earlier process")
				})
				time.Sleep(time.Minute)
				ends <- errors.New("a process is in uninterruptible sleep")
				w.wait(5*time.Second, "ctl-a shows what is left", func() bool {
					return strings.Contains(a.sidecar.View().Status.Reason, "uninterruptible")
				})
				time.Sleep(time.Minute)
				for _, c := range w.store.Changes() {
					if c.Key == "term" || c.Key == "active" {
						t.Errorf("it claimed: %s = %s", c.Key, c.Value)
					}
				}
				ends <- last
				w.wait(5*time.Second, "ctl-a serves", a.is(election.StateServing))
				w.finish()
			})
		})
	}
}

// TestRepositoryAheadOfTheStore: the repository has a higher term than the store, which was
// restored from a backup. The counter is raised past it.
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

// TestSupersededAtTheRepository: another's term is open at the repository. The reign ends, whatever
// the store has.
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

// The budget of restarts in place is for a controller that failed, not for a term that is over.
func TestSupersededControllerIsNotRestartedInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := two(t, func(c *Config) { c.RestartLocal, c.RestartWithin = 1, time.Minute })
		w.mu.Lock()
		w.fence = 9
		w.mu.Unlock()
		w.wait(10*time.Second, "one starts with a higher term", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.starts[len(w.starts)-1].term > 9
		})
		if len(w.starts) != 2 {
			t.Errorf("the starts are %v", w.starts)
		}
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
		time.Sleep(time.Minute + 500*time.Millisecond) // resumed between two reads
		w.want(t)
		if a.program.stops.Load() != 0 {
			t.Fatal("a paused cluster moved")
		}
		if err := w.store.Client("operator").Delete(t.Context(), "pause", 0); err != nil {
			t.Fatal(err)
		}
		w.from()
		w.wait(10*time.Second, "ctl-b serves", b.is(election.StateServing))
		w.want(t, "550ms gone ctl-a@1, stopped", "550ms start ctl-b@2", "650ms open ctl-b@2") // the pause is read once a second
		w.finish()
	})
}

// TestHistory: the history has the beginning and the end of each reign, and does not grow for ever.
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
		if first.Reason != "first start" || first.EndedBy != "the controller exited: killed by SIGKILL" || first.Ended.IsZero() || first.Outage != 0 {
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
	synctest.Test(t, func(t *testing.T) { // the counter was raised, by the repository or by hand: simulator, seed 851780656217
		w := newWorld(t)
		w.store.Overwrite("term", "5000 clean controller=x incarnation=y validity=4s reason=z")
		for term := range election.Term(7) {
			w.store.Overwrite(election.HistoryKey(term+1), string(election.History{Term: term + 1}.Encode()))
		}
		a := w.add("ctl-a").start()
		w.wait(5*time.Second, "ctl-a serves", a.is(election.StateServing))
		time.Sleep(time.Second)
		entries, err := a.client.List(t.Context(), "history/")
		if err != nil || len(entries) != 8 || entries[0].Key != election.HistoryKey(1) || entries[7].Key != election.HistoryKey(5001) {
			t.Errorf("%d reigns are kept, %v: %v", len(entries), err, entries)
		}
		w.finish()
	})
}
