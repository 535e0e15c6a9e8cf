package agentwatch

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// presence keeps the status of all agents of a watch in the store, under one lease. Its failures
// stop nothing: nothing waits for it, except for one answer at the start, to whom the agents' names
// belong.
type presence struct {
	keys election.Presence
	self string // incarnation
	dead func(election.AgentWatch) bool
	log  zerolog.Logger

	mu   sync.Mutex
	last map[string]election.Agent // by the key of the name
	// holds has a channel for each name, which is closed once the name does not prevent the start of
	// its agent: the name is ours, or its owner can't be determined.
	holds   map[string]chan struct{}
	foreign map[string]bool // names of another process
	said    string          // last failure, so that it is logged once
}

const (
	// While an agentwatch starts, a status is written no earlier than gather after its change, so
	// that "waiting, running" is one write.
	gather = 100 * time.Millisecond
	starts = 5 * time.Second
	// calm is the minimum delay of a later change of status. When the active changes, the status of
	// every agent does; the store should first deliver the update of the active to all of them. A
	// status that has changed back meanwhile is not written.
	calm = time.Second
	// epitaph is how long the status of an agent remains that was stopped for lack of a controller.
	epitaph = 10 * time.Minute
	// epitaphTimeout is how long the end waits for the store.
	epitaphTimeout = 2 * time.Second
)

func newPresence(cfg *Config) *presence {
	p := &presence{
		self: cfg.Self.Incarnation, dead: cfg.Dead, log: cfg.Log,
		last: map[string]election.Agent{}, holds: map[string]chan struct{}{}, foreign: map[string]bool{},
	}
	began := time.Now()
	ttl, spread, random := cfg.PresenceTTL, cfg.PresenceSpread, cfg.Random
	p.keys = election.Presence{
		Store: cfg.Presence, TTL: ttl, Owner: p.owner, Entered: p.entered, Waiting: p.waiting, Tried: p.tried,
		Every: func() time.Duration { return ttl*2/3 - time.Duration(random()*float64(ttl)/6) },
		Gather: func() time.Duration {
			if time.Since(began) < starts {
				return gather + time.Duration(random()*float64(spread)/8)
			}
			return calm + time.Duration(random()*float64(spread))
		},
	}
	for _, a := range cfg.Agents {
		key := election.AgentKey(a.Name)
		p.holds[key] = make(chan struct{})
		p.keys.Names = append(p.keys.Names, key)
		p.set(election.Agent{
			Name: a.Name, Host: cfg.Host, Watch: cfg.Self, State: stateWaiting, Reason: "starting up", Since: time.Now().UTC().Truncate(time.Millisecond),
		})
	}
	return p
}

// hold returns a channel that is closed once the name of an agent does not prevent its start.
func (p *presence) hold(agent string) <-chan struct{} { return p.holds[election.AgentKey(agent)] }

// set changes the status of an agent.
func (p *presence) set(a election.Agent) {
	key := election.AgentKey(a.Name)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last[key] = a
	p.keys.Set(key, a.Encode())
}

// run writes and renews until ctx has ended. Then it removes the status or, if last, leaves it for
// a while. It returns earlier, with [election.ErrNameTaken], if another live process has the name
// of an agent.
func (p *presence) run(ctx context.Context, last func() bool) error {
	p.keys.Leave = last
	err := p.keys.Run(ctx)
	if err == nil && last() {
		p.leaveEpitaphs(context.WithoutCancel(ctx))
	}
	return err
}

// owner describes the agentwatch that wrote a status. An unreadable status and an epitaph are
// nobody's, and must not keep us out.
func (p *presence) owner(status []byte) election.Owner {
	var other election.Agent
	if json.Unmarshal(status, &other) != nil || other.Watch.Incarnation == "" {
		return election.Owner{Gone: true}
	}
	return election.Owner{
		Ours: other.Watch.Incarnation == p.self,
		Gone: other.State == stateUnreachable || p.dead(other.Watch),
		Who:  fmt.Sprintf("the agentwatch with PID %d on %.100s", other.Watch.PID, other.Host),
	}
}

// entered allows the start of the agent whose name is ours now.
func (p *presence) entered(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.foreign, key)
	p.release(key)
}

// waiting prevents it: another agentwatch may have the agent.
func (p *presence) waiting(key string, other election.Owner) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.foreign[key] = true
	p.log.Warn().Str("agent", p.last[key].Name).Str("owner", other.Who).
		Msg("another agentwatch has this agent's name; waiting for its status to end")
}

// tried notes whether the store could be written. A store that can't name the owners must not
// prevent the start of agents.
func (p *presence) tried(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		if p.said != "" {
			p.said = ""
			p.log.Info().Msg("the agents' status is written again")
		}
		return
	}
	for key := range p.holds {
		if !p.foreign[key] {
			p.release(key)
		}
	}
	if err.Error() != p.said {
		p.said = err.Error()
		p.log.Warn().Err(err).Msg("cannot write the agents' status; retrying")
	}
}

// release allows the start of an agent. The caller has the mutex.
func (p *presence) release(key string) {
	select {
	case <-p.holds[key]:
	default:
		close(p.holds[key])
	}
}

// leaveEpitaphs binds the last statuses, which say why the agents were stopped, to a lease that
// outlasts this process.
func (p *presence) leaveEpitaphs(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, epitaphTimeout)
	defer cancel()
	store := p.keys.Store
	lease, err := store.Grant(ctx, epitaph)
	for _, key := range p.keys.Names {
		var e election.Entry
		if err == nil {
			e, err = store.Get(ctx, key)
		}
		if err == nil && (e.Version == 0 || p.owner(e.Value).Ours) {
			err = store.Put(ctx, election.Put{Key: key, Value: p.last[key].Encode(), Lease: lease, If: &e.Version})
		}
	}
	if err != nil {
		p.log.Warn().Err(err).Msg("cannot write the reason to the store")
	}
}
