package simulation

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tanist/tanist/election"
)

// store is one cluster of a store, with the ways of etcd or of Consul. world.mu is held during each of its methods.
type store struct {
	w      *world
	consul bool
	traits election.Traits

	rev     election.Version
	keys    map[string]entry
	names   []string // of keys, sorted
	leases  map[election.LeaseID]*lease
	granted uint64
	origin  election.Origin
	snap    election.Snapshot
	hints   []*watcher

	waiting []waiting     // for events
	claimed election.Term // the newest reign that was ever begun here

	full      bool      // takes no writes
	claimable time.Time // Consul's lock-delay
	lockDelay time.Duration
}

type entry struct {
	value   []byte
	version election.Version
	lease   election.LeaseID
}

type lease struct {
	id    election.LeaseID
	ttl   time.Duration
	slack time.Duration // how much longer than its ttl it lives
	ends  time.Time
	timer *time.Timer
	over  bool
}

// waiting is something that happens at an event.
type waiting struct {
	what string
	skip int
	do   func(by string)
}

// event is an event that faults may wait for.
func (s *store) event(what, by string) {
	for i := 0; i < len(s.waiting); i++ {
		switch w := &s.waiting[i]; {
		case w.what != what:
		case w.skip > 0:
			w.skip--
		default:
			do := w.do
			s.waiting = append(s.waiting[:i:i], s.waiting[i+1:]...)
			i--
			s.w.after(0, func() { do(by) }) // not within a transaction
		}
	}
}

type watcher struct {
	p       *process
	hints   chan election.Hint
	stalled time.Time // silent until then
	told    uint64
}

func newStore(w *world, consul bool) *store {
	s := &store{
		w: w, consul: consul, traits: election.EtcdTraits(), keys: map[string]entry{}, leases: map[election.LeaseID]*lease{},
		origin: election.Origin{Store: "first", Epoch: 2},
	}
	if consul {
		s.traits, s.origin = election.ConsulTraits(), election.Origin{}
	}
	return s
}

// put and del change a key under the version that next returned.
func (s *store) put(version election.Version, key string, value []byte, id election.LeaseID) {
	if _, there := s.keys[key]; !there {
		at, _ := slices.BinarySearch(s.names, key)
		s.names = slices.Insert(s.names, at, key)
	}
	s.rev = version
	s.keys[key] = entry{value, version, id}
	s.changed(key)
}

func (s *store) del(version election.Version, key string) {
	if _, there := s.keys[key]; !there {
		return
	}
	if a := s.snap.Active; key == election.ActiveKey && a != nil {
		s.event("loses the role key", a.Controller)
	}
	s.rev = version
	delete(s.keys, key)
	at, _ := slices.BinarySearch(s.names, key)
	s.names = slices.Delete(s.names, at, at+1)
	s.changed(key)
}

func (s *store) next() election.Version { return s.rev + 1 }

// changed brings the snapshot up to date, and gives hints.
func (s *store) changed(key string) {
	name, controller := strings.CutPrefix(key, election.ControllerPrefix)
	if !controller && !slices.Contains(snapshotKeys, key) {
		return
	}
	var piece election.Snapshot
	if e, there := s.keys[key]; there {
		piece = election.SnapshotOf([]election.Entry{{Key: key, Value: e.value, Version: e.version, Lease: e.lease}})
	}
	hint := election.Hint{}
	switch key {
	case election.ActiveKey:
		s.snap.Active, s.snap.ActiveLease, s.snap.ActiveVersion, s.snap.ActiveBad = piece.Active, piece.ActiveLease, piece.ActiveVersion, piece.ActiveBad
		hint = election.Hint{Active: piece.Active, Lease: piece.ActiveLease}
	case election.BeatKey:
		s.snap.Beat = piece.Beat
	case election.TermKey:
		s.snap.Breadcrumb, s.snap.TermVersion, s.snap.TermBad = piece.Breadcrumb, piece.TermVersion, piece.TermBad
	case election.RequestKey:
		s.snap.Request, s.snap.RequestVer, s.snap.RequestBad = piece.Request, piece.RequestVer, piece.RequestBad
	case election.PauseKey:
		s.snap.Pause, s.snap.PauseVer, s.snap.PauseBad = piece.Pause, piece.PauseVer, piece.PauseBad
	case election.StandbyKey:
		s.snap.Standbys, s.snap.StandbyVer, s.snap.StandbyBad = piece.Standbys, piece.StandbyVer, piece.StandbyBad
	case election.DeadKey:
		s.snap.Dead, s.snap.DeadBad = piece.Dead, piece.DeadBad
	case election.HeirKey:
		s.snap.Heir, s.snap.HeirVersion = piece.Heir, piece.HeirVersion
	default:
		all := slices.DeleteFunc(slices.Clone(s.snap.Controllers), func(c election.Controller) bool { return c.Name == name })
		all = append(all, piece.Controllers...)
		slices.SortFunc(all, func(a, b election.Controller) int { return strings.Compare(a.Name, b.Name) })
		s.snap.Controllers = all
		return // it is read with the rest whenever it matters
	}
	if key == election.BeatKey {
		return // nobody has to act on a beat at once
	}
	s.hint(hint)
}

var snapshotKeys = election.SnapshotKeys()

// hint wakes the watchers, each at an instant of its own.
func (s *store) hint(h election.Hint) {
	for _, w := range s.hints {
		w.told++
		c := s.w.seed.of(w.p.id, w.told).of("hint", 0)
		late := c.between(100*time.Microsecond, 2*time.Millisecond)
		if away := w.p.host.link.awayFor(); away > 0 || w.stalled.After(s.w.now()) || c.one(50) {
			continue // lost: the next read shows it
		}
		s.w.after(late, func() { w.give(h) })
	}
}

// give puts a hint in place of one that was not taken yet. world.mu is held.
func (w *watcher) give(h election.Hint) {
	if w.hints == nil {
		return
	}
	select {
	case before := <-w.hints:
		h = before.Merge(h)
	default:
	}
	w.hints <- h
}

// grant makes a lease.
func (s *store) grant(ttl time.Duration) election.LeaseID {
	s.granted++
	c := s.w.seed.of("lease", s.granted)
	l := &lease{id: election.LeaseID(fmt.Sprintf("l%d", s.granted)), ttl: max(ttl, s.traits.MinTTL)}
	l.slack = c.between(time.Millisecond, s.traits.ExpirySlack)
	if s.consul {
		l.slack = c.between(time.Millisecond, min(l.ttl, s.traits.ExpirySlack))
	}
	s.leases[l.id] = l
	s.start(l)
	return l.id
}

func (s *store) start(l *lease) {
	l.ends = s.w.now().Add(l.ttl + l.slack)
	l.timer = time.AfterFunc(l.ttl+l.slack, func() {
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		s.check(l)
	})
}

// check ends a lease whose time is over.
func (s *store) check(l *lease) {
	if l.over {
		return
	}
	if left := l.ends.Sub(s.w.now()); left > 0 {
		l.timer.Reset(left)
		return
	}
	if a := s.snap.Active; a != nil && s.snap.ActiveLease == l.id && s.w.strict && !s.w.beyond {
		for _, t := range s.w.running {
			if t.host.name == a.Controller && t.term == a.Term && !t.excused {
				s.w.violates("the lease of %s ends in the store, while %s runs", a.Controller, t.id)
			}
		}
	}
	s.revoke(l.id, true)
}

// counts checks the counter in a term record that a sidecar writes.
func (s *store) counts(value []byte) {
	before := s.snap
	if _, there := s.keys[election.TermKey]; !there || before.TermBad != nil {
		return
	}
	after := election.SnapshotOf([]election.Entry{{Key: election.TermKey, Value: value, Version: 1}})
	if after.TermBad != nil || after.Breadcrumb.Term < before.Breadcrumb.Term {
		s.w.violates("a sidecar writes %q over term %d", value, before.Breadcrumb.Term)
	}
}

// begins checks a reign that begins, or goes on under a new lease.
func (s *store) begins(a election.Active) {
	if a.Term < s.claimed && !s.w.rewound {
		s.w.violates("the role key goes back from term %d to term %d of %s", s.claimed, a.Term, a.Controller)
	}
	s.claimed = max(s.claimed, a.Term)
}

// prolong renews a lease.
func (s *store) prolong(id election.LeaseID) error {
	l := s.leases[id]
	if l == nil {
		return election.ErrLost
	}
	l.ends = s.w.now().Add(l.ttl + l.slack)
	return nil
}

// revoke ends a lease, by itself or at a request.
func (s *store) revoke(id election.LeaseID, itself bool) {
	l := s.leases[id]
	if l == nil {
		return
	}
	l.over = true
	l.timer.Stop()
	delete(s.leases, id)
	version := s.next()
	for _, key := range slices.Clone(s.names) {
		if s.keys[key].lease != id {
			continue
		}
		if key == election.ActiveKey && itself {
			s.claimable = s.w.now().Add(s.lockDelay)
		}
		s.del(version, key)
	}
	if itself {
		s.w.timeline.add("store", "lease ends", string(id))
	}
}

// extendAll is a change of the store's leader: every lease lives on for its ttl from now.
func (s *store) extendAll() {
	for _, l := range s.leases {
		l.ends = s.w.now().Add(l.ttl + l.slack)
	}
}

// allLeases returns the leases in the order in which they were granted.
func (s *store) allLeases() []election.LeaseID {
	all := make([]election.LeaseID, 0, len(s.leases))
	for id := range s.leases {
		all = append(all, id)
	}
	slices.SortFunc(all, func(a, b election.LeaseID) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(string(a), string(b))
	})
	return all
}

// backup returns what restores the store to how it is now.
func (s *store) backup() (restore func()) {
	type was struct {
		key string
		e   entry
	}
	var keys []was
	for _, key := range s.names {
		keys = append(keys, was{key, s.keys[key]})
	}
	leases := s.allLeases()
	ttls := make([]time.Duration, len(leases))
	for i, id := range leases {
		ttls[i] = s.leases[id].ttl
	}
	return func() {
		for _, id := range s.allLeases() {
			s.leases[id].over = true
			s.leases[id].timer.Stop()
			delete(s.leases, id)
		}
		for _, key := range slices.Clone(s.names) {
			s.del(s.next(), key)
		}
		for i, id := range leases {
			c := s.w.seed.of(string(id), uint64(s.rev))
			l := &lease{id: id, ttl: ttls[i], slack: c.between(time.Millisecond, s.traits.ExpirySlack)}
			s.leases[id] = l
			s.start(l)
		}
		for _, k := range keys {
			s.put(s.next(), k.key, k.e.value, k.e.lease)
		}
		if s.origin != (election.Origin{}) {
			s.origin = election.Origin{Store: fmt.Sprintf("restored-%d", s.rev), Epoch: 2}
		}
	}
}

// bound reports whether the role key is bound to id, which must be alive.
func (s *store) bound(id election.LeaseID) bool {
	e, there := s.keys[election.ActiveKey]
	return there && e.lease == id && s.leases[id] != nil
}

func (s *store) snapshot() election.Snapshot {
	snap := s.snap
	snap.Origin = s.origin
	return snap
}

func (s *store) entry(key string) election.Entry {
	e := s.keys[key]
	return election.Entry{Key: key, Value: e.value, Version: e.version, Lease: e.lease}
}

// hold is [election.Backend.Hold].
func (s *store) hold(h election.Hold) (election.Entry, error) {
	if err := s.prolong(h.Lease); err != nil {
		return election.Entry{}, err
	}
	if !s.bound(h.Lease) {
		return election.Entry{}, election.ErrLost
	}
	if h.Beat {
		if s.full {
			return election.Entry{}, election.ErrReadOnly
		}
		s.put(s.next(), election.BeatKey, nil, h.Lease)
	}
	e := s.entry(election.ActiveKey)
	e.Origin = s.origin
	return e, nil
}

// claim is [election.Backend.Claim].
func (s *store) claim(c election.Claim) error {
	if s.leases[c.Lease] == nil {
		return election.ErrLost
	}
	_, held := s.keys[election.ActiveKey]
	if s.keys[election.TermKey].version != c.TermVersion || c.Silent == 0 && held || c.Silent != 0 && s.keys[election.BeatKey].version != c.Silent {
		return election.ErrConflict
	}
	if c.Silent == 0 && s.w.now().Before(s.claimable) {
		return fmt.Errorf("%w: %w", election.ErrConflict, election.ErrNotYet)
	}
	version := s.next()
	s.counts(c.Breadcrumb.Encode())
	s.begins(c.Active)
	s.put(version, election.TermKey, c.Breadcrumb.Encode(), "")
	s.put(version, election.ActiveKey, c.Active.Encode(), c.Lease)
	s.beat(version, c.Beat, c.Lease)
	s.del(version, election.URLKey)
	s.del(version, election.HeirKey)
	if c.Previous != "" {
		s.del(version, election.RoleWordKey(c.Previous))
	}
	s.w.timeline.add(c.Active.Controller, "claims term", int(c.Active.Term))
	s.event("claims", c.Active.Controller)
	return nil
}

func (s *store) beat(version election.Version, beat bool, id election.LeaseID) {
	if beat {
		s.put(version, election.BeatKey, nil, id)
	} else {
		s.del(version, election.BeatKey)
	}
}

// publish is [election.Backend.Publish].
func (s *store) publish(id election.LeaseID, a election.Active) error {
	if !s.bound(id) {
		return election.ErrLost
	}
	version := s.next()
	s.put(version, election.ActiveKey, a.Encode(), id)
	if a.Serving() {
		if !s.w.opened[fmt.Sprint(a.Controller, a.Term)] {
			s.w.violates("%s is published as serving term %d, and was never open", a.Controller, a.Term)
		}
		s.put(version, election.URLKey, []byte(a.URL), id)
		s.put(version, election.RoleWordKey(a.Controller), []byte(election.RoleActive), id)
	} else {
		s.del(version, election.URLKey)
		s.del(version, election.RoleWordKey(a.Controller))
	}
	s.w.timeline.add(a.Controller, "publishes", string(a.State), int(a.Term))
	s.event("publishes", a.Controller)
	return nil
}

// release is [election.Backend.Release].
func (s *store) release(r election.Release) error {
	switch {
	case !s.bound(r.Lease):
		return election.ErrLost
	case r.TermVersion != 0 && s.keys[election.TermKey].version != r.TermVersion:
		return election.ErrConflict
	}
	version := s.next()
	s.counts(r.Breadcrumb.Encode())
	s.put(version, election.TermKey, r.Breadcrumb.Encode(), "")
	for _, key := range []string{election.ActiveKey, election.URLKey, election.BeatKey, election.RoleWordKey(r.Breadcrumb.Controller)} {
		s.del(version, key)
	}
	s.revoke(r.Lease, false)
	s.w.timeline.add(r.Breadcrumb.Controller, "releases term", int(r.Breadcrumb.Term), r.Breadcrumb.Clean)
	s.event("releases", r.Breadcrumb.Controller)
	return nil
}

// handOver is [election.Backend.HandOver].
func (s *store) handOver(id election.LeaseID, h election.HandOver) error {
	switch {
	case !s.bound(id):
		return election.ErrLost
	case s.keys[election.HeirKey].version != h.Heir || s.leases[h.Lease] == nil,
		h.TermVersion != 0 && s.keys[election.TermKey].version != h.TermVersion:
		return election.ErrConflict
	}
	version := s.next()
	s.counts(h.Breadcrumb.Encode())
	s.begins(h.Active)
	s.put(version, election.TermKey, h.Breadcrumb.Encode(), "")
	s.put(version, election.ActiveKey, h.Active.Encode(), h.Lease)
	s.beat(version, h.Beat, h.Lease)
	for _, key := range []string{election.URLKey, election.HeirKey, election.RoleWordKey(h.From)} {
		s.del(version, key)
	}
	s.revoke(id, false)
	s.w.timeline.add(h.From, "hands over to", h.Active.Controller, int(h.Active.Term))
	s.event("hands over", h.Active.Controller)
	return nil
}

// set is [election.Keys.Put].
func (s *store) set(p election.Put) error {
	if p.If != nil && s.keys[p.Key].version != *p.If {
		return election.ErrConflict
	}
	if p.Lease != "" && s.leases[p.Lease] == nil {
		return election.ErrLost
	}
	if p.Key == election.TermKey {
		s.counts(p.Value)
	}
	s.put(s.next(), p.Key, p.Value, p.Lease)
	return nil
}

// remove is [election.Keys.Delete].
func (s *store) remove(key string, version election.Version) error {
	e, there := s.keys[key]
	if there && version != 0 && e.version != version {
		return election.ErrConflict
	}
	s.del(s.next(), key)
	return nil
}

func (s *store) list(prefix string) []election.Entry {
	var all []election.Entry
	for _, key := range s.names {
		if strings.HasPrefix(key, prefix) {
			all = append(all, s.entry(key))
		}
	}
	return all
}
