package daemon

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// storeWatch checks periodically whether the store takes writes, and what its servers complain of.
// On a store that serves reads and refuses writes nobody can claim, and nothing else would show
// that before a claim is due.
type storeWatch struct {
	keys    election.Keys
	name    string
	warning func(context.Context) string // may be nil
	log     zerolog.Logger

	mu      sync.Mutex
	refusal error
	warned  string
}

const (
	writableEvery = 10 * time.Second
	warningEvery  = 5 * time.Minute
	watchAttempt  = 2 * time.Second
)

func newStoreWatch(s Store, name string, log zerolog.Logger) *storeWatch {
	w := &storeWatch{keys: s, name: name, log: log}
	if warner, ok := s.(interface{ Warning(context.Context) string }); ok {
		w.warning = warner.Warning
	}
	return w
}

// run looks until ctx ends.
func (w *storeWatch) run(ctx context.Context) {
	writable, warnings := time.NewTicker(writableEvery), time.NewTicker(warningEvery)
	defer writable.Stop()
	defer warnings.Stop()
	w.lookForRefusal(ctx)
	w.lookForWarning(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-writable.C:
			w.lookForRefusal(ctx)
		case <-warnings.C:
			w.lookForWarning(ctx)
		}
	}
}

func (w *storeWatch) lookForRefusal(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, watchAttempt)
	defer cancel()
	err := election.Writable(limited, w.keys, w.name)
	if ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	before := w.refusal
	w.refusal = err
	w.mu.Unlock()
	switch {
	case err != nil && before == nil:
		w.log.Error().Err(err).Msg("store refuses writes")
	case err == nil && before != nil:
		w.log.Info().Msg("store accepts writes again")
	}
}

func (w *storeWatch) lookForWarning(ctx context.Context) {
	if w.warning == nil {
		return
	}
	limited, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	text := w.warning(limited)
	if limited.Err() != nil {
		return
	}
	w.mu.Lock()
	before := w.warned
	w.warned = text
	w.mu.Unlock()
	if text != "" && text != before {
		w.log.Warn().Msg(text)
	}
}

// state returns the refusal of the last write, or nil, and whether the servers complain.
func (w *storeWatch) state() (refusal error, warned bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.refusal, w.warned != ""
}

// preFlight adds the reason that a controller could not start here because its lease could not be
// claimed.
func (w *storeWatch) preFlight(other func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		refusal, _ := w.state()
		if other == nil {
			return refusal
		}
		return errors.Join(refusal, other(ctx))
	}
}
