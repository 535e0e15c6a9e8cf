package main

import (
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

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
