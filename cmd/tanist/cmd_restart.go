package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
)

func restartCommand() *cobra.Command {
	var a access
	var r restart
	var rolling bool
	cmd := &cobra.Command{
		Use: "restart [--rolling]", Short: "Restart the active controller, in place or by moving it through the passives", Args: noArgs,
		Long: "Restart the active controller. In place: it is drained, gets its full stop_timeout to end, and is started again on the same host, in\n" +
			"the same term; nobody takes over, unless it does not start again. With --rolling, each passive that is ready\n" +
			"becomes active in turn, by a planned move, and at last the one that was active before: so every host has started the controller\n" +
			"once. The first move that fails ends it. Passives run no controller, so a new program or file takes effect there by itself.\n" +
			"Exit codes: 0 done, 75 still in progress when --timeout ran out (see `tanist list`), 3 nobody is active, 1 refused or failed.",
		Example: "  tanist restart -c orders.yml --reason 'new certificate'\n  tanist restart -c orders.yml --rolling -y",
		RunE: func(cmd *cobra.Command, _ []string) error {
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
	cmd.Flags().StringVar(&r.reason, "reason", "", "why, for the history")
	cmd.Flags().BoolVarP(&r.yes, "yes", "y", false, "do not ask for confirmation")
	cmd.Flags().DurationVar(&r.timeout, "timeout", 2*time.Minute, "how long to wait for the controller to serve, in each step")
	return cmd
}

// restart is one that an operator asks for.
type restart struct {
	reading
	cmd     *cobra.Command
	reason  string
	yes     bool
	timeout time.Duration
}

// inPlace asks the holder to stop and start its controller.
func (r *restart) inPlace(ctx context.Context) error {
	before, err := r.serving()
	if err != nil {
		return err
	}
	if r.snap.Pause != nil {
		return exit.Errorf(exit.Failure, "the cluster is paused by %s: `tanist resume` first", r.snap.Pause.By)
	}
	out := r.cmd.OutOrStdout()
	if !r.yes {
		question := fmt.Sprintf("This stops %s's controller and starts it again, in term %d. Continue? [y/N]", clean(before.Controller), before.Term)
		if err := confirm(ctx, r.cmd.InOrStdin(), out, question, "y", "yes"); err != nil {
			return err
		}
	}
	request := election.Request{
		ID: rand.Text()[:10], Op: election.OpRestart, To: before.Controller, By: operator(), Reason: r.reason, Term: before.Term, For: time.Minute,
	}
	if err := ask(ctx, r.store, request); err != nil {
		return err
	}
	var down time.Time
	snap, err := await(ctx, out, r.store, r.timeout, "", func(snap election.Snapshot) bool {
		if !snap.Active.Serving() && down.IsZero() {
			down = time.Now()
		}
		return snap.Active.Serving() && (snap.Active.Term != before.Term || snap.Request == nil || snap.Request.ID != request.ID)
	})
	switch is := snap.Active; {
	case err != nil:
		return err
	case is.Term != before.Term:
		return exit.Errorf(exit.Failure, "%s did not serve again in its term %d, and %s took over, term %d: see `tanist describe %s`",
			before.Controller, before.Term, is.Controller, is.Term, before.Controller)
	case is.Since.Equal(before.Since):
		return exit.Errorf(exit.Failure, "%s refused to restart its controller: its log has the reason; `tanist restart --rolling` moves it instead", is.Controller)
	}
	outage := "too short to be seen here"
	if !down.IsZero() {
		outage = time.Since(down).Round(time.Millisecond).String()
	}
	fmt.Fprintf(out, "%s serves again, still term %d. Outage %s.\n", clean(before.Controller), before.Term, outage)
	return nil
}

// roll moves the active through every passive that is ready, and back.
func (r *restart) roll(ctx context.Context) error {
	if _, err := chooseTarget(r.snap, ""); err != nil {
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
	waiting, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	snap, err := until(waiting, r.store, func(snap election.Snapshot) bool {
		ready := slices.ContainsFunc(snap.Controllers, func(c election.Controller) bool { return c.Name == to && c.State == election.StateReady })
		return ready || !snap.Active.Serving() || holds(snap, to)
	})
	if err != nil && waiting.Err() != nil && ctx.Err() == nil {
		return exit.Errorf(exit.InProgress, "it was not ready within %v: see `tanist explain`", r.timeout)
	}
	if err != nil {
		return err
	}
	if _, err := chooseTarget(snap, to); err != nil {
		return err
	}
	return switchover(ctx, r.cmd, r.store, election.Request{
		ID: rand.Text()[:10], Op: election.OpSwitchover, To: to, By: operator(), Reason: r.reason, Term: snap.Active.Term, For: time.Minute,
	}, snap.Active.Controller, r.timeout, false)
}
