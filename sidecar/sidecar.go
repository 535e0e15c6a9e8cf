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

// Controller is the program that must be active once, and how it is started and force-stopped.
type Controller interface {
	// Start starts the program with env added to its environment. Nothing of it runs past deadline, whatever happens
	// to this process, unless Extend moves the deadline first. After an error, Stop still is called.
	Start(ctx context.Context, env []string, deadline election.Instant) error
	// Extend moves the deadline. It never blocks. A deadline that has passed is not moved any more; one in the past ends
	// the program at once.
	Extend(deadline election.Instant)
	// Exited is closed when the program's main process has ended, or can't be watched any more.
	Exited() <-chan struct{}
	// Exit says how it ended, in plain words.
	Exit() string
	// Stop ends the program: its stop signal first, KILL to the whole tree after grace, or at the deadline. It returns nil
	// only when no process of the tree is left. It may be called again.
	Stop(ctx context.Context, grace time.Duration) error
}

// Preparer is a [Controller] whose start can be made faster when it is seen coming.
type Preparer interface {
	// Prepare does what can be done ahead of Start. It never blocks, may be called often, and binds to nothing: if no Start
	// follows, it undoes itself.
	Prepare()
}

// Adopter is a [Controller] that outlives its sidecar until its deadline, and can be found again.
type Adopter interface {
	// Adopt takes up the program that an earlier process of this sidecar started. After an error, Stop still is called, and
	// ends what may be left of it.
	Adopt(ctx context.Context, deadline election.Instant) error
	// Detach lets go of the program without ending it. It runs on until its deadline.
	Detach() error
}

// Memory keeps, for a later process of this sidecar, what it needs to go on with a reign.
type Memory interface {
	// Save is called when a reign begins. A reign that can't be saved can't be resumed, nothing worse.
	Save(h election.Held) error
	// Clear is called when nothing of the reign is left.
	Clear() error
}

// Fence keeps every term but one out of the metadata repository.
type Fence interface {
	// Raise makes term the only one that the repository accepts, and returns what the controller needs in its environment to
	// log in. When it has returned nil, no statement of an older term commits any more. If the repository is
	// at a higher term, the error has the method RepositoryTerm() election.Term.
	Raise(ctx context.Context, term election.Term) (env []string, err error)
	// Assert returns an error with the method Superseded() bool if the repository belongs to another term; any
	// other error means that it can't be told.
	Assert(ctx context.Context, term election.Term) error
	// Close shuts the repository for term, after its controller is gone. It spares the next one some work.
	Close(ctx context.Context, term election.Term) error
	// Ready reports whether Raise could be carried out from here.
	Ready(ctx context.Context) error
}

// Health checks the controller while it serves.
type Health interface {
	// Run checks until ctx ends, and reports the first verdict and every change.
	Run(ctx context.Context, report func(healthy bool, detail string, took time.Duration))
}

// Config is what a sidecar is made of. Nothing in it is changed after New.
type Config struct {
	Cluster    string
	Name       string
	URL        string // what users reach
	API        string // base URL of this sidecar's REST interface; may be empty
	Version    string
	Host       string
	PID        int
	Priority   int
	NoFailover bool

	Incarnation string // unique per start
	Backend     election.Backend
	Timing      election.Timing
	Clock       election.Clock // nil: election.BootClock
	Raw         election.Clock // nil: the rate of Clock is not watched; set to election.RawClock if Clock is nil too

	OnStoreLoss election.StoreLoss
	// Vouch asks every passive of a to leave this holder alone, for [election.StoreLossFailsafe].
	Vouch func(ctx context.Context, a election.Ask) error

	Memory Memory         // nil: a later process starts anew
	Resume *election.Held // what an earlier process left; Incarnation is its own then

	Controller Controller
	Health     Health // nil: only the exit of the controller counts
	Fence      Fence  // nil: no repository
	// Port returns nil when the startup port accepts, and otherwise waits until ctx ends.
	Port func(ctx context.Context) error
	// PreFlight tells why the controller could not be started here; it is asked while passive. nil: always fit.
	PreFlight func(ctx context.Context) error

	StartTimeout time.Duration
	StopTimeout  time.Duration
	Drain        time.Duration // between the end of serving, made known, and the stop of a planned end
	YieldWait    time.Duration
	// FailoverInterval: see [election.Elector].
	FailoverInterval time.Duration
	RestartLocal     int           // restarts in place before yielding
	RestartWithin    time.Duration // within so long
	FenceTimeout     time.Duration // how long a repository that can't be fenced is tried before the lease is given up

	// Hook runs what the operator wants done at an event: on_active, on_passive, pre_start, on_stop_failure (once per stop
	// that can't be confirmed, while it is tried again). An error of pre_start prevents
	// the start. nil: nothing.
	Hook func(ctx context.Context, event string, env []string) error

	// SameProcess reports whether the process that wrote c still runs, as far as can be told from here; known is
	// false if it can't (another host).
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
}

// New makes a sidecar; [Sidecar.Run] starts it.
func New(cfg Config) *Sidecar {
	if cfg.Clock == nil {
		cfg.Clock, cfg.Raw = election.BootClock, election.RawClock
	}
	s := &Sidecar{cfg: cfg}
	s.cfg.Log = cfg.Log.With().Str("cluster", cfg.Cluster).Str("controller", cfg.Name).Logger()
	s.board.clock = cfg.Clock
	s.board.status = election.Controller{
		Name: cfg.Name, Incarnation: cfg.Incarnation, Role: election.RolePassive, State: election.StateUnfit, Health: "-",
		Reason: "starting up", Priority: cfg.Priority, NoFailover: cfg.NoFailover, URL: cfg.URL, API: cfg.API,
		Version: cfg.Version, Host: cfg.Host, PID: cfg.PID, Since: time.Now().UTC(), LeaseTTL: cfg.Timing.TTL.String(),
	}
	s.presence = &election.Presence{
		Store: cfg.Backend, TTL: cfg.Timing.TTL, Name: "controllers/" + cfg.Name,
		Mine: func(value []byte) bool {
			c, err := election.DecodeController(value)
			return err == nil && c.Incarnation == cfg.Incarnation
		},
		Dead: func(value []byte) bool {
			c, err := election.DecodeController(value)
			if err != nil {
				return true // nobody's status; a stranger's scribble must not keep us out
			}
			if cfg.Alive == nil {
				return false
			}
			alive, known := cfg.Alive(c)
			return known && !alive
		},
	}
	s.elector = &election.Elector{
		Backend: s.cfg.Backend, Timing: s.cfg.Timing, Clock: s.cfg.Clock, Raw: s.cfg.Raw, YieldWait: s.cfg.YieldWait, FailoverInterval: s.cfg.FailoverInterval,
		OnStoreLoss: s.cfg.OnStoreLoss, Vouch: s.cfg.Vouch, Resume: s.cfg.Resume,
		Self:    s.self,
		Record:  func() election.Active { return election.Active{URL: s.cfg.URL, API: s.cfg.API} },
		Lead:    s.lead,
		Observe: s.observe,
	}
	s.hooks.run = cfg.Hook
	s.hooks.log = s.cfg.Log
	s.chronicle = chronicle{keys: cfg.Backend, attempt: cfg.Timing.Attempt(), log: s.cfg.Log, wake: make(chan struct{}, 1)}
	return s
}

// Run takes part in the election until ctx ends; then it ends its reign, if it has one, as a planned move: it
// returns after the controller is gone and the lease released. If the cause of ctx's end is [election.ErrDetach], the
// controller runs on for a later process to take up, and lease and status are left as they are. Run returns [election.ErrNameTaken] (wrapped) if another live
// process has the name.
func (s *Sidecar) Run(ctx context.Context) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)

	detaching := func() bool { return errors.Is(context.Cause(ctx), election.ErrDetach) }
	s.presence.Keep = detaching
	entered := make(chan struct{})
	s.presence.Entered = func() { close(entered) }
	s.presence.Set("controllers/"+s.cfg.Name, s.board.get().Encode())

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

	select {
	case <-entered:
	case <-ctx.Done():
		leave()
		presence.Wait()
		helpers.Wait()
		return taken
	}

	fitness, stopFitness := context.WithCancel(ctx)
	helpers.Go(func() { s.watchFitness(fitness) })
	s.checkFitness(ctx)

	s.elector.Run(ctx)

	stopFitness()
	leave()
	presence.Wait()
	helpers.Wait()
	return taken
}

// StandBack promises the holder a.Controller to leave it alone for a while, because it can't reach the store. It refuses
// if this side can't promise that.
func (s *Sidecar) StandBack(a election.Ask) error {
	err := s.elector.StandBack(a, s.View().Snapshot)
	if err == nil && s.board.vouch(a) {
		s.cfg.Log.Warn().Str("reason", string(election.CodeVouched)).Uint64("term", uint64(a.Term)).
			Msg(a.Controller + " can't reach the store; it was promised to be left alone")
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

// observe turns what the elector sees while this side does not hold the lease into a state.
func (s *Sidecar) observe(seen election.Status) {
	if changed := s.board.seeStore(seen); changed {
		if seen.Store != nil {
			s.cfg.Log.Warn().Str("reason", string(election.CodeStoreAway)).Msg(seen.Decision.Why)
		} else {
			s.cfg.Log.Info().Msg("the store is reachable")
		}
	}
	fit, why := s.board.fitness()
	if a := seen.Snapshot.Active; fit && seen.Store == nil && a != nil && a.State == election.StateStopping {
		s.prepare()
	}
	switch {
	case seen.Yielding:
		s.enter(election.StateYielding, seen.Decision.Why)
		return // the role word stays absent: passive only once another is active
	case seen.Store == nil && seen.Snapshot.Pause != nil:
		s.enter(election.StatePaused, seen.Decision.Why)
	case !fit:
		s.enter(election.StateUnfit, why)
	default:
		s.enter(election.StateReady, "")
	}
	s.bePassive()
}

// prepare makes ready for a start that is near.
func (s *Sidecar) prepare() {
	if p, ok := s.cfg.Controller.(Preparer); ok {
		p.Prepare()
	}
}

// bePassive says so to the cluster.
func (s *Sidecar) bePassive() {
	s.presence.Set("role/"+s.cfg.Name, []byte(election.RolePassive))
	if s.board.announce(election.RolePassive) {
		s.hooks.add("on_passive", s.event(0, ""))
	}
}

// enter moves to a state, and logs and publishes the transition once.
func (s *Sidecar) enter(state election.State, reason string) {
	status, old, changed := s.board.enter(state, reason)
	if !changed {
		return
	}
	s.presence.Set("controllers/"+s.cfg.Name, status.Encode())
	if old != state {
		s.cfg.Log.Info().Str("role", string(status.Role)).Str("state", string(state)).
			Uint64("term", uint64(s.board.term())).Str("reason", reason).Msg(string(old) + " → " + string(state))
	}
}

// watchFitness keeps the fitness of this candidate up to date while it does not reign.
func (s *Sidecar) watchFitness(ctx context.Context) {
	tick := time.NewTicker(fitnessEvery)
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

// event is the environment of a hook.
func (s *Sidecar) event(term election.Term, reason string) []string {
	return []string{
		"TANIST_CLUSTER=" + s.cfg.Cluster, "TANIST_NAME=" + s.cfg.Name, "TANIST_URL=" + s.cfg.URL,
		fmt.Sprintf("TANIST_TERM=%d", term), "TANIST_REASON=" + reason,
	}
}
