package etcd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tanist/tanist/election"
)

// Store is one cluster in etcd. It implements [election.Backend]. All methods may be called from
// any goroutine.
type Store struct {
	root      string // "/tanist/orders/"
	all       string // "/tanist/"
	endpoints []*endpoint
	hedge     election.Hedge
	reread    time.Duration
	dial      time.Duration

	manyRevisions int64 // see the constant; tests lower it

	log zerolog.Logger

	ctx    context.Context //nolint:containedctx // ends with Close
	cancel context.CancelFunc

	role election.RoleMemory

	closing sync.Mutex
	closed  bool
	running sync.WaitGroup
}

var _ election.Backend = (*Store)(nil)

// Open checks the configuration and returns the store. It does not connect, so etcd may be away.
func Open(cfg Config) (*Store, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	trust, err := election.OpenTrust(cfg.TLS)
	if err != nil {
		return nil, fmt.Errorf("cannot use etcd.tls: %v", err)
	}
	secret, err := election.OpenCredential(cfg.PasswordFile, cfg.Password)
	if err != nil {
		return nil, fmt.Errorf("cannot use etcd.password_file: %v", err)
	}
	s := &Store{
		root: election.ClusterPath(cfg.Prefix, cfg.Cluster), all: strings.TrimSuffix(cfg.Prefix, "/") + "/",
		reread: cfg.RereadEvery, dial: cfg.DialTimeout, manyRevisions: manyRevisions, log: cfg.Log,
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for i, url := range cfg.Endpoints {
		e, err := newEndpoint(s.ctx, i, &cfg, trust, secret)
		if err != nil {
			_ = s.Close()
			return nil, fmt.Errorf("cannot use the etcd endpoint %s: %v", url, err)
		}
		s.endpoints = append(s.endpoints, e)
	}
	s.hedge.Endpoints, s.hedge.Go = len(s.endpoints), s.spawn
	s.hedge.Down = func(i int) bool { return s.endpoints[i].down() }
	s.hedge.Prefer(rand.N(len(s.endpoints))) // spread the hosts over the members
	s.hedge.Moved = func(from, to int) {
		s.log.Debug().Str("from", s.endpoints[from].url).Str("to", s.endpoints[to].url).Msg("preferring another etcd endpoint")
	}
	return s, nil
}

// Close ends the connections and everything that still runs, and returns once nothing does.
func (s *Store) Close() error {
	s.closing.Lock()
	s.closed = true
	s.closing.Unlock()
	s.cancel()
	for _, e := range s.endpoints {
		_ = e.client.Close() // its only error is that its context was cancelled
	}
	s.running.Wait()
	return nil
}

// ErrClosed is the error of a call after Close.
var ErrClosed = errors.New("the store was closed")

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
func (s *Store) Traits() election.Traits { return election.EtcdTraits() }

// leaseID and leaseOf convert between etcd's ids and their text, which is etcdctl's.
func leaseID(l election.LeaseID) (clientv3.LeaseID, error) {
	n, err := strconv.ParseInt(string(l), 16, 64)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not the id of an etcd lease", l)
	}
	return clientv3.LeaseID(n), nil
}

func leaseOf(n int64) election.LeaseID {
	if n == 0 {
		return ""
	}
	return election.LeaseID(strconv.FormatInt(n, 16))
}

// Read implements [election.Backend].
func (s *Store) Read(ctx context.Context) (election.Snapshot, error) {
	return hedge(ctx, s, "read", func(ctx context.Context, c *clientv3.Client) (election.Snapshot, error) {
		var ops []clientv3.Op
		for _, key := range election.SnapshotKeys() {
			ops = append(ops, clientv3.OpGet(s.root+key))
		}
		resp, err := c.Txn(ctx).Then(append(ops, clientv3.OpGet(s.root+election.ControllerPrefix, clientv3.WithPrefix()))...).Commit()
		if err != nil {
			return election.Snapshot{}, err
		}
		var entries []election.Entry
		for _, r := range resp.Responses {
			for _, kv := range r.GetResponseRange().GetKvs() {
				entries = append(entries, s.entry(kv))
			}
		}
		s.role.Read(entries)
		snap := election.SnapshotOf(entries)
		snap.Origin = originOf(resp.Header)
		return snap, nil
	})
}

// Grant implements [election.Backend]. ttl is rounded up to seconds.
func (s *Store) Grant(ctx context.Context, ttl time.Duration) (election.LeaseID, error) {
	seconds := int64(math.Ceil(ttl.Seconds()))
	// The request is repeatable: a superfluous lease expires by itself.
	return hedge(ctx, s, "grant a lease", func(ctx context.Context, c *clientv3.Client) (election.LeaseID, error) {
		resp, err := c.Grant(ctx, seconds)
		if err != nil {
			return "", err
		}
		if resp.TTL < seconds {
			return "", fmt.Errorf("the server granted %d s instead of %d s", resp.TTL, seconds)
		}
		return leaseOf(int64(resp.ID)), nil
	})
}

// Renew implements [election.Backend].
func (s *Store) Renew(ctx context.Context, lease election.LeaseID) error {
	id, err := leaseID(lease)
	if err != nil {
		return fmt.Errorf("cannot renew: %w", err)
	}
	_, err = hedge(ctx, s, "renew", func(ctx context.Context, c *clientv3.Client) (struct{}, error) {
		_, err := c.KeepAliveOnce(ctx, id)
		return struct{}{}, err
	})
	return err
}

// Hold implements [election.Backend].
func (s *Store) Hold(ctx context.Context, h election.Hold) (election.Entry, error) {
	id, err := leaseID(h.Lease)
	if err != nil {
		return election.Entry{}, fmt.Errorf("cannot renew: %w", err)
	}
	return hedge(ctx, s, "renew", func(ctx context.Context, c *clientv3.Client) (election.Entry, error) {
		if _, err := c.KeepAliveOnce(ctx, id); err != nil {
			return election.Entry{}, err
		}
		// The get makes the server confirm with a quorum; comparisons alone are answered from local
		// state.
		proof := clientv3.OpGet(s.root + election.ActiveKey)
		then := []clientv3.Op{proof}
		if h.Beat {
			then = append(then, clientv3.OpPut(s.root+election.BeatKey, "", clientv3.WithLease(id)))
		}
		resp, err := c.Txn(ctx).If(s.bound(id)).Then(then...).Else(proof).Commit()
		if err != nil {
			return election.Entry{}, err
		}
		kvs := resp.Responses[0].GetResponseRange().GetKvs()
		if !resp.Succeeded || len(kvs) == 0 {
			return election.Entry{}, election.ErrLost
		}
		entry := s.entry(kvs[0])
		entry.Origin = originOf(resp.Header)
		return entry, nil
	})
}

// originOf tells a store from one that was restored: a restored member begins with a new log, whose
// terms count from one, even where the cluster's ID is the same again.
func originOf(h *pb.ResponseHeader) election.Origin {
	return election.Origin{Store: strconv.FormatUint(h.ClusterId, 16), Epoch: h.RaftTerm}
}

// bound is the condition that the role key is bound to a lease, which defines ownership.
func (s *Store) bound(id clientv3.LeaseID) clientv3.Cmp {
	return clientv3.Compare(clientv3.LeaseValue(s.root+election.ActiveKey), "=", id)
}

// Revoke implements [election.Backend].
func (s *Store) Revoke(ctx context.Context, lease election.LeaseID) error {
	id, err := leaseID(lease)
	if err != nil {
		return fmt.Errorf("cannot revoke: %w", err)
	}
	_, err = hedge(ctx, s, "revoke a lease", func(ctx context.Context, c *clientv3.Client) (struct{}, error) {
		_, err := c.Revoke(ctx, id)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			err = nil
		}
		return struct{}{}, err
	})
	return err
}

// Claim implements [election.Backend].
func (s *Store) Claim(ctx context.Context, c election.Claim) error {
	id, err := leaseID(c.Lease)
	if err != nil {
		return fmt.Errorf("cannot claim: %w", err)
	}
	conditions := []clientv3.Cmp{version(s.root+election.TermKey, c.TermVersion)}
	if c.Silent == 0 {
		conditions = append(conditions, version(s.root+election.ActiveKey, 0))
	} else {
		conditions = append(conditions, version(s.root+election.BeatKey, c.Silent))
	}
	ops := []clientv3.Op{
		clientv3.OpPut(s.root+election.TermKey, string(c.Breadcrumb.Encode())),
		clientv3.OpPut(s.root+election.ActiveKey, string(c.Active.Encode()), clientv3.WithLease(id)),
		clientv3.OpDelete(s.root + election.URLKey),
		clientv3.OpDelete(s.root + election.HeirKey),
	}
	if c.Beat {
		ops = append(ops, clientv3.OpPut(s.root+election.BeatKey, "", clientv3.WithLease(id)))
	} else {
		// The beat is from an earlier holder whose lease still lives. Its silence must not count
		// against the new holder.
		ops = append(ops, clientv3.OpDelete(s.root+election.BeatKey))
	}
	if c.Previous != "" {
		ops = append(ops, clientv3.OpDelete(s.root+election.RoleWordKey(c.Previous)))
	}
	at, err := s.swap(ctx, "claim", conditions, ops, election.ErrConflict)
	s.role.Wrote(c.Lease, at)
	return err
}

// current returns the version of the role key while it is bound to lease. If the memory is out of
// date, the transaction that relies on it fails with a conflict.
func (s *Store) current(ctx context.Context, lease election.LeaseID, anew bool) (election.Version, error) {
	return s.role.Current(lease, anew, func() (election.Entry, error) { return s.Get(ctx, election.ActiveKey) })
}

// version is the condition that a key has a version; zero means that it is absent, in etcd too.
func version(key string, v election.Version) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", int64(v))
}

// swap runs one transaction once. It returns refusal if a condition does not hold, otherwise the
// version that the transaction gave to what it wrote.
func (s *Store) swap(ctx context.Context, verb string, conditions []clientv3.Cmp, ops []clientv3.Op, refusal error) (election.Version, error) {
	var at election.Version
	err := s.once(ctx, verb, func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Txn(ctx).If(conditions...).Then(ops...).
			Else(clientv3.OpGet(s.root+election.ActiveKey, clientv3.WithKeysOnly())). // a quorum confirms a refusal too
			Commit()
		switch {
		case err != nil:
			return err
		case !resp.Succeeded:
			return refusal
		}
		at = election.Version(resp.Header.Revision)
		return nil
	})
	return at, err
}

// Publish implements [election.Backend]. It also compares the version of the role key, so that an
// abandoned publication that arrives late can't undo a later one.
func (s *Store) Publish(ctx context.Context, lease election.LeaseID, a election.Active) error {
	id, err := leaseID(lease)
	if err != nil {
		return fmt.Errorf("cannot publish: %w", err)
	}
	put := func(key, value string) clientv3.Op {
		return clientv3.OpPut(s.root+key, value, clientv3.WithLease(id))
	}
	ops := []clientv3.Op{put(election.ActiveKey, string(a.Encode()))}
	if a.Serving() {
		ops = append(ops, put(election.RoleWordKey(a.Controller), string(election.RoleActive)))
	} else {
		ops = append(ops, clientv3.OpDelete(s.root+election.RoleWordKey(a.Controller)))
	}
	if a.Serving() && a.URL != "" {
		ops = append(ops, put(election.URLKey, a.URL))
	} else {
		ops = append(ops, clientv3.OpDelete(s.root+election.URLKey))
	}
	for anew := false; ; anew = true {
		is, err := s.current(ctx, lease, anew)
		if err != nil {
			return fmt.Errorf("cannot publish: %w", err)
		}
		at, err := s.swap(ctx, "publish", []clientv3.Cmp{s.bound(id), version(s.root+election.ActiveKey, is)}, ops, election.ErrConflict)
		s.role.Wrote(lease, at)
		if !errors.Is(err, election.ErrConflict) {
			return err
		}
		// Either another publication of this holder came between, or the lease is lost: read to
		// find out.
	}
}

// Release implements [election.Backend].
func (s *Store) Release(ctx context.Context, r election.Release) error {
	id, err := leaseID(r.Lease)
	if err != nil {
		return fmt.Errorf("cannot release: %w", err)
	}
	ops := []clientv3.Op{
		clientv3.OpPut(s.root+election.TermKey, string(r.Breadcrumb.Encode())),
		clientv3.OpDelete(s.root + election.ActiveKey),
		clientv3.OpDelete(s.root + election.URLKey),
		clientv3.OpDelete(s.root + election.BeatKey),
	}
	if r.Breadcrumb.Controller != "" {
		ops = append(ops, clientv3.OpDelete(s.root+election.RoleWordKey(r.Breadcrumb.Controller)))
	}
	conditions := []clientv3.Cmp{s.bound(id)}
	if r.TermVersion != 0 {
		conditions = append(conditions, version(s.root+election.TermKey, r.TermVersion))
	}
	if _, err := s.swap(ctx, "release", conditions, ops, election.ErrConflict); err != nil {
		return s.conflictOrLost(ctx, err, r.Lease)
	}
	_ = s.Revoke(ctx, r.Lease) // nothing is bound to it; it would expire by itself
	return nil
}

// HandOver implements [election.Backend].
func (s *Store) HandOver(ctx context.Context, lease election.LeaseID, h election.HandOver) error {
	old, err := leaseID(lease)
	if err != nil {
		return fmt.Errorf("cannot hand over: %w", err)
	}
	to, err := leaseID(h.Lease)
	if err != nil {
		return fmt.Errorf("cannot hand over: %w", err)
	}
	ops := []clientv3.Op{
		clientv3.OpPut(s.root+election.TermKey, string(h.Breadcrumb.Encode())),
		clientv3.OpPut(s.root+election.ActiveKey, string(h.Active.Encode()), clientv3.WithLease(to)),
		clientv3.OpDelete(s.root + election.URLKey),
		clientv3.OpDelete(s.root + election.HeirKey),
		clientv3.OpDelete(s.root + election.RoleWordKey(h.From)),
	}
	if h.Beat {
		ops = append(ops, clientv3.OpPut(s.root+election.BeatKey, "", clientv3.WithLease(to)))
	} else {
		ops = append(ops, clientv3.OpDelete(s.root+election.BeatKey))
	}
	conditions := []clientv3.Cmp{s.bound(old), version(s.root+election.HeirKey, h.Heir)}
	if h.TermVersion != 0 {
		conditions = append(conditions, version(s.root+election.TermKey, h.TermVersion))
	}
	if _, err = s.swap(ctx, "hand over", conditions, ops, election.ErrConflict); err != nil {
		return s.conflictOrLost(ctx, err, lease)
	}
	_ = s.Revoke(ctx, lease) // nothing is bound to it; it would expire by itself
	return nil
}

// conflictOrLost finds out whether a transaction was refused because the role key is no longer
// bound to lease.
func (s *Store) conflictOrLost(ctx context.Context, err error, lease election.LeaseID) error {
	if errors.Is(err, election.ErrConflict) {
		if active, e := s.Get(ctx, election.ActiveKey); e == nil && active.Lease != lease {
			return fmt.Errorf("cannot end the reign: %w", election.ErrLost)
		}
	}
	return err
}

func (s *Store) entry(kv *mvccpb.KeyValue) election.Entry {
	return election.Entry{
		Key: strings.TrimPrefix(string(kv.Key), s.root), Value: kv.Value,
		Version: election.Version(kv.ModRevision), Lease: leaseOf(kv.Lease),
	}
}

// Get implements [election.Keys].
func (s *Store) Get(ctx context.Context, key string) (election.Entry, error) {
	return hedge(ctx, s, "get "+key, func(ctx context.Context, c *clientv3.Client) (election.Entry, error) {
		resp, err := c.Get(ctx, s.root+key)
		if err != nil || len(resp.Kvs) == 0 {
			return election.Entry{Key: key}, err
		}
		return s.entry(resp.Kvs[0]), nil
	})
}

// List implements [election.Keys].
func (s *Store) List(ctx context.Context, prefix string) ([]election.Entry, error) {
	return hedge(ctx, s, "list "+prefix, func(ctx context.Context, c *clientv3.Client) ([]election.Entry, error) {
		resp, err := c.Get(ctx, s.root+prefix, clientv3.WithPrefix())
		if err != nil {
			return nil, err
		}
		var list []election.Entry
		for _, kv := range resp.Kvs {
			list = append(list, s.entry(kv))
		}
		return list, nil
	})
}

// Clusters returns the names of all clusters below the prefix, in lexical order. It reads one key of
// each, however many there are.
func (s *Store) Clusters(ctx context.Context) ([]string, error) {
	return hedge(ctx, s, "list the clusters", func(ctx context.Context, c *clientv3.Client) ([]string, error) {
		var names []string
		for from := s.all; ; {
			resp, err := c.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(s.all)), clientv3.WithLimit(1), clientv3.WithKeysOnly())
			if err != nil {
				return nil, err
			}
			if len(resp.Kvs) == 0 {
				return names, nil
			}
			key := string(resp.Kvs[0].Key)
			name, _, below := strings.Cut(strings.TrimPrefix(key, s.all), "/")
			if !below {
				from = key + "\x00"
				continue
			}
			if election.CheckName(name) == nil {
				names = append(names, name)
			}
			from = s.all + name + "0" // the first that cannot be below name + "/"
		}
	})
}

// Put implements [election.Keys].
func (s *Store) Put(ctx context.Context, p election.Put) error {
	if p.Key == "" {
		return errors.New("cannot put: the key is empty")
	}
	var options []clientv3.OpOption
	if p.Lease != "" {
		id, err := leaseID(p.Lease)
		if err != nil {
			return fmt.Errorf("cannot put %s: %w", p.Key, err)
		}
		options = append(options, clientv3.WithLease(id))
	}
	var conditions []clientv3.Cmp
	if p.If != nil {
		conditions = append(conditions, version(s.root+p.Key, *p.If))
	}
	ops := []clientv3.Op{clientv3.OpPut(s.root+p.Key, string(p.Value), options...)}
	_, err := s.swap(ctx, "put "+p.Key, conditions, ops, election.ErrConflict)
	return err
}

// Delete implements [election.Keys].
func (s *Store) Delete(ctx context.Context, key string, v election.Version) error {
	if key == "" {
		return errors.New("cannot delete: the key is empty")
	}
	key = s.root + key
	ops := []clientv3.Op{clientv3.OpDelete(key)}
	return s.once(ctx, "delete "+strings.TrimPrefix(key, s.root), func(ctx context.Context, c *clientv3.Client) error {
		var conditions []clientv3.Cmp
		if v != 0 {
			conditions = append(conditions, version(key, v))
		}
		resp, err := c.Txn(ctx).If(conditions...).Then(ops...).Else(clientv3.OpGet(key, clientv3.WithKeysOnly())).Commit()
		if err != nil || resp.Succeeded {
			return err
		}
		if len(resp.Responses[0].GetResponseRange().GetKvs()) == 0 {
			return nil // absent already
		}
		return election.ErrConflict
	})
}
