package election

import (
	"errors"
	"fmt"
	"time"
)

// MaxDrift is the largest difference between the rates of two hosts' clocks that the lease allows for. Crystals are
// within 0.01 %, and time daemons slew by at most 0.05 % (ntpd) to 10 % (chronyd, unless told otherwise; CLOCK_BOOTTIME
// follows a slew).
const MaxDrift = 0.02

// slack is added to every wait that keeps two holders apart: time stamps, timer granularity.
const slack = 50 * time.Millisecond

// The names of the profiles.
const (
	ProfileDefault = "default"
	ProfileFast    = "fast"
)

// Timing is the timing policy of a cluster. All controllers of a cluster should have the same; a taker honours the
// validity that the last holder left in the [Breadcrumb], so that different ones are slow, never unsafe.
type Timing struct {
	Profile    string        // name, for people
	TTL        time.Duration // what is asked of the store: it keeps the lease for so long after a renewal
	Validity   time.Duration // V: a holder may act until s+V, s being when its last acknowledged renewal was sent
	RenewEvery time.Duration // R: from the start of one renewal to the start of the next
	StopBudget time.Duration // a forced stop begins at s+V-StopBudget, and must be over by s+V
	// Beat: the holder writes the beat key with every renewal, and a passive takes over by compare-and-swap once it has
	// seen no beat for Silence. Sub-second, on any store, at the price of a write per renewal.
	Beat    bool
	Silence time.Duration // S; only with Beat
	// LeaderChange accepts that a change of the store's leader costs the lease.
	LeaderChange bool
}

// Profile returns the named profile.
func Profile(name string) (Timing, error) {
	switch name {
	case ProfileDefault, "":
		return Timing{
			Profile: ProfileDefault, TTL: 5 * time.Second, Validity: 4 * time.Second, RenewEvery: time.Second,
			StopBudget: time.Second,
		}, nil
	case ProfileFast:
		return Timing{
			Profile: ProfileFast, TTL: 5 * time.Second, Validity: 600 * time.Millisecond, RenewEvery: 200 * time.Millisecond,
			StopBudget: 200 * time.Millisecond, Beat: true, Silence: 800 * time.Millisecond, LeaderChange: true,
		}, nil
	}
	return Timing{}, fmt.Errorf("cannot find lease profile %q: it is one of default, fast", name)
}

// KillMargin is how long before s+V the guard kills what is left of the controller: half of the stop budget. The other
// half is for a polite stop.
func (t Timing) KillMargin() time.Duration { return t.StopBudget / 2 }

// Attempt is the time-out of one request to the store. It is short, because a request that was sent to a store without a leader
// hangs until it times out, also if a leader is elected a moment later: what it takes comes on top of the election.
func (t Timing) Attempt() time.Duration { return min(t.RenewEvery, t.Validity/4, longestAttempt) }

const longestAttempt = 500 * time.Millisecond

// Outlast returns how long somebody else waits to be sure that a validity of v, on another host's clock, is over.
func Outlast(v time.Duration) time.Duration {
	return v + time.Duration(float64(v)*MaxDrift) + slack
}

// Validate proves the inequalities that the promises rest on, against what the store promises, and returns
// all that fail, each with its numbers.
func (t Timing) Validate(store Traits) error {
	var errs []error
	refuse := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, d := range []struct {
		name string
		d    time.Duration
	}{{"ttl", t.TTL}, {"validity", t.Validity}, {"renew_every", t.RenewEvery}, {"stop_budget", t.StopBudget}} {
		if d.d <= 0 {
			refuse("lease.%s is %v: it must be more than zero", d.name, d.d)
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if t.TTL < store.MinTTL {
		refuse("lease.ttl %v is below the %v that %s can do: raise ttl", t.TTL, store.MinTTL, store.Name)
	}
	if need := Outlast(t.Validity); need > t.TTL {
		refuse("lease.validity %v, with %v %% clock drift and %v slack, is %v and outlives lease.ttl %v: lower validity or raise ttl",
			t.Validity, MaxDrift*100, slack, need, t.TTL)
	}
	if t.Beat {
		if need := Outlast(t.Validity); need > t.Silence {
			refuse("lease.validity %v, with %v %% clock drift and %v slack, is %v and outlives lease.silence %v: lower validity or raise silence",
				t.Validity, MaxDrift*100, slack, need, t.Silence)
		}
	}
	if t.StopBudget < minStopBudget {
		refuse("lease.stop_budget %v is too short to stop and confirm a process tree: make it at least %v", t.StopBudget, minStopBudget)
	}
	usable := t.Validity - t.StopBudget
	if usable <= 0 {
		refuse("lease.stop_budget %v does not fit into lease.validity %v: a forced stop would begin before the lease does", t.StopBudget, t.Validity)
	} else if 2*t.RenewEvery > usable {
		refuse("lease.renew_every %v leaves fewer than two renewals in validity - stop_budget = %v: lower renew_every to at most %v", t.RenewEvery, usable, usable/2)
	}
	if gap := t.RenewEvery + store.LeaderGap; !t.LeaderChange && usable > 0 && usable < gap {
		refuse("lease.validity - stop_budget = %v is shorter than renew_every + the %v that %s may take to elect a leader (%v): every such election would stop the controller; raise validity, or accept it with lease.leader_change: true",
			usable, store.LeaderGap, store.Name, gap)
	}
	return errors.Join(errs...)
}

const minStopBudget = 100 * time.Millisecond

// Bound is the longest time that a kind of fault takes to be over, its parts spelled out. It leaves out what no policy can
// bound: the controller's own start, and a store that does not answer.
type Bound struct {
	Fault string
	Max   time.Duration
	Parts string
}

// Health is what [Timing.Bounds] needs to know of health checking and stopping.
type Health struct {
	Interval, Timeout time.Duration
	Fall              int
	StopTimeout       time.Duration
	Drain             time.Duration // before the stop of a planned move
}

// hop is the allowance for a transaction and a watch event of a healthy store, on a busy host.
const hop = 100 * time.Millisecond

// Bounds returns the worst case per kind of fault, until the taker starts its controller.
func (t Timing) Bounds(store Traits, h Health) []Bound {
	handOver := 2 * hop
	unhealthy := time.Duration(h.Fall)*h.Interval + h.Timeout
	expiry, words := t.TTL+store.ExpirySlack+Outlast(t.Validity), fmt.Sprintf("ttl %v + store %v + old validity waited out %v", t.TTL, store.ExpirySlack, Outlast(t.Validity))
	election := expiry + store.LeaderGap + t.TTL
	electionWords := fmt.Sprintf("%s + store election %v + ttl again %v", words, store.LeaderGap, t.TTL)
	if t.Beat {
		expiry, words = t.Silence, fmt.Sprintf("silence %v", t.Silence)
		election = expiry + store.LeaderGap
		electionWords = fmt.Sprintf("%s + store election %v", words, store.LeaderGap)
	}
	return []Bound{
		{"controller exits", handOver, fmt.Sprintf("hand-over %v", handOver)},
		{"controller fails its checks", unhealthy + h.StopTimeout + handOver, fmt.Sprintf("%d checks %v + stop at most %v + hand-over %v", h.Fall, unhealthy, h.StopTimeout, handOver)},
		{"planned move", h.Drain + h.StopTimeout + handOver, fmt.Sprintf("drain %v + stop at most %v + hand-over %v", h.Drain, h.StopTimeout, handOver)},
		{"host crash, sidecar killed or frozen, link cut", expiry + handOver, words + fmt.Sprintf(" + hand-over %v", handOver)},
		{"the same while the store elects a leader", election + handOver, electionWords + fmt.Sprintf(" + hand-over %v", handOver)},
		{"store away: the active has stopped after", t.Validity, fmt.Sprintf("validity %v (the stop begins at %v)", t.Validity, t.Validity-t.StopBudget)},
	}
}
