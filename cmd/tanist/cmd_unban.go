package main

import (
	"context"

	"github.com/spf13/cobra"
)

func unbanCommand() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use: "unban NAME", Short: "End a ban: the controller may become active again",
		Example: "  tanist unban -c orders.yml ctl-c",
		Args:    oneName("unban whom? `tanist standby` shows who is banned"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.reading(cmd, func(ctx context.Context, r reading) error {
				return letIn(ctx, cmd, r, args[0], true)
			})
		},
	}
	cmd.ValidArgsFunction = a.completeKnown
	a.flags(cmd)
	return cmd
}
