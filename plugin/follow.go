package plugin

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/tanist/tanist/election"
)

const (
	// followAttempt bounds a read of the role key by a follower.
	followAttempt = 2 * time.Second
	// The pause before a broken watch or a failed read is retried, doubled each time.
	minPause = 100 * time.Millisecond
	maxPause = time.Second
)

// pause waits before attempt number n (0: the first repetition), with jitter, because all hosts of a
// cluster lose the store at the same moment.
func pause(ctx context.Context, n int) {
	d := min(minPause<<min(n, 10), maxPause)
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

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
		if time.Since(began) > maxPause {
			failures = 0
		}
		b.log.Debug().Err(err).Msg("watch broke; retrying")
		changed()
		pause(ctx, failures)
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
		f := &feed{b: b, out: out, news: make(chan struct{}, 1)}
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			b.watching(ctx, func() { signal(f.news) })
		}()
		f.run(ctx)
		<-watched
	}) != nil {
		close(out)
	}
	return out
}

// feed keeps one consumer informed of the role key.
type feed struct {
	b    *Backend
	out  chan election.Sighting
	news chan struct{}

	last  election.Sighting
	known bool
	at    election.Version // of the role key as last sent; zero: absent
}

func (f *feed) run(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; {
		limited, cancel := context.WithTimeout(ctx, followAttempt)
		e, err := f.b.Get(limited, election.ActiveKey)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			f.last.Err, f.last.At = err, time.Now()
			f.last.Offer(f.out)
			pause(ctx, failures)
			failures++
			continue
		}
		failures = 0
		f.tell(e)
		timer := time.NewTimer(f.b.reread*3/4 + rand.N(f.b.reread/2))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-f.news:
		}
		timer.Stop()
	}
}

// tell sends the role key if it has changed.
func (f *feed) tell(e election.Entry) {
	again := f.known && e.Version == f.at
	if again && f.last.Err == nil {
		return
	}
	before := f.last.Err
	f.known, f.at = true, e.Version
	f.last.Err, f.last.At = nil, time.Now()
	if e.Version == 0 {
		f.last.Active = nil
	} else if a, err := election.DecodeActive(e.Value); err != nil {
		f.last.Err = err
		if again && before.Error() == err.Error() {
			return // it was reported
		}
	} else {
		f.last.Active = &a
	}
	f.last.Offer(f.out)
}
