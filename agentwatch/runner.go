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

// mailbox holds the newest wish of the picture.
type mailbox struct {
	mu      sync.Mutex
	wish    wish
	changed chan struct{} // one hint
}

func newMailbox() *mailbox {
	return &mailbox{wish: wish{action: Leave, why: "asking the store"}, changed: make(chan struct{}, 1)}
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
	stopMargin   = 20 * time.Second // added to the grace, to confirm that a tree is gone
	stopAgain    = time.Second      // pause after an unconfirmed stop
	stopTries    = 3                // at the end
)

// runner makes one agent match the picture's wish. All but the mailbox belongs to the goroutine of its
// run.
type runner struct {
	cfg     *Config
	agent   Agent
	log     zerolog.Logger
	count   *counters
	tmpl    *templates
	box     *mailbox
	publish func(election.Agent)
	hold    <-chan struct{} // closed once the agent's name does not prevent its start; nil: at once

	proc      Process // nil: confirmed that nothing runs, except possibly undo
	undo      Process // a failed start, until it is confirmed that nothing of it is left
	at        Aim     // the target of proc
	made      *rendered
	started   time.Time
	aim       Aim  // the last wish
	switching bool // the next start follows a change of aim
	splayEnd  time.Time
	failures  int // in a row: early deaths and failed starts
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

// run works until ctx has ended, stops the agent, and returns an error only if the agent's end
// could not be confirmed.
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

// step takes the next step. It returns how long nothing is due: zero to step again, negative until
// something happens.
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
	if r.undo != nil && hold <= 0 {
		return r.clear(ctx)
	}
	switch {
	case r.undo != nil:
		return hold
	case w.action == Stop && r.proc != nil:
		if hold > 0 {
			return hold
		}
		r.drop()
		r.stop(ctx, w.why)
		return 0
	case w.action == Follow && r.proc == nil:
		r.splayEnd = time.Time{} // nothing to spread, or the wait is over
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
		if r.at != w.target { // the same place with more details
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

// ready prepares target, or keeps the existing preparation.
func (r *runner) ready(ctx context.Context, target Aim) (*prepared, error) {
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

// start starts the agent, of which nothing runs.
func (r *runner) start(ctx context.Context, target Aim) time.Duration {
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
		r.undo = proc // all of a failed start must be gone before the next one
		return nil, fmt.Errorf("cannot start the agent: %v", err)
	}
	return proc, nil
}

// clear ends what a failed start may have left. Nothing else starts before that is confirmed.
func (r *runner) clear(ctx context.Context) time.Duration {
	if err := r.stopOne(ctx, r.undo); err != nil {
		r.notBefore = time.Now().Add(stopAgain)
		r.complain(err)
		r.set(stateRestarting, err.Error())
		return stopAgain
	}
	r.undo = nil
	return 0
}

// running records that proc runs, or has been notified, as p describes.
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
		Int("pid", proc.PID()).Dur("took_ms", took).Msg("the agent follows the controller")
	r.set(stateRunning, "")
}

// change points the running agent at target.
func (r *runner) change(ctx context.Context, target Aim) time.Duration {
	p, err := r.ready(ctx, target)
	if err != nil {
		return r.trouble(ctx, stateRunning, err)
	}
	action := r.agent.OnChange.Action
	if action != Restart && !p.r.sameStart(r.made) {
		r.log.Info().Msg("the change affects the agent's command or environment; restarting it")
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
			err = runCommand(ctx, r.agent.start, p.r.onChange, append(p.r.env, p.r.told...), r.agent.OnChange.ExecTimeout)
		}
		if err == nil {
			r.running(r.proc, p)
			return 0
		}
		r.log.Warn().Err(err).Msg("cannot notify the agent of the new active; restarting it")
		if r.stop(ctx, "the agent could not be notified of the new active") {
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
	// Keep the preparation: start uses it unless there is a newer wish by then.
	r.stop(ctx, "")
	return 0
}

// stop ends the agent. If that can't be confirmed, the process is kept and nothing is done for a
// while.
func (r *runner) stop(ctx context.Context, why string) bool {
	if err := r.stopOne(ctx, r.proc); err != nil {
		r.notBefore = time.Now().Add(stopAgain)
		r.complain(err)
		r.set(stateRestarting, err.Error())
		return false
	}
	r.proc = nil
	if why != "" {
		r.log.Info().Str("reason", why).Msg("stopped the agent")
	}
	return true
}

// stopOne ends a tree. It continues after ctx ends: a half-stopped agent helps nobody.
func (r *runner) stopOne(ctx context.Context, p Process) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.agent.StopTimeout+stopMargin)
	defer cancel()
	if err := p.Stop(ctx, r.agent.StopTimeout); err != nil {
		r.count.stopFailures.Add(1)
		return fmt.Errorf("cannot confirm that the agent is gone: %v", err)
	}
	return nil
}

// stopOld ends the predecessor of an agent with Overlap; it retries until that is gone or ctx has
// ended.
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

// died handles an agent that exited: it ends the rest of its tree, and a pause begins.
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
	r.log.Warn().Str("reason", how).Msg("the agent exited")
	pause := r.backoff()
	r.notBefore = time.Now().Add(pause)
	r.set(stateWaiting, fmt.Sprintf("the agent exited: %s; next start in %v", how, pause.Round(time.Millisecond)))
	return 0
}

// trouble records that a start or change failed, and sets the time of the retry. An old agent keeps
// running.
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
		r.log.Error().Err(err).Msg("cannot switch the agent; retrying")
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
	for _, p := range []*Process{&r.undo, &r.proc} {
		for i := 0; *p != nil && i < stopTries; i++ {
			if i > 0 {
				time.Sleep(stopAgain)
			}
			wrong := r.stopOne(ctx, *p)
			if wrong == nil {
				*p = nil
				r.log.Info().Str("reason", why).Msg("stopped the agent")
			} else if i == stopTries-1 {
				err = errors.Join(err, wrong)
			}
		}
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", r.agent.Name, err)
		why = err.Error()
	}
	r.set(state, why)
	return err
}
