package process

import (
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
		if err := e.Start(t.Context(), nil, soon(100*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if e.tree.guard == ahead {
			t.Error("a guard was used twice")
		}
		eventually(t, "the deadline's end", func() bool { return e.Exit() != "" })
	})
}

// A guard that was started ahead and died, or is too old, costs nothing but its gain.
func TestPreparedGuardDied(t *testing.T) {
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
	if ahead.code != guardRefused {
		t.Errorf("exit code of a guard that was not needed = %d", ahead.code)
	}
	if err := e.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
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
				guard := aheadOf(t, e)
				eventually(t, "the guard waits", func() bool { return stateOf(guard.Pid) == 'S' && named(guard.Pid) == guardName })
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

func named(pid int) string {
	b, _ := os.ReadFile(procPath(pid, "comm")) // of a process that has ended there is none
	return strings.TrimSpace(string(b))
}
