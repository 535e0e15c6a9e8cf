package main

import (
	"strings"
	"testing"

	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
)

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
			if err != nil && (exit.Code(err) != exit.Failure || !strings.Contains(err.Error(), tc.say)) {
				t.Errorf("got code %d, %v", exit.Code(err), err)
			}
		})
	}
}
