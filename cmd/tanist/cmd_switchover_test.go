package main

import (
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
)

// TestChooseTarget: a move that can't be carried out is refused before anything is asked for.
func TestChooseTarget(t *testing.T) {
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
		code   int
		say    string
	}{
		{"anybody", func(*election.Snapshot) {}, "", "b", 0, ""},
		{"by name", func(*election.Snapshot) {}, "b", "b", 0, ""},
		{"one that is only moved to by name", func(*election.Snapshot) {}, "d", "d", 0, ""},
		{"the active", func(*election.Snapshot) {}, "a", "", 1, "a is active already"},
		{"one that is not fit", func(*election.Snapshot) {}, "c", "", 1, "c is unfit: why"},
		{"a stranger", func(*election.Snapshot) {}, "x", "", 1, "there is no controller x in this cluster; ready are: b"},
		{"nobody is active", func(s *election.Snapshot) { s.Active = nil }, "b", "", 3, "nothing to move"},
		{"it is starting", func(s *election.Snapshot) { s.Active.State = election.StateStarting }, "b", "", 3, "nothing to move"},
		{"paused", func(s *election.Snapshot) { s.Pause = &election.Pause{By: "ana"} }, "b", "", 1, "paused by ana"},
		{"nobody is ready", func(s *election.Snapshot) { s.Controllers = s.Controllers[:1] }, "", "", 1, "no passive is ready"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			target, err := chooseTarget(snap(tc.change), tc.to)
			if target != tc.target || exit.Code(err) != tc.code {
				t.Errorf("got %q, code %d, %v", target, exit.Code(err), err)
			}
			if tc.say != "" && (err == nil || !strings.Contains(err.Error(), tc.say)) {
				t.Errorf("%v does not say %q", err, tc.say)
			}
		})
	}
}

// TestRehearsalNamesWhoAndWhyNotTheOthers: --dry-run tells what the move would do.
func TestRehearsalNamesWhoAndWhyNotTheOthers(t *testing.T) {
	snap := election.Snapshot{
		Active: &election.Active{Controller: "a", Term: 7, State: election.StateServing}, ActiveVersion: 5, ActiveLease: "l", Breadcrumb: election.Breadcrumb{Term: 7, Controller: "a", Mode: election.ModeStore, Validity: 4 * time.Second},
		Controllers: []election.Controller{
			{Name: "a", State: election.StateServing},
			{Name: "b", State: election.StateReady, Priority: 50},
			{Name: "c", State: election.StateUnfit, Reason: "disk full"},
			{Name: "d", State: election.StateReady, Priority: 100},
			{Name: "e", State: election.StateReady, NoFailover: true, Priority: 200},
			{Name: "f", State: election.StateReady, Cooling: true, Priority: 200},
		},
	}
	t.Setenv("SUDO_USER", "ana")
	const free = "a, term 7, would be stopped, and d or f (asked at the same time: the first to act wins) started with term 8. Nothing was changed.\n" +
		"  not b: d has a higher priority\n  not c: c is not fit: disk full\n  not e: nofailover is set for e\n"
	timing, err := election.Profile("")
	if err != nil {
		t.Fatal(err)
	}
	if got := rehearse(snap, "", timing); got != free {
		t.Errorf("got\n%s\nwant\n%s", got, free)
	}
	const named = "a, term 7, would be stopped, and e started with term 8. Nothing was changed.\n" +
		"  not b: ana requested a move to e\n  not c: c is not fit: disk full\n  not d: ana requested a move to e\n  not f: ana requested a move to e\n"
	if got := rehearse(snap, "e", timing); got != named {
		t.Errorf("got\n%s\nwant\n%s", got, named)
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
		got, err := parseWhen(text, now)
		if err != nil || got.In(zone).Format(time.DateTime) != want {
			t.Errorf("%q: %v, %v; want %s", text, got, err, want)
		}
	}
	for text, says := range map[string]string{
		"soon": "is no time", "25:00": "is no time", "+0s": "has passed", "2026-11-28 09:00": "has passed", "2036-01-01 00:00": "more than a year away",
	} {
		if _, err := parseWhen(text, now); err == nil || !strings.Contains(err.Error(), says) || exit.Code(err) != exit.Usage {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
}
