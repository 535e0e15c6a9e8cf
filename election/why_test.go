package election

import "testing"

// TestEveryReasonHasItsKind: the reasons that decisions, endings and failures give.
func TestEveryReasonHasItsKind(t *testing.T) {
	me := Self{Name: "ctl-b", Incarnation: "ctl-b-1", Fit: true}
	timing := defaults(t, ProfileDefault)
	decided := func(snap Snapshot) string {
		seen := Sightings{}.Observe(snap, second)
		return Decide(me, timing, snap, seen, 0, second).Reason
	}
	clean := func(reason string) Breadcrumb {
		return Breadcrumb{Term: 7, Clean: true, Controller: "ctl-a", Validity: timing.Validity, Mode: ModeStore, Reason: reason}
	}
	forced := vacant(Breadcrumb{Term: 7, Controller: "ctl-a", Validity: timing.Validity, Mode: ModeStore})
	forced.Request = &Request{Op: OpFailover, To: "ctl-b", By: "ana", Term: 7, Force: true}
	for reason, want := range map[string]Why{
		decided(vacant(Breadcrumb{})): WhyFirst,
		decided(forced):               WhyForced,
		decided(vacant(Breadcrumb{Term: 7, Controller: "ctl-a", Validity: timing.Validity, Mode: ModeStore})): WhySilent,
		decided(vacant(clean("switchover (ana)"))):                                                            WhySwitchover,
		decided(vacant(clean("ctl-a failed: the controller exited: status 1"))):                               WhyFailed,
		decided(vacant(clean("received SIGTERM"))):                                                            WhyEnded,
		"ctl-a went silent":                        WhySilent,
		"lease lost by ctl-a":                      WhySilent,
		"the lease was not renewed in time":        WhySilent,
		"the store reports that the lease is gone": WhySilent,
		"the role key vanished":                    WhySilent,
	} {
		if got := WhyOf(reason); got != want {
			t.Errorf("%q: %s, want %s", reason, got, want)
		}
	}
	if len(Whys()) != 6 {
		t.Errorf("%d kinds", len(Whys()))
	}
}
