package election

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Supposition is something that has not happened.
type Supposition string

// What can be supposed. See [Foresee].
const (
	SupposeNothing  Supposition = "nothing"   // who takes over as it is, if anybody
	SupposeHostDies Supposition = "host-dies" // the holder's host is off, or cut off from the store
	SupposeRelease  Supposition = "release"   // the holder ends its reign clean: a planned move, or a controller that failed
)

// Outlook is what would happen.
type Outlook struct {
	// Next are those that would take over: one, or several that are asked at the same time, of which
	// the first to act wins. Empty: nobody would.
	Next  []string
	Term  Term          // of the next reign
	Claim time.Duration // until somebody has claimed the lease, at most
	Start time.Duration // until that one may start its controller, at most; then nothing of an older holder can act
	Why   string        // in one sentence: why Next may claim, or what keeps all
	// Others are those that would not, each with the reason.
	Others []Refusal
}

// Refusal is why a controller would not take over.
type Refusal struct {
	Name string
	Why  string
}

// Foresee returns what would happen in the situation of s if something else happened now. It asks
// [Decide] for each controller, at each moment at which something would change. It is pure. What it
// cannot know, it takes as the slowest: that the holder renewed just now, and that a debt was seen
// just now. It knows of the others what they publish, so it does not see a promise to the holder.
func Foresee(s Snapshot, timing Timing, store Traits, suppose Supposition) Outlook {
	f := foresight{snap: s, timing: timing, begin: Instant(24 * time.Hour), gone: endless}
	if s.Active != nil {
		f.holder = s.Active.Controller
	}
	f.seen = f.seen.Observe(s, f.begin)
	switch {
	case s.Vacant() || suppose == SupposeNothing:
	case suppose == SupposeRelease:
		f.release()
	default:
		ttl := s.Breadcrumb.TTL
		if ttl == 0 {
			ttl = timing.TTL
		}
		f.gone = f.begin.Add(ttl + store.ExpirySlack)
	}
	return f.run()
}

// endless is later than everything that is foreseen.
const endless = Instant(1<<63 - 1)

// foresight is the state of [Foresee].
type foresight struct {
	snap   Snapshot
	timing Timing
	seen   Sightings
	begin  Instant
	gone   Instant // when the holder's keys vanish
	holder string
}

// release makes the situation that of a clean end, by a holder that everybody saw stopping.
func (f *foresight) release() {
	f.leave()
	f.snap.Breadcrumb.Clean = true
	f.seen = f.seen.Observe(f.snap, f.begin)
}

// leave removes the holder's keys. Its status may remain: it is no candidate at first.
func (f *foresight) leave() {
	f.snap.Active, f.snap.ActiveLease, f.snap.ActiveVersion, f.snap.Beat = nil, "", 0, 0
}

// run plays on until somebody claims or nothing changes any more.
func (f *foresight) run() Outlook {
	var last []Refusal
	for now, steps := f.begin, 0; steps < 1000; steps++ {
		if now >= f.gone {
			f.leave()
			f.snap.Controllers = slices.DeleteFunc(slices.Clone(f.snap.Controllers), func(c Controller) bool { return c.Name == f.holder })
			f.gone = endless
		}
		f.seen = f.seen.Observe(f.snap, now)
		var claims []Decision
		var next []string
		last = nil
		soon := f.gone
		for _, c := range f.snap.Controllers {
			if c.Name == f.holder {
				continue
			}
			d := Decide(f.candidate(c), f.timing, f.snap, f.seen, f.holdOff(c), now)
			switch {
			case d.Claim:
				claims, next = append(claims, d), append(next, c.Name)
				continue
			case d.Remove:
				soon = min(soon, now+1)
				f.gone = soon
			case d.Until > now:
				soon = min(soon, d.Until)
			}
			last = append(last, Refusal{c.Name, d.Why})
		}
		if len(claims) > 0 {
			d := claims[0]
			return Outlook{Next: next, Term: d.Term, Claim: now.Sub(f.begin), Start: max(now, d.NotBefore).Sub(f.begin), Why: d.Why, Others: last}
		}
		if soon == endless {
			break
		}
		now = soon
	}
	why := "no passive is there"
	if len(last) > 0 {
		why = "no passive would take over"
	}
	return Outlook{Why: why, Others: last}
}

// candidate returns what c would decide with, as far as it is published.
func (f *foresight) candidate(c Controller) Self {
	s := Self{Name: c.Name, Incarnation: c.Incarnation, Priority: c.Priority, NoFailover: c.NoFailover, Fit: true}
	switch c.State {
	case StateUnfit, StateFailed:
		s.Fit, s.Unfit = false, or(c.Reason, string(c.State))
	}
	return s
}

// holdOff returns until when c leaves a vacancy to others. How long that is in truth only c knows.
func (f *foresight) holdOff(c Controller) Instant {
	if c.Cooling || c.State == StateYielding {
		return f.begin.Add(time.Hour)
	}
	return 0
}

// Words describes who would be next for people.
func (o Outlook) Words() string {
	switch len(o.Next) {
	case 0:
		return "nobody"
	case 1:
		return o.Next[0]
	}
	return fmt.Sprintf("%s (asked at the same time: the first to act wins)", strings.Join(o.Next, " or "))
}
