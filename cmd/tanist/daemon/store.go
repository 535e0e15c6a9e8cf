package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/backends/etcd"
	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/vip"
)

// Store is the interface that the commands need from a backend.
type Store interface {
	election.Backend
	Follow(ctx context.Context) <-chan election.Sighting
	Close() error
}

// StoreConfig selects the store and a cluster in it.
type StoreConfig struct {
	Store      string
	Cluster    string
	Etcd       config.Etcd
	Consul     config.Consul
	Postgres   config.Postgres
	Plugins    map[string]config.Plugin
	PluginDirs []string
	Agents     bool            // the process follows, and never holds a controller's lease
	Timing     election.Timing // of a sidecar; otherwise zero
	Reread     time.Duration   // how often a follower rereads in case a watch stalls; zero: the store's default
	File       string          // source of the settings; empty for flags
	Allowed    []string        // the only URLs that may be active; empty: any

	Repository *config.Repository // of a sidecar that has one
	VirtualIPs []vip.Address      // of a sidecar that has some, or of tanist vip
	Follows    bool               // the virtual IPs are where the active is, held by tanist vip
	Name       string             // of that tanist vip
	Controller *config.Controller // of a sidecar
}

func StoreOf(l *config.Loaded) StoreConfig {
	switch l.Kind {
	case config.KindController:
		c := l.Controller
		timing, _ := c.Timing() // the configuration has been checked
		addresses, _ := addressesOf(c)
		return StoreConfig{
			Store: c.Store, Cluster: c.Cluster, Etcd: c.Etcd, Consul: c.Consul, Postgres: c.Postgres, Plugins: c.Plugins, PluginDirs: c.PluginDirs, Timing: timing, File: l.File, Repository: c.Repository, VirtualIPs: addresses,
			Controller: c,
		}
	case config.KindAgent:
		c := l.Agent
		return StoreConfig{
			Store: c.Store, Cluster: c.Cluster, Etcd: c.Etcd, Consul: c.Consul, Postgres: c.Postgres, Plugins: c.Plugins, PluginDirs: c.PluginDirs, Agents: true, File: l.File, Allowed: c.Controllers,
			Reread: c.PresenceTTL, // both intervals trade freshness for load on the store
		}
	case config.KindVIP:
		c := l.VIP
		addresses, _ := parseAddresses(c.VirtualIP)
		return StoreConfig{Store: c.Store, Cluster: c.Cluster, Etcd: c.Etcd, Consul: c.Consul, Postgres: c.Postgres, Plugins: c.Plugins, PluginDirs: c.PluginDirs, File: l.File, VirtualIPs: addresses, Follows: true, Name: c.Name}
	default:
		c := l.HAProxy
		return StoreConfig{
			Store: c.Store, Cluster: c.Cluster, Etcd: c.Etcd, Consul: c.Consul, Postgres: c.Postgres, Plugins: c.Plugins, PluginDirs: c.PluginDirs, File: l.File, Allowed: c.Controllers,
		}
	}
}

// OpenStore opens a store. It does not connect.
func OpenStore(c StoreConfig, log zerolog.Logger) (Store, error) {
	switch c.Store {
	case "etcd":
		s, err := etcd.Open(etcd.Config{
			Cluster: c.Cluster, Prefix: c.Etcd.Prefix, Endpoints: c.Etcd.Endpoints, Username: c.Etcd.Username,
			Password: string(c.Etcd.Password), PasswordFile: c.Etcd.PasswordFile, TLS: trustFiles(c.Etcd.TLS), Fleet: c.Agents, RereadEvery: c.Reread, Log: log,
		})
		if err != nil {
			return nil, exit.Errorf(exit.Config, "%v", err)
		}
		return s, nil
	case "consul":
		return openConsul(c, log)
	case "postgres":
		return openPostgres(c, log)
	}
	if name, ok := strings.CutPrefix(c.Store, election.PluginPrefix); ok {
		return openPlugin(name, c, log)
	}
	return nil, exit.Errorf(exit.Config, "unknown store %q", c.Store)
}

// Traits returns what is expected of the store.
func (c StoreConfig) Traits() election.Traits { return config.TraitsOf(c.Store, c.Plugins) }

// CheckStore reads the store once, so that a mistake is reported at once instead of by silence.
func CheckStore(ctx context.Context, s Store, c StoreConfig) error {
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	_, err := s.Read(ctx)
	return c.unusable(err)
}

// unusable explains an error of the store to an operator.
func (c StoreConfig) unusable(err error) error {
	if err == nil {
		return nil
	}
	where := "" // the error has the addresses
	switch c.Store {
	case "etcd":
		where = " at " + strings.Join(c.Etcd.Endpoints, ", ")
	case "consul":
		where = " at " + c.Consul.Address
	}
	if errors.Is(err, election.ErrDenied) {
		return exit.Errorf(exit.Denied, "%s%s refused the login or denied access to cluster %s: %v", c.Store, where, c.Cluster, err)
	}
	return exit.Errorf(exit.Store, "%s can't be reached%s within %v: %v", c.Store, where, StoreTimeout, err)
}

// Clusters returns the names of all clusters of the store.
func Clusters(ctx context.Context, c StoreConfig) ([]string, error) {
	s, err := OpenStore(c, zerolog.Nop())
	if err != nil {
		return nil, err
	}
	defer s.Close() //nolint:errcheck // nothing was written
	lister, ok := s.(interface {
		Clusters(ctx context.Context) ([]string, error)
	})
	if !ok {
		return nil, exit.Errorf(exit.Failure, "%s cannot list its clusters", c.Store)
	}
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	names, err := lister.Clusters(ctx)
	if errors.Is(err, election.ErrDenied) {
		return nil, exit.Errorf(exit.Denied, "this login may not read all clusters: %v", err)
	}
	return names, c.unusable(err)
}

// checkLogin is CheckStore for a process that follows the role key and can do without the store for
// a while: only a refusal is an error, because it is an answer. It reads only the role key, because
// a follower may have access to nothing else.
func checkLogin(ctx context.Context, s Store, c StoreConfig) error {
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	seen, ok := <-s.Follow(ctx)
	if err := c.unusable(seen.Err); ok && exit.Code(err) == exit.Denied {
		return err
	}
	return nil
}

const (
	StoreTimeout = 5 * time.Second
	loginTimeout = 2 * time.Second // even of a process that continues without an answer
)

func trustFiles(t config.TLS) election.TrustFiles {
	return election.TrustFiles{CAFile: t.CAFile, CertFile: t.CertFile, KeyFile: t.KeyFile, ServerName: t.ServerName}
}

// SecretFile returns the content of a file without the final line break. The error never contains
// it.
func SecretFile(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("cannot read the secret: %v", err)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}
