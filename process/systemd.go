package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/renameio/v2"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// SystemdConfig describes a program that is a unit of systemd.
type SystemdConfig struct {
	// Unit is the name of a service, such as orders.service. It must have Restart=no, because who restarts it is not to be
	// decided by two, and it should not be enabled: Tanist starts it.
	Unit string
	// EnvFile is where what Start adds to the environment is written, with mode 0600. The unit must read it: EnvironmentFile=-PATH.
	// It is needed if Start is given anything to add.
	EnvFile string
	// Address is the D-Bus address of the service manager; empty means the one of the system.
	Address string
	// StartWithin is how long the unit may take to start; 0 means 30 s.
	StartWithin time.Duration
	// Self, StateDir, AnswerWithin and the watchdog are as in Config.
	Self            string
	StateDir        string
	AnswerWithin    time.Duration
	Watchdog        Watchdog
	WatchdogPath    string
	WatchdogTimeout time.Duration
	Log             zerolog.Logger
}

// Systemd keeps a unit of systemd. systemd starts and stops it; a guard holds the deadline and kills the unit's cgroup, so that the
// sidecar, the bus and systemd itself may all be stuck. Its methods are safe for concurrent use.
type Systemd struct {
	driver
	unit SystemdConfig

	exitMu sync.Mutex
	exitOf *kept
	words  string
}

// NewSystemd makes a driver for the unit that cfg describes. It starts nothing.
func NewSystemd(cfg SystemdConfig) *Systemd {
	s := &Systemd{unit: cfg}
	s.driver = driver{cfg: Config{
		Command: []string{cfg.Unit}, Self: cfg.Self, StateDir: cfg.StateDir, AnswerWithin: cfg.AnswerWithin, Log: cfg.Log,
		Watchdog: cfg.Watchdog, WatchdogPath: cfg.WatchdogPath, WatchdogTimeout: cfg.WatchdogTimeout,
		Output: Output{File: os.DevNull},
	}}
	return s
}

// callWithin bounds each call over the bus.
const callWithin = 5 * time.Second

// Start starts the unit; otherwise it is as [Exec.Start].
func (s *Systemd) Start(ctx context.Context, env []string, deadline election.Instant) error {
	fail := func(err error) error { return fmt.Errorf("cannot start %s: %w", s.unit.Unit, err) }
	m, err := s.connect(ctx)
	if err != nil {
		return fail(err)
	}
	defer m.close()
	dir, err := m.check(ctx, s.unit, len(env) > 0)
	if err != nil {
		return fail(err)
	}
	if len(env) > 0 {
		if err := renameio.WriteFile(s.unit.EnvFile, envFile(env), 0o600); err != nil {
			return fail(fmt.Errorf("its environment can't be written: %v", err))
		}
	}
	s.mu.Lock()
	s.plan = func(sp *spec) error {
		sp.mode, sp.cgroup = modeUnit, dir
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
	pid, err := m.start(start, s.unit.Unit, k.exited)
	if err == nil {
		if got, e := m.text(ctx, s.unit.Unit, "Service", "ControlGroup"); e != nil || !strings.HasSuffix(dir, got) {
			err = errors.Join(fmt.Errorf("it runs in another cgroup (%s) than was to be expected (%s)", got, dir), e)
		}
	}
	if err != nil {
		undo := context.WithoutCancel(ctx)
		return fail(errors.Join(err, s.Stop(undo, 0)))
	}
	k.mu.Lock()
	k.pid = pid
	k.mu.Unlock()
	k.send(record{kind: kindRunning, a: int64(pid)})
	return nil
}

// Stop has systemd stop the unit, as the unit says; otherwise it is as [Exec.Stop].
func (s *Systemd) Stop(ctx context.Context, grace time.Duration) error {
	k := s.current()
	if k == nil {
		return nil
	}
	asked := make(chan error, 1)
	go func() {
		asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), callWithin)
		defer cancel()
		m, err := s.connect(asking)
		if err == nil {
			defer m.close()
			err = m.stop(asking, s.unit.Unit)
		}
		if err != nil {
			s.unit.Log.Warn().Err(err).Str("unit", s.unit.Unit).Msg("Cannot have systemd stop the unit: it will be killed")
		}
		asked <- err
	}()
	if err := k.stop(ctx, grace); err != nil {
		return err
	}
	// The cgroup is empty. What the unit's ExecStopPost may run has to be over as well, and no job may start it again.
	if err := <-asked; err != nil {
		return fmt.Errorf("cannot confirm the stop of %s: nothing runs in its cgroup, but systemd does not answer: %w", s.unit.Unit, err)
	}
	m, err := s.connect(ctx)
	if err != nil {
		return fmt.Errorf("cannot confirm the stop of %s: %w", s.unit.Unit, err)
	}
	defer m.close()
	if err := m.awaitStopped(ctx, s.unit.Unit); err != nil {
		return fmt.Errorf("cannot confirm the stop of %s: %w", s.unit.Unit, err)
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
	m, err := s.connect(ctx)
	if err != nil {
		return words
	}
	defer m.close()
	if w, err := m.exit(ctx, s.unit.Unit); err == nil {
		s.exitOf, s.words = k, w
		return w
	}
	return words
}

// manager is a connection to systemd.
type manager struct {
	conn    *dbus.Conn
	private bool // straight to systemd, without a bus between
}

const (
	systemdName    = "org.freedesktop.systemd1"
	systemdPath    = dbus.ObjectPath("/org/freedesktop/systemd1")
	systemdPrivate = "/run/systemd/private" // for root; works also while the bus is down
)

func (s *Systemd) connect(ctx context.Context) (*manager, error) {
	address := s.unit.Address
	if address == "" {
		address = "unix:path=" + systemdPrivate
		if _, err := os.Stat(systemdPrivate); err != nil || os.Geteuid() != 0 {
			conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
			if err != nil {
				return nil, fmt.Errorf("systemd can't be reached: %v", err)
			}
			return &manager{conn: conn}, nil
		}
	}
	conn, err := dbus.Dial(address, dbus.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("systemd can't be reached: %v", err)
	}
	if err := conn.Auth(nil); err != nil {
		return nil, errors.Join(fmt.Errorf("systemd can't be reached: %v", err), conn.Close())
	}
	m := &manager{conn: conn, private: strings.HasSuffix(address, "/private")}
	greet := m.wake
	if !m.private {
		greet = func(context.Context) error { return conn.Hello() }
	}
	if err := greet(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("systemd can't be reached: %v", err), conn.Close())
	}
	return m, nil
}

// wake makes sure that systemd listens. When the first call comes close behind the authentication, systemd (252) reads both
// at once and looks at the call only when more comes.
func (m *manager) wake(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, callWithin, errors.New("it does not answer"))
	defer cancel()
	answers := make(chan *dbus.Call, 64)
	for {
		m.conn.Object(systemdName, systemdPath).GoWithContext(ctx, "org.freedesktop.DBus.Peer.Ping", 0, answers)
		select {
		case a := <-answers:
			return a.Err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(callWithin / 50):
		}
	}
}

func (m *manager) close() { _ = m.conn.Close() }

func (m *manager) call(ctx context.Context, path dbus.ObjectPath, method string, args ...any) *dbus.Call {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	return m.conn.Object(systemdName, path).CallWithContext(ctx, method, 0, args...)
}

func (m *manager) property(ctx context.Context, unit, face, name string) (any, error) {
	path := systemdPath
	if unit != "" {
		if err := m.call(ctx, systemdPath, systemdName+".Manager.LoadUnit", unit).Store(&path); err != nil {
			return nil, fmt.Errorf("systemd does not tell about it: %v", err)
		}
	}
	var v dbus.Variant
	if err := m.call(ctx, path, "org.freedesktop.DBus.Properties.Get", systemdName+"."+face, name).Store(&v); err != nil {
		return nil, fmt.Errorf("systemd does not tell its %s: %v", name, err)
	}
	return v.Value(), nil
}

func (m *manager) text(ctx context.Context, unit, face, name string) (string, error) {
	v, err := m.property(ctx, unit, face, name)
	s, _ := v.(string)
	return s, err
}

// check refuses units that can't be kept, and returns the directory of the cgroup that the unit will have.
func (m *manager) check(ctx context.Context, cfg SystemdConfig, needsEnv bool) (string, error) {
	if !strings.HasSuffix(cfg.Unit, ".service") {
		return "", errors.New("only services can be kept: its name must end in .service")
	}
	load, err := m.text(ctx, cfg.Unit, "Unit", "LoadState")
	if err != nil {
		return "", err
	}
	if load != "loaded" {
		return "", fmt.Errorf("systemd has not loaded it: its state is %q; is there such a unit?", load)
	}
	active, err := m.text(ctx, cfg.Unit, "Unit", "ActiveState")
	if err != nil {
		return "", err
	}
	if active != "inactive" && active != "failed" {
		return "", fmt.Errorf("it is %s already, started by somebody else: stop it (and disable it)", active)
	}
	restart, err := m.text(ctx, cfg.Unit, "Service", "Restart")
	if err != nil {
		return "", err
	}
	if restart != "no" {
		return "", fmt.Errorf("it has Restart=%s, so that systemd would start it again behind our back: set Restart=no", restart)
	}
	if needsEnv {
		if cfg.EnvFile == "" {
			return "", errors.New("there is no way to pass on its environment: name a file for it, and let the unit read that (EnvironmentFile=-PATH)")
		}
		files, err := m.property(ctx, cfg.Unit, "Service", "EnvironmentFiles")
		if err != nil {
			return "", err
		}
		pairs, _ := files.([][]any)
		if !slices.ContainsFunc(pairs, func(p []any) bool { return len(p) > 0 && p[0] == cfg.EnvFile }) {
			return "", fmt.Errorf("it does not read its environment: add EnvironmentFile=-%s", cfg.EnvFile)
		}
	}
	root, err := m.text(ctx, "", "Manager", "ControlGroup")
	if err != nil {
		return "", err
	}
	slice, err := m.text(ctx, cfg.Unit, "Service", "Slice")
	if err != nil {
		return "", err
	}
	if root == "/" {
		root = ""
	}
	return cgroupDir(root + sliceDir(slice) + "/" + cfg.Unit)
}

// sliceDir returns where a slice is: a-b.slice is in a.slice.
func sliceDir(slice string) string {
	name := strings.TrimSuffix(slice, ".slice")
	if name == "-" || name == "" {
		return ""
	}
	var dir strings.Builder
	for i := range len(name) {
		if name[i] == '-' {
			dir.WriteString("/" + name[:i] + ".slice")
		}
	}
	dir.WriteString("/" + name + ".slice")
	return dir.String()
}

// start starts the unit, waits for the job, and returns the PID of the main process.
func (m *manager) start(ctx context.Context, unit string, exited <-chan struct{}) (int, error) {
	signals := make(chan *dbus.Signal, 256)
	m.conn.Signal(signals)
	if !m.private {
		if err := m.conn.AddMatchSignalContext(ctx, dbus.WithMatchInterface(systemdName+".Manager"), dbus.WithMatchMember("JobRemoved")); err != nil {
			return 0, fmt.Errorf("systemd won't tell about the start: %v", err)
		}
	}
	if err := m.call(ctx, systemdPath, systemdName+".Manager.Subscribe").Err; err != nil {
		return 0, fmt.Errorf("systemd won't tell about the start: %v", err)
	}
	_ = m.call(ctx, systemdPath, systemdName+".Manager.ResetFailedUnit", unit).Err // of an earlier run
	var job dbus.ObjectPath
	if err := m.call(ctx, systemdPath, systemdName+".Manager.StartUnit", unit, "replace").Store(&job); err != nil {
		return 0, fmt.Errorf("systemd refused: %v", err)
	}
	for {
		select {
		case sig, ok := <-signals:
			if !ok {
				return 0, errors.New("systemd hung up")
			}
			if sig.Name != systemdName+".Manager.JobRemoved" || len(sig.Body) < 4 || sig.Body[1] != job {
				continue
			}
			if sig.Body[3] != "done" {
				return 0, fmt.Errorf("its start ended as %q: see journalctl -u %s", sig.Body[3], unit)
			}
			v, err := m.property(ctx, unit, "Service", "MainPID")
			pid, _ := v.(uint32)
			if err == nil && pid == 0 {
				err = errors.New("it has ended already, or has no main process")
			}
			return int(pid), err
		case <-exited:
			return 0, errors.New("it was killed before it ran: the lease deadline passed")
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

func (m *manager) stop(ctx context.Context, unit string) error {
	if err := m.call(ctx, systemdPath, systemdName+".Manager.StopUnit", unit, "replace").Err; err != nil {
		return fmt.Errorf("systemd refused: %v", err)
	}
	return nil
}

// awaitStopped waits until systemd is done with the unit, which mostly it is at once.
func (m *manager) awaitStopped(ctx context.Context, unit string) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		state, err := m.text(ctx, unit, "Unit", "ActiveState")
		if err != nil {
			return err
		}
		if state == "inactive" || state == "failed" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; systemd calls it %s", context.Cause(ctx), state)
		case <-time.After(pause):
		}
	}
}

// exit tells how the main process ended.
func (m *manager) exit(ctx context.Context, unit string) (string, error) {
	code, err := m.property(ctx, unit, "Service", "ExecMainCode")
	if err != nil {
		return "", err
	}
	status, err := m.property(ctx, unit, "Service", "ExecMainStatus")
	if err != nil {
		return "", err
	}
	how, _ := code.(int32)
	n, _ := status.(int32)
	switch how {
	case 1: // CLD_EXITED
		return fmt.Sprintf("exit status %d", n), nil
	case 2, 3: // CLD_KILLED, CLD_DUMPED
		return exitWords(waitStatusOfSignal(int(n), how == 3), causeNone), nil
	}
	return "", errors.New("it has not ended")
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
