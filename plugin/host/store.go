package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/plugin"
	"github.com/tanist/tanist/plugin/internal/pluginv1"
)

// StoreOptions are those of a store by plugin.
type StoreOptions struct {
	Settings plugin.Settings
	// Traits are what the configuration expects of the store. A plugin that guarantees less is
	// refused, because the timing of the lease was checked against these. The name is the store's
	// for people. The zero value: what the plugin itself guarantees; then its first start must
	// succeed.
	Traits election.Traits
	// RereadEvery is as in [plugin.Options].
	RereadEvery time.Duration
}

// Store is an election in a store by plugin.
type Store struct {
	*plugin.Backend

	remote *remote
}

// OpenStore starts a plugin and opens a cluster of its store. It waits for the first start, and
// returns an error if the plugin's file can't be used or the plugin refuses its settings. Any other
// failure may pass: then the store is there, its calls fail with the reason, and the plugin is
// started again.
func OpenStore(ctx context.Context, spec Spec, o StoreOptions) (*Store, error) {
	f, err := find(spec.Name, spec.Dirs, spec.SHA256)
	if err != nil {
		return nil, &RefusedError{spec.Name, err}
	}
	_ = f.Close() // it was only read
	s := &remote{options: o}
	s.plugin = launch(spec, s.open)
	err = s.plugin.awaitFirst(ctx)
	var refused *RefusedError
	if errors.As(err, &refused) || err != nil && o.Traits == (election.Traits{}) {
		_ = s.plugin.Close() // it never returns an error
		return nil, err
	}
	if o.Traits == (election.Traits{}) {
		o.Traits = s.declared
	}
	return &Store{plugin.NewBackend(s, plugin.Options{Traits: o.Traits, RereadEvery: o.RereadEvery, Log: spec.Log}), s}, nil
}

// Plugin returns the plugin of the store.
func (s *Store) Plugin() *Plugin { return s.remote.plugin }

// RefusedError reports a plugin that is of no use however often it is started.
type RefusedError struct {
	Plugin string
	Why    error
}

// Error implements error.
func (r *RefusedError) Error() string { return fmt.Sprintf("plugin %s: %v", r.Plugin, r.Why) }

// Unwrap returns the reason.
func (r *RefusedError) Unwrap() error { return r.Why }

// remote is a [plugin.Store] in a plugin. Nothing that the plugin answers is taken over unchecked.
type remote struct {
	plugin   *Plugin
	options  StoreOptions
	declared election.Traits // valid after the first start
	seen     memory
	granted  leases
}

var _ plugin.Store = (*remote)(nil)

// open gives a process that has just started its settings.
func (s *remote) open(ctx context.Context, i *instance) error {
	name := s.plugin.spec.Name
	if !i.about.Offers("store") {
		return &RefusedError{name, errors.New("it offers no store")}
	}
	r, err := pluginv1.NewStoreServiceClient(i.conn).Open(ctx, &pluginv1.OpenRequest{
		Cluster: s.options.Settings.Cluster, Settings: s.options.Settings.Values,
	})
	switch {
	case err != nil:
		return fmt.Errorf("it does not open the store: %w", err)
	case r.GetOutcome() == pluginv1.Outcome_OUTCOME_INVALID:
		return &RefusedError{name, errors.New(printable(r.GetDetail()))}
	case r.GetOutcome() != pluginv1.Outcome_OUTCOME_DONE:
		return fmt.Errorf("it does not open the store: %v %s", r.GetOutcome(), printable(r.GetDetail()))
	}
	if err := s.options.fit(r.GetTraits()); err != nil {
		return &RefusedError{name, err}
	}
	s.declare(r.GetTraits())
	return nil
}

// declare keeps what the first process declared, if that is asked for.
func (s *remote) declare(t *pluginv1.Traits) {
	if s.options.Traits == (election.Traits{}) && s.declared == (election.Traits{}) {
		s.declared = election.Traits{
			Name: election.PluginPrefix + s.plugin.spec.Name, MinTTL: t.GetMinTtl().AsDuration(),
			ExpirySlack: t.GetExpirySlack().AsDuration(), LeaderGap: t.GetLeaderGap().AsDuration(),
		}
	}
}

// fit refuses a store that guarantees less than the configuration expects.
func (o StoreOptions) fit(declared *pluginv1.Traits) error {
	for _, t := range []struct {
		key      string
		declared *durationpb.Duration
		expected time.Duration
	}{
		{"min_ttl", declared.GetMinTtl(), o.Traits.MinTTL},
		{"expiry_slack", declared.GetExpirySlack(), o.Traits.ExpirySlack},
		{"leader_gap", declared.GetLeaderGap(), o.Traits.LeaderGap},
	} {
		if t.declared.CheckValid() != nil || t.declared.AsDuration() < 0 {
			return fmt.Errorf("its %s is no duration", t.key)
		}
		if d := t.declared.AsDuration(); d > t.expected && o.Traits != (election.Traits{}) {
			return fmt.Errorf("its store has a %s of %v, and %v is expected: set it for the plugin", t.key, d, t.expected)
		}
	}
	return nil
}

// response is what all answers have.
type response interface {
	GetOutcome() pluginv1.Outcome
	GetDetail() string
}

// answers are the outcomes that a verb may have besides DONE.
type answers []pluginv1.Outcome

const (
	conflict = pluginv1.Outcome_OUTCOME_CONFLICT
	notYet   = pluginv1.Outcome_OUTCOME_NOT_YET
	lost     = pluginv1.Outcome_OUTCOME_LOST
	noLease  = pluginv1.Outcome_OUTCOME_NO_LEASE
	denied   = pluginv1.Outcome_OUTCOME_DENIED
	readOnly = pluginv1.Outcome_OUTCOME_READ_ONLY
)

// ask sends one request, once. The result is the plugin's answer, or the outcome is unknown. check
// returns what contradicts the protocol or earlier answers.
func ask[R response](ctx context.Context, s *remote, may answers, send func(context.Context, pluginv1.StoreServiceClient) (R, error), check func(R) error) (R, error) {
	var none R
	i, err := s.plugin.instance(ctx)
	if err != nil {
		return none, err
	}
	var r R
	err = s.plugin.watched(ctx, i, func(ctx context.Context) (err error) {
		r, err = send(ctx, pluginv1.NewStoreServiceClient(i.conn))
		return err
	})
	if ctx.Err() != nil {
		return none, opaque(fmt.Errorf("plugin %s has not answered: %w", s.plugin.spec.Name, ctx.Err()))
	}
	if err != nil {
		go s.plugin.suspect(i)
		return none, opaque(fmt.Errorf("plugin %s: %w", s.plugin.spec.Name, words(err)))
	}
	if r.GetOutcome() == pluginv1.Outcome_OUTCOME_DONE {
		err = check(r)
	} else if !slices.Contains(may, r.GetOutcome()) {
		err = fmt.Errorf("%v is no answer to this", r.GetOutcome())
	}
	if err != nil {
		return none, s.plugin.lied(i, err)
	}
	i.lies.Store(0)
	return r, meaning(r)
}

// meaning is the error that an outcome stands for.
func meaning(r response) error {
	var err error
	switch r.GetOutcome() {
	case conflict:
		err = election.ErrConflict
	case notYet:
		err = fmt.Errorf("%w: %w", election.ErrConflict, election.ErrNotYet)
	case lost:
		err = election.ErrLost
	case noLease:
		err = plugin.ErrNoLease
	case denied:
		err = election.ErrDenied
	case readOnly:
		err = election.ErrReadOnly
	case pluginv1.Outcome_OUTCOME_UNSUPPORTED:
		err = errors.ErrUnsupported
	default:
		return nil
	}
	if detail := printable(r.GetDetail()); detail != "" && detail != err.Error() {
		return fmt.Errorf("%w (%s)", err, detail)
	}
	return err
}

// lied notes an answer that must not be believed. A process that goes on like this is replaced.
func (p *Plugin) lied(i *instance, what error) error {
	p.spec.Log.Error().Err(what).Msg("plugin gave an answer that can't be true; the outcome is unknown")
	if i.lies.Add(1) >= tooManyLies {
		i.condemn(fmt.Errorf("%d answers in a row could not be true, the last one because %w", tooManyLies, what))
	}
	return opaque(fmt.Errorf("plugin %s gave an answer that can't be true: %w", p.spec.Name, what))
}

// Read implements [plugin.Store].
func (s *remote) Read(ctx context.Context, q plugin.Query) (v plugin.View, err error) {
	before := s.seen.now()
	_, err = ask(ctx, s, answers{denied}, func(ctx context.Context, c pluginv1.StoreServiceClient) (*pluginv1.ReadResponse, error) {
		return c.Read(ctx, &pluginv1.ReadRequest{Keys: q.Keys, Prefixes: q.Prefixes})
	}, func(r *pluginv1.ReadResponse) (err error) {
		v, err = s.view(r.GetView(), q.Selects, before)
		return err
	})
	return v, err
}

// Grant implements [plugin.Store].
func (s *remote) Grant(ctx context.Context, ttl time.Duration) (election.LeaseID, error) {
	r, err := ask(ctx, s, answers{denied, readOnly}, func(ctx context.Context, c pluginv1.StoreServiceClient) (*pluginv1.GrantResponse, error) {
		return c.Grant(ctx, &pluginv1.GrantRequest{Ttl: durationpb.New(ttl)})
	}, func(r *pluginv1.GrantResponse) error { return s.granted.add(election.LeaseID(r.GetLease())) })
	return election.LeaseID(r.GetLease()), err
}

// nothing is the check of an answer without a content.
func nothing[R response](R) error { return nil }

// Renew implements [plugin.Store].
func (s *remote) Renew(ctx context.Context, lease election.LeaseID) error {
	_, err := ask(ctx, s, answers{lost, denied, readOnly}, func(ctx context.Context, c pluginv1.StoreServiceClient) (*pluginv1.RenewResponse, error) {
		return c.Renew(ctx, &pluginv1.RenewRequest{Lease: string(lease)})
	}, nothing)
	return err
}

// Revoke implements [plugin.Store].
func (s *remote) Revoke(ctx context.Context, lease election.LeaseID) error {
	_, err := ask(ctx, s, answers{denied, readOnly}, func(ctx context.Context, c pluginv1.StoreServiceClient) (*pluginv1.RevokeResponse, error) {
		return c.Revoke(ctx, &pluginv1.RevokeRequest{Lease: string(lease)})
	}, nothing)
	return err
}

// Commit implements [plugin.Store].
func (s *remote) Commit(ctx context.Context, c plugin.Change) (plugin.View, error) {
	return s.RenewAndCommit(ctx, "", c)
}

// RenewAndCommit prolongs a lease, unless that is empty, and commits, in one request.
func (s *remote) RenewAndCommit(ctx context.Context, lease election.LeaseID, c plugin.Change) (v plugin.View, err error) {
	request := &pluginv1.CommitRequest{Renew: string(lease), End: string(c.End), Read: c.Read}
	if c.Bound != nil {
		request.Bound = &pluginv1.Binding{Key: c.Bound.Key, Lease: string(c.Bound.Lease)}
	}
	for _, i := range c.If {
		request.Conditions = append(request.Conditions, &pluginv1.Condition{Key: i.Key, Version: uint64(i.Version)})
	}
	for _, w := range c.Writes {
		request.Writes = append(request.Writes, &pluginv1.Write{Key: w.Key, Value: w.Value, Lease: string(w.Lease), Remove: w.Remove})
	}
	before := s.seen.now()
	_, err = ask(ctx, s, answers{conflict, notYet, lost, noLease, denied, readOnly}, func(ctx context.Context, client pluginv1.StoreServiceClient) (*pluginv1.CommitResponse, error) {
		return client.Commit(ctx, request)
	}, func(r *pluginv1.CommitResponse) (err error) {
		if v, err = s.view(r.GetView(), plugin.Query{Keys: c.Read}.Selects, before); err == nil {
			err = plausible(c, v, before.revision)
		}
		return err
	})
	return v, err
}

// Clusters implements [plugin.Lister].
func (s *remote) Clusters(ctx context.Context) ([]string, error) {
	r, err := ask(ctx, s, answers{denied, pluginv1.Outcome_OUTCOME_UNSUPPORTED}, func(ctx context.Context, c pluginv1.StoreServiceClient) (*pluginv1.ClustersResponse, error) {
		return c.Clusters(ctx, &pluginv1.ClustersRequest{})
	}, func(r *pluginv1.ClustersResponse) error {
		for _, name := range r.GetClusters() {
			if err := election.CheckName(name); err != nil {
				return err
			}
		}
		return nil
	})
	return r.GetClusters(), err
}

// Close implements [plugin.Store].
func (s *remote) Close() error { return s.plugin.Close() }

// silentFor is how long a watch may send nothing. It sends a sign of life more often.
const silentFor = 3 * time.Second

// Watch implements [plugin.Store].
func (s *remote) Watch(until context.Context, changed func()) error {
	ctx, cancel := context.WithCancel(until)
	defer cancel()
	i, err := s.plugin.instance(ctx)
	if err != nil {
		return err
	}
	silence := time.AfterFunc(silentFor, cancel)
	defer silence.Stop()
	stream, err := pluginv1.NewStoreServiceClient(i.conn).Watch(ctx, &pluginv1.WatchRequest{})
	for err == nil {
		var r *pluginv1.WatchResponse
		if r, err = stream.Recv(); err == nil {
			silence.Reset(silentFor)
			if r.GetChanged() {
				changed()
			}
		}
	}
	if until.Err() == nil {
		go s.plugin.suspect(i)
	}
	return opaque(fmt.Errorf("plugin %s: %w", s.plugin.spec.Name, words(err)))
}
