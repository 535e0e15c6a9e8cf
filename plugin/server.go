package plugin

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/plugin/internal/pluginv1"
)

// aliveEvery is how often a watch sends something although nothing has changed.
const aliveEvery = 500 * time.Millisecond

// storeServer serves StoreService for the one store that was opened.
type storeServer struct {
	pluginv1.UnimplementedStoreServiceServer

	plugin Plugin

	mu    sync.Mutex
	store Store
}

// outcome is the answer that an error of a [Store] stands for. The last result is a gRPC error: the
// outcome is unknown.
func outcome(err error) (pluginv1.Outcome, string, error) {
	if err == nil {
		return pluginv1.Outcome_OUTCOME_DONE, "", nil
	}
	for _, answer := range []struct {
		err error
		is  pluginv1.Outcome
	}{
		{election.ErrNotYet, pluginv1.Outcome_OUTCOME_NOT_YET}, // before the ErrConflict that it comes with
		{election.ErrConflict, pluginv1.Outcome_OUTCOME_CONFLICT},
		{ErrNoLease, pluginv1.Outcome_OUTCOME_NO_LEASE},
		{election.ErrLost, pluginv1.Outcome_OUTCOME_LOST},
		{election.ErrDenied, pluginv1.Outcome_OUTCOME_DENIED},
		{election.ErrReadOnly, pluginv1.Outcome_OUTCOME_READ_ONLY},
		{ErrSettings, pluginv1.Outcome_OUTCOME_INVALID},
		{errors.ErrUnsupported, pluginv1.Outcome_OUTCOME_UNSUPPORTED},
	} {
		if errors.Is(err, answer.err) {
			return answer.is, err.Error(), nil
		}
	}
	return pluginv1.Outcome_OUTCOME_UNSPECIFIED, "", status.Error(codes.Unknown, err.Error())
}

// Open implements StoreService.
func (s *storeServer) Open(_ context.Context, r *pluginv1.OpenRequest) (*pluginv1.OpenResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.store != nil {
		return nil, status.Error(codes.FailedPrecondition, "the store is open already")
	}
	store, err := s.plugin.OpenStore(Settings{Cluster: r.GetCluster(), Values: r.GetSettings()})
	if err == nil {
		s.store = store
	}
	is, detail, err := outcome(err)
	traits := s.plugin.Traits
	return &pluginv1.OpenResponse{Outcome: is, Detail: detail, Traits: &pluginv1.Traits{
		MinTtl: durationpb.New(traits.MinTTL), ExpirySlack: durationpb.New(traits.ExpirySlack), LeaderGap: durationpb.New(traits.LeaderGap),
	}}, err
}

// opened returns the store.
func (s *storeServer) opened() (Store, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.store == nil {
		return nil, status.Error(codes.FailedPrecondition, "the store is not open")
	}
	return s.store, nil
}

// do runs a call of the store. A request whose caller has given up is not begun.
func do[T any](ctx context.Context, s *storeServer, call func(Store) (T, error)) (value T, is pluginv1.Outcome, detail string, err error) {
	store, err := s.opened()
	if err != nil {
		return value, is, "", err
	}
	if err := ctx.Err(); err != nil {
		return value, is, "", status.FromContextError(err).Err()
	}
	value, err = call(store)
	is, detail, err = outcome(err)
	return value, is, detail, err
}

// Read implements StoreService.
func (s *storeServer) Read(ctx context.Context, r *pluginv1.ReadRequest) (*pluginv1.ReadResponse, error) {
	view, is, detail, err := do(ctx, s, func(store Store) (View, error) {
		return store.Read(ctx, Query{Keys: r.GetKeys(), Prefixes: r.GetPrefixes()})
	})
	return &pluginv1.ReadResponse{Outcome: is, Detail: detail, View: viewOf(view)}, err
}

func viewOf(v View) *pluginv1.View {
	entries := make([]*pluginv1.Entry, len(v.Entries))
	for i, e := range v.Entries {
		entries[i] = &pluginv1.Entry{Key: e.Key, Value: e.Value, Version: uint64(e.Version), Lease: string(e.Lease)}
	}
	return &pluginv1.View{Entries: entries, Revision: uint64(v.Revision), Origin: v.Origin}
}

// Grant implements StoreService.
func (s *storeServer) Grant(ctx context.Context, r *pluginv1.GrantRequest) (*pluginv1.GrantResponse, error) {
	lease, is, detail, err := do(ctx, s, func(store Store) (election.LeaseID, error) {
		return store.Grant(ctx, r.GetTtl().AsDuration())
	})
	return &pluginv1.GrantResponse{Outcome: is, Detail: detail, Lease: string(lease)}, err
}

// Renew implements StoreService.
func (s *storeServer) Renew(ctx context.Context, r *pluginv1.RenewRequest) (*pluginv1.RenewResponse, error) {
	_, is, detail, err := do(ctx, s, func(store Store) (struct{}, error) {
		return struct{}{}, store.Renew(ctx, election.LeaseID(r.GetLease()))
	})
	return &pluginv1.RenewResponse{Outcome: is, Detail: detail}, err
}

// Revoke implements StoreService.
func (s *storeServer) Revoke(ctx context.Context, r *pluginv1.RevokeRequest) (*pluginv1.RevokeResponse, error) {
	_, is, detail, err := do(ctx, s, func(store Store) (struct{}, error) {
		return struct{}{}, store.Revoke(ctx, election.LeaseID(r.GetLease()))
	})
	return &pluginv1.RevokeResponse{Outcome: is, Detail: detail}, err
}

// Commit implements StoreService.
func (s *storeServer) Commit(ctx context.Context, r *pluginv1.CommitRequest) (*pluginv1.CommitResponse, error) {
	c := Change{End: election.LeaseID(r.GetEnd()), Read: r.GetRead()}
	if b := r.GetBound(); b != nil {
		c.Bound = &Binding{b.GetKey(), election.LeaseID(b.GetLease())}
	}
	for _, i := range r.GetConditions() {
		c.If = append(c.If, Condition{i.GetKey(), election.Version(i.GetVersion())})
	}
	for _, w := range r.GetWrites() {
		c.Writes = append(c.Writes, Write{Key: w.GetKey(), Value: w.GetValue(), Lease: election.LeaseID(w.GetLease()), Remove: w.GetRemove()})
	}
	view, is, detail, err := do(ctx, s, func(store Store) (View, error) {
		if r.GetRenew() == "" {
			return store.Commit(ctx, c)
		}
		return renewAndCommit(ctx, store, election.LeaseID(r.GetRenew()), c)
	})
	return &pluginv1.CommitResponse{Outcome: is, Detail: detail, View: viewOf(view)}, err
}

// Watch implements StoreService.
func (s *storeServer) Watch(_ *pluginv1.WatchRequest, stream grpc.ServerStreamingServer[pluginv1.WatchResponse]) error {
	store, err := s.opened()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	news, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() { ended <- store.Watch(ctx, func() { signal(news) }) }()
	defer func() {
		cancel()
		<-ended //nolint:errcheck // only that it has returned matters
	}()
	alive := time.NewTicker(aliveEvery)
	defer alive.Stop()
	for {
		response := new(pluginv1.WatchResponse)
		select {
		case <-alive.C:
		case <-news:
			response.Changed = true
		case err := <-ended:
			ended <- err
			return status.Errorf(codes.Unavailable, "the watch has ended: %v", err)
		}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
}

// Clusters implements StoreService.
func (s *storeServer) Clusters(ctx context.Context, _ *pluginv1.ClustersRequest) (*pluginv1.ClustersResponse, error) {
	names, is, detail, err := do(ctx, s, func(store Store) ([]string, error) {
		if lister, ok := store.(Lister); ok {
			return lister.Clusters(ctx)
		}
		return nil, errors.ErrUnsupported
	})
	return &pluginv1.ClustersResponse{Outcome: is, Detail: detail, Clusters: names}, err
}
