package election

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// Presence keeps some keys of one process in the store for as long as it runs: statuses, a role word. They are bound to
// a lease of their own, which says nothing about the right to act. In steady state it only renews that lease. The
// exported fields are set before Run and not changed after. Set and Unset may be called from any goroutine, before and
// during Run.
type Presence struct {
	Store PresenceStore
	TTL   time.Duration

	// Names are the keys that no other live process may have ("controllers/ctl-a"). They are Set before Run. Other keys
	// are written once all names are ours.
	Names []string
	// Owner describes the process that wrote the value of a name.
	Owner func(value []byte) Owner
	// Recheck makes each renewal read the names too, and put back what a stranger has changed or removed.
	Recheck bool

	// Every returns the time from one renewal to the next. nil: a third of TTL.
	Every func() time.Duration
	// Gather returns how long after a change it is written, along with all later changes. nil: at once.
	Gather func() time.Duration
	// Leave reports, when Run ends, whether the keys are to be left in the store until their lease ends. nil: they are
	// removed.
	Leave func() bool

	// Called from Run, must not block, may be nil: Entered when a name has become ours, Waiting when another process has
	// a name and may be dead, and Tried after every attempt to renew and write.
	Entered func(name string)
	Waiting func(name string, other Owner)
	Tried   func(err error)

	putting turn // held during each write
	mu      sync.Mutex
	want    map[string][]byte
	wrote   map[string][]byte // with the current lease; no entry: unknown
	stale   map[string]bool   // keys whose stored value may differ from want
	changed chan struct{}

	// Used by Run only.
	lease LeaseID
	due   time.Time // when the lease is to be renewed
	names map[string]*claim
}

// PresenceStore has the methods of [Backend] that a presence needs.
type PresenceStore interface {
	Traits() Traits
	Grant(ctx context.Context, ttl time.Duration) (LeaseID, error)
	Renew(ctx context.Context, lease LeaseID) error
	Revoke(ctx context.Context, lease LeaseID) error
	Get(ctx context.Context, key string) (Entry, error)
	Put(ctx context.Context, p Put) error
}

// claim is what Run knows about one of its names.
type claim struct {
	ours, entered bool // now, ever
	waiting       bool // another process has it
	other         occupant
}

// Owner is the process that wrote the value of a name.
type Owner struct {
	Ours bool          // it is this process
	Gone bool          // it is known to be dead, or the value names no process
	Who  string        // for messages
	TTL  time.Duration // of its lease, if the value states it
}

// ErrNameTaken means that another live process has the name.
var ErrNameTaken = errors.New("the name is taken by another live process")

const (
	presenceCall   = 5 * time.Second // the longest call to the store
	namesAtOnce    = 16              // how many names are entered concurrently
	presenceSlow   = time.Second / 2 // a round that takes longer is slow
	presenceRetry  = time.Second     // the shortest pause after a failure, unless renewals are due sooner
	presenceRevoke = time.Second     // how long the end waits for the store
)

// Set makes key have value, soon and for as long as Run runs.
func (p *Presence) Set(key string, value []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.init()
	if old, ok := p.want[key]; ok && bytes.Equal(old, value) {
		return
	}
	p.want[key], p.stale[key] = value, true
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// Unset stops keeping key, without removing it from the store, because another writer takes over.
// It waits for a write under way, so that no write of the presence follows.
func (p *Presence) Unset(key string) {
	_ = p.putting.lock(context.Background()) // a write is bounded
	defer p.putting.unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.init()
	delete(p.want, key)
	delete(p.wrote, key)
	delete(p.stale, key)
}

func (p *Presence) init() {
	if p.want == nil {
		p.want, p.wrote, p.stale, p.changed = map[string][]byte{}, map[string][]byte{}, map[string]bool{}, make(chan struct{}, 1)
	}
}

// Run keeps the keys until ctx ends, then removes them. It returns [ErrNameTaken] (wrapped, with who) if another live
// process has a name; store errors are outlived.
func (p *Presence) Run(ctx context.Context) error {
	p.mu.Lock()
	p.init()
	p.mu.Unlock()
	p.names = map[string]*claim{}
	for _, name := range p.Names {
		p.names[name] = new(claim)
	}
	defer func() {
		if p.lease != "" && (p.Leave == nil || !p.Leave()) {
			_ = bounded(context.WithoutCancel(ctx), presenceRevoke, func(ctx context.Context) error { return p.Store.Revoke(ctx, p.lease) })
		}
	}()
	for {
		err := p.round(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, ErrNameTaken) {
			return err
		}
		if err != nil { // a store that was away may have prolonged all leases
			for _, c := range p.names {
				c.other = occupant{}
			}
		}
		if p.Tried != nil {
			p.Tried(err)
		}
		if !p.pause(ctx, err) {
			return nil
		}
	}
}

// every returns the time from one renewal to the next.
func (p *Presence) every() time.Duration {
	if p.Every != nil {
		return p.Every()
	}
	return p.TTL / 3
}

// pause waits for the next round, after one that ended with err, and reports whether there is one.
func (p *Presence) pause(ctx context.Context, err error) bool {
	now, changed := time.Now(), p.changed
	if err != nil {
		every := p.every()
		p.due, changed = now.Add(min(every, max(every/3, presenceRetry))), nil // a failure is not retried at every change
	}
	for _, c := range p.names {
		if c.waiting {
			p.due, changed = now.Add(min(p.due.Sub(now), p.TTL/10)), nil
		}
	}
	timer := time.NewTimer(p.due.Sub(now))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	case <-changed:
		return p.Gather == nil || sleep(ctx, p.Gather())
	}
}

// call bounds one call to the store.
func (p *Presence) call(ctx context.Context, request func(context.Context) error) error {
	return bounded(ctx, min(p.TTL/3, presenceCall), request)
}

// round renews the lease if that is due, or has a new one, and writes what has changed. A failed call is not repeated
// before the next round.
func (p *Presence) round(ctx context.Context) error {
	begun := time.Now()
	renew := !begun.Before(p.due)
	if p.lease != "" && renew {
		err := p.call(ctx, func(ctx context.Context) error { return p.Store.Renew(ctx, p.lease) })
		if errors.Is(err, ErrLost) {
			p.lease = ""
		} else if err != nil {
			return err
		}
	}
	if p.lease == "" {
		err := p.call(ctx, func(ctx context.Context) (err error) {
			p.lease, err = p.Store.Grant(ctx, p.TTL)
			return err
		})
		if err != nil {
			p.lease = ""
			return err
		}
		p.renounce()
		renew = true
	}
	if renew {
		p.due = time.Now().Add(p.every())
	}
	err := p.enter(ctx, begun, renew && p.Recheck)
	if err == nil {
		err = p.flush(ctx)
	}
	if errors.Is(err, ErrLost) {
		p.lease = "" // the next round has a new one
	}
	return err
}

// renounce makes every key one to be written again: the lease is new.
func (p *Presence) renounce() {
	for _, c := range p.names {
		c.ours = false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.wrote)
	for key := range p.want {
		p.stale[key] = true
	}
}

// enter makes the names ours, bound to the lease. A name of a process that may have died is left for the next round, until
// its key has ended with its lease or outlasted it. The round began at begun. recheck looks at names that are ours, too.
func (p *Presence) enter(ctx context.Context, begun time.Time, recheck bool) error {
	var work sync.WaitGroup
	var mu sync.Mutex // of what follows, and of the callbacks
	var failed, taken error
	turns := make(chan struct{}, namesAtOnce)
	for _, name := range p.Names {
		c := p.names[name]
		if c.ours && !recheck {
			continue
		}
		turns <- struct{}{}
		mu.Lock()
		stop := failed != nil
		mu.Unlock()
		if stop {
			break
		}
		enter := func() {
			defer func() { <-turns }()
			other, e, err := p.take(ctx, name)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
			} else if other != nil && c.owned(p, name, *other, e, begun) {
				taken = fmt.Errorf("%w: %s is kept by %s", ErrNameTaken, name, other.Who)
			} else if other == nil && c.mine() && p.Entered != nil {
				p.Entered(name)
			}
		}
		if len(p.Names) == 1 { // a sidecar's, with nothing to do at the same time
			enter()
		} else {
			work.Go(enter)
		}
	}
	work.Wait()
	if taken != nil {
		return taken
	}
	return failed
}

// mine notes that the name is ours, and reports whether it never was before.
func (c *claim) mine() (first bool) {
	first = !c.entered
	*c = claim{ours: true, entered: true}
	return first
}

// owned notes that another process has the name, as a round that began at begun has found, and reports whether that process
// is alive for sure.
func (c *claim) owned(p *Presence, name string, other Owner, e Entry, begun time.Time) bool {
	stays := c.other.stays(e, begun, max(p.TTL, other.TTL), p.Store.Traits().ExpirySlack)
	if !c.waiting && p.Waiting != nil {
		p.Waiting(name, other)
	}
	c.ours, c.waiting = false, true
	return stays
}

// take writes a name, bound to the lease, unless it is ours already or another process that may be alive has it: that one
// is returned, with the key.
func (p *Presence) take(ctx context.Context, name string) (other *Owner, e Entry, err error) {
	err = p.call(ctx, func(ctx context.Context) (err error) {
		e, err = p.Store.Get(ctx, name)
		return err
	})
	if err != nil {
		return nil, e, err
	}
	// What is bound to no lease was written by a stranger. It would never expire, and belongs to nobody.
	if e.Version != 0 && e.Lease != "" {
		if e.Lease == p.lease && p.unchanged(name, e.Value) {
			return nil, e, nil
		}
		// What is ours and not what was last written is a write that was given up, and has arrived since.
		if owner := p.Owner(e.Value); !owner.Ours && !owner.Gone {
			return &owner, e, nil
		}
	}
	err = p.put(ctx, name, &e.Version)
	if errors.Is(err, ErrConflict) {
		err = fmt.Errorf("%s changed meanwhile", name) // the next round finds out by whom
	}
	return nil, e, err
}

// unchanged reports whether a key has the value that was last written.
func (p *Presence) unchanged(key string, value []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	wrote, ok := p.wrote[key]
	return ok && bytes.Equal(wrote, value)
}

// occupant is another process that has a name, as the one that waits for the name sees it. The zero occupant has not been
// seen.
type occupant struct {
	lease  LeaseID
	giveUp time.Time
}

// stays takes in the key of the name as the store answered, and reports whether its owner lives: a lease that nobody
// renews ends within its ttl and the store's slack, so one that is there long after that is renewed. Another lease is
// another owner. After a slow round the count begins again: the answer may be old, because this process stood still, or the
// store was away, and has prolonged all leases.
func (o *occupant) stays(e Entry, begun time.Time, ttl, slack time.Duration) bool {
	now := time.Now()
	if e.Lease != o.lease || now.Sub(begun) > presenceSlow {
		o.lease, o.giveUp = e.Lease, now.Add(2*(ttl+slack)+time.Second)
	}
	return now.After(o.giveUp)
}

// flush writes what is stale and may be written.
func (p *Presence) flush(ctx context.Context) error {
	all := true
	for _, c := range p.names {
		all = all && c.ours
	}
	for {
		p.mu.Lock()
		keys := slices.Sorted(maps.Keys(p.stale))
		p.mu.Unlock()
		keys = slices.DeleteFunc(keys, func(key string) bool {
			c, name := p.names[key]
			return !all && (!name || !c.ours)
		})
		if len(keys) == 0 {
			return nil
		}
		for _, key := range keys {
			if err := p.put(ctx, key, nil); err != nil {
				return err
			}
		}
	}
}

// put writes the wanted value of a key, if there is one and it is not there yet.
func (p *Presence) put(ctx context.Context, key string, version *Version) error {
	if err := p.putting.lock(ctx); err != nil {
		return err
	}
	defer p.putting.unlock()
	p.mu.Lock()
	value, wanted := p.want[key]
	old, written := p.wrote[key]
	delete(p.stale, key)
	if wanted && (version != nil || !written || !bytes.Equal(old, value)) {
		delete(p.wrote, key)
	} else {
		wanted = false
	}
	p.mu.Unlock()
	if !wanted {
		return nil
	}
	err := p.call(ctx, func(ctx context.Context) error {
		return p.Store.Put(ctx, Put{Key: key, Value: value, Lease: p.lease, If: version})
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.stale[key] = true
		return err
	}
	p.wrote[key] = value
	return nil
}
