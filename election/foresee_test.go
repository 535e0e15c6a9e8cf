package election

import (
	"strings"
	"testing"
	"time"
)

// TestForesee: who would take over, when, and why not the others.
func TestForesee(t *testing.T) {
	passive := func(name string, priority int, change ...func(*Controller)) Controller {
		c := Controller{Name: name, Incarnation: name + "-1", State: StateReady, Priority: priority}
		for _, f := range change {
			f(&c)
		}
		return c
	}
	situation := func(all ...Controller) Snapshot {
		s := held("ctl-a", 7, 0)
		s.Breadcrumb.Mode, s.Breadcrumb.TTL = ModeStore, 5*time.Second
		s.Controllers = append([]Controller{{Name: "ctl-a", Incarnation: "ctl-a-1", State: StateServing, Priority: 100}}, all...)
		return s
	}
	store := Traits{ExpirySlack: 500 * time.Millisecond}
	expiry := 5500 * time.Millisecond
	unfit := passive("ctl-c", 300, func(c *Controller) { c.State, c.Reason = StateUnfit, "the disk is full" })
	standing := situation(passive("ctl-b", 100), passive("ctl-c", 200, func(c *Controller) { c.State = StateStandby }))
	standing.Standbys = Standbys{"ctl-c": {By: "ana"}}
	indebted := situation(passive("ctl-b", 100))
	indebted.Breadcrumb.Debt = 30 * time.Second
	paused := situation(passive("ctl-b", 100))
	paused.Pause = &Pause{By: "ana"}
	beating := situation(passive("ctl-b", 100))
	beating.Beat, beating.Breadcrumb.Beat, beating.Breadcrumb.Validity = 3, true, 600*time.Millisecond
	vanished := situation(passive("ctl-b", 100))
	vanished.Controllers = vanished.Controllers[1:]
	vanished.Active, vanished.ActiveLease, vanished.ActiveVersion = nil, "", 0
	for name, c := range map[string]struct {
		snap         Snapshot
		profile      string
		suppose      Supposition
		next         string
		claim, start time.Duration
		not          string
	}{
		"the host dies":                 {situation(passive("ctl-b", 100)), "", SupposeHostDies, "ctl-b", expiry, expiry + Outlast(4*time.Second), ""},
		"the host dies, with a beat":    {beating, ProfileFast, SupposeHostDies, "ctl-b", 800 * time.Millisecond, 800 * time.Millisecond, ""},
		"it has died":                   {vanished, "", SupposeNothing, "ctl-b", 0, Outlast(4 * time.Second), ""},
		"nothing happens":               {situation(passive("ctl-b", 100)), "", SupposeNothing, "", 0, 0, "ctl-b: ctl-a holds the lease, term 7"},
		"a planned move":                {situation(passive("ctl-b", 100), unfit), "", SupposeRelease, "ctl-b", 0, 0, "ctl-c: ctl-c is not fit: the disk is full"},
		"two of one priority":           {situation(passive("ctl-b", 100), passive("ctl-d", 100)), "", SupposeRelease, "ctl-b or ctl-d", 0, 0, ""},
		"one of higher priority":        {situation(passive("ctl-b", 100), passive("ctl-d", 200)), "", SupposeRelease, "ctl-d", 0, 0, "ctl-b: ctl-d has a higher priority"},
		"one on standby":                {standing, "", SupposeHostDies, "ctl-b", expiry, expiry + Outlast(4*time.Second), "ctl-c: ctl-c is on standby, by ana"},
		"one that failed recently":      {situation(passive("ctl-b", 100, func(c *Controller) { c.Cooling = true })), "", SupposeRelease, "ctl-b", time.Hour, time.Hour, ""},
		"the same, but the host dies":   {situation(passive("ctl-b", 100, func(c *Controller) { c.Cooling = true })), "", SupposeHostDies, "ctl-b", expiry, expiry + Outlast(4*time.Second), ""},
		"a debt to an older holder":     {indebted, "", SupposeHostDies, "ctl-b", expiry, Outlast(30 * time.Second), ""},
		"in a pause":                    {paused, "", SupposeHostDies, "", 0, 0, "ctl-b: the cluster is paused by ana"},
		"none is there":                 {situation(), "", SupposeHostDies, "", 0, 0, ""},
		"only one that never would":     {situation(passive("ctl-b", 100, func(c *Controller) { c.NoFailover = true })), "", SupposeHostDies, "", 0, 0, "ctl-b: nofailover is set for ctl-b"},
		"nobody has been active so far": {Snapshot{Controllers: []Controller{passive("ctl-b", 100)}}, "", SupposeNothing, "ctl-b", 0, 0, ""},
	} {
		o := Foresee(c.snap, defaults(t, c.profile), store, c.suppose)
		var not strings.Builder
		for _, r := range o.Others {
			not.WriteString(r.Name + ": " + r.Why + "; ")
		}
		if got := strings.Join(o.Next, " or "); got != c.next || o.Claim != c.claim || o.Start != c.start || !strings.HasPrefix(not.String(), c.not) {
			t.Errorf("%s: %s claims after %v and starts after %v (%s), not %s", name, got, o.Claim, o.Start, o.Why, not.String())
		}
		if o.Why == "" {
			t.Errorf("%s: no reason", name)
		}
	}
}
