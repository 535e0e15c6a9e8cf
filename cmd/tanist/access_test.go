package main

import (
	"context"
	"errors"
	"testing"

	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
)

// TestInterrupted: an operator who interrupts a command is not told that the store is away.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	away := storeError(context.Canceled, "cannot read the store")
	if err := interrupted(ctx, away); exit.Code(err) != exit.Store {
		t.Errorf("not interrupted: %v", err)
	}
	cancel(errors.New("the command was told to end (interrupt)"))
	if err := interrupted(ctx, nil); err != nil {
		t.Errorf("done before: %v", err)
	}
	want := "the command was told to end (interrupt); what was requested before that continues: see `tanist list`"
	if err := interrupted(ctx, away); exit.Code(err) != exit.Failure || err.Error() != want {
		t.Errorf("interrupted: %v", err)
	}
}

func TestStoreErrorsHaveTheirCodes(t *testing.T) {
	if got := exit.Code(storeError(errors.New("x"), "y")); got != exit.Store {
		t.Errorf("a store that is away: %d", got)
	}
	if got := exit.Code(writeError(election.ErrDenied, "the pause")); got != exit.Denied {
		t.Errorf("a denied write: %d", got)
	}
}
