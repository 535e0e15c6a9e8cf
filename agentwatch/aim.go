package agentwatch

import (
	"time"

	"github.com/tanist/tanist/election"
)

// The sources of an [Aim].
const (
	viaStore   = "store"
	viaSidecar = "sidecar"
	viaMemory  = "state file"
	viaProbe   = "probe"
)

// Aim is the controller that agents are pointed at.
type Aim struct {
	Controller string        `json:"controller"`
	URL        string        `json:"url"`
	URLs       election.URLs `json:"urls,omitempty"`
	Term       election.Term `json:"term"` // zero: unknown (found by a probe)
	Via        string        `json:"via"`  // store, sidecar, state file or probe
	Seen       time.Time     `json:"seen"` // when it was first seen

	at election.URL // of URL; the zero value if there is no target
}

// differs reports whether an agent that is pointed at t must be redirected to next. Learning the
// term of the same controller is not a difference.
func (t Aim) differs(next Aim) bool {
	return t.URL != next.URL || (t.Term != 0 && t.Term != next.Term)
}
