package sidecar

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
)

// The port answers at once, the program needs 12 s more: it is neither published nor killed before,
// and not counted as failed.
func TestServingWaitsForTheFirstGoodVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.add("ctl-a", func(c *Config) { c.StartTimeout = 30 * time.Second })
		a.health.set("http: 503")
		a.start()
		w.wait(2*time.Second, "ctl-a waits for its checks", func() bool {
			return a.sidecar.View().Status.Reason == "waiting for the health checks: http: 503"
		})
		time.Sleep(12 * time.Second)
		if v := a.sidecar.View(); v.Status.State != election.StateStarting || w.store.Value("url") != "" || a.program.starts.Load() != 1 {
			t.Errorf("state %s, url %q, %d starts", v.Status.State, w.store.Value("url"), a.program.starts.Load())
		}
		a.health.set("")
		w.wait(100*time.Millisecond, "ctl-a serves", a.is(election.StateServing))
		if v := a.sidecar.View(); v.Status.Health != "ok" || a.program.starts.Load() != 1 {
			t.Errorf("health %q, %d starts", v.Status.Health, a.program.starts.Load())
		}
		w.finish()
	})
}

// A wrong health URL on a lone sidecar: a failed start, and a pause before the next.
func TestControllerThatNeverBecomesHealthyIsAFailedStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.add("ctl-a") // start time-out 10 s, yield_wait 30 s
		a.health.set("http: 404")
		a.start()
		w.wait(11*time.Second, "the start has failed", func() bool { return a.sidecar.View().Status.Failure != nil })
		if f := a.sidecar.View().Status.Failure; !strings.Contains(f.Why, "the controller never became healthy within 10s: http: 404") {
			t.Errorf("the failure is %q", f.Why)
		}
		time.Sleep(69 * time.Second) // 10 + 30 + 10 + 30
		if n := a.program.starts.Load(); n != 2 {
			t.Errorf("%d starts in 80 s, want 2", n)
		}
		for _, c := range w.store.Changes() {
			if c.Key == "url" && !c.Deleted {
				t.Error("it was published")
			}
		}
		w.finish()
	})
}

// The other one takes over from one that never becomes healthy.
func TestOneThatNeverBecomesHealthyLeavesItToTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		b.health.set("http: 503")
		a.program.crash()
		w.wait(12*time.Second, "ctl-a has it back", func() bool { return a.sidecar.Serving() && b.program.starts.Load() == 1 })
		b.health.set("")
		w.finish()
	})
}

// A passive whose last start failed is ready, because the next may succeed, but it reports the
// failure until one has succeeded.
func TestLastFailedStartIsShownUntilOneSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		b.program.set(func() { b.program.failing = true })
		w.request(election.Request{ID: "1", Op: "switchover", To: "ctl-b", By: "ana", Term: 1, For: time.Minute})
		w.wait(5*time.Second, "ctl-a has it back", func() bool { return a.sidecar.Serving() && b.program.starts.Load() == 1 })
		time.Sleep(time.Minute) // beyond its cool-down
		status := b.sidecar.View().Status
		if status.State != election.StateReady || !strings.HasPrefix(status.Reason, "its last start, in term 2, failed: ctl-b failed: cannot start the controller") {
			t.Errorf("ctl-b is %s: %q", status.State, status.Reason)
		}
		b.program.set(func() { b.program.failing = false })
		w.outageAfter(5*time.Second, b, a.program.crash)
		w.outageAfter(5*time.Second, a, b.program.crash) // a failure, but of no start
		w.wait(time.Second, "ctl-b is ready", b.is(election.StateReady))
		if status := b.sidecar.View().Status; status.Reason != "" || status.Failure == nil {
			t.Errorf("ctl-b is %s: %q, failure %v", status.State, status.Reason, status.Failure)
		}
		w.finish()
	})
}

// The lease does not wait for a check: the start is given up at once when the reign ends.
func TestEndOfTheReignDoesNotWaitForTheFirstVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.add("ctl-a")
		a.health.set("http: 503")
		a.start()
		w.wait(2*time.Second, "ctl-a waits for its checks", func() bool {
			return strings.HasPrefix(a.sidecar.View().Status.Reason, "waiting for the health checks")
		})
		begun := time.Now()
		if err := a.stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); took > 200*time.Millisecond {
			t.Errorf("the end took %v", took)
		}
		a.end = nil
		w.finish()
	})
}
