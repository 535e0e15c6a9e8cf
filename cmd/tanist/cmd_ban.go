package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/exit"
)

func banCommand() *cobra.Command {
	var a access
	var k keepOut
	k.Ban = true
	cmd := &cobra.Command{
		Use: "ban NAME", Short: "Keep a controller from becoming active, even by force, until `tanist unban`",
		Long: "Keep a controller from becoming active, even by `tanist failover --force`, until `tanist unban`. For a host that must not run the\n" +
			"controller, because its disk or its data are wrong. Otherwise it is `tanist standby NAME on`: if the controller is active, another\n" +
			"one is made active first, and if that fails, nothing is changed.\n" +
			"Exit codes: 0 done, 75 its sidecar has not confirmed it, 1 refused or failed.",
		Example: "  tanist ban -c orders.yml ctl-c --reason 'its disk is failing'",
		Args:    oneName("ban whom? Give the name of a controller; `tanist list` shows them"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.reading(cmd, func(ctx context.Context, r reading) error {
				k.Name = args[0]
				return k.run(ctx, cmd, r)
			})
		},
	}
	cmd.ValidArgsFunction = a.completeKnown
	a.flags(cmd)
	k.flags(cmd)
	return cmd
}

// oneName requires one argument. without is the error if there is none.
func oneName(without string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return exit.Errorf(exit.Usage, "%s", without)
		}
		return atMostOne(cmd, args)
	}
}
