package sidecar

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tanist/tanist/election"
)

// lead is one reign. A defer undoes each step, so whatever ends the reign, and at whichever step,
// the order is: unpublish, stop, confirm gone. Then the elector releases.
func (s *Sidecar) lead(ctx context.Context, t *election.Tenure) (end election.End) {
	log := s.cfg.Log.With().Uint64("term", uint64(t.Term)).Logger()
	verb := "acquired the lease"
	if t.Resumed {
		verb = "resumed the reign"
	}
	log.Info().Str("reason", t.Reason).Msg(verb)
	if !t.Resumed {
		s.prepare() // during the fencing, or the wait for an old lease
	}
	s.presence.Unset(election.RoleWordKey(s.cfg.Name)) // from now on the store writes it together with the reign
	s.board.begin(t)
	t.OnVoid(func(d election.HolderDecision) {
		log.Warn().Str("reason", d.Why).Str("by", d.Request.By).Msg("dropped a request")
	})
	if !t.Resumed {
		s.enter(election.StateStarting, t.Reason)
	}
	failedStart := false
	_ = s.save(t.Held())
	t.OnSave(s.save)
	t.OnRebind(func() {
		log.Warn().Msg("bound the role key to a new lease: the old one had expired, and nobody had claimed")
	})
	defer func() {
		if end.Keep {
			log.Info().Msg("left the controller running for the next process")
			return
		}
		s.forget()
		s.board.over()
		if end.Yield {
			s.board.fail(t.Term, end.Reason, failedStart)
		}
		// Nothing of the reign is left. The elector releases next.
		s.enter(election.StateYielding, end.Reason)
		log.Info().Str("reason", end.Reason).Bool("failed_here", end.Yield).Msg("the reign has ended")
	}()

	r := &reign{Sidecar: s, tenure: t, restarter: newRestarter(), history: election.History{
		Term: t.Term, From: t.Previous.Controller, To: s.cfg.Name, Reason: t.Reason, Clean: t.Previous.Clean || t.Previous.Term == 0,
	}}
	err := r.run(ctx)
	defer func() { end.Unclean = r.unproven }()

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
		// A resumed reign starts nothing, so its failure is not a failed start.
		failedStart = !r.served && !t.Resumed
		return election.End{
			Reason: fmt.Sprintf("%s failed: %v", s.cfg.Name, err), Yield: true, Cooldown: failedStart || s.flapping(),
		}
	}
}

// save keeps the reign on record for a later process; forget removes the record.
func (s *Sidecar) save(h election.Held) error {
	if s.cfg.Memory == nil {
		return nil
	}
	err := s.cfg.Memory.Save(h)
	if err != nil {
		s.cfg.Log.Warn().Err(err).Msg("cannot record the reign; a restart of this sidecar will restart the controller")
	}
	return err
}

// A record that cannot be removed delays nothing: a resumed reign may adopt what runs, but starts
// nothing.
func (s *Sidecar) forget() {
	if s.cfg.Memory == nil {
		return
	}
	if err := s.cfg.Memory.Clear(); err != nil {
		s.cfg.Log.Warn().Err(err).Msg("cannot remove the record of the reign")
	}
}

// reign is the state of one reign.
type reign struct {
	*Sidecar
	tenure  *election.Tenure
	history election.History
	// unproven: whether the controller is gone is unknown, and its last deadline has passed.
	unproven  bool
	outdated  error          // the repository belongs to another term; assert writes it before it ends
	unwell    atomic.Bool    // the latest health verdict
	starting  sync.WaitGroup // what waits for the controller to be ready
	inherited bool           // an earlier process published it as serving, so its end belongs into the history
	served    bool           // the controller served, in this process or an earlier one
	kept      bool           // the controller was left running for a later process
	stranded  int            // starts in place because no other candidate could take over
	restarter *restarter
	downSince election.Instant // when the controller last stopped serving, or the first sign of that was seen
	failed    election.Instant // when the first sign of the fault that ended the reign was seen; zero: unknown
	// unwatched: the controller ended, or failed, while no process of the sidecar watched it, and
	// failed is the earliest moment of that.
	unwatched bool
}

// run returns why the reign ended: an [*election.Ending] if the lease or an operator ended it, else
// the failure.
func (r *reign) run(ctx context.Context) (err error) {
	var env []string
	adopt := r.tenure.Resumed
	r.takeRestarts()
	if !adopt {
		if env, err = r.fence(ctx); err != nil {
			return err
		}
	}
	if r.cfg.Fence != nil {
		defer func() {
			if !r.kept { // otherwise the repository stays open for it
				r.closeFence(ctx)
			}
		}()
	}
	if !adopt { // an adopted controller was started after the wait
		if err := r.waitOut(ctx); err != nil {
			return err
		}
	}
	for {
		err := r.serve(ctx, env, adopt)
		if r.outdated != nil && ending(ctx) == nil {
			return r.outdated // whatever else has failed at the same time: nothing of this term may start again
		}
		asked := restarted(err)
		if cause := ending(ctx); asked != nil && cause != nil {
			return cause // the reign ends, too, and nothing has failed
		}
		if ctx.Err() != nil || r.unproven || superseded(err) || asked == nil && !r.again(ctx, adopt) {
			return err
		}
		r.cfg.Log.Warn().Uint64("term", uint64(r.tenure.Term)).Str("reason", err.Error()).Msg("restarting the controller in place")
		if asked == nil {
			err = fmt.Errorf("restart in place: %w", err)
		}
		r.enter(election.StateStarting, err.Error())
		if adopt { // only the process that fenced has the secret, so this one fences again, for the same term
			if env, err = r.fence(ctx); err != nil {
				return err
			}
		}
		adopt = false
	}
}

// again reports whether the controller is started again in this reign: because that is configured,
// or because no other candidate could take over.
func (r *reign) again(ctx context.Context, adopted bool) bool {
	if adopted && (!r.served || r.cfg.Fence != nil) {
		return false // the reign may have been released; or the controller's secret is unknown here
	}
	if !adopted && r.mayRestart() {
		return true
	}
	if !r.tenure.Stranded(ctx) {
		return false
	}
	r.stranded++
	return r.stranded == 1 || sleep(ctx, strandedPause)
}

// strandedPause is between two starts in place without the store, whose number has no limit.
const strandedPause = time.Second

// fence raises the term at the repository. The fence retries for up to FenceTimeout. After that,
// another candidate may succeed.
func (r *reign) fence(ctx context.Context) ([]string, error) {
	if r.cfg.Fence == nil {
		return nil, nil
	}
	begun := r.cfg.Clock()
	limited, cancel := context.WithTimeout(ctx, r.cfg.FenceTimeout)
	defer cancel()
	env, err := r.cfg.Fence.Raise(limited, r.tenure.Term)
	if err == nil {
		r.history.Fence = election.ToMillis(r.cfg.Clock().Sub(begun))
		return env, nil
	}
	if cause := ending(ctx); cause != nil {
		return nil, cause
	}
	return nil, err
}

const (
	closeTimeout = time.Second
	stopAgain    = time.Second
)

// closeFence shuts the repository after the controller. It is bounded, because the release waits
// for it.
func (r *reign) closeFence(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := r.cfg.Fence.Close(ctx, r.tenure.Term); err != nil {
		r.cfg.Log.Warn().Err(err).Uint64("term", uint64(r.tenure.Term)).Msg("cannot close the repository; the next term will")
	}
}

// waitOut waits until no earlier holder can be valid any more.
func (r *reign) waitOut(ctx context.Context) error {
	left := r.tenure.NotBefore().Sub(r.cfg.Clock())
	if r.tenure.NotBefore() == 0 || left <= 0 {
		return nil
	}
	begun := r.cfg.Clock()
	defer func() { r.history.Wait = election.ToMillis(r.cfg.Clock().Sub(begun)) }()
	paid := r.tenure.Paid()
	r.enter(election.StateStarting, fmt.Sprintf("%s; waiting %v until the old lease has certainly ended", r.tenure.Reason, left.Round(10*time.Millisecond)))
	for left > 0 {
		timer := time.NewTimer(left)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ending(ctx)
		case <-timer.C:
		case <-paid:
			timer.Stop()
			paid = nil
			r.cfg.Log.Warn().Uint64("term", uint64(r.tenure.Term)).Str("by", r.tenure.Confirmed()).
				Msg("an operator confirmed that the previous holder is dead; not waiting for it")
		}
		left = r.tenure.NotBefore().Sub(r.cfg.Clock())
	}
	return nil
}

// serve starts the controller, publishes it when its startup port answers and its checks are good,
// and watches it until it or the lease ends. When serve returns, no process of the controller is
// left.
func (r *reign) serve(ctx context.Context, env []string, adopt bool) (err error) {
	t := r.tenure
	if adopt {
		return r.adopt(ctx)
	}
	env = append([]string{
		"TANIST_CLUSTER=" + r.cfg.Cluster, "TANIST_NAME=" + r.cfg.Name, fmt.Sprintf("TANIST_TERM=%d", t.Term),
	}, env...)
	if r.cfg.Hook != nil {
		late, err := call(ctx, r.cfg.Hook, "pre_start", r.event(t.Term, t.Reason))
		if cause := ending(ctx); err != nil && cause != nil {
			return cause
		}
		if err != nil && late {
			return fmt.Errorf("pre_start did not end within %v: %v", hookTimeout, err)
		}
		if err != nil {
			return fmt.Errorf("pre_start failed: %v", err)
		}
	}
	if cause := ending(ctx); cause != nil {
		return cause
	}

	begun := r.cfg.Clock()
	defer r.starting.Wait()
	defer func() { r.stop(ctx, err) }()
	r.prepareDoor(ctx)
	t.OnExtend(r.extend) // before the start, which may take longer than one validity
	if err := r.cfg.Controller.Start(ctx, env, t.Deadline()); err != nil {
		if cause := ending(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("cannot start the controller: %v", err)
	}
	t.OnExtend(r.extend)

	if err := r.ready(ctx, true); err != nil {
		return err
	}
	r.history.Start = election.ToMillis(r.cfg.Clock().Sub(begun))

	if err := r.publish(ctx); err != nil {
		return err
	}
	defer func() { r.unpublish(ctx, err) }()
	if err := r.openDoor(ctx); err != nil {
		if cause := ending(ctx); cause != nil {
			return cause
		}
		return err
	}
	return r.watch(ctx)
}

// adopt does the same as serve for a controller that an earlier process started.
func (r *reign) adopt(ctx context.Context) (err error) {
	t := r.tenure
	adopter, ok := r.cfg.Controller.(Adopter)
	if !ok {
		return errors.New("cannot adopt the controller: its driver does not support it")
	}
	// While it is not known to run, it may have ended at any time since the last renewal of the process
	// before, without which the lease would be over.
	if r.inherited = t.State() == election.StateServing; r.inherited {
		r.failed, r.unwatched = r.cfg.Clock().Add(-t.Timing().TTL), true
	}
	defer r.starting.Wait()
	defer func() { r.stop(ctx, err) }()
	if err := adopter.Adopt(ctx, t.Deadline()); err != nil {
		if cause := ending(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("cannot adopt the controller: %v", err)
	}
	t.OnExtend(r.extend)
	r.served = true
	serving := t.State() == election.StateServing
	if err := r.ready(ctx, !serving); err != nil {
		return err
	}
	r.failed, r.unwatched = 0, false
	if serving {
		r.enter(election.StateServing, t.Reason)
		r.board.announce(election.RoleActive)
	} else if err := r.publish(ctx); err != nil {
		return err
	}
	defer func() { r.unpublish(ctx, err) }()
	if err := r.openDoor(ctx); err != nil {
		if cause := ending(ctx); cause != nil {
			return cause
		}
		return err
	}
	return r.watch(ctx)
}

// ready waits until the startup port answers and, if checked, until the checks are good. Until then
// a failed check only means that the start is not over; what counts is the start time-out.
func (r *reign) ready(ctx context.Context, checked bool) error {
	waiting, cancel := context.WithTimeout(ctx, r.cfg.StartTimeout)
	defer cancel()
	answered := make(chan error, 1)
	r.starting.Go(func() { answered <- r.answers(waiting, checked) })
	select {
	case <-ctx.Done():
		return ending(ctx) // the stop must not wait for a check
	case err := <-answered:
		if err == nil {
			// The port answers. The answer counts only if our program still runs.
			select {
			case <-r.cfg.Controller.Exited():
				return fmt.Errorf("the controller exited while it started: %s", r.cfg.Controller.Exit())
			default:
				return nil
			}
		}
		if cause := ending(ctx); cause != nil {
			return cause
		}
		return err
	case <-r.cfg.Controller.Exited():
		if !r.unwatched {
			r.failed = r.cfg.Clock()
		}
		if cause := ending(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("the controller exited while it started: %s", r.cfg.Controller.Exit())
	}
}

// answers returns nil when the controller can be used, and after ctx an error that names what it
// did not do in time.
func (r *reign) answers(ctx context.Context, checked bool) error {
	if err := r.cfg.Port(ctx); err != nil {
		return fmt.Errorf("the startup port did not answer within %v: %v", r.cfg.StartTimeout, err)
	}
	if r.cfg.Health == nil || !checked {
		return nil
	}
	log := r.cfg.Log.With().Uint64("term", uint64(r.tenure.Term)).Logger()
	err := r.cfg.Health.Wait(ctx, func(detail string) {
		log.Info().Str("reason", detail).Msg("the startup port answers; waiting for the health checks")
		r.enter(election.StateStarting, "waiting for the health checks: "+detail)
	})
	if err != nil {
		return &unhealthyError{fmt.Sprintf("the controller never became healthy within %v: %v", r.cfg.StartTimeout, err)}
	}
	return nil
}

// publish announces the controller as serving. It retries until it has succeeded or the reign must
// end: a controller to which nobody is routed is an outage.
func (r *reign) publish(ctx context.Context) error {
	for r.tenure.State() != election.StateServing { // after a restart in place without the store it still is
		if r.tenure.Publish(ctx, election.StateServing) == nil {
			break
		}
		if !r.pause(ctx, r.tenure.Timing().Attempt()/4) {
			if cause := ending(ctx); cause != nil {
				return cause
			}
			return fmt.Errorf("the controller ended before it was published: %s", r.cfg.Controller.Exit())
		}
	}
	if r.cfg.Health != nil {
		r.board.health("ok") // it was waited for
	}
	r.enter(election.StateServing, r.tenure.Reason)
	if r.board.announce(election.RoleActive) {
		r.hooks.add("on_active", r.event(r.tenure.Term, r.tenure.Reason))
	}
	if !r.served { // otherwise it was restarted in place
		r.board.takeover(r.tenure.Reason)
	}
	if r.served && r.downSince != 0 {
		r.servesAgain()
	} else {
		r.history.When = time.Now().UTC()
		outage(&r.history, r.tenure, r.tenure.Timing(), r.board.lookingSince(), r.cfg.Clock())
	}
	r.served = true
	r.history.ConfirmedBy = r.tenure.Confirmed()
	_ = r.save(r.tenure.Held())
	r.writeHistory()
	return nil
}

// pause waits for d, and reports whether the reign and the controller continue.
func (r *reign) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-r.cfg.Controller.Exited():
		return false
	case <-timer.C:
		return true
	}
}

// outage records in h how long nobody had served before now, from what the candidate saw when it
// claimed. looking is when this process first read the store, or zero; it cannot tell what happened
// before.
func outage(h *election.History, t *election.Tenure, timing election.Timing, looking, now election.Instant) {
	if t.Previous.Term == 0 {
		return
	}
	seen := t.Seen
	from, saw := seen.VacantAt, seen.OccupiedAt != 0
	switch {
	case seen.StoppingAt != 0: // it was seen to stop
		from, saw = seen.StoppingAt, seen.StoppingAt > looking
	case !seen.Vacant: // it went silent: it may have stopped right after its last beat
		from, saw, h.OutageAtMost = seen.BeatAt, seen.BeatAt > looking, true
	case saw && (!t.Previous.Clean || seen.VacantAt.Sub(seen.OccupiedAt) > unseen):
		// The key outlives its holder by the lease, and the store may have been away since it was
		// last read.
		from, h.OutageAtMost = seen.OccupiedAt.Add(-timing.TTL), true
	}
	if seen.StoppingAt == 0 && from > seen.BeforeGap && seen.InGap(from, timing) { // it may have stopped while the store was away
		if saw = saw && seen.BeforeGap > looking; saw {
			from, h.OutageAtMost = seen.BeforeGap.Add(-timing.TTL), true
		}
	}
	if !saw || looking == 0 {
		h.OutageAtMost, h.OutageAtLeast = false, true
	}
	h.Outage = election.ToMillis(now.Sub(from))
}

// unseen is how long a reign may not have been read before its end for the end to count as seen.
const unseen = 2 * time.Second

// unpublish withdraws the URL before the controller is stopped, so that nobody is routed to it any
// more. It makes one bounded attempt: if the store is unreachable, the keys expire with the lease,
// and the remaining time belongs to the stop.
func (r *reign) unpublish(ctx context.Context, why error) {
	if lease(why) != "" || detached(why) {
		return
	}
	if err := r.tenure.Publish(context.WithoutCancel(ctx), election.StateStopping); err != nil && !errors.Is(err, election.ErrLost) {
		r.cfg.Log.Warn().Err(err).Uint64("term", uint64(r.tenure.Term)).Msg("cannot withdraw the URL")
	}
}

// watch returns when the controller has failed or the reign must end.
func (r *reign) watch(ctx context.Context) error {
	watching, stop := context.WithCancel(ctx)
	unhealthy := make(chan sickness, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if r.cfg.Health == nil {
			return
		}
		r.cfg.Health.Run(watching, func(healthy bool, detail string, since time.Time) {
			r.verdict(unhealthy, healthy, sickness{detail, since})
		})
	}()
	behind := make(chan error, 1)
	asserted := make(chan struct{})
	go func() {
		defer close(asserted)
		r.assert(watching, behind)
	}()
	defer func() {
		stop()
		<-done
		<-asserted
	}()

	for {
		var failure error
		unwell := false
		r.failed = 0
		select {
		case <-ctx.Done():
			return ending(ctx)
		case <-r.cfg.Controller.Exited():
			failure = fmt.Errorf("the controller exited: %s", r.cfg.Controller.Exit())
		case sick := <-unhealthy:
			failure, unwell = &unhealthyError{"the controller is unhealthy: " + sick.detail}, true
			r.failed = r.cfg.Clock().Add(-max(0, time.Since(sick.since)))
		case failure = <-behind:
		case request := <-r.restarter.asked:
			r.restarter.begin()
			return &restartError{request}
		}
		if r.failed == 0 {
			r.failed = r.cfg.Clock()
		}
		if cause := ending(ctx); cause != nil {
			return cause // the exit is a consequence of the end of the lease
		}
		paused := false
		for r.tenure.Paused() {
			paused = true
			r.enter(election.StateServing, "paused; "+failure.Error())
			if !sleep(ctx, r.tenure.Timing().RenewEvery) {
				return ending(ctx)
			}
		}
		if !paused || !unwell || r.unwell.Load() {
			return failure
		}
		// The controller recovered while the cluster was paused, so the earlier failure is over.
		r.enter(election.StateServing, r.tenure.Reason)
		select {
		case <-unhealthy:
		default:
		}
	}
}

// unhealthyError is the failure of a controller whose checks failed.
type unhealthyError struct{ what string }

func (e *unhealthyError) Error() string { return e.what }

// sickness is what is wrong with the controller, and since when.
type sickness struct {
	detail string
	since  time.Time
}

// verdict handles a change of the controller's health.
func (r *reign) verdict(unhealthy chan<- sickness, healthy bool, sick sickness) {
	words := "ok"
	if !healthy {
		words = sick.detail
	}
	r.unwell.Store(!healthy)
	status := r.board.health(words)
	r.presence.Set(election.ControllerKey(r.cfg.Name), status.Encode())
	if healthy {
		return
	}
	r.cfg.Log.Warn().Uint64("term", uint64(r.tenure.Term)).Str("reason", sick.detail).Msg("the controller is unhealthy")
	select {
	case unhealthy <- sick:
	default:
	}
}

// assert checks, once per renewal interval, that the repository still belongs to this term.
func (r *reign) assert(ctx context.Context, behind chan<- error) {
	if r.cfg.Fence == nil {
		return
	}
	every := max(r.tenure.Timing().RenewEvery, time.Second)
	told := false
	for sleep(ctx, every) {
		limited, cancel := context.WithTimeout(ctx, every)
		err := r.cfg.Fence.Assert(limited, r.tenure.Term)
		cancel()
		if superseded(err) {
			r.outdated = err
			behind <- err
			return
		}
		if err != nil && !told && ctx.Err() == nil {
			r.cfg.Log.Warn().Err(err).Uint64("term", uint64(r.tenure.Term)).Msg("cannot confirm that the repository is this term's; checking again")
		}
		told = err != nil
	}
}

// superseded reports whether the repository belongs to another term. Then nothing of this one may
// be started.
func superseded(err error) bool {
	var definitive interface{ Superseded() bool }
	return errors.As(err, &definitive) && definitive.Superseded()
}

// stop ends the controller and returns when no process of it is left. The reason determines the
// grace. If the lease gets into danger meanwhile, the guard shortens it.
func (r *reign) stop(ctx context.Context, why error) {
	t := r.tenure
	if adopter, ok := r.cfg.Controller.(Adopter); ok && detached(why) {
		t.OnExtend(nil)
		err := adopter.Detach()
		if err == nil {
			r.kept = true
			return
		}
		r.cfg.Log.Warn().Err(err).Uint64("term", uint64(t.Term)).Msg("cannot leave the controller running for the next process; stopping it")
	}
	grace := r.cfg.StopTimeout
	if sick := (*unhealthyError)(nil); errors.As(why, &sick) {
		grace = min(grace, r.cfg.KillTimeout) // it may hang, and nobody can use it
	}
	switch lease(why) {
	case election.CodeLost:
		grace = 0
	case election.CodeStoreAway:
		grace = max(0, t.Deadline().Sub(r.cfg.Clock()))
	}
	r.enter(election.StateStopping, why.Error())
	begun := r.cfg.Clock()
	r.downSince = begun
	if r.failed != 0 {
		r.downSince = r.failed
		r.history.EndDetect = election.ToMillis(begun.Sub(r.failed))
		r.history.EndAtMost = r.unwatched || errors.As(why, new(*unhealthyError))
	}
	// The elector renews until the reign has ended, and each renewal moves the guard's deadline, so
	// a graceful stop may take longer than one validity.
	t.OnExtend(r.extend)
	defer t.OnExtend(nil)
	background := context.WithoutCancel(ctx)
	r.drain(why)
	r.shutDoor(background, shutWithin)
	defer r.shutDoor(background, shutFinal)
	for tries := 1; ; tries++ {
		err := r.cfg.Controller.Stop(background, grace)
		if err == nil {
			break
		}
		if errors.Is(err, election.ErrUnproven) {
			r.cfg.Log.Error().Err(err).Uint64("term", uint64(t.Term)).Msg("cannot prove that the controller is gone, but its deadline has passed; releasing the lease unclean")
			r.unproven = true
			break
		}
		r.enter(election.StateFailed, fmt.Sprintf("cannot confirm that the controller is gone, keeping the lease: %v", err))
		r.cfg.Log.Error().Err(err).Uint64("term", uint64(t.Term)).Msg("cannot confirm that the controller is gone; keeping the lease and retrying")
		if tries == 1 {
			r.hooks.add("on_stop_failure", r.event(t.Term, err.Error()))
		}
		grace = 0
		sleep(background, stopAgain)
	}
	r.history.EndStop = election.ToMillis(r.cfg.Clock().Sub(begun))
	r.history.Ended, r.history.EndedBy = time.Now().UTC(), why.Error()
	if r.served || r.inherited {
		r.writeHistory()
	}
}

// drain gives a controller before a planned stop the time to answer what has reached it, while
// those who route to it (HAProxy, agents) learn that it is stopping. A failed controller is not
// drained, and no drain exceeds what the lease allows.
func (r *reign) drain(why error) {
	var e *election.Ending
	planned := errors.As(why, &e) && (e.Code == election.CodePlanned || e.Code == election.CodeShutdown)
	if !planned && restarted(why) == nil {
		return
	}
	if !r.served || r.tenure.State() != election.StateStopping {
		return // it was not published, could not be withdrawn, or is gone: nobody learns anything
	}
	end := r.cfg.Clock().Add(r.cfg.Drain)
	for {
		now := r.cfg.Clock()
		left := min(end, r.tenure.Deadline()).Sub(now)
		if left <= 0 {
			return
		}
		timer := time.NewTimer(left) // the lease may have been renewed meanwhile
		select {
		case <-timer.C:
		case <-r.cfg.Controller.Exited():
			timer.Stop()
			return
		}
	}
}

// writeHistory queues the record of this reign. Only people read the history, so nothing waits for
// it.
func (r *reign) writeHistory() { r.chronicle.add(r.history) }

// flapping counts a failure, and reports whether there were too many recently.
func (s *Sidecar) flapping() bool {
	s.failures = append(recent(s.failures, time.Minute), time.Now())
	return len(s.failures) > failuresPerMinute
}

// failuresPerMinute is how many failed reigns in a minute one side may have before it counts as
// flapping.
const failuresPerMinute = 20

// recent returns those of all that are at most within ago.
func recent(all []time.Time, within time.Duration) []time.Time {
	return slices.DeleteFunc(all, func(at time.Time) bool { return time.Since(at) >= within })
}

// mayRestart reports whether a restart in place is left in the budget, and takes it.
func (s *Sidecar) mayRestart() bool {
	s.restarts = recent(s.restarts, s.cfg.RestartWithin)
	if len(s.restarts) >= s.cfg.RestartLocal {
		return false
	}
	s.restarts = append(s.restarts, time.Now())
	return true
}

// lease returns how the lease ended the reign, or an empty code if it did not.
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

// ending returns why ctx ended, or nil if it has not.
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
