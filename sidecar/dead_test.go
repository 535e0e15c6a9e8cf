package sidecar

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
)

// certify writes an operator's certificate that a controller is dead.
func (w *world) certify(name string) {
	w.t.Helper()
	store := w.store.Client("operator")
	snap, err := store.Read(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	dead, err := election.Certify(snap, name)
	if err != nil {
		w.t.Fatal(err)
	}
	dead.By = "ana"
	if err := store.Put(w.t.Context(), election.Put{Key: election.DeadKey, Value: dead.Encode()}); err != nil {
		w.t.Fatal(err)
	}
}

// dies is the end of a whole host.
func (h *host) dies() {
	h.gate.freeze()
	h.program.crash()
}

// TestConfirmedDeadIsNotWaitedFor: neither its lease nor its validity are, and the history has who
// has answered for it.
func TestConfirmedDeadIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		took := w.outageAfter(20*time.Second, b, func() {
			a.dies()
			time.Sleep(500 * time.Millisecond)
			w.certify("ctl-a")
		})
		if took > 1500*time.Millisecond {
			t.Errorf("ctl-b waited: %v", took)
		}
		w.wait(5*time.Second, "the reign is recorded", func() bool { return w.reignOf(2).Term == 2 })
		if h := w.reignOf(2); h.ConfirmedBy != "ana" || h.Reason != "ctl-a was confirmed dead (ana)" || h.Wait > 0 {
			t.Errorf("the reign is recorded as %+v", h)
		}
		w.finish()
	})
}

// TestConfirmationEndsAWaitThatHasBegun: the next holder has claimed, and waits out the validity.
func TestConfirmationEndsAWaitThatHasBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		a.dies()
		w.wait(20*time.Second, "ctl-b waits", func() bool { return strings.Contains(b.sidecar.View().Status.Reason, "waiting") })
		if !strings.Contains(w.store.Value("term"), " debt=") {
			t.Fatalf("nothing is owed: %s", w.store.Value("term"))
		}
		time.Sleep(time.Second)
		if b.sidecar.Serving() || b.program.starts.Load() > 0 {
			t.Fatal("ctl-b does not wait")
		}
		w.certify("ctl-a")
		w.wait(500*time.Millisecond, "ctl-b serves", b.sidecar.Serving)
		w.wait(10*time.Second, "nothing is owed any more", func() bool { return !strings.Contains(w.store.Value("term"), " debt=") })
		w.wait(5*time.Second, "the reign is recorded", func() bool { return w.reignOf(2).Term == 2 })
		if h := w.reignOf(2); h.ConfirmedBy != "ana" || h.Wait < 900 || h.Wait > 1500 {
			t.Errorf("the reign is recorded as %+v", h)
		}
		w.finish()
	})
}

// TestHolderThatIsConfirmedDeadAndLivesEndsAtOnce: it does not outlive its own debt, and its
// certificate pays for no later reign.
func TestHolderThatIsConfirmedDeadAndLivesEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		a.program.set(func() { a.program.stopsIn = time.Hour })
		b.gate.freeze() // otherwise it believes the operator first, who has answered for the overlap
		w.certify("ctl-a")
		w.wait(time.Second, "ctl-a has stopped", func() bool { return a.sidecar.View().Term != 1 && a.program.stops.Load() > 0 })
		b.gate.thaw()
		w.wait(20*time.Second, "one serves", func() bool { return a.sidecar.Serving() || b.sidecar.Serving() })
		time.Sleep(time.Minute)
		active, other := a, b
		if b.sidecar.Serving() {
			active, other = b, a
		}
		if took := w.outageAfter(30*time.Second, other, active.dies); took < 8*time.Second {
			t.Errorf("the next holder that vanished was waited for only %v", took)
		}
		w.finish()
	})
}
