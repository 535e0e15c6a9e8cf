package election

import (
	"fmt"
	"slices"
	"time"
)

// Self is what a candidate knows of itself.
type Self struct {
	Name        string
	Incarnation string
	Priority    int
	NoFailover  bool   // never a candidate, unless a request names it
	Fit         bool   // its controller could be started now
	Unfit       string // if not Fit: why
}

// Sightings is what a candidate has observed over time, on its own clock. [Sightings.Observe] keeps it; it is a value.
type Sightings struct {
	known       bool
	Term        Term    // the highest term ever seen: the floor under a counter that was rewound
	termVersion Version // of the term key, of the present vacancy
	Vacant      bool
	VacantAt    Instant // the role key was first seen absent, for the present TermVersion
	OccupiedAt  Instant // the role key was last seen present
	Beat        Version
	BeatAt      Instant // the beat key was first seen at Beat
	StoppingAt  Instant // the holder was first seen to stop serving; zero while it serves
	request     Version
	RequestAt   Instant       // the present request was first seen
	Validity    time.Duration // of the last holder that was seen
	VouchedTo   string        // the holder that was promised to be left alone (see [Elector.StandBack])
	VouchedTill Instant       // until when
}

// Observe folds one snapshot in. at is the instant at which the reply had arrived: what a snapshot shows
// happened before it, so waits that begin at it are never too short.
func (o Sightings) Observe(s Snapshot, at Instant) Sightings {
	o.Term = max(o.Term, s.Breadcrumb.Term)
	if s.Active != nil {
		o.Term = max(o.Term, s.Active.Term)
	}
	if s.Breadcrumb.Validity > 0 {
		o.Validity = s.Breadcrumb.Validity
	}
	switch {
	case !s.Vacant():
		o.Vacant, o.OccupiedAt = false, at
		if s.Active.Serving() {
			o.StoppingAt = 0
		} else if o.StoppingAt == 0 {
			o.StoppingAt = at
		}
	case !o.Vacant || o.termVersion != s.TermVersion:
		o.Vacant, o.VacantAt = true, at
	}
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

// Blinded says that the store could not be read since from until the snapshot that is observed next. A holder can't be heard
// while nobody can, so a silence of that kind is counted anew if it was as long as one that deposes.
func (o Sightings) Blinded(from, now Instant, silence time.Duration) Sightings {
	if silence > 0 && now.Sub(from) >= silence {
		o.known = false // the beat is seen for the first time
	}
	return o
}

// Code names the reason of a decision; logs, the CLI and metrics share it.
type Code string

// The codes of a candidate's decisions.
const (
	CodeClaim       Code = "claim"            // may claim now
	CodeHeld        Code = "lease-held"       // another holds the lease
	CodePaused      Code = "paused"           // the cluster is paused
	CodeUnfit       Code = "unfit"            // this controller could not be started
	CodeNoFailover  Code = "nofailover"       // this controller is never a candidate
	CodeRequested   Code = "requested"        // a planned move names another
	CodeHoldOff     Code = "hold-off"         // gave the lease up a short while ago
	CodePriority    Code = "priority"         // another fit passive is asked first
	CodeStranger    Code = "stranger"         // the role key is there but bound to no lease
	CodeUnreadable  Code = "unreadable"       // the role key can't be read
	CodeVouched     Code = "vouched"          // promised a holder that lost the store to leave it alone
	CodeUnlisted    Code = "unlisted"         // the last holder did not know this passive, and may go on without the store
	CodeStoreAway   Code = "store-away"       // the store can't be reached
	CodeLost        Code = "lease-lost"       // holder: the role key is not ours any more
	CodePlanned     Code = "planned"          // holder: a planned move was asked for
	CodeVoidRequest Code = "request-void"     // holder: a request that can't be carried out
	CodeKeep        Code = "keep"             // holder: nothing to do
	CodeDuplicate   Code = "duplicate-name"   // another live process has this name
	CodeHealth      Code = "health"           // holder: the controller failed
	CodeShutdown    Code = "sidecar-shutdown" // holder: the sidecar was told to end
	CodeDetach      Code = "detach"           // holder: the sidecar was told to leave its controller to its successor
)

// Decision is what a candidate does next.
type Decision struct {
	Code Code
	Why  string // one sentence, for people

	Claim     bool
	Silent    Version // claim by silence: precondition on the beat key
	Term      Term    // the term to claim
	NotBefore Instant // the controller may not be started earlier: the old holder's possible validity
	Reason    string  // why the reign begins

	Remove bool    // remove the role key (a stranger's) if it still is as it was read, then look again
	Until  Instant // look again then, at the latest; zero: at the next hint or re-read
}

// Priorities are asked in steps of so much.
const priorityStep = 150 * time.Millisecond

// Decide tells a candidate what to do. It is pure: the same view always gives the same decision. holdOff is the instant
// before which the candidate leaves a vacancy to others (after it yielded, or failed to start its controller).
func Decide(self Self, timing Timing, snap Snapshot, seen Sightings, holdOff, now Instant) Decision {
	crumb := snap.Breadcrumb
	d := Decision{Term: max(seen.Term, crumb.Term) + 1}
	wait := func(code Code, until Instant, format string, args ...any) Decision {
		d.Code, d.Why, d.Until = code, fmt.Sprintf(format, args...), until
		return d
	}
	if snap.Pause != nil {
		return wait(CodePaused, 0, "the cluster is paused by %s", snap.Pause.By)
	}
	named := snap.Request != nil && snap.Request.Term == crumb.Term && snap.Request.To == self.Name
	if self.NoFailover && !named {
		return wait(CodeNoFailover, 0, "nofailover is set for %s", self.Name)
	}
	if !self.Fit {
		return wait(CodeUnfit, 0, "%s is not fit: %s", self.Name, self.Unfit)
	}

	if now < seen.VouchedTill {
		return wait(CodeVouched, seen.VouchedTill, "%s can't reach the store and was promised to be left alone", seen.VouchedTo)
	}

	if !snap.Vacant() {
		return decideHeld(d, self, timing, snap, seen, now, wait)
	}

	// Vacant. Who is asked first?
	if r := snap.Request; r != nil && r.Term == crumb.Term && !named {
		until := seen.RequestAt.Add(r.For)
		switch {
		case now >= until: // nobody carried it out; anybody may
		case r.To != "":
			return wait(CodeRequested, until, "%s asked for a move to %s", r.By, r.To)
		case crumb.Controller == self.Name:
			return wait(CodeRequested, until, "%s asked for a move away from %s", r.By, self.Name)
		}
	}
	// Whoever asks for a move away wants another to have it, also one that failed a short while ago.
	wanted := named || (snap.Request != nil && snap.Request.Term == crumb.Term && snap.Request.To == "" && crumb.Controller != self.Name)
	// A holder that died did not choose the moment: then even one that failed a short while ago is better than nobody.
	died := !crumb.Clean && crumb.Controller != self.Name
	if !wanted && !died && now < holdOff {
		return wait(CodeHoldOff, holdOff, "%s gave the lease up and leaves it to others", self.Name)
	}
	if !named {
		if first, ahead := askedFirst(self, snap.Controllers); ahead > 0 {
			if until := seen.VacantAt.Add(time.Duration(ahead) * priorityStep); now < until {
				return wait(CodePriority, until, "%s has a higher priority", first)
			}
		}
	}

	d.Code, d.Claim, d.Why = CodeClaim, true, "the role key is absent"
	mine := crumb.Incarnation == self.Incarnation && self.Incarnation != ""
	switch {
	case crumb.Term == 0 && seen.Term == 0:
		d.Reason = "first start"
	case crumb.Clean && crumb.Term == seen.Term:
		d.Reason = crumb.Reason
	case mine:
		// Our own reign, which was undone before we came to be a candidate again; only its release was not acknowledged.
		d.Reason = "lease lost by " + self.Name
	default:
		validity := max(crumb.Validity, seen.Validity)
		if validity == 0 {
			validity = timing.Validity
		}
		d.NotBefore = seen.VacantAt.Add(Outlast(validity))
		d.Reason = fmt.Sprintf("the lease of %s ended", or(crumb.Controller, "another"))
	}
	return d
}

// decideHeld is Decide while the role key is there.
func decideHeld(d Decision, self Self, timing Timing, snap Snapshot, seen Sightings, now Instant,
	wait func(Code, Instant, string, ...any) Decision,
) Decision {
	if snap.ActiveLease == "" {
		// Nobody can renew it and nothing will ever remove it, so it is no lease. Whoever held the lease before it
		// was overwritten finds that out with its next renewal and stops by the end of its validity, which the
		// vacancy that follows is waited out for.
		d = wait(CodeStranger, 0, "the role key is bound to no lease: somebody wrote it by hand")
		d.Remove = true
		return d
	}
	if snap.ActiveBad != nil {
		return wait(CodeUnreadable, 0, "%v", snap.ActiveBad)
	}
	holder := snap.Active.Controller
	if !timing.Beat || snap.Beat == 0 {
		return wait(CodeHeld, 0, "%s holds the lease, term %d", holder, snap.Active.Term)
	}
	silence := max(timing.Silence, Outlast(snap.Breadcrumb.Validity))
	until := seen.BeatAt.Add(silence)
	if now < until {
		return wait(CodeHeld, until, "%s holds the lease, term %d", holder, snap.Active.Term)
	}
	if first, ahead := askedFirst(self, snap.Controllers, holder); ahead > 0 {
		if until = until.Add(time.Duration(ahead) * priorityStep); now < until {
			return wait(CodePriority, until, "%s has a higher priority", first)
		}
	}
	d.Code, d.Claim, d.Silent = CodeClaim, true, snap.Beat
	d.Why = fmt.Sprintf("%s has been silent for %v", holder, now.Sub(seen.BeatAt).Round(time.Millisecond))
	d.Reason = fmt.Sprintf("%s went silent", holder)
	return d
}

// DecideHeir tells a passive whether it would take the reign that it sees, the moment its holder had released it: then it offers
// itself to be handed the reign. Only while a move is near, because the holder is stopping or was asked to. It is pure.
func DecideHeir(self Self, timing Timing, snap Snapshot, seen Sightings, holdOff, now Instant) bool {
	a := snap.Active
	if a == nil || snap.ActiveLease == "" || a.Incarnation == self.Incarnation || a.Term != snap.Breadcrumb.Term {
		return false
	}
	if a.State != StateStopping && (snap.Request == nil || snap.Request.Term != a.Term) {
		return false
	}
	after := snap
	after.Active, after.ActiveLease, after.ActiveVersion = nil, "", 0
	after.Breadcrumb.Clean = true
	d := Decide(self, timing, after, seen.Observe(after, now), holdOff, now)
	return d.Claim && d.NotBefore == 0
}

// Succeeds reports whether the heir in a snapshot is one whom a holder, done with its reign, may hand it to: one that is fit,
// and whom nothing that was asked for speaks against. It is pure.
func Succeeds(self Self, term Term, snap Snapshot) bool {
	h, r := snap.Heir, snap.Request
	if h == nil || h.After != term || h.Controller == self.Name || snap.Pause != nil {
		return false
	}
	if r != nil && r.Term == term && r.To != "" && r.To != h.Controller {
		return false
	}
	for _, c := range snap.Controllers {
		if c.Name == h.Controller {
			return c.Incarnation == h.Incarnation && c.State == StateReady && (!c.NoFailover || r != nil && r.Term == term && r.To == c.Name)
		}
	}
	return false
}

// AnotherFit reports whether there is any other controller that could take over.
func AnotherFit(self Self, snap Snapshot) bool {
	return slices.ContainsFunc(snap.Controllers, func(c Controller) bool { return c.Name != self.Name && c.Fit() })
}

// askedFirst returns how many fit controllers have a higher priority than self, and the first of them.
func askedFirst(self Self, all []Controller, not ...string) (first string, ahead int) {
	best := self.Priority
	for _, c := range all {
		if c.Name == self.Name || !c.Fit() || c.Priority <= self.Priority || (len(not) > 0 && c.Name == not[0]) {
			continue
		}
		ahead++
		if c.Priority > best {
			first, best = c.Name, c.Priority
		}
	}
	return first, ahead
}

// HolderDecision is what a holder does next.
type HolderDecision struct {
	Code    Code
	Why     string
	Request *Request // with CodePlanned and CodeVoidRequest
}

// DecideHolder tells a holder what a snapshot means for its reign. It is pure.
func DecideHolder(self Self, lease LeaseID, term Term, snap Snapshot) HolderDecision {
	switch {
	case snap.Vacant():
		return HolderDecision{Code: CodeLost, Why: "the role key vanished"}
	case snap.ActiveLease != lease:
		if snap.Active != nil {
			return HolderDecision{Code: CodeLost, Why: fmt.Sprintf("the role key is %s's, term %d", snap.Active.Controller, snap.Active.Term)}
		}
		return HolderDecision{Code: CodeLost, Why: "the role key was overwritten"}
	case snap.Request == nil || snap.Pause != nil:
		return HolderDecision{Code: CodeKeep}
	}
	r := snap.Request
	void := func(format string, args ...any) HolderDecision {
		return HolderDecision{Code: CodeVoidRequest, Why: fmt.Sprintf(format, args...), Request: r}
	}
	switch {
	case r.Op != "switchover":
		return void("request %s asks for %.40q, which this version does not know", r.ID, r.Op)
	case r.Term != term:
		return void("request %s is about term %d, this is term %d", r.ID, r.Term, term)
	case r.To == self.Name:
		return void("request %s asks for a move to %s, which is active", r.ID, r.To)
	}
	fit := 0
	for _, c := range snap.Controllers {
		if c.Name == self.Name || c.State != StateReady {
			continue
		}
		if c.Name == r.To || (r.To == "" && c.Fit()) {
			fit++
		}
	}
	if fit == 0 {
		return void("request %s asks for a move to %s, which is not ready", r.ID, or(r.To, "any passive"))
	}
	return HolderDecision{
		Code: CodePlanned, Request: r,
		Why: fmt.Sprintf("switchover (%s)", or(r.By, "unknown")),
	}
}

func or(s, alternative string) string {
	if s == "" {
		return alternative
	}
	return s
}
