package election

import (
	"context"
	"errors"
	"time"
)

// The errors of a [Backend]. Everything else means "not known": the request may or may not have been carried out, and
// the caller finds out with [Backend.Read]. An unknown error is never taken as a loss before the deadline, nor as a
// success.
var (
	// ErrConflict: the store answered, and a precondition did not hold. Nothing was changed.
	ErrConflict = errors.New("the precondition does not hold")
	// ErrLost: the store answered, and the lease is gone or the role key is not bound to it.
	ErrLost = errors.New("the lease is lost")
	// ErrDenied: the store refused the credentials.
	ErrDenied = errors.New("the store denied access")
)

// Backend is one coordination store, seen as plain verbs on one cluster. It has no timing policy, no background
// renewal and no state that matters to correctness.
//
// Obligations: every call honours ctx and returns soon after it ends, whatever the network does. Every method may be
// called from several goroutines. Writes are linearizable; no read is ever served from a replica that may be stale.
// A call is one attempt, hedged over the store's endpoints where it is idempotent. Package electiontest has the
// contract that every implementation passes.
//
// Keys are those of the design: active, url, beat, term, heir, role/<controller>, controllers/<name>, agents/<name>,
// settings, pause, request, history/<term>.
type Backend interface {
	// Traits tells what the store promises about leases.
	Traits() Traits

	// Read returns everything that the election needs, as of one moment that is not before the call.
	Read(ctx context.Context) (Snapshot, error)

	// Watch returns a channel that receives a hint after anything that Read returns may have changed; what a controller that is
	// known says of itself may be left out, because it is read with the rest whenever it matters. Hints
	// coalesce, may be late and may be spurious; the channel has a buffer of one and is closed when ctx has ended.
	Watch(ctx context.Context) <-chan Hint

	// Grant creates a lease that the store keeps for at least ttl after every renewal. ttl is rounded up
	// to what the store can do.
	Grant(ctx context.Context, ttl time.Duration) (LeaseID, error)

	// Renew prolongs a lease once. With r.Hold it also proves, after the prolongation and by a linearizable
	// read or write, that the role key is bound to the lease, and answers [ErrLost] if it is not.
	Renew(ctx context.Context, r Renewal) error

	// Revoke ends a lease and removes every key bound to it. A lease that does not exist is no error.
	Revoke(ctx context.Context, lease LeaseID) error

	// Claim makes c.Active the holder, in one transaction: if the preconditions hold, it sets the term key to
	// c.Breadcrumb, the role key to c.Active bound to c.Lease, the beat key if c.Beat, and removes the url key and
	// the role word of the previous holder. Otherwise it answers [ErrConflict] (or [ErrLost] if c.Lease is gone)
	// and changes nothing.
	Claim(ctx context.Context, c Claim) error

	// Publish rewrites the role key of the holder, if it is still bound to lease, else [ErrLost]. In the same
	// transaction, all bound to the lease: if a is serving, the url key is set to a.URL and role/<controller>
	// to "active"; otherwise both are removed.
	Publish(ctx context.Context, lease LeaseID, a Active) error

	// Release ends a reign, if the role key is still bound to lease, else [ErrLost]: in one transaction, the role
	// key, the url key, the beat key and role/<controller> are removed and the term key is set to b. The lease
	// itself is ended too; a failure to do that alone is no error.
	Release(ctx context.Context, lease LeaseID, b Breadcrumb) error

	// HandOver does in one transaction what Release does for the reign of lease and Claim for the one after it, if the role
	// key is still bound to lease, else [ErrLost], and the heir key still has the version h.Heir, else [ErrConflict]. The
	// heir key is removed. The heir's lease may have ended without a trace in the heir key; that too is an error of some kind,
	// and nothing is changed. The lease that was handed over is ended too; a failure to do that alone is no error.
	HandOver(ctx context.Context, lease LeaseID, h HandOver) error

	Keys
}

// Keys reads and writes the keys of a cluster that are not the lease's own: role words of passives, status, request,
// pause, settings, history. Names are relative to the cluster ("controllers/ctl-a").
type Keys interface {
	// Get returns one key, or Entry.Version zero if it is absent.
	Get(ctx context.Context, key string) (Entry, error)
	// List returns the keys that begin with prefix, in lexical order.
	List(ctx context.Context, prefix string) ([]Entry, error)
	// Put sets a key, bound to p.Lease unless that is empty. With p.If, only if the key has that version
	// (zero: is absent), else [ErrConflict]. A lease that is gone gives [ErrLost].
	Put(ctx context.Context, p Put) error
	// Delete removes a key. With a non-zero version, only if the key has that version, else [ErrConflict]. A key
	// that is absent is no error.
	Delete(ctx context.Context, key string, version Version) error
}

// Traits are a store's promises about leases, as the adapter knows them.
type Traits struct {
	Name        string        // "etcd", "consul", …
	MinTTL      time.Duration // the shortest ttl that Grant can do
	ExpirySlack time.Duration // how much longer than ttl a lease of a dead holder may live, store leader unchanged
	// LeaderGap is how long renewals may fail while the store elects a new leader, with its default settings.
	LeaderGap time.Duration
}

// Snapshot is the state of a cluster at one moment.
type Snapshot struct {
	Active        *Active // nil: the role key is absent
	ActiveLease   LeaseID // the lease that the role key is bound to; empty if none (a stranger wrote it)
	ActiveVersion Version
	ActiveBad     error // the role key is there and can't be read; Active is then nil and ActiveVersion non-zero
	Beat          Version
	Breadcrumb    Breadcrumb
	TermVersion   Version
	Controllers   []Controller // who is present, in order of names; entries that can't be read are left out
	Request       *Request
	RequestVer    Version
	Pause         *Pause
	PauseVer      Version
	Heir          *Heir // who is ready to be handed the reign; nil: nobody, or it can't be read
	HeirVersion   Version
}

// Vacant reports whether the role key is absent.
func (s Snapshot) Vacant() bool { return s.ActiveVersion == 0 }

// Renewal is one renewal of a lease.
type Renewal struct {
	Lease LeaseID
	Hold  bool // prove that the role key is bound to the lease
	Beat  bool // and write the beat key (only with Hold)
}

// Claim is one attempt to become the holder.
type Claim struct {
	Lease       LeaseID    // fresh; the reign is bound to it
	Active      Active     // the record to write; its Term is the term read plus one
	Breadcrumb  Breadcrumb // the term record to write
	TermVersion Version    // precondition: the term key is as it was read
	// Silent is a version of the beat key. Zero: the precondition is that the role key is absent. Otherwise: that the
	// beat key still has this version, as it had all through the silence; the role key may then be there and is
	// overwritten. (Every claim and release changes the term key, so TermVersion covers the rest.)
	Silent   Version
	Beat     bool   // write the beat key
	Previous string // controller whose role word is to be removed; may be empty
}

// HandOver is one attempt to end a reign and begin the heir's.
type HandOver struct {
	From       string     // the controller whose role word is removed
	Heir       Version    // precondition: the heir key is as it was read
	Lease      LeaseID    // the heir's; its reign is bound to it
	Active     Active     // the heir's record
	Breadcrumb Breadcrumb // of the heir's reign
	Beat       bool       // write the beat key, for the heir
}

// Hint says that something may have changed. It may also say what became of the role key, as a change of it was seen; that is
// old news by the time it is read, like every reply of the store, but it was true once.
type Hint struct {
	Active *Active // nil: the hint does not say
	Lease  LeaseID // that the role key was bound to
}

// Merge returns the hint that stands for h and a later one.
func (h Hint) Merge(later Hint) Hint {
	if later.Active == nil {
		return h
	}
	return later
}

// Put is one write of a key.
type Put struct {
	Key   string
	Value []byte
	Lease LeaseID
	If    *Version
}

// Entry is one key as read.
type Entry struct {
	Key     string // relative to the cluster
	Value   []byte
	Version Version
	Lease   LeaseID
}

// Sighting is what a follower (agentwatch, a proxy) learns of the role key.
type Sighting struct {
	Active *Active // nil: nobody is active, or it is not known (Err)
	// Err is not nil while the store can't be reached or the role key can't be read. Active then is the last one that
	// was seen.
	Err error
	At  time.Time // when it was learned
}
