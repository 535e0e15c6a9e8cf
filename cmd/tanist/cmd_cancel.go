package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/operate"
)

func cancelCommand() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use: "cancel", Short: "Cancel a request, such as a switchover, that has not begun", Args: noArgs,
		Example: "  tanist cancel -c orders.yml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.reading(cmd, func(ctx context.Context, r reading) error {
				return carryOut(ctx, cmd, r.operated(), &operate.Cancel{})
			})
		},
	}
	a.flags(cmd)
	return cmd
}
