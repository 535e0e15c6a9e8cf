package agentwatch

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/tanist/tanist/election"
)

// The interval at which sidecars are asked for peers while the store is readable: once soon, spread
// over learnSoon, and then rarely.
const (
	learnSoon = 30 * time.Second
	learnLate = 10 * time.Minute
)

// hearWithin is how long the store may take for its first report before it counts as away.
const hearWithin = 5 * time.Second

// loop is one run of a picture: it does what [schedule] returns as due, and passes the results to the
// picture.
type loop struct {
	*picture
	work    sync.WaitGroup
	probes  chan probed
	answers chan answered
	times   timetable // the times that do not follow from the picture
}

// run maintains the picture until ctx has ended (nil) or the retries are used up.
func (v *picture) run(ctx context.Context, sightings <-chan election.Sighting, show func()) error {
	v.load()
	l := &loop{picture: v, probes: make(chan probed, 1), answers: make(chan answered, 1)}
	defer l.work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	now := time.Now()
	l.times = timetable{
		hearBy: now.Add(hearWithin), probe: now, ask: now, learn: now.Add(l.part(learnSoon)), probeTakes: v.cfg.Probe.Timeout,
	}
	v.look()
	show()
	for {
		a := schedule(l.timetable(), time.Now())
		l.act(ctx, a)
		var wake <-chan time.Time
		if !a.wake.IsZero() && !a.hear && !a.judge {
			wake = time.After(time.Until(a.wake))
		} else if a.hear || a.judge {
			wake = time.After(0) // the results change what is due
		}
		select {
		case <-ctx.Done():
			return nil
		case s, ok := <-sightings:
			switch {
			case !ok && ctx.Err() != nil:
				return nil
			case !ok:
				sightings = nil
				s = election.Sighting{Err: errFollowEnded, At: time.Now()}
			}
			l.sighted(s)
		case p := <-l.probes:
			l.times.probing = false
			more, err := v.found(&p, time.Now())
			if err != nil {
				v.look()
				show()
				return err
			}
			if len(more) > 0 {
				l.begin(ctx, p, more)
			}
		case r := <-l.answers:
			l.times.asking = false
			before := v.target.URL
			v.answer(r)
			if v.target.URL != before {
				l.times.probe = time.Now()
			}
		case <-wake:
		}
		v.look()
		v.save()
		show()
	}
}

// timetable returns the complete timetable, including what follows from the picture.
func (l *loop) timetable() timetable {
	t := l.times
	if l.heard {
		t.hearBy = time.Time{}
	}
	t.round, t.judge = l.retries.round, l.judge
	t.storeUp, t.wantAnswer = l.storeUp, l.decide.Ask
	t.mayAsk = l.cfg.Secret != nil && len(l.apis()) > 0
	return t
}

// act starts what is due.
func (l *loop) act(ctx context.Context, a agenda) {
	now := time.Now()
	if a.hear {
		l.heard = true
	}
	if a.judge {
		l.judged()
	}
	if a.hear || a.judge {
		l.look()
	}
	if a.tick {
		l.times.probe = now.Add(l.cfg.Probe.Interval)
	}
	if a.probe {
		l.begin(ctx, probed{began: now, round: a.round}, l.addresses())
	}
	if a.ask {
		l.times.asking = true
		l.times.ask = now.Add(l.cfg.Retries.Every * 3 / 4).Add(l.part(l.cfg.Retries.Every / 2))
		l.times.learn = now.Add(learnLate).Add(l.part(learnLate))
		who, apis := asker{l.cfg.HTTP, l.cfg.Cluster, l.cfg.Secret}, l.apis()
		l.work.Go(func() {
			clusters, err := who.all(ctx, apis)
			l.answers <- answered{clusters, err}
		})
	}
}

// begin starts a probe, or extends one with more addresses.
func (l *loop) begin(ctx context.Context, p probed, urls []election.URL) {
	l.times.probing = true
	l.work.Go(func() {
		open := l.probe(ctx, urls)
		maps.Copy(open, p.open)
		p.open = open
		l.probes <- p
	})
}

// sighted handles a report of the store, and probes a new target soon.
func (l *loop) sighted(s election.Sighting) {
	before := l.target.URL
	l.sighting(s)
	if l.target.URL == before {
		return
	}
	soon := time.Now()
	if l.storeUp {
		// A fleet must not connect all at once to a controller that has just begun to serve.
		soon = soon.Add(l.part(l.cfg.Probe.Interval))
	}
	if soon.Before(l.times.probe) {
		l.times.probe = soon
	}
}

// part returns a random part of d.
func (l *loop) part(d time.Duration) time.Duration {
	return time.Duration(l.cfg.Random() * float64(d))
}
