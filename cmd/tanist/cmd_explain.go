package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
)

func explainCommand() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use: "explain", Short: "Explain who is active and why, controller by controller", Args: noArgs,
		Example: "  tanist explain -c orders.yml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.reading(cmd, func(ctx context.Context, read reading) error {
				limited, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
				defer cancel()
				hosts, err := operate.ReadVIPHosts(limited, read.store)
				if err != nil {
					return storeError(err, "cannot read the hosts of virtual IPs")
				}
				snap := read.snap
				out := cmd.OutOrStdout()
				switch {
				case snap.ActiveBad != nil:
					fmt.Fprintf(out, "The role key is unreadable, so nobody is followed: %v\n", snap.ActiveBad)
				case snap.Active == nil && snap.Breadcrumb.Term == 0:
					fmt.Fprintln(out, "Nobody has been active yet.")
				case snap.Active == nil:
					how := "vanished without a release: its validity is waited out by the next one"
					if snap.Breadcrumb.Clean {
						how = "released its lease clean" + because(snap.Breadcrumb.Reason)
					}
					fmt.Fprintf(out, "Nobody is active. The last one, %s (term %d), %s.\n", clean(snap.Breadcrumb.Controller), snap.Breadcrumb.Term, how)
				default:
					fmt.Fprintf(out, "%s holds the lease, term %d, state %s since %s%s.\n", clean(snap.Active.Controller), snap.Active.Term,
						clean(string(snap.Active.State)), snap.Active.Since.Local().Format(time.DateTime), because(snap.Active.Reason))
				}
				if snap.Pause != nil {
					fmt.Fprintf(out, "The cluster is paused by %s%s%s. Nothing fails over until `tanist resume`.\n", clean(snap.Pause.By), because(snap.Pause.Reason), pauseEnd(snap.Pause))
				}
				if snap.RequestBad != nil {
					fmt.Fprintf(out, "%s. It keeps every other request waiting: `tanist cancel` removes it.\n", clean(snap.RequestBad.Error()))
				}
				if snap.TermBad != nil {
					fmt.Fprintf(out, "%s: find out who wrote it.\n", clean(snap.TermBad.Error()))
				}
				if r := snap.Request; r != nil {
					fmt.Fprintf(out, "%s requested a %s%s; `tanist cancel` withdraws it.\n", clean(r.By), operate.RequestWords(*r), because(r.Reason))
				}
				for _, k := range snap.Controllers {
					if snap.Active != nil && k.Name == snap.Active.Controller {
						continue
					}
					why := "it would take over"
					switch {
					case k.NoFailover:
						why = "it would not take over by itself: nofailover is set"
					case k.State != election.StateReady:
						why = "it would not take over" + because(k.Reason)
					case k.Reason != "":
						why += ", but " + k.Reason
					}
					fmt.Fprintf(out, "%s is %s, priority %d: %s.\n", clean(k.Name), clean(string(k.State)), k.Priority, why)
					if f := k.Failure; f != nil {
						fmt.Fprintf(out, "  Its last reign, term %d, failed at %s%s.\n", f.Term, f.At.Local().Format(time.DateTime), because(f.Why))
					}
				}
				explainWishes(out, read)
				explainVirtualIPs(out, snap, addressHosts(snap.Controllers, hosts))
				if len(snap.Controllers) == 0 {
					fmt.Fprintf(out, "No sidecar of %s is there: start them with `tanist sidecar -c FILE`.\n", read.cluster)
				}
				return nil
			})
		},
	}
	a.flags(cmd)
	return cmd
}

// explainWishes tells who is kept out, and who would take over from the active.
func explainWishes(out io.Writer, read reading) {
	snap := read.snap
	if snap.StandbyBad != nil {
		fmt.Fprintf(out, "%s: nobody counts as on standby; `tanist standby --reset` removes it.\n", clean(snap.StandbyBad.Error()))
	}
	if a := snap.Active; a != nil {
		if by, on := snap.Standbys[a.Controller]; on {
			fmt.Fprintf(out, "%s is %s%s.\n", clean(a.Controller), clean(by.Words(a.Controller)), standbyNote(snap, a.Controller))
		}
	}
	if a := snap.Active; a != nil && snap.Pause == nil {
		o := foresee(read, snap, election.SupposeHostDies)
		within := ""
		if len(o.Next) > 0 {
			within = fmt.Sprintf(", and start its controller at most %v later", o.Start.Round(time.Millisecond))
		}
		fmt.Fprintf(out, "If the host of %s died now, %s would take over%s. See `tanist simulate`.\n", clean(a.Controller), clean(o.Words()), within)
	}
}
