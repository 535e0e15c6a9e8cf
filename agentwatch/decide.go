package agentwatch

// Facts are what the view knows at one moment, as far as it matters for what to do.
type Facts struct {
	// StoreUp: the store could be asked, so what it says is the present.
	StoreUp bool
	// Named: a controller is known to be the one to follow. With the store up: the role key is serving and acceptable. With the store
	// away: a sidecar names one, or one was named before, and no higher term has been seen.
	Named bool
	// Port: the startup port of the controller followed (last) answers.
	Port bool
	// Others is how many of the other known controllers' startup ports answer.
	Others int
	// TermSeen: a term has been seen, now or in an earlier life.
	TermSeen bool
}

// Action is what an agent is to do.
type Action string

// The actions.
const (
	Keep   Action = "keep"   // leave it as it is: running or not
	Follow Action = "follow" // run, pointed at the controller named
	Guess  Action = "guess"  // run, pointed at the controller that answers: the one followed, else the only one
	Stop   Action = "stop"   // do not run
)

// Decision is what to make of Facts.
type Decision struct {
	Agent Action
	Ask   bool // ask the sidecars
	Miss  bool // no controller can be reached: counts against the retries
}

// Decide is the decision table. It is pure.
func Decide(f Facts) Decision {
	d := Decision{Agent: Keep, Ask: !f.StoreUp, Miss: !f.Port && f.Others == 0}
	switch {
	case f.StoreUp && f.Named:
		// The holder's own sidecar has seen the port answer before it published. If this host can't reach it,
		// the agent's own retries are as good as ours.
		d.Agent = Follow
	case f.StoreUp:
		// A vacancy: wait for who comes.
	case f.Named && f.Port:
		d.Agent = Follow
	case f.Named:
		// Not to be started at a dead port, and not to be stopped because of one.
	case f.TermSeen:
		// Somebody else may have a higher term than whoever answers: no guessing.
	case f.Port || f.Others == 1:
		d.Agent = Guess
	}
	return d
}
