package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
)

func auditCommand() *cobra.Command {
	var a access
	var d display
	cmd := &cobra.Command{
		Use: "audit", Short: "Show what operators asked for, by command or over the REST interface, and the outcome", Args: noArgs,
		Long: "Show what operators asked for, newest first: when, who, how he was recognized, the equivalent command, and the outcome. The store keeps\n" +
			"the latest 200. What came over the REST interface is in the log of the sidecar that carried it out, too. Everybody who may write to\n" +
			"the store can change these records.",
		Example: "  tanist audit -c orders.yml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := d.check(); err != nil {
				return err
			}
			return a.with(cmd, func(ctx context.Context, s daemon.Store, _ daemon.StoreConfig) error {
				return d.show(ctx, cmd.OutOrStdout(), func() (any, func(io.Writer), error) {
					limited, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
					defer cancel()
					all, err := operate.ReadAudit(limited, s)
					if err != nil {
						return nil, nil, storeError(err, "cannot read the records of operations")
					}
					return all, func(out io.Writer) { auditTable(out, all) }, nil
				})
			})
		},
	}
	a.flags(cmd)
	d.flags(cmd)
	return cmd
}

// auditTable prints records for people.
func auditTable(out io.Writer, all []election.Audit) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, " WHEN\tBY\tVIA\tROLE\tCOMMAND\tOUTCOME")
	for _, a := range all {
		fmt.Fprintf(w, " %s\t%s\t%s\t%s\t%s\t%s\n", a.At.Local().Format(time.DateTime), clean(a.By), clean(a.Via), cmp.Or(clean(a.Role), "-"), clean(a.Command), clean(a.Outcome))
	}
	_ = w.Flush() // to a terminal
}
