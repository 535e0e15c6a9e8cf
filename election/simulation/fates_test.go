package simulation

import (
	"fmt"
	"time"

	"github.com/tanist/tanist/election"
)

// fates decide what befalls the world. Each fault has a stream of choices of its own, so that one
// that is left out changes no other.
type fates struct {
	*world
	dice
	*course
}

// course is what all fates of one run share.
type course struct {
	plan     plan
	kinds    []kind
	bag      []int // of indices of kinds, each as often as its weight says
	backups  []func()
	settings []election.Timing
	skip     map[int]bool // faults that are left out, to make a run shorter
	count    int
	last     *host // that the last fault befell
	settled  int   // how often all faults have ended
}

// own returns fates with a stream of choices of their own.
func (f *fates) own(word string, n uint64) *fates {
	return &fates{world: f.world, course: f.course, dice: f.seed.of(word, n).dice("own")}
}

// draw returns a kind of fault.
func (f *fates) draw() kind { return f.kinds[f.bag[f.IntN(len(f.bag))]] }

// later lets something happen later, unless all faults have ended by then. world.mu is held.
func (f *fates) later(d time.Duration, do func()) {
	now := f.settled
	f.after(d, func() {
		if f.settled == now {
			do()
		}
	})
}

// plan is what kind of run a seed is.
type plan struct {
	consul  bool
	hosts   int
	beyond  bool
	long    bool          // leases of a minute
	days    bool          // hours between the bursts
	bursts  int           // of faults, with a quiet time after each
	faults  int           // in one burst
	between time.Duration // two faults, at most
	idle    time.Duration // after a quiet time, at most
	keep    bool          // on_store_loss: keep, which is beyond the guarantees
	alike   bool          // all have one policy
	policy  election.StoreLoss
	open    bool   // there is no repository, so that no fence hides what the election does
	apart   bool   // the clocks' rates are as far apart as is allowed
	style   string // which faults are frequent: of a group, "all", or "some" for a random subset
}

var styles = []string{"all", "all", "all", "some", "some", "some", "freeze", "restart", "store", "failsafe", "keys", "network", "guard", "people", "conjunctions"}

// planOf returns the kind of a seed's run.
func planOf(c chance) plan {
	p := plan{
		consul: c.of("store", 0).one(3), hosts: 2 + int(c.of("hosts", 0).in(2)), beyond: c.of("beyond", 0).one(8),
		long: c.of("long", 0).one(8), bursts: 8, faults: 20, between: 1200 * time.Millisecond, idle: 15 * time.Second,
		open: c.of("open", 0).one(4), apart: c.of("apart", 0).one(3), style: styles[c.of("style", 0).in(uint64(len(styles)))],
	}
	if p.long {
		p.between, p.days = 12*time.Second, !c.of("days", 0).one(4)
	}
	if p.days {
		if p.hosts > 2 && !c.of("hosts", 1).one(4) { // idle time costs as much as there are processes
			p.hosts = 2
		}
		p.bursts, p.idle = 6, 24*time.Hour
	}
	p.keep = p.beyond && c.of("keep", 0).one(3)
	p.alike, p.policy = c.of("alike", 0).one(2), election.StoreLossStop
	if c.of("alike", 1).one(2) {
		p.policy = election.StoreLossFailsafe
	}
	if p.style == "failsafe" {
		p.alike, p.policy, p.hosts = true, election.StoreLossFailsafe, 3
	}
	return p
}

// kind is one kind of fault. do returns what it did, or nothing; world.mu is held.
type kind struct {
	group  string
	weight int
	do     func(f *fates, h *host, d time.Duration) string
}

// bagOf fills a bag with the kinds of faults of a run.
func bagOf(p plan, c chance, all []kind) (bag []int) {
	for i, k := range all {
		n := k.weight
		switch c := c.of("kind", uint64(i)); {
		case p.style == "all":
		case k.group == p.style, p.style == "failsafe" && (k.group == "network" || k.group == "store" || k.group == "conjunctions"):
			n *= 4
		case c.one(2): // without these, more of the others meet
			n = 0
		case p.style == "some" && c.of("often", 0).one(4):
			n *= 4
		}
		for range n {
			bag = append(bag, i)
		}
	}
	if len(bag) == 0 {
		bag = []int{0}
	}
	return bag
}

// timings returns the timings that a configuration may have.
func timings(p plan) ([]election.Timing, error) {
	traits := election.TraitsOf("etcd")
	if p.consul {
		traits = election.TraitsOf("consul")
	}
	long := election.Timing{
		Profile: "long", TTL: time.Minute, Validity: 58 * time.Second, RenewEvery: 26 * time.Second, StopBudget: 4 * time.Second,
	}
	if p.consul {
		long.Beat, long.Silence = true, time.Minute
	}
	wide := long
	wide.Profile, wide.TTL, wide.Validity, wide.RenewEvery = "wide", 40*time.Second, 35*time.Second, 12*time.Second
	if wide.Beat {
		wide.Silence = 36 * time.Second
	}
	tight := long // almost no margin but that for the clocks
	tight.Profile, tight.StopBudget = "tight", 200*time.Millisecond
	all := []election.Timing{long, wide, tight}
	if !p.long {
		all = nil
		for _, name := range []string{election.ProfileDefault, election.ProfileFast} {
			t, err := traits.Profile(name)
			if err != nil {
				return nil, err
			}
			all = append(all, t)
		}
		tight := all[0]
		tight.Profile, tight.StopBudget = "tight", 160*time.Millisecond
		all = append(all, tight)
	}
	for _, t := range all {
		if err := t.Validate(traits); err != nil {
			return nil, fmt.Errorf("%s: %v", t.Profile, err)
		}
	}
	return all, nil
}

// file draws what the configuration file of the next process says.
func (f *fates) file() settings {
	s := settings{
		timing: f.settings[f.IntN(len(f.settings))], policy: election.StoreLossStop, drain: time.Duration(f.IntN(2)) * 500 * time.Millisecond,
		local: f.IntN(2), priority: 100 + 10*f.IntN(2), yield: 8 * time.Second,
	}
	switch {
	case f.plan.alike:
		s.policy = f.plan.policy
	case f.IntN(3) == 0:
		s.policy = election.StoreLossFailsafe
	}
	if f.plan.keep {
		s.policy = election.StoreLossKeep
	}
	return s
}

// gap returns how long it is until the next fault. What matters is often done within milliseconds.
func (f *fates) gap() time.Duration {
	return f.between(0, f.plan.between/pick(f.dice, time.Duration(1), 5, 40))
}

// victim is any host, or more often the one that holds the role key, or the one that the last fault befell.
func (f *fates) victim() *host {
	h, n := f.hosts[f.IntN(len(f.hosts))], f.IntN(4)
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.store.snap.Active; a != nil && n < 2 && f.host(a.Controller) != nil {
		h = f.host(a.Controller)
	}
	if f.last != nil && n == 2 {
		h = f.last
	}
	f.last = h
	return h
}

// fault lets one thing happen. world.mu is not held.
func (f *fates) fault() {
	f.count++
	h := f.victim()
	g := f.own("fault", uint64(f.count))
	k, d := g.draw(), g.strength()
	if !f.skip[f.count] {
		f.mu.Lock()
		if g.IntN(6) == 0 {
			f.backups = append(f.backups, f.store.backup())
		}
		f.befall(g, k, h, d)
		f.mu.Unlock()
	}
	f.restart(3)
}

// strength returns how long a fault lasts.
func (f *fates) strength() time.Duration {
	b := f.plan.between
	return f.between(b/12, pick(f.dice, 2*b, 7*b, 15*b))
}

// befall lets a fault happen now. world.mu is held.
func (f *fates) befall(g *fates, k kind, h *host, d time.Duration) {
	if what := k.do(g, h, d); what != "" {
		f.figures.Faults++
		f.timeline.add(h.name, "FAULT", fmt.Sprintf("%d:", f.count), what, d)
	}
}

// restart boots the sidecars of hosts that have none, one in so many.
func (f *fates) restart(oneIn int) {
	for _, h := range f.hosts {
		f.mu.Lock()
		lives := h.process.lives()
		f.mu.Unlock()
		if boot := f.IntN(oneIn) == 0; !lives && boot {
			h.start(f.file())
		}
	}
}

// settle ends all faults.
func (f *fates) settle() {
	f.mu.Lock()
	now := f.now()
	f.timeline.add("fates", "all faults end")
	f.attended = true
	f.settled++
	f.world.storeAway, f.repository.away, f.store.full = now, now, false
	f.store.waiting = nil
	for _, key := range []string{election.PauseKey, election.RequestKey, election.StandbyKey} {
		f.store.del(f.store.next(), key)
	}
	for _, h := range f.hosts {
		for _, l := range []*link{h.link, h.toRepository, h.toPeers} {
			l.outCut, l.inCut, l.slow, l.lossy, l.spoil = now, now, now, now, spoil{}
		}
		h.stuck = now
		h.setHealth("")
		if h.process.lives() {
			h.process.trap, h.process.thawed = trap{}, nil
			h.reborn = nil
			h.process.thaw()
		}
		if t := h.trace; t != nil && !t.over && t.guardTill.After(now) {
			t.guardTill = now
		}
	}
	f.mu.Unlock()
	f.restart(1)
}
