package process

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/torture"
)

// Driver is what every driver has to do; each must pass testContract.
type Driver interface {
	Start(ctx context.Context, env []string, deadline election.Instant) error
	Extend(deadline election.Instant)
	Exited() <-chan struct{}
	Exit() string
	Stop(ctx context.Context, grace time.Duration) error
	PID() int
}

var (
	_ Driver = (*Exec)(nil)
	_ Driver = (*Script)(nil)
	_ Driver = (*Systemd)(nil)
)

const (
	// polite ends when asked; stubborn does not. $READY is made once it runs.
	polite   = `trap 'exit 0' TERM; : >"$READY"; while :; do sleep 1000 & wait $!; done`
	stubborn = `trap '' TERM; : >"$READY"; while :; do sleep 1; done`
)

// testContract runs the contract. make returns a driver for a shell program; the environment given to Start reaches it.
func testContract(t *testing.T, make func(t *testing.T, program string) Driver) {
	start := func(t *testing.T, program string, deadline election.Instant) (d Driver, mark string) {
		t.Helper()
		d, mark = make(t, program), newMark(t)
		t.Cleanup(func() {
			if err := d.Stop(context.Background(), 0); err != nil {
				t.Errorf("cannot clean up: %v", err)
			}
		})
		begin(t, d, mark, deadline)
		return d, mark
	}
	t.Run("runs until it is stopped", func(t *testing.T) {
		d, mark := start(t, polite, soon(time.Minute))
		if err := d.Stop(t.Context(), 15*time.Second); err != nil {
			t.Fatal(err)
		}
		mustBeGone(t, mark)
		awaitClosed(t, "exit", d.Exited())
	})
	t.Run("is killed if it does not stop", func(t *testing.T) {
		d, mark := start(t, stubborn, soon(time.Minute))
		began := time.Now()
		if err := d.Stop(t.Context(), 300*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 300*time.Millisecond {
			t.Errorf("it had only %v", took)
		}
		mustBeGone(t, mark)
	})
	t.Run("is killed at the deadline", func(t *testing.T) {
		deadline := soon(3 * time.Second)
		d, mark := start(t, stubborn, deadline)
		awaitClosed(t, "exit", d.Exited())
		if now := election.BootClock(); now < deadline {
			t.Errorf("%v before the deadline", deadline.Sub(now))
		}
		if err := d.Stop(t.Context(), time.Hour); err != nil {
			t.Fatal(err)
		}
		mustBeGone(t, mark)
	})
	t.Run("lives as long as the deadline moves", func(t *testing.T) {
		first := soon(3 * time.Second)
		d, mark := start(t, polite, first)
		d.Extend(soon(time.Minute))
		eventually(t, "the first deadline passes", func() bool { return election.BootClock() > first })
		select {
		case <-d.Exited():
			t.Fatal("ended: ", d.Exit())
		default:
		}
		if len(torture.Living(mark)) == 0 {
			t.Error("it does not live")
		}
	})
	t.Run("its end is seen", func(t *testing.T) {
		d, mark := start(t, polite, soon(time.Minute))
		if d.Exit() != "" {
			t.Error("before: ", d.Exit())
		}
		eventually(t, "it is killed", func() bool { // again, for what was just being forked
			living := torture.Living(mark)
			for _, pid := range living {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
			return len(living) == 0
		})
		awaitClosed(t, "exit", d.Exited())
		if d.Exit() == "" {
			t.Error("no word about its end")
		}
		if err := d.Stop(t.Context(), 0); err != nil {
			t.Error(err)
		}
		mustBeGone(t, mark)
	})
	t.Run("starts again", func(t *testing.T) {
		d, mark := start(t, polite, soon(time.Minute))
		if err := d.Start(t.Context(), nil, soon(time.Minute)); err == nil {
			t.Error("started twice")
		}
		if err := d.Stop(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		begin(t, d, mark, soon(time.Minute))
		if err := d.Stop(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		mustBeGone(t, mark)
	})
	t.Run("two at once", func(t *testing.T) {
		a, markA := start(t, polite, soon(time.Minute))
		_, markB := start(t, polite, soon(time.Minute))
		if err := a.Stop(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		mustBeGone(t, markA)
		if len(torture.Living(markB)) == 0 {
			t.Error("the other one is gone, too")
		}
	})
	t.Run("nothing to stop", func(t *testing.T) {
		if err := make(t, polite).Stop(t.Context(), time.Hour); err != nil {
			t.Error(err)
		}
	})
}

func begin(t *testing.T, d Driver, mark string, deadline election.Instant) {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready")
	if err := d.Start(t.Context(), []string{torture.Env(mark), "READY=" + ready}, deadline); err != nil {
		t.Fatal(err)
	}
	awaitFile(t, ready)
}

func testLog(t *testing.T) zerolog.Logger { return zerolog.New(zerolog.NewTestWriter(t)) }

func TestExecContract(t *testing.T) {
	testContract(t, func(t *testing.T, program string) Driver {
		return New(Config{Command: []string{"sh", "-c", program}, Log: testLog(t), Output: Output{Line: func([]byte) {}}})
	})
}

// daemonize starts a program in the background, in its own session, forked twice.
const daemonize = `(setsid sh -c "$1" >/dev/null 2>&1 & echo $! >"$2")`

func scriptConfig(t *testing.T, command ...string) ScriptConfig {
	return ScriptConfig{Config: Config{Command: command, Log: testLog(t), Output: Output{Line: func(b []byte) { t.Log(string(b)) }}}}
}

func TestScriptContract(t *testing.T) {
	t.Run("with a PID file", func(t *testing.T) {
		testContract(t, func(t *testing.T, program string) Driver {
			pidFile := filepath.Join(t.TempDir(), "pid")
			cfg := scriptConfig(t, "sh", "-c", daemonize, "start", program, pidFile)
			cfg.PIDFile = pidFile
			return NewScript(cfg)
		})
	})
	t.Run("without", func(t *testing.T) {
		testContract(t, func(t *testing.T, program string) Driver {
			pidFile := filepath.Join(t.TempDir(), "pid")
			cfg := scriptConfig(t, "sh", "-c", daemonize, "start", program, pidFile)
			cfg.StopCommand = []string{"sh", "-c", `kill -TERM "$(cat "$0")"`, pidFile}
			return NewScript(cfg)
		})
	})
	t.Run("elsewhere", func(t *testing.T) {
		testContract(t, func(t *testing.T, program string) Driver {
			dir := supervisor(t)
			pidFile := filepath.Join(dir, "pid")
			file := filepath.Join(dir, "program")
			if err := os.WriteFile(file, []byte(program), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg := scriptConfig(t, "sh", "-c", `rm -f "$1/pid"; echo "TORTURE_MARK=$TORTURE_MARK READY=$READY setsid sh $1/program & echo \$! >$1/pid" >"$1/orders"; while ! [ -s "$1/pid" ]; do sleep 0.01; done`, "start", dir)
			cfg.StopCommand = []string{"sh", "-c", `kill -TERM -$(cat "$0")`, pidFile}
			cfg.KillCommand = []string{"sh", "-c", `kill -KILL -$(cat "$0")`, pidFile}
			cfg.StatusCommand = []string{"sh", "-c", `pid=$(cat "$0") && grep -q '^State:.[^Z]' /proc/$pid/status`, pidFile}
			return NewScript(cfg)
		})
	})
}

// supervisor is another keeper of programs, which are not descendants of the guard. It returns its directory.
func supervisor(t *testing.T) string {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "orders"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `while :; do while read -r order; do eval "$order"; done; done <>"$0"`, filepath.Join(dir, "orders"))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return dir
}

func TestScriptThatCannotStart(t *testing.T) {
	stale := filepath.Join(t.TempDir(), "stale")
	if err := os.WriteFile(stale, fmt.Appendln(nil, os.Getpid()), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*ScriptConfig)
		want   string
	}{
		"start fails":       {func(c *ScriptConfig) { c.Command = []string{"sh", "-c", "setsid sleep 1000 & exit 3"} }, "cannot start sh: its start command failed: exit status 3"},
		"start hangs":       {func(c *ScriptConfig) { c.Command = []string{"sleep", "1000"}; c.StartWithin = 100 * time.Millisecond }, "cannot start sleep: its start command did not end in time"},
		"no PID file":       {func(c *ScriptConfig) { c.PIDFile = "/nonexistent/pid"; c.StartWithin = 100 * time.Millisecond }, "its PID file /nonexistent/pid names no process"},
		"old PID file":      {func(c *ScriptConfig) { c.PIDFile = stale; c.StartWithin = 100 * time.Millisecond }, "names no process that was started with it"},
		"no such stop":      {func(c *ScriptConfig) { c.StopCommand = []string{"/nonexistent/stop"} }, "its stop command can't be run: stat /nonexistent/stop: no such file or directory"},
		"no such start":     {func(c *ScriptConfig) { c.Command = []string{"/nonexistent/start"} }, "cannot start /nonexistent/start: stat /nonexistent/start: no such file or directory"},
		"deadline in start": {func(c *ScriptConfig) { c.Command = []string{"sleep", "1000"} }, "lease deadline"},
	} {
		t.Run(name, func(t *testing.T) {
			mark := newMark(t)
			cfg := scriptConfig(t, "true")
			cfg.Output = Output{Line: func([]byte) {}}
			test.change(&cfg)
			d := NewScript(cfg)
			err := d.Start(t.Context(), []string{torture.Env(mark)}, soon(2*time.Second))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("err = %v, want %s", err, test.want)
			}
			if err := d.Stop(t.Context(), 0); err != nil {
				t.Error(err)
			}
			mustBeGone(t, mark)
		})
	}
}

func TestWatchdogIsFedUntilTheDeadline(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "watchdog")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	device, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	e := newExec(t, Config{
		Command: []string{"sleep", "1000"}, Watchdog: WatchdogRequired, WatchdogPath: fifo, WatchdogTimeout: 90 * time.Millisecond,
	})
	if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
		t.Fatal(err)
	}
	food := make([]byte, 5)
	if _, err := io.ReadFull(device, food); err != nil {
		t.Fatal(err)
	}
	if string(food) != strings.Repeat("\x00", 5) {
		t.Errorf("fed %q", food)
	}
	if err := e.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	for food[0] == 0 { // the magic character says that this end is meant
		if _, err := device.Read(food[:1]); err != nil {
			t.Fatal(err)
		}
	}
	if food[0] != 'V' {
		t.Errorf("last fed %q", food[0])
	}
}

func TestWatchdogStarvesAfterTheDeadline(t *testing.T) {
	w := watchdog{fd: -1, every: time.Second}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	w.fd = p[1]
	now := election.BootClock()
	w.feed(now, false)
	w.feed(now.Add(500*time.Millisecond), false)
	w.feed(now.Add(time.Second), false)
	w.feed(now.Add(time.Hour), true)
	b := make([]byte, 10)
	if n, _ := unix.Read(p[0], b); n != 2 {
		t.Errorf("fed %d times", n)
	}
}
