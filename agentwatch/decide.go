package agentwatch

// Facts are the parts of the picture that a decision depends on.
type Facts struct {
	// StoreUp means that the store is reachable, so that its content is current.
	StoreUp bool
	// Named means that the controller to follow is known. With the store up: the role key is
	// serving and acceptable. With the store away: a sidecar names one, or one was named before,
	// and no higher term has been seen.
	Named bool
	// UnderWay means that the store is reachable and names a controller that is being started or
	// stopped.
	UnderWay bool
	// Port means that the startup port of the (last) followed controller is open.
	Port bool
	// Others is the number of other known controllers whose startup ports are open.
	Others int
	// TermSeen means that a term has been seen, even before a restart.
	TermSeen bool
}

// Action is what an agent should do.
type Action string

// The actions.
const (
	Leave  Action = "leave"  // no change, running or not
	Follow Action = "follow" // run, pointed at the named controller
	Guess  Action = "guess"  // run, pointed at the controller that responds: the followed one, else the only one
	Stop   Action = "stop"   // do not run
)

// Decision is the result of [Decide].
type Decision struct {
	Agent Action
	Ask   bool // ask the sidecars
	Miss  bool // no controller is reachable: counts against the retries
}

// Decide is the decision table. It is pure.
func Decide(f Facts) Decision {
	d := Decision{Agent: Leave, Ask: !f.StoreUp, Miss: !f.Port && f.Others == 0}
	if f.StoreUp && f.UnderWay {
		d.Miss = false // a takeover takes as long as the controller's start, and the store reports progress
	}
	switch {
	case f.StoreUp && f.Named:
		// The holder's own sidecar saw the port open before it published. If this host can't reach
		// it, the agent's own retries are as good as ours.
		d.Agent = Follow
	case f.StoreUp:
		// A vacancy: wait for the next controller.
	case f.Named && f.Port:
		d.Agent = Follow
	case f.Named:
		// Neither start at a dead port nor stop because of one.
	case f.TermSeen:
		// A controller other than the responding one may have a higher term: do not guess.
	case f.Port || f.Others == 1:
		d.Agent = Guess
	}
	return d
}
