package consul

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// Store is one cluster in Consul. It implements [election.Backend]. All methods may be called from
// any goroutine.
type Store struct {
	cfg       Config
	client    *api.Client
	transport *http.Transport
	token     *election.Credential
	log       zerolog.Logger
	prefix    string // of every key, with the slash at its end
	entry     string // the catalog entry of the sessions and services

	open context.Context // ends with Close
	shut context.CancelCauseFunc

	beats     atomic.Uint64                    // makes every beat unique: Consul ignores a write of the same value
	published atomic.Pointer[election.LeaseID] // the lease of this process's last publication
	role      election.RoleMemory

	mu       sync.Mutex
	watchers map[chan election.Hint]bool
	refused  election.Instant // when the lock-delay of the current vacancy first refused a claim; zero: not yet
}

var _ election.Backend = (*Store)(nil)

var errClosed = errors.New("the store is closed")

// Close ends the watches and closes the connections. Calls after it fail.
func (s *Store) Close() error {
	s.shut(errClosed)
	s.transport.CloseIdleConnections()
	return nil
}

// usable returns an error if ctx has ended, so that the call is not sent.
func (s *Store) usable(ctx context.Context) error {
	if s.open.Err() != nil {
		return errClosed
	}
	return ctx.Err()
}

// Traits implements [election.Backend]. The slack is a whole TTL: Consul's servers keep a session
// for up to twice the TTL.
func (s *Store) Traits() election.Traits {
	t := election.ConsulTraits()
	t.MinTTL, t.ExpirySlack, t.LeaderGap = s.cfg.MinTTL, s.cfg.TTL, s.cfg.LeaderGap
	return t
}

// Read implements [election.Backend] with one read-only transaction, after a round to a majority.
func (s *Store) Read(ctx context.Context) (election.Snapshot, error) {
	snap, err := s.read(ctx)
	if err != nil {
		return election.Snapshot{}, fmt.Errorf("cannot read the cluster: %w", err)
	}
	return snap, nil
}

func (s *Store) read(ctx context.Context) (snap election.Snapshot, err error) {
	var ops []op
	for _, key := range election.SnapshotKeys() {
		ops = append(ops, s.kv(api.KVGetOrEmpty, key, nil))
	}
	results, err := s.commit(repeatable(ctx), append(ops, s.kv(api.KVGetTree, election.ControllerPrefix, nil)))
	if err != nil {
		return snap, err
	}
	var entries []election.Entry
	answered := map[string]bool{}
	for _, r := range results {
		if r.KV == nil {
			continue
		}
		e := s.toEntry(r.KV)
		answered[e.Key] = true
		if e.Version != 0 {
			entries = append(entries, e)
		}
	}
	for _, key := range election.SnapshotKeys() {
		// Consul silently omits what a token may not read; it must not count as absent.
		if !answered[key] {
			return snap, fmt.Errorf("%w: the token may not read %s%s", election.ErrDenied, s.prefix, key)
		}
	}
	s.role.Read(entries)
	return election.SnapshotOf(entries), nil
}

// Grant implements [election.Backend] by creating a session.
func (s *Store) Grant(ctx context.Context, ttl time.Duration) (election.LeaseID, error) {
	id, err := s.create(ctx, ttl)
	if errors.Is(err, errNoEntry) {
		if err = s.register(ctx); err == nil {
			id, err = s.create(ctx, ttl)
		}
	}
	if err != nil {
		return "", fmt.Errorf("cannot create a session: %w", err)
	}
	return id, nil
}

func (s *Store) create(ctx context.Context, ttl time.Duration) (election.LeaseID, error) {
	if err := s.usable(ctx); err != nil {
		return "", err
	}
	// api.Session can't request a zero lock-delay.
	request := map[string]any{
		"Name": "tanist " + s.cfg.Cluster, "Node": s.entry, "Checks": []string{}, "NodeChecks": []string{}, "ServiceChecks": []string{},
		"Behavior": api.SessionBehaviorDelete, "TTL": max(ttl, s.cfg.MinTTL).String(), "LockDelay": s.cfg.LockDelay.String(),
	}
	var reply struct{ ID string }
	_, err := s.client.Raw().Write("/v1/session/create", request, &reply, write(ctx))
	switch {
	case err != nil && strings.Contains(err.Error(), "Missing node registration"):
		return "", errNoEntry
	case err != nil:
		return "", known(err)
	case reply.ID == "":
		return "", errors.New("the reply has no id")
	}
	return election.LeaseID(reply.ID), nil
}

// entryAddress is the address of the catalog entry. Nothing listens there; a name that resolves to
// the asking host does the least harm.
const entryAddress = "127.0.0.1"

// register makes the catalog entry of the cluster's sessions and services. It has no health check,
// so nothing reaps it, and no agent owns it.
func (s *Store) register(ctx context.Context) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	_, err := s.client.Catalog().Register(&api.CatalogRegistration{
		Node: s.entry, Address: entryAddress, NodeMeta: map[string]string{"tanist-cluster": s.cfg.Cluster},
	}, write(ctx))
	if err != nil {
		return fmt.Errorf("cannot register the catalog entry %s: %w", s.entry, known(err))
	}
	return nil
}

// Renew implements [election.Backend].
func (s *Store) Renew(ctx context.Context, lease election.LeaseID) error {
	if err := s.renew(ctx, lease); err != nil {
		return fmt.Errorf("cannot renew: %w", err)
	}
	return nil
}

// Hold implements [election.Backend].
func (s *Store) Hold(ctx context.Context, h election.Hold) (election.Entry, error) {
	pair, err := s.hold(ctx, h)
	if err != nil {
		return election.Entry{}, fmt.Errorf("cannot renew: %w", err)
	}
	return s.toEntry(pair), nil
}

func (s *Store) hold(ctx context.Context, h election.Hold) (*api.KVPair, error) {
	if err := s.renew(ctx, h.Lease); err != nil {
		return nil, err
	}
	if !h.Beat {
		return s.holds(ctx, h.Lease)
	}
	results, err := s.commit(repeatable(ctx), []op{
		s.bound(election.ActiveKey, h.Lease),
		s.kv(api.KVGet, election.ActiveKey, election.ErrLost),
		s.lock(election.BeatKey, s.beat(), h.Lease, nil),
	})
	if err != nil {
		return nil, s.lostRather(ctx, h.Lease, err)
	}
	for _, r := range slices.Backward(results) { // the check before the read has a result too, without a value
		if r.KV != nil && r.KV.Key == s.prefix+election.ActiveKey {
			return r.KV, nil
		}
	}
	return nil, errors.New("the store's reply lacks the role key")
}

// beat returns a value that has never been written.
func (s *Store) beat() []byte {
	return fmt.Appendf(nil, "%s #%d", time.Now().UTC().Format(time.RFC3339Nano), s.beats.Add(1))
}

// renew resets the timer of a session.
func (s *Store) renew(ctx context.Context, lease election.LeaseID) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	_, err := s.client.Raw().Write("/v1/session/renew/"+string(lease), nil, nil, write(repeatable(ctx)))
	var status api.StatusError
	if !errors.As(err, &status) || status.Code != http.StatusNotFound {
		if err != nil {
			return known(err)
		}
		return nil
	}
	// Only the leader answered, and a new leader may not know an existing session.
	session, _, err := s.client.Session().Info(string(lease), consistent(ctx))
	switch {
	case err != nil:
		return known(err)
	case session == nil:
		return election.ErrLost
	}
	return errors.New("the store did not find the session, and found it again")
}

// holds proves that the role key is bound to lease, and returns it.
func (s *Store) holds(ctx context.Context, lease election.LeaseID) (*api.KVPair, error) {
	pair, err := s.get(ctx, election.ActiveKey)
	if err != nil {
		return nil, err
	}
	if pair == nil || pair.Session != string(lease) {
		return nil, election.ErrLost
	}
	return pair, nil
}

// lostRather returns err, or ErrLost if a transaction of the holder was refused because of the
// lock-delay and the role key is no longer bound to lease: Consul checks the lock-delay, which the end
// of the holder's own session begins, before it checks the session.
func (s *Store) lostRather(ctx context.Context, lease election.LeaseID, err error) error {
	if errors.Is(err, errLockDelay) {
		if _, held := s.holds(ctx, lease); errors.Is(held, election.ErrLost) {
			return held
		}
	}
	return err
}

// get reads one key, linearizably. Nil means absent.
func (s *Store) get(ctx context.Context, key string) (*api.KVPair, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	pair, _, err := s.client.KV().Get(s.prefix+key, consistent(ctx))
	if err != nil {
		return nil, known(err)
	}
	return pair, nil
}

// Revoke implements [election.Backend]: it deletes the keys that the session locks, so that no
// lock-delay applies to them, and then destroys the session.
func (s *Store) Revoke(ctx context.Context, lease election.LeaseID) error {
	err := s.revoke(ctx, lease)
	if err != nil {
		return fmt.Errorf("cannot end the session: %w", err)
	}
	return nil
}

func (s *Store) revoke(ctx context.Context, lease election.LeaseID) error {
	if s.cfg.LockDelay > 0 {
		if err := s.drop(ctx, lease); err != nil {
			return err
		}
	}
	return s.destroy(ctx, lease)
}

// drop deletes the keys that a session locks. If one of them changes meanwhile it deletes nothing;
// the end of the session will.
func (s *Store) drop(ctx context.Context, lease election.LeaseID) error {
	look := []op{
		s.kv(api.KVGetOrEmpty, election.ActiveKey, nil), s.kv(api.KVGetOrEmpty, election.URLKey, nil), s.kv(api.KVGetOrEmpty, election.BeatKey, nil),
		s.kv(api.KVGetOrEmpty, election.HeirKey, nil), s.kv(api.KVGetTree, election.RoleWordPrefix, nil), s.kv(api.KVGetTree, election.ControllerPrefix, nil),
	}
	if s.cfg.Agents {
		look = append(look, s.kv(api.KVGetTree, election.AgentPrefix, nil))
	}
	results, err := s.commit(repeatable(ctx), look)
	if err != nil {
		return err
	}
	var ops []op
	for _, r := range results {
		if r.KV != nil && r.KV.Session == string(lease) {
			key := strings.TrimPrefix(r.KV.Key, s.prefix)
			ops = append(ops, s.bound(key, lease), s.remove(key))
			if key == election.ActiveKey {
				ops = append(ops, s.serviceGone()...)
			}
		}
	}
	if len(ops) == 0 {
		return nil
	}
	if _, err = s.commit(ctx, ops); errors.Is(err, election.ErrLost) {
		return nil
	}
	return err
}

func (s *Store) destroy(ctx context.Context, lease election.LeaseID) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	_, err := s.client.Session().Destroy(string(lease), write(ctx))
	if err != nil {
		return known(err)
	}
	return nil
}

// Claim implements [election.Backend]. A claim that the lock-delay refuses is a conflict, and the
// watches get a hint when the delay is over.
func (s *Store) Claim(ctx context.Context, c election.Claim) error {
	term := s.kv(api.KVCAS, election.TermKey, election.ErrConflict)
	term.KV.Index, term.KV.Value = uint64(c.TermVersion), c.Breadcrumb.Encode()
	ops := []op{term}
	if c.Silent == 0 {
		ops = append(ops, s.absent(election.ActiveKey, election.ErrConflict))
	} else {
		ops = append(ops, s.unchanged(election.BeatKey, c.Silent, election.ErrConflict))
	}
	ops = append(ops, s.bind(election.ActiveKey, c.Active.Encode(), c.Lease)...)
	if c.Beat {
		ops = append(ops, s.bind(election.BeatKey, s.beat(), c.Lease)...)
	} else {
		ops = append(ops, s.remove(election.BeatKey)) // of an earlier holder; its silence must not count against us
	}
	ops = append(ops, s.remove(election.URLKey), s.remove(election.HeirKey))
	if c.Previous != "" {
		ops = append(ops, s.remove(election.RoleWordKey(c.Previous)))
	}
	ops = append(ops, s.serviceGone()...)
	results, err := s.commit(ctx, ops)
	s.role.Wrote(c.Lease, s.roleVersion(results))
	if errors.Is(err, errLockDelay) {
		s.hintAfterLockDelay()
		return fmt.Errorf("cannot claim: %w: %w: %v", election.ErrConflict, election.ErrNotYet, errLockDelay)
	}
	s.mu.Lock()
	s.refused = 0
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("cannot claim: %w", err)
	}
	return nil
}

// Publish implements [election.Backend]. The transaction is bound to the version of the role key, so
// that a delayed publication can't undo a later one.
func (s *Store) Publish(ctx context.Context, lease election.LeaseID, a election.Active) error {
	announce, err := s.serviceOps(a)
	if err != nil {
		return fmt.Errorf("cannot publish: %v", err)
	}
	for anew := false; ; anew = true {
		err = s.publish(ctx, lease, a, announce, anew)
		if errors.Is(err, errNoEntry) {
			if err = s.register(ctx); err == nil {
				continue
			}
		}
		if !errors.Is(err, errMoved) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("cannot publish: %w", err)
	}
	s.published.Store(&lease)
	return nil
}

// current returns the version of the role key while it is bound to lease. If the memory is out of
// date, the transaction that relies on it fails.
func (s *Store) current(ctx context.Context, lease election.LeaseID, anew bool) (election.Version, error) {
	return s.role.Current(lease, anew, func() (election.Entry, error) {
		pair, err := s.get(ctx, election.ActiveKey)
		if err != nil || pair == nil {
			return election.Entry{}, err
		}
		return s.toEntry(pair), nil
	})
}

func (s *Store) publish(ctx context.Context, lease election.LeaseID, a election.Active, announce []op, anew bool) error {
	is, err := s.current(ctx, lease, anew)
	if err != nil {
		return err
	}
	ops := []op{
		s.bound(election.ActiveKey, lease), s.unchanged(election.ActiveKey, is, errMoved),
		s.lock(election.ActiveKey, a.Encode(), lease, election.ErrLost),
	}
	role := election.RoleWordKey(a.Controller)
	if a.Serving() {
		ops = append(ops, s.bind(election.URLKey, []byte(a.URL), lease)...)
		ops = append(ops, s.bind(role, []byte(election.RoleActive), lease)...)
	} else {
		ops = append(ops, s.remove(election.URLKey), s.remove(role))
	}
	results, err := s.commit(ctx, append(ops, announce...))
	s.role.Wrote(lease, s.roleVersion(results))
	return s.lostRather(ctx, lease, err)
}

// roleVersion returns the version that a transaction gave to the role key; zero: it is not known.
func (s *Store) roleVersion(results api.TxnResults) election.Version {
	var at election.Version
	for _, r := range results {
		if r.KV == nil {
			continue
		}
		if e := s.toEntry(r.KV); e.Key == election.ActiveKey {
			at = e.Version
		}
	}
	return at
}

// HandOver implements [election.Backend]. The role key is removed, and the heir's session locks it
// anew: a removed key has no lock-delay.
func (s *Store) HandOver(ctx context.Context, lease election.LeaseID, h election.HandOver) error {
	ops := []op{s.bound(election.ActiveKey, lease), s.unchanged(election.HeirKey, h.Heir, election.ErrConflict)}
	if h.TermVersion != 0 {
		ops = append(ops, s.unchanged(election.TermKey, h.TermVersion, election.ErrConflict))
	}
	ops = append(ops, s.set(election.TermKey, h.Breadcrumb.Encode())...)
	for _, key := range []string{election.ActiveKey, election.URLKey, election.BeatKey, election.HeirKey, election.RoleWordKey(h.From)} {
		ops = append(ops, s.remove(key))
	}
	ops = append(ops, s.bind(election.ActiveKey, h.Active.Encode(), h.Lease)...)
	if h.Beat {
		ops = append(ops, s.bind(election.BeatKey, s.beat(), h.Lease)...)
	}
	_, err := s.commit(ctx, append(ops, s.serviceGone()...))
	// If the heir's session is gone, the refusal looks as if our own were; but then nothing was
	// handed over, and the key is still ours.
	if err = s.lostRather(ctx, lease, err); errors.Is(err, errLockDelay) {
		err = election.ErrConflict
	} else if errors.Is(err, election.ErrLost) {
		if _, e := s.holds(ctx, lease); e == nil {
			err = election.ErrConflict
		}
	}
	if err != nil {
		return fmt.Errorf("cannot hand over: %w", err)
	}
	if err := s.destroy(ctx, lease); err != nil {
		s.log.Debug().Err(err).Msg("cannot destroy the session that was handed over; it expires by itself")
	}
	return nil
}

// Release implements [election.Backend].
func (s *Store) Release(ctx context.Context, r election.Release) error {
	ops := []op{s.bound(election.ActiveKey, r.Lease)}
	if r.TermVersion != 0 {
		ops = append(ops, s.unchanged(election.TermKey, r.TermVersion, election.ErrConflict))
	}
	ops = append(ops, s.set(election.TermKey, r.Breadcrumb.Encode())...)
	for _, key := range []string{election.ActiveKey, election.URLKey, election.BeatKey, election.RoleWordKey(r.Breadcrumb.Controller)} {
		ops = append(ops, s.remove(key))
	}
	if _, err := s.commit(ctx, append(ops, s.serviceGone()...)); err != nil {
		return fmt.Errorf("cannot release: %w", err)
	}
	if err := s.destroy(ctx, r.Lease); err != nil {
		s.log.Debug().Err(err).Msg("cannot destroy the session of the released lease; it expires by itself")
	}
	return nil
}

// Get implements [election.Keys].
func (s *Store) Get(ctx context.Context, key string) (election.Entry, error) {
	pair, err := s.get(ctx, key)
	if err != nil {
		return election.Entry{}, fmt.Errorf("cannot read %s: %w", key, err)
	}
	if pair == nil {
		return election.Entry{Key: key}, nil
	}
	return s.toEntry(pair), nil
}

func (s *Store) toEntry(p *api.KVPair) election.Entry {
	return election.Entry{
		Key: strings.TrimPrefix(p.Key, s.prefix), Value: p.Value, Version: election.Version(p.ModifyIndex), Lease: election.LeaseID(p.Session),
	}
}

// List implements [election.Keys].
func (s *Store) List(ctx context.Context, prefix string) ([]election.Entry, error) {
	if err := s.usable(ctx); err != nil {
		return nil, fmt.Errorf("cannot list %s: %w", prefix, err)
	}
	pairs, _, err := s.client.KV().List(s.prefix+prefix, consistent(ctx))
	if err != nil {
		return nil, fmt.Errorf("cannot list %s: %w", prefix, known(err))
	}
	var list []election.Entry
	for _, p := range pairs {
		list = append(list, s.toEntry(p))
	}
	return list, nil
}

// Clusters returns the names of all clusters, in lexical order.
func (s *Store) Clusters(ctx context.Context) ([]string, error) {
	all := election.RootPath + "/"
	keys, _, err := s.client.KV().Keys(all, "/", consistent(ctx))
	if err != nil {
		return nil, fmt.Errorf("cannot list the clusters: %w", known(err))
	}
	var names []string
	for _, key := range keys {
		name, below := strings.CutSuffix(strings.TrimPrefix(key, all), "/")
		if below && election.CheckName(name) == nil {
			names = append(names, name)
		}
	}
	return names, nil
}

// Put implements [election.Keys].
func (s *Store) Put(ctx context.Context, p election.Put) error {
	var ops []op
	if p.If != nil {
		ops = append(ops, s.unchanged(p.Key, *p.If, election.ErrConflict))
	}
	if p.Lease != "" {
		ops = append(ops, s.bind(p.Key, p.Value, p.Lease)...)
	} else {
		ops = append(ops, s.set(p.Key, p.Value)...)
	}
	if _, err := s.commit(ctx, ops); err != nil {
		return fmt.Errorf("cannot write %s: %w", p.Key, err)
	}
	return nil
}

// Delete implements [election.Keys].
func (s *Store) Delete(ctx context.Context, key string, version election.Version) error {
	o := s.remove(key)
	if version != 0 {
		o = s.kv(api.KVDeleteCAS, key, election.ErrConflict)
		o.KV.Index = uint64(version)
	}
	if _, err := s.commit(ctx, []op{o}); err != nil {
		return fmt.Errorf("cannot delete %s: %w", key, err)
	}
	return nil
}

// termText formats a term for text fields.
func termText(t election.Term) string { return strconv.FormatUint(uint64(t), 10) }
