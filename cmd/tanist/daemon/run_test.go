package daemon

import (
	"context"
	"errors"
	"testing"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/internal/testbed"
	"github.com/tanist/tanist/process"
)

// TestStartAfterTheLeaseEndedIsNoFailureOfTheCommand: on a busy host the lease may end before the
// command is started. Then the run waits for its next turn, or ends with --once as it does whenever
// it loses the lease.
func TestStartAfterTheLeaseEndedIsNoFailureOfTheCommand(t *testing.T) {
	tanist := testbed.Binary(t, "tanist")
	for _, row := range []struct {
		name    string
		command string
		once    bool
		code    int // of the end; -1: the run goes on
	}{
		{"it waits for its next turn", "/bin/true", false, -1},
		{"once", "/bin/true", true, exit.NotActive},
		{"a command that cannot be started ends the run", "/nonexistent/program", false, exit.Failure},
	} {
		t.Run(row.name, func(t *testing.T) {
			ctx, end := context.WithCancelCause(t.Context())
			defer end(nil)
			turn := &turn{driver: process.New(process.Config{Command: []string{row.command}, Self: tanist, Log: zerolog.Nop()}), end: end, once: row.once}
			if err := turn.Start(t.Context(), nil, 1); err == nil {
				t.Fatal("it started")
			}
			cause := context.Cause(ctx)
			if ended := cause != nil; ended != (row.code >= 0) {
				t.Fatalf("ended: %t (%v)", ended, cause)
			}
			if cause != nil && exit.Code(cause) != row.code {
				t.Errorf("exit code %d (%v), want %d", exit.Code(cause), cause, row.code)
			}
			if err := turn.driver.Stop(t.Context(), 0); err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
}
