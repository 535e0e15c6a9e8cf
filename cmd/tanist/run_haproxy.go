package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/tanist/tanist/api"
	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/haproxy"
)

func haproxyCommand() *cobra.Command {
	var flags daemonFlags
	cmd := &cobra.Command{
		Use: "haproxy -c FILE", Short: "Run beside HAProxy: keep the virtual URL on the active controller", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := flags.load(config.KindHAProxy)
			if err != nil {
				return err
			}
			ctx, done := signals(cmd.Context(), "proxy driver")
			defer done()
			return runHAProxy(ctx, l, newLog(l.HAProxy.Log, cmd.ErrOrStderr()))
		},
	}
	flags.flags(cmd)
	return cmd
}

// proxyConfig turns a configuration file into what package haproxy needs.
func proxyConfig(c *config.HAProxy) haproxy.Config {
	h := c.HAProxy
	cfg := haproxy.Config{
		Clusters: []haproxy.Cluster{{
			Name: c.Cluster, Bind: h.Bind, Mode: h.Mode, Controllers: c.Controllers, Slots: h.Slots, HoldRequests: h.HoldRequests, Check: h.Check,
		}},
		Template: h.Template, ConfigFile: h.Config, AdminSocket: h.AdminSocket, MasterSocket: h.MasterSocket, Spawn: h.Spawn,
		Binary: h.Binary, Reload: h.Reload, StatsBind: h.Stats, User: h.User, Group: h.Group, SocketMode: h.SocketMode, Reconcile: h.Reconcile,
	}
	for _, v := range c.Clusters {
		cfg.Clusters = append(cfg.Clusters, haproxy.Cluster{
			Name: v.Cluster, Bind: v.Bind, Mode: v.Mode, Controllers: v.Controllers, Slots: v.Slots, HoldRequests: v.HoldRequests, Check: v.Check,
		})
	}
	for _, k := range c.Hooks {
		cfg.Hooks = append(cfg.Hooks, haproxy.Hook{Command: k.Command, Timeout: k.Timeout})
	}
	return cfg
}

// openStores opens one store per cluster of a proxy. The caller closes them.
func openStores(l *config.Loaded, log zerolog.Logger) (map[string]store, error) {
	names := []string{l.HAProxy.Cluster}
	for _, v := range l.HAProxy.Clusters {
		names = append(names, v.Cluster)
	}
	open := map[string]store{}
	for _, name := range names {
		where := storeOf(l)
		where.Cluster = name
		s, err := openStore(where, log)
		if err != nil {
			return nil, errors.Join(err, closeStores(open))
		}
		open[name] = s
	}
	return open, nil
}

// checkLogins is checkLogin for all clusters at once.
func checkLogins(ctx context.Context, l *config.Loaded, stores map[string]store) error {
	refused := make(chan error, len(stores))
	for name, s := range stores {
		where := storeOf(l)
		where.Cluster = name
		go func() { refused <- checkLogin(ctx, s, where) }()
	}
	var errs []error
	for range stores {
		errs = append(errs, <-refused)
	}
	return errors.Join(errs...)
}

func closeStores(open map[string]store) error {
	var errs []error
	for _, s := range open {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

func runHAProxy(ctx context.Context, l *config.Loaded, log zerolog.Logger) (err error) {
	c := l.HAProxy
	log = log.With().Str("cluster", c.Cluster).Logger()
	stores, err := openStores(l, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeStores(stores)) }()
	if err := checkLogins(ctx, l, stores); err != nil {
		return err
	}
	sources := map[string]haproxy.Source{}
	for name, s := range stores {
		sources[name] = s
	}
	proxy, err := haproxy.New(proxyConfig(c), sources, log)
	if err != nil {
		return loadError(l.Problems(err))
	}
	answer := func(yes func(haproxy.Status) bool) api.Answer {
		return func() (bool, any) { s := proxy.Status(); return yes(s), s }
	}
	server := api.New(api.Config{
		Answers: map[string]api.Answer{
			"/live": answer(func(haproxy.Status) bool { return true }),
			"/":     answer(haproxy.Status.Ready), "/ready": answer(haproxy.Status.Ready),
		},
		Documents: map[string]api.Document{"/v1/status": func(context.Context) (any, error) { return proxy.Status(), nil }},
		Metrics:   []prometheus.Collector{proxyMetrics(c, proxy)},
		Log:       log,
	})
	if c.Listen.HTTP != "" {
		if _, err := server.Listen(c.Listen.HTTP); err != nil {
			return exit(exitFailure, "listen.http: %v: choose another address, or end the program that has it", err)
		}
	}
	around, stop := context.WithCancel(context.WithoutCancel(ctx))
	var others sync.WaitGroup
	others.Go(func() { server.Run(around) })
	notify("READY=1")
	log.Info().Str("version", versionText()).Int("pid", os.Getpid()).Msg("started")
	err = proxy.Run(ctx)
	if ctx.Err() != nil {
		err = nil // it was told to end, and did
	}
	notify("STOPPING=1")
	stop()
	others.Wait()
	return err
}

func proxyMetrics(c *config.HAProxy, proxy *haproxy.Proxy) api.Gauges {
	return api.Gauges{
		Constant: map[string]string{"cluster": c.Cluster},
		Samples: func() []api.Sample {
			s := proxy.Status()
			up := 0.0
			if s.HAProxyError == "" {
				up = 1
			}
			samples := []api.Sample{
				{Name: "tanist_proxy_up", Help: "Whether HAProxy can be driven.", Value: up},
				{Name: "tanist_proxy_moves_total", Help: "Times that a controller was put into rotation.", Counter: true, Value: float64(s.Moves)},
				{Name: "tanist_proxy_reloads_total", Help: "Reloads of HAProxy.", Counter: true, Value: float64(s.Reloads)},
				{Name: "tanist_proxy_starts_total", Help: "Starts of a spawned HAProxy.", Counter: true, Value: float64(s.Starts)},
			}
			for _, k := range s.Clusters {
				samples = append(samples, api.Sample{
					Name: "tanist_proxy_term", Help: "The highest term that was seen.",
					Labels: map[string]string{"virtual": k.Name}, Value: float64(k.Term),
				})
			}
			return samples
		},
	}
}

func renderCommand() *cobra.Command {
	var flags daemonFlags
	var dry bool
	cmd := &cobra.Command{
		Use: "render -c FILE --dry", Short: "Show what `tanist haproxy` would write, as a difference", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !dry {
				return exit(exitUsage, "only --dry is done by hand; `tanist haproxy` writes and reloads")
			}
			l, err := flags.load(config.KindHAProxy)
			if err != nil {
				return err
			}
			return renderDry(cmd, l)
		},
	}
	flags.flags(cmd)
	cmd.Flags().BoolVar(&dry, "dry", false, "write nothing, show the difference")
	return cmd
}

func renderDry(cmd *cobra.Command, l *config.Loaded) (err error) {
	stores, err := openStores(l, zerolog.Nop())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeStores(stores)) }()
	records := map[string]election.Active{}
	for name, s := range stores {
		ctx, cancel := context.WithTimeout(cmd.Context(), storeTimeout)
		snap, err := s.Read(ctx)
		cancel()
		if err != nil {
			return storeError(err, "the store can't be read")
		}
		if snap.Active.Serving() {
			records[name] = *snap.Active
		}
	}
	cfg := proxyConfig(l.HAProxy)
	next, err := haproxy.Render(cfg, records)
	if err != nil {
		return loadError(l.Problems(err))
	}
	old, err := os.ReadFile(cfg.ConfigFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot read the present configuration: %v", err)
	}
	if bytes.Equal(old, next) {
		fmt.Fprintln(cmd.OutOrStdout(), cfg.ConfigFile+" is as it should be")
		return nil
	}
	fmt.Fprint(cmd.OutOrStdout(), haproxy.Diff(cfg.ConfigFile, cfg.ConfigFile+" (new)", old, next))
	return nil
}
