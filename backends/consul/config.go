package consul

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// Config says where Consul is and what is kept in it. The zero value of every field but Cluster is a default.
type Config struct {
	Cluster string // name of the cluster; required

	// Address is the URL of the local Consul agent, "http://127.0.0.1:8500" if empty; https://… and unix:///path too.
	Address string
	// Others are asked when Address does not answer: agents of other hosts, or servers. With the same scheme.
	Others     []string
	Token      string
	TokenFile  string // wins over Token; read again when it changes
	Datacenter string // empty: the agent's own
	TLS        TLS

	// Agents is set by a process beside an agent of the cluster. Its leases hang on a catalog entry of their own, so that
	// its token needs no right that would end a controller's lease.
	Agents bool

	// LockDelay is how long Consul refuses a claim after a lease ended other than by a release. It should be the validity
	// of the lease, as it is what that is for; zero leaves the wait to the elector alone. At most 60 s.
	LockDelay time.Duration

	// TTL is what will be asked of Grant; only Traits uses it. Zero: 10 s.
	TTL time.Duration
	// MinTTL is the servers' session_ttl_min. Zero: 10 s, which is Consul's default.
	MinTTL time.Duration
	// LeaderGap is how long the servers take to replace a dead leader. Zero: 5 s, which is above all that
	// was measured with raft_multiplier = 1.
	LeaderGap time.Duration

	Service *Service // how the active appears in DNS and in the mesh; nil: not at all

	Log zerolog.Logger
}

// TLS says how to talk to an https address. Empty fields take the system's defaults.
type TLS struct {
	CAFile     string
	CertFile   string // with KeyFile: the client's own certificate
	KeyFile    string
	ServerName string // the name that the server's certificate must have; empty: the address
}

const (
	defaultAddress   = "http://127.0.0.1:8500"
	defaultMinTTL    = 10 * time.Second
	defaultLeaderGap = 5 * time.Second
	maxLockDelay     = 60 * time.Second
)

// FromEnvironment returns a configuration with what the environment says of Consul: CONSUL_HTTP_ADDR, CONSUL_HTTP_SSL,
// CONSUL_HTTP_TOKEN, CONSUL_HTTP_TOKEN_FILE, CONSUL_CACERT, CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY and
// CONSUL_TLS_SERVER_NAME, as the consul command reads them. Cluster remains to be set.
func FromEnvironment(getenv func(string) string) Config {
	c := Config{
		Address: getenv("CONSUL_HTTP_ADDR"), Token: getenv("CONSUL_HTTP_TOKEN"), TokenFile: getenv("CONSUL_HTTP_TOKEN_FILE"),
		TLS: TLS{
			CAFile: getenv("CONSUL_CACERT"), CertFile: getenv("CONSUL_CLIENT_CERT"), KeyFile: getenv("CONSUL_CLIENT_KEY"),
			ServerName: getenv("CONSUL_TLS_SERVER_NAME"),
		},
	}
	if c.Address != "" && !strings.Contains(c.Address, "://") {
		scheme := "http://"
		if ssl := getenv("CONSUL_HTTP_SSL"); ssl == "1" || strings.EqualFold(ssl, "true") {
			scheme = "https://"
		}
		c.Address = scheme + c.Address
	}
	return c
}

// check returns everything that is wrong with c, after filling in the defaults.
func (c *Config) check() error {
	if c.Address == "" {
		c.Address = defaultAddress
	}
	if c.MinTTL == 0 {
		c.MinTTL = defaultMinTTL
	}
	if c.TTL == 0 {
		c.TTL = c.MinTTL
	}
	if c.LeaderGap == 0 {
		c.LeaderGap = defaultLeaderGap
	}
	var errs []error
	if c.Cluster == "" || strings.ContainsAny(c.Cluster, "/ ") {
		errs = append(errs, fmt.Errorf("cluster %q: it must be a name without slashes and spaces", c.Cluster))
	}
	u, err := url.Parse(c.Address)
	switch {
	case err != nil:
		errs = append(errs, fmt.Errorf("consul.address %q is not a URL: %v", c.Address, err))
	case u.Scheme == "unix":
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		errs = append(errs, fmt.Errorf("consul.address %q: write http://host:port, https://host:port or unix:///path", c.Address))
	case u.Scheme == "http" && c.TLS != TLS{}:
		errs = append(errs, fmt.Errorf("consul.tls is set but consul.address %q is not https://", c.Address))
	}
	for _, other := range c.Others {
		o, err := url.Parse(other)
		if err != nil || u == nil || o.Host == "" || o.Path != "" || o.Scheme != u.Scheme || u.Scheme == "unix" {
			errs = append(errs, fmt.Errorf("consul.others %q: write scheme://host:port, with the scheme of consul.address %q", other, c.Address))
		}
	}
	if c.LockDelay < 0 || c.LockDelay > maxLockDelay {
		errs = append(errs, fmt.Errorf("the lock-delay %v is not between 0 and %v: lower lease.validity", c.LockDelay, maxLockDelay))
	}
	if c.Service != nil && c.Agents {
		errs = append(errs, errors.New("consul.service is of controllers: nothing beside an agent is announced"))
	}
	if c.Service != nil {
		if err := c.Service.check(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Open returns the store of one cluster. It does not connect: a Consul that is away is found out by the first call.
// The caller owns the store and closes it.
func Open(cfg Config) (*Store, error) {
	return open(cfg, nil)
}

// open is Open with a seam for tests: wrap may put itself before the transport.
func open(cfg Config, wrap func(http.RoundTripper) http.RoundTripper) (*Store, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("cannot open the Consul store: %v", err)
	}
	transport, err := cfg.transport()
	if err != nil {
		return nil, fmt.Errorf("cannot open the Consul store: %v", err)
	}
	bearer := &bearer{fixed: cfg.Token, file: cfg.TokenFile}
	if _, err := bearer.token(); err != nil {
		return nil, fmt.Errorf("cannot open the Consul store: %v", err)
	}
	bearer.next = transport
	if wrap != nil {
		bearer.next = wrap(transport)
	}
	if len(cfg.Others) > 0 {
		all := &spread{next: bearer.next}
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
		cfg: cfg, client: client, transport: transport, log: cfg.Log,
		prefix: "tanist/" + cfg.Cluster + "/", entry: "tanist-" + cfg.Cluster,
		watchers: map[chan election.Hint]bool{},
	}
	if cfg.Agents {
		s.entry = "tanistagents-" + cfg.Cluster
	}
	s.open, s.shut = context.WithCancelCause(context.Background())
	return s, nil
}

// socketURL stands for an agent behind a Unix socket: the dialer knows the path, what is left of the URL is the Host header.
const socketURL = "http://consul.sock"

// placeholder keeps the client from looking for a token of its own; [bearer] replaces it.
const placeholder = "none"

func (c Config) transport() (*http.Transport, error) {
	t := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 3 * time.Second, KeepAlive: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:   3 * time.Second,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       60 * time.Second,
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true,
	}
	if !strings.HasPrefix(c.Address, "https:") {
		return t, nil
	}
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.TLS.ServerName}
	if c.TLS.CAFile != "" {
		pem, err := os.ReadFile(c.TLS.CAFile)
		if err != nil {
			return nil, fmt.Errorf("consul.tls.ca_file: %v", err)
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("consul.tls.ca_file: there is no certificate in %s", c.TLS.CAFile)
		}
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		return nil, errors.New("consul.tls: cert_file and key_file go together")
	}
	if c.TLS.CertFile != "" {
		pair := func() (*tls.Certificate, error) {
			p, err := tls.LoadX509KeyPair(c.TLS.CertFile, c.TLS.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("consul.tls: %v", err)
			}
			return &p, nil
		}
		if _, err := pair(); err != nil {
			return nil, err
		}
		// Read at every handshake: certificates are renewed while we run.
		t.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair() }
	}
	return t, nil
}

// bearer puts the token on every request. A token file is looked at again every few seconds, because tokens are
// rotated while we run; one that can't be read leaves the last token in force.
type bearer struct {
	next  http.RoundTripper
	fixed string
	file  string

	mu     sync.Mutex
	read   election.Instant
	latest string
}

const tokenEvery = 5 * time.Second

func (b *bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	token, err := b.token()
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	r.Header.Del("X-Consul-Token")
	if token != "" {
		r.Header.Set("X-Consul-Token", token)
	}
	return b.next.RoundTrip(r)
}

func (b *bearer) token() (string, error) {
	if b.file == "" {
		return b.fixed, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := election.BootClock()
	if b.latest != "" && now.Sub(b.read) < tokenEvery {
		return b.latest, nil
	}
	content, err := os.ReadFile(b.file)
	switch token := strings.TrimSpace(string(content)); {
	case err == nil && token != "":
		b.latest, b.read = token, now
	case b.latest != "":
	case err != nil:
		return "", fmt.Errorf("consul.token_file: %v", err)
	default:
		return "", fmt.Errorf("consul.token_file: %s is empty", b.file)
	}
	return b.latest, nil
}
