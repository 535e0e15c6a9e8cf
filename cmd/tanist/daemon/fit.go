package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/process"
)

// fitness runs the operator's checks of whether the controller could be started here. They run only
// while the sidecar asks, that is while it is passive.
type fitness struct{ checks []*fitCheck }

// fitCheck is one check, with its last result.
type fitCheck struct {
	name  string
	every time.Duration
	run   func(context.Context) error
	due   chan struct{} // one request to run if it is time

	mu    sync.Mutex
	known chan struct{} // closed after the first run
	err   error
}

// firstFit is how long the first answer of a sidecar waits for its checks. Slower ones are reported
// as unknown, which is unfit.
const firstFit = time.Second

func newFitness(c *config.Controller) *fitness {
	f := &fitness{}
	for _, k := range c.Fit {
		f.checks = append(f.checks, newFitCheck(k.Name, k.Interval, func(ctx context.Context) error {
			program := asController(c.Run, k.Command)
			program.Log = zerolog.Nop() // the result says it all
			return process.RunOnce(ctx, program, k.Timeout)
		}))
	}
	return f
}

func newFitCheck(name string, every time.Duration, run func(context.Context) error) *fitCheck {
	return &fitCheck{name: name, every: every, run: run, due: make(chan struct{}, 1), known: make(chan struct{})}
}

// loop runs the checks until ctx ends.
func (f *fitness) loop(ctx context.Context) {
	var all sync.WaitGroup
	for _, c := range f.checks {
		all.Go(func() { c.loop(ctx) })
	}
	all.Wait()
}

func (c *fitCheck) loop(ctx context.Context) {
	var next time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.due:
		}
		began := time.Now()
		if began.Before(next) {
			continue
		}
		next = began.Add(c.every)
		err := c.run(ctx)
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		c.err = err
		select {
		case <-c.known:
		default:
			close(c.known)
		}
		c.mu.Unlock()
	}
}

// result returns why the check makes this side unfit, or nil. It asks for a run, and waits for
// nothing but the first, until ctx ends.
func (c *fitCheck) result(ctx context.Context) error {
	select {
	case c.due <- struct{}{}:
	default:
	}
	select {
	case <-c.known:
	case <-ctx.Done():
		return fmt.Errorf("waiting for the fit check %s", c.name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return fmt.Errorf("fit check %s: %v", c.name, c.err)
	}
	return nil
}

// preFlight adds the reasons of the checks to those of another.
func (f *fitness) preFlight(other func(context.Context) error) func(context.Context) error {
	if len(f.checks) == 0 {
		return other
	}
	return func(ctx context.Context) error {
		errs := []error{other(ctx)}
		limited, cancel := context.WithTimeout(ctx, firstFit)
		defer cancel()
		for _, c := range f.checks {
			errs = append(errs, c.result(limited))
		}
		return errors.Join(errs...)
	}
}

// results returns the last result of each check that has one.
func (f *fitness) results() map[string]error {
	all := map[string]error{}
	for _, c := range f.checks {
		select {
		case <-c.known:
		default:
			continue
		}
		c.mu.Lock()
		all[c.name] = c.err
		c.mu.Unlock()
	}
	return all
}
