package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
)

func failoverCommand() *cobra.Command {
	var a access
	var f failover
	cmd := &cobra.Command{
		Use: "failover [--to NAME] [--force]", Short: "Make a passive take over that would not do so by itself", Args: noArgs,
		Long: "Make a passive take over that would not do so by itself, while no controller is active: one with nofailover, or, with --force, an\n" +
			"`unlisted` one or one on standby (`tanist ban` rules even that out). A passive is `unlisted` because the last holder may still be running without the store, and may even restart its\n" +
			"controller there. With --force, two controllers may run until that holder learns of the takeover; the command prints first what\n" +
			"is given up.\n" +
			"Exit codes: 0 done, 75 still in progress when --timeout ran out, 107 --force is needed, 1 refused or failed.",
		Example: "  tanist failover -c orders.yml --to ctl-b --force",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, func(ctx context.Context, s daemon.Store, c daemon.StoreConfig) error {
				return f.run(ctx, cmd, s, c.Cluster)
			})
		},
	}
	a.flags(cmd)
	cmd.Flags().StringVar(&f.to, "to", "", "the target controller (default: the unlisted one with the highest priority)")
	_ = cmd.RegisterFlagCompletionFunc("to", a.completeControllers) // the flag is there
	cmd.Flags().StringVar(&f.reason, "reason", "", "why, for the history")
	cmd.Flags().BoolVar(&f.force, "force", false, "do it although it is refused; the command names what is given up")
	cmd.Flags().BoolVarP(&f.yes, "yes", "y", false, "do not ask for confirmation")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 2*time.Minute, "how long to wait for the target to serve")
	return cmd
}

// failover is one that an operator asks for.
type failover struct {
	to, reason string
	force, yes bool
	timeout    time.Duration
}

func (f *failover) run(ctx context.Context, cmd *cobra.Command, s daemon.Store, cluster string) error {
	snap, err := read(ctx, s)
	if err != nil {
		return err
	}
	target, err := failoverTarget(snap, f.to)
	if err != nil {
		return err
	}
	out, unlisted, standby := cmd.OutOrStdout(), leftOut(snap, target), standingBy(snap, target)
	if unlisted {
		giveUp(out, snap, target.Name)
	}
	if standby {
		fmt.Fprintf(out, "%s is %s. By force it takes over all the same.\n", clean(target.Name), clean(snap.Standbys[target.Name].Words(target.Name)))
	}
	if standby && !unlisted && !f.force {
		return exit.Errorf(exit.Force, "%s is on standby: see above, then use --force", target.Name)
	}
	if unlisted && !f.force {
		return exit.Errorf(exit.Force, "%s is unlisted, and %s may still be running: see above what is given up, then use --force",
			target.Name, lastHolder(snap))
	}
	if !f.yes {
		question, words := fmt.Sprintf("This starts %s's controller. Continue? [y/N]", clean(target.Name)), []string{"y", "yes"}
		if unlisted || standby {
			question, words = fmt.Sprintf("Type the name of the cluster to start %s's controller by force:", clean(target.Name)), []string{cluster}
		}
		if err := confirm(ctx, cmd.InOrStdin(), out, question, words...); err != nil {
			return err
		}
	}
	return f.carryOut(ctx, out, s, election.Request{
		ID: rand.Text()[:10], Op: election.OpFailover, To: target.Name, By: operator(), Reason: f.reason, Term: snap.Breadcrumb.Of(),
		For: time.Minute, Force: unlisted || standby,
	})
}

// failoverTarget checks that a failover can be asked for, and returns who is to take over.
func failoverTarget(snap election.Snapshot, to string) (target election.Controller, err error) {
	switch {
	case snap.Active != nil:
		return target, exit.Errorf(exit.Failure, "%s holds the lease, term %d: `tanist switchover` moves it; if its sidecar is dead, its lease ends by itself",
			snap.Active.Controller, snap.Active.Term)
	case !snap.Vacant():
		return target, exit.Errorf(exit.Failure, "the role key is unreadable: see `tanist explain`")
	case snap.Pause != nil:
		return target, exit.Errorf(exit.Failure, "the cluster is paused by %s: `tanist resume` first", snap.Pause.By)
	}
	var here []string
	for _, k := range snap.Controllers {
		here = append(here, fmt.Sprintf("%s (%s)", k.Name, k.State))
		switch {
		case to == "" && k.Fit():
			return target, exit.Errorf(exit.Failure, "%s is ready and takes over by itself: see `tanist list`", k.Name)
		case to == k.Name && k.State != election.StateReady && k.State != election.StateUnlisted && !standingBy(snap, k):
			return target, exit.Errorf(exit.Failure, "%s is %s: %s", to, k.State, cmp.Or(k.Reason, "not ready to take over"))
		case to == k.Name, to == "" && k.State == election.StateUnlisted && (target.Name == "" || k.Priority > target.Priority):
			target = k
		}
	}
	switch {
	case target.Name != "":
		return target, nil
	case to != "":
		return target, exit.Errorf(exit.Failure, "there is no controller %s in this cluster; found: %s", to, cmp.Or(strings.Join(here, ", "), "none"))
	}
	return target, exit.Errorf(exit.Failure, "no passive is unlisted; found: %s", cmp.Or(strings.Join(here, ", "), "none"))
}

// standingBy reports whether k is kept out by a standby, which a failover by force overrides. A ban
// is not overridden.
func standingBy(snap election.Snapshot, k election.Controller) bool {
	by, on := snap.Standbys[k.Name]
	return on && !by.Ban && k.State == election.StateStandby
}

// leftOut reports whether the last holder, which may still be running, did not list k.
func leftOut(snap election.Snapshot, k election.Controller) bool {
	heirs := snap.Breadcrumb.Heirs
	return k.State == election.StateUnlisted || k.State == election.StateStandby && !snap.Breadcrumb.Clean && heirs != "" && !slices.Contains(strings.Split(heirs, ","), k.Name)
}

func lastHolder(snap election.Snapshot) string {
	return cmp.Or(clean(snap.Breadcrumb.Controller), "the last holder")
}

// giveUp prints what is given up when one takes over that the last holder did not list.
func giveUp(out io.Writer, snap election.Snapshot, target string) {
	holder, crumb := lastHolder(snap), snap.Breadcrumb
	heirs := slices.DeleteFunc(strings.Split(clean(crumb.Heirs), ","), func(name string) bool { return name == "" || name == crumb.Controller })
	term := ""
	if crumb.Of() != 0 {
		term = fmt.Sprintf(" (term %d)", crumb.Of())
	}
	until := "its sidecar is down for longer than " + cmp.Or(crumb.Validity, election.LongestValidity).String()
	if len(heirs) > 0 {
		until += ", or one of those on its list no longer promises to leave it the lease: " + strings.Join(heirs, ", ")
	}
	fmt.Fprintf(out, `%[2]s is not on the list of those who may take over from %[1]s%[3]s, which may still be running without the store.
If %[2]s takes over by force:
  * %[1]s may still act at the same time, and restart its sidecar and its controller, until it reaches the store again, or %[4]s.
  * Without a fenced repository both may write. With one, %[1]s is shut out there before %[2]s starts.
  * What %[1]s confirmed to its users while it was cut off from the store stands: %[2]s knows only what reached the repository.
Make sure that %[1]s's host is off, or its controller is stopped, if you can.
`, holder, clean(target), term, until)
}

// carryOut asks for the failover, and waits for it.
func (f *failover) carryOut(ctx context.Context, out io.Writer, s daemon.Store, r election.Request) error {
	if err := ask(ctx, s, r); err != nil {
		return err
	}
	void := false
	snap, err := await(ctx, out, s, f.timeout, "; `tanist cancel` withdraws it", func(snap election.Snapshot) bool {
		if snap.Active != nil && snap.Active.Term > r.Term {
			return snap.Active.Serving()
		}
		void = snap.Request == nil || snap.Request.ID != r.ID
		return void
	})
	switch {
	case err != nil:
		return err
	case void && snap.Active != nil:
		return exit.Errorf(exit.Failure, "%s is back with term %d, so nothing was forced", snap.Active.Controller, snap.Active.Term)
	case void:
		return exit.Errorf(exit.Failure, "the request is gone, and nobody is active: see `tanist explain`")
	case snap.Active.Controller != r.To:
		return exit.Errorf(exit.Failure, "%s did not make it, and %s took over", r.To, snap.Active.Controller)
	}
	fmt.Fprintf(out, "%s is active, term %d.\n", snap.Active.Controller, snap.Active.Term)
	return nil
}
