package sidecar

import (
	"context"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// hookQueue runs hooks one at a time, in order, so that what a loser's hook undoes can't overtake what a winner's does.
type hookQueue struct {
	run func(ctx context.Context, event string, env []string) error
	log zerolog.Logger

	mu      sync.Mutex
	waiting []hookEvent
	wake    chan struct{}
}

type hookEvent struct {
	name string
	env  []string
}

const hookTimeout = 30 * time.Second

func (q *hookQueue) signal() chan struct{} {
	if q.wake == nil {
		q.wake = make(chan struct{}, 1)
	}
	return q.wake
}

// add queues an event. It does not block.
func (q *hookQueue) add(name string, env []string) {
	if q.run == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, hookEvent{name, env})
	select {
	case q.signal() <- struct{}{}:
	default:
	}
}

// loop runs the queue until ctx ends, then what is still waiting.
func (q *hookQueue) loop(ctx context.Context) {
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
			limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), hookTimeout)
			if err := q.run(limited, e.name, e.env); err != nil {
				q.log.Error().Err(err).Str("event", e.name).Msg("a hook failed")
			}
			cancel()
		}
	}
}

func (q *hookQueue) next() (hookEvent, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		return hookEvent{}, false
	}
	e := q.waiting[0]
	q.waiting = q.waiting[1:]
	return e, true
}
