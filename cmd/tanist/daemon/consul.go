package daemon

import (
	"context"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/backends/consul"
	"github.com/tanist/tanist/cmd/tanist/exit"
)

func openConsul(c StoreConfig, log zerolog.Logger) (Store, error) {
	apart := c.Agents || c.Follows // it holds no controller's lease
	cc := consul.Config{
		Cluster: c.Cluster, Address: c.Consul.Address, Others: c.Consul.Others, Token: string(c.Consul.Token), TokenFile: c.Consul.TokenFile, Datacenter: c.Consul.Datacenter,
		TLS:    trustFiles(c.Consul.TLS),
		Agents: apart, TTL: c.Timing.TTL, LockDelay: c.Timing.Validity, Log: log,
	}
	// The controllers decide what is announced, whatever a shared file contains.
	if s := c.Consul.Service; s.Name != "" && !apart {
		cc.Service = &consul.Service{Name: s.Name, Connect: s.Connect, ProxyPort: s.ProxyPort}
	}
	s, err := consul.Open(cc)
	if err != nil {
		return nil, exit.Errorf(exit.Config, "%v", err)
	}
	return s, nil
}

// runAnnouncer keeps the registration of the active in Consul correct, if there is one, until ctx
// ends.
func runAnnouncer(ctx context.Context, s Store) {
	if c, ok := s.(*consul.Store); ok {
		if a := c.Announcer(); a != nil {
			_ = a.Run(ctx) // it logs failures, and ends with ctx only
		}
	}
}
