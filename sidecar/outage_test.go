package sidecar

import (
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
)

// An outage counts from what this process saw. A bound is claimed only where it holds.
func TestOutageIsNoShorterThanWhatWasSeen(t *testing.T) {
	const s = election.Instant(time.Second)
	timing := election.Timing{TTL: 5 * time.Second}
	clean, crashed := election.Breadcrumb{Term: 7, Clean: true}, election.Breadcrumb{Term: 7}
	for _, tc := range []struct {
		name          string
		previous      election.Breadcrumb
		seen          election.Sightings
		looking       election.Instant
		want          time.Duration
		most, atLeast bool
	}{
		{"the first reign", election.Breadcrumb{}, election.Sightings{Vacant: true, VacantAt: 90 * s}, s, 0, false, false},
		{"it was seen to stop", clean, election.Sightings{Vacant: true, OccupiedAt: 91 * s, VacantAt: 92 * s, StoppingAt: 90 * s}, s, 10 * time.Second, false, false},
		{"it was stopping at the first look", clean, election.Sightings{OccupiedAt: 91 * s, StoppingAt: 90 * s}, 90 * s, 10 * time.Second, false, true},
		{"it was released at once", clean, election.Sightings{Vacant: true, OccupiedAt: 91 * s, VacantAt: 92 * s}, s, 8 * time.Second, false, false},
		{"it was gone at the first look", clean, election.Sightings{Vacant: true, VacantAt: 99 * s}, 99 * s, time.Second, false, true},
		{"it crashed", crashed, election.Sightings{Vacant: true, OccupiedAt: 91 * s, VacantAt: 92 * s}, s, 14 * time.Second, true, false},
		{"the store was away for a minute", crashed, election.Sightings{Vacant: true, OccupiedAt: 31 * s, VacantAt: 92 * s}, s, 74 * time.Second, true, false},
		{"it was released while nobody could look", clean, election.Sightings{Vacant: true, OccupiedAt: 31 * s, VacantAt: 92 * s}, s, 74 * time.Second, true, false},
		{"the store was frozen, and came back with the key", crashed, election.Sightings{Vacant: true, OccupiedAt: 98 * s, VacantAt: 99 * s, BeforeGap: 90 * s, GapEnd: 97 * s}, s, 15 * time.Second, true, false},
		{"it was released when the store was back", clean, election.Sightings{Vacant: true, OccupiedAt: 98 * s, VacantAt: 99 * s, BeforeGap: 90 * s, GapEnd: 98 * s}, s, 15 * time.Second, true, false},
		{"its beat was counted anew when the store was back", crashed, election.Sightings{OccupiedAt: 98 * s, BeatAt: 97 * s, BeforeGap: 90 * s, GapEnd: 97 * s}, s, 15 * time.Second, true, false},
		{"it was seen to stop after the store was back", clean, election.Sightings{Vacant: true, OccupiedAt: 98 * s, VacantAt: 99 * s, StoppingAt: 98 * s, BeforeGap: 90 * s, GapEnd: 97 * s}, s, 2 * time.Second, false, false},
		{"the store was away long before", clean, election.Sightings{Vacant: true, OccupiedAt: 98 * s, VacantAt: 99 * s, BeforeGap: 50 * s, GapEnd: 60 * s}, s, time.Second, false, false},
		{"it was never seen before the store was away", crashed, election.Sightings{Vacant: true, OccupiedAt: 98 * s, VacantAt: 99 * s, GapEnd: 97 * s}, s, 7 * time.Second, false, true},
		{"two hosts were dead, and this one claims at its first look", crashed, election.Sightings{Vacant: true, VacantAt: 99 * s}, 0, time.Second, false, true},
		{"it went silent", crashed, election.Sightings{OccupiedAt: 98 * s, BeatAt: 97 * s}, s, 3 * time.Second, true, false},
		{"it was silent from the first look", crashed, election.Sightings{OccupiedAt: 98 * s, BeatAt: 97 * s}, 97 * s, 3 * time.Second, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var h election.History
			outage(&h, &election.Tenure{Previous: tc.previous, Seen: tc.seen}, timing, tc.looking, 100*s)
			if h.Outage != election.ToMillis(tc.want) || h.OutageAtMost != tc.most || h.OutageAtLeast != tc.atLeast {
				t.Errorf("%v ms, at most %v, at least %v", h.Outage, h.OutageAtMost, h.OutageAtLeast)
			}
		})
	}
}

// reign returns the history of a term.
func (w *world) reign(term election.Term) (h election.History) {
	_ = json.Unmarshal([]byte(w.store.Value(election.HistoryKey(term))), &h) // absent: zero
	return h
}

// A hang began with the first failed check, not with the verdict.
func TestDetectionCountsFromTheFirstFailedCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := two(t)
		a.health.slow = 3 * time.Second
		w.outageAfter(10*time.Second, b, func() { a.health.set("http: no answer") })
		w.wait(time.Second, "the end is in the history", func() bool { return w.reign(1).EndDetect != 0 })
		if d := w.reign(1).EndDetect; d < 3000 || d > 3100 {
			t.Errorf("detected after %v ms, want 3 s", d)
		}
		w.finish()
	})
}
