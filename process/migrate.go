package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tanist/tanist/election"
)

// Migrating is a [Driver] that runs a command to its end before the first start of each term. The
// command may write to what the program uses, so it is kept as the program is: under a guard, until
// the same deadline, and found again by a later process of the sidecar, which ends it.
type Migrating struct {
	Driver
	first  *Exec
	within time.Duration // zero: no command runs; what an earlier one left is still ended

	mu   sync.Mutex
	busy bool
	last election.Instant // deadline
	done string           // the term whose migration has succeeded
}

// NewMigrating returns a driver that runs the command of cfg, for up to within, before d starts its
// program. cfg has a state directory and an identity of its own.
func NewMigrating(d Driver, cfg Config, within time.Duration) *Migrating {
	return &Migrating{Driver: d, first: New(cfg), within: within}
}

// Accompany sets the companion of the command and of the program.
func (m *Migrating) Accompany(c *Companion) {
	m.first.Accompany(c)
	m.Driver.Accompany(c)
}

// Start runs the command, unless it has succeeded in this term, and then starts the program, both
// with env. The term is the variable TANIST_TERM.
func (m *Migrating) Start(ctx context.Context, env []string, deadline election.Instant) error {
	term := termOf(env)
	m.mu.Lock()
	due := m.within > 0 && (term == "" || term != m.doneLocked())
	m.last, m.busy = deadline, due
	m.mu.Unlock()
	if due {
		if err := m.migrate(ctx, env, deadline); err != nil {
			return err
		}
		m.mu.Lock()
		m.busy = false
		m.finishLocked(term)
		deadline = m.last // it was moved meanwhile
		m.mu.Unlock()
	}
	return m.Driver.Start(ctx, env, deadline)
}

// doneFile has the term whose migration has succeeded, for a later process that adopts the program.
const doneFile = "migrated"

// doneLocked returns the term whose migration has succeeded, or "".
func (m *Migrating) doneLocked() string {
	if m.done == "" && m.first.cfg.StateDir != "" {
		term, _ := os.ReadFile(filepath.Join(m.first.cfg.StateDir, doneFile)) // if it is lost, the command runs once more
		m.done = string(term)
	}
	return m.done
}

// finishLocked records that the migration of term has succeeded.
func (m *Migrating) finishLocked(term string) {
	m.done = term
	if m.first.cfg.StateDir == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(m.first.cfg.StateDir, doneFile), []byte(term), 0o600); err != nil {
		m.first.cfg.Log.Warn().Err(err).Msg("cannot record the migration; a restart in place after a restart of this sidecar repeats it")
	}
}

// migrate runs the command, and ends what it left behind. After an error it may still run, and Stop
// ends it.
func (m *Migrating) migrate(ctx context.Context, env []string, deadline election.Instant) error {
	log := m.first.cfg.Log
	log.Info().Str("command", m.first.cfg.Command[0]).Msg("running the migration")
	began := time.Now()
	err := m.first.complete(ctx, env, deadline, m.within)
	if err == nil {
		err = m.first.Stop(context.WithoutCancel(ctx), 0)
	}
	if err != nil {
		return fmt.Errorf("the migration failed: %w", err)
	}
	log.Info().Dur("took_ms", time.Since(began)).Msg("the migration has ended")
	return nil
}

func termOf(env []string) (term string) {
	for _, kv := range env {
		if value, ok := strings.CutPrefix(kv, "TANIST_TERM="); ok {
			term = value
		}
	}
	return term
}

// Adopt adopts the program. A command that an earlier process left running is ended: whether it
// had succeeded would not be known, and the program was not started.
func (m *Migrating) Adopt(ctx context.Context) error {
	err := m.Driver.Adopt(ctx)
	if !errors.Is(err, ErrNothingToAdopt) {
		return err
	}
	if left := m.first.Settle(ctx); left != nil {
		return fmt.Errorf("cannot end the migration that an earlier process began: %w", left)
	}
	return err
}

// Settle ends what an earlier process left, of the command and of the program.
func (m *Migrating) Settle(ctx context.Context) error {
	return both(m.first.Settle(ctx), m.Driver.Settle(ctx))
}

// Extend moves the deadline.
func (m *Migrating) Extend(deadline election.Instant) {
	m.mu.Lock()
	m.last = deadline
	busy := m.busy
	m.mu.Unlock()
	if busy {
		m.first.Extend(deadline)
	}
	m.Driver.Extend(deadline)
}

// Stop ends the command, if it runs, and the program.
func (m *Migrating) Stop(ctx context.Context, grace time.Duration) error {
	err := both(m.first.Stop(ctx, grace), m.Driver.Stop(ctx, grace))
	if err == nil {
		m.mu.Lock()
		m.busy = false
		m.mu.Unlock()
	}
	return err
}

// both joins the errors of two ends. An end that may be repeated outweighs one that cannot be
// proven, because something of the other may still run.
func both(a, b error) error {
	switch {
	case a != nil && !errors.Is(a, election.ErrUnproven):
		return a
	case b != nil && !errors.Is(b, election.ErrUnproven):
		return b
	}
	return errors.Join(a, b)
}
