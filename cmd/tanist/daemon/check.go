package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/agentwatch"
	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/haproxy"
	"github.com/tanist/tanist/health"
)

// nowhere replaces the store in checks that do not use one.
type nowhere struct{}

func (nowhere) Follow(context.Context) <-chan election.Sighting { return nil }

// Check lets each package check its part of a configuration, as it does before it runs. It starts,
// asks and writes nothing. The error has a line for each problem, which begins with the key.
func Check(l *config.Loaded) error {
	errs := []error{checkOpens(StoreOf(l))}
	switch l.Kind {
	case config.KindController:
		fence, err := makeFence(l.Controller, &fenceStats{}, nil, zerolog.Nop())
		if fence != nil {
			fence.Shutdown()
		}
		_, healthErr := makeHealth(l.Controller, nil, nil, zerolog.Nop())
		_, portErr := health.PortOf(l.Controller.Run.URL)
		if portErr != nil {
			portErr = fmt.Errorf("run.url: %v", portErr)
		}
		_, peersErr := makePeers(l.Controller)
		_, addressErr := addressesOf(l.Controller)
		_, notifyErr := Channels(l.Controller)
		errs = append(errs, err, healthErr, portErr, peersErr, addressErr, notifyErr)
	case config.KindAgent:
		cfg, err := agentwatchConfig(l.Agent, zerolog.Nop())
		if err == nil {
			cfg.Source = nowhere{}
			_, err = agentwatch.New(cfg)
		}
		errs = append(errs, err)
	case config.KindVIP:
		_, err := parseAddresses(l.VIP.VirtualIP)
		errs = append(errs, err)
	default:
		_, err := haproxy.Render(ProxyConfig(l.HAProxy), nil)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// checkOpens returns the problems that the store's package finds in its part.
func checkOpens(where StoreConfig) error {
	if strings.HasPrefix(where.Store, election.PluginPrefix) {
		return nil // only the plugin itself could check its settings, and nothing is started here
	}
	s, err := OpenStore(where, zerolog.Nop())
	if err != nil {
		return err
	}
	return s.Close()
}
