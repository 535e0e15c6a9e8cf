package election

import (
	"context"
	"sync"
)

// turn is a lock that is held during requests, and waiting for it can be cancelled. The zero value
// is unlocked.
type turn struct {
	once sync.Once
	held chan struct{}
}

func (t *turn) lock(ctx context.Context) error {
	t.once.Do(func() { t.held = make(chan struct{}, 1) })
	select {
	case t.held <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *turn) unlock() { <-t.held }
