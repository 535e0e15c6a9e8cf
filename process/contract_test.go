package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/kernel"
	"github.com/tanist/tanist/process/internal/wire"
	"github.com/tanist/tanist/process/torture"
)

var (
	_ Driver = (*Exec)(nil)
	_ Driver = (*Script)(nil)
	_ Driver = (*Systemd)(nil)
)

const (
	// polite ends when asked; stubborn does not. $READY is made once it runs. Neither forks, since a
	// child that is being forked when the signal comes has the shell's handler for it still, and
	// drops it.
	polite   = `: >"$READY"; exec sleep 1000`
	stubborn = `trap '' TERM; : >"$READY"; exec sleep 1000`
)

// testContract runs the contract. make returns a driver for a shell program; the environment given
// to Start reaches it.
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
		if err := d.Stop(t.Context(), longEnough); err != nil {
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
		d, mark := start(t, stubborn, soon(time.Minute))
		deadline := soon(300 * time.Millisecond)
		setDeadline(d.(interface{ current() *handle }).current(), deadline)
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
		d, mark := start(t, polite, soon(time.Minute))
		first := soon(3 * time.Second)
		setDeadline(d.(interface{ current() *handle }).current(), first)
		d.Extend(soon(time.Minute))
		eventually(t, "the first deadline passes", func() bool { return election.BootClock() > first })
		select {
		case <-d.Exited():
			t.Fatal("ended: ", d.Exit())
		default:
		}
		mustLive(t, mark)
	})
	t.Run("its end is seen", func(t *testing.T) {
		d, mark := start(t, polite, soon(time.Minute))
		if d.Exit() != "" {
			t.Error("before: ", d.Exit())
		}
		mustLive(t, mark)
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
		mustLive(t, markB)
		if err := a.Stop(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		mustBeGone(t, markA)
		mustLive(t, markB)
	})
	t.Run("nothing to stop", func(t *testing.T) {
		if err := make(t, polite).Stop(t.Context(), time.Hour); err != nil {
			t.Error(err)
		}
	})
}

// mustLive waits until a process of the tree is seen. One that is executing another program shows
// no environment, and so no mark.
func mustLive(t *testing.T, mark string) {
	t.Helper()
	eventually(t, "a process of the tree is seen", func() bool { return len(torture.Living(mark)) > 0 })
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
	t.Parallel()
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
	t.Parallel()
	t.Run("with a PID file", func(t *testing.T) {
		t.Parallel()
		testContract(t, func(t *testing.T, program string) Driver {
			pidFile := filepath.Join(t.TempDir(), "pid")
			cfg := scriptConfig(t, "sh", "-c", daemonize, "start", program, pidFile)
			cfg.PIDFile = pidFile
			return NewScript(cfg)
		})
	})
	t.Run("without", func(t *testing.T) {
		t.Parallel()
		testContract(t, func(t *testing.T, program string) Driver {
			pidFile := filepath.Join(t.TempDir(), "pid")
			cfg := scriptConfig(t, "sh", "-c", daemonize, "start", program, pidFile)
			cfg.StopCommand = []string{"sh", "-c", `kill -TERM "$(cat "$0")"`, pidFile}
			return NewScript(cfg)
		})
	})
	t.Run("elsewhere", func(t *testing.T) {
		t.Parallel()
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
			cfg.StatusCommand = []string{"sh", "-c", `pid=$(cat "$0") && grep -q '^State:.[^Z]' /proc/$pid/status || exit 3`, pidFile}
			return NewScript(cfg)
		})
	})
}

// supervisor is another keeper of programs, which are not descendants of the guard. It returns its
// directory.
func supervisor(t *testing.T) string {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "orders"), 0o600); err != nil {
		t.Fatal(err)
	}
	// it ends by itself if the tests are killed
	cmd := exec.Command("timeout", "300", "sh", "-c", `while :; do while read -r order; do eval "$order"; done; done <>"$0"`, filepath.Join(dir, "orders"))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		_ = cmd.Wait()
	})
	return dir
}

func TestScriptThatCannotStart(t *testing.T) {
	t.Parallel()
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
		"no PID file":       {func(c *ScriptConfig) { c.PIDFile = "/nonexistent/pid"; c.StartWithin = 5 * time.Second }, "its PID file /nonexistent/pid names no process"},
		"old PID file":      {func(c *ScriptConfig) { c.PIDFile = stale; c.StartWithin = 5 * time.Second }, "names no process that was started with it"},
		"no such stop":      {func(c *ScriptConfig) { c.StopCommand = []string{"/nonexistent/stop"} }, "its stop command can't be run: stat /nonexistent/stop: no such file or directory"},
		"no such start":     {func(c *ScriptConfig) { c.Command = []string{"/nonexistent/start"} }, "cannot start /nonexistent/start: stat /nonexistent/start: no such file or directory"},
		"deadline in start": {func(c *ScriptConfig) { c.Command = []string{"sleep", "1000"} }, "lease deadline"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mark := newMark(t)
			cfg := scriptConfig(t, "true")
			cfg.Output = Output{Line: func([]byte) {}}
			test.change(&cfg)
			d := NewScript(cfg)
			deadline := soon(time.Minute)
			if name == "deadline in start" {
				deadline = soon(2 * time.Second)
			}
			err := d.Start(t.Context(), []string{torture.Env(mark)}, deadline)
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
	t.Parallel()
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
		Command: []string{"sleep", "1000"}, Watchdog: wire.WatchdogRequired, WatchdogPath: fifo, WatchdogTimeout: 90 * time.Millisecond,
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

// What a status command says is believed only if it says it. Here it says that it does not know,
// and the program, which is not below the guard, is past killing: the deadline is waited out, and
// the stop is not confirmed.
func TestUnknownStatusIsNotConfirmed(t *testing.T) {
	t.Parallel()
	for name, status := range map[string]string{"it does not know": "exit 4", "it fails": "exit 1", "it is killed": "kill -KILL $$", "it hangs": "exec sleep 1000"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it is mostly waiting
			dir := supervisor(t)
			pidFile := filepath.Join(dir, "pid")
			cfg := scriptConfig(t, "sh", "-c", `echo "setsid sleep 1000 & echo \$! >$1/pid" >"$1/orders"; while ! [ -s "$1/pid" ]; do sleep 0.01; done`, "start", dir)
			cfg.KillCommand = []string{"sh", "-c", `(echo x >>"$1/killed"; kill -KILL -$(cat "$0")) 2>/dev/null`, pidFile, dir}
			cfg.StatusCommand = []string{"sh", "-c", status}
			cfg.StateDir = t.TempDir()
			d := NewScript(cfg)
			if err := d.Start(t.Context(), nil, soon(time.Minute)); err != nil {
				t.Fatal(err)
			}
			k := d.current()
			deadline := soon(3 * time.Second)
			setDeadline(k, deadline)
			stopped := make(chan error)
			go func() { stopped <- d.Stop(context.Background(), 0) }()
			eventually(t, "the guard is in doubt", func() bool {
				k.mu.Lock()
				defer k.mu.Unlock()
				return k.final
			})
			// as the renewals of a reign that is being ended
			d.Extend(soon(time.Hour))
			k.send(wire.Record{Kind: wire.KindExtend, A: int64(soon(time.Hour))})
			err := <-stopped
			if !errors.Is(err, election.ErrUnproven) {
				t.Errorf("err = %v", err)
			}
			if now := election.BootClock(); now < deadline {
				t.Errorf("given up %v before the deadline", deadline.Sub(now))
			}
			if _, err := os.Stat(filepath.Join(dir, "killed")); err != nil {
				t.Errorf("the kill command did not run: %v", err)
			}
			if err := d.Start(t.Context(), nil, soon(time.Minute)); err != nil {
				t.Fatalf("it can't be started ever again: %v", err)
			}
			setDeadline(d.current(), soon(100*time.Millisecond))
			_ = d.Stop(t.Context(), 0) // its status tells nothing this time either
		})
	}
}

// The start command succeeds and leaves nothing: that is the end of the program, not a start that
// takes its time.
func TestEmptyTreeIsAnExit(t *testing.T) {
	t.Parallel()
	cfg := scriptConfig(t, "sh", "-c", "exit 0")
	cfg.PIDFile, cfg.StartWithin = filepath.Join(t.TempDir(), "pid"), time.Minute
	for _, status := range [][]string{nil, {"sh", "-c", "exit 3"}} {
		cfg.StatusCommand = status
		began := time.Now()
		if err := NewScript(cfg).Start(t.Context(), nil, soon(time.Minute)); err == nil || !strings.Contains(err.Error(), "it has ended") {
			t.Errorf("status %q: %v", status, err)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("status %q: after %v", status, took)
		}
	}
}

// A stop command is not told to stop itself when the program ends, and what else the program had
// started is told.
func TestStopCommandIsLeftAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := scriptConfig(t, "sh", "-c", `setsid sh -c 'sh -c "trap \"touch $0/child; exit\" TERM; touch $0/up; while :; do sleep 0.05; done" $0 & trap "exit 0" USR1; while :; do sleep 0.05; done' "$0" >/dev/null 2>&1 & echo $! >"$0/pid"; while ! [ -e "$0/up" ]; do sleep 0.01; done`, dir)
	cfg.PIDFile = filepath.Join(dir, "pid")
	cfg.StopCommand = []string{"sh", "-c", `trap 'touch "$1/told"' TERM; kill -USR1 $(cat "$1/pid"); while kill -0 $(cat "$1/pid") 2>/dev/null; do sleep 0.05; done; sleep 0.3; touch "$1/done"`, "stop", dir}
	d := NewScript(cfg)
	if err := d.Start(t.Context(), nil, soon(time.Minute)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := d.Stop(t.Context(), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the whole grace passed: %v", took)
	}
	for file, want := range map[string]bool{"child": true, "done": true, "told": false} {
		if _, err := os.Stat(filepath.Join(dir, file)); (err == nil) != want {
			t.Errorf("%s: %v, want it: %t", file, err, want)
		}
	}
}

// A PID file that the program's user may write names a process of somebody else: that one is not
// the program, and is not killed.
func TestPIDFileOfAStrangerIsNotBelieved(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("/tmp", "tanist-stranger") // nobody may enter it
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	pidFile := filepath.Join(dir, "pid")
	cfg := scriptConfig(t, "sh", "-c", `touch "$0/begun"; while ! [ -s "$0/pid" ]; do sleep 0.01; done; setsid sleep 1000 >/dev/null 2>&1 &`, dir)
	cfg.User, cfg.Dir, cfg.PIDFile, cfg.StartWithin = "nobody", dir, pidFile, 10*time.Second
	var stranger *exec.Cmd
	written := make(chan struct{})
	go func() {
		defer close(written)
		for until := time.Now().Add(longEnough); !exists(filepath.Join(dir, "begun")); time.Sleep(time.Millisecond) {
			if time.Now().After(until) {
				return
			}
		}
		stranger = exec.Command("sleep", "1000") // of root, and younger than the guard
		if err := stranger.Start(); err == nil {
			_ = os.WriteFile(pidFile, fmt.Append(nil, stranger.Process.Pid), 0o644)
		}
	}()
	err = NewScript(cfg).Start(t.Context(), nil, soon(time.Minute))
	if err == nil || !strings.Contains(err.Error(), "names no process that was started with it") {
		t.Errorf("err = %v", err)
	}
	if <-written; stranger == nil || stranger.Process == nil {
		t.Fatal("there was no stranger")
	}
	if unix.Kill(stranger.Process.Pid, 0) != nil || kernel.IsZombie(stranger.Process.Pid) {
		t.Error("a process of root was killed for a PID file of nobody's")
	}
	_ = stranger.Process.Kill()
	_ = stranger.Wait()
}

// TestLostPIDFileIsNotGone: the program lives where no guard can see it, its guard is killed, and
// its PID file was removed or says nothing. The stop is confirmed only once the program is dead.
func TestLostPIDFileIsNotGone(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(string) error{
		"removed":     os.Remove,
		"overwritten": func(path string) error { return os.WriteFile(path, []byte("?"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it is mostly waiting
			dir := supervisor(t)
			cfg := scriptConfig(t, "sh", "-c", `echo "setsid sleep 1000 & echo \$! >$1/pid" >"$1/orders"; while ! [ -s "$1/pid" ]; do sleep 0.01; done`, "start", dir)
			cfg.PIDFile, cfg.StateDir = filepath.Join(dir, "pid"), t.TempDir()
			d := NewScript(cfg)
			if err := d.Start(t.Context(), nil, soon(time.Minute)); err != nil {
				t.Fatal(err)
			}
			setDeadline(d.current(), soon(5*time.Second))
			main := d.PID()
			defer unix.Kill(main, unix.SIGKILL) //nolint:errcheck // most likely it is dead
			if err := lose(cfg.PIDFile); err != nil {
				t.Fatal(err)
			}
			trace, err := wire.Recall(cfg.StateDir)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Kill(trace.Guard, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			err = d.Stop(t.Context(), 0)
			if lives := unix.Kill(main, 0) == nil && !kernel.IsZombie(main); lives || err != nil {
				t.Errorf("err = %v; the program lives: %t", err, lives)
			}
		})
	}
}

// TestPIDFileShowsNobodyGone: a file that cannot be read, or names nobody who is to be believed,
// shows nothing. The end of the process that the guard had found does.
func TestPIDFileShowsNobodyGone(t *testing.T) {
	t.Parallel()
	program := exec.Command("sleep", "1000")
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	began, err := kernel.BeganAt(program.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "pid")
	ask := func(of origin) Verdict { return byCommand{ScriptConfig{PIDFile: path}}.ask(t.Context(), of) }
	guard, all := origin{began: began}, origin{began: began, main: program.Process.Pid, mainBegan: began}
	check := func(when string, of origin, want Verdict) {
		t.Helper()
		if got := ask(of); got != want {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	check("there is no file", guard, Unknown)
	check("there is no file, and the program lives", all, Running)
	for _, text := range []string{"", "?", "0", "4194304\n", "1\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		check(fmt.Sprintf("the file says %q", text), guard, Unknown)
		check(fmt.Sprintf("the file says %q, and the program lives", text), all, Running)
	}
	_ = program.Process.Kill()
	_ = program.Wait()
	check("it has ended", all, Gone)
	check("it was not known", guard, Unknown)
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// Each command of a program runs as the program's user.
func TestCommandsRunAsTheProgramsUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("/tmp", "tanist-user")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	who := func(what, then string) []string {
		return []string{"sh", "-c", `id -un >"$0/` + what + `"; ` + then, dir}
	}
	cfg := scriptConfig(t, who("start", "")...)
	cfg.User, cfg.Dir = "nobody", dir
	cfg.StopCommand, cfg.KillCommand, cfg.StatusCommand = who("stop", ""), who("kill", `touch "$0/killed"`), who("status", `[ -e "$0/killed" ] && exit 3; exit 0`)
	d := NewScript(cfg)
	if err := d.Start(t.Context(), nil, soon(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := d.Stop(t.Context(), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	// With no guard left, the sidecar itself asks and kills.
	cfg.KillCommand, cfg.StatusCommand = who("own-kill", ""), who("own-status", "")
	byCommand{cfg}.ask(t.Context(), origin{})
	byCommand{cfg}.force(t.Context(), origin{})
	for _, what := range []string{"start", "stop", "kill", "status", "own-kill", "own-status"} {
		if b, err := os.ReadFile(filepath.Join(dir, what)); err != nil || string(b) != "nobody\n" {
			t.Errorf("%s ran as %q (%v)", what, b, err)
		}
	}
}
