package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

// migrated is a slot with a migration; both write a line with what they were given to a file.
type migrated struct {
	*Slot
	t       *testing.T
	file    string
	program *Exec
}

func withMigration(t *testing.T, dir, script string, within time.Duration) *migrated {
	t.Helper()
	m := &migrated{t: t, file: filepath.Join(dir, "said")}
	env := []string{"SAID=" + m.file}
	m.program = newExec(t, Config{Command: []string{"sh", "-c", `echo "program $TANIST_TERM $SECRET" >> "$SAID"; exec sleep 1000`}, Env: env, StateDir: filepath.Join(dir, "program")})
	migration := NewMigrating(m.program, Config{
		Command: []string{"sh", "-c", `echo "migration $TANIST_TERM $SECRET" >> "$SAID"; ` + script}, Env: env, StateDir: filepath.Join(dir, "migration"),
		Output: Output{Line: func([]byte) {}},
	}, within)
	t.Cleanup(func() {
		if err := migration.first.Stop(context.Background(), 0); err != nil {
			t.Errorf("cannot clean up: %v", err)
		}
	})
	m.Slot = NewSlot(migration)
	return m
}

// begin starts the program in a term, and ends it again.
func (m *migrated) begin(term int, deadline election.Instant) error {
	m.t.Helper()
	before := len(m.said())
	err := m.Start(m.t.Context(), []string{fmt.Sprintf("TANIST_TERM=%d", term), fmt.Sprintf("SECRET=secret-%d", term)}, deadline)
	if err == nil {
		eventually(m.t, "the program runs", func() bool {
			said := m.said()
			return len(said) > before && strings.HasPrefix(said[len(said)-1], "program ")
		})
	}
	if stopped := m.Stop(context.Background(), 0); stopped != nil {
		m.t.Error(stopped)
	}
	return err
}

func (m *migrated) said() []string {
	b, err := os.ReadFile(m.file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// TestMigrationRunsOncePerTermBeforeTheProgram: with the term's secret; a restart in place does not
// repeat it, not even by a later process.
func TestMigrationRunsOncePerTermBeforeTheProgram(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := withMigration(t, dir, "exit 0", time.Minute)
	for _, term := range []int{1, 1, 2} {
		if err := m.begin(term, soon(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	if err := withMigration(t, dir, "exit 0", time.Minute).begin(2, soon(time.Minute)); err != nil {
		t.Fatal(err)
	}
	want := "migration 1 secret-1\nprogram 1 secret-1\nprogram 1 secret-1\nmigration 2 secret-2\nprogram 2 secret-2\nprogram 2 secret-2"
	if got := strings.Join(m.said(), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestMigrationThatFailsPreventsTheStart: and is repeated by the next attempt.
func TestMigrationThatFailsPreventsTheStart(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, script, want string
		within, validity   time.Duration
	}{
		{"it exits", "exit 3", "the migration failed: exit status 3", time.Minute, time.Minute},
		{"it takes too long", "exec sleep 1000", "the migration failed: it did not end within 5s", 5 * time.Second, time.Minute},
		{"the lease ends", "exec sleep 1000", "the migration failed: guard: lease deadline passed", time.Minute, 5 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			m := withMigration(t, t.TempDir(), tc.script, tc.within)
			for range 2 {
				if err := m.begin(1, soon(tc.validity)); err == nil || err.Error() != tc.want {
					t.Errorf("got %v, want %q", err, tc.want)
				}
			}
			if got := strings.Join(m.said(), ", "); got != "migration 1 secret-1, migration 1 secret-1" {
				t.Errorf("it ran: %s", got)
			}
		})
	}
}

// TestMigrationMayTakeLongerThanAValidity: renewals move its deadline, and the program is started
// with the last one.
func TestMigrationMayTakeLongerThanAValidity(t *testing.T) {
	t.Parallel()
	m := withMigration(t, t.TempDir(), "sleep 6", time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		for ctx.Err() == nil {
			m.Extend(soon(4 * time.Second))
			time.Sleep(50 * time.Millisecond)
		}
	}()
	err := m.begin(1, soon(4*time.Second))
	cancel()
	<-renewed
	if err != nil {
		t.Error(err)
	}
}

// TestMigrationThatAKilledSidecarLeftIsEnded: before the next process may start, or release.
func TestMigrationThatAKilledSidecarLeftIsEnded(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"adopt", "settle", "stop", "start"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := startSidecar(t, reign{validity: 30 * time.Second, children: 2, dir: filepath.Join(dir, "migration")})
			s.kill()
			m := withMigration(t, dir, "exit 0", time.Minute)
			var err error
			switch how {
			case "adopt":
				if err = m.Adopt(t.Context(), soon(time.Minute)); errors.Is(err, ErrNothingToAdopt) {
					err = nil
				}
			case "settle":
				err = m.Settle(t.Context())
			case "stop":
				err = m.Stop(t.Context(), 0)
			case "start":
				err = m.begin(1, soon(time.Minute))
			}
			if err != nil {
				t.Error(err)
			}
			mustBeGone(t, s.mark)
		})
	}
}
