package consul

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// Agent describes one of the configured agents, as reported by itself.
type Agent struct {
	Address string // as configured
	Version string // "1.20.1"; empty if it did not respond, or the token may not read it (agent:read)
	Leader  string // host:port of the servers' leader; empty if the agent knows none
	Err     error  // why it did not respond
}

// agentLimit bounds the requests to one agent.
const agentLimit = 3 * time.Second

// Agents queries the configured address and all others concurrently. It returns one entry for each,
// in the order of the configuration.
func (s *Store) Agents(ctx context.Context) []Agent {
	ctx, cancel := context.WithTimeout(ctx, agentLimit)
	defer cancel()
	addresses := append([]string{s.cfg.Address}, s.cfg.Others...)
	agents := make([]Agent, len(addresses))
	var asking sync.WaitGroup
	for i, address := range addresses {
		asking.Go(func() { agents[i] = s.describe(ctx, address) })
	}
	asking.Wait()
	return agents
}

func (s *Store) describe(ctx context.Context, address string) Agent {
	a := Agent{Address: address}
	url := address
	if strings.HasPrefix(url, "unix://") {
		url = socketURL
	}
	alone := &bearer{token: s.token, next: s.transport}
	client, err := api.NewClient(&api.Config{
		Address: url, Transport: s.transport, HttpClient: &http.Client{Transport: alone}, Datacenter: s.cfg.Datacenter, Token: placeholder,
	})
	if err != nil {
		a.Err = fmt.Errorf("cannot ask %s: %v", address, err)
		return a
	}
	client.SetHeaders(http.Header{})
	query := new(api.QueryOptions).WithContext(ctx)
	if a.Leader, err = client.Status().LeaderWithQueryOptions(query); err != nil {
		a.Err = known(err)
		return a
	}
	var self struct{ Config struct{ Version string } }
	if _, err := client.Raw().Query("/v1/agent/self", &self, query); err == nil { // otherwise the token may not read it
		a.Version = self.Config.Version
	}
	return a
}
