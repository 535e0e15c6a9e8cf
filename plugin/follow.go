package plugin

import (
	"context"
	"time"

	"github.com/tanist/tanist/election"
)

// signal puts a value into a channel with a buffer of one, unless there is one already.
func signal[T any](to chan T) {
	var none T
	select {
	case to <- none:
	default:
	}
}

// watching keeps a watch of the store until ctx ends. changed is also called whenever the watch has
// broken, because something may have happened meanwhile.
func (b *Backend) watching(ctx context.Context, changed func()) {
	for failures := 0; ctx.Err() == nil; failures++ {
		began := time.Now()
		err := b.store.Watch(ctx, changed)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > election.LongestPause {
			failures = 0
		}
		b.log.Debug().Err(err).Msg("watch broke; retrying")
		changed()
		election.PauseBeforeRetry(ctx, failures)
	}
}

// until returns a context that ends with ctx or with the backend.
func (b *Backend) until(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(b.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// Watch implements [election.Backend].
func (b *Backend) Watch(ctx context.Context) <-chan election.Hint {
	hints := make(chan election.Hint, 1)
	hints <- election.Hint{} // the first change may race with the start of the watch
	if b.spawn(func() {
		ctx, cancel := b.until(ctx)
		defer cancel()
		defer close(hints)
		b.watching(ctx, func() { signal(hints) })
	}) != nil {
		close(hints)
	}
	return hints
}

// Follow reports the role key until ctx ends: at once, at every change, and at every failed read. The
// key is also reread every [Options.RereadEvery], because a hint may be lost. A newer sighting
// replaces one that was not received.
func (b *Backend) Follow(ctx context.Context) <-chan election.Sighting {
	out := make(chan election.Sighting, 1)
	if b.spawn(func() {
		defer close(out)
		ctx, cancel := b.until(ctx)
		defer cancel()
		news := make(chan struct{}, 1)
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			b.watching(ctx, func() { signal(news) })
		}()
		(&election.Rereader{Get: b.Get, News: news, Every: b.reread, Out: out}).Run(ctx)
		<-watched
	}) != nil {
		close(out)
	}
	return out
}
