package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
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
				limited, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
				defer cancel()
				name := args[0]
				if slices.ContainsFunc(r.snap.Controllers, func(c election.Controller) bool { return c.Name == name }) {
					return exit.Errorf(exit.Failure, "the sidecar of %s is here: stop it first", name)
				}
				gone, err := daemon.ReadGone(limited, r.store, r.snap.Controllers)
				if err != nil {
					return storeError(err, "cannot read the members")
				}
				if !slices.ContainsFunc(gone, func(m election.Member) bool { return m.Name == name }) {
					var names []string
					for _, m := range gone {
						names = append(names, clean(m.Name))
					}
					return exit.Errorf(exit.Failure, "there is no controller %q that is gone in %s; gone are: %s", name, r.cluster, cmp.Or(strings.Join(names, ", "), "none"))
				}
				if err := r.store.Delete(limited, election.MemberKey(name), 0); err != nil {
					return writeError(err, "the end of the member")
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is forgotten\n", name)
				return nil
			})
		},
	}
	cmd.ValidArgsFunction = a.completeGone
	a.flags(cmd)
	return cmd
}
