package agentwatch

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// presence keeps the status of all agents of a watch in the store, under one lease. In steady state it only renews. It fails
// quietly: nothing waits for it.
type presence struct {
	store  Presence
	ttl    time.Duration
	spread time.Duration
	log    zerolog.Logger
	random func() float64

	mu    sync.Mutex
	want  map[string]election.Agent
	dirty map[string]bool
	poke  chan struct{}
}

const (
	presenceCall = 5 * time.Second        // one call to the store
	gather       = 100 * time.Millisecond // a status is written this long after its change at the earliest, so that "restarting, running" is one write
	// epitaph is how long the status of an agent remains that was stopped for want of a controller.
	epitaph = 10 * time.Minute
)

func newPresence(store Presence, ttl, spread time.Duration, log zerolog.Logger, random func() float64) *presence {
	return &presence{
		store: store, ttl: ttl, spread: spread, log: log, random: random,
		want: map[string]election.Agent{}, dirty: map[string]bool{}, poke: make(chan struct{}, 1),
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

// run writes and renews until ctx has ended, then removes the status, or, if last, leaves it for a while.
func (p *presence) run(ctx context.Context, last func() bool) {
	var lease election.LeaseID
	said := ""
	for ctx.Err() == nil {
		err := p.round(ctx, &lease)
		if err != nil && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			p.log.Warn().Err(err).Msg("cannot keep the agents' status in the store")
		}
		if err == nil && said != "" {
			said = ""
			p.log.Info().Msg("the agents' status is in the store again")
		}
		fine := err == nil
		pause := time.NewTimer(p.ttl/3 - time.Duration(p.random()*float64(p.ttl)/12))
		poke := p.poke
		if !fine {
			poke = nil // what failed a moment ago is not tried with every change
		}
		select {
		case <-ctx.Done():
		case <-pause.C:
		case <-poke:
			select {
			case <-ctx.Done():
			case <-time.After(gather + time.Duration(p.random()*float64(p.spread))):
			}
		}
		pause.Stop()
	}
	p.bye(context.WithoutCancel(ctx), lease, last())
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
		for name := range p.want {
			p.dirty[name] = true
		}
		p.mu.Unlock()
	}
	err := p.write(ctx, *lease)
	if errors.Is(err, election.ErrLost) {
		*lease = "" // a new one is granted in the next round
	}
	return err
}

func (p *presence) write(ctx context.Context, lease election.LeaseID) error {
	for {
		p.mu.Lock()
		var a election.Agent
		found := false
		for name := range p.dirty {
			a, found = p.want[name], true
			delete(p.dirty, name)
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
			p.mu.Unlock()
			return err
		}
	}
}

const byeTimeout = 3 * time.Second

func (p *presence) bye(ctx context.Context, lease election.LeaseID, remain bool) {
	ctx, cancel := context.WithTimeout(ctx, byeTimeout)
	defer cancel()
	if remain {
		if stone, err := p.store.Grant(ctx, epitaph); err == nil {
			p.mu.Lock()
			for name := range p.want {
				p.dirty[name] = true
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
