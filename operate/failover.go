package operate

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tanist/tanist/election"
)

// Failover makes a passive take over that would not do so by itself, while nobody is active.
type Failover struct {
	To      string // empty: the unlisted one with the highest priority
	Reason  string
	Force   bool
	Timeout time.Duration // of Follow

	target  election.Controller
	forced  bool // it needs Force
	request election.Request
}

// Command implements [Verb].
func (v *Failover) Command() string {
	force := ""
	if v.Force {
		force = "--force"
	}
	return commandLine("failover", "--to", v.To, "--reason", v.Reason, force)
}

// Check implements [Verb]. It does not refuse what needs Force; see GivesUp.
func (v *Failover) Check(_ context.Context, c *Cluster) (err error) {
	if v.target, err = failoverTarget(c.Snap, v.To); err != nil {
		return err
	}
	v.forced = leftOut(c.Snap, v.target) || standingBy(c.Snap, v.target)
	return nil
}

// Target returns who is to take over, after Check.
func (v *Failover) Target() string { return v.target.Name }

// GivesUp returns what is given up, in lines for people, and why Force is needed. It returns nothing
// if it is not needed.
func (v *Failover) GivesUp(c *Cluster) (lines []string, needs string) {
	if leftOut(c.Snap, v.target) {
		lines = giveUp(c.Snap, v.target.Name)
		needs = fmt.Sprintf("%s is unlisted, and %s may still be running", v.target.Name, LastHolder(c.Snap))
	}
	if standingBy(c.Snap, v.target) {
		lines = append(lines, fmt.Sprintf("%s is %s. By force it takes over all the same.", v.target.Name, c.Snap.Standbys[v.target.Name].Words(v.target.Name)))
		needs = cmp.Or(needs, v.target.Name+" is on standby")
	}
	return lines, needs
}

// Begin implements [Verb].
func (v *Failover) Begin(ctx context.Context, c *Cluster) error {
	v.request = c.newRequest(election.OpFailover, v.target.Name, v.Reason, c.Snap.Breadcrumb.Of())
	v.request.Force = v.forced
	return c.ask(ctx, v.request)
}

// Follow implements [Verb].
func (v *Failover) Follow(ctx context.Context, c *Cluster, say Say) error {
	void := false
	snap, err := Await(ctx, c.Store, say, v.Timeout, "; `tanist cancel` withdraws it", func(snap election.Snapshot) bool {
		if snap.Active != nil && snap.Active.Term > v.request.Term {
			return snap.Active.Serving()
		}
		void = snap.Request == nil || snap.Request.ID != v.request.ID
		return void
	})
	switch {
	case err != nil:
		return err
	case void && snap.Active != nil:
		return Errorf(Refused, "%s is back with term %d, so nothing was forced", snap.Active.Controller, snap.Active.Term)
	case void:
		return Errorf(Refused, "the request is gone, and nobody is active: see `tanist explain`")
	case snap.Active.Controller != v.request.To:
		return Errorf(Refused, "%s did not make it, and %s took over", v.request.To, snap.Active.Controller)
	}
	say.printf("%s is active, term %d.", snap.Active.Controller, snap.Active.Term)
	return nil
}

// failoverTarget checks that a failover can be asked for, and returns who is to take over.
func failoverTarget(snap election.Snapshot, to string) (target election.Controller, err error) {
	switch {
	case snap.Active != nil:
		return target, Errorf(Refused, "%s holds the lease, term %d: `tanist switchover` moves it; if its sidecar is dead, its lease ends by itself",
			snap.Active.Controller, snap.Active.Term)
	case !snap.Vacant():
		return target, Errorf(Refused, "the role key is unreadable: see `tanist explain`")
	case snap.Pause != nil:
		return target, Errorf(Refused, "the cluster is paused by %s: `tanist resume` first", snap.Pause.By)
	}
	var here []string
	for _, k := range snap.Controllers {
		here = append(here, fmt.Sprintf("%s (%s)", k.Name, k.State))
		switch {
		case to == "" && k.Fit():
			return target, Errorf(Refused, "%s is ready and takes over by itself: see `tanist list`", k.Name)
		case to == k.Name && k.State != election.StateReady && k.State != election.StateUnlisted && !standingBy(snap, k):
			return target, Errorf(Refused, "%s is %s: %s", to, k.State, cmp.Or(k.Reason, "not ready to take over"))
		case to == k.Name, to == "" && k.State == election.StateUnlisted && (target.Name == "" || k.Priority > target.Priority):
			target = k
		}
	}
	switch {
	case target.Name != "":
		return target, nil
	case to != "":
		return target, Errorf(Unknown, "there is no controller %s in this cluster; found: %s", to, cmp.Or(strings.Join(here, ", "), "none"))
	}
	return target, Errorf(Refused, "no passive is unlisted; found: %s", cmp.Or(strings.Join(here, ", "), "none"))
}

// standingBy reports whether k is kept out by a standby, which a failover by force overrides. A ban
// is not overridden.
func standingBy(snap election.Snapshot, k election.Controller) bool {
	by, on := snap.Standbys[k.Name]
	return on && !by.Ban && k.State == election.StateStandby
}

// leftOut reports whether the last holder, which may still be running, did not list k.
func leftOut(snap election.Snapshot, k election.Controller) bool {
	heirs := snap.Breadcrumb.Heirs
	return k.State == election.StateUnlisted || k.State == election.StateStandby && !snap.Breadcrumb.Clean && heirs != "" && !slices.Contains(strings.Split(heirs, ","), k.Name)
}

func LastHolder(snap election.Snapshot) string {
	return cmp.Or(Clean(snap.Breadcrumb.Controller), "the last holder")
}

// giveUp tells what is given up when one takes over that the last holder did not list.
func giveUp(snap election.Snapshot, target string) []string {
	holder, crumb := LastHolder(snap), snap.Breadcrumb
	heirs := slices.DeleteFunc(strings.Split(Clean(crumb.Heirs), ","), func(name string) bool { return name == "" || name == crumb.Controller })
	term := ""
	if crumb.Of() != 0 {
		term = fmt.Sprintf(" (term %d)", crumb.Of())
	}
	until := "its sidecar is down for longer than " + cmp.Or(crumb.Validity, election.LongestValidity).String()
	if len(heirs) > 0 {
		until += ", or one of those on its list no longer promises to leave it the lease: " + strings.Join(heirs, ", ")
	}
	return strings.Split(fmt.Sprintf(`%[2]s is not on the list of those who may take over from %[1]s%[3]s, which may still be running without the store.
If %[2]s takes over by force:
  * %[1]s may still act at the same time, and restart its sidecar and its controller, until it reaches the store again, or %[4]s.
  * Without a fenced repository both may write. With one, %[1]s is shut out there before %[2]s starts.
  * What %[1]s confirmed to its users while it was cut off from the store stands: %[2]s knows only what reached the repository.
Make sure that %[1]s's host is off, or its controller is stopped, if you can.`, holder, Clean(target), term, until), "\n")
}
