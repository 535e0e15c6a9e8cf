package agentwatch

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tanist/tanist/election"
)

// Watch keeps agents pointed at the active controller. Make it with [New] and Run it once. Snapshot
// and Counters are safe to call at any time.
type Watch struct {
	cfg      Config
	runners  []*runner
	presence *presence
	count    counters

	mu     sync.Mutex
	snap   Snapshot
	agents map[string]election.Agent
}

// counters are the live values of [Counters].
type counters struct {
	switches, deaths, startFailures, stopFailures atomic.Uint64
	probes, probesFailed, misses                  atomic.Uint64
	storeErrors, dropped, asks                    atomic.Uint64
	switchNanos                                   atomic.Int64
}

// Counters counts the events of a watch since it was made.
type Counters struct {
	Switches      uint64 // agents pointed at an active, including the first time
	Deaths        uint64 // agents that ended by themselves
	StartFailures uint64
	StopFailures  uint64 // unconfirmed stops
	Probes        uint64 // of startup ports
	ProbesFailed  uint64
	Misses        uint64 // retries that reached no controller
	StoreErrors   uint64 // times that the store became unreachable
	Dropped       uint64 // records that were older, foreign or unreadable
	Asks          uint64 // times that the sidecars were asked
	// LastSwitch is the duration of the last switch, from the record's arrival to the agent's
	// start.
	LastSwitch time.Duration
}

// Snapshot is the state of a watch at one moment. The caller owns it.
type Snapshot struct {
	Cluster  string           `json:"cluster"`
	Store    string           `json:"store"`              // the report of the store, or why it is unreachable
	StoreUp  bool             `json:"store_up"`           //
	Sidecars string           `json:"sidecars,omitempty"` // last result from the sidecars
	Target   Aim              `json:"target"`             // the controller that the agents follow; an empty URL means none yet
	Seen     election.Term    `json:"term_seen"`          // the highest term seen
	Answers  bool             `json:"answers"`            // the target's startup port is open
	Others   int              `json:"others"`             // other known controllers whose startup ports are open
	Action   Action           `json:"action"`             // the result of the decision table
	Misses   int              `json:"misses"`             // consecutive retries without any controller
	Retries  int              `json:"retries"`            // limit of the retries; 0: none
	Known    []Peer           `json:"known"`
	Agents   []election.Agent `json:"agents"` // in the order of the configuration
}

// New checks cfg and returns a watch that is not yet running. The error contains everything that is
// wrong with cfg.
func New(cfg Config) (*Watch, error) {
	cfg.fill()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	w := &Watch{cfg: cfg, agents: map[string]election.Agent{}}
	w.snap = Snapshot{Cluster: cfg.Cluster, Store: notAsked, Action: Leave, Retries: cfg.Retries.Count}
	if cfg.Presence != nil {
		w.presence = newPresence(&w.cfg)
	}
	for _, a := range cfg.Agents {
		var hold <-chan struct{}
		if w.presence != nil {
			hold = w.presence.hold(a.Name)
		}
		tmpl, err := parseTemplates(a)
		if err != nil {
			return nil, err // Validate has checked it
		}
		w.runners = append(w.runners, &runner{
			cfg: &w.cfg, agent: a, tmpl: tmpl, count: &w.count, box: newMailbox(), publish: w.publish, hold: hold,
			log:    cfg.Log.With().Str("agent", a.Name).Logger(),
			status: election.Agent{Name: a.Name, Host: cfg.Host, Watch: cfg.Self},
		})
	}
	return w, nil
}

func (w *Watch) publish(a election.Agent) {
	w.mu.Lock()
	w.agents[a.Name] = a
	w.mu.Unlock()
	if w.presence != nil {
		w.presence.set(a)
	}
}

// Run keeps the agents pointed at the active until ctx has ended or all retries failed to reach a
// controller. All agents are stopped when it returns. It returns nil in the first case, an
// [*UnreachableError] in the second, and [election.ErrNameTaken] if another live process has the
// name of an agent; joined with an error for every agent whose end could not be confirmed.
func (w *Watch) Run(ctx context.Context) error {
	run, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	var unreachable atomic.Bool
	var taken error // read when status is done
	var status sync.WaitGroup
	present, leave := context.WithCancel(context.WithoutCancel(ctx))
	defer leave()
	if w.presence != nil {
		status.Go(func() {
			if taken = w.presence.run(present, unreachable.Load); taken != nil {
				cancel(taken)
			}
		})
	}

	errs := make([]error, len(w.runners))
	var runners sync.WaitGroup
	for i, r := range w.runners {
		runners.Go(func() { errs[i] = r.run(run) })
	}
	v := newPicture(&w.cfg, w.cfg.Log, &w.count, func(d wish) {
		for _, r := range w.runners {
			r.box.put(d)
		}
	})
	err := v.run(run, w.cfg.Source.Follow(run), func() { w.show(v) })
	if _, ok := errors.AsType[*UnreachableError](err); ok {
		unreachable.Store(true)
		w.cfg.Log.Error().Err(err).Msg("giving up: stopping the agents")
	}
	cancel(err)
	runners.Wait()
	leave()
	status.Wait()
	return errors.Join(append([]error{err, taken}, errs...)...)
}

func (w *Watch) show(v *picture) {
	s := Snapshot{
		Cluster: w.cfg.Cluster, Store: v.storeSay, StoreUp: v.storeUp, Sidecars: v.asked, Target: v.target, Seen: v.filter.Seen(),
		Answers: v.facts.Port, Others: v.facts.Others, Action: v.wished.action, Misses: v.retries.count, Retries: w.cfg.Retries.Count,
		Known: append([]Peer(nil), v.peers...),
	}
	w.mu.Lock()
	w.snap = s
	w.mu.Unlock()
}

// Snapshot returns the state of the watch. It never blocks.
func (w *Watch) Snapshot() Snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.snap
	s.Known = append([]Peer(nil), s.Known...)
	for _, a := range w.cfg.Agents {
		if st, ok := w.agents[a.Name]; ok {
			s.Agents = append(s.Agents, st)
		}
	}
	return s
}

// Counters returns the counts up to now.
func (w *Watch) Counters() Counters {
	c := &w.count
	return Counters{
		Switches: c.switches.Load(), Deaths: c.deaths.Load(), StartFailures: c.startFailures.Load(), StopFailures: c.stopFailures.Load(),
		Probes: c.probes.Load(), ProbesFailed: c.probesFailed.Load(), Misses: c.misses.Load(), StoreErrors: c.storeErrors.Load(),
		Dropped: c.dropped.Load(), Asks: c.asks.Load(), LastSwitch: time.Duration(c.switchNanos.Load()),
	}
}
