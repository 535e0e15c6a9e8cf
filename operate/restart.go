package operate

import (
	"context"
	"time"

	"github.com/tanist/tanist/election"
)

// Restart stops and starts the active controller again, in the same term.
type Restart struct {
	Reason  string
	At      time.Time     // by the clock of the active's host; zero: now
	Timeout time.Duration // of Follow

	before  election.Active
	request election.Request
}

// Command implements [Verb].
func (v *Restart) Command() string {
	return commandLine("restart", "--at", typedTime(v.At), "--reason", v.Reason)
}

// Check implements [Verb].
func (v *Restart) Check(_ context.Context, c *Cluster) error {
	before, err := c.Serving()
	if err != nil {
		return err
	}
	if c.Snap.Pause != nil {
		return Errorf(Refused, "the cluster is paused by %s: `tanist resume` first", c.Snap.Pause.By)
	}
	v.before = *before
	return nil
}

// Begin implements [Verb].
func (v *Restart) Begin(ctx context.Context, c *Cluster) error {
	v.request = c.newRequest(election.OpRestart, v.before.Controller, v.Reason, v.before.Term)
	if !v.At.IsZero() {
		v.request.Op, v.request.At = election.OpScheduledRestart, v.At.UTC()
	}
	return c.ask(ctx, v.request)
}

// Follow implements [Verb]. It does not wait for a scheduled restart.
func (v *Restart) Follow(ctx context.Context, c *Cluster, say Say) error {
	if !v.At.IsZero() {
		say.printf("scheduled: %s restarts its controller at %s, in %v, by the clock of its host; `tanist cancel` withdraws it",
			v.before.Controller, v.At.Format(time.DateTime), time.Until(v.At).Round(time.Second))
		return nil
	}
	var down time.Time
	snap, err := Await(ctx, c.Store, say, v.Timeout, "", func(snap election.Snapshot) bool {
		if !snap.Active.Serving() && down.IsZero() {
			down = time.Now()
		}
		return snap.Active.Serving() && (snap.Active.Term != v.before.Term || snap.Request == nil || snap.Request.ID != v.request.ID)
	})
	switch is := snap.Active; {
	case err != nil:
		return err
	case is.Term != v.before.Term:
		return Errorf(Refused, "%s did not serve again in its term %d, and %s took over, term %d: see `tanist describe %s`",
			v.before.Controller, v.before.Term, is.Controller, is.Term, v.before.Controller)
	case is.Since.Equal(v.before.Since):
		return Errorf(Refused, "%s refused to restart its controller: its log has the reason; `tanist restart --rolling` moves it instead", is.Controller)
	}
	say.printf("%s serves again, still term %d. Outage %s.", v.before.Controller, v.before.Term, outage(down))
	return nil
}
