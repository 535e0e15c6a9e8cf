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

// ConfirmDead is an operator's word that the last holder of the lease is dead.
type ConfirmDead struct {
	Name    string
	Reason  string
	Timeout time.Duration // of Follow

	dead election.Dead
}

// Command implements [Verb].
func (v *ConfirmDead) Command() string {
	return commandLine("confirm-dead", v.Name, "--reason", v.Reason, "-y", "--force")
}

// Check implements [Verb]. Everything about it needs an operator's insistence; see GivesUp.
func (v *ConfirmDead) Check(ctx context.Context, c *Cluster) (err error) {
	if err := c.Member(ctx, v.Name); err != nil {
		return err
	}
	if v.dead, err = election.Certify(c.Snap, v.Name); err != nil {
		return Errorf(Refused, "there is nothing to confirm: %v", err)
	}
	i := slices.IndexFunc(c.Snap.Controllers, func(k election.Controller) bool { return k.Name == v.Name })
	if i < 0 {
		return nil
	}
	// It may have begun after the reign that is to be confirmed dead; then it knows best what runs there.
	k := c.Snap.Controllers[i]
	if s, ok := AskSidecar(ctx, k.API, time.Second); ok && s.Incarnation == k.Incarnation {
		return Errorf(Refused, "the sidecar of %s answers at %s, so it is not dead: `tanist switchover` moves the active, or stop that sidecar", v.Name, Clean(k.API))
	}
	return nil
}

// Still checks once more, after a question that may have been open for hours: the host may be back.
func (v *ConfirmDead) Still(ctx context.Context, c *Cluster) error {
	asked := v.dead
	if err := c.Look(ctx); err != nil {
		return err
	}
	if err := v.Check(ctx, c); err != nil {
		return err
	}
	if v.dead != asked {
		return Errorf(Refused, "the cluster has changed while you were asked, and nothing was confirmed: see `tanist list`, and run the command again")
	}
	return nil
}

// GivesUp returns what the confirmation means, in lines for people, after Check.
func (v *ConfirmDead) GivesUp(c *Cluster) (lines []string, needs string) {
	crumb := c.Snap.Breadcrumb
	lease := "Its lease has ended. What it may still do is no longer waited out"
	if Holds(c.Snap, v.Name) {
		lease = "Its lease is taken from it at once, and what it may still do is not waited out"
	} else if c.Snap.Active != nil {
		lease = fmt.Sprintf("%s, which holds the lease now, no longer waits for it", Clean(c.Snap.Active.Controller))
	}
	for _, k := range c.Snap.Controllers {
		if k.Name == v.Name {
			lines = append(lines, fmt.Sprintf("The status of %s is in the store: its sidecar was there within the last %s.", v.Name, cmp.Or(Clean(k.LeaseTTL), "seconds")))
		}
	}
	until := "until it learns that its lease is gone, at most " + cmp.Or(crumb.Validity, election.LongestValidity).String()
	if crumb.Heirs != "" {
		until = "until it reaches the store again: it may continue without the store (on_store_loss)"
	}
	return append(lines, strings.Split(fmt.Sprintf(`You confirm that %[1]s, up to term %[2]d, is dead: its host is off, or nothing of its controller runs or will. Nobody checks that.
  * %[3]s.
  * If it is alive, two controllers run, %[4]s.
  * Without a fenced repository both may write then. With one, %[1]s is shut out there before the next controller starts.
  * What holders before it may still do is waited out as ever.`, v.Name, v.dead.Term, lease, until), "\n")...), "nothing checks that " + v.Name + " is dead"
}

// Begin implements [Verb].
func (v *ConfirmDead) Begin(ctx context.Context, c *Cluster) error {
	v.dead.By, v.dead.Reason, v.dead.At = c.By, v.Reason, time.Now().UTC()
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	if err := c.Store.Put(ctx, election.Put{Key: election.DeadKey, Value: v.dead.Encode()}); err != nil {
		return WriteError(err, "the confirmation")
	}
	return nil
}

// Follow implements [Verb]. It waits until another serves.
func (v *ConfirmDead) Follow(ctx context.Context, c *Cluster, say Say) error {
	say.printf("confirmed: %s is dead, up to term %d", v.Name, v.dead.Term)
	if c.Snap.Pause != nil {
		say.printf("The cluster is paused by %s: nobody takes over until `tanist resume`.", c.Snap.Pause.By)
		return nil
	}
	void := false
	snap, err := Await(ctx, c.Store, say, v.Timeout, "; see `tanist explain`", func(snap election.Snapshot) bool {
		// The term record that was read is the condition: the holder may have written it meanwhile.
		void = Holds(snap, v.Name) && snap.TermVersion != v.dead.Record && snap.Active.Term == v.dead.Term
		return void || snap.Active.Serving() && snap.Active.Term > v.dead.Term
	})
	switch {
	case err != nil:
		return err
	case void:
		return Errorf(Refused, "the confirmation is void: %s has written its term record since it was read, so it is alive", v.Name)
	}
	say.printf("%s is active, term %d.", snap.Active.Controller, snap.Active.Term)
	return nil
}

// Forget removes a controller that will not come back from the list.
type Forget struct{ Name string }

// Command implements [Verb].
func (v *Forget) Command() string { return commandLine("forget", v.Name) }

// Check implements [Verb].
func (v *Forget) Check(ctx context.Context, c *Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	if slices.ContainsFunc(c.Snap.Controllers, func(k election.Controller) bool { return k.Name == v.Name }) {
		return Errorf(Refused, "the sidecar of %s is here: stop it first", v.Name)
	}
	gone, err := ReadGone(ctx, c.Store, c.Snap.Controllers)
	if err != nil {
		return ReadError(err, "cannot read the members")
	}
	var names []string
	for _, m := range gone {
		names = append(names, Clean(m.Name))
	}
	if !slices.ContainsFunc(gone, func(m election.Member) bool { return m.Name == v.Name }) {
		return Errorf(Unknown, "there is no controller %q that is gone in %s; gone are: %s", v.Name, c.Name, cmp.Or(strings.Join(names, ", "), "none"))
	}
	return nil
}

// Begin implements [Verb].
func (v *Forget) Begin(ctx context.Context, c *Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	if err := c.Store.Delete(ctx, election.MemberKey(v.Name), 0); err != nil {
		return WriteError(err, "the end of the member")
	}
	return nil
}

// Follow implements [Verb].
func (v *Forget) Follow(_ context.Context, _ *Cluster, say Say) error {
	say.printf("%s is forgotten", v.Name)
	return nil
}
