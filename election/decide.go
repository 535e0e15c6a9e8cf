package election

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Self is what a candidate knows about itself.
type Self struct {
	Name        string
	Incarnation string
	Undone      string // the nonce of a reign of this side that is certainly undone, whatever the store has
	Priority    int
	NoFailover  bool   // never a candidate, unless a request names it
	Fit         bool   // its controller could be started now
	Unfit       string // why, if not Fit
}

// Sightings is what a candidate has observed over time, by its own clock. It is a value;
// [Sightings.Observe] updates it.
type Sightings struct {
	known       bool
	Term        Term    // the highest term ever seen, a floor if the counter is rewound
	RewoundAt   Instant // since when the term key has been seen below Term; zero: it is not
	Reign       Term    // the latest reign ever seen
	termVersion Version // of the term key, during the current vacancy
	Vacant      bool
	VacantAt    Instant // when the role key was first seen absent, for the current TermVersion
	OccupiedAt  Instant // when the role key was last seen present
	// When the role key was last seen present before the store was away, and when the store was back.
	// For a while after that, a role key that is there proves nothing about its holder: a store that
	// comes back may keep leases for another TTL.
	BeforeGap, GapEnd Instant
	Beat              Version
	BeatAt            Instant // when the beat key was first seen at Beat
	StoppingAt        Instant // when the holder was first seen to stop serving; zero while it serves
	request           Version
	RequestAt         Instant       // when the current request was first seen
	record            Breadcrumb    // of the last reign that was seen: its terms as they were seen first
	doubted           Version       // of the term key: a record that no holder has turned clean
	Validity          time.Duration // the longest of any holder that was seen
	Heirs             string        // those who may take over from it (see [Breadcrumb])
	ListenTill        Instant       // after an outage of the store for everybody: until then, a holder that continued without it may report first
	DebtTill          Instant       // until when a holder before the current reign may still act
	Origin            Origin        // the store that these sightings are of
	other             Origin        // the store that has taken its place; zero: none
	OtherTill         Instant       // until when a holder that the other store does not know may still act
	PromisedTo        string        // the holder that was promised the lease (see [Elector.Promise])
	PromisedTill      Instant       // the end of that promise
}

// Observe updates o with a snapshot. at is the instant when the reply had arrived. What a snapshot
// shows happened before it, so waits that begin at it are never too short.
func (o Sightings) Observe(s Snapshot, at Instant) Sightings {
	if !o.known || o.termVersion != s.TermVersion {
		o = o.owes(s.Breadcrumb, at)
	}
	if b := s.Breadcrumb; b.Controller != "" && b.Term >= o.Term { // a lost or handwritten record has no validity
		o.Heirs = b.Heirs
	}
	o.Term = max(o.Term, s.Breadcrumb.Term)
	// One transaction writes both, so a role key that contradicts a whole term record is forged.
	if s.Active != nil && s.Breadcrumb.Validity == 0 && s.Active.Term <= highestByHand {
		o.Term = max(o.Term, s.Active.Term)
	}
	switch {
	case s.TermBad != nil:
	case s.Breadcrumb.Term >= o.Term:
		o.RewoundAt = 0
	case o.RewoundAt == 0:
		o.RewoundAt = at
	}
	o = o.recognizes(s)
	o.Validity = max(o.Validity, s.Breadcrumb.Validity)
	if s.Breadcrumb.Validity == 0 { // the record is lost: those who are present may be configured as its holder was
		for _, c := range s.Controllers {
			if ttl, err := parseDuration(c.LeaseTTL); err == nil {
				o.Validity = max(o.Validity, min(ttl, LongestValidity))
			}
		}
	}
	switch {
	case !s.Vacant():
		o.Vacant, o.OccupiedAt = false, at
		if o.termVersion != s.TermVersion && at > o.GapEnd {
			o.GapEnd = 0 // a holder has written since the store was back
		}
		if s.Active.Serving() {
			o.StoppingAt = 0
		} else if o.StoppingAt == 0 {
			o.StoppingAt = at
		}
	case !o.Vacant || o.termVersion != s.TermVersion:
		o.Vacant, o.VacantAt = true, at
	}
	o = o.moved(s, at)
	o.termVersion = s.TermVersion
	if !o.known || s.Beat != o.Beat {
		o.Beat, o.BeatAt = s.Beat, at
	}
	if s.RequestVer != o.request {
		o.request, o.RequestAt = s.RequestVer, at
	}
	o.known = true
	return o
}

// recognizes updates o with a term record, for [Sightings.believed]. A record becomes clean in the
// transaction that removes the role key. One that is clean although the role key is bound to a
// lease, or that became clean after the role key was gone, was written by hand.
func (o Sightings) recognizes(s Snapshot) Sightings {
	b, before := s.Breadcrumb, o.record
	if b.Controller == "" {
		return o // lost, or a term that was set by hand
	}
	o.Reign = max(o.Reign, b.Of())
	same := b.Of() == before.Of()
	switch {
	case b.Clean && !s.Vacant() && s.ActiveLease != "",
		b.Clean && same && !before.Clean && s.Vacant() && o.Vacant && s.TermVersion != o.termVersion:
		o.doubted = s.TermVersion
	case s.TermVersion != o.termVersion:
		o.doubted = 0
	}
	o.record = b
	if same && before.Mode != "" { // the version before does not say all
		o.record = b.within(before)
	}
	return o
}

// within returns b as far as it agrees with what was first seen of the same reign, whose terms are
// fixed: a shorter validity, a beat or a mode that it did not have were written by hand.
func (b Breadcrumb) within(first Breadcrumb) Breadcrumb {
	b.Validity, b.Beat, b.Mode = max(b.Validity, first.Validity), b.Beat && first.Beat, first.Mode
	return b
}

// believed returns the term record of the last snapshot, as far as what was seen before bears it
// out. Its holder writes it right again, unless it is frozen.
func (o Sightings) believed(s Snapshot) Breadcrumb {
	b := s.Breadcrumb
	if b.Controller != "" && b.Of() == o.record.Of() && o.record.Mode != "" {
		b = b.within(o.record)
	}
	b.Clean = b.Clean && (o.doubted == 0 || o.doubted != s.TermVersion)
	return b
}

// owes updates the debt from a version of the term record that was first seen at at. An earlier
// debt is replaced only by a record that has a debt and is not of an older reign than one seen
// before. A record that was written by an older version or by hand, was lost or restored from a
// backup, proves nothing about it.
func (o Sightings) owes(b Breadcrumb, at Instant) Sightings {
	due := Instant(0)
	debt := b.Debt
	if b.Clean && b.Mode == "" && b.Controller != "" {
		// The previous version had no debt: its clean end proves nothing about earlier holders.
		debt = max(debt, b.Validity)
	}
	if debt > 0 {
		due = at.Add(Outlast(debt))
	}
	if b.Mode == "" || b.Term < o.Term {
		due = max(due, o.DebtTill)
	}
	o.DebtTill = due
	return o
}

// moved updates the identity of the store. A store that was restored from a backup may not know the
// last holder, whatever its records contain, so that holder's validity is waited out. Only then is
// the new identity recorded: a process that ends before leaves the whole wait to the next.
func (o Sightings) moved(s Snapshot, at Instant) Sightings {
	switch is := s.Origin; {
	case is == (Origin{}):
	case is.continues(o.Origin):
		o.Origin, o.other = is, Origin{}
	case o.other == (Origin{}) || !is.continues(o.other):
		o.other, o.OtherTill = is, at.Add(Outlast(max(s.Breadcrumb.Validity, o.Validity, assumedValidity)))
	case at >= o.OtherTill:
		o.Origin, o.other = is, Origin{}
	}
	return o
}

// store returns the store of the last snapshot.
func (o Sightings) store() Origin {
	if o.other != (Origin{}) {
		return o.other
	}
	return o.Origin
}

// Outlived returns the highest term ever seen, if the counter has been below it for so long that no
// holder of that term can act any more. Otherwise it returns zero.
func (o Sightings) Outlived(s Snapshot, timing Timing, now Instant) Term {
	if o.RewoundAt == 0 || s.TermBad != nil || now < o.RewoundAt.Add(Outlast(o.validity(s.Breadcrumb, timing))) {
		return 0
	}
	return o.Term
}

// blinded records that the store was unreadable from from until the snapshot that is observed next.
// Meanwhile a holder's beat could not be seen. If the outage was long enough to allow a claim, the
// silence is counted anew.
func (o Sightings) blinded(from, now Instant, timing Timing) Sightings {
	if timing.Silence > 0 && now.Sub(from) >= timing.Silence {
		o.known = false // the beat counts as seen for the first time
	}
	if !o.InGap(from, timing) { // otherwise one gap follows the other
		o.BeforeGap = o.OccupiedAt
	}
	o.GapEnd = now
	return o
}

// InGap reports whether what was seen at an instant may be left from before the store was away.
func (o Sightings) InGap(at Instant, timing Timing) bool {
	return o.GapEnd != 0 && at.Sub(o.GapEnd) <= 2*timing.TTL
}

// Code identifies the reason for a decision. Logs, the CLI and metrics share it.
type Code string

// The codes of a candidate's decisions.
const (
	CodeClaim       Code = "claim"            // may claim now
	CodeHeld        Code = "lease-held"       // another holds the lease
	CodePaused      Code = "paused"           // the cluster is paused
	CodeUnfit       Code = "unfit"            // this controller could not be started
	CodeNoFailover  Code = "nofailover"       // this controller is configured never to be a candidate
	CodeRequested   Code = "requested"        // a planned move names another
	CodeStandby     Code = "standby"          // an operator does not want this controller to become active
	CodeHoldOff     Code = "hold-off"         // gave the lease up recently
	CodePriority    Code = "priority"         // another fit passive has a higher priority
	CodeDead        Code = "confirmed-dead"   // an operator confirmed that the holder is dead
	CodeStranger    Code = "stranger"         // the role key exists but is bound to no lease
	CodeUnreadable  Code = "unreadable"       // the role key is unreadable
	CodePromised    Code = "promised"         // promised a holder without a store not to claim
	CodeListening   Code = "listening"        // the store was away: a holder that continued without it may report first
	CodeUnlisted    Code = "unlisted"         // the last holder did not list this passive, and may continue without the store
	CodeStoreAway   Code = "store-away"       // the store is unreachable
	CodeLost        Code = "lease-lost"       // holder: the role key is no longer ours
	CodeRestart     Code = "restart"          // holder: a restart in place was requested
	CodeScheduled   Code = "scheduled"        // holder: a planned move is scheduled
	CodePlanned     Code = "planned"          // holder: a planned move was requested
	CodeVoidRequest Code = "request-void"     // holder: a request that cannot be carried out
	CodeContinue    Code = "continue"         // holder: nothing to do
	CodeDuplicate   Code = "duplicate-name"   // another live process has this name
	CodeHealth      Code = "health"           // holder: the controller failed
	CodeShutdown    Code = "sidecar-shutdown" // holder: the sidecar is shutting down
	CodeDetach      Code = "detach"           // holder: the sidecar leaves its controller to the next process
	CodeAwaitHeir   Code = "await-heir"       // holder: a planned move waits for its target's offer
	CodeRaceLost    Code = "race-lost"        // another claimed first
	CodeNotClaimed  Code = "not-claimed"      // the store did not carry out a claim, as far as is known
)

// Decision is what a candidate does next.
type Decision struct {
	Code Code
	Why  string // one sentence, for people

	Claim     bool
	Silent    Version // for a claim on silence: the precondition on the beat key
	Term      Term    // the term to claim
	NotBefore Instant // the controller must not be started earlier, because an old holder may still act
	Owed      Instant // NotBefore as far as holders before the last one are concerned
	Forced    bool    // an operator forced it
	Confirmed string  // the operator who confirmed that the last holder is dead; empty: it was waited out
	Reason    string  // why the reign begins

	Remove bool    // remove the role key, of a stranger or of a holder that is confirmed dead, if it is still as it was read; then read again
	Until  Instant // decide again then, at the latest; zero: at the next hint or re-read
}

// priorityStep is how much longer each lower priority waits.
const priorityStep = 150 * time.Millisecond

// Decide returns what a candidate must do. It is pure: the same arguments always give the same
// decision. Before the instant holdOff, the candidate leaves a vacancy to others (after it yielded,
// or failed to start its controller).
func Decide(self Self, timing Timing, snap Snapshot, seen Sightings, holdOff, now Instant) Decision {
	snap.Breadcrumb = seen.believed(snap)
	crumb := snap.Breadcrumb
	d := Decision{Term: max(seen.Term, crumb.Term) + 1}
	wait := func(code Code, until Instant, format string, args ...any) Decision {
		d.Code, d.Why, d.Until = code, fmt.Sprintf(format, args...), until
		return d
	}
	if d.Term > MaxTerm {
		return wait(CodeUnreadable, 0, "the term key has %d, the highest possible term: set it to a lower one by hand, not below the repository's", crumb.Term)
	}
	// A pause changes nothing: the last holder may have its reign back, nobody else begins one.
	if snap.Pause != nil && (!snap.Vacant() || crumb.Controller != self.Name) {
		return wait(CodePaused, 0, "the cluster is paused by %s", snap.Pause.By)
	}
	request := snap.Request
	if request != nil && (request.Term != crumb.Of() || !request.moves()) {
		request = nil // for another reign, or nothing that a candidate acts on
	}
	named := request != nil && request.To == self.Name
	if why, on := snap.standsBy(self.Name, named && request.Force); on {
		return wait(CodeStandby, 0, "%s", why)
	}
	if self.NoFailover && !named {
		return wait(CodeNoFailover, 0, "nofailover is set for %s", self.Name)
	}
	if !self.Fit {
		return wait(CodeUnfit, 0, "%s is not fit: %s", self.Name, self.Unfit)
	}

	if now < seen.PromisedTill {
		return wait(CodePromised, seen.PromisedTill, "%s cannot reach the store, and was promised its lease", seen.PromisedTo)
	}

	if !snap.Vacant() {
		return decideHeld(d, self, timing, snap, seen, now, wait, named && request.Force)
	}

	if _, gone := snap.certified(crumb); !gone && !crumb.Clean && now < seen.ListenTill {
		return wait(CodeListening, seen.ListenTill, "the store was away, and %s may have continued without it", or(crumb.Controller, "the last holder"))
	}

	// The lease is vacant. The candidates' order follows.
	if request != nil && !named {
		until := max(seen.RequestAt, seen.VacantAt).Add(min(request.For, targetPatience))
		switch {
		case now >= until: // nobody carried it out, so anybody may
		case request.To != "" && isReady(snap.Controllers, request.To):
			return wait(CodeRequested, until, "%s requested a move to %s", request.By, request.To)
		case request.To == "" && crumb.Controller == self.Name && anotherFit(self, snap):
			return wait(CodeRequested, until, "%s requested a move away from %s", request.By, self.Name)
		}
	}
	// A request to move away is carried out even by a candidate that failed recently.
	wanted := named || (request != nil && request.To == "" && crumb.Controller != self.Name)
	// A holder that died did not choose the moment: then even a candidate that failed recently is
	// better than none.
	died := !crumb.Clean && crumb.Controller != self.Name
	if !wanted && !died && now < holdOff {
		return wait(CodeHoldOff, holdOff, "%s gave up the lease and leaves it to others", self.Name)
	}
	if !named {
		if first, ahead := askedFirst(self, snap.Controllers, ""); ahead > 0 {
			if until := seen.VacantAt.Add(time.Duration(ahead) * priorityStep); now < until {
				return wait(CodePriority, until, "%s has a higher priority", first)
			}
		}
	}

	d.Forced = named && request.Force
	if d.Forced {
		d.Reason = ForcedReason + " " + request.author()
	}
	return d.claimVacant(self, timing, snap, seen, now)
}

// claimVacant returns the claim of a lease that nobody holds. A forced one has its reason already.
func (d Decision) claimVacant(self Self, timing Timing, snap Snapshot, seen Sightings, now Instant) Decision {
	crumb, forced := snap.Breadcrumb, d.Reason
	d.Code, d.Claim, d.Why = CodeClaim, true, "the role key is absent"
	d.NotBefore = seen.dueAfter(now)
	d.Owed = d.NotBefore
	dead, certified := snap.certified(crumb)
	certified = certified && crumb.Term >= seen.Term && !crumb.Clean
	switch {
	case crumb.Term == 0 && seen.Term == 0 && snap.TermBad == nil:
		d.Reason = firstReason
	case crumb.Clean && crumb.Term >= seen.Term:
		d.Reason = crumb.Reason
	case certified:
		d.Reason, d.Confirmed = dead.words(), dead.By
	case crumb.Nonce != "" && crumb.Nonce == self.Undone:
		// Our own reign is undone; only its release was not acknowledged.
		d.Reason = "lease lost by " + self.Name
	default:
		d.NotBefore = max(d.NotBefore, seen.VacantAt.Add(Outlast(seen.validity(crumb, timing))))
		d.Reason = fmt.Sprintf("the lease of %s ended", or(crumb.Controller, "another"))
	}
	if d.Forced {
		d.Reason = forced
	}
	if released := crumb.Clean && crumb.Term >= seen.Term; released || certified || d.Forced {
		return d
	}
	return d.entitled(self, seen.Heirs, or(crumb.Controller, "the last holder"))
}

// entitled returns d, unless it is the claim of a candidate that the last holder did not list: then
// it returns the decision not to claim.
func (d Decision) entitled(self Self, heirs, holder string) Decision {
	if heirs == "" || isHeir(heirs, self.Name) {
		return d
	}
	return Decision{Code: CodeUnlisted, Term: d.Term, Why: fmt.Sprintf(
		"%s may continue without the store, and did not list this passive: `tanist failover --force` takes over all the same", holder)}
}

// dueAfter returns the end of the debt, or zero if there is none.
func (o Sightings) dueAfter(now Instant) Instant {
	if due := max(o.DebtTill, o.OtherTill); due > now {
		return due
	}
	return 0
}

// ForcedReason begins the reason of a reign that an operator has forced.
const ForcedReason = "failover by force"

// targetPatience is how long the others leave a vacancy to the target of a request. A target that has
// not claimed by then has vanished.
const targetPatience = 5 * time.Second

func isReady(all []Controller, name string) bool {
	return slices.ContainsFunc(all, func(c Controller) bool { return c.Name == name && c.State == StateReady })
}

// decideHeld is Decide while the role key exists.
func decideHeld(d Decision, self Self, timing Timing, snap Snapshot, seen Sightings, now Instant,
	wait func(Code, Instant, string, ...any) Decision, force bool,
) Decision {
	if snap.ActiveLease == "" {
		// Nobody can renew it and nothing will ever remove it, so it is no lease. A holder that was
		// overwritten learns it with its next renewal and stops by the end of its validity, which
		// the following vacancy waits out.
		d = wait(CodeStranger, 0, "the role key is bound to no lease: somebody wrote it by hand")
		d.Remove = true
		return d
	}
	if snap.ActiveBad != nil {
		return wait(CodeUnreadable, 0, "%v", snap.ActiveBad)
	}
	holder := snap.Active.Controller
	if dead, gone := snap.certified(snap.Breadcrumb); gone && holder == dead.Controller && self.Name != holder {
		d = wait(CodeDead, 0, "%s confirmed that %s is dead", dead.By, holder)
		d.Remove = true
		return d
	}
	if snap.Beat == 0 || !beats(timing, snap.Breadcrumb) {
		return wait(CodeHeld, 0, "%s holds the lease, term %d", holder, snap.Active.Term)
	}
	silence := max(timing.Silence, Outlast(seen.validity(snap.Breadcrumb, timing)))
	until := seen.BeatAt.Add(silence)
	if now < until {
		return wait(CodeHeld, until, "%s holds the lease, term %d", holder, snap.Active.Term)
	}
	if first, ahead := askedFirst(self, snap.Controllers, holder); ahead > 0 {
		if until = until.Add(time.Duration(ahead) * priorityStep); now < until {
			return wait(CodePriority, until, "%s has a higher priority", first)
		}
	}
	d.Code, d.Claim, d.Silent, d.NotBefore = CodeClaim, true, snap.Beat, seen.dueAfter(now)
	d.Owed = d.NotBefore
	d.Why = fmt.Sprintf("%s has been silent for %v", holder, now.Sub(seen.BeatAt).Round(time.Millisecond))
	d.Reason = fmt.Sprintf("%s went silent", holder)
	if force {
		d.Forced, d.Reason = true, ForcedReason+" "+snap.Request.author()
		return d
	}
	return d.entitled(self, seen.Heirs, holder)
}

// beats reports whether the holder writes beats, so that its silence means something. Records of
// older versions do not have this; then our own timing decides.
func beats(timing Timing, b Breadcrumb) bool {
	if b.Mode == "" {
		return timing.Beat
	}
	return b.Beat && timing.Silence > 0
}

// assumedValidity is the assumed validity of a holder whose term record is lost. No profile has a
// longer one.
const assumedValidity = 10 * time.Second

// validity returns how long the holder in b may act after its last renewal. A record that was lost,
// written by hand or restored from a backup does not have it, and the last known holder need not be
// the last one.
func (o Sightings) validity(b Breadcrumb, timing Timing) time.Duration {
	if b.Validity > 0 && b.Term >= o.Term {
		return b.Validity
	}
	return max(b.Validity, o.Validity, timing.Validity, assumedValidity)
}

// DecideHeir returns whether a passive would take over at once if the holder released its reign
// now. If so, it offers itself as heir. It does so only while a move is near, because the holder is
// stopping or was asked to. It is pure.
func DecideHeir(self Self, timing Timing, snap Snapshot, seen Sightings, holdOff, now Instant) bool {
	a := snap.Active
	if a == nil || snap.ActiveLease == "" || a.Incarnation == self.Incarnation || a.Term != snap.Breadcrumb.Of() || snap.TermBad != nil {
		return false
	}
	if !snap.Request.moves() {
		snap.Request = nil
	}
	if a.State != StateStopping && (snap.Request == nil || snap.Request.Term != a.Term) {
		return false
	}
	if r := snap.Request; r != nil && r.Term == a.Term && r.To != "" && r.To != self.Name {
		return false
	}
	after := snap
	after.Active, after.ActiveLease, after.ActiveVersion = nil, "", 0
	after.Breadcrumb.Clean = true
	then := seen.Observe(after, now)
	then.VacantAt = now
	if seen.StoppingAt != 0 {
		then.VacantAt = seen.StoppingAt // those with a higher priority have had the time since then to make an offer
	}
	if snap.Request != nil {
		then.VacantAt = min(then.VacantAt, seen.RequestAt)
	}
	d := Decide(self, timing, after, then, holdOff, now)
	return d.Claim && d.NotBefore == 0
}

// offered reports whether the heir key has an offer that the holder of term could accept. If not,
// another offer may overwrite it.
func offered(self Self, lease LeaseID, term Term, snap Snapshot) bool {
	h := snap.Heir
	if h == nil || h.After != term || (h.Controller == self.Name && h.Lease != lease) || !h.meets(snap.Request, term) {
		return false
	}
	return slices.ContainsFunc(snap.Controllers, func(c Controller) bool { return c.Name == h.Controller && c.Incarnation == h.Incarnation })
}

// Succeeds reports whether a holder that has ended its reign may hand it to the heir in a snapshot:
// the heir is fit, and no request contradicts it. It is pure.
func Succeeds(self Self, term Term, snap Snapshot) bool {
	h, r := snap.Heir, snap.Request
	if h == nil || h.After != term || h.Controller == self.Name || snap.Pause != nil || !h.meets(r, term) {
		return false
	}
	if r != nil && r.Term == term && r.To != "" && r.To != h.Controller {
		return false
	}
	if _, on := snap.standsBy(h.Controller, false); on {
		return false
	}
	for _, c := range snap.Controllers {
		if c.Name == h.Controller {
			return c.Incarnation == h.Incarnation && c.State == StateReady && (!c.NoFailover || r != nil && r.Term == term && r.To == c.Name)
		}
	}
	return false
}

// anotherFit reports whether another controller could take over.
func anotherFit(self Self, snap Snapshot) bool {
	return slices.ContainsFunc(snap.Controllers, func(c Controller) bool { return c.Name != self.Name && c.Fit() })
}

// Successors returns the controllers that are fit to take over from holder, in the order in which
// they are asked: a higher priority first. Those of one priority are asked at the same time.
func Successors(all []Controller, holder string) []Controller {
	fit := slices.DeleteFunc(slices.Clone(all), func(c Controller) bool { return c.Name == holder || !c.Fit() })
	slices.SortStableFunc(fit, func(a, b Controller) int { return cmp.Compare(b.Priority, a.Priority) })
	return fit
}

// askedFirst returns how many of holder's successors are asked before self, and the name of the
// first.
func askedFirst(self Self, all []Controller, holder string) (first string, ahead int) {
	for _, c := range Successors(all, holder) {
		if c.Name != self.Name && c.Priority > self.Priority {
			first = or(first, c.Name)
			ahead++
		}
	}
	return first, ahead
}

// HolderDecision is what a holder does next.
type HolderDecision struct {
	Code    Code
	Why     string
	Request *Request // with CodePlanned, CodeScheduled, CodeRestart and CodeVoidRequest
}

// heirPatience is how long a holder with a request for a move waits for its heir's offer. It does
// not stop for a dead one.
const heirPatience = 3 * time.Second

// confirmedDead reports whether an operator confirmed that the holder of term is dead, though it reads
// this.
func confirmedDead(snap Snapshot, term Term) bool {
	dead, gone := snap.certified(snap.Breadcrumb)
	return gone && dead.Term == term
}

// DecideHolder returns what a snapshot means for a reign. It is pure.
func DecideHolder(self Self, lease LeaseID, term Term, snap Snapshot, seen Sightings, now Instant) HolderDecision {
	switch {
	case snap.Vacant():
		return HolderDecision{Code: CodeLost, Why: "the role key vanished"}
	case snap.ActiveLease != lease:
		if snap.Active != nil {
			return HolderDecision{Code: CodeLost, Why: fmt.Sprintf("the role key is %s's, term %d", snap.Active.Controller, snap.Active.Term)}
		}
		return HolderDecision{Code: CodeLost, Why: "the role key was overwritten"}
	case confirmedDead(snap, term):
		return HolderDecision{Code: CodeDead, Why: fmt.Sprintf("%s confirmed that %s is dead, and others act on it", snap.Dead.By, self.Name)}
	case snap.Request == nil && snap.RequestVer != 0:
		return HolderDecision{Code: CodeVoidRequest, Why: "the request key is unreadable", Request: &Request{Term: term, By: "unknown"}}
	case snap.Request == nil || snap.Pause != nil:
		return HolderDecision{Code: CodeContinue}
	}
	r := snap.Request
	void := func(format string, args ...any) HolderDecision {
		return HolderDecision{Code: CodeVoidRequest, Why: fmt.Sprintf(format, args...), Request: r}
	}
	switch {
	case r.Op == OpFailover && r.Term == term:
		return void("request %s asks for a failover from term %d, which has not ended", r.ID, r.Term)
	case r.Op == OpRestart && r.Term == term && (r.To == "" || r.To == self.Name):
		return HolderDecision{Code: CodeRestart, Request: r, Why: fmt.Sprintf("restart (%s)", or(r.By, "unknown"))}
	case r.becomes() != "" && r.Term == term && (r.Op == OpScheduledRestart) == (r.To == self.Name):
		return HolderDecision{Code: CodeScheduled, Request: r, Why: fmt.Sprintf("%s at %s (%s)", r.becomes(), r.At.UTC().Format(time.RFC3339), or(r.By, "unknown"))}
	case r.Op != OpSwitchover && r.Op != OpFailover && r.Op != OpRestart && r.becomes() == "":
		return void("request %s asks for %.40q, which this version does not know", r.ID, r.Op)
	case r.Term != term:
		return void("request %s is about term %d, this is term %d", r.ID, r.Term, term)
	case r.Op == OpRestart, r.Op == OpScheduledRestart:
		return void("request %s asks for a restart of %s, which is not active", r.ID, r.To)
	case r.To == self.Name:
		return void("request %s asks for a move to %s, which is active", r.ID, r.To)
	}
	if why, on := snap.standsBy(r.To, false); on {
		return void("request %s asks for a move to %s: %s", r.ID, r.To, why)
	}
	fit := 0
	for _, c := range snap.Controllers {
		if _, on := snap.standsBy(c.Name, false); on || c.Name == self.Name || c.State != StateReady {
			continue
		}
		if c.Name == r.To || (r.To == "" && c.Fit()) {
			fit++
		}
	}
	if fit == 0 {
		return void("request %s asks for a move to %s, which is not ready", r.ID, or(r.To, "any passive"))
	}
	if !Succeeds(self, term, snap) {
		if now >= seen.RequestAt.Add(heirPatience) {
			return void("request %s asks for a move to %s, which has not offered to take over within %v", r.ID, or(r.To, "any passive"), heirPatience)
		}
		return HolderDecision{Code: CodeAwaitHeir, Request: r, Why: fmt.Sprintf("waiting for the offer of %s", or(r.To, "a passive"))}
	}
	return HolderDecision{
		Code: CodePlanned, Request: r,
		Why: "switchover " + r.author(),
	}
}

func or(s, alternative string) string {
	if s == "" {
		return alternative
	}
	return s
}
