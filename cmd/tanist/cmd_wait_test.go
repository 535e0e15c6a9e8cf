package main

import (
	"testing"

	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
)

// TestConditions: what `tanist wait` understands, and what it refuses.
func TestConditions(t *testing.T) {
	serving := election.Snapshot{Active: &election.Active{Controller: "ctl-a", Term: 7, State: election.StateServing}}
	starting := election.Snapshot{Active: &election.Active{Controller: "ctl-a", Term: 7, State: election.StateStarting}}
	for text, want := range map[string]bool{
		"active": true, "controller=ctl-a": true, "controller=ctl-b": false, "term>6": true, "term>7": false,
		"active,controller=ctl-a,term>6": true, "controller=ctl-a,term>7": false,
	} {
		holds, err := parseConditions(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if holds(serving) != want {
			t.Errorf("%s: %v", text, !want)
		}
		if holds(starting) || holds(election.Snapshot{}) {
			t.Errorf("%s holds while nobody serves", text)
		}
	}
	for _, text := range []string{"", "active,", "controller=", "term>", "term>x", "term>-1", "term>5x", "term=5", "serving", "7"} {
		if _, err := parseConditions(text); exit.Code(err) != exit.Usage {
			t.Errorf("%q was accepted: %v", text, err)
		}
	}
}
