package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tanist/tanist/election"
)

// Store is one cluster in etcd. It implements [election.Backend]. All methods may be called from any goroutine.
type Store struct {
	root      string // "/tanist/orders/"
	endpoints []*endpoint
	first     atomic.Int32 // index of the endpoint to ask first
	reread    time.Duration
	dial      time.Duration
	log       zerolog.Logger

	ctx    context.Context //nolint:containedctx // ends with Close
	cancel context.CancelFunc

	mine sync.Mutex
	last written

	closing sync.Mutex
	closed  bool
	running sync.WaitGroup
}

// written is what is known of the role key since this process last wrote it.
type written struct {
	lease   election.LeaseID
	version election.Version
}

var _ election.Backend = (*Store)(nil)

// Open checks the configuration and returns the store. It does not connect: etcd may be away for now.
func Open(cfg Config) (*Store, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &Store{
		root:   strings.TrimSuffix(cfg.Prefix, "/") + "/" + cfg.Cluster + "/",
		reread: cfg.RereadEvery, dial: cfg.DialTimeout, log: cfg.Log,
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for _, url := range cfg.Endpoints {
		e, err := newEndpoint(s.ctx, url, &cfg)
		if err != nil {
			_ = s.Close()
			return nil, fmt.Errorf("cannot use the etcd endpoint %s: %v", url, err)
		}
		s.endpoints = append(s.endpoints, e)
	}
	s.first.Store(rand.Int32N(int32(len(s.endpoints)))) // spread the hosts over the members
	return s, nil
}

// Close ends the connections and everything that is still under way. It returns when nothing is.
func (s *Store) Close() error {
	s.closing.Lock()
	s.closed = true
	s.closing.Unlock()
	s.cancel()
	for _, e := range s.endpoints {
		_ = e.client.Close() // it only ever says that its context was cancelled
	}
	s.running.Wait()
	return nil
}

// ErrClosed is the answer to a call after Close.
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

// Traits implements [election.Backend]: etcd with its default heartbeat of 100 ms and election time-out of 1 s.
func (s *Store) Traits() election.Traits {
	return election.Traits{
		Name:        "etcd",
		MinTTL:      2 * time.Second,                     // ceil(3/2 of the election time-out)
		ExpirySlack: 500*time.Millisecond + expiryCommit, // leases are looked at every 500 ms
		LeaderGap:   1800 * time.Millisecond,
	}
}

// expiryCommit is the allowance for the commit of a lease's end, which etcd proposes like any other write.
const expiryCommit = 200 * time.Millisecond

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
		resp, err := c.Txn(ctx).Then(
			clientv3.OpGet(s.root+"active"),
			clientv3.OpGet(s.root+"beat"),
			clientv3.OpGet(s.root+"term"),
			clientv3.OpGet(s.root+"controllers/", clientv3.WithPrefix()),
			clientv3.OpGet(s.root+"request"),
			clientv3.OpGet(s.root+"pause"),
			clientv3.OpGet(s.root+"heir"),
		).Commit()
		if err != nil {
			return election.Snapshot{}, err
		}
		kvs := make([][]*mvccpb.KeyValue, len(resp.Responses))
		for i, r := range resp.Responses {
			kvs[i] = r.GetResponseRange().GetKvs()
		}
		return s.snapshot(kvs)
	})
}

// snapshot understands what Read got, in the order in which it asked.
func (s *Store) snapshot(kvs [][]*mvccpb.KeyValue) (election.Snapshot, error) {
	var snap election.Snapshot
	if len(kvs) != 7 {
		return snap, fmt.Errorf("%d answers to 7 questions", len(kvs))
	}
	for _, kv := range kvs[0] {
		snap.ActiveLease, snap.ActiveVersion = leaseOf(kv.Lease), election.Version(kv.ModRevision)
		if a, err := election.DecodeActive(kv.Value); err != nil {
			snap.ActiveBad = err
		} else {
			snap.Active = &a
		}
	}
	for _, kv := range kvs[1] {
		snap.Beat = election.Version(kv.ModRevision)
	}
	for _, kv := range kvs[2] {
		b, err := election.DecodeBreadcrumb(kv.Value)
		if err != nil {
			return election.Snapshot{}, err
		}
		snap.Breadcrumb, snap.TermVersion = b, election.Version(kv.ModRevision)
	}
	for _, kv := range kvs[3] {
		var c election.Controller
		if json.Unmarshal(kv.Value, &c) == nil && s.root+"controllers/"+c.Name == string(kv.Key) {
			snap.Controllers = append(snap.Controllers, c)
		}
	}
	for _, kv := range kvs[4] {
		snap.RequestVer = election.Version(kv.ModRevision)
		var r election.Request
		if json.Unmarshal(kv.Value, &r) == nil {
			snap.Request = &r
		}
	}
	for _, kv := range kvs[5] {
		snap.PauseVer = election.Version(kv.ModRevision)
		var p election.Pause
		if json.Unmarshal(kv.Value, &p) != nil {
			p = election.Pause{By: "a pause key that can't be read"} // somebody wanted a pause
		}
		snap.Pause = &p
	}
	for _, kv := range kvs[6] {
		snap.HeirVersion = election.Version(kv.ModRevision)
		if h, err := election.DecodeHeir(kv.Value); err == nil {
			snap.Heir = &h
		}
	}
	return snap, nil
}

// Grant implements [election.Backend]. ttl is rounded up to seconds.
func (s *Store) Grant(ctx context.Context, ttl time.Duration) (election.LeaseID, error) {
	seconds := int64(math.Ceil(ttl.Seconds()))
	// It may be repeated: a lease too many ends by itself.
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
func (s *Store) Renew(ctx context.Context, r election.Renewal) error {
	id, err := leaseID(r.Lease)
	if err != nil {
		return fmt.Errorf("cannot renew: %w", err)
	}
	_, err = hedge(ctx, s, "renew", func(ctx context.Context, c *clientv3.Client) (struct{}, error) {
		if _, err := c.KeepAliveOnce(ctx, id); err != nil || !r.Hold {
			return struct{}{}, err
		}
		// The get makes the server confirm with a quorum; comparisons alone are answered from local state.
		proof := clientv3.OpGet(s.root+"active", clientv3.WithKeysOnly())
		then := proof
		if r.Beat {
			then = clientv3.OpPut(s.root+"beat", "", clientv3.WithLease(id))
		}
		resp, err := c.Txn(ctx).If(s.bound(id)).Then(then).Else(proof).Commit()
		if err == nil && !resp.Succeeded {
			err = election.ErrLost
		}
		return struct{}{}, err
	})
	return err
}

// bound is the condition that the role key is bound to a lease: that is what ownership is.
func (s *Store) bound(id clientv3.LeaseID) clientv3.Cmp {
	return clientv3.Compare(clientv3.LeaseValue(s.root+"active"), "=", id)
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
	conditions := []clientv3.Cmp{version(s.root+"term", c.TermVersion)}
	if c.Silent == 0 {
		conditions = append(conditions, version(s.root+"active", 0))
	} else {
		conditions = append(conditions, version(s.root+"beat", c.Silent))
	}
	ops := []clientv3.Op{
		clientv3.OpPut(s.root+"term", string(c.Breadcrumb.Encode())),
		clientv3.OpPut(s.root+"active", string(c.Active.Encode()), clientv3.WithLease(id)),
		clientv3.OpDelete(s.root + "url"),
		clientv3.OpDelete(s.root + "heir"),
	}
	if c.Beat {
		ops = append(ops, clientv3.OpPut(s.root+"beat", "", clientv3.WithLease(id)))
	} else {
		// One of a holder before, whose lease lives on: its silence must not be taken for the new holder's.
		ops = append(ops, clientv3.OpDelete(s.root+"beat"))
	}
	if c.Previous != "" {
		ops = append(ops, clientv3.OpDelete(s.root+"role/"+c.Previous))
	}
	at, err := s.swap(ctx, "claim", conditions, ops, election.ErrConflict)
	s.wrote(c.Lease, at)
	return err
}

// wrote keeps the version of the role key; zero: not known.
func (s *Store) wrote(lease election.LeaseID, at election.Version) {
	s.mine.Lock()
	defer s.mine.Unlock()
	s.last = written{lease: lease, version: at}
}

// current returns the version of the role key, from memory if this process was the last to write it. Should that be out of
// date, then what relies on it meets a conflict.
func (s *Store) current(ctx context.Context, lease election.LeaseID, fresh bool) (election.Version, error) {
	s.mine.Lock()
	last := s.last
	s.mine.Unlock()
	if !fresh && last.lease == lease && last.version != 0 {
		return last.version, nil
	}
	e, err := s.Get(ctx, "active")
	if err == nil && e.Lease != lease {
		err = election.ErrLost
	}
	return e.Version, err
}

// version is the condition that a key has a version; zero means that it is absent, in etcd too.
func version(key string, v election.Version) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", int64(v))
}

// swap carries out one transaction, once, and answers refusal if a condition does not hold, else the version that it gave to
// what it wrote.
func (s *Store) swap(ctx context.Context, verb string, conditions []clientv3.Cmp, ops []clientv3.Op, refusal error) (election.Version, error) {
	var at election.Version
	err := s.once(ctx, verb, func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Txn(ctx).If(conditions...).Then(ops...).
			Else(clientv3.OpGet(s.root+"active", clientv3.WithKeysOnly())). // a refusal too is confirmed with a quorum
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

// Publish implements [election.Backend]. It compares the version of the role key too, so that a publication that was given
// up by its caller and arrives late can't undo a later one.
func (s *Store) Publish(ctx context.Context, lease election.LeaseID, a election.Active) error {
	id, err := leaseID(lease)
	if err != nil {
		return fmt.Errorf("cannot publish: %w", err)
	}
	put := func(key, value string) clientv3.Op {
		return clientv3.OpPut(s.root+key, value, clientv3.WithLease(id))
	}
	ops := []clientv3.Op{put("active", string(a.Encode()))}
	if a.Serving() {
		ops = append(ops, put("role/"+a.Controller, string(election.RoleActive)))
	} else {
		ops = append(ops, clientv3.OpDelete(s.root+"role/"+a.Controller))
	}
	if a.Serving() && a.URL != "" {
		ops = append(ops, put("url", a.URL))
	} else {
		ops = append(ops, clientv3.OpDelete(s.root+"url"))
	}
	for fresh := false; ; fresh = true {
		is, err := s.current(ctx, lease, fresh)
		if err != nil {
			return fmt.Errorf("cannot publish: %w", err)
		}
		at, err := s.swap(ctx, "publish", []clientv3.Cmp{s.bound(id), version(s.root+"active", is)}, ops, election.ErrConflict)
		s.wrote(lease, at)
		if !errors.Is(err, election.ErrConflict) {
			return err
		}
		// Another publication of this holder came between, or the lease is lost: a look tells.
	}
}

// Release implements [election.Backend].
func (s *Store) Release(ctx context.Context, lease election.LeaseID, b election.Breadcrumb) error {
	id, err := leaseID(lease)
	if err != nil {
		return fmt.Errorf("cannot release: %w", err)
	}
	ops := []clientv3.Op{
		clientv3.OpPut(s.root+"term", string(b.Encode())),
		clientv3.OpDelete(s.root + "active"),
		clientv3.OpDelete(s.root + "url"),
		clientv3.OpDelete(s.root + "beat"),
	}
	if b.Controller != "" {
		ops = append(ops, clientv3.OpDelete(s.root+"role/"+b.Controller))
	}
	if _, err := s.swap(ctx, "release", []clientv3.Cmp{s.bound(id)}, ops, election.ErrLost); err != nil {
		return err
	}
	_ = s.Revoke(ctx, lease) // nothing is bound to it any more; it ends by itself too
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
		clientv3.OpPut(s.root+"term", string(h.Breadcrumb.Encode())),
		clientv3.OpPut(s.root+"active", string(h.Active.Encode()), clientv3.WithLease(to)),
		clientv3.OpDelete(s.root + "url"),
		clientv3.OpDelete(s.root + "heir"),
		clientv3.OpDelete(s.root + "role/" + h.From),
	}
	if h.Beat {
		ops = append(ops, clientv3.OpPut(s.root+"beat", "", clientv3.WithLease(to)))
	} else {
		ops = append(ops, clientv3.OpDelete(s.root+"beat"))
	}
	_, err = s.swap(ctx, "hand over", []clientv3.Cmp{s.bound(old), version(s.root+"heir", h.Heir)}, ops, election.ErrConflict)
	if errors.Is(err, election.ErrConflict) {
		if active, e := s.Get(ctx, "active"); e == nil && active.Lease != lease {
			err = fmt.Errorf("cannot hand over: %w", election.ErrLost)
		}
	}
	if err != nil {
		return err
	}
	_ = s.Revoke(ctx, lease) // nothing is bound to it any more; it ends by itself too
	return nil
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
