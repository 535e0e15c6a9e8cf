package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
)

func historyCommand() *cobra.Command {
	var a access
	var d display
	var most int
	cmd := &cobra.Command{
		Use: "history", Short: "Show who was active, when and why, and how long each takeover took", Args: noArgs,
		Example: "  tanist history -c orders.yml -n 5",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := d.check(); err != nil {
				return err
			}
			if most < 1 {
				return exit.Errorf(exit.Usage, "-n %d shows nothing: give 1 or more", most)
			}
			return a.with(cmd, func(ctx context.Context, s daemon.Store, c daemon.StoreConfig) error {
				return d.show(ctx, cmd.OutOrStdout(), func() (any, func(io.Writer), error) {
					limited, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
					defer cancel()
					all, err := operate.ReadHistory(limited, s)
					if err != nil {
						return nil, nil, storeError(err, "cannot read the history")
					}
					shown := all[:min(most, len(all))]
					return shown, func(out io.Writer) { historyTable(out, shown, all) }, nil
				})
			})
		},
	}
	a.flags(cmd)
	d.flags(cmd)
	cmd.Flags().IntVarP(&most, "lines", "n", 20, "how many reigns to show, the latest first")
	return cmd
}

// historyTable prints reigns; all also has the reign before each, for its end.
func historyTable(out io.Writer, shown, all []election.History) {
	ended := map[election.Term]election.History{}
	for _, h := range all {
		ended[h.Term] = h
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, " TERM\tWHEN\tFROM → TO\tWHY\tDETECT\tSTOP\tWAIT\tFENCE\tSTART\tOUTAGE\tOVERLAP")
	for _, h := range shown {
		before := ended[h.Term-1]
		outage := millis(h.Outage)
		if h.OutageAtMost && h.Outage > 0 {
			outage = "≤ " + outage
		}
		if h.OutageAtLeast && h.Outage > 0 {
			outage = "≥ " + outage
		}
		fmt.Fprintf(w, " %d\t%s\t%s → %s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", h.Term, h.When.Local().Format(time.DateTime), cmp.Or(clean(h.From), "-"), clean(h.To),
			short(h.Reason), millis(before.EndDetect), millis(before.EndStop), millis(h.Wait), millis(h.Fence), millis(h.Start), outage, overlap(h))
	}
	_ = w.Flush() // the reader may have gone
}

// overlap returns how long the controller before may have run next to this one, and how that is
// known. It is never measured: no single host sees both.
func overlap(h election.History) string {
	switch {
	case h.From == "":
		return "-" // there was none before
	case h.ConfirmedBy != "", strings.HasPrefix(h.Reason, election.ForcedReason):
		return "?" // the operator has answered for it
	case h.Clean:
		return "0" // it was gone before the lease was released
	}
	return "0 by lease" // its guard had ended it when this one started
}
