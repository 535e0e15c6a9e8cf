package main

import (
	"bufio"
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/operate"
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
				c.Name = args[0]
				return c.run(ctx, cmd, r)
			})
		},
	}
	cmd.ValidArgsFunction = a.completeKnown
	a.flags(cmd)
	cmd.Flags().StringVar(&c.Reason, "reason", "", "how it is known, for the record")
	cmd.Flags().BoolVarP(&c.yes, "yes", "y", false, "do not ask for confirmation")
	cmd.Flags().BoolVar(&c.force, "force", false, "do it although it is refused; the command names what is given up")
	cmd.Flags().DurationVar(&c.Timeout, "timeout", time.Minute, "how long to wait for another to serve")
	return cmd
}

// confirmation is an operator's word that a holder is dead.
type confirmation struct {
	operate.ConfirmDead
	yes, force bool
}

func (d *confirmation) run(ctx context.Context, cmd *cobra.Command, r reading) error {
	c := r.operated()
	if err := d.Check(ctx, c); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	lines, needs := d.GivesUp(c)
	for _, line := range lines {
		saying(out)(line)
	}
	if d.yes && !d.force {
		return exit.Errorf(exit.Force, "%s: see above what is given up, then use -y --force", needs)
	}
	if !d.yes {
		in := bufio.NewReader(cmd.InOrStdin()) // of both answers
		if err := confirm(ctx, in, out, fmt.Sprintf("Is %s dead? [y/N]", d.Name), "y", "yes"); err != nil {
			return err
		}
		if err := confirm(ctx, in, out, "Type its name to confirm it:", d.Name); err != nil {
			return err
		}
		if err := d.Still(ctx, c); err != nil { // the question may have been open for hours
			return err
		}
	}
	return carryOut(ctx, cmd, c, &d.ConfirmDead)
}
