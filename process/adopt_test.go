package process

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
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

func TestRestartedSidecarAdopts(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		// longer than a socket's address may be
		dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
		s := startSidecar(t, reign{validity: 10 * time.Second, children: 3, noCgroup: noCgroup, dir: dir})
		for range trials(t, 3) {
			s.kill()
			old := s.deadline
			next := startSidecar(t, reign{validity: 10 * time.Second, children: 3, noCgroup: noCgroup, dir: dir, mark: s.mark})
			if !next.adopted || next.guard != s.guard || next.main != s.main {
				t.Fatalf("adopted %t, guard %d → %d, main %d → %d", next.adopted, s.guard, next.guard, s.main, next.main)
			}
			if moved := heldDeadline(t, s.guard).Sub(old); moved < 10*time.Millisecond { // reading it is inexact
				t.Errorf("the guard holds the deadline of the sidecar before, moved by %v", moved)
			}
			s = next
		}
		// An adopted tree is watched as well as any other.
		if err := unix.Kill(s.main, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if line := s.await("exited"); !strings.HasSuffix(line, "killed by SIGKILL") {
			t.Error(line)
		}
		if line := s.await("gone"); !strings.HasSuffix(line, "<nil>") {
			t.Error(line)
		}
		mustBeGone(t, s.mark)
		if left, _ := os.ReadDir(dir); len(left) != 1 || left[0].Name() != wire.LockFile {
			t.Errorf("left in the state directory: %v", left)
		}
	})
}

func TestSecondSidecarIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := newExec(t, Config{Command: []string{"sleep", "1000"}, StateDir: dir})
	if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
		t.Fatal(err)
	}
	cfg := e.cfg
	cfg.AnswerWithin = time.Second
	if _, err := Adopt(t.Context(), cfg); err == nil || errors.Is(err, ErrNothingToAdopt) || !strings.Contains(err.Error(), "another sidecar keeps this program") {
		t.Errorf("adopt: %v", err)
	}
	if err := newExec(t, cfg).Start(t.Context(), nil, soon(time.Minute)); err == nil || !strings.Contains(err.Error(), "another sidecar keeps this program") {
		t.Errorf("start: %v", err)
	}
	select {
	case <-e.Exited():
		t.Error("the program ended")
	default:
	}
}

func TestForeignUserIsRefused(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("/tmp", "tanist-knock")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	e := newExec(t, Config{Command: []string{"sleep", "1000"}, StateDir: dir, Output: Output{Line: func([]byte) {}}})
	if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Join(dir, wire.SocketFile), 0o666)); err != nil {
		t.Fatal(err)
	}
	knock := exec.Command("/proc/self/exe", "knock", filepath.Join(dir, wire.SocketFile))
	knock.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := knock.CombinedOutput()
	if err != nil || string(out) != "the user is another" {
		t.Errorf("%v: %s", err, out)
	}
}

func TestAdoptedGuardThatIsKilled(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		dir := t.TempDir()
		s := startSidecar(t, reign{validity: 10 * time.Second, children: 3, noCgroup: noCgroup, dir: dir, still: noCgroup})
		s.kill()
		s = startSidecar(t, reign{validity: shortLease, noCgroup: noCgroup, dir: dir, mark: s.mark}) // soon to be waited for
		if !s.adopted {
			t.Fatal("not adopted")
		}
		if err := unix.Kill(s.guard, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if line := s.await("exited"); !strings.HasSuffix(line, "guard: it died") {
			t.Error(line)
		}
		line := s.await("gone")
		// without a cgroup it can't be known
		if confirmed := strings.HasSuffix(line, "<nil>"); confirmed == noCgroup {
			t.Error(line)
		}
		mustBeGone(t, s.mark)
	})
}

func TestNothingIsLeftWhereGuardAndSidecarWereKilled(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		dir := t.TempDir()
		s := startSidecar(t, reign{validity: time.Minute, children: 3, noCgroup: noCgroup, dir: dir, still: noCgroup})
		freezeGuard(t, s.guard) // so that it does not act on the sidecar's end
		s.kill()
		_ = unix.Kill(s.guard, unix.SIGKILL)
		eventually(t, "the main process is gone", func() bool { return unix.Kill(s.main, 0) != nil || kernel.IsZombie(s.main) })
		if len(torture.Living(s.mark)) == 0 {
			t.Fatal("nothing was left to clear")
		}
		_, err := Adopt(t.Context(), Config{Command: []string{"sleep", "1000"}, StateDir: dir})
		// what wiped its environment would not be found
		if proven := errors.Is(err, ErrNothingToAdopt); proven == noCgroup {
			t.Error(err)
		}
		mustBeGone(t, s.mark)
	})
}

func TestStartClearsWhatWasLeft(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := startSidecar(t, reign{validity: time.Minute, children: 3, dir: dir})
	s.kill()
	e := newExec(t, Config{Command: []string{"sleep", "1000"}, StateDir: dir})
	if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
		t.Fatal(err)
	}
	mustBeGone(t, s.mark)
}

func TestNothingToAdopt(t *testing.T) {
	t.Parallel()
	cfg := Config{Command: []string{"true"}, StateDir: filepath.Join(t.TempDir(), "none")}
	if _, err := Adopt(t.Context(), cfg); !errors.Is(err, ErrNothingToAdopt) {
		t.Error(err)
	}
	cfg.StateDir = t.TempDir()
	if err := os.WriteFile(filepath.Join(cfg.StateDir, wire.TraceFile), make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Adopt(t.Context(), cfg); !errors.Is(err, ErrNothingToAdopt) {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.StateDir, wire.TraceFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Adopt(t.Context(), cfg); err == nil || errors.Is(err, ErrNothingToAdopt) || !strings.Contains(err.Error(), "cannot be read") {
		t.Error(err)
	}
}

func TestDetachKeepsProgramAndOutput(t *testing.T) {
	t.Parallel()
	for name, deadline := range map[string]election.Instant{"controller": soon(time.Minute), "agent": election.Never} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var lines []string
			await := func(want string) {
				t.Helper()
				eventually(t, "line "+want, func() bool {
					mu.Lock()
					defer mu.Unlock()
					return len(lines) > 0 && lines[len(lines)-1] == want
				})
			}
			fifo := filepath.Join(t.TempDir(), "fifo")
			if err := unix.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			cfg := Config{
				Command: []string{"sh", "-c", `echo one; while read -r line; do echo "$line"; done <"$0"; exit 4`, fifo}, StateDir: t.TempDir(),
				Output: Output{Line: func(b []byte) { mu.Lock(); lines = append(lines, string(b)); mu.Unlock() }},
			}
			e := newExec(t, cfg)
			if err := e.Start(t.Context(), nil, deadline); err != nil {
				t.Fatal(err)
			}
			await("one")
			feed, err := os.OpenFile(fifo, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Detach(t.Context(), soon(time.Minute)); err != nil {
				t.Fatal(err)
			}
			if _, err := feed.WriteString("two\n"); err != nil {
				t.Fatal(err)
			}
			a, err := Adopt(t.Context(), e.cfg)
			if err != nil {
				t.Fatal(err)
			}
			a.Extend(election.Never)
			await("two")
			if _, err := feed.WriteString("three\n"); err != nil {
				t.Fatal(err)
			}
			await("three")
			feed.Close()
			awaitClosed(t, "exit", a.Exited())
			if got := a.Exit(); got != "exit status 4" {
				t.Error(got)
			}
			if err := a.Stop(t.Context(), 0); err != nil {
				t.Error(err)
			}
		})
	}
}
