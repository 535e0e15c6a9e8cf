package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
)

func cancelCommand() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use: "cancel", Short: "Cancel a request, such as a switchover, that has not begun", Args: noArgs,
		Example: "  tanist cancel -c orders.yml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.reading(cmd, func(ctx context.Context, r reading) error {
				snap := r.snap
				out := cmd.OutOrStdout()
				if snap.RequestVer == 0 {
					fmt.Fprintln(out, "nothing is requested in "+r.cluster)
					return nil
				}
				limited, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
				defer cancel()
				err := r.store.Delete(limited, election.RequestKey, snap.RequestVer)
				if errors.Is(err, election.ErrConflict) {
					return exit.Errorf(exit.Failure, "the request has changed meanwhile: see `tanist list`")
				}
				if err != nil {
					return writeError(err, "the withdrawal")
				}
				request := snap.Request
				if request == nil {
					fmt.Fprintf(out, "removed what nobody could carry out: %s\n", clean(snap.RequestBad.Error()))
					return nil
				}
				fmt.Fprintf(out, "withdrew the %s that %s asked for\n", requestWords(*request), clean(request.By))
				if request.Op == election.OpScheduled {
					return nil
				}
				if !snap.Active.Serving() || snap.Active.Term != request.Term {
					fmt.Fprintln(out, "It may have begun already: see `tanist list`.")
				}
				return nil
			})
		},
	}
	a.flags(cmd)
	return cmd
}
