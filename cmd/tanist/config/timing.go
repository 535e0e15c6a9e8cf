package config

import (
	"time"

	"github.com/tanist/tanist/backends/consul"
	"github.com/tanist/tanist/election"
)

// Traits returns what a store promises, for checks that are made without asking it.
func Traits(store string) election.Traits {
	if store == "consul" {
		return election.Traits{Name: "consul", MinTTL: 10 * time.Second, ExpirySlack: 10 * time.Second, LeaderGap: 5 * time.Second}
	}
	return election.Traits{Name: "etcd", MinTTL: 2 * time.Second, ExpirySlack: 700 * time.Millisecond, LeaderGap: 1800 * time.Millisecond}
}

// Profile returns a named profile, fitted to what the store can do.
func Profile(store, name string) (election.Timing, error) {
	t, err := election.Profile(name)
	switch {
	case err != nil || store != "consul":
		return t, err
	case t.Profile == election.ProfileFast:
		return consul.FastTiming(), nil
	default:
		return consul.DefaultTiming(), nil
	}
}
