package agentwatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// presence keeps the status of all agents of a watch in the store, under one lease. In steady state it only renews. It fails
// quietly: nothing waits for it, but for one answer at the start, to whom the agents' names belong.
type presence struct {
	store  Presence
	ttl    time.Duration
	spread time.Duration
	self   string // incarnation
	dead   func(election.AgentWatch) bool
	log    zerolog.Logger
	random func() float64
	began  time.Time

	mu    sync.Mutex
	want  map[string]election.Agent
	wrote map[string]election.Agent // with the present lease; an entry says that the name is ours
	dirty map[string]bool
	holds map[string]chan struct{} // until the name is ours, or nobody can tell; closed and nil then
	poke  chan struct{}

	// Of the goroutine of run.
	foreign map[string]time.Time // names that another live process has, since when that is known
}

const (
	presenceCall = 5 * time.Second // one call to the store
	// While an agentwatch starts, a status is written gather after its change at the earliest, so that "waiting, running" is one write.
	gather = 100 * time.Millisecond
	starts = 5 * time.Second
	// calm is how long a later change of status waits at the least. When the active changes, the status of every agent does; the
	// store is to carry the news of the active to all of them first. A status that has changed back meanwhile is not written.
	calm = time.Second
	// epitaph is how long the status of an agent remains that was stopped for want of a controller.
	epitaph = 10 * time.Minute
	// atOnce is how many names are entered at the same time.
	atOnce = 16
)

func newPresence(cfg *Config) *presence {
	p := &presence{
		store: cfg.Presence, ttl: cfg.PresenceTTL, spread: cfg.PresenceSpread, self: cfg.Self.Incarnation, dead: cfg.Dead,
		log: cfg.Log, random: cfg.Random, want: map[string]election.Agent{}, wrote: map[string]election.Agent{}, dirty: map[string]bool{},
		holds: map[string]chan struct{}{}, poke: make(chan struct{}, 1), foreign: map[string]time.Time{},
	}
	for _, a := range cfg.Agents {
		p.holds[a.Name] = make(chan struct{})
		p.want[a.Name] = election.Agent{
			Name: a.Name, Host: cfg.Host, Watch: cfg.Self, State: stateWaiting, Reason: "starting up", Since: time.Now().UTC().Truncate(time.Millisecond),
		}
	}
	return p
}

// hold returns a channel that is closed when an agent may be started as far as its name goes.
func (p *presence) hold(name string) <-chan struct{} { return p.holds[name] }

// release lets an agent be started.
func (p *presence) release(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.holds[name]:
	default:
		close(p.holds[name])
	}
}

func (p *presence) set(a election.Agent) {
	p.mu.Lock()
	p.want[a.Name] = a
	p.dirty[a.Name] = true
	p.mu.Unlock()
	select {
	case p.poke <- struct{}{}:
	default:
	}
}

// run writes and renews until ctx has ended, then removes the status, or, if last, leaves it for a while. It returns before that, with
// [election.ErrNameTaken], if another live process has the name of an agent.
func (p *presence) run(ctx context.Context, last func() bool) error {
	var lease election.LeaseID
	p.began = time.Now()
	said := ""
	for ctx.Err() == nil {
		err := p.round(ctx, &lease)
		if errors.Is(err, election.ErrNameTaken) {
			p.bye(context.WithoutCancel(ctx), lease, false)
			return err
		}
		if err != nil && ctx.Err() == nil {
			// A store that can't tell whose the names are keeps no agent from its start.
			for name := range p.holds {
				if _, foreign := p.foreign[name]; !foreign {
					p.release(name)
				}
			}
			if err.Error() != said {
				said = err.Error()
				p.log.Warn().Err(err).Msg("cannot keep the agents' status in the store")
			}
		}
		if err == nil && said != "" {
			said = ""
			p.log.Info().Msg("the agents' status is in the store again")
		}
		next := p.ttl*2/3 - time.Duration(p.random()*float64(p.ttl)/6)
		if err != nil {
			next /= 3
		}
		poke := p.poke
		if err != nil {
			poke = nil // what failed a moment ago is not tried with every change
		}
		if len(p.foreign) > 0 {
			next, poke = p.ttl/10, nil
		}
		pause := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-pause.C:
		case <-poke:
			select {
			case <-ctx.Done():
			case <-time.After(p.patience()):
			}
		}
		pause.Stop()
	}
	p.bye(context.WithoutCancel(ctx), lease, last())
	return nil
}

// patience is how long to wait between a change of status and its write.
func (p *presence) patience() time.Duration {
	if time.Since(p.began) < starts {
		return gather + time.Duration(p.random()*float64(p.spread)/8)
	}
	return calm + time.Duration(p.random()*float64(p.spread))
}

// round renews and writes what has changed. A call that fails is not repeated before the next round.
func (p *presence) round(ctx context.Context, lease *election.LeaseID) error {
	if *lease != "" {
		call, cancel := context.WithTimeout(ctx, presenceCall)
		err := p.store.Renew(call, election.Renewal{Lease: *lease})
		cancel()
		switch {
		case errors.Is(err, election.ErrLost):
			*lease = ""
		case err != nil:
			return err
		}
	}
	if *lease == "" {
		call, cancel := context.WithTimeout(ctx, presenceCall)
		id, err := p.store.Grant(call, p.ttl)
		cancel()
		if err != nil {
			return err
		}
		*lease = id
		p.mu.Lock()
		clear(p.wrote)
		p.mu.Unlock()
	}
	err := p.enter(ctx, *lease)
	if err == nil {
		err = p.write(ctx, *lease)
	}
	if errors.Is(err, election.ErrLost) {
		*lease = "" // a new one is granted in the next round
	}
	return err
}

// enter makes the names that are not ours yet ours, bound to lease. A name whose status another live process may have written is left
// for the next round: a lease that nobody renews ends within twice its TTL, on any store.
func (p *presence) enter(ctx context.Context, lease election.LeaseID) error {
	p.mu.Lock()
	var names []string
	for name := range p.holds {
		if _, ours := p.wrote[name]; !ours {
			names = append(names, name)
		}
	}
	p.mu.Unlock()
	var work sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	turns := make(chan struct{}, atOnce)
	for _, name := range names {
		turns <- struct{}{}
		mu.Lock()
		failed := len(errs) > 0
		mu.Unlock()
		if failed {
			break
		}
		work.Go(func() {
			defer func() { <-turns }()
			other, err := p.enterOne(ctx, name, lease)
			mu.Lock()
			defer mu.Unlock()
			since, before := p.foreign[name]
			switch {
			case err != nil:
				errs = append(errs, err)
			case other == nil:
				delete(p.foreign, name)
				p.release(name)
			case !before:
				p.foreign[name] = time.Now()
				p.log.Warn().Str("agent", name).Str("host", other.Host).Int("pid", other.Watch.PID).
					Msg("another agentwatch has this agent's name; waiting for its status to end")
			case time.Since(since) > 2*p.ttl+time.Second:
				errs = append(errs, fmt.Errorf("%w: agent %s is kept by the agentwatch with PID %d on %.100s", election.ErrNameTaken, name, other.Watch.PID, other.Host))
			}
		})
	}
	work.Wait()
	for _, err := range errs {
		if errors.Is(err, election.ErrNameTaken) {
			return err
		}
	}
	if len(errs) > 0 {
		return errs[0]
	}
	return nil
}

// enterOne writes the first status of an agent under a lease, unless another live process has its name: then it returns that status.
func (p *presence) enterOne(ctx context.Context, name string, lease election.LeaseID) (*election.Agent, error) {
	call, cancel := context.WithTimeout(ctx, presenceCall)
	defer cancel()
	e, err := p.store.Get(call, "agents/"+name)
	if err != nil {
		return nil, err
	}
	var other election.Agent
	// What can't be read is nobody's status: a stranger's scribble must not keep us out. Neither must an epitaph.
	if e.Version != 0 && json.Unmarshal(e.Value, &other) == nil && other.Watch.Incarnation != "" && other.Watch.Incarnation != p.self &&
		other.State != stateUnreachable && !p.dead(other.Watch) {
		return &other, nil
	}
	p.mu.Lock()
	a := p.want[name]
	delete(p.dirty, name)
	p.mu.Unlock()
	err = p.store.Put(call, election.Put{Key: "agents/" + name, Value: a.Encode(), Lease: lease, If: &e.Version})
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.dirty[name] = true
		if errors.Is(err, election.ErrConflict) {
			err = fmt.Errorf("the status of agent %s changed meanwhile", name) // the next round sees by whom
		}
		return nil, err
	}
	p.wrote[name] = a
	if p.want[name] != a {
		p.dirty[name] = true
	}
	return nil, nil
}

func (p *presence) write(ctx context.Context, lease election.LeaseID) error {
	for {
		p.mu.Lock()
		var a election.Agent
		found := false
		for name := range p.dirty {
			old, ours := p.wrote[name]
			if !ours {
				continue // not entered yet
			}
			delete(p.dirty, name)
			if old == p.want[name] {
				continue
			}
			a, found = p.want[name], true
			break
		}
		p.mu.Unlock()
		if !found {
			return nil
		}
		call, cancel := context.WithTimeout(ctx, presenceCall)
		err := p.store.Put(call, election.Put{Key: "agents/" + a.Name, Value: a.Encode(), Lease: lease})
		cancel()
		if err != nil {
			p.mu.Lock()
			p.dirty[a.Name] = true
			p.wrote[a.Name] = election.Agent{} // not known
			p.mu.Unlock()
			return err
		}
		p.mu.Lock()
		p.wrote[a.Name] = a
		p.mu.Unlock()
	}
}

const byeTimeout = 3 * time.Second

func (p *presence) bye(ctx context.Context, lease election.LeaseID, remain bool) {
	ctx, cancel := context.WithTimeout(ctx, byeTimeout)
	defer cancel()
	if remain {
		if stone, err := p.store.Grant(ctx, epitaph); err == nil {
			p.mu.Lock()
			for name := range p.wrote {
				p.dirty[name], p.wrote[name] = true, election.Agent{} // to be written anew, bound to another lease
			}
			p.mu.Unlock()
			if err := p.write(ctx, stone); err != nil {
				p.log.Warn().Err(err).Msg("cannot leave the reason in the store")
			}
		}
	}
	if lease != "" {
		_ = p.store.Revoke(ctx, lease) // else it runs out by itself
	}
}
