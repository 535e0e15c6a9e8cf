package election

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	// rereadAttempt bounds a read of the role key by a follower.
	rereadAttempt = 2 * time.Second
	shortestPause = 100 * time.Millisecond
)

// LongestPause is the longest of [PauseBeforeRetry] without its jitter. What worked for longer than that
// begins with a short pause again.
const LongestPause = time.Second

// PauseBeforeRetry waits before a broken watch or a failed read is retried for the n-th time (0: the
// first), doubled each time, with jitter, because all hosts of a cluster lose the store at the same
// moment. It returns early when ctx ends.
func PauseBeforeRetry(ctx context.Context, n int) {
	d := min(shortestPause<<min(n, 10), LongestPause)
	sleep(ctx, d/2+rand.N(d))
}

// Rereader follows the role key for a store whose watch tells only that something has changed: it reads
// the key at every hint, and every now and then, because a hint may be lost. The fields are set before
// Run.
type Rereader struct {
	Get   func(ctx context.Context, key string) (Entry, error)
	News  <-chan struct{} // hints
	Every time.Duration   // about how long to wait for one
	Out   chan Sighting   // with a buffer of one; a newer sighting replaces one that was not received

	last  Sighting
	known bool
	at    Version // of the role key as last sent; zero: absent
}

// Run reports the role key until ctx ends: at once, at every change, and at every failed read.
func (r *Rereader) Run(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; {
		limited, cancel := context.WithTimeout(ctx, rereadAttempt)
		e, err := r.Get(limited, ActiveKey)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			r.last.Err, r.last.At = err, time.Now()
			r.last.Offer(r.Out)
			PauseBeforeRetry(ctx, failures)
			failures++
			continue
		}
		failures = 0
		r.tell(e)
		timer := time.NewTimer(r.Every*3/4 + rand.N(r.Every/2))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-r.News:
		}
		timer.Stop()
	}
}

// tell sends the role key if it has changed.
func (r *Rereader) tell(e Entry) {
	again, before := r.known && e.Version == r.at, r.last.Err
	if again && before == nil {
		return
	}
	r.known, r.at = true, e.Version
	r.last.Err, r.last.At = nil, time.Now()
	if e.Version == 0 {
		r.last.Active = nil
	} else if a, err := DecodeActive(e.Value); err != nil {
		r.last.Err = err
		if again && before.Error() == err.Error() {
			return // it was reported
		}
	} else {
		r.last.Active = &a
	}
	r.last.Offer(r.Out)
}
