package agentwatch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// The states of an agent in [election.Agent].
const (
	stateWaiting     = "waiting"
	stateRunning     = "running"
	stateRestarting  = "restarting"
	stateUnreachable = "unreachable"
	stateStopped     = "stopped"
)

// mailbox holds the newest wish.
type mailbox struct {
	mu      sync.Mutex
	wish    wish
	changed chan struct{} // one hint
}

func newMailbox() *mailbox {
	return &mailbox{wish: wish{action: Keep, why: "asking the store"}, changed: make(chan struct{}, 1)}
}

func (m *mailbox) put(w wish) {
	m.mu.Lock()
	m.wish = w
	m.mu.Unlock()
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

func (m *mailbox) get() wish {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wish
}

const (
	startTimeout = 30 * time.Second // of Process.Start, whose work is a fork
	stopMargin   = 20 * time.Second // beyond the grace, to confirm that a tree is gone
	stopAgain    = time.Second      // pause after a stop that could not be confirmed
	stopTries    = 3                // at the end
)

// runner makes one agent be what the view wants. Everything but the mailbox belongs to the goroutine of its run.
type runner struct {
	cfg     *Config
	agent   Agent
	log     zerolog.Logger
	count   *counters
	tmpl    *templates
	box     *mailbox
	publish func(election.Agent)
	hold    <-chan struct{} // closed when the agent may be started as far as its name goes; nil: at once

	proc      Process // nil: nothing runs, confirmed
	at        Target  // what proc is pointed at
	made      *rendered
	started   time.Time
	aim       Target // what was last wanted
	switching bool   // the next start is because of a change of aim
	splayEnd  time.Time
	failures  int // in a row: early deaths and starts that failed
	notBefore time.Time
	prep      *prepared
	said      string
	status    election.Agent
}

func (r *runner) set(state, reason string) {
	s := r.status
	s.State, s.Reason = state, reason
	s.Follows, s.Term, s.PID = "", 0, 0
	if r.proc != nil {
		s.Follows, s.Term, s.PID = r.at.Controller, r.at.Term, r.proc.PID()
		if s.Follows == "" {
			s.Follows = r.at.URL
		}
	}
	if s == r.status {
		return
	}
	if s.State != r.status.State || s.Term != r.status.Term {
		s.Since = time.Now().UTC().Truncate(time.Millisecond)
	}
	r.status = s
	r.publish(s)
}

// run works until ctx has ended, stops the agent, and returns an error only if the end of it could not be confirmed.
func (r *runner) run(ctx context.Context) error {
	r.set(stateWaiting, r.box.get().why)
	if r.hold != nil {
		select {
		case <-r.hold:
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		wait := r.step(ctx, r.box.get())
		var exited <-chan struct{}
		if r.proc != nil {
			exited = r.proc.Exited()
		}
		var timer <-chan time.Time
		if wait == 0 {
			continue
		}
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-ctx.Done():
		case <-r.box.changed:
		case <-exited:
		case <-timer:
		}
	}
	r.drop()
	return r.end(ctx)
}

// step does what is next and returns how long there is nothing to do: zero for "look again", negative for "until something happens".
func (r *runner) step(ctx context.Context, w wish) time.Duration {
	if w.action == Follow && r.aim.differs(w.target) {
		r.failures, r.notBefore = 0, time.Time{}
		r.switching = true
		if r.splayEnd.IsZero() && r.proc != nil {
			r.splayEnd = time.Now().Add(time.Duration(r.cfg.Random() * float64(r.agent.OnChange.Splay)))
		}
	}
	if w.action == Follow {
		r.aim = w.target
	}
	if r.proc != nil {
		select {
		case <-r.proc.Exited():
			return r.died(ctx)
		default:
		}
	}
	hold := time.Until(r.notBefore)
	switch {
	case w.action == Stop && r.proc != nil:
		if hold > 0 {
			return hold
		}
		r.drop()
		r.stop(ctx, w.why)
		return 0
	case w.action == Follow && r.proc == nil:
		r.splayEnd = time.Time{} // there is nothing to be gentle with, or it has been waited out
		if hold > 0 {
			return hold
		}
		return r.start(ctx, w.target)
	case w.action == Follow && r.at.differs(w.target):
		if pause := max(hold, time.Until(r.splayEnd)); pause > 0 {
			return pause
		}
		return r.change(ctx, w.target)
	case w.action == Follow:
		r.splayEnd, r.switching = time.Time{}, false
		if r.at != w.target { // the same place, and more is known of it
			r.at = w.target
		}
		r.said = ""
		r.set(stateRunning, "")
	case r.proc == nil:
		r.set(stateWaiting, w.why)
	default:
		r.set(stateRunning, w.why)
	}
	return -1
}

// ready prepares target, or keeps what is prepared for it.
func (r *runner) ready(ctx context.Context, target Target) (*prepared, error) {
	if r.prep != nil && r.prep.target == target {
		return r.prep, nil
	}
	r.drop()
	p, err := r.tmpl.prepare(ctx, r.cfg.Cluster, target)
	r.prep = p
	return p, err
}

func (r *runner) drop() {
	if r.prep != nil {
		r.prep.discard()
		r.prep = nil
	}
}

// start starts the agent; nothing of it runs.
func (r *runner) start(ctx context.Context, target Target) time.Duration {
	p, err := r.ready(ctx, target)
	if err == nil {
		err = p.commit()
		r.prep = nil
	}
	if err != nil {
		return r.trouble(ctx, stateWaiting, err)
	}
	proc, err := r.launch(ctx, p)
	if err != nil {
		return r.trouble(ctx, stateWaiting, err)
	}
	r.running(proc, p)
	return 0
}

func (r *runner) launch(ctx context.Context, p *prepared) (Process, error) {
	proc := r.agent.New(p.r.command, append(p.r.env, p.r.told...))
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := proc.Start(ctx, nil, election.Never); err != nil {
		r.count.startFailures.Add(1)
		return nil, fmt.Errorf("cannot start the agent: %v", err)
	}
	return proc, nil
}

// running notes that proc runs, or has been told, as p says.
func (r *runner) running(proc Process, p *prepared) {
	r.said = ""
	took := time.Since(p.target.Seen)
	fresh := r.started.IsZero()
	if r.switching {
		r.status.LastSwitchMS = election.ToMillis(took)
		r.count.switches.Add(1)
		r.count.switchNanos.Store(int64(took))
	}
	if proc != r.proc && !fresh {
		r.status.Restarts++
	}
	if proc != r.proc {
		r.started = time.Now()
	}
	r.proc, r.at, r.made = proc, p.target, p.r
	r.switching, r.splayEnd = false, time.Time{}
	r.log.Info().Str("controller", r.at.Controller).Str("url", r.at.URL).Uint64("term", uint64(r.at.Term)).
		Int("pid", proc.PID()).Dur("took_ms", took).Msg("the agent runs, pointed at the active")
	r.set(stateRunning, "")
}

// change points the running agent at target.
func (r *runner) change(ctx context.Context, target Target) time.Duration {
	p, err := r.ready(ctx, target)
	if err != nil {
		return r.trouble(ctx, stateRunning, err)
	}
	action := r.agent.OnChange.Action
	if action != Restart && !p.r.sameStart(r.made) {
		r.log.Info().Msg("what changes is in the command or the environment: only a restart can tell the agent")
		action = Restart
	}
	if action != Restart {
		err := p.commit()
		r.prep = nil
		if err != nil {
			return r.trouble(ctx, stateRunning, err)
		}
		if action == Signal {
			err = r.cfg.Signal(r.proc.PID(), r.agent.OnChange.Signal)
		} else {
			err = runCommand(ctx, p.r.onChange, append(p.r.env, p.r.told...), r.agent.OnChange.ExecTimeout)
		}
		if err == nil {
			r.running(r.proc, p)
			return 0
		}
		r.log.Warn().Err(err).Msg("the agent can't be told of the new active; restarting it")
		if r.stop(ctx, "the agent can't be told of the new active") {
			r.set(stateRestarting, "")
		}
		return 0
	}
	if r.agent.Overlap {
		err := p.commit()
		r.prep = nil
		if err != nil {
			return r.trouble(ctx, stateRunning, err)
		}
		proc, err := r.launch(ctx, p)
		if err != nil {
			return r.trouble(ctx, stateRunning, err)
		}
		old := r.proc
		r.running(proc, p)
		r.stopOld(ctx, old)
		return 0
	}
	r.set(stateRestarting, fmt.Sprintf("pointing it at %s (term %d)", target.Controller, target.Term))
	// What is prepared stays prepared: start uses it, unless something newer is wanted by then.
	r.stop(ctx, "")
	return 0
}

// stop ends the agent. If that can't be confirmed, the process is kept and nothing is done for a while.
func (r *runner) stop(ctx context.Context, why string) bool {
	if err := r.stopOne(ctx, r.proc); err != nil {
		r.notBefore = time.Now().Add(stopAgain)
		r.complain(err)
		r.set(stateRestarting, err.Error())
		return false
	}
	r.proc = nil
	if why != "" {
		r.log.Info().Str("why", why).Msg("stopped the agent")
	}
	return true
}

// stopOne ends a tree. It goes on when ctx ends: an agent half stopped helps nobody.
func (r *runner) stopOne(ctx context.Context, p Process) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.agent.StopTimeout+stopMargin)
	defer cancel()
	if err := p.Stop(ctx, r.agent.StopTimeout); err != nil {
		r.count.stopFailures.Add(1)
		return fmt.Errorf("cannot confirm that the agent is gone: %v", err)
	}
	return nil
}

// stopOld ends the predecessor of an agent that may overlap; it is not given up on before it is gone or ctx has ended.
func (r *runner) stopOld(ctx context.Context, old Process) {
	for {
		err := r.stopOne(ctx, old)
		if err == nil {
			return
		}
		r.complain(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(stopAgain):
		}
	}
}

// died deals with an agent that ended by itself: what is left of its tree is cleared away, then there is a pause.
func (r *runner) died(ctx context.Context) time.Duration {
	how := r.proc.Exit()
	if hold := time.Until(r.notBefore); hold > 0 {
		return hold
	}
	if !r.stop(ctx, "") {
		return 0
	}
	r.count.deaths.Add(1)
	if time.Since(r.started) >= r.cfg.Backoff.Reset {
		r.failures = 0
	}
	r.log.Warn().Str("how", how).Msg("the agent ended by itself")
	pause := r.backoff()
	r.notBefore = time.Now().Add(pause)
	r.set(stateWaiting, fmt.Sprintf("the agent ended by itself: %s; next start in %v", how, pause.Round(time.Millisecond)))
	return 0
}

// trouble notes that a start or change failed and says when to try again. An old agent goes on.
func (r *runner) trouble(ctx context.Context, state string, err error) time.Duration {
	if ctx.Err() != nil {
		return 0
	}
	r.complain(err)
	r.notBefore = time.Now().Add(r.backoff())
	r.set(state, err.Error())
	return 0
}

func (r *runner) complain(err error) {
	if r.said != err.Error() {
		r.said = err.Error()
		r.log.Error().Err(err).Msg("will be tried again")
	}
}

func (r *runner) backoff() time.Duration {
	b := r.cfg.Backoff
	pause := b.Min
	for range r.failures {
		if pause >= b.Max/2 {
			pause = b.Max
			break
		}
		pause *= 2
	}
	r.failures++
	return pause - time.Duration(r.cfg.Random()*float64(pause)/4)
}

// end stops the agent for good.
func (r *runner) end(ctx context.Context) error {
	state, why := stateStopped, "agentwatch is ending"
	if un, ok := errors.AsType[*UnreachableError](context.Cause(ctx)); ok {
		state, why = stateUnreachable, un.Error()
	}
	var err error
	for i := 0; r.proc != nil && i < stopTries; i++ {
		if i > 0 {
			time.Sleep(stopAgain)
		}
		if err = r.stopOne(ctx, r.proc); err == nil {
			r.proc = nil
			r.log.Info().Str("why", why).Msg("stopped the agent")
		}
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", r.agent.Name, err)
		why = err.Error()
	}
	r.set(state, why)
	return err
}
