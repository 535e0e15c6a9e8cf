package consul

import "github.com/tanist/tanist/election"

// The profiles as a sidecar gets them.
func DefaultTiming() election.Timing { return fitted(election.ProfileDefault) }
func FastTiming() election.Timing    { return fitted(election.ProfileFast) }

func fitted(profile string) election.Timing {
	t, err := election.ConsulTraits().Profile(profile)
	if err != nil {
		panic(err)
	}
	return t
}
