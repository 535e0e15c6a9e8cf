package election

import (
	"strings"
	"testing"
	"time"
)

const second = Instant(time.Second)

func defaults(t *testing.T, name string) Timing {
	t.Helper()
	timing, err := Profile(name)
	if err != nil {
		t.Fatal(err)
	}
	return timing
}

func held(by string, term Term, beat Version) Snapshot {
	return Snapshot{
		Active:      &Active{Controller: by, Term: term, State: StateServing, Incarnation: by + "-1"},
		ActiveLease: "lease-of-" + LeaseID(by), ActiveVersion: 10, Beat: beat, TermVersion: 9,
		Breadcrumb: Breadcrumb{Term: term, Controller: by, Incarnation: by + "-1", Validity: 4 * time.Second},
	}
}

func vacant(crumb Breadcrumb) Snapshot {
	return Snapshot{Breadcrumb: crumb, TermVersion: 9}
}

func TestDecide(t *testing.T) {
	me := Self{Name: "ctl-b", Incarnation: "ctl-b-1", Priority: 100, Fit: true}
	clean := Breadcrumb{Term: 7, Clean: true, Controller: "ctl-a", Incarnation: "ctl-a-1", Validity: 4 * time.Second, Reason: "switchover (ana)"}
	unclean := clean
	unclean.Clean, unclean.Reason = false, "first start"
	mine := unclean
	mine.Controller, mine.Incarnation = me.Name, me.Incarnation
	stranger := held("ctl-a", 7, 0)
	stranger.ActiveLease = ""
	unreadable := held("ctl-a", 7, 0)
	unreadable.Active, unreadable.ActiveBad = nil, errBad{}
	with := func(s Snapshot, f func(*Snapshot)) Snapshot { f(&s); return s }
	as := func(f func(*Self)) Self { s := me; f(&s); return s }

	// The snapshot is first seen at 100 s, the decision is taken at now.
	for _, c := range []struct {
		name      string
		self      Self
		profile   string
		snap      Snapshot
		now       Instant
		holdOff   Instant
		code      Code
		claim     bool
		silent    Version
		notBefore Instant
		until     Instant
		term      Term
	}{
		{name: "first start", snap: Snapshot{}, now: 100 * second, code: CodeClaim, claim: true, term: 1},
		{name: "clean release needs no wait", snap: vacant(clean), now: 100 * second, code: CodeClaim, claim: true, term: 8},
		{
			name: "unclean loss is waited out", snap: vacant(unclean), now: 101 * second,
			code: CodeClaim, claim: true, term: 8, notBefore: Instant(100*time.Second + Outlast(4*time.Second)),
		},
		{name: "own loss needs no wait", snap: vacant(mine), now: 101 * second, code: CodeClaim, claim: true, term: 8},
		{name: "held", snap: held("ctl-a", 7, 0), now: 200 * second, code: CodeHeld, term: 8},
		{name: "held with a beat, default profile", snap: held("ctl-a", 7, 3), now: 200 * second, code: CodeHeld, term: 8},
		{
			name: "silent, not long enough for the holder's validity", profile: ProfileFast, snap: held("ctl-a", 7, 3), now: 104 * second,
			code: CodeHeld, until: Instant(100*time.Second + Outlast(4*time.Second)), term: 8,
		},
		{
			name: "silent long enough", profile: ProfileFast, snap: held("ctl-a", 7, 3), now: 105 * second,
			code: CodeClaim, claim: true, silent: 3, term: 8,
		},
		{
			name: "paused", snap: with(vacant(clean), func(s *Snapshot) { s.Pause = &Pause{By: "ana"} }), now: 200 * second,
			code: CodePaused, term: 8,
		},
		{name: "unfit", self: as(func(s *Self) { s.Fit = false }), snap: vacant(clean), now: 200 * second, code: CodeUnfit, term: 8},
		{name: "nofailover", self: as(func(s *Self) { s.NoFailover = true }), snap: vacant(clean), now: 200 * second, code: CodeNoFailover, term: 8},
		{
			name: "nofailover, but named by a request", self: as(func(s *Self) { s.NoFailover = true }),
			snap: with(vacant(clean), func(s *Snapshot) { s.Request, s.RequestVer = &Request{To: "ctl-b", Term: 7, For: time.Minute}, 5 }),
			now:  100 * second, code: CodeClaim, claim: true, term: 8,
		},
		{
			name: "a request names another",
			snap: with(vacant(clean), func(s *Snapshot) { s.Request, s.RequestVer = &Request{To: "ctl-c", Term: 7, For: time.Minute}, 5 }),
			now:  101 * second, code: CodeRequested, until: 160 * second, term: 8,
		},
		{
			name: "a request names another, which never came",
			snap: with(vacant(clean), func(s *Snapshot) { s.Request, s.RequestVer = &Request{To: "ctl-c", Term: 7, For: time.Minute}, 5 }),
			now:  160 * second, code: CodeClaim, claim: true, term: 8,
		},
		{
			name: "a request for an older term is nothing",
			snap: with(vacant(clean), func(s *Snapshot) { s.Request, s.RequestVer = &Request{To: "ctl-c", Term: 6, For: time.Minute}, 5 }),
			now:  101 * second, code: CodeClaim, claim: true, term: 8,
		},
		{name: "hold-off after yielding", snap: vacant(clean), now: 101 * second, holdOff: 130 * second, code: CodeHoldOff, until: 130 * second, term: 8},
		{
			name: "a planned move to anybody ends the hold-off",
			snap: with(vacant(clean), func(s *Snapshot) { s.Request, s.RequestVer = &Request{Term: 7, For: time.Minute}, 5 }),
			now:  101 * second, holdOff: 130 * second, code: CodeClaim, claim: true, term: 8,
		},
		{
			name: "a holder that died ends the hold-off", snap: vacant(Breadcrumb{Term: 7, Controller: "ctl-a", Incarnation: "a-1", Validity: 4 * time.Second}),
			now: 101 * second, holdOff: 130 * second, code: CodeClaim, claim: true, term: 8, notBefore: (100 * second).Add(Outlast(4 * time.Second)),
		},
		{name: "hold-off over", snap: vacant(clean), now: 130 * second, holdOff: 130 * second, code: CodeClaim, claim: true, term: 8},
		{
			name: "a fit controller with a higher priority is asked first",
			snap: with(vacant(clean), func(s *Snapshot) {
				s.Controllers = []Controller{{Name: "ctl-c", State: StateReady, Priority: 200}, {Name: "ctl-d", State: StateUnfit, Priority: 300}}
			}),
			now: 100 * second, code: CodePriority, until: Instant(100*time.Second + priorityStep), term: 8,
		},
		{
			name: "one with a higher priority did not come",
			snap: with(vacant(clean), func(s *Snapshot) { s.Controllers = []Controller{{Name: "ctl-c", State: StateReady, Priority: 200}} }),
			now:  101 * second, code: CodeClaim, claim: true, term: 8,
		},
		{name: "role key written by hand", snap: stranger, now: 200 * second, code: CodeStranger, term: 8},
		{name: "role key that can't be read", snap: unreadable, now: 200 * second, code: CodeUnreadable, term: 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			self := c.self
			if self.Name == "" {
				self = me
			}
			d := Decide(self, defaults(t, c.profile), c.snap, Sightings{}.Observe(c.snap, 100*second), c.holdOff, c.now)
			if d.Code != c.code || d.Claim != c.claim || d.Silent != c.silent || d.Term != c.term || d.NotBefore != c.notBefore || d.Until != c.until {
				t.Errorf("got %+v", d)
			}
			if d.Why == "" {
				t.Error("a decision without a reason")
			}
			if d.Remove != (c.code == CodeStranger) {
				t.Error("only a stranger's key is removed")
			}
		})
	}
}

type errBad struct{}

func (errBad) Error() string { return "bad" }

// A promise to a holder that lost the store, and a claim, exclude each other.
func TestStandBack(t *testing.T) {
	now := 100 * second
	e := &Elector{Clock: func() Instant { return now }}
	ask := Ask{Controller: "ctl-a", Term: 7, Validity: 4 * time.Second}
	if err := e.StandBack(ask, Snapshot{Breadcrumb: Breadcrumb{Term: 8}}); err == nil {
		t.Error("promised to stand back for an older term")
	}
	if !e.promise.beginClaim(now) {
		t.Fatal("no promise was made, and the claim is refused")
	}
	if err := e.StandBack(ask, Snapshot{}); err == nil {
		t.Error("promised to stand back while claiming")
	}
	e.promise.endClaim()
	if err := e.StandBack(ask, Snapshot{}); err != nil {
		t.Error(err)
	}
	seen := Sightings{}.Observe(Snapshot{}, now)
	seen.VouchedTo, seen.VouchedTill = e.promise.get()
	if d := Decide(Self{Name: "ctl-b", Fit: true}, defaults(t, ""), Snapshot{}, seen, 0, now); d.Code != CodeVouched || d.Until != seen.VouchedTill {
		t.Errorf("got %+v", d)
	}
	now = seen.VouchedTill - 1
	if e.promise.beginClaim(now) {
		t.Error("the promise was not kept")
	}
	now = Instant(100*time.Second + Outlast(ask.Validity))
	if !e.promise.beginClaim(now) {
		t.Error("the promise outlives what was asked for")
	}
}

// A counter that was rewound (a store restored from a backup) must neither repeat a term nor spare the wait.
func TestDecideCounterRewound(t *testing.T) {
	seen := Sightings{}.Observe(held("ctl-a", 7, 0), 50*second)
	rewound := vacant(Breadcrumb{Term: 3, Clean: true, Controller: "ctl-a", Validity: time.Second})
	seen = seen.Observe(rewound, 60*second)
	d := Decide(Self{Name: "ctl-b", Incarnation: "b", Fit: true}, defaults(t, ""), rewound, seen, 0, 61*second)
	if !d.Claim || d.Term != 8 || d.NotBefore < 61*second {
		t.Errorf("got %+v, want a claim of term 8 that waits", d)
	}
	wiped := Snapshot{}
	seen = seen.Observe(wiped, 70*second)
	d = Decide(Self{Name: "ctl-b", Incarnation: "b", Fit: true}, defaults(t, ""), wiped, seen, 0, 70*second)
	if !d.Claim || d.Term != 8 || d.NotBefore < 71*second {
		t.Errorf("wiped: got %+v, want a claim of term 8 that waits", d)
	}
}

func TestObserveKeepsTheFirstSight(t *testing.T) {
	v := vacant(Breadcrumb{Term: 7})
	seen := Sightings{}.Observe(v, 10*second).Observe(v, 20*second)
	if seen.VacantAt != 10*second {
		t.Errorf("the vacancy began at %v", seen.VacantAt)
	}
	// Another reign came and went between two looks: the vacancy is a new one.
	w := v
	w.TermVersion++
	if seen = seen.Observe(w, 30*second); seen.VacantAt != 30*second {
		t.Errorf("the second vacancy began at %v", seen.VacantAt)
	}
	h := held("ctl-a", 8, 4)
	seen = seen.Observe(h, 40*second).Observe(h, 50*second)
	if seen.BeatAt != 40*second || seen.OccupiedAt != 50*second || seen.Vacant {
		t.Errorf("got %+v", seen)
	}
}

func TestDecideHolder(t *testing.T) {
	me := Self{Name: "ctl-a", Incarnation: "ctl-a-1"}
	lease := LeaseID("lease-of-ctl-a")
	ready := []Controller{{Name: "ctl-b", State: StateReady}, {Name: "ctl-c", State: StateUnfit}, {Name: "ctl-d", State: StateReady, NoFailover: true}}
	ask := func(r Request) Snapshot {
		s := held("ctl-a", 7, 0)
		s.Controllers, s.Request, s.RequestVer = ready, &r, 5
		return s
	}
	paused := ask(Request{Op: "switchover", Term: 7})
	paused.Pause = &Pause{By: "ana"}
	for _, c := range []struct {
		name string
		snap Snapshot
		code Code
	}{
		{"nothing new", held("ctl-a", 7, 0), CodeKeep},
		{"vanished", vacant(Breadcrumb{Term: 7}), CodeLost},
		{"taken", held("ctl-b", 8, 0), CodeLost},
		{"switchover to anybody", ask(Request{Op: "switchover", Term: 7}), CodePlanned},
		{"switchover to one", ask(Request{Op: "switchover", Term: 7, To: "ctl-b"}), CodePlanned},
		{"switchover to one that is no candidate by itself", ask(Request{Op: "switchover", Term: 7, To: "ctl-d"}), CodePlanned},
		{"switchover to one that is not fit", ask(Request{Op: "switchover", Term: 7, To: "ctl-c"}), CodeVoidRequest},
		{"switchover to one that is not there", ask(Request{Op: "switchover", Term: 7, To: "ctl-x"}), CodeVoidRequest},
		{"switchover to the active", ask(Request{Op: "switchover", Term: 7, To: "ctl-a"}), CodeVoidRequest},
		{"switchover of another term", ask(Request{Op: "switchover", Term: 6}), CodeVoidRequest},
		{"unknown operation", ask(Request{Op: "explode", Term: 7}), CodeVoidRequest},
		{"paused", paused, CodeKeep},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := DecideHolder(me, lease, 7, c.snap); d.Code != c.code {
				t.Errorf("got %+v, want %s", d, c.code)
			}
		})
	}
}

func TestTimingValidate(t *testing.T) {
	etcd := Traits{Name: "etcd", MinTTL: 2 * time.Second, ExpirySlack: 500 * time.Millisecond, LeaderGap: 1800 * time.Millisecond}
	for _, name := range []string{ProfileDefault, ProfileFast} {
		if err := defaults(t, name).Validate(etcd); err != nil {
			t.Errorf("profile %s: %v", name, err)
		}
	}
	for _, c := range []struct {
		name   string
		change func(*Timing)
		says   string
	}{
		{"zero", func(t *Timing) { t.RenewEvery = 0 }, "lease.renew_every is 0s"},
		{"ttl below the store's", func(t *Timing) { t.TTL = time.Second; t.Validity = 900 * time.Millisecond }, "below the 2s that etcd can do"},
		{"validity outlives ttl", func(t *Timing) { t.Validity = 4950 * time.Millisecond }, "outlives lease.ttl 5s"},
		{"validity outlives silence", func(t *Timing) { t.Beat, t.Silence = true, 4*time.Second }, "outlives lease.silence 4s"},
		{"stop budget too short", func(t *Timing) { t.StopBudget = time.Millisecond }, "too short to stop"},
		{"stop budget does not fit", func(t *Timing) { t.StopBudget = 4 * time.Second }, "does not fit"},
		{"too few renewals", func(t *Timing) { t.RenewEvery = 1600 * time.Millisecond }, "fewer than two renewals"},
		{"store election", func(t *Timing) { t.Validity = 3500 * time.Millisecond }, "every such election would stop the controller"},
	} {
		t.Run(c.name, func(t *testing.T) {
			timing := defaults(t, "")
			c.change(&timing)
			err := timing.Validate(etcd)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
	if _, err := Profile("turbo"); err == nil {
		t.Error("an unknown profile was accepted")
	}
}

func TestBreadcrumbRoundTrip(t *testing.T) {
	b := Breadcrumb{Term: 7, Clean: true, Controller: "ctl-a", Incarnation: "x", Validity: 4 * time.Second, Reason: "ctl-a failed: validity=9s clean\nx"}
	got, err := DecodeBreadcrumb(b.Encode())
	b.Reason = "ctl-a failed: validity=9s clean x"
	if err != nil || got != b {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := DecodeBreadcrumb([]byte("12")); err != nil || got.Term != 12 || got.Clean {
		t.Errorf("a bare integer: %+v, %v", got, err)
	}
	for _, bad := range []string{"", "x", "-1 clean", "7 held validity=-4s", "7 held validity=4"} {
		if _, err := DecodeBreadcrumb([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
