package daemon

import (
	"context"
	"errors"
	"slices"
	"testing"
)

// TestTeardownUndoesInReverse: even a partial start, and every failure is reported.
func TestTeardownUndoesInReverse(t *testing.T) {
	var order []string
	start := func() (err error) {
		var down teardown
		defer down.unwind(&err)
		down.add(func() error { order = append(order, "store"); return errors.New("cannot close") })
		around := down.beside(t.Context(), func(ctx context.Context) {
			<-ctx.Done()
			order = append(order, "server")
		})
		down.add(func() error { order = append(order, "fence"); return around.Err() })
		return errors.New("cannot start")
	}
	if err := start(); err == nil || err.Error() != "cannot start\ncannot close" {
		t.Errorf("got %v", err)
	}
	if want := []string{"fence", "server", "store"}; !slices.Equal(order, want) {
		t.Errorf("undone: %v, want %v", order, want)
	}
}
