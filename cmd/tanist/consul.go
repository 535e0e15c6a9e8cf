package main

import (
	"context"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/backends/consul"
)

func openConsul(c storeConfig, log zerolog.Logger) (store, error) {
	cc := consul.Config{
		Cluster: c.Cluster, Address: c.Consul.Address, Others: c.Consul.Others, Token: string(c.Consul.Token), TokenFile: c.Consul.TokenFile, Datacenter: c.Consul.Datacenter,
		TLS: consul.TLS{
			CAFile: c.Consul.TLS.CAFile, CertFile: c.Consul.TLS.CertFile, KeyFile: c.Consul.TLS.KeyFile, ServerName: c.Consul.TLS.ServerName,
		},
		Agents: c.Agents, TTL: c.Timing.TTL, LockDelay: c.Timing.Validity, Log: log,
	}
	// What is announced is the controllers' affair, whatever a file says that all processes share.
	if s := c.Consul.Service; s.Name != "" && !c.Agents {
		cc.Service = &consul.Service{Name: s.Name, Connect: s.Connect, ProxyPort: s.ProxyPort}
	}
	s, err := consul.Open(cc)
	if err != nil {
		return nil, exit(exitConfig, "%v", err)
	}
	return s, nil
}

// runAnnouncer keeps the registration of the active in Consul true, if there is one, until ctx ends.
func runAnnouncer(ctx context.Context, s store) {
	if c, ok := s.(*consul.Store); ok {
		if a := c.Announcer(); a != nil {
			_ = a.Run(ctx) // it logs what fails, and ends with ctx only
		}
	}
}
