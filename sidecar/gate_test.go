package sidecar

import (
	"context"
	"runtime"
	"sync"
	"time"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// gate stands before every step of a process that others can see or that reads a clock. There the
// process can be frozen (SIGSTOP), thawed and killed (SIGKILL). The time that a frozen process read
// before is outdated when it thaws.
type gate struct {
	mu     sync.Mutex
	frozen chan struct{} // not nil while frozen; closed by thaw
	dead   bool
	steps  int           // until the trap springs; zero: no trap
	rest   time.Duration // how long it then freezes
}

func (g *gate) pass() {
	for {
		g.mu.Lock()
		if g.steps > 0 {
			if g.steps--; g.steps == 0 && g.frozen == nil && !g.dead {
				g.frozen = make(chan struct{})
				time.AfterFunc(g.rest, g.thaw)
			}
		}
		dead, frozen := g.dead, g.frozen
		g.mu.Unlock()
		if dead {
			runtime.Goexit()
		}
		if frozen == nil {
			return
		}
		<-frozen
	}
}

func (g *gate) freeze() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.frozen == nil && !g.dead {
		g.frozen = make(chan struct{})
	}
}

func (g *gate) thaw() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.steps = 0
	if g.frozen != nil {
		close(g.frozen)
		g.frozen = nil
	}
}

// trap freezes the process for rest after the given number of steps.
func (g *gate) trap(steps int, rest time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.steps, g.rest = steps, rest
}

func (g *gate) kill() {
	g.mu.Lock()
	g.dead = true
	g.mu.Unlock()
	g.thaw()
}

// through is one step. It may be the last, before or after it is done.
func through[T any](g *gate, do func() (T, error)) (T, error) {
	g.pass()
	v, err := do()
	g.pass()
	return v, err
}

func step(g *gate, do func() error) error {
	_, err := through(g, func() (struct{}, error) { return struct{}{}, do() })
	return err
}

// gatedStore is the store as used by a process.
type gatedStore struct {
	*electiontest.Client
	g *gate
}

func (s gatedStore) Read(ctx context.Context) (election.Snapshot, error) {
	return through(s.g, func() (election.Snapshot, error) { return s.Client.Read(ctx) })
}

func (s gatedStore) Grant(ctx context.Context, ttl time.Duration) (election.LeaseID, error) {
	return through(s.g, func() (election.LeaseID, error) { return s.Client.Grant(ctx, ttl) })
}

func (s gatedStore) Renew(ctx context.Context, l election.LeaseID) error {
	return step(s.g, func() error { return s.Client.Renew(ctx, l) })
}

func (s gatedStore) Hold(ctx context.Context, h election.Hold) (election.Entry, error) {
	return through(s.g, func() (election.Entry, error) { return s.Client.Hold(ctx, h) })
}

func (s gatedStore) Revoke(ctx context.Context, l election.LeaseID) error {
	return step(s.g, func() error { return s.Client.Revoke(ctx, l) })
}

func (s gatedStore) Claim(ctx context.Context, c election.Claim) error {
	return step(s.g, func() error { return s.Client.Claim(ctx, c) })
}

func (s gatedStore) Publish(ctx context.Context, l election.LeaseID, a election.Active) error {
	return step(s.g, func() error { return s.Client.Publish(ctx, l, a) })
}

func (s gatedStore) Release(ctx context.Context, r election.Release) error {
	return step(s.g, func() error { return s.Client.Release(ctx, r) })
}

func (s gatedStore) HandOver(ctx context.Context, l election.LeaseID, h election.HandOver) error {
	return step(s.g, func() error { return s.Client.HandOver(ctx, l, h) })
}

func (s gatedStore) Get(ctx context.Context, key string) (election.Entry, error) {
	return through(s.g, func() (election.Entry, error) { return s.Client.Get(ctx, key) })
}

func (s gatedStore) List(ctx context.Context, prefix string) ([]election.Entry, error) {
	return through(s.g, func() ([]election.Entry, error) { return s.Client.List(ctx, prefix) })
}

func (s gatedStore) Put(ctx context.Context, p election.Put) error {
	return step(s.g, func() error { return s.Client.Put(ctx, p) })
}

func (s gatedStore) Delete(ctx context.Context, key string, v election.Version) error {
	return step(s.g, func() error { return s.Client.Delete(ctx, key, v) })
}

// gatedProgram is the controller as used by a process. The controller and its guard are processes
// of their own.
type gatedProgram struct {
	Controller
	g *gate
}

func (p gatedProgram) Start(ctx context.Context, env []string, deadline election.Instant) error {
	return step(p.g, func() error { return p.Controller.Start(ctx, env, deadline) })
}

func (p gatedProgram) Extend(deadline election.Instant) {
	p.g.pass()
	p.Controller.Extend(deadline)
}

func (p gatedProgram) Stop(ctx context.Context, grace time.Duration) error {
	return step(p.g, func() error { return p.Controller.Stop(ctx, grace) })
}

func (p gatedProgram) Prepare() {
	if c, ok := p.Controller.(Preparer); ok {
		c.Prepare()
	}
}

type gatedAdopter struct {
	gatedProgram
	Adopter
}

func (p gatedAdopter) Adopt(ctx context.Context, deadline election.Instant) error {
	return step(p.g, func() error { return p.Adopter.Adopt(ctx, deadline) })
}

func (p gatedAdopter) Detach() error { return step(p.g, p.Adopter.Detach) }

// gatedFence is the repository as used by a process.
type gatedFence struct {
	Fence
	g *gate
}

func (f gatedFence) Raise(ctx context.Context, term election.Term) ([]string, error) {
	return through(f.g, func() ([]string, error) { return f.Fence.Raise(ctx, term) })
}

func (f gatedFence) Assert(ctx context.Context, term election.Term) error {
	return step(f.g, func() error { return f.Fence.Assert(ctx, term) })
}

func (p gatedProgram) Settle(ctx context.Context) error {
	if s, ok := p.Controller.(Settler); ok {
		return step(p.g, func() error { return s.Settle(ctx) })
	}
	return nil
}

// gatedMemory is the state directory as used by a process.
type gatedMemory struct {
	Memory
	g *gate
}

func (m gatedMemory) Save(h election.Held) error {
	return step(m.g, func() error { return m.Memory.Save(h) })
}
func (m gatedMemory) Clear() error { return step(m.g, m.Memory.Clear) }

// through puts everything that a process does behind its gate.
func (g *gate) through(c *Config, client *electiontest.Client) {
	clock := c.Clock
	c.Clock = func() election.Instant {
		now := clock()
		g.pass()
		return now
	}
	c.Backend = gatedStore{client, g}
	program := gatedProgram{c.Controller, g}
	if a, ok := c.Controller.(Adopter); ok {
		c.Controller = gatedAdopter{program, a}
	} else {
		c.Controller = program
	}
	if c.Fence != nil {
		c.Fence = gatedFence{c.Fence, g}
	}
	if c.Memory != nil {
		c.Memory = gatedMemory{c.Memory, g}
	}
	if remember := c.Remember; remember != nil {
		c.Remember = func(k election.Known) {
			g.pass()
			remember(k)
		}
	}
	if hook := c.Hook; hook != nil {
		c.Hook = func(ctx context.Context, event string, env []string) error {
			return step(g, func() error { return hook(ctx, event, env) })
		}
	}
	if ask := c.Ask; ask != nil {
		c.Ask = func(ctx context.Context, a election.Ask) error {
			return step(g, func() error { return ask(ctx, a) })
		}
	}
}
