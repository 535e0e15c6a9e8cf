package sidecar

import (
	"context"
	"errors"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// hookQueue runs hooks one at a time, in order.
type hookQueue struct {
	run   func(ctx context.Context, event string, env []string) error
	log   zerolog.Logger
	queue election.HookQueue[hookEvent]
}

type hookEvent struct {
	name string
	env  []string
}

const (
	hookTimeout = 30 * time.Second
	// hookAbandoned is when a hook counts as stuck that should have been killed after hookTimeout: its
	// process may be in the kernel for ever, and the lease must not be.
	hookAbandoned = hookTimeout + 5*time.Second
)

// call runs a hook, and returns after hookAbandoned at the latest. late reports whether the hook did
// not end in time.
func call(ctx context.Context, run func(context.Context, string, []string) error, event string, env []string) (late bool, err error) {
	limited, cancel := context.WithTimeout(ctx, hookTimeout)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		defer close(ended) // also when run ends its goroutine
		ended <- run(limited, event, env)
	}()
	stuck := time.NewTimer(hookAbandoned)
	defer stuck.Stop()
	select {
	case err = <-ended:
	case <-stuck.C:
		err = errors.New("it cannot be ended")
	}
	return limited.Err() != nil, err
}

// add queues an event. It does not block.
func (q *hookQueue) add(name string, env []string) {
	if q.run != nil {
		q.queue.Add(hookEvent{name, env})
	}
}

// loop runs the queue until ctx ends, and then what is still queued.
func (q *hookQueue) loop(ctx context.Context) {
	q.queue.Do = func(ctx context.Context, e hookEvent) {
		if _, err := call(ctx, q.run, e.name, e.env); err != nil {
			q.log.Error().Err(err).Str("event", e.name).Msg("hook failed")
		}
	}
	q.queue.Run(ctx)
}
