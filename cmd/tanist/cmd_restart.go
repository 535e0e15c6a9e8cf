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

func restartCommand() *cobra.Command {
	var a access
	var r restart
	var rolling bool
	var at string
	cmd := &cobra.Command{
		Use: "restart [--rolling]", Short: "Restart the active controller, in place or by moving it through the passives", Args: noArgs,
		Long: "Restart the active controller. In place: it is drained, gets its full stop_timeout to end, and is started again on the same host, in\n" +
			"the same term; nobody takes over, unless it does not start again. With --rolling, each passive that is ready\n" +
			"becomes active in turn, by a planned move, and at last the one that was active before: so every host has started the controller\n" +
			"once. The first move that fails ends it. Passives run no controller, so a new program or file takes effect there by itself.\n" +
			"With --at it is kept in the store, and the active carries it out at that time, by the clock of its host, unless another is active by then.\n" +
			"Exit codes: 0 done or scheduled, 75 still in progress when --timeout ran out (see `tanist list`), 3 nobody is active, 1 refused or failed.",
		Example: "  tanist restart -c orders.yml --reason 'new certificate'\n  tanist restart -c orders.yml --rolling -y",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if at != "" && rolling {
				return exit.Errorf(exit.Usage, "--at is for a restart in place: start `tanist restart --rolling -y` by a timer")
			}
			if err := atTime(at, &r.At); err != nil {
				return err
			}
			return a.reading(cmd, func(ctx context.Context, read reading) error {
				r.reading, r.cmd = read, cmd
				if rolling {
					return r.roll(ctx)
				}
				return r.inPlace(ctx)
			})
		},
	}
	a.flags(cmd)
	cmd.Flags().BoolVar(&rolling, "rolling", false, "move the active through every passive that is ready, and back")
	cmd.Flags().StringVar(&at, "at", "", "when, in place: 15:04, '2006-01-02 15:04', an RFC 3339 time, or +45m (default: now)")
	cmd.Flags().StringVar(&r.Reason, "reason", "", "why, for the history")
	cmd.Flags().BoolVarP(&r.yes, "yes", "y", false, "do not ask for confirmation")
	cmd.Flags().DurationVar(&r.Timeout, "timeout", 2*time.Minute, "how long to wait for the controller to serve, in each step")
	return cmd
}

// restart is one that an operator asks for.
type restart struct {
	reading
	cmd *cobra.Command
	operate.Restart
	yes bool
}

// inPlace asks the holder to stop and start its controller.
func (r *restart) inPlace(ctx context.Context) error {
	c := r.operated()
	if err := r.Check(ctx, c); err != nil {
		return err
	}
	if !r.yes {
		then := ""
		if !r.At.IsZero() {
			then = fmt.Sprintf(", at %s, in %v", r.At.Format(time.DateTime), time.Until(r.At).Round(time.Second))
		}
		question := fmt.Sprintf("This stops %s's controller and starts it again, in term %d%s. Continue? [y/N]", clean(r.snap.Active.Controller), r.snap.Active.Term, then)
		if err := confirm(ctx, r.cmd.InOrStdin(), r.cmd.OutOrStdout(), question, "y", "yes"); err != nil {
			return err
		}
	}
	return carryOut(ctx, r.cmd, c, &r.Restart)
}

// roll moves the active through every passive that is ready, and back.
func (r *restart) roll(ctx context.Context) error {
	if _, err := operate.Targets(r.snap, ""); err != nil {
		return err
	}
	out, first := r.cmd.OutOrStdout(), r.snap.Active.Controller
	var steps []string
	for _, c := range election.Successors(r.snap.Controllers, first) {
		if _, out := r.snap.Standbys[c.Name]; !out {
			steps = append(steps, c.Name)
		}
	}
	if len(steps) == 0 {
		return exit.Errorf(exit.Failure, "no passive is ready to take over by itself: see `tanist explain`")
	}
	steps = append(steps, first)
	if !r.yes {
		question := fmt.Sprintf("This makes %s active in turn; each move is an outage as long as the controller's stop and start. Continue? [y/N]",
			clean(strings.Join(steps, ", then ")))
		if err := confirm(ctx, r.cmd.InOrStdin(), out, question, "y", "yes"); err != nil {
			return err
		}
	}
	for i, to := range steps {
		fmt.Fprintf(out, "%d of %d: %s\n", i+1, len(steps), clean(to))
		if err := r.moveTo(ctx, to); err != nil {
			if i > 0 || ctx.Err() != nil || exit.Code(err) == exit.InProgress { // else nothing was moved
				fmt.Fprintf(out, "%s was active at first: `tanist switchover --to %[1]s` moves it back.\n", clean(first))
			}
			return exit.Errorf(exit.Code(err), "step %d of %d, to %s: %v", i+1, len(steps), to, err)
		}
	}
	fmt.Fprintf(out, "Every host has started the controller once; %s is active again.\n", clean(first))
	return nil
}

// moveTo makes one active, once it is ready.
func (r *restart) moveTo(ctx context.Context, to string) error {
	waiting, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	snap, err := operate.Until(waiting, r.store, func(snap election.Snapshot) bool {
		ready := slices.ContainsFunc(snap.Controllers, func(c election.Controller) bool { return c.Name == to && c.State == election.StateReady })
		return ready || !snap.Active.Serving() || operate.Holds(snap, to)
	})
	if err != nil && waiting.Err() != nil && ctx.Err() == nil {
		return exit.Errorf(exit.InProgress, "it was not ready within %v: see `tanist explain`", r.Timeout)
	}
	if err != nil {
		return err
	}
	c := r.operated()
	c.Snap = snap
	move := operate.Switchover{To: to, Reason: r.Reason, Timeout: r.Timeout}
	if err := move.Check(ctx, c); err != nil {
		return err
	}
	return carryOut(ctx, r.cmd, c, &move)
}
