package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
)

// keepOut makes a controller one that must not become active: `tanist standby NAME on` and `tanist
// ban NAME`.
type keepOut struct {
	operate.KeepOut
	yes bool
}

func (k *keepOut) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&k.Reason, "reason", "", "why, shown by list, explain and events")
	cmd.Flags().DurationVar(&k.For, "for", 0, "end it after this time, such as 2h (default: until an operator ends it)")
	cmd.Flags().BoolVarP(&k.yes, "yes", "y", false, "do not ask for confirmation")
	cmd.Flags().DurationVar(&k.Timeout, "timeout", 2*time.Minute, "how long to wait: for the active to be moved away, and for the sidecar's confirmation")
}

// run asks before it moves the active away.
func (k *keepOut) run(ctx context.Context, cmd *cobra.Command, r reading) error {
	c := r.operated()
	if err := k.Check(ctx, c); err != nil {
		return err
	}
	if to := k.MovesTo(); to != "" && !k.yes {
		question := fmt.Sprintf("%s is active. This moves the active to %s first, as `tanist switchover` does. Continue? [y/N]", k.Name, clean(to))
		if err := confirm(ctx, cmd.InOrStdin(), cmd.OutOrStdout(), question, "y", "yes"); err != nil {
			return err
		}
	}
	return carryOut(ctx, cmd, c, &k.KeepOut)
}

// letIn ends a standby or a ban.
func letIn(ctx context.Context, cmd *cobra.Command, r reading, name string, ban bool) error {
	c, v := r.operated(), &operate.LetIn{Name: name, Ban: ban}
	if err := v.Check(ctx, c); err != nil {
		return err
	}
	return carryOut(ctx, cmd, c, v)
}

// showStandbys prints who must not become active.
func showStandbys(out io.Writer, r reading) {
	if r.snap.StandbyBad != nil {
		fmt.Fprintf(out, "%s: nobody counts as on standby\n", clean(r.snap.StandbyBad.Error()))
		return
	}
	if len(r.snap.Standbys) == 0 {
		fmt.Fprintln(out, "nobody in "+r.cluster+" is on standby or banned")
	}
	for _, name := range slices.Sorted(maps.Keys(r.snap.Standbys)) {
		fmt.Fprintf(out, "%s is %s%s\n", clean(name), clean(r.snap.Standbys[name].Words(name)), standbyNote(r.snap, name))
	}
}

// standbyNote tells of a holder that is to be kept out that it holds the lease still.
func standbyNote(snap election.Snapshot, name string) string {
	if !operate.Holds(snap, name) {
		return ""
	}
	return fmt.Sprintf(". It keeps the lease that it has, term %d: `tanist switchover` moves it", snap.Active.Term)
}
