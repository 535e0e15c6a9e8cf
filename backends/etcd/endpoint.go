package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/tanist/tanist/election"
)

// endpoint is one etcd member with its own client.
type endpoint struct {
	index  int // in the configuration
	url    string
	client *clientv3.Client
	user   string
	secret *election.Credential

	fetching chan struct{} // holds one value while a token is fetched
	token    atomic.Pointer[string]
}

func newEndpoint(ctx context.Context, index int, cfg *Config, trust *election.Trust, secret *election.Credential) (*endpoint, error) {
	// When the store is back, a holder that continued without it must renew before a passive may
	// take its silence for death, which happens after 800 ms in the fast profile. So reconnection
	// attempts are closer together than that.
	retry := 400 * time.Millisecond
	if cfg.Fleet {
		retry = 2 * time.Second
	}
	url := cfg.Endpoints[index]
	e := &endpoint{index: index, url: url, user: cfg.Username, secret: secret, fetching: make(chan struct{}, 1)}
	options := []grpc.DialOption{
		// The library waits up to 2 minutes between attempts to connect by default.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: retry},
			MinConnectTimeout: cfg.DialTimeout,
		}),
		grpc.WithIdleTimeout(0),
		grpc.WithStatsHandler(sentHandler{}),
		grpc.WithChainUnaryInterceptor(noteError),
		grpc.WithChainStreamInterceptor(noteStreamError),
	}
	if e.user != "" {
		options = append(options, grpc.WithPerRPCCredentials(e))
	}
	bare := !strings.Contains(url, "://") && cfg.TLS != (election.TrustFiles{})
	if bare || strings.HasPrefix(url, "https:") || strings.HasPrefix(url, "unixs:") {
		options = append(options, grpc.WithTransportCredentials(handshakes{trust}))
	}
	ping, silence := 10*time.Second, 2*time.Second // less than 10 s between pings is not honoured by gRPC
	if cfg.Fleet {
		// The periodic read of the role key detects a dead endpoint by itself. Pings between two
		// reads would be most of the traffic of a fleet at rest.
		ping, silence = max(ping, cfg.RereadEvery), 10*time.Second
	}
	var err error
	e.client, err = clientv3.New(clientv3.Config{
		Context:              ctx,
		Endpoints:            []string{url},
		DialTimeout:          cfg.DialTimeout,
		DialKeepAliveTime:    ping,
		DialKeepAliveTimeout: silence, // it also bounds unacknowledged data, through TCP_USER_TIMEOUT
		MaxUnaryRetries:      1,       // one attempt; repetition is decided here
		DialOptions:          options,
		Logger:               zap.NewNop(),
	})
	return e, err
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (e *endpoint) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if t := e.token.Load(); t != nil {
		return map[string]string{rpctypes.TokenFieldNameGRPC: *t}, nil
	}
	return nil, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials. etcd accepts passwords without
// TLS, so this package must too.
func (e *endpoint) RequireTransportSecurity() bool { return false }

// authenticate fetches a token, unless another call has already replaced old.
func (e *endpoint) authenticate(ctx context.Context, old *string) (err error) {
	select {
	case e.fetching <- struct{}{}:
		defer func() { <-e.fetching }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if e.token.Load() != old {
		return nil
	}
	e.token.Store(nil) // an expired token must not accompany the request for a new one
	for _, password := range e.secret.Words(true) {
		var resp *clientv3.AuthenticateResponse
		resp, err = e.client.Authenticate(ctx, e.user, password)
		if errors.Is(err, rpctypes.ErrAuthNotEnabled) {
			return nil
		}
		if err == nil {
			e.secret.Accepted(password)
			e.token.Store(&resp.Token)
			return nil
		}
		if !errors.Is(err, rpctypes.ErrAuthFailed) {
			return err
		}
	}
	return err
}

// attempt records what is known of one request to one endpoint.
type attempt struct {
	sent func()                // is called before a request leaves this host; may be nil
	last atomic.Pointer[error] // the last error below the client library, which hides it behind the context's error
}

type attemptKey struct{}

func attemptOf(ctx context.Context) *attempt {
	a, _ := ctx.Value(attemptKey{}).(*attempt)
	return a
}

// do runs f against the endpoint, with a token if needed. If the token is refused it repeats f
// once: the server checks the token before anything else.
func (e *endpoint) do(ctx context.Context, a *attempt, f func(context.Context, *clientv3.Client) error) error {
	marked := context.WithValue(ctx, attemptKey{}, a)
	if e.user == "" {
		return e.describe(a, f(marked, e.client))
	}
	token := e.token.Load()
	if token == nil {
		if err := e.authenticate(ctx, nil); err != nil {
			return e.describe(a, err)
		}
		token = e.token.Load()
	}
	err := f(marked, e.client)
	if errors.Is(err, rpctypes.ErrInvalidAuthToken) || errors.Is(err, rpctypes.ErrUserEmpty) || errors.Is(err, rpctypes.ErrAuthOldRevision) {
		if failed := e.authenticate(ctx, token); failed != nil {
			return e.describe(a, failed)
		}
		err = f(marked, e.client)
	}
	return e.describe(a, err)
}

// describe classifies an error and adds its endpoint.
func (e *endpoint) describe(a *attempt, err error) error {
	switch {
	case err == nil, errors.Is(err, election.ErrConflict), errors.Is(err, election.ErrLost):
		return err
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return election.ErrLost
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("%w: %s raised the alarm NOSPACE: compact and defragment etcd, then `etcdctl alarm disarm`", election.ErrReadOnly, e.url)
	case denied(err):
		return fmt.Errorf("%w: %s: %v", election.ErrDenied, e.url, err)
	}
	if last := a.last.Load(); last != nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)) {
		return fmt.Errorf("%s: %w (%s)", e.url, err, status.Convert(*last).Message())
	}
	return fmt.Errorf("%s: %w", e.url, err)
}

func denied(err error) bool {
	for _, d := range []error{
		rpctypes.ErrPermissionDenied, rpctypes.ErrAuthFailed, rpctypes.ErrUserEmpty, rpctypes.ErrUserNotFound,
		rpctypes.ErrInvalidAuthToken, rpctypes.ErrRoleNotGranted, rpctypes.ErrPermissionNotGranted,
	} {
		if errors.Is(err, d) {
			return true
		}
	}
	code := status.Code(err)
	return code == codes.PermissionDenied || code == codes.Unauthenticated
}

// down reports whether the last attempt to connect failed.
func (e *endpoint) down() bool {
	return e.client.ActiveConnection().GetState() == connectivity.TransientFailure
}

// sentHandler marks attempts whose request message reached a connection.
type sentHandler struct{}

func (sentHandler) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (sentHandler) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (sentHandler) HandleConn(context.Context, stats.ConnStats)                       {}

func (sentHandler) HandleRPC(ctx context.Context, s stats.RPCStats) {
	switch s.(type) {
	case *stats.OutHeader, *stats.OutPayload:
		if a := attemptOf(ctx); a != nil && a.sent != nil {
			a.sent()
		}
	}
}

func noteError(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, cc, opts...)
	if a := attemptOf(ctx); a != nil && err != nil {
		a.last.Store(&err)
	}
	return err
}

func noteStreamError(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := stream(ctx, desc, cc, method, opts...)
	if a := attemptOf(ctx); a != nil && err != nil {
		a.last.Store(&err)
	}
	return s, err
}

// handshakes are TLS credentials that are rebuilt for every connection.
type handshakes struct{ trust *election.Trust }

func (h handshakes) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(h.trust.Config()).ClientHandshake(ctx, authority, conn)
}

func (h handshakes) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("not a server")
}

func (h handshakes) Info() credentials.ProtocolInfo {
	return credentials.NewTLS(h.trust.Config()).Info()
}
func (h handshakes) Clone() credentials.TransportCredentials { return h }
func (h handshakes) OverrideServerName(string) error         { return errors.ErrUnsupported }
