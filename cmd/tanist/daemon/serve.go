package daemon

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tanist/tanist/api"
	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/haproxy"
	"github.com/tanist/tanist/operate"
	"github.com/tanist/tanist/sidecar"
)

// advertised returns the base URL at which others reach the REST interface, or "" if there is none.
func advertised(l config.Listen) string {
	if l.Advertise != "" {
		return strings.TrimSuffix(l.Advertise, "/")
	}
	host, port, err := net.SplitHostPort(l.HTTP)
	if err != nil || port == "0" {
		return ""
	}
	// Followers would refuse a record with such an address as a whole.
	url := "http://" + net.JoinHostPort(host, port)
	if _, err := election.ParseURL(url); err != nil {
		return ""
	}
	return url
}

// listen makes the sidecar's server, on all of its addresses.
func (p *sidecarProcess) listen(ctx context.Context, s *sidecar.Sidecar, down *teardown) (*api.Server, error) {
	server := api.New(p.served(ctx, s, newOperations(ctx, p.cfg.Cluster, p.cfg.Name, p.backend, p.log, down)))
	if err := listen(server, p.cfg.Listen); err != nil {
		server.Close()
		return nil, err
	}
	return server, nil
}

// served returns what the sidecar's server serves, and to whom.
func (p *sidecarProcess) served(ctx context.Context, s *sidecar.Sidecar, o *operations) api.Config {
	cfg := api.Config{
		Answers: p.answers(s),
		Documents: map[string]api.Document{
			"/v1/status": func(context.Context) (any, error) { return statusDocument(p.cfg.Cluster, s.View()), nil },
			"/v1/cluster": func(ctx context.Context) (any, error) {
				return clusterDocument(ctx, p.cfg.Cluster, s.View(), p.backend), nil
			},
			"/v1/history": func(ctx context.Context) (any, error) { return operate.ReadHistory(ctx, p.backend) },
		},
		Private: map[string]api.Document{
			election.OutputDocument: func(context.Context) (any, error) { return outputDocument(p.cfg, p.incarnation, &p.output) },
			operationsPath:          o.list,
		},
		Items:     map[string]api.Item{operationsPath + "/{id}": o.document},
		Writes:    o.writes(),
		Grants:    grantsOf(p.cfg.Listen),
		Described: described(),
		Handlers:  map[string]http.Handler{},
		Metrics:   []prometheus.Collector{sidecarMetrics(p, s)},
		AgentCheck: func() string {
			view := s.View()
			state := view.Status.State
			if state == election.StateServing && view.LeaseLeft <= 0 {
				state = election.StateFailed
			}
			return haproxy.AgentCheck(state, view.Status.Reason)
		},
		Log: p.log,
	}
	if p.self.Events != nil {
		cfg.Streams = map[string]api.Stream{"/v1/events": p.self.Events(ctx, p.backend)}
	}
	if p.peers != nil {
		cfg.Secret = p.peers.Secret
		cfg.Handlers["POST "+sidecar.AskPath] = p.peers.Handler(s.Promise)
	}
	l := p.cfg.Listen
	return restricted(cfg, config.Web{SecretFile: l.SecretFile, Open: l.Open})
}

// answers returns the answers about roles and states. They come from memory, not from the store.
func (p *sidecarProcess) answers(s *sidecar.Sidecar) map[string]api.Answer {
	answer := func(yes func(sidecar.View) bool) api.Answer {
		return func() (bool, any) {
			view := s.View()
			return yes(view), statusDocument(p.cfg.Cluster, view)
		}
	}
	active := answer(func(v sidecar.View) bool { return v.LeaseLeft > 0 && v.Status.State == election.StateServing })
	passive := answer(func(v sidecar.View) bool { return v.Term == 0 && v.Status.State == election.StateReady })
	ready := answer(func(v sidecar.View) bool {
		return v.Status.State == election.StateReady || (v.LeaseLeft > 0 && v.Status.State == election.StateServing)
	})
	patience := patienceOf(p.cfg)
	live := answer(func(v sidecar.View) bool { return patience.stuck(v, election.BootClock()) == "" })
	return map[string]api.Answer{
		"/": active, "/active": active, "/primary": active, "/leader": active, "/read-write": active,
		"/passive": passive, "/live": live, "/ready": ready,
	}
}

// restricted returns cfg with what other hosts may read.
func restricted(cfg api.Config, l config.Web) api.Config {
	cfg.Open = l.Open == "all"
	if l.SecretFile != "" {
		cfg.Token = func() (string, error) {
			secret, err := SecretFile(l.SecretFile)
			return strings.TrimSpace(secret), err
		}
	}
	return cfg
}

// listen makes a server listen on every address that is set.
func listen(server *api.Server, l config.Listen) error {
	const inUse = "%s: %v: choose another address, or end the program that has it"
	if l.HTTP != "" {
		if _, err := server.Listen(l.HTTP); err != nil {
			return exit.Errorf(exit.Failure, inUse, "listen.http", err)
		}
	}
	if l.HTTPS != "" {
		if _, err := server.ListenTLS(l.HTTPS, trustFiles(l.TLS)); err != nil {
			return exit.Errorf(exit.Failure, inUse, "listen.https", err)
		}
	}
	if l.AgentCheck != "" {
		if _, err := server.ListenAgentCheck(l.AgentCheck); err != nil {
			return exit.Errorf(exit.Failure, inUse, "listen.agent_check", err)
		}
	}
	if l.Admin != "" {
		if err := server.ListenUnix(strings.TrimPrefix(l.Admin, "unix:")); err != nil {
			return exit.Errorf(exit.Failure, "listen.admin: %v", err)
		}
	}
	return nil
}

// patience is how long a sidecar may be in a transient state, or one round of its loop may take,
// before it counts as stuck.
type patience struct {
	loop               time.Duration
	starting, stopping time.Duration
}

// aliveWithin is how long one round of the sidecar's loop may take before it counts as stuck.
const aliveWithin = 15 * time.Second

// patienceOf returns a patience well beyond what the configuration allows for each step.
func patienceOf(c *config.Controller) patience {
	p := patience{loop: aliveWithin, starting: 2*fenceTimeout + c.Run.StartTimeout, stopping: 2*fenceTimeout + c.Run.Drain + c.Run.StopTimeout}
	if timing, err := c.Timing(); err == nil {
		p.starting += 2 * timing.TTL // it waits for an earlier holder's validity
	}
	if len(c.Run.Migrate.Command) > 0 {
		p.starting += c.Run.Migrate.Timeout
	}
	if c.Repository != nil {
		p.starting += c.Repository.GiveUp
	}
	return p
}

// stuck returns what makes no progress, or "". A reign that stops forever holds the lease and keeps
// everybody else out, and its renewals are no sign of life.
func (p patience) stuck(v sidecar.View, now election.Instant) string {
	limits := map[election.State]time.Duration{election.StateStarting: p.starting, election.StateStopping: p.stopping}
	in := now.Sub(v.Entered)
	switch limit, passes := limits[v.Status.State]; {
	case now.Sub(v.Ticked) >= p.loop:
		return fmt.Sprintf("the loop has not come round for %v", now.Sub(v.Ticked).Round(time.Second))
	case passes && in >= limit:
		return fmt.Sprintf("%s for %v, and %v is allowed", v.Status.State, in.Round(time.Second), limit)
	}
	return ""
}
