package sidecar

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// chronicle writes the records of reigns in the background, because a takeover must not wait for
// what only people read. Each record gets one attempt.
type chronicle struct {
	keys    election.Keys
	attempt time.Duration
	log     zerolog.Logger
	wake    chan struct{}

	mu      sync.Mutex
	waiting []election.History
}

// historyKept is the number of reigns whose records are kept.
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

// loop writes until ctx ends, and then what is still queued.
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
	limited, cancel := context.WithTimeout(ctx, 2*c.attempt)
	defer cancel()
	e, err := c.keys.Get(limited, election.HistoryKey(h.Term))
	if err != nil {
		return err
	}
	if h.When.IsZero() { // an earlier process of this sidecar recorded its beginning
		h = began(e, h)
	}
	// By compare-and-swap: a write that was given up, and arrives after this one, must not undo it.
	if err := c.keys.Put(limited, election.Put{Key: election.HistoryKey(h.Term), Value: h.Encode(), If: &e.Version}); err != nil {
		return err
	}
	if h.Ended.IsZero() && h.Term > historyKept { // otherwise there are fewer
		return c.prune(ctx)
	}
	return nil
}

// began adds the beginning of a reign, which an earlier process recorded in e, to its end.
func began(e election.Entry, h election.History) election.History {
	began, ok := readHistory(e)
	if !ok || began.Term != h.Term {
		return h
	}
	for _, again := range h.Restarts { // some were written before
		if n := len(began.Restarts); n == 0 || again.At.After(began.Restarts[n-1].At) {
			began.Restarts = append(began.Restarts, again)
		}
	}
	began.Ended, began.EndedBy, began.EndDetect, began.EndAtMost, began.EndStop = h.Ended, h.EndedBy, h.EndDetect, h.EndAtMost, h.EndStop
	return began
}

// readHistory decodes a record. ok is false if it is not one.
func readHistory(e election.Entry) (h election.History, ok bool) {
	return h, e.Version != 0 && json.Unmarshal(e.Value, &h) == nil
}

// prune removes all records but the newest. It counts them, because terms may have been skipped.
func (c *chronicle) prune(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*c.attempt)
	defer cancel()
	entries, err := c.keys.List(ctx, election.HistoryPrefix)
	if err != nil {
		return err
	}
	terms := map[string]election.Term{}
	for _, e := range entries {
		if h, ok := readHistory(e); ok { // an unreadable record is not ours to remove
			terms[e.Key] = h.Term
		}
	}
	entries = slices.DeleteFunc(entries, func(e election.Entry) bool { return terms[e.Key] == 0 })
	slices.SortFunc(entries, func(a, b election.Entry) int { return cmp.Compare(terms[b.Key], terms[a.Key]) })
	for _, e := range entries[min(historyKept, len(entries)):] {
		if err := c.keys.Delete(ctx, e.Key, e.Version); err != nil {
			return err
		}
	}
	return nil
}
