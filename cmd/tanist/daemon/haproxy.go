package daemon

import (
	"context"
	"errors"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/api"
	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/haproxy"
	"github.com/tanist/tanist/process"
)

// ProxyConfig converts a configuration file for package haproxy.
func ProxyConfig(c *config.HAProxy) haproxy.Config {
	h := c.HAProxy
	cfg := haproxy.Config{
		StartHook: starter{}.start, // hooks may need sudo: no_new_privs is for programs
		Clusters: []haproxy.Cluster{{
			Name: c.Cluster, Bind: h.Bind, Mode: h.Mode, Controllers: c.Controllers, Slots: h.Slots, HoldRequests: h.HoldRequests, Check: h.Check,
		}},
		Template: h.Template, ConfigFile: h.Config, Files: h.Files, Overwrite: h.Overwrite, AdminSocket: h.AdminSocket, MasterSocket: h.MasterSocket, Spawn: h.Spawn,
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

// OpenStores opens one store per cluster of a proxy. The caller closes them.
func OpenStores(l *config.Loaded, log zerolog.Logger) (map[string]Store, error) {
	names := []string{l.HAProxy.Cluster}
	for _, v := range l.HAProxy.Clusters {
		names = append(names, v.Cluster)
	}
	open := map[string]Store{}
	for _, name := range names {
		where := StoreOf(l)
		where.Cluster = name
		s, err := OpenStore(where, log.With().Str("cluster", name).Logger())
		if err != nil {
			return nil, errors.Join(err, CloseStores(open))
		}
		open[name] = s
	}
	return open, nil
}

// checkLogins runs checkLogin for all clusters concurrently.
func checkLogins(ctx context.Context, l *config.Loaded, stores map[string]Store) error {
	refused := make(chan error, len(stores))
	for name, s := range stores {
		where := StoreOf(l)
		where.Cluster = name
		go func() { refused <- checkLogin(ctx, s, where) }()
	}
	var errs []error
	for range stores {
		errs = append(errs, <-refused)
	}
	return errors.Join(errs...)
}

// CloseStores closes the stores that [OpenStores] opened.
func CloseStores(open map[string]Store) error {
	var errs []error
	for _, s := range open {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// HAProxy keeps one HAProxy routed to the active controllers until ctx ends.
func HAProxy(ctx context.Context, l *config.Loaded, self Self) (err error) {
	var down teardown
	defer down.unwind(&err)
	c := l.HAProxy
	log := self.Log.With().Str("proxy", c.Name).Logger() // the lines about a cluster name it
	stores, err := OpenStores(l, log)
	if err != nil {
		return err
	}
	down.add(func() error { return CloseStores(stores) })
	if err := checkLogins(ctx, l, stores); err != nil {
		return err
	}
	sources := map[string]haproxy.Source{}
	for name, s := range stores {
		sources[name] = s
	}
	proxy, err := haproxy.New(ProxyConfig(c), sources, log)
	if err != nil {
		return exit.With(exit.Config, l.Problems(err))
	}
	server := proxyServer(c, proxy, self, log)
	if err := listen(server, config.Listen{HTTP: c.Listen.HTTP}); err != nil {
		return err
	}
	down.beside(ctx, server.Run, process.ReapOrphans) // as PID 1 in a container nobody else reaps
	notifySystemd("READY=1")
	log.Info().Str("version", self.Version).Int("pid", os.Getpid()).Msg("started")
	err = proxy.Run(ctx)
	notifySystemd("STOPPING=1")
	if ctx.Err() != nil {
		return nil // it ended as requested
	}
	return err
}

func proxyServer(c *config.HAProxy, proxy *haproxy.Proxy, self Self, log zerolog.Logger) *api.Server {
	answer := func(yes func(haproxy.Status) bool) api.Answer {
		return func() (bool, any) { s := proxy.Status(); return yes(s), s }
	}
	return api.New(restricted(api.Config{
		Answers: map[string]api.Answer{
			"/live": answer(func(haproxy.Status) bool { return true }),
			"/":     answer(haproxy.Status.Ready), "/ready": answer(haproxy.Status.Ready),
		},
		Documents: map[string]api.Document{"/v1/status": func(context.Context) (any, error) { return proxy.Status(), nil }},
		Metrics:   []prometheus.Collector{proxyMetrics(c, proxy), self.metrics(c.Cluster)},
		Log:       log,
	}, c.Listen))
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
