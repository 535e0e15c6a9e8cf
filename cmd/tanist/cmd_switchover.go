package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
)

func switchoverCommand() *cobra.Command {
	var a access
	var to, reason, at string
	var yes, noWait, dryRun bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "switchover [--to NAME]", Short: "Make another controller active, as a planned move", Args: noArgs,
		Long: "Make another controller active, as a planned move: the active controller gets its full stop_timeout to end, then the target\n" +
			"is started. With --at it is kept in the store, and the active carries it out at that time, by the clock of its host; it is dropped if\n" +
			"another becomes active before, or if the target is not ready or the cluster is paused then. `tanist cancel` withdraws it.\n" +
			"Exit codes: 0 done or scheduled, 75 still in progress when --timeout ran out (see `tanist list`), 1 refused or failed.",
		Example: "  tanist switchover -c orders.yml --to ctl-b --reason upgrade\n" +
			"  tanist switchover -c orders.yml --at 02:30 -y\n  tanist switchover -c orders.yml --at '2026-12-01 02:30'\n  tanist switchover -c orders.yml --at +45m",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, func(ctx context.Context, s daemon.Store, c daemon.StoreConfig) error {
				snap, err := read(ctx, s)
				if err != nil {
					return err
				}
				when, err := parseWhen(at, time.Now())
				if err != nil {
					return err
				}
				target, err := chooseTarget(snap, to)
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				if dryRun {
					fmt.Fprint(out, rehearse(snap, to, c.Timing))
					return durations(ctx, out, s, c, snap, to)
				}
				if !yes {
					listTable(out, election.ClusterOf(c.Cluster, snap), c.Store, "", time.Now())
					then := ""
					if at != "" {
						then = fmt.Sprintf(" at %s, in %v", when.Format(time.DateTime), time.Until(when).Round(time.Second))
					}
					question := fmt.Sprintf("This stops %s's controller and starts %s's%s. Continue? [y/N]", clean(snap.Active.Controller), clean(target), then)
					if err := confirm(ctx, cmd.InOrStdin(), out, question, "y", "yes"); err != nil {
						return err
					}
					if at != "" && !when.After(time.Now()) {
						return passed(when)
					}
				}
				r := election.Request{
					ID: rand.Text()[:10], Op: election.OpSwitchover, To: to, By: operator(), Reason: reason, Term: snap.Active.Term, For: time.Minute,
				}
				if at != "" {
					r.Op, r.At = election.OpScheduled, when.UTC()
					if err := ask(ctx, s, r); err != nil {
						return err
					}
					fmt.Fprintf(out, "scheduled: %s moves to %s at %s, in %v, by the clock of its host; `tanist cancel` withdraws it\n",
						clean(snap.Active.Controller), clean(target), when.Format(time.DateTime), time.Until(when).Round(time.Second))
					return nil
				}
				return switchover(ctx, cmd, s, r, snap.Active.Controller, timeout, noWait)
			})
		},
	}
	a.flags(cmd)
	cmd.Flags().StringVar(&to, "to", "", "the target controller (default: any that is ready)")
	cmd.Flags().StringVar(&at, "at", "", "when: 15:04, '2006-01-02 15:04', an RFC 3339 time, or +45m (default: now)")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the history")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask for confirmation")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show who would take over, and why the others would not")
	_ = cmd.RegisterFlagCompletionFunc("to", a.completeControllers) // the flag is there
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "request the move, and do not wait for it")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait for the target to serve")
	return cmd
}

// parseWhen returns the time that an operator means, in the future and within a year.
func parseWhen(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return now, nil
	}
	when, ok := time.Time{}, false
	if after, plus := strings.CutPrefix(text, "+"); plus {
		d, err := time.ParseDuration(after)
		when, ok = now.Add(d), err == nil
	}
	for _, layout := range []string{"15:04", "15:04:05"} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			when, ok = time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), 0, now.Location()), true
			if !when.After(now) {
				when = time.Date(now.Year(), now.Month(), now.Day()+1, t.Hour(), t.Minute(), t.Second(), 0, now.Location())
			}
		}
	}
	for _, layout := range []string{"2006-01-02 15:04", time.DateTime, "2006-01-02T15:04", time.RFC3339} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			when, ok = t, true
		}
	}
	switch {
	case !ok:
		return when, exit.Errorf(exit.Usage, "--at %q is no time: give 15:04, '2006-01-02 15:04', an RFC 3339 time, or +45m", text)
	case !when.After(now):
		return when, exit.Errorf(exit.Usage, "--at %s has passed: it is %s now", when.Format(time.DateTime), now.Format(time.DateTime))
	case when.Sub(now) > 366*24*time.Hour:
		return when, exit.Errorf(exit.Usage, "--at %s is more than a year away", when.Format(time.DateTime))
	}
	return when, nil
}

// passed is the error of a time that has come while the question was open.
func passed(at time.Time) error {
	return exit.Errorf(exit.Failure, "--at %s has passed while you were asked: nothing was changed", at.Format(time.DateTime))
}

// requestWords describes a request for people.
func requestWords(r election.Request) string {
	text := fmt.Sprintf("%s of term %d", r.Op, r.Term)
	switch r.Op {
	case election.OpRestart:
		return clean(text)
	case election.OpScheduled:
		text = fmt.Sprintf("switchover of term %d at %s", r.Term, r.At.Local().Format(time.DateTime))
	}
	return clean(text + " to " + cmp.Or(r.To, "any passive"))
}

// chooseTarget checks that the move is possible, and returns the controller to name in the
// question.
func chooseTarget(snap election.Snapshot, to string) (string, error) {
	if !snap.Active.Serving() {
		return "", exit.Errorf(exit.NotActive, "nobody is active, so there is nothing to move: see `tanist explain`")
	}
	if snap.Pause != nil {
		return "", exit.Errorf(exit.Failure, "the cluster is paused by %s: `tanist resume` first", snap.Pause.By)
	}
	if to == snap.Active.Controller {
		return "", exit.Errorf(exit.Failure, "%s is active already", to)
	}
	var ready []string
	for _, k := range snap.Controllers {
		if k.Name == snap.Active.Controller {
			continue
		}
		if k.Name == to && k.State != election.StateReady {
			return "", exit.Errorf(exit.Failure, "%s is %s: %s", to, k.State, cmp.Or(k.Reason, "not ready to take over"))
		}
		if k.State == election.StateReady && (to == k.Name || !k.NoFailover) {
			ready = append(ready, k.Name)
		}
		if k.Name == to {
			return to, nil
		}
	}
	if to != "" {
		return "", exit.Errorf(exit.Failure, "there is no controller %s in this cluster; ready are: %s", to, cmp.Or(strings.Join(ready, ", "), "none"))
	}
	if len(ready) == 0 {
		return "", exit.Errorf(exit.Failure, "no passive is ready to take over: see `tanist explain`")
	}
	return strings.Join(ready, " or "), nil
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

// gone reports whether the active has rejected a request: it serves on in its term without it. Another
// operator's may be there by then.
func gone(snap election.Snapshot, r election.Request) bool {
	return snap.Active.Serving() && snap.Active.Term == r.Term && (snap.Request == nil || snap.Request.ID != r.ID)
}

func switchover(ctx context.Context, cmd *cobra.Command, s daemon.Store, r election.Request, from string, timeout time.Duration, noWait bool) error {
	if err := ask(ctx, s, r); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if noWait {
		fmt.Fprintf(out, "requested: %s\n", r.ID)
		return nil
	}
	var down time.Time
	refused := false
	snap, err := await(ctx, out, s, timeout, "", func(snap election.Snapshot) bool {
		if !snap.Active.Serving() && down.IsZero() {
			down = time.Now()
		}
		// If the request vanishes while the old reign serves, the active has rejected it.
		refused = gone(snap, r)
		return refused || (snap.Active.Serving() && snap.Active.Term > r.Term)
	})
	switch {
	case err != nil:
		return err
	case refused:
		return exit.Errorf(exit.Failure, "%s refused the move: the target is not ready any more; its log has the reason", snap.Active.Controller)
	}
	outage := "too short to be seen here"
	if !down.IsZero() {
		outage = time.Since(down).Round(time.Millisecond).String()
	}
	fmt.Fprintf(out, "%s is active, term %d. Outage %s.\n", snap.Active.Controller, snap.Active.Term, outage)
	if snap.Active.Controller == from {
		return exit.Errorf(exit.Failure, "the move failed, and %s took over again: see `tanist describe` of the others", from)
	}
	if r.To != "" && snap.Active.Controller != r.To {
		return exit.Errorf(exit.Failure, "%s did not make it, and %s took over", r.To, snap.Active.Controller)
	}
	return nil
}
