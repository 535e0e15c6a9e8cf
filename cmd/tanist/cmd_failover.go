package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/operate"
)

// failover is one that an operator asks for.
type failover struct {
	operate.Failover
	yes bool
}

func failoverCommand() *cobra.Command {
	var a access
	var f failover
	cmd := &cobra.Command{
		Use: "failover [--to NAME] [--force]", Short: "Make a passive take over that would not do so by itself", Args: noArgs,
		Long: "Make a passive take over that would not do so by itself, while no controller is active: one with nofailover, or, with --force, an\n" +
			"`unlisted` one or one on standby (`tanist ban` rules even that out). A passive is `unlisted` because the last holder may still be running without the store, and may even restart its\n" +
			"controller there. With --force, two controllers may run until that holder learns of the takeover; the command prints first what\n" +
			"is given up.\n" +
			"Exit codes: 0 done, 75 still in progress when --timeout ran out, 107 --force is needed, 1 refused or failed.",
		Example: "  tanist failover -c orders.yml --to ctl-b --force",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.reading(cmd, func(ctx context.Context, r reading) error { return f.run(ctx, cmd, r) })
		},
	}
	a.flags(cmd)
	cmd.Flags().StringVar(&f.To, "to", "", "the target controller (default: the unlisted one with the highest priority)")
	_ = cmd.RegisterFlagCompletionFunc("to", a.completeControllers) // the flag is there
	cmd.Flags().StringVar(&f.Reason, "reason", "", "why, for the history")
	cmd.Flags().BoolVar(&f.Force, "force", false, "do it although it is refused; the command names what is given up")
	cmd.Flags().BoolVarP(&f.yes, "yes", "y", false, "do not ask for confirmation")
	cmd.Flags().DurationVar(&f.Timeout, "timeout", 2*time.Minute, "how long to wait for the target to serve")
	return cmd
}

// run carries it out, once the operator has seen what is given up.
func (f *failover) run(ctx context.Context, cmd *cobra.Command, r reading) error {
	c := r.operated()
	if err := f.Check(ctx, c); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	lines, needs := f.GivesUp(c)
	for _, line := range lines {
		saying(out)(line)
	}
	if needs != "" && !f.Force {
		return exit.Errorf(exit.Force, "%s: see above what is given up, then use --force", needs)
	}
	if !f.yes {
		question, words := fmt.Sprintf("This starts %s's controller. Continue? [y/N]", clean(f.Target())), []string{"y", "yes"}
		if needs != "" {
			question, words = fmt.Sprintf("Type the name of the cluster to start %s's controller by force:", clean(f.Target())), []string{r.cluster}
		}
		if err := confirm(ctx, cmd.InOrStdin(), out, question, words...); err != nil {
			return err
		}
	}
	return carryOut(ctx, cmd, c, &f.Failover)
}
