package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"

	"github.com/tanist/tanist/election"
)

const (
	// stay is how long a watch stays with its endpoint before it moves to one that responds faster.
	stay = time.Second
	// The pause before a broken watch or a failed read is retried, doubled each time.
	minPause = 100 * time.Millisecond
	maxPause = 5 * time.Second
)

// pause waits before attempt number n (0: the first repetition), with jitter, because all hosts of
// a cluster lose a member at the same moment. It reports whether ctx is still alive.
func pause(ctx context.Context, n int) bool {
	d := min(minPause<<min(n, 10), maxPause)
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// watched is one key, or all keys with a prefix.
type watched struct {
	key     string
	options []clientv3.OpOption
	trails  bool // usually changes together with the role key
}

// trail is how long the update of a key that changes together with the role key waits for the role
// key's. One transaction changes both, and each has its own watch, so their order is random; but
// the role key's update carries more information.
const trail = 2 * time.Millisecond

// watch is a watch of some keys on one endpoint. It ends, with a cause, when any part of it breaks.
type watch struct {
	endpoint *endpoint
	ctx      context.Context //nolint:containedctx // of the watch itself
	end      context.CancelCauseFunc
	events   []clientv3.WatchChan
}

var errMoved = errors.New("another endpoint is preferred")

// watch starts watching on the preferred endpoint, and returns once the server has confirmed.
func (s *Store) watch(ctx context.Context, keys ...watched) (*watch, error) {
	e := s.preferred()
	ctx, end := context.WithCancelCause(ctx)
	w := &watch{endpoint: e, ctx: clientv3.WithRequireLeader(ctx), end: end}
	if e.user != "" && e.token.Load() == nil {
		if err := e.authenticate(ctx, nil); err != nil {
			end(err)
			s.hedge.Avoid(e.index)
			return nil, e.describe(&attempt{}, err)
		}
	}
	slow := time.AfterFunc(s.dial, func() { end(fmt.Errorf("%s did not confirm the watch within %v", e.url, s.dial)) })
	for _, k := range keys {
		w.events = append(w.events, e.client.Watch(w.ctx, s.root+k.key, k.options...))
	}
	if !slow.Stop() || ctx.Err() != nil {
		end(ctx.Err())
		s.hedge.Avoid(e.index)
		return nil, context.Cause(ctx)
	}
	if err := s.spawn(func() { s.attend(w) }); err != nil {
		end(err)
		return nil, err
	}
	return w, nil
}

// attend ends a watch when its connection breaks, which the client library would repair silently,
// or when another endpoint has become the preferred one.
func (s *Store) attend(w *watch) {
	conn := w.endpoint.client.ActiveConnection()
	look := stay
	if len(s.endpoints) == 1 {
		look = time.Hour // there is no other endpoint
	}
	for {
		check, cancel := context.WithTimeout(w.ctx, look)
		changed := conn.WaitForStateChange(check, connectivity.Ready)
		cancel()
		switch {
		case w.ctx.Err() != nil:
			return
		case changed:
			w.end(fmt.Errorf("%s: the connection broke", w.endpoint.url))
			return
		case s.preferred() != w.endpoint:
			w.end(errMoved)
			return
		}
	}
}

// broken returns the cause if resp means that the watch has ended.
func (w *watch) broken(resp clientv3.WatchResponse, open bool) error {
	switch {
	case w.ctx.Err() != nil:
		return context.Cause(w.ctx)
	case !open:
		return fmt.Errorf("%s: the watch was closed", w.endpoint.url)
	case resp.Err() != nil:
		if w.endpoint.user != "" {
			w.endpoint.token.Store(nil) // the token may be the cause, which shows in several ways
		}
		return fmt.Errorf("%s: the watch was cancelled: %w", w.endpoint.url, resp.Err())
	}
	return nil
}

// Watch implements [election.Backend]. It gives a hint after every (re-)establishment too.
func (s *Store) Watch(ctx context.Context) <-chan election.Hint {
	hints := make(chan election.Hint, 1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	finish := func() { stop(); cancel(); close(hints) }
	if s.spawn(func() { defer finish(); s.hint(ctx, hints) }) != nil {
		finish()
	}
	return hints
}

func (s *Store) hint(ctx context.Context, hints chan election.Hint) {
	var giving sync.Mutex
	give := func(h election.Hint) {
		giving.Lock()
		defer giving.Unlock()
		select {
		case before := <-hints: // not received yet
			h = before.Merge(h)
		default:
		}
		hints <- h
	}
	keys := []watched{
		{key: election.ActiveKey},
		{key: election.BeatKey, trails: true},
		{key: election.TermKey, trails: true},
		{key: election.HeirKey, trails: true},
		{key: election.RequestKey},
		{key: election.PauseKey},
		{key: election.StandbyKey},
		{key: election.DeadKey},
		{key: election.ControllerPrefix, options: []clientv3.OpOption{clientv3.WithPrefix()}},
	}
	for failures := 0; ctx.Err() == nil; {
		began := time.Now()
		w, err := s.watch(ctx, keys...)
		if err == nil {
			give(election.Hint{})
			s.deliver(w, keys, give)
			err = context.Cause(w.ctx)
			give(election.Hint{}) // something may have happened since the break
		}
		if ctx.Err() != nil {
			return
		}
		s.log.Debug().Err(err).Msg("watch broke; retrying")
		if time.Since(began) > stay {
			failures = 0
		}
		if !errors.Is(err, errMoved) {
			s.avoidIfFailed(w)
			pause(ctx, failures)
			failures++
		}
	}
}

// deliver gives a hint for each change until the watch breaks. One transaction may change several
// keys, each with its own watch. A read after the hint of a revision sees everything up to it.
func (s *Store) deliver(w *watch, keys []watched, give func(election.Hint)) {
	var hinted atomic.Int64
	var reading sync.WaitGroup
	for i, events := range w.events {
		reading.Go(func() {
			for {
				resp, open := <-events
				if err := w.broken(resp, open); err != nil {
					w.end(err)
					return
				}
				if keys[i].trails {
					nap(w.ctx, trail)
				}
				if s.news(&hinted, resp.Events) {
					give(s.roleKey(resp.Events))
				}
			}
		})
	}
	reading.Wait()
}

// roleKey returns the hint for the last of events if it is about the role key.
func (s *Store) roleKey(events []*clientv3.Event) (h election.Hint) {
	for _, e := range events {
		if string(e.Kv.Key) != s.root+election.ActiveKey || e.Type != clientv3.EventTypePut {
			continue
		}
		if a, err := election.DecodeActive(e.Kv.Value); err == nil {
			h = election.Hint{Active: &a, Lease: leaseOf(e.Kv.Lease)}
		}
	}
	return h
}

func nap(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// news reports whether one of events has a later revision than hinted, and sets hinted to it. A
// controller that comes or goes is worth a hint. A change of its status is not: the status is read
// with the rest when it matters, and a hint for each change would cause constant reads while
// anything happens.
func (s *Store) news(hinted *atomic.Int64, events []*clientv3.Event) bool {
	last := int64(0)
	for _, e := range events {
		if e.IsModify() && strings.HasPrefix(string(e.Kv.Key), s.root+election.ControllerPrefix) {
			continue
		}
		last = max(last, e.Kv.ModRevision)
	}
	for {
		old := hinted.Load()
		if last <= old {
			return false
		}
		if hinted.CompareAndSwap(old, last) {
			return true
		}
	}
}

// avoidIfFailed moves the endpoint of a broken watch to the end of the order.
func (s *Store) avoidIfFailed(w *watch) {
	if w != nil {
		s.hedge.Avoid(w.endpoint.index)
	}
}

// Follow reports the role key until ctx ends: at once, at every change, and at every failed read.
// Values come straight from a watch of that one key, in the order of the store. The key is also
// reread after every break and every [Config.RereadEvery], because a watch may stall. A newer
// sighting replaces one that was not received.
func (s *Store) Follow(ctx context.Context) <-chan election.Sighting {
	out := make(chan election.Sighting, 1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	finish := func() { stop(); cancel(); close(out) }
	f := &feed{s: s, out: out}
	if s.spawn(func() { defer finish(); f.run(ctx) }) != nil {
		finish()
	}
	return out
}
