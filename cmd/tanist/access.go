package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
	"github.com/tanist/tanist/postgres"
)

// access locates the store for the operators' commands: by a configuration file, or by flags and
// variables.
type access struct {
	file      string
	cluster   string
	store     string
	endpoints []string
	consul    string
	prefix    string
	dsn       string
}

func (a *access) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&a.file, "config", "c", "", "configuration file of any process of the cluster (default $TANIST_CONFIG)")
	f.StringVarP(&a.cluster, "cluster", "C", "", "name of the cluster, without a configuration file (default $TANIST_CLUSTER)")
	f.StringVar(&a.store, "store", "", "etcd, consul, postgres or plugin:NAME, without a configuration file (default etcd)")
	f.StringSliceVar(&a.endpoints, "endpoints", nil, "client URLs of etcd (default $ETCDCTL_ENDPOINTS, then http://127.0.0.1:2379)")
	f.StringVar(&a.consul, "consul", "", "address of Consul (default $CONSUL_HTTP_ADDR, then http://127.0.0.1:8500)")
	f.StringVar(&a.dsn, "dsn", "", "connection string of the PostgreSQL store, without a password (default libpq's PG* variables)")
	f.StringVar(&a.prefix, "prefix", "", "where the keys are in etcd (default /tanist)")
}

// open opens the store and checks that it responds. The caller closes it.
func (a *access) open(ctx context.Context) (daemon.Store, daemon.StoreConfig, error) {
	c, err := a.resolve()
	if err != nil {
		return nil, c, err
	}
	s, err := daemon.OpenStore(c, zerolog.Nop())
	if err != nil {
		return nil, c, err
	}
	if err := daemon.CheckStore(ctx, s, c); err != nil {
		return nil, c, errors.Join(err, s.Close())
	}
	return s, c, nil
}

// resolve determines the store and the cluster.
func (a *access) resolve() (daemon.StoreConfig, error) {
	if a.file == "" && a.cluster == "" {
		a.file = os.Getenv("TANIST_CONFIG")
	}
	var c daemon.StoreConfig
	if a.file != "" {
		// Away: the file may be from another host, and its other problems must not stop an operator
		// from inspecting the cluster.
		l, err := config.Load(config.Options{File: a.file, Away: true})
		if err != nil {
			return c, exit.With(exit.Config, err)
		}
		c = daemon.StoreOf(l)
	} else {
		if a.cluster == "" {
			a.cluster = os.Getenv("TANIST_CLUSTER")
		}
		if a.cluster == "" {
			return c, exit.Errorf(exit.Usage, "which cluster? Give -c FILE, the configuration file of any of its processes, or -C NAME")
		}
		l, err := config.ForStore(a.cluster, nil)
		if err != nil {
			return c, exit.With(exit.Config, err)
		}
		c = daemon.StoreOf(l)
		c.Agents = false // an operator's command, which may also move the active
	}
	if a.store != "" {
		c.Store = a.store
	}
	if err := a.fits(c.Store); err != nil {
		return c, err
	}
	if len(a.endpoints) > 0 {
		c.Etcd.Endpoints = a.endpoints
	}
	if a.consul != "" {
		c.Consul.Address = a.consul
	}
	if a.dsn != "" {
		if postgres.HasPassword(a.dsn) {
			return c, exit.Errorf(exit.Usage, "--dsn can't be read or holds a password, which every process of this host could see: use PGPASSWORD, PGPASSFILE or a configuration file")
		}
		c.Postgres = config.Postgres{DSN: a.dsn, PasswordFile: c.Postgres.PasswordFile}
	}
	if a.prefix != "" {
		c.Etcd.Prefix = a.prefix
	}
	if a.cluster != "" {
		c.Cluster = a.cluster
	}
	return c, nil
}

// fits returns an error if a flag locates another store than the one that is used.
func (a *access) fits(store string) error {
	for _, f := range []struct {
		given       bool
		name, store string
	}{
		{len(a.endpoints) > 0, "endpoints", "etcd"}, {a.prefix != "", "prefix", "etcd"}, {a.consul != "", "consul", "consul"}, {a.dsn != "", "dsn", "postgres"},
	} {
		if f.given && f.store != store {
			return exit.Errorf(exit.Usage, "--%s locates a store of the kind %s, and the store here is %s: add --store %s", f.name, f.store, store, f.store)
		}
	}
	return nil
}

// with opens the store for one command.
func (a *access) with(cmd *cobra.Command, do func(ctx context.Context, s daemon.Store, c daemon.StoreConfig) error) (err error) {
	ctx, done := daemon.Signals{Who: "command"}.Context(cmd.Context())
	defer done()
	s, c, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if closing := s.Close(); err == nil {
			err = closing
		}
	}()
	return interrupted(ctx, do(ctx, s, c))
}

// interrupted replaces an error that an interruption caused with the interruption itself.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && !errors.Is(err, errUnchanged) {
		return exit.Errorf(exit.Failure, "%v; what was requested before that continues: see `tanist list`", context.Cause(ctx))
	}
	return err
}

// reading is what a command works with that reads the cluster once.
type reading struct {
	store   daemon.Store
	cluster string
	where   daemon.StoreConfig
	snap    election.Snapshot
}

// reading opens the store and reads the cluster for one command.
func (a *access) reading(cmd *cobra.Command, do func(ctx context.Context, r reading) error) error {
	return a.with(cmd, func(ctx context.Context, s daemon.Store, c daemon.StoreConfig) error {
		snap, err := read(ctx, s)
		if err != nil {
			return err
		}
		return do(ctx, reading{store: s, cluster: c.Cluster, where: c, snap: snap})
	})
}

// operated is the cluster that a verb is about.
func (r reading) operated() *operate.Cluster {
	return &operate.Cluster{Name: r.cluster, Store: r.store, By: operator(), Snap: r.snap}
}

// read reads the cluster once.
func read(ctx context.Context, s daemon.Store) (election.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
	defer cancel()
	snap, err := s.Read(ctx)
	if err != nil {
		return snap, storeError(err, "cannot read the store")
	}
	return snap, nil
}

// byHand reports whether the cluster was named by hand, so that its name may be misspelt. A file's
// cluster may not have begun yet.
func (a *access) byHand() bool { return a.cluster != "" }

// known returns an error if the store knows nothing of a cluster of which snap was read.
func known(ctx context.Context, s daemon.Store, cluster string, snap election.Snapshot) error {
	if snap.TermVersion != 0 || snap.Active != nil || len(snap.Controllers) > 0 || snap.Pause != nil || snap.Request != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
	defer cancel()
	entries, err := s.List(ctx, "") // its agents, or a history that outlived the rest
	switch {
	case err != nil:
		return storeError(err, "cannot read the cluster")
	case len(entries) == 0:
		return exit.Errorf(exit.Failure, "the store knows no cluster %q: check the name, and --prefix if the keys are elsewhere", cluster)
	}
	return nil
}

// storeError is [operate.ReadError].
func storeError(err error, what string) error { return operate.ReadError(err, what) }

// writeError is [operate.WriteError].
func writeError(err error, what string) error { return operate.WriteError(err, what) }

// completeControllers completes a flag or an argument with the names of the cluster's controllers.
func (a *access) completeControllers(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, typed, election.ControllerPrefix)
}

// completeMembers is completeControllers for controllers and agents.
func (a *access) completeMembers(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.complete(cmd, typed, election.ControllerPrefix, election.AgentPrefix)
}

// completeKnown completes an argument with the names of all controllers, whether or not their
// sidecars are here.
func (a *access) completeKnown(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, directive := a.complete(cmd, typed, election.ControllerPrefix, election.MemberPrefix)
	slices.Sort(names)
	return slices.Compact(names), directive
}

// anyCluster reports whether nothing names a cluster.
func (a *access) anyCluster() bool {
	return a.file == "" && a.cluster == "" && os.Getenv("TANIST_CONFIG") == "" && os.Getenv("TANIST_CLUSTER") == ""
}

// completeClusters completes an argument with the names of the store's clusters.
func (a *access) completeClusters(cmd *cobra.Command, typed string) ([]string, cobra.ShellCompDirective) {
	if a.anyCluster() {
		a.cluster = "any" // only where the store is matters
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	c, err := a.resolve()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, _ := daemon.Clusters(ctx, c) // a shell shows no error
	return slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, typed) }), cobra.ShellCompDirectiveNoFileComp
}

// completeGone completes an argument with the names of known controllers.
func (a *access) completeGone(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.complete(cmd, typed, election.MemberPrefix)
}

// complete returns the names below the prefixes that begin with what was typed. A shell waits for
// it, and shows no error.
func (a *access) complete(cmd *cobra.Command, typed string, prefixes ...string) ([]string, cobra.ShellCompDirective) {
	var names []string
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	s, _, err := a.open(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	for _, prefix := range prefixes {
		entries, err := s.List(ctx, prefix+typed)
		if err != nil {
			break
		}
		for _, e := range entries {
			names = append(names, strings.TrimPrefix(e.Key, prefix))
		}
	}
	_ = s.Close() // nothing was written
	return names, cobra.ShellCompDirectiveNoFileComp
}
