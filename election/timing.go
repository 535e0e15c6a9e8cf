package election

import (
	"errors"
	"fmt"
	"time"
)

// MaxDrift is the largest difference between the rates of two hosts' clocks for which the lease
// holds. Crystals are within 0.01 %, and time daemons slew by at most 0.05 % (ntpd) to 10 %
// (chronyd, unless configured otherwise; CLOCK_BOOTTIME follows a slew).
const MaxDrift = 0.02

// LongestValidity is the longest validity that may be configured. It bounds the deadline of a guard
// of which no record is left.
const LongestValidity = time.Minute

// slack is added to every wait that keeps two holders apart, for time stamps and timer granularity.
const slack = 50 * time.Millisecond

// The names of the profiles.
const (
	ProfileDefault = "default"
	ProfileFast    = "fast"
)

// Timing is the timing policy of a cluster. All controllers of a cluster should have the same. A
// taker honours the last holder's validity in the [Breadcrumb], so that differences cost time,
// never safety.
type Timing struct {
	Profile    string        // name, for people
	TTL        time.Duration // requested from the store: how long it keeps the lease after a renewal
	Validity   time.Duration // V: a holder may act until s+V; s is when its last acknowledged renewal was sent
	RenewEvery time.Duration // R: from the start of one renewal to the start of the next
	StopBudget time.Duration // a forced stop begins at s+V-StopBudget, and must be over by s+V
	// Beat: the holder writes the beat key with every renewal, and a passive takes over by
	// compare-and-swap once it has seen no beat for Silence. This makes takeovers sub-second on any
	// store, at one write per renewal.
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

// KillMargin is how long before s+V the guard kills what is left of the controller: half of the
// stop budget. The other half is for a graceful stop.
func (t Timing) KillMargin() time.Duration { return t.StopBudget / 2 }

// Attempt is the timeout of one request to the store. It is short, because a request to a store
// without a leader hangs until its timeout, even if a leader is elected a moment later. So this
// timeout adds to the election.
func (t Timing) Attempt() time.Duration { return min(t.RenewEvery, t.Validity/4, longestAttempt) }

// under returns t with the timing of the reign in b.
func (t Timing) under(b Breadcrumb) Timing {
	t.Validity, t.Beat = b.Validity, b.Beat
	if b.TTL > 0 {
		t.TTL = b.TTL
	}
	t.RenewEvery, t.StopBudget = min(t.RenewEvery, b.Validity/3), min(t.StopBudget, b.Validity/3)
	return t
}

const longestAttempt = 500 * time.Millisecond

// Outlast returns how long another host must wait until a validity of v has certainly ended.
func Outlast(v time.Duration) time.Duration {
	return v + time.Duration(float64(v)*MaxDrift) + slack
}

// Validate checks the inequalities on which the guarantees rest against the store's traits. It
// returns all that fail, each with its numbers.
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
	if t.Validity > LongestValidity {
		refuse("lease.validity %v exceeds %v, the longest wait for a deadline without a record: lower validity", t.Validity, LongestValidity)
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
	verb, noun := store.gap()
	if gap := t.RenewEvery + store.LeaderGap; !t.LeaderChange && usable > 0 && usable < gap {
		refuse("lease.validity - stop_budget = %v is shorter than renew_every + the %v that %s may take to %s (%v): every such %s would stop the controller; raise validity, or accept it with lease.leader_change: true",
			usable, store.LeaderGap, store.Name, verb, gap, noun)
	}
	return errors.Join(errs...)
}

// minStopBudget leaves a kill margin of 75 ms, of which up to 50 pass until a guard that froze at
// the last moment is detected.
const minStopBudget = 150 * time.Millisecond

// Bound is the worst-case duration of one kind of fault, with its parts. It does not include what
// no policy can bound: the controller's own start, and a store that does not answer.
type Bound struct {
	Fault string
	Max   time.Duration
	Parts string
}

// Health is what [Timing.Bounds] needs to know about health checks and stopping.
type Health struct {
	Interval, Timeout time.Duration
	Fall              int
	StopTimeout       time.Duration // of a planned move
	KillTimeout       time.Duration // of a controller that failed its checks
	Drain             time.Duration // before the stop of a planned move
	Fence             time.Duration // the longest wait of the taker's fence, if the repository answers; zero: no repository
	CloseFence        time.Duration // how long the holder tries to close the repository before it releases; zero: no repository
}

// hop is the allowance for a transaction and a watch event of a healthy store, on a busy host.
const hop = 100 * time.Millisecond

// Bounds returns the worst case per kind of fault, until the taker starts its controller.
func (t Timing) Bounds(store Traits, h Health) []Bound {
	handOver := 2 * hop
	unhealthy := time.Duration(h.Fall)*h.Interval + h.Timeout
	expiry, words := t.TTL+store.ExpirySlack+Outlast(t.Validity), fmt.Sprintf("ttl %v + store %v + old validity waited out %v", t.TTL, store.ExpirySlack, Outlast(t.Validity))
	_, noun := store.gap()
	while := "the same while the store elects a leader"
	if noun == "restart" {
		while = "the same while the store restarts"
	}
	election := expiry + store.LeaderGap + t.TTL
	electionWords := fmt.Sprintf("%s + store %s %v + ttl again %v", words, noun, store.LeaderGap, t.TTL)
	if t.Beat {
		expiry, words = t.Silence, fmt.Sprintf("silence %v", t.Silence)
		election = expiry + store.LeaderGap
		electionWords = fmt.Sprintf("%s + store %s %v", words, noun, store.LeaderGap)
	}
	bounds := []Bound{
		{"controller exits", handOver, fmt.Sprintf("hand-over %v", handOver)},
		{"controller fails its checks", unhealthy + h.KillTimeout + handOver, fmt.Sprintf("%d checks %v + stop at most %v + hand-over %v", h.Fall, unhealthy, h.KillTimeout, handOver)},
		{"planned move", h.Drain + h.StopTimeout + handOver, fmt.Sprintf("drain %v + stop at most %v + hand-over %v", h.Drain, h.StopTimeout, handOver)},
		{"host crash, sidecar killed or frozen, link cut", expiry + handOver, words + fmt.Sprintf(" + hand-over %v", handOver)},
		{while, election + handOver, electionWords + fmt.Sprintf(" + hand-over %v", handOver)},
		{"store away: the active has stopped after", t.Validity, fmt.Sprintf("validity %v (the stop begins at %v)", t.Validity, t.Validity-t.StopBudget)},
	}
	const byHolder, byTaker = 3, 5 // the old holder closes the repository; the taker fences it
	for i := range bounds[:byTaker] {
		if b := &bounds[i]; h.Fence > 0 {
			if i < byHolder {
				b.Max += h.CloseFence
				b.Parts += fmt.Sprintf(" + closing the repository at most %v", h.CloseFence)
			}
			b.Max += h.Fence
			b.Parts += fmt.Sprintf(" + fence at most %v", h.Fence)
		}
	}
	return bounds
}
