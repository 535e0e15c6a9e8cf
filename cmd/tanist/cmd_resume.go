package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/election"
)

func resumeCommand() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use: "resume", Short: "End a pause", Args: noArgs,
		Example: "  tanist resume -c orders.yml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.reading(cmd, func(ctx context.Context, r reading) error {
				limited, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
				defer cancel()
				if err := r.store.Delete(limited, election.PauseKey, 0); err != nil {
					return writeError(err, "the end of the pause")
				}
				out := cmd.OutOrStdout()
				if r.snap.PauseBad != nil {
					fmt.Fprintf(out, "removed an unreadable pause: %s\n", clean(r.snap.PauseBad.Error()))
				}
				if r.snap.PauseVer == 0 {
					fmt.Fprintln(out, r.cluster+" is not paused")
					return nil
				}
				fmt.Fprintln(out, r.cluster+" is not paused any more")
				return nil
			})
		},
	}
	a.flags(cmd)
	return cmd
}
