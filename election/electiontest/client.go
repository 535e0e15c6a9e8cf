package electiontest

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tanist/tanist/election"
)

// Client is one host's handle of a [Store]. It implements [election.Backend] and Follow. Its faults
// affect only this host.
type Client struct {
	store *Store
	name  string

	// Guarded by store.mu.
	gate     chan struct{} // not nil while partitioned; closed by Heal
	stalled  bool
	denied   bool
	refused  map[string]bool // keys that this host may not write
	request  time.Duration
	reply    time.Duration
	lost     fault
	late     fault
	lateness time.Duration
	calls    map[string]int
}

var _ election.Backend = (*Client)(nil)

// fault affects the next n calls of some verbs (none: all).
type fault struct {
	n     int
	verbs []string
}

func (f *fault) strikes(verb string) bool {
	if f.n == 0 || (len(f.verbs) > 0 && !slices.Contains(f.verbs, verb)) {
		return false
	}
	f.n--
	return true
}

// Name returns the client's name.
func (c *Client) Name() string { return c.name }

// Partition cuts this host off from the store, in both directions and silently: calls wait until
// [Client.Heal] or the end of their context, and replies under way do not arrive.
func (c *Client) Partition() {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	if c.gate == nil {
		c.gate = make(chan struct{})
	}
}

// Heal ends a partition. Watches get a hint, as after every break.
func (c *Client) Heal() {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	if c.gate != nil {
		close(c.gate)
		c.gate = nil
		c.wake()
	}
}

// Delay sets how long every request and every reply travels.
func (c *Client) Delay(request, reply time.Duration) {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	c.request, c.reply = request, reply
}

// LoseReplies makes the next n calls take effect and return an error of unknown outcome, as after a
// connection reset. With verbs ("Claim", "Renew", …: the names of the methods), only those calls
// count.
func (c *Client) LoseReplies(n int, verbs ...string) {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	c.lost = fault{n, verbs}
}

// DeliverLate makes the next n calls take effect d after they were sent, whether or not the caller
// still waits. The caller's reply never comes, so it waits until its context ends. With verbs, only
// those calls count.
func (c *Client) DeliverLate(n int, d time.Duration, verbs ...string) {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	c.late, c.lateness = fault{n, verbs}, d
}

// StallWatch silences the watches of this host without an error, as a starved store does. Reads
// still work.
func (c *Client) StallWatch() {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	c.stalled = true
}

// ResumeWatch ends a stall, with a hint.
func (c *Client) ResumeWatch() {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	c.stalled = false
	c.wake()
}

// Deny makes the store refuse this host's credentials, until Deny(false).
func (c *Client) Deny(denied bool) {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	c.denied = denied
}

// DenyKey makes the store refuse this host's Puts of one key.
func (c *Client) DenyKey(key string) {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	if c.refused == nil {
		c.refused = map[string]bool{}
	}
	c.refused[key] = true
}

// Calls returns how often a method was called ("Renew"), with any result.
func (c *Client) Calls(verb string) int {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	return c.calls[verb]
}

// wake gives every watch of this host a hint. store.mu is held.
func (c *Client) wake() {
	for w := range c.store.watchers {
		if w.client == c {
			w.hint(election.Hint{})
		}
	}
}

// travel waits for one leg of a call.
func (c *Client) travel(ctx context.Context, leg *time.Duration) error {
	c.store.mu.Lock()
	d := *leg
	c.store.mu.Unlock()
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
	}
	for {
		c.store.mu.Lock()
		gate := c.gate
		c.store.mu.Unlock()
		if gate == nil {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-gate:
		}
	}
}

// do is one call: the request travels, f runs with store.mu held, the reply travels.
func do[T any](ctx context.Context, c *Client, verb string, f func(s *Store) (T, error)) (T, error) {
	var none T
	s := c.store
	s.mu.Lock()
	if c.calls == nil {
		c.calls = map[string]int{}
	}
	c.calls[verb]++
	s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return none, fmt.Errorf("cannot %s: %w", verb, err)
	}
	s.mu.Lock()
	late, lateness := c.late.strikes(verb), c.lateness
	s.mu.Unlock()
	if late {
		time.AfterFunc(lateness, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.expire()
			_, _ = f(s)
		})
		<-ctx.Done()
		return none, fmt.Errorf("cannot %s: %w", verb, ctx.Err())
	}
	if err := c.travel(ctx, &c.request); err != nil {
		return none, fmt.Errorf("cannot %s: %w", verb, err)
	}
	s.mu.Lock()
	if c.denied {
		s.mu.Unlock()
		return none, fmt.Errorf("cannot %s: %w", verb, election.ErrDenied)
	}
	if s.full && writes(verb) {
		s.mu.Unlock()
		return none, fmt.Errorf("cannot %s: %w", verb, election.ErrReadOnly)
	}
	s.expire()
	v, err := f(s)
	lost := c.lost.strikes(verb)
	s.mu.Unlock()
	if lost {
		return none, fmt.Errorf("cannot %s: %w", verb, errReplyLost)
	}
	if err := c.travel(ctx, &c.reply); err != nil {
		return none, fmt.Errorf("cannot %s: %w", verb, err)
	}
	if err != nil {
		return none, fmt.Errorf("cannot %s: %w", verb, err)
	}
	return v, nil
}

// writes reports whether a store that accepts no writes refuses a verb.
func writes(verb string) bool {
	return slices.Contains([]string{"Grant", "Claim", "Publish", "Release", "HandOver", "Put"}, verb)
}

// done is do for calls without a result.
func done(ctx context.Context, c *Client, verb string, f func(s *Store) error) error {
	_, err := do(ctx, c, verb, func(s *Store) (struct{}, error) { return struct{}{}, f(s) })
	return err
}

// Traits implements [election.Backend].
func (c *Client) Traits() election.Traits {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	return c.store.traits
}

// Read implements [election.Backend].
func (c *Client) Read(ctx context.Context) (election.Snapshot, error) {
	return do(ctx, c, "Read", (*Store).snapshot)
}

// Watch implements [election.Backend].
func (c *Client) Watch(ctx context.Context) <-chan election.Hint {
	w := &watcher{client: c, hints: make(chan election.Hint, 1)}
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	c.store.watchers[w] = true
	w.hint(election.Hint{})
	context.AfterFunc(ctx, func() {
		c.store.mu.Lock()
		defer c.store.mu.Unlock()
		delete(c.store.watchers, w)
		close(w.hints)
	})
	return w.hints
}

// Grant implements [election.Backend].
func (c *Client) Grant(ctx context.Context, ttl time.Duration) (election.LeaseID, error) {
	return do(ctx, c, "Grant", func(s *Store) (election.LeaseID, error) {
		ttl := max(ttl, s.traits.MinTTL)
		s.granted++
		id := election.LeaseID(fmt.Sprintf("lease-%04d", s.granted))
		s.leases[id] = s.lease(ttl)
		return id, nil
	})
}

// Renew implements [election.Backend].
func (c *Client) Renew(ctx context.Context, id election.LeaseID) error {
	return done(ctx, c, "Renew", func(s *Store) error { return s.prolong(id) })
}

// Hold implements [election.Backend].
func (c *Client) Hold(ctx context.Context, h election.Hold) (election.Entry, error) {
	return do(ctx, c, "Hold", func(s *Store) (election.Entry, error) {
		if err := s.prolong(h.Lease); err != nil {
			return election.Entry{}, err
		}
		if !s.bound(h.Lease) {
			return election.Entry{}, election.ErrLost
		}
		if h.Beat {
			s.begin(c.name).put("beat", []byte(c.name), h.Lease)
		}
		held := s.entry("active")
		held.Origin = s.origin
		return held, nil
	})
}

func (s *Store) prolong(id election.LeaseID) error {
	l := s.leases[id]
	if l == nil {
		return election.ErrLost
	}
	l.ends = time.Now().Add(l.ttl)
	l.timer.Reset(l.ttl)
	return nil
}

// Revoke implements [election.Backend].
func (c *Client) Revoke(ctx context.Context, id election.LeaseID) error {
	return done(ctx, c, "Revoke", func(s *Store) error {
		s.revoke(id, c.name)
		return nil
	})
}

// Claim implements [election.Backend].
func (c *Client) Claim(ctx context.Context, cl election.Claim) error {
	return done(ctx, c, "Claim", func(s *Store) error {
		if s.leases[cl.Lease] == nil {
			return election.ErrLost
		}
		_, held := s.keys["active"]
		if s.keys["term"].version != cl.TermVersion ||
			(cl.Silent == 0 && held) ||
			(cl.Silent != 0 && s.keys["beat"].version != cl.Silent) {
			return election.ErrConflict
		}
		if cl.Silent == 0 && time.Now().Before(s.claimable) {
			return fmt.Errorf("%w: %w", election.ErrConflict, election.ErrNotYet)
		}
		t := s.begin(c.name)
		t.put("term", cl.Breadcrumb.Encode(), "")
		t.put("active", cl.Active.Encode(), cl.Lease)
		if cl.Beat {
			t.put("beat", []byte(c.name), cl.Lease)
		} else {
			t.del("beat") // of an earlier holder; its silence must not count as ours
		}
		t.del("url")
		t.del("heir")
		if cl.Previous != "" {
			t.del("role/" + cl.Previous)
		}
		return nil
	})
}

// Publish implements [election.Backend].
func (c *Client) Publish(ctx context.Context, id election.LeaseID, a election.Active) error {
	return done(ctx, c, "Publish", func(s *Store) error {
		if !s.bound(id) {
			return election.ErrLost
		}
		t := s.begin(c.name)
		t.put("active", a.Encode(), id)
		if a.Serving() {
			t.put("url", []byte(a.URL), id)
			t.put("role/"+a.Controller, []byte(election.RoleActive), id)
		} else {
			t.del("url")
			t.del("role/" + a.Controller)
		}
		return nil
	})
}

// Release implements [election.Backend].
func (c *Client) Release(ctx context.Context, r election.Release) error {
	return done(ctx, c, "Release", func(s *Store) error {
		switch {
		case !s.bound(r.Lease):
			return election.ErrLost
		case r.TermVersion != 0 && s.keys["term"].version != r.TermVersion:
			return election.ErrConflict
		}
		t := s.begin(c.name)
		t.put("term", r.Breadcrumb.Encode(), "")
		t.del("active")
		t.del("url")
		t.del("beat")
		t.del("role/" + r.Breadcrumb.Controller)
		s.revoke(r.Lease, c.name)
		return nil
	})
}

// HandOver implements [election.Backend].
func (c *Client) HandOver(ctx context.Context, id election.LeaseID, h election.HandOver) error {
	return done(ctx, c, "HandOver", func(s *Store) error {
		switch {
		case !s.bound(id):
			return election.ErrLost
		case s.keys["heir"].version != h.Heir || s.leases[h.Lease] == nil,
			h.TermVersion != 0 && s.keys["term"].version != h.TermVersion:
			return election.ErrConflict
		}
		t := s.begin(c.name)
		t.put("term", h.Breadcrumb.Encode(), "")
		t.put("active", h.Active.Encode(), h.Lease)
		if h.Beat {
			t.put("beat", []byte(c.name), h.Lease)
		} else {
			t.del("beat")
		}
		t.del("url")
		t.del("heir")
		t.del("role/" + h.From)
		s.revoke(id, c.name)
		return nil
	})
}

// Get implements [election.Keys].
func (c *Client) Get(ctx context.Context, key string) (election.Entry, error) {
	return do(ctx, c, "Get", func(s *Store) (election.Entry, error) {
		return s.entry(key), nil
	})
}

// List implements [election.Keys].
func (c *Client) List(ctx context.Context, prefix string) ([]election.Entry, error) {
	return do(ctx, c, "List", func(s *Store) ([]election.Entry, error) {
		var list []election.Entry
		for _, key := range slices.Sorted(maps.Keys(s.keys)) {
			if strings.HasPrefix(key, prefix) {
				list = append(list, s.entry(key))
			}
		}
		return list, nil
	})
}

func (s *Store) entry(key string) election.Entry {
	e := s.keys[key]
	return election.Entry{Key: key, Value: slices.Clone(e.value), Version: e.version, Lease: e.lease}
}

// Put implements [election.Keys].
func (c *Client) Put(ctx context.Context, p election.Put) error {
	value := slices.Clone(p.Value)
	return done(ctx, c, "Put", func(s *Store) error {
		if c.refused[p.Key] {
			return election.ErrDenied
		}
		if p.If != nil && s.keys[p.Key].version != *p.If {
			return election.ErrConflict
		}
		if p.Lease != "" && s.leases[p.Lease] == nil {
			return election.ErrLost
		}
		s.begin(c.name).put(p.Key, value, p.Lease)
		return nil
	})
}

// Delete implements [election.Keys].
func (c *Client) Delete(ctx context.Context, key string, version election.Version) error {
	return done(ctx, c, "Delete", func(s *Store) error {
		e, ok := s.keys[key]
		if ok && version != 0 && e.version != version {
			return election.ErrConflict
		}
		s.begin(c.name).del(key)
		return nil
	})
}

// How a client in memory follows the role key.
const (
	followEvery   = 2 * time.Second // whatever the watch reports
	followAttempt = 2 * time.Second
	followRetry   = 500 * time.Millisecond
)

// Follow sends what happens to the role key until ctx ends: at once, at every change, and at every
// failed read. A newer sighting replaces one that was not received.
func (c *Client) Follow(ctx context.Context) <-chan election.Sighting {
	out := make(chan election.Sighting, 1)
	hints := c.Watch(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		var last election.Sighting
		var version election.Version
		known := false
		for ctx.Err() == nil {
			attempt, cancel := context.WithTimeout(ctx, followAttempt)
			e, err := do(attempt, c, "Follow", func(s *Store) (election.Entry, error) { return s.entry("active"), nil })
			cancel()
			if ctx.Err() != nil {
				return
			}
			wait := followEvery + rand.N(followEvery/4)
			if err != nil {
				wait, last.Err, last.At = followRetry, err, time.Now()
				last.Offer(out)
			} else if !known || e.Version != version || last.Err != nil {
				known, version = true, e.Version
				last.Err, last.At = nil, time.Now()
				if e.Version == 0 {
					last.Active = nil
				} else if a, err := election.DecodeActive(e.Value); err == nil {
					last.Active = &a
				} else {
					last.Err = err
				}
				last.Offer(out)
			}
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case <-timer.C:
			case <-hints:
			}
			timer.Stop()
		}
	})
	context.AfterFunc(ctx, func() {
		running.Wait()
		close(out)
	})
	return out
}

// Close does nothing, because a client in memory holds nothing. Real stores have it.
func (c *Client) Close() error { return nil }
