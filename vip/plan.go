package vip

import (
	"bytes"
	"fmt"
	"net"
	"time"

	"github.com/tanist/tanist/election"
)

// State is the known state of one address on this host.
type State string

// The states.
const (
	StateAbsent    State = "absent"    // not on this host, as desired
	StateHeld      State = "held"      // on this host, and no other host answers for it
	StateContested State = "contested" // on this host, and another host answers for it too
	StateForeign   State = "foreign"   // on this host, but Tanist did not add it
	StateFailed    State = "failed"    // should be on this host, but can't be
)

// Status is the state of one address, for people and for metrics.
type Status struct {
	Address
	State     State  `json:"state"`
	Why       string `json:"why,omitempty"` // the problem, and what to do about it
	By        string `json:"by,omitempty"`  // hardware address of another host that answers
	Announced uint64 `json:"announced"`     // gratuitous ARP, unsolicited neighbor advertisements
	Conflicts uint64 `json:"conflicts"`     // answers of other hosts while held
	Restored  uint64 `json:"restored"`      // additions after somebody else had removed it
}

// When an address is announced, from the instant at which it was taken. A neighbor may miss one
// announcement, and a switch may still be learning. After these it is announced every
// announceEvery.
var announceAt = [...]time.Duration{
	0, 20 * time.Millisecond, 60 * time.Millisecond, 150 * time.Millisecond, 400 * time.Millisecond,
	time.Second, 2 * time.Second, 5 * time.Second,
}

const (
	announceEvery = 30 * time.Second
	// lookFor is how long the keeper waits for an answer to a probe before it takes an address. On
	// a local network an answer takes a millisecond; later ones are still noticed.
	lookFor     = 50 * time.Millisecond
	lookEvery   = 15 * time.Millisecond // within lookFor
	lookKept    = 30 * time.Second      // how long a look is valid
	probeEvery  = 30 * time.Second      // while held
	probeSoon   = time.Second           // while contested, and after the address was taken
	settle      = 6 * time.Second       // without an answer for that long an address is uncontested
	defendEvery = time.Second           // limit on announcements that answer another host's
	longestLife = 10 * time.Second
	lifeMargin  = 300 * time.Millisecond // the kernel's timer may be that late
	retryEvery  = 200 * time.Millisecond
)

// link is a network interface.
type link struct {
	index int
	up    bool
	mac   net.HardwareAddr
}

// present is an address that the kernel has.
type present struct {
	Address
	mine bool          // Tanist added it
	life time.Duration // remaining, or forever
}

const forever = time.Duration(1<<63 - 1)

// view is the state of the kernel at one instant.
type view struct {
	links map[string]link
	there []present
}

func (v view) find(a Address) (present, bool) {
	for _, p := range v.there {
		if p.Interface == a.Interface && p.Prefix.Addr() == a.Prefix.Addr() {
			return p, true
		}
	}
	return present{}, false
}

// action is one operation on an address.
type action struct {
	kind actionKind
	Address
	life time.Duration // of add and renew
	mac  net.HardwareAddr
}

type actionKind int

const (
	actionAdd      actionKind = iota + 1
	actionRenew               // its lifetime
	actionRemove              // even with a prefix length other than configured
	actionAnnounce            // that it is here
	actionProbe               // ask who has it
)

// desk decides. It has no clock, kernel or network: facts go in, actions come out.
type desk struct {
	spots    []*spot
	holding  bool
	term     election.Term
	deadline election.Instant
	lapsed   election.Term // the highest term whose deadline has passed: it can't hold again
	looking  bool
}

// spot is the desk's state of one address.
type spot struct {
	Status
	lookedFrom election.Instant // first probe of this look; 0: none
	probeAt    election.Instant // next one
	takenAt    election.Instant // 0: not held
	rung       int              // next index of announceAt
	announceAt election.Instant
	defendAt   election.Instant // earliest next defence
	answeredAt election.Instant // last answer of another host
	ends       election.Instant // of its lifetime in the kernel
	retryAt    election.Instant // after a failure
}

func newDesk(addresses []Address) *desk {
	d := &desk{}
	for _, a := range addresses {
		d.spots = append(d.spots, &spot{Status: Status{Address: a, State: StateAbsent}})
	}
	return d
}

// inherit continues what an earlier keeper did, as far as it is known: before is its last report, or
// nil if it gave none. Then what it left in the kernel is held until the lifetimes there end. If it
// held nothing any more, nothing is held.
func (d *desk) inherit(now election.Instant, before *report, v view) {
	term, until := election.Term(0), election.Instant(0)
	switch {
	case before == nil:
		for _, s := range d.spots {
			if p, ok := v.find(s.Address); ok && p.mine && p.life != forever {
				until = max(until, now.Add(p.life))
			}
		}
	case before.Holding:
		term, until, d.lapsed = before.Term, before.Deadline, before.Lapsed
	default:
		d.lapsed = before.Lapsed
	}
	if until > 0 {
		d.adopt(now, term, until, v)
	}
}

// adopt takes over what an earlier keeper left, until a deadline.
func (d *desk) adopt(now election.Instant, term election.Term, deadline election.Instant, v view) {
	d.holding, d.term, d.deadline = true, term, deadline
	for _, s := range d.spots {
		if p, ok := v.find(s.Address); ok && p.mine {
			s.lookedFrom = 1 // it is held already
		} else {
			s.lookedFrom, s.probeAt = now, now
		}
	}
}

// look asks the network for holders of the addresses, ahead of a hold.
func (d *desk) look(now election.Instant) {
	d.looking = true
	for _, s := range d.spots {
		if s.takenAt == 0 && (s.lookedFrom == 0 || now.Sub(s.lookedFrom) > lookKept) {
			s.lookedFrom, s.probeAt, s.answeredAt, s.By = now, now, 0, ""
		}
	}
}

// hold reports whether the term may hold the addresses until deadline.
func (d *desk) hold(now election.Instant, term election.Term, deadline election.Instant) error {
	switch {
	case term <= d.lapsed:
		return fmt.Errorf("cannot hold the addresses for term %d: the deadline of term %d has passed", term, d.lapsed)
	case d.holding && term < d.term:
		return fmt.Errorf("cannot hold the addresses for term %d: they are held for term %d", term, d.term)
	case now >= deadline:
		return fmt.Errorf("cannot hold the addresses for term %d: its deadline has passed", term)
	}
	if d.holding && d.term == term {
		deadline = max(deadline, d.deadline)
	}
	for _, s := range d.spots {
		if s.takenAt == 0 && s.answeredAt != 0 {
			s.lookedFrom = 0 // the host that answered may have released it by now: ask again
		}
	}
	d.look(now)
	d.holding, d.term, d.deadline = true, term, deadline
	return nil
}

// extend moves the deadline of the term that holds. It never moves it back, and never one that has
// passed.
func (d *desk) extend(now election.Instant, term election.Term, deadline election.Instant) {
	d.expire(now)
	if d.holding && (d.term == term || d.term == 0) && deadline > d.deadline {
		d.deadline = deadline
	}
}

// release ends the hold and the look.
func (d *desk) release() {
	d.holding, d.looking = false, false
}

// expire ends a hold whose deadline has passed. It reports whether it did.
func (d *desk) expire(now election.Instant) bool {
	if !d.holding || now < d.deadline {
		return false
	}
	d.release()
	d.lapsed = max(d.lapsed, d.term)
	return true
}

// lifetime returns the lifetime for the kernel at a distance from the deadline.
func lifetime(left time.Duration) time.Duration {
	return min(max((left-lifeMargin).Truncate(time.Second), time.Second), longestLife)
}

// slack is how far a lifetime may run down before it is renewed.
func slack(life time.Duration) time.Duration {
	switch {
	case life <= time.Second:
		return 250 * time.Millisecond
	case life < 5*time.Second:
		return 500 * time.Millisecond
	}
	return life / 3
}

// plan returns the actions for now, and the latest time of the next plan.
func (d *desk) plan(now election.Instant, v view) (acts []action, next election.Instant) {
	d.expire(now)
	next = election.Never
	if d.holding {
		next = d.deadline
	}
	for _, s := range d.spots {
		more, soon := d.planOne(s, now, v)
		acts = append(acts, more...)
		next = min(next, soon)
	}
	return acts, next
}

func (d *desk) planOne(s *spot, now election.Instant, v view) (acts []action, next election.Instant) {
	l, known := v.links[s.Interface]
	p, there := v.find(s.Address)
	next = election.Never
	if !d.holding {
		s.takenAt, s.ends = 0, 0
		if !d.looking {
			s.lookedFrom = 0
		}
		if there && p.mine {
			return []action{{kind: actionRemove, Address: p.Address}}, now.Add(retryEvery)
		}
		d.describeAbsent(s, l, known, there)
		return d.probe(s, now, l, known, next)
	}
	switch {
	case !known:
		s.takenAt = 0
		s.fail("there is no interface %s on this host", s.Interface)
		return nil, next // the kernel reports when it appears
	case there && !p.mine:
		s.takenAt = 0
		s.State, s.Why = StateForeign, fmt.Sprintf("%s is on %s already, and Tanist did not add it: remove it with `ip addr del %s dev %s`",
			s.Prefix.Addr(), s.Interface, p.Prefix, s.Interface)
		return nil, next
	case there && p.Prefix != s.Prefix: // the configuration has changed
		return []action{{kind: actionRemove, Address: p.Address}}, now
	case !there && now < s.retryAt:
		return nil, s.retryAt
	case !there && !s.looked(now):
		return d.probe(s, now, l, known, s.lookedFrom.Add(lookFor))
	}
	life := lifetime(d.deadline.Sub(now))
	switch {
	case !there:
		if s.takenAt != 0 {
			s.Restored++
		}
		acts = append(acts, action{kind: actionAdd, Address: s.Address, life: life})
		s.taken(now)
	case s.takenAt == 0: // from an earlier keeper
		s.taken(now)
		acts = append(acts, action{kind: actionRenew, Address: s.Address, life: life})
	case s.ends.Sub(now) < life-slack(life):
		acts = append(acts, action{kind: actionRenew, Address: s.Address, life: life})
	}
	if len(acts) > 0 {
		s.ends = now.Add(life)
	}
	next = min(next, s.ends.Add(-max(life/2, 500*time.Millisecond)).Add(time.Millisecond))
	next = max(next, now.Add(slack(life)))
	if !l.up {
		s.fail("interface %s is down", s.Interface)
		s.rung, s.announceAt = 0, now // announce when it is up
		return acts, next
	}
	if now >= s.announceAt {
		acts = append(acts, action{kind: actionAnnounce, Address: s.Address, mac: l.mac})
		s.Announced++
		if s.rung++; s.rung < len(announceAt) {
			s.announceAt = now.Add(announceAt[s.rung] - announceAt[s.rung-1])
		} else {
			s.announceAt = now.Add(announceEvery)
		}
	}
	next = min(next, s.announceAt)
	more, next := d.probe(s, now, l, known, next)
	s.describeHeld(now)
	return append(acts, more...), next
}

// looked reports whether the network has had time to answer.
func (s *spot) looked(now election.Instant) bool {
	return s.takenAt != 0 || s.answeredAt != 0 || s.lookedFrom != 0 && now.Sub(s.lookedFrom) >= lookFor
}

func (s *spot) taken(now election.Instant) {
	s.takenAt, s.rung, s.announceAt = now, 0, now
	s.probeAt = now.Add(probeSoon)
}

// failed records that the kernel refused an action.
func (s *spot) failed(now election.Instant, err error) {
	s.takenAt, s.ends, s.retryAt = 0, 0, now.Add(retryEvery)
	s.fail("%v", err)
}

func (s *spot) fail(format string, args ...any) {
	s.State, s.Why, s.By = StateFailed, fmt.Sprintf(format, args...), ""
}

// probe adds a probe if one is due.
func (d *desk) probe(s *spot, now election.Instant, l link, known bool, next election.Instant) ([]action, election.Instant) {
	if s.lookedFrom == 0 || !known || !l.up {
		return nil, next
	}
	if s.takenAt == 0 && now.Sub(s.lookedFrom) >= lookFor {
		return nil, next // enough for now
	}
	var acts []action
	if now >= s.probeAt {
		acts = append(acts, action{kind: actionProbe, Address: s.Address, mac: l.mac})
		every := probeEvery
		switch {
		case s.takenAt == 0:
			every = lookEvery
		case now.Sub(s.takenAt) < settle || s.answeredAt != 0 && now.Sub(s.answeredAt) < settle:
			every = probeSoon
		}
		s.probeAt = now.Add(every)
	}
	return acts, min(next, s.probeAt)
}

// describeAbsent explains what would prevent taking the address.
func (d *desk) describeAbsent(s *spot, l link, known, there bool) {
	s.By = ""
	switch {
	case there:
		s.State = StateForeign
		s.Why = fmt.Sprintf("%s is on %s, and Tanist did not add it: remove it", s.Prefix.Addr(), s.Interface)
	case !known:
		s.State, s.Why = StateAbsent, fmt.Sprintf("there is no interface %s on this host", s.Interface)
	case !l.up:
		s.State, s.Why = StateAbsent, fmt.Sprintf("interface %s is down", s.Interface)
	default:
		s.State, s.Why = StateAbsent, ""
	}
}

func (s *spot) describeHeld(now election.Instant) {
	if s.answeredAt != 0 && now.Sub(s.answeredAt) < settle {
		s.State = StateContested
		s.Why = fmt.Sprintf("%s answers for %s too: an earlier host whose processes are frozen, or one that has the address by mistake", s.By, s.Prefix.Addr())
		return
	}
	s.State, s.Why, s.By = StateHeld, "", ""
}

// heard processes a hardware address's claim to an address, and reports whether it matters.
func (d *desk) heard(now election.Instant, claim claim, v view) bool {
	for name, l := range v.links {
		if bytes.Equal(l.mac, claim.mac) && name != "lo" {
			return false // of this host
		}
	}
	matters := false
	for _, s := range d.spots {
		if s.Prefix.Addr() != claim.ip || s.lookedFrom == 0 {
			continue
		}
		matters = true
		s.answeredAt, s.By = now, claim.mac.String()
		if s.takenAt == 0 {
			continue
		}
		s.Conflicts++
		s.probeAt = min(s.probeAt, now.Add(probeSoon))
		if now >= s.defendAt {
			s.rung, s.announceAt, s.defendAt = 0, now, now.Add(defendEvery)
		}
	}
	return matters
}

// relink has every held address announced again: its interface came up, or is a new one.
func (d *desk) relink(now election.Instant, name string) {
	for _, s := range d.spots {
		if s.Interface == name && s.takenAt != 0 {
			s.rung, s.announceAt = 0, now
		}
	}
}

// statuses returns copies of the statuses.
func (d *desk) statuses() []Status {
	all := make([]Status, len(d.spots))
	for i, s := range d.spots {
		all[i] = s.Status
	}
	return all
}
