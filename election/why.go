package election

import "strings"

// Why is the kind of a takeover, for metrics: the reason of a reign without its names.
type Why string

// The kinds of takeovers.
const (
	WhyFirst      Why = "first"      // nobody had reigned before
	WhySwitchover Why = "switchover" // an operator requested it
	WhyForced     Why = "forced"     // an operator forced it, or confirmed that the holder before was dead
	WhyFailed     Why = "failed"     // the controller before had failed
	WhySilent     Why = "silent"     // the holder before went silent, or its lease ended
	WhyEnded      Why = "ended"      // the sidecar before ended as planned
)

// Whys lists all kinds.
func Whys() []Why {
	return []Why{WhyFirst, WhySwitchover, WhyForced, WhyFailed, WhySilent, WhyEnded}
}

// WhyOf returns the kind of a reign's reason.
func WhyOf(reason string) Why {
	switch {
	case reason == firstReason:
		return WhyFirst
	case strings.HasPrefix(reason, "switchover ("):
		return WhySwitchover
	case strings.HasPrefix(reason, ForcedReason), strings.Contains(reason, deadReason):
		return WhyForced
	case strings.Contains(reason, " failed: "):
		return WhyFailed
	case strings.HasSuffix(reason, " went silent"), strings.HasPrefix(reason, "the lease "), strings.HasPrefix(reason, "lease lost by "),
		strings.HasPrefix(reason, "the role key "), strings.HasPrefix(reason, "the store "):
		return WhySilent
	}
	return WhyEnded
}

// firstReason is the reason of a cluster's first reign.
const firstReason = "first start"
