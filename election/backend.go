package election

import (
	"context"
	"errors"
	"time"
)

// The errors of a [Backend]. After any other error the outcome is unknown: the request may or may
// not have been carried out, and the caller finds out with [Backend.Read]. An unknown error is
// never treated as a loss before the deadline, nor as a success.
var (
	// ErrConflict: the store answered that a precondition does not hold. Nothing was changed.
	ErrConflict = errors.New("the precondition does not hold")
	// ErrNotYet comes with ErrConflict: the store lets nobody claim yet, because the lease of the
	// role key has just ended (Consul's lock-delay). No other candidate was first.
	ErrNotYet = errors.New("the store lets nobody claim yet")
	// ErrLost: the store answered that the lease is gone or the role key is not bound to it.
	ErrLost = errors.New("the lease is lost")
	// ErrDenied: the store refused the credentials.
	ErrDenied = errors.New("the store denied access")
	// ErrReadOnly: the store answered that it accepts no writes at all, from anybody (etcd: the
	// alarm NOSPACE).
	ErrReadOnly = errors.New("the store accepts no writes")
)

// Backend is one coordination store, as plain verbs on one cluster. It has no timing policy, no
// background renewal and no state that matters to correctness.
//
// Obligations: every call honours ctx and returns soon after it ends, whatever the network does.
// Every method may be called from several goroutines. Writes are linearizable, and no read is
// served from a replica that may be stale. A call is one attempt, hedged over the store's endpoints
// if it is idempotent. Package electiontest has the contract that every implementation passes.
//
// The names of the keys are in keys.go.
type Backend interface {
	// Traits returns what the store guarantees about leases.
	Traits() Traits

	// Read returns everything that the election needs, as of one moment that is not before the
	// call.
	Read(ctx context.Context) (Snapshot, error)

	// Watch returns a channel that receives a hint after anything that Read returns may have
	// changed. Changes that known controllers make to their own status may be omitted, because the
	// status is read with the rest whenever it matters. Hints coalesce, may be late and may be
	// spurious. The channel has a buffer of one and is closed when ctx has ended.
	Watch(ctx context.Context) <-chan Hint

	// Grant creates a lease that the store keeps for at least ttl after every renewal. It rounds
	// ttl up to what the store supports.
	Grant(ctx context.Context, ttl time.Duration) (LeaseID, error)

	// Renew prolongs a lease once. It does not involve the role key, so it proves nothing about a
	// reign.
	Renew(ctx context.Context, lease LeaseID) error

	// Hold prolongs h.Lease, and then proves in one linearizable transaction that the role key is
	// bound to it. The same transaction writes the beat key if h.Beat, and returns the role key. If
	// the role key is absent or not bound to the lease, the error is [ErrLost]. The caller compares
	// whether the value is the holder's own.
	Hold(ctx context.Context, h Hold) (Entry, error)

	// Revoke ends a lease and removes every key bound to it. A lease that does not exist is no
	// error.
	Revoke(ctx context.Context, lease LeaseID) error

	// Claim makes c.Active the holder, in one transaction: if the preconditions hold, it sets the
	// term key to c.Breadcrumb, the role key to c.Active bound to c.Lease, and the beat key if
	// c.Beat, and removes the url key and the role word of the previous holder. Otherwise it
	// returns [ErrConflict] (or [ErrLost] if c.Lease is gone) and changes nothing.
	Claim(ctx context.Context, c Claim) error

	// Publish rewrites the role key of the holder if it is still bound to lease, else it returns
	// [ErrLost]. In the same transaction, all bound to the lease: if a is serving, the url key is
	// set to a.URL and role/<controller> to "active"; otherwise both are removed.
	Publish(ctx context.Context, lease LeaseID, a Active) error

	// Release ends a reign if the role key is still bound to r.Lease, else it returns [ErrLost],
	// and if the term key has the version r.TermVersion, else [ErrConflict]. One transaction
	// removes the role key, the url key, the beat key and role/<controller>, and sets the term key
	// to r.Breadcrumb. Release also ends the lease itself; a failure to do only that is no error.
	Release(ctx context.Context, r Release) error

	// HandOver does in one transaction what Release does for the reign of lease and Claim for the
	// next one. The role key must still be bound to lease, else the error is [ErrLost], and the
	// heir key must have the version h.Heir and the term key h.TermVersion, else it is
	// [ErrConflict]. HandOver removes the heir key. If the heir's lease has ended, which need not
	// show in the heir key, there is some error and nothing is changed. HandOver also ends the
	// lease that it handed over from; a failure to do only that is no error.
	HandOver(ctx context.Context, lease LeaseID, h HandOver) error

	Keys
}

// Keys reads and writes the keys of a cluster that do not belong to the lease: role words of
// passives, status, request, pause, history. Names are relative to the cluster
// ("controllers/ctl-a").
type Keys interface {
	// Get returns one key, or Entry.Version zero if it is absent.
	Get(ctx context.Context, key string) (Entry, error)
	// List returns the keys that begin with prefix, in lexical order.
	List(ctx context.Context, prefix string) ([]Entry, error)
	// Put sets a key, bound to p.Lease unless that is empty. With p.If, it does so only if the key
	// has that version (zero: is absent), else it returns [ErrConflict]. If the lease is gone, it
	// returns [ErrLost].
	Put(ctx context.Context, p Put) error
	// Delete removes a key. With a non-zero version, it does so only if the key has that version,
	// else it returns [ErrConflict]. An absent key is no error.
	Delete(ctx context.Context, key string, version Version) error
}

// Traits are a store's guarantees about leases.
type Traits struct {
	Name   string        // "etcd", "consul", …
	MinTTL time.Duration // the shortest ttl that Grant supports
	// ExpirySlack is how much longer than ttl the lease of a dead holder may live, if the store's
	// leader does not change.
	ExpirySlack time.Duration
	// LeaderGap is how long renewals may fail while the store elects a new leader, with its default
	// settings.
	LeaderGap time.Duration
}

// Snapshot is the state of a cluster at one moment.
type Snapshot struct {
	Active        *Active // nil: the role key is absent
	ActiveLease   LeaseID // the lease that the role key is bound to; empty if none (a stranger wrote it)
	ActiveVersion Version
	ActiveBad     error // the role key exists and is unreadable; Active is then nil and ActiveVersion non-zero
	Beat          Version
	Breadcrumb    Breadcrumb
	TermVersion   Version
	TermBad       error        // the term key exists and is unreadable; Breadcrumb is then zero and TermVersion is not
	Controllers   []Controller // who is present, in order of names, without unreadable entries
	Request       *Request
	RequestVer    Version
	RequestBad    error // the request key exists and is unreadable; Request is then nil
	Pause         *Pause
	PauseVer      Version
	PauseBad      error // the pause key exists and is unreadable; the cluster is paused all the same
	Standbys      Standbys
	StandbyVer    Version
	StandbyBad    error // the standby key exists and is unreadable; Standbys is then empty
	Dead          *Dead // an operator's certificate; nil: none, or unreadable
	DeadBad       error // the dead key exists and is unreadable
	Heir          *Heir // the passive that is ready to be handed the reign; nil: none, or unreadable
	HeirVersion   Version
	Origin        Origin
}

// Origin distinguishes a store from another that has taken its place, such as one restored from a
// backup. Zero: the store has no such identity.
type Origin struct {
	Store string `json:"store,omitempty"` // identifies one cluster of servers
	Epoch uint64 `json:"epoch,omitempty"` // never decreases within one store
}

// continues reports whether o may be from the same store as before, and not from an earlier time.
func (o Origin) continues(before Origin) bool {
	return before == (Origin{}) || o.Store == before.Store && o.Epoch >= before.Epoch
}

// Vacant reports whether the role key is absent.
func (s Snapshot) Vacant() bool { return s.ActiveVersion == 0 }

// outlived returns the highest term that a controller reports as [Controller.Outlived].
func (s Snapshot) outlived() (highest Term) {
	for _, c := range s.Controllers {
		if c.Outlived <= highestByHand {
			highest = max(highest, c.Outlived)
		}
	}
	return highest
}

// Hold is one renewal of a reign.
type Hold struct {
	Lease LeaseID
	Beat  bool // write the beat key
}

// Release is one attempt to end a reign.
type Release struct {
	Lease      LeaseID
	Breadcrumb Breadcrumb // the term record to write
	// TermVersion is the precondition that the term key is as it was read, so that a write in
	// between (an operator who raised the term) is not overwritten. Zero: not compared.
	TermVersion Version
}

// Claim is one attempt to become the holder.
type Claim struct {
	Lease LeaseID // new; the reign is bound to it
	// Active is the record to write. Its Term is the term read plus one, or the same if a holder
	// binds its own reign to a new lease.
	Active      Active
	Breadcrumb  Breadcrumb // the term record to write
	TermVersion Version    // precondition: the term key is as it was read
	// Silent is a version of the beat key. Zero: the precondition is that the role key is absent.
	// Otherwise it is that the beat key still has this version, as it had throughout the silence;
	// the role key may then exist and is overwritten. (Every claim and release changes the term
	// key, so TermVersion covers the rest.)
	Silent   Version
	Beat     bool   // write the beat key
	Previous string // the controller whose role word is removed; may be empty
}

// HandOver is one attempt to end a reign and begin the heir's.
type HandOver struct {
	From       string     // the controller whose role word is removed
	Heir       Version    // precondition: the heir key is as it was read
	Lease      LeaseID    // the heir's; its reign is bound to it
	Active     Active     // the heir's record
	Breadcrumb Breadcrumb // of the heir's reign
	Beat       bool       // write the beat key, for the heir

	TermVersion Version // precondition: the term key is as it was read; zero: not compared
}

// Hint reports that something may have changed. It may also carry the role key as a change of it
// was seen. Like every reply of the store, that may be out of date when it is read, but it was true
// once.
type Hint struct {
	Active *Active // nil: not in the hint
	Lease  LeaseID // the lease that the role key was bound to
}

// Merge returns one hint that replaces h and a later one.
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

// Entry is one key as it was read.
type Entry struct {
	Key     string // relative to the cluster
	Value   []byte
	Version Version
	Lease   LeaseID
	Origin  Origin // only from [Backend.Hold]
}

// Sighting is what a follower (agentwatch, a proxy) learns about the role key.
type Sighting struct {
	Active *Active // nil: nobody is active, or that is unknown (Err)
	// Err is not nil while the store is unreachable or the role key is unreadable. Active is then
	// the last one seen.
	Err error
	At  time.Time // when it was learned
}

// Offer puts s into a channel with a buffer of one, in place of an older sighting. Only the caller
// sends to the channel.
func (s Sighting) Offer(out chan Sighting) {
	for {
		select {
		case out <- s:
			return
		default:
		}
		select {
		case <-out:
		default:
		}
	}
}
