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
	clean := Breadcrumb{Term: 7, Clean: true, Controller: "ctl-a", Incarnation: "ctl-a-1", Validity: 4 * time.Second, Mode: ModeStore, Reason: "switchover (ana)"}
	before := clean // as the previous version writes it
	before.Mode = ""
	unclean := clean
	unclean.Clean, unclean.Reason = false, "first start"
	listing := unclean
	listing.Heirs = "ctl-a,ctl-c"
	mine := unclean
	mine.Controller, mine.Incarnation, mine.Nonce, mine.Mode = me.Name, me.Incarnation, "n1", ModeStore
	owing := func(b Breadcrumb, d time.Duration) Breadcrumb { b.Beat = true; return owing(b, d) }
	stranger := held("ctl-a", 7, 0)
	stranger.ActiveLease = ""
	unreadable := held("ctl-a", 7, 0)
	unreadable.Active, unreadable.ActiveBad = nil, errBad{}
	with := func(s Snapshot, f func(*Snapshot)) Snapshot { f(&s); return s }
	as := func(f func(*Self)) Self { s := me; f(&s); return s }
	reigned := unclean // by a holder that an operator can confirm to be dead
	reigned.Nonce = "n7"
	dead := func(s Snapshot, f ...func(*Dead)) Snapshot {
		d := Dead{Controller: "ctl-a", Term: 7, Nonce: "n7", Record: 9, By: "ana"}
		for _, change := range f {
			change(&d)
		}
		s.Dead = &d
		return s
	}
	waits := (100 * second).Add(Outlast(4 * time.Second))
	heldBy7 := held("ctl-a", 7, 0)
	heldBy7.Breadcrumb = reigned

	// The snapshot is first seen at 100 s. The decision is made at now.
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
		{
			name: "a clean release of the version before, which knew no debt", snap: vacant(before), now: 101 * second,
			code: CodeClaim, claim: true, term: 8, notBefore: (100 * second).Add(Outlast(4 * time.Second)),
		},
		{name: "clean release needs no wait", snap: vacant(clean), now: 100 * second, code: CodeClaim, claim: true, term: 8},
		{
			name: "unclean loss is waited out", snap: vacant(unclean), now: 101 * second,
			code: CodeClaim, claim: true, term: 8, notBefore: Instant(100*time.Second + Outlast(4*time.Second)),
		},
		{
			name: "own loss that is undone needs no wait", self: as(func(s *Self) { s.Undone = "n1" }), snap: vacant(mine), now: 101 * second,
			code: CodeClaim, claim: true, term: 8,
		},
		{
			name: "own name and process prove nothing: it is waited out", snap: vacant(mine), now: 101 * second,
			code: CodeClaim, claim: true, term: 8, notBefore: (100 * second).Add(Outlast(4 * time.Second)),
		},
		{
			name: "a debt outlives a clean release", snap: vacant(owing(clean, 3*time.Second)), now: 101 * second,
			code: CodeClaim, claim: true, term: 8, notBefore: (100 * second).Add(Outlast(3 * time.Second)),
		},
		{name: "a debt that is paid", snap: vacant(owing(clean, 3*time.Second)), now: 104 * second, code: CodeClaim, claim: true, term: 8},
		{
			name: "a debt longer than the last holder's validity", snap: vacant(owing(unclean, 9*time.Second)), now: 101 * second,
			code: CodeClaim, claim: true, term: 8, notBefore: (100 * second).Add(Outlast(9 * time.Second)),
		},
		{
			name: "a debt outlives the silence", profile: ProfileFast, snap: with(held("ctl-a", 7, 3), func(s *Snapshot) { s.Breadcrumb = owing(s.Breadcrumb, 9*time.Second) }),
			now: 105 * second, code: CodeClaim, claim: true, silent: 3, term: 8, notBefore: (100 * second).Add(Outlast(9 * time.Second)),
		},
		{
			name: "an unreadable term key is waited out", snap: Snapshot{TermVersion: 9, TermBad: errBad{}}, now: 101 * second,
			code: CodeClaim, claim: true, term: 1, notBefore: (100 * second).Add(Outlast(assumedValidity)),
		},
		{
			name: "the highest possible term", snap: vacant(Breadcrumb{Term: MaxTerm, Clean: true, Controller: "ctl-a"}), now: 101 * second,
			code: CodeUnreadable, term: MaxTerm + 1,
		},
		{
			name: "the last holder may have its reign back in a pause", self: as(func(s *Self) { s.Undone = "n1" }),
			snap: with(vacant(mine), func(s *Snapshot) { s.Pause = &Pause{By: "ana"} }), now: 101 * second, code: CodeClaim, claim: true, term: 8,
		},
		{
			name: "silence of a holder without a beat", profile: ProfileFast,
			snap: with(held("ctl-a", 7, 3), func(s *Snapshot) { s.Breadcrumb.Mode = ModeStore }), now: 200 * second, code: CodeHeld, term: 8,
		},
		{name: "one that is not listed", snap: vacant(listing), now: 200 * second, code: CodeUnlisted, term: 8},
		{
			name: "one that is not listed, asked for", snap: with(vacant(listing), func(s *Snapshot) { s.Request = &Request{Op: OpFailover, To: "ctl-b", Term: 7} }),
			now: 200 * second, code: CodeUnlisted, term: 8,
		},
		{
			name: "one that is not listed, by force", snap: with(vacant(listing), func(s *Snapshot) {
				s.Request = &Request{Op: OpFailover, To: "ctl-b", Term: 7, Force: true}
			}),
			now: 101 * second, code: CodeClaim, claim: true, term: 8, notBefore: (100 * second).Add(Outlast(4 * time.Second)),
		},
		{
			name: "one that is not listed, by force about another reign", snap: with(vacant(listing), func(s *Snapshot) {
				s.Request = &Request{Op: OpFailover, To: "ctl-b", Term: 6, Force: true}
			}),
			now: 200 * second, code: CodeUnlisted, term: 8,
		},
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
			snap: with(vacant(clean), func(s *Snapshot) {
				s.Request, s.RequestVer, s.Controllers = &Request{To: "ctl-c", Term: 7, For: time.Minute}, 5, []Controller{{Name: "ctl-c", State: StateReady}}
			}),
			now: 101 * second, code: CodeRequested, until: (100 * second).Add(targetPatience), term: 8,
		},
		{
			name: "a restart that the last holder did not live to carry out moves nothing",
			snap: with(vacant(clean), func(s *Snapshot) {
				s.Request, s.RequestVer, s.Controllers = &Request{Op: OpRestart, To: "ctl-a", Term: 7, For: time.Minute}, 5, []Controller{{Name: "ctl-a", State: StateReady}}
			}),
			now: 101 * second, code: CodeClaim, claim: true, term: 8,
		},
		{
			name: "a scheduled move that the last holder did not live to carry out moves nothing",
			snap: with(vacant(clean), func(s *Snapshot) {
				s.Request, s.RequestVer, s.Controllers = &Request{Op: OpScheduled, To: "ctl-c", Term: 7, For: time.Minute}, 5, []Controller{{Name: "ctl-c", State: StateReady}}
			}),
			now: 101 * second, code: CodeClaim, claim: true, term: 8,
		},
		{
			name: "a request names another, which never came",
			snap: with(vacant(clean), func(s *Snapshot) {
				s.Request, s.RequestVer, s.Controllers = &Request{To: "ctl-c", Term: 7, For: time.Minute}, 5, []Controller{{Name: "ctl-c", State: StateReady}}
			}),
			now: (100 * second).Add(targetPatience), code: CodeClaim, claim: true, term: 8,
		},
		{
			name: "a request names another, which is absent",
			snap: with(vacant(clean), func(s *Snapshot) { s.Request, s.RequestVer = &Request{To: "ctl-c", Term: 7, For: time.Minute}, 5 }),
			now:  101 * second, code: CodeClaim, claim: true, term: 8,
		},
		{
			name: "a request for an older term is nothing",
			snap: with(vacant(clean), func(s *Snapshot) { s.Request, s.RequestVer = &Request{To: "ctl-c", Term: 6, For: time.Minute}, 5 }),
			now:  101 * second, code: CodeClaim, claim: true, term: 8,
		},
		{
			name: "on standby", snap: with(vacant(clean), func(s *Snapshot) { s.Standbys = Standbys{"ctl-b": {By: "ana"}} }), now: 200 * second,
			code: CodeStandby, term: 8,
		},
		{
			name: "on standby, and nofailover", self: as(func(s *Self) { s.NoFailover, s.Fit = true, false }),
			snap: with(vacant(clean), func(s *Snapshot) { s.Standbys = Standbys{"ctl-b": {By: "ana"}} }), now: 200 * second, code: CodeStandby, term: 8,
		},
		{
			name: "on standby, and named by a request", snap: with(vacant(clean), func(s *Snapshot) {
				s.Standbys, s.Request = Standbys{"ctl-b": {By: "ana"}}, &Request{To: "ctl-b", Term: 7, For: time.Minute}
			}), now: 200 * second, code: CodeStandby, term: 8,
		},
		{
			name: "on standby while a holder is silent", profile: ProfileFast,
			snap: with(held("ctl-a", 7, 3), func(s *Snapshot) { s.Standbys = Standbys{"ctl-b": {By: "ana"}} }), now: 200 * second, code: CodeStandby, term: 8,
		},
		{
			name: "on standby, by force", snap: with(vacant(clean), func(s *Snapshot) {
				s.Standbys, s.Request = Standbys{"ctl-b": {By: "ana"}}, &Request{Op: OpFailover, To: "ctl-b", Term: 7, Force: true}
			}), now: 200 * second, code: CodeClaim, claim: true, term: 8,
		},
		{
			name: "banned, by force", snap: with(vacant(clean), func(s *Snapshot) {
				s.Standbys, s.Request = Standbys{"ctl-b": {By: "ana", Ban: true}}, &Request{Op: OpFailover, To: "ctl-b", Term: 7, Force: true}
			}), now: 200 * second, code: CodeStandby, term: 8,
		},
		{
			name: "another is on standby", snap: with(vacant(clean), func(s *Snapshot) { s.Standbys = Standbys{"ctl-a": {By: "ana"}} }), now: 200 * second,
			code: CodeClaim, claim: true, term: 8,
		},
		{name: "a holder that is confirmed dead", snap: dead(vacant(reigned)), now: 101 * second, code: CodeClaim, claim: true, term: 8},
		{
			name: "a holder that is confirmed dead does not pay for those before it", snap: dead(vacant(owing(reigned, 3*time.Second))), now: 101 * second,
			code: CodeClaim, claim: true, term: 8, notBefore: (100 * second).Add(Outlast(3 * time.Second)),
		},
		{
			name: "a holder that is confirmed dead did not list this one",
			snap: dead(vacant(func() Breadcrumb { b := reigned; b.Heirs = "ctl-a,ctl-c"; return b }())), now: 101 * second, code: CodeClaim, claim: true, term: 8,
		},
		{
			name: "confirmed dead, but the record was written since", snap: dead(vacant(reigned), func(d *Dead) { d.Record = 8 }), now: 101 * second,
			code: CodeClaim, claim: true, term: 8, notBefore: waits,
		},
		{
			name: "another reign of it is confirmed dead", snap: dead(vacant(reigned), func(d *Dead) { d.Nonce = "n5" }), now: 101 * second,
			code: CodeClaim, claim: true, term: 8, notBefore: waits,
		},
		{
			name: "a certificate without a reign", snap: dead(vacant(unclean), func(d *Dead) { d.Nonce = "" }), now: 101 * second,
			code: CodeClaim, claim: true, term: 8, notBefore: waits,
		},
		{
			name: "another is confirmed dead", snap: dead(vacant(reigned), func(d *Dead) { d.Controller = "ctl-c" }), now: 101 * second,
			code: CodeClaim, claim: true, term: 8, notBefore: waits,
		},
		{name: "a holder that is confirmed dead loses its lease at once", snap: dead(heldBy7), now: 101 * second, code: CodeDead, term: 8},
		{name: "a holder of another reign keeps it", snap: dead(heldBy7, func(d *Dead) { d.Nonce = "n5" }), now: 101 * second, code: CodeHeld, term: 8},
		{
			name: "a certificate in a pause", snap: dead(with(heldBy7, func(s *Snapshot) { s.Pause = &Pause{By: "ana"} })), now: 101 * second,
			code: CodePaused, term: 8,
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
		{name: "unreadable role key", snap: unreadable, now: 200 * second, code: CodeUnreadable, term: 8},
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
			if d.Remove != (c.code == CodeStranger || c.code == CodeDead) {
				t.Error("only the key of a stranger or of the dead is removed")
			}
		})
	}
}

// asBefore returns all that the previous version reads of a record.
func asBefore(value []byte) (clean bool, validity time.Duration) {
	facts, _, _ := strings.Cut(string(value), " reason=")
	for _, f := range strings.Fields(facts)[1:] {
		switch key, val, _ := strings.Cut(f, "="); key {
		case "clean":
			clean = true
		case "validity":
			validity, _ = time.ParseDuration(val)
		}
	}
	return clean, validity
}

func TestDebtIsRead(t *testing.T) {
	for _, b := range []Breadcrumb{
		{Term: 7, Controller: "a", Validity: 4 * time.Second, TTL: 5 * time.Second, Mode: ModeStore, Nonce: "n", Debt: 1500 * time.Millisecond},
		{Term: 7, Controller: "a", Clean: true, Validity: time.Second, Mode: ModeStore, Nonce: "n", Debt: 6 * time.Second, Reason: "x"},
		{Term: 50, Reign: 7, Controller: "a", Clean: true, Validity: time.Second, Mode: ModeStore, Beat: true, Nonce: "n"},
	} {
		got, err := DecodeBreadcrumb(b.Encode())
		if err != nil || got != b {
			t.Errorf("%s reads as %+v, %v", b.Encode(), got, err)
		}
	}
	if got, err := DecodeBreadcrumb(Breadcrumb{Term: 7, Controller: "a", Debt: 1500*time.Millisecond + 1}.Encode()); err != nil || got.Debt != 1501*time.Millisecond {
		t.Errorf("a debt was rounded down to %v, %v", got.Debt, err)
	}
}

// TestDebtDoesNotMisleadTheVersionBefore: a sidecar of the previous version waits out the validity
// of a record that is not clean, and nothing else.
func TestDebtDoesNotMisleadTheVersionBefore(t *testing.T) {
	for _, b := range []Breadcrumb{
		{Term: 7, Controller: "a", Validity: 4 * time.Second, Debt: 1500 * time.Millisecond},
		{Term: 7, Controller: "a", Validity: 4 * time.Second, Debt: 9 * time.Second},
		{Term: 7, Controller: "a", Clean: true, Validity: 4 * time.Second, Debt: time.Second},
		{Term: 7, Controller: "a", Clean: true, Validity: 600 * time.Millisecond, Debt: 3 * time.Second},
	} {
		if clean, validity := asBefore(b.Encode()); clean || validity < b.Debt {
			t.Errorf("the previous version reads %s as clean %v, validity %v", b.Encode(), clean, validity)
		}
	}
	if clean, _ := asBefore(Breadcrumb{Term: 7, Controller: "a", Clean: true, Validity: time.Second}.Encode()); !clean {
		t.Error("nothing is owed, and the version before would wait")
	}
}

// TestDebtIsPaidByTimeOrByARecordThatSaysSo: a debt counts from the first sight of the version that
// has it, and only a record that has a debt replaces it.
func TestDebtIsPaidByTimeOrByARecordThatSaysSo(t *testing.T) {
	owes := Breadcrumb{Term: 7, Controller: "a", Clean: true, Validity: time.Second, Mode: ModeStore, Nonce: "n", Debt: 4 * time.Second}
	at := func(v Version, b Breadcrumb) Snapshot { return Snapshot{Breadcrumb: b, TermVersion: v} }
	due := (10 * second).Add(Outlast(4 * time.Second))
	seen := Sightings{}.Observe(at(1, owes), 10*second).Observe(at(1, owes), 12*second)
	if seen.DebtTill != due {
		t.Errorf("due at %v, want %v", seen.DebtTill, due)
	}
	paid := owes
	paid.Term, paid.Debt = 8, 0
	old := Breadcrumb{Term: 8, Controller: "b", Clean: true, Validity: time.Second}
	restored := paid
	restored.Term = 3
	for name, c := range map[string]struct {
		snap Snapshot
		want Instant
	}{
		"the next reign's record has no debt": {at(2, paid), 0},
		"a record of the version before":      {at(2, old), due},
		"written by hand":                     {at(2, Breadcrumb{Term: 9}), due},
		"deleted":                             {at(0, Breadcrumb{}), due},
		"can't be read":                       {Snapshot{TermVersion: 2, TermBad: errBad{}}, due},
		"restored from a backup":              {at(2, restored), due},
		"carried on with what is left":        {at(2, owing(owes, time.Second)), (12 * second).Add(Outlast(time.Second))},
		"a second debt, longer than that":     {at(2, owing(owes, 8*time.Second)), (12 * second).Add(Outlast(8 * time.Second))},
	} {
		if got := seen.Observe(c.snap, 12*second).DebtTill; got != c.want {
			t.Errorf("%s: due at %v, want %v", name, got, c.want)
		}
	}
}

func owing(b Breadcrumb, d time.Duration) Breadcrumb { b.Debt, b.Mode = d, ModeStore; return b }

// TestForgedTerms: a forged term leaves room for the terms that follow, and is forgotten with the
// key.
func TestForgedTerms(t *testing.T) {
	forged := held("mallory", MaxTerm, 0)
	forged.Breadcrumb = Breadcrumb{Term: 7, Controller: "ctl-a", Mode: ModeStore}
	if seen := (Sightings{}).Observe(forged, second); seen.Term != 7 {
		t.Errorf("a forged role key made the highest term %d", seen.Term)
	}
	if _, err := DecodeActive([]byte(`{"controller":"mallory","term":9007199254740992}`)); err == nil {
		t.Error("a term beyond the highest was read")
	}
}

type errBad struct{}

func (errBad) Error() string { return "bad" }

// TestPromiseAndClaimExcludeEachOther: a promise to a holder without a store, and a claim, exclude each other.
func TestPromiseAndClaimExcludeEachOther(t *testing.T) {
	now := 100 * second
	e := &Elector{Clock: func() Instant { return now }}
	ask := Ask{Controller: "ctl-a", Term: 7, Validity: 4 * time.Second}
	if err := e.Promise(ask, Snapshot{Breadcrumb: Breadcrumb{Term: 8}}); err == nil {
		t.Error("made a promise for an older term")
	}
	if !e.promise.beginClaim(now) {
		t.Fatal("no promise was made, and the claim is refused")
	}
	if err := e.Promise(ask, Snapshot{}); err == nil {
		t.Error("made a promise while claiming")
	}
	e.promise.endClaim()
	if err := e.Promise(ask, Snapshot{}); err != nil {
		t.Error(err)
	}
	seen := Sightings{}.Observe(Snapshot{}, now)
	seen.PromisedTo, seen.PromisedTill = e.promise.get()
	if d := Decide(Self{Name: "ctl-b", Fit: true}, defaults(t, ""), Snapshot{}, seen, 0, now); d.Code != CodePromised || d.Until != seen.PromisedTill {
		t.Errorf("got %+v", d)
	}
	now = seen.PromisedTill - 1
	if e.promise.beginClaim(now) {
		t.Error("the promise was not kept")
	}
	now = Instant(100*time.Second + Outlast(ask.Validity))
	if !e.promise.beginClaim(now) {
		t.Error("the promise outlives what was asked for")
	}
}

// TestDecideCounterRewound: a rewound counter (a store restored from a backup) must neither repeat
// a term nor save the wait.
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
	// Another reign began and ended between two reads: the vacancy is a new one.
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
	ready := []Controller{{Name: "ctl-b", Incarnation: "ctl-b-1", State: StateReady}, {Name: "ctl-c", State: StateUnfit}, {Name: "ctl-d", Incarnation: "ctl-d-1", State: StateReady, NoFailover: true}}
	ask := func(r Request) Snapshot {
		s := held("ctl-a", 7, 0)
		s.Controllers, s.Request, s.RequestVer = ready, &r, 5
		return s
	}
	offered := func(by string, r Request) Snapshot {
		s := ask(r)
		s.Heir, s.HeirVersion = &Heir{Controller: by, Incarnation: by + "-1", After: 7, Lease: "l1", Validity: "4s"}, 6
		return s
	}
	stale := offered("ctl-b", Request{ID: "2", Op: "switchover", Term: 7, To: "ctl-b"})
	stale.Heir.Request = "1"
	anew := offered("ctl-b", Request{ID: "2", Op: "switchover", Term: 7, To: "ctl-b"})
	anew.Heir.Request = "2"
	unreadable := held("ctl-a", 7, 0)
	unreadable.RequestVer = 5
	standing := offered("ctl-b", Request{Op: "switchover", Term: 7, To: "ctl-b"}) // its offer and its status are older than the wish
	standing.Standbys = Standbys{"ctl-b": {By: "ana"}}
	noneLeft := offered("ctl-b", Request{Op: "switchover", Term: 7})
	noneLeft.Standbys = standing.Standbys
	selfStanding := held("ctl-a", 7, 0)
	selfStanding.Standbys = Standbys{"ctl-a": {By: "ana", Ban: true}}
	dead := held("ctl-a", 7, 0)
	dead.Breadcrumb.Nonce, dead.Breadcrumb.Mode = "n7", ModeStore
	dead.Dead = &Dead{Controller: "ctl-a", Term: 7, Nonce: "n7", Record: 9, By: "ana"}
	void := dead
	void.TermVersion = 10
	dead.Pause = &Pause{By: "ana"}
	paused := ask(Request{Op: "switchover", Term: 7})
	paused.Pause = &Pause{By: "ana"}
	for _, c := range []struct {
		name string
		snap Snapshot
		code Code
	}{
		{"nothing new", held("ctl-a", 7, 0), CodeContinue},
		{"vanished", vacant(Breadcrumb{Term: 7}), CodeLost},
		{"taken", held("ctl-b", 8, 0), CodeLost},
		{"switchover to anybody", offered("ctl-b", Request{Op: "switchover", Term: 7}), CodePlanned},
		{"switchover to one", offered("ctl-b", Request{Op: "switchover", Term: 7, To: "ctl-b"}), CodePlanned},
		{"switchover to one that is no candidate by itself", offered("ctl-d", Request{Op: "switchover", Term: 7, To: "ctl-d"}), CodePlanned},
		{"switchover to one that has not shown life yet", ask(Request{Op: "switchover", Term: 7, To: "ctl-b"}), CodeAwaitHeir},
		{"switchover to one, and another offers itself", offered("ctl-d", Request{Op: "switchover", Term: 7, To: "ctl-b"}), CodeAwaitHeir},
		{"switchover to one that offered itself for an earlier request", stale, CodeAwaitHeir},
		{"switchover to one that offered itself for this one", anew, CodePlanned},
		{"an unreadable request", unreadable, CodeVoidRequest},
		{"switchover to one that is not fit", ask(Request{Op: "switchover", Term: 7, To: "ctl-c"}), CodeVoidRequest},
		{"switchover to an absent controller", ask(Request{Op: "switchover", Term: 7, To: "ctl-x"}), CodeVoidRequest},
		{"switchover to the active", ask(Request{Op: "switchover", Term: 7, To: "ctl-a"}), CodeVoidRequest},
		{"switchover of another term", ask(Request{Op: "switchover", Term: 6}), CodeVoidRequest},
		{"failover during the reign", ask(Request{Op: OpFailover, Term: 7, To: "ctl-b", Force: true}), CodeVoidRequest},
		{"failover that led to this reign", ask(Request{Op: OpFailover, Term: 6, To: "ctl-a", Force: true}), CodeVoidRequest},
		{"confirmed dead, even in a pause", dead, CodeDead},
		{"a certificate of a record before", void, CodeContinue},
		{"a scheduled move", ask(Request{Op: OpScheduled, Term: 7}), CodeScheduled},
		{"a move of another term that was scheduled", ask(Request{Op: OpScheduled, Term: 6}), CodeVoidRequest},
		{"a scheduled restart", ask(Request{Op: OpScheduledRestart, Term: 7, To: "ctl-a"}), CodeScheduled},
		{"a scheduled restart of another", ask(Request{Op: OpScheduledRestart, Term: 7, To: "ctl-b"}), CodeVoidRequest},
		{"a scheduled restart of another term", ask(Request{Op: OpScheduledRestart, Term: 6, To: "ctl-a"}), CodeVoidRequest},
		{"a scheduled move to the active", ask(Request{Op: OpScheduled, Term: 7, To: "ctl-a"}), CodeVoidRequest},
		{"restart", ask(Request{Op: OpRestart, Term: 7}), CodeRestart},
		{"restart by name", ask(Request{Op: OpRestart, Term: 7, To: "ctl-a"}), CodeRestart},
		{"restart of another", ask(Request{Op: OpRestart, Term: 7, To: "ctl-b"}), CodeVoidRequest},
		{"restart in another term", ask(Request{Op: OpRestart, Term: 6}), CodeVoidRequest},
		{"switchover to one on standby", standing, CodeVoidRequest},
		{"switchover to anybody, and only one on standby is ready", noneLeft, CodeVoidRequest},
		{"the holder itself is banned: it keeps what it has", selfStanding, CodeContinue},
		{"unknown operation", ask(Request{Op: "explode", Term: 7}), CodeVoidRequest},
		{"paused", paused, CodeContinue},
	} {
		t.Run(c.name, func(t *testing.T) {
			seen := Sightings{}.Observe(c.snap, 100*second)
			if d := DecideHolder(me, lease, 7, c.snap, seen, 101*second); d.Code != c.code {
				t.Errorf("got %+v, want %s", d, c.code)
			}
			if d := DecideHolder(me, lease, 7, c.snap, seen, (100 * second).Add(heirPatience)); c.code == CodeAwaitHeir && d.Code != CodeVoidRequest {
				t.Errorf("got %+v of a target that never came", d)
			}
		})
	}
}

// TestReasonOfARequestIsInTheHistory: the next reign begins with who asked for it, and why.
func TestReasonOfARequestIsInTheHistory(t *testing.T) {
	s := held("ctl-a", 7, 0)
	s.Controllers = []Controller{{Name: "ctl-b", Incarnation: "b1", State: StateReady}}
	s.Heir, s.HeirVersion = &Heir{Controller: "ctl-b", Incarnation: "b1", After: 7, Lease: "l", Validity: "4s"}, 3
	s.Request, s.RequestVer = &Request{Op: OpSwitchover, Term: 7, By: "ana", Reason: "new kernel"}, 5
	d := DecideHolder(Self{Name: "ctl-a"}, s.ActiveLease, 7, s, Sightings{}.Observe(s, second), second)
	if d.Why != "switchover (ana): new kernel" || WhyOf(d.Why) != WhySwitchover {
		t.Errorf("the reason is %q, which counts as %s", d.Why, WhyOf(d.Why))
	}
	v := vacant(Breadcrumb{Term: 7, Controller: "ctl-a", Mode: ModeStore, Validity: time.Second, Heirs: "ctl-a"})
	v.Request, v.RequestVer = &Request{Op: OpFailover, To: "ctl-b", Term: 7, Force: true, By: "ana", Reason: "ctl-a is lost"}, 5
	forced := Decide(Self{Name: "ctl-b", Fit: true}, defaults(t, ""), v, Sightings{}.Observe(v, second), 0, second)
	if forced.Reason != "failover by force (ana): ctl-a is lost" || WhyOf(forced.Reason) != WhyForced {
		t.Errorf("the reason is %q", forced.Reason)
	}
}

// TestHandOverStopsBeforeOneOnStandby: the holder learns of the wish before it releases, and does
// not hand its reign to a controller that must not have it.
func TestHandOverStopsBeforeOneOnStandby(t *testing.T) {
	s := held("ctl-a", 7, 0)
	s.Controllers = []Controller{{Name: "ctl-b", Incarnation: "b1", State: StateReady}}
	s.Heir, s.HeirVersion = &Heir{Controller: "ctl-b", Incarnation: "b1", After: 7, Lease: "l", Validity: "4s"}, 3
	me := Self{Name: "ctl-a"}
	if !Succeeds(me, 7, s) {
		t.Fatal("the heir is refused without a reason")
	}
	s.Standbys = Standbys{"ctl-b": {By: "ana"}}
	if Succeeds(me, 7, s) {
		t.Error("the reign is handed to one on standby")
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
		{"validity longer than anybody waits", func(t *Timing) { t.TTL, t.Validity = 2*time.Minute, time.Minute+1 }, "exceeds 1m0s"},
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
	b := Breadcrumb{Term: 7, Clean: true, Controller: "ctl-a", Incarnation: "x", Validity: 4 * time.Second, Heirs: "ctl-a,ctl-b", Reason: "ctl-a failed: validity=9s clean\nx"}
	got, err := DecodeBreadcrumb(b.Encode())
	b.Reason = "ctl-a failed: validity=9s clean x"
	if err != nil || got != b {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := DecodeBreadcrumb([]byte("12")); err != nil || got.Term != 12 || got.Clean {
		t.Errorf("a bare integer: %+v, %v", got, err)
	}
	for _, bad := range []string{
		"", "x", "-1 clean", "7 held validity=-4s", "7 held validity=4", "7 held debt=99h", "18446744073709551615", "9223372036854775806",
		"9007199254740992 held controller=a", "9007199254740991", "7 held reign=x",
	} {
		if _, err := DecodeBreadcrumb([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// TestKeyThatAStoreComesBackWithProvesNothing: until a holder has written, or for two TTLs.
func TestKeyThatAStoreComesBackWithProvesNothing(t *testing.T) {
	const s = Instant(time.Second)
	timing := Timing{TTL: 5 * time.Second, Silence: time.Second}
	held := Snapshot{Active: &Active{Controller: "ctl-a", Term: 7, State: StateServing}, ActiveLease: "l", ActiveVersion: 2, Breadcrumb: Breadcrumb{Term: 7, Controller: "ctl-a"}, TermVersion: 3}
	o := Sightings{}.Observe(held, 10*s)
	o = o.blinded(11*s, 20*s, timing).Observe(held, 20*s)
	if o.BeforeGap != 10*s || !o.InGap(21*s, timing) || o.InGap(31*s, timing) {
		t.Errorf("%+v", o)
	}
	if again := o.blinded(22*s, 25*s, timing).Observe(held, 25*s); again.BeforeGap != 10*s || again.GapEnd != 25*s {
		t.Errorf("a second gap soon after the first: %+v", again)
	}
	if later := o.Observe(held, 40*s).blinded(41*s, 45*s, timing); later.BeforeGap != 40*s {
		t.Errorf("a second gap long after the first: %+v", later)
	}
	held.TermVersion, held.Breadcrumb.Term, held.Active.Term = 4, 8, 8
	if o = o.Observe(held, 22*s); o.InGap(23*s, timing) {
		t.Errorf("a new reign counts as left over: %+v", o)
	}
}
