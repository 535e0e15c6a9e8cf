package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/operate"
)

func resumeCommand() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use: "resume", Short: "End a pause", Args: noArgs,
		Example: "  tanist resume -c orders.yml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.reading(cmd, func(ctx context.Context, r reading) error {
				return carryOut(ctx, cmd, r.operated(), &operate.Resume{})
			})
		},
	}
	a.flags(cmd)
	return cmd
}
