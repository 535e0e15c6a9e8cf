package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
)

func pauseCommand() *cobra.Command {
	var a access
	var v operate.Pause
	cmd := &cobra.Command{
		Use: "pause [--for TIME]", Short: "Suspend failovers and switchovers until `tanist resume`", Args: noArgs,
		Example: "  tanist pause -c orders.yml --for 2h --reason maintenance",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("for") && v.For < time.Second {
				return exit.Errorf(exit.Usage, "--for %v is less than a second", v.For)
			}
			return a.reading(cmd, func(ctx context.Context, r reading) error {
				if a.byHand() {
					if err := known(ctx, r.store, r.cluster, r.snap); err != nil {
						return err
					}
				}
				return carryOut(ctx, cmd, r.operated(), &v)
			})
		},
	}
	a.flags(cmd)
	cmd.Flags().DurationVar(&v.For, "for", 0, "end the pause after this time, such as 2h (default: until it is resumed)")
	cmd.Flags().StringVar(&v.Reason, "reason", "", "why, shown by list, explain and events")
	return cmd
}

// pauseEnd describes when a pause ends by itself, by the clock of who asked for it.
func pauseEnd(p *election.Pause) string {
	if p.For <= 0 {
		return ""
	}
	return fmt.Sprintf(" (for %v, until about %s)", p.For, p.Since.Add(p.For).Local().Format(time.TimeOnly))
}
