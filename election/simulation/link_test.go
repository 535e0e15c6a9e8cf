package simulation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tanist/tanist/election"
)

// link is the way from one host to the store, to the repository or to the other hosts. world.mu is held during its methods.
type link struct {
	w      *world
	outCut time.Time // requests don't get through until then
	inCut  time.Time // replies don't
	slowBy time.Duration
	slow   time.Time // until then
	loses  uint64    // one in so many; zero: none
	lossy  time.Time // until then
	spoil  spoil
}

// spoil is what becomes of the request of a step.
type spoil struct {
	verb string
	skip int
	how  int
	late time.Duration
	set  bool
}

// spoiled spoils a trip, if that is due.
func (l *link) spoiled(verb string, t trip) trip {
	s := &l.spoil
	if !s.set || s.verb != verb {
		return t
	}
	if s.skip > 0 {
		s.skip--
		return t
	}
	s.set = false
	switch s.how {
	case 0:
		t.silent = true
	case 1:
		t.reset = true
	case 2:
		t.out += s.late // its caller gives up, and it arrives
	case 3:
		t.lost = true
	}
	return t
}

// trip is what becomes of one request.
type trip struct {
	out, back time.Duration
	lost      bool          // the request does not arrive
	silent    bool          // no reply comes
	reset     bool          // the reply is lost, and the caller told so
	again     time.Duration // it arrives once more, so much later; zero: it does not
}

// awayFor returns how long nothing gets out.
func (l *link) awayFor() time.Duration {
	return max(0, l.outCut.Sub(l.w.now()), l.inCut.Sub(l.w.now()))
}

// trip decides what becomes of a request that is sent now, to a place that is away until then.
func (l *link) trip(c chance, away time.Time) trip {
	now := l.w.now()
	t := trip{out: c.of("out", 0).between(50*time.Microsecond, 1500*time.Microsecond)}
	if c.of("both", 0).one(4) {
		t.back = c.of("back", 0).between(20*time.Microsecond, time.Millisecond)
	}
	if !away.After(now) && !l.outCut.After(now) && !l.inCut.After(now) && !l.slow.After(now) && !l.lossy.After(now) {
		return t
	}
	if l.slow.After(now) {
		t.out += c.of("slow", 0).between(0, l.slowBy)
		t.back += c.of("slow", 1).between(0, l.slowBy)
	}
	cut := l.outCut
	if away.After(cut) {
		cut = away
	}
	if cut.After(now.Add(t.out)) {
		t.out += cut.Sub(now) // it is sent again until it arrives, or the connection is given up
		t.lost = c.of("cut", 0).one(2)
	}
	if l.inCut.After(now.Add(t.out)) {
		t.back += l.inCut.Sub(now.Add(t.out))
		t.silent = c.of("cut", 1).one(2)
	}
	if l.lossy.After(now) && c.of("loss", 0).one(l.loses) {
		switch c.of("loss", 1).in(4) {
		case 0:
			t.lost = true
		case 1:
			t.silent = true
		case 2:
			t.reset = true
		case 3:
			t.again = c.of("loss", 2).between(time.Millisecond, 5*time.Second)
		}
	}
	return t
}

// hurry lets most of the renewals of a calm time take no time: there are many, and hardly anything depends on it.
func (l *link) hurry(verb string, c chance, t trip) trip {
	calm := t == trip{out: t.out, back: t.back} && t.out+t.back < 3*time.Millisecond
	if often := verb == "Hold" || verb == "Renew" || verb == "Get"; often && calm && !c.of("hurry", 0).one(4) {
		return trip{}
	}
	return t
}

var errReset = errors.New("the connection was reset before the reply")

// call is one request to the store: it travels, f is carried out with world.mu held, the reply travels.
func call[T any](ctx context.Context, p *process, verb, key string, f func(s *store) (T, error)) (T, error) {
	var none T
	p.pass(verb)
	if ctx.Err() != nil {
		return none, fmt.Errorf("cannot %s: %w", verb, ctx.Err())
	}
	w := p.w
	w.mu.Lock()
	what := verb + key
	c := w.seed.of(p.id, p.count(what)).of(what, 1)
	t := p.host.link.spoiled(verb, p.host.link.hurry(verb, c, p.host.link.trip(c, w.storeAway)))
	w.mu.Unlock()
	v, err := travel(ctx, p, t, repeatable(verb), func() (T, error) {
		s := w.store
		if s.full && writes(verb) {
			return none, election.ErrReadOnly
		}
		return f(s)
	})
	p.pass(verb)
	if err != nil {
		return none, fmt.Errorf("cannot %s: %w", verb, err)
	}
	return v, nil
}

// travel carries f out at the other end of a link.
func travel[T any](ctx context.Context, p *process, t trip, repeatable bool, f func() (T, error)) (T, error) {
	var none T
	w := p.w
	if t == (trip{}) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return f()
	}
	if t.lost {
		p.wait(ctx, time.Hour)
		return none, ctx.Err()
	}
	sent, arrived := w.now(), false
	defer func() { // the caller has gone, and the request is under way
		if !arrived {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.after(t.out-w.now().Sub(sent), func() { _, _ = f() })
		}
	}()
	if !p.wait(ctx, t.out) {
		return none, ctx.Err()
	}
	w.mu.Lock()
	v, err := f()
	arrived = true
	if t.again != 0 && repeatable {
		w.after(t.again, func() { _, _ = f() })
	}
	w.mu.Unlock()
	switch {
	case t.reset:
		return none, errReset
	case t.silent:
		p.wait(ctx, time.Hour)
		return none, ctx.Err()
	case t.back > 0 && !p.wait(ctx, t.back):
		return none, ctx.Err()
	}
	return v, err
}

// repeatable reports whether an adapter may send a request twice.
func repeatable(verb string) bool {
	switch verb {
	case "Grant", "Renew", "Hold", "Revoke", "Read", "Get", "List":
		return true
	}
	return false
}

// writes reports whether a verb is refused by a store that takes no writes.
func writes(verb string) bool {
	switch verb {
	case "Grant", "Claim", "Publish", "Release", "HandOver", "Put":
		return true
	}
	return false
}

// done is call for requests without a result.
func done(ctx context.Context, p *process, verb, key string, f func(s *store) error) error {
	_, err := call(ctx, p, verb, key, func(s *store) (struct{}, error) { return struct{}{}, f(s) })
	return err
}

// client is the store as a process has it.
type client struct{ p *process }

var _ election.Backend = client{}

func (c client) Traits() election.Traits { return c.p.w.store.traits }

func (c client) Read(ctx context.Context) (election.Snapshot, error) {
	return call(ctx, c.p, "Read", "", func(s *store) (election.Snapshot, error) { return s.snapshot(), nil })
}

func (c client) Watch(ctx context.Context) <-chan election.Hint {
	w := &watcher{p: c.p, hints: make(chan election.Hint, 1)}
	hints, s := w.hints, c.p.w.store
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.hints = append(s.hints, w)
	w.give(election.Hint{})
	context.AfterFunc(ctx, func() {
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		for i, other := range s.hints {
			if other == w {
				s.hints = append(s.hints[:i:i], s.hints[i+1:]...)
				break
			}
		}
		w.hints = nil
		close(hints)
	})
	return hints
}

func (c client) Grant(ctx context.Context, ttl time.Duration) (election.LeaseID, error) {
	return call(ctx, c.p, "Grant", "", func(s *store) (election.LeaseID, error) { return s.grant(ttl), nil })
}

func (c client) Renew(ctx context.Context, id election.LeaseID) error {
	return done(ctx, c.p, "Renew", string(id), func(s *store) error { return s.prolong(id) })
}

func (c client) Hold(ctx context.Context, h election.Hold) (election.Entry, error) {
	return call(ctx, c.p, "Hold", "", func(s *store) (election.Entry, error) { return s.hold(h) })
}

func (c client) Revoke(ctx context.Context, id election.LeaseID) error {
	return done(ctx, c.p, "Revoke", string(id), func(s *store) error { s.revoke(id, false); return nil })
}

func (c client) Claim(ctx context.Context, cl election.Claim) error {
	return done(ctx, c.p, "Claim", "", func(s *store) error { return s.claim(cl) })
}

func (c client) Publish(ctx context.Context, id election.LeaseID, a election.Active) error {
	return done(ctx, c.p, "Publish", string(a.State), func(s *store) error { return s.publish(id, a) })
}

func (c client) Release(ctx context.Context, r election.Release) error {
	return done(ctx, c.p, "Release", "", func(s *store) error { return s.release(r) })
}

func (c client) HandOver(ctx context.Context, id election.LeaseID, h election.HandOver) error {
	return done(ctx, c.p, "HandOver", "", func(s *store) error { return s.handOver(id, h) })
}

func (c client) Get(ctx context.Context, key string) (election.Entry, error) {
	return call(ctx, c.p, "Get", key, func(s *store) (election.Entry, error) { return s.entry(key), nil })
}

func (c client) List(ctx context.Context, prefix string) ([]election.Entry, error) {
	return call(ctx, c.p, "List", prefix, func(s *store) ([]election.Entry, error) { return s.list(prefix), nil })
}

func (c client) Put(ctx context.Context, p election.Put) error {
	return done(ctx, c.p, "Put", p.Key, func(s *store) error { return s.set(p) })
}

func (c client) Delete(ctx context.Context, key string, version election.Version) error {
	return done(ctx, c.p, "Delete", key, func(s *store) error { return s.remove(key, version) })
}
