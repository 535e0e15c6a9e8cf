package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/kernel"
)

// startSystemd starts a user instance of the real systemd, in cgroups of its own, and returns its
// address and the directory for units.
func startSystemd(t *testing.T) (address, units string) {
	t.Helper()
	const binary = "/usr/lib/systemd/systemd"
	if _, err := os.Stat(binary); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and systemd")
	}
	dir := t.TempDir()
	units, run := filepath.Join(dir, "units"), filepath.Join(dir, "run")
	if err := errors.Join(os.Mkdir(units, 0o755), os.Mkdir(run, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"basic", "default", "shutdown"} {
		if err := os.WriteFile(filepath.Join(units, target+".target"), []byte("[Unit]\nDescription=test\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	name := fmt.Sprintf("tanist-test-systemd-%d", os.Getpid())
	cgroup, err := kernel.MakeCgroup(name)
	if err != nil {
		t.Skip(err)
	}
	script := `echo $$ >"$1/cgroup.procs"
		if [ -d /sys/fs/cgroup/systemd ]; then mkdir -p "/sys/fs/cgroup/systemd/$2" && echo $$ >"/sys/fs/cgroup/systemd/$2/cgroup.procs"; fi
		mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && exec ` + binary + ` --user --log-target=console`
	cmd := exec.Command("unshare", "-m", "sh", "-c", script, "systemd", cgroup, name)
	cmd.Env = []string{"XDG_RUNTIME_DIR=" + run, "SYSTEMD_UNIT_PATH=" + units + ":" + filepath.Join(dir, ".config/systemd/user"), "HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		group, err := kernel.OpenCgroup(cgroup)
		if err != nil {
			t.Error(err)
			return
		}
		defer group.Close()
		_ = group.Kill()
		<-ended
		eventually(t, "systemd is gone", func() bool { return !group.Populated() })
		if err := kernel.RemoveCgroup(cgroup); err != nil {
			t.Error(err)
		}
		if out, err := exec.Command("sh", "-c", `[ ! -d "/sys/fs/cgroup/systemd/$0" ] || find "/sys/fs/cgroup/systemd/$0" -depth -type d -exec rmdir {} +`, name).CombinedOutput(); err != nil {
			t.Logf("%v: %s", err, out)
		}
	})
	socket := filepath.Join(run, "systemd", "private")
	for limit := time.Now().Add(longEnough); ; time.Sleep(5 * time.Millisecond) {
		// the file is there a moment before anybody listens
		if conn, err := net.Dial("unix", socket); err == nil {
			_ = conn.Close()
			break
		}
		select {
		case <-ended:
			text, _ := os.ReadFile(log.Name())
			t.Skipf("systemd does not run here: %s", text)
		default:
		}
		if time.Now().After(limit) {
			t.Skip("systemd does not come up here")
		}
	}
	return "unix:path=" + socket, units
}

func writeUnit(t *testing.T, units, name, program, more string) SystemdConfig {
	t.Helper()
	file := filepath.Join(t.TempDir(), "program")
	env := filepath.Join(t.TempDir(), "env")
	text := fmt.Sprintf("[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/sh %s\nEnvironmentFile=-%s\nTimeoutStopSec=20\n%s\n", file, env, more)
	if err := errors.Join(os.WriteFile(file, []byte(program), 0o600), os.WriteFile(filepath.Join(units, name), []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	return SystemdConfig{Unit: name, EnvFile: env, Log: testLog(t)}
}

func TestSystemdContract(t *testing.T) {
	address, units := startSystemd(t)
	n := 0
	testContract(t, func(t *testing.T, program string) Driver {
		n++
		cfg := writeUnit(t, units, fmt.Sprintf("demo-%d.service", n), program, "")
		cfg.Address = address
		return NewSystemd(cfg)
	})
}

func TestSystemdUnitThatCannotBeKept(t *testing.T) {
	address, units := startSystemd(t)
	for name, test := range map[string]struct {
		more   string
		change func(*SystemdConfig)
		want   string
	}{
		"restarts":    {"Restart=always", func(*SystemdConfig) {}, "it has Restart=always"},
		"no unit":     {"", func(c *SystemdConfig) { c.Unit = "other.service" }, `systemd has not loaded it: its state is "not-found"`},
		"no service":  {"", func(c *SystemdConfig) { c.Unit = "basic.target" }, "only a service can be run"},
		"no file":     {"", func(c *SystemdConfig) { c.EnvFile = "" }, "name a file for it"},
		"other file":  {"", func(c *SystemdConfig) { c.EnvFile = "/nonexistent/env" }, "add EnvironmentFile=-/nonexistent/env"},
		"no systemd":  {"", func(c *SystemdConfig) { c.Address = "unix:path=/nonexistent/private" }, "systemd can't be reached"},
		"start fails": {"ExecStartPre=/bin/false", func(*SystemdConfig) {}, `its start ended as "failed"`},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := writeUnit(t, units, strings.ReplaceAll(name, " ", "-")+".service", polite, test.more)
			cfg.Address = address
			test.change(&cfg)
			d := NewSystemd(cfg)
			err := d.Start(t.Context(), []string{"A=1"}, soon(time.Minute))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("err = %v, want %s", err, test.want)
			}
			if d.current() != nil {
				if err := d.Stop(t.Context(), 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestSystemdExitWords(t *testing.T) {
	address, units := startSystemd(t)
	cfg := writeUnit(t, units, "demo.service", `while ! [ -e "$READY.end" ]; do : >"$READY"; sleep 0.05; done; exit 3`, "")
	cfg.Address = address
	d := NewSystemd(cfg)
	dir := t.TempDir()
	ready := filepath.Join(dir, `a $quoted"name`)
	if err := d.Start(t.Context(), []string{"READY=" + ready}, soon(time.Minute)); err != nil {
		t.Fatal(err)
	}
	awaitFile(t, ready)
	if unix.Kill(d.PID(), 0) != nil {
		t.Error("no such main process")
	}
	if err := os.WriteFile(ready+".end", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	awaitClosed(t, "exit", d.Exited())
	eventually(t, "systemd has noticed", func() bool { return d.Exit() == "exit status 3" })
	if err := d.Stop(t.Context(), 0); err != nil {
		t.Error(err)
	}
}

// A unit that somebody else starts, at boot or for a timer, would run unguarded.
func TestUnitThatOthersStartIsRefused(t *testing.T) {
	address, units := startSystemd(t)
	for name, test := range map[string]struct{ unit, other, text, want string }{
		"timer":  {"by-timer.service", "by-timer.timer", "[Timer]\nOnActiveSec=1h\n", "is triggered by by-timer.timer"},
		"wanted": {"wanted.service", "needy.target", "[Unit]\nWants=wanted.service\n", "is wanted by needy.target"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(units, test.other), []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg := writeUnit(t, units, test.unit, polite, "")
			cfg.Address = address
			// What is not active is soon forgotten by systemd, and starts nothing.
			if out, err := systemctl(address, "start", "--job-mode=ignore-dependencies", test.other).CombinedOutput(); err != nil {
				t.Skipf("%v: %s", err, out)
			}
			if err := CheckUnit(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("check: %v, want %s", err, test.want)
			}
			if err := NewSystemd(cfg).Start(t.Context(), []string{"A=1"}, soon(time.Minute)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("start: %v, want %s", err, test.want)
			}
		})
	}
	t.Run("enabled", func(t *testing.T) {
		cfg := writeUnit(t, units, "enabled.service", polite, "[Install]\nWantedBy=basic.target")
		cfg.Address = address
		wants := filepath.Join(filepath.Dir(units), ".config/systemd/user/basic.target.wants")
		if err := errors.Join(os.MkdirAll(wants, 0o755), os.Symlink(filepath.Join(units, "enabled.service"), filepath.Join(wants, "enabled.service"))); err != nil {
			t.Fatal(err)
		}
		if err := CheckUnit(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "it is enabled") {
			t.Errorf("check: %v", err)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		cfg := writeUnit(t, units, "alone.service", polite, "")
		cfg.Address = address
		if err := CheckUnit(t.Context(), cfg); err != nil {
			t.Error(err)
		}
	})
}

// systemctl speaks to the instance of a test.
func systemctl(address string, args ...string) *exec.Cmd {
	run := filepath.Dir(filepath.Dir(strings.TrimPrefix(address, "unix:path=")))
	cmd := exec.Command("systemctl", append([]string{"--user"}, args...)...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+run)
	return cmd
}

// The unit waits in systemd's queue while its guard's deadline passes and the sidecar is dead. It
// must not be started later, unguarded.
func TestQueuedUnitIsNotStartedAfterTheDeadline(t *testing.T) {
	address, units := startSystemd(t)
	gate := filepath.Join(t.TempDir(), "gate")
	slow := fmt.Sprintf("[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c 'while ! [ -e %s ]; do sleep 0.05; done'\n", gate)
	if err := os.WriteFile(filepath.Join(units, "slow.service"), []byte("[Unit]\nDefaultDependencies=no\n"+slow), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := writeUnit(t, units, "queued.service", polite, "[Unit]\nWants=slow.service\nAfter=slow.service")
	cfg.Address, cfg.StateDir, cfg.StartWithin = address, t.TempDir(), time.Minute
	d := NewSystemd(cfg)
	ready := filepath.Join(t.TempDir(), "ready")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error, 1)
	go func() { failed <- d.Start(ctx, []string{"READY=" + ready}, soon(time.Minute)) }()
	eventually(t, "the unit is queued", func() bool {
		state, err := d.state(t.Context())
		return err == nil && state == "waiting for a job"
	})
	// From here on nobody but the guard does anything: the sidecar hangs.
	guard := d.current()
	setDeadline(guard, soon(time.Second))
	var err error
	select {
	case <-guard.gone:
	// the host is so busy that the guard has not heard of systemd in time: then the sidecar has to
	case <-guard.unproven:
		err = <-failed
		failed <- err
	case <-time.After(time.Minute):
		t.Fatal("the guard never ended")
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err = <-failed; err == nil {
		t.Error("it was started")
	}
	for range 20 {
		if state, err := d.state(t.Context()); err != nil || state != "" {
			t.Fatalf("it is %s: %v", state, err)
		}
		time.Sleep(10 * time.Millisecond) // it would come within one
	}
	if _, err := os.Stat(ready); err == nil {
		t.Error("it ran after its guard had ended")
	}
}

// A guard that has heard nothing from systemd proves nothing. Its unit may be queued still: a stop
// ends when systemd has dropped it, not before, and is confirmed then.
func TestUnprovenGuardLeavesNothingInTheQueue(t *testing.T) {
	address, units := startSystemd(t)
	gate := filepath.Join(t.TempDir(), "gate")
	slow := fmt.Sprintf("[Service]\nType=oneshot\nExecStart=/bin/sh -c 'while ! [ -e %s ]; do sleep 0.05; done'\n", gate)
	if err := os.WriteFile(filepath.Join(units, "slow.service"), []byte("[Unit]\nDefaultDependencies=no\n"+slow), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := writeUnit(t, units, "queued.service", polite, "[Unit]\nWants=slow.service\nAfter=slow.service")
	cfg.Address = address
	if out, err := systemctl(address, "start", "--no-block", "queued.service").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d := NewSystemd(cfg)
	if state, err := d.state(t.Context()); err != nil || state != "waiting for a job" {
		t.Fatalf("it is %s: %v", state, err)
	}
	k := d.newHandle("mark")
	ours, theirs, err := controlPair()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	defer ours.Close() //nolint:errcheck // nothing is sent any more
	k.conn = ours
	close(k.unproven)
	d.tree = k
	if err := d.Stop(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if state, err := d.state(t.Context()); err != nil || state != "" {
		t.Errorf("it is %s: %v", state, err)
	}
}

// TestSilentSystemdConfirmsNothing: systemd hangs. The guard ends the unit without it, but what
// systemd may yet start is known to systemd only: the deadline is waited out, and the stop is not
// confirmed.
func TestSilentSystemdConfirmsNothing(t *testing.T) {
	address, units := startSystemd(t)
	cfg := writeUnit(t, units, "demo.service", polite, "")
	cfg.Address = address
	d := NewSystemd(cfg)
	mark := newMark(t)
	begin(t, d, mark, soon(time.Minute))
	conn, err := net.Dial("unix", strings.TrimPrefix(address, "unix:path="))
	if err != nil {
		t.Fatal(err)
	}
	systemd := peerOf(conn.(*net.UnixConn))
	if err := errors.Join(conn.Close(), unix.Kill(systemd, unix.SIGSTOP)); err != nil {
		t.Fatal(err)
	}
	deadline := soon(time.Second)
	setDeadline(d.current(), deadline)
	err = d.Stop(t.Context(), 0)
	if now := election.BootClock(); now < deadline {
		t.Errorf("given up %v before the deadline", deadline.Sub(now))
	}
	if !errors.Is(err, election.ErrUnproven) {
		t.Errorf("err = %v", err)
	}
	mustBeGone(t, mark)
	if err := unix.Kill(systemd, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := d.Stop(t.Context(), 0); err != nil {
		t.Errorf("it answers, and knows of nothing: %v", err)
	}
}

// A sidecar is killed while its unit comes up. The next one adopts guard and unit, learns of the
// main process, and of its end; a third finds what is left although nobody is above it.
func TestUnitAdoptedBeforeItRan(t *testing.T) {
	address, units := startSystemd(t)
	gate := filepath.Join(t.TempDir(), "gate")
	cfg := writeUnit(t, units, "early.service", polite, fmt.Sprintf("ExecStartPre=/bin/sh -c 'while ! [ -e %s ]; do sleep 0.05; done'", gate))
	cfg.Address, cfg.StateDir, cfg.StartWithin = address, t.TempDir(), time.Minute
	first := NewSystemd(cfg)
	ready := filepath.Join(t.TempDir(), "ready")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// it is dead, and nobody asks how it ends
		_ = first.Start(ctx, []string{"READY=" + ready}, soon(time.Minute))
	}()
	defer func() {
		cancel()
		<-ended
	}()
	eventually(t, "the unit is being started", func() bool {
		state, err := first.state(t.Context())
		return err == nil && state == "activating"
	})
	k := first.current()
	close(k.leave) // as if the first sidecar had been killed
	second := NewSystemd(cfg)
	eventually(t, "it is adopted", func() bool { return second.Adopt(t.Context()) == nil })
	if second.PID() != 0 {
		t.Fatal("it runs already")
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	awaitFile(t, ready)
	eventually(t, "its main process is known", func() bool { return second.PID() != 0 })
	if err := unix.Kill(second.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitClosed(t, "its end is an event", second.Exited())
	if err := second.Stop(t.Context(), 0); err != nil {
		t.Error(err)
	}
}
