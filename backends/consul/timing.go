package consul

import (
	"time"

	"github.com/tanist/tanist/election"
)

// DefaultTiming returns the default profile for Consul.
//
// Consul keeps a session for up to twice its TTL, and the TTL is at least 10 s: a takeover that waited for that would take
// 20 s. So the default profile has a beat, one write per second, and a passive takes over by compare-and-swap after 8.5 s without
// one. The validity is long enough to outlive an election of Consul's own leader on a busy machine: with raft_multiplier = 1 the
// longest of about 60 that were measured took 4.4 s, and the first renewal after it comes up to a second later.
func DefaultTiming() election.Timing {
	return election.Timing{
		Profile: election.ProfileDefault, TTL: 10 * time.Second, Validity: 8 * time.Second, RenewEvery: time.Second,
		StopBudget: time.Second, Beat: true, Silence: 8500 * time.Millisecond,
	}
}

// FastTiming returns the fast profile for Consul: takeover after 800 ms of silence, five writes per second, and a change of Consul's
// own leader costs the lease.
func FastTiming() election.Timing {
	return election.Timing{
		Profile: election.ProfileFast, TTL: 10 * time.Second, Validity: 600 * time.Millisecond, RenewEvery: 200 * time.Millisecond,
		StopBudget: 200 * time.Millisecond, Beat: true, Silence: 800 * time.Millisecond, LeaderChange: true,
	}
}
