package etcd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/rs/zerolog"
)

// DefaultPrefix is where the keys of all clusters are.
const DefaultPrefix = "/tanist"

// Config says which cluster, and where etcd is.
type Config struct {
	Cluster   string   // name of the cluster; one path element
	Prefix    string   // where the keys are; empty: [DefaultPrefix]
	Endpoints []string // http://host:port, https://host:port, host:port or unix:///path of every etcd member

	Username string // empty: no password authentication
	Password string
	TLS      *tls.Config // nil with https endpoints: the system's certificate authorities

	// Fleet: the process is one of very many that only follow, and holds no controller's lease. When all of them come (back) at once
	// etcd needs longer for each than a sidecar could wait, and an attempt that is given up is work done in vain, for both sides:
	// so each gets more time.
	Fleet bool

	// DialTimeout bounds one attempt to connect, and to begin a watch. Zero: 3 s, in a fleet 15 s.
	DialTimeout time.Duration
	// RereadEvery is how often Follow reads the role key although its watch is silent, give or take a quarter. In a fleet a connection
	// on which nothing happens is looked at as often, else every 10 s. Zero: 10 s, in a fleet 20 s.
	RereadEvery time.Duration

	Log zerolog.Logger
}

const (
	defaultDialTimeout = 3 * time.Second
	fleetDialTimeout   = 15 * time.Second
	defaultRereadEvery = 10 * time.Second
	fleetRereadEvery   = 20 * time.Second
)

// check fills in the defaults, and refuses what can't work.
func (c *Config) check() error {
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	if c.DialTimeout <= 0 {
		c.DialTimeout = defaultDialTimeout
		if c.Fleet {
			c.DialTimeout = fleetDialTimeout
		}
	}
	if c.RereadEvery <= 0 {
		c.RereadEvery = defaultRereadEvery
		if c.Fleet {
			c.RereadEvery = fleetRereadEvery
		}
	}
	if c.Cluster == "" || strings.Contains(c.Cluster, "/") {
		return fmt.Errorf("cannot use the cluster name %q: it must be one path element, not empty and without a slash", c.Cluster)
	}
	if c.Prefix != "/" && strings.HasSuffix(c.Prefix, "/") {
		return fmt.Errorf("cannot use the key prefix %q: leave out the slash at its end", c.Prefix)
	}
	if len(c.Endpoints) == 0 {
		return errors.New("cannot use etcd: endpoints is empty; list every etcd member, for example http://127.0.0.1:2379")
	}
	seen := map[string]bool{}
	for i, e := range c.Endpoints {
		if err := checkEndpoint(e); err != nil {
			return fmt.Errorf("cannot use etcd endpoints[%d]: %w", i, err)
		}
		if seen[e] {
			return fmt.Errorf("cannot use etcd endpoints[%d]: %s is listed twice", i, e)
		}
		seen[e] = true
	}
	if c.Username == "" && c.Password != "" {
		return errors.New("cannot use an etcd password without a username: set both")
	}
	if c.Username != "" && c.Password == "" {
		return fmt.Errorf("cannot use the etcd username %q without a password: set both", c.Username)
	}
	return nil
}

func checkEndpoint(e string) error {
	if strings.HasPrefix(e, "unix:") || strings.HasPrefix(e, "unixs:") {
		return nil
	}
	full := e
	if !strings.Contains(e, "://") {
		full = "http://" + e
	}
	u, err := url.Parse(full)
	switch {
	case err != nil:
		return errors.New("it is not a URL; write it like http://10.0.0.11:2379") // err would repeat a password in it
	case u.User != nil:
		return errors.New("it holds a user name; use username and password_file instead")
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("%q has the scheme %q; it is http, https or unix", e, u.Scheme)
	case u.Hostname() == "" || u.Port() == "":
		return fmt.Errorf("%q has no host or no port; write it like http://10.0.0.11:2379", e)
	case u.Path != "" && u.Path != "/":
		return fmt.Errorf("%q has a path; leave out %q", e, u.Path)
	}
	return nil
}
