package agentwatch

import "time"

// timetable is everything that decides the times of the picture's work: what is running, and when what
// is due. It is a value.
type timetable struct {
	hearBy time.Time // when a silent store counts as away; zero: it has reported
	probe  time.Time // the next probe
	round  time.Time // the next retry; zero: a controller is reachable
	ask    time.Time // sidecars may be asked again
	learn  time.Time // sidecars are asked for peers although the store is readable
	judge  time.Time // the last sighting is judged again; zero: not needed

	probing, asking bool // is running
	mayAsk          bool // there is a sidecar to ask, and the secret to verify its response
	storeUp         bool
	wantAnswer      bool // the sidecars are the only remaining source

	probeTakes time.Duration // at most
}

// agenda is what is due now, and when something is due next if nothing happens earlier.
type agenda struct {
	hear  bool // the store has had its time
	judge bool
	probe bool
	round bool // the probe is a retry
	ask   bool
	tick  bool      // the probe is also the regular one, so the next regular one is an interval away
	wake  time.Time // zero: nothing is due until something happens
}

// schedule is the pure timing of a picture.
func schedule(t timetable, now time.Time) agenda {
	var a agenda
	reached := func(at time.Time) bool { return !at.IsZero() && !now.Before(at) }
	a.hear, a.judge = reached(t.hearBy), reached(t.judge)
	a.round = reached(t.round)
	probe := t.probe
	if !t.round.IsZero() && !a.round && reached(probe) && t.round.Sub(now) < t.probeTakes {
		probe = t.round // a probe now would delay the retry
	}
	a.tick = reached(probe)
	a.probe = !t.probing && (a.tick || a.round)
	a.tick, a.round = a.tick && a.probe, a.round && a.probe
	switch {
	case t.asking || !t.mayAsk:
	case t.wantAnswer:
		a.ask = reached(t.ask)
	case t.storeUp:
		a.ask = reached(t.learn)
	}

	later := func(at time.Time) {
		if !at.IsZero() && at.After(now) && (a.wake.IsZero() || at.Before(a.wake)) {
			a.wake = at
		}
	}
	later(t.hearBy)
	later(t.judge)
	if !t.probing && !a.probe {
		later(probe)
		later(t.round)
	}
	if !t.asking && !a.ask && t.mayAsk {
		if t.wantAnswer {
			later(t.ask)
		} else if t.storeUp {
			later(t.learn)
		}
	}
	return a
}
