package sidecar

import (
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// forget drops the world's records of what is over, after the oracle has judged them.
func (w *world) forget() {
	w.t.Helper()
	w.check()
	w.store.Forget()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.starts, w.events = w.starts[len(w.starts)-1:], nil
	for _, h := range w.hosts {
		h.hooks = nil
	}
}

// serving returns the host that serves, and another.
func (w *world) serving() (active, other *host) {
	for _, h := range w.all() {
		if h.sidecar.Serving() {
			active = h
		} else {
			other = h
		}
	}
	return active, other
}

// unseat makes the active lose its reign, in a different way each time, and returns a function that
// repairs what it did.
func (w *world) unseat(how int, active, other *host) (mend func()) {
	switch how % 5 {
	case 0:
		active.program.crash()
	case 1:
		active.health.set("http: 500")
		return func() { active.health.set("") }
	case 2:
		w.request(election.Request{ID: "r", Op: election.OpSwitchover, To: other.name, By: "ana", Term: active.sidecar.View().Term, For: time.Minute})
	case 3:
		active.client.Partition()
		return active.client.Heal
	case 4:
		active.gate.freeze()
		return active.gate.thaw
	}
	return func() {}
}

// TestThousandsOfTakeoversLeaveNothing: heap and goroutines are the same after 300 takeovers
// (TANIST_LONG: 2,000) as after 210, when the history has reached its limit. Controllers crash and
// fail, sidecars are cut off and freeze, and operators request moves.
func TestThousandsOfTakeoversLeaveNothing(t *testing.T) {
	const first = 210
	takeovers := 300
	if os.Getenv("TANIST_LONG") != "" {
		takeovers = 2000
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for _, name := range []string{"ctl-a", "ctl-b"} {
			h := w.add(name, func(c *Config) { c.Log = zerolog.Nop() }).start()
			w.wait(5*time.Second, name+" is in place", func() bool { return h.sidecar.Serving() || h.is(election.StateReady)() })
		}
		measure := func() (heap uint64, goroutines int) {
			synctest.Wait()
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc, runtime.NumGoroutine()
		}
		var heap uint64
		var goroutines int
		for n := range takeovers {
			active, other := w.serving()
			mend := w.unseat(n, active, other)
			w.wait(30*time.Second, "the other serves", other.sidecar.Serving)
			mend()
			w.wait(30*time.Second, "the one that served is ready", active.is(election.StateReady))
			time.Sleep(time.Minute) // cool-downs and pauses end
			w.forget()
			if n == first-1 {
				heap, goroutines = measure()
			}
		}
		after, running := measure()
		t.Logf("after %d takeovers %d KiB and %d goroutines, after %d %d KiB and %d", first, heap>>10, goroutines, takeovers, after>>10, running)
		if after > heap+64<<10 || running > goroutines {
			t.Error("memory or goroutines grow with each takeover")
		}
		if n := len(w.store.Leases()); n > 8 {
			t.Errorf("%d leases are left in the store", n)
		}
		w.finish()
	})
}
