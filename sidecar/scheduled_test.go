package sidecar

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
)

// TestScheduledSwitchoverIsCarriedOutAtItsTime, by the holder's clock alone, and not before.
func TestScheduledSwitchoverIsCarriedOutAtItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		at := time.Now().Add(3*time.Hour + 1234*time.Millisecond)
		w.request(election.Request{ID: "1", Op: election.OpScheduled, To: "ctl-b", By: "ana", Term: 1, For: time.Minute, At: at})
		time.Sleep(time.Until(at) - 50*time.Millisecond)
		if !a.sidecar.Serving() || a.program.stops.Load() != 0 || w.store.Value("heir") != "" {
			t.Fatal("something has begun before the time")
		}
		w.wait(time.Second, "ctl-b serves", b.sidecar.Serving)
		if late := time.Since(at); late > 500*time.Millisecond {
			t.Errorf("it served %v after the time", late)
		}
		w.wait(5*time.Second, "the request is gone", func() bool { return w.store.Value("request") == "" })
		if a.program.starts.Load()+b.program.starts.Load() != 2 {
			t.Error("it moved more than once")
		}
		w.finish()
	})
}

// TestScheduledSwitchoverThatCannotBeIsDropped: its time has passed in a pause, or another has become
// active before.
func TestScheduledSwitchoverThatCannotBeIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		pause := func(on bool) {
			store := w.store.Client("operator")
			err := store.Delete(t.Context(), election.PauseKey, 0)
			if on {
				err = store.Put(t.Context(), election.Put{Key: election.PauseKey, Value: []byte(`{"by":"ana"}`)})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		ask := func(term election.Term) {
			w.request(election.Request{ID: "1", Op: election.OpScheduled, To: "ctl-b", By: "ana", Term: term, For: time.Minute, At: time.Now().Add(time.Hour)})
		}
		ask(1)
		pause(true)
		time.Sleep(time.Hour + 2*time.Minute)
		pause(false)
		w.wait(5*time.Second, "a missed request is gone", func() bool { return w.store.Value("request") == "" })
		ask(1)
		time.Sleep(time.Minute)
		w.outageAfter(5*time.Second, b, a.program.crash)
		w.wait(10*time.Second, "a request for the last reign is gone", func() bool { return w.store.Value("request") == "" })
		time.Sleep(2 * time.Hour)
		if !b.sidecar.Serving() || b.program.starts.Load() != 1 || a.program.starts.Load() != 1 {
			t.Errorf("ctl-a was started %d times, ctl-b %d times", a.program.starts.Load(), b.program.starts.Load())
		}
		w.finish()
	})
}

// TestScheduledRestartIsCarriedOutAtItsTime: once, in the same term.
func TestScheduledRestartIsCarriedOutAtItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		at := time.Now().Add(time.Hour)
		w.request(election.Request{ID: "1", Op: election.OpScheduledRestart, To: "ctl-a", By: "ana", Term: 1, For: time.Minute, At: at})
		time.Sleep(time.Until(at) - 50*time.Millisecond)
		if !a.sidecar.Serving() || a.program.stops.Load() != 0 {
			t.Fatal("something has begun before the time")
		}
		w.wait(5*time.Second, "it is started again", func() bool { return a.program.starts.Load() == 2 && a.sidecar.Serving() })
		w.wait(5*time.Second, "the request is gone", func() bool { return w.store.Value("request") == "" })
		time.Sleep(time.Hour)
		if a.program.starts.Load() != 2 || b.program.starts.Load() != 0 || a.sidecar.View().Term != 1 {
			t.Error("it was restarted more than once, or moved")
		}
		w.finish()
	})
}
