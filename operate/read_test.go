package operate

import (
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

// TestOutageIncludesWhatOnlyTheHolderBeforeKnew: how long its controller had failed, and when it
// ended if nobody else saw that.
func TestOutageIncludesWhatOnlyTheHolderBeforeKnew(t *testing.T) {
	end := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	before := election.History{Term: 7, Ended: end, EndDetect: 3200, EndStop: 100}
	for _, tc := range []struct {
		name   string
		h      election.History
		before election.History
		want   election.Millis
	}{
		{"an exit", election.History{Term: 8, Outage: 131}, before, 3331},
		{"a hang", election.History{Term: 8, Outage: 131}, election.History{Term: 7, Ended: end, EndDetect: 3200, EndAtMost: true}, 3331},
		{"both sidecars were stopped", election.History{Term: 8, When: end.Add(21 * time.Second), Outage: 489, OutageAtLeast: true}, election.History{Term: 7, Ended: end}, 21000},
		{"a clock that is behind", election.History{Term: 8, When: end.Add(-time.Second), Outage: 489, OutageAtLeast: true}, election.History{Term: 7, Ended: end}, 489},
		{"a crash", election.History{Term: 8, Outage: 9000, OutageAtMost: true}, election.History{Term: 7}, 9000},
		{"another reign in between", election.History{Term: 9, Outage: 131}, before, 131},
		{"the first reign", election.History{Term: 8}, before, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bound := tc.h.OutageAtMost || tc.before.EndAtMost
			if whole(&tc.h, tc.before); tc.h.Outage != tc.want || tc.h.OutageAtMost != bound {
				t.Errorf("%v %v, want %v %v", tc.h.Outage, tc.h.OutageAtMost, tc.want, bound)
			}
		})
	}
}
