package unit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/tanist/tanist/process/internal/kernel"
	"github.com/tanist/tanist/process/internal/wire"
)

// CallWithin bounds each call over the bus.
const CallWithin = 5 * time.Second

// Manager is a connection to systemd.
type Manager struct {
	conn    *dbus.Conn
	private bool // straight to systemd, without a bus between
}

const (
	systemdName    = "org.freedesktop.systemd1"
	systemdPath    = dbus.ObjectPath("/org/freedesktop/systemd1")
	systemdPrivate = "/run/systemd/private" // for root; works also while the bus is down
)

// Connect reaches the service manager at address; empty means that of the system.
func Connect(ctx context.Context, address string) (*Manager, error) {
	if address == "" {
		address = "unix:path=" + systemdPrivate
		if _, err := os.Stat(systemdPrivate); err != nil || os.Geteuid() != 0 {
			conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
			if err != nil {
				return nil, fmt.Errorf("systemd can't be reached: %v", err)
			}
			return &Manager{conn: conn}, nil
		}
	}
	conn, err := dbus.Dial(address, dbus.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("systemd can't be reached: %v", err)
	}
	if err := conn.Auth(nil); err != nil {
		return nil, errors.Join(fmt.Errorf("systemd can't be reached: %v", err), conn.Close())
	}
	m := &Manager{conn: conn, private: strings.HasSuffix(address, "/private")}
	greet := m.wake
	if !m.private {
		greet = func(context.Context) error { return conn.Hello() }
	}
	if err := greet(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("systemd can't be reached: %v", err), conn.Close())
	}
	return m, nil
}

// wake makes sure that systemd listens. When the first call comes close behind the authentication,
// systemd (252) reads both at once and looks at the call only when more comes.
func (m *Manager) wake(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, CallWithin, errors.New("it does not answer"))
	defer cancel()
	answers := make(chan *dbus.Call, 64)
	for {
		m.conn.Object(systemdName, systemdPath).GoWithContext(ctx, "org.freedesktop.DBus.Peer.Ping", 0, answers)
		select {
		case a := <-answers:
			return a.Err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(CallWithin / 50):
		}
	}
}

// Close hangs up.
func (m *Manager) Close() { _ = m.conn.Close() }

func (m *Manager) call(ctx context.Context, path dbus.ObjectPath, method string, args ...any) *dbus.Call {
	ctx, cancel := context.WithTimeout(ctx, CallWithin)
	defer cancel()
	return m.conn.Object(systemdName, path).CallWithContext(ctx, method, 0, args...)
}

func (m *Manager) property(ctx context.Context, unit, face, name string) (any, error) {
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

func (m *Manager) text(ctx context.Context, unit, face, name string) (string, error) {
	v, err := m.property(ctx, unit, face, name)
	s, _ := v.(string)
	return s, err
}

// Suits returns nil if Tanist can run a unit: if nothing else starts it. envFile is what
// it has to read its environment from; empty means nothing.
func (m *Manager) Suits(ctx context.Context, name, envFile string) error {
	if !strings.HasSuffix(name, ".service") {
		return errors.New("only a service can be run: its name must end in .service")
	}
	load, err := m.text(ctx, name, "Unit", "LoadState")
	if err != nil {
		return err
	}
	if load != "loaded" {
		return fmt.Errorf("systemd has not loaded it: its state is %q; is there such a unit?", load)
	}
	restart, err := m.text(ctx, name, "Service", "Restart")
	if err != nil {
		return err
	}
	if restart != "no" {
		return fmt.Errorf("it has Restart=%s, so that systemd would start it again behind our back: set Restart=no", restart)
	}
	enabled, err := m.text(ctx, name, "Unit", "UnitFileState")
	if err != nil {
		return err
	}
	if strings.HasPrefix(enabled, "enabled") {
		return fmt.Errorf("it is %s, so that systemd starts it at boot: run systemctl disable %s", enabled, name)
	}
	for _, by := range []struct{ property, words string }{
		{"TriggeredBy", "is triggered by"}, {"WantedBy", "is wanted by"}, {"RequiredBy", "is required by"}, {"UpheldBy", "is upheld by"},
	} {
		v, err := m.property(ctx, name, "Unit", by.property)
		if err != nil && by.property == "UpheldBy" {
			continue // systemd before 249 has none
		} else if err != nil {
			return err
		}
		if others, _ := v.([]string); len(others) > 0 {
			return fmt.Errorf("it %s %s, so that systemd may start it behind our back: remove that", by.words, strings.Join(others, ", "))
		}
	}
	if envFile == "" {
		return nil
	}
	files, err := m.property(ctx, name, "Service", "EnvironmentFiles")
	if err != nil {
		return err
	}
	pairs, _ := files.([][]any)
	if !slices.ContainsFunc(pairs, func(p []any) bool { return len(p) > 0 && p[0] == envFile }) {
		return fmt.Errorf("it does not read its environment: add EnvironmentFile=-%s", envFile)
	}
	return nil
}

// Idle returns nil if the unit neither runs nor is about to.
func (m *Manager) Idle(ctx context.Context, name string) (bool, string, error) {
	state, err := m.text(ctx, name, "Unit", "ActiveState")
	if err != nil {
		return false, "", err
	}
	if state != "inactive" && state != "failed" {
		return false, state, nil
	}
	v, err := m.property(ctx, name, "Unit", "Job")
	if err != nil {
		return false, "", err
	}
	job, _ := v.([]any)
	if len(job) > 0 {
		if id, _ := job[0].(uint32); id != 0 {
			return false, "waiting for a job", nil
		}
	}
	return true, state, nil
}

// Cgroup returns the directory of the cgroup that a unit has, or will have.
func (m *Manager) Cgroup(ctx context.Context, name string) (string, error) {
	root, err := m.text(ctx, "", "Manager", "ControlGroup")
	if err != nil {
		return "", err
	}
	slice, err := m.text(ctx, name, "Service", "Slice")
	if err != nil {
		return "", err
	}
	if root == "/" {
		root = ""
	}
	return kernel.CgroupDir(root + sliceDir(slice) + "/" + name)
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

// Start starts the unit, waits for the job, and returns the PID of the main process.
func (m *Manager) Start(ctx context.Context, unit string, exited <-chan struct{}) (int, error) {
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
	// of an earlier run
	_ = m.call(ctx, systemdPath, systemdName+".Manager.ResetFailedUnit", unit).Err
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
			pid, err := m.MainPID(ctx, unit)
			if err == nil && pid == 0 {
				err = errors.New("it has ended already, or has no main process")
			}
			return pid, err
		case <-exited:
			return 0, errors.New("it was killed before it ran: the lease deadline passed")
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// MainPID returns the PID of the unit's main process, or 0.
func (m *Manager) MainPID(ctx context.Context, unit string) (int, error) {
	v, err := m.property(ctx, unit, "Service", "MainPID")
	pid, _ := v.(uint32)
	return int(pid), err
}

// ControlGroup returns the path of the cgroup that the unit runs in.
func (m *Manager) ControlGroup(ctx context.Context, unit string) (string, error) {
	return m.text(ctx, unit, "Service", "ControlGroup")
}

// Stop has systemd stop the unit, or cancel its start.
func (m *Manager) Stop(ctx context.Context, unit string) error {
	if err := m.call(ctx, systemdPath, systemdName+".Manager.StopUnit", unit, "replace").Err; err != nil {
		return fmt.Errorf("systemd refused: %v", err)
	}
	return nil
}

// Exit tells how the main process ended.
func (m *Manager) Exit(ctx context.Context, unit string) (string, error) {
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
		return wire.ExitWords(wire.WaitStatusOfSignal(int(n), how == 3), wire.CauseNone), nil
	}
	return "", errors.New("it has not ended")
}
