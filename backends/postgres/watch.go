package postgres

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tanist/tanist/election"
)

const (
	// quiet is the longest time without a word from the server before the watch asks for one.
	quiet = 5 * time.Second
	// hurry is the shortest time between two looks for leases that are over.
	hurry = 50 * time.Millisecond
)

// listener is the one connection on which all watches and followers of a process hear of changes. It
// exists while there are any.
type listener struct {
	mu     sync.Mutex
	wake   map[any]waker
	cancel context.CancelFunc // nil: it does not run
	link   *link              // while it is connected
}

// waker is one watch or follower. It must not block.
type waker struct {
	call func()
	role bool // only for changes of the role key
}

// subscribe makes the listener call w until the returned function is called.
func (s *Store) subscribe(w waker) (leave func()) {
	key := new(byte)
	r := &s.listener
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wake[key] = w
	if r.cancel == nil {
		ctx, cancel := context.WithCancel(s.ctx)
		if s.spawn(func() { s.listen(ctx) }) != nil {
			cancel()
			return func() {}
		}
		r.cancel = cancel
	}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.wake, key)
		if len(r.wake) == 0 && r.cancel != nil {
			r.cancel()
			r.cancel = nil
		}
	}
}

// tell wakes the watches, and with role also the followers.
func (r *listener) tell(role, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.wake {
		if all || w.role == role {
			w.call()
		}
	}
}

func (r *listener) connected(l *link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.link = l
}

// listen keeps the connection until ctx ends. Everybody is woken whenever it was established or lost,
// because something may have happened meanwhile.
func (s *Store) listen(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; failures++ {
		l, err := s.connect(ctx, listening)
		if err == nil {
			s.listener.connected(l)
			began := time.Now()
			err = s.hear(ctx, l)
			s.listener.connected(nil)
			l.close()
			if time.Since(began) > election.LongestPause {
				failures = 0
			}
		}
		if ctx.Err() != nil {
			return
		}
		s.log.Debug().Err(err).Msg("watch broke; retrying")
		s.listener.tell(false, true)
		election.PauseBeforeRetry(ctx, failures)
	}
}

// hear passes on what the server notifies until the connection breaks. It also ends the leases that
// are over, at the moment at which the next of them may be, because the server has no clock of its own
// that would.
func (s *Store) hear(ctx context.Context, l *link) error {
	role := l.channel + "_active"
	for _, channel := range []string{l.channel, role} {
		if err := s.within(ctx, func(ctx context.Context) error {
			_, err := l.Exec(ctx, "LISTEN "+pgx.Identifier{channel}.Sanitize())
			return err
		}); err != nil {
			return err
		}
	}
	s.listener.tell(false, true)
	for {
		next, err := s.sweep(ctx, l)
		if err != nil {
			return err
		}
		for until := time.Now().Add(next); time.Now().Before(until); {
			waiting, cancel := context.WithDeadline(ctx, until)
			n, err := l.WaitForNotification(waiting)
			cancel()
			switch {
			case err == nil:
				s.listener.tell(n.Channel == role, false)
			case ctx.Err() != nil || !errors.Is(waiting.Err(), context.DeadlineExceeded) || l.IsClosed():
				return err
			}
		}
	}
}

// sweep ends the leases that are over, and returns when to look again.
func (s *Store) sweep(ctx context.Context, l *link) (time.Duration, error) {
	var next *int64
	err := s.within(ctx, func(ctx context.Context) (err error) {
		next, err = row(ctx, l, one[*int64], "SELECT tanist_store.sweep($1)", s.cfg.Cluster)
		return err
	})
	if err != nil || next == nil {
		return quiet, err
	}
	if *next <= 0 { // one is over that this login may not end, and perhaps nobody is there who may
		s.listener.tell(false, true)
		return quiet, nil
	}
	return min(max(time.Duration(*next)*time.Millisecond, hurry), quiet), nil
}

// within bounds a statement on the connection of the watch.
func (s *Store) within(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return f(ctx)
}

// until returns a context that ends with ctx or with the store.
func (s *Store) until(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// signal puts a value into a channel with a buffer of one, unless there is one already.
func signal[T any](to chan T) {
	var none T
	select {
	case to <- none:
	default:
	}
}

// Watch implements [election.Backend].
func (s *Store) Watch(ctx context.Context) <-chan election.Hint {
	hints := make(chan election.Hint, 1)
	if s.spawn(func() {
		ctx, cancel := s.until(ctx)
		defer cancel()
		news := make(chan struct{}, 1)
		leave := s.subscribe(waker{call: func() { signal(news) }})
		defer close(hints)
		defer leave()
		for {
			select {
			case <-ctx.Done():
				return
			case <-news:
				signal(hints)
			}
		}
	}) != nil {
		close(hints)
	}
	return hints
}

// Follow reports the role key until ctx ends: at once, at every change, and at every failed read. The
// key is also reread every [Config.RereadEvery], because a hint may be lost. A newer sighting replaces
// one that was not received.
func (s *Store) Follow(ctx context.Context) <-chan election.Sighting {
	out := make(chan election.Sighting, 1)
	if s.spawn(func() {
		defer close(out)
		ctx, cancel := s.until(ctx)
		defer cancel()
		news := make(chan struct{}, 1)
		leave := s.subscribe(waker{call: func() { signal(news) }, role: true})
		defer leave()
		(&election.Rereader{Get: s.Get, News: news, Every: s.cfg.RereadEvery, Out: out}).Run(ctx)
	}) != nil {
		close(out)
	}
	return out
}
