package operate

import (
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

// TestTargets: a move that can't be carried out is refused before anything is asked for.
func TestTargets(t *testing.T) {
	controller := func(name string, state election.State, no bool) election.Controller {
		return election.Controller{Name: name, State: state, NoFailover: no, Reason: "why"}
	}
	snap := func(change func(*election.Snapshot)) election.Snapshot {
		s := election.Snapshot{
			Active: &election.Active{Controller: "a", Term: 7, State: election.StateServing},
			Controllers: []election.Controller{
				controller("a", election.StateServing, false), controller("b", election.StateReady, false), controller("c", election.StateUnfit, false),
				controller("d", election.StateReady, true),
			},
		}
		change(&s)
		return s
	}
	for _, tc := range []struct {
		name   string
		change func(*election.Snapshot)
		to     string
		target string
		kind   Kind
		say    string
	}{
		{"anybody", func(*election.Snapshot) {}, "", "b", 0, ""},
		{"by name", func(*election.Snapshot) {}, "b", "b", 0, ""},
		{"one that is only moved to by name", func(*election.Snapshot) {}, "d", "d", 0, ""},
		{"the active", func(*election.Snapshot) {}, "a", "", Refused, "a is active already"},
		{"one that is not fit", func(*election.Snapshot) {}, "c", "", Refused, "c is unfit: why"},
		{"a stranger", func(*election.Snapshot) {}, "x", "", Unknown, "there is no controller x in this cluster; ready are: b"},
		{"nobody is active", func(s *election.Snapshot) { s.Active = nil }, "b", "", NotActive, "nothing to move"},
		{"it is starting", func(s *election.Snapshot) { s.Active.State = election.StateStarting }, "b", "", NotActive, "nothing to move"},
		{"paused", func(s *election.Snapshot) { s.Pause = &election.Pause{By: "ana"} }, "b", "", Refused, "paused by ana"},
		{"nobody is ready", func(s *election.Snapshot) { s.Controllers = s.Controllers[:1] }, "", "", Refused, "no passive is ready"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			target, err := Targets(snap(tc.change), tc.to)
			if target != tc.target || (err != nil && KindOf(err) != tc.kind) || (err != nil) != (tc.say != "") {
				t.Errorf("got %q, kind %d, %v", target, KindOf(err), err)
			}
			if tc.say != "" && (err == nil || !strings.Contains(err.Error(), tc.say)) {
				t.Errorf("%v does not say %q", err, tc.say)
			}
		})
	}
}

// TestFailoverTarget: a failover that can't be carried out is refused before anything is asked for.
func TestFailoverTarget(t *testing.T) {
	unlisted := election.Controller{Name: "b", State: election.StateUnlisted, Priority: 100}
	better := election.Controller{Name: "c", State: election.StateUnlisted, Priority: 200}
	unfit := election.Controller{Name: "d", State: election.StateUnfit, Reason: "why"}
	never := election.Controller{Name: "e", State: election.StateReady, NoFailover: true}
	ready := election.Controller{Name: "f", State: election.StateReady}
	for name, tc := range map[string]struct {
		snap   election.Snapshot
		to     string
		target string
		say    string
	}{
		"the unlisted one":           {election.Snapshot{Controllers: []election.Controller{unlisted, unfit, never}}, "", "b", ""},
		"the one of higher priority": {election.Snapshot{Controllers: []election.Controller{unlisted, better}}, "", "c", ""},
		"by name":                    {election.Snapshot{Controllers: []election.Controller{unlisted, better}}, "b", "b", ""},
		"by name, beside a ready one": {
			election.Snapshot{Controllers: []election.Controller{unlisted, ready}}, "b", "b", "",
		},
		"one that is no candidate": {election.Snapshot{Controllers: []election.Controller{unlisted, never}}, "e", "e", ""},
		"one takes over by itself": {election.Snapshot{Controllers: []election.Controller{unlisted, ready}}, "", "", "f is ready and takes over by itself"},
		"one that is not fit":      {election.Snapshot{Controllers: []election.Controller{unlisted, unfit}}, "d", "", "d is unfit: why"},
		"a stranger":               {election.Snapshot{Controllers: []election.Controller{unlisted}}, "x", "", "there is no controller x in this cluster; found: b (unlisted)"},
		"nobody":                   {election.Snapshot{}, "", "", "no passive is unlisted; found: none"},
		"paused": {
			election.Snapshot{Controllers: []election.Controller{unlisted}, Pause: &election.Pause{By: "ana"}}, "", "", "paused by ana",
		},
		"one holds the lease": {
			election.Snapshot{
				Controllers: []election.Controller{unlisted}, ActiveVersion: 1, ActiveLease: "l",
				Active: &election.Active{Controller: "a", Term: 7, State: election.StateStarting},
			}, "b", "", "a holds the lease, term 7: `tanist switchover` moves it",
		},
		"the role key is garbled": {election.Snapshot{Controllers: []election.Controller{unlisted}, ActiveVersion: 1, ActiveLease: "l"}, "b", "", "unreadable"},
	} {
		t.Run(name, func(t *testing.T) {
			target, err := failoverTarget(tc.snap, tc.to)
			if target.Name != tc.target && tc.say == "" || (err != nil) != (tc.say != "") {
				t.Errorf("got %q, %v", target.Name, err)
			}
			if err != nil && ((KindOf(err) == Unknown) != (tc.to == "x") || !strings.Contains(err.Error(), tc.say)) {
				t.Errorf("got kind %d, %v", KindOf(err), err)
			}
		})
	}
}

// TestParseWhen: what people type for a time, and what is refused.
func TestParseWhen(t *testing.T) {
	zone := time.FixedZone("here", 2*60*60)
	now := time.Date(2026, 11, 28, 9, 30, 15, 0, zone)
	for text, want := range map[string]string{
		"": "2026-11-28 09:30:15", "10:00": "2026-11-28 10:00:00", "09:30": "2026-11-29 09:30:00", "02:30:05": "2026-11-29 02:30:05", "+45m": "2026-11-28 10:15:15",
		"2026-12-01 02:30": "2026-12-01 02:30:00", "2026-12-01T02:30": "2026-12-01 02:30:00", "2026-12-01T02:30:00Z": "2026-12-01 04:30:00",
	} {
		got, err := ParseWhen(text, now)
		if err != nil || got.In(zone).Format(time.DateTime) != want {
			t.Errorf("%q: %v, %v; want %s", text, got, err, want)
		}
	}
	for text, says := range map[string]string{
		"soon": "is no time", "25:00": "is no time", "+0s": "has passed", "2026-11-28 09:00": "has passed", "2036-01-01 00:00": "more than a year away",
	} {
		if _, err := ParseWhen(text, now); err == nil || !strings.Contains(err.Error(), says) || KindOf(err) != Invalid {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
}

// TestARequestOfAnotherEndsTheWait: the active rejected ours, and somebody asked again.
func TestARequestOfAnotherEndsTheWait(t *testing.T) {
	ours := election.Request{ID: "ours", Op: election.OpSwitchover, Term: 7}
	snap := election.Snapshot{Active: &election.Active{Controller: "ctl-a", Term: 7, State: election.StateServing}, Request: &ours}
	if Rejected(snap, ours) {
		t.Error("it is there")
	}
	snap.Request = &election.Request{ID: "theirs", Op: election.OpScheduled, Term: 7}
	if !Rejected(snap, ours) {
		t.Error("another one is there, and ours counts as waiting")
	}
}
