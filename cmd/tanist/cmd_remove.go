package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
)

func removeCommand() *cobra.Command {
	var a access
	var yes, force bool
	cmd := &cobra.Command{
		Use: "remove CLUSTER", Short: "Remove a cluster that is no longer run from the store",
		Long: "Remove everything that the store has of a cluster: its term record, history, members, pause, standby and requests. All of its\n" +
			"processes must have ended. The login must be allowed to write all keys of the cluster. The repository keeps its fence (`tanist\n" +
			"repository remove`), and the hosts keep their state directories.\n" +
			"Exit codes: 0 done, 107 --force is needed with -y, 77 the store denied it, 1 refused or failed.",
		Example: "  tanist remove -c orders.yml orders",
		Args:    oneName("remove which cluster? Give its name; `tanist clusters` shows all"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.anyCluster() {
				a.cluster = args[0]
			}
			return a.reading(cmd, func(ctx context.Context, r reading) error {
				if r.cluster != args[0] {
					return exit.Errorf(exit.Usage, "the cluster of the file is %s, not %s", r.cluster, args[0])
				}
				if yes && !force {
					return exit.Errorf(exit.Force, "the term record and the history of %s cannot be brought back: use -y --force", r.cluster)
				}
				return removeCluster(ctx, cmd.InOrStdin(), cmd.OutOrStdout(), r, yes)
			})
		},
	}
	a.flags(cmd)
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask for confirmation")
	cmd.Flags().BoolVar(&force, "force", false, "do it although it is refused; the command names what is given up")
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.completeClusters(cmd, typed)
	}
	return cmd
}

func removeCluster(ctx context.Context, in io.Reader, out io.Writer, r reading, yes bool) error {
	if err := known(ctx, r.store, r.cluster, r.snap); err != nil {
		return err
	}
	entries, err := unused(ctx, r)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "This removes the %d keys of %s, which has reached term %d. A cluster that is started under this name again begins with the\n"+
		"highest term that its sidecars' state directories or its repository know, or with 1 if they know none.\n", len(entries), r.cluster, r.snap.Breadcrumb.Term)
	if last := r.snap.Breadcrumb; last.Of() > 0 && !last.Clean {
		fmt.Fprintf(out, "The reign of %s, term %d, has not ended clean: its controller may still run without the store. Make sure that it does not.\n",
			operate.LastHolder(r.snap), last.Of())
	}
	if !yes {
		if err := confirm(ctx, in, out, "Type the name of the cluster to remove it:", r.cluster); err != nil {
			return err
		}
		if entries, err = unused(ctx, r); err != nil { // the question may have been open for hours
			return err
		}
	}
	// The term record goes last: while it is there, a sidecar that starts meanwhile continues its count.
	if i := slices.IndexFunc(entries, func(e election.Entry) bool { return e.Key == election.TermKey }); i >= 0 {
		term := entries[i]
		entries = append(slices.Delete(entries, i, i+1), term)
	}
	for _, e := range entries {
		limited, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
		err := r.store.Delete(limited, e.Key, e.Version)
		cancel()
		if errors.Is(err, election.ErrConflict) {
			return exit.Errorf(exit.Failure, "somebody has written %s meanwhile: a process of the cluster runs; it is removed in part", e.Key)
		}
		if err != nil {
			return writeError(err, "the end of "+e.Key)
		}
	}
	fmt.Fprintf(out, "%s is removed\n", r.cluster)
	if r.where.Store == "postgres" {
		fmt.Fprintf(out, "Its logins may still use it: `tanist store remove --cluster %s` ends that.\n", r.cluster)
	}
	return nil
}

// unused returns all keys of the cluster, or an error if a process of it is there.
func unused(ctx context.Context, r reading) (entries []election.Entry, err error) {
	if r.snap, err = read(ctx, r.store); err != nil {
		return nil, err
	}
	if err := abandoned(ctx, r); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
	defer cancel()
	if entries, err = r.store.List(ctx, ""); err != nil {
		return nil, storeError(err, "cannot read the cluster")
	}
	return entries, nil
}

// abandoned returns an error if a process of the cluster is there.
func abandoned(ctx context.Context, r reading) error {
	ctx, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
	defer cancel()
	var here []string
	if r.snap.Active != nil && r.snap.ActiveLease != "" {
		here = append(here, r.snap.Active.Controller+", which holds the lease")
	}
	for _, c := range r.snap.Controllers {
		if !operate.Holds(r.snap, c.Name) {
			here = append(here, "the sidecar of "+c.Name)
		}
	}
	agents, err := operate.ReadAgents(ctx, r.store)
	if err != nil {
		return storeError(err, "cannot read the agents")
	}
	for _, a := range agents {
		here = append(here, "agent "+a.Name)
	}
	hosts, err := operate.ReadVIPHosts(ctx, r.store)
	if err != nil {
		return storeError(err, "cannot read the hosts of virtual IPs")
	}
	for _, h := range hosts {
		here = append(here, "tanist vip "+h.Name)
	}
	if len(here) > 0 {
		return exit.Errorf(exit.Failure, "%s is in use by %s: stop all of its processes first", r.cluster, clean(strings.Join(here, ", ")))
	}
	return nil
}
