package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/health"
	"github.com/tanist/tanist/plugin"
	"github.com/tanist/tanist/plugin/host"
)

// PluginSpec returns the plugin that a file describes. It inherits nothing that Tanist itself reads.
func PluginSpec(name string, plugins map[string]config.Plugin, dirs []string, log zerolog.Logger) host.Spec {
	p := plugins[name]
	return host.Spec{Name: name, Dirs: dirs, SHA256: p.SHA256, Plain: p.Plain, Env: config.EnvFrom{"all"}.Inherited(os.Environ()), Log: log}
}

// openPlugin opens a store by plugin. Nothing is contacted, but the plugin is started.
func openPlugin(name string, c StoreConfig, log zerolog.Logger) (Store, error) {
	ctx, cancel := context.WithTimeout(context.Background(), StoreTimeout)
	defer cancel()
	s, err := host.OpenStore(ctx, PluginSpec(name, c.Plugins, c.PluginDirs, log), host.StoreOptions{
		Settings: plugin.Settings{Cluster: c.Cluster, Values: c.Plugins[name].Config}, Traits: c.Traits(), RereadEvery: c.Reread,
	})
	if _, refused := errors.AsType[*host.RefusedError](err); refused {
		return nil, exit.With(exit.Config, err)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// checkers are the plugins that the checks of one sidecar use.
type checkers struct {
	open map[string]*host.Checker
}

// check returns a check by plugin. Several checks may use the same. Without checkers nothing is
// started, and the check can't be run.
func (p *checkers) check(c *config.Controller, k config.Check, log zerolog.Logger) (health.Check, error) {
	check := health.Check{Name: k.Name}
	if p == nil {
		check.Run = func(context.Context) error { return nil }
		return check, nil
	}
	checker := p.open[k.Plugin]
	if checker == nil {
		var err error
		if checker, err = host.OpenChecker(PluginSpec(k.Plugin, c.Plugins, c.PluginDirs, log)); err != nil {
			return check, fmt.Errorf("plugin: %w", err)
		}
		if p.open == nil {
			p.open = map[string]*host.Checker{}
		}
		p.open[k.Plugin] = checker
	}
	call := plugin.CheckCall{
		Name: k.Name, Cluster: c.Cluster, Controller: c.Name, URL: c.Run.URL, Settings: plugin.Settings{Cluster: c.Cluster, Values: k.Config},
	}
	check.Run = func(ctx context.Context) error { return checker.Check(ctx, call) }
	return check, nil
}

// close ends the plugins.
func (p *checkers) close() error {
	var errs []error
	for _, c := range p.open {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
