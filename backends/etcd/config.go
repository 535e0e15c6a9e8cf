package etcd

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// DefaultPrefix is the prefix of the keys of all clusters.
const DefaultPrefix = "/" + election.RootPath

// Config selects the cluster and locates etcd.
type Config struct {
	Cluster   string   // name of the cluster; one path element
	Prefix    string   // prefix of the keys; empty: [DefaultPrefix]
	Endpoints []string // http://host:port, https://host:port, host:port or unix:///path of every etcd member

	Username     string // empty: no password authentication
	Password     string
	PasswordFile string // wins over Password; read again for every login
	TLS          election.TrustFiles

	// Fleet marks one of very many processes that only follow and hold no controller's lease. When
	// all of them connect at once, etcd needs longer for each than a sidecar could wait, and an
	// abandoned attempt wastes work on both sides. So each attempt gets more time.
	Fleet bool

	// DialTimeout bounds one attempt to connect and to start a watch. Zero: 3 s, in a fleet 15 s.
	DialTimeout time.Duration
	// RereadEvery is how often Follow reads the role key while its watch is silent, give or take a
	// quarter. Zero: 10 s, in a fleet 20 s. In a fleet an idle connection is checked at this
	// interval, otherwise every 10 s.
	RereadEvery time.Duration

	Log zerolog.Logger
}

const (
	defaultDialTimeout = 3 * time.Second
	fleetDialTimeout   = 15 * time.Second
	defaultRereadEvery = 10 * time.Second
	fleetRereadEvery   = 20 * time.Second
)

// check fills in the defaults and refuses what can't work.
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
		return fmt.Errorf("cluster: %q is not one path element, not empty and without a slash", c.Cluster)
	}
	if c.Prefix != "/" && (!strings.HasPrefix(c.Prefix, "/") || strings.HasSuffix(c.Prefix, "/")) {
		return fmt.Errorf("etcd.prefix: %q does not begin with a slash, or ends with one: write it like /tanist", c.Prefix)
	}
	if len(c.Endpoints) == 0 {
		return errors.New("etcd.endpoints: it is empty: list every etcd member, for example http://127.0.0.1:2379")
	}
	seen := map[string]bool{}
	for i, e := range c.Endpoints {
		if err := CheckEndpoint(e); err != nil {
			return fmt.Errorf("etcd.endpoints[%d]: %v", i, err)
		}
		if seen[e] {
			return fmt.Errorf("etcd.endpoints[%d]: %s is listed twice", i, e)
		}
		seen[e] = true
	}
	if c.Username == "" && c.Password+c.PasswordFile != "" {
		return errors.New("etcd.username: it is missing, and there is a password: set both")
	}
	if c.Username != "" && c.Password+c.PasswordFile == "" {
		return fmt.Errorf("etcd.password_file: it is missing, and there is the username %q: set both", c.Username)
	}
	return nil
}

// CheckEndpoint refuses what can't be the client URL of an etcd member.
func CheckEndpoint(e string) error {
	if path, ok := strings.CutPrefix(strings.Replace(e, "unixs:", "unix:", 1), "unix:"); ok {
		if strings.Trim(path, "/") == "" {
			return fmt.Errorf("%q has no path; write it like unix:///run/etcd.sock", e)
		}
		return nil
	}
	full := e
	if !strings.Contains(e, "://") {
		full = "http://" + e
	}
	u, err := url.Parse(full)
	switch {
	case err != nil:
		return errors.New("it is not a URL; write it like http://10.0.0.11:2379") // err would quote a password in the URL
	case u.User != nil:
		return errors.New("it holds a user name; use username and password_file instead")
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("%q has the scheme %q; it is http, https or unix", e, u.Scheme)
	case full != e && strings.Contains(e, "//"):
		return fmt.Errorf("%q lacks the colon after its scheme; write it like http://10.0.0.11:2379", e)
	case u.Hostname() == "" || u.Port() == "":
		return fmt.Errorf("%q has no host or no port; write it like http://10.0.0.11:2379", e)
	case u.Path != "" && u.Path != "/":
		return fmt.Errorf("%q has a path; leave out %q", e, u.Path)
	}
	if _, err := election.ParseURL(full); err != nil {
		return err
	}
	return nil
}
