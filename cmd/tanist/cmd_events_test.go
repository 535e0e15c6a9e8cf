package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tanist/tanist/election"
)

// TestChanges: every kind of change, as it is told.
func TestChanges(t *testing.T) {
	a := func(state election.State, term election.Term) *election.Active {
		return &election.Active{Controller: "ctl-a", Term: term, State: state, URL: "http://a", Reason: "why"}
	}
	c := func(name string, state election.State) election.Controller {
		return election.Controller{Name: name, Incarnation: "1", State: state, Health: "-"}
	}
	with := func(cs ...election.Controller) election.Snapshot { return election.Snapshot{Controllers: cs} }
	restarted := c("ctl-b", election.StateReady)
	restarted.Incarnation = "2"
	unfit := c("ctl-b", election.StateUnfit)
	unfit.Reason = "no disk"
	worse := unfit
	worse.Reason = "no disk; no port"
	sick := c("ctl-b", election.StateReady)
	sick.Health = "http: 503"
	agent := func(follows, state string) []election.Agent {
		return []election.Agent{{Name: "agt", Follows: follows, Term: 7, State: state}}
	}
	for _, tc := range []struct {
		name     string
		old, now scene
		want     []string
	}{
		{"nothing", scene{snap: with(c("b", "ready"))}, scene{snap: with(c("b", "ready"))}, nil},
		{"acquired", scene{}, scene{snap: election.Snapshot{Active: a("starting", 7)}}, []string{"ctl-a acquired the lease, term 7: why"}},
		{
			"served",
			scene{snap: election.Snapshot{Active: a("starting", 7)}},
			scene{snap: election.Snapshot{Active: a("serving", 7)}},
			[]string{"ctl-a is active at http://a, term 7: why"},
		},
		{
			"stopping",
			scene{snap: election.Snapshot{Active: a("serving", 7)}},
			scene{snap: election.Snapshot{Active: a("stopping", 7)}},
			[]string{"ctl-a, which holds the lease, is stopping, term 7"},
		},
		{
			"released",
			scene{snap: election.Snapshot{Active: a("stopping", 7)}},
			scene{snap: election.Snapshot{Breadcrumb: election.Breadcrumb{Term: 7, Clean: true, Reason: "switchover (ana)"}}},
			[]string{"ctl-a released its lease, term 7: switchover (ana)"},
		},
		{
			"lost",
			scene{snap: election.Snapshot{Active: a("serving", 7)}},
			scene{snap: election.Snapshot{Breadcrumb: election.Breadcrumb{Term: 7}}},
			[]string{"the lease of ctl-a ended without a release, term 7"},
		},
		{"a new term at once", scene{snap: election.Snapshot{Active: a("serving", 7)}}, scene{snap: election.Snapshot{Active: a("serving", 8)}}, []string{"ctl-a is active at http://a, term 8: why"}},
		{"joined", scene{}, scene{snap: with(c("ctl-b", "ready"))}, []string{"the sidecar of ctl-b joined: ready"}},
		{"left", scene{snap: with(c("ctl-b", "ready"))}, scene{}, []string{"the sidecar of ctl-b left"}},
		{"restarted", scene{snap: with(c("ctl-b", "ready"))}, scene{snap: with(restarted)}, []string{"the sidecar of ctl-b was restarted: ready"}},
		{"unfit", scene{snap: with(c("ctl-b", "ready"))}, scene{snap: with(unfit)}, []string{"ctl-b: ready → unfit: no disk"}},
		{"worse", scene{snap: with(unfit)}, scene{snap: with(worse)}, []string{"ctl-b is unfit: no disk; no port"}},
		{"health", scene{snap: with(c("ctl-b", "ready"))}, scene{snap: with(sick)}, []string{"the health of ctl-b: http: 503"}},
		{
			"paused",
			scene{},
			scene{snap: election.Snapshot{Pause: &election.Pause{By: "ana", Reason: "upgrade"}}},
			[]string{"ana paused the cluster: nothing fails over: upgrade"},
		},
		{"resumed", scene{snap: election.Snapshot{Pause: &election.Pause{By: "ana"}}}, scene{}, []string{"the pause has ended"}},
		{
			"asked",
			scene{},
			scene{snap: election.Snapshot{Request: &election.Request{ID: "1", Op: "switchover", By: "ana", Term: 7}}},
			[]string{"ana requested a switchover of term 7 to any passive"},
		},
		{"done", scene{snap: election.Snapshot{Request: &election.Request{ID: "1", By: "ana"}}}, scene{}, []string{"the request of ana is closed"}},
		{"an agent", scene{}, scene{agents: agent("", "waiting")}, []string{"agent agt joined: waiting"}},
		{"an agent that follows", scene{agents: agent("", "waiting")}, scene{agents: agent("ctl-a", "running")}, []string{"agent agt follows ctl-a, term 7: running"}},
		{"an agent that stops", scene{agents: agent("ctl-a", "running")}, scene{agents: agent("ctl-a", "stopped")}, []string{"agent agt: running → stopped"}},
		{"an agent that left", scene{agents: agent("ctl-a", "running")}, scene{}, []string{"agent agt left"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			for _, e := range changes(tc.old, tc.now) {
				got = append(got, e.Text)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
