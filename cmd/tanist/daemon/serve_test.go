package daemon

import (
	"testing"
	"time"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/sidecar"
)

// TestReignWithoutProgressIsNotLive: it may renew forever, and keeps everybody else out meanwhile.
func TestReignWithoutProgressIsNotLive(t *testing.T) {
	c := &config.Controller{}
	c.Run.StopTimeout, c.Run.StartTimeout, c.Run.Drain = 10*time.Second, 30*time.Second, time.Second
	p := patienceOf(c)
	now := election.Instant(0).Add(time.Hour)
	view := func(state election.State, in time.Duration) sidecar.View {
		v := sidecar.View{Entered: now.Add(-in), Ticked: now}
		v.Status.State = state
		return v
	}
	for _, c := range []struct {
		state election.State
		in    time.Duration
		stuck bool
	}{
		{election.StateServing, 1000 * time.Hour, false},
		{election.StateReady, 1000 * time.Hour, false},
		{election.StateUnfit, 1000 * time.Hour, false},
		{election.StateStopping, 11 * time.Second, false},
		{election.StateStopping, 75 * time.Second, true},
		{election.StateStarting, 31 * time.Second, false},
		{election.StateStarting, 5 * time.Minute, true},
	} {
		if why := p.stuck(view(c.state, c.in), now); (why != "") != c.stuck {
			t.Errorf("%s for %v: %q", c.state, c.in, why)
		}
	}
	v := view(election.StateServing, time.Second)
	v.Ticked = now.Add(-20 * time.Second)
	if why := p.stuck(v, now); why != "the loop has not come round for 20s" {
		t.Errorf("got %q", why)
	}
}
