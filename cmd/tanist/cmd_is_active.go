package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/exit"
)

func isActiveCommand() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use: "is-active [NAME]", Short: "Exit with 0 if NAME (or any controller) is active, with 3 if not", Args: atMostOne,
		Example: "  tanist is-active -c orders.yml ctl-a && /usr/local/bin/backup",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.reading(cmd, func(_ context.Context, r reading) error {
				active, err := r.operated().Serving()
				if err != nil {
					return err
				}
				if len(args) == 1 && active.Controller != args[0] {
					return exit.Errorf(exit.NotActive, "%s is active, not %s", clean(active.Controller), args[0])
				}
				fmt.Fprintln(cmd.OutOrStdout(), clean(active.Controller))
				return nil
			})
		},
	}
	a.flags(cmd)
	return cmd
}
