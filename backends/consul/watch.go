package consul

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/tanist/tanist/election"
)

const (
	blockFor  = 10 * time.Second       // how long the server may hold a blocking query without a change
	lookFor   = 2 * time.Second        // timeout of a query that does not block
	pace      = 10 * time.Millisecond  // between two blocking queries, so that a busy store does not make us spin
	retrySoon = 100 * time.Millisecond // after the first failure, then doubled each time
	retryMost = time.Second
	watchMost = 250 * time.Millisecond // for a watch: a late beat means a late takeover
)

// blocking returns the options of a blocking query and bounds it: without our own timeout, a link
// that drops packets would hold it for minutes. The server adds up to a sixteenth of the wait.
func blocking(ctx context.Context, index uint64) (*api.QueryOptions, context.CancelFunc) {
	limit := lookFor
	if index > 0 {
		limit += blockFor + blockFor/16
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	options := &api.QueryOptions{RequireConsistent: true, WaitIndex: index, WaitTime: blockFor}
	return options.WithContext(ctx), cancel
}

// follows returns the index to wait for after a query that waited for index and returned got. If
// the index went backwards (the servers were restored), it starts again; zero would not block.
func follows(index, got uint64) uint64 {
	if got < index {
		return 0
	}
	return max(got, 1)
}

// backoff sleeps after the nth failure in a row, or until ctx ends.
func backoff(ctx context.Context, n int, most time.Duration) {
	d := min(retrySoon<<min(n-1, 10), most)
	nap(ctx, d/2+rand.N(d/2))
}

func nap(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// until returns a context that ends with ctx or with the store.
func (s *Store) until(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.open, cancel)
	return ctx, func() { stop(); cancel() }
}

// Watch implements [election.Backend] with one blocking query on the names of the cluster's keys.
func (s *Store) Watch(ctx context.Context) <-chan election.Hint {
	hints := make(chan election.Hint, 1)
	s.mu.Lock()
	s.watchers[hints] = true
	s.mu.Unlock()
	go func() {
		ctx, cancel := s.until(ctx)
		defer cancel()
		defer func() {
			s.mu.Lock()
			delete(s.watchers, hints) // before it is closed: senders hold the mutex
			close(hints)
			s.mu.Unlock()
		}()
		var index uint64
		failures := 0
		for ctx.Err() == nil {
			options, done := blocking(ctx, index)
			_, meta, err := s.client.KV().Keys(s.prefix, "/", options)
			done()
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				index = 0 // changes during the failure deserve a hint in any case
				failures++
				if failures == 1 {
					s.log.Warn().Err(known(err)).Msg("watch broke; retrying")
				}
				backoff(ctx, failures, watchMost)
				continue
			}
			if failures > 0 {
				s.log.Info().Msg("watch restored")
			}
			failures = 0
			next := follows(index, meta.LastIndex)
			if next != index {
				s.hint(hints)
			}
			index = next
			nap(ctx, pace)
		}
	}()
	return hints
}

func (s *Store) hint(hints chan election.Hint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.watchers[hints] {
		return
	}
	select {
	case hints <- election.Hint{}:
	default:
	}
}

// hintAfterLockDelay gives the watches a hint when the lock-delay that just refused a claim is
// over, because Consul does not. The first refusal comes no earlier than the end of the session, so
// the delay is over one lock-delay after it.
func (s *Store) hintAfterLockDelay() {
	now := election.BootClock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refused != 0 && now.Sub(s.refused) < s.cfg.LockDelay {
		return // one is pending already
	}
	s.refused = now
	time.AfterFunc(s.cfg.LockDelay+pace/2, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.refused = 0
		for hints := range s.watchers {
			select {
			case hints <- election.Hint{}:
			default:
			}
		}
	})
}

// Follow reports the role key until ctx ends: at once, at every change, and at every failed read.
// It watches one key on one connection. A newer sighting replaces one that was not received. The
// channel is closed when ctx has ended.
func (s *Store) Follow(ctx context.Context) <-chan election.Sighting {
	out := make(chan election.Sighting, 1)
	go func() {
		defer close(out)
		ctx, cancel := s.until(ctx)
		defer cancel()
		var last election.Sighting
		var index uint64
		var version election.Version
		looked, failures := false, 0
		for ctx.Err() == nil {
			options, done := blocking(ctx, index)
			pair, meta, err := s.client.KV().Get(s.prefix+election.ActiveKey, options)
			done()
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				index = 0
				failures++
				last.Err, last.At = known(err), time.Now()
				last.Offer(out)
				backoff(ctx, failures, retryMost)
				continue
			}
			failures = 0
			var seen election.Version
			if pair != nil {
				seen = election.Version(pair.ModifyIndex)
			}
			if !looked || seen != version || last.Err != nil {
				last.Err, last.At = nil, time.Now()
				if pair == nil {
					last.Active = nil
				} else if a, err := election.DecodeActive(pair.Value); err == nil {
					last.Active = &a
				} else {
					last.Err = err
				}
				if !looked || seen != version || last.Err == nil {
					last.Offer(out)
				}
				looked, version = true, seen
			}
			index = follows(index, meta.LastIndex)
			nap(ctx, pace)
		}
	}()
	return out
}
