package election

import (
	"context"
	"testing"
	"time"
)

// revoked records the leases that were given back.
type revoked struct {
	Backend
	leases []LeaseID
	holder *Active // nil: the lease is lost
}

func (r *revoked) Hold(_ context.Context, h Hold) (Entry, error) {
	if r.holder == nil {
		return Entry{}, ErrLost
	}
	return Entry{Value: r.holder.Encode(), Lease: h.Lease, Version: 1}, nil
}

func (r *revoked) Revoke(_ context.Context, l LeaseID) error {
	r.leases = append(r.leases, l)
	return nil
}

// TestInherit: the validity of a handed-over reign counts from a moment before the hand-over,
// whenever the heir learns of it and however it prolonged the lease meanwhile, or from a renewal
// that proves it. A reign that cannot be used is given back at once, so that nobody waits for the
// lease to end.
func TestInherit(t *testing.T) {
	timing := defaults(t, "")
	const sent = 100 * second
	handed := Active{Controller: "b", Incarnation: "b-1", Term: 8, State: StateStarting, Reason: "switchover (ana)"}
	last := sent.Add(timing.Validity - timing.StopBudget)
	for name, c := range map[string]struct {
		now    Instant
		change func(e *Elector, a *Active)
		lease  LeaseID
		want   bool // a tenure
		back   bool // the lease was given back
		lost   bool // the store reports that too
		later  bool // the spare lease was prolonged since the last read
		from   Instant
	}{
		"in time":                              {now: sent + second, want: true, from: sent},
		"just in time":                         {now: last - 1, want: true, from: sent},
		"late, and the store confirms it":      {now: last, want: true, from: last},
		"too late":                             {now: last, lost: true, back: true},
		"prolonged after the last look":        {now: sent + 2*second, later: true, want: true, from: sent},
		"prolonged after the last look, late":  {now: last, later: true, want: true, from: last},
		"prolonged after the last look, later": {now: last, later: true, lost: true, back: true},
		"another lease":                        {now: sent + second, lease: "l9"},
		"another controller":                   {now: sent + second, change: func(_ *Elector, a *Active) { a.Controller = "c" }, back: true},
		"another incarnation":                  {now: sent + second, change: func(_ *Elector, a *Active) { a.Incarnation = "b-0" }, back: true},
		"the same term":                        {now: sent + second, change: func(_ *Elector, a *Active) { a.Term = 7 }, back: true},
		"an older term than one that was seen": {
			now: sent + second, change: func(e *Elector, _ *Active) { e.seen.Term = 8 }, back: true,
		},
		"a promise": {now: sent + second, change: func(e *Elector, _ *Active) { e.promise.till = sent + 2*second }, back: true},
	} {
		t.Run(name, func(t *testing.T) {
			store := &revoked{}
			e := &Elector{
				Backend: store, Timing: timing, Clock: func() Instant { return c.now }, Self: func() Self { return Self{Name: "b", Incarnation: "b-1"} },
				Record: func() Active { return Active{} },
				spare:  spare{lease: "l1", sent: sent, away: sent, after: 7, crumb: Breadcrumb{Term: 7, Controller: "a", Validity: time.Second}, told: true},
			}
			e.seen.Term = 7
			if c.later {
				e.spare.sent = c.now
			}
			active, lease := handed, LeaseID("l1")
			if c.lease != "" {
				lease = c.lease
			}
			if c.change != nil {
				c.change(e, &active)
			}
			if store.holder = &active; c.lost {
				store.holder = nil
			}
			tenure := e.inherit(t.Context(), &active, lease)
			if (tenure != nil) != c.want || (len(store.leases) == 1) != c.back {
				t.Fatalf("tenure %+v, given back %v", tenure, store.leases)
			}
			if tenure == nil {
				return
			}
			if tenure.ValidUntil() != c.from.Add(timing.Validity) || tenure.Term != 8 || tenure.NotBefore() != 0 || tenure.Reason != "switchover (ana)" ||
				!tenure.Previous.Clean || tenure.Previous.Controller != "a" || tenure.LeaseID() != "l1" {
				t.Errorf("%+v, valid until %v", tenure, tenure.ValidUntil())
			}
			if e.spare.lease != "" || e.seen.Term != 8 {
				t.Errorf("spare %+v, term %d", e.spare, e.seen.Term)
			}
			if tenure.Seen.StoppingAt != c.now {
				t.Errorf("the holder was seen to stop at %v", tenure.Seen.StoppingAt)
			}
		})
	}
}

func TestDecideHeir(t *testing.T) {
	timing := defaults(t, "")
	self := Self{Name: "b", Incarnation: "b-1", Fit: true, Priority: 100}
	for name, c := range map[string]struct {
		change func(self *Self, s *Snapshot)
		off    Instant
		want   bool
	}{
		"the holder stops":  {want: true},
		"the holder serves": {change: func(_ *Self, s *Snapshot) { s.Active.State = StateServing }},
		"a move to any":     {change: func(_ *Self, s *Snapshot) { s.Active.State = StateServing; s.Request = &Request{Term: 7} }, want: true},
		"a move here":       {change: func(_ *Self, s *Snapshot) { s.Active.State = StateServing; s.Request = &Request{Term: 7, To: "b"} }, want: true},
		"a move to another": {change: func(_ *Self, s *Snapshot) { s.RequestVer, s.Request = 5, &Request{Term: 7, To: "c", For: time.Minute} }},
		"an old request":    {change: func(_ *Self, s *Snapshot) { s.Active.State = StateServing; s.Request = &Request{Term: 6} }},
		"own reign":         {change: func(self *Self, _ *Snapshot) { self.Incarnation = "a-1" }},
		"unfit":             {change: func(self *Self, _ *Snapshot) { self.Fit = false }},
		"nofailover":        {change: func(self *Self, _ *Snapshot) { self.NoFailover = true }},
		"paused":            {change: func(_ *Self, s *Snapshot) { s.Pause = &Pause{} }},
		"vacant":            {change: func(_ *Self, s *Snapshot) { s.Active, s.ActiveLease, s.ActiveVersion = nil, "", 0 }},
		"bound to no lease": {change: func(_ *Self, s *Snapshot) { s.ActiveLease = "" }},
		"hold-off":          {off: 200 * second},
		"another is better": {change: func(_ *Self, s *Snapshot) {
			s.Controllers = []Controller{{Name: "c", State: StateReady, Priority: 200}}
		}},
		"another is as good": {change: func(_ *Self, s *Snapshot) {
			s.Controllers = []Controller{{Name: "c", State: StateReady, Priority: 100}}
		}, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			self := self
			snap := Snapshot{
				Active: &Active{Controller: "a", Incarnation: "a-1", Term: 7, State: StateStopping}, ActiveLease: "l0", ActiveVersion: 3,
				Breadcrumb: Breadcrumb{Term: 7, Controller: "a", Incarnation: "a-1", Validity: 4 * time.Second}, TermVersion: 3,
			}
			if c.change != nil {
				c.change(&self, &snap)
			}
			now := 100 * second
			seen := Sightings{}.Observe(snap, now)
			if got := DecideHeir(self, timing, snap, seen, c.off, now); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

func TestSucceeds(t *testing.T) {
	for name, c := range map[string]struct {
		change func(s *Snapshot)
		want   bool
	}{
		"fit":                   {want: true},
		"nobody":                {change: func(s *Snapshot) { s.Heir = nil }},
		"of another reign":      {change: func(s *Snapshot) { s.Heir.After = 6 }},
		"oneself":               {change: func(s *Snapshot) { s.Heir.Controller = "a" }},
		"not ready":             {change: func(s *Snapshot) { s.Controllers[0].State = StateUnfit }},
		"another incarnation":   {change: func(s *Snapshot) { s.Controllers[0].Incarnation = "b-2" }},
		"not present":           {change: func(s *Snapshot) { s.Controllers = nil }},
		"paused":                {change: func(s *Snapshot) { s.Pause = &Pause{} }},
		"another was asked for": {change: func(s *Snapshot) { s.Request = &Request{Term: 7, To: "c"} }},
		"it was asked for":      {change: func(s *Snapshot) { s.Request = &Request{Term: 7, To: "b"} }, want: true},
		"nofailover":            {change: func(s *Snapshot) { s.Controllers[0].NoFailover = true }},
		"nofailover, but asked for": {change: func(s *Snapshot) {
			s.Controllers[0].NoFailover = true
			s.Request = &Request{Term: 7, To: "b"}
		}, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			snap := Snapshot{
				Heir:        &Heir{Controller: "b", Incarnation: "b-1", After: 7, Lease: "l1", Validity: "4s"},
				Controllers: []Controller{{Name: "b", Incarnation: "b-1", State: StateReady}},
			}
			if c.change != nil {
				c.change(&snap)
			}
			if got := Succeeds(Self{Name: "a"}, 7, snap); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}
