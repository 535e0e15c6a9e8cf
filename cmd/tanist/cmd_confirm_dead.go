package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
)

func confirmDeadCommand() *cobra.Command {
	var a access
	var c confirmation
	cmd := &cobra.Command{
		Use: "confirm-dead NAME", Short: "Confirm that the last holder is dead, so that nobody waits for it",
		Long: "Confirm that the last holder of the lease is dead: that its host is off, or that no process of its controller runs and none will\n" +
			"start. After a host crash a passive waits until the lease has ended and the old controller has certainly stopped; with a\n" +
			"confirmation it takes over at once. Nothing checks that it is true: the command prints what is given up, asks, and has the name\n" +
			"typed. It pays for that one holder: what earlier ones may still do is waited out as ever. The history records who confirmed it.\n" +
			"For a script that has powered the host off: -y --force.\n" +
			"Exit codes: 0 done, 75 nobody serves yet when --timeout ran out, 107 --force is needed, 1 refused or failed.",
		Example: "  tanist confirm-dead -c orders.yml ctl-a\n  ipmitool … chassis power off && tanist confirm-dead -c orders.yml ctl-a -y --force",
		Args:    oneName("confirm whose death? Give the name of the controller that was active; `tanist list` shows it"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.reading(cmd, func(ctx context.Context, r reading) error {
				c.reading, c.name = r, args[0]
				return c.run(ctx, cmd)
			})
		},
	}
	cmd.ValidArgsFunction = a.completeKnown
	a.flags(cmd)
	cmd.Flags().StringVar(&c.reason, "reason", "", "how it is known, for the record")
	cmd.Flags().BoolVarP(&c.yes, "yes", "y", false, "do not ask for confirmation")
	cmd.Flags().BoolVar(&c.force, "force", false, "do it although it is refused; the command names what is given up")
	cmd.Flags().DurationVar(&c.timeout, "timeout", time.Minute, "how long to wait for another to serve")
	return cmd
}

// confirmation is an operator's word that a holder is dead.
type confirmation struct {
	reading
	name, reason string
	yes, force   bool
	timeout      time.Duration
}

func (c *confirmation) run(ctx context.Context, cmd *cobra.Command) error {
	if err := member(ctx, c.reading, c.name); err != nil {
		return err
	}
	dead, err := c.certify(ctx)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	c.giveUp(out, dead)
	if c.yes && !c.force {
		return exit.Errorf(exit.Force, "nothing checks that %s is dead: see above what is given up, then use -y --force", c.name)
	}
	if !c.yes {
		in := bufio.NewReader(cmd.InOrStdin()) // of both answers
		if err := confirm(ctx, in, out, fmt.Sprintf("Is %s dead? [y/N]", c.name), "y", "yes"); err != nil {
			return err
		}
		if err := confirm(ctx, in, out, "Type its name to confirm it:", c.name); err != nil {
			return err
		}
		if dead, err = c.still(ctx, dead); err != nil {
			return err
		}
	}
	dead.By, dead.Reason, dead.At = operator(), c.reason, time.Now().UTC()
	limited, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
	defer cancel()
	if err := c.store.Put(limited, election.Put{Key: election.DeadKey, Value: dead.Encode()}); err != nil {
		return writeError(err, "the confirmation")
	}
	return c.follow(ctx, out, dead)
}

// certify returns what a confirmation would be about, as of the snapshot.
func (c *confirmation) certify(ctx context.Context) (election.Dead, error) {
	dead, err := election.Certify(c.snap, c.name)
	if err != nil {
		return dead, exit.Errorf(exit.Failure, "there is nothing to confirm: %v", err)
	}
	if at := c.answersAt(ctx); at != "" {
		return dead, exit.Errorf(exit.Failure, "the sidecar of %s answers at %s, so it is not dead: `tanist switchover` moves the active, or stop that sidecar", c.name, at)
	}
	return dead, nil
}

// still certifies once more, because the question may have been open for hours: the host may be back.
func (c *confirmation) still(ctx context.Context, asked election.Dead) (dead election.Dead, err error) {
	if c.snap, err = read(ctx, c.store); err != nil {
		return dead, err
	}
	if dead, err = c.certify(ctx); err != nil {
		return dead, err
	}
	if dead != asked {
		return dead, exit.Errorf(exit.Failure, "the cluster has changed while you were asked, and nothing was confirmed: see `tanist list`, and run the command again")
	}
	return dead, nil
}

// answersAt returns where the sidecar of the controller answers, or "". It may have begun after the
// reign that is to be confirmed dead; then it knows best what runs there.
func (c *confirmation) answersAt(ctx context.Context) string {
	i := slices.IndexFunc(c.snap.Controllers, func(k election.Controller) bool { return k.Name == c.name })
	if i < 0 {
		return ""
	}
	k := c.snap.Controllers[i]
	if s, ok := askSidecar(ctx, k.API, time.Second); ok && s.Incarnation == k.Incarnation {
		return clean(k.API)
	}
	return ""
}

// giveUp prints what the confirmation means.
func (c *confirmation) giveUp(out io.Writer, dead election.Dead) {
	crumb := c.snap.Breadcrumb
	lease := "Its lease has ended. What it may still do is no longer waited out"
	if holds(c.snap, c.name) {
		lease = "Its lease is taken from it at once, and what it may still do is not waited out"
	} else if c.snap.Active != nil {
		lease = fmt.Sprintf("%s, which holds the lease now, no longer waits for it", clean(c.snap.Active.Controller))
	}
	for _, k := range c.snap.Controllers {
		if k.Name == c.name {
			fmt.Fprintf(out, "The status of %s is in the store: its sidecar was there within the last %s.\n", c.name, cmp.Or(clean(k.LeaseTTL), "seconds"))
		}
	}
	until := "until it learns that its lease is gone, at most " + cmp.Or(crumb.Validity, election.LongestValidity).String()
	if crumb.Heirs != "" {
		until = "until it reaches the store again: it may continue without the store (on_store_loss)"
	}
	fmt.Fprintf(out, `You confirm that %[1]s, up to term %[2]d, is dead: its host is off, or nothing of its controller runs or will. Nobody checks that.
  * %[3]s.
  * If it is alive, two controllers run, %[4]s.
  * Without a fenced repository both may write then. With one, %[1]s is shut out there before the next controller starts.
  * What holders before it may still do is waited out as ever.
`, c.name, dead.Term, lease, until)
}

// follow waits until another serves.
func (c *confirmation) follow(ctx context.Context, out io.Writer, dead election.Dead) error {
	fmt.Fprintf(out, "confirmed: %s is dead, up to term %d\n", c.name, dead.Term)
	if c.snap.Pause != nil {
		fmt.Fprintf(out, "The cluster is paused by %s: nobody takes over until `tanist resume`.\n", clean(c.snap.Pause.By))
		return nil
	}
	void := false
	snap, err := await(ctx, out, c.store, c.timeout, "; see `tanist explain`", func(snap election.Snapshot) bool {
		// The term record that was read is the condition: the holder may have written it meanwhile.
		void = holds(snap, c.name) && snap.TermVersion != dead.Record && snap.Active.Term == dead.Term
		return void || snap.Active.Serving() && snap.Active.Term > dead.Term
	})
	switch {
	case err != nil:
		return err
	case void:
		return exit.Errorf(exit.Failure, "the confirmation is void: %s has written its term record since it was read, so it is alive", c.name)
	}
	fmt.Fprintf(out, "%s is active, term %d.\n", clean(snap.Active.Controller), snap.Active.Term)
	return nil
}
