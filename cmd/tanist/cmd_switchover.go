package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
)

func switchoverCommand() *cobra.Command {
	var a access
	var at string
	var yes, noWait, dryRun bool
	var move operate.Switchover
	cmd := &cobra.Command{
		Use: "switchover [--to NAME]", Short: "Make another controller active, as a planned move", Args: noArgs,
		Long: "Make another controller active, as a planned move: the active controller gets its full stop_timeout to end, then the target\n" +
			"is started. With --at it is kept in the store, and the active carries it out at that time, by the clock of its host; it is dropped if\n" +
			"another becomes active before, or if the target is not ready or the cluster is paused then. `tanist cancel` withdraws it.\n" +
			"Exit codes: 0 done or scheduled, 75 still in progress when --timeout ran out (see `tanist list`), 1 refused or failed.",
		Example: "  tanist switchover -c orders.yml --to ctl-b --reason upgrade\n" +
			"  tanist switchover -c orders.yml --at 02:30 -y\n  tanist switchover -c orders.yml --at '2026-12-01 02:30'\n  tanist switchover -c orders.yml --at +45m",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.reading(cmd, func(ctx context.Context, r reading) error {
				if err := atTime(at, &move.At); err != nil {
					return err
				}
				c := r.operated()
				if err := move.Check(ctx, c); err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				if dryRun {
					fmt.Fprint(out, rehearse(r.snap, move.To, r.where.Timing))
					return durations(ctx, out, r.store, r.where, r.snap, move.To)
				}
				if !yes {
					listTable(out, election.ClusterOf(r.cluster, r.snap), r.where.Store, "", time.Now())
					then := ""
					if at != "" {
						then = fmt.Sprintf(" at %s, in %v", move.At.Format(time.DateTime), time.Until(move.At).Round(time.Second))
					}
					question := fmt.Sprintf("This stops %s's controller and starts %s's%s. Continue? [y/N]", clean(r.snap.Active.Controller), clean(move.Targets()), then)
					if err := confirm(ctx, cmd.InOrStdin(), out, question, "y", "yes"); err != nil {
						return err
					}
					if at != "" && !move.At.After(time.Now()) {
						return passed(move.At)
					}
				}
				if noWait {
					return carryOut(ctx, cmd, c, unwatched{&move})
				}
				return carryOut(ctx, cmd, c, &move)
			})
		},
	}
	a.flags(cmd)
	cmd.Flags().StringVar(&move.To, "to", "", "the target controller (default: any that is ready)")
	cmd.Flags().StringVar(&at, "at", "", "when: 15:04, '2006-01-02 15:04', an RFC 3339 time, or +45m (default: now)")
	cmd.Flags().StringVar(&move.Reason, "reason", "", "why, for the history")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask for confirmation")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show who would take over, and why the others would not")
	_ = cmd.RegisterFlagCompletionFunc("to", a.completeControllers) // the flag is there
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "request the move, and do not wait for it")
	cmd.Flags().DurationVar(&move.Timeout, "timeout", 2*time.Minute, "how long to wait for the target to serve")
	return cmd
}

// atTime reads the flag --at.
func atTime(text string, to *time.Time) error {
	when, err := operate.ParseWhen(text, time.Now())
	if err != nil {
		return exit.Errorf(exit.Code(err), "--at %v", err)
	}
	if text != "" {
		*to = when
	}
	return nil
}

// passed is the error of a time that has come while the question was open.
func passed(at time.Time) error {
	return exit.Errorf(exit.Failure, "--at %s has passed while you were asked: nothing was changed", at.Format(time.DateTime))
}

// unwatched is a move that nobody waits for.
type unwatched struct{ *operate.Switchover }

// Follow implements [operate.Verb].
func (v unwatched) Follow(_ context.Context, _ *operate.Cluster, say operate.Say) error {
	say("requested: " + v.Request().ID)
	return nil
}

// rehearse tells what a move would do now, without asking for it. The same rules decide as in the
// sidecars; timing is the zero value if the file has none.
func rehearse(snap election.Snapshot, to string, timing election.Timing) string {
	var text strings.Builder
	supposed := snap
	supposed.Request, supposed.RequestVer = &election.Request{
		Op: election.OpSwitchover, To: to, Term: snap.Active.Term, For: time.Minute, By: operator(),
	}, snap.RequestVer+1
	o := election.Foresee(supposed, timing, election.Traits{}, election.SupposeRelease)
	fmt.Fprintf(&text, "%s, term %d, would be stopped, and %s started with term %d. Nothing was changed.\n",
		clean(snap.Active.Controller), snap.Active.Term, clean(o.Words()), snap.Breadcrumb.Term+1)
	for _, k := range snap.Controllers {
		if failed := k.FailedStart(); slices.Contains(o.Next, k.Name) && failed != "" {
			fmt.Fprintf(&text, "  but %s: %s\n", clean(k.Name), clean(failed))
		}
	}
	for _, r := range o.Others {
		fmt.Fprintf(&text, "  not %s: %s\n", clean(r.Name), clean(r.Why))
	}
	if o.Start > 0 {
		fmt.Fprintf(&text, "  It would be started after at most %v: what an older holder may still do is waited out.\n", o.Start.Round(time.Millisecond))
	}
	return text.String()
}
