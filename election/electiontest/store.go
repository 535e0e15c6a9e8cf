package electiontest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tanist/tanist/election"
)

// Store is one cluster of a linearizable store in memory. Its methods inject the store's own faults
// and inspect it. Hosts use a [Client]. All methods may be called from any goroutine. A Store used
// inside a testing/synctest bubble must be made in that bubble.
type Store struct {
	mu       sync.Mutex
	traits   election.Traits
	rev      election.Version
	keys     map[string]entry
	leases   map[election.LeaseID]*lease
	granted  int
	clients  map[string]*Client
	watchers map[*watcher]bool
	log      []Change
	full     bool // refuses writes
	origin   election.Origin

	lockDelay time.Duration
	claimable time.Time // nobody may claim before
}

type entry struct {
	value   []byte
	version election.Version
	lease   election.LeaseID
}

type lease struct {
	ttl   time.Duration
	ends  time.Time
	timer *time.Timer
}

type watcher struct {
	client *Client
	hints  chan election.Hint
}

// leaseEnd is the author of changes caused by the end of a lease.
const leaseEnd = "lease end"

// Change is one change of one key, as [Store.Changes] returns it.
type Change struct {
	At      time.Time
	Version election.Version
	Key     string
	Value   string
	Deleted bool
	Lease   election.LeaseID
	By      string // the client, "lease end" or "stranger"
}

// NewStore returns an empty store whose leases end exactly when their ttl is over.
func NewStore() *Store {
	return &Store{
		traits:   election.Traits{Name: "memory", MinTTL: 10 * time.Millisecond},
		origin:   election.Origin{Store: "memory", Epoch: 7},
		keys:     map[string]entry{},
		leases:   map[election.LeaseID]*lease{},
		clients:  map[string]*Client{},
		watchers: map[*watcher]bool{},
	}
}

// SetTraits changes the traits that the store reports, not its behaviour.
func (s *Store) SetTraits(t election.Traits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.traits = t
}

// SetOrigin changes the identity that the store reports.
func (s *Store) SetOrigin(o election.Origin) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.origin = o
}

// Client returns the handle of one host. The same name returns the same handle.
func (s *Store) Client(name string) *Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clients[name]
	if c == nil {
		c = &Client{store: s, name: name}
		s.clients[name] = c
	}
	return c
}

// RevokeEarly ends a lease before its time, without a request of its holder, as etcd before 3.5.23
// could. It reports whether the lease existed.
func (s *Store) RevokeEarly(id election.LeaseID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	return s.revoke(id, leaseEnd)
}

// SetLockDelay makes the store refuse every claim for d after a holder's lease has expired, as
// Consul does.
func (s *Store) SetLockDelay(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lockDelay = d
}

// RefuseWrites makes the store refuse every write and every new lease, as etcd does when its quota
// is used up.
func (s *Store) RefuseWrites(refuse bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = refuse
}

// Overwrite is a stranger's plain write of a key (relative to the cluster): bound to no lease.
func (s *Store) Overwrite(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	s.begin("stranger").put(key, []byte(value), "")
}

// OverwriteKept is a stranger's write of a key that leaves it bound to its lease, as a plain write
// does in Consul.
func (s *Store) OverwriteKept(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	s.begin("stranger").put(key, []byte(value), s.keys[key].lease)
}

// Restart simulates a restart of the whole store, or a change of its leader: every lease lives for
// its ttl from now.
func (s *Store) Restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	for _, l := range s.leases {
		l.ends = time.Now().Add(l.ttl)
		l.timer.Reset(l.ttl)
	}
}

// Backup returns a function that restores the store to its current state, including leases.
// Whatever was seen of the store in between is then ahead of it.
func (s *Store) Backup() (restore func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	keys, ttls := maps.Clone(s.keys), map[election.LeaseID]time.Duration{}
	for id, l := range s.leases {
		ttls[id] = l.ttl
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, l := range s.leases {
			l.timer.Stop()
		}
		s.keys, s.leases = maps.Clone(keys), map[election.LeaseID]*lease{}
		for id, ttl := range ttls {
			s.leases[id] = s.lease(ttl)
		}
		if s.origin != (election.Origin{}) {
			s.origin.Epoch-- // or it is another cluster
		}
		s.log = append(s.log, Change{At: time.Now(), Version: s.rev, Key: election.TermKey, Value: string(keys[election.TermKey].value), By: Restored})
		for w := range s.watchers {
			w.hint(election.Hint{})
		}
	}
}

// Restored is the author of the change of the term key when the store was restored.
const Restored = "restored"

// lease makes a lease that begins now.
func (s *Store) lease(ttl time.Duration) *lease {
	return &lease{ttl: ttl, ends: time.Now().Add(ttl), timer: time.AfterFunc(ttl, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.expire()
	})}
}

// Remove is a stranger's deletion of a key. It reports whether the key existed.
func (s *Store) Remove(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	_, ok := s.keys[key]
	s.begin("stranger").del(key)
	return ok
}

// Rewind sets the term counter to t, as a restore from an old backup would.
func (s *Store) Rewind(t election.Term) {
	s.Overwrite("term", fmt.Sprint(t))
}

// Value returns the value of a key, or "" if it is absent.
func (s *Store) Value(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	return string(s.keys[key].value)
}

// Keys returns all keys and their values.
func (s *Store) Keys() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	all := map[string]string{}
	for k, e := range s.keys {
		all[k] = string(e.value)
	}
	return all
}

// Leases returns the leases that have not ended, in the order of their grants.
func (s *Store) Leases() []election.LeaseID {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	return slices.Sorted(maps.Keys(s.leases))
}

// Changes returns all changes of keys, in order.
func (s *Store) Changes() []Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	return slices.Clone(s.log)
}

// Forget drops the changes so far. A test of thousands of takeovers has no room for them.
func (s *Store) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = nil
}

// Down cuts off every client made so far. [Store.Up] heals them.
func (s *Store) Down() {
	for _, c := range s.all() {
		c.Partition()
	}
}

// Up heals every client.
func (s *Store) Up() {
	for _, c := range s.all() {
		c.Heal()
	}
}

func (s *Store) all() []*Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.clients))
}

// txn collects the changes of one transaction under one version.
type txn struct {
	s       *Store
	version election.Version
	by      string
}

// begin starts a transaction; s.mu is held until its last change.
func (s *Store) begin(by string) txn { return txn{s, s.rev + 1, by} }

func (t txn) put(key string, value []byte, id election.LeaseID) {
	t.s.rev = t.version
	t.s.keys[key] = entry{slices.Clone(value), t.version, id}
	t.s.log = append(t.s.log, Change{At: time.Now(), Version: t.version, Key: key, Value: string(value), Lease: id, By: t.by})
	t.s.hint(key)
}

func (t txn) del(key string) {
	e, ok := t.s.keys[key]
	if !ok {
		return
	}
	t.s.rev = t.version
	delete(t.s.keys, key)
	t.s.log = append(t.s.log, Change{At: time.Now(), Version: t.version, Key: key, Deleted: true, Lease: e.lease, By: t.by})
	t.s.hint(key)
}

// hint wakes the watchers if key is one that Read returns.
func (s *Store) hint(key string) {
	var h election.Hint
	switch {
	case key == "active":
		if a, err := election.DecodeActive(s.keys[key].value); err == nil {
			h = election.Hint{Active: &a, Lease: s.keys[key].lease}
		}
	case slices.Contains(election.SnapshotKeys(), key), strings.HasPrefix(key, "controllers/"):
	default:
		return
	}
	for w := range s.watchers {
		w.hint(h)
	}
}

// hint delivers a hint, in place of one not yet received. store.mu is held.
func (w *watcher) hint(h election.Hint) {
	if w.client.gate != nil || w.client.stalled {
		return
	}
	select {
	case before := <-w.hints:
		h = before.Merge(h)
	default:
	}
	w.hints <- h
}

// expire ends the leases whose time is over. Every access to the store begins with it, so that the
// order of timers within one instant does not matter.
func (s *Store) expire() {
	now := time.Now()
	for _, id := range slices.Sorted(maps.Keys(s.leases)) {
		if !s.leases[id].ends.After(now) {
			s.revoke(id, leaseEnd)
		}
	}
}

func (s *Store) revoke(id election.LeaseID, by string) bool {
	l := s.leases[id]
	if l == nil {
		return false
	}
	l.timer.Stop()
	delete(s.leases, id)
	t := s.begin(by)
	for _, key := range slices.Sorted(maps.Keys(s.keys)) {
		if s.keys[key].lease == id {
			if key == election.ActiveKey && by == leaseEnd {
				s.claimable = time.Now().Add(s.lockDelay)
			}
			t.del(key)
		}
	}
	return true
}

// bound reports whether the role key is bound to id, which must be alive.
func (s *Store) bound(id election.LeaseID) bool {
	e, ok := s.keys["active"]
	return ok && e.lease == id && s.leases[id] != nil
}

func (s *Store) snapshot() (election.Snapshot, error) {
	var entries []election.Entry
	for _, key := range slices.Sorted(maps.Keys(s.keys)) {
		e := s.keys[key]
		entries = append(entries, election.Entry{Key: key, Value: e.value, Version: e.version, Lease: e.lease})
	}
	snap := election.SnapshotOf(entries)
	snap.Origin = s.origin
	return snap, nil
}

var errReplyLost = errors.New("the connection was reset before the reply")
