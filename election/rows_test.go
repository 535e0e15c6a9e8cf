package election

import (
	"testing"
	"time"
)

// TestVacancyIsLeftToTheTargetOfAMoveFor5Seconds: a target that has not come by then has vanished.
func TestVacancyIsLeftToTheTargetOfAMoveFor5Seconds(t *testing.T) {
	timing := defaults(t, "")
	for _, c := range []struct {
		asked time.Duration
		want  time.Duration
	}{{time.Minute, 5 * time.Second}, {2 * time.Second, 2 * time.Second}} {
		snap := vacant(Breadcrumb{Term: 7, Clean: true, Controller: "ctl-a", Incarnation: "a-1", Validity: 4 * time.Second, Mode: ModeStore})
		snap.Request, snap.RequestVer = &Request{Op: OpSwitchover, To: "ctl-c", Term: 7, By: "ana", For: c.asked}, 9
		snap.Controllers = []Controller{{Name: "ctl-c", State: StateReady}}
		seen := Sightings{}.Observe(snap, 100*second)
		self := Self{Name: "ctl-b", Incarnation: "b-1", Fit: true}
		end := (100 * second).Add(c.want)
		if d := Decide(self, timing, snap, seen, 0, end-1); d.Code != CodeRequested || d.Until != end {
			t.Errorf("asked for %v: just before, %s until %v", c.asked, d.Code, time.Duration(d.Until))
		}
		if d := Decide(self, timing, snap, seen, 0, end); !d.Claim {
			t.Errorf("asked for %v: then, %s", c.asked, d.Code)
		}
	}
}

// TestRoleKeyWithAnotherTargetProvesNothing: it would send followers elsewhere, so it is not the
// holder's own, whatever the rest of it is.
func TestRoleKeyWithAnotherTargetProvesNothing(t *testing.T) {
	own := Active{Controller: "a", Term: 7, Incarnation: "a-1", Nonce: "n", URL: "http://a", API: "http://a:8710", State: StateServing}
	tenure := &Tenure{record: own}
	starting := own
	starting.State = StateStarting
	if !tenure.mine(own) || !tenure.mine(starting) {
		t.Error("its own role key is not known")
	}
	for name, change := range map[string]func(*Active){
		"controller":  func(a *Active) { a.Controller = "b" },
		"term":        func(a *Active) { a.Term = 8 },
		"incarnation": func(a *Active) { a.Incarnation = "a-2" },
		"nonce":       func(a *Active) { a.Nonce = "m" },
		"url":         func(a *Active) { a.URL = "http://mallory" },
		"api":         func(a *Active) { a.API = "http://mallory" },
	} {
		a := own
		if change(&a); tenure.mine(a) {
			t.Errorf("a role key with another %s is taken for its own", name)
		}
	}
}

// TestForceCountsAgainstASilentHolderToo: the role key of a holder with a beat outlives it by its
// TTL. A forced takeover waits only for the silence.
func TestForceCountsAgainstASilentHolderToo(t *testing.T) {
	timing := defaults(t, ProfileFast)
	snap := Snapshot{
		Active: &Active{Controller: "ctl-a", Incarnation: "a-1", Term: 7, State: StateServing}, ActiveLease: "l1", ActiveVersion: 3, Beat: 4, TermVersion: 3,
		Breadcrumb: Breadcrumb{
			Term: 7, Controller: "ctl-a", Incarnation: "a-1", Validity: timing.Validity, TTL: timing.TTL, Beat: true, Mode: ModeStore, Heirs: "ctl-a,ctl-c",
		},
		Request: &Request{Op: OpFailover, To: "ctl-b", Term: 7, By: "ana", Force: true}, RequestVer: 5,
	}
	self := Self{Name: "ctl-b", Incarnation: "b-1", Fit: true}
	seen := Sightings{}.Observe(snap, 100*second)
	end := (100 * second).Add(timing.Silence)
	if d := Decide(self, timing, snap, seen, 0, end-1); d.Claim {
		t.Error("it claims from a holder that may live")
	}
	if d := Decide(self, timing, snap, seen, 0, end); !d.Claim || !d.Forced || d.Silent != 4 || d.Reason != "failover by force (ana)" {
		t.Errorf("%+v", d)
	}
	snap.Request.Force = false
	if d := Decide(self, timing, snap, seen, 0, end); d.Claim || d.Code != CodeUnlisted {
		t.Errorf("without force: %+v", d)
	}
}

// TestLostRecordIsTakenForTheLongestValidityKnown: what the record of the last reign said is lost.
// It may have been longer than any profile is; who has seen a longer one, is configured with one,
// or sees the status of a controller that is, waits for that.
func TestLostRecordIsTakenForTheLongestValidityKnown(t *testing.T) {
	long := Breadcrumb{Term: 6, Controller: "ctl-a", Nonce: "n", Validity: 30 * time.Second, TTL: 40 * time.Second, Mode: ModeStore}
	short := Breadcrumb{Term: 7, Controller: "ctl-c", Nonce: "m", Validity: 4 * time.Second, TTL: 5 * time.Second, Mode: ModeStore}
	for name, c := range map[string]struct {
		before []Breadcrumb
		own    time.Duration
		status string
		want   time.Duration
	}{
		"nothing":             {want: 10 * time.Second},
		"seen":                {before: []Breadcrumb{long}, want: 30 * time.Second},
		"seen, not the last":  {before: []Breadcrumb{long, short}, want: 30 * time.Second},
		"configured":          {own: 20 * time.Second, want: 20 * time.Second},
		"a status":            {status: "40s", want: 40 * time.Second},
		"a status that lies":  {status: "50m", want: time.Minute},
		"a status of garbage": {status: "forever", want: 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			timing := defaults(t, "")
			if c.own > 0 {
				timing.TTL, timing.Validity = c.own+5*time.Second, c.own
			}
			var seen Sightings
			for i, b := range c.before {
				s := vacant(b)
				s.TermVersion = Version(i + 1)
				seen = seen.Observe(s, second)
			}
			lost := vacant(Breadcrumb{Term: 8})
			lost.TermVersion = 9
			if c.status != "" {
				lost.Controllers = []Controller{{Name: "ctl-c", State: StateUnfit, LeaseTTL: c.status}}
			}
			seen = seen.Observe(lost, 100*second)
			d := Decide(Self{Name: "ctl-b", Fit: true}, timing, lost, seen, 0, 100*second)
			if want := (100 * second).Add(Outlast(c.want)); !d.Claim || d.NotBefore != want {
				t.Errorf("claims %v, not before %v, want %v", d.Claim, time.Duration(d.NotBefore), time.Duration(want))
			}
		})
	}
}
