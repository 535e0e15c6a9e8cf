package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/tanist/tanist/backends/etcd"
	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
)

// store is what the commands need of an adapter.
type store interface {
	election.Backend
	Follow(ctx context.Context) <-chan election.Sighting
	Close() error
}

// storeConfig says which store, and which cluster in it.
type storeConfig struct {
	Store   string
	Cluster string
	Etcd    config.Etcd
	Consul  config.Consul
	Agents  bool            // the process follows, and never holds a controller's lease
	Timing  election.Timing // of a sidecar; else zero
	Reread  time.Duration   // how often who follows reads anew, in case a watch stalls; zero: the store's default
	File    string          // where it is from; empty for flags
	Allowed []string        // the only URLs that may be active, if there are any
}

func storeOf(l *config.Loaded) storeConfig {
	switch l.Kind {
	case config.KindController:
		c := l.Controller
		timing, _ := c.Timing() // the configuration was checked
		return storeConfig{Store: c.Store, Cluster: c.Cluster, Etcd: c.Etcd, Consul: c.Consul, Timing: timing, File: l.File}
	case config.KindAgent:
		c := l.Agent
		return storeConfig{
			Store: c.Store, Cluster: c.Cluster, Etcd: c.Etcd, Consul: c.Consul, Agents: true, File: l.File, Allowed: c.Controllers,
			Reread: c.PresenceTTL, // who keeps the store less busy with one keeps it less busy with the other
		}
	default:
		c := l.HAProxy
		return storeConfig{
			Store: c.Store, Cluster: c.Cluster, Etcd: c.Etcd, Consul: c.Consul, File: l.File, Allowed: c.Controllers,
		}
	}
}

// openStore opens a store. It does not connect.
func openStore(c storeConfig, log zerolog.Logger) (store, error) {
	switch c.Store {
	case "etcd":
		trust, err := trustOf(c.Etcd.TLS)
		if err != nil {
			return nil, exit(exitConfig, "etcd.tls: %v", err)
		}
		password, err := secretFile(c.Etcd.PasswordFile)
		if err != nil {
			return nil, exit(exitConfig, "etcd.password_file: %v", err)
		}
		if password == "" {
			password = string(c.Etcd.Password)
		}
		s, err := etcd.Open(etcd.Config{
			Cluster: c.Cluster, Prefix: c.Etcd.Prefix, Endpoints: c.Etcd.Endpoints, Username: c.Etcd.Username,
			Password: password, TLS: trust, Fleet: c.Agents, RereadEvery: c.Reread, Log: log,
		})
		if err != nil {
			return nil, exit(exitConfig, "%v", err)
		}
		return s, nil
	case "consul":
		return openConsul(c, log)
	}
	return nil, exit(exitConfig, "unknown store %q", c.Store)
}

// checkStore looks at the store once, so that a mistake is told at once and not by silence.
func checkStore(ctx context.Context, s store, c storeConfig) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	_, err := s.Read(ctx)
	if err == nil {
		return nil
	}
	where := strings.Join(c.Etcd.Endpoints, ", ")
	if c.Store == "consul" {
		where = c.Consul.Address
	}
	if errors.Is(err, election.ErrDenied) {
		return exit(exitDenied, "%s at %s refused the login or denied access to cluster %s: %v", c.Store, where, c.Cluster, err)
	}
	return exit(exitStore, "%s can't be reached at %s within %v: %v", c.Store, where, storeTimeout, err)
}

// checkLogin is checkStore for a process that can do without the store for a while: only a refusal, which is an answer, is an error.
func checkLogin(ctx context.Context, s store, c storeConfig) error {
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	if err := checkStore(ctx, s, c); exitCode(err) == exitDenied {
		return err
	}
	return nil
}

const (
	storeTimeout = 5 * time.Second
	loginTimeout = 2 * time.Second // of a process that goes on without an answer, too
)

func trustOf(t config.TLS) (*tls.Config, error) {
	if t == (config.TLS{}) {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("cannot read the authorities: %v", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("cannot find a certificate in %s", t.CAFile)
		}
	}
	if t.CertFile != "" {
		// Read anew for each handshake, so that a renewed certificate is used without a restart.
		if _, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile); err != nil {
			return nil, fmt.Errorf("cannot use the certificate: %v", err)
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("cannot use the certificate: %v", err)
			}
			return &pair, nil
		}
	}
	return c, nil
}

// secretFile returns the content of a file, without the line break at its end; the error never has it.
func secretFile(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("cannot read the secret: %v", err)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

// access is how the commands for operators find the store: a configuration file, or flags and variables.
type access struct {
	file      string
	cluster   string
	store     string
	endpoints []string
	consul    string
	prefix    string
}

func (a *access) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&a.file, "config", "c", "", "configuration file of any process of the cluster (default $TANIST_CONFIG)")
	f.StringVarP(&a.cluster, "cluster", "C", "", "name of the cluster, without a configuration file (default $TANIST_CLUSTER)")
	f.StringVar(&a.store, "store", "", "etcd or consul, without a configuration file (default etcd)")
	f.StringSliceVar(&a.endpoints, "endpoints", nil, "client URLs of etcd (default $ETCDCTL_ENDPOINTS, then http://127.0.0.1:2379)")
	f.StringVar(&a.consul, "consul", "", "address of Consul (default $CONSUL_HTTP_ADDR, then http://127.0.0.1:8500)")
	f.StringVar(&a.prefix, "prefix", "", "where the keys are in etcd (default /tanist)")
}

// open opens the store and looks whether it answers. The caller closes it.
func (a *access) open(ctx context.Context) (store, storeConfig, error) {
	c, err := a.resolve()
	if err != nil {
		return nil, c, err
	}
	s, err := openStore(c, zerolog.Nop())
	if err != nil {
		return nil, c, err
	}
	if err := checkStore(ctx, s, c); err != nil {
		return nil, c, errors.Join(err, s.Close())
	}
	return s, c, nil
}

// resolve says which store and cluster are meant.
func (a *access) resolve() (storeConfig, error) {
	if a.file == "" && a.cluster == "" {
		a.file = os.Getenv("TANIST_CONFIG")
	}
	var c storeConfig
	if a.file != "" {
		// Away: the file may be that of another host, and what else is wrong with it is no reason not to look at the cluster.
		l, err := config.Load(config.Options{File: a.file, Away: true})
		if err != nil {
			return c, loadError(err)
		}
		c = storeOf(l)
	} else {
		if a.cluster == "" {
			a.cluster = os.Getenv("TANIST_CLUSTER")
		}
		if a.cluster == "" {
			return c, exit(exitUsage, "which cluster? Give -c FILE, the configuration file of any of its processes, or -C NAME")
		}
		l, err := config.ForStore(a.cluster, nil)
		if err != nil {
			return c, loadError(err)
		}
		c = storeOf(l)
	}
	if a.store != "" {
		c.Store = a.store
	}
	if len(a.endpoints) > 0 {
		c.Etcd.Endpoints = a.endpoints
	}
	if a.consul != "" {
		c.Consul.Address = a.consul
	}
	if a.prefix != "" {
		c.Etcd.Prefix = a.prefix
	}
	if a.cluster != "" {
		c.Cluster = a.cluster
	}
	return c, nil
}

// loadError gives what went wrong with a configuration its exit code.
func loadError(err error) error {
	return &exitError{exitConfig, err}
}
