package sidecar

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// Controller is the program that must be active once, with the means to start and force-stop it.
type Controller interface {
	// Start starts the program with env added to its environment. Nothing of it runs past deadline,
	// whatever happens to this process, unless Extend moves the deadline first. Stop is called even
	// after an error.
	Start(ctx context.Context, env []string, deadline election.Instant) error
	// Extend moves the deadline. It never blocks. It does not move a deadline that has passed. A
	// deadline in the past ends the program at once.
	Extend(deadline election.Instant)
	// Exited is closed when the program's main process has ended or can no longer be watched.
	Exited() <-chan struct{}
	// Exit describes in plain words how it ended.
	Exit() string
	// Stop ends the program: its stop signal first, KILL to the whole tree after grace or at the
	// deadline. It returns nil only when no process of the tree is left. It returns an error that
	// wraps [election.ErrUnproven] when neither can be proven and the last deadline has passed;
	// then the lease is released unclean. After any other error the program may be running, and
	// Stop may be called again.
	Stop(ctx context.Context, grace time.Duration) error
}

// Preparer is a [Controller] whose start is faster if it is announced.
type Preparer interface {
	// Prepare does what can be done before Start. It never blocks, may be called often, and commits
	// to nothing: if no Start follows, it undoes itself.
	Prepare()
}

// Adopter is a [Controller] that outlives its sidecar until its deadline, and can be found again.
type Adopter interface {
	// Adopt takes over the program that an earlier process of this sidecar started. After an error,
	// Stop is still called, and ends what may be left of the program.
	Adopt(ctx context.Context, deadline election.Instant) error
	// Detach leaves the program without ending it. It runs on until its deadline.
	Detach() error
}

// Settler is a [Controller] that knows what an earlier process of this sidecar may have left
// running.
type Settler interface {
	// Settle ends it, and returns nil when nothing of it is left. It returns an error that wraps
	// [election.ErrUnproven] when nothing can be proven and all of its deadlines have passed. After
	// any other error it may be called again. This side does not claim before that, because a lease
	// that began with this wait could end before the controller starts.
	Settle(ctx context.Context) error
}

// Memory keeps what a later process of this sidecar needs to continue a reign.
type Memory interface {
	// Save is called when a reign begins. A reign that cannot be saved cannot be resumed; there is
	// no other harm.
	Save(h election.Held) error
	// Clear is called when nothing of the reign is left.
	Clear() error
}

// Fence keeps all terms but one out of the metadata repository.
type Fence interface {
	// Raise makes term the only one that the repository accepts, and returns the environment with
	// which the controller logs in. Once it has returned nil, no statement of an older term
	// commits. It retries while that may help, until ctx ends. If the repository is at a higher
	// term, the error has the method RepositoryTerm() election.Term.
	Raise(ctx context.Context, term election.Term) (env []string, err error)
	// Assert returns an error with the method Superseded() bool if the repository belongs to
	// another term. After any other error, that is unknown.
	Assert(ctx context.Context, term election.Term) error
	// Close shuts the repository for term after its controller is gone. It saves the next holder
	// some work.
	Close(ctx context.Context, term election.Term) error
	// Ready reports whether Raise could succeed from here.
	Ready(ctx context.Context) error
}

// CloseTimeout bounds [Fence.Close], because the release of the lease waits for it.
const CloseTimeout = closeTimeout

// Health checks the controller.
type Health interface {
	// Wait returns nil when the program that was started is healthy, or an error that says what is
	// wrong when ctx ends. It calls waiting with each new reason to wait; calls never overlap.
	Wait(ctx context.Context, waiting func(detail string)) error
	// Run checks while the program serves, until ctx ends, and reports the first verdict and every
	// change; since is when the first sign of what made it unhealthy was seen.
	Run(ctx context.Context, report func(healthy bool, detail string, since time.Time))
}

// Config configures a sidecar. It must not change after New.
type Config struct {
	Cluster    string
	Name       string
	URL        string        // where users reach the controller
	URLs       election.URLs // more of its ports
	API        string        // base URL of this sidecar's REST interface; may be empty
	Version    string
	Host       string
	PID        int
	Priority   int
	NoFailover bool

	Incarnation string // unique per process
	Backend     election.Backend
	Timing      election.Timing
	Clock       election.Clock // nil: election.BootClock
	Raw         election.Clock // nil: the rate of Clock is not watched; set to election.RawClock if Clock is nil too

	OnStoreLoss election.StoreLoss
	// Ask asks every passive of a to leave the lease to this holder, for
	// [election.StoreLossFailsafe].
	Ask func(ctx context.Context, a election.Ask) error

	Memory      Memory         // nil: a later process does not resume the reign
	Resume      *election.Held // the reign that an earlier process left; nil: none
	Predecessor string         // incarnation of the previous process, which is certainly gone; may be empty
	Known       election.Known // what earlier processes have recorded
	Remember    func(election.Known)

	Controller Controller
	Door       Door   // nil: users reach the controller by its URL only
	Health     Health // nil: only the exit of the controller counts
	Fence      Fence  // nil: no repository
	// Port returns nil when the startup port accepts a connection, and waits until then or until
	// ctx ends.
	Port func(ctx context.Context) error
	// PreFlight returns why the controller could not be started here. It is called while passive.
	// nil: always fit.
	PreFlight func(ctx context.Context) error

	StartTimeout time.Duration // until the startup port answers and the checks are good
	StopTimeout  time.Duration // between the stop signal and KILL
	KillTimeout  time.Duration // the same for a controller that failed its checks; no longer than StopTimeout
	Drain        time.Duration // from the announcement that serving has ended to the stop, when planned
	YieldWait    time.Duration
	// FailoverInterval: see [election.Elector].
	FailoverInterval time.Duration
	RestartLocal     int           // restarts in place before yielding
	RestartWithin    time.Duration // the period of RestartLocal
	FenceTimeout     time.Duration // how long to retry the fence before the lease is given up

	// Hook runs the operator's command for an event: on_active, on_passive, pre_start,
	// on_stop_failure (once per stop that cannot be confirmed, while it is retried). An error of
	// pre_start prevents the start. ctx ends after 30 s. nil: none.
	Hook func(ctx context.Context, event string, env []string) error

	// Alive reports whether the process that wrote c still runs. known is false if that cannot be
	// determined here, as on another host.
	Alive func(c election.Controller) (alive, known bool)

	Log zerolog.Logger
}

// Sidecar is one controller's sidecar. Its methods may be called from any goroutine.
type Sidecar struct {
	cfg       Config
	presence  *election.Presence
	elector   *election.Elector
	board     board
	hooks     hookQueue
	chronicle chronicle
	restarts  []time.Time // of the controller in place; only lead uses it
	failures  []time.Time // of reigns; only lead uses it
	ajar      bool        // the door may be open; only what the elector calls uses it
}

// New returns a sidecar. [Sidecar.Run] starts it.
func New(cfg Config) *Sidecar {
	if cfg.Clock == nil {
		cfg.Clock, cfg.Raw = election.BootClock, election.RawClock
	}
	s := &Sidecar{cfg: cfg, ajar: true} // an earlier process may have left it open
	s.cfg.Log = cfg.Log.With().Str("cluster", cfg.Cluster).Str("controller", cfg.Name).Logger()
	s.board.clock = cfg.Clock
	s.board.status = election.Controller{
		Name: cfg.Name, Incarnation: cfg.Incarnation, Role: election.RolePassive, State: election.StateUnfit, Health: "-",
		Reason: "starting up", Priority: cfg.Priority, NoFailover: cfg.NoFailover, URL: cfg.URL, API: cfg.API,
		Version: cfg.Version, Host: cfg.Host, PID: cfg.PID, Since: time.Now().UTC(), LeaseTTL: cfg.Timing.TTL.String(),
	}
	s.presence = &election.Presence{
		Store: cfg.Backend, TTL: cfg.Timing.TTL, Names: []string{election.ControllerKey(cfg.Name)}, Owner: cfg.owner, Recheck: true,
	}
	s.elector = &election.Elector{
		Backend: s.cfg.Backend, Timing: s.cfg.Timing, Clock: s.cfg.Clock, Raw: s.cfg.Raw, YieldWait: s.cfg.YieldWait, FailoverInterval: s.cfg.FailoverInterval,
		OnStoreLoss: s.cfg.OnStoreLoss, Ask: s.cfg.Ask, Resume: s.cfg.Resume, Known: s.cfg.Known, Remember: s.cfg.Remember,
		Self:    s.self,
		Record:  func() election.Active { return election.Active{URL: s.cfg.URL, URLs: s.cfg.URLs, API: s.cfg.API} },
		Lead:    s.lead,
		Observe: s.observe,
	}
	s.hooks.run = cfg.Hook
	s.hooks.log = s.cfg.Log
	s.chronicle = chronicle{keys: cfg.Backend, attempt: cfg.Timing.Attempt(), log: s.cfg.Log, wake: make(chan struct{}, 1)}
	return s
}

// owner describes the sidecar that wrote a status.
func (c *Config) owner(status []byte) election.Owner {
	other, err := election.DecodeController(status)
	if err != nil {
		return election.Owner{Gone: true} // an invalid status belongs to no sidecar, and must not keep us out
	}
	o := election.Owner{
		Ours: other.Incarnation == c.Incarnation,
		Gone: c.Predecessor != "" && other.Incarnation == c.Predecessor, // the lock on the state directory proves that it is gone
		Who:  fmt.Sprintf("the sidecar with PID %d on %.100s", other.PID, other.Host),
	}
	if !o.Gone && c.Alive != nil {
		alive, known := c.Alive(other)
		o.Gone = known && !alive
	}
	if ttl, err := time.ParseDuration(other.LeaseTTL); err == nil && ttl > 0 {
		o.TTL = ttl
	}
	return o
}

// Run takes part in the election until ctx ends. Then it ends its reign, if it has one, as a
// planned move: it returns after the controller is gone and the lease released. If the cause of
// ctx's end is [election.ErrDetach], the controller keeps running for a later process to adopt, and
// lease and status stay. Run returns [election.ErrNameTaken] (wrapped) if another live process has
// the name.
func (s *Sidecar) Run(ctx context.Context) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)

	detaching := func() bool { return errors.Is(context.Cause(ctx), election.ErrDetach) }
	s.presence.Leave = detaching
	entered := make(chan struct{})
	s.presence.Entered = func(string) { close(entered) }
	s.presence.Set(election.ControllerKey(s.cfg.Name), s.board.get().Encode())

	// The presence outlives the last reign, whose end it reports.
	present, leave := context.WithCancel(context.WithoutCancel(ctx))
	defer leave()
	var presence, helpers sync.WaitGroup
	var taken error
	presence.Go(func() {
		if err := s.presence.Run(present); err != nil {
			taken = err
			end(err)
		}
	})
	helpers.Go(func() { s.hooks.loop(present) })
	helpers.Go(func() { s.chronicle.loop(present) })

	helpers.Go(func() { s.watchStill(present) })

	fitness, stopFitness := context.WithCancel(ctx)
	// A reign of an earlier process is resumed before the name is ours and before anything is
	// checked: its lease is running out, and nobody else can have it.
	s.elector.Ready = func(ctx context.Context) {
		select {
		case <-entered:
		case <-ctx.Done():
			return
		}
		checked := make(chan struct{})
		helpers.Go(func() {
			s.settle(fitness)
			s.checkFitness(fitness)
			close(checked)
			s.watchFitness(fitness)
		})
		limit := time.NewTimer(fitnessTimeout) // after that, the cluster is followed even without a verdict
		defer limit.Stop()
		select {
		case <-checked:
		case <-limit.C:
		case <-ctx.Done():
		}
	}
	s.elector.Run(ctx)

	stopFitness()
	leave()
	presence.Wait()
	helpers.Wait()
	return taken
}

// Promise promises the holder a.Controller, which cannot reach the store, not to claim its lease
// for a while. It returns an error if this side cannot promise that.
func (s *Sidecar) Promise(a election.Ask) error {
	err := s.elector.Promise(a, s.View().Snapshot)
	if err == nil && s.board.promise(a) {
		s.cfg.Log.Warn().Str("holder", a.Controller).Uint64("term", uint64(a.Term)).
			Msg("promised a holder that cannot reach the store not to claim its lease")
	}
	return err
}

// self describes this candidate to the elector.
func (s *Sidecar) self() election.Self {
	fit, why := s.board.fitness()
	return election.Self{
		Name: s.cfg.Name, Incarnation: s.cfg.Incarnation, Priority: s.cfg.Priority, NoFailover: s.cfg.NoFailover,
		Fit: fit, Unfit: why,
	}
}

// observe derives a state from what the elector sees while this side does not hold the lease.
func (s *Sidecar) observe(seen election.Status) {
	if changed := s.board.seeStore(seen); changed {
		if seen.Store != nil {
			s.cfg.Log.Warn().Err(seen.Store).Msg("store unreachable")
		} else {
			s.cfg.Log.Info().Msg("store reachable")
		}
	}
	fit, why := s.board.fitness()
	if a := seen.Snapshot.Active; fit && seen.Store == nil && a != nil && a.State == election.StateStopping {
		s.prepare()
	}
	s.tellOfKeys(seen.Snapshot)
	s.standing(seen)
	switch {
	case seen.Yielding:
		s.enter(election.StateYielding, also(seen.Decision.Why, s.board.get().FailedStart()))
		return // the role word stays absent: passive only once another is active
	case seen.Store == nil && seen.Snapshot.Pause != nil:
		s.enter(election.StatePaused, seen.Decision.Why)
	case seen.Decision.Code == election.CodeStandby:
		s.enter(election.StateStandby, seen.Decision.Why)
	case !fit:
		s.enter(election.StateUnfit, why)
	case seen.Decision.Code == election.CodeUnlisted:
		if s.enter(election.StateUnlisted, seen.Decision.Why) {
			s.cfg.Log.Error().Str("reason", seen.Decision.Why).Msg("nobody is active, and this unlisted passive does not take over by itself")
		}
	default:
		// What the start needs is here, so it may succeed now; but nobody should count on it.
		s.enter(election.StateReady, s.board.get().FailedStart())
	}
	s.bePassive()
}

// also joins two reasons, of which the second may be empty.
func also(reason, more string) string {
	if more == "" {
		return reason
	}
	return reason + "; " + more
}

// prepare prepares a start that is near.
func (s *Sidecar) prepare() {
	if p, ok := s.cfg.Controller.(Preparer); ok {
		p.Prepare()
	}
}

// bePassive publishes the role passive.
func (s *Sidecar) bePassive() {
	s.shutDoor(context.Background(), shutWithin)
	s.presence.Set(election.RoleWordKey(s.cfg.Name), []byte(election.RolePassive))
	if s.board.announce(election.RolePassive) {
		s.hooks.add("on_passive", s.event(0, ""))
	}
}

// standing publishes whether this side is not counted as fit for a while, and the term that it has
// outlived.
func (s *Sidecar) standing(seen election.Status) {
	if status, changed := s.board.standing(seen); changed {
		s.presence.Set(election.ControllerKey(s.cfg.Name), status.Encode())
	}
}

// tellOfKeys logs once which keys of the store are unreadable.
func (s *Sidecar) tellOfKeys(snap election.Snapshot) {
	bad := snap.TermBad != nil
	if s.board.termBad.Swap(bad) == bad || !bad {
		return
	}
	s.cfg.Log.Error().Err(snap.TermBad).Str("key", "term").
		Msg("cannot read the key term: the active writes it again, and a passive uses the highest term that it knows")
}

// enter enters a state, and logs and publishes the transition once. It reports whether the state is
// new.
func (s *Sidecar) enter(state election.State, reason string) bool {
	status, old, changed := s.board.enter(state, reason)
	if changed {
		s.presence.Set(election.ControllerKey(s.cfg.Name), status.Encode())
	}
	if s.board.tell(state, reason, changed && old != state) {
		s.cfg.Log.Info().Str("role", string(status.Role)).Str("state", string(state)).
			Uint64("term", uint64(s.board.term())).Str("reason", reason).Msg(transition(old, state))
	}
	return changed && old != state
}

// transition words a change of state, or of the reason for one.
func transition(old, state election.State) string {
	switch old {
	case "":
		return string(state)
	case state:
		return string(state) + " for another reason"
	}
	return string(old) + " → " + string(state)
}

// stillness is how late this process must be before that is logged.
const stillness = 2 * time.Second

// watchStill logs that this process did not run for a while, because it was frozen or starved.
// Otherwise the consequences would look like faults of everything else.
func (s *Sidecar) watchStill(ctx context.Context) {
	every := max(500*time.Millisecond, s.cfg.Timing.RenewEvery/4) // a long lease does not end in a short suspension
	for last := s.cfg.Clock(); sleep(ctx, every); {
		now := s.cfg.Clock()
		if still := now.Sub(last) - every; still >= stillness {
			s.cfg.Log.Warn().Dur("still_ms", still).Msg("this process stood still")
		}
		last = now
	}
}

// settle ends what an earlier process of this sidecar left, or waits until it cannot run any more.
// Until then this side is unfit.
func (s *Sidecar) settle(ctx context.Context) {
	settler, ok := s.cfg.Controller.(Settler)
	if !ok {
		return
	}
	s.board.setFitness(errors.New("waiting until nothing runs that an earlier process of this sidecar started"))
	for {
		err := settler.Settle(ctx)
		switch {
		case err == nil || ctx.Err() != nil:
			return
		case errors.Is(err, election.ErrUnproven):
			s.cfg.Log.Error().Err(err).Msg("cannot prove that the last controller is gone, but its deadline has passed; contending")
			return
		}
		s.board.setFitness(err)
		s.cfg.Log.Error().Err(err).Msg("cannot end what an earlier process left; retrying")
		sleep(ctx, settleAgain)
	}
}

// watchFitness keeps the fitness of this candidate up to date while it does not reign.
func (s *Sidecar) watchFitness(ctx context.Context) {
	tick := time.NewTicker(max(fitnessEvery, s.cfg.Timing.RenewEvery)) // no more often than the store is read
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.checkFitness(ctx)
		}
	}
}

const (
	fitnessEvery   = time.Second
	fitnessTimeout = 2 * time.Second
	settleAgain    = time.Second
)

func (s *Sidecar) checkFitness(ctx context.Context) {
	if s.board.reigning() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, fitnessTimeout)
	defer cancel()
	var errs []error
	if s.cfg.PreFlight != nil {
		errs = append(errs, s.cfg.PreFlight(ctx))
	}
	if s.cfg.Fence != nil {
		errs = append(errs, s.cfg.Fence.Ready(ctx))
	}
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return
	}
	s.board.setFitness(errors.Join(errs...))
}

// event returns the environment of a hook.
func (s *Sidecar) event(term election.Term, reason string) []string {
	return []string{
		"TANIST_CLUSTER=" + s.cfg.Cluster, "TANIST_NAME=" + s.cfg.Name, "TANIST_URL=" + s.cfg.URL,
		fmt.Sprintf("TANIST_TERM=%d", term), "TANIST_REASON=" + reason,
	}
}
