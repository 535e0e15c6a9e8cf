package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/unit"
	"github.com/tanist/tanist/process/internal/wire"
)

// SystemdConfig describes a program that is a unit of systemd.
type SystemdConfig struct {
	// Unit is the name of a service, such as orders.service. It must have Restart=no, because who
	// restarts it is not to be decided by two, and it should not be enabled: Tanist starts it.
	Unit string
	// EnvFile is where what Start adds to the environment is written, with mode 0600. The unit must
	// read it: EnvironmentFile=-PATH. It is needed if Start is given anything to add.
	EnvFile string
	// Address is the D-Bus address of the service manager; empty means the one of the system.
	Address string
	// StartWithin is how long the unit may take to start; 0 means 30 s.
	StartWithin time.Duration
	// Self, StateDir, Identity, Lead, AnswerWithin and the watchdog are as in Config.
	Self            string
	StateDir        string
	Identity        Identity
	Lead            time.Duration
	AnswerWithin    time.Duration
	Watchdog        wire.Watchdog
	WatchdogPath    string
	WatchdogTimeout time.Duration
	Log             zerolog.Logger
}

// Systemd keeps a unit of systemd. systemd starts and stops it; a guard holds the deadline and
// kills the unit's cgroup, so that the sidecar, the bus and systemd itself may all be stuck. Its
// methods are safe for concurrent use.
type Systemd struct {
	driver
	unit SystemdConfig

	exitMu sync.Mutex
	exitOf *handle
	words  string
}

// NewSystemd makes a driver for the unit that cfg describes. It starts nothing.
func NewSystemd(cfg SystemdConfig) *Systemd {
	s := &Systemd{unit: cfg}
	s.driver = driver{unit: cfg.Unit, alone: election.BootClock(), outside: bySystemd{cfg}, cfg: Config{
		Command: []string{cfg.Unit}, Self: cfg.Self, StateDir: cfg.StateDir, Identity: cfg.Identity, Lead: cfg.Lead, AnswerWithin: cfg.AnswerWithin, Log: cfg.Log,
		Watchdog: cfg.Watchdog, WatchdogPath: cfg.WatchdogPath, WatchdogTimeout: cfg.WatchdogTimeout,
		Output: Output{File: os.DevNull},
	}}
	return s
}

// Start starts the unit; otherwise it is as [Exec.Start].
func (s *Systemd) Start(ctx context.Context, env []string, deadline election.Instant) error {
	fail := func(err error) error { return fmt.Errorf("cannot start %s: %w", s.unit.Unit, err) }
	if s.cfg.StateDir != "" { // what we started ourselves is not somebody else's
		if err := s.settleBefore(ctx); err != nil {
			return fail(err)
		}
	}
	m, err := unit.Connect(ctx, s.unit.Address)
	if err != nil {
		return fail(err)
	}
	defer m.Close()
	if len(env) > 0 && s.unit.EnvFile == "" {
		return fail(errors.New("there is no way to pass on its environment: name a file for it, and let the unit read that (EnvironmentFile=-PATH)"))
	}
	if err := m.Suits(ctx, s.unit.Unit, s.unit.EnvFile); err != nil {
		return fail(err)
	}
	if idle, state, err := m.Idle(ctx, s.unit.Unit); err != nil {
		return fail(err)
	} else if !idle {
		return fail(fmt.Errorf("it is %s already, started by somebody else: stop it (and disable it)", state))
	}
	dir, err := m.Cgroup(ctx, s.unit.Unit)
	if err != nil {
		return fail(err)
	}
	if len(env) > 0 {
		if err := renameio.WriteFile(s.unit.EnvFile, envFile(env), 0o600); err != nil {
			return fail(fmt.Errorf("its environment can't be written: %v", err))
		}
	}
	s.mu.Lock()
	s.plan = func(sp *wire.Spec) error {
		sp.Mode, sp.Cgroup = wire.ModeUnit, dir
		sp.Status = unit.Command(unit.StatusCommand, s.unit.Unit, s.unit.Address)
		sp.Kill = unit.Command(unit.StopCommand, s.unit.Unit, s.unit.Address)
		return nil
	}
	s.mu.Unlock()
	// The guard first: from the unit's first instruction on there is somebody to end it.
	if err := s.driver.Start(ctx, nil, deadline); err != nil {
		return err
	}
	k := s.current()
	within := s.unit.StartWithin
	if within <= 0 {
		within = startWithin
	}
	start, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("it did not start within %v", within))
	defer cancel()
	pid, err := m.Start(start, s.unit.Unit, k.exited)
	if err == nil {
		if got, e := m.ControlGroup(ctx, s.unit.Unit); e != nil || !strings.HasSuffix(dir, got) {
			err = errors.Join(fmt.Errorf("it runs in another cgroup (%s) than was to be expected (%s)", got, dir), e)
		}
	}
	if err != nil {
		undo := context.WithoutCancel(ctx)
		return fail(errors.Join(err, s.Stop(undo, 0)))
	}
	k.runs(pid)
	return nil
}

// Adopt also finds the main process of a unit that had not come up yet when its last sidecar ended;
// otherwise it is as [Exec.Adopt].
func (s *Systemd) Adopt(ctx context.Context) error {
	if err := s.driver.Adopt(ctx); err != nil {
		return err
	}
	if k := s.current(); k.mainPID() == 0 {
		go s.follow(k)
	}
	return nil
}

// follow waits for the main process of an adopted unit, so that its end is an event. A unit that
// will not come up any more is ended.
func (s *Systemd) follow(k *handle) {
	for {
		done := s.find(k)
		select {
		case <-k.exited:
			return
		case <-k.leave:
			return
		case <-time.After(50 * time.Millisecond):
		}
		if done {
			return
		}
	}
}

func (s *Systemd) find(k *handle) (done bool) {
	ctx, cancel := context.WithTimeout(context.Background(), unit.CallWithin)
	defer cancel()
	m, err := unit.Connect(ctx, s.unit.Address)
	if err != nil {
		return false
	}
	defer m.Close()
	idle, state, err := m.Idle(ctx, s.unit.Unit)
	switch {
	case err != nil:
		return false
	case idle:
		k.end(election.BootClock())
		return true
	case state != "active":
		return false
	}
	pid, err := m.MainPID(ctx, s.unit.Unit)
	if err != nil || pid == 0 {
		return false
	}
	k.runs(pid)
	return true
}

// Stop has systemd stop the unit, as the unit says; otherwise it is as [Exec.Stop].
func (s *Systemd) Stop(ctx context.Context, grace time.Duration) error {
	k := s.current()
	if k == nil {
		return nil
	}
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), unit.CallWithin)
		defer cancel()
		m, err := unit.Connect(asking, s.unit.Address)
		if err == nil {
			defer m.Close()
			err = m.Stop(asking, s.unit.Unit)
		}
		if err != nil {
			s.unit.Log.Warn().Err(err).Str("unit", s.unit.Unit).Msg("cannot stop the unit through systemd; killing it")
		}
	}()
	// Where the guard could prove nothing, systemd may: it also knows of a start that is still
	// queued, and drops it.
	if err := k.stop(ctx, grace); err != nil && !errors.Is(err, election.ErrUnproven) {
		return err
	}
	<-asked
	return s.confirm(ctx, k)
}

// confirm waits until systemd is done with the unit: what its ExecStopPost may run has to be over
// as well, and no job may start it again. A systemd that does not answer until the deadline has
// passed proves nothing.
func (s *Systemd) confirm(ctx context.Context, k *handle) error {
	fail := func(err error) error { return fmt.Errorf("cannot confirm the stop of %s: %w", s.unit.Unit, err) }
	k.mu.Lock()
	until := k.watch.deadline
	k.mu.Unlock()
	if until == election.Never {
		until = election.BootClock().Add(confirmWithin)
	}
	late := election.BootClock().Add(confirmWithin)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		state, err := s.state(ctx)
		now := election.BootClock()
		switch {
		case err == nil && state == "":
			return nil
		case err != nil && now >= until:
			return fail(fmt.Errorf("%w: nothing runs in its cgroup, but systemd does not answer: %v", election.ErrUnproven, err))
		case err == nil && now >= late:
			return fail(fmt.Errorf("systemd calls it %s", state))
		}
		select {
		case <-ctx.Done():
			return fail(errors.Join(context.Cause(ctx), err))
		case <-time.After(pause):
		}
	}
}

// state is what systemd calls the unit, "" if it neither runs nor is about to.
func (s *Systemd) state(ctx context.Context) (string, error) { return bySystemd{s.unit}.state(ctx) }

// bySystemd is what systemd says of a unit, asked by the sidecar when no guard is left to ask.
type bySystemd struct{ cfg SystemdConfig }

func (b bySystemd) state(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, unit.CallWithin)
	defer cancel()
	m, err := unit.Connect(ctx, b.cfg.Address)
	if err != nil {
		return "", err
	}
	defer m.Close()
	idle, state, err := m.Idle(ctx, b.cfg.Unit)
	if idle {
		return "", err
	}
	return state, err
}

func (b bySystemd) ask(ctx context.Context, _ origin) Verdict {
	state, err := b.state(ctx)
	switch {
	case err != nil:
		return Unknown
	case state == "":
		return Gone
	}
	return Running
}

func (b bySystemd) force(ctx context.Context, _ origin) {
	ctx, cancel := context.WithTimeout(ctx, unit.CallWithin)
	defer cancel()
	m, err := unit.Connect(ctx, b.cfg.Address)
	if err == nil {
		defer m.Close()
		err = m.Stop(ctx, b.cfg.Unit)
	}
	if err != nil {
		b.cfg.Log.Warn().Err(err).Str("unit", b.cfg.Unit).Msg("cannot stop the unit through systemd")
	}
}

// ErrNoSystemd says that there is no systemd to ask.
var ErrNoSystemd = errors.New("systemd was not asked about the unit")

// CheckUnit returns nil if the unit that cfg names suits: above all, if nothing but Tanist
// starts it. It starts nothing.
func CheckUnit(ctx context.Context, cfg SystemdConfig) error {
	m, err := unit.Connect(ctx, cfg.Address)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrNoSystemd, err)
	}
	defer m.Close()
	if err := m.Suits(ctx, cfg.Unit, cfg.EnvFile); err != nil {
		return fmt.Errorf("cannot keep %s: %w", cfg.Unit, err)
	}
	return nil
}

// Exit tells in plain words how the unit's main process ended; see [Exec.Exit].
func (s *Systemd) Exit() string {
	words := s.driver.Exit()
	if words != "ended" {
		return words
	}
	k := s.current()
	s.exitMu.Lock()
	defer s.exitMu.Unlock()
	if s.exitOf == k {
		return s.words
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	m, err := unit.Connect(ctx, s.unit.Address)
	if err != nil {
		return words
	}
	defer m.Close()
	if w, err := m.Exit(ctx, s.unit.Unit); err == nil {
		s.exitOf, s.words = k, w
		return w
	}
	return words
}

// envFile writes an environment in the syntax that EnvironmentFile= reads.
func envFile(env []string) []byte {
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "`", "\\`", `$`, `\$`)
	var b strings.Builder
	for _, kv := range lastOfEach(env) {
		key, value, _ := strings.Cut(kv, "=")
		fmt.Fprintf(&b, "%s=\"%s\"\n", key, quote.Replace(value))
	}
	return []byte(b.String())
}
