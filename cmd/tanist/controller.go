package main

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process"
)

// keeper is a driver of package process.
type keeper interface {
	Accompany(beside *process.Companion)
	Prepare()
	Start(ctx context.Context, env []string, deadline election.Instant) error
	Extend(deadline election.Instant)
	Exited() <-chan struct{}
	Exit() string
	Stop(ctx context.Context, grace time.Duration) error
	Detach(ctx context.Context, until election.Instant) error
	PID() int
}

// driver is a keeper that can take up what an earlier process left.
type driver interface {
	keeper
	Adopt(ctx context.Context) error
}

// makeController makes what a configuration describes.
func makeController(c *config.Controller, state string, log zerolog.Logger) *controller {
	r := c.Run
	watchdog := map[string]process.Watchdog{"off": process.WatchdogOff, "auto": process.WatchdogAuto, "required": process.WatchdogRequired}[c.Watchdog]
	cfg := process.Config{
		Command: r.Command, Env: environment(r.Env), Dir: r.Dir, User: r.User, StopSignal: stopSignal(r.StopSignal),
		Output: outputOf(r.Output, c.Cluster+"-"+c.Name, log), StateDir: state, Watchdog: watchdog, Log: log,
	}
	build := func() driver { return process.New(cfg) }
	switch r.Driver {
	case "script":
		script := process.ScriptConfig{
			Config: cfg, StopCommand: r.Stop, StatusCommand: r.Status, KillCommand: r.Kill, PIDFile: r.PIDFile, StartWithin: r.StartTimeout,
		}
		build = func() driver { return process.NewScript(script) }
	case "systemd":
		unit := process.SystemdConfig{
			Unit: r.Unit, EnvFile: r.EnvFile, StartWithin: r.StartTimeout, StateDir: state, Watchdog: watchdog, Log: log,
		}
		if unit.EnvFile == "" {
			unit.EnvFile = filepath.Join(state, "environment")
		}
		build = func() driver { return process.NewSystemd(unit) }
	}
	return &controller{
		make: func() keeper { return build() },
		adopt: func(ctx context.Context) (keeper, error) {
			found := build()
			if err := found.Adopt(ctx); err != nil {
				return nil, err
			}
			return found, nil
		},
	}
}

// controller fits a driver to what a sidecar needs: one that can be found again by the next process of the sidecar.
type controller struct {
	make   func() keeper                             // a fresh driver
	adopt  func(ctx context.Context) (keeper, error) // finds what an earlier process left
	mu     sync.Mutex
	beside *process.Companion // of the next start, nil if there is none
	now    keeper
	next   keeper           // the driver of the next start, if it was prepared
	last   election.Instant // deadline
	unsure bool             // something of an earlier process may be running
}

func (c *controller) current() keeper {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Prepare makes the next Start faster.
func (c *controller) Prepare() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil {
		c.next = c.make()
	}
	c.next.Prepare()
}

// Start starts the program, after it has ended what an earlier process of this sidecar may have left.
func (c *controller) Start(ctx context.Context, env []string, deadline election.Instant) error {
	if err := c.settle(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	now := c.next
	if c.next = nil; now == nil {
		now = c.make()
	}
	c.now, c.last = now, deadline
	now.Accompany(c.beside)
	c.mu.Unlock()
	return now.Start(ctx, env, deadline)
}

// Adopt takes up what an earlier process left.
func (c *controller) Adopt(ctx context.Context, deadline election.Instant) error {
	found, err := c.adopt(ctx)
	c.mu.Lock()
	if err != nil {
		c.unsure = !errors.Is(err, process.ErrNothingToAdopt)
		c.mu.Unlock()
		return err
	}
	c.now, c.unsure = found, false
	c.mu.Unlock()
	c.Extend(deadline)
	return nil
}

// settle makes sure that nothing of an earlier process is running.
func (c *controller) settle(ctx context.Context) error {
	c.mu.Lock()
	first, unsure := c.now == nil, c.unsure
	c.mu.Unlock()
	if !first && !unsure {
		return nil
	}
	found, err := c.adopt(ctx)
	if err == nil {
		err = found.Stop(ctx, 0)
	}
	if err != nil && !errors.Is(err, process.ErrNothingToAdopt) {
		return err
	}
	c.mu.Lock()
	c.unsure = false
	c.mu.Unlock()
	return nil
}

// accompany says what runs beside the program from the next start on.
func (c *controller) accompany(beside *process.Companion) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.beside = beside
}

func (c *controller) Extend(deadline election.Instant) {
	c.mu.Lock()
	now := c.now
	c.last = deadline
	c.mu.Unlock()
	if now != nil {
		now.Extend(deadline)
	}
}

func (c *controller) Exited() <-chan struct{} { return c.current().Exited() }
func (c *controller) Exit() string            { return c.current().Exit() }

func (c *controller) Stop(ctx context.Context, grace time.Duration) error {
	c.mu.Lock()
	now, unsure := c.now, c.unsure
	c.mu.Unlock()
	if unsure {
		return c.settle(ctx)
	}
	if now == nil {
		return nil
	}
	return now.Stop(ctx, grace)
}

func (c *controller) Detach() error {
	c.mu.Lock()
	now, last := c.now, c.last
	c.mu.Unlock()
	if now == nil {
		return errors.New("nothing is running")
	}
	ctx, cancel := context.WithTimeout(context.Background(), detachTimeout)
	defer cancel()
	return now.Detach(ctx, last)
}

const detachTimeout = time.Second
