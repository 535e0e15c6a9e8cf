package process

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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

// What cannot be put on record is not started, not even its guard: nobody would find it again.
func TestUnwrittenRecordFailsTheStart(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]string{"before the start": wire.TraceFile + ".new", "the place is taken": wire.TraceFile} {
		t.Run(name, func(t *testing.T) {
			dir, guard := t.TempDir(), filepath.Join(t.TempDir(), "guard")
			if err := os.MkdirAll(filepath.Join(dir, path, "in the way"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(guard, []byte("#!/bin/sh\n: >\"$0.ran\"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			e := newExec(t, Config{Command: []string{"sleep", "1000"}, Self: guard, StateDir: dir, Lead: 100 * time.Millisecond})
			e.settled = true // what is in the way is also a record that can't be read
			if err := e.Start(t.Context(), nil, soon(time.Minute)); err == nil {
				t.Error("it was started")
			}
			if _, err := os.Stat(guard + ".ran"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("its guard was started: %v", err)
			}
		})
	}
}

// TestLaterDeadlineIsOnRecordFirst: how far ahead the deadline of a tree lies is on record before
// its guard holds it, because a later sidecar waits no longer than that.
func TestLaterDeadlineIsOnRecordFirst(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := newExec(t, Config{Command: []string{"sleep", "1000"}, StateDir: dir, Lead: time.Second})
	if err := e.Start(t.Context(), nil, soon(20*time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, ahead := range []time.Duration{40 * time.Second, 80 * time.Second} {
		deadline := soon(ahead)
		e.Extend(deadline)
		eventually(t, "the guard holds the deadline", func() bool { return heldDeadline(t, e.tree.guardPID) > deadline.Add(-time.Second) })
		if st, err := wire.Recall(dir); err != nil || st.Lead < ahead-time.Second {
			t.Errorf("on record: %+v, %v; want a lead of %v", st, err, ahead)
		}
	}
}

// A descendant that wiped its environment bears no mark. Without a cgroup, and with guard and
// sidecar dead, nobody can tell whether there is one: that is not "nothing to adopt", and not a
// failure for ever either.
func TestWipedEnvironmentIsNotGone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := Config{Command: []string{"sleep", "1000"}, StateDir: dir, Log: testLog(t)}
	s := startSidecar(t, reign{validity: shortLease, children: 3, noCgroup: true, dir: dir, still: true})
	freezeGuard(t, s.guard)
	s.kill()
	_ = unix.Kill(s.guard, unix.SIGKILL)
	eventually(t, "the guard is gone", func() bool { return kernel.IsZombie(s.guard) })
	shorten(t, dir, time.Second)
	if _, err := Adopt(t.Context(), cfg); err == nil || errors.Is(err, ErrNothingToAdopt) || errors.Is(err, election.ErrUnproven) {
		t.Errorf("adopt: %v", err)
	}
	began := time.Now()
	if err := New(cfg).Settle(t.Context()); !errors.Is(err, election.ErrUnproven) {
		t.Errorf("settle: %v", err)
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("given up after %v, while a guard could hold a deadline", took)
	}
	// What bears a mark is gone. One look may miss a process that is just executing another
	// program; Settle has looked until the end.
	mustBeGone(t, s.mark)
	if err := New(cfg).Settle(t.Context()); err != nil {
		t.Errorf("it is asked about for ever: %v", err)
	}
}

// TestLateSearchDoesNotWaitAgain: the wait for the deadlines of an earlier run counts from when the
// last one can have been set.
func TestLateSearchDoesNotWaitAgain(t *testing.T) {
	const s = time.Second
	none := &wire.Trace{Lead: -1}
	for name, test := range map[string]struct {
		trace   *wire.Trace
		locked  bool
		v       Verdict
		few     bool          // looks
		since   time.Duration // when the search began, after the driver was made
		now     time.Duration
		hasty   bool
		settled ruling
	}{
		"unknown, before its deadline":             {&wire.Trace{Lead: 4 * s}, false, Unknown, false, 0, 3 * s, false, rulingWait},
		"unknown, after it":                        {&wire.Trace{Lead: 4 * s}, false, Unknown, false, 0, 4*s + 1, false, rulingUnproven},
		"the search began late, in between":        {&wire.Trace{Lead: 4 * s}, false, Unknown, false, 3 * s, 4*s + 1, false, rulingUnproven},
		"the search began after it":                {&wire.Trace{Lead: 4 * s}, false, Unknown, false, time.Hour, time.Hour + 1, false, rulingUnproven},
		"but it has looked only a few times":       {&wire.Trace{Lead: 4 * s}, false, Unknown, true, time.Hour, time.Hour + 1, false, rulingLook},
		"a guard lives, and is waited for":         {&wire.Trace{Lead: 4 * s}, true, Unknown, false, time.Hour, time.Hour + 5*s, false, rulingWait},
		"which lasts too long":                     {&wire.Trace{Lead: 4 * s}, true, Unknown, false, time.Hour, time.Hour + 6*s, false, rulingUnproven},
		"the caller does not wait":                 {&wire.Trace{Lead: 4 * s}, false, Unknown, false, 0, s, true, rulingUntold},
		"no deadline is known":                     {nil, false, Unknown, false, 0, unknownLead - s, false, rulingWait},
		"nor can it be later than the longest":     {nil, false, Unknown, false, unknownLead, unknownLead + 1, false, rulingUnproven},
		"there was none, and its guard ends it":    {none, false, Unknown, false, 0, s, false, rulingWait},
		"its kill is given time, however late":     {&wire.Trace{Lead: 4 * s}, false, Running, false, time.Hour, time.Hour + 5*s, false, rulingWait},
		"it can't be killed":                       {&wire.Trace{Lead: 4 * s}, false, Running, false, time.Hour, time.Hour + 6*s, false, rulingAlive},
		"before its deadline it may end by itself": {&wire.Trace{Lead: 9 * s}, false, Running, false, 0, 13 * s, false, rulingWait},
		"gone is gone at any time":                 {&wire.Trace{Lead: 4 * s}, false, Gone, false, 0, 1, false, rulingGone},
	} {
		made := election.Instant(time.Minute)
		l := leftover{evidence: evidence{record: recordPresent, locked: test.locked}, trace: test.trace, last: made, since: made.Add(test.since), empty: emptyScans}
		if test.few {
			l.empty = emptyScans - 1
		}
		if got := l.rule(test.v, made.Add(test.now), !test.hasty); got != test.settled {
			t.Errorf("%s: %d, want %d", name, got, test.settled)
		}
	}
}

// A sidecar and its guard are killed together, without a cgroup, and the next sidecar's first reign
// comes after the deadlines of the last. It must not spend the validity of its own lease on waiting
// for them again.
func TestReignAfterTheOldDeadlinesStartsAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := startSidecar(t, reign{validity: shortLease, children: 3, noCgroup: true, dir: dir, still: true})
	freezeGuard(t, s.guard)
	s.kill()
	_ = unix.Kill(s.guard, unix.SIGKILL)
	eventually(t, "the guard is gone", func() bool { return kernel.IsZombie(s.guard) })
	shorten(t, dir, time.Minute)
	ready := filepath.Join(t.TempDir(), "ready")
	e := newExec(t, Config{Command: []string{"sh", "-c", `: >"$0"; exec sleep 1000`, ready}, StateDir: dir, NoCgroup: true})
	slot := NewSlot(e)
	if err := slot.Adopt(t.Context(), soon(time.Minute)); err == nil || errors.Is(err, ErrNothingToAdopt) {
		t.Fatalf("adopt: %v", err)
	}
	e.alone = soon(-time.Minute) // it was made then
	if err := slot.Start(t.Context(), []string{torture.Env(s.mark)}, soon(time.Minute/2)); err != nil {
		t.Fatalf("its own lease was not enough: %v", err)
	}
	awaitFile(t, ready)
}

// shorten changes how far ahead the deadline on record lies.
func shorten(t *testing.T, dir string, lead time.Duration) {
	t.Helper()
	path := filepath.Join(dir, wire.TraceFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`"lead":[0-9]+`).ReplaceAllString(string(b), fmt.Sprintf(`"lead":%d`, lead))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Whatever becomes of the files, what was left is found: cgroups, guards and processes bear the
// name of the program.
func TestLeftoversAreFoundWithoutAnyFile(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		for _, guardLives := range []bool{true, false} {
			dir := t.TempDir()
			s := startSidecar(t, reign{validity: shortLease, children: 3, noCgroup: noCgroup, dir: dir, still: noCgroup})
			freezeGuard(t, s.guard)
			s.kill()
			if !guardLives {
				_ = unix.Kill(s.guard, unix.SIGKILL)
				eventually(t, "the guard is gone", func() bool { return kernel.IsZombie(s.guard) })
			}
			for _, name := range []string{wire.TraceFile, wire.SocketFile, wire.LockFile} {
				if err := os.Remove(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			// Once it has been found, a guard goes on, and ends its tree for its deadline.
			found := zerolog.HookFunc(func(*zerolog.Event, zerolog.Level, string) { _ = unix.Kill(s.guard, unix.SIGCONT) })
			ctx, cancel := context.WithTimeout(t.Context(), 2*longEnough)
			err := New(Config{Command: []string{"sleep", "1000"}, StateDir: dir, Log: testLog(t).Hook(found)}).settle(ctx, false)
			cancel()
			if noCgroup == (err == nil) { // without a cgroup it is found and killed, and not proved
				t.Errorf("guard lives %t: %v", guardLives, err)
			}
			if !noCgroup || guardLives { // else what runs as another user might be anybody's
				mustBeGone(t, s.mark)
			}
		}
	})
}

// TestAnotherConfigurationMakesNothingGone: what was started as a program that may live elsewhere
// is not gone because the configuration of today knows of no such place, and its cgroup is empty.
func TestAnotherConfigurationMakesNothingGone(t *testing.T) {
	t.Parallel()
	for _, outside := range []bool{true, false} {
		dir := t.TempDir()
		cfg := Config{Command: []string{"sleep", "1000"}, StateDir: dir, Log: testLog(t)}
		trace := wire.Trace{Tree: cfg.mark(), Cgroup: "/sys/fs/cgroup/of-a-tree-that-has-ended", Lead: time.Minute, Outside: outside}
		if err := wire.Remember(dir, trace); err != nil {
			t.Fatal(err)
		}
		if err := New(cfg).settle(t.Context(), false); (err != nil) != outside {
			t.Errorf("outside %t: %v", outside, err)
		}
	}
}

// A guard that nobody has talked to yet holds the lock, and is waited for.
func TestGuardOnItsWayIsWaitedFor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	lock, err := wire.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := wire.Lock(dir); !errors.Is(err, wire.ErrLocked) {
		t.Fatalf("locked twice: %v", err)
	}
	d := New(Config{Command: []string{"sleep", "1000"}, StateDir: dir, Log: testLog(t)})
	if err := d.settle(t.Context(), false); err == nil || errors.Is(err, election.ErrUnproven) {
		t.Errorf("with a guard on its way: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Settle(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestGuardAloneIsFoundWithoutAnyFile: a guard that has not started anything yet, and whose files are
// lost, is found by the name that it bears, and is no proof that everything was in a cgroup.
func TestGuardAloneIsFoundWithoutAnyFile(t *testing.T) {
	t.Parallel()
	d := New(Config{
		Command: []string{"sleep", "1000"}, StateDir: t.TempDir(), Identity: Identity{Cluster: "alone", Controller: rand.Text()}, Log: testLog(t),
	})
	// The shell is its parent: a child of this process would be one that was started ahead.
	guard := exec.Command("sh", "-c", `env `+wire.GuardMark+`="$0" sleep 1000; :`, d.cfg.mark())
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := guard.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(syscall.Kill(-guard.Process.Pid, syscall.SIGKILL), guard.Wait()) }()
	var found []int
	eventually(t, "it bears the mark", func() bool {
		found = kernel.Marked(wire.GuardMark, func(mark string) bool { return strings.HasPrefix(mark, d.cfg.kin()) })
		return len(found) == 1
	})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := d.settle(ctx, false); err == nil || errors.Is(err, election.ErrUnproven) {
		t.Errorf("with a guard that lives: %v", err)
	}
	if kernel.IsZombie(found[0]) {
		t.Error("it was killed before its deadline can have passed")
	}
	l := leftover{guards: found, seen: map[string]bool{"of another run": true}}
	if l.match(); l.group {
		t.Error("the empty cgroup of another run shows that it is gone")
	}
}

// A sidecar that stood still over the deadline finds it long past, and the guard's words unread. It
// reads them first: it neither calls the stop unconfirmed nor the guard failed.
func TestThawedSidecarAsksTheGuardFirst(t *testing.T) {
	t.Parallel()
	const still = 12 * time.Second
	thawed := func(t *testing.T) (*handle, *os.File) {
		t.Helper()
		d := New(Config{Command: []string{"x"}, StateDir: t.TempDir(), Log: testLog(t)})
		k := d.newHandle(newMark(t))
		ours, theirs, err := controlPair()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = errors.Join(theirs.Close(), ours.Close()) })
		k.conn = ours
		k.watch.deadline = election.BootClock().Add(-still)
		close(k.outputDone)
		return k, theirs
	}
	t.Run("stop", func(t *testing.T) {
		k, _ := thawed(t)
		time.AfterFunc(50*time.Millisecond, func() { close(k.gone) })
		if err := k.confirm(t.Context(), election.BootClock().Add(-still)); err != nil {
			t.Errorf("the guard had ended everything in time: %v", err)
		}
	})
	t.Run("watch", func(t *testing.T) {
		for range 20 { // what it looks at first is chance
			k, guard := thawed(t)
			k.guardDead = make(chan struct{})
			close(k.guardDead)
			k.watch.pending = []sent{{1, election.BootClock().Add(-still)}}
			k.watch.looked, k.watch.excused = election.BootClock().Add(-still), 1
			var buf [wire.RecordMax]byte
			r := wire.Record{Kind: wire.KindGone, A: int64(wire.CauseDeadline)}
			if _, err := guard.Write(r.Put(buf[:])); err != nil {
				t.Fatal(err)
			}
			go k.run()
			select {
			case <-k.gone:
			case <-k.unproven:
				t.Fatal("the guard's last word was not read")
			}
		}
	})
}

// What a program calls itself, and what it puts in its environment, does not spare it when the
// guard is dead.
func TestProgramThatPosesAsAGuardIsEnded(t *testing.T) {
	t.Parallel()
	mark := newMark(t)
	ready := filepath.Join(t.TempDir(), "ready")
	e := newExec(t, Config{
		Command: []string{"sh", "-c", `setsid env -u TANIST_TREE TANIST_GUARD=me sh -c 'echo tanist-guard >/proc/$$/comm; : >"$0"; while :; do sleep 1; done' "$0" & wait`, ready}, NoCgroup: true,
	})
	if err := e.Start(t.Context(), []string{torture.Env(mark)}, soon(time.Minute)); err != nil {
		t.Fatal(err)
	}
	awaitFile(t, ready)
	if err := unix.Kill(e.tree.guardPID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := e.Stop(t.Context(), 0); err != nil {
		t.Error(err)
	}
	mustBeGone(t, mark)
}
