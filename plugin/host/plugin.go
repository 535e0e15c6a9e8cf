package host

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Spec selects a plugin.
type Spec struct {
	Name string
	Dirs []string // absolute; searched in order
	// SHA256 is the checksum that the file must have, in hexadecimal digits; empty: any.
	SHA256 string
	// Plain speaks to the plugin without TLS, for one that has none. Nobody but root and this user
	// can reach its socket either way.
	Plain bool
	Env   []string // the plugin's environment
	Log   zerolog.Logger
}

// Plugin is one plugin, kept running until [Plugin.Close].
type Plugin struct {
	spec Spec
	// ready prepares a process that has just started. It may be nil.
	ready func(context.Context, *instance) error

	ctx    context.Context //nolint:containedctx // ends with Close
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	current *instance     // nil: none is ready
	changed chan struct{} // closed at the next change of what stands here
	first   bool          // the first start has succeeded or failed
	failure error         // why none is ready; nil: it is being started for the first time
	failed  int           // failures in a row
	resumes time.Time     // when the next start is due
}

const (
	// A process that has worked for this long has not failed in a row with the next.
	settled = 30 * time.Second
	// After a failure the next start is due at once, then after a pause that is doubled each time.
	firstPause, longestPause = 100 * time.Millisecond, 30 * time.Second
	// Calls wait for a start that is due within this time. Otherwise they fail at once.
	worthWaiting = time.Second
)

// launch keeps a plugin running.
func launch(spec Spec, ready func(context.Context, *instance) error) *Plugin {
	spec.Log = spec.Log.With().Str("plugin", spec.Name).Logger()
	p := &Plugin{spec: spec, ready: ready, done: make(chan struct{}), changed: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	go p.run()
	return p
}

// Close ends the plugin, and returns when it is gone.
func (p *Plugin) Close() error {
	p.cancel()
	<-p.done
	return nil
}

// run starts the plugin again and again.
func (p *Plugin) run() {
	defer close(p.done)
	for p.ctx.Err() == nil {
		began := time.Now()
		err := p.once()
		if p.ctx.Err() != nil {
			return
		}
		pause := p.fell(err, time.Since(began) > settled)
		timer := time.NewTimer(pause)
		select {
		case <-p.ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// once runs one process of the plugin until it ends or is condemned, and returns why.
func (p *Plugin) once() error {
	i, err := p.spec.start(p.ctx)
	if err != nil {
		return fmt.Errorf("cannot start it: %w", err)
	}
	kill := true
	defer func() { i.end(kill) }()
	if p.ready != nil {
		ctx, cancel := context.WithTimeout(p.ctx, startWithin)
		err := p.ready(ctx, i)
		cancel()
		if err != nil {
			return err
		}
	}
	p.set(func() { p.current, p.first, p.failure = i, true, nil })
	p.spec.Log.Info().Str("name", i.about.Name).Str("version", i.about.Version).Str("pid", i.program.ID()).Msg("plugin started")
	defer p.set(func() { p.current = nil })
	select {
	case <-p.ctx.Done():
		kill = false
		return p.ctx.Err()
	case <-i.program.ended:
		if i.program.err != nil {
			return fmt.Errorf("it has ended: %w", i.program.err)
		}
		return errors.New("it has ended by itself")
	case <-i.condemned:
		return i.why
	}
}

func (p *Plugin) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.changed)
	p.changed = make(chan struct{})
}

// fell notes a failure, and returns how long to wait before the next start.
func (p *Plugin) fell(err error, anew bool) (wait time.Duration) {
	p.set(func() {
		if anew {
			p.failed = 0
		}
		if p.failed > 0 {
			wait = min(firstPause<<min(p.failed-1, 20), longestPause)
		}
		p.failed++
		p.first, p.failure, p.resumes = true, err, time.Now().Add(wait)
	})
	p.spec.Log.Error().Err(err).Int("failures", p.failed).Dur("pause", wait).Msg("plugin failed; starting it again")
	return wait
}

// Unavailable is the error of a call that was not sent to a plugin, because none is running.
type Unavailable struct {
	Plugin string
	Failed int           // failures in a row
	Why    error         // of the last failure
	In     time.Duration // until the next start; zero: it is being started
}

// Error implements error.
func (u *Unavailable) Error() string {
	text := fmt.Sprintf("plugin %s is not running: %v", u.Plugin, u.Why)
	if u.Failed > 1 {
		text += fmt.Sprintf(" (failed %d times in a row)", u.Failed)
	}
	if u.In > 0 {
		text += fmt.Sprintf("; next start in %v", u.In.Round(100*time.Millisecond))
	}
	return text
}

// Unwrap returns the last failure.
func (u *Unavailable) Unwrap() error { return u.Why }

// instance returns a process that is ready. It waits for one until ctx ends, unless the plugin fails
// again and again.
func (p *Plugin) instance(ctx context.Context) (*instance, error) {
	for {
		p.mu.Lock()
		current, changed := p.current, p.changed
		why := &Unavailable{Plugin: p.spec.Name, Failed: p.failed, Why: p.failure, In: max(0, time.Until(p.resumes))}
		p.mu.Unlock()
		if current != nil {
			return current, nil
		}
		if why.Why == nil {
			why.Why = errors.New("it is being started")
		} else if why.In > worthWaiting {
			return nil, opaque(why)
		}
		select {
		case <-ctx.Done():
			return nil, opaque(errors.Join(why, ctx.Err()))
		case <-p.ctx.Done():
			return nil, opaque(errors.New("it is closed"))
		case <-changed:
		}
	}
}

// awaitFirst waits until the first start has succeeded or failed, and returns why it failed.
func (p *Plugin) awaitFirst(ctx context.Context) error {
	for {
		p.mu.Lock()
		first, failure, changed := p.first, p.failure, p.changed
		p.mu.Unlock()
		if first {
			return failure
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.ctx.Done():
			return errors.New("it is closed")
		case <-changed:
		}
	}
}

// About returns what the running process reported about itself.
func (p *Plugin) About(ctx context.Context) (About, error) {
	i, err := p.instance(ctx)
	if err != nil {
		return About{}, err
	}
	return i.about, nil
}

// opaque returns an error that is no answer of a store: none of [election]'s errors is found in it,
// whatever a plugin put into its words.
func opaque(err error) error { return unknown{err} }

type unknown struct{ why error }

func (u unknown) Error() string { return u.why.Error() }

// Is makes the end of a context recognisable, and nothing else.
func (u unknown) Is(target error) bool {
	return (target == context.DeadlineExceeded || target == context.Canceled) && errors.Is(u.why, target) //nolint:errorlint // it is the Is method
}

// As makes [Unavailable] recognisable, and nothing else.
func (u unknown) As(target any) bool {
	if to, ok := target.(**Unavailable); ok {
		return errors.As(u.why, to)
	}
	return false
}

const (
	// A call that has no answer after this time, or after half of what its context allows, is taken
	// as a reason to ask the plugin for a sign of life.
	suspiciousAfter = 500 * time.Millisecond
	// pingWithin is how long a plugin may take to answer a ping. One that does not is killed.
	pingWithin = time.Second
	// tooManyLies is how many answers in a row may contradict the protocol.
	tooManyLies = 3
)

// watched runs a call, and asks for a sign of life of the plugin if it takes long.
func (p *Plugin) watched(ctx context.Context, i *instance, call func(context.Context) error) error {
	after := suspiciousAfter
	if deadline, ok := ctx.Deadline(); ok {
		after = min(after, time.Until(deadline)/2)
	}
	timer := time.AfterFunc(max(after, time.Millisecond), func() { p.suspect(i) })
	defer timer.Stop()
	return call(ctx)
}

// suspect asks a process for a sign of life, and condemns it if there is none.
func (p *Plugin) suspect(i *instance) {
	if !i.asking.CompareAndSwap(false, true) {
		return
	}
	defer i.asking.Store(false)
	ctx, cancel := context.WithTimeout(p.ctx, pingWithin)
	defer cancel()
	if err := i.ping(ctx); err != nil && p.ctx.Err() == nil {
		i.condemn(fmt.Errorf("it does not answer a ping within %v: %w", pingWithin, err))
	}
}

// Describe starts a plugin, returns what it reports about itself, and ends it.
func Describe(ctx context.Context, spec Spec) (About, error) {
	i, err := spec.start(ctx)
	if err != nil {
		return About{}, fmt.Errorf("plugin %s: cannot start it: %w", spec.Name, err)
	}
	defer i.end(false)
	return i.about, nil
}
