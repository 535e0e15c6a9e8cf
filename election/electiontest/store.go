package electiontest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tanist/tanist/election"
)

// Store is one cluster of a linearizable store in memory. Its methods are the store's own faults and what a test
// wants to know of it; hosts use a [Client]. All methods may be called from any goroutine. A Store that is used inside a
// testing/synctest bubble must be made in that bubble.
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

// Change is one change of one key, as [Store.Changes] returns it.
type Change struct {
	At      time.Time
	Version election.Version
	Key     string
	Value   string
	Deleted bool
	Lease   election.LeaseID
	By      string // the client; "lease end", or "stranger"
}

// NewStore returns an empty store that promises nothing beyond what it does: leases end when their ttl is over.
func NewStore() *Store {
	return &Store{
		traits:   election.Traits{Name: "memory", MinTTL: 10 * time.Millisecond},
		keys:     map[string]entry{},
		leases:   map[election.LeaseID]*lease{},
		clients:  map[string]*Client{},
		watchers: map[*watcher]bool{},
	}
}

// SetTraits changes what the store says of itself. It does not change what it does.
func (s *Store) SetTraits(t election.Traits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.traits = t
}

// Client returns the handle of one host. The same name gives the same handle.
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

// RevokeEarly ends a lease before its time, without a request of its holder, as etcd before 3.5.23 could. It reports
// whether there was such a lease.
func (s *Store) RevokeEarly(id election.LeaseID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	return s.revoke(id, "lease end")
}

// Overwrite is a stranger's plain write of a key (relative to the cluster): bound to no lease.
func (s *Store) Overwrite(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	s.begin("stranger").put(key, []byte(value), "")
}

// Remove is a stranger's deletion of a key. It reports whether the key was there.
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

// Leases returns the leases that have not ended, in the order in which they were granted.
func (s *Store) Leases() []election.LeaseID {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	return slices.Sorted(maps.Keys(s.leases))
}

// Changes returns everything that has happened to the keys, in order.
func (s *Store) Changes() []Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	return slices.Clone(s.log)
}

// Down cuts every client off that has been made so far. [Store.Up] heals them.
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
	case key == "beat", key == "term", key == "request", key == "pause", key == "heir", strings.HasPrefix(key, "controllers/"):
	default:
		return
	}
	for w := range s.watchers {
		w.hint(h)
	}
}

// hint gives a hint, in place of one that was not taken yet. store.mu is held.
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

// expire ends the leases whose time is over. Every look at the store begins with it, so that no order of timers within
// one instant matters.
func (s *Store) expire() {
	now := time.Now()
	for _, id := range slices.Sorted(maps.Keys(s.leases)) {
		if !s.leases[id].ends.After(now) {
			s.revoke(id, "lease end")
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
	var snap election.Snapshot
	if e, ok := s.keys["active"]; ok {
		snap.ActiveLease, snap.ActiveVersion = e.lease, e.version
		if a, err := election.DecodeActive(e.value); err != nil {
			snap.ActiveBad = err
		} else {
			snap.Active = &a
		}
	}
	snap.Beat = s.keys["beat"].version
	if e, ok := s.keys["term"]; ok {
		b, err := election.DecodeBreadcrumb(e.value)
		if err != nil {
			return election.Snapshot{}, err
		}
		snap.Breadcrumb, snap.TermVersion = b, e.version
	}
	for _, key := range slices.Sorted(maps.Keys(s.keys)) {
		name, ok := strings.CutPrefix(key, "controllers/")
		var c election.Controller
		if ok && json.Unmarshal(s.keys[key].value, &c) == nil && c.Name == name {
			snap.Controllers = append(snap.Controllers, c)
		}
	}
	if e, ok := s.keys["request"]; ok {
		snap.RequestVer = e.version
		var r election.Request
		if json.Unmarshal(e.value, &r) == nil {
			snap.Request = &r
		}
	}
	if e, ok := s.keys["pause"]; ok {
		snap.PauseVer = e.version
		var p election.Pause
		if json.Unmarshal(e.value, &p) != nil {
			p = election.Pause{By: "a pause key that can't be read"}
		}
		snap.Pause = &p
	}
	if e, ok := s.keys["heir"]; ok {
		snap.HeirVersion = e.version
		if h, err := election.DecodeHeir(e.value); err == nil {
			snap.Heir = &h
		}
	}
	return snap, nil
}

var errReplyLost = errors.New("the connection was reset before the reply")
