package process

import (
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/process/internal/kernel"
	"github.com/tanist/tanist/process/internal/wire"
)

// aheadOf returns the guard that waits, and when it is up.
func aheadOf(t *testing.T, e *Exec) *guardProcess {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ahead == nil {
		t.Fatal("no guard was started ahead")
	}
	return e.ahead.guard
}

// A guard that was started ahead is the one that keeps the program, and keeps it as any other.
func TestPreparedStart(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		lines := make(chan string, 10)
		e := newExec(t, Config{
			Command: []string{"sh", "-c", `echo "hello $WHO"; exec sleep 60`}, NoCgroup: noCgroup, StateDir: t.TempDir(),
			Output: Output{Line: func(b []byte) { lines <- string(b) }},
		})
		e.Prepare()
		ahead := aheadOf(t, e)
		e.Prepare()
		if aheadOf(t, e) != ahead {
			t.Error("a second guard was started ahead")
		}
		if err := e.Start(t.Context(), []string{"WHO=world"}, soon(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if e.tree.guard != ahead {
			t.Error("the guard that was started ahead was not used")
		}
		if got := <-lines; got != "hello world" {
			t.Errorf("output = %q", got)
		}
		e.Extend(soon(200 * time.Millisecond)) // ignored: earlier than the one in force
		if err := e.Stop(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		if got := e.ExitCode(); got != 128+int(unix.SIGTERM) {
			t.Errorf("exit code = %d", got)
		}
		if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if e.tree.guard == ahead {
			t.Error("a guard was used twice")
		}
		setDeadline(e.tree, soon(100*time.Millisecond))
		eventually(t, "the deadline's end", func() bool { return e.Exit() != "" })
	})
}

// A guard that was started ahead and died, or is too old, only costs the time it would have saved.
func TestPreparedGuardDied(t *testing.T) {
	t.Parallel()
	e := newExec(t, Config{Command: []string{"sleep", "60"}})
	e.Prepare()
	ahead := aheadOf(t, e)
	if err := ahead.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ahead.dead
	if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := e.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	e.Prepare()
	ahead = aheadOf(t, e)
	e.ahead.started -= e.ahead.started // long ago
	if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
		t.Fatal(err)
	}
	<-ahead.dead // it was let go, and sees that
	if ahead.code != wire.GuardRefused {
		t.Errorf("exit code of a guard that was not needed = %d", ahead.code)
	}
	if err := e.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}

// TestDismissedGuardHasEnded: a later driver finds nothing, and waits for nothing.
func TestDismissedGuardHasEnded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := newExec(t, Config{Command: []string{"sleep", "60"}, StateDir: dir})
	e.Prepare()
	made := e.ahead.mark
	awaitAhead(t, e) // or its end could take longer than Dismiss waits
	if err := e.Dismiss(); err != nil {
		t.Fatal(err)
	}
	if left := kernel.Marked(wire.GuardMark, func(mark string) bool { return mark == made }); len(left) > 0 {
		t.Errorf("the guard %d is left", left)
	}
	if err := e.Dismiss(); err != nil {
		t.Fatal(err)
	}
	if err := newExec(t, Config{Command: []string{"sleep", "60"}, StateDir: dir}).Settle(t.Context()); err != nil {
		t.Error(err)
	}
}

// What is started is up sooner if its guard was started ahead.
func TestPreparedIsFaster(t *testing.T) {
	var cold, warm []time.Duration
	for range trials(t, 5) {
		for _, ahead := range []bool{false, true} {
			e := newExec(t, Config{Command: []string{"sleep", "60"}})
			if ahead {
				e.Prepare()
				awaitAhead(t, e)
			}
			began := time.Now()
			if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); ahead {
				warm = append(warm, took)
			} else {
				cold = append(cold, took)
			}
			if err := e.Stop(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	report(t, "start", cold)
	report(t, "start with a guard that was started ahead", warm)
}

// awaitAhead waits until the guard that was started ahead is up.
func awaitAhead(t *testing.T, e *Exec) {
	t.Helper()
	guard := aheadOf(t, e)
	eventually(t, "the guard waits", func() bool { return stateOf(guard.Pid) == 'S' && named(guard.Pid) == wire.GuardName })
}

func named(pid int) string {
	b, _ := os.ReadFile(kernel.ProcPath(pid, "comm")) // of a process that has ended there is none
	return strings.TrimSpace(string(b))
}
