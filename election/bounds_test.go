package election

import (
	"strings"
	"testing"
	"time"
)

// TestBoundsHaveTheFence: every wait of the repository's fence is in the bound that it belongs to.
func TestBoundsHaveTheFence(t *testing.T) {
	timing, err := Profile("default")
	if err != nil {
		t.Fatal(err)
	}
	health := Health{Interval: time.Second, Timeout: time.Second, Fall: 3, StopTimeout: time.Second, KillTimeout: time.Second}
	without := timing.Bounds(Traits{}, health)
	health.Fence, health.CloseFence = 4*time.Second, time.Second
	with := timing.Bounds(Traits{}, health)
	for i, extra := range []time.Duration{5 * time.Second, 5 * time.Second, 5 * time.Second, 4 * time.Second, 4 * time.Second, 0} {
		if got := with[i].Max - without[i].Max; got != extra || strings.Contains(with[i].Parts, "fence") != (extra > 0) {
			t.Errorf("%s: %v more (%s), not %v", with[i].Fault, got, with[i].Parts, extra)
		}
	}
}
