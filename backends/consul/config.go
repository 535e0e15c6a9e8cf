package consul

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// Config locates Consul and selects what is kept in it. The zero value of every field but Cluster
// is a default.
type Config struct {
	Cluster string // name of the cluster; required

	// Address is the URL of the local Consul agent: http://, https:// or unix:///path. Default:
	// "http://127.0.0.1:8500".
	Address string
	// Others are agents of other hosts, or servers, to ask when Address does not respond. They have
	// the scheme of Address.
	Others     []string
	Token      string
	TokenFile  string // wins over Token; read again when it changes
	Datacenter string // empty: the agent's own
	TLS        election.TrustFiles

	// Agents is set by a process next to an agent of the cluster. Its leases belong to a separate
	// catalog entry, so that its token needs no right that could end a controller's lease.
	Agents bool

	// LockDelay is how long Consul refuses a claim after a lease ended without a release. It should
	// be the validity of the lease; zero leaves the wait to the elector alone. At most 60 s.
	LockDelay time.Duration

	// TTL is the TTL that Grant will request; only Traits uses it. Zero: 10 s.
	TTL time.Duration
	// MinTTL is the servers' session_ttl_min. Zero: 10 s, which is Consul's default.
	MinTTL time.Duration
	// LeaderGap is how long the servers take to replace a dead leader. Zero: 5 s, which is more
	// than any measurement with raft_multiplier = 1.
	LeaderGap time.Duration

	Service *Service // how the active appears in DNS and in the mesh; nil: not at all

	Log zerolog.Logger
}

// DefaultAddress is that of the agent on this host.
const DefaultAddress = "http://127.0.0.1:8500"

const maxLockDelay = 60 * time.Second

// check fills in the defaults and returns everything that is wrong with c.
func (c *Config) check() error {
	if c.Address == "" {
		c.Address = DefaultAddress
	}
	if c.MinTTL == 0 {
		c.MinTTL = election.ConsulTraits().MinTTL
	}
	if c.TTL == 0 {
		c.TTL = c.MinTTL
	}
	if c.LeaderGap == 0 {
		c.LeaderGap = election.ConsulTraits().LeaderGap
	}
	var errs []error
	if c.Cluster == "" || strings.ContainsAny(c.Cluster, "/ ") {
		errs = append(errs, fmt.Errorf("cluster: %q is not a name without slashes and blanks", c.Cluster))
	}
	if err := CheckAddress(c.Address); err != nil {
		errs = append(errs, fmt.Errorf("consul.address: %v", err))
	} else if c.TLS != (election.TrustFiles{}) && !strings.HasPrefix(c.Address, "https:") {
		errs = append(errs, fmt.Errorf("consul.tls: it is set, and consul.address %s is not https", c.Address))
	}
	for i, other := range c.Others {
		if err := CheckOther(other, c.Address); err != nil {
			errs = append(errs, fmt.Errorf("consul.others[%d]: %v", i, err))
		}
	}
	if c.LockDelay < 0 || c.LockDelay > maxLockDelay {
		errs = append(errs, fmt.Errorf("lease.validity: %v, Consul's lock-delay, is not between 0 and %v", c.LockDelay, maxLockDelay))
	}
	if c.Service != nil && c.Agents {
		errs = append(errs, errors.New("consul.service: only controllers are announced, not agents: remove it"))
	}
	if c.Service != nil {
		if err := c.Service.check(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// CheckAddress refuses what can't be the address of a Consul agent.
func CheckAddress(address string) error {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		if strings.Trim(path, "/") == "" {
			return fmt.Errorf("%q has no path; write it like unix:///run/consul.sock", address)
		}
		return nil
	}
	u, err := election.ParseURL(address)
	switch {
	case err != nil:
		return fmt.Errorf("%v; write http://host:port, https://host:port or unix:///path", err)
	case u.Path != "":
		return fmt.Errorf("%q has a path; leave out %q", address, u.Path)
	}
	return nil
}

// CheckOther refuses what can't be the address of an agent other than the one at address.
func CheckOther(other, address string) error {
	if err := CheckAddress(other); err != nil {
		return err
	}
	scheme, _, _ := strings.Cut(address, ":")
	if is, _, _ := strings.Cut(other, ":"); is != scheme || scheme == "unix" {
		return fmt.Errorf("%q begins with %s:// and consul.address with %s://: give all the same", other, is, scheme)
	}
	return nil
}

// Open returns the store of one cluster. It does not connect, so the first call detects a Consul
// that is away. The caller owns the store and closes it.
func Open(cfg Config) (*Store, error) {
	return open(cfg, nil)
}

// open is Open with a seam for tests: wrap may wrap the transport.
func open(cfg Config, wrap func(http.RoundTripper) http.RoundTripper) (*Store, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	transport, err := cfg.transport()
	if err != nil {
		return nil, err
	}
	token, err := election.OpenCredential(cfg.TokenFile, cfg.Token)
	if err != nil {
		return nil, fmt.Errorf("consul.token_file: %v", err)
	}
	bearer := &bearer{next: transport, token: token}
	if wrap != nil {
		bearer.next = wrap(transport)
	}
	if len(cfg.Others) > 0 {
		all := &spread{next: bearer.next}
		all.hedge.Endpoints, all.hedge.Home = 1+len(cfg.Others), avoidFor
		for _, address := range append([]string{cfg.Address}, cfg.Others...) {
			_, host, _ := strings.Cut(address, "://")
			all.hosts = append(all.hosts, strings.TrimSuffix(host, "/"))
		}
		bearer.next = all
	}
	address := cfg.Address
	if rest, ok := strings.CutPrefix(address, "unix://"); ok {
		path := rest
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
		address = socketURL
	}
	client, err := api.NewClient(&api.Config{
		Address: address, Transport: transport, HttpClient: &http.Client{Transport: bearer},
		Datacenter: cfg.Datacenter, Token: placeholder,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot open the Consul store: %v", err)
	}
	// Bearer sets the token, so that the client's environment can't.
	client.SetHeaders(http.Header{})
	s := &Store{
		cfg: cfg, client: client, transport: transport, token: token, log: cfg.Log,
		prefix: election.ClusterPath(election.RootPath, cfg.Cluster), entry: "tanist-" + cfg.Cluster,
		watchers: map[chan election.Hint]bool{},
	}
	if cfg.Agents {
		s.entry = "tanistagents-" + cfg.Cluster
	}
	s.open, s.shut = context.WithCancelCause(context.Background())
	return s, nil
}

// socketURL stands for an agent behind a Unix socket: the dialer knows the path, and the URL only
// supplies the Host header.
const socketURL = "http://consul.sock"

// placeholder stops the client from looking for a token of its own; [bearer] replaces it.
const placeholder = "none"

func (c Config) transport() (*http.Transport, error) {
	dialer := &net.Dialer{Timeout: dialLimit, KeepAlive: 10 * time.Second}
	t := &http.Transport{
		DialContext:           dialer.DialContext,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       60 * time.Second,
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true,
	}
	if !strings.HasPrefix(c.Address, "https:") {
		return t, nil
	}
	trust, err := election.OpenTrust(c.TLS)
	if err != nil {
		return nil, fmt.Errorf("consul.tls: %v", err)
	}
	t.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		config := trust.Config()
		if config.ServerName == "" {
			config.ServerName, _, _ = net.SplitHostPort(address)
		}
		ctx, cancel := context.WithTimeout(ctx, dialLimit+handshakeLimit)
		defer cancel()
		return (&tls.Dialer{NetDialer: dialer, Config: config}).DialContext(ctx, network, address)
	}
	return t, nil
}

const (
	dialLimit      = 3 * time.Second
	handshakeLimit = 3 * time.Second
)

// bearer sets the token of every request. Tokens are rotated while the process runs: bearer rereads
// the file when a token is refused, and presents the last accepted token until the servers know the
// new one. A refused request was not carried out.
type bearer struct {
	next  http.RoundTripper
	token *election.Credential
}

func (b *bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	first := b.token.Words(false)[0]
	response, err := b.present(r, first, false)
	if err != nil || !refused(response) || r.Body != nil && r.GetBody == nil {
		return response, err
	}
	words := b.token.Words(true)
	if !unknown(response) {
		words = words[:1] // the token is known but has no permission for this
	}
	for _, token := range words {
		if token == first {
			continue
		}
		again, err := b.present(r, token, true)
		if err != nil || !refused(again) {
			response.Body.Close()
			return again, err
		}
		again.Body.Close()
	}
	return response, nil
}

func refused(response *http.Response) bool {
	return response.StatusCode == http.StatusForbidden || response.StatusCode == http.StatusUnauthorized
}

// unknown reports whether the servers refused a token because no such token exists.
func unknown(response *http.Response) bool {
	text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
	response.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(text), response.Body), response.Body}
	return bytes.Contains(text, []byte("ACL not found"))
}

func (b *bearer) present(r *http.Request, token string, again bool) (*http.Response, error) {
	r = r.Clone(r.Context())
	if again && r.Body != nil {
		body, err := r.GetBody()
		if err != nil {
			return nil, err
		}
		r.Body = body
	}
	r.Header.Del("X-Consul-Token")
	if token != "" {
		r.Header.Set("X-Consul-Token", token)
	}
	response, err := b.next.RoundTrip(r)
	if err == nil && !refused(response) {
		b.token.Accepted(token)
	}
	return response, err
}
