package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// Backend is an election on a [Store]. It implements [election.Backend] and Follow, and knows which
// keys a claim compares and writes. All methods may be called from any goroutine.
type Backend struct {
	store  Store
	traits election.Traits
	reread time.Duration
	log    zerolog.Logger
	role   election.RoleMemory

	ctx     context.Context //nolint:containedctx // ends with Close
	cancel  context.CancelFunc
	closing sync.Mutex
	closed  bool
	running sync.WaitGroup
}

var _ election.Backend = (*Backend)(nil)

// Options are those of a [Backend].
type Options struct {
	Traits election.Traits // what the store guarantees about leases
	// RereadEvery is how often Follow reads the role key although no hint has come, give or take a
	// quarter. Zero: 10 s.
	RereadEvery time.Duration
	Log         zerolog.Logger // the zero value logs nothing
}

const (
	defaultRereadEvery = 10 * time.Second
	// callLimit bounds calls whose context allows more.
	callLimit = 5 * time.Second
)

// ErrClosed is returned by calls after Close.
var ErrClosed = errors.New("the store is closed")

// NewBackend builds an election on a store, which it owns: [Backend.Close] closes it.
func NewBackend(store Store, o Options) *Backend {
	b := &Backend{store: store, traits: o.Traits, reread: cmp.Or(o.RereadEvery, defaultRereadEvery), log: o.Log}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// Close ends the watches, closes the store, and returns once nothing runs.
func (b *Backend) Close() error {
	b.closing.Lock()
	again := b.closed
	b.closed = true
	b.closing.Unlock()
	if again {
		return nil
	}
	b.cancel()
	b.running.Wait()
	return b.store.Close()
}

// spawn runs f in a goroutine that Close waits for.
func (b *Backend) spawn(f func()) error {
	b.closing.Lock()
	defer b.closing.Unlock()
	if b.closed {
		return ErrClosed
	}
	b.running.Go(f)
	return nil
}

// call runs one request. A context that has ended sends nothing.
func call[T any](ctx context.Context, b *Backend, verb string, f func(context.Context) (T, error)) (value T, err error) {
	b.closing.Lock()
	if b.closed {
		b.closing.Unlock()
		return value, fmt.Errorf("cannot %s: %w", verb, ErrClosed)
	}
	b.running.Add(1)
	b.closing.Unlock()
	defer b.running.Done()
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	stop := context.AfterFunc(b.ctx, cancel)
	defer stop()
	if err = ctx.Err(); err == nil {
		value, err = f(ctx)
	}
	if err != nil {
		return value, fmt.Errorf("cannot %s: %w", verb, err)
	}
	return value, nil
}

// Traits implements [election.Backend].
func (b *Backend) Traits() election.Traits { return b.traits }

// Read implements [election.Backend].
func (b *Backend) Read(ctx context.Context) (election.Snapshot, error) {
	q := Query{Keys: election.SnapshotKeys(), Prefixes: []string{election.ControllerPrefix}}
	view, err := call(ctx, b, "read", func(ctx context.Context) (View, error) { return b.store.Read(ctx, q) })
	if err != nil {
		return election.Snapshot{}, err
	}
	entries := sorted(view.Entries)
	b.role.Read(entries)
	snap := election.SnapshotOf(entries)
	snap.Origin = view.origin()
	return snap, nil
}

func (v View) origin() election.Origin {
	if v.Origin == "" {
		return election.Origin{}
	}
	return election.Origin{Store: v.Origin}
}

func sorted(entries []election.Entry) []election.Entry {
	slices.SortFunc(entries, func(a, b election.Entry) int { return cmp.Compare(a.Key, b.Key) })
	return entries
}

// Grant implements [election.Backend].
func (b *Backend) Grant(ctx context.Context, ttl time.Duration) (election.LeaseID, error) {
	return call(ctx, b, "grant a lease", func(ctx context.Context) (election.LeaseID, error) {
		id, err := b.store.Grant(ctx, max(ttl, b.traits.MinTTL))
		if err == nil && id == "" {
			err = errors.New("the name of the lease is empty")
		}
		return id, err
	})
}

// Renew implements [election.Backend].
func (b *Backend) Renew(ctx context.Context, lease election.LeaseID) error {
	_, err := call(ctx, b, "renew", func(ctx context.Context) (struct{}, error) { return struct{}{}, b.store.Renew(ctx, lease) })
	return err
}

// renewer is a [Store] that prolongs a lease and commits in one request. The prolongation comes
// first.
type renewer interface {
	RenewAndCommit(ctx context.Context, lease election.LeaseID, c Change) (View, error)
}

// Hold implements [election.Backend].
func (b *Backend) Hold(ctx context.Context, h election.Hold) (election.Entry, error) {
	c := Change{Bound: &Binding{election.ActiveKey, h.Lease}, Read: []string{election.ActiveKey}}
	if h.Beat {
		c.Writes = []Write{{Key: election.BeatKey, Lease: h.Lease}}
	}
	return call(ctx, b, "renew", func(ctx context.Context) (election.Entry, error) {
		view, err := renewAndCommit(ctx, b.store, h.Lease, c)
		if errors.Is(err, ErrNoLease) {
			err = election.ErrLost
		}
		if err != nil {
			return election.Entry{}, err
		}
		e, err := view.only(election.ActiveKey)
		if err == nil && e.Lease != h.Lease {
			err = fmt.Errorf("the role key is shown as bound to %q, after a renewal that compared it with %q", e.Lease, h.Lease)
		}
		e.Origin = view.origin()
		return e, err
	})
}

func renewAndCommit(ctx context.Context, s Store, lease election.LeaseID, c Change) (View, error) {
	if r, ok := s.(renewer); ok {
		return r.RenewAndCommit(ctx, lease, c)
	}
	if err := s.Renew(ctx, lease); err != nil {
		return View{}, err
	}
	return s.Commit(ctx, c)
}

// only returns the one key that was asked for.
func (v View) only(key string) (election.Entry, error) {
	if len(v.Entries) != 1 || v.Entries[0].Key != key {
		return election.Entry{}, fmt.Errorf("the store answered with %d keys, and %s was asked for", len(v.Entries), key)
	}
	return v.Entries[0], nil
}

// Revoke implements [election.Backend].
func (b *Backend) Revoke(ctx context.Context, lease election.LeaseID) error {
	_, err := call(ctx, b, "revoke a lease", func(ctx context.Context) (struct{}, error) { return struct{}{}, b.store.Revoke(ctx, lease) })
	return err
}

// swap commits a change once. It returns the version of the role key if the change wrote that,
// otherwise zero.
func (b *Backend) swap(ctx context.Context, verb string, c Change) (election.Version, error) {
	for _, w := range c.Writes {
		if w.Key == election.ActiveKey && !w.Remove {
			c.Read = []string{election.ActiveKey}
		}
	}
	view, err := call(ctx, b, verb, func(ctx context.Context) (View, error) { return b.store.Commit(ctx, c) })
	if err != nil || len(view.Entries) != 1 {
		return 0, err
	}
	return view.Entries[0].Version, nil
}

// put returns the write of a key, and remove that of its removal.
func put(key string, value []byte, lease election.LeaseID) Write {
	return Write{Key: key, Value: value, Lease: lease}
}

func remove(key string) Write { return Write{Key: key, Remove: true} }

// beat writes the beat key of a new reign, or removes that of an earlier one, whose silence must not
// count against the new holder.
func beat(beat bool, lease election.LeaseID) Write {
	if beat {
		return put(election.BeatKey, nil, lease)
	}
	return remove(election.BeatKey)
}

// Claim implements [election.Backend].
func (b *Backend) Claim(ctx context.Context, c election.Claim) error {
	t := Change{If: []Condition{{election.TermKey, c.TermVersion}}}
	if c.Silent == 0 {
		t.If = append(t.If, Condition{election.ActiveKey, 0})
	} else {
		t.If = append(t.If, Condition{election.BeatKey, c.Silent})
	}
	t.Writes = []Write{
		put(election.ActiveKey, c.Active.Encode(), c.Lease),
		put(election.TermKey, c.Breadcrumb.Encode(), ""),
		remove(election.URLKey),
		remove(election.HeirKey),
		beat(c.Beat, c.Lease),
	}
	if c.Previous != "" {
		t.Writes = append(t.Writes, remove(election.RoleWordKey(c.Previous)))
	}
	at, err := b.swap(ctx, "claim", t)
	b.role.Wrote(c.Lease, at)
	return leaseLost(err)
}

// leaseLost words the end of a lease that a write needed as the loss of that lease.
func leaseLost(err error) error {
	if errors.Is(err, ErrNoLease) {
		return fmt.Errorf("%w: %w", election.ErrLost, err)
	}
	return err
}

// Publish implements [election.Backend]. It also compares the version of the role key, so that an
// abandoned publication that arrives late can't undo a later one.
func (b *Backend) Publish(ctx context.Context, lease election.LeaseID, a election.Active) error {
	for anew := false; ; anew = true {
		is, err := b.role.Current(lease, anew, func() (election.Entry, error) { return b.Get(ctx, election.ActiveKey) })
		if err != nil {
			return fmt.Errorf("cannot publish: %w", err)
		}
		t := Change{Bound: &Binding{election.ActiveKey, lease}, If: []Condition{{election.ActiveKey, is}}}
		t.Writes = []Write{put(election.ActiveKey, a.Encode(), lease)}
		if a.Serving() {
			t.Writes = append(t.Writes, put(election.RoleWordKey(a.Controller), []byte(election.RoleActive), lease))
		} else {
			t.Writes = append(t.Writes, remove(election.RoleWordKey(a.Controller)))
		}
		if a.Serving() && a.URL != "" {
			t.Writes = append(t.Writes, put(election.URLKey, []byte(a.URL), lease))
		} else {
			t.Writes = append(t.Writes, remove(election.URLKey))
		}
		at, err := b.swap(ctx, "publish", t)
		b.role.Wrote(lease, at)
		if !errors.Is(err, election.ErrConflict) {
			return leaseLost(err)
		}
		// Another publication of this holder came between: read to find out.
	}
}

// Release implements [election.Backend].
func (b *Backend) Release(ctx context.Context, r election.Release) error {
	t := Change{Bound: &Binding{election.ActiveKey, r.Lease}, End: r.Lease}
	if r.TermVersion != 0 {
		t.If = append(t.If, Condition{election.TermKey, r.TermVersion})
	}
	t.Writes = []Write{
		put(election.TermKey, r.Breadcrumb.Encode(), ""),
		remove(election.ActiveKey),
		remove(election.URLKey),
		remove(election.BeatKey),
	}
	if r.Breadcrumb.Controller != "" {
		t.Writes = append(t.Writes, remove(election.RoleWordKey(r.Breadcrumb.Controller)))
	}
	_, err := b.swap(ctx, "release", t)
	return err
}

// HandOver implements [election.Backend].
func (b *Backend) HandOver(ctx context.Context, lease election.LeaseID, h election.HandOver) error {
	t := Change{Bound: &Binding{election.ActiveKey, lease}, If: []Condition{{election.HeirKey, h.Heir}}, End: lease}
	if h.TermVersion != 0 {
		t.If = append(t.If, Condition{election.TermKey, h.TermVersion})
	}
	t.Writes = []Write{
		put(election.TermKey, h.Breadcrumb.Encode(), ""),
		put(election.ActiveKey, h.Active.Encode(), h.Lease),
		beat(h.Beat, h.Lease),
		remove(election.URLKey),
		remove(election.HeirKey),
		remove(election.RoleWordKey(h.From)),
	}
	_, err := b.swap(ctx, "hand over", t)
	if errors.Is(err, ErrNoLease) { // the heir's: this holder has lost nothing
		return fmt.Errorf("%w: %w", election.ErrConflict, err)
	}
	return err
}

// Get implements [election.Keys].
func (b *Backend) Get(ctx context.Context, key string) (election.Entry, error) {
	return call(ctx, b, "get "+key, func(ctx context.Context) (election.Entry, error) {
		view, err := b.store.Read(ctx, Query{Keys: []string{key}})
		if err != nil || len(view.Entries) == 0 {
			return election.Entry{Key: key}, err
		}
		return view.only(key)
	})
}

// List implements [election.Keys].
func (b *Backend) List(ctx context.Context, prefix string) ([]election.Entry, error) {
	return call(ctx, b, "list "+prefix, func(ctx context.Context) ([]election.Entry, error) {
		view, err := b.store.Read(ctx, Query{Prefixes: []string{prefix}})
		return sorted(view.Entries), err
	})
}

// Put implements [election.Keys].
func (b *Backend) Put(ctx context.Context, p election.Put) error {
	if p.Key == "" {
		return errors.New("cannot put: the key is empty")
	}
	t := Change{Writes: []Write{put(p.Key, p.Value, p.Lease)}}
	if p.If != nil {
		t.If = []Condition{{p.Key, *p.If}}
	}
	_, err := b.swap(ctx, "put "+p.Key, t)
	return leaseLost(err)
}

// Delete implements [election.Keys].
func (b *Backend) Delete(ctx context.Context, key string, v election.Version) error {
	if key == "" {
		return errors.New("cannot delete: the key is empty")
	}
	t := Change{Writes: []Write{remove(key)}}
	if v != 0 {
		t.If = []Condition{{key, v}}
	}
	_, err := b.swap(ctx, "delete "+key, t)
	if v == 0 || !errors.Is(err, election.ErrConflict) {
		return err
	}
	if e, e2 := b.Get(ctx, key); e2 == nil && e.Version == 0 {
		return nil // absent already
	}
	return err
}

// Clusters returns the names of all clusters in the store, in lexical order.
func (b *Backend) Clusters(ctx context.Context) ([]string, error) {
	lister, ok := b.store.(Lister)
	if !ok {
		return nil, fmt.Errorf("cannot list the clusters: %w", errors.ErrUnsupported)
	}
	return call(ctx, b, "list the clusters", func(ctx context.Context) ([]string, error) {
		names, err := lister.Clusters(ctx)
		slices.Sort(names)
		return names, err
	})
}
