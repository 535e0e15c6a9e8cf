package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/agentwatch"
	"github.com/tanist/tanist/api"
	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process"
)

// Agentwatch keeps the agents of one configuration pointed at the active controller until ctx ends.
func Agentwatch(ctx context.Context, l *config.Loaded, self Self) (err error) {
	var down teardown
	defer down.unwind(&err)
	c := l.Agent
	log := self.Log.With().Str("cluster", c.Cluster).Str("agentwatch", c.Name).Logger()
	where := StoreOf(l)
	backend, err := OpenStore(where, log)
	if err != nil {
		return err
	}
	down.add(backend.Close)
	if err := checkLogin(ctx, backend, where); err != nil {
		return err
	}
	cfg, err := agentwatchConfig(c, log)
	if err != nil {
		return exit.With(exit.Config, err)
	}
	if cfg.Host, err = os.Hostname(); err != nil {
		return err
	}
	cfg.Source = backend
	if err := announce(&cfg, c, backend); err != nil {
		return err
	}
	watch, err := agentwatch.New(cfg)
	if err != nil {
		return exit.With(exit.Config, l.Problems(err))
	}
	server := agentServer(c, watch, self, log)
	if err := listen(server, config.Listen{HTTP: c.Listen.HTTP}); err != nil {
		return err
	}
	down.beside(ctx, server.Run, process.ReapOrphans) // as PID 1 in a container nobody else reaps
	notifySystemd("READY=1")
	log.Info().Str("version", self.Version).Int("pid", os.Getpid()).Msg("started")
	// One host may run an agentwatch next to each of many agents.
	settled := time.AfterFunc(settleTime, process.ShedText)
	defer settled.Stop()
	err = watch.Run(ctx)
	notifySystemd("STOPPING=1")
	if _, unreachable := errors.AsType[*agentwatch.UnreachableError](err); unreachable {
		return exit.With(exit.Store, err)
	}
	if errors.Is(err, election.ErrNameTaken) {
		return exit.Errorf(exit.Config, "name: another live agentwatch of cluster %s has the name of an agent already (%q): give this one's another name, or stop that one",
			c.Cluster, strings.TrimPrefix(err.Error(), election.ErrNameTaken.Error()+": "))
	}
	return err
}

// announce makes an agentwatch show its agents in the store, if configured.
func announce(cfg *agentwatch.Config, c *config.Agent, backend Store) error {
	if !c.Presence {
		return nil
	}
	home, err := process.HostID()
	if err != nil {
		return err
	}
	cfg.Presence = backend
	cfg.Self = election.AgentWatch{Incarnation: rand.Text(), Home: home, PID: os.Getpid()}
	alive := processAlive(home)
	cfg.Dead = func(other election.AgentWatch) bool {
		alive, known := alive(election.Controller{Host: other.Home, PID: other.PID})
		return known && !alive
	}
	return nil
}

func agentServer(c *config.Agent, watch *agentwatch.Watch, self Self, log zerolog.Logger) *api.Server {
	answer := func(yes func(agentwatch.Snapshot) bool) api.Answer {
		return func() (bool, any) { s := watch.Snapshot(); return yes(s), s }
	}
	always := answer(func(agentwatch.Snapshot) bool { return true })
	return api.New(restricted(api.Config{
		Answers: map[string]api.Answer{
			"/live": always, "/": answer(agentReady), "/ready": answer(agentReady),
		},
		Documents: map[string]api.Document{"/v1/status": func(context.Context) (any, error) { return watch.Snapshot(), nil }},
		Metrics:   []prometheus.Collector{agentMetrics(c, watch), self.metrics(c.Cluster)},
		Log:       log,
	}, c.Listen))
}

// agentwatchConfig converts a configuration file for package agentwatch, without the store.
func agentwatchConfig(c *config.Agent, log zerolog.Logger) (agentwatch.Config, error) {
	cfg := agentwatch.Defaults()
	cfg.Cluster, cfg.Log, cfg.PresenceTTL = c.Cluster, log, c.PresenceTTL
	cfg.Controllers, cfg.Sidecars, cfg.StateFile, cfg.StopOnVacancy = c.Controllers, c.Sidecars, c.StateFile, c.StopOnNone
	cfg.Probe = agentwatch.Probe{Interval: c.Probe.Interval, Timeout: c.Probe.Timeout, Fall: c.Probe.Fall}
	cfg.Retries = agentwatch.Retries{Count: c.Retries.Count, Every: c.Retries.Every}
	if c.Failsafe.SecretFile != "" {
		cfg.Secret = func() (election.Secret, error) {
			secret, err := SecretFile(c.Failsafe.SecretFile)
			return election.Secret(strings.TrimSpace(secret)), err
		}
	}
	agents := c.Agents
	if c.Run != nil {
		agents = []config.OneOf{{Name: c.Name, Run: *c.Run}}
	}
	for i, a := range agents {
		change := c.OnChange
		if a.OnChange != nil {
			change = *a.OnChange
		}
		agent, err := makeAgent(a, change, log)
		if err != nil {
			return cfg, err
		}
		if c.Run == nil {
			agent.Key = fmt.Sprintf("agents[%d].", i)
		}
		cfg.Agents = append(cfg.Agents, agent)
	}
	return cfg, nil
}

// settleTime is how long the memory use of a process takes to settle after its start, at most.
const settleTime = 5 * time.Second

// agentReady reports whether every agent runs, pointed at the target.
func agentReady(s agentwatch.Snapshot) bool {
	for _, a := range s.Agents {
		if a.State != "running" {
			return false
		}
	}
	return len(s.Agents) > 0
}

func makeAgent(a config.OneOf, change config.OnChange, log zerolog.Logger) (agentwatch.Agent, error) {
	log = log.With().Str("agent", a.Name).Logger()
	agent := agentwatch.AgentDefaults()
	agent.Name, agent.Command, agent.Env, agent.StopTimeout, agent.Overlap = a.Name, a.Run.Command, a.Run.Env, a.Run.StopTimeout, a.Run.Overlap
	for _, f := range a.Run.Files {
		mode, err := config.FileMode(f.Mode)
		if err != nil {
			return agent, err
		}
		agent.Files = append(agent.Files, agentwatch.File{Template: f.Template, Path: f.Path, Mode: mode, Owner: f.Owner, Validate: f.Validate})
	}
	agent.OnChange = agentwatch.OnChange{Action: change.Action, Exec: change.Exec, ExecTimeout: change.ExecTimeout, Splay: change.Splay}
	if name, ok := strings.CutPrefix(change.Action, "signal:"); ok {
		agent.OnChange.Action, agent.OnChange.Signal = agentwatch.Signal, stopSignal(name)
	}
	agent.Start = starter{a.Run.EnvFrom, a.Run.NoNewPrivs}.start
	agent.New = func(command, env []string) agentwatch.Process {
		return process.New(process.Config{
			Command: command, Inherit: a.Run.EnvFrom.Inherited(os.Environ()), Env: env, NewPrivs: !a.Run.NoNewPrivs, OOMScore: a.Run.OOMScoreAdj, Dir: a.Run.Dir, User: a.Run.User,
			StopSignal: stopSignal(a.Run.StopSignal), Output: outputOf(a.Run.Output, a.Name, log, nil), Log: log,
		})
	}
	return agent, nil
}

func agentMetrics(c *config.Agent, watch *agentwatch.Watch) api.Gauges {
	return api.Gauges{
		Constant: map[string]string{"cluster": c.Cluster, "agentwatch": c.Name},
		Samples: func() []api.Sample {
			s, n := watch.Snapshot(), watch.Counters()
			var samples []api.Sample
			up := 0.0
			if s.StoreUp {
				up = 1
			}
			samples = append(samples,
				api.Sample{Name: "tanist_store_up", Help: "Whether the store answers.", Value: up},
				api.Sample{Name: "tanist_agent_followed_term", Help: "The term that is followed.", Value: float64(s.Target.Term)},
				api.Sample{Name: "tanist_agent_last_switch_seconds", Help: "How long the last switch took.", Value: n.LastSwitch.Seconds()},
			)
			counters := map[string]uint64{
				"tanist_agent_switches_total": n.Switches, "tanist_agent_deaths_total": n.Deaths,
				"tanist_agent_start_failures_total": n.StartFailures, "tanist_agent_stop_failures_total": n.StopFailures,
				"tanist_agent_misses_total": n.Misses, "tanist_agent_dropped_records_total": n.Dropped,
			}
			help := map[string]string{
				"tanist_agent_switches_total":        "Agents pointed at an active controller.",
				"tanist_agent_deaths_total":          "Agents that ended by themselves.",
				"tanist_agent_start_failures_total":  "Agents that could not be started.",
				"tanist_agent_stop_failures_total":   "Stops of agents that could not be confirmed.",
				"tanist_agent_misses_total":          "Rounds of retries that found no controller.",
				"tanist_agent_dropped_records_total": "Records of the store that were older, a stranger's, or unreadable.",
			}
			for _, name := range slices.Sorted(maps.Keys(counters)) {
				samples = append(samples, api.Sample{Name: name, Help: help[name], Counter: true, Value: float64(counters[name])})
			}
			return samples
		},
	}
}
