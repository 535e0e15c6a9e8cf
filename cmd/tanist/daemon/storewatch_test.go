package daemon

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// TestStoreThatRefusesWritesMakesPassivesUnfit: within seconds, with a line in the log, and until
// it takes writes again.
func TestStoreThatRefusesWritesMakesPassivesUnfit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := electiontest.NewStore()
		var log strings.Builder
		w := &storeWatch{keys: store.Client("a"), name: "ctl-a", log: zerolog.New(&log), warning: func(context.Context) string { return "it fills up" }}
		other := errors.New("the port is in use")
		fit, both := w.preFlight(nil), w.preFlight(func(context.Context) error { return other })
		ctx, stop := context.WithCancel(t.Context())
		go w.run(ctx)
		look := func(want error) {
			t.Helper()
			synctest.Wait()
			if err := fit(ctx); !errors.Is(err, want) {
				t.Errorf("unfit because of %v, want %v", err, want)
			}
			if err := both(ctx); want != nil && !errors.Is(err, want) || !errors.Is(err, other) {
				t.Errorf("unfit because of %v, want %v and %v", err, want, other)
			}
		}
		look(nil)
		store.RefuseWrites(true)
		time.Sleep(writableEvery)
		look(election.ErrReadOnly)
		store.Down() // is not a refusal
		time.Sleep(2 * writableEvery)
		look(nil)
		store.Up()
		time.Sleep(writableEvery)
		look(election.ErrReadOnly)
		store.RefuseWrites(false)
		time.Sleep(writableEvery)
		look(nil)
		time.Sleep(2 * warningEvery)
		if _, warned := w.state(); !warned {
			t.Error("the warning is not known")
		}
		stop()
		synctest.Wait()
		for line, want := range map[string]int{"store refuses writes": 2, "store accepts writes again": 2, "it fills up": 1} {
			if got := strings.Count(log.String(), line); got != want {
				t.Errorf("%q was logged %d times, want %d", line, got, want)
			}
		}
	})
}
