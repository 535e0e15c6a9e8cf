package sidecar

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tanist/tanist/election"
)

// lead is one reign. What each step does is undone by a defer, so that whatever ends it, and at whichever step, the order
// is: unpublish, stop, confirm gone; then the elector releases.
func (s *Sidecar) lead(ctx context.Context, t *election.Tenure) (end election.End) {
	log := s.cfg.Log.With().Uint64("term", uint64(t.Term)).Logger()
	verb := "acquired the lease"
	if t.Resumed {
		verb = "took the lease up again"
	}
	log.Info().Str("reason", t.Reason).Msg(verb)
	if !t.Resumed {
		s.prepare() // while the repository is fenced, or an old lease runs out
	}
	s.presence.Unset("role/" + s.cfg.Name) // from here on the store writes it with the reign
	s.board.begin(t)
	t.OnVoid(func(d election.HolderDecision) {
		log.Warn().Str("reason", string(d.Code)).Str("by", d.Request.By).Msg(d.Why)
	})
	if !t.Resumed {
		s.enter(election.StateStarting, t.Reason)
	}
	s.remember(t)
	defer func() {
		if end.Keep {
			log.Info().Msg("left the controller to the next process of this sidecar")
			return
		}
		s.forget()
		s.board.over()
		if end.Yield {
			s.board.fail(t.Term, end.Reason)
		}
		// Nothing of the reign is left; the elector releases next.
		s.enter(election.StateYielding, end.Reason)
		log.Info().Str("reason", end.Reason).Bool("failed_here", end.Yield).Msg("the reign is over")
	}()

	r := reign{Sidecar: s, tenure: t, history: election.History{
		Term: t.Term, From: t.Previous.Controller, To: s.cfg.Name, Reason: t.Reason, Clean: t.Previous.Clean || t.Previous.Term == 0,
	}}
	err := r.run(ctx)

	var floor interface{ RepositoryTerm() election.Term }
	var ending *election.Ending
	switch {
	case errors.As(err, &floor):
		return election.End{Reason: err.Error(), Floor: floor.RepositoryTerm()}
	case r.kept:
		return election.End{Reason: err.Error(), Keep: true}
	case errors.As(err, &ending):
		return election.End{Reason: ending.Why, Yield: ending.Here, Cooldown: ending.Here}
	default:
		return election.End{
			Reason: fmt.Sprintf("%s failed: %v", s.cfg.Name, err), Yield: true, Cooldown: r.history.When.IsZero() || s.flapping(),
		}
	}
}

// remember and forget keep the reign on record for a later process.
func (s *Sidecar) remember(t *election.Tenure) {
	if s.cfg.Memory == nil {
		return
	}
	if err := s.cfg.Memory.Save(t.Held()); err != nil {
		s.cfg.Log.Warn().Err(err).Msg("cannot save the reign; a restart of this sidecar will restart the controller")
	}
}

func (s *Sidecar) forget() {
	if s.cfg.Memory == nil {
		return
	}
	if err := s.cfg.Memory.Clear(); err != nil {
		s.cfg.Log.Warn().Err(err).Msg("cannot forget the reign")
	}
}

// reign is the state of one reign.
type reign struct {
	*Sidecar
	tenure  *election.Tenure
	history election.History
	kept    bool             // the controller was left running for a later process
	failed  election.Instant // when the first sign of the fault that ended the reign was seen; zero: not known
}

// run returns why the reign ended: an [*election.Ending] if the lease or an operator ended it, else what failed here.
func (r *reign) run(ctx context.Context) (err error) {
	var env []string
	adopt := r.tenure.Resumed
	if !adopt {
		if env, err = r.fence(ctx); err != nil {
			return err
		}
	}
	if r.cfg.Fence != nil {
		defer func() {
			if !r.kept { // else the repository stays open for it
				r.closeFence(ctx)
			}
		}()
	}
	if err := r.waitOut(ctx); err != nil {
		return err
	}
	for {
		err := r.serve(ctx, env, adopt)
		if ctx.Err() != nil || adopt || !r.mayRestart() {
			return err // the secret of an adopted controller is not known here, so it can't be restarted in this term
		}
		r.cfg.Log.Warn().Uint64("term", uint64(r.tenure.Term)).Str("reason", err.Error()).Msg("restarting the controller in place")
		r.enter(election.StateStarting, "restart in place: "+err.Error())
	}
}

// fence raises the term at the repository. A repository that can't be reached is tried again until FenceTimeout; then
// another may have more luck.
func (r *reign) fence(ctx context.Context) ([]string, error) {
	if r.cfg.Fence == nil {
		return nil, nil
	}
	begun := r.cfg.Clock()
	var last error
	for {
		left := r.cfg.FenceTimeout - r.cfg.Clock().Sub(begun)
		if left <= 0 {
			return nil, fmt.Errorf("the repository can't be fenced: %v", last)
		}
		attempt, cancel := context.WithTimeout(ctx, left)
		env, err := r.cfg.Fence.Raise(attempt, r.tenure.Term)
		cancel()
		if err == nil {
			r.history.Fence = election.ToMillis(r.cfg.Clock().Sub(begun))
			return env, nil
		}
		if cause := ending(ctx); cause != nil {
			return nil, cause
		}
		var definitive interface{ RepositoryTerm() election.Term }
		if errors.As(err, &definitive) {
			return nil, err
		}
		if last == nil {
			r.cfg.Log.Warn().Err(err).Uint64("term", uint64(r.tenure.Term)).Msg("cannot fence the repository; trying again")
		}
		last = err
		if !sleep(ctx, fenceRetry) {
			return nil, ending(ctx)
		}
	}
}

const (
	fenceRetry   = 200 * time.Millisecond
	closeTimeout = time.Second
	stopAgain    = time.Second
)

// closeFence shuts the repository behind the controller. It is bounded, because the release waits for it.
func (r *reign) closeFence(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := r.cfg.Fence.Close(ctx, r.tenure.Term); err != nil {
		r.cfg.Log.Warn().Err(err).Uint64("term", uint64(r.tenure.Term)).Msg("cannot shut the repository; the next term does")
	}
}

// waitOut waits until the validity of an old holder that did not release is over.
func (r *reign) waitOut(ctx context.Context) error {
	left := r.tenure.NotBefore.Sub(r.cfg.Clock())
	if r.tenure.NotBefore == 0 || left <= 0 {
		return nil
	}
	r.history.Wait = election.ToMillis(left)
	r.enter(election.StateStarting, fmt.Sprintf("%s; waiting %v for the old lease to be over for sure", r.tenure.Reason, left.Round(10*time.Millisecond)))
	for left > 0 {
		if !sleep(ctx, left) {
			return ending(ctx)
		}
		left = r.tenure.NotBefore.Sub(r.cfg.Clock())
	}
	return nil
}

// serve starts the controller, publishes it when its startup port answers, and watches it until it or the lease
// ends. When it returns, no process of the controller is left.
func (r *reign) serve(ctx context.Context, env []string, adopt bool) (err error) {
	t := r.tenure
	if adopt {
		return r.adopt(ctx)
	}
	env = append([]string{
		"TANIST_CLUSTER=" + r.cfg.Cluster, "TANIST_NAME=" + r.cfg.Name, fmt.Sprintf("TANIST_TERM=%d", t.Term),
	}, env...)
	if r.cfg.Hook != nil {
		if err := r.cfg.Hook(ctx, "pre_start", r.event(t.Term, t.Reason)); err != nil {
			if cause := ending(ctx); cause != nil {
				return cause
			}
			return fmt.Errorf("pre_start refused: %v", err)
		}
	}
	if cause := ending(ctx); cause != nil {
		return cause
	}

	begun := r.cfg.Clock()
	defer func() { r.stop(ctx, err) }()
	t.OnExtend(r.cfg.Controller.Extend) // before the start, which may take longer than the lease is valid
	if err := r.cfg.Controller.Start(ctx, env, t.Deadline()); err != nil {
		if cause := ending(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("cannot start the controller: %v", err)
	}
	t.OnExtend(r.cfg.Controller.Extend)

	if err := r.ready(ctx); err != nil {
		return err
	}
	r.history.Start = election.ToMillis(r.cfg.Clock().Sub(begun))

	if err := r.publish(ctx); err != nil {
		return err
	}
	defer func() { r.unpublish(ctx, err) }()
	return r.watch(ctx)
}

// adopt is serve for a controller that an earlier process started.
func (r *reign) adopt(ctx context.Context) (err error) {
	t := r.tenure
	adopter, ok := r.cfg.Controller.(Adopter)
	if !ok {
		return errors.New("cannot take the controller up again: its driver can't")
	}
	defer func() { r.stop(ctx, err) }()
	if err := adopter.Adopt(ctx, t.Deadline()); err != nil {
		if cause := ending(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("cannot take the controller up again: %v", err)
	}
	t.OnExtend(r.cfg.Controller.Extend)
	if err := r.ready(ctx); err != nil {
		return err
	}
	if t.State() == election.StateServing {
		r.enter(election.StateServing, t.Reason)
		r.board.announce(election.RoleActive)
	} else if err := r.publish(ctx); err != nil {
		return err
	}
	defer func() { r.unpublish(ctx, err) }()
	return r.watch(ctx)
}

// ready waits until the startup port answers.
func (r *reign) ready(ctx context.Context) error {
	waiting, cancel := context.WithTimeout(ctx, r.cfg.StartTimeout)
	defer cancel()
	answered := make(chan error, 1)
	go func() { answered <- r.cfg.Port(waiting) }()
	select {
	case err := <-answered:
		if err == nil {
			// Something answers; it must be ours.
			select {
			case <-r.cfg.Controller.Exited():
				return fmt.Errorf("the controller ended while it started: %s", r.cfg.Controller.Exit())
			default:
				return nil
			}
		}
		if cause := ending(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("the startup port did not answer within %v: %v", r.cfg.StartTimeout, err)
	case <-r.cfg.Controller.Exited():
		r.failed = r.cfg.Clock()
		cancel()
		if cause := ending(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("the controller ended while it started: %s", r.cfg.Controller.Exit())
	}
}

// publish says serving to the cluster. It tries until it has succeeded or the reign must end: a controller that nobody
// is sent to is an outage.
func (r *reign) publish(ctx context.Context) error {
	for {
		err := r.tenure.Publish(ctx, election.StateServing)
		if err == nil {
			break
		}
		if !sleep(ctx, r.cfg.Timing.Attempt()/4) {
			return ending(ctx)
		}
	}
	r.enter(election.StateServing, r.tenure.Reason)
	if r.board.announce(election.RoleActive) {
		r.hooks.add("on_active", r.event(r.tenure.Term, r.tenure.Reason))
	}
	r.history.When = time.Now().UTC()
	r.history.Outage, r.history.OutageAtMost = outage(r.tenure, r.cfg.Timing, r.cfg.Clock())
	r.writeHistory()
	return nil
}

// outage tells how long nobody served before now, from what the candidate had seen when it claimed.
func outage(t *election.Tenure, timing election.Timing, now election.Instant) (election.Millis, bool) {
	switch {
	case t.Previous.Term == 0:
		return 0, false
	case t.Seen.StoppingAt != 0:
		return election.ToMillis(now.Sub(t.Seen.StoppingAt)), false
	case t.Previous.Clean:
		return election.ToMillis(now.Sub(t.Seen.VacantAt)), false
	case !t.Seen.Vacant:
		return election.ToMillis(now.Sub(t.Seen.BeatAt)), true
	default:
		return election.ToMillis(now.Sub(t.Seen.VacantAt) + timing.TTL), true
	}
}

// unpublish takes the URL back before the controller is stopped, so that nobody is sent to it any more. One bounded attempt:
// if the store is away the lease runs out and takes the keys along, and the time belongs to the stop.
func (r *reign) unpublish(ctx context.Context, why error) {
	if lease(why) != "" || detached(why) {
		return
	}
	if err := r.tenure.Publish(context.WithoutCancel(ctx), election.StateStopping); err != nil && !errors.Is(err, election.ErrLost) {
		r.cfg.Log.Warn().Err(err).Uint64("term", uint64(r.tenure.Term)).Msg("cannot take the URL back")
	}
}

// watch returns when the controller has failed or the reign must end.
func (r *reign) watch(ctx context.Context) error {
	watching, stop := context.WithCancel(ctx)
	unhealthy := make(chan string, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if r.cfg.Health == nil {
			return
		}
		r.cfg.Health.Run(watching, func(healthy bool, detail string, took time.Duration) { r.verdict(unhealthy, healthy, detail) })
	}()
	superseded := make(chan error, 1)
	asserted := make(chan struct{})
	go func() {
		defer close(asserted)
		r.assert(watching, superseded)
	}()
	defer func() {
		stop()
		<-done
		<-asserted
	}()

	var failure error
	select {
	case <-ctx.Done():
		return ending(ctx)
	case <-r.cfg.Controller.Exited():
		failure = fmt.Errorf("the controller ended: %s", r.cfg.Controller.Exit())
	case detail := <-unhealthy:
		failure = fmt.Errorf("the controller is not healthy: %s", detail)
	case failure = <-superseded:
	}
	r.failed = r.cfg.Clock()
	if cause := ending(ctx); cause != nil {
		return cause // the exit is how the lease's end looks from here
	}
	for r.tenure.Paused() {
		r.enter(election.StateServing, "paused; "+failure.Error())
		if !sleep(ctx, r.cfg.Timing.RenewEvery) {
			return ending(ctx)
		}
	}
	return failure
}

// verdict takes in one change of the controller's health.
func (r *reign) verdict(unhealthy chan<- string, healthy bool, detail string) {
	words := "ok"
	if !healthy {
		words = detail
	}
	status := r.board.health(words)
	r.presence.Set("controllers/"+r.cfg.Name, status.Encode())
	if healthy {
		return
	}
	r.cfg.Log.Warn().Uint64("term", uint64(r.tenure.Term)).Str("reason", string(election.CodeHealth)).Msg(detail)
	select {
	case unhealthy <- detail:
	default:
	}
}

// assert looks, at the pace of the renewals, whether the repository still is this term's.
func (r *reign) assert(ctx context.Context, superseded chan<- error) {
	if r.cfg.Fence == nil {
		return
	}
	every := max(r.cfg.Timing.RenewEvery, time.Second)
	for sleep(ctx, every) {
		limited, cancel := context.WithTimeout(ctx, every)
		err := r.cfg.Fence.Assert(limited, r.tenure.Term)
		cancel()
		var definitive interface{ Superseded() bool }
		if errors.As(err, &definitive) && definitive.Superseded() {
			superseded <- err
			return
		}
	}
}

// stop ends the controller and returns when no process of it is left. How politely depends on why; the guard shortens
// it if the lease gets into danger meanwhile.
func (r *reign) stop(ctx context.Context, why error) {
	t := r.tenure
	if adopter, ok := r.cfg.Controller.(Adopter); ok && detached(why) {
		t.OnExtend(nil)
		err := adopter.Detach()
		if err == nil {
			r.kept = true
			return
		}
		r.cfg.Log.Warn().Err(err).Uint64("term", uint64(t.Term)).Msg("cannot leave the controller to a later process; stopping it")
	}
	grace := r.cfg.StopTimeout
	switch lease(why) {
	case election.CodeLost:
		grace = 0
	case election.CodeStoreAway:
		grace = max(0, t.Deadline().Sub(r.cfg.Clock()))
	}
	r.enter(election.StateStopping, why.Error())
	begun := r.cfg.Clock()
	if r.failed != 0 {
		r.history.EndDetect = election.ToMillis(begun.Sub(r.failed))
	}
	// Renewals go on until the elector is told that we are done, and every one of them moves the guard's deadline, so that
	// a polite stop may take longer than one validity.
	t.OnExtend(r.cfg.Controller.Extend)
	defer t.OnExtend(nil)
	background := context.WithoutCancel(ctx)
	r.drain(why)
	for tries := 1; ; tries++ {
		err := r.cfg.Controller.Stop(background, grace)
		if err == nil {
			break
		}
		r.enter(election.StateFailed, fmt.Sprintf("the controller can't be confirmed gone, the lease is kept: %v", err))
		r.cfg.Log.Error().Err(err).Uint64("term", uint64(t.Term)).Msg("cannot confirm that the controller is gone; keeping the lease and trying again")
		if tries == 1 {
			r.hooks.add("on_stop_failure", r.event(t.Term, err.Error()))
		}
		grace = 0
		sleep(background, stopAgain)
	}
	r.history.EndStop = election.ToMillis(r.cfg.Clock().Sub(begun))
	r.history.Ended, r.history.EndedBy = time.Now().UTC(), why.Error()
	if !r.history.When.IsZero() {
		r.writeHistory()
	}
}

// drain leaves a controller that is about to be stopped as planned the time to answer what has reached it, while those who
// route to it (HAProxy, agents) learn that it is stopping. Not for one that failed, nor past what the lease allows.
func (r *reign) drain(why error) {
	var e *election.Ending
	if !errors.As(why, &e) || e.Code != election.CodePlanned && e.Code != election.CodeShutdown {
		return
	}
	if r.tenure.State() != election.StateStopping {
		return // it was not published, or not taken back: nobody is to learn anything
	}
	end := r.cfg.Clock().Add(r.cfg.Drain)
	for {
		now := r.cfg.Clock()
		left := min(end, r.tenure.Deadline()).Sub(now)
		if left <= 0 {
			return
		}
		timer := time.NewTimer(left) // the lease may have been renewed by then
		select {
		case <-timer.C:
		case <-r.cfg.Controller.Exited():
			timer.Stop()
			return
		}
	}
}

// writeHistory keeps the record of this reign. The history is for people: nothing waits for it.
func (r *reign) writeHistory() { r.chronicle.add(r.history) }

// flapping counts a failure, and reports whether there were too many lately.
func (s *Sidecar) flapping() bool {
	s.failures = append(recent(s.failures, time.Minute), time.Now())
	return len(s.failures) > failuresPerMinute
}

// failuresPerMinute is how many failed reigns of one side in a minute are taken for bad luck.
const failuresPerMinute = 20

// recent returns those of all that are not older than within.
func recent(all []time.Time, within time.Duration) []time.Time {
	return slices.DeleteFunc(all, func(at time.Time) bool { return time.Since(at) >= within })
}

// mayRestart reports whether the budget of restarts in place has one left, and takes it.
func (s *Sidecar) mayRestart() bool {
	s.restarts = recent(s.restarts, s.cfg.RestartWithin)
	if len(s.restarts) >= s.cfg.RestartLocal {
		return false
	}
	s.restarts = append(s.restarts, time.Now())
	return true
}

// lease returns which way the lease ended the reign, or an empty code if it did not.
func lease(why error) election.Code {
	var e *election.Ending
	if errors.As(why, &e) && (e.Code == election.CodeLost || e.Code == election.CodeStoreAway) {
		return e.Code
	}
	return ""
}

// detached reports whether the reign is to be kept for a later process.
func detached(why error) bool {
	var e *election.Ending
	return errors.As(why, &e) && e.Code == election.CodeDetach
}

// ending returns why ctx ended, or nil if it goes on.
func ending(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	return context.Cause(ctx)
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
