package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// Store is one cluster in Consul. It implements [election.Backend]. All methods may be called from any goroutine.
type Store struct {
	cfg       Config
	client    *api.Client
	transport *http.Transport
	log       zerolog.Logger
	prefix    string // of every key, with the slash at its end
	entry     string // the catalog entry that sessions and services hang on

	open context.Context // ends with Close
	shut context.CancelCauseFunc

	beats     atomic.Uint64                    // makes every beat another value: Consul ignores a write of the same
	published atomic.Pointer[election.LeaseID] // the lease of this process's last publication

	mu       sync.Mutex
	watchers map[chan election.Hint]bool
	refused  election.Instant // when the lock-delay of the present vacancy first refused a claim; zero: it did not
}

var _ election.Backend = (*Store)(nil)

var errClosed = errors.New("the store is closed")

// Close ends the watches and closes the connections. Calls after it fail.
func (s *Store) Close() error {
	s.shut(errClosed)
	s.transport.CloseIdleConnections()
	return nil
}

// usable keeps calls whose context has ended from being sent.
func (s *Store) usable(ctx context.Context) error {
	if s.open.Err() != nil {
		return errClosed
	}
	return ctx.Err()
}

// Traits implements [election.Backend]. The slack is a whole TTL: Consul's servers keep a session for twice as long.
func (s *Store) Traits() election.Traits {
	return election.Traits{Name: "consul", MinTTL: s.cfg.MinTTL, ExpirySlack: s.cfg.TTL, LeaderGap: s.cfg.LeaderGap}
}

// Read implements [election.Backend]: one transaction that only reads, preceded by a round to a majority.
func (s *Store) Read(ctx context.Context) (election.Snapshot, error) {
	snap, err := s.read(ctx)
	if err != nil {
		return election.Snapshot{}, fmt.Errorf("cannot read the cluster: %w", err)
	}
	return snap, nil
}

func (s *Store) read(ctx context.Context) (snap election.Snapshot, err error) {
	single := []string{"active", "beat", "term", "request", "pause", "heir"}
	var ops []op
	for _, key := range single {
		ops = append(ops, s.kv(api.KVGetOrEmpty, key, nil))
	}
	results, err := s.commit(repeatable(ctx), append(ops, s.kv(api.KVGetTree, "controllers/", nil)))
	if err != nil {
		return snap, err
	}
	pairs := map[string]*api.KVPair{}
	for _, r := range results {
		if r.KV == nil {
			continue
		}
		key := strings.TrimPrefix(r.KV.Key, s.prefix)
		pairs[key] = r.KV
		if name, ok := strings.CutPrefix(key, "controllers/"); ok {
			var c election.Controller
			if json.Unmarshal(r.KV.Value, &c) == nil && c.Name == name {
				snap.Controllers = append(snap.Controllers, c)
			}
		}
	}
	for _, key := range single {
		// What a token may not read is left out without a word; it must not be taken for absent.
		if pairs[key] == nil {
			return snap, fmt.Errorf("%w: the token may not read %s%s", election.ErrDenied, s.prefix, key)
		}
	}
	if p := pairs["active"]; p.ModifyIndex != 0 {
		snap.ActiveLease, snap.ActiveVersion = election.LeaseID(p.Session), election.Version(p.ModifyIndex)
		if a, err := election.DecodeActive(p.Value); err != nil {
			snap.ActiveBad = err
		} else {
			snap.Active = &a
		}
	}
	snap.Beat = election.Version(pairs["beat"].ModifyIndex)
	if p := pairs["term"]; p.ModifyIndex != 0 {
		snap.TermVersion = election.Version(p.ModifyIndex)
		if snap.Breadcrumb, err = election.DecodeBreadcrumb(p.Value); err != nil {
			return snap, err
		}
	}
	if p := pairs["request"]; p.ModifyIndex != 0 {
		snap.RequestVer = election.Version(p.ModifyIndex)
		var r election.Request
		if json.Unmarshal(p.Value, &r) == nil {
			snap.Request = &r
		}
	}
	if p := pairs["pause"]; p.ModifyIndex != 0 {
		snap.PauseVer = election.Version(p.ModifyIndex)
		var pause election.Pause
		if json.Unmarshal(p.Value, &pause) != nil {
			pause = election.Pause{By: "a pause key that can't be read"}
		}
		snap.Pause = &pause
	}
	if p := pairs["heir"]; p.ModifyIndex != 0 {
		snap.HeirVersion = election.Version(p.ModifyIndex)
		if h, err := election.DecodeHeir(p.Value); err == nil {
			snap.Heir = &h
		}
	}
	return snap, nil
}

// Grant implements [election.Backend]: it creates a session.
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
	// Not by api.Session: that can't ask for no lock-delay.
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

// entryAddress is where the catalog entry claims to be. Nobody is there; a name that leads to oneself does the least harm.
const entryAddress = "127.0.0.1"

// register makes the catalog entry that sessions and services of the cluster hang on. It has no health check, so nothing reaps
// it, and no agent owns it.
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
func (s *Store) Renew(ctx context.Context, r election.Renewal) error {
	err := s.renew(ctx, r.Lease)
	switch {
	case err != nil || !r.Hold:
	case r.Beat:
		_, err = s.commit(repeatable(ctx), []op{
			s.bound("active", r.Lease),
			s.lock("beat", s.beat(), r.Lease, nil),
		})
	default:
		err = s.holds(ctx, r.Lease)
	}
	if err != nil {
		return fmt.Errorf("cannot renew: %w", err)
	}
	return nil
}

// beat returns a value that was never written before.
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
	// The leader alone said that, and one that is new may not know of a session that is.
	session, _, err := s.client.Session().Info(string(lease), consistent(ctx))
	switch {
	case err != nil:
		return known(err)
	case session == nil:
		return election.ErrLost
	}
	return errors.New("the store did not find the session, and found it again")
}

// holds proves that the role key is bound to lease.
func (s *Store) holds(ctx context.Context, lease election.LeaseID) error {
	pair, err := s.get(ctx, "active")
	if err != nil {
		return err
	}
	if pair == nil || pair.Session != string(lease) {
		return election.ErrLost
	}
	return nil
}

// get reads one key, linearizably. Nil: it is absent.
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

// Revoke implements [election.Backend]: it deletes what the session locks, so that no lock-delay hangs on those keys, and then
// destroys the session.
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

// drop deletes the keys that a session locks. If one of them moves meanwhile nothing is deleted; the end of the session
// will do it.
func (s *Store) drop(ctx context.Context, lease election.LeaseID) error {
	look := []op{
		s.kv(api.KVGetOrEmpty, "active", nil), s.kv(api.KVGetOrEmpty, "url", nil), s.kv(api.KVGetOrEmpty, "beat", nil),
		s.kv(api.KVGetOrEmpty, "heir", nil), s.kv(api.KVGetTree, "role/", nil), s.kv(api.KVGetTree, "controllers/", nil),
	}
	if s.cfg.Agents {
		look = append(look, s.kv(api.KVGetTree, "agents/", nil))
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
			if key == "active" {
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

// Claim implements [election.Backend]. A claim that the lock-delay refuses is a conflict, and the watches get a hint when it is over.
func (s *Store) Claim(ctx context.Context, c election.Claim) error {
	term := s.kv(api.KVCAS, "term", election.ErrConflict)
	term.KV.Index, term.KV.Value = uint64(c.TermVersion), c.Breadcrumb.Encode()
	ops := []op{term}
	if c.Silent == 0 {
		ops = append(ops, s.absent("active", election.ErrConflict))
	} else {
		ops = append(ops, s.unchanged("beat", c.Silent, election.ErrConflict))
	}
	ops = append(ops, s.bind("active", c.Active.Encode(), c.Lease)...)
	if c.Beat {
		ops = append(ops, s.bind("beat", s.beat(), c.Lease)...)
	} else {
		ops = append(ops, s.remove("beat")) // of a holder before; its silence must not be taken for ours
	}
	ops = append(ops, s.remove("url"), s.remove("heir"))
	if c.Previous != "" {
		ops = append(ops, s.remove("role/"+c.Previous))
	}
	ops = append(ops, s.serviceGone()...)
	_, err := s.commit(ctx, ops)
	if errors.Is(err, errLockDelay) {
		s.hintAfterLockDelay()
		return fmt.Errorf("cannot claim: %w: %v", election.ErrConflict, errLockDelay)
	}
	s.mu.Lock()
	s.refused = 0
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("cannot claim: %w", err)
	}
	return nil
}

// Publish implements [election.Backend]. The transaction is bound to the version of the role key that was read just before, so that
// one which the network delayed can't undo a later one.
func (s *Store) Publish(ctx context.Context, lease election.LeaseID, a election.Active) error {
	announce, err := s.serviceOps(a)
	if err != nil {
		return fmt.Errorf("cannot publish: %v", err)
	}
	for {
		err = s.publish(ctx, lease, a, announce)
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

func (s *Store) publish(ctx context.Context, lease election.LeaseID, a election.Active, announce []op) error {
	pair, err := s.get(ctx, "active")
	if err != nil {
		return err
	}
	if pair == nil || pair.Session != string(lease) {
		return election.ErrLost
	}
	ops := []op{
		s.bound("active", lease), s.unchanged("active", election.Version(pair.ModifyIndex), errMoved),
		s.lock("active", a.Encode(), lease, election.ErrLost),
	}
	role := "role/" + a.Controller
	if a.Serving() {
		ops = append(ops, s.bind("url", []byte(a.URL), lease)...)
		ops = append(ops, s.bind(role, []byte(election.RoleActive), lease)...)
	} else {
		ops = append(ops, s.remove("url"), s.remove(role))
	}
	_, err = s.commit(ctx, append(ops, announce...))
	return err
}

// HandOver implements [election.Backend]. The role key is removed and locked anew by the heir's session: what was removed has no lock-delay.
func (s *Store) HandOver(ctx context.Context, lease election.LeaseID, h election.HandOver) error {
	ops := []op{s.bound("active", lease), s.unchanged("heir", h.Heir, election.ErrConflict)}
	ops = append(ops, s.set("term", h.Breadcrumb.Encode())...)
	for _, key := range []string{"active", "url", "beat", "heir", "role/" + h.From} {
		ops = append(ops, s.remove(key))
	}
	ops = append(ops, s.bind("active", h.Active.Encode(), h.Lease)...)
	if h.Beat {
		ops = append(ops, s.bind("beat", s.beat(), h.Lease)...)
	}
	_, err := s.commit(ctx, append(ops, s.serviceGone()...))
	// The heir's session that is gone looks like our own; but what was not handed over still is ours.
	if errors.Is(err, errLockDelay) || errors.Is(err, election.ErrLost) && s.holds(ctx, lease) == nil {
		err = election.ErrConflict
	}
	if err != nil {
		return fmt.Errorf("cannot hand over: %w", err)
	}
	if err := s.destroy(ctx, lease); err != nil {
		s.log.Debug().Err(err).Msg("the session that was handed over is left to end by itself")
	}
	return nil
}

// Release implements [election.Backend].
func (s *Store) Release(ctx context.Context, lease election.LeaseID, b election.Breadcrumb) error {
	ops := []op{s.bound("active", lease)}
	ops = append(ops, s.set("term", b.Encode())...)
	for _, key := range []string{"active", "url", "beat", "role/" + b.Controller} {
		ops = append(ops, s.remove(key))
	}
	if _, err := s.commit(ctx, append(ops, s.serviceGone()...)); err != nil {
		return fmt.Errorf("cannot release: %w", err)
	}
	if err := s.destroy(ctx, lease); err != nil {
		s.log.Debug().Err(err).Msg("the session of the released lease is left to end by itself")
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

// termText is how a term is written where only text can be.
func termText(t election.Term) string { return strconv.FormatUint(uint64(t), 10) }
