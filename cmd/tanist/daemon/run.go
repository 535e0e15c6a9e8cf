package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/health"
	"github.com/tanist/tanist/process"
	"github.com/tanist/tanist/sidecar"
	"github.com/tanist/tanist/vip"
)

// RunOptions are the options of [Run], and the flags of `tanist run`.
type RunOptions struct {
	Command    []string
	Name       string // of the candidate; Complete chooses a default
	Profile    string
	URL        string
	User       string
	StopSignal string
	StopAfter  time.Duration
	Patience   time.Duration // zero: no limit
	VirtualIPs []string      // ADDRESS/LENGTH@INTERFACE, on this host while the command runs
	Once       bool          // end when the lease is lost, instead of waiting for the next turn
}

// Complete fills in the defaults and checks the options.
func (f *RunOptions) Complete() error {
	if f.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return exit.Errorf(exit.Usage, "cannot determine the host's name: %v: give --name", err)
		}
		f.Name = fmt.Sprintf("%.48s-%d", host, os.Getpid())
	}
	if err := election.CheckName(f.Name); err != nil {
		return exit.Errorf(exit.Usage, "--name: %v", err)
	}
	if n := stopSignal(f.StopSignal); n == 0 {
		return exit.Errorf(exit.Usage, "--stop-signal: there is no signal %q", f.StopSignal)
	}
	if f.StopAfter <= 0 {
		return exit.Errorf(exit.Usage, "--stop-timeout: it must be more than zero")
	}
	if f.URL != "" {
		if _, err := health.PortOf(f.URL); err != nil {
			return exit.Errorf(exit.Usage, "--url: %v", err)
		}
	}
	if _, err := f.addresses(); err != nil {
		return exit.With(exit.Usage, err)
	}
	if _, err := exec.LookPath(f.Command[0]); err != nil {
		return exit.Errorf(exit.NotFound, "%s: %v", f.Command[0], errors.Unwrap(err))
	}
	return nil
}

// addresses returns the virtual IPs.
func (f *RunOptions) addresses() ([]vip.Address, error) {
	var all []vip.Address
	for _, text := range f.VirtualIPs {
		a, err := vip.ParseAddress(text)
		if err != nil {
			return nil, fmt.Errorf("--vip: %v", err)
		}
		all = append(all, a)
	}
	if i := vip.Duplicate(all); i >= 0 {
		return nil, fmt.Errorf("--vip: %s is given twice", all[i].Prefix.Addr())
	}
	if u, err := url.Parse(f.URL); err == nil {
		return all, ownURL("--url", u, all)
	}
	return all, nil
}

// Run runs a command while it holds the lease of a cluster.
func Run(ctx context.Context, f RunOptions, where StoreConfig, self Self) (err error) {
	var down teardown
	defer down.unwind(&err)
	if where.Timing, err = where.Traits().Profile(f.Profile); err != nil {
		return exit.Errorf(exit.Usage, "--profile: %v", err)
	}
	where.Agents = false
	log := self.Log.With().Str("cluster", where.Cluster).Str("controller", f.Name).Logger()
	backend, err := OpenStore(where, log)
	if err != nil {
		return err
	}
	down.add(backend.Close)
	if err := CheckStore(ctx, backend, where); err != nil {
		return err
	}
	host, err := process.HostID()
	if err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	once := &turn{
		driver: process.New(process.Config{
			Command: f.Command, Inherit: inherited(where), NewPrivs: true, User: f.User, StopSignal: stopSignal(f.StopSignal), Log: log,
		}), end: end, once: f.Once,
	}
	told := make(chan os.Signal, 2)
	signal.Notify(told, slices.DeleteFunc([]os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT}, signal.Ignored)...)
	defer signal.Stop(told)
	down.beside(ctx,
		func(ctx context.Context) { once.obey(ctx, told, log) },
		once.driver.ForwardSignals,
		process.ReapOrphans,
		func(ctx context.Context) { runAnnouncer(ctx, backend) },
	)
	if f.Patience > 0 {
		late := time.AfterFunc(f.Patience, func() {
			if !once.held.Load() {
				end(exit.Errorf(exit.InProgress, "cannot acquire the lease of %s within %v", where.Cluster, f.Patience))
			}
		})
		defer late.Stop()
	}
	if snap, err := backend.Read(ctx); err == nil && snap.Active != nil { // for people; nothing depends on it
		log.Info().Str("holder", snap.Active.Controller).Uint64("term", uint64(snap.Active.Term)).Msg("waiting for the lease")
	}
	cfg := f.sidecar(where, self)
	cfg.Backend, cfg.Controller, cfg.Host, cfg.Alive = backend, once, host, processAlive(host)
	addresses, err := f.addresses()
	if err != nil {
		return exit.With(exit.Usage, err)
	}
	book, err := holdAddresses(ctx, addresses, "", log)
	if err != nil {
		return err
	}
	down.add(book.close)
	cfg.Door, cfg.PreFlight = book.door(), book.preFlight(nil)
	s := sidecar.New(cfg)
	book.showTo(s.ShowVirtualIPs)
	if err := s.Run(ctx); err != nil {
		if errors.Is(err, election.ErrNameTaken) {
			return exit.Errorf(exit.Config, "another live process of cluster %s is %s already: choose another --name", where.Cluster, f.Name)
		}
		return err
	}
	return once.outcome(context.Cause(ctx))
}

// sidecar returns the sidecar that the options describe.
func (f *RunOptions) sidecar(where StoreConfig, self Self) sidecar.Config {
	cfg := sidecar.Config{
		Cluster: where.Cluster, Name: f.Name, URL: f.URL, Version: self.Version, PID: os.Getpid(), Priority: 100,
		Incarnation: rand.Text(), Timing: where.Timing,
		Port:         func(context.Context) error { return nil },
		StartTimeout: startWithin, StopTimeout: f.StopAfter, KillTimeout: f.StopAfter, YieldWait: where.Timing.TTL, RestartWithin: time.Minute,
		Hook: func(context.Context, string, []string) error { return nil },
		Log:  self.Log.Logger, // it adds the names itself
	}
	if f.URL != "" {
		port, _ := health.PortOf(f.URL) // it has been checked
		cfg.Port = func(ctx context.Context) error { return health.WaitPort(ctx, port) }
	}
	return cfg
}

// inherited is what the command inherits. The variables that locate the store are ours.
func inherited(where StoreConfig) []string {
	if where.Store == "postgres" {
		return config.EnvFrom{"all"}.Inherited(os.Environ())
	}
	return config.ForCommand(os.Environ())
}

// startWithin bounds the start of a command with a published URL.
const startWithin = 30 * time.Second

// signalled is the end requested by SIGTERM or SIGINT.
type signalled struct{ syscall.Signal }

func (s *signalled) Error() string { return "told to end: " + s.String() }

var (
	errDone = errors.New("the command has ended")
	errLost = exit.With(exit.NotActive, errors.New("the lease was lost, and the command ended"))
	errLate = exit.With(exit.NotActive, errors.New("the lease was lost before the command was started"))
)

// turn adapts a command that may end by itself to the sidecar, which treats a controller's end as a
// failure: here it is the end of the run, with a clean release.
type turn struct {
	driver *process.Exec
	end    context.CancelCauseFunc
	once   bool
	held   atomic.Bool // the lease was held at some time
	over   atomic.Bool // the command ended by itself

	mu      sync.Mutex
	exited  chan struct{} // closed at an end that is not the command's own; the sidecar waits for it
	stopped bool
}

var _ sidecar.Controller = (*turn)(nil)

// obey ends the run at the first signal of told, and kills the command at each later one, until ctx
// ends.
func (t *turn) obey(ctx context.Context, told <-chan os.Signal, log zerolog.Logger) {
	for again := false; ; again = true {
		select {
		case s := <-told:
			if !again {
				t.end(&signalled{s.(syscall.Signal)})
				continue
			}
			log.Warn().Stringer("signal", s).Msg("second signal: killing the command")
			_ = t.driver.Stop(ctx, 0) // the running stop reports the outcome
		case <-ctx.Done():
			return
		}
	}
}

func (t *turn) Prepare() { t.driver.Prepare() }

func (t *turn) Start(ctx context.Context, env []string, deadline election.Instant) error {
	t.held.Store(true)
	exited := make(chan struct{})
	t.mu.Lock()
	t.exited, t.stopped = exited, false
	t.mu.Unlock()
	if err := t.driver.Start(ctx, env, deadline); err != nil {
		switch {
		case ctx.Err() != nil:
		case !errors.Is(err, process.ErrLate):
			t.end(exit.With(exit.Failure, err))
		case t.once:
			t.end(errLate)
		}
		return err
	}
	go func() { // ends with the command, which Stop ensures
		<-t.driver.Exited()
		t.mu.Lock()
		defer t.mu.Unlock()
		if !t.stopped && t.driver.EndedByItself() {
			t.over.Store(true)
			t.end(errDone)
			return
		}
		close(exited)
	}()
	return nil
}

func (t *turn) Extend(deadline election.Instant) { t.driver.Extend(deadline) }

func (t *turn) Exited() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.exited
}

func (t *turn) Exit() string { return t.driver.Exit() }

func (t *turn) Stop(ctx context.Context, grace time.Duration) error {
	t.mu.Lock()
	t.stopped = true
	t.mu.Unlock()
	if err := t.driver.Stop(ctx, grace); err != nil {
		return err
	}
	if t.once && !t.over.Load() {
		t.end(errLost) // unless an end was requested earlier
	}
	return nil
}

// outcome converts the way the run ended into an exit code.
func (t *turn) outcome(cause error) error {
	var asked *signalled
	code := t.driver.ExitCode()
	switch {
	case errors.Is(cause, errDone):
	case !errors.As(cause, &asked):
		return cause
	case code < 0: // not started, or unknown
		code = exit.Signal + int(asked.Signal)
	}
	if code == 0 {
		return nil
	}
	return exit.Command(code)
}
