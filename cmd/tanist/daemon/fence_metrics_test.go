package daemon

import (
	"testing"
	"time"

	"github.com/tanist/tanist/postgres"
)

func TestFenceStats(t *testing.T) {
	var f fenceStats
	f.add(postgres.Report{Term: 7, Begin: 5 * time.Millisecond, Drain: 20 * time.Millisecond, Ended: 3})
	f.add(postgres.Report{Term: 8, Ended: 1, Err: &postgres.AheadError{Mine: 8, Theirs: 9}})
	got := map[string]float64{}
	for _, s := range f.samples() {
		got[s.Name+s.Labels["step"]] = s.Value
	}
	for name, want := range map[string]float64{
		"tanist_fence_sessions_ended_total": 4, "tanist_fence_refusals_total": 1,
		"tanist_fence_step_secondsbegin": 0.005, "tanist_fence_step_secondsdrain": 0.02, "tanist_fence_step_secondsopen": 0,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}
