package sidecar

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
)

// standby writes who must not become active.
func (w *world) standby(all election.Standbys) {
	w.t.Helper()
	if err := w.store.Client("operator").Put(w.t.Context(), election.Put{Key: election.StandbyKey, Value: all.Encode()}); err != nil {
		w.t.Fatal(err)
	}
}

// TestStandbyKeepsOutAndEndsNothing: one on standby does not take over, whatever happens to the
// others; a holder keeps its reign; the end of the wish is the end of its effect.
func TestStandbyKeepsOutAndEndsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		w.standby(election.Standbys{"ctl-b": {By: "ana", Reason: "new kernel"}, "ctl-a": {By: "ana"}})
		w.wait(2*time.Second, "ctl-b is on standby", b.is(election.StateStandby))
		if want := "ctl-b is on standby, by ana: new kernel; `tanist standby ctl-b off` ends that"; b.sidecar.View().Status.Reason != want {
			t.Errorf("the reason is %q, want %q", b.sidecar.View().Status.Reason, want)
		}
		time.Sleep(10 * time.Second)
		if !a.sidecar.Serving() {
			t.Fatal("the wish ended the reign of a holder")
		}
		a.program.crash()
		time.Sleep(time.Minute)
		if a.sidecar.Serving() || b.sidecar.Serving() {
			t.Error("one on standby became active")
		}
		w.standby(election.Standbys{"ctl-a": {By: "ana"}})
		w.wait(5*time.Second, "ctl-b serves", b.sidecar.Serving)
		w.wait(5*time.Second, "ctl-a is on standby", a.is(election.StateStandby))
		w.finish()
	})
}
