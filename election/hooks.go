package election

import (
	"context"
	"sync"
)

// HookQueue runs the hooks of events one after the other, in order and in the background, so that a
// loser's hook cannot overtake a winner's. The zero value with Do set is ready for use.
type HookQueue[E any] struct {
	// Do runs the hooks of one event. It bounds itself: while it runs, later events wait.
	Do func(ctx context.Context, event E)
	// Merge returns one event that may replace the two newest in the queue, or false if both must
	// be run. It is called only when Backlog events wait. nil: no events are merged.
	Merge   func(last, next E) (E, bool)
	Backlog int

	mu      sync.Mutex
	waiting []E
	wake    chan struct{} // one hint; made by signal
}

// signal returns the channel that wakes Run. The caller holds the mutex.
func (q *HookQueue[E]) signal() chan struct{} {
	if q.wake == nil {
		q.wake = make(chan struct{}, 1)
	}
	return q.wake
}

// Add queues an event. It does not block.
func (q *HookQueue[E]) Add(event E) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if n := len(q.waiting); n > 0 && n >= q.Backlog && q.Merge != nil {
		if both, ok := q.Merge(q.waiting[n-1], event); ok {
			q.waiting[n-1] = both
			return
		}
	}
	q.waiting = append(q.waiting, event)
	select {
	case q.signal() <- struct{}{}:
	default:
	}
}

// Run works until ctx ends, then runs what is still queued, and returns. Do gets a context that has
// not ended, so that events queued before the end are run too.
func (q *HookQueue[E]) Run(ctx context.Context) {
	q.mu.Lock()
	wake := q.signal()
	q.mu.Unlock()
	for ended := false; !ended; {
		select {
		case <-ctx.Done():
			ended = true
		case <-wake:
		}
		for e, ok := q.next(); ok; e, ok = q.next() {
			q.Do(context.WithoutCancel(ctx), e)
		}
	}
}

func (q *HookQueue[E]) next() (e E, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		return e, false
	}
	e = q.waiting[0]
	q.waiting = q.waiting[1:]
	return e, true
}
