package sidecar

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

const pauseValue = `{"by":"ana"}`

// TestLastHolderHasItsReignBackInAPause: during a pause, the store is away for longer than the
// validity. The last holder has its reign back when the store is back.
func TestLastHolderHasItsReignBackInAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		w.store.Overwrite("pause", pauseValue)
		w.wait(5*time.Second, "ctl-b is paused", b.is(election.StatePaused))
		w.store.Down()
		w.wait(10*time.Second, "ctl-a has stopped", func() bool { return !w.runs("ctl-a") })
		time.Sleep(10 * time.Second)
		w.store.Up()
		w.wait(10*time.Second, "ctl-a serves", a.sidecar.Serving)
		if b.program.starts.Load() != 0 {
			t.Error("another began a reign in a pause")
		}
		w.finish()
	})
}

// TestHealthIsLookedAtAnewWhenAPauseEnds: a controller that was unhealthy during a pause and
// recovered is no reason for a failover at its end. One that is still unhealthy is.
func TestHealthIsLookedAtAnewWhenAPauseEnds(t *testing.T) {
	for _, recovers := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w, a, b := two(t)
			w.store.Overwrite("pause", pauseValue)
			w.wait(5*time.Second, "ctl-b is paused", b.is(election.StatePaused))
			a.health.set("http: 500")
			time.Sleep(10 * time.Second)
			if recovers {
				a.health.set("")
			}
			time.Sleep(time.Hour)
			if !a.sidecar.Serving() || a.program.starts.Load() != 1 {
				t.Error("something changed during the pause")
			}
			w.store.Remove("pause")
			time.Sleep(20 * time.Second)
			if a.sidecar.Serving() != recovers || b.sidecar.Serving() == recovers {
				t.Errorf("recovered %v: ctl-a serves %v, ctl-b %v", recovers, a.sidecar.Serving(), b.sidecar.Serving())
			}
			if recovers {
				w.outageAfter(10*time.Second, b, func() { a.health.set("http: 500") }) // it is still watched
			}
			w.finish()
		})
	}
}

// TestCoolingIsPublishedAndNotCountedAsFit: a side that failed recently publishes it, and the next
// to fail does not wait for it.
func TestCoolingIsPublishedAndNotCountedAsFit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		b.program.set(func() { b.program.failing = true })
		w.request(election.Request{ID: "1", Op: "switchover", To: "ctl-b", By: "ana", Term: 1, For: time.Minute})
		w.wait(2*time.Second, "ctl-b has tried", func() bool { return b.program.starts.Load() == 1 })
		w.wait(5*time.Second, "ctl-a has it back", a.sidecar.Serving)
		var c election.Controller
		w.wait(5*time.Second, "ctl-b is cooling", func() bool {
			return json.Unmarshal([]byte(w.store.Value("controllers/ctl-b")), &c) == nil && c.Cooling
		})
		if c.Fit() {
			t.Error("a side that is cooling counts as fit")
		}
		if took := w.outageAfter(20*time.Second, a, a.program.crash); took > 2*time.Second {
			t.Errorf("ctl-a waited %v for a side that is cooling", took)
		}
		time.Sleep(35 * time.Second)
		var later election.Controller // false is omitted
		if err := json.Unmarshal([]byte(w.store.Value("controllers/ctl-b")), &later); err != nil || later.Cooling {
			t.Errorf("ctl-b still is cooling: %+v, %v", later, err)
		}
		w.finish()
	})
}

// TestUnlistedPassiveSaysSoAndIsToldByForce: the dead holder had removed this passive from its
// list. That is a state of its own, and an operator can decide.
func TestUnlistedPassiveSaysSoAndIsToldByForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, p, a, b := failsafe(t)
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		b.end = nil
		w.wait(10*time.Second, "ctl-b is off the list", func() bool { return w.listed("ctl-a") && !w.listed("ctl-b") })
		a.gate.freeze() // dead, as far as anybody can tell
		a.program.crash()
		b2 := w.add("ctl-b", p.config).start()
		w.wait(30*time.Second, "ctl-b is unlisted", b2.is(election.StateUnlisted))
		var c election.Controller
		if err := json.Unmarshal([]byte(w.store.Value("controllers/ctl-b")), &c); err != nil || c.State != election.StateUnlisted || c.Fit() {
			t.Errorf("the status is %+v, %v", c, err)
		}
		time.Sleep(time.Minute)
		w.request(election.Request{ID: "1", Op: "failover", To: "ctl-b", By: "ana", Term: 1, For: time.Minute, Force: true})
		w.wait(20*time.Second, "ctl-b serves", b2.sidecar.Serving)
		a.gate.thaw()
		time.Sleep(10 * time.Second)
		w.finish()
	})
}

// TestPreStartThatHangsIsEnded: a hook that never ends does not keep the lease for ever.
func TestPreStartThatHangsIsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		hangs := func(ctx context.Context, event string, _ []string) error {
			if event != "pre_start" {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}
		a := w.add("ctl-a", func(c *Config) { c.Hook = hangs }).start()
		w.wait(5*time.Second, "ctl-a starts", a.is(election.StateStarting))
		b := w.add("ctl-b").start()
		w.wait(40*time.Second, "ctl-b serves", b.sidecar.Serving)
		w.finish()
	})
}

// TestHookThatCannotBeEndedIsAbandoned: its process is stuck in the kernel, so that not even KILL
// ends it. Neither the lease nor the hooks after it wait for it.
func TestHookThatCannotBeEndedIsAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		stuck := make(chan struct{})
		defer close(stuck)
		var mu sync.Mutex
		var later []string
		hook := func(_ context.Context, event string, _ []string) error {
			if event == "pre_start" {
				<-stuck
				return nil
			}
			mu.Lock()
			later = append(later, event)
			first := len(later) == 1
			mu.Unlock()
			if first {
				<-stuck
			}
			return nil
		}
		a := w.add("ctl-a", func(c *Config) { c.Hook = hook }).start()
		w.wait(5*time.Second, "ctl-a starts", a.is(election.StateStarting))
		b := w.add("ctl-b").start()
		w.wait(45*time.Second, "ctl-b serves", b.sidecar.Serving)
		a.sidecar.hooks.add("on_passive", nil)
		a.sidecar.hooks.add("on_passive", nil)
		w.wait(time.Minute, "the hooks after one that is stuck run", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(later) >= 2
		})
		w.finish()
	})
}

// TestStrayStatusStopsNobody: a status that a stranger wrote, bound to no lease, belongs to nobody,
// and the active continues.
func TestStrayStatusStopsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, _ := two(t)
		stray := election.Controller{Name: "ctl-a", Incarnation: "stray", State: election.StateReady}
		w.store.Overwrite("controllers/ctl-a", string(stray.Encode()))
		time.Sleep(2 * time.Minute)
		if !a.sidecar.Serving() || a.program.starts.Load() != 1 {
			t.Error("a stray status ended the reign")
		}
		if got := w.store.Value("controllers/ctl-a"); strings.Contains(got, "stray") {
			t.Errorf("the status is %s", got)
		}
		w.finish()
	})
}

// TestNameOfTheDeadIsWaitedForAsLongAsTheStoreKeepsIt: the store keeps the lease of a dead process
// for longer than its TTL, as its traits allow. The next process waits that long for its name.
func TestNameOfTheDeadIsWaitedForAsLongAsTheStoreKeepsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.store.SetTraits(election.Traits{Name: "slow", MinTTL: time.Millisecond, ExpirySlack: 10 * time.Second})
		operator := w.store.Client("operator")
		lease, err := operator.Grant(t.Context(), 14*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		dead := election.Controller{Name: "ctl-a", Incarnation: "dead", LeaseTTL: "5s"}
		if err := operator.Put(t.Context(), election.Put{Key: "controllers/ctl-a", Value: dead.Encode(), Lease: lease}); err != nil {
			t.Fatal(err)
		}
		a := w.add("ctl-a").start()
		w.wait(20*time.Second, "ctl-a serves", a.sidecar.Serving)
		w.finish()
	})
}

// TestAdoptionSurvivesLostRepliesAndASlowFitnessCheck: neither one lost reply nor a slow check of
// the fitness prevents an adoption.
func TestAdoptionSurvivesLostRepliesAndASlowFitnessCheck(t *testing.T) {
	for _, verb := range []string{"Read", "Hold"} {
		synctest.Test(t, func(t *testing.T) {
			w, all := sites(t, "ctl-a", "ctl-b")
			a := all[0]
			a.now.kill()
			time.Sleep(1500 * time.Millisecond)
			w.store.Client("ctl-a").LoseReplies(2, verb)
			a.boot(func(c *Config) {
				c.PreFlight = func(ctx context.Context) error { <-ctx.Done(); return errors.New("slow") }
			})
			w.wait(time.Second, "the next process serves", a.now.sidecar.Serving)
			if a.program.starts.Load() != 1 {
				t.Error("the controller was started again")
			}
			w.finishSites(all)
		})
	}
}

// TestAdoptedReignEndsAsAnyOther: an adopted reign ends like any other, in the history, and without
// the pause of a side that could not start.
func TestAdoptedReignEndsAsAnyOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := sites(t, "ctl-a")
		a := all[0]
		a.now.kill()
		time.Sleep(time.Second)
		a.boot()
		w.wait(time.Second, "the next process serves", a.now.sidecar.Serving)
		time.Sleep(10 * time.Second)
		if took := w.outageAfter(20*time.Second, a.now, a.program.crash); took > 2*time.Second {
			t.Errorf("the first failure after an adoption took %v", took)
		}
		var h election.History
		w.wait(5*time.Second, "the end is in the history", func() bool {
			return json.Unmarshal([]byte(w.store.Value(election.HistoryKey(1))), &h) == nil && !h.Ended.IsZero()
		})
		if h.When.IsZero() || h.To != "ctl-a" || !strings.Contains(h.EndedBy, "SIGKILL") {
			t.Errorf("the history is %+v", h)
		}
		w.finishSites(all)
	})
}

// TestControllerThatEndedWithNobodyWatchingIsInTheHistory: sidecar and controller died together, and
// the next process finds nothing to adopt. It tells since when, at most.
func TestControllerThatEndedWithNobodyWatchingIsInTheHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := sites(t, "ctl-a", "ctl-b")
		a, b := all[0], all[1]
		died := time.Now()
		a.now.kill()
		a.program.crash()
		time.Sleep(2 * time.Second)
		a.boot()
		w.wait(10*time.Second, "ctl-b serves", b.now.sidecar.Serving)
		took := time.Since(died)
		var h election.History
		w.wait(5*time.Second, "the end is in the history", func() bool {
			return json.Unmarshal([]byte(w.store.Value(election.HistoryKey(1))), &h) == nil && !h.Ended.IsZero()
		})
		if detect := time.Duration(h.EndDetect) * time.Millisecond; h.When.IsZero() || !h.EndAtMost || detect < 2*time.Second || detect > took+5*time.Second {
			t.Errorf("nobody served for %v, and the end of the reign is %+v", took, h)
		}
		w.finishSites(all)
	})
}

// TestTargetThatVanishesVoidsTheRequest: the target of a move dies before the release. The others
// do not leave the lease to it.
func TestTargetThatVanishesVoidsTheRequest(t *testing.T) {
	for name, vanish := range map[string]func(c *site){
		"dead before the request": func(c *site) { c.now.kill() },
		"frozen":                  func(c *site) { c.now.gate.freeze() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, all := sites(t, "ctl-a", "ctl-b", "ctl-c")
				a, b, c := all[0], all[1], all[2]
				vanish(c)
				w.request(election.Request{ID: "1", Op: "switchover", To: "ctl-c", By: "ana", Term: 1, For: time.Minute})
				if name == "frozen" {
					time.Sleep(3500 * time.Millisecond) // its presence lasts longer
					if w.store.Value("request") != "" {
						t.Error("the holder waited for a dead target")
					}
				}
				time.Sleep(20 * time.Second)
				if !a.now.sidecar.Serving() || a.program.stops.Load() != 0 || w.store.Value("request") != "" {
					t.Errorf("the old holder was stopped %d times for a target that is gone; request %q", a.program.stops.Load(), w.store.Value("request"))
				}
				w.outageAfter(10*time.Second, b.now, a.program.crash)
				c.now.gate.thaw()
				w.finishSites(all)
			})
		})
	}
}

// TestOfferOfATargetThatHasDiedSinceIsNone: a request was withdrawn after its target had offered
// itself. The target is killed, and its offer outlives it in the store. The next request waits for a
// sign of life, and the holder is not stopped.
func TestOfferOfATargetThatHasDiedSinceIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := sites(t, "ctl-a", "ctl-b")
		a, b := all[0], all[1]
		a.program.set(func() { a.program.stopsIn = 100 * time.Millisecond })
		request := func(id string) {
			w.request(election.Request{ID: id, Op: "switchover", To: "ctl-b", By: "ana", Term: 1, For: time.Minute})
		}
		a.now.gate.freeze() // it does not carry out the first request
		request("1")
		w.wait(time.Second, "ctl-b has offered itself", func() bool { return w.store.Value("heir") != "" })
		b.now.kill()
		w.store.Remove("request")
		a.now.gate.thaw()
		request("2")
		time.Sleep(10 * time.Second)
		if !a.now.sidecar.Serving() || a.program.stops.Load() != 0 || w.store.Value("request") != "" {
			t.Errorf("ctl-a was stopped %d times for a target that is dead; request %q", a.program.stops.Load(), w.store.Value("request"))
		}
		w.finishSites(all)
	})
}

// TestTargetThatVanishesAfterItsOfferCostsSeconds: if a target vanishes after its offer, others
// take over within seconds.
func TestTargetThatVanishesAfterItsOfferCostsSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, all := sites(t, "ctl-a", "ctl-b", "ctl-c")
		a, c := all[0], all[2]
		a.program.set(func() { a.program.stopsIn = 2 * time.Second })
		w.request(election.Request{ID: "1", Op: "switchover", To: "ctl-c", By: "ana", Term: 1, For: time.Minute})
		w.wait(time.Second, "ctl-a is stopping", a.now.is(election.StateStopping))
		c.now.kill()
		begun := time.Now()
		w.wait(30*time.Second, "one serves", func() bool { return all[0].now.sidecar.Serving() || all[1].now.sidecar.Serving() })
		if took := time.Since(begun); took > 12*time.Second {
			t.Errorf("one served only after %v", took)
		}
		w.finishSites(all)
	})
}

// TestThawedProcessSaysThatItStoodStill: a process that was frozen logs it when it thaws, and does
// not report that its controller could not be confirmed gone.
func TestThawedProcessSaysThatItStoodStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var log bytes.Buffer
		a := w.add("ctl-a", func(c *Config) { c.Log = zerolog.New(zerolog.SyncWriter(&log)) }).start()
		w.wait(5*time.Second, "ctl-a serves", a.sidecar.Serving)
		b := w.add("ctl-b").start()
		w.wait(5*time.Second, "ctl-b is ready", b.is(election.StateReady))
		a.gate.freeze()
		time.Sleep(15 * time.Second)
		if !b.sidecar.Serving() {
			t.Error("ctl-b does not serve")
		}
		a.gate.thaw()
		w.wait(10*time.Second, "ctl-a is ready", a.is(election.StateReady))
		time.Sleep(2 * time.Second) // the process checks twice a second
		synctest.Wait()             // nobody writes to the log now
		if still := regexp.MustCompile(`"still_ms":1[45]\d{3}\b.*"message":"this process stood still"`); len(still.FindAllString(log.String(), -1)) != 1 {
			t.Errorf("the log does not have one line about the standstill: %s", log.String())
		}
		for _, event := range a.hooks {
			if event == "on_stop_failure" {
				t.Error("the hook on_stop_failure ran, and the guard had ended everything")
			}
		}
		w.finish()
	})
}
