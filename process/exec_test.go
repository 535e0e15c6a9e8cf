package process

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/kernel"
	"github.com/tanist/tanist/process/internal/wire"
	"github.com/tanist/tanist/process/torture"
)

// bothWays runs a test with a cgroup, if one can be had here, and without.
func bothWays(t *testing.T, test func(t *testing.T, noCgroup bool)) {
	t.Run("descendants", func(t *testing.T) {
		t.Parallel()
		test(t, true)
	})
	t.Run("cgroup", func(t *testing.T) {
		t.Parallel()
		dir, err := kernel.MakeCgroup("tanist-probe-" + rand.Text())
		if err != nil {
			t.Skip(err)
		}
		if err := kernel.RemoveCgroup(dir); err != nil {
			t.Fatal(err)
		}
		test(t, false)
	})
}

func startTorture(t *testing.T, n int, noCgroup bool) (e *Exec, mark string) {
	t.Helper()
	mark = newMark(t)
	ready := filepath.Join(t.TempDir(), "ready")
	e = newExec(t, Config{Command: torture.Command(n, ready), NoCgroup: noCgroup})
	if err := e.Start(t.Context(), []string{torture.Env(mark)}, soon(time.Minute)); err != nil {
		t.Fatal(err)
	}
	awaitFile(t, ready)
	eventually(t, "all processes are there", func() bool { return len(torture.Living(mark)) >= 4*n })
	return e, mark
}

func mustBeGone(t *testing.T, mark string) {
	t.Helper()
	var left []int
	for range 5 { // one process of the tree is hard to see
		left = append(left, torture.Living(mark)...)
	}
	if len(left) > 0 {
		for _, pid := range left {
			b, _ := os.ReadFile(kernel.ProcPath(pid, "stat"))
			t.Log(string(b))
		}
		t.Fatalf("%d processes are left: %v", len(left), left)
	}
}

func TestForcedStopLeavesNothing(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		children := 20
		if os.Getenv("TANIST_SOAK") != "" {
			children = 200
		}
		var took []time.Duration
		for range trials(t, 3) {
			e, mark := startTorture(t, children, noCgroup)
			began := time.Now()
			if err := e.Stop(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(began))
			mustBeGone(t, mark)
			if got := e.Exit(); got != "killed by SIGKILL" {
				t.Errorf("exit = %q", got)
			}
			if e.tree.cgroupPath != "" {
				if _, err := os.Stat(e.tree.cgroupPath); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the cgroup is left: %v", err)
				}
			} else if !noCgroup {
				t.Error("it went without a cgroup")
			}
		}
		report(t, "stop of the torture tree", took)
	})
}

// report logs the distribution of what was measured.
func report(t testing.TB, what string, took []time.Duration) {
	t.Helper()
	if len(took) == 0 {
		return
	}
	slices.Sort(took)
	t.Logf("%s: n=%d median %v p95 %v max %v", what, len(took), took[len(took)/2], took[len(took)*95/100], took[len(took)-1])
}

func TestKilledSidecarsTreeEndsByTheDeadline(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		var late, main []time.Duration
		for range trials(t, 2) {
			s := startSidecar(t, reign{validity: shortLease, children: 5, noCgroup: noCgroup})
			died := deathOf(t, s.main)
			s.kill()
			if len(torture.Living(s.mark)) == 0 && election.BootClock() < s.deadline {
				t.Fatal("the tree ended with the sidecar instead of at the deadline")
			}
			eventually(t, "the tree is gone", func() bool { return len(torture.Living(s.mark)) == 0 })
			late = append(late, election.BootClock().Sub(s.deadline))
			main = append(main, (<-died).Sub(s.deadline))
			if d := main[len(main)-1]; d < -100*time.Millisecond {
				t.Errorf("gone %v before the deadline", -d)
			}
			eventually(t, "the guard is gone", func() bool { return unix.Kill(s.guard, 0) == unix.ESRCH || stateOf(s.guard) == 'Z' })
		}
		report(t, "main process dead after the deadline", main)
		report(t, "tree gone after the deadline (seen by a walk over /proc)", late)
	})
}

// deathOf sends when a process died.
func deathOf(t *testing.T, pid int) <-chan election.Instant {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	died := make(chan election.Instant, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with its priority
		rt := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 5, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
		// so that it is not the observer who is late, where that is allowed
		_ = unix.SchedSetAttr(0, &rt, 0)
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			if n, err := unix.Poll(fds, -1); err == nil && n == 1 {
				break
			}
		}
		died <- election.BootClock()
		unix.Close(fd)
	}()
	return died
}

func TestFrozenSidecarsTreeEndsByTheDeadline(t *testing.T) {
	t.Parallel()
	frozenSidecar(t)
}

// The same where every core has four others to serve.
func TestFrozenSidecarsTreeEndsByTheDeadlineOnABusyHost(t *testing.T) {
	for range 4 * runtime.NumCPU() {
		busy := exec.Command("sh", "-c", "while :; do :; done")
		busy.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
		if err := busy.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = busy.Process.Kill()
			_ = busy.Wait()
		})
	}
	frozenSidecar(t)
}

func frozenSidecar(t *testing.T) {
	bothWays(t, func(t *testing.T, noCgroup bool) {
		var late, main []time.Duration
		for range trials(t, 2) {
			s := startSidecar(t, reign{validity: shortLease, children: 5, noCgroup: noCgroup})
			died := deathOf(t, s.main)
			s.freeze()
			eventually(t, "the tree is gone", func() bool { return len(torture.Living(s.mark)) == 0 })
			late = append(late, election.BootClock().Sub(s.deadline))
			main = append(main, (<-died).Sub(s.deadline))
			// Thawed, it learns what happened, and its renewals change nothing.
			s.signal(unix.SIGCONT)
			if line := s.await("exited"); !strings.HasSuffix(line, "guard: lease deadline passed") {
				t.Error(line)
			}
			if line := s.await("gone"); !strings.HasSuffix(line, "<nil>") {
				t.Error(line)
			}
		}
		report(t, "main process dead after the deadline", main)
		report(t, "tree gone after the deadline (seen by a walk over /proc)", late)
	})
}

func TestSidecarEndsTheTreeOfAKilledGuard(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		var took []time.Duration
		for range trials(t, 2) {
			s := startSidecar(t, reign{validity: 10 * time.Second, children: 5, noCgroup: noCgroup})
			began := election.BootClock()
			if err := unix.Kill(s.guard, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if line := s.await("exited"); !strings.HasSuffix(line, "guard: it died") {
				t.Error(line)
			}
			if line := s.await("gone"); !strings.HasSuffix(line, "<nil>") {
				t.Error(line)
			}
			took = append(took, election.BootClock().Sub(began))
			mustBeGone(t, s.mark)
		}
		report(t, "tree gone after the guard was killed", took)
	})
}

func TestSidecarEndsTheTreeOfAFrozenGuard(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		var late []time.Duration
		for range trials(t, 2) {
			s := startSidecar(t, reign{validity: shortLease, children: 5, noCgroup: noCgroup})
			frozen := election.BootClock()
			if err := unix.Kill(s.guard, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			line := s.await("exited")
			if !strings.Contains(line, "guard: it did not answer") {
				t.Error(line)
			}
			if line := s.await("gone"); !strings.HasSuffix(line, "<nil>") {
				t.Error(line)
			}
			mustBeGone(t, s.mark)
			// The last deadline that a frozen guard can have acknowledged.
			late = append(late, election.BootClock().Sub(frozen.Add(shortLease)))
		}
		report(t, "tree gone after the frozen guard's deadline", late)
	})
}

func TestFrozenGuardDoesNotHinderAStop(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		e, mark := startTorture(t, 5, noCgroup)
		if err := unix.Kill(e.tree.guardPID, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if err := e.Stop(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		mustBeGone(t, mark)
	})
}

func TestLateRenewalIsIgnored(t *testing.T) {
	t.Parallel()
	// With the guard frozen over the deadline, the renewal waits in the socket when the guard goes
	// on.
	mark := newMark(t)
	e := newExec(t, Config{Command: []string{"/bin/sleep", "1000"}, AnswerWithin: time.Minute})
	if err := e.Start(t.Context(), []string{torture.Env(mark)}, soon(time.Minute)); err != nil {
		t.Fatal(err)
	}
	k := e.tree
	deadline := soon(3 * time.Second) // far enough for the guard to be frozen before it
	setDeadline(k, deadline)
	eventually(t, "the guard has heard of it", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.watch.acked == deadline
	})
	freezeGuard(t, k.guardPID)
	k.mu.Lock() // the sidecar does not know of the deadline: its own watch stays out of this
	k.watch.deadline, k.watch.acked = election.Never, election.Never
	k.sendLocked(wire.Record{Kind: wire.KindExtend, A: int64(election.Never)})
	k.mu.Unlock()
	eventually(t, "the deadline passes", func() bool { return election.BootClock() > deadline })
	if err := unix.Kill(k.guardPID, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	awaitClosed(t, "the program ends", e.Exited())
	if got := e.Exit(); got != "guard: lease deadline passed" {
		t.Errorf("exit = %q", got)
	}
	if err := e.Stop(t.Context(), 0); err != nil {
		t.Error(err)
	}
	mustBeGone(t, mark)
}

func TestRenewedProgramOutlivesItsFirstDeadline(t *testing.T) {
	t.Parallel()
	e := newExec(t, Config{Command: []string{"/bin/sleep", "1000"}})
	if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
		t.Fatal(err)
	}
	first := soon(3 * time.Second)
	setDeadline(e.tree, first)
	e.Extend(soon(time.Minute))
	e.Extend(soon(time.Second)) // earlier: ignored
	eventually(t, "the first deadline passes", func() bool { return election.BootClock() > first.Add(200*time.Millisecond) })
	select {
	case <-e.Exited():
		t.Fatal("ended: ", e.Exit())
	default:
	}
}

func TestGracefulStop(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		ready := filepath.Join(t.TempDir(), "ready")
		// The shell does not pass the signal on; its child gets it by the process group.
		e := newExec(t, Config{
			Command:  []string{"sh", "-c", `sleep 1000 & trap 'wait $!; exit 7' TERM; : >"$0"; wait`, ready},
			NoCgroup: noCgroup,
		})
		if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
			t.Fatal(err)
		}
		awaitFile(t, ready)
		if err := e.Stop(t.Context(), 30*time.Second); err != nil {
			t.Fatal(err)
		}
		if e.Exit() != "exit status 7" || e.ExitCode() != 7 {
			t.Errorf("exit = %q, %d", e.Exit(), e.ExitCode())
		}
	})
}

// The signal goes to the whole group of the main process at once. What of the group is left when
// the main process has ended is not told again: to many programs a second TERM says that they are
// to drop everything.
func TestStopSignalComesOnce(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		dir := t.TempDir()
		child := `trap 'echo >>told' TERM; : >ready; while ! test -e told; do sleep 0.01; done; sleep 0.3; cp told heard`
		e := newExec(t, Config{
			Command:  []string{"sh", "-c", `trap 'exit 0' TERM; sh -c "$0" & while :; do sleep 0.01; done`, child},
			Dir:      dir,
			NoCgroup: noCgroup,
		})
		if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
			t.Fatal(err)
		}
		awaitFile(t, filepath.Join(dir, "ready"))
		if err := e.Stop(t.Context(), 30*time.Second); err != nil {
			t.Fatal(err)
		}
		if heard, err := os.ReadFile(filepath.Join(dir, "heard")); err != nil || string(heard) != "\n" {
			t.Errorf("the child was told %d times (%v)", len(heard), err)
		}
	})
}

func TestStubbornProgramIsKilledAfterGrace(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		e, mark := startTorture(t, 3, noCgroup)
		began := time.Now()
		if err := e.Stop(t.Context(), 300*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 300*time.Millisecond {
			t.Errorf("killed after %v", took)
		}
		mustBeGone(t, mark)
	})
}

func TestShorterSecondStopWins(t *testing.T) {
	t.Parallel()
	e, mark := startTorture(t, 3, false)
	var all sync.WaitGroup
	began := time.Now()
	for _, grace := range []time.Duration{time.Hour, 200 * time.Millisecond, 2 * time.Hour} {
		all.Go(func() {
			if err := e.Stop(t.Context(), grace); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if took := time.Since(began); took > time.Minute/2 {
		t.Errorf("stopped after %v", took)
	}
	mustBeGone(t, mark)
}

func TestDeadlineShortensAStop(t *testing.T) {
	t.Parallel()
	mark := newMark(t)
	ready := filepath.Join(t.TempDir(), "ready")
	e := newExec(t, Config{Command: []string{"sh", "-c", `trap '' TERM; : >"$0"; while :; do sleep 1; done`, ready}})
	if err := e.Start(t.Context(), []string{torture.Env(mark)}, soon(time.Minute)); err != nil {
		t.Fatal(err)
	}
	awaitFile(t, ready)
	deadline := soon(500 * time.Millisecond)
	setDeadline(e.tree, deadline)
	if err := e.Stop(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	if now := election.BootClock(); now < deadline || now > deadline.Add(20*time.Second) {
		t.Errorf("gone %v after the deadline", now.Sub(deadline))
	}
	if got := e.Exit(); got != "guard: lease deadline passed" {
		t.Errorf("exit = %q", got)
	}
	mustBeGone(t, mark)
}

// TestRenewalDuringThePreparationOfAStartCounts: a start that takes its time, on a busy host, does
// not lose the renewals that come before the guard is there.
func TestRenewalDuringThePreparationOfAStartCounts(t *testing.T) {
	t.Parallel()
	e := newExec(t, Config{Command: []string{"sleep", "60"}})
	plan := e.plan
	e.plan = func(s *wire.Spec) error {
		e.Extend(soon(time.Minute))
		return plan(s)
	}
	deadline := soon(20 * time.Second)
	if err := e.Start(t.Context(), nil, deadline); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the guard holds the later deadline", func() bool { return heldDeadline(t, e.tree.guardPID) > deadline.Add(20*time.Second) })
	if err := e.Stop(t.Context(), 0); err != nil {
		t.Error(err)
	}
}

func TestStopThatIsNotConfirmedSaysSo(t *testing.T) {
	t.Parallel()
	e, _ := startTorture(t, 1, false)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("out of patience"))
	err := e.Stop(ctx, time.Hour)
	if err == nil || !strings.Contains(err.Error(), "cannot confirm the stop of /bin/sh: out of patience") {
		t.Errorf("err = %v", err)
	}
	if err := e.Start(t.Context(), nil, soon(time.Minute)); err == nil || !strings.Contains(err.Error(), "not confirmed to be gone") {
		t.Errorf("second start: %v", err)
	}
}

func TestStartFailureLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("#!/nonexistent/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		cfg      Config
		deadline election.Instant
		want     string
	}{
		"no command":          {Config{}, election.Never, "cannot start: no command is given"},
		"missing file":        {Config{Command: []string{"/nonexistent/ordersd"}}, election.Never, "cannot start /nonexistent/ordersd: stat /nonexistent/ordersd: no such file or directory"},
		"not in the path":     {Config{Command: []string{"no-such-ordersd"}}, election.Never, "cannot start no-such-ordersd: executable file not found in $PATH"},
		"a directory":         {Config{Command: []string{dir}}, election.Never, "is a directory"},
		"missing interpreter": {Config{Command: []string{text}}, election.Never, "no such file or directory"},
		"missing directory":   {Config{Command: []string{"true"}, Dir: "/nonexistent"}, election.Never, "the working directory can't be used: stat /nonexistent: no such file or directory"},
		"missing user":        {Config{Command: []string{"true"}, User: "no-such-user"}, election.Never, `there is no user "no-such-user"`},
		"past deadline":       {Config{Command: []string{"/bin/true"}}, 1, "cannot start /bin/true: the lease deadline has passed"},
		"no watchdog":         {Config{Command: []string{"/bin/true"}, Watchdog: wire.WatchdogRequired, WatchdogPath: "/nonexistent/watchdog"}, election.Never, "cannot open the watchdog, which is required: open /nonexistent/watchdog: no such file or directory"},
		"no guard":            {Config{Command: []string{"/bin/true"}, Self: "/bin/true"}, election.Never, "the guard ended at once"},
		"two outputs":         {Config{Command: []string{"/bin/true"}, Output: Output{File: text, Journal: "x"}}, election.Never, "the output can go to one place only"},
	} {
		t.Run(name, func(t *testing.T) {
			if test.cfg.StateDir == "" {
				test.cfg.StateDir = t.TempDir()
			}
			e := newExec(t, test.cfg)
			err := e.Start(t.Context(), nil, test.deadline)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("err = %v, want %s", err, test.want)
			}
			if err := e.Stop(t.Context(), 0); err != nil {
				t.Error(err)
			}
			if left := kernel.FindCgroups(kernel.CgroupPrefix + e.cfg.kin()); len(left) > 0 {
				t.Errorf("cgroups are left: %v", left)
			}
			if _, err := wire.Recall(e.cfg.StateDir); !errors.Is(err, wire.ErrNoTrace) {
				t.Errorf("a record is left: %v", err)
			}
		})
	}
}

func TestCancelledStartIsUndone(t *testing.T) {
	t.Parallel()
	mark := newMark(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("changed my mind"))
	e := newExec(t, Config{Command: []string{"sleep", "1000"}})
	err := e.Start(ctx, []string{torture.Env(mark)}, election.Never)
	if err == nil || !strings.Contains(err.Error(), "changed my mind") {
		t.Errorf("err = %v", err)
	}
	mustBeGone(t, mark)
}

func TestZombiesDoNotPileUp(t *testing.T) {
	t.Parallel()
	e, _ := startTorture(t, 1, false) // in it is a process that makes orphans all the time
	zombies := func() int {
		h := kernel.NewHunter()
		h.Children(int32(e.tree.guardPID))
		n := 0
		for _, pid := range h.PIDs[:h.N] {
			if state, _, _ := h.Stat(pid); state == 'Z' {
				n++
			}
		}
		return n
	}
	for until := soon(500 * time.Millisecond); election.BootClock() < until; {
		if zombies() > 100 { // a guard that does not run for a moment is late, and no more
			eventually(t, "the zombies are reaped", func() bool { return zombies() <= 100 })
		}
	}
}

func TestExitIsAnEvent(t *testing.T) {
	t.Parallel()
	for command, want := range map[string]string{
		"exit 0":                     "exit status 0",
		"exit 3":                     "exit status 3",
		"kill -KILL $$":              "killed by SIGKILL",
		"ulimit -c 0; kill -SEGV $$": "killed by SIGSEGV",
	} {
		e := newExec(t, Config{Command: []string{"sh", "-c", command}})
		if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
			t.Fatal(err)
		}
		awaitClosed(t, "exit", e.Exited())
		if got := e.Exit(); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
}

func TestExitLatency(t *testing.T) {
	var took []time.Duration
	for range trials(t, 10) {
		e := newExec(t, Config{Command: []string{"sleep", "1000"}})
		if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := unix.Kill(e.PID(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		awaitClosed(t, "exit", e.Exited())
		took = append(took, time.Since(began))
	}
	report(t, "exit seen after the kill", took)
}

func TestDescendantsOutliveTheMainProcessUntilTheStop(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		mark := newMark(t)
		e := newExec(t, Config{Command: []string{"sh", "-c", "setsid sleep 1000 & exit 3"}, NoCgroup: noCgroup})
		if err := e.Start(t.Context(), []string{torture.Env(mark)}, soon(time.Minute)); err != nil {
			t.Fatal(err)
		}
		awaitClosed(t, "exit", e.Exited())
		// A process shows no environment, and so no mark, while it executes another program.
		eventually(t, "the daemon is seen", func() bool { return len(torture.Living(mark)) > 0 })
		if err := e.Stop(t.Context(), 30*time.Second); err != nil { // the daemon is asked, too
			t.Error(err)
		}
		mustBeGone(t, mark)
		if got := e.Exit(); got != "exit status 3" {
			t.Errorf("exit = %q", got)
		}
	})
}

func TestRestartAfterStop(t *testing.T) {
	t.Parallel()
	e := newExec(t, Config{Command: []string{"sleep", "1000"}})
	for range 3 {
		if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if err := e.Start(t.Context(), nil, soon(time.Minute)); err == nil {
			t.Error("started twice")
		}
		if err := e.Stop(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		awaitClosed(t, "exit", e.Exited())
	}
}

func TestAgentEndsWithItsSidecar(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		s := startSidecar(t, reign{children: 3, noCgroup: noCgroup})
		s.kill()
		eventually(t, "the tree is gone", func() bool { return len(torture.Living(s.mark)) == 0 })
	})
}

func TestEnvironmentAndUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	var mu sync.Mutex
	var lines []string
	e := newExec(t, Config{
		Command: []string{"sh", "-c", `id -un; echo "$HOME $A $B"; pwd; echo fds /proc/self/fd/*; echo $GOGC; umask >/dev/null; cat /proc/self/oom_score_adj; exec 2>&1; echo error >&2`},
		Env:     []string{"A=1", "B=2", "PATH=" + os.Getenv("PATH")}, User: "nobody", Dir: "/usr",
		Output: Output{Line: func(b []byte) { mu.Lock(); lines = append(lines, string(b)); mu.Unlock() }},
	})
	if err := e.Start(t.Context(), []string{"B=3"}, election.Never); err != nil {
		t.Fatal(err)
	}
	awaitClosed(t, "exit", e.Exited())
	if err := e.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(lines, "\n")
	want := "nobody\n/nonexistent 1 3\n/usr\nfds /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2\n\n0\nerror"
	// The shell itself holds one more handle while it reads the directory.
	got = strings.Replace(got, " /proc/self/fd/3\n", "\n", 1)
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}
