package sidecar

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// chronicle writes the records of reigns in the background, since a takeover must not wait for what only people read. One
// attempt each: a store that is away has other worries.
type chronicle struct {
	keys    election.Keys
	attempt time.Duration
	log     zerolog.Logger
	wake    chan struct{}

	mu      sync.Mutex
	waiting []election.History
}

// historyKept is how many reigns are kept.
const historyKept = 200

// add queues a record. It does not block.
func (c *chronicle) add(h election.History) {
	c.mu.Lock()
	c.waiting = append(c.waiting, h)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// loop writes until ctx ends, then what is still waiting.
func (c *chronicle) loop(ctx context.Context) {
	for ended := false; !ended; {
		select {
		case <-ctx.Done():
			ended = true
		case <-c.wake:
		}
		for {
			c.mu.Lock()
			if len(c.waiting) == 0 {
				c.mu.Unlock()
				break
			}
			h := c.waiting[0]
			c.waiting = c.waiting[1:]
			c.mu.Unlock()
			if err := c.write(context.WithoutCancel(ctx), h); err != nil {
				c.log.Warn().Err(err).Uint64("term", uint64(h.Term)).Msg("cannot write the history")
			}
		}
	}
}

func (c *chronicle) write(ctx context.Context, h election.History) error {
	limited, cancel := context.WithTimeout(ctx, c.attempt)
	defer cancel()
	if err := c.keys.Put(limited, election.Put{Key: election.HistoryKey(h.Term), Value: h.Encode()}); err != nil {
		return err
	}
	if h.Ended.IsZero() && h.Term > historyKept {
		return c.prune(ctx, h.Term-historyKept)
	}
	return nil
}

// prune removes the records of reigns up to a term.
func (c *chronicle) prune(ctx context.Context, upTo election.Term) error {
	ctx, cancel := context.WithTimeout(ctx, 10*c.attempt)
	defer cancel()
	entries, err := c.keys.List(ctx, "history/")
	if err != nil {
		return err
	}
	for _, e := range entries {
		var h election.History
		if json.Unmarshal(e.Value, &h) != nil || h.Term > upTo {
			continue // not ours to remove if it can't be read
		}
		if err := c.keys.Delete(ctx, e.Key, e.Version); err != nil {
			return err
		}
	}
	return nil
}
