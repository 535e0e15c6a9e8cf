package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/operate"
)

func forgetCommand() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use: "forget NAME", Short: "Remove from the list a controller that will not come back",
		Long:    "Remove from the list a controller that will not come back. Its sidecar must be gone. If it comes back, it is listed again.",
		Example: "  tanist forget -c orders.yml ctl-c",
		Args:    oneName("forget whom? Give the name of a controller that is gone; `tanist list` shows them"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.reading(cmd, func(ctx context.Context, r reading) error {
				c, v := r.operated(), &operate.Forget{Name: args[0]}
				if err := v.Check(ctx, c); err != nil {
					return err
				}
				return carryOut(ctx, cmd, c, v)
			})
		},
	}
	cmd.ValidArgsFunction = a.completeGone
	a.flags(cmd)
	return cmd
}
