package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// Store is one cluster in a PostgreSQL database. It implements [election.Backend]. All methods may be
// called from any goroutine.
type Store struct {
	cfg      Config
	dsn      *election.Credential
	password *election.Credential
	log      zerolog.Logger
	hedge    election.Hedge
	pool     pool
	listener listener

	ctx    context.Context //nolint:containedctx // ends with Close
	cancel context.CancelFunc

	role election.RoleMemory

	closing sync.Mutex
	closed  bool
	running sync.WaitGroup
}

var _ election.Backend = (*Store)(nil)

// Open checks the configuration and returns the store. It does not connect, so the server may be
// away.
func Open(cfg Config) (*Store, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, log: cfg.Log}
	var err error
	if s.dsn, err = election.OpenCredential(cfg.DSNFile, cfg.DSN); err != nil {
		return nil, fmt.Errorf("postgres.dsn_file: %v", err)
	}
	if s.password, err = election.OpenCredential(cfg.PasswordFile, ""); err != nil {
		return nil, fmt.Errorf("postgres.password_file: %v", err)
	}
	if _, err := s.parse(s.dsn.Words(false)[0], ""); err != nil {
		key := "postgres.dsn"
		if cfg.DSNFile != "" {
			key = "postgres.dsn_file"
		}
		return nil, fmt.Errorf("%s: %v", key, err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.hedge = s.newHedge()
	s.pool.open = func() (*link, error) { return s.connect(s.ctx, application) }
	s.pool.run = s.spawn
	s.listener.wake = map[any]waker{}
	return s, nil
}

// Close ends the connections and everything that still runs, and returns once nothing does.
func (s *Store) Close() error {
	s.closing.Lock()
	s.closed = true
	s.closing.Unlock()
	s.cancel()
	s.pool.close()
	s.running.Wait()
	return nil
}

// spawn runs f in a goroutine that Close waits for.
func (s *Store) spawn(f func()) error {
	s.closing.Lock()
	defer s.closing.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.running.Go(f)
	return nil
}

// Traits implements [election.Backend].
func (s *Store) Traits() election.Traits { return election.PostgresTraits() }

// entries reads some keys, and all with a prefix unless it is nil.
func (s *Store) entries(ctx context.Context, l *link, keys []string, prefix *string) ([]election.Entry, error) {
	rows, err := l.Query(ctx, "SELECT key, value, version, coalesce(lease, '') FROM tanist_store.read($1, $2::text[], $3)", s.cfg.Cluster, keys, prefix)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) (e election.Entry, err error) {
		err = r.Scan(&e.Key, &e.Value, (*uint64)(&e.Version), (*string)(&e.Lease))
		return e, err
	})
}

// Read implements [election.Backend].
func (s *Store) Read(ctx context.Context) (election.Snapshot, error) {
	return repeatable(ctx, s, "read", func(ctx context.Context, l *link) (election.Snapshot, error) {
		controllers := election.ControllerPrefix
		entries, err := s.entries(ctx, l, election.SnapshotKeys(), &controllers)
		if err != nil {
			return election.Snapshot{}, err
		}
		s.role.Read(entries)
		snap := election.SnapshotOf(entries)
		snap.Origin = l.origin
		return snap, nil
	})
}

// Grant implements [election.Backend].
func (s *Store) Grant(ctx context.Context, ttl time.Duration) (election.LeaseID, error) {
	ttl = max(ttl, s.Traits().MinTTL)
	// A superfluous lease ends by itself.
	return repeatable(ctx, s, "grant a lease", func(ctx context.Context, l *link) (election.LeaseID, error) {
		id, err := row(ctx, l, one[string], "SELECT tanist_store.grant_lease($1, $2)", s.cfg.Cluster, (ttl + time.Millisecond - 1).Milliseconds())
		return election.LeaseID(id), err
	})
}

// Renew implements [election.Backend].
func (s *Store) Renew(ctx context.Context, lease election.LeaseID) error {
	_, err := repeatable(ctx, s, "renew", func(ctx context.Context, l *link) (bool, error) {
		renewed, err := row(ctx, l, one[bool], "SELECT tanist_store.renew($1, $2)", s.cfg.Cluster, string(lease))
		if err == nil && !renewed {
			err = election.ErrLost
		}
		return renewed, err
	})
	return err
}

// Hold implements [election.Backend].
func (s *Store) Hold(ctx context.Context, h election.Hold) (election.Entry, error) {
	var beat *string
	if h.Beat {
		key := election.BeatKey
		beat = &key
	}
	return repeatable(ctx, s, "renew", func(ctx context.Context, l *link) (election.Entry, error) {
		e := election.Entry{Key: election.ActiveKey, Lease: h.Lease, Origin: l.origin}
		err := l.QueryRow(ctx, "SELECT value, version FROM tanist_store.hold($1, $2, $3, $4)", s.cfg.Cluster, string(h.Lease), election.ActiveKey, beat).
			Scan(&e.Value, (*uint64)(&e.Version))
		if errors.Is(err, pgx.ErrNoRows) {
			err = election.ErrLost
		}
		return e, err
	})
}

// Revoke implements [election.Backend].
func (s *Store) Revoke(ctx context.Context, lease election.LeaseID) error {
	_, err := repeatable(ctx, s, "revoke a lease", func(ctx context.Context, l *link) (struct{}, error) {
		_, err := l.Exec(ctx, "SELECT tanist_store.revoke_lease($1, $2)", s.cfg.Cluster, string(lease))
		return struct{}{}, err
	})
	return err
}

// change is one transaction: its conditions, and what it writes.
type change struct {
	bound    election.LeaseID // the role key must be bound to it; empty: not compared
	keys     []string         // conditions: these keys have
	versions []int64          // these versions; zero means absent
	write    []string         // the keys to write, the first of which is reported
	values   [][]byte         // nil: removed
	leases   []*string        // nil: bound to none
	end      election.LeaseID // a lease to end; empty: none
}

func (c *change) is(key string, v election.Version) {
	c.keys, c.versions = append(c.keys, key), append(c.versions, int64(v))
}

func (c *change) put(key string, value []byte, lease election.LeaseID) {
	var to *string
	if lease != "" {
		to = new(string(lease))
	}
	if value == nil {
		value = []byte{}
	}
	c.write, c.values, c.leases = append(c.write, key), append(c.values, value), append(c.leases, to)
}

func (c *change) remove(key string) {
	c.write, c.values, c.leases = append(c.write, key), append(c.values, nil), append(c.leases, nil)
}

// beat writes the beat key of a new reign, or removes that of an earlier one, whose silence must not
// count against the new holder.
func (c *change) beat(beat bool, lease election.LeaseID) {
	if beat {
		c.put(election.BeatKey, nil, lease)
	} else {
		c.remove(election.BeatKey)
	}
}

// swap runs one transaction once, and returns the version of the first key that it wrote.
func (s *Store) swap(ctx context.Context, verb string, c change) (election.Version, error) {
	type outcome struct {
		result  string
		version *int64
	}
	scan := func(r pgx.Row, to *outcome) error { return r.Scan(&to.result, &to.version) }
	var bound *string
	if c.bound != "" {
		bound = new(election.ActiveKey)
	}
	return once(ctx, s, verb, func(ctx context.Context, l *link) (election.Version, error) {
		got, err := row(ctx, l, scan, "SELECT result, version FROM tanist_store.swap($1, $2, $3, $4::text[], $5::bigint[], $6::text[], $7::bytea[], $8::text[], $9)",
			s.cfg.Cluster, bound, string(c.bound), c.keys, c.versions, c.write, c.values, c.leases, string(c.end))
		switch {
		case err != nil:
			return 0, err
		case got.result == "lost":
			return 0, election.ErrLost
		case got.result != "done":
			return 0, election.ErrConflict
		case got.version == nil:
			return 0, nil
		}
		return election.Version(*got.version), nil
	})
}

// Claim implements [election.Backend].
func (s *Store) Claim(ctx context.Context, c election.Claim) error {
	var t change
	t.is(election.TermKey, c.TermVersion)
	if c.Silent == 0 {
		t.is(election.ActiveKey, 0)
	} else {
		t.is(election.BeatKey, c.Silent)
	}
	t.put(election.ActiveKey, c.Active.Encode(), c.Lease)
	t.put(election.TermKey, c.Breadcrumb.Encode(), "")
	t.remove(election.URLKey)
	t.remove(election.HeirKey)
	t.beat(c.Beat, c.Lease)
	if c.Previous != "" {
		t.remove(election.RoleWordKey(c.Previous))
	}
	at, err := s.swap(ctx, "claim", t)
	s.role.Wrote(c.Lease, at)
	return err
}

// current returns the version of the role key while it is bound to lease. If the memory is out of
// date, the transaction that relies on it fails with a conflict.
func (s *Store) current(ctx context.Context, lease election.LeaseID, anew bool) (election.Version, error) {
	return s.role.Current(lease, anew, func() (election.Entry, error) { return s.Get(ctx, election.ActiveKey) })
}

// Publish implements [election.Backend]. It also compares the version of the role key, so that an
// abandoned publication that arrives late can't undo a later one.
func (s *Store) Publish(ctx context.Context, lease election.LeaseID, a election.Active) error {
	for anew := false; ; anew = true {
		is, err := s.current(ctx, lease, anew)
		if err != nil {
			return fmt.Errorf("cannot publish: %w", err)
		}
		t := change{bound: lease}
		t.is(election.ActiveKey, is)
		t.put(election.ActiveKey, a.Encode(), lease)
		if a.Serving() {
			t.put(election.RoleWordKey(a.Controller), []byte(election.RoleActive), lease)
		} else {
			t.remove(election.RoleWordKey(a.Controller))
		}
		if a.Serving() && a.URL != "" {
			t.put(election.URLKey, []byte(a.URL), lease)
		} else {
			t.remove(election.URLKey)
		}
		at, err := s.swap(ctx, "publish", t)
		s.role.Wrote(lease, at)
		if !errors.Is(err, election.ErrConflict) {
			return err
		}
		// Another publication of this holder came between: read to find out.
	}
}

// Release implements [election.Backend].
func (s *Store) Release(ctx context.Context, r election.Release) error {
	t := change{bound: r.Lease, end: r.Lease}
	if r.TermVersion != 0 {
		t.is(election.TermKey, r.TermVersion)
	}
	t.put(election.TermKey, r.Breadcrumb.Encode(), "")
	t.remove(election.ActiveKey)
	t.remove(election.URLKey)
	t.remove(election.BeatKey)
	if r.Breadcrumb.Controller != "" {
		t.remove(election.RoleWordKey(r.Breadcrumb.Controller))
	}
	_, err := s.swap(ctx, "release", t)
	return err
}

// HandOver implements [election.Backend].
func (s *Store) HandOver(ctx context.Context, lease election.LeaseID, h election.HandOver) error {
	t := change{bound: lease, end: lease}
	t.is(election.HeirKey, h.Heir)
	if h.TermVersion != 0 {
		t.is(election.TermKey, h.TermVersion)
	}
	t.put(election.TermKey, h.Breadcrumb.Encode(), "")
	t.put(election.ActiveKey, h.Active.Encode(), h.Lease)
	t.beat(h.Beat, h.Lease)
	t.remove(election.URLKey)
	t.remove(election.HeirKey)
	t.remove(election.RoleWordKey(h.From))
	_, err := s.swap(ctx, "hand over", t)
	return err
}

// Get implements [election.Keys].
func (s *Store) Get(ctx context.Context, key string) (election.Entry, error) {
	return repeatable(ctx, s, "get "+key, func(ctx context.Context, l *link) (election.Entry, error) {
		entries, err := s.entries(ctx, l, []string{key}, nil)
		if err != nil || len(entries) == 0 {
			return election.Entry{Key: key}, err
		}
		return entries[0], nil
	})
}

// List implements [election.Keys].
func (s *Store) List(ctx context.Context, prefix string) ([]election.Entry, error) {
	return repeatable(ctx, s, "list "+prefix, func(ctx context.Context, l *link) ([]election.Entry, error) {
		return s.entries(ctx, l, []string{}, &prefix)
	})
}

// Clusters returns the names of all clusters that the login may use, in lexical order. The store's own
// need not be one of them.
func (s *Store) Clusters(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	l, err := s.reach(ctx, application, meet)
	if err != nil {
		return nil, fmt.Errorf("cannot list the clusters: %w", err)
	}
	defer l.close()
	rows, err := l.Query(ctx, "SELECT * FROM tanist_store.clusters()")
	if err == nil {
		var names []string
		if names, err = pgx.CollectRows(rows, pgx.RowTo[string]); err == nil {
			return names, nil
		}
	}
	return nil, fmt.Errorf("cannot list the clusters: %w", meaning(err))
}

// Put implements [election.Keys].
func (s *Store) Put(ctx context.Context, p election.Put) error {
	if p.Key == "" {
		return errors.New("cannot put: the key is empty")
	}
	var t change
	if p.If != nil {
		t.is(p.Key, *p.If)
	}
	t.put(p.Key, p.Value, p.Lease)
	_, err := s.swap(ctx, "put "+p.Key, t)
	return err
}

// Delete implements [election.Keys].
func (s *Store) Delete(ctx context.Context, key string, v election.Version) error {
	if key == "" {
		return errors.New("cannot delete: the key is empty")
	}
	_, err := once(ctx, s, "delete "+key, func(ctx context.Context, l *link) (string, error) {
		result, err := row(ctx, l, one[string], "SELECT tanist_store.remove($1, $2, $3)", s.cfg.Cluster, key, int64(v))
		if err == nil && result != "done" {
			err = election.ErrConflict
		}
		return result, err
	})
	return err
}
