package operate

import (
	"cmp"
	"context"
	"strings"
	"time"

	"github.com/tanist/tanist/election"
)

// Targets checks that the active can be moved to a controller, or to any if to is empty, and returns
// who may take over, for people.
func Targets(snap election.Snapshot, to string) (string, error) {
	if !snap.Active.Serving() {
		return "", Errorf(NotActive, "nobody is active, so there is nothing to move: see `tanist explain`")
	}
	if snap.Pause != nil {
		return "", Errorf(Refused, "the cluster is paused by %s: `tanist resume` first", snap.Pause.By)
	}
	if to == snap.Active.Controller {
		return "", Errorf(Refused, "%s is active already", to)
	}
	var ready []string
	for _, k := range snap.Controllers {
		if k.Name == snap.Active.Controller {
			continue
		}
		if k.Name == to && k.State != election.StateReady {
			return "", Errorf(Refused, "%s is %s: %s", to, k.State, cmp.Or(k.Reason, "not ready to take over"))
		}
		if k.State == election.StateReady && (to == k.Name || !k.NoFailover) {
			ready = append(ready, k.Name)
		}
		if k.Name == to {
			return to, nil
		}
	}
	if to != "" {
		return "", Errorf(Unknown, "there is no controller %s in this cluster; ready are: %s", to, cmp.Or(strings.Join(ready, ", "), "none"))
	}
	if len(ready) == 0 {
		return "", Errorf(Refused, "no passive is ready to take over: see `tanist explain`")
	}
	return strings.Join(ready, " or "), nil
}

// Switchover makes another controller active, as a planned move.
type Switchover struct {
	To      string    // empty: any passive that is ready
	At      time.Time // by the clock of the active's host; zero: now
	Reason  string
	Timeout time.Duration // of Follow

	targets string
	from    election.Active
	request election.Request
}

// Command implements [Verb].
func (v *Switchover) Command() string {
	return commandLine("switchover", "--to", v.To, "--at", typedTime(v.At), "--reason", v.Reason)
}

// Check implements [Verb].
func (v *Switchover) Check(_ context.Context, c *Cluster) (err error) {
	v.targets, err = Targets(c.Snap, v.To)
	return err
}

// Targets returns who may take over, for people, after Check.
func (v *Switchover) Targets() string { return v.targets }

// Begin implements [Verb].
func (v *Switchover) Begin(ctx context.Context, c *Cluster) error {
	v.from = *c.Snap.Active
	v.request = c.newRequest(election.OpSwitchover, v.To, v.Reason, v.from.Term)
	if !v.At.IsZero() {
		v.request.Op, v.request.At = election.OpScheduled, v.At.UTC()
	}
	return c.ask(ctx, v.request)
}

// Request returns the request that Begin has written.
func (v *Switchover) Request() election.Request { return v.request }

// Follow implements [Verb]. It does not wait for a scheduled move.
func (v *Switchover) Follow(ctx context.Context, c *Cluster, say Say) error {
	if !v.At.IsZero() {
		say.printf("scheduled: %s moves to %s at %s, in %v, by the clock of its host; `tanist cancel` withdraws it",
			v.from.Controller, v.targets, v.At.Format(time.DateTime), time.Until(v.At).Round(time.Second))
		return nil
	}
	snap, down, err := v.await(ctx, c, say)
	if err != nil {
		return err
	}
	say.printf("%s is active, term %d. Outage %s.", snap.Active.Controller, snap.Active.Term, outage(down))
	if snap.Active.Controller == v.from.Controller {
		return Errorf(Refused, "the move failed, and %s took over again: see `tanist describe` of the others", v.from.Controller)
	}
	if v.To != "" && snap.Active.Controller != v.To {
		return Errorf(Refused, "%s did not make it, and %s took over", v.To, snap.Active.Controller)
	}
	return nil
}

// await waits until another reign serves. down is since when nobody does.
func (v *Switchover) await(ctx context.Context, c *Cluster, say Say) (snap election.Snapshot, down time.Time, err error) {
	refused := false
	snap, err = Await(ctx, c.Store, say, v.Timeout, "", func(snap election.Snapshot) bool {
		if !snap.Active.Serving() && down.IsZero() {
			down = time.Now()
		}
		// If the request vanishes while the old reign serves, the active has rejected it.
		refused = Rejected(snap, v.request)
		return refused || (snap.Active.Serving() && snap.Active.Term > v.from.Term)
	})
	if err == nil && refused {
		err = Errorf(Refused, "%s refused the move: the target is not ready any more; its log has the reason", snap.Active.Controller)
	}
	return snap, down, err
}

// Rejected reports whether the active has rejected a request: it serves on in its term without it.
// Another operator's may be there by then.
func Rejected(snap election.Snapshot, r election.Request) bool {
	return snap.Active.Serving() && snap.Active.Term == r.Term && (snap.Request == nil || snap.Request.ID != r.ID)
}
