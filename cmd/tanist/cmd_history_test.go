package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

// TestHistoryTable: what stopped before is shown with what began after.
func TestHistoryTable(t *testing.T) {
	when := time.Date(2026, 11, 22, 12, 5, 10, 0, time.UTC)
	all := []election.History{
		{Term: 8, When: when, From: "ctl-a", To: "ctl-b", Reason: "switchover (ana)", Clean: true, Fence: 6, Start: 800, Outage: 2100},
		{Term: 7, When: when, To: "ctl-a", Reason: "first start", Start: 800, EndDetect: 30, EndStop: 1200},
		{Term: 6, When: when, From: "ctl-b", To: "ctl-a", Reason: "the lease of ctl-b ended", Wait: 4130, Outage: 9000, OutageAtMost: true},
	}
	var out bytes.Buffer
	historyTable(&out, all[:1], all)
	line := strings.Fields(strings.Split(out.String(), "\n")[1])
	if got, want := strings.Join(line[3:], " "), "ctl-a → ctl-b switchover (ana) 30ms 1.2s - 6.0ms 800ms 2.1s 0"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	out.Reset()
	late := []election.History{{Term: 9, When: when, Outage: 75000, OutageAtLeast: true}}
	if historyTable(&out, late, late); !strings.Contains(out.String(), "≥ 75s") {
		t.Errorf("an outage whose beginning nobody saw:\n%s", out.String())
	}
	out.Reset()
	historyTable(&out, all[2:], all)
	if !strings.Contains(out.String(), "≤ 9s") {
		t.Errorf("an outage that is only bounded:\n%s", out.String())
	}
}

// TestOverlapIsNoMoreThanIsKnown: nothing measures it.
func TestOverlapIsNoMoreThanIsKnown(t *testing.T) {
	for want, h := range map[string]election.History{
		"-":          {Reason: "first start", Clean: true},
		"0":          {From: "ctl-a", Reason: "switchover (ana)", Clean: true},
		"0 by lease": {From: "ctl-a", Reason: "the lease of ctl-a ended"},
		"?":          {From: "ctl-a", Reason: "failover by force (ana)", Clean: true},
	} {
		if got := overlap(h); got != want {
			t.Errorf("%s: %s, want %s", h.Reason, got, want)
		}
	}
}
