package plugin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tanist/tanist/election"
)

// The answers of a [Store] that are no success. Besides these there are [election.ErrConflict],
// [election.ErrNotYet] (with ErrConflict), [election.ErrLost], [election.ErrDenied] and
// [election.ErrReadOnly]. After any other error the outcome is unknown.
var (
	// ErrNoLease: a lease that a write binds to is gone. Nothing was changed.
	ErrNoLease = errors.New("the lease of a write is gone")
	// ErrSettings: the settings of the file are wrong.
	ErrSettings = errors.New("the settings are wrong")
)

// Store is one cluster in a store of keys, versions and leases. A key has a value, a version and
// perhaps a lease, with which it disappears.
//
// Obligations: every call honours ctx and returns soon after it ends, whatever the network does.
// Every method may be called from several goroutines. Writes are linearizable, and no read is
// served from a replica that may be stale. A store renews nothing by itself, and keeps nothing that
// matters in its process: a lease that one process granted is renewed by the next.
type Store interface {
	// Read returns the keys of q that exist, as of one moment that is not before the call.
	Read(ctx context.Context, q Query) (View, error)

	// Grant creates a lease that the store keeps for at least ttl after every renewal. It rounds
	// ttl up to what the store supports. A lease's name has at most 256 printable characters, and is
	// never used again.
	Grant(ctx context.Context, ttl time.Duration) (election.LeaseID, error)

	// Renew prolongs a lease once, or returns [election.ErrLost] if it is gone.
	Renew(ctx context.Context, lease election.LeaseID) error

	// Revoke ends a lease and removes every key bound to it. A lease that does not exist is no
	// error.
	Revoke(ctx context.Context, lease election.LeaseID) error

	// Commit carries out c in one transaction, once, and returns the keys of c.Read as they are
	// right after it. If a condition does not hold it changes nothing and returns the condition's
	// error. A change without writes is a linearizable check of its conditions.
	Commit(ctx context.Context, c Change) (View, error)

	// Watch calls changed at the start, and after every change of a key and every end of a lease,
	// until ctx ends or the watch breaks; then it returns. Calls may be late, merged or spurious.
	// changed does not block.
	Watch(ctx context.Context, changed func()) error

	// Close releases what the store holds. It is called once, after the last call has returned.
	Close() error
}

// Lister is a [Store] that can list the names of all clusters.
type Lister interface {
	Clusters(ctx context.Context) ([]string, error)
}

// Query selects keys: some by name, and all that begin with one of the prefixes. The empty prefix
// selects all.
type Query struct {
	Keys     []string
	Prefixes []string
}

// Selects reports whether q selects a key.
func (q Query) Selects(key string) bool {
	return slices.Contains(q.Keys, key) ||
		slices.ContainsFunc(q.Prefixes, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
}

// View is what was read, in one moment.
type View struct {
	// Entries are the keys, with their versions. Entry.Origin is not used.
	Entries []election.Entry
	// Revision is not less than any version in the cluster at that moment, and never less than in an
	// earlier answer: most often the number of the last write. Zero only if nothing was ever
	// written.
	Revision election.Version
	// Origin identifies the store's servers, where they can be told from others that take their
	// place, such as a copy restored from a backup. May be empty.
	Origin string
}

// Change is one transaction.
type Change struct {
	// Bound is a condition, unless it is nil: the key is bound to the lease, else
	// [election.ErrLost].
	Bound *Binding
	// If are conditions: each key has the version, where zero means that it is absent, else
	// [election.ErrConflict].
	If []Condition
	// Writes are carried out if all conditions hold and every lease that one binds to exists, else
	// [ErrNoLease]. No key is written twice.
	Writes []Write
	// End is a lease to end in the same transaction, after the writes; empty: none. It removes the
	// keys that are still bound to it. That it does not exist is no error.
	End election.LeaseID
	// Read are the keys to return.
	Read []string
}

// Binding is a key and the lease that it is bound to.
type Binding struct {
	Key   string
	Lease election.LeaseID
}

// Condition is a key and the version that it must have; zero: it is absent.
type Condition struct {
	Key     string
	Version election.Version
}

// Write sets or removes a key.
type Write struct {
	Key    string
	Value  []byte
	Lease  election.LeaseID // empty: bound to none
	Remove bool             // an absent key is no error
}

// Settings is what the configuration file has for a plugin.
type Settings struct {
	Cluster string            // one path element: letters, digits, dot, underscore, hyphen
	Values  map[string]string // plugins.NAME.config
}

// Only returns an [ErrSettings] if there is a setting with another name than these.
func (s Settings) Only(names ...string) error {
	for _, name := range slices.Sorted(maps.Keys(s.Values)) {
		if !slices.Contains(names, name) {
			return fmt.Errorf("%w: %s is unknown: one of %s", ErrSettings, name, strings.Join(names, ", "))
		}
	}
	return nil
}
