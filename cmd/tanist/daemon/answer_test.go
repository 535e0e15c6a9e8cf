package daemon

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/agentwatch"
	"github.com/tanist/tanist/api"
	"github.com/tanist/tanist/election"
)

// away is an unreachable store.
type away struct{}

func (away) Follow(ctx context.Context) <-chan election.Sighting {
	out := make(chan election.Sighting, 1)
	out <- election.Sighting{Err: context.DeadlineExceeded}
	context.AfterFunc(ctx, func() { close(out) })
	return out
}

// idle is an agent's process that only is there.
type idle struct{ ended chan struct{} }

func (p idle) Start(context.Context, []string, election.Instant) error { return nil }
func (p idle) Stop(context.Context, time.Duration) error               { return nil }
func (p idle) Exited() <-chan struct{}                                 { return p.ended }
func (p idle) Exit() string                                            { return "" }
func (p idle) PID() int                                                { return 1 }

// TestAgentwatchBelievesASidecarOfItsCluster: the REST interface and agentwatch understand each
// other; with another secret they don't.
func TestAgentwatchBelievesASidecarOfItsCluster(t *testing.T) {
	for _, tc := range []struct {
		secret string
		want   bool
	}{{"0123456789abcdef", true}, {"another-secret-0", false}} {
		var url atomic.Value
		server := api.New(api.Config{
			Documents: map[string]api.Document{election.ClusterDocument: func(context.Context) (any, error) {
				c := election.ClusterOf("orders", election.Snapshot{})
				c.Active = &election.Active{Controller: "ctl-a", Term: 7, State: election.StateServing, URL: url.Load().(string), Incarnation: "i"}
				return c, nil
			}},
			Secret: election.Secret("0123456789abcdef"), Log: zerolog.Nop(),
		})
		addr, err := server.Listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		url.Store("http://" + addr.String()) // any port that answers is a controller
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan struct{})
		go func() { defer close(served); server.Run(ctx) }()

		cfg := agentwatch.Defaults()
		cfg.Cluster, cfg.Source, cfg.Log = "orders", away{}, zerolog.Nop()
		cfg.Sidecars = []string{url.Load().(string)}
		cfg.Secret = func() (election.Secret, error) { return election.Secret(tc.secret), nil }
		agent := agentwatch.AgentDefaults()
		agent.Name, agent.Command = "agt-1", []string{"agent"}
		agent.New = func(_, _ []string) agentwatch.Process { return idle{make(chan struct{})} }
		cfg.Agents = []agentwatch.Agent{agent}
		watch, err := agentwatch.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- watch.Run(ctx) }()
		follows := func() bool { // the agents appear a moment after the first question
			all := watch.Snapshot().Agents
			return len(all) > 0 && all[0].Follows == "ctl-a"
		}
		for deadline := time.Now().Add(time.Minute); watch.Counters().Asks == 0 || tc.want && !follows(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%+v", watch.Snapshot())
			}
		}
		if s := watch.Snapshot(); (s.Seen == 7) != tc.want {
			t.Errorf("secret %q: %+v", tc.secret, s)
		}
		cancel()
		<-served
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
